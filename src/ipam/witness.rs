//! Evidence: who says what about an address or an ENI, and the key to freeing it.
//!
//! Design invariant 2: something is given back to AWS only when EC2 itself (a Describe, not IMDS), the kernel and the
//! store all agree that it is unused. IMDS may add knowledge; it never takes away.

use std::collections::BTreeSet;
use std::net::{IpAddr, Ipv4Addr};

use serde::{Deserialize, Serialize};

use super::cidr::Ipv4Cidr;
use super::cidr6::Ipv6Cidr;
use super::ids::{AttachmentId, CardIndex, DeviceIndex, EniId, Mac, SubnetId};

mod left;

pub use left::{LeftEvidence, Look, OwnerSays, Reaper, Spared};

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
    pub address: IpAddr,
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
    pub bare_rules: Vec<IpAddr>,
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
    /// `ipv6-prefix`.
    pub prefixes6: Vec<Ipv6Cidr>,
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
    /// The same, and a public address is associated with one of its own: somebody may mean to attach it.
    Public,
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

impl LocalEvidence {
    fn is_clean(self) -> Result<(), Unproven> {
        if self.link || self.pod_routes > 0 {
            return Err(Unproven::Kernel);
        }
        if self.allocations > 0 {
            return Err(Unproven::Store);
        }
        Ok(())
    }
}

/// What EC2's Describe of attached ENIs said of one, in a call made after it, or something on it, was to be given back.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Ec2Listing {
    /// By which it is attached to this instance.
    pub attachment: AttachmentId,
    /// What it carries for pods.
    pub cidrs: BTreeSet<Ipv4Cidr>,
    /// Those of its addresses that have a public one associated.
    pub public: BTreeSet<Ipv4Addr>,
    /// Whether it is a plain interface with this instance's tag, by which it is found again once it is detached.
    pub can_go: bool,
}

/// What the kernel and the store say of an address.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[allow(
    clippy::struct_excessive_bools,
    reason = "five questions to two witnesses, each answered by yes or no"
)]
pub struct LocalWord {
    /// The kernel has been read since it was last released and since it was to be given back.
    pub asked: bool,
    /// The kernel has a pod route to it or a rule that names it.
    pub routed: bool,
    /// The store has an allocation of it.
    pub held: bool,
    /// Its last user's rest is not over.
    pub resting: bool,
    /// It is quarantined.
    pub doubted: bool,
}

/// Why a proof could not be made.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, thiserror::Error)]
#[serde(rename_all = "kebab-case")]
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
    /// It is not to be touched, whoever had it.
    #[error("{0}")]
    Spared(Spared),
    /// Its owner may live.
    #[error("its owner may live")]
    Owner,
    /// EC2 has not been asked twice, far enough apart.
    #[error("EC2 has not confirmed it late enough")]
    SecondLook,
    /// This node has no lease on it.
    #[error("this node has no lease on it")]
    Lease,
    /// EC2 or the kernel has not answered since.
    #[error("EC2 or the kernel has not been asked since")]
    Unasked,
    /// EC2 does not list it where it is to be taken from.
    #[error("EC2 does not list it on its ENI")]
    Unlisted,
    /// Somebody may be reached by a public address.
    #[error("a public address is associated with it")]
    Public,
    /// Once detached, it could not be found again.
    #[error("it does not carry this instance's tag, or is no plain interface")]
    NotOurs,
    /// Connections of its last user may still be open elsewhere.
    #[error("it has not rested")]
    Resting,
    /// Something about it does not fit.
    #[error("it is quarantined")]
    Doubted,
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
        if ec2 == Ec2Says::Public {
            return Err(Unproven::Public);
        }
        if ec2 != Ec2Says::Unattached {
            return Err(Unproven::Ec2);
        }
        local.is_clean()?;
        Ok(Self { subject: eni.clone() })
    }
}

/// Whether the kernel and the store agree that nobody uses an address.
fn unused(address: Ipv4Addr, ec2: &Ec2Listing, local: LocalWord) -> Result<(), Unproven> {
    match local {
        _ if ec2.public.contains(&address) => Err(Unproven::Public),
        LocalWord { held: true, .. } => Err(Unproven::Store),
        LocalWord { routed: true, .. } => Err(Unproven::Kernel),
        LocalWord { doubted: true, .. } => Err(Unproven::Doubted),
        LocalWord { resting: true, .. } => Err(Unproven::Resting),
        LocalWord { asked: false, .. } => Err(Unproven::Unasked),
        _ => Ok(()),
    }
}

impl Proof<Ipv4Addr> {
    /// The key to giving one address back: EC2 lists it on the ENI and associates nothing with it, the kernel knows no way
    /// to it, and by the store nobody has it and it has rested.
    pub fn unused_address(
        address: Ipv4Addr,
        ec2: Option<&Ec2Listing>,
        local: LocalWord,
    ) -> Result<Self, Unproven> {
        let ec2 = ec2.ok_or(Unproven::Unasked)?;
        if !ec2.cidrs.contains(&Ipv4Cidr::host(address)) {
            return Err(Unproven::Unlisted);
        }
        unused(address, ec2, local)?;
        Ok(Self { subject: address })
    }
}

impl Proof<Ipv4Cidr> {
    /// The key to giving a prefix back: the same of each of its addresses.
    pub fn unused_prefix(
        prefix: Ipv4Cidr,
        ec2: Option<&Ec2Listing>,
        local: impl Fn(Ipv4Addr) -> LocalWord,
    ) -> Result<Self, Unproven> {
        let ec2 = ec2.ok_or(Unproven::Unasked)?;
        if prefix.is_host() || !ec2.cidrs.contains(&prefix) {
            return Err(Unproven::Unlisted);
        }
        for address in prefix.addresses() {
            unused(address, ec2, local(address))?;
        }
        Ok(Self { subject: prefix })
    }
}

impl Proof<AttachmentId> {
    /// The key to detaching an ENI: EC2 lists it here, as one of ours, with nothing that we do not know of and without a
    /// public address; of all it carries, the kernel and the store say that nobody uses it.
    pub fn idle_eni(
        primary: Ipv4Addr,
        carries: &BTreeSet<Ipv4Cidr>,
        ec2: Option<&Ec2Listing>,
        local: impl Fn(Ipv4Addr) -> LocalWord,
    ) -> Result<Self, Unproven> {
        let ec2 = ec2.ok_or(Unproven::Unasked)?;
        if !ec2.can_go {
            return Err(Unproven::NotOurs);
        }
        if !ec2.cidrs.is_subset(carries) {
            return Err(Unproven::Unlisted);
        }
        if ec2.public.contains(&primary) {
            return Err(Unproven::Public);
        }
        for address in carries.iter().flat_map(|cidr| cidr.addresses()) {
            unused(address, ec2, local(address))?;
        }
        Ok(Self {
            subject: ec2.attachment.clone(),
        })
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
        let public = Proof::unused_eni(&eni, Ec2Says::Public, clean);
        assert_eq!(public, Err(Unproven::Public));
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

    const CLEAN: LocalWord = LocalWord {
        asked: true,
        routed: false,
        held: false,
        resting: false,
        doubted: false,
    };

    fn listing() -> Ec2Listing {
        let cidrs = ["10.0.0.9/32", "10.0.1.0/28"].map(|cidr| cidr.parse().unwrap());
        Ec2Listing {
            attachment: "attach-1".into(),
            cidrs: cidrs.into(),
            public: BTreeSet::new(),
            can_go: true,
        }
    }

    /// What the kernel or the store can say against a proof, and what is answered then.
    fn objections() -> [(LocalWord, Unproven); 5] {
        [
            (
                LocalWord {
                    asked: false,
                    ..CLEAN
                },
                Unproven::Unasked,
            ),
            (
                LocalWord {
                    routed: true,
                    ..CLEAN
                },
                Unproven::Kernel,
            ),
            (LocalWord { held: true, ..CLEAN }, Unproven::Store),
            (
                LocalWord {
                    resting: true,
                    ..CLEAN
                },
                Unproven::Resting,
            ),
            (
                LocalWord {
                    doubted: true,
                    ..CLEAN
                },
                Unproven::Doubted,
            ),
        ]
    }

    #[test]
    fn an_address_is_proven_unused_only_when_all_three_agree() {
        let (address, other) = (Ipv4Addr::new(10, 0, 0, 9), Ipv4Addr::new(10, 0, 0, 8));
        let of = |address, ec2: Option<&Ec2Listing>, local| Proof::unused_address(address, ec2, local).err();
        assert_eq!(of(address, Some(&listing()), CLEAN), None);
        assert_eq!(of(address, None, CLEAN), Some(Unproven::Unasked));
        assert_eq!(of(other, Some(&listing()), CLEAN), Some(Unproven::Unlisted));
        let mut public = listing();
        public.public.insert(address);
        assert_eq!(of(address, Some(&public), CLEAN), Some(Unproven::Public));
        for (local, why) in objections() {
            assert_eq!(of(address, Some(&listing()), local), Some(why));
        }
    }

    #[test]
    fn a_prefix_is_proven_unused_only_when_every_address_of_it_is() {
        let prefix: Ipv4Cidr = "10.0.1.0/28".parse().unwrap();
        assert!(Proof::unused_prefix(prefix, Some(&listing()), |_| CLEAN).is_ok());
        assert!(Proof::unused_prefix(prefix, None, |_| CLEAN).is_err());
        for address in prefix.addresses() {
            for (bad, why) in objections() {
                let local = |other| if other == address { bad } else { CLEAN };
                assert_eq!(
                    Proof::unused_prefix(prefix, Some(&listing()), local).err(),
                    Some(why)
                );
            }
            let mut public = listing();
            public.public.insert(address);
            let refused = Proof::unused_prefix(prefix, Some(&public), |_| CLEAN);
            assert_eq!(refused.err(), Some(Unproven::Public));
        }
        let host = Ipv4Cidr::host(Ipv4Addr::new(10, 0, 0, 9));
        assert!(Proof::unused_prefix(host, Some(&listing()), |_| CLEAN).is_err());
    }

    #[test]
    fn an_eni_is_proven_idle_only_when_all_it_carries_is_and_nothing_else_is_on_it() {
        let primary = Ipv4Addr::new(10, 0, 0, 7);
        let all = listing().cidrs;
        let of = |carries: &BTreeSet<Ipv4Cidr>, ec2: Option<&Ec2Listing>, local: LocalWord| {
            Proof::idle_eni(primary, carries, ec2, |_| local).err()
        };
        assert_eq!(of(&all, Some(&listing()), CLEAN), None);
        assert_eq!(of(&all, None, CLEAN), Some(Unproven::Unasked));
        assert_eq!(
            of(&BTreeSet::new(), Some(&listing()), CLEAN),
            Some(Unproven::Unlisted)
        );
        let foreign = Ec2Listing {
            can_go: false,
            ..listing()
        };
        assert_eq!(of(&all, Some(&foreign), CLEAN), Some(Unproven::NotOurs));
        for address in [primary, Ipv4Addr::new(10, 0, 0, 9), Ipv4Addr::new(10, 0, 1, 15)] {
            let public = Ec2Listing {
                public: [address].into(),
                ..listing()
            };
            assert_eq!(of(&all, Some(&public), CLEAN), Some(Unproven::Public));
        }
        for (local, why) in objections() {
            assert_eq!(of(&all, Some(&listing()), local), Some(why));
        }
    }
}
