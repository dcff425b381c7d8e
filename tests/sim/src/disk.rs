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
    /// What was there before each of the last changes, and when that was.
    undo: VecDeque<(u64, String, Option<Vec<u8>>)>,
}

/// The last-good copy, which stands in for a database that is lost, is at most this much older.
pub const COPY_AGE: u64 = 10_000;

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

    fn write(&mut self, changes: Vec<Change>, now: u64) {
        for change in changes {
            let (key, before) = match change {
                Change::Put { key, value } => (key.clone(), self.records.insert(key, value)),
                Change::Remove { key } => {
                    let before = self.records.remove(&key);
                    (key, before)
                }
            };
            self.undo.push_back((now, key, before));
        }
        while self.undo.front().is_some_and(|(at, ..)| at + COPY_AGE < now) {
            self.undo.pop_front();
        }
    }

    /// The database and its journal are lost: what was stored then comes back, and is what the next copy begins with.
    pub fn restore(&mut self, then: u64) {
        while let Some((_, key, before)) = self.undo.pop_back_if(|(at, ..)| *at > then) {
            match before {
                Some(value) => self.records.insert(key, value),
                None => self.records.remove(&key),
            };
        }
        self.undo.clear();
    }

    /// The oldest batch becomes durable, if it is this one: what waited for it.
    pub fn sync(&mut self, commit: CommitId, now: u64) -> Option<Vec<Effect>> {
        if self.pending.front()?.commit != commit {
            return None;
        }
        let batch = self.pending.pop_front()?;
        self.write(batch.changes, now);
        Some(batch.behind)
    }

    /// Everything on its way fails, in order.
    pub fn fail(&mut self) -> Vec<CommitId> {
        self.pending.drain(..).map(|batch| batch.commit).collect()
    }

    /// The daemon is gone: some beginning of what was on its way has reached the disk.
    pub fn crash(&mut self, dice: &mut Dice, now: u64) {
        let kept = dice.below(self.pending.len() as u64 + 1);
        for _ in 0..kept {
            if let Some(batch) = self.pending.pop_front() {
                self.write(batch.changes, now);
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
