//! The names everything else is told apart by: one type for each kind of identifier.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

macro_rules! text_id {
    ($(#[$doc:meta])* $name:ident) => {
        $(#[$doc])*
        #[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
        #[serde(transparent)]
        pub struct $name(pub String);

        impl $name {
            /// The identifier as text.
            pub fn as_str(&self) -> &str {
                &self.0
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(&self.0)
            }
        }

        impl From<&str> for $name {
            fn from(text: &str) -> Self {
                Self(text.to_owned())
            }
        }

        impl From<String> for $name {
            fn from(text: String) -> Self {
                Self(text)
            }
        }
    };
}

text_id!(
    /// An EC2 network interface, `eni-…`.
    EniId
);
text_id!(
    /// The attachment of an ENI to an instance, `eni-attach-…`; detaching needs it.
    AttachmentId
);
text_id!(
    /// An EC2 instance, `i-…`.
    InstanceId
);
text_id!(
    /// An EC2 instance type such as `m5.large`.
    InstanceType
);
text_id!(
    /// A VPC, `vpc-…`.
    VpcId
);
text_id!(
    /// A subnet, `subnet-…`.
    SubnetId
);
text_id!(
    /// A security group, `sg-…`.
    SecurityGroupId
);
text_id!(
    /// EC2's idempotency token: the same token never creates a second ENI.
    ClientToken
);
text_id!(
    /// The kernel's `/proc/sys/kernel/random/boot_id`; another value means another boot.
    BootId
);
text_id!(
    /// The name of the conflist, which is part of a sandbox's identity.
    NetworkName
);
text_id!(
    /// The runtime's id of a sandbox.
    ContainerId
);
text_id!(
    /// An interface name inside a sandbox, such as `eth0`.
    IfName
);

/// A hardware address, lower-case colon form in text.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Mac(pub [u8; 6]);

impl fmt::Display for Mac {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (place, byte) in self.0.iter().enumerate() {
            let colon = if place == 0 { "" } else { ":" };
            write!(f, "{colon}{byte:02x}")?;
        }
        Ok(())
    }
}

/// Why a text is not a [`Mac`] or another parsed value of this module.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{text:?} is not {expected}")]
pub struct ParseIdError {
    /// What was read.
    pub text: String,
    /// What it should have been.
    pub expected: &'static str,
}

impl FromStr for Mac {
    type Err = ParseIdError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let error = || ParseIdError {
            text: text.to_owned(),
            expected: "a MAC address",
        };
        let mut bytes = [0_u8; 6];
        let mut parts = text.trim().split([':', '-']);
        for byte in &mut bytes {
            let part = parts.next().filter(|part| part.len() == 2).ok_or_else(error)?;
            *byte = u8::from_str_radix(part, 16).map_err(|_| error())?;
        }
        if parts.next().is_some() {
            return Err(error());
        }
        Ok(Self(bytes))
    }
}

impl TryFrom<String> for Mac {
    type Error = ParseIdError;

    fn try_from(text: String) -> Result<Self, Self::Error> {
        text.parse()
    }
}

impl From<Mac> for String {
    fn from(mac: Mac) -> Self {
        mac.to_string()
    }
}

macro_rules! counted_id {
    ($(#[$doc:meta])* $name:ident) => {
        $(#[$doc])*
        #[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Default, Serialize, Deserialize)]
        #[serde(transparent)]
        pub struct $name(pub u64);

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                self.0.fmt(f)
            }
        }
    };
}

counted_id!(
    /// One request waiting at the socket for its reply. The daemon hands them out and never reuses one.
    WaiterId
);
counted_id!(
    /// One EC2 call in flight. Later calls have greater numbers.
    CallId
);
counted_id!(
    /// One batch on its way to the disk. Later batches have greater numbers.
    CommitId
);

/// The position of an ENI on its network card; 0 on card 0 is the primary ENI.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(transparent)]
pub struct DeviceIndex(pub u32);

/// An EC2 network card; ordinary instance types have only card 0.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(transparent)]
pub struct CardIndex(pub u32);

impl CardIndex {
    /// The card of the primary ENI, which every instance has.
    pub const FIRST: Self = Self(0);

    /// Whether nothing need be said of it.
    pub fn is_first(&self) -> bool {
        *self == Self::FIRST
    }
}

impl fmt::Display for CardIndex {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "card {}", self.0)
    }
}

/// The number by which the kernel tells the packets of secondary ENIs apart: 1 to 127, seven bits of the packet mark.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Mark(pub u8);

impl Mark {
    /// The greatest there is.
    pub const MAX: Self = Self(127);

    /// Whether it is one: what was stored may be damaged.
    pub fn is_any(self) -> bool {
        (1..=Self::MAX.0).contains(&self.0)
    }
}

/// A kernel route table number.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(transparent)]
pub struct TableId(pub u32);

impl TableId {
    /// The kernel's main table, which the primary ENI uses.
    pub const MAIN: Self = Self(254);

    /// The table of an ENI, numbered as the Go daemon numbers them so that a node can change hands.
    ///
    /// Card 0 device 0 is main, card 0 device N is N + 1, card C device N is 10000 + 100·C + N.
    pub fn of_eni(card: CardIndex, device: DeviceIndex) -> Self {
        match (card.0, device.0) {
            (0, 0) => Self::MAIN,
            (0, device) => Self(device.saturating_add(1)),
            (card, device) => Self(
                10_000_u32
                    .saturating_add(card.saturating_mul(100))
                    .saturating_add(device),
            ),
        }
    }
}

/// A point in time: milliseconds of `CLOCK_BOOTTIME`, which never jumps and spans daemon restarts.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Default, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Tick(pub u64);

impl Tick {
    /// This point plus a duration.
    #[must_use]
    pub fn after(self, span: std::time::Duration) -> Self {
        Self(
            self.0
                .saturating_add(u64::try_from(span.as_millis()).unwrap_or(u64::MAX)),
        )
    }

    /// How long ago `earlier` was; zero when it lies ahead.
    pub fn since(self, earlier: Self) -> std::time::Duration {
        std::time::Duration::from_millis(self.0.saturating_sub(earlier.0))
    }
}

/// What makes a sandbox's interface itself: the key of an allocation.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct SandboxKey {
    /// The conflist's name.
    pub network: NetworkName,
    /// The runtime's sandbox id.
    pub container: ContainerId,
    /// The interface inside the sandbox.
    pub ifname: IfName,
}

impl fmt::Display for SandboxKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}/{}", self.network, self.container, self.ifname)
    }
}

/// The pod a sandbox belongs to, as the runtime names it; empty for sandboxes of no Kubernetes pod.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct PodRef {
    /// Kubernetes namespace.
    #[serde(default)]
    pub namespace: String,
    /// Pod name.
    #[serde(default)]
    pub name: String,
    /// Pod UID, when the runtime passes it.
    #[serde(default)]
    pub uid: String,
}

impl fmt::Display for PodRef {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.namespace, self.name)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn mac_round_trips_and_refuses_noise() {
        let mac: Mac = "0a:FF:00:01:02:03".parse().unwrap();
        assert_eq!(mac.to_string(), "0a:ff:00:01:02:03");
        for bad in [
            "",
            "0a:ff:00:01:02",
            "0a:ff:00:01:02:03:04",
            "0a:ff:00:01:02:zz",
            "aff:0:01:02:03:04",
        ] {
            assert!(bad.parse::<Mac>().is_err(), "{bad}");
        }
    }

    /// Conformance: `reference` dataplane 0.2, ipamd 105.
    #[test]
    fn ipamd_105_eni_tables_are_numbered_like_the_go_daemon() {
        let table = |card, device| TableId::of_eni(CardIndex(card), DeviceIndex(device)).0;
        assert_eq!(
            (table(0, 0), table(0, 4), table(1, 0), table(1, 1)),
            (254, 5, 10_100, 10_101)
        );
    }

    #[test]
    fn ticks_never_run_backwards() {
        assert_eq!(Tick(5).since(Tick(9)), std::time::Duration::ZERO);
    }
}
