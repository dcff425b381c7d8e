//! The lab's endpoints against strangers: AWS's Python client, and moto's table of instance types.
//!
//! Needs a Python package index the first time, to fill the environment that `scripts/python-venv.sh` makes.

#![allow(
    clippy::expect_used,
    clippy::indexing_slicing,
    clippy::panic,
    clippy::unwrap_used,
    reason = "a test fails by panicking, in its helpers, too"
)]

use std::collections::BTreeMap;
use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::OnceLock;
use std::time::Duration;

use aws_cni_lab::calls::{Outcome, Service};
use aws_cni_lab::cloud::{Cloud, CloudConfig};
use aws_cni_lab::faults::{Bucket, Effect, Latency, Rule, Scope, glob};
use aws_cni_lab::http::Server;
use aws_cni_lab::vpc::{GroupId, InstanceId, NewInstance, SubnetId, VpcId, instance_types};
use serde_json::{Value, json};

fn here(path: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join(path)
}

/// The interpreter of an environment with boto3 and moto.
fn python() -> &'static Path {
    static PYTHON: OnceLock<PathBuf> = OnceLock::new();
    PYTHON.get_or_init(|| {
        let venv = Path::new(env!("CARGO_TARGET_TMPDIR")).join("python-venv");
        let made = Command::new(here("../../scripts/python-venv.sh"))
            .arg(&venv)
            .output()
            .expect("scripts/python-venv.sh can be started");
        assert!(
            made.status.success(),
            "boto3 and moto are needed for these tests and could not be installed:\n{}{}",
            String::from_utf8_lossy(&made.stdout),
            String::from_utf8_lossy(&made.stderr)
        );
        venv.join("bin/python")
    })
}

/// Runs a script of `boto/` with its lab description; its output is shown when it fails.
fn run(script: &str, arguments: &[&str], lab: &Value, more: &[(&str, String)]) {
    let output = Command::new(python())
        .arg(here("boto").join(script))
        .args(arguments)
        .env_clear()
        .env("LAB", lab.to_string())
        .env("AWS_CONFIG_FILE", "/nonexistent")
        .env("AWS_SHARED_CREDENTIALS_FILE", "/nonexistent")
        .envs(more.iter().map(|(name, value)| (*name, value)))
        .output()
        .expect("python can be started");
    let (out, err) = (
        String::from_utf8_lossy(&output.stdout),
        String::from_utf8_lossy(&output.stderr),
    );
    assert!(output.status.success(), "{script} {arguments:?}\n{out}\n{err}");
    assert!(
        err.contains("Ran ") && !err.contains("Ran 0 tests"),
        "{script}: {err}"
    );
}

struct Lab {
    cloud: Cloud,
    vpc: VpcId,
    group: GroupId,
    nodes: SubnetId,
}

impl Lab {
    fn new() -> Self {
        let cloud = Cloud::new(&CloudConfig::default()).unwrap();
        let (vpc, group, nodes) = cloud.model(|model| {
            let cidrs = ["10.0.0.0/16".parse().unwrap(), "100.64.0.0/16".parse().unwrap()];
            let vpc = model.create_vpc(&cidrs, Some("fd00:1::/56".parse().unwrap()));
            let group = model.create_group(&vpc, "nodes").unwrap();
            let cidr = "10.0.0.0/21".parse().unwrap();
            let nodes = model.create_subnet(&vpc, "eu-central-1a", cidr, None).unwrap();
            (vpc, group, nodes)
        });
        Self {
            cloud,
            vpc,
            group,
            nodes,
        }
    }

    fn subnet(&self, cidr: &str, ipv6: Option<&str>) -> SubnetId {
        let ipv6 = ipv6.map(|text| text.parse().unwrap());
        self.cloud
            .model(|model| model.create_subnet(&self.vpc, "eu-central-1a", cidr.parse().unwrap(), ipv6))
            .unwrap()
    }

    fn node(&self, instance_type: &str) -> InstanceId {
        let spec = NewInstance::new(instance_type, &self.nodes, &self.group);
        self.cloud.run_instance(spec).unwrap().id
    }

    fn ec2(&self, node: Option<&InstanceId>) -> (Server, String) {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let server = self.cloud.serve_ec2_for(listener, node.cloned()).unwrap();
        let endpoint = format!("http://{}", server.local_addr());
        (server, endpoint)
    }
}

#[test]
fn every_action_as_boto3_reads_it() {
    let lab = Lab::new();
    let node_types = ["m5.large", "t3.medium", "t3.small"];
    let nodes: BTreeMap<&str, InstanceId> = node_types.map(|kind| (kind, lab.node(kind))).into();
    let subnets = json!({
        "nodes": lab.nodes,
        "tiny": lab.subnet("10.0.8.0/28", None),
        "exact": lab.subnet("10.0.9.0/24", None),
        "v6": lab.subnet("10.0.10.0/24", Some("fd00:1::/64")),
    });
    let groups: Vec<GroupId> = (0..6)
        .map(|n| {
            lab.cloud
                .model(|model| model.create_group(&lab.vpc, &format!("group {n}")).unwrap())
        })
        .collect();
    let (_server, endpoint) = lab.ec2(None);
    let description = json!({
        "endpoint": endpoint,
        "region": "eu-central-1",
        "zone": "eu-central-1a",
        "vpc": lab.vpc,
        "subnets": subnets,
        "group": lab.group,
        "other_group": groups[0],
        "many_groups": groups,
        "nodes": nodes,
    });
    run("ec2.py", &[], &description, &[]);
    let called = lab.cloud.calls().counters(Service::Ec2, 0);
    for action in [
        "AssignIpv6Addresses",
        "AssignPrivateIpAddresses",
        "AttachNetworkInterface",
        "CreateNetworkInterface",
        "CreateTags",
        "DeleteNetworkInterface",
        "DescribeInstanceTypes",
        "DescribeInstances",
        "DescribeNetworkInterfaces",
        "DescribeSecurityGroups",
        "DescribeSubnets",
        "DescribeVpcs",
        "DetachNetworkInterface",
        "ModifyNetworkInterfaceAttribute",
        "UnassignIpv6Addresses",
        "UnassignPrivateIpAddresses",
    ] {
        let succeeded = lab
            .cloud
            .calls()
            .of(action)
            .iter()
            .any(aws_cni_lab::calls::Call::is_ok);
        assert!(succeeded, "{action} never succeeded: {called:?}");
    }
    let unanswered = lab
        .cloud
        .calls()
        .select(|call| matches!(call.outcome, Outcome::Lost { .. }));
    assert!(unanswered.is_empty());
}

#[test]
fn faults_look_like_awss_to_boto3() {
    let lab = Lab::new();
    let (server, endpoint) = lab.ec2(None);
    let faults = lab.cloud.faults();
    faults.inject(Rule::ec2_error("DescribeVpcs", "RequestLimitExceeded", "Request limit exceeded.").once());
    faults.inject(Rule::ec2_error(
        "CreateTags",
        "UnauthorizedOperation",
        "You are not authorized to perform this operation.",
    ));
    faults.inject(Rule::ec2("CreateNetworkInterface", Effect::LoseAnswer).once());
    faults.inject(Rule::ec2("DescribeSubnets", Effect::LoseAnswer));
    faults.inject(Rule::ec2(
        "DescribeSecurityGroups",
        Effect::DelayAfter(Latency::Fixed(Duration::from_secs(2))),
    ));
    faults.add_bucket(Scope::All, "DescribeInstances", Bucket::new(4.0, 0.0));
    let description = json!({"endpoint": endpoint, "region": "eu-central-1", "subnet": lab.nodes});
    run("faults.py", &["Faults"], &description, &[]);

    let calls = lab.cloud.calls();
    let throttled = Outcome::Error("RequestLimitExceeded".to_owned());
    let outcomes: Vec<Outcome> = calls
        .of("DescribeVpcs")
        .into_iter()
        .map(|call| call.outcome)
        .collect();
    assert_eq!(outcomes, [throttled, Outcome::Ok]);
    let creates = calls.of("CreateNetworkInterface");
    assert_eq!(creates[0].outcome, Outcome::Lost { happened: true });
    assert_eq!(creates[1].outcome, Outcome::Ok);
    assert_eq!(creates[0].param("ClientToken"), creates[1].param("ClientToken"));
    assert_eq!(creates[0].param("Description"), Some("lost"));
    assert_eq!(lab.cloud.model(|model| model.enis().len()), 1);

    // Refusing works on a listener with a port of its own choice only.
    let port = server.local_addr().port();
    drop(server);
    let listener = TcpListener::bind(("127.0.0.1", port)).unwrap();
    let server = lab.cloud.serve_ec2(listener).unwrap();
    server.refuse(true).unwrap();
    run("faults.py", &["Down"], &description, &[]);
}

#[test]
fn imds_as_botocore_reads_it() {
    let lab = Lab::new();
    let node = lab.node("m5.large");
    let (_ec2, endpoint) = lab.ec2(Some(&node));
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let server = lab.cloud.serve_imds_for(listener, Some(node.clone())).unwrap();
    let description = json!({"endpoint": endpoint, "region": "eu-central-1"});
    let imds = format!("http://{}/", server.local_addr());
    let environment = [("AWS_EC2_METADATA_SERVICE_ENDPOINT", imds)];
    run("imds.py", &[], &description, &environment);
    let calls = lab.cloud.calls().all();
    assert!(calls.iter().all(|call| call.instance.as_ref() == Some(&node)));
}

/// "addresses hypervisor bare-metal cards".
fn ours() -> BTreeMap<String, String> {
    instance_types::builtin()
        .into_values()
        .map(|kind| {
            let cards: Vec<String> = kind
                .cards
                .iter()
                .map(|card| format!("{}:{}", card.index, card.enis))
                .collect();
            let line = format!(
                "{} {} {} {}",
                kind.addresses_per_eni,
                kind.hypervisor,
                kind.bare_metal,
                cards.join(";")
            );
            (kind.name, line)
        })
        .collect()
}

fn theirs() -> BTreeMap<String, String> {
    let output = Command::new(python())
        .arg(here("boto/limits.py"))
        .output()
        .unwrap();
    assert!(
        output.status.success(),
        "{}",
        String::from_utf8_lossy(&output.stderr)
    );
    String::from_utf8(output.stdout)
        .unwrap()
        .lines()
        .map(|line| {
            let fields: Vec<&str> = line.split(',').collect();
            (fields[0].to_owned(), fields[1..5].join(" "))
        })
        .collect()
}

#[test]
fn instance_limits_agree_with_motos_but_for_explained_differences() {
    let (ours, theirs) = (ours(), theirs());
    assert!(theirs.len() > 1000, "{}", theirs.len());
    let file = std::fs::read_to_string(here("boto/limits.differences")).unwrap();
    let explained: Vec<Vec<&str>> = file
        .lines()
        .filter(|line| !line.is_empty() && !line.starts_with('#'))
        .map(|line| line.split('|').map(str::trim).collect())
        .collect();
    let mut used = vec![false; explained.len()];
    let mut unexplained = Vec::new();
    let names: std::collections::BTreeSet<&String> = ours.keys().chain(theirs.keys()).collect();
    for name in names {
        let side = |table: &BTreeMap<String, String>| table.get(name).map_or("-", String::as_str).to_owned();
        let (our, their) = (side(&ours), side(&theirs));
        if our == their {
            continue;
        }
        let reason = explained
            .iter()
            .position(|entry| glob(entry[0], name) && glob(entry[1], &our) && glob(entry[2], &their));
        match reason {
            Some(index) => used[index] = true,
            None => unexplained.push(format!("{name} | {our} | {their} |")),
        }
    }
    assert!(unexplained.is_empty(), "unexplained:\n{}", unexplained.join("\n"));
    let stale: Vec<&str> = explained
        .iter()
        .zip(&used)
        .filter(|(_, used)| !**used)
        .map(|(entry, _)| entry[0])
        .collect();
    assert!(stale.is_empty(), "explained, but no difference: {stale:?}");
}
