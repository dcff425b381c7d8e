//! What is there beyond the targets and could be given back: pure, over the same counts that growth is planned by.
//!
//! Whatever goes, growth would not ask for it again: the Go daemon with a target of 0 takes and gives for ever (its fault
//! Q5). What rests, is held or in doubt is neither spare nor given back (Q1, Q2).

use std::cmp::Reverse;
use std::collections::{BTreeMap, BTreeSet};
use std::net::Ipv4Addr;
use std::time::Duration;

use super::census::{Census, count};
use super::cidr::Ipv4Cidr;
use super::cloud::Unit;
use super::ids::{CardIndex, EniId, Tick};
use super::memory::Seen;
use super::model::{Eni, EniRole, EniState};
use super::obstacle::Topic;
use super::plan::{Hindrance, Report};
use super::policy::WarmTarget;
use super::pool::Pool;
use super::targets::Goal;
use super::{stamp, tags};

/// An ENI younger than this stays, as in the Go daemon: it has only just been wanted.
const YOUNG: Duration = Duration::from_mins(1);

/// One thing to give back.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Return {
    /// An ENI with all it carries.
    Eni(EniId),
    /// Secondary addresses or prefixes of an ENI that stays.
    Cidrs {
        /// The ENI.
        eni: EniId,
        /// Which.
        cidrs: BTreeSet<Ipv4Cidr>,
    },
}

/// What there is too much of.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Surplus {
    /// What could go now, each ENI once.
    pub(super) returns: Vec<Return>,
    /// When an ENI that is only too young is old enough.
    pub(super) next: Option<Tick>,
    /// Something is too much that may not go now: an ADD can change what may.
    pub(super) is_held_up: bool,
}

/// What could go now, given what growth has found; every card by itself.
pub(super) fn surplus(pool: &Pool, report: &Report, now: Tick) -> Surplus {
    let mut all = Surplus::default();
    for card in pool.managed_cards() {
        let found = of_card(pool, card, report.of(card), now);
        all.returns.extend(found.returns);
        all.next = [all.next, found.next].into_iter().flatten().min();
        all.is_held_up |= found.is_held_up;
    }
    all
}

/// The same of one card.
pub(super) fn of_card(pool: &Pool, card: CardIndex, report: &Report, now: Tick) -> Surplus {
    let Some(limits) = pool.limits() else {
        return Surplus::default();
    };
    let goal = Goal::of(pool, card);
    let census = Census::of(pool, card, goal, now);
    let warm = goal.warm(limits.secondary_per_eni());
    let is_covered = report.short == 0 && census.free >= warm && census.total >= goal.minimum();
    let spare = census.free.saturating_sub(warm);
    let spare = if spare > goal.slack(pool) { spare } else { 0 };
    let mut sparing = Sparing {
        pool,
        enis: pool.enis().values().filter(|eni| eni.card == card).collect(),
        goal,
        now,
        addresses: spare.min(census.total.saturating_sub(goal.minimum())),
        prefixes: u32::MAX,
        pods: pods(pool),
        surplus: Surplus::default(),
        settled: BTreeSet::new(),
    };
    sparing.excluded();
    if is_covered {
        sparing.spare_whole_prefixes();
        sparing.keep_prefixes_that_are_stood_in_for();
        sparing.whole_enis();
        sparing.parts();
        if census.left_over > 0 {
            sparing.left_overs(u32::MAX);
        }
    } else if report.hindrances.iter().any(is_lack_of_places) {
        // What the mode no longer asks for takes the places of what it does, and an ENI that nothing was found for that of
        // one in another subnet. An ENI that could carry more is kept: what it carries is exchanged by two calls, the ENI
        // by seven, and in vain where the subnet has no block of 16 yet.
        sparing.empty_enis();
        sparing.left_overs(report.short.div_ceil(goal.unit.size()));
    }
    sparing.surplus
}

fn is_lack_of_places(hindrance: &Hindrance) -> bool {
    matches!(hindrance, Hindrance::EniLimit { .. })
}

/// Sandboxes by ENI.
fn pods(pool: &Pool) -> BTreeMap<EniId, usize> {
    let mut pods = BTreeMap::new();
    for allocation in pool.allocations().values() {
        let of = pods.entry(allocation.eni.clone()).or_default();
        *of = usize::saturating_add(*of, 1);
    }
    pods
}

/// What is to go, in the making.
struct Sparing<'a> {
    pool: &'a Pool,
    /// The card's.
    enis: Vec<&'a Eni>,
    goal: Goal,
    now: Tick,
    /// So many addresses are more than the targets ask for.
    addresses: u32,
    /// So many wholly free prefixes are.
    prefixes: u32,
    pods: BTreeMap<EniId, usize>,
    surplus: Surplus,
    /// ENIs that go, or will once they are old enough.
    settled: BTreeSet<EniId>,
}

impl<'a> Sparing<'a> {
    /// `WARM_PREFIX_TARGET` is about whole prefixes, too: as many free ones as it says stay, unless none are asked for.
    fn spare_whole_prefixes(&mut self) {
        if let WarmTarget::Prefixes(warm) = self.goal.target {
            let standing = self.enis.iter().filter(|eni| is_standing(eni));
            let free = standing.flat_map(|eni| {
                let is_free = |cidr: &&Ipv4Cidr| !cidr.is_host() && self.is_idle(eni, **cidr);
                eni.cidrs.keys().filter(is_free)
            });
            self.prefixes = count(free.count()).saturating_sub(warm);
        }
    }

    /// While single addresses stand in for prefixes that the subnet lacks, no prefix goes: once it had gone, the subnet would
    /// have one again, the single addresses would not count any more, and it would be asked for.
    fn keep_prefixes_that_are_stood_in_for(&mut self) {
        let stands_in = |eni: &Eni, cidr: Ipv4Cidr| cidr.is_host() && self.counts(eni, cidr);
        let has_some = |eni: &&Eni| eni.cidrs.keys().any(|cidr| stands_in(eni, *cidr));
        if self.goal.unit == Unit::Prefix && self.enis.iter().any(has_some) {
            self.prefixes = 0;
        }
    }

    fn counts(&self, eni: &Eni, cidr: Ipv4Cidr) -> bool {
        self.goal.counts(self.pool, eni, cidr, self.now)
    }

    /// Whether every address of it could be handed out now.
    fn is_idle(&self, eni: &Eni, cidr: Ipv4Cidr) -> bool {
        let is_usable = |address| self.pool.is_usable(address, self.now);
        !is_releasing(eni, cidr) && cidr.addresses().all(is_usable)
    }

    fn is_hindered(&self, eni: &Eni) -> bool {
        let topic = Topic::Release(eni.id.clone());
        eni.assigning.is_some() || !self.pool.memory.is_clear(&topic, self.now)
    }

    fn pods_on(&self, eni: &Eni) -> usize {
        self.pods.get(&eni.id).copied().unwrap_or_default()
    }

    /// Whole ENIs that nothing uses, the highest device first: one call takes all they carry, and a place comes free.
    fn whole_enis(&mut self) {
        let enis = self.enis.iter().copied();
        let mut idle: Vec<&Eni> = enis.filter(|eni| self.could_go(eni)).collect();
        idle.sort_by_key(|eni| Reverse(eni.device));
        for eni in idle {
            let counted = eni.cidrs.keys().filter(|cidr| self.counts(eni, **cidr));
            let units: Vec<Unit> = counted.map(|cidr| Unit::of(*cidr)).collect();
            let addresses: u32 = units.iter().map(|unit| unit.size()).sum();
            let prefixes = count(units.iter().filter(|unit| **unit == Unit::Prefix).count());
            if addresses > self.addresses || prefixes > self.prefixes {
                continue;
            }
            self.addresses = self.addresses.saturating_sub(addresses);
            self.prefixes = self.prefixes.saturating_sub(prefixes);
            self.give_eni(eni);
        }
    }

    /// ENIs that carry nothing.
    fn empty_enis(&mut self) {
        let is_empty = |eni: &&Eni| eni.cidrs.is_empty() && self.is_removable(eni);
        let empty: Vec<&Eni> = self.enis.iter().copied().filter(is_empty).collect();
        for eni in empty {
            self.give_eni(eni);
        }
    }

    /// It goes once, for however many reasons.
    fn give_eni(&mut self, eni: &Eni) {
        if !self.settled.insert(eni.id.clone()) {
            return;
        }
        // What EC2 or a witness keeps is not taken from another ENI instead.
        self.surplus.is_held_up |= self.is_hindered(eni) || self.of_age(eni).is_some();
        if self.is_hindered(eni) {
            return;
        }
        match self.of_age(eni) {
            Some(later) => {
                let next = self.surplus.next.map_or(later, |next| next.min(later));
                self.surplus.next = Some(next);
            }
            None => self.surplus.returns.push(Return::Eni(eni.id.clone())),
        }
    }

    fn could_go(&self, eni: &Eni) -> bool {
        self.is_removable(eni) && eni.cidrs.keys().all(|cidr| self.is_idle(eni, *cidr))
    }

    /// Whether it is one that we may detach, and no pod is on it.
    fn is_removable(&self, eni: &Eni) -> bool {
        let progress = self.pool.memory.enis.get(&eni.id);
        eni.role == EniRole::Secondary
            && eni.state == EniState::Ready
            && eni.attachment.is_some()
            && progress.is_some_and(|progress| progress.configured && progress.can_go)
            && self.pods_on(eni) == 0
    }

    /// Whatever is free on ENIs that get no new pods, whether the targets are met or not: nobody will have it here.
    fn excluded(&mut self) {
        let excluded = |eni: &&Eni| eni.excluded && is_standing(eni);
        let enis: Vec<&Eni> = self.enis.iter().copied().filter(excluded).collect();
        for eni in enis {
            let free: Vec<Ipv4Cidr> = eni
                .cidrs
                .keys()
                .copied()
                .filter(|cidr| self.is_rested(eni, *cidr))
                .collect();
            if free.len() == eni.cidrs.len() && self.is_removable(eni) {
                self.give_eni(eni);
                continue;
            }
            for cidr in free {
                self.give(eni, cidr);
            }
        }
    }

    /// Whether nobody has any address of it and all have rested, on an ENI where nobody gets one.
    fn is_rested(&self, eni: &Eni, cidr: Ipv4Cidr) -> bool {
        let memory = &self.pool.memory;
        let is_free = |address: Ipv4Addr| {
            let known = self.pool.known(address);
            known.is_some_and(|known| known.is_free(self.now))
                && !memory.is_routed(address)
                && !memory.unwritten.contains_key(&address.into())
        };
        !is_releasing(eni, cidr) && cidr.addresses().all(is_free)
    }

    /// When it will be old enough, if it is not. Of one that was attached before the daemon started its tag tells.
    fn of_age(&self, eni: &Eni) -> Option<Tick> {
        let memory = &self.pool.memory;
        let progress = memory.enis.get(&eni.id);
        let born = progress.and_then(|progress| progress.born);
        let seen = progress.and_then(|progress| progress.seen.as_ref());
        let created = || created(self.pool, seen?).filter(|created| *created <= memory.started);
        let of_age = born.or_else(created).unwrap_or(memory.started).after(YOUNG);
        (of_age > self.now).then_some(of_age)
    }

    /// Single addresses and whole prefixes beyond the targets, from ENIs with the fewest pods, so that these come free.
    fn parts(&mut self) {
        if self.goal.takes_whole_enis() || self.addresses == 0 {
            return;
        }
        for (eni, cidr) in self.idle_parts() {
            let size = Unit::of(cidr).size();
            let is_prefix = !cidr.is_host();
            let is_asked_for = is_prefix || matches!(self.goal.target, WarmTarget::Ips { .. });
            let fits = size <= self.addresses && !(is_prefix && self.prefixes == 0);
            if self.counts(eni, cidr) && is_asked_for && fits {
                self.addresses = self.addresses.saturating_sub(size);
                self.prefixes = self.prefixes.saturating_sub(u32::from(is_prefix));
                self.give(eni, cidr);
            }
        }
    }

    /// What the mode no longer asks for, at most so many.
    fn left_overs(&mut self, most: u32) {
        let mut left = most;
        for (eni, cidr) in self.idle_parts() {
            if left > 0 && !self.counts(eni, cidr) {
                left = left.saturating_sub(1);
                self.give(eni, cidr);
            }
        }
    }

    /// What could be taken from ENIs that stay, in the order in which it should be; single addresses before prefixes,
    /// which a fragmented subnet may not have again.
    fn idle_parts(&self) -> Vec<(&'a Eni, Ipv4Cidr)> {
        let stays = |eni: &&Eni| is_standing(eni) && !self.settled.contains(&eni.id);
        let mut parts: Vec<(&Eni, Ipv4Cidr)> = Vec::new();
        for eni in self.enis.iter().copied().filter(stays) {
            let idle = eni.cidrs.keys().filter(|cidr| self.is_idle(eni, **cidr));
            parts.extend(idle.map(|cidr| (eni, *cidr)));
        }
        parts.sort_by_key(|(eni, cidr)| {
            let is_primary = eni.role == EniRole::Primary;
            let order = (is_primary, self.pods_on(eni), Reverse(eni.device));
            (Unit::of(*cidr), order, Reverse(*cidr))
        });
        parts
    }

    fn give(&mut self, eni: &Eni, cidr: Ipv4Cidr) {
        if self.is_hindered(eni) {
            self.surplus.is_held_up = true;
            return;
        }
        for known in &mut self.surplus.returns {
            if let Return::Cidrs { eni: id, cidrs } = known
                && *id == eni.id
            {
                cidrs.insert(cidr);
                return;
            }
        }
        self.surplus.returns.push(Return::Cidrs {
            eni: eni.id.clone(),
            cidrs: [cidr].into(),
        });
    }
}

/// When an ENI was made by its tag; with the boot, if that was before.
fn created(pool: &Pool, seen: &Seen) -> Option<Tick> {
    let unix = stamp::parse(seen.tags.get(tags::CREATED_AT)?)?;
    let since_boot = unix.saturating_sub(pool.facts().booted_at);
    Some(Tick(since_boot.saturating_mul(1000)))
}

/// Whether what is on it can serve pods, and so be too much.
fn is_standing(eni: &Eni) -> bool {
    eni.role != EniRole::Unmanaged && eni.state == EniState::Ready
}

fn is_releasing(eni: &Eni, cidr: Ipv4Cidr) -> bool {
    eni.cidrs.get(&cidr).is_some_and(|placed| placed.releasing)
}
