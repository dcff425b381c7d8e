//! What is true of the machine for as long as it is booted.

use std::net::Ipv4Addr;

use serde::{Deserialize, Serialize};

use super::cidr::Ipv4Cidr;
use super::ids::{BootId, EniId, InstanceId, InstanceType, Mac, SecurityGroupId, SubnetId, VpcId};

/// Facts about this node: from IMDS and `/proc`, or, after a restart on the same boot, from the store
/// ([`super::records::stored_facts`]), so that a restart needs neither IMDS nor EC2.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct NodeFacts {
    /// The instance; another one voids everything stored.
    pub instance: InstanceId,
    /// Its type, which sets the limits.
    pub instance_type: InstanceType,
    /// Availability zone.
    pub zone: String,
    /// The VPC.
    pub vpc: VpcId,
    /// The VPC's IPv4 networks.
    pub vpc_cidrs: Vec<Ipv4Cidr>,
    /// The primary ENI's subnet, where new ENIs go.
    pub subnet: SubnetId,
    /// That subnet's network.
    pub subnet_cidr: Ipv4Cidr,
    /// The primary ENI.
    pub primary_eni: EniId,
    /// Its hardware address.
    pub primary_mac: Mac,
    /// Its own address, which pods never get.
    pub primary_address: Ipv4Addr,
    /// Its security groups, which new ENIs get too.
    pub security_groups: Vec<SecurityGroupId>,
    /// This boot; another one voids sandboxes but keeps addresses.
    pub boot: BootId,
    /// When the machine booted, in seconds since 1970 (`btime` of `/proc/stat`): gives ENIs their `createdAt` tag.
    pub booted_at: u64,
}
