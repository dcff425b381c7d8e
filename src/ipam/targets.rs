//! What the warm targets ask for, in addresses: the Go daemon's arithmetic (reference ipamd 3.1, 3.2) with its faults
//! left out. Addresses at rest are not available (Q1), and a minimum alone does not freeze the pool (Q4).

use super::cidr::Ipv4Cidr;
use super::cloud::Unit;
use super::model::Eni;
use super::obstacle::Topic;
use super::policy::WarmTarget;
use super::pool::Pool;

use super::ids::{CardIndex, Tick};

/// What is held ready on every card but the first: the pods that want an address of each card are few, and come one by
/// one (reference ipamd 0). In addresses, whatever they come in: the Go daemon takes them for prefixes (its fault Q7).
const FURTHER_CARDS: WarmTarget = WarmTarget::Ips { warm: 1, minimum: 1 };

/// What the node's addresses come in, and how many are to be ready.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Goal {
    /// What EC2 is asked for.
    pub(super) unit: Unit,
    /// How much is held ready.
    pub(super) target: WarmTarget,
}

impl Goal {
    /// By the settings and by what the instance type can carry: a type without prefixes gets single addresses. The
    /// settings are the first card's; on the others one address is held ready, as by the Go daemon.
    pub(super) fn of(pool: &Pool, card: CardIndex) -> Self {
        let policy = pool.policy();
        let can = pool.limits().is_none_or(|limits| limits.prefixes);
        if policy.is_six() {
            // All that is wanted is a /80 that the next pod gets its address of.
            let target = if pool.is_left_alone() {
                WarmTarget::Nothing
            } else {
                WarmTarget::Ips { warm: 1, minimum: 0 }
            };
            return Self {
                unit: Unit::Block,
                target,
            };
        }
        let (unit, target) = match policy.prefixes {
            Some(target) if can => (Unit::Prefix, target),
            _ => (Unit::Address, policy.warm),
        };
        let target = match target {
            _ if pool.is_left_alone() => WarmTarget::Nothing,
            _ if !card.is_first() => FURTHER_CARDS,
            WarmTarget::Adaptive => WarmTarget::Ips {
                warm: pool.memory.churn.level(),
                minimum: 0,
            },
            fixed => fixed,
        };
        Self { unit, target }
    }

    /// Free addresses to hold ready beyond those that pods wait for. Never none: an empty pool makes the next pod wait
    /// (reference ipamd 3.2: low when nothing is available).
    pub(super) fn warm(self, slots: u32) -> u32 {
        let warm = match self.target {
            WarmTarget::Enis(enis) => enis.saturating_mul(slots).saturating_mul(self.unit.size()),
            WarmTarget::Ips { warm, .. } => warm,
            // Never here: `of` has replaced it.
            WarmTarget::Adaptive => 0,
            WarmTarget::Prefixes(prefixes) => prefixes.saturating_mul(Unit::Prefix.size()),
            WarmTarget::Nothing => return 0,
        };
        warm.max(1)
    }

    /// How many more single addresses an adaptive pool takes at once than it lacks, and keeps before it gives any back: as
    /// many again as it holds ready. Without that, pods that come and go one by one would cost a call each time (churn of
    /// 100 nodes in docs/fleet.md). Prefixes are such a step by themselves.
    pub(super) fn slack(self, pool: &Pool) -> u32 {
        let warm = pool.memory.churn.level();
        let sized = WarmTarget::Ips { warm, minimum: 0 };
        let is_adaptive = self.unit == Unit::Address && pool.policy().warm == WarmTarget::Adaptive;
        if is_adaptive && self.target == sized {
            warm
        } else {
            0
        }
    }

    /// Addresses to have in all, whoever has them.
    pub(super) fn minimum(self) -> u32 {
        match self.target {
            WarmTarget::Ips { minimum, .. } => minimum,
            WarmTarget::Enis(_) | WarmTarget::Prefixes(_) | WarmTarget::Adaptive | WarmTarget::Nothing => 0,
        }
    }

    /// Whether ENIs are taken whole, with all they can carry.
    pub(super) fn takes_whole_enis(self) -> bool {
        matches!(self.target, WarmTarget::Enis(_))
    }

    /// Whether pods that may come in a moment change what is asked for: ENIs taken whole, a /80 and an adaptive pool's own
    /// steps are the same for a few more.
    pub(super) fn follows_pods(self, pool: &Pool) -> bool {
        self.unit != Unit::Block && !self.takes_whole_enis() && self.slack(pool) == 0
    }

    /// Whether what an ENI carries counts for the targets. After a change of mode the other kind serves the pods that
    /// have it and whoever finds nothing else; where a subnet has no block of 16 left, single addresses count meanwhile.
    pub(super) fn counts(self, pool: &Pool, eni: &Eni, cidr: Ipv4Cidr, now: Tick) -> bool {
        Unit::of(cidr) == self.unit || (self.unit == Unit::Prefix && lacks_blocks(pool, eni, now))
    }
}

/// Whether the ENI's subnet has just said that it has no block of 16 addresses left.
fn lacks_blocks(pool: &Pool, eni: &Eni, now: Tick) -> bool {
    let topic = Topic::Blocks(eni.subnet.clone());
    !pool.memory.is_clear(&topic, now)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_target_of_nothing_still_holds_one_address_ready() {
        for target in [
            WarmTarget::Enis(0),
            WarmTarget::Prefixes(0),
            WarmTarget::Ips { warm: 0, minimum: 12 },
        ] {
            let goal = Goal {
                unit: Unit::Address,
                target,
            };
            assert_eq!(goal.warm(9), 1, "{target:?}");
        }
    }

    #[test]
    fn targets_come_in_addresses() {
        let goal = |unit, target| Goal { unit, target };
        assert_eq!(goal(Unit::Address, WarmTarget::Enis(2)).warm(9), 18);
        assert_eq!(goal(Unit::Prefix, WarmTarget::Prefixes(2)).warm(9), 32);
        let ips = goal(Unit::Prefix, WarmTarget::Ips { warm: 5, minimum: 10 });
        assert_eq!((ips.warm(9), ips.minimum()), (5, 10));
    }
}
