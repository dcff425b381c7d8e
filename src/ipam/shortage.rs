//! Subnets that have less than was asked for: all they have is taken, in few calls and one after the other.
//!
//! A refusal says that a subnet has fewer addresses or blocks than that, an answer takes some of these; half of what it
//! may have at most is asked for next. So each call halves it, and a round of n ends after log2(n) + 2 calls: with
//! everything taken, or with a wait. Blocks of 16 run out by themselves: a fragmented subnet has many addresses and no
//! block.

use std::time::Duration;

use super::cloud::{Amount, CloudFailure, Unit};
use super::ids::{CallId, SubnetId, Tick};
use super::obstacle::{Pace, Topic};
use super::plan::Act;
use super::pool::Pool;

/// What is known of a subnet that refused a call of this round.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Shortage {
    /// It has fewer than this.
    below: u32,
    /// What EC2 said.
    failure: CloudFailure,
    /// When it said so last.
    since: Tick,
    /// The first call after that.
    next_call: CallId,
}

/// After this long a refusal says nothing any more: a round whose rest nobody needed must not slow the next one down.
const ROUND: Duration = Duration::from_secs(10);

/// How a subnet without a block of 16 is asked for one again: blocks come free when whole prefixes are given back.
const BLOCKS: Pace = Pace::secs(60, 1800);

/// EC2's word for a subnet without room for one more block.
const NO_BLOCK: &str = "InsufficientCidrBlocks";

/// What a call takes from its subnet.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Take {
    amount: Amount,
    /// A new ENI takes an address for itself.
    creates: bool,
}

impl Take {
    pub(super) fn assign(amount: Amount) -> Self {
        Self {
            amount,
            creates: false,
        }
    }

    pub(super) fn create(amount: Amount) -> Self {
        Self {
            amount,
            creates: true,
        }
    }

    fn unit(self) -> Unit {
        self.amount.unit()
    }

    /// What the ENI itself takes of the same kind.
    fn own(self) -> u32 {
        u32::from(self.creates && self.unit() == Unit::Address)
    }

    fn count(self) -> u32 {
        self.amount.places().saturating_add(self.own())
    }

    /// Whether less of it would be nothing.
    fn is_least(self) -> bool {
        self.amount.places() <= 1
    }

    /// As much of it as a subnet with fewer than `below` is asked for.
    fn modestly(self, below: u32) -> Amount {
        let half = (below / 2).saturating_sub(self.own());
        self.unit().amount(self.amount.places().min(half).max(1))
    }
}

fn shortage<'a>(pool: &'a Pool, subnet: &SubnetId, unit: Unit, now: Tick) -> Option<&'a Shortage> {
    let known = pool.memory.shortages.get(&(subnet.clone(), unit));
    known.filter(|short| now.since(short.since) < ROUND)
}

/// Whether a subnet has refused in this round.
pub(super) fn is_short(pool: &Pool, subnet: &SubnetId, unit: Unit, now: Tick) -> bool {
    shortage(pool, subnet, unit, now).is_some()
}

/// How much to ask a subnet for. One that had nothing left is asked for the least first: on a full subnet the whole round
/// would be repeated after every wait.
pub(super) fn modest(pool: &Pool, subnet: &SubnetId, wish: Take, now: Tick) -> Amount {
    let unit = wish.unit();
    let gave_nothing = pool.memory.obstacles.contains_key(&topic(subnet, unit));
    match shortage(pool, subnet, unit, now) {
        Some(short) => wish.modestly(short.below),
        None if gave_nothing => wish.modestly(0),
        None => wish.amount,
    }
}

/// A subnet that is short, or had nothing when it was last asked, is asked by one call at a time: what it refused, when
/// one is under way or planned. Side by side, every ENI that is wanted would ask a full subnet after every wait.
pub(super) fn waits<'a>(
    pool: &'a Pool,
    planned: &[Act],
    subnet: &SubnetId,
    unit: Unit,
    now: Tick,
) -> Option<&'a CloudFailure> {
    let gave_nothing = || pool.memory.obstacles.get(&topic(subnet, unit))?.failure.as_ref();
    let short = shortage(pool, subnet, unit, now).map(|short| &short.failure);
    let failure = short.or_else(gave_nothing)?;
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
            Act::DescribeSubnets => false,
        });
    is_asked.then_some(failure)
}

/// A subnet refused.
pub(super) fn refused(pool: &mut Pool, subnet: &SubnetId, take: Take, failure: &CloudFailure, now: Tick) {
    let lacks_block = failure.code.as_deref() == Some(NO_BLOCK);
    // No address for a new ENI itself: that has nothing to do with blocks.
    let (unit, count, is_least) = if take.creates && take.unit() == Unit::Prefix && !lacks_block {
        (Unit::Address, 1, true)
    } else {
        (take.unit(), take.count(), take.is_least())
    };
    let known = shortage(pool, subnet, unit, now).map(|short| short.below);
    let short = Shortage {
        below: known.map_or(count, |known| known.min(count)),
        failure: failure.clone(),
        since: now,
        next_call: pool.memory.next_call,
    };
    pool.memory.shortages.insert((subnet.clone(), unit), short);
    if is_least {
        give_up(pool, subnet, unit, now);
    }
}

/// A subnet gave what `call` asked for. What was asked for before the refusal was heard may have been given before it, and
/// be no part of what the subnet had left.
pub(super) fn gave(pool: &mut Pool, subnet: &SubnetId, take: Take, call: CallId, now: Tick) {
    let unit = take.unit();
    // Whatever comes next, it is no failure in a row.
    pool.memory.clear(&topic(subnet, unit));
    let Some(short) = shortage(pool, subnet, unit, now) else {
        pool.memory.shortages.remove(&(subnet.clone(), unit));
        return;
    };
    if call < short.next_call {
        return;
    }
    let below = short.below.saturating_sub(take.count());
    if below <= 1 {
        return give_up(pool, subnet, unit, now);
    }
    if let Some(short) = pool.memory.shortages.get_mut(&(subnet.clone(), unit)) {
        short.below = below;
    }
}

fn topic(subnet: &SubnetId, unit: Unit) -> Topic {
    match unit {
        Unit::Address | Unit::Block => Topic::Subnet(subnet.clone()),
        Unit::Prefix => Topic::Blocks(subnet.clone()),
    }
}

/// The subnet has nothing more, until somebody gives back.
fn give_up(pool: &mut Pool, subnet: &SubnetId, unit: Unit, now: Tick) {
    if let Some(Shortage { failure, .. }) = pool.memory.shortages.remove(&(subnet.clone(), unit)) {
        let pace = match unit {
            Unit::Address | Unit::Block => Pace::of(failure.class),
            Unit::Prefix => BLOCKS,
        };
        pool.memory
            .obstruct(topic(subnet, unit), pace, Some(failure), now);
    }
}
