//! Addresses that have to be fetched first: nobody fails for something that is on its way.

use std::collections::{BTreeMap, BTreeSet};

use aws_cni_lab::calls::Service;
use aws_cni_lab::faults::{Latency, Scope};
use aws_cni_lab::lab::Lab;
use aws_cni_lab::pod::Pod;

use crate::scene::Scene;

#[test]
fn a_pod_gets_an_address_and_gives_it_back() {
    let scene = Scene::new("m5.large");
    let pods = scene.pods("web", 1);
    scene.add(&pods, 1);
    scene.check(&pods);
    scene.del(&pods, 1);
    scene.check(&[]);
}

#[test]
fn every_address_of_an_instance_can_be_had_at_once() {
    let scene = Scene::new("m5.large");
    let pods = scene.pods("web", 27);
    scene.add(&pods, 27);
    scene.settle_at(27);
    scene.check(&pods);
}

#[test]
fn a_repeated_add_gets_the_same_address() {
    let mut scene = Scene::new("m5.large");
    let pods = scene.pods("web", 3);
    scene.add(&pods, 3);
    let before: Vec<_> = pods.iter().map(Pod::address).collect();
    scene.add(&pods, 3);
    assert_eq!(pods.iter().map(Pod::address).collect::<Vec<_>>(), before);
    scene.restart();
    scene.add(&pods, 3);
    assert_eq!(pods.iter().map(Pod::address).collect::<Vec<_>>(), before);
    scene.check(&pods);
}

#[test]
fn a_burst_of_110_pods_costs_ten_ec2_calls_and_nobody_fails() {
    let scene = Scene::with_env("m5.4xlarge", &[("WARM_ENI_TARGET", "0")]);
    let pods = scene.pods("web", 110);
    scene.add(&pods, 110);
    scene.settle_at(116);
    scene.check(&pods);
    let calls = scene.lab.cloud().calls();
    let ec2 = calls.counters(Service::Ec2, 0);
    let changing: usize = ec2
        .iter()
        .filter(|(action, _)| !action.starts_with("Describe") && *action != "CreateTags")
        .map(|(_, n)| n)
        .sum();
    assert_eq!(changing, 10, "{ec2:?}");
    assert!(ec2["DescribeNetworkInterfaces"] <= 2, "{ec2:?}");
    assert_eq!((ec2["DescribeSubnets"], ec2["CreateTags"]), (1, 1), "{ec2:?}");
    let imds = calls.counters(Service::Imds, 0);
    assert!(imds.values().sum::<usize>() <= 20, "{imds:?}");
}

#[test]
fn a_burst_of_440_on_top_of_250_fails_nobody() {
    let scene = Scene::new("c5.18xlarge");
    let mut pods = scene.pods("first", 250);
    scene.add(&pods, 32);
    let burst = scene.pods("burst", 440);
    scene.add(&burst, 440);
    pods.extend(burst);
    scene.settle_at(735);
    scene.check(&pods);
}

#[test]
fn adds_wait_while_enis_take_their_time() {
    let scene = Scene::stage(Lab::builder(), "m5.4xlarge", &[]);
    scene.faults().timing(&Scope::All, |timing| {
        timing.ec2 = Latency::millis(100);
        timing.attach_link = Latency::millis(1_500);
    });
    let mut scene = scene;
    scene.start();
    let pods = scene.pods("web", 80);
    scene.add(&pods, 80);
    scene.settle_at(116);
    scene.check(&pods);
}

/// Settled states of reference ipamd 3.9: pods, ENIs, addresses in all.
fn settles(instance_type: &str, environment: &[(&str, &str)], rows: &[(usize, usize, u64)]) {
    let scene = Scene::with_env(instance_type, environment);
    let mut pods: Vec<Pod> = Vec::new();
    for (count, enis, total) in rows {
        let more = scene.pods(&format!("to{count}"), count - pods.len());
        scene.add(&more, 8);
        pods.extend(more);
        let status = scene.settle_at(*total);
        let attached = scene.attached_enis();
        assert_eq!(
            attached.len(),
            *enis,
            "{count} pods on {instance_type} {environment:?}: {status:#}"
        );
        assert_eq!(status["free"].as_u64().unwrap(), total - *count as u64);
        let held: BTreeSet<usize> = attached.iter().map(|eni| eni.secondary.len()).collect();
        assert_eq!(held.len(), 1, "every ENI is full: {held:?}");
        scene.check(&pods);
    }
}

#[test]
fn row_3_9_m5_large_with_one_warm_eni() {
    let rows = [
        (0, 1, 9),
        (1, 2, 18),
        (9, 2, 18),
        (10, 3, 27),
        (18, 3, 27),
        (27, 3, 27),
    ];
    settles("m5.large", &[], &rows);
}

#[test]
fn row_3_9_m5_large_without_a_warm_eni() {
    let rows = [(0, 1, 9), (1, 1, 9), (9, 2, 18), (10, 2, 18)];
    settles("m5.large", &[("WARM_ENI_TARGET", "0")], &rows);
}

#[test]
fn row_3_9_m5_large_with_two_warm_enis() {
    let rows = [(0, 2, 18), (1, 3, 27), (10, 3, 27)];
    settles("m5.large", &[("WARM_ENI_TARGET", "2")], &rows);
}

#[test]
fn ipamd_47_row_3_9_max_eni_limits_the_enis() {
    let environment = [("WARM_ENI_TARGET", "3"), ("MAX_ENI", "2")];
    settles("m5.large", &environment, &[(0, 2, 18), (9, 2, 18)]);
}

#[test]
fn ipamd_30_row_3_9_max_pods_ends_growth() {
    settles("m5.large", &[("AWS_CNI_MAX_PODS", "5")], &[(0, 1, 9), (1, 1, 9)]);
}

/// One pod on an m5.large whose kubelet says this; ENIs and addresses in the end, and the log.
fn grown_with_kubelet(text: &str, environment: &[(&str, &str)], total: u64) -> (usize, String) {
    let mut scene = Scene::stage(Lab::builder(), "m5.large", environment);
    std::fs::write(scene.node.dirs().kubelet_config(), text).unwrap();
    scene.start();
    scene.add(&scene.pods("web", 1), 1);
    scene.settle_at(total);
    (scene.attached_enis().len(), scene.log())
}

#[test]
fn ipamd_29_kubelets_max_pods_ends_growth() {
    let (enis, log) = grown_with_kubelet(r#"{"kind": "KubeletConfiguration", "maxPods": 5}"#, &[], 9);
    assert_eq!(enis, 1);
    assert!(log.contains("kubelet takes 5 pods"), "{log}");
}

#[test]
fn ipamd_29_a_max_pods_of_our_own_comes_before_kubelets() {
    let environment = [("AWS_CNI_MAX_PODS", "110")];
    assert_eq!(grown_with_kubelet(r#"{"maxPods": 5}"#, &environment, 18).0, 2);
}

#[test]
fn ipamd_29_kubelets_configuration_may_be_yaml() {
    let (enis, log) = grown_with_kubelet("kind: KubeletConfiguration\nmaxPods: 5\n", &[], 9);
    assert_eq!(enis, 1);
    assert!(log.contains("kubelet takes 5 pods"), "{log}");
}

#[test]
fn ipamd_29_kubelets_configuration_in_another_language_is_remarked_on_and_limits_nothing() {
    let (enis, log) = grown_with_kubelet("maxPods = 5\n", &[], 18);
    assert_eq!(enis, 2);
    assert!(log.contains("AWS_CNI_MAX_PODS can say it"), "{log}");
}

#[test]
fn row_3_9_t3_medium_with_one_warm_eni() {
    settles("t3.medium", &[], &[(0, 1, 5), (1, 2, 10), (5, 2, 10), (6, 3, 15)]);
}

#[test]
fn row_3_9_m4_4xlarge_with_one_warm_eni() {
    let rows = [
        (0, 1, 29),
        (1, 2, 58),
        (29, 2, 58),
        (30, 3, 87),
        (58, 3, 87),
        (59, 4, 116),
    ];
    settles("m4.4xlarge", &[], &rows);
}

/// 45 tags of 128 and 256 characters are far more than a record of the store holds; growth must not stand or fall by
/// them, nor the store be thought broken.
#[test]
fn as_many_and_as_long_tags_as_ec2_takes_are_on_every_new_eni() {
    let tags: BTreeMap<String, String> = (0..45)
        .map(|number| (format!("{number:0>128}"), "\u{e9}".repeat(256)))
        .collect();
    let text = serde_json::to_string(&tags).unwrap();
    let mut scene = Scene::with_env(
        "m5.large",
        &[("ADDITIONAL_ENI_TAGS", &text), ("CLUSTER_NAME", "prod")],
    );
    let pods = scene.pods("web", 10);
    scene.add(&pods, 10);
    scene.settle_at(27);
    scene.restart();
    scene.check(&pods);
    for eni in scene.attached_enis().iter().skip(1) {
        assert_eq!(eni.tags.len(), 50, "{:?}", eni.tags.keys());
        assert!(tags.iter().all(|(key, value)| eni.tags.get(key) == Some(value)));
    }
}
