//! Where our things sit in the kernel: tables, rule priorities, marks, gateways, groups.
//!
//! | pref | rule | when |
//! |---|---|---|
//! | 512 | `from all lookup 512` | shared layout, once |
//! | 512 | `to <pod> lookup main` | per-pod layout, each pod |
//! | 1024 | `fwmark 0x80/0x80 lookup main` | NodePort support or SNAT on |
//! | 1536 | `fwmark V/0x7f lookup <ENI table>` | shared layout, each secondary ENI |
//! | 1536 | `from <pod> lookup <ENI table>` | per-pod layout, each pod of a secondary ENI |
//! | 32765 | `from <ENI primary> lookup <ENI table>` | each secondary ENI |
//!
//! An IPv6 cluster has the rules at 512 and 1024 only, in IPv6: its pods' addresses are all on the primary ENI.
//!
//! The kernel walks rules one by one for every forwarded packet and finds a route in a table by a tree, so the shared
//! layout has no rule per pod. The per-pod layout is the Go daemon's, for tools that look for it.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::ops::RangeInclusive;

use serde::{Deserialize, Serialize};

use crate::ipam::ids::TableId;
use crate::ipam::ip::IpFamily;

/// Where the shared layout keeps one route per pod. A miss falls through to the next rule.
pub const POD_TABLE: TableId = TableId(512);
/// Priority of the rules that lead to pods.
pub const TO_POD_PRIORITY: u32 = 512;
/// Priority of the rule that sends marked traffic out of the primary ENI.
pub const MARK_PRIORITY: u32 = 1024;
/// Priority of the rules for networks that pods reach by the primary ENI (`AWS_EXTERNAL_SERVICE_CIDRS`); just before
/// the rules that lead pods to their ENIs.
pub const EXTERNAL_SERVICE_PRIORITY: u32 = 1535;
/// Priority of the rules that lead pod traffic to its ENI's table.
pub const FROM_POD_PRIORITY: u32 = 1536;
/// Priority of the rules for an ENI's own primary address; just before the kernel's main rule at 32766.
pub const ENI_PRIMARY_PRIORITY: u32 = 32_765;
/// The bits of the packet mark that name the secondary ENI a packet belongs to.
pub const ENI_MARK_MASK: u32 = 0x7f;
/// The link group of host veths whose pods are gone, deleted many at a time because deleting one alone waits 15–25 ms
/// for RCU. The digits spell the rule priority band so that it stands out in `ip link`.
pub const DOOMED_GROUP: u32 = 512_512;
/// The gateway every IPv4 pod sees; it exists only as the pod's permanent neighbour.
pub const POD_GATEWAY: Ipv4Addr = Ipv4Addr::new(169, 254, 1, 1);
/// The same for IPv6 pods.
pub const POD_GATEWAY6: Ipv6Addr = Ipv6Addr::new(0xfe80, 0, 0, 0, 0, 0, 0, 1);

/// The gateway of a pod with an address of this family.
pub fn pod_gateway(family: IpFamily) -> IpAddr {
    match family {
        IpFamily::V4 => POD_GATEWAY.into(),
        IpFamily::V6 => POD_GATEWAY6.into(),
    }
}

/// `RTPROT_DHCP` of `linux/rtnetlink.h`: the maker of routes that were leased.
pub const DHCP: u8 = 16;

/// MTUs an ENI and a pod may have: from what every IPv4 host must take (RFC 791) to the VPC's jumbo frames, the
/// default (<https://docs.aws.amazon.com/AWSEC2/latest/UserGuide/network_mtu.html>).
pub const MTU: RangeInclusive<u32> = 576..=9001;

/// How pod addresses are routed on the host.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Default, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum RuleLayout {
    /// Pod routes in one table behind one rule; the way back by a mark per ENI.
    #[default]
    Shared,
    /// The Go daemon's: pod routes in main and up to two rules per pod.
    PerPod,
}

impl RuleLayout {
    /// The table that holds the route to a pod.
    pub fn pod_table(self) -> TableId {
        match self {
            Self::Shared => POD_TABLE,
            Self::PerPod => TableId::MAIN,
        }
    }
}

/// The mark of a secondary ENI: 1 to 127.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(try_from = "u8", into = "u8")]
pub struct EniMark(u8);

impl EniMark {
    /// `None` for 0, which means no ENI, and for what does not fit [`ENI_MARK_MASK`].
    pub fn new(value: u8) -> Option<Self> {
        (value != 0 && u32::from(value) <= ENI_MARK_MASK).then_some(Self(value))
    }

    /// The value, as it stands in the packet mark.
    pub fn value(self) -> u8 {
        self.0
    }
}

impl TryFrom<u8> for EniMark {
    type Error = String;

    fn try_from(value: u8) -> Result<Self, String> {
        Self::new(value).ok_or_else(|| format!("{value} is not an ENI mark (1 to 127)"))
    }
}

impl From<EniMark> for u8 {
    fn from(mark: EniMark) -> Self {
        mark.0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn marks_fit_their_mask_and_are_never_zero() {
        assert!(EniMark::new(0).is_none());
        assert!(EniMark::new(128).is_none());
        assert_eq!(EniMark::new(127).unwrap().value(), 127);
        assert!(serde_json::from_str::<EniMark>("0").is_err());
    }
}
