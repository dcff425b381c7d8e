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

/// The region of an availability zone or local zone: `us-east-1a`, `us-west-2-lax-1a`
/// (<https://docs.aws.amazon.com/AWSEC2/latest/UserGuide/using-regions-availability-zones.html>).
pub(super) fn region_of(zone: &str) -> String {
    let mut region = Vec::new();
    for part in zone.split('-') {
        let digits = part.trim_end_matches(|letter: char| !letter.is_ascii_digit());
        if !digits.is_empty() && digits.bytes().all(|byte| byte.is_ascii_digit()) {
            region.push(digits);
            break;
        }
        region.push(part);
    }
    region.join("-")
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
                prefixes6: eni.prefixes6,
            })
            .collect(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn zones_of_every_kind_name_their_region() {
        for (zone, region) in [
            ("us-east-1a", "us-east-1"),
            ("us-gov-west-1b", "us-gov-west-1"),
            ("us-west-2-lax-1a", "us-west-2"),
            ("us-east-1-wl1-bos-wlz-1", "us-east-1"),
            ("ap-southeast-12c", "ap-southeast-12"),
        ] {
            assert_eq!(region_of(zone), region);
        }
    }
}
