//! DELs that plugins cleaned up after while the daemon was away.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

use tracing::{info, warn};

use crate::ipam::effect::ReleasedAddress;
use crate::ipam::ids::{SandboxKey, WaiterId};
use crate::store::pending;

/// So many at one look: a long absence may have left thousands, and ADDs wait behind them.
const MOST: usize = 1024;

/// The deferred DELs being worked off. Their waiter ids count down from the top, far from the socket's.
#[derive(Debug)]
pub(super) struct Deferred {
    directory: PathBuf,
    next: u64,
    files: BTreeMap<WaiterId, PathBuf>,
    /// What was released and is to be taken out of the kernel once that is durable.
    released: BTreeMap<WaiterId, Vec<ReleasedAddress>>,
    unreadable: BTreeSet<PathBuf>,
}

impl Deferred {
    /// Those below the state directory.
    pub(super) fn new(state_dir: &Path) -> Self {
        Self {
            directory: state_dir.join(pending::DIRECTORY),
            next: u64::MAX,
            files: BTreeMap::new(),
            released: BTreeMap::new(),
            unreadable: BTreeSet::new(),
        }
    }

    /// What has been left since the last look, as DELs to ask the pool for.
    pub(super) fn collect(&mut self) -> Vec<(WaiterId, SandboxKey)> {
        let listed = match pending::list(&self.directory) {
            Ok(listed) => listed,
            Err(error) => {
                warn!("deferred DELs could not be listed: {error}");
                return Vec::new();
            }
        };
        let mut dels = Vec::new();
        for file in listed {
            if self.files.len() >= MOST {
                break;
            }
            if self.files.values().any(|path| *path == file.path) {
                continue;
            }
            match file.content {
                Ok(record) => {
                    let waiter = WaiterId(self.next);
                    self.next = self.next.saturating_sub(1);
                    self.files.insert(waiter, file.path);
                    dels.push((
                        waiter,
                        SandboxKey {
                            network: record.network.into(),
                            container: record.container_id.into(),
                            ifname: record.ifname.into(),
                        },
                    ));
                }
                Err(error) => {
                    if self.unreadable.insert(file.path) {
                        warn!("a deferred DEL cannot be read and stays where it is: {error}");
                    }
                }
            }
        }
        if !dels.is_empty() {
            info!(count = dels.len(), "working off deferred DELs");
        }
        dels
    }

    /// Whether this waiter is a deferred DEL.
    pub(super) fn holds(&self, waiter: WaiterId) -> bool {
        self.files.contains_key(&waiter)
    }

    /// The pool has released this for a deferred DEL.
    pub(super) fn released(&mut self, waiter: WaiterId, addresses: Vec<ReleasedAddress>) {
        self.released.insert(waiter, addresses);
    }

    /// What a deferred DEL has released, asked for once.
    pub(super) fn take_released(&mut self, waiter: WaiterId) -> Vec<ReleasedAddress> {
        self.released.remove(&waiter).unwrap_or_default()
    }

    /// The pool has answered: the release is durable, and the file has done its duty. False when it was no deferred DEL.
    pub(super) fn answered(&mut self, waiter: WaiterId) -> bool {
        let Some(path) = self.files.remove(&waiter) else {
            return false;
        };
        if let Err(error) = pending::remove(&path) {
            warn!("a deferred DEL that is done could not be removed: {error}");
        }
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::pending::PendingDel;

    #[test]
    fn a_long_absence_is_worked_off_piece_by_piece() {
        let state = tempfile::tempdir().unwrap();
        let mut deferred = Deferred::new(state.path());
        std::fs::create_dir(&deferred.directory).unwrap();
        for number in 0..MOST + 3 {
            let record = PendingDel::new("aws-cni", &format!("c{number}"), "eth0");
            let text = serde_json::to_vec(&record).unwrap();
            std::fs::write(deferred.directory.join(record.file_name()), text).unwrap();
        }
        let first = deferred.collect();
        assert_eq!(first.len(), MOST);
        assert!(
            deferred.collect().is_empty(),
            "nothing more until those are answered"
        );
        for (waiter, _) in first {
            assert!(deferred.answered(waiter));
        }
        assert_eq!(deferred.collect().len(), 3);
    }
}
