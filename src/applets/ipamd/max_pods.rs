//! Kubelet's limit of pods, which the pool need not outgrow: from kubelet's files, where nothing else is said.
//!
//! They are looked at again now and then: on a node that boots they may be written after this daemon has started, and
//! a kubelet that is given another limit is no reason to restart what its pods depend on.

use std::path::PathBuf;
use std::time::Duration;

use tokio::sync::mpsc::UnboundedSender;
use tracing::{info, warn};

use super::actor::Mail;
use crate::config::{Config, KubeletLimit, kubelet_limit};
use crate::ipam::event::Event;
use crate::ipam::policy::Policy;

/// Two or three small files; pods do not come before kubelet does.
pub(super) const EVERY: Duration = Duration::from_secs(30);

/// Kubelet's files, and what they said last.
#[derive(Debug)]
pub(super) struct KubeletFiles {
    path: PathBuf,
    last: KubeletLimit,
}

impl KubeletFiles {
    /// None where `AWS_CNI_MAX_PODS` has the word.
    pub(super) fn of(config: &Config) -> Option<Self> {
        config.pool.max_pods.is_none().then(|| Self {
            path: config.pool.kubelet_config.clone(),
            last: KubeletLimit::default(),
        })
    }

    /// Looks again; whether the limit is another than before. What is wrong with the files is said once.
    pub(super) fn changed(&mut self) -> bool {
        let found = kubelet_limit(&self.path);
        for remark in found
            .remarks
            .iter()
            .filter(|remark| !self.last.remarks.contains(remark))
        {
            warn!("kubelet's maxPods is not known from {remark}; AWS_CNI_MAX_PODS can say it");
        }
        let is_news = found.max_pods != self.last.max_pods;
        self.last = found;
        match &self.last.max_pods {
            _ if !is_news => {}
            Some((max_pods, file)) => {
                info!(max_pods, "kubelet takes {max_pods} pods, says {}", file.display());
            }
            None => info!("kubelet's files no longer limit the number of pods"),
        }
        is_news
    }

    /// The limit, if there is one.
    pub(super) fn max_pods(&self) -> Option<u32> {
        self.last.max_pods.as_ref().map(|(max_pods, _)| *max_pods)
    }
}

/// Tells the pool of every change of kubelet's limit, for as long as the runtime lives.
pub(super) fn follow(mut files: KubeletFiles, policy: Policy, every: Duration, mail: UnboundedSender<Mail>) {
    tokio::spawn(async move {
        loop {
            tokio::time::sleep(every).await;
            if !files.changed() {
                continue;
            }
            let policy = Policy {
                max_pods: files.max_pods(),
                ..policy.clone()
            };
            if mail.send(Event::Reconfigured(Box::new(policy)).into()).is_err() {
                return;
            }
        }
    });
}

#[cfg(test)]
mod tests {
    use tokio::sync::mpsc::unbounded_channel;

    use super::*;

    /// A node that boots: the file comes after the daemon, and is changed later.
    #[tokio::test]
    async fn a_limit_that_comes_late_or_changes_is_told_and_one_that_stays_is_not() {
        let node = tempfile::tempdir().unwrap();
        let path = node.path().join("config.json");
        let mut files = KubeletFiles {
            path: path.clone(),
            last: KubeletLimit::default(),
        };
        assert!(!files.changed());
        let (mail, mut letters) = unbounded_channel();
        let mut told = async || match letters.recv().await.unwrap() {
            Mail::Event(event) => match *event {
                Event::Reconfigured(policy) => policy.max_pods,
                other => panic!("{other:?}"),
            },
            other => panic!("{other:?}"),
        };
        std::fs::write(&path, r#"{"maxPods": 58}"#).unwrap();
        follow(files, Policy::default(), Duration::from_millis(2), mail);
        assert_eq!(told().await, Some(58));
        // Replaced as a whole, as its writers do: half a file would be garbage, and no limit for a moment.
        let next = node.path().join("next");
        std::fs::write(&next, r#"{"maxPods": 110}"#).unwrap();
        std::fs::rename(next, &path).unwrap();
        assert_eq!(told().await, Some(110), "58 was told once");
        std::fs::remove_file(&path).unwrap();
        assert_eq!(told().await, None);
    }
}
