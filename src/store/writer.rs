//! The store's commit thread: takes what is queued, makes it durable as one group, tells everyone; and when the
//! disk or the database fails, keeps the changes in order until they can be written.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::File;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, RecvTimeoutError};
use std::time::{Duration, Instant};

use nix::fcntl::Flock;

use super::engine::{Engine, EngineError};
use super::error::CommitError;
use super::layout::Layout;
use super::mirror::{Mirror, Shared};
use super::open::{build, count_existing, engine_error, head, scan};
use super::record::{self, Generation};
use super::{Condition, Loaded, MAX_ENTRIES, OpenError, Options, Write, ballast, panics};
use crate::causes::chain;

/// Called once with a commit's outcome.
pub type OnDone = Box<dyn FnOnce(Result<Generation, CommitError>) + Send>;

/// What the writer is asked for.
pub(super) enum Job {
    Commit { writes: Vec<Write>, on_done: OnDone },
    Stop,
}

/// More commits than this don't share one flush, so that the first of a burst is not kept waiting for the last.
const MAX_GROUP: usize = 256;

struct Change {
    generation: Generation,
    /// `None` removes.
    value: Option<Arc<[u8]>>,
}

/// Why an attempt failed; shared by everyone who waited for it.
enum Failure {
    DiskFull,
    Engine(Arc<EngineError>),
    Repair(Arc<OpenError>),
}

pub(super) struct Writer {
    layout: Layout,
    options: Options,
    shared: Arc<Shared>,
    /// `None` between a failure and the reopening.
    engine: Option<Engine>,
    /// The last generation given to a commit.
    generation: Generation,
    /// Keys whose records lie in the database but can't be believed.
    doubtful: BTreeSet<String>,
    /// What is decided but not durable, newest change per key.
    backlog: BTreeMap<String, Change>,
    /// How many keys the database holds once the backlog is written.
    entries: usize,
    /// An fdatasync failed: what the database file shows is not what the disk has.
    unsynced: bool,
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
        loaded: &Loaded,
    ) -> Self {
        Self {
            layout,
            retry_pause: options.retry_min,
            options,
            shared,
            engine: Some(engine),
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
        }
        if let Some(engine) = self.engine.take() {
            engine.close();
        }
        panics::forget(&self.layout.panicked());
        drop(lock);
    }

    /// The next group: at least one commit, or none when a retry is due or the store stops.
    fn collect(&mut self, queue: &Receiver<Job>) -> Vec<(Vec<Write>, OnDone)> {
        let mut group = Vec::new();
        let first = match self.retry_at {
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

    fn commit(&mut self, group: Vec<(Vec<Write>, OnDone)>) {
        let mut waiting = Vec::with_capacity(group.len());
        for (writes, on_done) in group {
            match self.accept(writes) {
                Ok(generation) => waiting.push((generation, on_done)),
                Err(error) => on_done(Err(error)),
            }
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

    /// Writes the backlog, repairing what stands in the way.
    fn attempt(&mut self) -> Result<(), Failure> {
        if self.engine.is_none() {
            self.reopen_or_rewrite()?;
        }
        let Err(error) = self.write() else {
            return Ok(());
        };
        if error.is_disk_full() {
            self.spend_ballast();
        }
        self.reopen_or_rewrite()?;
        self.write().map_err(Failure::from)
    }

    fn write(&mut self) -> Result<(), EngineError> {
        let Some(engine) = &self.engine else {
            return Err(EngineError::Earlier("the database is closed".into()));
        };
        let records = self.backlog.iter().map(|(key, change)| {
            let value = change.value.as_ref();
            let record = value.map(|value| record::encode(key, change.generation, value));
            (key.clone().into_bytes(), record)
        });
        let written = engine.apply(records.chain(std::iter::once(head(self.generation, self.entries))));
        if let Err(error) = &written {
            self.unsynced |= matches!(error, EngineError::Sync(_));
            // After any error every later call on this database fails, too.
            if let Some(engine) = self.engine.take() {
                engine.close();
            }
        }
        written
    }

    fn spend_ballast(&self) {
        let _files = self.shared.files();
        if ballast::release(&self.layout.ballast()) {
            self.shared.health().condition = Condition::ReserveSpent;
        }
    }

    fn reopen_or_rewrite(&mut self) -> Result<(), Failure> {
        if self.unsynced {
            return self.rewrite();
        }
        match self.reopen() {
            Err(error) if error.is_environment() => Err(error.into()),
            Err(_) => self.rewrite(),
            Ok(()) => Ok(()),
        }
    }

    /// Opens the database again and makes sure that everything acknowledged is still in it.
    fn reopen(&mut self) -> Result<(), EngineError> {
        let engine = Engine::open(self.layout.dir(), self.options.cache_bytes)?;
        let durable = self.shared.mirror().generation;
        let found = scan(&engine);
        match found {
            Ok(found) if found.head.is_some_and(|head| head >= durable) => {
                self.engine = Some(engine);
                Ok(())
            }
            Ok(_) => {
                engine.close();
                Err(EngineError::WentBack)
            }
            Err(error) => {
                engine.close();
                Err(error)
            }
        }
    }

    /// Makes a new database from what is durable and sets the old one aside.
    fn rewrite(&mut self) -> Result<(), Failure> {
        let mirror = self.shared.mirror().clone();
        let _files = self.shared.files();
        build(&self.layout, &self.options, &mirror).map_err(Failure::from_repair)?;
        // Records nobody could read are in the old database only.
        let gone = std::mem::take(&mut self.doubtful);
        let lost = gone.iter().filter(|key| !self.backlog.contains_key(*key)).count();
        self.entries = self.entries.saturating_sub(lost);
        self.unsynced = false;
        let engine = Engine::open(self.layout.dir(), self.options.cache_bytes)
            .map_err(|source| Failure::from_repair(engine_error(&self.layout, source)))?;
        self.engine = Some(engine);
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
        {
            let mut health = self.shared.health();
            health.durable = self.generation;
            health.waiting_writes = 0;
            if matches!(health.condition, Condition::DiskFull | Condition::Failing { .. }) {
                health.condition = if ballast::is_there(&self.layout.ballast(), self.options.ballast_bytes) {
                    Condition::Healthy
                } else {
                    Condition::ReserveSpent
                };
            }
        }
        self.shared.note_durable(self.generation, self.options.copy_every);
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

impl Failure {
    fn from_repair(error: OpenError) -> Self {
        if error.is_disk_full() {
            Self::DiskFull
        } else {
            Self::Repair(Arc::new(error))
        }
    }

    fn condition(&self) -> Condition {
        match self {
            Self::DiskFull => Condition::DiskFull,
            Self::Engine(error) => Condition::Failing {
                reason: chain(error.as_ref()),
            },
            Self::Repair(error) => Condition::Failing {
                reason: chain(error.as_ref()),
            },
        }
    }
}

impl From<EngineError> for Failure {
    fn from(error: EngineError) -> Self {
        if error.is_disk_full() {
            Self::DiskFull
        } else {
            Self::Engine(Arc::new(error))
        }
    }
}

impl From<&Failure> for CommitError {
    fn from(failure: &Failure) -> Self {
        match failure {
            Failure::DiskFull => Self::DiskFull,
            Failure::Engine(source) => Self::Engine {
                source: Arc::clone(source),
            },
            Failure::Repair(source) => Self::Repair {
                source: Arc::clone(source),
            },
        }
    }
}
