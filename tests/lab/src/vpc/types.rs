//! What a VPC consists of.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{Ipv4Addr, Ipv6Addr};

use super::change::Owned;
use super::cidr::{Ipv4Cidr, Ipv6Cidr};
use super::ids::{AttachmentId, EniId, GroupId, InstanceId, Mac, SubnetId, VpcId};

/// Tags, sorted by key.
pub type Tags = BTreeMap<String, String>;

/// A VPC.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Vpc {
    /// Its id.
    pub id: VpcId,
    /// Its IPv4 networks, the first being the primary one.
    pub cidrs: Vec<Ipv4Cidr>,
    /// Its IPv6 network, a /56.
    pub ipv6_cidr: Option<Ipv6Cidr>,
    /// Tags.
    pub tags: Tags,
}

/// A subnet.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Subnet {
    /// Its id.
    pub id: SubnetId,
    /// Its VPC.
    pub vpc: VpcId,
    /// Its availability zone.
    pub zone: String,
    /// Its IPv4 network.
    pub cidr: Ipv4Cidr,
    /// Its IPv6 network, a /64.
    pub ipv6_cidr: Option<Ipv6Cidr>,
    /// Tags.
    pub tags: Tags,
}

/// A security group.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SecurityGroup {
    /// Its id.
    pub id: GroupId,
    /// Its name.
    pub name: String,
    /// Its VPC.
    pub vpc: VpcId,
    /// Tags.
    pub tags: Tags,
}

/// EC2's state of an instance, as far as it matters here.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum InstanceState {
    /// Running.
    Running,
    /// Terminated; EC2 keeps showing it for a while.
    Terminated,
}

/// An instance.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Instance {
    /// Its id.
    pub id: InstanceId,
    /// Its type, such as `m5.large`.
    pub instance_type: String,
    /// The subnet of its primary ENI.
    pub subnet: SubnetId,
    /// Its VPC.
    pub vpc: VpcId,
    /// Its availability zone.
    pub zone: String,
    /// Its primary ENI.
    pub primary_eni: EniId,
    /// Its private address.
    pub private_ip: Ipv4Addr,
    /// Its state.
    pub state: InstanceState,
    /// Role whose credentials IMDS offers.
    pub role: Option<String>,
    /// The hop limit of IMDS token answers (`HttpPutResponseHopLimit`).
    pub imds_hop_limit: u8,
    /// Whether IMDS refuses requests without a token (`HttpTokens=required`).
    pub imds_tokens_required: bool,
    /// User data, as IMDS offers it.
    pub user_data: Option<String>,
    /// When it was launched, as seconds since the epoch.
    pub launched: u64,
    /// Tags.
    pub tags: Tags,
}

/// EC2's status of an attachment.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum AttachStatus {
    /// Asked for; the link may or may not be there yet.
    Attaching,
    /// Done.
    Attached,
    /// Being detached.
    Detaching,
}

impl AttachStatus {
    /// EC2's word for it.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Attaching => "attaching",
            Self::Attached => "attached",
            Self::Detaching => "detaching",
        }
    }
}

/// The attachment of an ENI to an instance.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Attachment {
    /// Its id.
    pub id: AttachmentId,
    /// The instance.
    pub instance: InstanceId,
    /// Device index on the card.
    pub device: u32,
    /// Network card.
    pub card: u32,
    /// EC2's status.
    pub status: AttachStatus,
    /// Whether the link exists in the node: appears between `attaching` and `attached`, goes during `detaching`.
    pub link: bool,
    /// Whether EC2 deletes the ENI with the instance.
    pub delete_on_termination: bool,
    /// When it was asked for, as seconds since the epoch.
    pub since: u64,
}

/// A network interface.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Eni {
    /// Its id.
    pub id: EniId,
    /// Its hardware address.
    pub mac: Mac,
    /// Its subnet.
    pub subnet: SubnetId,
    /// Its VPC.
    pub vpc: VpcId,
    /// The subnet's availability zone.
    pub zone: String,
    /// `Description`.
    pub description: String,
    /// EC2's `InterfaceType`: `interface`, `trunk`, `efa`, `efa-only`.
    pub interface_type: String,
    /// Security groups in the order given.
    pub groups: Vec<GroupId>,
    /// Its own address.
    pub primary: Ipv4Addr,
    /// Secondary addresses in the order assigned.
    pub secondary: Vec<Ipv4Addr>,
    /// /28 prefixes in the order assigned.
    pub prefixes: Vec<Ipv4Cidr>,
    /// IPv6 addresses in the order assigned.
    pub ipv6: Vec<Ipv6Addr>,
    /// /80 prefixes in the order assigned.
    pub ipv6_prefixes: Vec<Ipv6Cidr>,
    /// Where it is attached.
    pub attachment: Option<Attachment>,
    /// Whether the VPC drops what it may not send.
    pub source_dest_check: bool,
    /// `TcpEstablishedTimeout`, `UdpStreamTimeout`, `UdpTimeout` as far as set.
    pub connection_tracking: BTreeMap<String, u32>,
    /// Tags.
    pub tags: Tags,
}

impl Eni {
    /// IPv4 slots in use: addresses, the own one included, and prefixes count alike.
    pub fn ipv4_slots(&self) -> usize {
        1 + self.secondary.len() + self.prefixes.len()
    }

    /// IPv6 slots in use: addresses and prefixes count alike.
    pub fn ipv6_slots(&self) -> usize {
        self.ipv6.len() + self.ipv6_prefixes.len()
    }

    /// Everything it owns.
    pub fn owned(&self) -> Owned {
        Owned {
            primary: self.primary,
            secondary: self.secondary.iter().copied().collect(),
            prefixes: self.prefixes.iter().copied().collect(),
            ipv6: self.ipv6.iter().copied().collect(),
            ipv6_prefixes: self.ipv6_prefixes.iter().copied().collect::<BTreeSet<_>>(),
        }
    }

    /// EC2's `Status`: `in-use` from the moment of attaching until detaching is over, as the filter `status` is
    /// documented; the stages between are the attachment's.
    pub fn status(&self) -> &'static str {
        if self.attachment.is_some() {
            "in-use"
        } else {
            "available"
        }
    }
}
