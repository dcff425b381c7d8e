//! What the pool's calls are for: of which kind each is, and whom it serves.

use super::{Brake, Counters, Figures, Kind, Priority};
use crate::ids::Tick;
use crate::memory::{Ec2View, Purpose};
use crate::obstacle::Topic;
use crate::pool::Pool;

/// What kind of call a purpose takes.
fn kind_of(purpose: &Purpose) -> Kind {
    match purpose {
        Purpose::Create(_)
        | Purpose::Attach(_)
        | Purpose::Termination(_)
        | Purpose::Assign { .. }
        | Purpose::Delete(_) => Kind::Changing,
        Purpose::Describe(_) | Purpose::Limits => Kind::Describing,
    }
}

/// Whom a call is for now. The same question may be for a waiting pod this time and for nobody the next.
fn priority_of(pool: &Pool, purpose: &Purpose, now: Tick) -> Priority {
    let serves_pods = match purpose {
        Purpose::Create(_) | Purpose::Attach(_) | Purpose::Assign { .. } | Purpose::Limits => true,
        Purpose::Describe(_) => is_in_doubt(pool),
        // Nobody waits for it, and an ENI without it is left behind when the instance goes.
        Purpose::Termination(_) => return Priority::Warm,
        Purpose::Delete(_) => false,
    };
    if !serves_pods {
        Priority::Upkeep
    } else if is_short(pool, now) {
        Priority::Blocked
    } else {
        Priority::Warm
    }
}

/// Whether EC2's word is missing on something that growth or addresses wait for.
fn is_in_doubt(pool: &Pool) -> bool {
    let memory = &pool.memory;
    !matches!(memory.ec2, Ec2View::Answered)
        || !memory.creations_in_doubt.is_empty()
        || memory.enis.values().any(|progress| progress.doubt.is_some())
        || memory.obstacles.contains_key(&Topic::Doubts)
}

/// Whether more sandboxes wait than there are addresses to be had.
fn is_short(pool: &Pool, now: Tick) -> bool {
    let waiting = pool.memory.waiters.len();
    waiting > 0 && pool.usable_addresses(now).len() < waiting
}

impl Pool {
    /// Whether a call that is to be made may be made now; if not, it is tried again when it may. The last question to
    /// ask before [`crate::outbox::Outbox::call`].
    pub(crate) fn may_ask(&mut self, purpose: &Purpose, now: Tick) -> bool {
        if self.memory.is_asking(purpose) {
            return false;
        }
        let priority = priority_of(self, purpose, now);
        match self.memory.budget.check(kind_of(purpose), priority, 0, now) {
            Ok(()) => true,
            Err(brake) => {
                self.memory.budget.put_off(brake, now);
                false
            }
        }
    }

    /// Takes the call into account. What was planned as a whole has been checked as a whole; no call exceeds what
    /// waiting pods may have.
    pub(crate) fn charge(&mut self, purpose: &Purpose, now: Tick) -> Result<(), Brake> {
        let kind = kind_of(purpose);
        let priority = priority_of(self, purpose, now);
        let is_planned = matches!(purpose, Purpose::Create(_) | Purpose::Assign { .. });
        let share = if is_planned { Priority::Blocked } else { priority };
        self.memory.budget.check(kind, share, 0, now)?;
        self.memory.budget.charge(kind, priority, now);
        Ok(())
    }

    /// What is left of the budget of either kind.
    pub fn budget_figures(&self, now: Tick) -> [Figures; 2] {
        Kind::ALL.map(|kind| self.memory.budget.figures(kind, now))
    }

    /// What was counted since the start.
    pub fn call_counters(&self) -> &Counters {
        &self.memory.budget.counters
    }
}
