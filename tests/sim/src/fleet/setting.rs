//! The settings that are compared, and whose decisions they are put to.

use std::fmt;

use aws_cni_ipam::policy::{Policy, WarmTarget};

use crate::upstream::Target;

/// Whose decisions.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Side {
    /// The real pool.
    Ours,
    /// The model of upstream's.
    Upstream,
}

impl fmt::Display for Side {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Ours => "ours",
            Self::Upstream => "upstream",
        })
    }
}

/// How much is held ready.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Setting {
    /// `WARM_ENI_TARGET=1`, the default.
    Eni,
    /// `WARM_IP_TARGET=5 MINIMUM_IP_TARGET=10`.
    Ip,
    /// `WARM_PREFIX_TARGET=1` with prefix delegation.
    Prefix,
    /// `ADAPTIVE_WARM_POOL` with single addresses.
    Adaptive,
    /// `ADAPTIVE_WARM_POOL` with prefix delegation.
    AdaptivePrefix,
}

impl Setting {
    /// All of them.
    pub const ALL: &[Self] = &[
        Self::Eni,
        Self::Ip,
        Self::Prefix,
        Self::Adaptive,
        Self::AdaptivePrefix,
    ];

    /// What the real pool is told.
    pub fn policy(self) -> Policy {
        let mut policy = Policy::default();
        match self {
            Self::Eni => policy.warm = WarmTarget::Enis(1),
            Self::Ip => policy.warm = WarmTarget::Ips { warm: 5, minimum: 10 },
            Self::Prefix => policy.prefixes = Some(WarmTarget::Prefixes(1)),
            Self::Adaptive => policy.warm = WarmTarget::Adaptive,
            Self::AdaptivePrefix => policy.prefixes = Some(WarmTarget::Adaptive),
        }
        policy
    }

    /// The same for upstream, where it has such a setting.
    pub const fn upstream(self) -> Option<Target> {
        match self {
            Self::Eni => Some(Target::Enis(1)),
            Self::Ip => Some(Target::Ips { warm: 5, minimum: 10 }),
            Self::Prefix => Some(Target::Prefixes(1)),
            Self::Adaptive | Self::AdaptivePrefix => None,
        }
    }
}

impl fmt::Display for Setting {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Eni => "WARM_ENI 1",
            Self::Ip => "WARM_IP 5/10",
            Self::Prefix => "WARM_PREFIX 1",
            Self::Adaptive => "adaptive",
            Self::AdaptivePrefix => "adaptive, prefixes",
        })
    }
}
