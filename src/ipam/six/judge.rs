//! The judge's part on /80s: written from the invariants, not from the code that keeps them.

use std::collections::BTreeMap;
use std::net::IpAddr;

use super::{FIRST, LAST};
use crate::cidr6::Ipv6Cidr;
use crate::cloud::Amount;
use crate::ids::{EniId, Tick};
use crate::plan::{Act, Plan};
use crate::pool::Pool;

/// What is wrong with the /80s, in words.
pub(crate) fn pool(pool: &Pool, now: Tick) -> Vec<String> {
    let mut wrong = Vec::new();
    let mut carriers: BTreeMap<Ipv6Cidr, &EniId> = BTreeMap::new();
    for (id, eni) in pool.enis() {
        let Some(block) = &eni.block else { continue };
        if let Some(other) = carriers.insert(block.prefix, id) {
            wrong.push(format!("{} is on {other} and on {id}", block.prefix));
        }
        if !block.prefix.is_delegated() || !(FIRST..=LAST + 1).contains(&block.reserved) {
            wrong.push(format!("{id} carries {block:?}"));
        }
    }
    for address in super::free(pool, now) {
        if pool.knows(address) || pool.memory.is_routed(address) {
            wrong.push(format!("{address} is offered but known"));
        }
        let IpAddr::V6(address) = address else {
            wrong.push(format!("{address} is offered where IPv6 addresses are"));
            continue;
        };
        let is_reserved = pool.enis().values().any(|eni| {
            let of = |block: &super::Block| {
                block
                    .place_of(address)
                    .is_some_and(|at| (FIRST..block.reserved).contains(&at))
            };
            !eni.excluded && eni.block.as_ref().is_some_and(of)
        });
        if !is_reserved {
            wrong.push(format!("{address} is offered, of no reserved place"));
        }
    }
    wrong
}

/// What is wrong with a plan: a /80 is asked for only where IPv6 is, once, and nothing else is there.
pub(crate) fn plan(pool: &Pool, plan: &Plan) -> Vec<String> {
    let is_six = pool.policy().is_six();
    let mut wrong = Vec::new();
    let mut asked = 0;
    for act in &plan.acts {
        let (Act::Assign { amount, .. } | Act::Create { amount, .. }) = act else {
            continue;
        };
        if is_six != (*amount == Amount::Block) {
            wrong.push(format!(
                "{amount:?} is asked for, and pods get IPv6 addresses: {is_six}"
            ));
        }
        asked += u32::from(is_six);
        if let Act::Assign { eni, .. } = act
            && pool
                .enis()
                .get(eni)
                .is_some_and(|eni| eni.block.is_some() && is_six)
        {
            wrong.push(format!("a second /80 is asked for on {eni}"));
        }
    }
    let usable = |eni: &crate::model::Eni| !eni.excluded && eni.role != crate::model::EniRole::Unmanaged;
    let under_way = pool
        .enis()
        .values()
        .filter(|eni| usable(eni) && eni.assigning == Some(Amount::Block));
    if asked > 0 && asked + crate::census::count(under_way.count()) > 1 {
        wrong.push("more than one /80 is asked for at a time".to_owned());
    }
    wrong
}
