//! What cannot be had together, or not at all, is refused.

use super::*;

#[test]
fn marks_below_the_eni_bits_need_the_per_pod_layout() {
    for (text, mark) in [("0b11", 3), ("1_000", 1000)] {
        let config = load(&[("AWS_VPC_K8S_CNI_CONNMARK", text), ("RULE_LAYOUT", "per-pod")]);
        assert_eq!(config.network.connmark, mark);
    }
}

#[test]
fn unsupported_features_are_named_together() {
    let names = errors(&[
        ("ENABLE_POD_ENI", "true"),
        ("NETWORK_POLICY_ENFORCING_MODE", "strict"),
        ("IP_COOLDOWN_PERIOD", "x"),
    ]);
    assert_eq!(
        names,
        [
            "IP_COOLDOWN_PERIOD",
            "ENABLE_POD_ENI",
            "NETWORK_POLICY_ENFORCING_MODE"
        ]
    );
}

/// Upstream's default of `ENABLE_IPv4` is off, which its manifest for IPv6 clusters relies on or says.
#[test]
fn ipamd_13_there_is_one_address_family() {
    for given in [
        &[("ENABLE_IPv6", "true")][..],
        &[("ENABLE_IPv6", "true"), ("ENABLE_IPv4", "false")],
    ] {
        let pool = load(given).pool;
        assert!(pool.ipv6 && pool.prefix_delegation, "{given:?}");
    }
    for given in [&[][..], &[("ENABLE_IPv4", "true"), ("ENABLE_IPv6", "false")]] {
        let pool = load(given).pool;
        assert!(!pool.ipv6 && !pool.prefix_delegation, "{given:?}");
    }
    let both = [("ENABLE_IPv4", "true"), ("ENABLE_IPv6", "true")];
    assert_eq!(errors(&both), ["ENABLE_IPv6"]);
    let neither = [("ENABLE_IPv4", "false"), ("ENABLE_IPv6", "false")];
    assert_eq!(errors(&neither), ["ENABLE_IPv4"]);
}

/// ipamd 91: upstream gives no IPv6 address without prefix delegation; here it need not be said.
#[test]
fn ipamd_11_ipv6_without_prefix_delegation_or_with_custom_networking_is_refused() {
    for (name, value) in [
        ("ENABLE_PREFIX_DELEGATION", "false"),
        ("AWS_VPC_K8S_CNI_CUSTOM_NETWORK_CFG", "true"),
        // Upstream manages several cards there, too.
        ("ENABLE_MULTI_NIC", "true"),
    ] {
        assert_eq!(errors(&[("ENABLE_IPv6", "true"), (name, value)]), [name]);
    }
}
