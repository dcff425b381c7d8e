//! Which ENIConfig holds for this node, from its source and again when that changes.

use tracing::{error, info, warn};

use crate::config::{
    Config, EniConfigDirectory, EniConfigProblem, EniConfigSelection, EniConfigSource, EniConfigs, Lost,
    choose,
};
use crate::ipam::policy::EniConfigChoice;

/// A source of ENIConfigs, and what it said last.
#[derive(Debug)]
pub(super) struct ChosenEniConfig {
    source: Box<dyn EniConfigSource>,
    selection: EniConfigSelection,
    zone: String,
    last: Option<EniConfigs>,
    why_not: Option<String>,
    choice: Option<EniConfigChoice>,
}

impl ChosenEniConfig {
    /// None without custom networking.
    pub(super) fn of(config: &Config, zone: &str) -> Option<Self> {
        let selection = config.eni_config.clone();
        let source = EniConfigDirectory::new(selection.directory.clone());
        let on = config.pool.custom_networking;
        on.then(|| Self::new(Box::new(source), selection, zone.to_owned()))
    }

    pub(super) fn new(source: Box<dyn EniConfigSource>, selection: EniConfigSelection, zone: String) -> Self {
        Self {
            source,
            selection,
            zone,
            last: None,
            why_not: None,
            choice: None,
        }
    }

    /// Looks again; whether another ENIConfig holds than before, or the same with other content. What is wrong is said
    /// once.
    pub(super) fn changed(&mut self) -> bool {
        let found = self.source.read();
        if self.last.as_ref() == Some(&found) {
            return false;
        }
        self.tell(&found.problems);
        let chosen = choose(&found, &self.selection, &self.zone);
        self.last = Some(found);
        let (choice, why_not) = match chosen {
            Ok(choice) => (Some(choice), None),
            // Somebody is in the middle of an edit: what held before goes on holding.
            Err(why) if why.is_doubt() => (self.choice.clone(), Some(why.to_string())),
            Err(why) => (None, Some(why.to_string())),
        };
        if why_not != self.why_not {
            explain(why_not.as_deref(), choice.as_ref());
        }
        self.why_not = why_not;
        let is_news = choice != self.choice;
        self.choice = choice;
        if let (true, Some(choice)) = (is_news, &self.choice) {
            announce(choice);
        }
        is_news
    }

    /// What holds.
    pub(super) fn choice(&self) -> Option<EniConfigChoice> {
        self.choice.clone()
    }

    /// Why nothing does.
    pub(super) fn missing(&self) -> Option<String> {
        self.why_not.clone().filter(|_| self.choice.is_none())
    }

    fn tell(&self, problems: &[EniConfigProblem]) {
        let told = |problem: &&EniConfigProblem| {
            let before = self.last.as_ref();
            before.is_some_and(|before| before.problems.contains(problem))
        };
        for problem in problems.iter().filter(|problem| !told(problem)) {
            if problem.lost == Lost::Nothing {
                warn!("{problem}");
            } else {
                error!("{problem}");
            }
        }
    }
}

fn explain(why_not: Option<&str>, choice: Option<&EniConfigChoice>) {
    match (why_not, choice) {
        (None, _) => {}
        (Some(why), Some(kept)) => error!("{why}; {} as it was read before goes on holding", kept.name),
        (Some(why), None) => error!("no ENI can be made: {why}"),
    }
}

fn announce(choice: &EniConfigChoice) {
    let (name, subnets) = (&choice.name, listed(&choice.subnets));
    if choice.groups.is_empty() {
        info!("new ENIs are made in {subnets} with the primary ENI's groups, says ENIConfig {name}");
    } else {
        let groups = listed(&choice.groups);
        info!("new ENIs are made in {subnets} with {groups}, says ENIConfig {name}");
    }
}

fn listed<T: ToString>(ids: &[T]) -> String {
    ids.iter().map(ToString::to_string).collect::<Vec<_>>().join(", ")
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;
    use std::sync::{Arc, Mutex};

    use super::*;
    use crate::config::EniConfig;

    #[derive(Debug, Clone, Default)]
    struct ByHand(Arc<Mutex<EniConfigs>>);

    impl EniConfigSource for ByHand {
        fn read(&self) -> EniConfigs {
            self.0.lock().unwrap().clone()
        }
    }

    impl ByHand {
        fn set(&self, configs: &[(&str, &str)], lost: &[Lost]) {
            let config = |(name, subnet): &(&str, &str)| EniConfig {
                name: (*name).to_owned(),
                subnets: vec![(*subnet).into()],
                groups: vec![],
                zone: None,
                origin: String::new(),
            };
            let problem = |lost: &Lost| EniConfigProblem {
                origin: String::new(),
                what: String::new(),
                lost: lost.clone(),
            };
            *self.0.lock().unwrap() = EniConfigs {
                configs: configs.iter().map(config).collect(),
                problems: lost.iter().map(problem).collect(),
            };
        }
    }

    fn node(source: &ByHand) -> ChosenEniConfig {
        let selection = EniConfigSelection {
            directory: "/x".into(),
            labels: BTreeMap::new(),
            annotations: BTreeMap::new(),
            label_key: "k".to_owned(),
            annotation_key: "k".to_owned(),
        };
        ChosenEniConfig::new(Box::new(source.clone()), selection, "z".to_owned())
    }

    fn subnet(node: &ChosenEniConfig) -> Option<String> {
        node.choice().map(|choice| choice.subnets[0].to_string())
    }

    #[test]
    fn a_change_is_news_once() {
        let source = ByHand::default();
        let mut node = node(&source);
        assert!(!node.changed());
        source.set(&[("default", "subnet-1")], &[]);
        assert!(node.changed());
        assert_eq!(subnet(&node).as_deref(), Some("subnet-1"));
        assert!(!node.changed());
        source.set(&[("default", "subnet-2"), ("other", "subnet-3")], &[]);
        assert!(node.changed());
        assert_eq!(subnet(&node).as_deref(), Some("subnet-2"));
        source.set(&[("default", "subnet-2"), ("other", "subnet-4")], &[]);
        assert!(!node.changed(), "another node's ENIConfig is no news here");
        source.set(&[("default", "subnet-2"), ("z", "subnet-4")], &[]);
        assert!(node.changed());
        assert_eq!(subnet(&node).as_deref(), Some("subnet-4"));
    }

    /// Half an edit takes nothing away; a removal does, as upstream refuses to make ENIs then.
    #[test]
    fn what_held_goes_on_holding_while_files_are_broken_and_not_when_they_are_gone() {
        let source = ByHand::default();
        let mut node = node(&source);
        source.set(&[("default", "subnet-1")], &[]);
        assert!(node.changed());
        for lost in [
            Lost::Unknown,
            Lost::Named("default".into()),
            Lost::Named("z".into()),
        ] {
            source.set(&[], &[lost]);
            assert!(!node.changed());
            assert_eq!(subnet(&node).as_deref(), Some("subnet-1"));
        }
        source.set(&[("default", "subnet-1")], &[Lost::Nothing]);
        assert!(!node.changed());
        source.set(&[], &[]);
        assert!(node.changed());
        assert_eq!(subnet(&node), None);
        source.set(&[("default", "subnet-1")], &[Lost::Unknown]);
        assert!(!node.changed(), "with nothing known before, doubt is no answer");
    }
}
