//! An independent judge of pool and plan: written from the invariants, not from the code that keeps them.
//!
//! `plan` is asked before any plan is carried out; `pool` after every event in the tests, and whenever somebody wants
//! to know.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, Ipv4Addr};

use super::cidr::Ipv4Cidr;
use super::egress::EgressSlot;
use super::event::AddRequest;
use super::ids::{CardIndex, EniId, SandboxKey, Tick};
use super::model::{Allocation, Eni, EniRole, EniState};
use super::plan::{Act, Plan};
use super::pool::Pool;
use super::six;
use super::surplus::Return;

/// A broken invariant, in words.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct Violation(pub String);

macro_rules! require {
    ($violations:ident, $condition:expr, $($text:tt)+) => {
        if !$condition {
            $violations.push(Violation(format!($($text)+)));
        }
    };
}

/// Judges a plan by the limits alone.
pub fn plan(pool: &Pool, plan: &Plan) -> Vec<Violation> {
    let mut violations = Vec::new();
    if plan.acts.is_empty() {
        return violations;
    }
    let Some(limits) = pool.limits() else {
        return vec![Violation("it grows without knowing the limits".to_owned())];
    };
    violations.extend(six::judge::plan(pool, plan).into_iter().map(Violation));
    let is_six = pool.policy().is_six();
    let slots = limits.secondary_per_eni() as usize;
    let mut asked: BTreeSet<&EniId> = BTreeSet::new();
    let mut created: BTreeMap<CardIndex, usize> = BTreeMap::new();
    for act in &plan.acts {
        match act {
            Act::Assign { eni: id, amount } => {
                require!(violations, asked.insert(id), "{id} is asked twice");
                let Some(eni) = pool.enis().get(id) else {
                    violations.push(Violation(format!("{id} is not known")));
                    continue;
                };
                let taken = eni.cidrs.len();
                let count = amount.places() as usize;
                let fits = is_six || (count >= 1 && taken + count <= slots);
                require!(
                    violations,
                    fits,
                    "{id} has {taken} of {slots} places taken and is asked for {count}"
                );
                require!(
                    violations,
                    eni.role != EniRole::Unmanaged,
                    "{id} is not ours to grow"
                );
                require!(violations, eni.assigning.is_none(), "{id} is being asked already");
                require!(violations, !eni.excluded, "{id} is to be emptied, not grown");
            }
            Act::DescribeSubnets => {}
            Act::Create { amount, subnet, card } => {
                let choice = pool.policy().eni_config.as_ref();
                let custom = choice.filter(|_| pool.policy().custom_networking);
                require!(
                    violations,
                    custom.is_none_or(|choice| choice.subnets.contains(subnet)),
                    "an ENI is to be made in {subnet}, which the ENIConfig does not name"
                );
                *created.entry(*card).or_default() += 1;
                let addresses = amount.places();
                let fits = is_six || addresses as usize <= slots;
                require!(
                    violations,
                    fits,
                    "an ENI of {slots} places is to carry {addresses}"
                );
            }
        }
    }
    for (card, created) in created {
        let switched_on = card == CardIndex(0) || pool.policy().has_further_cards();
        require!(violations, switched_on, "{card} is not ours to grow");
        let takes_place = |state: &EniState| !matches!(state, EniState::Discarding { .. } | EniState::Lost);
        let enis = pool.enis().values();
        let there = enis
            .filter(|eni| eni.card == card && takes_place(&eni.state))
            .count();
        let coming = pool
            .creations()
            .values()
            .filter(|creation| creation.card == card)
            .count();
        let total = there + coming + created;
        let by_setting = pool.policy().max_enis.filter(|max| *max >= 1).unwrap_or(u32::MAX);
        let most = by_setting.min(limits.enis_on(card)) as usize;
        require!(
            violations,
            total <= most,
            "{total} ENIs where {most} may be, on {card}"
        );
    }
    violations
}

/// Judges what is to be given back: nobody has or wants any of it, and growth would not ask for it again.
pub fn returns(pool: &Pool, returns: &[Return], now: Tick) -> Vec<Violation> {
    let mut violations = Vec::new();
    let policy = pool.policy();
    require!(
        violations,
        policy.provisioning && policy.ask_ec2,
        "EC2 is not to be asked"
    );
    require!(violations, pool.memory.waiters.is_empty(), "pods wait");
    let last = pool.memory.last_shrink;
    let is_due = last.is_none_or(|last| now.since(last).as_secs() >= 30);
    require!(violations, is_due, "something was given back less than 30 s ago");
    let mut after = pool.clone();
    let mut asked: BTreeSet<&EniId> = BTreeSet::new();
    for what in returns {
        let (Return::Eni(id) | Return::Cidrs { eni: id, .. }) = what;
        require!(violations, asked.insert(id), "{id} gives twice");
        let Some(eni) = pool.enis().get(id) else {
            violations.push(Violation(format!("{id} is not known")));
            continue;
        };
        require!(
            violations,
            eni.state == EniState::Ready,
            "{id} is {:?}",
            eni.state
        );
        let cidrs: BTreeSet<Ipv4Cidr> = match what {
            Return::Eni(_) => {
                require!(
                    violations,
                    eni.role == EniRole::Secondary,
                    "{id} is {:?}",
                    eni.role
                );
                let used = pool.allocations().values().any(|held| held.eni == *id);
                require!(violations, !used, "{id} carries a sandbox");
                eni.cidrs.keys().copied().collect()
            }
            Return::Cidrs { cidrs, .. } => {
                require!(violations, eni.role != EniRole::Unmanaged, "{id} is not ours");
                cidrs.clone()
            }
        };
        for cidr in &cidrs {
            require!(violations, eni.cidrs.contains_key(cidr), "{cidr} is not on {id}");
            for address in cidr.addresses() {
                let held = pool.allocations().values().any(|held| held.address == address);
                require!(violations, !held, "{address} is held");
                let free = pool.known(address).is_some_and(|known| known.is_free(now));
                require!(violations, free, "{address} rests or is in doubt");
                let routed = pool.memory.is_routed(address);
                require!(violations, !routed, "the kernel routes {address}");
            }
        }
        after.edit_eni(id, |eni| match what {
            Return::Eni(_) => eni.state = EniState::Draining,
            Return::Cidrs { cidrs, .. } => {
                for (_, placed) in eni.cidrs.iter_mut().filter(|(cidr, _)| cidrs.contains(*cidr)) {
                    placed.releasing = true;
                }
            }
        });
    }
    let (before, after) = (super::plan::plan(pool, now), super::plan::plan(&after, now));
    let (was, would_be) = (before.report.short, after.report.short);
    require!(
        violations,
        before.acts.is_empty() && after.acts.is_empty() && would_be <= was,
        "growth would ask for it again: {would_be} short instead of {was}"
    );
    violations
}

/// The same as [`pool`], all the long way.
#[cfg(test)]
pub(super) fn pool_at_length(pool: &Pool, now: Tick) -> Vec<Violation> {
    let mut violations = Vec::new();
    one_address_one_sandbox(pool, &mut violations);
    addresses_and_enis_agree(pool, &mut violations);
    enis_do_not_collide(pool, &mut violations);
    nothing_else_is_offered(pool, now, &mut violations);
    nobody_is_forgotten(pool, now, &mut violations);
    violations.extend(six::judge::pool(pool, now).into_iter().map(Violation));
    violations
}

/// Judges the whole pool.
pub fn pool(pool: &Pool, now: Tick) -> Vec<Violation> {
    let mut violations = holdings(pool);
    nothing_else_is_offered(pool, now, &mut violations);
    violations.extend(waiting(pool, now));
    violations.extend(six::judge::pool(pool, now).into_iter().map(Violation));
    violations
}

/// Judges what of a pool depends on its ENIs, addresses and allocations alone: as long as [`Pool::version`] is the same,
/// so is the judgement.
pub fn holdings(pool: &Pool) -> Vec<Violation> {
    let mut violations = Vec::new();
    if !is_one_to_one(pool) {
        one_address_one_sandbox(pool, &mut violations);
    }
    if !is_plainly_carried(pool) {
        addresses_and_enis_agree(pool, &mut violations);
    }
    enis_do_not_collide(pool, &mut violations);
    one_egress_address_one_sandbox(pool, &mut violations);
    violations
}

fn one_egress_address_one_sandbox(pool: &Pool, violations: &mut Vec<Violation>) {
    let mut holders: BTreeMap<EgressSlot, &SandboxKey> = BTreeMap::new();
    for (key, held) in pool.allocations() {
        let Some(slot) = held.egress else { continue };
        if let Some(other) = holders.insert(slot, key) {
            violations.push(Violation(format!(
                "{key} and {other} have one address for egress, {slot:?}"
            )));
        }
    }
}

/// Judges what depends on the time and on who waits.
pub fn waiting(pool: &Pool, now: Tick) -> Vec<Violation> {
    let mut violations = Vec::new();
    nobody_is_forgotten(pool, now, &mut violations);
    violations
}

/// Whether [`one_address_one_sandbox`] has nothing to find, without filing everything anew: every allocation's address
/// names it, so no two allocations have one address; and no more addresses name a holder than there are allocations.
fn is_one_to_one(pool: &Pool) -> bool {
    let names_it = |(key, allocation): (&SandboxKey, &Allocation)| {
        let known = pool.addresses().get(&allocation.address);
        *key == allocation.key && known.is_some_and(|known| known.holder.as_ref() == Some(key))
    };
    let held = pool
        .addresses()
        .values()
        .filter(|known| known.holder.is_some())
        .count();
    held == pool.allocations().len() && pool.allocations().iter().all(names_it)
}

/// Whether [`addresses_and_enis_agree`] has nothing to find: every address of an ENI names this ENI, so it is on no other
/// one, and an ENI's addresses ascend, so that none is on it twice. Where anything is being given back or an ENI is not
/// in use, the long way tells.
fn is_plainly_carried(pool: &Pool) -> bool {
    let names_it = |(id, eni): (&EniId, &Eni)| {
        let is_plain = matches!(eni.state, EniState::Attached | EniState::Ready | EniState::Lost)
            && eni.cidrs.values().all(|placed| !placed.releasing);
        let names = |address: &Ipv4Addr| {
            let known = pool.known(*address);
            known.is_some_and(|known| known.eni == *id)
        };
        let mut last = None;
        let mut ascends = |address: Ipv4Addr| last.replace(address).is_none_or(|last| last < address);
        let of_cidrs = |address: Ipv4Addr| names(&address) && ascends(address);
        let primary = || pool.placed(eni.primary).is_none() || eni.role == EniRole::Unmanaged;
        *id == eni.id && is_plain && primary() && eni.addresses().map(|(address, _)| address).all(of_cidrs)
    };
    !pool.knows(pool.facts().primary_address) && pool.enis().iter().all(names_it)
}

fn one_address_one_sandbox(pool: &Pool, violations: &mut Vec<Violation>) {
    let mut holders: BTreeMap<IpAddr, &SandboxKey> = BTreeMap::new();
    for (key, allocation) in pool.allocations() {
        let address = allocation.address;
        require!(
            violations,
            *key == allocation.key,
            "{key} is filed under another name"
        );
        if let Some(other) = holders.insert(address, key) {
            violations.push(Violation(format!("{address} is held by {other} and by {key}")));
        }
        let holder = pool.known(address).and_then(|known| known.holder.as_ref());
        require!(
            violations,
            holder == Some(key),
            "{address} does not name its holder {key}"
        );
    }
    for (address, known) in pool.addresses() {
        if let Some(key) = &known.holder {
            require!(
                violations,
                holders.get(address) == Some(&key),
                "{address} names {key}, which does not hold it"
            );
        }
    }
}

fn addresses_and_enis_agree(pool: &Pool, violations: &mut Vec<Violation>) {
    let mut carried: BTreeMap<Ipv4Addr, &EniId> = BTreeMap::new();
    for (id, eni) in pool.enis() {
        require!(violations, *id == eni.id, "{id} is filed under another name");
        require!(
            violations,
            pool.placed(eni.primary).is_none() || eni.role == EniRole::Unmanaged,
            "{id}'s own address {} is on an ENI for pods",
            eni.primary
        );
        for (address, _) in eni.addresses() {
            if let Some(other) = carried.insert(address, id) {
                violations.push(Violation(format!("{address} is on {other} and on {id}")));
            }
            let named = pool.known(address).map(|known| &known.eni);
            require!(
                violations,
                named == Some(id),
                "{address} is on {id} but does not say so"
            );
        }
        let unused = matches!(
            eni.state,
            EniState::Discarding { .. }
                | EniState::Created
                | EniState::Attaching
                | EniState::Draining
                | EniState::Detaching
        );
        for (cidr, _) in eni.cidrs.iter().filter(|(_, placed)| placed.releasing) {
            let held = pool
                .allocations()
                .values()
                .find(|held| matches!(held.address, IpAddr::V4(address) if cidr.contains(address)));
            require!(
                violations,
                held.is_none(),
                "{cidr} is being given back and held: {held:?}"
            );
        }
        let used = pool
            .allocations()
            .values()
            .any(|allocation| allocation.eni == *id);
        require!(
            violations,
            !(unused && used),
            "{id} carries a sandbox but is {:?}",
            eni.state
        );
    }
    require!(
        violations,
        !pool.knows(pool.facts().primary_address),
        "the node's own address is in the pool"
    );
}

fn enis_do_not_collide(pool: &Pool, violations: &mut Vec<Violation>) {
    let mut places = BTreeMap::new();
    let mut macs = BTreeMap::new();
    for eni in pool.enis().values() {
        if let Some(other) = macs.insert(eni.mac, &eni.id) {
            violations.push(Violation(format!("{other} and {} share {}", eni.id, eni.mac)));
        }
        if matches!(eni.state, EniState::Discarding { .. } | EniState::Lost) {
            continue;
        }
        let Some(device) = eni.device else { continue };
        if let Some(other) = places.insert((eni.card, device), &eni.id) {
            violations.push(Violation(format!(
                "{other} and {} share device {} of {}",
                eni.id, device.0, eni.card
            )));
        }
    }
    let mut marks = BTreeMap::new();
    let standing = |eni: &&Eni| eni.role == EniRole::Secondary && eni.state == EniState::Ready;
    for eni in pool.enis().values().filter(standing) {
        let Some(mark) = eni.mark() else { continue };
        if let Some(other) = marks.insert(mark, &eni.id) {
            violations.push(Violation(format!("{other} and {} share mark {}", eni.id, mark.0)));
        }
    }
}

fn nobody_is_forgotten(pool: &Pool, now: Tick, violations: &mut Vec<Violation>) {
    let memory = &pool.memory;
    let usable = if memory.waiters.is_empty() {
        BTreeSet::new()
    } else {
        pool.usable_addresses(now)
    };
    let takes = |request: &AddRequest, address: IpAddr| {
        let card = pool.placed(address).map(|(eni, _)| eni.card);
        request.wish.takes(card.unwrap_or_default())
    };
    for request in memory.waiters.values() {
        let (waiter, key) = (request.waiter, &request.key);
        require!(
            violations,
            request.deadline > now,
            "waiter {waiter} waits beyond its deadline"
        );
        require!(
            violations,
            !pool.allocations().contains_key(key) || memory.store_trouble.is_some(),
            "waiter {waiter} waits for what {key} has"
        );
        let woken = memory.wake.is_some_and(|wake| wake <= request.deadline);
        require!(violations, woken, "nobody wakes waiter {waiter}");
        require!(
            violations,
            !usable.iter().any(|address| takes(request, *address)),
            "waiter {waiter} waits although an address is free"
        );
    }
}

fn nothing_else_is_offered(pool: &Pool, now: Tick, violations: &mut Vec<Violation>) {
    for (address, known) in pool.each_usable(now) {
        let resting = known.rests_until.is_some_and(|until| until >= now);
        let bad = known.holder.is_some() || known.doubt.is_some() || resting;
        require!(violations, !bad, "{address} is offered but not free");
    }
}
