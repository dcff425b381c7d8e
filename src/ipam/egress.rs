//! Addresses for the other family: with each pod address goes a node-local one, by which `egress-cni` leads the pod out
//! in the family that its own address is not of.
//!
//! They are the Go daemon's networks, 169.254.172.0/22 and `fd00::ac:0/118`, and never leave the node. One belongs to the
//! allocation it was given with, so it needs no record of its own, is durable when that is, and goes when that goes,
//! whether or not anybody says a word about egress.

use std::collections::BTreeSet;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use serde::{Deserialize, Serialize};

use super::cidr::Ipv4Cidr;
use super::cidr6::Ipv6Cidr;
use super::ip::{Cidr, IpFamily};
use super::pool::Pool;

const NETWORK_V4: Ipv4Addr = Ipv4Addr::new(169, 254, 172, 0);
const NETWORK_V4_LEN: u8 = 22;
const NETWORK_V6: Ipv6Addr = Ipv6Addr::new(0xfd00, 0, 0, 0, 0, 0, 0xac, 0);
const NETWORK_V6_LEN: u8 = 118;

/// The place of an address in its network: 2 to 1022. The first is the network's, the second the gateway's, and the last
/// the broadcast address of IPv4.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(try_from = "u16", into = "u16")]
pub struct EgressSlot(u16);

impl EgressSlot {
    /// The first one that is given.
    pub const FIRST: Self = Self(2);
    /// The last one.
    pub const LAST: Self = Self(1022);

    /// `None` for what no pod gets.
    pub fn new(slot: u16) -> Option<Self> {
        (Self::FIRST.0..=Self::LAST.0)
            .contains(&slot)
            .then_some(Self(slot))
    }

    /// Its address, in the other family than the pods'.
    pub fn address(self, pods: IpFamily) -> IpAddr {
        nth(pods, self.0)
    }

    fn next(self) -> Self {
        if self == Self::LAST {
            Self::FIRST
        } else {
            Self(self.0.saturating_add(1))
        }
    }
}

impl TryFrom<u16> for EgressSlot {
    type Error = String;

    fn try_from(slot: u16) -> Result<Self, String> {
        Self::new(slot).ok_or_else(|| format!("{slot} is not an egress slot (2 to 1022)"))
    }
}

impl From<EgressSlot> for u16 {
    fn from(slot: EgressSlot) -> Self {
        slot.0
    }
}

/// The address behind which the host stands.
pub fn gateway(pods: IpFamily) -> IpAddr {
    nth(pods, 1)
}

/// The network of all of them.
pub fn network(pods: IpFamily) -> Cidr {
    let address = nth(pods, 0);
    let len = match pods {
        IpFamily::V4 => NETWORK_V6_LEN,
        IpFamily::V6 => NETWORK_V4_LEN,
    };
    Cidr::new(address, len).unwrap_or(Cidr::host(address))
}

fn nth(pods: IpFamily, n: u16) -> IpAddr {
    match pods {
        IpFamily::V4 => Ipv6Addr::from_bits(NETWORK_V6.to_bits() | u128::from(n)).into(),
        IpFamily::V6 => Ipv4Addr::from_bits(NETWORK_V4.to_bits() | u32::from(n)).into(),
    }
}

impl Pool {
    /// One that nobody has, the one that was given longest ago if possible. `None` when egress is off or all are taken.
    pub(super) fn next_egress(&mut self) -> Option<EgressSlot> {
        if !self.policy().egress {
            return None;
        }
        let taken: BTreeSet<EgressSlot> = self
            .allocations()
            .values()
            .filter_map(|held| held.egress)
            .collect();
        let last = self.memory.last_egress.or(taken.last().copied());
        let start = last.map_or(EgressSlot::FIRST, EgressSlot::next);
        let mut slot = start;
        while taken.contains(&slot) {
            slot = slot.next();
            if slot == start {
                return None;
            }
        }
        self.memory.last_egress = Some(slot);
        Some(slot)
    }
}

/// Whether an address is of these networks: no VPC's, so nobody's but a pod's on this node.
pub fn is_egress(address: IpAddr) -> bool {
    match address {
        IpAddr::V4(address) => {
            Ipv4Cidr::new(NETWORK_V4, NETWORK_V4_LEN).is_some_and(|network| network.contains(address))
        }
        IpAddr::V6(address) => {
            Ipv6Cidr::new(NETWORK_V6, NETWORK_V6_LEN).is_some_and(|network| network.contains(address))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_networks_are_the_go_daemons() {
        assert_eq!(network(IpFamily::V6).to_string(), "169.254.172.0/22");
        assert_eq!(network(IpFamily::V4).to_string(), "fd00::ac:0/118");
        assert_eq!(gateway(IpFamily::V6).to_string(), "169.254.172.1");
        let text = |slot: EgressSlot, pods| slot.address(pods).to_string();
        assert_eq!(text(EgressSlot::FIRST, IpFamily::V6), "169.254.172.2");
        assert_eq!(text(EgressSlot::LAST, IpFamily::V6), "169.254.175.254");
        assert_eq!(text(EgressSlot::FIRST, IpFamily::V4), "fd00::ac:2");
        assert_eq!(text(EgressSlot::LAST, IpFamily::V4), "fd00::ac:3fe");
    }

    #[test]
    fn every_slot_is_inside_and_no_other_number_is_one() {
        let mut slot = EgressSlot::FIRST;
        for _ in 0..1021 {
            assert!(is_egress(slot.address(IpFamily::V4)) && is_egress(slot.address(IpFamily::V6)));
            slot = slot.next();
        }
        assert_eq!(slot, EgressSlot::FIRST);
        for number in [0, 1, 1023, u16::MAX] {
            assert_eq!(EgressSlot::new(number), None);
            assert!(serde_json::from_str::<EgressSlot>(&number.to_string()).is_err());
        }
    }
}
