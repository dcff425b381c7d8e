//! What our rules make of packets.

use std::net::{Ipv4Addr, SocketAddr};

use super::super::model::SnatPorts;
use super::super::testbed::{
    INTERNET, NODE_IP, POD_A, POD_B, PORT, VPC_PEER, counted, inside, listen, mark, nft, on_node,
};
use super::super::{Applied, Nft};
use crate::net::ruleset::HostRuleset;

#[test]
fn pods_leave_by_the_right_eni_with_the_right_source() {
    on_node(|node| {
        let mut table = Nft::open().unwrap();
        table.apply(&node.ruleset()).unwrap();
        table.publish(mark(1), &[POD_B]).unwrap();
        for ports in [SnatPorts::FullyRandom, SnatPorts::Random, SnatPorts::None] {
            table
                .apply(&HostRuleset {
                    snat: Some(ports),
                    ..node.ruleset()
                })
                .unwrap();
            assert_eq!(node.echo(&node.pod_a, INTERNET), (NODE_IP, "w0"));
            assert_eq!(node.echo(&node.pod_b, INTERNET), (NODE_IP, "w0"));
            assert_eq!(node.echo(&node.pod_a, VPC_PEER), (POD_A, "w0"));
            // Also shows that strict rp_filter on eth1 lets the answer in.
            assert_eq!(node.echo(&node.pod_b, VPC_PEER), (POD_B, "w1"));
        }
        // A peered network becomes an exemption while the node runs.
        let mut want = node.ruleset();
        want.exempt.insert("8.0.0.0/8".parse().unwrap());
        table.apply(&want).unwrap();
        assert_eq!(node.echo(&node.pod_b, INTERNET), (POD_B, "w1"));
        // External SNAT: nobody translates, each pod leaves by its own ENI.
        table
            .apply(&HostRuleset {
                snat: None,
                ..node.ruleset()
            })
            .unwrap();
        assert_eq!(node.echo(&node.pod_b, INTERNET), (POD_B, "w1"));
        assert_eq!(node.echo(&node.pod_a, INTERNET), (POD_A, "w0"));
    });
}

#[test]
fn a_connection_survives_the_replacement_of_the_table() {
    on_node(|node| {
        let mut table = Nft::open().unwrap();
        table.apply(&node.ruleset()).unwrap();
        let server = inside(&node.world, || listen(INTERNET, PORT, None));
        let client = inside(&node.pod_b, || listen(Ipv4Addr::UNSPECIFIED, 0, None));
        let mut sources = Vec::new();
        for round in 0..4 {
            client
                .send_to(b"ping", SocketAddr::from((INTERNET, PORT)))
                .unwrap();
            let (_, source) = server.recv_from(&mut [0; 16]).unwrap();
            server.send_to(b"pong", source).unwrap();
            client.recv_from(&mut [0; 16]).unwrap();
            sources.push(source);
            let ports = if round % 2 == 0 {
                SnatPorts::None
            } else {
                SnatPorts::FullyRandom
            };
            let want = HostRuleset {
                snat: Some(ports),
                ..node.ruleset()
            };
            assert_eq!(table.apply(&want).unwrap(), Applied::Replaced);
        }
        assert!(sources.iter().all(|source| *source == sources[0]), "{sources:?}");
    });
}

/// A fwmark bit of others, set before us, on a flow that we don't mark and on one that we do.
#[test]
fn dataplane_42_foreign_mark_bits_survive() {
    on_node(|node| {
        nft("table ip other {
            chain early { type filter hook prerouting priority -160; meta mark set meta mark | 0x10000; iifname \"eni*\" meta mark set meta mark | 0x80; }
            chain late { type filter hook forward priority 0;
                ct direction original meta mark & 0x10000 == 0x10000 counter comment \"survived\"
                ct direction original meta mark & 0x10000 != 0x10000 counter comment \"wiped\"
                ct direction original meta mark & 0x10080 == 0x10000 ip saddr 10.0.1.50 counter comment \"ours cleared\"
                ct direction original meta mark & 0x100ff == 0x10081 counter comment \"both\"
            }
            }");
        let mut table = Nft::open().unwrap();
        table.apply(&node.ruleset()).unwrap();
        table.publish(mark(1), &[POD_B]).unwrap();
        assert_eq!(node.echo(&node.pod_b, VPC_PEER), (POD_B, "w1"));
        assert_eq!(
            (counted("survived"), counted("wiped"), counted("ours cleared")),
            (1, 0, 1)
        );
        assert_eq!(node.echo(&node.pod_b, INTERNET), (NODE_IP, "w0"));
        assert_eq!(
            (counted("survived"), counted("wiped"), counted("both")),
            (2, 0, 1)
        );
    });
}

/// Service traffic, translated before us, is neither marked nor given the node's address, wherever it leads.
#[test]
fn dataplane_41_a_dnated_flow_is_unmarked() {
    on_node(|node| {
        nft("table ip services {
            chain services { type nat hook prerouting priority -100; ip daddr 172.20.0.1 dnat to 10.1.0.9
            }
            chain late { type filter hook forward priority 0;
                ct mark 0 meta mark & 0x80 == 0 counter comment \"unmarked\"
                ct mark != 0 counter comment \"marked\"
            }
            }");
        let mut table = Nft::open().unwrap();
        table.apply(&node.ruleset()).unwrap();
        table.publish(mark(1), &[POD_B]).unwrap();
        assert_eq!(
            node.echo_of(&node.pod_b, Ipv4Addr::new(172, 20, 0, 1), VPC_PEER),
            (POD_B, "w1")
        );
        assert_eq!((counted("unmarked"), counted("marked")), (2, 0));
        assert_eq!(counted("pods: does the connection leave the VPC?"), 0);
        assert_eq!(counted("stays in the VPC"), 0);
    });
}

/// A NodePort request comes by the primary ENI for a pod of a secondary one; the answer goes back the same way.
#[test]
fn node_port_answers_leave_by_the_primary_eni() {
    on_node(|node| {
        nft("table ip services {
            chain services { type nat hook prerouting priority -100; ip daddr 10.0.0.10 udp dport 30000 dnat to 10.0.1.50:4242
            }
            chain late { type filter hook forward priority 0;
                ct direction reply meta mark & 0x80 == 0x80 ct mark & 0x80 == 0x80 counter comment \"reply\"
            }
            }");
        let mut table = Nft::open().unwrap();
        table.apply(&node.ruleset()).unwrap();
        table.publish(mark(1), &[POD_B]).unwrap();
        let server = inside(&node.pod_b, || listen(POD_B, PORT, None));
        let client = inside(&node.world, || listen(INTERNET, 0, Some("w0")));
        let mut buffer = [0; 16];
        client
            .send_to(b"ping", SocketAddr::from((NODE_IP, 30000)))
            .unwrap();
        let (_, source) = server.recv_from(&mut buffer).unwrap();
        assert_eq!(source.ip(), INTERNET, "the client's address is kept");
        server.send_to(b"pong", source).unwrap();
        let (_, answerer) = client
            .recv_from(&mut buffer)
            .expect("the answer left by another ENI");
        assert_eq!(answerer, SocketAddr::from((NODE_IP, 30000)));
        assert_eq!(counted("reply"), 1);
    });
}

/// Not asserted: prints what the operations cost. `cargo test -p aws-cni --lib nft -- --ignored --nocapture`
#[test]
#[ignore = "a measurement"]
fn measure() {
    on_node(|node| {
        let mut table = Nft::open().unwrap();
        let want = node.ruleset();
        let other = HostRuleset {
            snat: Some(SnatPorts::None),
            ..want.clone()
        };
        let time = |label: &str, rounds: u32, work: &mut dyn FnMut(u32)| {
            let mut spent: Vec<_> = (0..rounds)
                .map(|round| {
                    let start = std::time::Instant::now();
                    work(round);
                    start.elapsed()
                })
                .collect();
            spent.sort_unstable();
            let at = |percent: usize| spent[(spent.len() - 1) * percent / 100];
            println!("{label}: p50 {:?}, p95 {:?}, max {:?}", at(50), at(95), at(100));
        };
        time("replace", 50, &mut |round| {
            let want = if round % 2 == 0 { &want } else { &other };
            assert_eq!(table.apply(want).unwrap(), Applied::Replaced);
        });
        table.apply(&want).unwrap();
        time("publish 1", 100, &mut |n| {
            table
                .publish(mark(1), &[Ipv4Addr::from_bits(0x0a03_0000 + n)])
                .unwrap();
        });
        time("publish 30", 100, &mut |n| {
            let many: Vec<_> = (0..30)
                .map(|i| Ipv4Addr::from_bits(0x0a04_0000 + n * 30 + i))
                .collect();
            table.publish(mark(1), &many).unwrap();
        });
        time("unpublish 30", 95, &mut |n| {
            let many: Vec<_> = (0..30)
                .map(|i| Ipv4Addr::from_bits(0x0a04_0000 + n * 30 + i))
                .collect();
            table.unpublish(&many).unwrap();
        });
        println!("{} addresses stay", table.pods().unwrap().len());
        time("apply unchanged", 200, &mut |_| {
            assert_eq!(table.apply(&want).unwrap(), Applied::Unchanged);
        });
        time("replace with these addresses", 50, &mut |round| {
            let want = if round % 2 == 1 { &want } else { &other };
            assert_eq!(table.apply(want).unwrap(), Applied::Replaced);
        });
        table.apply(&other).unwrap();
        let mut grown = other.clone();
        grown.exempt.insert("192.168.0.0/16".parse().unwrap());
        time("exemption comes and goes", 100, &mut |round| {
            let want = if round % 2 == 0 { &grown } else { &other };
            assert_ne!(table.apply(want).unwrap(), Applied::Replaced);
        });
    });
}
