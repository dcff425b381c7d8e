//! What EC2, IMDS and the kernel say of /80s and their addresses. IMDS only adds; an omission is a doubt first.

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv6Addr};

use super::block::{Block, FIRST, LAST};
use super::drift;
use crate::cidr6::Ipv6Cidr;
use crate::cloud::{Amount, DescribeScope};
use crate::evidence;
use crate::ids::{EniId, Tick};
use crate::memory::Ec2View;
use crate::model::{Eni, EniRole};
use crate::outbox::Outbox;
use crate::pool::Pool;
use crate::reconcile;
use crate::verdict::{self, AddressWords, Ec2Word, ImdsWord, KernelWord};
use crate::witness::{Doubt, ImdsSnapshot};

/// What was last said of the ENIs' /80s; a start forgets it.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Words {
    /// When EC2 named an ENI's /80, as long as its Describe may lag behind that.
    fresh: BTreeMap<EniId, Tick>,
    /// Since when EC2's Describe has not listed an ENI's /80.
    unlisted: BTreeMap<EniId, Tick>,
    /// When the answer to asking for one was found to be lost.
    lost: BTreeMap<EniId, Tick>,
}

impl Words {
    /// Whether EC2 has to be asked again because it no longer listed a /80.
    pub(crate) fn has_doubts(&self) -> bool {
        !self.unlisted.is_empty()
    }

    /// The answer to asking for a /80 is lost: only EC2's lists tell, and those may lag. There is no token by which the
    /// call could be repeated, so it is not until no list can be too old to show what became of it.
    pub(crate) fn lose(&mut self, id: &EniId, now: Tick) {
        self.lost.insert(id.clone(), now);
    }

    /// Whether EC2's last list lacked an ENI's /80.
    pub(super) fn is_unlisted(&self, id: &EniId) -> bool {
        self.unlisted.contains_key(id)
    }

    /// When EC2 named an ENI's /80, if that was lately.
    pub(super) fn named(&self, id: &EniId) -> Option<Tick> {
        self.fresh.get(id).copied()
    }

    /// Forgets everything about an ENI.
    pub(crate) fn forget_eni(&mut self, id: &EniId) {
        self.fresh.remove(id);
        self.unlisted.remove(id);
        self.lost.remove(id);
    }
}

fn is_ours(pool: &Pool, id: &EniId) -> bool {
    let ours = |eni: &Eni| eni.role != EniRole::Unmanaged;
    pool.policy().is_six() && pool.enis().get(id).is_some_and(ours)
}

/// The one of several that is used: the lowest, so that every start that knows nothing chooses the same.
fn chosen(prefixes: impl Iterator<Item = Ipv6Cidr>) -> Option<Ipv6Cidr> {
    prefixes.filter(|prefix| prefix.is_delegated()).min()
}

/// EC2 itself has named an ENI's /80s, by an answer that no list may contradict for a while.
pub(crate) fn named(pool: &mut Pool, id: &EniId, prefixes: &[Ipv6Cidr], now: Tick, out: &mut Outbox) {
    if is_ours(pool, id) && chosen(prefixes.iter().copied()).is_some() {
        pool.memory.words.fresh.insert(id.clone(), now);
        take(pool, id, prefixes, now, out);
    }
}

/// EC2's list, asked for then, has the ENI with these.
pub(crate) fn listed(
    pool: &mut Pool,
    id: &EniId,
    prefixes: &[Ipv6Cidr],
    asked: Tick,
    now: Tick,
    out: &mut Outbox,
) {
    if !is_ours(pool, id) {
        return;
    }
    if chosen(prefixes.iter().copied()).is_some() {
        take(pool, id, prefixes, now, out);
    }
    let missing = pool.enis().get(id).and_then(|eni| {
        let block = eni.block.as_ref()?;
        (!prefixes.contains(&block.prefix)).then_some(block.prefix)
    });
    match missing {
        Some(prefix) => {
            omitted(pool, id, prefix, asked, now, out);
            // Others may have put another one in its place.
            if pool.enis().get(id).is_some_and(|eni| eni.block.is_none()) {
                take(pool, id, prefixes, now, out);
            }
        }
        None => drop(pool.memory.words.unlisted.remove(id)),
    }
    drift::of_blocks(pool, now, out);
}

/// Takes up what is listed, unless the ENI has one that is listed, too, or that may still be.
fn take(pool: &mut Pool, id: &EniId, prefixes: &[Ipv6Cidr], now: Tick, out: &mut Outbox) {
    let known = pool.enis().get(id).and_then(|eni| eni.block.as_ref());
    match known.map(|block| block.prefix) {
        Some(prefix) if prefixes.contains(&prefix) => {
            let was_omitted = pool.memory.words.unlisted.remove(id).is_some();
            pool.edit_eni(id, |eni| {
                if let Some(block) = &mut eni.block {
                    block.verified = true;
                }
            });
            if was_omitted {
                judge_all(pool, prefix, now, out);
            }
        }
        Some(_) => return,
        None => {
            if let Some(prefix) = chosen(prefixes.iter().copied()) {
                place(pool, id, prefix, true, now, out);
            }
        }
    }
    // What was asked for is there, whatever became of the answer.
    pool.memory.words.lost.remove(id);
    pool.edit_eni(id, |eni| {
        eni.assigning = eni.assigning.filter(|amount| *amount != Amount::Block);
    });
}

/// EC2's list lacks an ENI's /80: nobody new gets an address of it, and once no list can be that old and nobody
/// contradicts, it is no longer the ENI's. Who has an address of it keeps that.
fn omitted(pool: &mut Pool, id: &EniId, prefix: Ipv6Cidr, asked: Tick, now: Tick, out: &mut Outbox) {
    let lag = pool.policy().describe_lag;
    let named = pool.memory.words.fresh.get(id);
    if named.is_some_and(|named| named.after(lag) > asked) {
        return;
    }
    let is_new = !pool.memory.words.unlisted.contains_key(id);
    let since = *pool.memory.words.unlisted.entry(id.clone()).or_insert(now);
    if is_new {
        let users = held(pool, prefix);
        out.alarm(
            "quarantined",
            format!("EC2 no longer lists {prefix} on {id}; {users} sandboxes have addresses of it, and nobody gets another"),
        );
    }
    pool.edit_eni(id, |eni| {
        if let Some(block) = &mut eni.block {
            block.verified = false;
        }
    });
    let by_imds = evidence::sweep(pool, now).is_some_and(|(snapshot, _)| lists(snapshot, id, prefix));
    if now.since(since) >= lag && !by_imds {
        pool.memory.words.forget_eni(id);
        pool.edit_eni(id, |eni| eni.block = None);
        out.alarm(
            "prefix-lost",
            format!("{prefix} is no longer {id}'s, by EC2: another is asked for"),
        );
    }
    judge_all(pool, prefix, now, out);
}

pub(super) fn lists(snapshot: &ImdsSnapshot, id: &EniId, prefix: Ipv6Cidr) -> bool {
    let mut enis = snapshot.enis.iter();
    enis.any(|eni| eni.id == *id && eni.prefixes6.contains(&prefix))
}

pub(super) fn held(pool: &Pool, prefix: Ipv6Cidr) -> usize {
    let inside = |address: IpAddr| matches!(address, IpAddr::V6(address) if prefix.contains(address));
    let held = pool.allocations().values();
    held.filter(|held| inside(held.address)).count()
}

/// Addresses of a /80 that are known: held, at rest or in doubt.
pub(super) fn known(pool: &Pool, prefix: Ipv6Cidr) -> Vec<Ipv6Addr> {
    let of = |address: &IpAddr| match address {
        IpAddr::V6(address) if prefix.contains(*address) => Some(*address),
        _ => None,
    };
    pool.addresses().keys().filter_map(of).collect()
}

fn judge_all(pool: &mut Pool, prefix: Ipv6Cidr, now: Tick, out: &mut Outbox) {
    for address in known(pool, prefix) {
        judge_standing(pool, address, now, out);
    }
}

/// Puts a /80 on its ENI. What is known or routed of it was given by others before: it goes on behind that.
fn place(pool: &mut Pool, id: &EniId, prefix: Ipv6Cidr, verified: bool, now: Tick, out: &mut Outbox) {
    let is_taken =
        |eni: &Eni| eni.id != *id && eni.block.as_ref().is_some_and(|block| block.prefix == prefix);
    let others: Vec<EniId> = pool
        .enis()
        .values()
        .filter(|eni| is_taken(eni))
        .map(|eni| eni.id.clone())
        .collect();
    // IMDS adds knowledge; it does not move what is known elsewhere.
    if !verified && !others.is_empty() {
        return;
    }
    for other in others {
        pool.edit_eni(&other, |eni| eni.block = None);
    }
    let places = known(pool, prefix).into_iter().chain(drift::routed(pool));
    let last = places.filter_map(|address| prefix.place_of(address)).max();
    // Whoever has one near the end of it did not count up to there.
    let first = last
        .filter(|last| *last < LAST / 2)
        .map_or(FIRST, |last| last.saturating_add(1));
    pool.edit_eni(id, |eni| eni.block = Some(Block::new(prefix, verified, first)));
    for address in known(pool, prefix) {
        pool.move_to(id, address);
        pool.confirm_imported(id, address);
    }
    note_routes(pool, now, out);
    judge_all(pool, prefix, now, out);
}

/// IMDS has been heard, EC2 not: what it lists serves meanwhile. What EC2 has not said yet, it is asked about.
pub(crate) fn overheard(pool: &mut Pool, snapshot: &ImdsSnapshot, adopt: bool, now: Tick, out: &mut Outbox) {
    for seen in &snapshot.enis {
        let has_none = pool.enis().get(&seen.id).is_some_and(|eni| eni.block.is_none());
        let Some(prefix) = chosen(seen.prefixes6.iter().copied()).filter(|_| has_none) else {
            continue;
        };
        if !is_ours(pool, &seen.id) {
            continue;
        }
        if adopt {
            place(pool, &seen.id, prefix, false, now, out);
        } else if pool.memory.ec2 == Ec2View::Answered {
            pool.memory.describe.insert(DescribeScope::Attached);
        }
    }
}

/// A sandbox may be using every address of ours that the kernel routes to a pod: what nobody is known to have is in
/// doubt, and nobody gets it.
pub(crate) fn note_routes(pool: &mut Pool, now: Tick, out: &mut Outbox) {
    let is_unknown = |address: &Ipv6Addr| !pool.knows(*address);
    let unknown: Vec<Ipv6Addr> = drift::routed(pool).filter(is_unknown).collect();
    for address in unknown {
        let has = |eni: &&Eni| eni.places(address.into()).is_some();
        let home = pool.enis().values().find(has).map(|eni| eni.id.clone());
        if let Some(id) = home {
            pool.move_to(&id, address);
            judge_standing(pool, address, now, out);
        }
    }
    drift::strays(pool, now, out);
}

/// The kernel has been heard, or EC2: an address may be in doubt, or no longer.
pub(crate) fn judge_standing(pool: &mut Pool, address: Ipv6Addr, now: Tick, out: &mut Outbox) {
    let (kernel, store) = evidence::of_address(pool, address.into(), now);
    let known = pool.known(address);
    let Some(known) = known else { return };
    // Whoever it is routed to may ask for it as long as it is, whatever EC2 says meanwhile: that it omits it would begin a
    // rest.
    let is_claimable = matches!(known.doubt, Some(Doubt::PodRoute { .. })) && kernel == KernelWord::Routed;
    let was_omitted = matches!(known.doubt, Some(Doubt::NotInEc2 | Doubt::EniLost));
    let ec2 = match pool.placed(address) {
        Some((_, placed)) if placed.verified => Ec2Word::Lists,
        Some((eni, _)) if pool.memory.words.unlisted.contains_key(&eni.id) => Ec2Word::Omits,
        None if was_omitted || pool.memory.ec2 == Ec2View::Answered => Ec2Word::Omits,
        _ => evidence::unheard(pool, now),
    };
    let words = AddressWords {
        ec2,
        imds: ImdsWord::Silent,
        kernel,
        store,
    };
    if !is_claimable {
        reconcile::judge_doubt(pool, address.into(), words, verdict::address(words), now, out);
    }
    drift::of_address(pool, address, words, now, out);
}

/// EC2 has listed what is attached, as it was asked to then: what was asked for and is not there may be asked for again
/// once no list can be too old to show it.
pub(crate) fn settle_doubts(pool: &mut Pool, asked: Tick, now: Tick) {
    let lag = pool.policy().describe_lag;
    let lost: Vec<(EniId, Tick)> = pool
        .memory
        .words
        .lost
        .iter()
        .map(|(id, at)| (id.clone(), *at))
        .collect();
    for (id, at) in lost {
        if asked >= at.after(lag) {
            pool.memory.words.lost.remove(&id);
            if !pool.memory.is_assigning(&id) {
                pool.edit_eni(&id, |eni| {
                    eni.assigning = eni.assigning.filter(|amount| *amount != Amount::Block);
                });
            }
        } else {
            // Lists are rarely that old: it is worth a look half-way.
            let left = at.after(lag).since(now);
            pool.memory
                .look_by(now.after((left / 2).max(std::time::Duration::from_secs(1)).min(left)));
        }
    }
    pool.memory
        .words
        .fresh
        .retain(|_, since| since.after(lag) > asked);
}
