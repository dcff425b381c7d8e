//! The whole lab against a real kernel: links follow the model, pods run through CNI, nothing stays behind.
#![allow(
    clippy::unwrap_used,
    clippy::indexing_slicing,
    clippy::panic,
    reason = "a test may fail"
)]

mod common;

use std::time::{Duration, Instant};

use aws_cni_lab::fabric::LinkName;
use aws_cni_lab::lab::{Lab, NodeSpec};
use aws_cni_lab::node::LinkArrival;
use aws_cni_lab::pod::{Pod, side_by_side};
use aws_cni_lab::probe::{Failure, Protocol, Source, exchange, matrix};
use common::{SOON, attach, detach, install_script_plugin};

const BRIEF: Duration = Duration::from_millis(300);

#[test]
fn primary_enis_reach_each_other_and_the_networks_outside() {
    for rp_filter in [1, 2] {
        let mut strict = NodeSpec::new("a", "t3.medium");
        strict.options.rp_filter = rp_filter;
        let lab = Lab::builder()
            .node_with(strict, |_| {})
            .node("b", "m5.large")
            .build()
            .unwrap();
        let sources: Vec<Source> = lab.nodes().map(|node| node.source()).collect();
        let mut targets = vec![lab.internet(), lab.on_premises(), lab.second_vpc()];
        targets.extend(lab.nodes().map(|node| node.target()));
        for protocol in [Protocol::Udp, Protocol::Tcp] {
            let outcome = matrix(&sources, &targets, protocol, SOON);
            assert!(outcome.all_reached(), "{protocol} {rp_filter}\n{outcome}");
            for (source, target, seen) in outcome.seen() {
                assert_eq!(
                    seen.ip(),
                    lab.node(source).unwrap().address(),
                    "{source} to {target}"
                );
            }
        }
        assert_eq!(lab.fabric().offences().unwrap(), []);
        assert_eq!(lab.troubles(), Vec::<String>::new());
    }
}

#[test]
fn a_secondary_eni_appears_after_attach_and_goes_after_detach() {
    let lab = Lab::builder().node("a", "t3.medium").build().unwrap();
    let node = lab.node("a").unwrap();
    let eni = attach(&lab, "a", 1);
    assert!(node.wait_link(eni.mac, true, SOON).unwrap());
    let link = node.link_by_mac(eni.mac).unwrap().unwrap();
    assert_eq!((link.name.as_str(), link.up, link.mtu), ("eth1", false, 9001));
    assert!(
        !node
            .ip_json(&["addr", "show", "dev", "eth1"])
            .unwrap()
            .to_string()
            .contains("\"inet\"")
    );
    detach(&lab, &eni);
    assert!(node.wait_link(eni.mac, false, SOON).unwrap());
    assert_eq!(lab.troubles(), Vec::<String>::new());
}

#[test]
fn links_come_late_under_another_name_are_renamed_or_never_come() {
    let lab = Lab::builder().node("a", "m5.large").build().unwrap();
    let node = lab.node("a").unwrap();
    node.set_arrival(LinkArrival {
        late_by: Duration::from_millis(300),
        name: LinkName::Fixed("eth9".to_owned()),
        renamed: Some((Duration::from_millis(100), "ens6".to_owned())),
        never: false,
    });
    let (started, late) = (Instant::now(), attach(&lab, "a", 1));
    assert!(node.wait_link(late.mac, true, SOON).unwrap());
    assert!(started.elapsed() >= Duration::from_millis(300));
    let renamed = || {
        node.link_by_mac(late.mac)
            .unwrap()
            .is_some_and(|link| link.name == "ens6")
    };
    common::eventually(renamed);
    node.set_arrival(LinkArrival {
        never: true,
        ..LinkArrival::default()
    });
    let never = attach(&lab, "a", 2);
    assert!(!node.wait_link(never.mac, true, BRIEF).unwrap());
    detach(&lab, &never);
    detach(&lab, &late);
    assert!(node.wait_link(late.mac, false, SOON).unwrap());
    assert_eq!(lab.troubles(), Vec::<String>::new());
}

#[test]
fn pods_run_through_the_plugin_and_reach_each_other_by_their_enis() {
    let lab = Lab::builder()
        .node("a", "m5.large")
        .node("b", "m5.large")
        .build()
        .unwrap();
    let mut pods = Vec::new();
    for node in lab.nodes() {
        install_script_plugin(&lab, node, 4);
        for number in 0..4 {
            pods.push(node.pod("demo", &format!("{}-{number}", node.name())).unwrap());
        }
    }
    let added = side_by_side(&pods, pods.len(), |pod| pod.add().unwrap());
    for (pod, outcome) in pods.iter().zip(&added) {
        assert!(
            outcome.succeeded(),
            "{}: {} {}",
            pod.label(),
            outcome.stdout,
            outcome.stderr
        );
        pod.serve_echo().unwrap();
    }
    let sources: Vec<_> = pods.iter().filter_map(Pod::source).collect();
    let mut targets: Vec<_> = pods.iter().filter_map(Pod::target).collect();
    targets.extend([lab.internet(), lab.on_premises(), lab.second_vpc()]);
    targets.extend(lab.nodes().map(|node| node.target()));
    let outcome = matrix(&sources, &targets, Protocol::Tcp, SOON);
    assert!(outcome.all_reached(), "{outcome}");
    for (source, target, seen) in outcome.seen() {
        let pod = pods.iter().find(|pod| pod.label() == source).unwrap();
        assert_eq!(Some(seen.ip()), pod.ip_address(), "{source} to {target}");
    }
    for pod in &pods {
        assert!(pod.del().unwrap().succeeded());
        assert_eq!(pod.address(), None);
        assert!(pod.del().unwrap().succeeded(), "twice is the same as once");
    }
    assert_eq!(lab.fabric().offences().unwrap(), []);
}

#[test]
fn a_plugin_gets_what_a_runtime_passes() {
    let lab = Lab::builder().node("a", "t3.medium").build().unwrap();
    let node = lab.node("a").unwrap();
    let dump = "#!/bin/sh\n{ env; cat; echo; readlink /proc/self/ns/net; } > \"${0%/*}/seen-$CNI_COMMAND\"\n\
                [ $CNI_COMMAND = ADD ] && echo '{\"cniVersion\":\"1.1.0\",\"ips\":[{\"address\":\"10.0.16.9/32\"}]}'\n\
                [ $CNI_COMMAND != CHECK ]";
    common::install_script(&node, dump);
    let pod = node.pod("kube-system", "dns").unwrap();
    let seen = |verb: &str| std::fs::read_to_string(node.dirs().bin.join(format!("seen-{verb}"))).unwrap();
    assert!(pod.add().unwrap().succeeded());
    assert_eq!(pod.address(), Some("10.0.16.9".parse().unwrap()));
    let add = seen("ADD");
    let netns = format!("CNI_NETNS={}", pod.netns().unwrap().path().display());
    let inside = node
        .netns()
        .run(|| std::fs::read_link("/proc/thread-self/ns/net").unwrap())
        .unwrap();
    let container = format!("CNI_CONTAINERID={}", pod.identity().container);
    let socket = format!("AWS_CNI_SOCKET={}", node.dirs().socket().display());
    for wanted in [
        netns.as_str(),
        container.as_str(),
        socket.as_str(),
        "CNI_IFNAME=eth0",
        "K8S_POD_NAMESPACE=kube-system;K8S_POD_NAME=dns;",
        "\"name\":\"aws-cni\"",
        "\"cniVersion\":\"1.1.0\"",
        inside.to_str().unwrap(),
    ] {
        assert!(add.contains(wanted), "{wanted} is not in\n{add}");
    }
    assert!(!add.contains("prevResult"));
    assert_eq!(pod.check().unwrap().exit_code, Some(1));
    assert!(seen("CHECK").contains("\"prevResult\":{\"cniVersion\""));
    pod.lose_netns();
    assert!(pod.del().unwrap().succeeded());
    assert!(seen("DEL").contains(&netns) && seen("DEL").contains("prevResult"));
    let runtime = node.runtime();
    runtime.gc(&[("abc", "eth0")]).unwrap();
    assert!(
        seen("GC").contains("\"cni.dev/valid-attachments\":[{\"containerID\":\"abc\",\"ifname\":\"eth0\"}]")
    );
    assert!(!seen("GC").contains("CNI_CONTAINERID"));
    runtime.status().unwrap();
    runtime.version().unwrap();
    assert!(seen("VERSION").contains("CNI_COMMAND=VERSION"));
}

#[test]
fn a_foreign_source_never_reaches_the_other_node() {
    let lab = Lab::builder()
        .node("a", "t3.medium")
        .node("b", "t3.medium")
        .build()
        .unwrap();
    let (a, b) = (lab.node("a").unwrap(), lab.node("b").unwrap());
    let eni = attach(&lab, "a", 1);
    assert!(a.wait_link(eni.mac, true, SOON).unwrap());
    // The address belongs to eth1, but leaves by eth0: the mistake that source routing is there to avoid.
    a.ip(&format!("addr add {}/32 dev lo\n", eni.primary)).unwrap();
    let target = b.target().address;
    // The link works by now, so what is lost from here on was dropped by the router.
    exchange(a.netns(), Protocol::Udp, target, SOON).unwrap();
    let refused = aws_cni_lab::probe::exchange_from(a.netns(), eni.primary, target, BRIEF);
    assert_eq!(refused, Err(Failure::TimedOut));
    assert!(lab.fabric().dropped_spoofed().unwrap() > 0);
    assert_eq!(
        lab.fabric().offences().unwrap()[0].source,
        eni.primary.to_string()
    );
}

#[test]
fn nodes_come_and_go() {
    let mut lab = Lab::builder().node("a", "t3.medium").build().unwrap();
    let eni = attach(&lab, "a", 1);
    assert!(lab.node("a").unwrap().wait_link(eni.mac, true, SOON).unwrap());
    let mut spec = NodeSpec::new("b", "m5.large");
    spec.subnet = 1;
    let b = lab.add_node(spec, |_| {}).unwrap();
    let a = lab.node("a").unwrap();
    exchange(a.netns(), Protocol::Tcp, b.target().address, SOON).unwrap();
    lab.terminate("a").unwrap();
    common::eventually(|| a.links().unwrap().is_empty());
    assert!(lab.node("a").is_err());
    assert_eq!(lab.troubles(), Vec::<String>::new());
}

#[test]
fn a_plugin_that_hangs_is_killed() {
    let lab = Lab::builder().node("a", "t3.medium").build().unwrap();
    let node = lab.node("a").unwrap();
    common::install_script(&node, "#!/bin/sh\nexec sleep 1000");
    let mut runtime = node.runtime();
    runtime.conflist.deadline = Duration::from_millis(200);
    let outcome = runtime.status().unwrap();
    assert_eq!(outcome.exit_code, None);
    assert!(outcome.took < Duration::from_secs(100));
}

#[test]
fn labs_run_side_by_side() {
    let labs: Vec<u64> = (0..4).collect();
    let built = side_by_side(&labs, labs.len(), |seed| {
        let lab = Lab::builder()
            .seed(*seed)
            .node("a", "t3.medium")
            .node("b", "t3.medium")
            .build()
            .unwrap();
        let eni = attach(&lab, "a", 1);
        assert!(lab.node("a").unwrap().wait_link(eni.mac, true, SOON).unwrap());
        let target = lab.node("b").unwrap().target().address;
        exchange(lab.node("a").unwrap().netns(), Protocol::Tcp, target, SOON).unwrap();
        lab
    });
    assert_eq!(built.len(), 4);
}
