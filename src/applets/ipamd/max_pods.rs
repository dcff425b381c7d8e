//! Kubelet's limit of pods, which the pool need not outgrow: from kubelet's files, where nothing else is said.

use std::path::PathBuf;

use tracing::{info, warn};

use crate::config::{Config, KubeletLimit, kubelet_limit};

/// Kubelet's files, and what they said last.
#[derive(Debug)]
pub(super) struct KubeletFiles {
    path: PathBuf,
    last: KubeletLimit,
}

impl KubeletFiles {
    pub(super) fn at(path: PathBuf) -> Self {
        let last = KubeletLimit::default();
        Self { path, last }
    }

    /// None where `AWS_CNI_MAX_PODS` has the word.
    pub(super) fn of(config: &Config) -> Option<Self> {
        config
            .pool
            .max_pods
            .is_none()
            .then(|| Self::at(config.pool.kubelet_config.clone()))
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
