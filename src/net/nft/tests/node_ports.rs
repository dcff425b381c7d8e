//! Which ENI answers a connection that came in on one of them for an address of the node's own.

use std::net::{Ipv4Addr, SocketAddr, UdpSocket};
use std::os::fd::OwnedFd;

use super::super::testbed::{
    INTERNET, NODE_IP, Node, POD_A, POD_B, PORT, VPC_PEER, counted, index, inside, listen, mark, numbers,
    on_node, run,
};
use super::super::{Applied, Nft};
use super::nft;
use crate::net::ruleset::{ENI_ANSWER, ENI_LINK, HostRuleset};
use crate::net::testing::fresh_netns;

const ENI_IP: Ipv4Addr = Ipv4Addr::new(10, 0, 1, 20);
const POD_C: Ipv4Addr = Ipv4Addr::new(10, 0, 2, 50);
const NODE_PORT: u16 = 30_000;

/// A third ENI, eth2, which also checks strictly, with a pod, and the rules for the ENIs' own addresses.
fn with_third_eni(node: &Node) -> OwnedFd {
    use std::os::fd::AsRawFd;
    let pod = fresh_netns();
    let path = |ns: &OwnedFd| format!("/proc/{}/fd/{}", std::process::id(), ns.as_raw_fd());
    for line in [
        format!(
            "ip link add eth2 type veth peer name w2 netns {}",
            path(&node.world)
        ),
        format!(
            "ip link add eni000000000c type veth peer name eth0 netns {}",
            path(&pod)
        ),
        "ip link set eth2 up".into(),
        "ip link set eni000000000c up".into(),
        "ip addr add 10.0.2.30/24 dev eth2".into(),
        "ip route del 10.0.2.0/24 dev eth2".into(),
        "ip route add 10.0.2.1/32 dev eth2 table 4".into(),
        "ip route add default via 10.0.2.1 dev eth2 table 4".into(),
        "ip route add 10.0.2.50 dev eni000000000c table 512".into(),
        "ip rule add pref 1536 fwmark 0x2/0x7f lookup 4".into(),
        "ip rule add pref 32765 from 10.0.1.20 lookup 3".into(),
        "ip rule add pref 32765 from 10.0.2.30 lookup 4".into(),
    ] {
        run(&line);
    }
    for key in ["rp_filter", "src_valid_mark"] {
        std::fs::write(format!("/proc/sys/net/ipv4/conf/eth2/{key}"), "1").unwrap();
    }
    inside(&node.world, || {
        run("ip link set w2 up");
        run("ip addr add 10.0.2.1/24 dev w2");
        run("ip route add 10.0.2.50 via 10.0.2.30");
    });
    inside(&pod, || {
        run("ip link set lo up");
        run("ip link set eth0 up");
        run("ip addr add 10.0.2.50/32 dev eth0");
        run("ip route add default dev eth0");
        std::fs::write("/proc/sys/net/ipv4/conf/eth0/rp_filter", "0").unwrap();
    });
    std::fs::write("/proc/sys/net/ipv4/conf/eni000000000c/proxy_arp", "1").unwrap();
    std::fs::write("/proc/sys/net/ipv4/neigh/eni000000000c/proxy_delay", "0").unwrap();
    pod
}

fn three_enis(node: &Node) -> HostRuleset {
    let mut want = node.ruleset();
    want.enis.insert(mark(2), index("eth2"));
    want
}

fn applied(want: &HostRuleset) -> Nft {
    let mut table = Nft::open().unwrap();
    table.apply(want).unwrap();
    table.publish(mark(1), &[POD_B]).unwrap();
    table.publish(mark(2), &[POD_C]).unwrap();
    table
}

/// As kube-proxy does for a NodePort: on every address of the node, with or without masquerading.
fn service(endpoint: Ipv4Addr, source: &str) {
    nft("table ip services\ndelete table ip services");
    nft(&format!(
        "table ip services {{
            chain nodeports {{ type nat hook prerouting priority -100;
                fib daddr type local udp dport {NODE_PORT} dnat to {endpoint}:{PORT}
            }}
            chain masquerading {{ type nat hook postrouting priority 100; ct status dnat {source}
            }}
            chain early {{ type filter hook prerouting priority -160; ct mark set ct mark | 0x10000;
            }}
            chain late {{ type filter hook postrouting priority 200;
                ct mark & 0xff000000 != 0 counter comment \"strange\"
                ct direction reply ct mark & 0x1ffff == 0x10000 counter comment \"unmarked\"
                ct direction reply ct mark & 0x1ffff == 0x10001 counter comment \"eth1\"
                ct direction reply ct mark & 0x1ffff == 0x10080 counter comment \"eth0\"
            }}
        }}"
    ));
}

/// A datagram from the internet that comes in by one link of the world, and its answer, taken from that link only.
fn exchange(node: &Node, link: &str, to: Ipv4Addr, server: &UdpSocket) -> Option<SocketAddr> {
    let client = inside(&node.world, || listen(INTERNET, 0, Some(link)));
    let mut buffer = [0; 16];
    client
        .send_to(b"ping", SocketAddr::from((to, NODE_PORT)))
        .unwrap();
    let (_, source) = server.recv_from(&mut buffer).expect("the request did not arrive");
    server.send_to(b"pong", source).unwrap();
    client.recv_from(&mut buffer).ok().map(|(_, answerer)| answerer)
}

#[test]
fn a_node_port_answers_by_the_eni_of_the_request_wherever_the_pod_is() {
    on_node(|node| {
        let pod_c = with_third_eni(node);
        let _table = applied(&three_enis(node));
        let elsewhere = &node.world;
        let endpoints = [
            (&node.pod_a, POD_A),
            (&node.pod_b, POD_B),
            (&pod_c, POD_C),
            (elsewhere, VPC_PEER),
        ];
        for (netns, address) in endpoints {
            let server = inside(netns, || listen(address, PORT, None));
            // What is on another node must be masqueraded, or it answers directly. Masqueraded with the primary
            // address, its answers come in on the primary ENI.
            let kept = (address != VPC_PEER).then_some("");
            for source in ["masquerade", "snat to 10.0.0.10"].into_iter().chain(kept) {
                for (link, to, counter) in [("w1", ENI_IP, "eth1"), ("w0", NODE_IP, "eth0")] {
                    service(address, source);
                    let case = format!("to {address} by {link}, {source:?}");
                    let answerer = exchange(node, link, to, &server).expect(&case);
                    assert_eq!(answerer, SocketAddr::from((to, NODE_PORT)), "{case}");
                    assert_eq!(counted(counter), 1, "{case}");
                    assert_eq!((counted("unmarked"), counted("strange")), (0, 0), "{case}");
                }
            }
        }
    });
}

/// The endpoint is a process of the node, listening on its primary address: a pod with the host's network.
#[test]
fn a_node_port_of_the_nodes_own_process_answers_by_the_eni_of_the_request() {
    on_node(|node| {
        with_third_eni(node);
        let _table = applied(&three_enis(node));
        service(NODE_IP, "");
        let server = listen(NODE_IP, PORT, None);
        for (link, to) in [("w1", ENI_IP), ("w0", NODE_IP)] {
            let answerer = exchange(node, link, to, &server).expect(link);
            assert_eq!(answerer, SocketAddr::from((to, NODE_PORT)));
        }
    });
}

#[test]
fn without_node_port_support_no_connection_is_marked() {
    on_node(|node| {
        with_third_eni(node);
        let want = HostRuleset {
            node_port: false,
            ..three_enis(node)
        };
        let mut table = applied(&want);
        service(POD_B, "");
        let server = inside(&node.pod_b, || listen(POD_B, PORT, None));
        // The pod's own ENI happens to be the one of the request.
        assert!(exchange(node, "w1", ENI_IP, &server).is_some());
        assert_eq!((counted("unmarked"), counted("eth1")), (1, 0));
        let facts = table.facts().unwrap().unwrap();
        assert!(!facts.sets.contains("eni-answer"));
        assert!(!facts.chains.contains_key("link-1") && !facts.chains.contains_key("mangle-output"));
        // Its packets are still marked on the way in, or strict rp_filter would have dropped them.
        let links: Vec<_> = numbers(&mut table, ENI_LINK)
            .into_iter()
            .map(|(_, eni)| eni)
            .collect();
        assert_eq!(links, [Some(mark(1)), Some(mark(2))]);
    });
}

/// What the node or a pod opens is answered to, not from: only connections from outside are remembered.
#[test]
fn connections_from_the_node_and_from_pods_are_not_marked_for_an_eni() {
    on_node(|node| {
        with_third_eni(node);
        let _table = applied(&three_enis(node));
        nft(
            "table ip seen { chain late { type filter hook prerouting priority 200;
            ct mark & 0x7f != 0 counter comment \"marked\"
            ct direction reply counter comment \"answers\"
            }
            }",
        );
        let server = inside(&node.world, || listen(VPC_PEER, PORT, None));
        let ask = |client: UdpSocket| {
            client
                .send_to(b"ping", SocketAddr::from((VPC_PEER, PORT)))
                .unwrap();
            let (_, source) = server.recv_from(&mut [0; 16]).unwrap();
            server.send_to(b"pong", source).unwrap();
            client.recv_from(&mut [0; 16]).unwrap();
        };
        ask(listen(ENI_IP, 0, None));
        ask(inside(&node.pod_b, || listen(POD_B, 0, None)));
        assert_eq!((counted("answers"), counted("marked")), (2, 0));
    });
}

#[test]
fn enis_come_and_go_with_their_answers_in_one_transaction() {
    on_node(|node| {
        with_third_eni(node);
        let mut want = node.ruleset();
        let mut table = applied_first(&want);
        let answers = |table: &mut Nft| {
            let marks = numbers(table, ENI_ANSWER).into_iter();
            marks.map(|(mark, _)| mark).collect::<Vec<_>>()
        };
        assert_eq!(answers(&mut table), [1]);
        want.enis.insert(mark(2), index("eth2"));
        assert_eq!(table.apply(&want).unwrap(), Applied::Amended);
        assert_eq!(answers(&mut table), [1, 2]);
        let clean = table.facts().unwrap().unwrap();
        for meddling in [
            "delete element ip aws-cni eni-answer { 0x2 }",
            "add element ip aws-cni eni-answer { 0x3 : drop }",
            "flush chain ip aws-cni link-2",
            "flush chain ip aws-cni mangle-output",
            "delete element ip aws-cni eni-link { \"eth2\" } ; delete chain ip aws-cni link-2",
        ] {
            nft(meddling);
            assert_ne!(table.apply(&want).unwrap(), Applied::Unchanged, "{meddling}");
            assert_eq!(table.facts().unwrap().unwrap(), clean, "{meddling}");
        }
        want.enis.remove(&mark(1));
        assert_eq!(table.apply(&want).unwrap(), Applied::Amended);
        assert_eq!(answers(&mut table), [2]);
        let chains = table.facts().unwrap().unwrap().chains;
        assert!(!chains.contains_key("eni-1") && !chains.contains_key("link-1"));
        assert_eq!(table.apply(&want).unwrap(), Applied::Unchanged);
    });
}

fn applied_first(want: &HostRuleset) -> Nft {
    let mut table = Nft::open().unwrap();
    assert_eq!(table.apply(want).unwrap(), Applied::Replaced);
    table
}
