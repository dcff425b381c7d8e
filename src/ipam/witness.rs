//! Evidence: who says what about an address or an ENI, and the key to freeing it.
//!
//! Design invariant 2: something is given back to AWS only when EC2 itself (a Describe, not IMDS), the kernel and the
//! store all agree that it is unused. IMDS may add knowledge; it never takes away.

use std::net::Ipv4Addr;

use serde::{Deserialize, Serialize};

use super::cidr::Ipv4Cidr;
use super::ids::{CardIndex, DeviceIndex, EniId, Mac, SubnetId};

/// A network link the kernel has.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LinkFact {
    /// Its hardware address, by which it is told to be an ENI's.
    pub mac: Mac,
    /// Its present name.
    pub name: String,
    /// Its present index.
    pub ifindex: u32,
}

/// A host route to a pod: the kernel's word that a sandbox holds the address.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PodRoute {
    /// The pod's address.
    pub address: Ipv4Addr,
    /// The host side of its veth pair.
    pub device: String,
}

/// Everything the kernel said at one moment.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct KernelFacts {
    /// Every physical link (no veth).
    pub links: Vec<LinkFact>,
    /// Every pod route of ours, and every address that only a rule for pods names, then without a device.
    pub pod_routes: Vec<PodRoute>,
    /// Addresses among them that only a rule names: no route leads to them, so no sandbox can be using them.
    pub bare_rules: Vec<Ipv4Addr>,
}

/// One ENI as IMDS lists it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ImdsEni {
    /// Its id.
    pub id: EniId,
    /// Its hardware address.
    pub mac: Mac,
    /// `device-number`.
    pub device: DeviceIndex,
    /// `network-card`, 0 when absent.
    pub card: CardIndex,
    /// Its subnet.
    pub subnet: SubnetId,
    /// `subnet-ipv4-cidr-block`, when listed.
    pub subnet_cidr: Option<Ipv4Cidr>,
    /// `local-ipv4s`, the primary one first; empty for ENIs without addresses.
    pub addresses: Vec<Ipv4Addr>,
    /// `ipv4-prefix`.
    pub prefixes: Vec<Ipv4Cidr>,
}

impl ImdsEni {
    /// What it carries for pods: all but its own address, and its prefixes.
    pub fn cidrs(&self) -> impl Iterator<Item = Ipv4Cidr> {
        let secondary = self.addresses.iter().skip(1).copied().map(Ipv4Cidr::host);
        secondary.chain(self.prefixes.iter().copied())
    }
}

/// Everything IMDS listed in one sweep.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct ImdsSnapshot {
    /// The ENIs.
    pub enis: Vec<ImdsEni>,
}

/// Why an address or ENI is quarantined: witnesses disagree, or something is known that does not fit.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", tag = "doubt")]
pub enum Doubt {
    /// The kernel routes it to a pod the store does not know.
    PodRoute {
        /// The route's device.
        device: String,
    },
    /// EC2's Describe does not list it on its ENI.
    NotInEc2,
    /// Its ENI is gone for EC2 and for the kernel.
    EniLost,
    /// Two stored allocations name it.
    AllocatedTwice,
    /// The Go daemon's checkpoint says something of it that nobody confirms.
    Imported {
        /// What, and what speaks against it.
        why: String,
    },
}

impl Doubt {
    /// Whether it is about sandboxes, none of which outlives a boot.
    pub(super) fn is_of_one_boot(&self) -> bool {
        matches!(
            self,
            Self::PodRoute { .. } | Self::AllocatedTwice | Self::Imported { .. }
        )
    }
}

impl std::fmt::Display for Doubt {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::PodRoute { device } if device.is_empty() => {
                f.write_str("a rule for pods names it, but no allocation is stored")
            }
            Self::PodRoute { device } => {
                write!(f, "the kernel routes it to {device}, but no allocation is stored")
            }
            Self::NotInEc2 => f.write_str("EC2 no longer lists it on its ENI"),
            Self::EniLost => f.write_str("its ENI is gone, by EC2 and by the kernel"),
            Self::AllocatedTwice => f.write_str("two stored allocations name it"),
            Self::Imported { why } => f.write_str(why),
        }
    }
}

/// What EC2's Describe said of an ENI, in a call made after the ENI was given up.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Ec2Says {
    /// It exists and is attached nowhere (`available`).
    Unattached,
    /// It is attached.
    Attached,
    /// It is not listed.
    Missing,
    /// It has not been asked since.
    Unasked,
}

/// What the kernel and the store say of an ENI.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct LocalEvidence {
    /// The kernel has a link with its hardware address.
    pub link: bool,
    /// Pod routes to one of its addresses, by the last full reading.
    pub pod_routes: usize,
    /// Stored allocations on one of its addresses.
    pub allocations: usize,
}

/// Why a proof could not be made.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Unproven {
    /// EC2 does not say that it exists unattached.
    #[error("EC2 does not confirm that it is attached nowhere")]
    Ec2,
    /// The kernel still has its link or a route to a pod on it.
    #[error("the kernel still has its link or a pod route on it")]
    Kernel,
    /// The store still has an allocation on it.
    #[error("the store still has an allocation on it")]
    Store,
}

/// Evidence that nobody uses `subject`. Only this module can make one.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Proof<T> {
    subject: T,
}

impl<T> Proof<T> {
    /// What the proof is about.
    pub fn subject(&self) -> &T {
        &self.subject
    }
}

impl Proof<EniId> {
    /// The key to deleting an ENI: EC2 lists it as attached nowhere, the kernel has no trace, the store no allocation.
    pub fn unused_eni(eni: &EniId, ec2: Ec2Says, local: LocalEvidence) -> Result<Self, Unproven> {
        if ec2 != Ec2Says::Unattached {
            return Err(Unproven::Ec2);
        }
        if local.link || local.pod_routes > 0 {
            return Err(Unproven::Kernel);
        }
        if local.allocations > 0 {
            return Err(Unproven::Store);
        }
        Ok(Self { subject: eni.clone() })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_eni_is_proven_unused_only_when_all_three_agree() {
        let eni = EniId::from("eni-1");
        let clean = LocalEvidence {
            link: false,
            pod_routes: 0,
            allocations: 0,
        };
        assert!(Proof::unused_eni(&eni, Ec2Says::Unattached, clean).is_ok());
        for ec2 in [Ec2Says::Attached, Ec2Says::Missing, Ec2Says::Unasked] {
            assert_eq!(Proof::unused_eni(&eni, ec2, clean), Err(Unproven::Ec2));
        }
        for (local, why) in [
            (LocalEvidence { link: true, ..clean }, Unproven::Kernel),
            (
                LocalEvidence {
                    pod_routes: 1,
                    ..clean
                },
                Unproven::Kernel,
            ),
            (
                LocalEvidence {
                    allocations: 1,
                    ..clean
                },
                Unproven::Store,
            ),
        ] {
            assert_eq!(Proof::unused_eni(&eni, Ec2Says::Unattached, local), Err(why));
        }
    }
}
