//! From the configuration to what the pool is told.

use crate::config::Config;
use crate::ipam::ip::IpFamily;
use crate::ipam::policy::{Policy, WarmTarget};

/// Which addresses pods get.
pub(super) fn family(config: &Config) -> IpFamily {
    if config.pool.ipv6 {
        IpFamily::V6
    } else {
        IpFamily::V4
    }
}

/// Targets in addresses, where they are set, instead of those in ENIs or prefixes (reference ipamd 3.1).
fn warm(config: &Config, otherwise: WarmTarget) -> WarmTarget {
    let pool = &config.pool;
    if pool.adaptive {
        return WarmTarget::Adaptive;
    }
    if pool.warm_ip_target == 0 && pool.minimum_ip_target == 0 {
        return otherwise;
    }
    WarmTarget::Ips {
        warm: pool.warm_ip_target,
        minimum: pool.minimum_ip_target,
    }
}

/// The pool's policy. `seed` spreads this node's retries away from other nodes'.
pub(super) fn policy(config: &Config, seed: u64) -> Policy {
    Policy {
        family: family(config),
        warm: warm(config, WarmTarget::Enis(config.pool.warm_eni_target)),
        prefixes: config
            .pool
            .prefix_delegation
            .then(|| warm(config, WarmTarget::Prefixes(config.pool.warm_prefix_target))),
        max_enis: config.pool.max_eni,
        multi_nic: config.pool.multi_nic,
        max_pods: config.pool.max_pods,
        cooldown: config.pool.cooldown,
        cluster_name: config.aws.cluster_name.clone(),
        additional_tags: config.aws.additional_eni_tags.clone(),
        manage_untagged: config.pool.manage_untagged_eni,
        manage_when_cordoned: config.pool.manage_when_cordoned,
        provisioning: config.pool.provisioning,
        ask_ec2: config.pool.ask_ec2,
        subnet_discovery: config.pool.subnet_discovery,
        leak_cleanup: config.pool.leak_cleanup,
        seed,
        ..Policy::default()
    }
}
