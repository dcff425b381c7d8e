//! Makes the ENIs of one node of records that contradict each other: what another record says with better witnesses is
//! taken out, and told. Damage that a checksum does not show, or a defect, writes such records.
//!
//! Whoever holds an address goes on holding it: allocations are records of their own. An ENI that is set aside is taken up
//! again when EC2 lists it.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, Ipv4Addr};

use super::cidr::Ipv4Cidr;
use super::ids::{CardIndex, DeviceIndex, EniId, Mac};
use super::model::{Allocation, Eni, EniRole, EniState};
use super::node::NodeFacts;
use super::witness::KernelFacts;

/// ENIs that can be on one node, and what is wrong with the others.
pub(super) struct Sound {
    pub(super) enis: Vec<Eni>,
    pub(super) remarks: Vec<String>,
}

/// What speaks for a record; the greatest is believed.
type Weight = (bool, usize, usize, bool, Reverse<EniId>);

/// Goes through the records, those with the best witnesses first.
pub(super) fn enis(
    mut stored: Vec<Eni>,
    allocations: &[Allocation],
    facts: &NodeFacts,
    kernel: &KernelFacts,
) -> Sound {
    let mut sorting = Sorting {
        facts,
        held: held(allocations),
        all_held: allocations.iter().map(|held| held.address).collect(),
        macs: BTreeSet::new(),
        places: BTreeSet::from([(CardIndex(0), DeviceIndex(0))]),
        own: BTreeSet::from([facts.primary_address]),
        carried: BTreeSet::new(),
        remarks: Vec::new(),
    };
    let routed: BTreeSet<IpAddr> = kernel.pod_routes.iter().map(|route| route.address).collect();
    stored.sort_by_cached_key(|eni| Reverse(sorting.weight(eni, &routed)));
    let mut enis: Vec<Eni> = stored.into_iter().filter_map(|eni| sorting.judge(eni)).collect();
    // No ENI's own address is another's for pods, whichever of them came first.
    for eni in &mut enis {
        sorting.carry(eni);
    }
    Sound {
        enis,
        remarks: sorting.remarks,
    }
}

/// Addresses that sandboxes hold, by ENI.
fn held(allocations: &[Allocation]) -> BTreeMap<EniId, BTreeSet<IpAddr>> {
    let mut held: BTreeMap<EniId, BTreeSet<IpAddr>> = BTreeMap::new();
    for allocation in allocations {
        held.entry(allocation.eni.clone())
            .or_default()
            .insert(allocation.address);
    }
    held
}

struct Sorting<'a> {
    facts: &'a NodeFacts,
    held: BTreeMap<EniId, BTreeSet<IpAddr>>,
    all_held: BTreeSet<IpAddr>,
    macs: BTreeSet<Mac>,
    places: BTreeSet<(CardIndex, DeviceIndex)>,
    /// Addresses of ENIs themselves.
    own: BTreeSet<Ipv4Addr>,
    carried: BTreeSet<Ipv4Addr>,
    remarks: Vec<String>,
}

impl Sorting<'_> {
    fn held_on(&self, eni: &Eni) -> BTreeSet<IpAddr> {
        self.held.get(&eni.id).cloned().unwrap_or_default()
    }

    fn weight(&self, eni: &Eni, routed: &BTreeSet<IpAddr>) -> Weight {
        let held = self.held_on(eni);
        (
            eni.id == self.facts.primary_eni,
            held.intersection(routed).count(),
            held.len(),
            eni.attachment.is_some(),
            Reverse(eni.id.clone()),
        )
    }

    fn judge(&mut self, mut eni: Eni) -> Option<Eni> {
        let is_primary = eni.id == self.facts.primary_eni;
        if is_primary {
            eni.role = EniRole::Primary;
            eni.mac = self.facts.primary_mac;
            eni.card = CardIndex(0);
            eni.device = Some(DeviceIndex(0));
            eni.primary = self.facts.primary_address;
        } else if eni.mac == self.facts.primary_mac || !self.macs.insert(eni.mac) {
            let mac = eni.mac;
            self.aside(&eni, &format!("another ENI has its hardware address {mac}"));
            return None;
        } else if eni.role == EniRole::Primary {
            if self.held_on(&eni).is_empty() {
                self.aside(&eni, "the node has another primary ENI");
                return None;
            }
            self.remark(&eni, "it is no primary ENI, and pods are on it");
            eni.role = EniRole::Secondary;
        }
        self.stay_for_pods(&mut eni);
        self.find_place(&mut eni, is_primary);
        self.own.insert(eni.primary);
        Some(eni)
    }

    /// One of two that claim a place has none until EC2 tells.
    fn find_place(&mut self, eni: &mut Eni, is_primary: bool) {
        let takes_none = matches!(eni.state, EniState::Discarding { .. } | EniState::Lost);
        if is_primary || takes_none {
            return;
        }
        if let Some(device) = eni
            .device
            .filter(|device| !self.places.insert((eni.card, *device)))
        {
            self.remark(eni, &format!("another ENI has its device index {}", device.0));
            eni.device = None;
        }
    }

    /// Pods live only on what is attached, and what they hold is not given back.
    fn stay_for_pods(&mut self, eni: &mut Eni) {
        let has_pods = !self.held_on(eni).is_empty();
        if has_pods && !matches!(eni.state, EniState::Attached | EniState::Ready | EniState::Lost) {
            self.remark(eni, "pods are on it, and it was to go or not yet there");
            eni.state = EniState::Attached;
        }
        for (cidr, placed) in &mut eni.cidrs {
            placed.releasing &= !cidr
                .addresses()
                .any(|address| self.all_held.contains(&IpAddr::V4(address)));
        }
    }

    fn carry(&mut self, eni: &mut Eni) {
        let mut lost: Vec<Ipv4Cidr> = Vec::new();
        for cidr in eni.cidrs.keys() {
            let is_taken = |address: Ipv4Addr| self.own.contains(&address) || self.carried.contains(&address);
            if cidr.addresses().any(is_taken) || eni.role == EniRole::Unmanaged {
                lost.push(*cidr);
            } else {
                self.carried.extend(cidr.addresses());
            }
        }
        for cidr in lost {
            eni.cidrs.remove(&cidr);
            self.remark(eni, &format!("{cidr} is not its own"));
        }
    }

    fn aside(&mut self, eni: &Eni, why: &str) {
        self.remarks
            .push(format!("the record of {} is set aside: {why}", eni.id));
    }

    fn remark(&mut self, eni: &Eni, what: &str) {
        self.remarks
            .push(format!("the record of {} is wrong: {what}", eni.id));
    }
}
