//! What a run is made of besides its seed: a node and a list of things that happen at given times.
//!
//! A script is a value with a text form, so that a failing run can be made smaller, printed, kept and read.

use std::collections::BTreeMap;
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

/// `WARM_…` settings as text: `enis:1`, `ips:2:5`, `prefixes:1`, `prefix-ips:2:5`.
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
}

impl Warm {
    /// Puts it into a policy.
    pub fn set(self, policy: &mut Policy) {
        policy.prefixes = None;
        match self {
            Self::Enis(enis) => policy.warm = WarmTarget::Enis(enis),
            Self::Ips(warm, minimum) => policy.warm = WarmTarget::Ips { warm, minimum },
            Self::Prefixes(prefixes) => policy.prefixes = Some(WarmTarget::Prefixes(prefixes)),
            Self::PrefixIps(warm, minimum) => policy.prefixes = Some(WarmTarget::Ips { warm, minimum }),
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
        }
    }
}

impl FromStr for Warm {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let wrong =
            || format!("{text:?} is no warm target such as enis:1, ips:2:5, prefixes:1 or prefix-ips:2:5");
        let mut parts = text.split(':');
        let kind = parts.next().unwrap_or_default();
        let numbers: Result<Vec<u32>, _> = parts.map(str::parse).collect();
        match (kind, numbers.map_err(|_| wrong())?.as_slice()) {
            ("enis", [enis]) => Ok(Self::Enis(*enis)),
            ("ips", [warm, minimum]) => Ok(Self::Ips(*warm, *minimum)),
            ("prefixes", [prefixes]) => Ok(Self::Prefixes(*prefixes)),
            ("prefix-ips", [warm, minimum]) => Ok(Self::PrefixIps(*warm, *minimum)),
            _ => Err(wrong()),
        }
    }
}

type Words<'a> = BTreeMap<&'a str, &'a str>;

fn words_of(text: &str) -> Result<Words<'_>, String> {
    text.split_whitespace()
        .map(|word| {
            word.split_once('=')
                .ok_or_else(|| format!("{word:?} is not key=value"))
        })
        .collect()
}

fn take<T: FromStr<Err: fmt::Display>>(words: &mut Words<'_>, key: &str) -> Result<Option<T>, String> {
    words
        .remove(key)
        .map(|value| value.parse().map_err(|error| format!("{key}: {error}")))
        .transpose()
}

fn nothing_left(words: &Words<'_>) -> Result<(), String> {
    words
        .keys()
        .next()
        .map_or(Ok(()), |word| Err(format!("{word:?} is not known here")))
}

macro_rules! actions {
    ($($(#[$doc:meta])* $name:ident = $word:literal { $($(#[$each:meta])* $field:ident: $type:ty,)* })*) => {
        /// One thing that happens.
        #[derive(Debug, Clone, PartialEq, Eq)]
        pub enum Action { $($(#[$doc])* $name { $($(#[$each])* $field: $type,)* },)* }

        impl Action {
            /// Its first word.
            pub fn word(&self) -> &'static str {
                match self { $(Self::$name { .. } => $word,)* }
            }
        }

        impl fmt::Display for Action {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(self.word())?;
                match self {
                    $(Self::$name { $($field,)* } => { $(write!(f, concat!(" ", stringify!($field), "={}"), $field)?;)* })*
                }
                Ok(())
            }
        }

        impl FromStr for Action {
            type Err = String;

            fn from_str(text: &str) -> Result<Self, String> {
                let (word, rest) = text.split_once(' ').unwrap_or((text, ""));
                #[allow(unused_mut, reason = "some actions take no words")]
                let mut words = words_of(rest)?;
                let action = match word {
                    $($word => Self::$name {
                        $($field: take(&mut words, stringify!($field))?
                            .ok_or_else(|| format!("{word} needs {}", stringify!($field)))?,)*
                    },)*
                    other => return Err(format!("nobody can {other:?}")),
                };
                nothing_left(&words)?;
                Ok(action)
            }
        }
    };
}

actions! {
    /// A pod comes, lives and goes.
    Pod = "pod" {
        /// Its number.
        n: u32,
        /// How long it lives.
        life: Span,
        /// How long its ADD waits.
        patience: Span,
        /// What is special about it.
        quirk: Quirk,
    }
    /// The runtime deletes a pod, whether it is there or not.
    Del = "del" {
        /// Which.
        n: u32,
    }
    /// The runtime lists what is alive.
    Gc = "gc" {}
    /// The next calls of a kind fail.
    Call = "call" {
        /// Which.
        which: Which,
        /// What becomes of them.
        how: How,
        /// How many.
        times: u32,
    }
    /// All calls of a kind fail for a time.
    Outage = "outage" {
        /// Which.
        which: Which,
        /// What becomes of them.
        how: How,
        /// How long.
        span: Span,
    }
    /// EC2's Describe is late for a time.
    Lag = "lag" {
        /// By how much.
        by: Span,
        /// How long.
        span: Span,
    }
    /// EC2's Describe lies for a time.
    Describe = "describe" {
        /// How.
        lie: Lie,
        /// How long.
        span: Span,
    }
    /// IMDS lies for a time.
    Imds = "imds" {
        /// How.
        lie: Lie,
        /// How long.
        span: Span,
    }
    /// Others take all but so many addresses of a subnet for a time.
    Taken = "taken" {
        /// Which subnet.
        subnet: usize,
        /// How many are left.
        left: u32,
        /// How long.
        span: Span,
    }
    /// Others take one address of every /28 of a subnet for a time.
    Fragmented = "fragmented" {
        /// Which subnet.
        subnet: usize,
        /// How long.
        span: Span,
    }
    /// The kernel does not do as it is told for a time.
    Kernel = "kernel" {
        /// How.
        trouble: Trouble,
        /// How long.
        span: Span,
    }
    /// A link of a secondary ENI is renamed.
    Rename = "rename" {
        /// Which.
        nth: u32,
    }
    /// A rule for a pod is left behind for an address no pod has.
    Stray = "stray" {
        /// Which.
        nth: u32,
    }
    /// The disk does not do as it is told for a time.
    Disk = "disk" {
        /// How.
        trouble: DiskTrouble,
        /// How long.
        span: Span,
    }
    /// The daemon is killed before so many more effects are executed.
    Kill = "kill" {
        /// Before which one.
        effect: u32,
        /// How long it is away.
        down: Span,
    }
    /// Power is lost and comes back: another boot.
    Power = "power" {
        /// How long the machine is off.
        down: Span,
    }
    /// A stored record is damaged or lost, and the daemon is started again.
    Damage = "damage" {
        /// Which record.
        nth: u32,
        /// Lost rather than damaged.
        lost: bool,
    }
    /// Somebody else changes something at EC2.
    Outside = "outside" {
        /// What.
        hand: Hand,
        /// To which.
        nth: u32,
    }
    /// The configuration is changed.
    Config = "config" {
        /// The new target.
        warm: Warm,
        /// The new `MAX_ENI`; 0 for none.
        max_enis: u32,
    }
    /// The VPC gets another network.
    Cidr = "cidr" {}
}

macro_rules! settings {
    ($($(#[$doc:meta])* $field:ident: $type:ty = $default:expr,)*) => {
        /// The node and its surroundings.
        #[derive(Debug, Clone, PartialEq, Eq)]
        pub struct Settings { $($(#[$doc])* pub $field: $type,)* }

        impl Default for Settings {
            fn default() -> Self {
                Self { $($field: $default,)* }
            }
        }

        impl fmt::Display for Settings {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("node")?;
                $(write!(f, concat!(" ", stringify!($field), "={}"), self.$field)?;)*
                Ok(())
            }
        }

        impl FromStr for Settings {
            type Err = String;

            fn from_str(text: &str) -> Result<Self, String> {
                let mut words = words_of(text)?;
                let mut settings = Self::default();
                $(if let Some(value) = take(&mut words, stringify!($field))? {
                    settings.$field = value;
                })*
                nothing_left(&words)?;
                Ok(settings)
            }
        }
    };
}

settings! {
    /// ENIs the instance type carries.
    enis: u32 = 3,
    /// Addresses an ENI carries, its own included.
    addresses: u32 = 10,
    /// Whether its ENIs can carry prefixes.
    nitro: bool = true,
    /// Whether the instance type is in the compiled-in table.
    known: bool = true,
    /// Secondary addresses the primary ENI is launched with.
    launched: u32 = 0,
    /// Subnets in the zone.
    subnets: u32 = 1,
    /// Their prefix length.
    len: u8 = 22,
    /// The warm target.
    warm: Warm = Warm::Enis(1),
    /// `IP_COOLDOWN_PERIOD`.
    cooldown: Span = Span::secs(30),
    /// `MAX_ENI`; 0 for none.
    max_enis: u32 = 0,
    /// Kubelet's max-pods; 0 for unknown.
    max_pods: u32 = 0,
    /// How long the script lasts.
    length: Span = Span(0),
}

/// A node and what happens to it.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Script {
    /// The node.
    pub settings: Settings,
    /// What happens, in the order of time.
    pub items: Vec<(Span, Action)>,
}

impl Script {
    /// When the last thing has happened and is over.
    pub fn end(&self) -> u64 {
        let last = self.items.iter().map(|(at, _)| at.0).max().unwrap_or(0);
        last.max(self.settings.length.0)
    }
}

impl fmt::Display for Script {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "{}", self.settings)?;
        for (at, action) in &self.items {
            writeln!(f, "{at} {action}")?;
        }
        Ok(())
    }
}

impl FromStr for Script {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let mut script = Self::default();
        for (number, line) in text.lines().enumerate() {
            let line = line.split('#').next().unwrap_or_default().trim();
            if line.is_empty() {
                continue;
            }
            let (first, rest) = line.split_once(' ').unwrap_or((line, ""));
            let told = |error: String| format!("line {}: {error}", number + 1);
            if first == "node" {
                script.settings = rest.parse().map_err(told)?;
            } else {
                let at = first.parse().map_err(told)?;
                script.items.push((at, rest.trim().parse().map_err(told)?));
            }
        }
        script.items.sort_by_key(|(at, _)| *at);
        Ok(script)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_script_reads_back_as_it_was_written() {
        let text =
            "node enis=4 warm=enis:2\n1h2m3s4ms pod n=7 life=2h patience=30s quirk=twice # a word\n\n0s gc\n";
        let script: Script = text.parse().unwrap();
        assert_eq!(script.items.len(), 2);
        assert_eq!(script.items[0], (Span(0), Action::Gc {}));
        assert_eq!(script.to_string().parse(), Ok(script));
    }

    #[test]
    fn what_is_not_known_is_refused_with_its_line() {
        for (text, line) in [
            ("0s fly", 1),
            ("\n0s del n=x", 2),
            ("node wings=2", 1),
            ("0s gc n=1", 1),
        ] {
            let error = text.parse::<Script>().unwrap_err();
            assert!(error.starts_with(&format!("line {line}: ")), "{error}");
        }
    }
}
