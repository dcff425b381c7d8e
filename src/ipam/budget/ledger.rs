//! What was asked of EC2 within the last hour, in slots of five minutes, and how that is stored.
//!
//! The count is written ahead: the store never knows of fewer calls than were made, so that a daemon that is killed and
//! started over and over has no more calls than one that lives. That costs no commit of its own where one happens
//! anyway, which is so for nearly everything that changes something at EC2; for the rest a commit covers
//! [`AHEAD`] further calls.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use super::Kind;
use crate::ids::Tick;

/// Milliseconds of a slot.
const SLOT: u64 = 5 * 60 * 1000;
/// The slots any hour touches: a call counts until every hour that contains it is over.
const SLOTS: u64 = 13;
/// Calls a commit for the count's sake covers beyond those that were made.
const AHEAD: u32 = 4;

/// Calls by kind.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Tally {
    /// Changing calls.
    #[serde(rename = "c")]
    pub changing: u32,
    /// Describing calls.
    #[serde(rename = "d")]
    pub describing: u32,
}

impl Tally {
    pub(super) fn of(self, kind: Kind) -> u32 {
        match kind {
            Kind::Changing => self.changing,
            Kind::Describing => self.describing,
        }
    }

    pub(super) fn of_mut(&mut self, kind: Kind) -> &mut u32 {
        match kind {
            Kind::Changing => &mut self.changing,
            Kind::Describing => &mut self.describing,
        }
    }

    fn plus(self, other: Self) -> Self {
        Self {
            changing: self.changing.saturating_add(other.changing),
            describing: self.describing.saturating_add(other.describing),
        }
    }

    fn is_none(self) -> bool {
        self == Self::default()
    }
}

/// What is stored of the ledger.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct LedgerRecord {
    /// Calls made, by slot.
    pub spent: BTreeMap<u64, Tally>,
    /// Calls that may have been made since.
    pub ahead: Tally,
}

/// What was asked within the last hour.
#[derive(Debug, Clone, Default)]
pub(super) struct Ledger {
    spent: BTreeMap<u64, Tally>,
    /// Calls the store is told of only by the next commit.
    uncovered: Tally,
    /// Calls the store knows of although they are not made yet.
    ahead: Tally,
    /// What `ahead` is filled up to: nothing for a kind that never needed a commit of its own.
    margin: Tally,
    /// The record as it is in the store, or on its way there.
    record: Option<LedgerRecord>,
    is_changed: bool,
    /// A record was written in this life of the daemon.
    is_written: bool,
}

fn slot(now: Tick) -> u64 {
    now.0 / SLOT
}

fn counts(slot_of_call: u64, now: Tick) -> bool {
    slot_of_call.saturating_add(SLOTS) > slot(now)
}

impl Ledger {
    pub(super) fn enter(&mut self, kind: Kind, now: Tick) {
        self.spent.retain(|slot, _| counts(*slot, now));
        let spent = self.spent.entry(slot(now)).or_default().of_mut(kind);
        *spent = spent.saturating_add(1);
        self.is_changed = true;
        let ahead = self.ahead.of_mut(kind);
        if *ahead > 0 {
            *ahead -= 1;
        } else {
            *self.uncovered.of_mut(kind) += 1;
        }
    }

    /// Calls of the last hour, those of a slot that is only partly within it included.
    pub(super) fn hour(&self, kind: Kind, now: Tick) -> u32 {
        let within = self.spent.iter().filter(|(slot, _)| counts(**slot, now));
        within.fold(0, |sum, (_, tally)| sum.saturating_add(tally.of(kind)))
    }

    /// When the last hour will have seen fewer than `limit` calls, if none is made until then.
    pub(super) fn below(&self, kind: Kind, limit: u32, now: Tick) -> Tick {
        let mut left = self.hour(kind, now);
        let mut until = now;
        for (slot, tally) in self.spent.iter().filter(|(slot, _)| counts(**slot, now)) {
            if left < limit {
                break;
            }
            left = left.saturating_sub(tally.of(kind));
            until = Tick(slot.saturating_add(SLOTS).saturating_mul(SLOT));
        }
        until
    }

    /// Calls made within the last slot and this one.
    pub(super) fn lately(&self, kind: Kind, now: Tick) -> u32 {
        let last = slot(now).saturating_sub(1);
        let lately = self.spent.range(last..);
        lately.fold(0, |sum, (_, tally)| sum.saturating_add(tally.of(kind)))
    }

    /// Whether calls are about to be made that the store would not know of.
    pub(super) fn needs_commit(&self) -> bool {
        !self.uncovered.is_none()
    }

    /// A commit is being made, for the count's sake alone if `forced`: whether there is something to write.
    pub(super) fn write(&mut self, forced: bool) -> bool {
        if !self.is_changed {
            return false;
        }
        // What a start asks is written as it is, so that a crash loop pays for no more than it asked.
        if forced && self.is_written {
            for kind in [Kind::Changing, Kind::Describing] {
                if self.uncovered.of(kind) > 0 {
                    *self.margin.of_mut(kind) = AHEAD;
                }
            }
        }
        self.uncovered = Tally::default();
        self.ahead = self.margin;
        self.record = Some(LedgerRecord {
            spent: self.spent.clone(),
            ahead: self.ahead,
        });
        self.is_changed = false;
        self.is_written = true;
        true
    }

    pub(super) fn record(&self) -> Option<&LedgerRecord> {
        self.record.as_ref()
    }

    /// What the last life left. How long ago another boot was nobody can tell: then all of it counts from now.
    pub(super) fn restore(&mut self, stored: LedgerRecord, same_boot: bool, now: Tick) {
        let current = slot(now);
        let mut spent: BTreeMap<u64, Tally> = BTreeMap::new();
        for (slot, tally) in &stored.spent {
            let slot = if same_boot { (*slot).min(current) } else { current };
            let entry = spent.entry(slot).or_default();
            *entry = entry.plus(*tally);
        }
        let entry = spent.entry(current).or_default();
        *entry = entry.plus(stored.ahead);
        spent.retain(|slot, tally| counts(*slot, now) && !tally.is_none());
        self.record = Some(if same_boot {
            stored
        } else {
            LedgerRecord {
                spent: spent.clone(),
                ahead: Tally::default(),
            }
        });
        self.spent = spent;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MINUTE: u64 = 60_000;

    #[test]
    fn a_call_counts_until_every_hour_with_it_is_over() {
        let mut ledger = Ledger::default();
        let made = Tick(4 * MINUTE + 59_999);
        ledger.enter(Kind::Changing, made);
        let hour_later = Tick(made.0 + 60 * MINUTE);
        assert_eq!(ledger.hour(Kind::Changing, hour_later), 1);
        assert_eq!(ledger.hour(Kind::Describing, hour_later), 0);
        let free = ledger.below(Kind::Changing, 1, made);
        assert!(free > hour_later && free.0 <= hour_later.0 + 5 * MINUTE);
        assert_eq!(ledger.hour(Kind::Changing, free), 0);
    }

    /// Whatever instant the daemon is killed at, the next one knows of every call that was sent: a call is sent when
    /// the commit of its step is durable.
    #[test]
    fn a_kill_loses_no_call_and_few_commits_are_made_for_it() {
        let mut ledger = Ledger::default();
        let mut stored = LedgerRecord::default();
        let mut commits = 0;
        let now = Tick(7 * MINUTE);
        for made in 1..=100 {
            ledger.enter(Kind::Describing, now);
            if ledger.needs_commit() && ledger.write(true) {
                commits += 1;
                stored = ledger.record().unwrap().clone();
            }
            let mut next = Ledger::default();
            next.restore(stored.clone(), true, now);
            assert!(next.hour(Kind::Describing, now) >= made, "{made}");
            assert!(next.hour(Kind::Describing, now) <= made + AHEAD);
        }
        assert!(commits <= 100 / AHEAD + 1, "{commits}");
    }

    #[test]
    fn a_crash_loop_pays_for_no_more_than_it_asked() {
        let mut stored = LedgerRecord::default();
        for _ in 0..50 {
            let mut ledger = Ledger::default();
            ledger.restore(stored, true, Tick(0));
            ledger.enter(Kind::Describing, Tick(0));
            assert!(ledger.needs_commit() && ledger.write(true));
            stored = ledger.record().unwrap().clone();
        }
        let mut ledger = Ledger::default();
        ledger.restore(stored, true, Tick(0));
        assert_eq!(ledger.hour(Kind::Describing, Tick(0)), 50);
    }

    #[test]
    fn after_a_boot_all_of_it_counts_from_now() {
        let mut ledger = Ledger::default();
        ledger.enter(Kind::Changing, Tick(500 * MINUTE));
        ledger.write(false);
        let stored = ledger.record().unwrap().clone();
        let mut next = Ledger::default();
        next.restore(stored, false, Tick(3));
        assert_eq!(next.hour(Kind::Changing, Tick(59 * MINUTE)), 1);
        assert_eq!(next.hour(Kind::Changing, Tick(66 * MINUTE)), 0);
    }
}
