//! What can be asked of the pool; nothing here changes it.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::net::{IpAddr, Ipv4Addr};

use super::Pool;
use crate::cidr::Ipv4Cidr;
use crate::cloud::Unit;
use crate::effect::{EniIntent, Grant};
use crate::ids::{CardIndex, ClientToken, EniId, Mac, SandboxKey, Tick};
use crate::limits::InstanceLimits;
use crate::memory::Ec2View;
use crate::model::{Address, Allocation, Creation, Eni, EniRole, EniState, Placed};
use crate::node::NodeFacts;
use crate::policy::Policy;
use crate::records::RecordKey;
use crate::six;
use crate::targets::Goal;
use crate::witness::Doubt;

/// An address's ENI, by what it carries it, and how that stands.
pub(crate) type PlacedAs<'a> = (&'a Eni, Ipv4Cidr, Placed);

/// What there is of one secondary address or prefix.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Free {
    /// Nobody has it, it has rested, and nothing speaks against it.
    pub(crate) free: u32,
    /// A sandbox may have it now.
    pub(crate) usable: u32,
}

/// An address that a sandbox may have, and where it is.
struct Usable<'a> {
    address: Ipv4Addr,
    known: &'a Address,
    /// The secondary address or prefix that brings it.
    cidr: Ipv4Cidr,
    eni: &'a Eni,
    placed: Placed,
}

impl Pool {
    /// The operator's settings.
    pub fn policy(&self) -> &Policy {
        &self.policy
    }

    /// The node.
    pub fn facts(&self) -> &NodeFacts {
        &self.facts
    }

    /// The instance type's limits, once known.
    pub fn limits(&self) -> Option<InstanceLimits> {
        self.limits
    }

    /// Whether somebody has said that the node takes no new pods.
    pub fn is_cordoned(&self) -> bool {
        self.cordoned
    }

    /// Whether the pool stays as it is but for pods that come all the same.
    pub(crate) fn is_left_alone(&self) -> bool {
        self.cordoned && !self.policy.manage_when_cordoned
    }

    /// Every ENI known, the unmanaged ones included.
    pub fn enis(&self) -> &BTreeMap<EniId, Eni> {
        &self.enis
    }

    /// Every address known: on an ENI, or gone from it but still held, resting or in doubt.
    pub fn addresses(&self) -> &BTreeMap<IpAddr, Address> {
        &self.addresses
    }

    /// What is known of an address.
    pub fn known(&self, address: impl Into<IpAddr>) -> Option<&Address> {
        self.addresses.get(&address.into())
    }

    /// Whether anything is known of an address.
    pub fn knows(&self, address: impl Into<IpAddr>) -> bool {
        self.addresses.contains_key(&address.into())
    }

    /// The ENI that carries an address: one of a /80 need not be known before somebody has it.
    pub(super) fn carrier(&self, address: IpAddr) -> Option<&Eni> {
        if let Some((eni, _)) = self.placed(address) {
            return Some(eni);
        }
        let unknown = address.is_ipv6() && !self.knows(address);
        let mut enis = self.enis.values();
        enis.find(|eni| unknown && eni.places(address).is_some())
    }

    /// Every allocation.
    pub fn allocations(&self) -> &BTreeMap<SandboxKey, Allocation> {
        &self.allocations
    }

    /// Another number whenever ENIs, addresses or allocations may have changed since; of this pool, not of one recovered.
    pub fn version(&self) -> u64 {
        let parts = [
            self.enis.changes(),
            self.addresses.changes(),
            self.allocations.changes(),
        ];
        parts.into_iter().fold(0, u64::wrapping_add)
    }

    /// ENIs being created.
    pub fn creations(&self) -> &BTreeMap<ClientToken, Creation> {
        &self.creations
    }

    /// How the address sits on its ENI, while it does.
    pub fn placed(&self, address: impl Into<IpAddr>) -> Option<(&Eni, Placed)> {
        let address = address.into();
        let eni = self.enis.get(&self.addresses.get(&address)?.eni)?;
        Some((eni, eni.places(address)?))
    }

    /// How an IPv4 address that has been looked up already sits on its ENI, and by which secondary address or prefix.
    pub(crate) fn placed_as(&self, address: Ipv4Addr, known: &Address) -> Option<PlacedAs<'_>> {
        let eni = self.enis.get(&known.eni)?;
        let (cidr, placed) = eni.carries(address)?;
        Some((eni, cidr, placed))
    }

    /// Whether what only IMDS said may be used: EC2 could not be reached, or not in time.
    pub fn trusts_imds(&self, now: Tick) -> bool {
        if !self.policy.ask_ec2 {
            return true;
        }
        match self.memory.ec2 {
            Ec2View::Failed(_) => true,
            Ec2View::Answered => false,
            Ec2View::Asking => now >= self.memory.started.after(self.policy.start_patience),
        }
    }

    /// Whether a pod on this ENI would be reachable, once its address is published.
    pub(crate) fn stands(&self, eni: &Eni) -> bool {
        match eni.role {
            EniRole::Primary => true,
            EniRole::Secondary => eni.state == EniState::Ready && self.memory.is_configured(&eni.id),
            EniRole::Unmanaged => false,
        }
    }

    /// Every IPv4 address on an ENI of ours that nobody has, that has rested, and that a pod could be reached on.
    ///
    /// What is being written about an address must be durable before anybody gets it (design invariant 3).
    fn usable(&self, now: Tick) -> impl Iterator<Item = Usable<'_>> {
        let trusting = self.trusts_imds(now);
        self.enis
            .values()
            .filter(|eni| !self.policy.is_six() && self.stands(eni) && self.is_open(eni))
            .flat_map(|eni| eni.cidrs.iter().map(move |(cidr, placed)| (*cidr, eni, *placed)))
            .filter(move |(_, _, placed)| {
                placed.published && !placed.releasing && (placed.verified || trusting)
            })
            .flat_map(|(cidr, eni, placed)| cidr.addresses().map(move |address| (address, cidr, eni, placed)))
            .filter_map(move |(address, cidr, eni, placed)| {
                let known = self.known(address)?;
                (known.is_free(now) && self.is_settled(address, known)).then_some(Usable {
                    address,
                    known,
                    cidr,
                    eni,
                    placed,
                })
            })
    }

    /// What IPv4 addresses a sandbox may have now, as they are known.
    pub(crate) fn each_usable(&self, now: Tick) -> impl Iterator<Item = (Ipv4Addr, &Address)> {
        self.usable(now).map(|usable| (usable.address, usable.known))
    }

    /// Whether what happened to it last is durable, and undone in the kernel.
    fn is_settled(&self, address: Ipv4Addr, known: &Address) -> bool {
        let address = IpAddr::V4(address);
        !known.has_past()
            || (!self.memory.unwritten.contains_key(&address)
                && !self.dirty.contains(&RecordKey::Address(address))
                && !self.memory.is_unproven(address))
    }

    /// Whether a sandbox may have this one now.
    pub fn is_usable(&self, address: impl Into<IpAddr>, now: Tick) -> bool {
        let address = match address.into() {
            IpAddr::V4(address) => address,
            IpAddr::V6(address) => return six::fits(self, address, now),
        };
        let is_usable = |known: &Address| {
            let reachable = |(eni, _, placed): PlacedAs<'_>| {
                self.is_open(eni) && self.would_be_reachable(eni, placed, self.trusts_imds(now))
            };
            known.is_free(now)
                && self.is_settled(address, known)
                && self.placed_as(address, known).is_some_and(reachable)
        };
        !self.policy.is_six() && self.known(address).is_some_and(is_usable)
    }

    fn would_be_reachable(&self, eni: &Eni, placed: Placed, trusting: bool) -> bool {
        self.stands(eni) && placed.published && !placed.releasing && (placed.verified || trusting)
    }

    /// Whether an ENI gets new pods. With `ENABLE_MULTI_NIC` off again those of other cards do not, before EC2 has said
    /// what is attached, either.
    fn is_open(&self, eni: &Eni) -> bool {
        !eni.excluded && self.may_manage(eni.card)
    }

    /// Whether it is on an ENI that gets no new pods.
    pub(crate) fn is_excluded(&self, address: impl Into<IpAddr>) -> bool {
        self.placed(address).is_some_and(|(eni, _)| !self.is_open(eni))
    }

    /// Whether a pod on this address would be reachable, by witnesses good enough to give it out.
    pub(crate) fn is_reachable(&self, address: impl Into<IpAddr>, now: Tick) -> bool {
        self.placed(address)
            .is_some_and(|(eni, placed)| self.would_be_reachable(eni, placed, self.trusts_imds(now)))
    }

    /// Whether the kernel routes an address that nobody is known to have.
    pub(crate) fn has_strange_routes(&self) -> bool {
        let is_routed = |address: &IpAddr| self.memory.is_routed(*address);
        let is_strange = |(address, known): (&IpAddr, &Address)| match known.doubt {
            None => false,
            Some(Doubt::PodRoute { .. }) => true,
            Some(Doubt::Imported { .. }) => known.holder.is_none(),
            // What EC2 has taken away is forgotten once its route is gone, too.
            Some(_) => known.holder.is_none() && is_routed(address),
        };
        self.addresses.iter().any(is_strange)
    }

    /// Whether the kernel routes any address that nobody is known to have: only those can be claimed.
    pub(crate) fn has_routed(&self) -> bool {
        let is_routed = |known: &Address| matches!(known.doubt, Some(Doubt::PodRoute { .. }));
        self.addresses.values().any(is_routed)
    }

    /// How many addresses that an ENI carries by one of its CIDRs nobody has, and how many of them a sandbox may have.
    pub(crate) fn free_of(&self, eni: &Eni, cidr: Ipv4Cidr, placed: Placed, now: Tick) -> Free {
        let is_reachable = self.is_open(eni) && self.would_be_reachable(eni, placed, self.trusts_imds(now));
        let mut there = Free::default();
        for address in cidr.addresses() {
            if let Some(known) = self.known(address).filter(|known| known.is_free(now)) {
                there.free = there.free.saturating_add(1);
                let is_usable = is_reachable && self.is_settled(address, known);
                there.usable = there.usable.saturating_add(u32::from(is_usable));
            }
        }
        there
    }

    /// Whether a pod on this address would be reachable: its ENI stands and the kernel knows the way back.
    pub fn is_wired(&self, address: impl Into<IpAddr>) -> bool {
        self.placed(address)
            .is_some_and(|(eni, placed)| self.stands(eni) && placed.published)
    }

    /// Every address a sandbox may have now.
    pub fn usable_addresses(&self, now: Tick) -> BTreeSet<IpAddr> {
        if self.policy.is_six() {
            return six::free(self, now).collect();
        }
        self.usable(now).map(|usable| usable.address.into()).collect()
    }

    /// What can be handed out, in the order it should be: the first card's before the others', what the mode asks for
    /// before what it has left over, confirmed before unconfirmed, never used before used, least recently used first.
    /// Prefixes are filled one after the other, the lowest first, so that the last ones become free as a whole.
    pub fn free_in_order(&self, now: Tick) -> Vec<IpAddr> {
        self.free_by_card(now).into_values().flatten().collect()
    }

    /// The same by card.
    pub(crate) fn free_by_card(&self, now: Tick) -> BTreeMap<CardIndex, VecDeque<IpAddr>> {
        if self.policy.is_six() {
            return [(CardIndex::FIRST, six::free(self, now).collect())].into();
        }
        // The same on every card.
        let unit = Goal::of(self, CardIndex::FIRST).unit;
        let place = |usable: Usable<'_>| {
            let Usable {
                cidr, eni, placed, ..
            } = usable;
            let prefix = (!cidr.is_host()).then_some((eni.device, cidr));
            let is_left_over = Unit::of(cidr) != unit;
            let used = usable.known.last_used;
            let order = (
                is_left_over,
                !placed.verified,
                prefix,
                used,
                eni.device,
                usable.address,
            );
            (eni.card, order)
        };
        let mut free: Vec<_> = self.usable(now).map(place).collect();
        free.sort_unstable();
        let mut by_card: BTreeMap<CardIndex, VecDeque<IpAddr>> = BTreeMap::new();
        for (card, (.., address)) in free {
            by_card.entry(card).or_default().push_back(address.into());
        }
        by_card
    }

    /// Whether it, or its ENI, is to be given back.
    pub fn is_going(&self, address: impl Into<IpAddr>) -> bool {
        self.placed(address).is_some_and(|(eni, placed)| {
            placed.releasing || matches!(eni.state, EniState::Draining | EniState::Detaching)
        })
    }

    /// The ENI with this hardware address.
    pub fn eni_by_mac(&self, mac: Mac) -> Option<&Eni> {
        self.enis.values().find(|eni| eni.mac == mac)
    }

    /// What an allocation's client is told.
    pub fn grant(&self, key: &SandboxKey, repeated: bool) -> Option<Grant> {
        let allocation = self.allocations.get(key)?;
        Some(Grant {
            address: allocation.address,
            eni: allocation.eni.clone(),
            device: allocation.device,
            card: allocation.card,
            table: allocation.table(),
            eni_primary: self
                .enis
                .get(&allocation.eni)
                .map_or(Ipv4Addr::UNSPECIFIED, |eni| eni.primary),
            repeated,
        })
    }

    /// How an ENI's link shall be, once enough is known of it.
    pub fn intent(&self, id: &EniId) -> Option<EniIntent> {
        let eni = self.enis.get(id)?;
        Some(EniIntent {
            eni: eni.id.clone(),
            mac: eni.mac,
            device: eni.device?,
            card: eni.card,
            mark: eni.mark(),
            primary: eni.primary,
            subnet_cidr: eni.subnet_cidr?,
            table: eni.table(),
        })
    }
}
