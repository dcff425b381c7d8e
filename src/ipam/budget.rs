//! How often EC2 is asked, and for whom first: every call of the pool passes here.
//!
//! EC2 counts calls per account and Region: what one node asks in vain, a hundred others lack. Three limits apply, the
//! numbers of all of them here: a token bucket for bursts, a ceiling for any hour, and a pause of the whole node when
//! EC2 says that the account asks too much. What may not be asked now stays an intent and is asked when it may.

use std::collections::BTreeMap;
use std::time::Duration;

use serde::Serialize;

use super::ids::Tick;
use super::obstacle::Pace;

mod ledger;
mod purpose;

use ledger::Ledger;
pub use ledger::{LedgerRecord, Tally};

/// Calls that change something at EC2 and calls that only look are counted apart, as EC2 counts them.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Kind {
    /// Creates, attaches, assigns, modifies, gives back, tags.
    Changing,
    /// Describes.
    Describing,
}

/// Whom a call is for. The first may use everything, the others leave the last calls to those before them.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Priority {
    /// A pod waits for it.
    Blocked,
    /// It gets the node ready for pods to come.
    Warm,
    /// It gives back, tidies up or looks for drift.
    Upkeep,
}

/// What may be asked of one kind.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub struct Allowance {
    /// At once, after a pause.
    pub burst: u32,
    /// One more after each of these.
    pub every: Duration,
    /// In any 60 minutes.
    pub hour: u32,
}

/// A burst is what EC2 lets a whole account do at once (100 creations, 100 assignments; EC2 API Reference, "Request
/// throttling"), so that an idle account's node is not slower than EC2. The largest instances take 43 calls to grow to
/// their limit: 14 ENIs created, attached and marked, and the primary one filled. 600 an hour are a call every six
/// seconds, where the Go daemon may make three every five.
const CHANGING: Allowance = Allowance {
    burst: 100,
    every: Duration::from_secs(2),
    hour: 600,
};

/// A start asks two questions, a lost answer one or two more, an idle hour two.
const DESCRIBING: Allowance = Allowance {
    burst: 20,
    every: Duration::from_secs(5),
    hour: 300,
};

/// How long a node is quiet after EC2 has said that the account asks too much.
const QUIET: Pace = Pace::secs(2, 120).jittered();
/// What a waiting pod's calls wait of that.
const PART_FOR_BLOCKED: u32 = 4;
/// Who was refused for so long may use as much as a waiting pod, once: nothing starves while others take turns.
const STARVING: Duration = Duration::from_mins(10);

impl Kind {
    const ALL: [Self; 2] = [Self::Changing, Self::Describing];

    /// What may be asked of it.
    pub const fn allowance(self) -> Allowance {
        match self {
            Self::Changing => CHANGING,
            Self::Describing => DESCRIBING,
        }
    }
}

impl Priority {
    /// Of `whole`, what is left to those before it: half of everything to waiting pods and warm-up together, a quarter
    /// to waiting pods alone.
    const fn leaves(self, whole: u32) -> u32 {
        match self {
            Self::Blocked => 0,
            Self::Warm => whole / 4,
            Self::Upkeep => whole / 2,
        }
    }
}

/// Which limit says no.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Limit {
    /// The ceiling of an hour.
    Hour,
    /// The token bucket.
    Burst,
    /// EC2 has said that the account asks too much.
    Account,
}

/// A call that may not be made yet.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub struct Brake {
    /// Of which kind.
    pub kind: Kind,
    /// For whom.
    pub priority: Priority,
    /// Why.
    pub limit: Limit,
    /// When it may be, if nobody else asks until then.
    pub until: Tick,
}

impl std::fmt::Display for Brake {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Allowance { burst, every, hour } = self.kind.allowance();
        let kind = match self.kind {
            Kind::Changing => "changing",
            Kind::Describing => "describing",
        };
        match self.limit {
            Limit::Hour => write!(f, "the call budget of this hour is spent ({hour} {kind} calls)")?,
            Limit::Burst => write!(
                f,
                "the call budget is spent for the moment ({burst} {kind} calls, one more every {} s)",
                every.as_secs()
            )?,
            Limit::Account => f.write_str("EC2 has asked this account to slow down")?,
        }
        match self.priority {
            Priority::Blocked => Ok(()),
            Priority::Warm => f.write_str(", but for pods that wait"),
            Priority::Upkeep => f.write_str(", for clean-up and checks"),
        }
    }
}

/// A pause of the whole node.
#[derive(Debug, Clone, Copy)]
struct Quiet {
    attempt: u32,
    /// Nothing is asked before this, but for pods that wait.
    until: Tick,
    /// And this is theirs.
    blocked_until: Tick,
}

/// What was counted since the daemon's start, for metrics.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub struct Counters {
    /// Calls made, by whom they were for.
    pub made: BTreeMap<Priority, Tally>,
    /// Calls put off, by which limit. One that is put off again and again is counted each time it was looked at.
    pub put_off: BTreeMap<Limit, u64>,
    /// How often EC2 has said that the account asks too much.
    pub throttled: u64,
}

/// What is left, for status and metrics.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Figures {
    /// Of which kind.
    pub kind: Kind,
    /// Its limits.
    pub allowance: Allowance,
    /// Calls of the last hour, counted up to the next five minutes.
    pub last_hour: u32,
    /// Tokens in the bucket.
    pub tokens: u32,
}

/// What was asked, and what may be.
#[derive(Debug, Clone, Default)]
pub(super) struct Budget {
    ledger: Ledger,
    /// When a kind's bucket is full again.
    full_at: BTreeMap<Kind, Tick>,
    quiet: Option<Quiet>,
    hungry_since: BTreeMap<(Priority, Kind), Tick>,
    /// What this step would have asked, the soonest of each priority and kind.
    brakes: BTreeMap<(Priority, Kind), Brake>,
    counters: Counters,
}

fn millis(span: Duration) -> u64 {
    u64::try_from(span.as_millis()).unwrap_or(u64::MAX)
}

impl Budget {
    /// Whether a call may be made behind `planned` others of its kind; why not, and when.
    pub(super) fn check(&self, kind: Kind, priority: Priority, planned: u32, now: Tick) -> Result<(), Brake> {
        let brake = |limit, until| Brake {
            kind,
            priority,
            limit,
            until,
        };
        if let Some(quiet) = self.quiet {
            let until = match priority {
                Priority::Blocked => quiet.blocked_until,
                Priority::Warm | Priority::Upkeep => quiet.until,
            };
            if until > now {
                return Err(brake(Limit::Account, until));
            }
        }
        let hungry = self.hungry_since.get(&(priority, kind)).copied();
        let fed = hungry.map(|since| since.after(STARVING));
        let share = if fed.is_some_and(|due| due <= now) {
            Priority::Blocked
        } else {
            priority
        };
        let soonest = |until: Tick| fed.filter(|due| *due > now).map_or(until, |due| until.min(due));
        let Allowance { burst, every, hour } = kind.allowance();
        let most = hour.saturating_sub(share.leaves(hour)).saturating_sub(planned);
        if self.ledger.hour(kind, now) >= most {
            let until = self.ledger.below(kind, most.max(1), now);
            return Err(brake(Limit::Hour, soonest(until)));
        }
        let kept = share.leaves(burst).saturating_add(planned);
        let full_at = self.full_at.get(&kind).copied().unwrap_or_default();
        let owed = u64::from(burst.saturating_sub(kept).saturating_sub(1)).saturating_mul(millis(every));
        let until = Tick(full_at.0.saturating_sub(owed));
        if until > now {
            return Err(brake(Limit::Burst, soonest(until)));
        }
        Ok(())
    }

    /// A call is made.
    pub(super) fn charge(&mut self, kind: Kind, priority: Priority, now: Tick) {
        let full_at = self.full_at.entry(kind).or_insert(now);
        *full_at = (*full_at).max(now).after(kind.allowance().every);
        self.ledger.enter(kind, now);
        self.hungry_since.remove(&(priority, kind));
        let made = self.counters.made.entry(priority).or_default().of_mut(kind);
        *made = made.saturating_add(1);
    }

    /// A call has to wait.
    pub(super) fn put_off(&mut self, brake: Brake, now: Tick) {
        let at = (brake.priority, brake.kind);
        if brake.limit != Limit::Account {
            self.hungry_since.entry(at).or_insert(now);
        }
        let soonest = self.brakes.entry(at).or_insert(brake);
        if brake.until < soonest.until {
            *soonest = brake;
        }
        let count = self.counters.put_off.entry(brake.limit).or_default();
        *count = count.saturating_add(1);
    }

    /// EC2 has said that the account asks too much. Calls that were under way together count as one.
    pub(super) fn throttled(&mut self, asked: Option<Duration>, dice: u64, now: Tick) {
        self.counters.throttled = self.counters.throttled.saturating_add(1);
        let attempt = self.quiet.map_or(1, |quiet| {
            quiet
                .attempt
                .saturating_add(u32::from(quiet.blocked_until <= now))
        });
        let wait = QUIET.wait(attempt, dice);
        let asked = asked.unwrap_or_default();
        let known = self.quiet.filter(|quiet| quiet.until > now);
        let later = |known: Option<Tick>, new: Tick| known.map_or(new, |known| known.max(new));
        self.quiet = Some(Quiet {
            attempt,
            until: later(known.map(|quiet| quiet.until), now.after(wait.max(asked))),
            blocked_until: later(
                known.map(|quiet| quiet.blocked_until),
                now.after((wait / PART_FOR_BLOCKED).max(asked)),
            ),
        });
    }

    /// EC2 has done something for us: the next pause is shorter by a step, and once this one is over, a first one again.
    pub(super) fn answered(&mut self, now: Tick) {
        self.quiet = self.quiet.filter(|quiet| quiet.until > now);
        if let Some(quiet) = &mut self.quiet {
            quiet.attempt = quiet.attempt.saturating_sub(1);
        }
    }

    /// A step begins: what was put off is asked anew. Who no longer asks is no longer hungry.
    pub(super) fn begin(&mut self) {
        self.hungry_since.retain(|at, _| self.brakes.contains_key(at));
        self.brakes.clear();
    }

    /// What waits, and until when.
    pub(super) fn brakes(&self) -> impl Iterator<Item = &Brake> {
        self.brakes.values()
    }

    pub(super) fn needs_commit(&self) -> bool {
        self.ledger.needs_commit()
    }

    /// A commit is being made; whether the count is part of it.
    pub(super) fn write(&mut self, forced: bool) -> bool {
        self.ledger.write(forced)
    }

    pub(super) fn record(&self) -> Option<&LedgerRecord> {
        self.ledger.record()
    }

    /// What the last life asked is asked; its last minutes are missing in the buckets, too.
    pub(super) fn restore(&mut self, stored: LedgerRecord, same_boot: bool, now: Tick) {
        self.ledger.restore(stored, same_boot, now);
        for kind in Kind::ALL {
            let Allowance { burst, every, .. } = kind.allowance();
            let lately = self.ledger.lately(kind, now).min(burst);
            self.full_at.insert(kind, now.after(every.saturating_mul(lately)));
        }
    }

    fn figures(&self, kind: Kind, now: Tick) -> Figures {
        let allowance = kind.allowance();
        let full_at = self.full_at.get(&kind).copied().unwrap_or_default();
        let missing = millis(full_at.since(now)).div_ceil(millis(allowance.every).max(1));
        Figures {
            kind,
            allowance,
            last_hour: self.ledger.hour(kind, now),
            tokens: allowance
                .burst
                .saturating_sub(u32::try_from(missing).unwrap_or(u32::MAX)),
        }
    }
}
