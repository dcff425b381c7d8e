//! The words scripts are written with: lengths of time, kinds of faults, targets.

use std::fmt;
use std::str::FromStr;
use std::time::Duration;

use aws_cni_ipam::policy::{Policy, WarmTarget};

/// A length of time, in milliseconds; `90s`, `1h30m`, `250ms` in text.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Default)]
pub struct Span(pub u64);

const UNITS: [(&str, u64); 5] = [
    ("d", 86_400_000),
    ("h", 3_600_000),
    ("m", 60_000),
    ("s", 1000),
    ("ms", 1),
];

impl Span {
    /// So many seconds.
    pub const fn secs(seconds: u64) -> Self {
        Self(seconds * 1000)
    }

    /// As the core knows it.
    pub const fn duration(self) -> Duration {
        Duration::from_millis(self.0)
    }
}

impl fmt::Display for Span {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut rest = self.0;
        for (unit, size) in UNITS {
            if rest >= size {
                write!(f, "{}{unit}", rest / size)?;
                rest %= size;
            }
        }
        if self.0 == 0 {
            f.write_str("0s")?;
        }
        Ok(())
    }
}

impl FromStr for Span {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let wrong = || format!("{text:?} is no time such as 1h30m, 90s or 250ms");
        let mut total = 0_u64;
        let mut rest = text;
        while !rest.is_empty() {
            let digits = rest.find(|c: char| !c.is_ascii_digit()).ok_or_else(wrong)?;
            let (number, tail) = rest.split_at(digits);
            let letters = tail.find(|c: char| c.is_ascii_digit()).unwrap_or(tail.len());
            let (unit, tail) = tail.split_at(letters);
            let size = UNITS
                .iter()
                .find(|(name, _)| *name == unit)
                .map(|(_, size)| *size);
            let number: u64 = number.parse().map_err(|_| wrong())?;
            total += number * size.ok_or_else(wrong)?;
            rest = tail;
        }
        Ok(Self(total))
    }
}

macro_rules! words {
    ($(#[$doc:meta])* $name:ident { $($(#[$each:meta])* $variant:ident = $word:literal,)* }) => {
        $(#[$doc])*
        #[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
        pub enum $name { $($(#[$each])* $variant,)* }

        impl $name {
            /// All of them.
            pub const ALL: &[Self] = &[$(Self::$variant,)*];
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(match self { $(Self::$variant => $word,)* })
            }
        }

        impl FromStr for $name {
            type Err = String;

            fn from_str(text: &str) -> Result<Self, String> {
                match text {
                    $($word => Ok(Self::$variant),)*
                    other => Err(format!("{other:?} is none of {}", [$($word),*].join(", "))),
                }
            }
        }
    };
}

words! {
    /// Which EC2 calls a fault is about.
    Which {
        /// All.
        Any = "any",
        /// `CreateNetworkInterface`.
        Create = "create",
        /// `AttachNetworkInterface`.
        Attach = "attach",
        /// `AssignPrivateIpAddresses`.
        Assign = "assign",
        /// `UnassignPrivateIpAddresses`.
        Unassign = "unassign",
        /// `DetachNetworkInterface`.
        Detach = "detach",
        /// `DeleteNetworkInterface`.
        Delete = "delete",
        /// `ModifyNetworkInterfaceAttribute`.
        Modify = "modify",
        /// `CreateTags`.
        Tag = "tag",
        /// Every Describe.
        Describe = "describe",
    }
}

words! {
    /// What becomes of a call.
    How {
        /// `RequestLimitExceeded`.
        Throttled = "throttled",
        /// `InsufficientFreeAddressesInSubnet`.
        SubnetFull = "subnet-full",
        /// `PrivateIpAddressLimitExceeded`.
        AddressLimit = "address-limit",
        /// `AttachmentLimitExceeded`.
        AttachmentLimit = "attachment-limit",
        /// `NetworkInterfaceLimitExceeded`.
        AccountLimit = "account-limit",
        /// `UnauthorizedOperation`.
        Denied = "denied",
        /// `InvalidNetworkInterfaceID.NotFound`.
        Gone = "gone",
        /// `InvalidNetworkInterface.InUse`.
        Conflict = "conflict",
        /// 5xx, with the effect left out.
        Server = "server",
        /// An error nobody knows.
        Other = "other",
        /// It never reaches EC2, and the client times out.
        LostBefore = "lost-before",
        /// It takes effect, but the answer is lost.
        LostAfter = "lost-after",
        /// It takes effect after half a minute.
        Slow = "slow",
    }
}

words! {
    /// What somebody leaves out or adds.
    Lie {
        /// One secondary ENI is left out.
        OmitsEni = "omits-eni",
        /// One secondary address is left out.
        OmitsAddress = "omits-address",
        /// One prefix is left out.
        OmitsPrefix = "omits-prefix",
        /// The list is empty.
        OmitsAll = "omits-all",
        /// Something is listed that is gone or never was.
        Extra = "extra",
        /// No answer at all.
        Fails = "fails",
    }
}

words! {
    /// What goes wrong in the kernel.
    Trouble {
        /// An ENI cannot be configured.
        Configure = "configure-fails",
        /// Addresses cannot be published.
        Publish = "publish-fails",
        /// Links take half a minute to appear.
        LateLinks = "late-links",
        /// Links do not appear at all.
        NoLinks = "no-links",
    }
}

words! {
    /// What goes wrong with the disk.
    DiskTrouble {
        /// Every commit fails.
        Fails = "fails",
        /// Every commit takes seconds.
        Slow = "slow",
    }
}

words! {
    /// What others do to our ENIs behind our back.
    Hand {
        /// Unassign an address that no pod has.
        UnassignIdle = "unassign-idle",
        /// Unassign an address that a pod may have.
        UnassignAny = "unassign-any",
        /// Remove a prefix without pods.
        UnassignPrefix = "unassign-prefix",
        /// Assign one more address.
        Assign = "assign",
        /// Detach an ENI without pods, by force.
        DetachIdle = "detach-idle",
        /// Detach an ENI, by force.
        DetachAny = "detach-any",
        /// Detach an ENI without pods and delete it.
        DeleteIdle = "delete-idle",
        /// Take our tags from an ENI.
        Untag = "untag",
        /// Set the tag that keeps us away.
        NoManage = "no-manage",
        /// Attach an ENI of their own.
        Attach = "attach",
        /// Leave an ENI with our tags unattached.
        Leave = "leave",
        /// Change the primary ENI's security groups.
        Groups = "groups",
        /// Attach a trunk of their own.
        Trunk = "trunk",
        /// Attach an EFA without addresses of their own.
        EfaOnly = "efa-only",
        /// Attach an EFA, whose addresses pods may have.
        Efa = "efa",
        /// Attach an ordinary ENI without tags, for pods.
        Bring = "bring",
        /// Associate a public address.
        Public = "public",
        /// Delegate one more /80 to the primary ENI.
        GiveBlock = "give-80",
        /// Take a /80 away, whoever has addresses of it.
        TakeBlock = "take-80",
        /// Put back the /80 that was taken away last.
        ReturnBlock = "return-80",
    }
}

words! {
    /// What EC2 may be asked.
    Asking {
        /// Everything.
        All = "all",
        /// Nothing that changes what the node has: `DISABLE_NETWORK_RESOURCE_PROVISIONING`.
        Looks = "looks",
        /// Nothing: `ENABLE_IMDS_ONLY_MODE`.
        Nothing = "nothing",
    }
}

impl Asking {
    /// Puts it into a policy, as the daemon's configuration does.
    pub fn set(self, policy: &mut Policy) {
        policy.ask_ec2 = self != Self::Nothing;
        policy.provisioning = self == Self::All;
        policy.leak_cleanup = policy.provisioning;
    }
}

words! {
    /// Which unattached ENI of another instance lies about.
    Left {
        /// Its owner was terminated.
        Terminated = "terminated",
        /// EC2 does not know its owner any more.
        Unknown = "unknown",
        /// It says nothing of its age.
        Ageless = "ageless",
        /// Another node has a lease on it that runs out.
        Leased = "leased",
        /// Its owner lives and is about to attach it.
        Alive = "alive",
        /// It is of another cluster.
        OtherCluster = "other-cluster",
        /// It is tagged as not managed.
        NoManage = "no-manage",
    }
}

words! {
    /// What a subnet's tags say.
    Role {
        /// Nothing.
        None = "none",
        /// `kubernetes.io/role/cni=1`.
        Pods = "pods",
        /// `kubernetes.io/role/cni=0`.
        NotPods = "not-pods",
        /// For pods of another cluster.
        Other = "other",
    }
}

words! {
    /// Where new ENIs go.
    Networking {
        /// Where tags allow it: no custom networking.
        Own = "own",
        /// Custom networking, and no ENIConfig holds for this node.
        Missing = "missing",
        /// Custom networking in the second subnet.
        Second = "second",
        /// Custom networking in all subnets but the first.
        Others = "others",
    }
}

words! {
    /// What is special about a pod.
    Quirk {
        /// Nothing.
        None = "none",
        /// Its ADD is repeated while it lives.
        Again = "again",
        /// It is deleted twice.
        Twice = "twice",
        /// It is never deleted; the next GC finds it.
        Forgotten = "forgotten",
        /// Its plugin is killed while it works.
        Killed = "killed",
        /// The runtime deletes it while its ADD is under way.
        Cancelled = "cancelled",
    }
}

/// `WARM_…` settings as text: `enis:1`, `ips:2:5`, `prefixes:1`, `prefix-ips:2:5`, `adaptive`, `prefix-adaptive`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Warm {
    /// `WARM_ENI_TARGET`.
    Enis(u32),
    /// `WARM_IP_TARGET` and `MINIMUM_IP_TARGET`.
    Ips(u32, u32),
    /// `WARM_PREFIX_TARGET` with prefix delegation.
    Prefixes(u32),
    /// `WARM_IP_TARGET` and `MINIMUM_IP_TARGET` with prefix delegation.
    PrefixIps(u32, u32),
    /// `ADAPTIVE_WARM_POOL`.
    Adaptive,
    /// `ADAPTIVE_WARM_POOL` with prefix delegation.
    PrefixAdaptive,
}

impl Warm {
    /// Whether addresses come in prefixes where they can.
    pub const fn has_prefixes(self) -> bool {
        matches!(
            self,
            Self::Prefixes(_) | Self::PrefixIps(..) | Self::PrefixAdaptive
        )
    }

    /// Puts it into a policy.
    pub fn set(self, policy: &mut Policy) {
        policy.prefixes = None;
        match self {
            Self::Enis(enis) => policy.warm = WarmTarget::Enis(enis),
            Self::Ips(warm, minimum) => policy.warm = WarmTarget::Ips { warm, minimum },
            Self::Prefixes(prefixes) => policy.prefixes = Some(WarmTarget::Prefixes(prefixes)),
            Self::PrefixIps(warm, minimum) => policy.prefixes = Some(WarmTarget::Ips { warm, minimum }),
            Self::Adaptive => policy.warm = WarmTarget::Adaptive,
            Self::PrefixAdaptive => policy.prefixes = Some(WarmTarget::Adaptive),
        }
    }
}

impl fmt::Display for Warm {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Enis(count) => write!(f, "enis:{count}"),
            Self::Ips(warm, minimum) => write!(f, "ips:{warm}:{minimum}"),
            Self::Prefixes(count) => write!(f, "prefixes:{count}"),
            Self::PrefixIps(warm, minimum) => write!(f, "prefix-ips:{warm}:{minimum}"),
            Self::Adaptive => f.write_str("adaptive"),
            Self::PrefixAdaptive => f.write_str("prefix-adaptive"),
        }
    }
}

impl FromStr for Warm {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let wrong = || {
            format!(
                "{text:?} is no warm target such as enis:1, ips:2:5, prefixes:1, prefix-ips:2:5 or adaptive"
            )
        };
        let mut parts = text.split(':');
        let kind = parts.next().unwrap_or_default();
        let numbers: Result<Vec<u32>, _> = parts.map(str::parse).collect();
        match (kind, numbers.map_err(|_| wrong())?.as_slice()) {
            ("enis", [enis]) => Ok(Self::Enis(*enis)),
            ("ips", [warm, minimum]) => Ok(Self::Ips(*warm, *minimum)),
            ("prefixes", [prefixes]) => Ok(Self::Prefixes(*prefixes)),
            ("prefix-ips", [warm, minimum]) => Ok(Self::PrefixIps(*warm, *minimum)),
            ("adaptive", []) => Ok(Self::Adaptive),
            ("prefix-adaptive", []) => Ok(Self::PrefixAdaptive),
            _ => Err(wrong()),
        }
    }
}
