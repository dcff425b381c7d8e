//! Who this node is: from IMDS, or from what is stored when the machine has not been booted since.

use std::io;

use super::clock;
use crate::cloud::{DiscoveredEni, NodeDiscovery};
use crate::ipam::ids::{BootId, Mac};
use crate::ipam::node::NodeFacts;
use crate::ipam::witness::{ImdsEni, ImdsSnapshot};

/// Why IMDS's answer does not describe a node that can be served.
#[derive(Debug, thiserror::Error)]
pub(super) enum NodeError {
    /// The primary ENI is not described.
    #[error("IMDS does not describe the primary ENI {0}")]
    NoPrimary(Mac),
    /// The primary ENI has no IPv4 network.
    #[error("the primary ENI {0} has no IPv4 address: IPv6-only subnets are not supported yet")]
    NoIpv4(Mac),
    /// The kernel does not tell when it booted.
    #[error("cannot read when the machine booted: {0}")]
    Boot(#[from] io::Error),
}

/// The node as IMDS describes it, on this boot.
pub(super) fn facts(found: &NodeDiscovery, boot: BootId) -> Result<NodeFacts, NodeError> {
    let mac = found.primary_mac;
    let primary = found.primary().ok_or(NodeError::NoPrimary(mac))?;
    let (Some(subnet_cidr), Some(address)) = (primary.subnet_cidr, primary.addresses.first()) else {
        return Err(NodeError::NoIpv4(mac));
    };
    Ok(NodeFacts {
        instance: found.instance.clone(),
        instance_type: found.instance_type.clone(),
        zone: found.availability_zone.clone(),
        vpc: primary.vpc.clone(),
        vpc_cidrs: primary.vpc_cidrs.clone(),
        subnet: primary.subnet.clone(),
        subnet_cidr,
        primary_eni: primary.id.clone(),
        primary_mac: mac,
        primary_address: *address,
        security_groups: primary.security_groups.clone(),
        boot,
        booted_at: clock::booted_at()?,
    })
}

/// The ENIs IMDS describes, as the pool takes them.
pub(super) fn snapshot(enis: Vec<DiscoveredEni>) -> ImdsSnapshot {
    ImdsSnapshot {
        enis: enis
            .into_iter()
            .map(|eni| ImdsEni {
                id: eni.id,
                mac: eni.mac,
                device: eni.device,
                card: eni.card,
                subnet: eni.subnet,
                subnet_cidr: eni.subnet_cidr,
                addresses: eni.addresses,
                prefixes: eni.prefixes,
            })
            .collect(),
    }
}
