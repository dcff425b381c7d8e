//! The store's second thread: writes the last-good copy and lays the ballast down, away from the commits.

use std::sync::{Arc, PoisonError};
use std::time::{Duration, Instant};

use super::layout::Layout;
use super::mirror::{Shared, Signal};
use super::record::Generation;
use super::{Condition, Options, ballast, copy};
use crate::causes::chain;

/// How often a missing ballast or a failed copy is tried again.
const RETRY: Duration = Duration::from_secs(5);

pub(super) struct Keeper {
    layout: Layout,
    options: Options,
    shared: Arc<Shared>,
    /// The last attempt at a copy failed then.
    failed_at: Option<Instant>,
    ballast_at: Option<Instant>,
}

enum Next {
    WriteCopy,
    LayBallast,
    Stop,
}

impl Keeper {
    pub(super) fn new(layout: Layout, options: Options, shared: Arc<Shared>) -> Self {
        Self {
            layout,
            options,
            shared,
            failed_at: None,
            ballast_at: None,
        }
    }

    pub(super) fn run(mut self) {
        let mut uncopied_since = None;
        loop {
            match self.wait(&mut uncopied_since) {
                Next::WriteCopy => {
                    self.write_copy();
                    uncopied_since = None;
                }
                Next::LayBallast => self.lay_ballast(),
                Next::Stop => {
                    if self.is_behind() {
                        self.write_copy();
                    }
                    return;
                }
            }
        }
    }

    fn is_behind(&self) -> bool {
        let health = self.shared.health();
        health.copied < health.durable
    }

    /// Sleeps until something is due.
    fn wait(&self, uncopied_since: &mut Option<Instant>) -> Next {
        let mut signal = self.shared.signal();
        loop {
            if signal.stop {
                return Next::Stop;
            }
            let now = Instant::now();
            let copied = self.shared.health().copied;
            let copy_due = (copied < signal.durable).then(|| {
                let since = *uncopied_since.get_or_insert(now);
                self.copy_due(&signal, copied, since, now)
            });
            if copy_due.is_some_and(|due| due <= now) {
                signal.copy_now = false;
                return Next::WriteCopy;
            }
            let ballast_due = self.ballast_due(now);
            if ballast_due.is_some_and(|due| due <= now) {
                return Next::LayBallast;
            }
            signal.keeper_idle = copy_due.is_none();
            let due = [copy_due, ballast_due].into_iter().flatten().min();
            signal = match due {
                Some(due) => {
                    self.shared
                        .wake
                        .wait_timeout(signal, due.saturating_duration_since(now))
                        .unwrap_or_else(PoisonError::into_inner)
                        .0
                }
                None => self
                    .shared
                    .wake
                    .wait(signal)
                    .unwrap_or_else(PoisonError::into_inner),
            };
        }
    }

    fn copy_due(&self, signal: &Signal, copied: Generation, since: Instant, now: Instant) -> Instant {
        if let Some(failed_at) = self.failed_at {
            return failed_at + RETRY;
        }
        if signal.copy_now || signal.durable.0.saturating_sub(copied.0) >= self.options.copy_every {
            return now;
        }
        let last_commit = signal.last_commit.unwrap_or(since);
        (last_commit + self.options.copy_when_quiet).min(since + self.options.copy_max_age)
    }

    /// Only with the disk known to take writes: before that the space belongs to the commits.
    fn ballast_due(&self, now: Instant) -> Option<Instant> {
        let wanted = self.shared.health().condition == Condition::ReserveSpent;
        wanted.then(|| self.ballast_at.map_or(now, |at| at + RETRY))
    }

    fn write_copy(&mut self) {
        // What is copied is chosen under the lock: a copy must never give way to an older one, since the journal
        // may have begun again behind it.
        let files = self.shared.files();
        let mirror = self.shared.mirror().clone();
        if self.shared.health().copied >= mirror.generation {
            return;
        }
        let written = copy::write(&self.layout.copy(), &mirror);
        let mut health = self.shared.health();
        match written {
            Ok(()) => {
                health.copied = mirror.generation;
                health.copy_error = None;
                self.failed_at = None;
            }
            Err(error) => {
                health.copy_error = Some(chain(&error));
                self.failed_at = Some(Instant::now());
            }
        }
        drop(files);
    }

    fn lay_ballast(&mut self) {
        self.ballast_at = Some(Instant::now());
        let laid = {
            let _files = self.shared.files();
            ballast::lay_down(&self.layout.ballast(), self.options.ballast_bytes)
        };
        let mut health = self.shared.health();
        if matches!(laid, Ok(true)) && health.condition == Condition::ReserveSpent {
            health.condition = Condition::Healthy;
        }
    }
}
