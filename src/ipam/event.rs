//! What can happen to the pool. The daemon turns everything it hears into one of these.

use std::collections::BTreeSet;
use std::net::Ipv4Addr;

use super::cidr::Ipv4Cidr;
use super::cloud::CloudResult;
use super::ids::{
    CallId, CommitId, ContainerId, EniId, IfName, Mac, NetworkName, PodRef, SandboxKey, SecurityGroupId,
    Tick, WaiterId,
};
use super::node::NodeFacts;
use super::policy::Policy;
use super::ports::HostPort;
use super::wishes::Wish;
use super::witness::{ImdsSnapshot, KernelFacts, LinkFact};

/// A sandbox asks for an address.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AddRequest {
    /// Whom to answer: `Assigned` then `Durable`, or `Refused`.
    pub waiter: WaiterId,
    /// Which sandbox interface.
    pub key: SandboxKey,
    /// Its pod.
    pub pod: PodRef,
    /// The host side of its veth pair, remembered for DEL without the plugin's own memory.
    pub host_veth: String,
    /// The path of its network namespace, for the same reason.
    pub netns: String,
    /// Which network card's address it wants.
    pub wish: Wish,
    /// The sandbox's main interface, when this is another one. The runtime names only that, so this one goes with it; and
    /// when this one cannot be had, that one is taken back.
    pub main: Option<IfName>,
    /// Ports of the node that are to lead to it.
    pub ports: Vec<HostPort>,
    /// Until when the client waits.
    pub deadline: Tick,
}

/// Something happened. `Pool::step` takes every event in every state without panicking.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Event {
    /// A sandbox asks for an address.
    Add(AddRequest),
    /// A sandbox is gone. Answered with `Released` and `Settled`, always.
    Del {
        /// Whom to answer.
        waiter: WaiterId,
        /// Which sandbox interface.
        key: SandboxKey,
    },
    /// The runtime lists what is alive; the rest of that network is released. Answered with `Collected`.
    Gc {
        /// Whom to answer.
        waiter: WaiterId,
        /// Which conflist's sandboxes are meant.
        network: NetworkName,
        /// What is alive.
        valid: BTreeSet<(ContainerId, IfName)>,
    },
    /// An ADD's client hung up, or its last frame could not be delivered. Gets no reply; an address it was the only one
    /// to be told is released again. Not to be sent for a client that got its `Durable` and left.
    GiveUp {
        /// Who.
        waiter: WaiterId,
    },
    /// An [`super::effect::Effect::Call`] ended.
    CallEnded {
        /// Which.
        call: CallId,
        /// How.
        result: CloudResult,
    },
    /// An [`super::effect::Effect::Commit`] is durable. Sent after the effects behind it were executed, so that what a
    /// batch releases is told before it is given to another.
    Committed {
        /// Which.
        commit: CommitId,
    },
    /// A commit failed; the effects behind it were dropped.
    CommitFailed {
        /// Which.
        commit: CommitId,
        /// Why, for the user.
        reason: String,
    },
    /// A link appeared, or changed its name.
    LinkSeen(LinkFact),
    /// No link has this hardware address any more.
    LinkGone {
        /// Whose.
        mac: Mac,
    },
    /// An [`super::effect::Effect::ConfigureEni`] ended.
    EniConfigured {
        /// Which ENI.
        eni: EniId,
        /// Whether its link, table and rules stand; why not.
        result: Result<(), String>,
    },
    /// An [`super::effect::Effect::Publish`] ended.
    Published {
        /// Which ENI.
        eni: EniId,
        /// The addresses it was about.
        addresses: Vec<Ipv4Addr>,
        /// Whether the kernel's map holds them; why not.
        result: Result<(), String>,
    },
    /// Everything the kernel has, read after an [`super::effect::Effect::ReadKernel`] or on the daemon's own account.
    Kernel(KernelFacts),
    /// Everything IMDS lists. A sweep that failed is no event.
    Imds(ImdsSnapshot),
    /// The VPC's networks as IMDS lists them now, in order; kept for the next start.
    VpcCidrs(Vec<Ipv4Cidr>),
    /// The primary ENI's security groups as IMDS lists them now.
    Groups(Vec<SecurityGroupId>),
    /// IMDS's word on the node, after a start that believed what was stored of it.
    Facts(Box<NodeFacts>),
    /// Somebody who may says whether the node takes new pods; kept until he says otherwise. Answered with `Settled`.
    Cordon {
        /// Whom to answer.
        waiter: WaiterId,
        /// Whether it takes none.
        cordoned: bool,
    },
    /// The configuration was read again.
    Reconfigured(Box<Policy>),
    /// The time of an [`super::effect::Effect::WakeAt`] has come. Harmless at any other time.
    Timer,
}
