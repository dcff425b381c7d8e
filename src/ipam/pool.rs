//! The pool: what this node owns and who has it. The only place where stored facts change.
//!
//! Every change goes through a method here that also marks the record it touches, so that what is committed is always
//! what is in memory. Anything derived (state of an address, room on an ENI) is computed, never kept twice.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, Ipv4Addr};

use super::cidr::Ipv4Cidr;
use super::effect::{Change, ReleasedAddress};
use super::event::AddRequest;
use super::ids::{ClientToken, DeviceIndex, EniId, InstanceType, SandboxKey, SecurityGroupId, Tick};
use super::limits::{self, InstanceLimits};
use super::memory::Memory;
use super::model::{Address, Allocation, Creation, Eni, EniRole, Placed};
use super::node::NodeFacts;
use super::policy::Policy;
use super::records::{AddressRecord, NodeRecord, Record, RecordKey};
use super::watched::Watched;
use super::witness::Doubt;

mod reading;
mod six;

pub(crate) use reading::{Free, PlacedAs};

/// The state of the address management of one node.
#[derive(Debug, Clone)]
pub struct Pool {
    policy: Policy,
    facts: NodeFacts,
    limits: Option<InstanceLimits>,
    enis: Watched<BTreeMap<EniId, Eni>>,
    addresses: Watched<BTreeMap<IpAddr, Address>>,
    allocations: Watched<BTreeMap<SandboxKey, Allocation>>,
    creations: BTreeMap<ClientToken, Creation>,
    cordoned: bool,
    dirty: BTreeSet<RecordKey>,
    /// What does not survive a restart.
    pub(super) memory: Memory,
}

impl Pool {
    pub(super) fn empty(policy: Policy, facts: NodeFacts, limits: Option<InstanceLimits>, now: Tick) -> Self {
        let memory = Memory::new(policy.seed, now);
        Self {
            policy,
            facts,
            limits,
            enis: Watched::default(),
            addresses: Watched::default(),
            allocations: Watched::default(),
            creations: BTreeMap::new(),
            cordoned: false,
            dirty: BTreeSet::new(),
            memory,
        }
    }

    // ---- changing ----

    pub(super) fn set_policy(&mut self, policy: Policy) {
        self.policy = policy;
    }

    pub(super) fn set_limits(&mut self, limits: InstanceLimits) {
        self.limits = Some(limits);
        self.dirty.insert(RecordKey::Node);
    }

    pub(super) fn set_cordoned(&mut self, cordoned: bool) {
        if self.cordoned != cordoned {
            self.cordoned = cordoned;
            self.dirty.insert(RecordKey::Node);
        }
    }

    pub(super) fn set_vpc_cidrs(&mut self, cidrs: Vec<Ipv4Cidr>) {
        if self.facts.vpc_cidrs != cidrs {
            self.facts.vpc_cidrs = cidrs;
            self.dirty.insert(RecordKey::Node);
        }
    }

    /// New ENIs get these; none at all would give them the VPC's default group.
    pub(super) fn set_groups(&mut self, groups: Vec<SecurityGroupId>) {
        if !groups.is_empty() && self.facts.security_groups != groups {
            self.facts.security_groups = groups;
            self.dirty.insert(RecordKey::Node);
        }
    }

    /// The instance was stopped and started as another type: its limits are others, too.
    pub(super) fn set_instance_type(&mut self, instance_type: InstanceType) {
        if self.facts.instance_type != instance_type {
            self.limits = limits::lookup(&instance_type);
            self.facts.instance_type = instance_type;
            self.dirty.insert(RecordKey::Node);
        }
    }

    pub(super) fn mark(&mut self, keys: impl IntoIterator<Item = RecordKey>) {
        self.dirty.extend(keys);
    }

    /// A new ENI, carrying nothing: that comes by [`Self::place`]. Its own address is on no other ENI any more.
    pub(super) fn insert_eni(&mut self, eni: Eni) {
        let stale = self.placed(eni.primary).and_then(|(other, _)| {
            let (cidr, _) = other.carries(eni.primary)?;
            Some((other.id.clone(), cidr))
        });
        if let Some((other, cidr)) = stale {
            self.displace(&other, cidr);
        }
        self.dirty.insert(RecordKey::Eni(eni.id.clone()));
        self.enis.insert(eni.id.clone(), eni);
    }

    /// Changes an ENI in place; what it carries changes by [`Self::place`] and [`Self::displace`] only.
    pub(super) fn edit_eni(&mut self, id: &EniId, edit: impl FnOnce(&mut Eni)) {
        if let Some(eni) = self.enis.get_mut(id) {
            let before = eni.clone();
            edit(eni);
            if *eni != before {
                self.dirty.insert(RecordKey::Eni(id.clone()));
            }
        }
    }

    /// Forgets an ENI. Its addresses stay as long as they are held, resting or in doubt.
    pub(super) fn forget_eni(&mut self, id: &EniId) {
        if let Some(eni) = self.enis.remove(id) {
            self.dirty.insert(RecordKey::Eni(id.clone()));
            for (address, _) in eni.addresses() {
                self.forget_unused(address);
            }
        }
        self.memory.forget_eni(id);
    }

    /// A secondary address or prefix is on an ENI. Its addresses keep their past, and holders their claims, wherever they
    /// were before.
    pub(super) fn place(&mut self, id: &EniId, cidr: Ipv4Cidr, placed: Placed) {
        let is_own = |address: Ipv4Addr| cidr.contains(address);
        let ours = self.enis.get(id).filter(|eni| eni.role != EniRole::Unmanaged);
        if ours.is_none() || is_own(self.facts.primary_address) {
            return;
        }
        if ours.is_some_and(|eni| eni.cidrs.get(&cidr) == Some(&placed)) {
            return;
        }
        // A late list may still have here what is another ENI's own address since.
        if self.enis.values().any(|eni| is_own(eni.primary)) {
            return;
        }
        let others = self.overlapping(id, cidr);
        let is_held = |address: Ipv4Addr| {
            let known = self.known(address);
            known.is_some_and(|known| known.holder.is_some())
        };
        let stays_here = |eni: &EniId, address: Ipv4Addr| eni == id && cidr.contains(address);
        let cuts_off = |(eni, other): &(EniId, Ipv4Cidr)| {
            let mut addresses = other.addresses();
            addresses.any(|address| is_held(address) && !stays_here(eni, address))
        };
        let is_elsewhere = |address: &Ipv4Addr| {
            let known = self.known(*address);
            known.is_some_and(|known| known.eni != *id)
        };
        if others.iter().any(cuts_off) || cidr.addresses().filter(is_elsewhere).any(is_held) {
            return;
        }
        for (old, other) in &others {
            self.edit_eni(old, |eni| {
                eni.cidrs.remove(other);
            });
        }
        self.edit_eni(id, |eni| {
            eni.cidrs.insert(cidr, placed);
        });
        for address in cidr.addresses() {
            self.move_to(id, address);
        }
        for address in others.iter().flat_map(|(_, other)| other.addresses()) {
            self.forget_unused(address);
        }
    }

    /// Where else addresses of a CIDR are thought to be: on another ENI, or on this one as part of another CIDR. EC2 has
    /// each of them in one place only.
    fn overlapping(&self, id: &EniId, cidr: Ipv4Cidr) -> BTreeSet<(EniId, Ipv4Cidr)> {
        let other = |address: Ipv4Addr| {
            let eni = &self.known(address)?.eni;
            let (there, _) = self.enis.get(eni)?.carries(address)?;
            (eni != id || there != cidr).then(|| (eni.clone(), there))
        };
        cidr.addresses().filter_map(other).collect()
    }

    /// What is on an ENI no longer; holders, rests and doubts of its addresses stay known.
    pub(super) fn displace(&mut self, id: &EniId, cidr: Ipv4Cidr) {
        self.edit_eni(id, |eni| {
            eni.cidrs.remove(&cidr);
        });
        for address in cidr.addresses() {
            self.forget_unused(address);
        }
    }

    /// EC2 has taken it back: what is listed of it until then is old, whoever lists it and whatever happens to the daemon.
    pub(super) fn give_back(&mut self, id: &EniId, cidr: Ipv4Cidr, until: Tick) {
        for address in cidr.addresses() {
            let address = IpAddr::V4(address);
            let there = self.addresses.get_mut(&address);
            if let Some(known) = there.filter(|known| known.eni == *id && known.holder.is_none()) {
                known.rests_until = known.rests_until.max(Some(until));
                self.dirty.insert(RecordKey::Address(address));
            }
        }
        self.displace(id, cidr);
    }

    /// EC2 has given it again: only its last user's rest is left of what it waited for.
    pub(super) fn shorten_rest(&mut self, address: Ipv4Addr, now: Tick) {
        let address = IpAddr::V4(address);
        let cooldown = self.policy.cooldown;
        if let Some(known) = self.addresses.get_mut(&address) {
            let rest = known.last_used.map(|used| used.after(cooldown));
            known.rests_until = rest.filter(|until| *until >= now && !cooldown.is_zero());
            self.dirty.insert(RecordKey::Address(address));
        }
    }

    /// Forgets an address that is on no ENI and has nothing left to remember but that it rests no longer.
    pub(super) fn forget_rested(&mut self, now: Tick) {
        let gone: Vec<IpAddr> = self
            .addresses
            .iter()
            .filter(|(address, known)| {
                known.holder.is_none()
                    && known.rests_until.is_none_or(|until| until < now)
                    && self.is_left(**address, known)
            })
            .map(|(address, _)| *address)
            .collect();
        for address in gone {
            self.addresses.remove(&address);
            self.dirty.insert(RecordKey::Address(address));
        }
    }

    fn forget_unused(&mut self, address: Ipv4Addr) {
        let address = IpAddr::V4(address);
        let idle = |known: &Address| known.holder.is_none() && !known.has_past();
        if self.addresses.get(&address).is_some_and(idle) && self.placed(address).is_none() {
            self.addresses.remove(&address);
            self.dirty.insert(RecordKey::Address(address));
        }
    }

    /// Gives an address to a sandbox. Refuses, changing nothing, when it is not to be had or the sandbox has one.
    pub(super) fn assign(&mut self, request: &AddRequest, address: IpAddr, now: Tick) -> bool {
        if self.allocations.contains_key(&request.key) || !self.is_usable(address, now) {
            return false;
        }
        self.allocate(request, address, now)
    }

    /// Gives a sandbox the address that its link is already wired for: the daemon that assigned it died before that was on
    /// the disk. Its plugin, which asks again, and the kernel agree; anybody else would have to wait for its rest.
    pub(super) fn reclaim(&mut self, request: &AddRequest, now: Tick) -> bool {
        let of_its_link = |known: &&Address| {
            let wired_for =
                matches!(&known.doubt, Some(Doubt::PodRoute { device }) if *device == request.host_veth);
            wired_for && known.holder.is_none() && known.rests_until.is_none_or(|until| until < now)
        };
        let routed = self.addresses.iter().find(|(_, known)| of_its_link(known));
        let Some(address) = routed.map(|(address, _)| *address) else {
            return false;
        };
        if self.memory.is_unproven(address) || !self.is_reachable(address, now) {
            return false;
        }
        self.doubt(address, None);
        self.allocate(request, address, now)
    }

    fn allocate(&mut self, request: &AddRequest, address: IpAddr, now: Tick) -> bool {
        let carrier = self.carrier(address);
        let Some((eni, device, card)) = carrier.map(|eni| (eni.id.clone(), eni.device, eni.card)) else {
            return false;
        };
        // The runtime chains egress behind the interface it knows.
        let egress = if request.main.is_none() {
            self.next_egress()
        } else {
            None
        };
        let allocation = Allocation {
            key: request.key.clone(),
            pod: request.pod.clone(),
            address,
            eni,
            device: device.unwrap_or(DeviceIndex(0)),
            card,
            host_veth: request.host_veth.clone(),
            netns: request.netns.clone(),
            main: request.main.clone(),
            egress,
            ports: request.ports.clone(),
            since: now,
            told: Some(request.waiter),
        };
        self.count_given(&allocation.eni, address);
        if let Some(known) = self.addresses.get_mut(&address) {
            known.holder = Some(request.key.clone());
        }
        self.dirty.insert(RecordKey::Allocation(request.key.clone()));
        self.allocations.insert(request.key.clone(), allocation);
        true
    }

    /// Another client has been told of this allocation: it is no longer the first one's alone to give back.
    pub(super) fn share(&mut self, key: &SandboxKey) {
        if let Some(allocation) = self.allocations.get_mut(key) {
            allocation.told = None;
        }
    }

    /// Takes an address back from a sandbox; it rests before anybody else gets it.
    pub(super) fn release(&mut self, key: &SandboxKey, now: Tick) -> Option<ReleasedAddress> {
        let allocation = self.allocations.remove(key)?;
        self.dirty.insert(RecordKey::Allocation(key.clone()));
        let holds = |known: &&mut Address| known.holder.as_ref() == Some(key);
        if let Some(known) = self.addresses.get_mut(&allocation.address).filter(holds) {
            known.holder = None;
            self.rest(allocation.address, now);
            // Whoever wired it may have died before or while taking it away again.
            self.memory.unproven.insert(allocation.address);
        }
        Some(ReleasedAddress {
            key: allocation.key.clone(),
            pod: allocation.pod.clone(),
            address: allocation.address,
            device: allocation.device,
            table: allocation.table(),
            host_veth: allocation.host_veth,
            netns: allocation.netns,
            ports: allocation.ports,
        })
    }

    /// An address was in use until now: it rests.
    pub(super) fn rest(&mut self, address: impl Into<IpAddr>, now: Tick) {
        let address = address.into();
        let cooldown = self.policy.cooldown;
        if let Some(known) = self.addresses.get_mut(&address) {
            known.last_used = Some(now);
            known.rests_until = (!cooldown.is_zero()).then(|| now.after(cooldown));
            self.dirty.insert(RecordKey::Address(address));
        }
    }

    /// Sets or lifts a doubt. An address the pool does not know is not taken up by this.
    pub(super) fn doubt(&mut self, address: impl Into<IpAddr>, doubt: Option<Doubt>) {
        let address = address.into();
        let is_news = |known: &Address| known.doubt != doubt;
        if self.addresses.get(&address).is_some_and(is_news)
            && let Some(known) = self.addresses.get_mut(&address)
        {
            known.doubt = doubt;
            self.dirty.insert(RecordKey::Address(address));
        }
    }

    /// EC2 says which ENI a sandbox that was taken over has its address on.
    pub(super) fn confirm_imported(&mut self, id: &EniId, address: impl Into<IpAddr>) {
        let address = address.into();
        let is_imported = |known: &&mut Address| matches!(known.doubt, Some(Doubt::Imported { .. }));
        let (Some(eni), Some(known)) = (
            self.enis.get(id),
            self.addresses.get_mut(&address).filter(is_imported),
        ) else {
            return;
        };
        let Some(held) = known
            .holder
            .as_ref()
            .and_then(|key| self.allocations.get_mut(key))
        else {
            return;
        };
        known.eni = id.clone();
        known.doubt = None;
        held.eni = id.clone();
        held.device = eni.device.unwrap_or(held.device);
        held.card = eni.card;
        self.dirty.insert(RecordKey::Address(address));
        self.dirty.insert(RecordKey::Allocation(held.key.clone()));
    }

    pub(super) fn insert_creation(&mut self, creation: Creation) {
        self.dirty.insert(RecordKey::Creation(creation.token.clone()));
        self.creations.insert(creation.token.clone(), creation);
    }

    pub(super) fn forget_creation(&mut self, token: &ClientToken) -> Option<Creation> {
        self.dirty.insert(RecordKey::Creation(token.clone()));
        self.memory.creations_in_doubt.remove(token);
        self.memory
            .clear(&super::obstacle::Topic::Creation(token.clone()));
        self.creations.remove(token)
    }

    // ---- stored form ----

    /// Takes a decoded allocation or address as it was stored; recovery judges it afterwards.
    pub(super) fn restore_address(&mut self, address: IpAddr, known: Address) {
        self.addresses.insert(address, known);
    }

    pub(super) fn restore_allocation(&mut self, allocation: Allocation) {
        let known = self
            .addresses
            .entry(allocation.address)
            .or_insert_with(|| Address::unused(allocation.eni.clone()));
        known.holder = Some(allocation.key.clone());
        self.allocations.insert(allocation.key.clone(), allocation);
    }

    /// Takes a stored ENI with its addresses.
    pub(super) fn restore_eni(&mut self, eni: Eni) {
        for (address, _) in eni.addresses() {
            let unused = || Address::unused(eni.id.clone());
            self.addresses.entry(address.into()).or_insert_with(unused);
        }
        self.enis.insert(eni.id.clone(), eni);
    }

    pub(super) fn restore_cordon(&mut self, cordoned: bool) {
        self.cordoned = cordoned;
    }

    pub(super) fn restore_creation(&mut self, creation: Creation) {
        self.creations.insert(creation.token.clone(), creation);
    }

    /// The record under a key as memory has it.
    pub fn record(&self, key: &RecordKey) -> Option<Record> {
        Some(match key {
            RecordKey::Node => Record::Node(Box::new(NodeRecord {
                facts: self.facts.clone(),
                limits: self.limits,
                cordoned: self.cordoned,
            })),
            RecordKey::Budget => Record::Budget(Box::new(self.memory.budget.record()?.clone())),
            RecordKey::Eni(id) => Record::Eni(Box::new(self.enis.get(id)?.clone())),
            RecordKey::Creation(token) => Record::Creation(Box::new(self.creations.get(token)?.clone())),
            RecordKey::Allocation(key) => Record::Allocation(Box::new(self.allocations.get(key)?.clone())),
            RecordKey::Address(address) => {
                let known = self.addresses.get(address).filter(|known| known.has_past())?;
                Record::Address(Box::new(AddressRecord {
                    address: *address,
                    eni: known.eni.clone(),
                    last_used: known.last_used,
                    rests_until: known.rests_until,
                    doubt: known.doubt.clone(),
                }))
            }
        })
    }

    /// Every record there should be in the store once all is committed.
    pub fn records(&self) -> BTreeMap<String, Vec<u8>> {
        let keys = [RecordKey::Node, RecordKey::Budget]
            .into_iter()
            .chain(self.enis.keys().cloned().map(RecordKey::Eni))
            .chain(self.creations.keys().cloned().map(RecordKey::Creation))
            .chain(self.addresses.keys().copied().map(RecordKey::Address))
            .chain(self.allocations.keys().cloned().map(RecordKey::Allocation));
        keys.filter_map(|key| Some((key.text(), self.record(&key)?.value())))
            .collect()
    }

    pub(super) fn is_dirty(&self) -> bool {
        !self.dirty.is_empty()
    }

    /// What has changed since the last time, as memory has it now.
    pub(super) fn take_changes(&mut self) -> (BTreeSet<RecordKey>, Vec<Change>) {
        let keys = std::mem::take(&mut self.dirty);
        let changes = keys
            .iter()
            .map(|key| match self.record(key) {
                Some(record) => Change::Put {
                    key: key.text(),
                    value: record.value(),
                },
                None => Change::Remove { key: key.text() },
            })
            .collect();
        (keys, changes)
    }
}
