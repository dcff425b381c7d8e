//! A disk with a journal: what is synced survives; of what is not, a kill keeps some beginning.

use std::collections::{BTreeMap, VecDeque};

use aws_cni_ipam::effect::{Change, Effect};
use aws_cni_ipam::ids::CommitId;

use crate::dice::Dice;

/// A batch on its way.
#[derive(Debug)]
pub struct Batch {
    /// Its number.
    pub commit: CommitId,
    changes: Vec<Change>,
    /// What waits for it.
    pub behind: Vec<Effect>,
}

/// What is stored, and what is on its way.
#[derive(Debug, Default)]
pub struct Disk {
    /// What is stored.
    pub records: BTreeMap<String, Vec<u8>>,
    pending: VecDeque<Batch>,
    done_at: u64,
}

impl Disk {
    /// Takes a batch; returns when it will be durable.
    pub fn push(&mut self, commit: CommitId, changes: Vec<Change>, behind: Vec<Effect>, due: u64) -> u64 {
        self.pending.push_back(Batch {
            commit,
            changes,
            behind,
        });
        self.done_at = self.done_at.max(due);
        self.done_at
    }

    /// Whether everything handed over is durable.
    pub fn is_quiet(&self) -> bool {
        self.pending.is_empty()
    }

    fn write(&mut self, changes: Vec<Change>) {
        for change in changes {
            match change {
                Change::Put { key, value } => self.records.insert(key, value),
                Change::Remove { key } => self.records.remove(&key),
            };
        }
    }

    /// The oldest batch becomes durable, if it is this one: what waited for it.
    pub fn sync(&mut self, commit: CommitId) -> Option<Vec<Effect>> {
        if self.pending.front()?.commit != commit {
            return None;
        }
        let batch = self.pending.pop_front()?;
        self.write(batch.changes);
        Some(batch.behind)
    }

    /// Everything on its way fails, in order.
    pub fn fail(&mut self) -> Vec<CommitId> {
        self.pending.drain(..).map(|batch| batch.commit).collect()
    }

    /// The daemon is gone: some beginning of what was on its way has reached the disk.
    pub fn crash(&mut self, dice: &mut Dice) {
        let kept = dice.below(self.pending.len() as u64 + 1);
        for _ in 0..kept {
            if let Some(batch) = self.pending.pop_front() {
                self.write(batch.changes);
            }
        }
        self.pending.clear();
        self.done_at = 0;
    }

    /// A record is damaged or lost; its key.
    pub fn damage(&mut self, nth: u32, lost: bool) -> Option<String> {
        let index = usize::try_from(nth)
            .unwrap_or(0)
            .checked_rem(self.records.len())?;
        let key = self.records.keys().nth(index)?.clone();
        if lost {
            self.records.remove(&key);
        } else if let Some(value) = self.records.get_mut(&key) {
            value.truncate(value.len() / 2);
        }
        Some(key)
    }
}
