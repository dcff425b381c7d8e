//! The store's commit thread: takes what is queued, makes it durable as one group in the journal, tells everyone, and
//! has sled follow when it is quiet; and when the disk fails, keeps the changes in order until they can be written.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::File;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, RecvTimeoutError};
use std::time::{Duration, Instant};

use nix::fcntl::Flock;

use super::engine::{Engine, EngineError};
use super::error::CommitError;
use super::failure::Failure;
use super::journal::Journal;
use super::layout::Layout;
use super::mirror::{Mirror, Shared};
use super::record::{self, Generation};
use super::scan::count_existing;
use super::{Condition, Loaded, MAX_ENTRIES, Options, Write, panics};

/// Called once with a commit's outcome.
pub type OnDone = Box<dyn FnOnce(Result<Generation, CommitError>) + Send>;

/// What the writer is asked for.
pub(super) enum Job {
    Commit { writes: Vec<Write>, on_done: OnDone },
    Stop,
}

/// More commits than this don't share one flush, so that the first of a burst is not kept waiting for the last.
const MAX_GROUP: usize = 256;

#[derive(Clone)]
pub(super) struct Change {
    pub(super) generation: Generation,
    /// `None` removes.
    pub(super) value: Option<Arc<[u8]>>,
}

pub(super) struct Writer {
    pub(super) layout: Layout,
    pub(super) options: Options,
    pub(super) shared: Arc<Shared>,
    pub(super) journal: Journal,
    /// `None` between a failure and the reopening.
    pub(super) engine: Option<Engine>,
    /// The generation up to which sled durably has everything.
    pub(super) applied: Generation,
    /// What the journal has and sled has not, newest change per key.
    pub(super) unapplied: BTreeMap<String, Change>,
    /// Since when there has been any of it, or since the last attempt to write it failed.
    unapplied_since: Option<Instant>,
    /// The last attempt to write to sled failed; this is how the store is doing while the journal takes commits.
    pub(super) behind: Option<Condition>,
    /// The last generation given to a commit.
    pub(super) generation: Generation,
    /// Keys whose records lie in the database but can't be believed.
    pub(super) doubtful: BTreeSet<String>,
    /// What is decided but not durable, newest change per key.
    pub(super) backlog: BTreeMap<String, Change>,
    /// How many keys the database holds once the backlog is written.
    pub(super) entries: usize,
    /// An fdatasync of sled's file failed: what it shows is not what the disk has.
    pub(super) unsynced: bool,
    last_commit: Option<Instant>,
    retry_at: Option<Instant>,
    retry_pause: Duration,
    stopping: bool,
}

impl Writer {
    pub(super) fn new(
        layout: Layout,
        options: Options,
        shared: Arc<Shared>,
        engine: Engine,
        journal: Journal,
        loaded: &Loaded,
    ) -> Self {
        Self {
            layout,
            retry_pause: options.retry_min,
            options,
            shared,
            engine: Some(engine),
            journal,
            applied: loaded.generation,
            unapplied: BTreeMap::new(),
            unapplied_since: None,
            behind: None,
            last_commit: None,
            generation: loaded.generation,
            doubtful: loaded
                .doubts
                .iter()
                .filter(|doubt| doubt.reason != record::DoubtReason::Missing)
                .map(|doubt| doubt.key.clone())
                .collect(),
            backlog: BTreeMap::new(),
            entries: loaded.entries.len() + count_existing(&loaded.doubts),
            unsynced: false,
            retry_at: None,
            stopping: false,
        }
    }

    /// Works until told to stop or until nobody can ask any more. `lock` is held to the end.
    pub(super) fn run(mut self, queue: &Receiver<Job>, lock: Flock<File>) {
        while !self.stopping {
            let group = self.collect(queue);
            self.commit(group);
            self.follow();
        }
        self.finish();
        if let Some(engine) = self.engine.take() {
            engine.close();
        }
        panics::forget(&self.layout.panicked());
        drop(lock);
    }

    /// The next group: at least one commit, or none when a retry is due or the store stops.
    fn collect(&mut self, queue: &Receiver<Job>) -> Vec<(Vec<Write>, OnDone)> {
        let mut group = Vec::new();
        let wake = [self.retry_at, self.follow_at()].into_iter().flatten().min();
        let first = match wake {
            None => queue.recv().map_err(|_| RecvTimeoutError::Disconnected),
            Some(at) => queue.recv_timeout(at.saturating_duration_since(Instant::now())),
        };
        let mut next = match first {
            Ok(job) => Some(job),
            Err(RecvTimeoutError::Timeout) => None,
            Err(RecvTimeoutError::Disconnected) => Some(Job::Stop),
        };
        while let Some(job) = next {
            match job {
                Job::Commit { writes, on_done } => group.push((writes, on_done)),
                Job::Stop => {
                    self.stopping = true;
                    break;
                }
            }
            next = if group.len() < MAX_GROUP {
                queue.try_recv().ok()
            } else {
                None
            };
        }
        self.shared.leave_queue(group.len());
        group
    }

    /// When sled is due to get what the journal has: when it is quiet, and at the latest with the copy.
    fn follow_at(&self) -> Option<Instant> {
        let since = self.unapplied_since?;
        if self.behind.is_some() {
            return Some(since + self.options.retry_max);
        }
        let quiet = self.last_commit.unwrap_or(since) + self.options.copy_when_quiet;
        Some(quiet.min(since + self.options.copy_max_age))
    }

    /// Writes to sled what the journal has, when that is due. The journal keeps it until the copy has it, too.
    fn follow(&mut self) {
        let filling = self.behind.is_none() && self.journal.is_filling() && !self.unapplied.is_empty();
        let due = filling || self.follow_at().is_some_and(|at| at <= Instant::now());
        if due && self.backlog.is_empty() {
            self.unapplied_since = self.write_to_sled().is_err().then(Instant::now);
        }
    }

    /// Nobody needs what sled and the copy both have.
    fn release_journal(&mut self) {
        let copied = self.shared.health().copied;
        self.journal.release(copied.min(self.applied));
    }

    /// Leaves a database and a copy that need no journal, if they can be written; otherwise the journal has it all.
    fn finish(&mut self) {
        self.release_journal();
        if !self.journal.is_empty() || !self.unapplied.is_empty() {
            drop(self.checkpoint());
        }
    }

    fn commit(&mut self, group: Vec<(Vec<Write>, OnDone)>) {
        let mut waiting = Vec::with_capacity(group.len());
        for (writes, on_done) in group {
            match self.accept(writes) {
                Ok(generation) => waiting.push((generation, on_done)),
                Err(error) => on_done(Err(error)),
            }
        }
        if !waiting.is_empty() {
            self.last_commit = Some(Instant::now());
        }
        let due = self.retry_at.is_none_or(|at| at <= Instant::now());
        let outcome = if self.backlog.is_empty() {
            self.settle(Ok(()))
        } else if due || self.stopping {
            let outcome = self.attempt();
            self.settle(outcome)
        } else {
            self.pause_failure()
        };
        for (generation, on_done) in waiting {
            on_done(match &outcome {
                Ok(()) => Ok(generation),
                Err(failure) => Err(failure.into()),
            });
        }
    }

    /// Gives a commit its generation and adds it to the backlog.
    fn accept(&mut self, writes: Vec<Write>) -> Result<Generation, CommitError> {
        let shared = Arc::clone(&self.shared);
        let mirror = shared.mirror();
        let added = writes
            .iter()
            .filter(|write| matches!(write, Write::Put { key, .. } if !self.holds(&mirror, key)))
            .count();
        if self.entries + added > MAX_ENTRIES {
            return Err(CommitError::TooManyEntries {
                entries: self.entries + added,
            });
        }
        let generation = self.generation.next();
        for write in writes {
            let (key, value) = match write {
                Write::Put { key, value } => (key, Some(value.into())),
                Write::Remove { key } => (key, None),
            };
            match (self.holds(&mirror, &key), value.is_some()) {
                (false, false) => continue,
                (false, true) => self.entries += 1,
                (true, false) => self.entries = self.entries.saturating_sub(1),
                (true, true) => {}
            }
            self.backlog.insert(key, Change { generation, value });
            self.generation = generation;
        }
        // Where nothing changed, the answer is the generation of everything before.
        Ok(self.generation)
    }

    /// Whether the database has `key` once the backlog is written.
    fn holds(&self, mirror: &Mirror, key: &str) -> bool {
        self.backlog.get(key).map_or_else(
            || mirror.entries.contains_key(key) || self.doubtful.contains(key),
            |change| change.value.is_some(),
        )
    }

    /// Makes the backlog durable: in the journal, or where that has no room, in sled and the copy.
    fn attempt(&mut self) -> Result<(), Failure> {
        self.release_journal();
        let changes = self
            .backlog
            .iter()
            .map(|(key, change)| (key.as_str(), change.value.as_deref()));
        if !self.journal.append(self.generation, self.entries, changes) {
            return self.checkpoint();
        }
        self.unapplied.extend(
            self.backlog
                .iter()
                .map(|(key, change)| (key.clone(), change.clone())),
        );
        self.unapplied_since.get_or_insert_with(Instant::now);
        Ok(())
    }

    /// Books an attempt's outcome.
    fn settle(&mut self, outcome: Result<(), Failure>) -> Result<(), Failure> {
        match &outcome {
            Ok(()) => self.settle_success(),
            Err(failure) => {
                self.retry_at = Some(Instant::now() + self.retry_pause);
                self.retry_pause = (self.retry_pause * 2).min(self.options.retry_max);
                let mut health = self.shared.health();
                health.waiting_writes = self.backlog.len();
                health.condition = failure.condition();
            }
        }
        outcome
    }

    fn settle_success(&mut self) {
        self.retry_at = None;
        self.retry_pause = self.options.retry_min;
        if self.backlog.is_empty() {
            return;
        }
        {
            let mut mirror = self.shared.mirror();
            mirror.generation = self.generation;
            for (key, change) in std::mem::take(&mut self.backlog) {
                self.doubtful.remove(&key);
                match change.value {
                    Some(value) => drop(mirror.entries.insert(key, value)),
                    None => drop(mirror.entries.remove(&key)),
                }
            }
        }
        if self.unapplied.is_empty() {
            self.unapplied_since = None;
        }
        {
            let mut health = self.shared.health();
            health.durable = self.generation;
            health.waiting_writes = 0;
            if let Some(behind) = &self.behind {
                health.condition = behind.clone();
            } else if matches!(health.condition, Condition::DiskFull | Condition::Failing { .. }) {
                health.condition = self.condition_by_ballast();
            }
        }
        self.shared.note_durable(
            self.generation,
            self.options.copy_every,
            self.journal.is_filling(),
        );
    }

    /// The answer to a commit that arrives while the next attempt is not due.
    fn pause_failure(&self) -> Result<(), Failure> {
        let mut health = self.shared.health();
        health.waiting_writes = self.backlog.len();
        match &health.condition {
            Condition::Failing { reason } => {
                Err(Failure::Engine(Arc::new(EngineError::Earlier(reason.clone()))))
            }
            Condition::DiskFull | Condition::ReserveSpent | Condition::Healthy => Err(Failure::DiskFull),
        }
    }
}
