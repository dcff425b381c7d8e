//! What the plugins and the daemon say to each other.

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr};

use serde::{Deserialize, Serialize};

pub use crate::net::layout::RuleLayout;

use crate::ipam::ids::{
    CardIndex, ContainerId, DeviceIndex, EniId, IfName, NetworkName, PodRef, SandboxKey, TableId,
};
use crate::ipam::ports::HostPort;

/// The interface this build speaks; a change that old peers can't read gets the next number.
pub const INTERFACE: &str = "local.awscni.Ipamd1";

/// Every interface the daemon answers.
pub const SUPPORTED_INTERFACES: &[&str] = &[INTERFACE];

/// Asks for an address for a sandbox. Two replies: [`Reply::Assigned`], then [`Reply::Durable`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Add {
    /// The conflist's name.
    pub network: NetworkName,
    /// The runtime's sandbox id.
    pub container_id: ContainerId,
    /// The interface inside the sandbox.
    pub ifname: IfName,
    /// Path of the sandbox's network namespace.
    pub netns: String,
    /// The pod, empty outside Kubernetes.
    #[serde(default)]
    pub pod: PodRef,
    /// Name of the host end that will be made.
    pub host_veth: String,
    /// How long the plugin waits, counted from when the daemon reads the request.
    pub deadline_ms: u64,
    /// The network card whose address is wanted; any one's, the first one's first, when it is not said.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub card: Option<CardIndex>,
    /// The sandbox's main interface, when this is another one: [`Del`] and [`Gc`] of that one hold for this one, too, and
    /// when this one is refused, that one is taken back. The main one is asked for first.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub main: Option<IfName>,
    /// Ports of the node that are to lead to it. The plugin opens them while it wires; the daemon refuses those that lead
    /// elsewhere.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub host_ports: Vec<HostPort>,
}

/// Releases what a sandbox's interface holds. An unknown sandbox is a success. Two replies: [`Reply::Released`], then
/// [`Reply::Settled`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Del {
    /// The conflist's name.
    pub network: NetworkName,
    /// The runtime's sandbox id.
    pub container_id: ContainerId,
    /// The interface inside the sandbox.
    pub ifname: IfName,
    /// The pod, empty outside Kubernetes.
    #[serde(default)]
    pub pod: PodRef,
    /// Why it is released, for the log.
    #[serde(default)]
    pub reason: DelReason,
}

/// Why an address is given back.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum DelReason {
    /// The runtime removes the sandbox.
    #[default]
    PodDeleted,
    /// The plugin could not wire the sandbox.
    SetupNSFailed,
}

/// Asks what a sandbox's interface holds.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Check {
    /// The conflist's name.
    pub network: NetworkName,
    /// The runtime's sandbox id.
    pub container_id: ContainerId,
    /// The interface inside the sandbox.
    pub ifname: IfName,
}

/// Tells which interfaces the runtime still has; the daemon releases the others.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Gc {
    /// The conflist's name.
    pub network: NetworkName,
    /// What the runtime still has.
    pub valid: Vec<Attachment>,
}

/// Says whether the node takes new pods. Answered with [`Reply::Settled`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Cordon {
    /// Whether it takes none.
    pub cordoned: bool,
}

/// One interface of one sandbox.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Attachment {
    /// The runtime's sandbox id.
    pub container_id: ContainerId,
    /// The interface inside the sandbox.
    pub ifname: IfName,
}

macro_rules! keyed {
    ($($request:ident),*) => {$(
        impl $request {
            /// Whose allocation this is about.
            pub fn key(&self) -> SandboxKey {
                SandboxKey {
                    network: self.network.clone(),
                    container: self.container_id.clone(),
                    ifname: self.ifname.clone(),
                }
            }
        }
    )*};
}
keyed!(Add, Del, Check);

/// What the daemon can be asked.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Request {
    /// An address, please.
    Add(Add),
    /// The address back.
    Del(Del),
    /// What does the sandbox hold?
    Check(Check),
    /// These sandboxes still live.
    Gc(Gc),
    /// The node takes no new pods, or does again.
    Cordon(Cordon),
    /// Can you serve?
    Status,
    /// Everything you know.
    Dump,
}

impl Request {
    /// The method's name without its interface.
    pub fn method(&self) -> &'static str {
        match self {
            Self::Add(_) => "Add",
            Self::Del(_) => "Del",
            Self::Check(_) => "Check",
            Self::Gc(_) => "Gc",
            Self::Cordon(_) => "Cordon",
            Self::Status => "Status",
            Self::Dump => "Dump",
        }
    }
}

/// An address and where its packets leave.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Allocation {
    /// The pod's address.
    pub address: IpAddr,
    /// The route table of the address's ENI.
    pub eni_table: TableId,
    /// The ENI's device index; upstream's prevResult carries it.
    pub device: DeviceIndex,
    /// The ENI's network card.
    #[serde(default, skip_serializing_if = "CardIndex::is_first")]
    pub card: CardIndex,
    /// The ENI that owns the address.
    pub eni: EniId,
    /// The ENI's own primary address.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub eni_primary: Option<Ipv4Addr>,
    /// How the host's routes and rules are laid out.
    #[serde(default)]
    pub layout: RuleLayout,
    /// The host end's name, as the ADD announced it.
    #[serde(default)]
    pub host_veth: String,
}

/// The first answer to [`Add`]: the address may be wired but is not on the disk yet.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Assigned {
    /// What the sandbox got.
    #[serde(flatten)]
    pub allocation: Allocation,
    /// Whether an earlier ADD of the same sandbox already had it.
    #[serde(default)]
    pub repeated: bool,
}

/// An address that was given back, with what the plugin needs to clean the kernel.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ReleasedAddress {
    /// The address.
    pub address: IpAddr,
    /// The route table of its ENI.
    pub eni_table: TableId,
    /// The ENI's device index.
    pub device: DeviceIndex,
    /// The host end's name; empty when a newer sandbox of the same pod uses that name.
    #[serde(default)]
    pub host_veth: String,
    /// How the host's routes and rules were laid out when it was assigned.
    #[serde(default)]
    pub layout: RuleLayout,
    /// Ports of the node that led to it, for the plugin to close.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub host_ports: Vec<HostPort>,
}

/// The first answer to [`Del`].
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Released {
    /// What was given back; empty when nothing was known.
    #[serde(default)]
    pub addresses: Vec<ReleasedAddress>,
    /// Whether the sandbox was known.
    #[serde(default)]
    pub known: bool,
}

/// The answer to [`Gc`].
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Collected {
    /// What was released because the runtime no longer has it.
    #[serde(default)]
    pub released: Vec<Attachment>,
}

/// The answer to [`Request::Status`].
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Status {
    /// Whether an ADD can be served now or after growth that is possible.
    pub serving: bool,
    /// Whether pods that already run are affected too (CNI code 51 instead of 50).
    pub existing_affected: bool,
    /// Why not, or what is degraded; one sentence each.
    pub reasons: Vec<String>,
    /// Addresses that can be assigned now.
    pub free: u64,
    /// Addresses that sandboxes hold.
    pub assigned: u64,
    /// Released addresses that may not be reused yet.
    pub cooling: u64,
    /// Addresses set aside because the witnesses disagree.
    pub quarantined: u64,
    /// Addresses on their way: asked of EC2, or on ENIs that are not wired yet.
    pub coming: u64,
    /// ADDs that wait for growth.
    pub waiting: u64,
    /// Attached ENIs.
    pub enis: u64,
    /// Somebody has said that the node takes no new pods.
    pub cordoned: bool,
    /// Contradictions between EC2, IMDS, the kernel and the store, by kind, counted since the daemon's start.
    pub drift: BTreeMap<String, u64>,
    /// Each network card's numbers, where more than one is managed.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub cards: BTreeMap<CardIndex, CardStatus>,
    /// What of ours somebody else has taken out of the kernel or changed.
    pub guarded: Guarded,
    /// The daemon's version.
    pub version: String,
}

/// What was put right in the kernel since the daemon's start.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Guarded {
    /// How many things.
    pub repairs: u64,
    /// The last of them, and who had changed it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub last: Option<String>,
    /// What is left as it is for a while, because somebody keeps changing it.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub disputed: Vec<String>,
}

/// What a network card has; all cards' together is in [`Status`].
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct CardStatus {
    /// Attached ENIs.
    pub enis: u64,
    /// Addresses that can be assigned now.
    pub free: u64,
    /// Addresses that sandboxes hold.
    pub assigned: u64,
    /// Released addresses that may not be reused yet.
    pub cooling: u64,
    /// Addresses set aside because the witnesses disagree.
    pub quarantined: u64,
    /// Addresses on their way.
    pub coming: u64,
}

/// What the daemon answers.
#[derive(Debug, Clone, PartialEq)]
pub enum Reply {
    /// First answer to [`Add`].
    Assigned(Assigned),
    /// Second answer to [`Add`]: the allocation is on the disk.
    Durable,
    /// First answer to [`Del`]: to be taken out of the kernel meanwhile.
    Released(Released),
    /// Second answer to [`Del`], and the answer to [`Cordon`]: it is on the disk.
    Settled,
    /// Answer to [`Check`].
    Checked(Allocation),
    /// Answer to [`Gc`].
    Collected(Collected),
    /// Answer to [`Request::Status`].
    Status(Status),
    /// Answer to [`Request::Dump`].
    Dump(serde_json::Value),
}

impl Reply {
    /// Whether another reply follows.
    pub fn continues(&self) -> bool {
        matches!(self, Self::Assigned(_) | Self::Released(_))
    }
}

/// What kind of failure it is; decides the CNI code and whether a retry makes sense.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub enum ErrorKind {
    /// It may work in a moment.
    TryAgain,
    /// Every address the instance type allows is in use.
    Exhausted,
    /// No subnet has free addresses.
    SubnetFull,
    /// AWS or the peer check refused.
    Denied,
    /// AWS asks for fewer calls.
    Throttled,
    /// The daemon is not ready yet.
    Starting,
    /// The store's disk is full.
    DiskFull,
    /// The sandbox is unknown.
    NotFound,
    /// The request could not be understood.
    BadRequest,
    /// The answer did not come in time.
    Deadline,
    /// A port of the node leads to another pod.
    PortTaken,
    /// A defect or an unexpected answer.
    Internal,
}

impl ErrorKind {
    /// Every kind, for the decoder and for tests.
    pub const ALL: [Self; 12] = [
        Self::TryAgain,
        Self::Exhausted,
        Self::SubnetFull,
        Self::Denied,
        Self::Throttled,
        Self::Starting,
        Self::DiskFull,
        Self::NotFound,
        Self::BadRequest,
        Self::Deadline,
        Self::PortTaken,
        Self::Internal,
    ];

    /// The error's name on the wire, without the interface.
    pub fn name(self) -> &'static str {
        match self {
            Self::TryAgain => "TryAgain",
            Self::Exhausted => "Exhausted",
            Self::SubnetFull => "SubnetFull",
            Self::Denied => "Denied",
            Self::Throttled => "Throttled",
            Self::Starting => "Starting",
            Self::DiskFull => "DiskFull",
            Self::NotFound => "NotFound",
            Self::BadRequest => "BadRequest",
            Self::Deadline => "Deadline",
            Self::PortTaken => "PortTaken",
            Self::Internal => "Internal",
        }
    }

    /// Whether the same request can succeed later without anybody changing anything.
    pub fn can_pass(self) -> bool {
        matches!(
            self,
            Self::TryAgain | Self::Throttled | Self::Starting | Self::DiskFull | Self::Deadline
        )
    }
}

/// An AWS call that failed.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct AwsFailure {
    /// The API action, such as `CreateNetworkInterface`.
    pub action: String,
    /// AWS's error code.
    pub code: String,
    /// AWS's request id, which their support asks for.
    #[serde(default)]
    pub request_id: String,
}

/// Why a request failed and what to do about it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, thiserror::Error)]
#[error("{message}")]
pub struct ServiceError {
    /// What kind of failure; travels as the error's name.
    #[serde(skip, default = "internal")]
    pub kind: ErrorKind,
    /// What failed, on which object, and why.
    #[serde(default)]
    pub message: String,
    /// What a human can do.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub next_step: String,
    /// The AWS call behind it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub aws: Option<AwsFailure>,
    /// The limit that was reached, such as `t3.medium: 3 ENIs of 6 addresses`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub limit: Option<String>,
    /// When a retry makes sense.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub retry_after_ms: Option<u64>,
    /// The interfaces the daemon speaks, when the request's was not among them.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub supported: Vec<String>,
}

fn internal() -> ErrorKind {
    ErrorKind::Internal
}

impl ServiceError {
    /// A failure of this kind with its explanation.
    pub fn new(kind: ErrorKind, message: impl Into<String>) -> Self {
        Self {
            kind,
            message: message.into(),
            next_step: String::new(),
            aws: None,
            limit: None,
            retry_after_ms: None,
            supported: Vec::new(),
        }
    }

    /// The same failure with advice.
    #[must_use]
    pub fn with_next_step(mut self, next_step: impl Into<String>) -> Self {
        self.next_step = next_step.into();
        self
    }

    /// The same failure with the AWS call behind it.
    #[must_use]
    pub fn with_aws(mut self, aws: AwsFailure) -> Self {
        self.aws = Some(aws);
        self
    }
}
