//! What others do to a node's ENIs, addresses, tags and networks while the daemon runs: it ends in the right state, and
//! no live pod is lost. (Detached ENIs and addresses taken away at a restart: `links.rs`.)

use std::collections::BTreeSet;
use std::net::Ipv4Addr;
use std::time::Instant;

use aws_cni_lab::calls::Service;
use aws_cni_lab::pod::Pod;
use aws_cni_lab::vpc::{CreateEni, EniId, Grant, Tags, Want, Wanted};

use crate::busy::{attach_at, busy, detach, in_use};
use crate::scene::{PATIENCE, Scene, addresses};

const NO_MANAGE: &str = "node.k8s.amazonaws.com/no_manage";
const INSTANCE: &str = "node.k8s.amazonaws.com/instance_id";

fn tags(pairs: &[(&str, &str)]) -> Tags {
    let owned = |(key, value): &(&str, &str)| ((*key).to_owned(), (*value).to_owned());
    pairs.iter().map(owned).collect()
}

/// Somebody creates an ENI and attaches it here.
fn attach(scene: &Scene, device: u32, pairs: &[(&str, &str)], kind: &str) -> EniId {
    let more = |request: &mut CreateEni| {
        request.tags = tags(pairs);
        kind.clone_into(&mut request.interface_type);
        request.wanted = Wanted {
            addresses: Want::Count(2),
            ..Wanted::default()
        };
    };
    attach_at(scene, (0, device), more)
}

fn role(scene: &Scene, id: &EniId) -> Option<String> {
    let dump = scene.dump();
    let enis = dump["enis"].as_array().unwrap();
    let known = enis.iter().find(|eni| eni["id"] == id.to_string())?;
    Some(known["role"].as_str().unwrap().to_owned())
}

/// An address is taken from under a pod, and one that is free: the pod keeps its record, nobody gets either.
#[test]
fn ipamd_89_an_address_unassigned_under_a_pod_is_quarantined_and_its_pod_keeps_its_record() {
    let (mut scene, pods) = busy();
    let (eni, on_it) = in_use(&scene, &pods);
    let held = on_it[0].address().unwrap();
    let live = addresses(&pods);
    let free: Vec<Ipv4Addr> = scene.ec2_addresses().difference(&live).copied().collect();
    let free_there = free
        .iter()
        .copied()
        .find(|address| eni.secondary.contains(address));
    let gone: Vec<Ipv4Addr> = [Some(held), free_there].into_iter().flatten().collect();
    scene.lab.cloud().model(|model| {
        let what = Grant {
            addresses: gone.clone(),
            ..Grant::default()
        };
        model.unassign(&eni.id, &what, Instant::now()).unwrap();
    });
    scene.restart();
    let told = format!("{held} on {}, held by sandbox", eni.id);
    scene.daemon().wait_log(&told, PATIENCE).unwrap();
    assert_eq!(
        scene.allocation(held)["key"]["container"],
        on_it[0].identity().container
    );
    let more = scene.pods("more", free.len() - usize::from(free_there.is_some()));
    scene.add(&more, 8);
    assert!(addresses(&more).is_disjoint(&gone.iter().copied().collect()));
    assert!(addresses(&more).is_disjoint(&live));
    assert_eq!(scene.status()["drift"]["ec2-omits-address"], gone.len() as u64);
}

/// Somebody detaches an ENI with pods on it and deletes it, too.
#[test]
fn ipamd_93_an_eni_deleted_by_outside_hands_is_lost_loudly_and_replaced_when_its_pods_have_gone() {
    let (scene, pods) = busy();
    let (eni, on_it) = in_use(&scene, &pods);
    detach(&scene, &eni);
    scene.eventually("the ENI to be deleted by somebody", || {
        let gone = scene.all_enis().iter().all(|other| other.id != eni.id);
        let delete = |model: &mut aws_cni_lab::vpc::Model| model.delete_eni(&eni.id, Instant::now());
        gone || scene.lab.cloud().model(delete).is_ok()
    });
    scene
        .daemon()
        .wait_log("is gone, by EC2 and by the kernel", PATIENCE)
        .unwrap();
    for pod in &on_it {
        let held = scene.allocation(pod.address().unwrap());
        assert_eq!(held["key"]["container"], pod.identity().container);
    }
    assert_eq!(scene.count("assigned"), 20);
    let others: Vec<&Pod> = pods
        .iter()
        .filter(|pod| !on_it.iter().any(|lost| lost.address() == pod.address()))
        .collect();
    for pod in others.iter().take(3) {
        assert!(scene.reaches_out(pod), "a pod elsewhere goes on");
    }
    scene.del(&pods, 8);
    let fresh = scene.pods("fresh", 4);
    scene.add(&fresh, 4);
    scene.check_enis(3);
}

/// An ENI whose pods live is marked as nobody's business: they keep their addresses and their way, new ones go elsewhere.
#[test]
fn ipamd_19_an_eni_marked_no_manage_keeps_its_pods_and_gets_no_others() {
    let (mut scene, pods) = busy();
    let (eni, on_it) = in_use(&scene, &pods);
    let mark = tags(&[(NO_MANAGE, "true")]);
    let ids = [eni.id.to_string()];
    scene
        .lab
        .cloud()
        .model(|model| model.create_tags(&ids, &mark, Instant::now()))
        .unwrap();
    scene.restart();
    scene.wait_until("the mark to be seen", || {
        (role(&scene, &eni.id)? == "unmanaged").then_some(())
    });
    // The next start knows the mark from the beginning.
    for _ in 0..2 {
        for pod in &on_it {
            assert!(scene.reaches_out(pod), "{}", scene.log());
            let held = scene.allocation(pod.address().unwrap());
            assert_eq!(held["key"]["container"], pod.identity().container);
        }
        scene.restart();
    }
    let left = scene.count("free");
    let more = scene.pods("more", usize::try_from(left).unwrap());
    scene.add(&more, 8);
    let there: BTreeSet<Ipv4Addr> = eni.secondary.iter().copied().collect();
    assert!(addresses(&more).is_disjoint(&there));
    scene.del(&pods, 8);
    scene.del(&more, 8);
    assert_eq!(scene.count("assigned"), 0);
    let calls = scene.lab.cloud().calls();
    for action in ["DetachNetworkInterface", "DeleteNetworkInterface"] {
        assert_eq!(calls.count(action), 0, "{action}");
    }
}

/// Without the instance's tag an ENI is an untagged one: managed unless `MANAGE_UNTAGGED_ENI` says otherwise.
#[test]
fn ipamd_19_an_eni_whose_tag_is_removed_keeps_its_pods_and_is_managed_as_the_setting_says() {
    for (setting, expected) in [("true", "secondary"), ("false", "unmanaged")] {
        let mut scene = Scene::with_env("m5.large", &[("MANAGE_UNTAGGED_ENI", setting)]);
        let pods = scene.pods("web", 12);
        scene.add(&pods, 12);
        scene.settle_at(27);
        let (eni, on_it) = in_use(&scene, &pods);
        scene
            .lab
            .cloud()
            .model(|model| model.delete_eni_tags(&eni.id, &[INSTANCE], Instant::now()))
            .unwrap();
        let mark = scene.mark();
        scene.restart();
        scene.wait_until("EC2 to have been asked", || {
            (!scene.calls_since(mark, "DescribeNetworkInterfaces").is_empty()).then_some(())
        });
        scene.wait_until(expected, || (role(&scene, &eni.id)? == expected).then_some(()));
        for pod in &on_it {
            assert!(scene.reaches_out(pod), "{setting}: {}", scene.log());
        }
        assert_eq!(scene.count("assigned"), 12, "{setting}");
        scene.del(&pods, 8);
        assert_eq!(scene.count("assigned"), 0, "{setting}");
    }
}

/// An ENI of another instance is never ours, whatever it was before.
#[test]
fn ipamd_19_an_eni_whose_tag_is_given_to_another_instance_keeps_its_pods_and_gets_no_others() {
    let (mut scene, pods) = busy();
    let (eni, on_it) = in_use(&scene, &pods);
    let other = tags(&[(INSTANCE, "i-0ffffffffffffffff")]);
    let ids = [eni.id.to_string()];
    scene
        .lab
        .cloud()
        .model(|model| model.create_tags(&ids, &other, Instant::now()))
        .unwrap();
    scene.restart();
    scene.wait_until("the tag to be seen", || {
        (role(&scene, &eni.id)? == "unmanaged").then_some(())
    });
    for pod in &on_it {
        assert!(scene.reaches_out(pod), "{}", scene.log());
    }
    assert_eq!(scene.count("assigned"), 20);
    scene.del(&pods, 8);
    assert_eq!(scene.count("assigned"), 0);
}

/// ENIs of others come: a managed one serves, the others take a place and nothing more.
#[test]
fn ipamd_22_93_enis_attached_by_others_serve_or_take_a_place_by_their_tags_and_type() {
    for (pairs, kind, expected, served) in [
        (&[][..], "interface", "secondary", 11),
        (&[(NO_MANAGE, "true")][..], "interface", "unmanaged", 9),
        (&[][..], "efa-only", "unmanaged", 9),
    ] {
        let mut scene = Scene::with_env("m5.large", &[("WARM_ENI_TARGET", "0")]);
        scene.settle_at(9);
        let pods = scene.pods("web", 3);
        scene.add(&pods, 3);
        let id = attach(&scene, 2, pairs, kind);
        scene.restart();
        scene.wait_until(expected, || (role(&scene, &id)? == expected).then_some(()));
        scene.wait_for("its addresses to be of use, or not", |status| {
            status["free"].as_u64().unwrap() + status["assigned"].as_u64().unwrap() == served
        });
        scene.check(&pods);
        let calls = scene.lab.cloud().calls().counters(Service::Ec2, 0);
        assert!(!calls.contains_key("DetachNetworkInterface"), "{calls:?}");
        assert!(!calls.contains_key("DeleteNetworkInterface"), "{calls:?}");
    }
}
