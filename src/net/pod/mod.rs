//! A pod's interface: made, checked and taken away.
//!
//! ```text
//!   host                                     pod
//!   eni<hash>, MAC H, no address  ── veth ── eth0, MAC P, <pod>/32
//!   <pod>/32 dev eni<hash>                   169.254.1.1 dev eth0 scope link
//!     in table 512 (or main)                 default via 169.254.1.1
//!                                            169.254.1.1 is at H, permanently
//! ```
//!
//! An IPv6 pod has `/128` and `fe80::1` in their place, and the host knows it at P, permanently: neither side ever asks
//! where the other is, which it could not while its link-local address is still tentative.

mod check;
mod repair;
mod unwire;
mod wire;

use std::net::IpAddr;
use std::path::PathBuf;

pub use check::{Difference, check_pod};
pub use repair::{LeftAlone, RecordedPod, Repair, Repairs, put_right, remove_orphaned_rules, repairs};
pub use unwire::{LinkFate, LinkRemoval, PodRemoval, UnwireError, Unwired, unwire_pod};
pub use wire::{Sandbox, WireError, WireFailure, WiredPod, wire_pod};

use super::layout::RuleLayout;
use crate::ipam::ids::{Mac, TableId};
use crate::ipam::ip::IpFamily;

/// How a pod's interface should be.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PodIntent {
    /// Name of the host's end, see [`super::veth::host_name`].
    pub host_veth: String,
    /// Name of the pod's end, as the runtime wants it.
    pub ifname: String,
    /// The pod's network namespace.
    pub netns: PathBuf,
    /// The pod's address.
    pub address: IpAddr,
    /// MTU of both ends.
    pub mtu: u32,
    /// Hardware address of the host's end: the pod's only neighbour.
    pub host_mac: Mac,
    /// Hardware address of the pod's end.
    pub pod_mac: Mac,
    /// Table of the ENI the address is on; main for the primary ENI.
    pub eni_table: TableId,
    /// How the host routes to and from the pod.
    pub layout: RuleLayout,
}

/// What of it does not depend on the address.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct VethPair {
    /// Name of the host's end.
    pub host_veth: String,
    /// Name of the pod's end.
    pub ifname: String,
    /// MTU of both ends.
    pub mtu: u32,
    /// Hardware address of the host's end.
    pub host_mac: Mac,
    /// Hardware address of the pod's end.
    pub pod_mac: Mac,
}

impl PodIntent {
    /// The family of the pod's address.
    pub fn family(&self) -> IpFamily {
        IpFamily::of(self.address)
    }

    /// The pair it wants.
    pub fn pair(&self) -> VethPair {
        VethPair {
            host_veth: self.host_veth.clone(),
            ifname: self.ifname.clone(),
            mtu: self.mtu,
            host_mac: self.host_mac,
            pod_mac: self.pod_mac,
        }
    }
}

#[cfg(test)]
mod tests;
