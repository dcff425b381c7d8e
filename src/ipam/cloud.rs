//! What may be asked of EC2 and what it may answer: plain values, so that deciding stays pure.
//!
//! `crate::cloud` executes a [`CloudCall`] and turns whatever happens into a [`CloudResult`]; it makes no choice
//! of its own.

use std::collections::BTreeMap;
use std::net::Ipv4Addr;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::cidr::Ipv4Cidr;
use super::cidr6::Ipv6Cidr;
use super::ids::{
    AttachmentId, CardIndex, ClientToken, DeviceIndex, EniId, InstanceId, InstanceType, Mac, SecurityGroupId,
    SubnetId, VpcId,
};
use super::witness::Proof;

/// One EC2 request, complete: nothing is left to decide when it is executed.
#[derive(Debug, PartialEq, Eq)]
pub enum CloudCall {
    /// `CreateNetworkInterface` with its addresses and tags in the same call.
    CreateEni {
        /// Idempotency token, stored before the call.
        token: ClientToken,
        /// Where to create it.
        subnet: SubnetId,
        /// Security groups, at least one.
        groups: Vec<SecurityGroupId>,
        /// What to create it with.
        amount: Amount,
        /// `aws-K8S-<instance id>`.
        description: String,
        /// Tags set in the call itself, so that scoped-down IAM policies and the leak cleaner see them at once.
        tags: BTreeMap<String, String>,
        /// The primary ENI's connection-tracking timeouts, which pods on any ENI shall have; only those that are set.
        tracking: ConnectionTracking,
    },
    /// `AttachNetworkInterface`.
    AttachEni {
        /// The interface.
        eni: EniId,
        /// Our instance.
        instance: InstanceId,
        /// Free device index on the card.
        device: DeviceIndex,
        /// Network card.
        card: CardIndex,
    },
    /// `ModifyNetworkInterfaceAttribute(Attachment.DeleteOnTermination=true)`.
    DeleteOnTermination {
        /// The interface.
        eni: EniId,
        /// Its attachment.
        attachment: AttachmentId,
    },
    /// `ModifyNetworkInterfaceAttribute(Groups)`.
    SetGroups {
        /// The interface.
        eni: EniId,
        /// All groups it shall have, at least one.
        groups: Vec<SecurityGroupId>,
    },
    /// `CreateTags` on an ENI that exists.
    TagEni {
        /// The interface.
        eni: EniId,
        /// What is missing or different.
        tags: BTreeMap<String, String>,
    },
    /// `AssignPrivateIpAddresses` by count, or `AssignIpv6Addresses(Ipv6PrefixCount=1)`.
    Assign {
        /// The interface.
        eni: EniId,
        /// How many, at least 1.
        amount: Amount,
    },
    /// `UnassignPrivateIpAddresses(PrivateIpAddresses)`.
    UnassignAddresses {
        /// The interface.
        eni: EniId,
        /// Each address with the evidence that nobody uses it.
        proofs: Vec<Proof<Ipv4Addr>>,
    },
    /// `UnassignPrivateIpAddresses(Ipv4Prefixes)`; EC2 takes no addresses in the same call.
    UnassignPrefixes {
        /// The interface.
        eni: EniId,
        /// Each prefix with the evidence that nobody uses any address of it.
        proofs: Vec<Proof<Ipv4Cidr>>,
    },
    /// `DetachNetworkInterface`.
    DetachEni {
        /// The interface.
        eni: EniId,
        /// The attachment to end, with the evidence that nobody uses the ENI.
        proof: Proof<AttachmentId>,
    },
    /// `DeleteNetworkInterface`.
    DeleteEni {
        /// Evidence that nobody uses the ENI.
        proof: Proof<EniId>,
    },
    /// `DescribeNetworkInterfaces` of what is attached to an instance and of what carries its owner tag unattached.
    DescribeEnis {
        /// Whose.
        instance: InstanceId,
        /// Which of the two questions is asked.
        scope: DescribeScope,
    },
    /// `DescribeNetworkInterfaces` of what any instance of the cluster has left in the VPC: carries an owner tag, is
    /// attached nowhere.
    DescribeLeftEnis {
        /// The VPC.
        vpc: VpcId,
        /// `CLUSTER_NAME`, when it is set; without it every cluster's leavings are listed.
        cluster: Option<String>,
    },
    /// `DescribeInstances` by id, those EC2 does not know any more included (they are left out of the answer).
    DescribeInstances {
        /// Which.
        instances: Vec<InstanceId>,
    },
    /// `DescribeSubnets` of the VPC in one zone.
    DescribeSubnets {
        /// The VPC.
        vpc: VpcId,
        /// The availability zone.
        zone: String,
    },
    /// `DescribeInstanceTypes` of one type the compiled-in table lacks.
    DescribeInstanceType {
        /// The type.
        instance_type: InstanceType,
    },
}

/// A number of secondary addresses or of /28 prefixes; both take the same places on an ENI.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Amount {
    /// Secondary addresses.
    Addresses(u32),
    /// /28 prefixes of 16 addresses each.
    Prefixes(u32),
    /// One /80 of IPv6 addresses; never another number.
    Block,
}

impl Amount {
    /// How many places of an ENI it takes.
    pub fn places(self) -> u32 {
        match self {
            Self::Addresses(count) | Self::Prefixes(count) => count,
            Self::Block => 1,
        }
    }

    /// What it comes in.
    pub fn unit(self) -> Unit {
        match self {
            Self::Addresses(_) => Unit::Address,
            Self::Prefixes(_) => Unit::Prefix,
            Self::Block => Unit::Block,
        }
    }

    /// How many addresses for pods it is, as far as that can be counted.
    pub fn addresses(self) -> u32 {
        match self {
            Self::Addresses(count) => count,
            Self::Prefixes(count) => count.saturating_mul(PREFIX_SIZE),
            Self::Block => u32::MAX,
        }
    }
}

/// What addresses come in.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Unit {
    /// One secondary address.
    Address,
    /// A /28 prefix.
    Prefix,
    /// A /80 prefix of IPv6 addresses.
    Block,
}

impl Unit {
    /// What a CIDR on an ENI is.
    pub fn of(cidr: Ipv4Cidr) -> Self {
        if cidr.is_host() {
            Self::Address
        } else {
            Self::Prefix
        }
    }

    /// How many addresses it has, as far as that can be counted.
    pub fn size(self) -> u32 {
        match self {
            Self::Address => 1,
            Self::Prefix => PREFIX_SIZE,
            Self::Block => u32::MAX,
        }
    }

    /// So many of it.
    pub fn amount(self, count: u32) -> Amount {
        match self {
            Self::Address => Amount::Addresses(count),
            Self::Prefix => Amount::Prefixes(count),
            Self::Block => Amount::Block,
        }
    }
}

/// Addresses of a /28 prefix, all of which pods can have
/// (<https://docs.aws.amazon.com/AWSEC2/latest/UserGuide/ec2-prefix-eni.html>).
pub const PREFIX_SIZE: u32 = 16;

/// Idle time-outs of tracked connections in seconds, where set
/// (<https://docs.aws.amazon.com/AWSEC2/latest/UserGuide/security-group-connection-tracking.html>).
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ConnectionTracking {
    /// `TcpEstablishedTimeout`.
    pub tcp_established: Option<u32>,
    /// `UdpStreamTimeout`.
    pub udp_stream: Option<u32>,
    /// `UdpTimeout`.
    pub udp: Option<u32>,
}

/// What [`CloudCall::DescribeEnis`] filters on.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum DescribeScope {
    /// Filter `attachment.instance-id`.
    Attached,
    /// Filter `tag:node.k8s.amazonaws.com/instance_id` and `status=available`: ours, but attached nowhere.
    OursUnattached,
}

/// A successful answer to a [`CloudCall`].
#[allow(
    clippy::large_enum_variant,
    reason = "one answer at a time, moved a few times: a box would cost more than it saves"
)]
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum CloudAnswer {
    /// To [`CloudCall::CreateEni`].
    Created(CloudEni),
    /// To [`CloudCall::AttachEni`].
    Attached(AttachmentId),
    /// To [`CloudCall::Assign`]: what was added.
    Assigned {
        /// Secondary addresses.
        addresses: Vec<Ipv4Addr>,
        /// /28 prefixes.
        prefixes: Vec<Ipv4Cidr>,
    },
    /// To [`CloudCall::Assign`] of a /80: what was added.
    Delegated(Vec<Ipv6Cidr>),
    /// To [`CloudCall::DescribeEnis`] and [`CloudCall::DescribeLeftEnis`]: everything, all pages.
    Enis(Vec<CloudEni>),
    /// To [`CloudCall::DescribeSubnets`]: everything, all pages.
    Subnets(Vec<CloudSubnet>),
    /// To [`CloudCall::DescribeInstances`]: those EC2 knows, and whether they still live (any state but `terminated`).
    Instances(BTreeMap<InstanceId, bool>),
    /// To [`CloudCall::DescribeInstanceType`].
    Limits(super::limits::InstanceLimits),
    /// To the calls that only succeed or fail.
    Done,
}

/// An ENI as EC2 describes it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct CloudEni {
    /// Its id.
    pub id: EniId,
    /// Its hardware address.
    pub mac: Mac,
    /// Its subnet.
    pub subnet: SubnetId,
    /// Its subnet's network, where the answer or IMDS tells.
    pub subnet_cidr: Option<Ipv4Cidr>,
    /// Its own address, which pods never get.
    pub primary: Ipv4Addr,
    /// Secondary addresses.
    pub secondary: Vec<Ipv4Addr>,
    /// /28 prefixes delegated to it.
    pub prefixes: Vec<Ipv4Cidr>,
    /// /80 prefixes delegated to it.
    #[serde(default)]
    pub prefixes6: Vec<Ipv6Cidr>,
    /// Those of its addresses that have a public one associated: somebody may be reached by that.
    #[serde(default)]
    pub public: Vec<Ipv4Addr>,
    /// Connection-tracking time-outs that are set on it.
    #[serde(default)]
    pub tracking: ConnectionTracking,
    /// Security groups.
    #[serde(default)]
    pub groups: Vec<SecurityGroupId>,
    /// EC2's `InterfaceType`: `interface`, `trunk`, `efa`, `efa-only`, ….
    pub interface_type: String,
    /// Where it is attached, if anywhere.
    pub attachment: Option<CloudAttachment>,
    /// `Description`.
    pub description: String,
    /// Tags.
    pub tags: BTreeMap<String, String>,
}

impl CloudEni {
    /// What it carries for pods: secondary addresses and prefixes.
    pub fn cidrs(&self) -> impl Iterator<Item = Ipv4Cidr> {
        let secondary = self.secondary.iter().copied().map(Ipv4Cidr::host);
        secondary.chain(self.prefixes.iter().copied())
    }
}

/// A subnet as EC2 describes it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct CloudSubnet {
    /// Its id.
    pub id: SubnetId,
    /// Its IPv4 network.
    pub cidr: Ipv4Cidr,
    /// `AvailableIpAddressCount`: free addresses, fragmented or not.
    pub free: u32,
    /// Tags.
    pub tags: BTreeMap<String, String>,
}

/// Where an ENI is attached.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct CloudAttachment {
    /// The attachment's id.
    pub id: AttachmentId,
    /// The instance, as far as EC2 tells.
    pub instance: Option<InstanceId>,
    /// Its device index.
    pub device: DeviceIndex,
    /// Its network card.
    pub card: CardIndex,
    /// EC2's `Status`: `attaching`, `attached`, `detaching`, `detached`.
    pub status: String,
    /// Whether EC2 deletes the ENI with the instance.
    pub delete_on_termination: bool,
}

/// How a failed call is to be treated.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum FailureClass {
    /// `RequestLimitExceeded`, `Throttling…`: slow down.
    Throttled,
    /// `InsufficientFreeAddressesInSubnet`, `InsufficientCidrBlocks`: the subnet is full or fragmented.
    SubnetFull,
    /// `PrivateIpAddressLimitExceeded`: the ENI is full; our view is behind.
    AddressLimit,
    /// `AttachmentLimitExceeded`: the instance is full; our view is behind.
    AttachmentLimit,
    /// Account limits such as `NetworkInterfaceLimitExceeded`.
    AccountLimit,
    /// `UnauthorizedOperation`, `AccessDenied…`, no credentials.
    Denied,
    /// `Invalid….NotFound`: the subject is gone.
    Gone,
    /// The subject is in use or in the wrong state.
    Conflict,
    /// No answer: time-out, connection refused or lost. The effect may have happened.
    NoAnswer,
    /// 5xx: the effect may have happened.
    Server,
    /// Anything else.
    Other,
}

/// Why a call failed, with everything a user needs to follow it up.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct CloudFailure {
    /// How to treat it.
    pub class: FailureClass,
    /// The EC2 action, such as `CreateNetworkInterface`.
    pub action: String,
    /// EC2's error code, when it answered.
    pub code: Option<String>,
    /// EC2's or the transport's message.
    pub message: String,
    /// EC2's request id, when it answered.
    pub request_id: Option<String>,
    /// How long EC2 asked to wait, when it did.
    pub retry_after: Option<Duration>,
}

impl std::fmt::Display for CloudFailure {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} failed", self.action)?;
        if let Some(code) = &self.code {
            write!(f, " with {code}")?;
        }
        write!(f, ": {}", self.message)?;
        if let Some(request_id) = &self.request_id {
            write!(f, " (request id {request_id})")?;
        }
        Ok(())
    }
}

/// How a [`CloudCall`] ended.
pub type CloudResult = Result<CloudAnswer, CloudFailure>;
