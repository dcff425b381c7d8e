//! Ports of the node and targets of load balancers: every ENI answers what it was asked.

use std::net::{Ipv4Addr, SocketAddrV4};

use aws_cni_lab::node::Node;
use aws_cni_lab::pod::Pod;
use aws_cni_lab::probe::{ECHO_PORT, Protocol, exchange};

use crate::pair::{Pair, device};
use crate::scene::PATIENCE;

/// With the first four pods, all addresses of all three ENIs but one.
const FURTHER: usize = 4;

/// As kube-proxy in nftables mode does for a NodePort service: every address of the node, and masquerading by its mark
/// unless `externalTrafficPolicy` is `Local`.
fn service(node: &Node, endpoint: Ipv4Addr, local: bool) {
    let mark = if local {
        ""
    } else {
        "meta mark set meta mark or 0x4000"
    };
    node.nft(&format!(
        "table ip kube-proxy {{ }}\ndelete table ip kube-proxy\ntable ip kube-proxy {{\n\
           chain endpoint {{ {mark}\n meta l4proto {{ tcp, udp }} dnat to {endpoint}:{ECHO_PORT}\n}}\n\
           chain nat-prerouting {{ type nat hook prerouting priority dstnat; policy accept;\n\
             fib daddr type local th dport 30080 goto endpoint\n}}\n\
           chain nat-postrouting {{ type nat hook postrouting priority srcnat; policy accept;\n\
             meta mark and 0x4000 != 0 meta mark set meta mark xor 0x4000 masquerade fully-random\n}}\n}}\n"
    ))
    .unwrap();
}

/// Each pod behind the port of each ENI's address, for clients in and out of the VPC.
fn every_eni_answers(pair: &Pair, endpoints: &[Ipv4Addr], local: bool) {
    let outside = pair.scene.lab.fabric().outside();
    let clients = [
        (&outside.internet.netns, outside.internet.address),
        (&outside.second_vpc.netns, outside.second_vpc.address),
        (pair.b.netns(), pair.b.address()),
    ];
    let mut enis = pair.scene.attached_enis();
    enis.retain(|eni| eni.attachment.as_ref().unwrap().instance == *pair.a().instance());
    assert_eq!(enis.len(), 3);
    for endpoint in endpoints {
        service(pair.a(), *endpoint, local);
        for eni in &enis {
            let port = SocketAddrV4::new(eni.primary, 30_080);
            for (client, address) in clients {
                for protocol in [Protocol::Tcp, Protocol::Udp] {
                    let case = format!("{protocol} {address} -> {port} -> {endpoint}");
                    let seen = exchange(client, protocol, port, PATIENCE).expect(&case);
                    assert_eq!(seen.ip() == address, local, "{case}: seen as {seen}");
                }
            }
        }
    }
    pair.assert_nothing_spoofed();
}

/// Two nodes, and addresses of pods of the first one, one on each of its ENIs.
fn pair_on_every_eni(environment: &[(&str, &str)]) -> (Pair, Vec<Pod>, Vec<Ipv4Addr>) {
    let pair = Pair::new(environment, 1);
    let further = pair.scene.pods("further", FURTHER);
    pair.scene.add(&further, FURTHER);
    for pod in &further {
        pod.serve_echo().unwrap();
    }
    let mut pods: Vec<_> = pair.pods.iter().chain(&further).collect();
    pods.sort_by_key(|pod| device(pod));
    pods.dedup_by_key(|pod| device(pod));
    assert_eq!(pods.len(), 3);
    let endpoints = pods.iter().map(|pod| pod.address().unwrap()).collect();
    (pair, further, endpoints)
}

/// Strict `rp_filter` wherever the daemon does not need it loose.
#[test]
fn a_node_port_answers_by_the_eni_it_was_asked_on_wherever_its_pod_is() {
    let (mut pair, _further, mut endpoints) = pair_on_every_eni(&[]);
    every_eni_answers(&pair, &endpoints, true);
    pair.scene.restart();
    every_eni_answers(&pair, &endpoints, true);
    endpoints.push(pair.there.address().unwrap());
    every_eni_answers(&pair, &endpoints, false);
}

#[test]
fn a_node_port_answers_by_the_eni_it_was_asked_on_with_external_snat() {
    let (pair, _further, endpoints) = pair_on_every_eni(&[("AWS_VPC_K8S_CNI_EXTERNALSNAT", "true")]);
    every_eni_answers(&pair, &endpoints, true);
}
