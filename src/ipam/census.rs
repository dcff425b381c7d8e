//! Counts every address of a network card by where it stands and how soon it can be had.

use std::net::IpAddr;

use super::cidr::Ipv4Cidr;
use super::cloud::{Amount, Unit};
use super::ids::{CardIndex, Tick};
use super::model::{Address, AddressState, Eni, EniRole, EniState, Placed};
use super::pool::{Free, Pool};
use super::six;
use super::targets::Goal;

/// Counts of what there is.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct Census {
    /// A sandbox could have it now.
    pub(super) free: u32,
    /// Free, but of the kind the mode no longer asks for: it serves, and the targets do not count on it.
    pub(super) left_over: u32,
    /// A sandbox has it.
    pub(super) assigned: u32,
    /// It rests.
    pub(super) cooling: u32,
    /// Something does not fit.
    pub(super) quarantined: u32,
    /// On its way: asked for, or on an ENI not yet wired; of what counts for the targets.
    pub(super) coming: u32,
    /// The same, of either kind.
    pub(super) arriving: u32,
    /// All that count for the targets, whoever has them, and what is on its way.
    pub(super) total: u32,
}

pub(super) fn count(n: usize) -> u32 {
    u32::try_from(n).unwrap_or(u32::MAX)
}

/// Whether an ENI that is not wired yet can still be expected to be, soon.
pub(super) fn is_underway(pool: &Pool, eni: &Eni) -> bool {
    let in_time = |eni: &Eni| {
        pool.memory
            .enis
            .get(&eni.id)
            .is_none_or(|progress| !progress.link_overdue)
    };
    match (eni.role, &eni.state) {
        (EniRole::Unmanaged, _)
        | (_, EniState::Draining | EniState::Detaching | EniState::Discarding { .. } | EniState::Lost) => {
            false
        }
        (EniRole::Primary, _) => true,
        (EniRole::Secondary, _) => in_time(eni),
    }
}

/// Whether an address is on an ENI that gets new pods.
fn can_serve(pool: &Pool, address: IpAddr) -> bool {
    pool.placed(address).is_some_and(|(eni, _)| !eni.excluded)
}

/// Whether pods get an address of its ENI once both are ready: it stands, or soon will.
pub(super) fn will_serve(pool: &Pool, address: IpAddr) -> bool {
    pool.placed(address)
        .is_some_and(|(eni, placed)| !eni.excluded && !placed.releasing && is_underway(pool, eni))
}

/// Free addresses of ENIs that stand or soon will.
#[derive(Debug, Default)]
struct Idle {
    all: u32,
    counted: u32,
}

impl Census {
    pub(super) fn of(pool: &Pool, card: CardIndex, goal: Goal, now: Tick) -> Self {
        if pool.policy().is_six() {
            return six::census(pool, now);
        }
        let mut usable = 0_u32;
        let mut census = Self::default();
        let here = |(_, known): &(&IpAddr, &Address)| pool.card_of(known) == card;
        for (address, known) in pool.addresses().iter().filter(here) {
            match known.state(now) {
                AddressState::Assigned(_) => census.assigned += 1,
                AddressState::Quarantined(_) => census.quarantined += 1,
                // What EC2 has taken back is nobody's here, though it is remembered for a while.
                // What rests on an ENI that gets no new pods is not awaited by any.
                AddressState::Cooling { .. } => census.cooling += u32::from(can_serve(pool, *address)),
                AddressState::Free => {}
            }
        }
        let mut idle = Idle::default();
        let counts = |eni: &&Eni| !eni.excluded && eni.card == card;
        for eni in pool.enis().values().filter(counts) {
            let is_underway = is_underway(pool, eni);
            for (cidr, placed) in &eni.cidrs {
                let there = pool.free_of(eni, *cidr, *placed, now);
                usable = usable.saturating_add(there.usable);
                if is_underway && !placed.releasing {
                    let is_counted = goal.counts(pool, eni, *cidr, now);
                    census.look_at(*cidr, *placed, there, is_counted, &mut idle);
                }
            }
        }
        census.free = usable.saturating_sub(census.left_over);
        census.coming = idle.counted.saturating_sub(census.free);
        census.arriving = idle.all.saturating_sub(usable);
        let asked = pool
            .enis()
            .values()
            .filter(counts)
            .filter_map(|eni| eni.assigning);
        let created = pool
            .creations()
            .values()
            .filter(|creation| creation.card == card)
            .map(|creation| creation.amount);
        let under_way: u32 = asked.chain(created).map(Amount::addresses).sum();
        census.coming = census.coming.saturating_add(under_way);
        census.arriving = census.arriving.saturating_add(under_way);
        census.total = census.total.saturating_add(under_way);
        census
    }

    fn look_at(&mut self, cidr: Ipv4Cidr, placed: Placed, there: Free, is_counted: bool, idle: &mut Idle) {
        idle.all = idle.all.saturating_add(there.free);
        if is_counted {
            self.total = self.total.saturating_add(Unit::of(cidr).size());
            idle.counted = idle.counted.saturating_add(there.free);
        } else if placed.published {
            self.left_over = self.left_over.saturating_add(there.usable);
        }
    }
}
