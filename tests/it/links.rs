//! ENIs and their links: late, renamed, missing, taken away; and metadata that lies about them.

use std::collections::BTreeSet;
use std::net::Ipv4Addr;
use std::time::{Duration, Instant};

use aws_cni_lab::fabric::LinkName;
use aws_cni_lab::lab::{Lab, NodeSpec};
use aws_cni_lab::node::LinkArrival;
use aws_cni_lab::pod::Pod;
use aws_cni_lab::vpc::{Eni, Grant};

use crate::busy::detach;
use crate::scene::{PATIENCE, Scene, refused};

fn with_arrival(arrival: LinkArrival, environment: &[(&str, &str)]) -> Scene {
    let mut spec = NodeSpec::new("a", "m5.large");
    spec.options.arrival = arrival;
    let mut scene = Scene::stage_with(Lab::builder(), spec, |_| {}, environment);
    scene.start();
    scene
}

/// Pods on every ENI, each of which reaches the VPC.
fn pods_reach_out(scene: &Scene, count: usize) -> Vec<Pod> {
    let pods = scene.pods("web", count);
    scene.add(&pods, 8);
    scene.check(&pods);
    for pod in &pods {
        assert!(scene.reaches_out(pod), "{} {:?}", pod.label(), pod.address());
    }
    pods
}

#[test]
fn dataplane_50_a_link_that_comes_late_is_waited_for() {
    let arrival = LinkArrival {
        late_by: Duration::from_secs(2),
        ..LinkArrival::default()
    };
    let scene = with_arrival(arrival, &[]);
    pods_reach_out(&scene, 12);
    scene.settle_at(27);
}

#[test]
fn a_link_under_another_name_is_found_by_its_address() {
    let arrival = LinkArrival {
        name: LinkName::Ens,
        ..LinkArrival::default()
    };
    let scene = with_arrival(arrival, &[]);
    pods_reach_out(&scene, 12);
}

#[test]
fn a_link_renamed_after_it_appeared_stays_wired() {
    let arrival = LinkArrival {
        renamed: Some((Duration::from_millis(30), "lan7".to_owned())),
        ..LinkArrival::default()
    };
    let scene = with_arrival(arrival, &[("MAX_ENI", "2"), ("WARM_ENI_TARGET", "2")]);
    scene.wait_until("the link to be renamed", || {
        let links = scene.node.links().unwrap();
        links.iter().any(|link| link.name == "lan7").then_some(())
    });
    scene.settle_at(18);
    pods_reach_out(&scene, 18);
}

#[test]
fn a_missing_link_is_named_and_the_pool_recovers_when_it_comes() {
    let arrival = LinkArrival {
        late_by: Duration::from_secs(15),
        ..LinkArrival::default()
    };
    let scene = with_arrival(arrival, &[("MAX_ENI", "2")]);
    let pods = scene.pods("web", 9);
    scene.add(&pods, 9);
    let eni = scene.wait_until("the second ENI", || {
        let enis = scene.attached_enis();
        enis.get(1).map(|eni| eni.id.to_string())
    });
    scene.wait_for("the missing link to be named", |status| {
        let reasons = status["reasons"].as_array().unwrap();
        reasons.iter().any(|reason| {
            let reason = reason.as_str().unwrap();
            reason.contains(&eni) && reason.contains("link")
        })
    });
    let (code, message) = refused(&scene.patient_pods("hasty", 1, 1)[0]);
    assert_eq!(code, 11, "{message}");
    assert!(message.contains(&eni) && message.contains("link"), "{message}");
    let late = scene.patient_pods("late", 9, 60);
    scene.add(&late, 9);
    let status = scene.settle_at(18);
    assert_eq!(status["assigned"], 18);
    assert!(!status["reasons"].to_string().contains("link"), "{status:#}");
}

#[test]
fn dataplane_50_ipamd_31_a_link_that_never_comes_fails_nobody_who_can_have_another_address() {
    let arrival = LinkArrival {
        never: true,
        ..LinkArrival::default()
    };
    let scene = with_arrival(arrival, &[]);
    let pods = scene.pods("web", 9);
    scene.add(&pods, 9);
    // Nothing is created over and over for it.
    scene.wait_until("the attached ENI", || {
        (scene.attached_enis().len() == 2).then_some(())
    });
    let (code, message) = refused(&scene.patient_pods("late", 1, 8)[0]);
    assert_eq!(code, 11, "{message}");
    assert!(message.contains("link"), "{message}");
    assert!(scene.lab.cloud().calls().count("CreateNetworkInterface") <= 2);
    scene.del(&pods[..1], 1);
    scene.check(&pods[1..]);
}

fn detached_by_outside_hands(mut scene: Scene, restart: bool) {
    let pods = scene.pods("web", 12);
    scene.add(&pods, 12);
    scene.settle_at(27);
    let victim = scene
        .attached_enis()
        .into_iter()
        .find(|eni| {
            let secondary = |pod: &Pod| eni.secondary.contains(&pod.address().unwrap());
            eni.id != *scene.node.primary_eni() && pods.iter().any(secondary)
        })
        .unwrap();
    if restart {
        scene.restart();
        scene.settle_at(27);
    }
    detach(&scene, &victim);
    let lost: BTreeSet<Ipv4Addr> = victim.secondary.iter().copied().collect();
    let stranded: Vec<&Pod> = pods
        .iter()
        .filter(|pod| lost.contains(&pod.address().unwrap()))
        .collect();
    scene.wait_for("the free addresses to be quarantined", |status| {
        status["quarantined"] == lost.len() - stranded.len()
    });
    scene
        .daemon()
        .wait_log("is gone, by EC2 and by the kernel", PATIENCE)
        .unwrap();
    // New pods get others, and those who had an address keep their record.
    let more = scene.pods("more", 6);
    scene.add(&more, 6);
    for pod in &more {
        assert!(!lost.contains(&pod.address().unwrap()));
    }
    for pod in &stranded {
        let held = scene.allocation(pod.address().unwrap());
        assert_eq!(held["key"]["container"], pod.identity().container);
    }
    assert_eq!(scene.count("assigned"), 18);
    scene.del(&pods, 8);
    scene.del(&more, 8);
    assert_eq!(scene.count("assigned"), 0);
}

#[test]
fn a_detached_eni_is_lost_but_its_pods_keep_their_record() {
    detached_by_outside_hands(Scene::new("m5.large"), true);
}

#[test]
fn an_eni_detached_right_after_it_came_is_lost_too() {
    detached_by_outside_hands(Scene::new("m5.large"), false);
}

#[test]
fn an_address_taken_away_by_outside_hands_is_not_given_out() {
    let mut scene = Scene::with_env("m5.large", &[("MAX_ENI", "1")]);
    let pods = scene.pods("web", 2);
    scene.add(&pods, 2);
    scene.settle_at(9);
    let primary = scene.node.primary_eni().clone();
    let held = crate::scene::addresses(&pods);
    let stolen = *scene.ec2_addresses().difference(&held).next().unwrap();
    scene.lab.cloud().model(|model| {
        let what = Grant {
            addresses: vec![stolen],
            ..Grant::default()
        };
        model.unassign(&primary, &what, Instant::now()).unwrap();
    });
    scene.restart();
    scene.wait_for("the doubt", |status| status["quarantined"] == 1);
    assert_eq!(scene.address(stolen)["state"], "quarantined");
    let more = scene.pods("more", 6);
    scene.add(&more, 6);
    assert!(more.iter().all(|pod| pod.address() != Some(stolen)));
}

/// A full m5.large but for a few addresses, its daemon restarted with a lie of IMDS, and then used up.
fn survives_a_restart_with(lie: impl Fn(&Scene, &[Pod]), lose_store: bool) {
    let mut scene = Scene::new("m5.large");
    let mut pods = scene.pods("web", 20);
    scene.add(&pods, 20);
    scene.settle_at(27);
    scene.kill();
    lie(&scene, &pods);
    if lose_store {
        std::fs::remove_dir_all(scene.node.dirs().state.join("ipam")).unwrap();
    }
    scene.start();
    let more = scene.pods("more", 7);
    scene.add(&more, 7);
    pods.extend(more);
    let addresses = crate::scene::addresses(&pods);
    assert_eq!(addresses.len(), 27, "no address has two pods");
    assert!(addresses.is_subset(&scene.ec2_addresses()));
    assert_eq!(scene.all_enis().len(), 3);
    let counted = if lose_store { "quarantined" } else { "assigned" };
    assert!(scene.count(counted) >= 20, "{:#}", scene.status());
    if !lose_store {
        scene.check(&pods);
        scene.del(&pods, 8);
        scene.check(&[]);
    }
}

fn hide_an_eni(scene: &Scene, pods: &[Pod]) {
    let used = |eni: &Eni| {
        pods.iter()
            .any(|pod| eni.secondary.contains(&pod.address().unwrap()))
    };
    let enis = scene.attached_enis();
    let eni = enis[1..].iter().find(|eni| used(eni)).unwrap().id.clone();
    scene.faults().lies(scene.node.instance(), |lies| {
        lies.imds_hides_enis.insert(eni);
    });
}

fn hide_an_address(scene: &Scene, pods: &[Pod]) {
    let address = pods[0].address().unwrap();
    scene.faults().lies(scene.node.instance(), |lies| {
        lies.imds_hides_addresses.insert(address.into());
    });
}

fn empty_macs(scene: &Scene, _: &[Pod]) {
    scene
        .faults()
        .lies(scene.node.instance(), |lies| lies.imds_empty_macs = true);
}

#[test]
fn ipamd_26_fault_1_an_eni_that_imds_omits_loses_nothing() {
    survives_a_restart_with(hide_an_eni, false);
}

#[test]
fn ipamd_94_fault_2_an_empty_list_of_macs_loses_nothing() {
    survives_a_restart_with(empty_macs, false);
}

#[test]
fn ipamd_fault_3_an_address_that_imds_omits_loses_nothing() {
    survives_a_restart_with(hide_an_address, false);
}

#[test]
fn ipamd_fault_1_even_without_a_store_no_address_is_doubled() {
    survives_a_restart_with(hide_an_eni, true);
}

#[test]
fn ipamd_fault_3_even_without_a_store_no_address_is_doubled() {
    survives_a_restart_with(hide_an_address, true);
}
