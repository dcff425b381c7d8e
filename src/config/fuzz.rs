//! Fuzz targets of everything that configures; see [`crate::fuzz`].
#![allow(
    clippy::panic,
    clippy::missing_panics_doc,
    reason = "a panic is how a target says that it has found something"
)]

use std::collections::BTreeMap;

use super::eni_config::document;
use super::types::Config;
use super::{EniConfigSelection, EniConfigs, choose, kubelet};

/// The environment, then the file: `NAME=value` lines up to the first line `---`, and everything behind it.
pub fn configuration(data: &[u8]) {
    let text = String::from_utf8_lossy(data);
    let (environment, file) = match text.split_once("\n---\n") {
        Some((environment, file)) => (environment, Some(file)),
        None => (text.as_ref(), None),
    };
    let environment: BTreeMap<String, String> = environment
        .lines()
        .filter_map(|line| line.split_once('='))
        .map(|(name, value)| (name.to_owned(), value.to_owned()))
        .collect();
    match Config::load(&environment, file) {
        Ok(config) => {
            let pool = &config.pool;
            assert!(pool.ask_ec2 || !pool.provisioning);
            assert!(pool.provisioning || !pool.leak_cleanup);
            let targets = pool
                .warm_prefix_target
                .max(pool.warm_ip_target)
                .max(pool.minimum_ip_target);
            assert!(
                pool.ipv6 || !pool.prefix_delegation || pool.adaptive || targets > 0,
                "idle prefixes would flap"
            );
            for warning in &config.warnings {
                drop(warning.to_string());
            }
            // A secret of the file is nobody's to read.
            if let Some(key) = config.aws.access_key.as_ref().filter(|key| key.secret.len() > 20) {
                assert!(!format!("{:?}", config.aws).contains(&key.secret));
            }
        }
        Err(errors) => {
            assert!(!errors.errors.is_empty());
            drop(errors.to_string());
        }
    }
}

/// ENIConfig files: what is used stands in them, no name is used twice, and what is wrong is said in a few lines.
pub fn eni_configs(data: &[u8]) {
    let Ok(text) = std::str::from_utf8(data) else {
        return;
    };
    let mut all = EniConfigs::default();
    // Two files, as a name may come twice; the second is cut short, as one being written is.
    document::read(text, "a.yaml", &mut all);
    let half = text.get(..text.len() / 2).unwrap_or_default();
    document::read(half, "b.yaml", &mut all);
    let mut names: Vec<&str> = all.configs.iter().map(|config| config.name.as_str()).collect();
    names.sort_unstable();
    let before = names.len();
    names.dedup();
    assert_eq!(names.len(), before, "a name is used twice");
    for config in &all.configs {
        assert!(!config.subnets.is_empty());
        assert!(config.subnets.iter().all(|subnet| text.contains(subnet.as_str())));
        assert!(config.groups.iter().all(|group| text.contains(group.as_str())));
    }
    assert!(all.problems.len() <= 50, "{} problems", all.problems.len());
    assert!(
        all.problems
            .iter()
            .all(|problem| problem.to_string().len() < 2000)
    );
    let selection = EniConfigSelection {
        directory: "/".into(),
        labels: BTreeMap::new(),
        annotations: BTreeMap::new(),
        label_key: "k".to_owned(),
        annotation_key: "k".to_owned(),
    };
    if let Ok(chosen) = choose(&all, &selection, "eu-west-1a") {
        assert!(names.contains(&chosen.name.as_str()));
        let is_for_us = chosen.name == "eu-west-1a" || text.contains("eu-west-1a") || !all.is_incomplete();
        assert!(is_for_us, "{chosen:?} was fallen back on");
    }
}

/// Kubelet's configuration: a number or a reason.
pub fn kubelet_files(data: &[u8]) {
    match kubelet::said(data) {
        Ok(0) => {}
        Ok(_) => assert!(data.windows(7).any(|word| word == b"maxPods") || data.contains(&b'\\')),
        Err(why) => assert!(!why.is_empty()),
    }
}
