//! Subnets that have less than was asked for: all they have is taken, in few calls and one after the other.
//!
//! A refusal says that a subnet has fewer addresses than that, an answer takes some of these; half of what it may have
//! at most is asked for next. So each call halves it, and a round of n addresses ends after log2(n) + 2 calls: with
//! everything taken, or with a wait.

use std::time::Duration;

use super::cloud::CloudFailure;
use super::ids::{SubnetId, Tick};
use super::obstacle::{Pace, Topic};
use super::plan::Act;
use super::pool::Pool;

/// What is known of a subnet that refused a call of this round.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Shortage {
    /// It has fewer addresses than this.
    below: u32,
    /// What EC2 said.
    failure: CloudFailure,
    /// When it said so last.
    since: Tick,
}

/// After this long a refusal says nothing any more: a round whose rest nobody needed must not slow the next one down.
const ROUND: Duration = Duration::from_secs(10);

/// What a call takes from its subnet: a new ENI takes one for itself.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Take {
    Assign(u32),
    Create(u32),
}

impl Take {
    fn addresses(self) -> u32 {
        match self {
            Self::Assign(count) => count,
            Self::Create(count) => count.saturating_add(1),
        }
    }

    /// Whether less of it would be nothing.
    fn is_least(self) -> bool {
        matches!(self, Self::Assign(0 | 1) | Self::Create(0 | 1))
    }

    /// As much of it as a subnet with fewer than `below` addresses is asked for.
    fn modestly(self, below: u32) -> Self {
        let half = below / 2;
        match self {
            Self::Assign(count) => Self::Assign(count.min(half).max(1)),
            Self::Create(count) => Self::Create(count.min(half.saturating_sub(1)).max(1)),
        }
    }
}

fn shortage<'a>(pool: &'a Pool, subnet: &SubnetId, now: Tick) -> Option<&'a Shortage> {
    let known = pool.memory.shortages.get(subnet);
    known.filter(|short| now.since(short.since) < ROUND)
}

/// How much to ask a subnet for.
pub(super) fn modest(pool: &Pool, subnet: &SubnetId, wish: Take, now: Tick) -> Take {
    shortage(pool, subnet, now).map_or(wish, |short| wish.modestly(short.below))
}

/// A subnet that is short is asked by one call at a time: what it refused, when one is under way or planned.
pub(super) fn waits<'a>(
    pool: &'a Pool,
    planned: &[Act],
    subnet: &SubnetId,
    now: Tick,
) -> Option<&'a CloudFailure> {
    let short = shortage(pool, subnet, now)?;
    let here = |eni: &super::model::Eni| eni.subnet == *subnet;
    let is_asked = pool
        .creations()
        .values()
        .any(|creation| creation.subnet == *subnet)
        || pool
            .enis()
            .values()
            .any(|eni| here(eni) && eni.assigning.is_some())
        || planned.iter().any(|act| match act {
            Act::Assign { eni, .. } => pool.enis().get(eni).is_some_and(here),
            Act::Create { subnet: other, .. } => other == subnet,
        });
    is_asked.then_some(&short.failure)
}

/// A subnet refused.
pub(super) fn refused(pool: &mut Pool, subnet: &SubnetId, take: Take, failure: &CloudFailure, now: Tick) {
    let known = shortage(pool, subnet, now).map(|short| short.below);
    let below = known.map_or(take.addresses(), |known| known.min(take.addresses()));
    let short = Shortage {
        below,
        failure: failure.clone(),
        since: now,
    };
    pool.memory.shortages.insert(subnet.clone(), short);
    if take.is_least() {
        give_up(pool, subnet, now);
    }
}

/// A subnet gave what was asked for.
pub(super) fn gave(pool: &mut Pool, subnet: &SubnetId, take: Take, now: Tick) {
    // Whatever comes next, it is no failure in a row.
    pool.memory.clear(&Topic::Subnet(subnet.clone()));
    let Some(below) = shortage(pool, subnet, now).map(|short| short.below) else {
        pool.memory.shortages.remove(subnet);
        return;
    };
    let below = below.saturating_sub(take.addresses());
    if below <= 1 {
        return give_up(pool, subnet, now);
    }
    if let Some(short) = pool.memory.shortages.get_mut(subnet) {
        short.below = below;
    }
}

/// The subnet has nothing more, until somebody gives addresses back.
fn give_up(pool: &mut Pool, subnet: &SubnetId, now: Tick) {
    if let Some(Shortage { failure, .. }) = pool.memory.shortages.remove(subnet) {
        let pace = Pace::of(failure.class);
        let topic = Topic::Subnet(subnet.clone());
        pool.memory.obstruct(topic, pace, Some(failure), now);
    }
}
