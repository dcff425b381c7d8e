//! The settings of the warm pool and of ENIs, and what they say to each other.

use std::time::Duration;

use super::kubelet::DEFAULT_KUBELET_CONFIG;
use super::parse;
use super::problem::{Origin, ProblemKind};
use super::reader::{Read, Reader, absolute_path, or_default, or_refuse};
use super::types::PoolConfig;

pub(super) fn read(r: &mut Reader<'_>) -> PoolConfig {
    let imds_only = r.boolean("ENABLE_IMDS_ONLY_MODE", false);
    let provisioning = !r.boolean("DISABLE_NETWORK_RESOURCE_PROVISIONING", false) && !imds_only;
    let ipv6 = super::features::families(r);
    let mut pool = PoolConfig {
        ipv6,
        warm_eni_target: r.target("WARM_ENI_TARGET", 1),
        warm_ip_target: r.target("WARM_IP_TARGET", 0),
        minimum_ip_target: r.target("MINIMUM_IP_TARGET", 0),
        warm_prefix_target: r.target("WARM_PREFIX_TARGET", 0),
        prefix_delegation: r.boolean("ENABLE_PREFIX_DELEGATION", ipv6),
        adaptive: r.boolean_or_empty("ADAPTIVE_WARM_POOL", false),
        max_eni: r.read("MAX_ENI", None, "a whole number of at least 1", |text| {
            or_default(parse::count(text, 1).map(Some))
        }),
        multi_nic: r.boolean("ENABLE_MULTI_NIC", false),
        cooldown: cooldown(r),
        max_pods: r.read(
            "AWS_CNI_MAX_PODS",
            None,
            "a whole number of at least 1",
            |text| match text {
                "" => Read::Unset,
                _ => or_refuse(parse::count(text, 1).map(Some)),
            },
        ),
        kubelet_config: r.read(
            "AWS_CNI_KUBELET_CONFIG",
            DEFAULT_KUBELET_CONFIG.into(),
            "an absolute path",
            absolute_path,
        ),
        provisioning,
        ask_ec2: !imds_only,
        manage_untagged_eni: r.boolean("MANAGE_UNTAGGED_ENI", true),
        manage_when_cordoned: r.boolean_or_empty("AWS_MANAGE_ENIS_NON_SCHEDULABLE", false),
        subnet_discovery: r.boolean_or_empty("ENABLE_SUBNET_DISCOVERY", true),
        leak_cleanup: !r.boolean("DISABLE_LEAKED_ENI_CLEANUP", false) && provisioning,
        custom_networking: r.boolean_or_empty("AWS_VPC_K8S_CNI_CUSTOM_NETWORK_CFG", false),
    };
    targets_together(r, &mut pool);
    pool
}

fn cooldown(r: &mut Reader<'_>) -> Duration {
    r.read(
        "IP_COOLDOWN_PERIOD",
        Duration::from_secs(30),
        "whole seconds, at least 0",
        |text| match text {
            "" => Read::FallBack,
            _ => or_refuse(parse::count(text, 0).map(|seconds| Duration::from_secs(seconds.into()))),
        },
    )
}

const TARGETS: [&str; 4] = [
    "WARM_ENI_TARGET",
    "WARM_IP_TARGET",
    "MINIMUM_IP_TARGET",
    "WARM_PREFIX_TARGET",
];

/// Which target has the word where several are given. Upstream settles this in silence, and its users ask why their
/// setting does nothing (quirks Q4, Q5 and Q36 of reference ipamd 11).
fn targets_together(r: &mut Reader<'_>, pool: &mut PoolConfig) {
    if pool.ipv6 {
        return with_ipv6(r, pool);
    }
    if pool.adaptive {
        for name in TARGETS {
            let why =
                "has no effect with ADAPTIVE_WARM_POOL, which sizes the pool by itself; unset one of the two";
            remark_if_chosen(r, name, why);
        }
        return;
    }
    let by_addresses = pool.warm_ip_target > 0 || pool.minimum_ip_target > 0;
    if pool.prefix_delegation {
        default_prefix_target(r, pool, by_addresses);
        let why = "has no effect with ENABLE_PREFIX_DELEGATION; WARM_PREFIX_TARGET says how much is kept ready there";
        remark_if_chosen(r, "WARM_ENI_TARGET", why);
    } else {
        let why = "has no effect without ENABLE_PREFIX_DELEGATION";
        remark_if_chosen(r, "WARM_PREFIX_TARGET", why);
    }
    if by_addresses {
        let why = "has no effect beside WARM_IP_TARGET or MINIMUM_IP_TARGET, which have precedence";
        let overridden = if pool.prefix_delegation {
            "WARM_PREFIX_TARGET"
        } else {
            "WARM_ENI_TARGET"
        };
        remark_if_chosen(r, overridden, why);
    }
    if pool.minimum_ip_target > 0 && pool.warm_ip_target == 0 {
        let why = "without WARM_IP_TARGET only one address is kept free beyond this number, so pods that come together \
                   wait for EC2; WARM_IP_TARGET says how many are";
        remark(r, "MINIMUM_IP_TARGET", why);
    }
}

/// IPv6 addresses come in one /80, of which 2^48 pods get theirs: nothing is held ready. Upstream refuses the other two, too
/// (reference ipamd 1.1).
fn with_ipv6(r: &mut Reader<'_>, pool: &PoolConfig) {
    for name in [
        "WARM_ENI_TARGET",
        "WARM_IP_TARGET",
        "MINIMUM_IP_TARGET",
        "WARM_PREFIX_TARGET",
        "ADAPTIVE_WARM_POOL",
    ] {
        remark_if_chosen(
            r,
            name,
            "has no effect with ENABLE_IPv6: one /80 has addresses for every pod",
        );
    }
    let name = "ENABLE_PREFIX_DELEGATION";
    if let (false, Some(raw)) = (pool.prefix_delegation, r.raw(name)) {
        let allowed =
            "true or unset, because ENABLE_IPv6 is on and IPv6 addresses come in prefixes only".to_owned();
        r.refuse(name, &raw, ProblemKind::Refused { allowed });
    }
    let name = "AWS_VPC_K8S_CNI_CUSTOM_NETWORK_CFG";
    if let (true, Some(raw)) = (pool.custom_networking, r.raw(name)) {
        let allowed = "false, because ENABLE_IPv6 is on, which knows no custom networking".to_owned();
        r.refuse(name, &raw, ProblemKind::Refused { allowed });
    }
    let name = "ENABLE_MULTI_NIC";
    if let (true, Some(raw)) = (pool.multi_nic, r.raw(name)) {
        let allowed =
            "false, because ENABLE_IPv6 is on: this version manages one network card there".to_owned();
        r.refuse(name, &raw, ProblemKind::Refused { allowed });
    }
}

/// Upstream's entrypoint refuses prefix mode with none of the three targets above 0, as its daemon then fetches a
/// prefix, gives it back and fetches it again for ever; its manifest sets 1.
fn default_prefix_target(r: &mut Reader<'_>, pool: &mut PoolConfig, by_addresses: bool) {
    if by_addresses || pool.warm_prefix_target > 0 {
        return;
    }
    let name = "WARM_PREFIX_TARGET";
    pool.warm_prefix_target = 1;
    let why = "ENABLE_PREFIX_DELEGATION needs one of WARM_PREFIX_TARGET, WARM_IP_TARGET and MINIMUM_IP_TARGET above 0; \
               WARM_PREFIX_TARGET=1 is used";
    let speaks = if r.raw(name).is_some() {
        name
    } else {
        "ENABLE_PREFIX_DELEGATION"
    };
    remark(r, speaks, why);
    r.replace(name, "1", &Origin::Default);
}

/// 1 is what upstream's manifest sets by itself, 0 asks for nothing: a remark about them would come at every start and
/// help nobody.
fn remark_if_chosen(r: &mut Reader<'_>, name: &'static str, why: &str) {
    let by_manifest =
        matches!(name, "WARM_ENI_TARGET" | "WARM_PREFIX_TARGET") && r.effective(name) == Some("1");
    if r.asks_for_something(name) && !by_manifest {
        remark(r, name, why);
    }
}

fn remark(r: &mut Reader<'_>, name: &'static str, why: &str) {
    if let Some(raw) = r.raw(name) {
        r.warn(name, &raw, ProblemKind::Remark(why.to_owned()));
    }
}
