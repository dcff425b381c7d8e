//! What may be asked of the model, already parsed.

use std::collections::BTreeMap;
use std::net::{Ipv4Addr, Ipv6Addr};
use std::time::Duration;

use super::cidr::{Ipv4Cidr, Ipv6Cidr};
use super::ids::{AttachmentId, EniId, GroupId, InstanceId, SubnetId};
use super::space::Want;
use super::types::Tags;

/// Addresses and prefixes asked for in one call.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Wanted {
    /// Secondary IPv4 addresses.
    pub addresses: Want<Ipv4Addr>,
    /// /28 prefixes.
    pub prefixes: Want<Ipv4Cidr>,
    /// IPv6 addresses.
    pub ipv6: Want<Ipv6Addr>,
    /// /80 prefixes.
    pub ipv6_prefixes: Want<Ipv6Cidr>,
}

/// Addresses and prefixes, named.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Grant {
    /// IPv4 addresses.
    pub addresses: Vec<Ipv4Addr>,
    /// /28 prefixes.
    pub prefixes: Vec<Ipv4Cidr>,
    /// IPv6 addresses.
    pub ipv6: Vec<Ipv6Addr>,
    /// /80 prefixes.
    pub ipv6_prefixes: Vec<Ipv6Cidr>,
}

/// `CreateNetworkInterface`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CreateEni {
    /// Where.
    pub subnet: SubnetId,
    /// `Description`.
    pub description: String,
    /// Security groups; empty means the VPC's first, as EC2 takes the default group.
    pub groups: Vec<GroupId>,
    /// Its own address; EC2's choice when absent.
    pub primary: Option<Ipv4Addr>,
    /// More addresses.
    pub wanted: Wanted,
    /// `InterfaceType`.
    pub interface_type: String,
    /// `ConnectionTrackingSpecification`.
    pub connection_tracking: BTreeMap<String, u32>,
    /// Tags.
    pub tags: Tags,
    /// Idempotency token.
    pub token: Option<String>,
}

impl CreateEni {
    /// An ENI with nothing but its own address.
    pub fn plain(subnet: SubnetId, groups: Vec<GroupId>) -> Self {
        Self {
            subnet,
            description: String::new(),
            groups,
            primary: None,
            wanted: Wanted::default(),
            interface_type: "interface".to_owned(),
            connection_tracking: BTreeMap::new(),
            tags: Tags::new(),
            token: None,
        }
    }
}

/// `AttachNetworkInterface`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AttachEni {
    /// Which.
    pub eni: EniId,
    /// Where.
    pub instance: InstanceId,
    /// Device index.
    pub device: u32,
    /// Network card.
    pub card: u32,
}

/// The two stages of attaching or detaching, counted from the call.
///
/// Neither waits for the fabric: the link may come before EC2 says `attached`, or after.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Stages {
    /// Until the link appears or goes.
    pub link: Duration,
    /// Until EC2's status says so.
    pub status: Duration,
}

/// `ModifyNetworkInterfaceAttribute`: one attribute a call.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Modify {
    /// Other security groups.
    Groups(Vec<GroupId>),
    /// Another description.
    Description(String),
    /// Source/destination check on or off.
    SourceDestCheck(bool),
    /// Whether EC2 deletes the ENI with the instance.
    DeleteOnTermination {
        /// The attachment meant.
        attachment: AttachmentId,
        /// The new value.
        delete: bool,
    },
    /// Other connection-tracking time-outs.
    ConnectionTracking(BTreeMap<String, u32>),
}

/// `RunInstances`, as far as it matters here.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NewInstance {
    /// Its type, such as `m5.large`.
    pub instance_type: String,
    /// Where its primary ENI is.
    pub subnet: SubnetId,
    /// Security groups of the primary ENI.
    pub groups: Vec<GroupId>,
    /// The primary ENI's own address; EC2's choice when absent.
    pub private_ip: Option<Ipv4Addr>,
    /// What the launch template puts on the primary ENI from the start.
    pub wanted: Wanted,
    /// Role whose credentials IMDS offers.
    pub role: Option<String>,
    /// `HttpPutResponseHopLimit`.
    pub imds_hop_limit: u8,
    /// `HttpTokens=required`.
    pub imds_tokens_required: bool,
    /// User data.
    pub user_data: Option<String>,
    /// Tags of the instance.
    pub tags: Tags,
}

impl NewInstance {
    /// An instance as a careful operator launches it: `IMDSv2` only, hop limit 1, a role.
    pub fn new(instance_type: &str, subnet: &SubnetId, group: &GroupId) -> Self {
        Self {
            instance_type: instance_type.to_owned(),
            subnet: subnet.clone(),
            groups: vec![group.clone()],
            private_ip: None,
            wanted: Wanted::default(),
            role: Some("node-role".to_owned()),
            imds_hop_limit: 1,
            imds_tokens_required: true,
            user_data: None,
            tags: Tags::new(),
        }
    }
}
