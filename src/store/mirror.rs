//! What the store's threads share: everything durable, and how the store is doing.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Instant;

use super::error::CommitError;
use super::record::Generation;
use super::{Condition, Health};

/// Everything durable at one generation. In memory, since it must outlive a database that breaks while it is open;
/// a thousand records are a few hundred kilobytes.
#[derive(Debug, Clone, Default)]
pub(super) struct Mirror {
    pub(super) generation: Generation,
    pub(super) entries: BTreeMap<String, Arc<[u8]>>,
}

impl Mirror {
    pub(super) fn new(generation: Generation, entries: BTreeMap<String, Vec<u8>>) -> Self {
        Self {
            generation,
            entries: entries
                .into_iter()
                .map(|(key, value)| (key, value.into()))
                .collect(),
        }
    }
}

/// What the keeper sleeps on.
#[derive(Debug, Default)]
pub(super) struct Signal {
    pub(super) durable: Generation,
    pub(super) last_commit: Option<Instant>,
    /// The keeper has nothing to write and must be woken for the next commit; otherwise its own timer does.
    pub(super) keeper_idle: bool,
    /// The journal needs a copy soon, to be able to go on.
    pub(super) copy_now: bool,
    pub(super) stop: bool,
}

/// Shared by the handle, the writer and the keeper.
#[derive(Debug)]
pub(super) struct Shared {
    mirror: Mutex<Mirror>,
    pub(super) health: Mutex<Health>,
    pub(super) signal: Mutex<Signal>,
    pub(super) wake: Condvar,
    /// Held by whoever changes files of the directory by name, so that an exchange finds none half done.
    files: Mutex<()>,
    queued: AtomicUsize,
}

impl Shared {
    pub(super) fn new(mirror: Mirror, copied: Generation, has_ballast: bool) -> Self {
        let durable = mirror.generation;
        Self {
            mirror: Mutex::new(mirror),
            health: Mutex::new(Health {
                condition: if has_ballast {
                    Condition::Healthy
                } else {
                    Condition::ReserveSpent
                },
                durable,
                waiting_writes: 0,
                copied,
                copy_error: None,
            }),
            signal: Mutex::new(Signal {
                durable,
                ..Signal::default()
            }),
            wake: Condvar::new(),
            files: Mutex::new(()),
            queued: AtomicUsize::new(0),
        }
    }

    pub(super) fn mirror(&self) -> MutexGuard<'_, Mirror> {
        self.mirror.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn health(&self) -> MutexGuard<'_, Health> {
        self.health.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn signal(&self) -> MutexGuard<'_, Signal> {
        self.signal.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn files(&self) -> MutexGuard<'_, ()> {
        self.files.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn enter_queue(&self, limit: usize) -> Result<(), CommitError> {
        if self.queued.fetch_add(1, Ordering::AcqRel) >= limit {
            self.leave_queue(1);
            return Err(CommitError::QueueFull);
        }
        Ok(())
    }

    pub(super) fn leave_queue(&self, commits: usize) {
        self.queued.fetch_sub(commits, Ordering::AcqRel);
    }

    /// Tells the keeper about a durable generation, waking it only when its own timer would not.
    pub(super) fn note_durable(&self, durable: Generation, copy_every: u64, copy_now: bool) {
        let copied = self.health().copied;
        let mut signal = self.signal();
        signal.durable = durable;
        signal.last_commit = Some(Instant::now());
        signal.copy_now |= copy_now;
        if copy_now
            || std::mem::take(&mut signal.keeper_idle)
            || durable.0.saturating_sub(copied.0) >= copy_every
        {
            self.wake.notify_all();
        }
    }

    pub(super) fn stop_keeper(&self) {
        self.signal().stop = true;
        self.wake.notify_all();
    }
}
