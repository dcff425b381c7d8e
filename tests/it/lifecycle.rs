//! Starting, stopping, and what systemd is told.

use std::path::PathBuf;
use std::time::{Duration, Instant};

use aws_cni_lab::calls::Service;
use aws_cni_lab::faults::{Effect, Latency, Outage, Rule, Scope};
use aws_cni_lab::lab::Lab;
use aws_cni_lab::varlink::CallError;
use aws_cni_lab::vpc::{Eni, GroupId, Modify};
use nix::sys::signal::Signal;
use serde_json::json;

use crate::scene::{PATIENCE, Scene, addresses, said};

/// A scene whose IMDS cannot be reached.
fn without_imds() -> Scene {
    let scene = Scene::stage(Lab::builder(), "m5.large", &[]);
    let faults = scene.lab.cloud().faults();
    faults.outage(Service::Imds, Scope::All, Some(Outage::Reset));
    scene
}

fn heal_imds(scene: &Scene) {
    let faults = scene.lab.cloud().faults();
    faults.outage(Service::Imds, Scope::All, None);
}

fn assert_detached_nothing(scene: &Scene) {
    for action in [
        "DetachNetworkInterface",
        "DeleteNetworkInterface",
        "UnassignPrivateIpAddresses",
    ] {
        let calls = scene.lab.cloud().calls().count(action);
        assert_eq!(calls, 0, "{action}\n{}", scene.log());
    }
}

#[test]
fn ipamd_61_sigterm_ends_the_daemon_with_success_and_touches_neither_pods_nor_interfaces() {
    let mut scene = Scene::new("m5.large");
    let pods = scene.pods("stay", 12);
    scene.add(&pods, 6);
    scene.settle();
    let addresses = addresses(&pods);
    let owned = scene.ec2_addresses();
    let status = scene.daemon().terminate(PATIENCE).unwrap();
    assert_eq!(status.code(), Some(0), "{}", scene.log());
    assert_eq!(scene.pod_routes(), addresses);
    assert_eq!(scene.ec2_addresses(), owned);
    assert_detached_nothing(&scene);
    scene.start();
    scene.check(&pods);
    scene.del(&pods, 6);
    scene.check_empty(3);
}

/// Here not even what is under way is waited for: it is an intent in the store, and goes on after the next start.
#[test]
fn ipamd_61_after_sigterm_growth_goes_no_further_until_the_next_start() {
    let mut scene = Scene::new("m5.large");
    scene.settle();
    let delay = Effect::DelayBefore(Latency::millis(500));
    let slow = Rule::ec2("CreateNetworkInterface", delay);
    let rule = scene.faults().inject(slow);
    let pods = scene.pods("web", 1);
    scene.add(&pods, 1);
    scene.eventually("a warm ENI to be asked for", || scene.faults().hits(rule) > 0);
    let status = scene.daemon().terminate(PATIENCE).unwrap();
    assert_eq!(status.code(), Some(0), "{}", scene.log());
    scene.eventually("EC2 to have made it", || scene.all_enis().len() == 2);
    let calls = scene.lab.cloud().calls();
    assert_eq!(
        calls.count("AttachNetworkInterface"),
        0,
        "{:?}",
        calls.counters(Service::Ec2, 0)
    );
    scene.start();
    scene.settle_at(18);
    scene.check_enis(2);
    scene.check(&pods);
    assert_detached_nothing(&scene);
}

/// An Unassign of the Go daemon that fails is repeated every minute with other addresses, those that rest among them.
#[test]
fn ipamd_77_fault_9_what_is_surplus_or_rests_is_kept() {
    let mut scene = Scene::with_env("m5.large", &[("IP_COOLDOWN_PERIOD", "1")]);
    let pods = scene.pods("many", 20);
    scene.add(&pods, 20);
    scene.settle_at(27);
    let owned = scene.ec2_addresses();
    scene.del(&pods, 20);
    scene.set_env("WARM_ENI_TARGET", "0");
    scene.restart();
    scene.wait_for("the last address to have rested", |status| status["cooling"] == 0);
    let few = scene.pods("few", 2);
    scene.add(&few, 2);
    scene.settle_at(27);
    scene.check(&few);
    assert_eq!(scene.ec2_addresses(), owned);
    assert_detached_nothing(&scene);
}

#[test]
fn sigterm_before_imds_has_answered_ends_the_daemon_with_success() {
    let mut scene = without_imds();
    scene.launch();
    scene
        .daemon()
        .wait_log("cannot find out which node", PATIENCE)
        .unwrap();
    let status = scene.daemon().terminate(PATIENCE).unwrap();
    assert_eq!(status.code(), Some(0), "{}", scene.log());
    heal_imds(&scene);
    scene.start();
    let pods = scene.pods("web", 1);
    scene.add(&pods, 1);
    scene.check(&pods);
}

#[test]
fn while_starting_status_answers_why_adds_wait_and_systemd_is_not_told_ready() {
    let mut scene = without_imds();
    scene.launch();
    scene
        .daemon()
        .wait_log("cannot find out which node", PATIENCE)
        .unwrap();
    match scene.node.call_ipamd("Status", &json!({})) {
        Err(CallError::Refused {
            error, parameters, ..
        }) => {
            assert!(error.ends_with("Starting"), "{error}");
            assert!(
                parameters["next_step"].as_str().unwrap().contains("IMDS"),
                "{parameters}"
            );
        }
        other => panic!("{other:?}"),
    }
    let status = scene.node.runtime().status().unwrap();
    assert_eq!(status.error_code(), Some(50), "{}", said(&status));
    assert!(
        scene.daemon().wait_ready(Duration::from_millis(200)).is_err(),
        "not ready yet"
    );
    let pods = scene.pods("early", 3);
    std::thread::scope(|scope| {
        let adds: Vec<_> = pods
            .iter()
            .map(|pod| scope.spawn(|| pod.add().unwrap()))
            .collect();
        heal_imds(&scene);
        for add in adds {
            let outcome = add.join().unwrap();
            assert!(outcome.succeeded(), "{}\n{}", said(&outcome), scene.log());
        }
    });
    scene.daemon().wait_ready(PATIENCE).unwrap();
    scene.check(&pods);
    assert!(scene.node.runtime().status().unwrap().succeeded());
}

#[test]
fn the_watchdog_is_fed_as_long_as_the_daemon_works() {
    let mut scene = Scene::stage(Lab::builder(), "m5.large", &[("WATCHDOG_USEC", "200000")]);
    scene.start();
    for _ in 0..5 {
        scene.daemon().wait_notification("WATCHDOG=1", PATIENCE).unwrap();
    }
    scene.daemon().signal(Signal::SIGTERM).unwrap();
    scene.daemon().wait_notification("STOPPING=1", PATIENCE).unwrap();
}

/// A second daemon on the scene's node, differing from the first in this, gives up and says this; the first goes on.
fn assert_second_daemon_refused(scene: &Scene, name: &str, value: PathBuf, says: &str) {
    let second = scene
        .node
        .daemon_spec(scene.node.dirs().bin.join("aws-cni"))
        .arg("ipamd")
        .env(name, value);
    let second = scene.node.start(second).unwrap();
    assert_eq!(second.wait(PATIENCE).unwrap().code(), Some(1));
    assert!(second.log().contains(says), "{}", second.log());
    let pods = scene.pods("web", 2);
    scene.add(&pods, 2);
    scene.check(&pods);
}

#[test]
fn a_second_daemon_on_the_same_state_is_refused_and_says_why() {
    let mut scene = Scene::stage(Lab::builder(), "m5.large", &[]);
    scene.start();
    let socket = scene.node.dirs().run.join("second.sock");
    assert_second_daemon_refused(&scene, "AWS_CNI_SOCKET", socket, "second ipamd");
}

#[test]
fn a_second_daemon_on_the_same_socket_is_refused_and_takes_it_from_nobody() {
    let mut scene = Scene::stage(Lab::builder(), "m5.large", &[]);
    scene.without_socket_activation();
    std::fs::remove_file(scene.node.dirs().socket()).unwrap();
    scene.start();
    let state = scene.node.dirs().root.join("second");
    assert_second_daemon_refused(&scene, "AWS_CNI_STATE_DIR", state, "another daemon listens");
}

#[test]
fn a_node_that_is_known_starts_and_serves_while_imds_and_ec2_are_away() {
    let mut scene = Scene::new("m5.large");
    let pods = scene.pods("before", 3);
    scene.add(&pods, 3);
    scene.settle();
    scene.kill();
    let faults = scene.lab.cloud().faults();
    faults.outage(Service::Imds, Scope::All, Some(Outage::BlackHole));
    faults.outage(Service::Ec2, Scope::All, Some(Outage::BlackHole));
    scene.start();
    scene.check(&pods);
    let new = scene.pods("during", 3);
    scene.add(&new, 3);
    scene.del(&pods, 3);
    scene.check(&new);
}

/// Other security groups for the primary ENI, as an operator gives them, and no others for what comes with it.
fn change_groups(scene: &Scene) -> Vec<GroupId> {
    let primary = scene.node.primary_eni().clone();
    scene.lab.cloud().model(|model| {
        let vpc = model.enis().get(&primary).unwrap().vpc.clone();
        let groups = vec![model.create_group(&vpc, "changed").unwrap()];
        let change = Modify::Groups(groups.clone());
        model.modify_eni(&primary, change, Instant::now()).unwrap();
        groups
    })
}

fn grown_by_one_eni(scene: &Scene) -> Eni {
    let pods = scene.pods("web", 10);
    scene.add(&pods, 10);
    scene.settle();
    let enis = scene.attached_enis();
    assert_eq!(enis.len(), 2);
    enis[1].clone()
}

#[test]
fn security_groups_changed_while_the_daemon_was_away_are_on_the_next_eni() {
    let mut scene = Scene::with_env("m5.large", &[("WARM_ENI_TARGET", "0")]);
    scene.settle();
    scene.kill();
    let groups = change_groups(&scene);
    scene.start();
    assert_eq!(grown_by_one_eni(&scene).groups, groups);
}

#[test]
fn changed_security_groups_are_known_from_imds_where_ec2_does_not_tell() {
    let mut scene = Scene::with_env("m5.large", &[("WARM_ENI_TARGET", "0")]);
    scene.settle();
    scene.kill();
    let groups = change_groups(&scene);
    let denied = Rule::ec2_error(
        "DescribeNetworkInterfaces",
        "UnauthorizedOperation",
        "not allowed",
    );
    scene.faults().inject(denied);
    scene.start();
    let wanted = serde_json::json!(groups.iter().map(ToString::to_string).collect::<Vec<_>>());
    scene.wait_until("the new groups", || {
        (scene.dump()["node"]["security_groups"] == wanted).then_some(())
    });
}
