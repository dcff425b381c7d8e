//! Warm targets and prefixes with the real daemon: what it asks EC2 for, and whether pods on it are reached.

use aws_cni_lab::calls::Call;
use aws_cni_lab::faults::{Latency, Scope};
use aws_cni_lab::vpc::Eni;

use crate::scene::Scene;

const PREFIXES: [(&str, &str); 2] = [("ENABLE_PREFIX_DELEGATION", "true"), ("WARM_PREFIX_TARGET", "1")];

fn counts(calls: &[Call], parameter: &str) -> Vec<String> {
    let count = |call: &Call| call.param(parameter).map(str::to_owned);
    calls.iter().filter_map(count).collect()
}

/// How much each ENI carries, by device.
fn carried(scene: &Scene, how_much: fn(&Eni) -> usize) -> Vec<usize> {
    scene.attached_enis().iter().map(how_much).collect()
}

/// Reference ipamd 3.9, the row of m5.large with W=1 M=12.
#[test]
fn ipamd_45_targets_in_addresses_are_met_and_not_exceeded() {
    let scene = Scene::with_env(
        "m5.large",
        &[("WARM_IP_TARGET", "1"), ("MINIMUM_IP_TARGET", "12")],
    );
    scene.settle_at(12);
    let pods = scene.pods("web", 12);
    scene.add(&pods, 12);
    scene.settle_at(13);
    scene.check(&pods);
    assert_eq!(carried(&scene, |eni| eni.secondary.len()), [9, 4]);
}

#[test]
fn ipamd_6_49_pods_in_prefixes_are_reached_and_survive_a_restart() {
    let mut scene = Scene::with_env("t3.small", &PREFIXES);
    scene.settle_at(16);
    assert_eq!(
        counts(
            &scene.calls_since(0, "AssignPrivateIpAddresses"),
            "Ipv4PrefixCount"
        ),
        ["1"]
    );
    // More than the primary ENI's three prefixes: some are on a second ENI.
    let pods = scene.pods("web", 50);
    scene.add(&pods, 50);
    scene.settle_at(80);
    scene.check(&pods);
    assert_eq!(carried(&scene, |eni| eni.prefixes.len()), [3, 2]);
    assert!(scene.attached_enis().iter().all(|eni| eni.secondary.is_empty()));
    for pod in [&pods[0], &pods[20], &pods[49]] {
        assert!(scene.reaches_out(pod), "{:?}", pod.address());
    }
    scene.restart();
    for pod in [&pods[0], &pods[20], &pods[49]] {
        assert!(scene.reaches_out(pod), "{:?} after a restart", pod.address());
    }
    scene.check(&pods);
}

/// What the first pods make short is asked for at once, and everything that came meanwhile in the next call.
#[test]
fn a_burst_of_110_pods_in_prefixes_costs_few_calls_and_nobody_fails() {
    let scene = Scene::with_env("m5.4xlarge", &PREFIXES);
    scene.settle_at(16);
    let mark = scene.mark();
    scene
        .faults()
        .timing(&Scope::All, |timing| timing.ec2 = Latency::millis(100));
    let pods = scene.pods("web", 110);
    scene.add(&pods, 110);
    scene.check(&pods);
    scene.settle_at(128);
    let calls = scene.calls_since(mark, "AssignPrivateIpAddresses");
    println!("{:?}", counts(&calls, "Ipv4PrefixCount"));
    assert!(calls.len() <= 4, "{calls:#?}");
    assert_eq!(scene.calls_since(mark, "CreateNetworkInterface").len(), 0);
}

#[test]
fn a_subnet_without_a_block_of_16_serves_pods_from_single_addresses() {
    let mut scene = Scene::stage(aws_cni_lab::lab::Lab::builder(), "m5.large", &PREFIXES);
    let subnet = scene.lab.vpc().subnets[0].clone();
    let fragments = scene.lab.cloud().model(|model| {
        let cidr = model.subnets()[&subnet].cidr;
        // One address in each block that nobody has yet.
        let blocks = (0..cidr.size() / 16).map(|nth| cidr.nth(u32::try_from(nth * 16 + 9).unwrap()));
        let taken: std::collections::BTreeSet<_> = model
            .enis()
            .values()
            .flat_map(|eni| {
                eni.secondary
                    .iter()
                    .copied()
                    .chain([eni.primary])
                    .collect::<Vec<_>>()
            })
            .collect();
        let fragments: Vec<_> = blocks.filter(|address| !taken.contains(address)).collect();
        model.occupy(&subnet, fragments.clone()).unwrap();
        fragments
    });
    scene.start();
    let pods = scene.pods("web", 12);
    scene.add(&pods, 12);
    scene.check(&pods);
    assert!(scene.attached_enis().iter().all(|eni| eni.prefixes.is_empty()));
    for pod in [&pods[0], &pods[11]] {
        assert!(scene.reaches_out(pod));
    }
    assert!(!fragments.is_empty());
}
