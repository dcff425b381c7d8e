//! What cannot come: full instances, full subnets. Said at once, with the reason; nothing is left behind.

use std::net::Ipv4Addr;
use std::time::Duration;

use aws_cni_lab::calls::Call;
use aws_cni_lab::lab::{Lab, NodeSpec};
use aws_cni_lab::pod::{Pod, side_by_side};
use aws_cni_lab::vpc::Ipv4Cidr;
use serde_json::Value;

use crate::scene::{Scene, links_in, refused, said};

/// From the daemon's own clock: how long an address had rested when it was given out again.
fn rested_ms(scene: &Scene, address: Ipv4Addr) -> u64 {
    let since = scene.allocation(address)["since"].as_u64().unwrap();
    let released = scene.address(address)["last_used_ms"].as_u64();
    since - released.unwrap_or_else(|| panic!("{address} is not known to have been used before"))
}

#[test]
fn an_add_waits_for_an_address_that_comes_free_before_its_deadline() {
    let environment = [("IP_COOLDOWN_PERIOD", "2")];
    let scene = Scene::with_env("t3.nano", &environment);
    let pods = scene.pods("web", 2);
    scene.add(&pods, 2);
    scene.settle_at(2);
    let freed = pods[0].address().unwrap();
    scene.del(&pods[..1], 1);
    let next = scene.pods("next", 1);
    scene.add(&next, 1);
    assert_eq!(next[0].address(), Some(freed));
    assert!(rested_ms(&scene, freed) >= 2_000);
}

#[test]
fn a_full_pool_is_refilled_while_adds_wait_and_nobody_fails() {
    let scene = Scene::with_env("m5.large", &[("IP_COOLDOWN_PERIOD", "1")]);
    let mut pods = scene.pods("gen0", 27);
    scene.add(&pods, 27);
    scene.settle_at(27);
    for generation in 1..4 {
        scene.del(&pods, 27);
        pods = scene.pods(&format!("gen{generation}"), 27);
        scene.add(&pods, 27);
        scene.check(&pods);
        for pod in &pods {
            assert!(rested_ms(&scene, pod.address().unwrap()) >= 1_000);
        }
    }
}

#[test]
fn adds_and_dels_of_a_full_node_side_by_side_fail_nobody() {
    let scene = Scene::with_env("m5.large", &[("IP_COOLDOWN_PERIOD", "1")]);
    let pods = scene.pods("web", 24);
    scene.add(&pods, 24);
    scene.settle_at(27);
    // Each sandbox is replaced by a new one, eight at a time: 24 of 27 addresses are assigned or cooling throughout.
    let replacements = scene.pods("again", 24);
    let pairs: Vec<(&Pod, &Pod)> = pods.iter().zip(&replacements).collect();
    let outcomes = side_by_side(&pairs, 8, |(old, new)| (old.del().unwrap(), new.add().unwrap()));
    for (del, add) in &outcomes {
        assert!(del.succeeded(), "{}", said(del));
        assert!(add.succeeded(), "{}\n{}", said(add), scene.log());
    }
    scene.check(&replacements);
}

#[test]
fn the_cooldown_of_30_s_outlives_a_killed_daemon() {
    let mut scene = Scene::with_env("m5.large", &[("WARM_ENI_TARGET", "0"), ("MAX_ENI", "1")]);
    let pods = scene.pods("web", 9);
    scene.add(&pods, 9);
    let freed = pods[4].address().unwrap();
    scene.del(&pods[4..5], 1);
    let before = scene.address(freed);
    assert_eq!(before["state"], "cooling", "{before:#}");
    scene.restart();
    let after = scene.address(freed);
    assert_eq!(after["state"], "cooling", "{after:#}");
    assert_eq!(after["last_used_ms"], before["last_used_ms"]);
    let left = |known: &Value| known["detail"].as_str().unwrap().parse::<u64>().unwrap();
    assert!(left(&before) <= 30_000 && left(&after) <= left(&before));
    // Longer than an ADD waits: it is told so at once instead.
    let (_, message) = refused(&scene.patient_pods("next", 1, 1)[0]);
    assert!(message.contains("8 assigned, 1 cooling"), "{message}");
}

#[test]
fn ipamd_81_baseline_fault_1_an_address_rests_its_time_though_the_daemon_is_killed_meanwhile() {
    let mut scene = Scene::with_env("t3.nano", &[("IP_COOLDOWN_PERIOD", "4"), ("MAX_ENI", "1")]);
    let pods = scene.pods("web", 1);
    scene.add(&pods, 1);
    let freed = pods[0].address().unwrap();
    scene.del(&pods, 1);
    scene.restart();
    let next = scene.pods("next", 1);
    scene.add(&next, 1);
    assert_eq!(next[0].address(), Some(freed));
    assert!(rested_ms(&scene, freed) >= 4_000);
}

#[test]
fn what_rested_longest_is_used_first() {
    let scene = Scene::with_env("m5.large", &[("IP_COOLDOWN_PERIOD", "1"), ("MAX_ENI", "1")]);
    let pods = scene.pods("web", 9);
    scene.add(&pods, 1);
    scene.settle_at(9);
    let order = [3, 7, 0, 8, 1];
    let mut freed: Vec<_> = order.iter().map(|index| pods[*index].address()).collect();
    for index in order {
        scene.del(&pods[index..=index], 1);
    }
    scene.wait_for("all to have rested", |status| status["free"] == order.len());
    // One that the kernel still routed when it had rested, because a slow DEL was under way, rests anew.
    // Several may do so at once, and are then taken by number.
    freed.sort_by_key(|address| (scene.address(address.unwrap())["last_used_ms"].as_u64(), *address));
    let next = scene.pods("next", order.len());
    scene.add(&next, 1);
    let got: Vec<_> = next.iter().map(Pod::address).collect();
    assert_eq!(got, freed);
}

#[test]
fn ipamd_103_a_full_instance_refuses_with_its_numbers_and_leaks_nothing() {
    let scene = Scene::with_env("t3.medium", &[("IP_COOLDOWN_PERIOD", "0")]);
    let pods = scene.pods("web", 15);
    scene.add(&pods, 15);
    scene.settle_at(15);
    let (mark, enis) = (scene.mark(), scene.all_enis());
    let links = scene.pod_links().len();
    let late = scene.pods("late", 3);
    for pod in &late {
        let (code, message) = refused(pod);
        assert_eq!(code, 999, "{message}");
        for part in [
            "15 assigned",
            "3 ENIs",
            "limit of the instance type",
            "5 addresses",
            "next: ",
        ] {
            assert!(message.contains(part), "{part:?} is missing: {message}");
        }
    }
    // A pair made while the answer was awaited is deleted together with others, a moment later.
    scene.eventually("the pairs made in advance to go", || {
        scene.pod_links().len() == links
    });
    for pod in &late {
        assert_eq!(links_in(pod), ["lo"]);
    }
    assert_eq!(scene.all_enis(), enis);
    for action in [
        "CreateNetworkInterface",
        "AttachNetworkInterface",
        "AssignPrivateIpAddresses",
    ] {
        assert!(scene.calls_since(mark, action).is_empty(), "{action}");
    }
    let status = scene.status();
    assert_eq!(status["serving"], false, "{status:#}");
    assert!(
        status["reasons"][0].as_str().unwrap().contains("3 ENIs"),
        "{status:#}"
    );
    scene.del(&pods[..1], 1);
    scene.add(&late[..1], 1);
    assert_eq!(scene.count("assigned"), 15);
}

#[test]
fn max_eni_is_named_as_the_limit_it_is() {
    let scene = Scene::with_env("t3.medium", &[("MAX_ENI", "1")]);
    let pods = scene.pods("web", 5);
    scene.add(&pods, 5);
    let (_, message) = refused(&scene.pods("late", 1)[0]);
    assert!(message.contains("MAX_ENI"), "{message}");
}

#[test]
fn max_pods_is_named_as_the_limit_it_is() {
    let scene = Scene::with_env("t3.medium", &[("AWS_CNI_MAX_PODS", "5")]);
    let pods = scene.pods("web", 5);
    scene.add(&pods, 5);
    let (_, message) = refused(&scene.pods("late", 1)[0]);
    assert!(message.contains("max-pods"), "{message}");
}

/// A node in a subnet of its own size.
fn in_subnet(cidr: Ipv4Cidr, instance_type: &str, environment: &[(&str, &str)]) -> Scene {
    let builder = Lab::builder().subnets(&[("eu-central-1a", cidr)]);
    Scene::stage_with(builder, NodeSpec::new("a", instance_type), |_| {}, environment)
}

#[test]
fn the_smallest_subnet_is_used_to_its_last_address() {
    // 16 addresses, five of them AWS's, one the node's own: nine for the primary ENI, and one that would only do for
    // an ENI's own address.
    let mut scene = in_subnet("10.0.16.0/28".parse().unwrap(), "m5.large", &[]);
    scene.start();
    let pods = scene.pods("web", 9);
    scene.add(&pods, 9);
    scene.settle_at(9);
    scene.check(&pods);
    let (_, message) = refused(&scene.pods("late", 1)[0]);
    assert!(message.contains("InsufficientFreeAddressesInSubnet"), "{message}");
}

#[test]
fn ipamd_54_what_little_a_subnet_has_is_taken_in_smaller_bites() {
    // 32 - 5 - the node's own = 26: nine on the primary ENI, ten with the second, and seven for a third with six.
    let mut scene = in_subnet("10.0.16.0/27".parse().unwrap(), "m5.large", &[]);
    scene.start();
    let pods = scene.pods("web", 22);
    scene.add(&pods, 22);
    scene.check(&pods);
    let free = |scene: &Scene| {
        let subnet = &scene.lab.vpc().subnets[0];
        scene
            .lab
            .cloud()
            .model(|model| model.space(subnet).unwrap().free_addresses())
    };
    let more = scene.pods("more", 2);
    scene.add(&more, 2);
    assert_eq!(free(&scene), 0);
    assert_eq!(scene.all_enis().len(), 3);
}

#[test]
fn ipamd_55_a_full_subnet_is_named_with_ec2s_code_and_request_and_asked_again_when_there_is_hope() {
    let mut scene = Scene::stage(Lab::builder(), "m5.large", &[]);
    let subnet = scene.lab.vpc().subnets[0].clone();
    let taken = scene
        .lab
        .cloud()
        .model(|model| model.leave_free(&subnet, 4))
        .unwrap();
    scene.start();
    let pods = scene.pods("web", 4);
    scene.add(&pods, 4);
    let enis = scene.all_enis();
    let (code, message) = refused(&scene.pods("late", 1)[0]);
    assert_eq!(code, 999, "{message}");
    assert!(message.contains("InsufficientFreeAddressesInSubnet"), "{message}");
    let refusals = scene.lab.cloud().calls().select(|call| {
        call.outcome == aws_cni_lab::calls::Outcome::Error("InsufficientFreeAddressesInSubnet".to_owned())
    });
    assert!(
        refusals.iter().any(|call| message.contains(&call.request_id)),
        "{message}"
    );
    // Nothing was created in vain. An Assign and a Create side by side, then halving, are all the trying there was, and
    // ten seconds later at the earliest the least is asked for again.
    assert_eq!(scene.all_enis(), enis);
    let mut rounds: Vec<Vec<Call>> = Vec::new();
    for call in refusals {
        let last = rounds.last().and_then(|round| round.last());
        if last.is_none_or(|last| call.at - last.at >= Duration::from_secs(10)) {
            rounds.push(Vec::new());
        }
        rounds.last_mut().unwrap().push(call);
    }
    for (number, round) in rounds.iter().enumerate() {
        let most = if number == 0 { 5 } else { 2 };
        assert!(round.len() <= most, "{rounds:#?}");
    }
    assert_eq!(scene.lab.cloud().calls().count("DeleteNetworkInterface"), 0);
    // More pods do not make more calls.
    let mark = scene.mark();
    for pod in &scene.pods("later", 5) {
        refused(pod);
    }
    assert!(scene.calls_since(mark, "AssignPrivateIpAddresses").len() <= 1);
    assert!(scene.calls_since(mark, "CreateNetworkInterface").len() <= 1);
    scene.lab.cloud().model(|model| model.vacate(&subnet, &taken));
    scene.settle_at(18);
    let more = scene.pods("more", 5);
    scene.add(&more, 5);
}
