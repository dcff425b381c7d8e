//! IPv6: the daemon's part of it, over its socket; what the plugin wires is in `six_wired`.

use std::collections::BTreeSet;
use std::net::{IpAddr, Ipv6Addr};

use aws_cni::ipam::ids::PodRef;
use aws_cni::rpc::client::Client;
use aws_cni::rpc::types::{Add, Check, Del, DelReason};
use aws_cni_lab::calls::Service;
use aws_cni_lab::faults::{Outage, Scope};
use aws_cni_lab::lab::{Customize, Lab, NodeSpec};
use aws_cni_lab::vpc::Want;

use crate::scene::{PATIENCE, Scene};

const SIX: (&str, &str) = ("ENABLE_IPv6", "true");

fn stage(environment: &[(&str, &str)], launch: Customize) -> Scene {
    let environment: Vec<_> = [SIX].into_iter().chain(environment.iter().copied()).collect();
    let spec = NodeSpec::new("a", "m5.large");
    Scene::stage_with(Lab::builder().ipv6(), spec, launch, &environment)
}

fn node() -> Scene {
    let mut scene = stage(&[], |_| {});
    scene.start();
    scene
}

fn client(scene: &Scene) -> Client {
    Client::connect(&scene.node.dirs().socket(), PATIENCE).unwrap()
}

fn request(container: &str) -> Add {
    Add {
        network: "aws-cni".into(),
        container_id: container.into(),
        ifname: "eth0".into(),
        netns: format!("/run/netns/{container}"),
        pod: PodRef::default(),
        host_veth: format!("eni{container}"),
        deadline_ms: 30_000,
        card: None,
        main: None,
        host_ports: Vec::new(),
    }
}

/// What the daemon gives, once it is on the disk.
fn add(scene: &Scene, container: &str) -> Ipv6Addr {
    let (assigned, pending) = client(scene)
        .send_add(request(container))
        .and_then(aws_cni::rpc::client::SentAdd::assigned)
        .unwrap_or_else(|error| panic!("ADD of {container}: {error}\n{}", scene.log()));
    let _connection = pending.durable().unwrap();
    match assigned.allocation.address {
        IpAddr::V6(address) => address,
        IpAddr::V4(address) => panic!("{container} got {address}"),
    }
}

fn del(scene: &Scene, container: &str) -> Vec<IpAddr> {
    let request = Del {
        network: "aws-cni".into(),
        container_id: container.into(),
        ifname: "eth0".into(),
        pod: PodRef::default(),
        reason: DelReason::PodDeleted,
    };
    let (released, pending) = client(scene).del(request).unwrap();
    pending.settled().unwrap();
    released.addresses.into_iter().map(|held| held.address).collect()
}

/// The /80s EC2 has on this instance's ENIs, as text.
fn prefixes(scene: &Scene) -> Vec<String> {
    let instance = scene.node.instance().clone();
    scene.lab.cloud().model(|model| {
        let enis = model.enis().values();
        let mine = enis.filter(|eni| eni.attachment.as_ref().is_some_and(|at| at.instance == instance));
        mine.flat_map(|eni| eni.ipv6_prefixes.iter().map(ToString::to_string))
            .collect()
    })
}

fn calls(scene: &Scene, action: &str) -> usize {
    let counters = scene.lab.cloud().calls().counters(Service::Ec2, 0);
    counters.get(action).copied().unwrap_or(0)
}

fn is_inside(prefix: &str, address: Ipv6Addr) -> bool {
    prefix
        .parse::<aws_cni::ipam::cidr6::Ipv6Cidr>()
        .unwrap()
        .contains(address)
}

#[test]
fn ipamd_91_a_node_of_an_ipv6_cluster_has_one_80_and_gives_each_sandbox_an_address_of_it() {
    let scene = node();
    let (first, second) = (add(&scene, "one"), add(&scene, "two"));
    assert_ne!(first, second);
    let [prefix] = &prefixes(&scene)[..] else {
        panic!("{:?}", prefixes(&scene));
    };
    assert!(is_inside(prefix, first) && is_inside(prefix, second));
    assert_eq!(add(&scene, "one"), first, "a repeated ADD gets the same");
    let check = Check {
        network: "aws-cni".into(),
        container_id: "two".into(),
        ifname: "eth0".into(),
    };
    assert_eq!(client(&scene).check(check).unwrap().address, IpAddr::V6(second));
    assert_eq!(calls(&scene, "AssignIpv6Addresses"), 1);
    assert_eq!(
        calls(&scene, "AssignPrivateIpAddresses") + calls(&scene, "CreateNetworkInterface"),
        0
    );
    assert!(scene.count("free") > 1 << 47, "{:#}", scene.status());
    assert_eq!(del(&scene, "one"), [IpAddr::V6(first)]);
    assert!(del(&scene, "one").is_empty(), "twice is the same as once");
    assert_eq!(scene.count("cooling"), 1);
    assert!(![first, second].contains(&add(&scene, "three")));
}

#[test]
fn twenty_kills_leave_one_80_and_no_address_with_two_sandboxes() {
    let mut scene = stage(&[], |_| {});
    let mut live = BTreeSet::new();
    let mut told = BTreeSet::new();
    for round in 0..20 {
        scene.launch();
        if round % 2 == 0 {
            let address = add(&scene, &format!("kept-{round}"));
            assert!(told.insert(address), "{address} was given before");
            live.insert(IpAddr::V6(address));
        }
        // Killed before it has told that it is on the disk, and some before anything.
        if round % 3 == 0 {
            let sent = client(&scene)
                .send_add(request(&format!("lost-{round}")))
                .unwrap();
            if let Ok((assigned, _pending)) = sent.assigned() {
                let IpAddr::V6(address) = assigned.allocation.address else {
                    panic!()
                };
                assert!(told.insert(address), "{address} was given before");
            }
        }
        scene.kill();
    }
    scene.start();
    for round in (0..20).step_by(2) {
        assert!(live.contains(&IpAddr::V6(add(&scene, &format!("kept-{round}")))));
    }
    assert_eq!(prefixes(&scene).len(), 1, "{:?}", prefixes(&scene));
    assert_eq!(calls(&scene, "AssignIpv6Addresses"), 1);
}

#[test]
fn ipamd_27_in_imds_only_mode_the_80_that_imds_lists_is_used_and_ec2_asked_nothing() {
    let mut scene = stage(&[("ENABLE_IMDS_ONLY_MODE", "true")], |launch| {
        launch.wanted.ipv6_prefixes = Want::Count(1);
    });
    scene.start();
    let prefix = prefixes(&scene).remove(0);
    let first = add(&scene, "one");
    assert!(is_inside(&prefix, first));
    scene.restart();
    assert_eq!(add(&scene, "one"), first);
    assert_ne!(add(&scene, "two"), first);
    let asked = scene.lab.cloud().calls().counters(Service::Ec2, 0);
    assert!(asked.is_empty(), "{asked:?}");
}

#[test]
fn the_first_sandbox_is_served_from_imds_while_ec2_is_down() {
    let mut scene = stage(&[], |launch| launch.wanted.ipv6_prefixes = Want::Count(1));
    scene
        .faults()
        .outage(Service::Ec2, Scope::All, Some(Outage::Reset));
    scene.start();
    let address = add(&scene, "one");
    assert!(is_inside(&prefixes(&scene)[0], address));
    scene.faults().outage(Service::Ec2, Scope::All, None);
    scene.wait_until("EC2 to confirm it", || {
        (scene.address(address)["placed"]["verified"] == true).then_some(())
    });
    assert_eq!(calls(&scene, "AssignIpv6Addresses"), 0);
}

#[test]
fn a_route_to_a_sandbox_that_nobody_has_stored_keeps_its_address_from_others() {
    let mut scene = node();
    let first = add(&scene, "one");
    let stray = Ipv6Addr::from_bits(first.to_bits() + 3);
    scene
        .node
        .ip(&format!(
            "link add eni0123456789a type veth peer name stray\n\
             link set eni0123456789a up\nroute add {stray}/128 dev eni0123456789a"
        ))
        .unwrap();
    scene.restart();
    let given: BTreeSet<_> = (0..10).map(|n| add(&scene, &format!("more-{n}"))).collect();
    assert!(!given.contains(&stray));
    assert_eq!(scene.address(stray)["state"], "quarantined", "{:#}", scene.dump());
    scene.node.ip("link delete eni0123456789a").unwrap();
    scene.wait_until("the quarantine to end", || {
        (scene.count("quarantined") == 0).then_some(())
    });
}

#[test]
fn a_subnet_without_ipv6_is_named_with_the_call_and_what_to_do() {
    let mut scene = Scene::stage(Lab::builder(), "m5.large", &[SIX]);
    scene.start();
    let sent = client(&scene).send_add(Add {
        deadline_ms: 2_000,
        ..request("one")
    });
    let error = sent.unwrap().assigned().unwrap_err();
    let service = error.service().unwrap();
    assert!(service.message.contains("AssignIpv6Addresses"), "{service:?}");
    assert!(!service.next_step.is_empty(), "{service:?}");
    assert_eq!(calls(&scene, "CreateNetworkInterface"), 0);
}
