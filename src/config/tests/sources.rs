//! Where settings come from: the environment, the file, the SDK's own variables.

use super::*;

/// Quirk Q13: the legacy variable reaches EC2 here, after the SDK's own two.
#[test]
fn ec2_endpoints_have_an_order() {
    let legacy = ("AWS_EC2_ENDPOINT", "http://legacy");
    let all = ("AWS_ENDPOINT_URL", "http://all");
    let ec2 = ("AWS_ENDPOINT_URL_EC2", "http://ec2");
    let endpoint = |pairs: &[(&str, &str)]| load(pairs).aws.ec2_endpoint;
    assert_eq!(endpoint(&[legacy]).as_deref(), Some("http://legacy"));
    assert_eq!(endpoint(&[legacy, all]).as_deref(), Some("http://all"));
    assert_eq!(endpoint(&[legacy, all, ec2]).as_deref(), Some("http://ec2"));
}

#[test]
fn metadata_mode_chooses_the_address_unless_one_is_given() {
    let mode = ("AWS_EC2_METADATA_SERVICE_ENDPOINT_MODE", "IPv6");
    let address = ("AWS_EC2_METADATA_SERVICE_ENDPOINT", "http://127.0.0.1:1");
    assert_eq!(
        load(&[mode]).aws.metadata_endpoint.as_deref(),
        Some("http://[fd00:ec2::254]")
    );
    assert_eq!(
        load(&[mode, address]).aws.metadata_endpoint.as_deref(),
        Some("http://127.0.0.1:1")
    );
}

#[test]
fn the_environment_wins_over_the_file_and_origins_are_kept() {
    let file = "# warm\nWARM_IP_TARGET=7\nWARM_ENI_TARGET=\"2\"\n";
    let environment = env(&[("WARM_IP_TARGET", "9"), ("AWS_CNI_CONFIG", "/etc/x.env")]);
    let config = Config::load(&environment, Some(file)).unwrap();
    assert_eq!((config.pool.warm_ip_target, config.pool.warm_eni_target), (9, 2));
    let origin = |name: &str| {
        config
            .settings
            .iter()
            .find(|s| s.name == name)
            .unwrap()
            .origin
            .to_string()
    };
    assert_eq!(origin("WARM_IP_TARGET"), "environment");
    assert_eq!(origin("WARM_ENI_TARGET"), "/etc/x.env:3");
    assert_eq!(origin("MAX_ENI"), "default");
}

#[test]
fn problems_of_the_file_name_their_line() {
    let file = "WARM_IP_TARGET=x\n\nAWS_VPC_ENI_MTU=99\nPOD_MTU=1\nnoise\nWARM_IP_TARGTE=1\nFOO=1\n";
    let errors = Config::load(&env(&[]), Some(file))
        .map(|_| ())
        .unwrap_err()
        .to_string();
    for expected in [
        "2 settings cannot be used:",
        "AWS_VPC_ENI_MTU=\"99\" (/etc/aws-cni/ipamd.env:3): not usable; allowed: a whole number from 576 to 9001",
        "POD_MTU=\"1\" (/etc/aws-cni/ipamd.env:4)",
        "warning: WARM_IP_TARGET=\"x\" (/etc/aws-cni/ipamd.env:1): not usable, 0 is used instead",
        "warning: /etc/aws-cni/ipamd.env:5: \"noise\" is not NAME=value",
        "(/etc/aws-cni/ipamd.env:6): no such setting; did you mean WARM_IP_TARGET?",
        "(/etc/aws-cni/ipamd.env:7): no such setting; it has no effect",
    ] {
        assert!(errors.contains(expected), "{expected}\n---\n{errors}");
    }
}

#[test]
fn an_unclosed_quote_prevents_a_start() {
    let errors = Config::load(&env(&[]), Some("CLUSTER_NAME=\"x\nWARM_IP_TARGET=1\n"))
        .map(|_| ())
        .unwrap_err();
    assert_eq!(errors.errors.len(), 1);
    assert!(
        errors.to_string().contains("/etc/aws-cni/ipamd.env:1: the quote"),
        "{errors}"
    );
}

#[test]
fn a_misspelt_variable_of_the_environment_is_noticed() {
    let config = load(&[
        ("ENABLE_IPV4", "true"),
        ("AWS_CNI_SOKET", "/x"),
        ("UNRELATED", "1"),
    ]);
    let names: Vec<_> = config.warnings.iter().map(ToString::to_string).collect();
    assert_eq!(names.len(), 2, "{names:?}");
    assert!(
        names
            .iter()
            .any(|text| text.ends_with("did you mean ENABLE_IPv4?")),
        "{names:?}"
    );
    assert!(
        names
            .iter()
            .any(|text| text.ends_with("did you mean AWS_CNI_SOCKET?")),
        "{names:?}"
    );
}

#[test]
fn credentials_of_the_file_reach_the_sdk_and_are_shown_to_nobody() {
    let file = "AWS_ACCESS_KEY_ID=AKIAX\nAWS_SECRET_ACCESS_KEY=hush-hush\nAWS_SESSION_TOKEN=token-x\nAWS_PROFILE=p\n\
                AWS_ROLE_ARN=arn:x\n";
    let config = Config::load(&env(&[]), Some(file)).unwrap();
    let key = config.aws.access_key.as_ref().unwrap();
    assert_eq!((key.id.as_str(), key.secret.as_str()), ("AKIAX", "hush-hush"));
    assert_eq!(config.aws.profile.as_deref(), Some("p"));
    let warnings: Vec<_> = config
        .warnings
        .iter()
        .map(|problem| problem.variable.as_str())
        .collect();
    assert_eq!(warnings, ["AWS_ROLE_ARN"]);
    let debug = format!("{config:?}");
    assert!(
        !debug.contains("hush-hush") && !debug.contains("token-x"),
        "{debug}"
    );
    // The SDK reads the environment itself, and a half-overridden key would be nobody's.
    let overridden = Config::load(&env(&[("AWS_ACCESS_KEY_ID", "B")]), Some(file)).unwrap();
    assert_eq!(overridden.aws.access_key, None);
}
