//! When EC2 is asked for a /80: once, and only while the node has none.

use super::cursor::{free, is_serving};
use super::word;
use crate::census::{Census, is_underway};
use crate::cidr6::Ipv6Cidr;
use crate::cloud::{Amount, DescribeScope, FailureClass};
use crate::ids::{EniId, Tick};
use crate::model::{AddressState, Eni, EniRole};
use crate::obstacle::{Pace, Topic};
use crate::outbox::Outbox;
use crate::plan::Hindrance;
use crate::pool::Pool;

/// Whether an ENI is one that a /80 may be asked for, or is expected on.
fn is_candidate(pool: &Pool, eni: &Eni) -> bool {
    eni.role != EniRole::Unmanaged && !eni.excluded && is_underway(pool, eni)
}

/// Whether another ENI is wanted: only where no ENI there is may be asked.
pub(crate) fn is_wanted(pool: &Pool) -> bool {
    !pool.enis().values().any(|eni| is_candidate(pool, eni))
}

/// Whether a /80 is on its way: asked for, or on an ENI that does not stand yet, or not durable or not confirmed.
pub(crate) fn arriving(pool: &Pool) -> bool {
    let candidates = || pool.enis().values().filter(|eni| is_candidate(pool, eni));
    let is_coming = |eni: &Eni| eni.block.is_some() || eni.assigning == Some(Amount::Block);
    let is_created = |amount: Amount| amount == Amount::Block;
    candidates().any(is_coming)
        || pool
            .creations()
            .values()
            .any(|creation| is_created(creation.amount))
}

/// Why this node cannot have a /80, whatever EC2 says.
pub(crate) fn cannot(pool: &Pool) -> Option<Hindrance> {
    let limits = pool.limits()?;
    (!limits.prefixes).then(|| Hindrance::NoPrefixes {
        instance_type: pool.facts().instance_type.clone(),
    })
}

/// Counts by state, as far as there is anything to count: a /80 is never nearly empty.
pub(crate) fn census(pool: &Pool, now: Tick) -> Census {
    let mut census = Census::default();
    for known in pool.addresses().values() {
        match known.state(now) {
            AddressState::Assigned(_) => census.assigned = census.assigned.saturating_add(1),
            AddressState::Quarantined(_) => census.quarantined = census.quarantined.saturating_add(1),
            AddressState::Cooling { .. } => census.cooling = census.cooling.saturating_add(1),
            AddressState::Free => {}
        }
    }
    if is_serving(pool, now) && free(pool, now).next().is_some() {
        census.free = u32::MAX;
    } else if arriving(pool) {
        census.coming = u32::MAX;
        census.arriving = u32::MAX;
    }
    census
}

/// EC2 has delegated a /80 to an ENI.
pub(crate) fn delegated(pool: &mut Pool, id: &EniId, prefixes: &[Ipv6Cidr], now: Tick, out: &mut Outbox) {
    pool.edit_eni(id, |eni| eni.assigning = None);
    word::named(pool, id, prefixes, now, out);
    if pool.enis().get(id).is_some_and(|eni| eni.block.is_some()) {
        pool.memory.clear(&Topic::Assign(id.clone()));
    } else {
        // An answer that changes nothing must not be asked for again at once.
        let pace = Pace::of(FailureClass::Other);
        pool.memory.obstruct(Topic::Assign(id.clone()), pace, None, now);
        pool.memory.describe.insert(DescribeScope::Attached);
    }
}
