//! What a node is not told, or told wrongly.

use std::collections::BTreeSet;
use std::net::IpAddr;

use crate::vpc::{EniId, Ipv4Cidr, Mac};

/// Omissions and excesses in what a node sees of itself, until withdrawn.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Lies {
    /// ENIs IMDS doesn't show.
    pub imds_hides_enis: BTreeSet<EniId>,
    /// Addresses IMDS doesn't show.
    pub imds_hides_addresses: BTreeSet<IpAddr>,
    /// /28 prefixes IMDS doesn't show.
    pub imds_hides_prefixes: BTreeSet<Ipv4Cidr>,
    /// Addresses IMDS shows on the ENI although it doesn't own them.
    pub imds_adds_addresses: BTreeSet<(EniId, IpAddr)>,
    /// MACs IMDS lists although everything below them is missing, as after a detach.
    pub imds_ghost_macs: BTreeSet<Mac>,
    /// Whether IMDS answers an empty list of MACs.
    pub imds_empty_macs: bool,
    /// Whether IMDS answers a directory asked for without its slash by a redirect instead of its listing.
    pub imds_redirects_directories: bool,
    /// ENIs describes don't show to this node.
    pub ec2_hides_enis: BTreeSet<EniId>,
    /// Addresses describes don't show to this node.
    pub ec2_hides_addresses: BTreeSet<IpAddr>,
}
