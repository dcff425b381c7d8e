//! Cases of the reference that need the real daemon and that no other test proves in passing, each by its number.

use std::fs;
use std::path::{Path, PathBuf};

use aws_cni_lab::calls::Service;
use aws_cni_lab::lab::Lab;
use aws_cni_lab::varlink;
use serde_json::{Value, json};

use crate::scene::{PATIENCE, Scene};

/// The environment of the Go daemon's release manifest.
const GO_MANIFEST: &str = include_str!("../data/go-manifest.env");

/// The machine's own directories are hidden from this daemon, as it uses the paths it has on a real node.
const A_ROOT_OF_ITS_OWN: &str = "unset AWS_CNI_SOCKET AWS_CNI_STATE_DIR
for path in /run /var/lib /var/log; do mount -t tmpfs none $path; done";

#[test]
fn the_go_daemons_manifest_and_nothing_else_starts_a_daemon_that_serves_at_the_documented_paths() {
    let settings = GO_MANIFEST.lines().filter_map(|line| line.split_once('='));
    let settings: Vec<_> = settings.collect();
    let mut scene = Scene::stage(Lab::builder(), "m5.large", &settings);
    scene.without_socket_activation();
    scene.prepare_mounts(A_ROOT_OF_ITS_OWN);
    scene.start();
    let root = PathBuf::from(format!("/proc/{}/root", scene.daemon().pid()));
    let socket = root.join("run/aws-cni/ipamd.sock");
    let status =
        || -> Value { varlink::call(&socket, "local.awscni.Ipamd1.Status", &json!({}), PATIENCE).unwrap() };
    scene.eventually("the primary ENI to be full", || status()["free"] == 9);
    assert!(root.join("var/lib/aws-cni/ipam").is_dir());
    let log = fs::read_to_string(root.join("var/log/aws-routed-eni/ipamd.log")).unwrap();
    assert!(log.contains("serving on /run/aws-cni/ipamd.sock"), "{log}");
    assert!(log.contains("DEBUG"), "{log}");
}

/// The Go daemon makes five calls: one of these two Describes less, and one that sets the groups that are there already.
#[test]
fn ipamd_1_a_fresh_node_asks_ec2_for_its_enis_and_for_addresses_and_nothing_else() {
    let scene = Scene::new("m5.large");
    scene.settle_at(9);
    let tags = || scene.calls_since(0, "CreateTags").len();
    scene.eventually("the primary ENI to be tagged", || tags() == 1);
    let calls = scene.lab.cloud().calls();
    let counters = calls.counters(Service::Ec2, 0);
    let expected = [
        ("AssignPrivateIpAddresses", 1),
        ("CreateTags", 1),
        ("DescribeNetworkInterfaces", 2),
        ("DescribeSubnets", 1),
    ];
    let counted: Vec<_> = counters.iter().map(|(name, n)| (name.as_str(), *n)).collect();
    assert_eq!(counted, expected);
    let assign = &calls.of("AssignPrivateIpAddresses")[0];
    assert_eq!(assign.param("SecondaryPrivateIpAddressCount"), Some("9"));
    let log = scene.log();
    assert!(!log.contains(" WARN ") && !log.contains(" ERROR "), "{log}");
}

fn descriptors(pid: i32) -> Vec<PathBuf> {
    let entries = fs::read_dir(format!("/proc/{pid}/fd")).unwrap();
    let targets = entries.filter_map(|entry| fs::read_link(entry.unwrap().path()).ok());
    targets.collect()
}

fn files_below(folder: &Path) -> Vec<PathBuf> {
    let mut found = Vec::new();
    for entry in fs::read_dir(folder).into_iter().flatten() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            found.extend(files_below(&path));
        } else {
            found.push(path);
        }
    }
    found
}

/// The Go daemon has 65 descriptors of deleted files after 60 operations, and leaves a temporary file at each kill.
#[test]
fn baseline_fault_3_neither_descriptors_nor_temporary_files_pile_up() {
    let mut scene = Scene::with_env("m5.large", &[("IP_COOLDOWN_PERIOD", "0"), ("MAX_ENI", "1")]);
    let churn = |scene: &Scene, round: usize| {
        for turn in 0..5 {
            let pods = scene.pods(&format!("r{round}t{turn}"), 8);
            scene.add(&pods, 4);
            scene.del(&pods, 4);
        }
    };
    churn(&scene, 0);
    let pid = scene.daemon().pid();
    let before = descriptors(pid).len();
    churn(&scene, 1);
    // The last connections may be closing yet.
    scene.eventually("the descriptors to be as many as before", || {
        descriptors(pid).len() <= before
    });
    let deleted = |path: &PathBuf| path.to_string_lossy().ends_with("(deleted)");
    let open = descriptors(pid);
    assert_eq!(open.iter().filter(|path| deleted(path)).count(), 0, "{open:#?}");

    let state = scene.node.dirs().state.clone();
    let count = files_below(&state).len();
    for round in 2..5 {
        churn(&scene, round);
        scene.restart();
    }
    let after = files_below(&state);
    assert!(after.len() <= count + 2, "{count} before, now {after:#?}");
}
