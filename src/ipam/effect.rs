//! What the pool wants done. The daemon executes it and decides nothing.

use std::collections::BTreeSet;
use std::net::{IpAddr, Ipv4Addr};

use serde::{Deserialize, Serialize};

use super::cidr::Ipv4Cidr;
use super::cloud::{CloudCall, CloudFailure};
use super::ids::{
    CallId, CardIndex, CommitId, DeviceIndex, EniId, Mac, Mark, PodRef, SandboxKey, TableId, Tick, WaiterId,
};
use super::ports::HostPort;

/// One thing to do. Effects of one step are executed in order; everything behind a [`Effect::Commit`] only once that
/// batch is durable, and not at all when it failed.
#[derive(Debug, PartialEq, Eq)]
pub enum Effect {
    /// Make these changes durable, atomically and after all earlier commits, then say
    /// [`super::event::Event::Committed`] or [`super::event::Event::CommitFailed`]. At most one in a step. May be
    /// empty: then it is a barrier, durable once everything before it is. When one fails, all that were handed over
    /// behind it must fail too: a later batch may rest on an earlier one.
    Commit {
        /// Names the batch in the event.
        commit: CommitId,
        /// The changes.
        changes: Vec<Change>,
    },
    /// Answer a request.
    Reply {
        /// Whom.
        waiter: WaiterId,
        /// What.
        reply: Reply,
    },
    /// Ask EC2; ends with [`super::event::Event::CallEnded`].
    Call {
        /// Names the call in the event.
        call: CallId,
        /// What to ask.
        request: CloudCall,
    },
    /// Make a secondary ENI's link, table and rules so; ends with [`super::event::Event::EniConfigured`]. Idempotent.
    ConfigureEni(EniIntent),
    /// Add addresses of a secondary ENI to the kernel's map; ends with [`super::event::Event::Published`]. Idempotent.
    Publish {
        /// The ENI.
        eni: EniId,
        /// Its mark.
        mark: Option<Mark>,
        /// What to add.
        addresses: Vec<Ipv4Addr>,
    },
    /// Take addresses out of the kernel's map. No event.
    Unpublish {
        /// The ENI.
        eni: EniId,
        /// What to take out.
        addresses: Vec<Ipv4Addr>,
    },
    /// Remove the rules about a secondary ENI that is detached: from its own address, and those of its mark. No event.
    UnconfigureEni {
        /// The ENI.
        eni: EniId,
        /// Its own address.
        primary: Ipv4Addr,
        /// Its mark; `None` when another may have it by now.
        mark: Option<Mark>,
    },
    /// Take what these sandboxes had out of the kernel, routes, rules and links: no plugin will. No event. Always behind a
    /// [`Effect::Commit`]: a kill before it must find the kernel's routes.
    Unwire(Vec<ReleasedAddress>),
    /// Remove the rules for pods that name these addresses: nobody holds them, and no route leads to them. No event; the
    /// next reading shows what became of it.
    RemoveRules(BTreeSet<IpAddr>),
    /// Read links and pod routes and say [`super::event::Event::Kernel`].
    ReadKernel,
    /// Sweep IMDS and say [`super::event::Event::Imds`] when it answers.
    ReadImds,
    /// Say [`super::event::Event::Timer`] at this time; replaces the time asked for before.
    WakeAt(Tick),
    /// Tell the operator.
    Alarm(Alarm),
}

/// A change of the store.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Change {
    /// Write a record.
    Put {
        /// Its key.
        key: String,
        /// Its value.
        value: Vec<u8>,
    },
    /// Remove a record; none may be there.
    Remove {
        /// Its key.
        key: String,
    },
}

/// The answer to a request. Every waiter gets exactly one final one: all but `Assigned` and `Released` are final.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub enum Reply {
    /// To ADD: wire this, but do not report it yet.
    Assigned(Grant),
    /// To ADD, after `Assigned`: the allocation is on the disk.
    Durable,
    /// To ADD: no, or, after `Assigned`, take it back.
    Refused(Refusal),
    /// To DEL, at once: what to take out of the kernel while the disk is at work, but not to report yet.
    Released {
        /// What the sandbox held; empty when unknown.
        addresses: Vec<ReleasedAddress>,
        /// Whether the sandbox was known.
        known: bool,
    },
    /// To DEL, after `Released`, and to whoever cordons the node: it is on the disk, or will be as soon as the disk takes
    /// it. Nobody comes back for a DEL that was refused.
    Settled,
    /// To GC: what was released.
    Collected(Vec<ReleasedAddress>),
}

impl Reply {
    /// Whether no other follows.
    pub fn is_final(&self) -> bool {
        !matches!(self, Self::Assigned(_) | Self::Released { .. })
    }
}

/// What an ADD gets.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Grant {
    /// The pod's address.
    pub address: IpAddr,
    /// The ENI that carries it.
    pub eni: EniId,
    /// That ENI's device index.
    pub device: DeviceIndex,
    /// That ENI's network card.
    pub card: CardIndex,
    /// That ENI's route table.
    pub table: TableId,
    /// That ENI's own address.
    pub eni_primary: Ipv4Addr,
    /// The sandbox had it already: a repeated ADD.
    pub repeated: bool,
}

/// What a sandbox held.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct ReleasedAddress {
    /// The sandbox.
    pub key: SandboxKey,
    /// Its pod.
    pub pod: PodRef,
    /// The address.
    pub address: IpAddr,
    /// The device index of its ENI.
    pub device: DeviceIndex,
    /// The route table of its ENI.
    pub table: TableId,
    /// The host side of its veth pair.
    pub host_veth: String,
    /// Its network namespace as the ADD named it.
    pub netns: String,
    /// Ports of the node that led to it.
    pub ports: Vec<HostPort>,
}

/// Why an ADD gets no address, for a human and for a program.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Refusal {
    /// For a program.
    pub kind: RefusalKind,
    /// What, which object, why.
    pub message: String,
    /// What to do about it.
    pub next_step: String,
    /// The EC2 call behind it, if one failed.
    pub aws: Option<CloudFailure>,
    /// The number that was reached, if one was.
    pub limit: Option<u32>,
    /// When asking again may help.
    pub retry_after_ms: Option<u64>,
}

/// The kinds of [`Refusal`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum RefusalKind {
    /// Nothing is wrong for good: ask again.
    TryAgain,
    /// A limit of the instance type, of `MAX_ENI`, of max-pods or of the account is reached.
    Exhausted,
    /// The subnet has no free address.
    SubnetFull,
    /// EC2 refuses for lack of permission.
    Denied,
    /// EC2 asks to slow down.
    Throttled,
    /// The store cannot be written.
    DiskFull,
    /// The deadline passed while capacity was on its way.
    Deadline,
    /// The sandbox was deleted while its ADD waited.
    Cancelled,
    /// A port of the node leads to another pod.
    PortTaken,
}

/// How a secondary ENI's link, table and rules shall be.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct EniIntent {
    /// The ENI.
    pub eni: EniId,
    /// By which the link is found, whatever its name.
    pub mac: Mac,
    /// Its device index.
    pub device: DeviceIndex,
    /// Its network card.
    pub card: CardIndex,
    /// Its mark.
    pub mark: Option<Mark>,
    /// Its own address.
    pub primary: Ipv4Addr,
    /// Its subnet's network; the gateway is its first address.
    pub subnet_cidr: Ipv4Cidr,
    /// Its route table.
    pub table: TableId,
}

/// Something an operator should know.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Alarm {
    /// Which kind, for counting: a short fixed word such as `eni-lost`.
    pub kind: &'static str,
    /// What, which object, why.
    pub message: String,
}
