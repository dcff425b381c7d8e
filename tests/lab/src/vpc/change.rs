//! What the fabric must be told so that kernel links and routes follow the model.

use std::collections::BTreeSet;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use super::cidr::{Ipv4Cidr, Ipv6Cidr};
use super::ids::{AttachmentId, EniId, InstanceId, Mac, SubnetId, VpcId};

/// Everything an ENI owns: what the VPC router delivers to it and lets it send from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Owned {
    /// Its own address.
    pub primary: Ipv4Addr,
    /// Secondary addresses.
    pub secondary: BTreeSet<Ipv4Addr>,
    /// /28 prefixes.
    pub prefixes: BTreeSet<Ipv4Cidr>,
    /// IPv6 addresses.
    pub ipv6: BTreeSet<Ipv6Addr>,
    /// /80 prefixes.
    pub ipv6_prefixes: BTreeSet<Ipv6Cidr>,
}

impl Owned {
    /// Whether the ENI may receive for and send from `address`.
    pub fn owns(&self, address: IpAddr) -> bool {
        match address {
            IpAddr::V4(v4) => {
                v4 == self.primary
                    || self.secondary.contains(&v4)
                    || self.prefixes.iter().any(|prefix| prefix.contains(v4))
            }
            IpAddr::V6(v6) => {
                self.ipv6.contains(&v6) || self.ipv6_prefixes.iter().any(|prefix| prefix.contains(v6))
            }
        }
    }
}

/// An ENI whose link is to exist in a node.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AttachedEni {
    /// Where.
    pub instance: InstanceId,
    /// Which ENI.
    pub eni: EniId,
    /// The attachment.
    pub attachment: AttachmentId,
    /// The hardware address of the link.
    pub mac: Mac,
    /// Device index on its card; 0 on card 0 is the primary ENI.
    pub device: u32,
    /// Network card.
    pub card: u32,
    /// Its subnet.
    pub subnet: SubnetId,
    /// Its VPC.
    pub vpc: VpcId,
    /// The subnet's network; its router is the first address after the base.
    pub subnet_cidr: Ipv4Cidr,
    /// The subnet's IPv6 network.
    pub subnet_ipv6_cidr: Option<Ipv6Cidr>,
    /// What it owns now.
    pub owned: Owned,
    /// Whether the router drops what it may not send; EC2's default.
    pub source_dest_check: bool,
}

/// A change of the model that has a kernel side.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum VpcChange {
    /// The link is to appear now: the attach delay is over. Also sent once for every primary ENI.
    EniAttached(Box<AttachedEni>),
    /// The link is to go now: the detach delay is over.
    EniDetached {
        /// From where.
        instance: InstanceId,
        /// Which ENI.
        eni: EniId,
        /// Its hardware address.
        mac: Mac,
    },
    /// An attached ENI owns other addresses than before, or its source check was switched.
    AddressesChanged {
        /// Where it is attached.
        instance: InstanceId,
        /// Which ENI.
        eni: EniId,
        /// All it owns now.
        owned: Owned,
        /// Whether the router checks what it sends.
        source_dest_check: bool,
    },
    /// The VPC got another network.
    VpcCidrAdded {
        /// Which VPC.
        vpc: VpcId,
        /// The network.
        cidr: Ipv4Cidr,
    },
    /// The instance is gone; its links were announced as detached before.
    InstanceTerminated {
        /// Which.
        instance: InstanceId,
    },
}
