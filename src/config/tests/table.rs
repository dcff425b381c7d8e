//! Every variable's row: what it takes, what happens otherwise, and that the documentation has it.

use super::*;

/// Variable, value, effective value; a third field of `None` is an error. A warning is expected where noted.
/// Conformance besides the numbers in the test's name: ipamd 11.1 "Values", dataplane 0.4 and 8.1.
const TABLE: &[(&str, &str, Option<&str>, bool)] = &[
    ("ADAPTIVE_WARM_POOL", "true", Some("true"), false),
    ("ADAPTIVE_WARM_POOL", "", Some("false"), false),
    ("ADAPTIVE_WARM_POOL", "yes", Some("false"), true),
    ("WARM_IP_TARGET", "5", Some("5"), false),
    ("WARM_IP_TARGET", "+3", Some("3"), false),
    ("WARM_IP_TARGET", "4294967296", Some("0"), true),
    ("WARM_IP_TARGET", "", Some("0"), true),
    ("WARM_IP_TARGET", "-1", Some("0"), true),
    ("WARM_IP_TARGET", "x", Some("0"), true),
    ("WARM_IP_TARGET", " 3", Some("0"), true),
    ("WARM_ENI_TARGET", "0", Some("0"), false),
    ("WARM_ENI_TARGET", "-1", Some("1"), true),
    ("WARM_ENI_TARGET", "x", Some("1"), true),
    ("WARM_ENI_TARGET", "", Some("1"), true),
    ("WARM_ENI_TARGET", "2.5", Some("1"), true),
    ("WARM_PREFIX_TARGET", "1", Some("1"), false),
    ("WARM_PREFIX_TARGET", "0x3", Some("0"), true),
    ("WARM_PREFIX_TARGET", "00", Some("0"), false),
    ("WARM_PREFIX_TARGET", "2", Some("2"), true),
    ("MINIMUM_IP_TARGET", "0", Some("0"), false),
    ("MINIMUM_IP_TARGET", "12", Some("12"), true),
    ("MINIMUM_IP_TARGET", "", Some("0"), true),
    ("MAX_ENI", "3", Some("3"), false),
    ("MAX_ENI", "0", Some(""), true),
    ("MAX_ENI", "-1", Some(""), true),
    ("MAX_ENI", "x", Some(""), true),
    ("ADDITIONAL_ENI_TAGS", "xxxx", Some("{}"), true),
    ("IP_COOLDOWN_PERIOD", "0", Some("0"), false),
    ("IP_COOLDOWN_PERIOD", "1", Some("1"), false),
    ("IP_COOLDOWN_PERIOD", "", Some("30"), true),
    ("IP_COOLDOWN_PERIOD", "-1", None, false),
    ("IP_COOLDOWN_PERIOD", "x", None, false),
    ("AWS_VPC_K8S_CNI_EXTERNALSNAT", "true", Some("true"), false),
    ("AWS_VPC_K8S_CNI_EXTERNALSNAT", "", Some("false"), false),
    ("AWS_VPC_K8S_CNI_EXTERNALSNAT", "yes", Some("false"), true),
    (
        "AWS_VPC_K8S_CNI_EXCLUDE_SNAT_CIDRS",
        "10.9.1.1/8, 192.168.0.0/16",
        Some("10.0.0.0/8,192.168.0.0/16"),
        false,
    ),
    (
        "AWS_VPC_K8S_CNI_EXCLUDE_SNAT_CIDRS",
        "10.0.0.0/8,x,fd00::/8",
        Some("10.0.0.0/8"),
        true,
    ),
    ("AWS_VPC_K8S_CNI_EXCLUDE_SNAT_CIDRS", "", Some(""), false),
    (
        "AWS_EXTERNAL_SERVICE_CIDRS",
        "10.5.0.0/16",
        Some("10.5.0.0/16"),
        false,
    ),
    ("AWS_EXTERNAL_SERVICE_CIDRS", "10.5.0.0", Some(""), true),
    (
        "AWS_VPC_K8S_CNI_RANDOMIZESNAT",
        "hashrandom",
        Some("hashrandom"),
        false,
    ),
    ("AWS_VPC_K8S_CNI_RANDOMIZESNAT", "none", Some("none"), false),
    ("AWS_VPC_K8S_CNI_RANDOMIZESNAT", "", Some("prng"), false),
    ("AWS_VPC_K8S_CNI_RANDOMIZESNAT", "HashRandom", Some("prng"), true),
    ("AWS_VPC_K8S_CNI_CONNMARK", "0x100", Some("0x100"), false),
    ("AWS_VPC_K8S_CNI_CONNMARK", "0XfF00", Some("0xff00"), true),
    ("AWS_VPC_K8S_CNI_CONNMARK", "0x4000", Some("0x4000"), true),
    ("AWS_VPC_K8S_CNI_CONNMARK", "0400", Some("0x100"), false),
    ("AWS_VPC_K8S_CNI_CONNMARK", "0b11", None, false),
    ("AWS_VPC_K8S_CNI_CONNMARK", "1_000", None, false),
    ("AWS_VPC_K8S_CNI_CONNMARK", "0", Some("0x80"), true),
    ("AWS_VPC_K8S_CNI_CONNMARK", "-1", Some("0x80"), true),
    ("AWS_VPC_K8S_CNI_CONNMARK", "0x1ffffffff", Some("0x80"), true),
    ("AWS_VPC_K8S_CNI_CONNMARK", "x", Some("0x80"), true),
    ("AWS_VPC_CNI_NODE_PORT_SUPPORT", "F", Some("false"), false),
    ("AWS_VPC_CNI_NODE_PORT_SUPPORT", "", Some("true"), false),
    ("AWS_VPC_CNI_NODE_PORT_SUPPORT", "off", Some("true"), true),
    ("AWS_VPC_ENI_MTU", "1500", Some("1500"), false),
    ("AWS_VPC_ENI_MTU", "576", Some("576"), false),
    ("AWS_VPC_ENI_MTU", "575", None, false),
    ("AWS_VPC_ENI_MTU", "9002", None, false),
    ("AWS_VPC_ENI_MTU", "", None, false),
    ("AWS_VPC_ENI_MTU", "jumbo", None, false),
    ("POD_MTU", "5000", Some("5000"), false),
    ("POD_MTU", "", None, false),
    ("POD_MTU", "99999", None, false),
    ("AWS_VPC_K8S_CNI_VETHPREFIX", "cali", Some("cali"), false),
    ("AWS_VPC_K8S_CNI_VETHPREFIX", "eth", None, false),
    ("AWS_VPC_K8S_CNI_VETHPREFIX", "lo", None, false),
    ("AWS_VPC_K8S_CNI_VETHPREFIX", "vlan", None, false),
    ("AWS_VPC_K8S_CNI_VETHPREFIX", "abcde", None, false),
    ("AWS_VPC_K8S_CNI_VETHPREFIX", "", None, false),
    ("AWS_VPC_K8S_CNI_VETHPREFIX", "a/b", None, false),
    ("AWS_VPC_K8S_CNI_VETHPREFIX", "a+", None, false),
    ("RULE_LAYOUT", "per-pod", Some("per-pod"), false),
    ("RULE_LAYOUT", "Shared", None, false),
    ("ADDITIONAL_ENI_TAGS", r#"{"a":"b"}"#, Some(r#"{"a":"b"}"#), false),
    ("ADDITIONAL_ENI_TAGS", "nonsense", Some("{}"), true),
    (
        "ADDITIONAL_ENI_TAGS",
        r#"{"a":"b","x.k8s.amazonaws.com/y":"z"}"#,
        Some(r#"{"a":"b"}"#),
        true,
    ),
    ("CLUSTER_NAME", "prod", Some("prod"), false),
    ("CLUSTER_NAME", "", Some(""), false),
    ("HTTP_TIMEOUT", "2", Some("10"), true),
    ("HTTP_TIMEOUT", "12", Some("12"), false),
    ("HTTP_TIMEOUT", "x", Some("10"), true),
    ("AWS_MAX_ATTEMPTS", "5", Some("5"), false),
    ("AWS_MAX_ATTEMPTS", "0", Some("2"), true),
    ("DISABLE_TCP_EARLY_DEMUX", "true", Some("true"), false),
    ("DISABLE_INTROSPECTION", "true", Some("true"), false),
    ("DISABLE_METRICS", "1", Some("true"), false),
    ("DISABLE_METRICS", "", Some("false"), true),
    ("DISABLE_LEAKED_ENI_CLEANUP", "true", Some("true"), false),
    ("DISABLE_NETWORK_RESOURCE_PROVISIONING", "T", Some("true"), false),
    ("ENABLE_IMDS_ONLY_MODE", "true", Some("true"), false),
    ("MANAGE_UNTAGGED_ENI", "false", Some("false"), false),
    ("ENABLE_SUBNET_DISCOVERY", "false", Some("false"), false),
    ("AWS_MANAGE_ENIS_NON_SCHEDULABLE", "true", Some("true"), false),
    ("ENABLE_IPv4", "false", None, false),
    ("ENABLE_IPv4", "maybe", Some("true"), true),
    ("ENABLE_IPv6", "true", Some("true"), false),
    ("ENABLE_IPv6", "", Some("false"), true),
    ("ENABLE_PREFIX_DELEGATION", "false", Some("false"), false),
    ("ENABLE_PREFIX_DELEGATION", "true", Some("true"), true),
    ("ENABLE_PREFIX_DELEGATION", "", Some("false"), true),
    ("ENABLE_POD_ENI", "true", None, false),
    ("ENABLE_MULTI_NIC", "true", Some("true"), false),
    ("AWS_VPC_K8S_CNI_CUSTOM_NETWORK_CFG", "true", Some("true"), false),
    ("AWS_VPC_K8S_CNI_CUSTOM_NETWORK_CFG", "on", Some("false"), true),
    ("AWS_VPC_K8S_CNI_CUSTOM_NETWORK_CFG", "", Some("false"), false),
    ("ANNOTATE_POD_IP", "true", Some("true"), true),
    ("ENABLE_V6_EGRESS", "true", Some("true"), true),
    ("ENABLE_BANDWIDTH_PLUGIN", "true", Some("true"), false),
    ("DISABLE_POD_V6", "true", Some("true"), true),
    (
        "NETWORK_POLICY_ENFORCING_MODE",
        "STANDARD",
        Some("standard"),
        false,
    ),
    ("NETWORK_POLICY_ENFORCING_MODE", "none", Some("none"), false),
    ("NETWORK_POLICY_ENFORCING_MODE", "strict", None, false),
    ("NETWORK_POLICY_ENFORCING_MODE", "bogus", None, false),
    ("NETWORK_POLICY_ENFORCING_MODE", "", None, false),
    ("AWS_VPC_K8S_CNI_LOGLEVEL", "Warn", Some("warn"), false),
    ("AWS_VPC_K8S_CNI_LOGLEVEL", "verbose", Some("info"), true),
    ("AWS_VPC_K8S_CNI_LOG_FILE", "stdout", Some("stdout"), false),
    ("AWS_VPC_K8S_CNI_LOG_FILE", "stderr", Some("stderr"), false),
    (
        "AWS_VPC_K8S_CNI_LOG_FILE",
        "/var/log/x.log",
        Some("/var/log/x.log"),
        false,
    ),
    (
        "AWS_VPC_K8S_CNI_LOG_FILE",
        "/host/var/log/aws-routed-eni/ipamd.log",
        Some("/var/log/aws-routed-eni/ipamd.log"),
        true,
    ),
    ("AWS_VPC_K8S_CNI_LOG_FILE", "ipamd.log", Some("journald"), true),
    ("AWS_VPC_K8S_PLUGIN_LOG_FILE", "stderr", Some("stderr"), false),
    ("AWS_VPC_K8S_PLUGIN_LOG_FILE", "stdout", None, false),
    ("AWS_VPC_K8S_PLUGIN_LOG_LEVEL", "ERROR", Some("error"), false),
    (
        "AWS_VPC_K8S_CNI_BACKING_STORE",
        "/x/ipam.json",
        Some("/x/ipam.json"),
        false,
    ),
    (
        "AWS_VPC_K8S_CNI_BACKING_STORE",
        "",
        Some("/var/run/aws-node/ipam.json"),
        false,
    ),
    ("AWS_CNI_IMPORT", "false", Some("false"), false),
    ("AWS_CNI_IMPORT", "", Some("true"), false),
    (
        "INTROSPECTION_BIND_ADDRESS",
        "unix:/run/x",
        Some("unix:/run/x"),
        true,
    ),
    ("INTROSPECTION_BIND_ADDRESS", "", Some("127.0.0.1:61679"), true),
    ("AWS_CNI_SOCKET", "/run/x.sock", Some("/run/x.sock"), false),
    ("AWS_CNI_SOCKET", "x.sock", None, false),
    ("AWS_CNI_STATE_DIR", "/data", Some("/data"), false),
    ("AWS_CNI_STATE_DIR", "data", None, false),
    ("AWS_CNI_ADD_DEADLINE", "5", Some("5"), false),
    ("AWS_CNI_ADD_DEADLINE", "0", None, false),
    ("AWS_CNI_ADD_DEADLINE", "301", None, false),
    (
        "AWS_CNI_KUBELET_CONFIG",
        "/etc/kubelet.json",
        Some("/etc/kubelet.json"),
        false,
    ),
    (
        "AWS_CNI_KUBELET_CONFIG",
        "",
        Some("/etc/kubernetes/kubelet/config.json"),
        false,
    ),
    ("AWS_CNI_KUBELET_CONFIG", "kubelet.json", None, false),
    ("AWS_CNI_ENICONFIG_DIR", "/etc/enis", Some("/etc/enis"), true),
    (
        "AWS_CNI_ENICONFIG_DIR",
        "",
        Some("/etc/aws-cni/eniconfig.d"),
        false,
    ),
    ("AWS_CNI_ENICONFIG_DIR", "enis", None, false),
    (
        "AWS_CNI_NODE_LABELS",
        " pool=a,example.com/eni=eu-west-1a, empty=, ",
        Some("empty=,example.com/eni=eu-west-1a,pool=a"),
        true,
    ),
    ("AWS_CNI_NODE_LABELS", "", Some(""), false),
    ("AWS_CNI_NODE_LABELS", "pool", None, false),
    ("AWS_CNI_NODE_LABELS", "pool=a,pool=b", None, false),
    ("AWS_CNI_NODE_LABELS", "pool=a b", None, false),
    ("AWS_CNI_NODE_LABELS", "Example.com/x=a", None, false),
    ("AWS_CNI_NODE_LABELS", "=a", None, false),
    ("AWS_CNI_NODE_ANNOTATIONS", "note=a b=c", Some("note=a b=c"), true),
    ("AWS_CNI_NODE_ANNOTATIONS", "a/b/c=d", None, false),
    (
        "ENI_CONFIG_LABEL_DEF",
        "topology.kubernetes.io/zone",
        Some("topology.kubernetes.io/zone"),
        false,
    ),
    (
        "ENI_CONFIG_LABEL_DEF",
        "",
        Some("k8s.amazonaws.com/eniConfig"),
        false,
    ),
    ("ENI_CONFIG_LABEL_DEF", "a key", None, false),
    ("ENI_CONFIG_ANNOTATION_DEF", "eni", Some("eni"), false),
    ("ENI_CONFIG_ANNOTATION_DEF", "-eni", None, false),
    ("AWS_CNI_MAX_PODS", "110", Some("110"), false),
    ("AWS_CNI_MAX_PODS", "0", None, false),
    ("AWS_CNI_CONFIG", "/etc/x.env", Some("/etc/x.env"), false),
    ("AWS_CNI_CONFIG", "x.env", None, false),
    (
        "AWS_CNI_CONFLIST_CHAIN_DIR",
        "/etc/chain",
        Some("/etc/chain"),
        false,
    ),
    ("AWS_CNI_CONFLIST_CHAIN_DIR", "chain", None, false),
    ("AWS_REGION", "eu-west-1", Some("eu-west-1"), false),
    ("AWS_DEFAULT_REGION", "eu-west-1", Some("eu-west-1"), false),
    (
        "AWS_ENDPOINT_URL",
        "http://127.0.0.1:1",
        Some("http://127.0.0.1:1"),
        false,
    ),
    ("AWS_ENDPOINT_URL_EC2", "127.0.0.1:1", None, false),
    (
        "AWS_EC2_ENDPOINT",
        "https://ec2.local",
        Some("https://ec2.local"),
        false,
    ),
    (
        "AWS_EC2_METADATA_SERVICE_ENDPOINT",
        "http://127.0.0.1:1338",
        Some("http://127.0.0.1:1338"),
        false,
    ),
    ("AWS_EC2_METADATA_SERVICE_ENDPOINT", "https://x", None, false),
    (
        "AWS_EC2_METADATA_SERVICE_ENDPOINT_MODE",
        "IPv6",
        Some("IPv6"),
        false,
    ),
    ("AWS_EC2_METADATA_SERVICE_ENDPOINT_MODE", "IPv5", Some(""), true),
    ("AWS_CA_BUNDLE", "/etc/ca.pem", Some("/etc/ca.pem"), false),
    ("AWS_CA_BUNDLE", "ca.pem", None, false),
];

#[test]
fn dataplane_17_123_126_130_ipamd_13_14_18_47_81_118_119_every_value_is_taken_as_the_table_says() {
    for (name, value, effective, warned) in TABLE {
        let result = Config::load(&env(&[(name, value)]), None);
        match (effective, result) {
            (Some(effective), Ok(config)) => {
                assert_eq!(shown(&config, name), *effective, "{name}={value:?}");
                let mentioned = config.warnings.iter().any(|problem| problem.variable == *name);
                assert_eq!(
                    (mentioned, config.warnings.is_empty()),
                    (*warned, !*warned),
                    "{name}={value:?}"
                );
            }
            (None, Err(errors)) => {
                assert_eq!(errors.errors.len(), 1, "{name}={value:?}: {errors}");
                let text = errors.to_string();
                assert!(
                    text.contains(name) && text.contains(&format!("{value:?}")),
                    "{text}"
                );
                assert!(text.contains("(environment)"), "{text}");
            }
            (Some(_), Err(errors)) => panic!("{name}={value:?} was refused: {errors}"),
            (None, Ok(_)) => panic!("{name}={value:?} was accepted"),
        }
    }
}

/// EC2 would refuse every ENI, and only when one is needed.
#[test]
fn more_tags_than_ec2_takes_are_an_error_at_start_beside_all_others() {
    let tags = |count: usize| {
        let tags: BTreeMap<String, String> = (0..count)
            .map(|n| (format!("key{n}"), "\u{1F980}".repeat(256)))
            .collect();
        serde_json::to_string(&tags).unwrap()
    };
    let most = tags(45);
    assert_eq!(
        load(&[("ADDITIONAL_ENI_TAGS", &most)])
            .aws
            .additional_eni_tags
            .len(),
        45
    );
    let env = [
        ("ADDITIONAL_ENI_TAGS", tags(46)),
        ("CLUSTER_NAME", "c".repeat(257)),
        ("RULE_LAYOUT", "none".to_owned()),
    ];
    let env: BTreeMap<String, String> = env.map(|(name, value)| (name.to_owned(), value)).into();
    let refused = Config::load(&env, None).unwrap_err();
    let mut names: Vec<_> = refused
        .errors
        .iter()
        .map(|error| error.variable.as_str())
        .collect();
    names.sort_unstable();
    assert_eq!(names, ["ADDITIONAL_ENI_TAGS", "CLUSTER_NAME", "RULE_LAYOUT"]);
    assert!(refused.to_string().contains("at most 45 strings"), "{refused}");
}

#[test]
fn the_table_has_every_setting_and_every_setting_is_read() {
    let config = load(&[]);
    for (name, role) in KNOWN {
        let read = config
            .settings
            .iter()
            .filter(|setting| setting.name == *name)
            .count();
        let tabled = TABLE.iter().any(|(tabled, ..)| tabled == name);
        assert_eq!(
            (read, tabled),
            if *role == Role::Setting {
                (1, true)
            } else {
                (0, false)
            },
            "{name}"
        );
    }
}

/// A table's row in the documentation: variable, default, unit and limits, effect, origin.
fn documented() -> BTreeMap<String, [String; 4]> {
    let document = include_str!("../../../docs/configure.md");
    let mut rows = BTreeMap::new();
    for line in document.lines().filter(|line| line.starts_with("| `")) {
        let cells: Vec<&str> = line.trim_matches('|').split(" | ").map(str::trim).collect();
        let [name, default, limits, effect, origin] = cells.as_slice() else {
            continue;
        };
        let cells = [default, limits, effect, origin].map(|cell| (*cell).to_owned());
        let before = rows.insert(name.trim_matches('`').to_owned(), cells);
        assert_eq!(before, None, "{name} is documented twice");
    }
    rows
}

/// What a reader of the documentation believes is what the code does.
#[test]
fn the_documentation_has_a_row_for_every_setting_with_its_default_and_for_nothing_else() {
    let rows = documented();
    let config = load(&[]);
    let settings: Vec<&str> = KNOWN
        .iter()
        .filter(|(_, role)| *role == Role::Setting)
        .map(|(name, _)| *name)
        .collect();
    assert_eq!(rows.keys().map(String::as_str).collect::<Vec<_>>(), settings);
    for setting in &config.settings {
        let [default, limits, effect, origin] = &rows[setting.name];
        let default = default.trim_matches('`');
        // Where the code leaves a default to others, the document may say what theirs is.
        if !setting.value.is_empty() {
            assert_eq!(default, setting.value, "{}", setting.name);
        }
        assert!(!limits.is_empty() && !effect.is_empty(), "{}", setting.name);
        let is_ours = setting.name.starts_with("AWS_CNI_")
            || ["RULE_LAYOUT", "ADAPTIVE_WARM_POOL"].contains(&setting.name);
        assert_eq!(origin == "ours", is_ours, "{}", setting.name);
        assert!(["upstream", "SDK", "ours"].contains(&origin.as_str()), "{origin}");
        // A boolean's row says so.
        assert_eq!(
            limits == "boolean",
            ["true", "false"].contains(&setting.value.as_str()),
            "{}",
            setting.name
        );
    }
}

proptest::proptest! {
    #[test]
    fn no_value_panics_and_no_two_runs_differ(index in 0..TABLE.len(), value in ".{0,24}") {
        let name = TABLE[index].0;
        let first = Config::load(&env(&[(name, &value)]), None);
        proptest::prop_assert_eq!(&first, &Config::load(&env(&[(name, &value)]), None));
        if let Err(errors) = first {
            proptest::prop_assert!(!errors.errors.is_empty());
        }
    }
}
