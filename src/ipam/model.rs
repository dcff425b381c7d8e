//! The things the pool is made of.

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr};

use serde::{Deserialize, Serialize};

use super::cidr::Ipv4Cidr;
use super::cloud::{Amount, CloudCall, ConnectionTracking};
use super::egress::EgressSlot;
use super::ids::{
    AttachmentId, CardIndex, ClientToken, DeviceIndex, EniId, IfName, Mac, Mark, PodRef, SandboxKey,
    SecurityGroupId, SubnetId, TableId, Tick, WaiterId,
};
use super::ports::HostPort;
use super::six::Block;
use super::witness::Doubt;

/// How an ENI is used.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum EniRole {
    /// The one the instance was launched with: always attached, never configured by us as a whole.
    Primary,
    /// One whose addresses pods get.
    Secondary,
    /// Somebody else's: it takes a place on the instance and nothing more.
    Unmanaged,
}

/// What EC2 calls `InterfaceType`.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum EniKind {
    /// `interface`: the usual one.
    #[default]
    Interface,
    /// `efa`: pods may have its addresses, and somebody has attached it for more than those.
    Efa,
    /// `efa-only`: it carries no addresses.
    EfaOnly,
    /// `trunk`: it carries branch ENIs of others.
    Trunk,
    /// Load balancers and whatever else EC2 comes to make.
    Other,
}

/// How far an ENI is on its way. Stored, so that a kill at any instant resumes.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", tag = "is")]
pub enum EniState {
    /// It exists; attaching is next.
    Created,
    /// Attaching has been asked for, or is about to be.
    Attaching,
    /// EC2 says it is attached; its link is awaited and configured.
    Attached,
    /// Its link, table and rules stand on this boot.
    Ready,
    /// It is to be given back: nobody gets its addresses, and the witnesses are being asked.
    Draining,
    /// Detaching has been asked for, or is about to be.
    Detaching,
    /// It could not be attached, or is detached again, and is to be deleted, once it is proven unused.
    Discarding {
        /// Why.
        why: String,
    },
    /// EC2 and the kernel say it is gone; kept for what was allocated on it.
    Lost,
}

/// An ENI of this instance, or on its way to it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Eni {
    /// Its id.
    pub id: EniId,
    /// Its hardware address.
    pub mac: Mac,
    /// How it is used.
    pub role: EniRole,
    /// What it is to EC2.
    #[serde(default, skip_serializing_if = "EniKind::is_usual")]
    pub kind: EniKind,
    /// Pods get none of its addresses any more, whoever has one keeps it, and what is free on it is surplus: its subnet is
    /// not for us, or with custom networking it is no ENIConfig's. Stored, so that a restart needs
    /// nobody to tell.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub excluded: bool,
    /// How far it is.
    pub state: EniState,
    /// Its device index, once chosen.
    pub device: Option<DeviceIndex>,
    /// Its network card.
    pub card: CardIndex,
    /// Its mark, where its place does not give it: on further cards ([`Self::mark`]).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub given_mark: Option<Mark>,
    /// Its attachment, once known.
    pub attachment: Option<AttachmentId>,
    /// Whether EC2 is known to delete it with the instance.
    pub delete_on_termination: bool,
    /// Its subnet.
    pub subnet: SubnetId,
    /// That subnet's network, once known.
    pub subnet_cidr: Option<Ipv4Cidr>,
    /// Its own address, which pods never get.
    pub primary: Ipv4Addr,
    /// What is being asked for: the intent behind an `AssignPrivateIpAddresses` without answer.
    pub assigning: Option<Amount>,
    /// What it carries for pods: secondary addresses (/32) and prefixes (/28). Each takes one of its places.
    pub cidrs: BTreeMap<Ipv4Cidr, Placed>,
    /// The /80 of it that pods get addresses of where the node's family is IPv6.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub block: Option<Block>,
}

impl EniKind {
    /// Whether nothing need be said of it.
    #[expect(clippy::trivially_copy_pass_by_ref, reason = "serde calls it so")]
    pub(super) fn is_usual(&self) -> bool {
        *self == Self::Interface
    }
}

impl Eni {
    /// Its route table; the main table while it has no device index.
    pub fn table(&self) -> TableId {
        self.device
            .map_or(TableId::MAIN, |device| TableId::of_eni(self.card, device))
    }

    /// How many of its places are taken, its own address not counted.
    pub fn slots_taken(&self) -> u32 {
        u32::try_from(self.cidrs.len()).unwrap_or(u32::MAX)
    }

    /// By which of its CIDRs it carries an address, and how that stands.
    pub fn carries(&self, address: Ipv4Addr) -> Option<(Ipv4Cidr, Placed)> {
        let by = |cidr: Ipv4Cidr| Some((cidr, *self.cidrs.get(&cidr)?));
        by(Ipv4Cidr::host(address)).or_else(|| by(Ipv4Cidr::prefix_around(address)))
    }

    /// How any address that it carries for pods stands, of either family.
    pub fn places(&self, address: IpAddr) -> Option<Placed> {
        match address {
            IpAddr::V4(address) => self.carries(address).map(|(_, placed)| placed),
            IpAddr::V6(address) => {
                let block = self.block.as_ref()?;
                block.prefix.contains(address).then(|| block.placed())
            }
        }
    }

    /// Every IPv4 address it carries for pods.
    pub fn addresses(&self) -> impl Iterator<Item = (Ipv4Addr, Placed)> {
        let of = |(cidr, placed): (&Ipv4Cidr, &Placed)| {
            let placed = *placed;
            cidr.addresses().map(move |address| (address, placed))
        };
        self.cidrs.iter().flat_map(of)
    }

    /// Whether it takes a place on its card, now or soon.
    pub fn takes_place(&self) -> bool {
        !matches!(self.state, EniState::Discarding { .. } | EniState::Lost)
    }
}

/// What is known of a secondary address or prefix as part of its ENI. Stored as letters, `v`, `p`, `r` or none: the
/// largest ENI has 49 of them in one record, and a record is at most 3 KiB.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(into = "&'static str", try_from = "String")]
pub struct Placed {
    /// EC2 itself named it, not only IMDS.
    pub verified: bool,
    /// The kernel's map holds it (on this boot), or need not: then a pod's packets find their way back.
    pub published: bool,
    /// It is to be given back: the intent behind an `UnassignPrivateIpAddresses`, asked for or about to be.
    pub releasing: bool,
}

impl From<Placed> for &'static str {
    fn from(placed: Placed) -> Self {
        match (placed.verified, placed.published, placed.releasing) {
            (true, true, false) => "vp",
            (true, false, false) => "v",
            (false, true, false) => "p",
            (false, false, false) => "",
            (true, true, true) => "vpr",
            (true, false, true) => "vr",
            (false, true, true) => "pr",
            (false, false, true) => "r",
        }
    }
}

impl TryFrom<String> for Placed {
    type Error = String;

    fn try_from(text: String) -> Result<Self, String> {
        let (releasing, rest) = match text.strip_suffix('r') {
            Some(rest) => (true, rest),
            None => (false, text.as_str()),
        };
        let (verified, published) = match rest {
            "vp" => (true, true),
            "v" => (true, false),
            "p" => (false, true),
            "" => (false, false),
            _ => return Err(format!("{text:?} says nothing of an address")),
        };
        Ok(Self {
            verified,
            published,
            releasing,
        })
    }
}

/// Where an address stands at a given time.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum AddressState<'a> {
    /// Nobody has it.
    Free,
    /// A sandbox has it.
    Assigned(&'a SandboxKey),
    /// It rests.
    Cooling {
        /// The last instant of rest.
        until: Tick,
    },
    /// Something does not fit: nobody gets it, nobody frees it.
    Quarantined(&'a Doubt),
}

/// A secondary address of one of our ENIs, now or before.
///
/// Its state is derived, so that no two fields can contradict each other and time alone ends a rest.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Address {
    /// Its ENI.
    pub eni: EniId,
    /// The sandbox that has it.
    pub holder: Option<SandboxKey>,
    /// When a sandbox last gave it back; never used before when `None`.
    pub last_used: Option<Tick>,
    /// The last instant of its rest.
    pub rests_until: Option<Tick>,
    /// What does not fit. While a sandbox holds it, the sandbox keeps it.
    pub doubt: Option<Doubt>,
}

impl Address {
    /// An address nobody ever had.
    pub fn unused(eni: EniId) -> Self {
        Self {
            eni,
            holder: None,
            last_used: None,
            rests_until: None,
            doubt: None,
        }
    }

    /// Where it stands.
    pub fn state(&self, now: Tick) -> AddressState<'_> {
        match (&self.holder, &self.doubt, self.rests_until) {
            (Some(key), ..) => AddressState::Assigned(key),
            (None, Some(why), _) => AddressState::Quarantined(why),
            (None, None, Some(until)) if until >= now => AddressState::Cooling { until },
            (None, None, _) => AddressState::Free,
        }
    }

    /// Whether nobody holds it, it has rested and nothing speaks against it.
    pub fn is_free(&self, now: Tick) -> bool {
        self.state(now) == AddressState::Free
    }

    /// Whether there is anything to remember beyond its being on its ENI.
    pub fn has_past(&self) -> bool {
        self.last_used.is_some() || self.rests_until.is_some() || self.doubt.is_some()
    }
}

/// Who has an address.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Allocation {
    /// The sandbox interface.
    pub key: SandboxKey,
    /// Its pod.
    pub pod: PodRef,
    /// The address.
    pub address: IpAddr,
    /// The ENI that carries it.
    pub eni: EniId,
    /// That ENI's device index, so that DEL knows the table even when the ENI's own record is lost.
    pub device: DeviceIndex,
    /// That ENI's network card.
    pub card: CardIndex,
    /// The host side of the veth pair.
    pub host_veth: String,
    /// The network namespace as the ADD named it.
    pub netns: String,
    /// The sandbox's main interface, when this is another one: it goes with that one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub main: Option<IfName>,
    /// Its address for the other family.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub egress: Option<EgressSlot>,
    /// Ports of the node that lead to it.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub ports: Vec<HostPort>,
    /// Since when.
    pub since: Tick,
    /// The only client that has been told, as long as it is the only one.
    #[serde(skip)]
    pub told: Option<WaiterId>,
}

/// An ENI that EC2 has been or is about to be asked for: what of the call is this creation's alone, so that it can be
/// repeated. The tags that every ENI gets are the configuration's ([`super::growth::common_tags`]): EC2 takes 50 of up to
/// 384 characters, which no record of the store holds.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Creation {
    /// The idempotency token.
    pub token: ClientToken,
    /// Where.
    pub subnet: SubnetId,
    /// The network card it is for.
    #[serde(default, skip_serializing_if = "CardIndex::is_first")]
    pub card: CardIndex,
    /// Security groups.
    pub groups: Vec<SecurityGroupId>,
    /// What to create it with.
    pub amount: Amount,
    /// The primary ENI's connection-tracking time-outs.
    #[serde(default)]
    pub tracking: ConnectionTracking,
    /// Description.
    pub description: String,
    /// The tags by which the ENI is found; they hide equal ones of the configuration.
    pub tags: BTreeMap<String, String>,
}

impl Allocation {
    /// Its ENI's route table.
    pub fn table(&self) -> TableId {
        TableId::of_eni(self.card, self.device)
    }
}

impl Creation {
    /// The call; the same each time, as long as the common tags are.
    pub fn call(&self, common_tags: &BTreeMap<String, String>) -> CloudCall {
        let mut tags = common_tags.clone();
        tags.extend(self.tags.clone());
        CloudCall::CreateEni {
            token: self.token.clone(),
            subnet: self.subnet.clone(),
            groups: self.groups.clone(),
            amount: self.amount,
            tracking: self.tracking,
            description: self.description.clone(),
            tags,
        }
    }
}
