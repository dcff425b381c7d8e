//! The things the pool is made of.

use std::collections::BTreeMap;
use std::net::Ipv4Addr;

use serde::{Deserialize, Serialize};

use super::cidr::Ipv4Cidr;
use super::cloud::CloudCall;
use super::ids::{
    AttachmentId, CardIndex, ClientToken, DeviceIndex, EniId, Mac, PodRef, SandboxKey, SecurityGroupId,
    SubnetId, TableId, Tick, WaiterId,
};
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
    /// It could not be attached and is to be deleted, once it is proven unused.
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
    /// How far it is.
    pub state: EniState,
    /// Its device index, once chosen.
    pub device: Option<DeviceIndex>,
    /// Its network card.
    pub card: CardIndex,
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
    /// /28 prefixes delegated to it: they take places among its addresses.
    pub prefixes: Vec<Ipv4Cidr>,
    /// How many addresses are being asked for: the intent behind an `AssignPrivateIpAddresses` without answer.
    pub assigning: Option<u32>,
    /// Its secondary addresses.
    pub addresses: BTreeMap<Ipv4Addr, Placed>,
}

impl Eni {
    /// Its route table; the main table while it has no device index.
    pub fn table(&self) -> TableId {
        self.device
            .map_or(TableId::MAIN, |device| TableId::of_eni(self.card, device))
    }

    /// How many of its places are taken, its own address not counted.
    pub fn slots_taken(&self) -> u32 {
        u32::try_from(self.addresses.len().saturating_add(self.prefixes.len())).unwrap_or(u32::MAX)
    }

    /// Whether it takes a place on card 0 of the instance, now or soon.
    pub fn takes_place(&self) -> bool {
        self.card == CardIndex(0) && !matches!(self.state, EniState::Discarding { .. } | EniState::Lost)
    }
}

/// What is known of an address as part of its ENI.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Placed {
    /// EC2 itself named it, not only IMDS.
    pub verified: bool,
    /// The kernel's map holds it (on this boot), or need not: then a pod's packets find their way back.
    pub published: bool,
}

/// Where an address stands.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum AddressState {
    /// Nobody has it.
    Free,
    /// A sandbox has it.
    Assigned(SandboxKey),
    /// It rests until this time has passed; then it is free without further ado.
    Cooling {
        /// The last instant of rest.
        until: Tick,
    },
    /// Something does not fit: nobody gets it, nobody frees it.
    Quarantined {
        /// What.
        why: Doubt,
    },
}

/// A secondary address of one of our ENIs.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Address {
    /// Its ENI.
    pub eni: EniId,
    /// Where it stands.
    pub state: AddressState,
    /// When a sandbox last gave it back; never used before when `None`.
    pub last_used: Option<Tick>,
    /// A doubt about an address while a sandbox holds it: it is quarantined when the sandbox is gone.
    pub doubt: Option<Doubt>,
}

impl Address {
    /// Whether nobody holds it, it has rested and nothing speaks against it.
    pub fn is_free(&self, now: Tick) -> bool {
        match self.state {
            AddressState::Free => true,
            AddressState::Cooling { until } => until < now,
            AddressState::Assigned(_) | AddressState::Quarantined { .. } => false,
        }
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
    pub address: Ipv4Addr,
    /// The ENI that carries it.
    pub eni: EniId,
    /// The host side of the veth pair.
    pub host_veth: String,
    /// The network namespace as the ADD named it.
    pub netns: String,
    /// Since when.
    pub since: Tick,
    /// The only client that has been told, as long as it is the only one.
    #[serde(skip)]
    pub told: Option<WaiterId>,
}

/// An ENI that EC2 has been or is about to be asked for: everything of the call, so that it can be repeated exactly.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Creation {
    /// The idempotency token.
    pub token: ClientToken,
    /// Where.
    pub subnet: SubnetId,
    /// Security groups.
    pub groups: Vec<SecurityGroupId>,
    /// Secondary addresses.
    pub addresses: u32,
    /// Description.
    pub description: String,
    /// Tags.
    pub tags: BTreeMap<String, String>,
}

impl Creation {
    /// The call; the same each time.
    pub fn call(&self) -> CloudCall {
        CloudCall::CreateEni {
            token: self.token.clone(),
            subnet: self.subnet.clone(),
            groups: self.groups.clone(),
            secondary_addresses: self.addresses,
            description: self.description.clone(),
            tags: self.tags.clone(),
        }
    }
}
