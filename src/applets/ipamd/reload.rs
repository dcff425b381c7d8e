//! Files of others that the pool's policy follows: kubelet's, and ENIConfigs.
//!
//! They are looked at again now and then: on a node that boots they may be written after this daemon has started, and
//! a kubelet with another limit or an ENIConfig with another subnet is no reason to restart what pods depend on.

use std::time::Duration;

use tokio::sync::mpsc::UnboundedSender;

use super::eni_configs::ChosenEniConfig;
use super::mail::Mail;
use super::max_pods::KubeletFiles;
use crate::config::Config;
use crate::ipam::event::Event;
use crate::ipam::policy::Policy;

/// A handful of small files; pods do not come before kubelet does.
pub(super) const EVERY: Duration = Duration::from_secs(30);

/// What is followed.
#[derive(Debug)]
pub(super) struct Files {
    kubelet: Option<KubeletFiles>,
    eni_config: Option<ChosenEniConfig>,
}

impl Files {
    /// As the configuration wants it, for a node in `zone`.
    pub(super) fn of(config: &Config, zone: &str) -> Self {
        Self {
            kubelet: KubeletFiles::of(config),
            eni_config: ChosenEniConfig::of(config, zone),
        }
    }

    /// Looks at everything again and puts it into the policy; whether anything is another than before.
    pub(super) fn refresh(&mut self, policy: &mut Policy) -> bool {
        policy.custom_networking = self.eni_config.is_some();
        let mut is_news = false;
        if let Some(files) = &mut self.kubelet
            && files.changed()
        {
            policy.max_pods = files.max_pods();
            is_news = true;
        }
        if let Some(chosen) = &mut self.eni_config {
            if chosen.changed() {
                policy.eni_config = chosen.choice();
                is_news = true;
            }
            let missing = chosen.missing();
            is_news |= policy.eni_config_missing != missing;
            policy.eni_config_missing = missing;
        }
        is_news
    }

    fn is_empty(&self) -> bool {
        self.kubelet.is_none() && self.eni_config.is_none()
    }
}

/// Tells the pool of every change, for as long as the runtime lives.
pub(super) fn follow(mut files: Files, mut policy: Policy, every: Duration, mail: UnboundedSender<Mail>) {
    if files.is_empty() {
        return;
    }
    tokio::spawn(async move {
        loop {
            tokio::time::sleep(every).await;
            if !files.refresh(&mut policy) {
                continue;
            }
            let news = Event::Reconfigured(Box::new(policy.clone()));
            if mail.send(news.into()).is_err() {
                return;
            }
        }
    });
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;
    use std::path::Path;

    use tokio::sync::mpsc::{UnboundedReceiver, unbounded_channel};

    use super::*;

    /// Replaced as a whole, as its writers do: half a file would be garbage.
    fn replace(path: &Path, text: &str) {
        let next = path.with_extension("next");
        std::fs::write(&next, text).unwrap();
        std::fs::rename(next, path).unwrap();
    }

    async fn told(letters: &mut UnboundedReceiver<Mail>) -> Policy {
        match letters.recv().await.unwrap() {
            Mail::Event(event) => match *event {
                Event::Reconfigured(policy) => *policy,
                other => panic!("{other:?}"),
            },
            other => panic!("{other:?}"),
        }
    }

    /// A node that boots: the file comes after the daemon, and is changed later.
    #[tokio::test]
    async fn a_limit_that_comes_late_or_changes_is_told_and_one_that_stays_is_not() {
        let node = tempfile::tempdir().unwrap();
        let path = node.path().join("config.json");
        let mut files = Files {
            kubelet: Some(KubeletFiles::at(path.clone())),
            eni_config: None,
        };
        assert!(!files.refresh(&mut Policy::default()));
        let (mail, mut letters) = unbounded_channel();
        replace(&path, r#"{"maxPods": 58}"#);
        follow(files, Policy::default(), Duration::from_millis(2), mail);
        assert_eq!(told(&mut letters).await.max_pods, Some(58));
        replace(&path, r#"{"maxPods": 110}"#);
        assert_eq!(told(&mut letters).await.max_pods, Some(110), "58 was told once");
        std::fs::remove_file(&path).unwrap();
        assert_eq!(told(&mut letters).await.max_pods, None);
    }

    /// Two followers with a policy each would undo each other's news.
    #[tokio::test]
    async fn news_of_one_file_keep_what_another_said() {
        let node = tempfile::tempdir().unwrap();
        let kubelet = node.path().join("config.json");
        let directory = node.path().join("eniconfig.d");
        let env = [
            ("AWS_CNI_KUBELET_CONFIG", kubelet.to_str().unwrap()),
            ("AWS_CNI_ENICONFIG_DIR", directory.to_str().unwrap()),
            ("AWS_VPC_K8S_CNI_CUSTOM_NETWORK_CFG", "true"),
        ];
        let env: BTreeMap<String, String> = env.map(|(k, v)| (k.to_owned(), v.to_owned())).into();
        let config = Config::load(&env, None).unwrap();
        replace(&kubelet, r#"{"maxPods": 58}"#);
        let mut policy = Policy::default();
        let mut files = Files::of(&config, "eu-west-1a");
        assert!(files.refresh(&mut policy));
        assert_eq!((policy.custom_networking, policy.max_pods), (true, Some(58)));
        assert_eq!(policy.eni_config, None);

        let (mail, mut letters) = unbounded_channel();
        follow(files, policy, Duration::from_millis(2), mail);
        std::fs::create_dir(&directory).unwrap();
        let text = |subnet| {
            format!(
                "apiVersion: crd.k8s.amazonaws.com/v1alpha1\nkind: ENIConfig\nmetadata: {{name: eu-west-1a}}\n\
                 spec: {{subnet: {subnet}, securityGroups: [sg-01234567]}}\n"
            )
        };
        let file = directory.join("a.yaml");
        replace(&file, &text("subnet-01234567"));
        let first = told(&mut letters).await;
        let choice = first.eni_config.unwrap();
        assert_eq!((choice.name.as_str(), first.max_pods), ("eu-west-1a", Some(58)));
        replace(&kubelet, "maxPods: 110\n");
        let second = told(&mut letters).await;
        assert_eq!(
            (second.eni_config.as_ref(), second.max_pods),
            (Some(&choice), Some(110))
        );
        replace(&file, &text("subnet-76543210"));
        let third = told(&mut letters).await.eni_config.unwrap();
        assert_eq!(third.subnets, ["subnet-76543210".into()]);
    }
}
