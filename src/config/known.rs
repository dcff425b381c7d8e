//! Every variable that has a meaning here, upstream or to the AWS SDK, and which one a stranger was meant to be.

/// What a variable is to this program.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Role {
    /// Read by `super::load`.
    Setting,
    /// Upstream's, for a part of it that does not exist here; accepted in silence so that its environment works.
    Elsewhere,
    /// The AWS SDK's own; from the environment the SDK reads it itself.
    Sdk,
}

use Role::{Elsewhere, Sdk, Setting};

/// Name and role of each, in byte order.
pub(super) const KNOWN: &[(&str, Role)] = &[
    ("ADAPTIVE_WARM_POOL", Setting),
    ("ADDITIONAL_ENI_TAGS", Setting),
    ("ANNOTATE_POD_IP", Setting),
    ("AWS_ACCESS_KEY_ID", Sdk),
    ("AWS_CA_BUNDLE", Setting),
    ("AWS_CNI_ADD_DEADLINE", Setting),
    ("AWS_CNI_CONFIG", Setting),
    ("AWS_CNI_CONFLIST_CHAIN_DIR", Setting),
    ("AWS_CNI_ENICONFIG_DIR", Setting),
    ("AWS_CNI_IMPORT", Setting),
    ("AWS_CNI_KUBELET_CONFIG", Setting),
    ("AWS_CNI_MAX_PODS", Setting),
    ("AWS_CNI_NODE_ANNOTATIONS", Setting),
    ("AWS_CNI_NODE_LABELS", Setting),
    ("AWS_CNI_SOCKET", Setting),
    ("AWS_CNI_STATE_DIR", Setting),
    ("AWS_CONFIG_FILE", Sdk),
    ("AWS_CONTAINER_AUTHORIZATION_TOKEN", Sdk),
    ("AWS_CONTAINER_AUTHORIZATION_TOKEN_FILE", Sdk),
    ("AWS_CONTAINER_CREDENTIALS_FULL_URI", Sdk),
    ("AWS_CONTAINER_CREDENTIALS_RELATIVE_URI", Sdk),
    ("AWS_DEFAULT_REGION", Setting),
    ("AWS_EC2_ENDPOINT", Setting),
    ("AWS_EC2_METADATA_DISABLED", Sdk),
    ("AWS_EC2_METADATA_SERVICE_ENDPOINT", Setting),
    ("AWS_EC2_METADATA_SERVICE_ENDPOINT_MODE", Setting),
    ("AWS_ENDPOINT_URL", Setting),
    ("AWS_ENDPOINT_URL_EC2", Setting),
    ("AWS_ENDPOINT_URL_STS", Sdk),
    ("AWS_EXTERNAL_SERVICE_CIDRS", Setting),
    ("AWS_IGNORE_CONFIGURED_ENDPOINT_URLS", Sdk),
    ("AWS_MANAGE_ENIS_NON_SCHEDULABLE", Setting),
    ("AWS_MAX_ATTEMPTS", Setting),
    ("AWS_PROFILE", Sdk),
    ("AWS_REGION", Setting),
    ("AWS_RETRY_MODE", Elsewhere),
    ("AWS_ROLE_ARN", Sdk),
    ("AWS_ROLE_SESSION_NAME", Sdk),
    ("AWS_SDK_UA_APP_ID", Sdk),
    ("AWS_SECRET_ACCESS_KEY", Sdk),
    ("AWS_SESSION_TOKEN", Sdk),
    ("AWS_SHARED_CREDENTIALS_FILE", Sdk),
    ("AWS_STS_REGIONAL_ENDPOINTS", Sdk),
    ("AWS_USE_DUALSTACK_ENDPOINT", Sdk),
    ("AWS_USE_FIPS_ENDPOINT", Sdk),
    ("AWS_VPC_CNI_NODE_PORT_SUPPORT", Setting),
    ("AWS_VPC_ENI_MTU", Setting),
    ("AWS_VPC_K8S_CNI_BACKING_STORE", Setting),
    ("AWS_VPC_K8S_CNI_CONFIGURE_RPFILTER", Elsewhere),
    ("AWS_VPC_K8S_CNI_CONNMARK", Setting),
    ("AWS_VPC_K8S_CNI_CUSTOM_NETWORK_CFG", Setting),
    ("AWS_VPC_K8S_CNI_EXCLUDE_SNAT_CIDRS", Setting),
    ("AWS_VPC_K8S_CNI_EXTERNALSNAT", Setting),
    ("AWS_VPC_K8S_CNI_LOGLEVEL", Setting),
    ("AWS_VPC_K8S_CNI_LOG_FILE", Setting),
    ("AWS_VPC_K8S_CNI_RANDOMIZESNAT", Setting),
    ("AWS_VPC_K8S_CNI_VETHPREFIX", Setting),
    ("AWS_VPC_K8S_EGRESS_V4_PLUGIN_LOG_FILE", Elsewhere),
    ("AWS_VPC_K8S_EGRESS_V6_PLUGIN_LOG_FILE", Elsewhere),
    ("AWS_VPC_K8S_PLUGIN_LOG_FILE", Setting),
    ("AWS_VPC_K8S_PLUGIN_LOG_LEVEL", Setting),
    ("AWS_WEB_IDENTITY_TOKEN_FILE", Sdk),
    ("CLUSTER_ENDPOINT", Elsewhere),
    ("CLUSTER_NAME", Setting),
    ("DISABLE_INTROSPECTION", Setting),
    ("DISABLE_LEAKED_ENI_CLEANUP", Setting),
    ("DISABLE_METRICS", Setting),
    ("DISABLE_NETWORK_RESOURCE_PROVISIONING", Setting),
    ("DISABLE_POD_V6", Setting),
    ("DISABLE_TCP_EARLY_DEMUX", Setting),
    ("ENABLE_BANDWIDTH_PLUGIN", Setting),
    ("ENABLE_IMDS_ONLY_MODE", Setting),
    ("ENABLE_IPv4", Setting),
    ("ENABLE_IPv6", Setting),
    ("ENABLE_MULTI_NIC", Setting),
    ("ENABLE_NFTABLES", Elsewhere),
    ("ENABLE_POD_ENI", Setting),
    ("ENABLE_PREFIX_DELEGATION", Setting),
    ("ENABLE_SUBNET_DISCOVERY", Setting),
    ("ENABLE_V4_EGRESS", Elsewhere),
    ("ENABLE_V6_EGRESS", Setting),
    ("ENI_CONFIG_ANNOTATION_DEF", Setting),
    ("ENI_CONFIG_LABEL_DEF", Setting),
    ("HOST_CNI_BIN_PATH", Elsewhere),
    ("HOST_CNI_CONFDIR_PATH", Elsewhere),
    ("HTTPS_PROXY", Sdk),
    ("HTTP_PROXY", Sdk),
    ("HTTP_TIMEOUT", Setting),
    ("INTROSPECTION_BIND_ADDRESS", Setting),
    ("IP_COOLDOWN_PERIOD", Setting),
    ("KUBECONFIG", Elsewhere),
    ("MANAGE_UNTAGGED_ENI", Setting),
    ("MAX_ENI", Setting),
    ("MINIMUM_IP_TARGET", Setting),
    ("MY_NODE_NAME", Elsewhere),
    ("MY_POD_NAME", Elsewhere),
    ("NETWORK_POLICY_ENFORCING_MODE", Setting),
    ("NO_PROXY", Sdk),
    ("POD_MTU", Setting),
    ("POD_SECURITY_GROUP_ENFORCING_MODE", Elsewhere),
    ("RULE_LAYOUT", Setting),
    ("VPC_CNI_VERSION", Elsewhere),
    ("VPC_ID", Elsewhere),
    ("WARM_ENI_TARGET", Setting),
    ("WARM_IP_TARGET", Setting),
    ("WARM_PREFIX_TARGET", Setting),
    ("http_proxy", Sdk),
    ("https_proxy", Sdk),
    ("no_proxy", Sdk),
];

/// Names that start like this are meant for this program, whoever else's variables stand beside them.
const OURS: &[&str] = &[
    "AWS_CNI_",
    "AWS_VPC_",
    "ADAPTIVE_WARM",
    "WARM_",
    "MINIMUM_IP",
    "MAX_ENI",
    "ENI_CONFIG_",
    "IP_COOLDOWN",
];

pub(super) fn role(name: &str) -> Option<Role> {
    KNOWN
        .iter()
        .find(|(known, _)| *known == name)
        .map(|(_, role)| *role)
}

/// Whether an unknown name in the process environment is worth a word.
///
/// The environment also carries what is none of our business, so only names that look like ours count.
pub(super) fn looks_like_ours(name: &str) -> bool {
    let upper = name.to_ascii_uppercase();
    OURS.iter().any(|prefix| upper.starts_with(prefix)) || suggestion(name).is_some()
}

/// The known variable that `name` was probably meant to be.
pub(super) fn suggestion(name: &str) -> Option<&'static str> {
    let upper = name.to_ascii_uppercase();
    let names = || {
        KNOWN
            .iter()
            .filter(|(_, role)| *role == Setting)
            .map(|(known, _)| *known)
    };
    let shortened = || {
        let tail = format!("_{upper}");
        // A single word is too common to be ours: SOCKET, CONFIG.
        let telling = upper.contains('_') || upper.len() >= 8;
        names().find(|known| telling && known.to_ascii_uppercase().ends_with(&tail))
    };
    // A seventh of the letters, at least one: more than that is another word.
    let most = |known: &str| (known.len() / 7).max(1);
    let letters = upper.chars().count();
    let closest = names()
        // The difference in length is the least that must change; comparing costs the product of both.
        .filter(|known| known.len().abs_diff(letters) <= most(known))
        .map(|known| (distance(&upper, &known.to_ascii_uppercase()), known))
        .min_by_key(|(distance, _)| *distance)
        .filter(|(distance, known)| *distance <= most(known));
    closest.map(|(_, known)| known).or_else(shortened)
}

/// How many letters must be inserted, removed, replaced or swapped with their neighbour (optimal string alignment).
pub(super) fn distance(a: &str, b: &str) -> usize {
    let a: Vec<char> = a.chars().collect();
    let mut before: Vec<usize> = Vec::new();
    let mut above: Vec<usize> = (0..=a.len()).collect();
    let mut previous_b = None;
    for (row, cb) in b.chars().enumerate() {
        let mut current = vec![row.saturating_add(1)];
        for (column, ca) in a.iter().enumerate() {
            let at = |line: &[usize], index: usize| line.get(index).copied().unwrap_or(usize::MAX);
            let replaced = at(&above, column).saturating_add(usize::from(*ca != cb));
            let inserted = at(&above, column.saturating_add(1)).saturating_add(1);
            let removed = at(&current, column).saturating_add(1);
            let mut best = replaced.min(inserted).min(removed);
            let left = column.checked_sub(1);
            if left.and_then(|left| a.get(left)) == Some(&cb) && previous_b == Some(*ca) {
                best = best.min(at(&before, left.unwrap_or_default()).saturating_add(1));
            }
            current.push(best);
        }
        before = std::mem::replace(&mut above, current);
        previous_b = Some(cb);
    }
    above.last().copied().unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_table_is_sorted_and_free_of_duplicates() {
        assert!(KNOWN.is_sorted_by(|a, b| a.0 < b.0));
    }

    #[test]
    fn distances() {
        for (a, b, expected) in [
            ("", "", 0),
            ("", "abc", 3),
            ("abc", "abc", 0),
            ("abc", "acb", 1),
            ("kitten", "sitting", 3),
        ] {
            assert_eq!(distance(a, b), expected, "{a} {b}");
        }
    }

    #[test]
    fn typing_errors_find_their_variable() {
        for (typed, meant) in [
            ("WARM_IP_TARGETS", "WARM_IP_TARGET"),
            ("WARM_ENI_TRAGET", "WARM_ENI_TARGET"),
            ("ENABLE_IPV4", "ENABLE_IPv4"),
            ("ENABLE_PREFIX_DELEGATON", "ENABLE_PREFIX_DELEGATION"),
            ("EXCLUDE_SNAT_CIDRS", "AWS_VPC_K8S_CNI_EXCLUDE_SNAT_CIDRS"),
            ("EXTERNALSNAT", "AWS_VPC_K8S_CNI_EXTERNALSNAT"),
            ("AWS_VPC_K8S_CNI_EXTERNAL_SNAT", "AWS_VPC_K8S_CNI_EXTERNALSNAT"),
            ("AWS_VPC_K8S_CNI_VETH_PREFIX", "AWS_VPC_K8S_CNI_VETHPREFIX"),
            ("aws_cni_socket", "AWS_CNI_SOCKET"),
            ("RULES_LAYOUT", "RULE_LAYOUT"),
        ] {
            assert_eq!(suggestion(typed), Some(meant), "{typed}");
        }
    }

    #[test]
    fn the_rest_of_the_environment_is_left_alone() {
        for name in [
            "PATH",
            "HOME",
            "LANG",
            "TERM",
            "NOTIFY_SOCKET",
            "JOURNAL_STREAM",
            "INVOCATION_ID",
            "USER",
            "SHLVL",
            "LOGNAME",
            "WATCHDOG_USEC",
            "LISTEN_FDS",
            "AWS_EXECUTION_ENV",
            "HOSTNAME",
            "PWD",
            "KUBERNETES_SERVICE_HOST",
            "SOCKET",
            "CONFIG",
            "DEBUG",
            "ENABLE_FEATURE_X",
        ] {
            assert!(!looks_like_ours(name), "{name} -> {:?}", suggestion(name));
        }
        assert!(looks_like_ours("AWS_VPC_K8S_CNI_FROBNICATE"));
        assert_eq!(suggestion("AWS_VPC_K8S_CNI_FROBNICATE"), None);
    }
}
