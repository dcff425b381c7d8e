//! The kernel as judge: what it makes of our messages, and what our rules make of packets.

use std::collections::BTreeMap;
use std::net::{Ipv4Addr, SocketAddr};

use super::facts::HookFacts;
use super::model::SnatPorts;
use super::testbed::{
    INTERNET, NODE_IP, POD_A, POD_B, PORT, VPC_PEER, counted, inside, listen, mark, nft, nft_listing,
    on_node, run,
};
use super::{Applied, Leftover, Nft, NftError};
use crate::net::layout::RuleLayout;
use crate::net::ruleset::{HostRuleset, RulesetError};
use crate::net::testing::in_fresh_netns;

fn addresses(from: u8, count: u8) -> Vec<Ipv4Addr> {
    (0..count).map(|n| Ipv4Addr::new(10, 0, 2, from + n)).collect()
}

fn with_foreign_table() {
    nft("table ip other { set s { type ipv4_addr; elements = { 1.2.3.4 } }
         chain c { type filter hook prerouting priority -300; counter comment \"theirs\"
}
}");
}

#[test]
fn dataplane_5_7_15_30_31_nft_reads_back_what_we_wrote() {
    on_node(|node| {
        let mut table = Nft::open().unwrap();
        let mut want = node.ruleset();
        want.exempt.insert("0.0.0.0/8".parse().unwrap());
        want.exempt.insert("255.255.0.0/16".parse().unwrap());
        want.exempt.insert("10.1.2.0/24".parse().unwrap());
        assert_eq!(table.apply(&want).unwrap(), Applied::Replaced);
        table.publish(mark(1), &[POD_B]).unwrap();
        let listing = nft_listing();
        println!("{listing}");
        for line in [
            "type filter hook prerouting priority mangle; policy accept;",
            "type nat hook prerouting priority dstnat + 10; policy accept;",
            "type nat hook postrouting priority srcnat + 10; policy accept;",
            "elements = { 0.0.0.0/8, 10.0.0.0/15,",
            "255.255.0.0/16 }",
            "elements = { 10.0.1.50 : jump eni-1 }",
            "elements = { \"eth1\" : jump eni-1 }",
            "iif vmap @eni-link",
            "iif \"eth0\" fib daddr . iif type local ct mark set ct mark | 0x00000080",
            "iifname \"eni*\" jump connmark-restore",
            "iifname \"vlan*\" jump connmark-restore",
            "iifname \"eni*\" ip saddr vmap @pod-eni",
            "meta mark set meta mark & 0xffffff7f",
            "ct mark & 0x00000080 == 0x00000080 meta mark set meta mark | 0x00000080",
            "meta mark set meta mark & 0xffffff81 | 0x00000001",
            "fib daddr type local return",
            "ip daddr @exempt counter packets 0 bytes 0 return",
            "oifname != \"vlan*\" ip daddr != @exempt fib daddr type != local counter packets 0 bytes 0 \
             snat to 10.0.0.10 fully-random",
        ] {
            assert!(listing.contains(line), "{line:?} is not in:\n{listing}");
        }
        assert_eq!(table.facts().unwrap().unwrap().exempt, want.exempt_ranges());
    });
}

#[test]
fn dataplane_13_31_every_combination_is_accepted_and_stays_unwritten() {
    on_node(|node| {
        let mut table = Nft::open().unwrap();
        for snat in [
            None,
            Some(SnatPorts::None),
            Some(SnatPorts::Random),
            Some(SnatPorts::FullyRandom),
        ] {
            for node_port in [false, true] {
                for layout in [RuleLayout::Shared, RuleLayout::PerPod] {
                    let want = HostRuleset {
                        snat,
                        node_port,
                        layout,
                        ..node.ruleset()
                    };
                    let first = table.apply(&want).unwrap();
                    let expected = if want.is_needed() {
                        Applied::Replaced
                    } else {
                        Applied::Removed
                    };
                    assert_eq!(first, expected, "{want:?}");
                    let before = run("nft -a list ruleset");
                    assert_eq!(table.apply(&want).unwrap(), Applied::Unchanged, "{want:?}");
                    assert_eq!(run("nft -a list ruleset"), before);
                }
            }
        }
    });
}

#[test]
fn no_event_is_sent_for_an_unchanged_table() {
    on_node(|node| {
        use crate::net::netlink::{Family, Socket};
        let mut table = Nft::open().unwrap();
        table.apply(&node.ruleset()).unwrap();
        let mut monitor = Socket::subscribe(Family::Netfilter, &[7]).unwrap(); // NFNLGRP_NFTABLES
        assert_eq!(table.apply(&node.ruleset()).unwrap(), Applied::Unchanged);
        assert_eq!(monitor.drain().unwrap(), []);
        table.publish(mark(1), &[POD_B]).unwrap();
        assert_ne!(monitor.drain().unwrap(), [], "the monitor works");
    });
}

#[test]
fn live_changes_touch_elements_only() {
    on_node(|node| {
        let mut table = Nft::open().unwrap();
        let mut want = node.ruleset();
        table.apply(&want).unwrap();
        table.publish(mark(1), &addresses(1, 3)).unwrap();
        let rules = |table: &mut Nft| table.facts().unwrap().unwrap().chains;
        let before = rules(&mut table);
        want.exempt = ["10.0.0.0/15", "192.168.0.0/16"]
            .map(|cidr| cidr.parse().unwrap())
            .into();
        want.exempt.insert("10.0.0.0/8".parse().unwrap()); // overlaps what is there
        assert_eq!(table.apply(&want).unwrap(), Applied::Amended);
        assert_eq!(rules(&mut table), before);
        let facts = table.facts().unwrap().unwrap();
        assert_eq!(facts.exempt, want.exempt_ranges());
        // Another ENI comes, then the first one goes and takes its addresses along.
        want.enis.insert(mark(2), node.eth0);
        assert_eq!(table.apply(&want).unwrap(), Applied::Amended);
        table.publish(mark(2), &addresses(7, 1)).unwrap();
        want.enis.remove(&mark(1));
        assert_eq!(table.apply(&want).unwrap(), Applied::Amended);
        let facts = table.facts().unwrap().unwrap();
        assert_eq!(
            facts.pods.into_iter().collect::<Vec<_>>(),
            [(addresses(7, 1)[0], Some(mark(2)))]
        );
        assert_eq!(
            facts.links.into_iter().collect::<Vec<_>>(),
            [(node.eth0, Some(mark(2)))]
        );
        assert!(!facts.chains.contains_key("eni-1"));
        assert_eq!(table.apply(&want).unwrap(), Applied::Unchanged);
        // Its link got another index (renamed driver, re-attached ENI).
        want.enis.insert(mark(2), node.eth1);
        assert_eq!(table.apply(&want).unwrap(), Applied::Amended);
        assert_eq!(
            table
                .facts()
                .unwrap()
                .unwrap()
                .links
                .keys()
                .copied()
                .collect::<Vec<_>>(),
            [node.eth1]
        );
    });
}

#[test]
fn addresses_move_and_go() {
    on_node(|node| {
        let mut table = Nft::open().unwrap();
        assert!(matches!(
            table.publish(mark(1), &[POD_B]),
            Err(NftError::UnknownEni(_))
        ));
        table.unpublish(&[POD_B]).unwrap();
        let mut want = node.ruleset();
        want.enis.insert(mark(2), node.eth0);
        table.apply(&want).unwrap();
        assert!(matches!(table.publish(mark(3), &[POD_B]), Err(NftError::UnknownEni(m)) if m == mark(3)));
        table.publish(mark(1), &addresses(1, 2)).unwrap();
        table.publish(mark(1), &addresses(1, 2)).unwrap();
        table.publish(mark(2), &addresses(2, 2)).unwrap(); // the second one moves, the third is new
        let marks: Vec<_> = table
            .pods()
            .unwrap()
            .into_values()
            .map(|m| m.unwrap().value())
            .collect();
        assert_eq!(marks, [1, 2, 2]);
        table.unpublish(&addresses(1, 200)).unwrap(); // most of these never were there
        assert!(table.pods().unwrap().is_empty());
        table.publish(mark(1), &[]).unwrap();
        // More than fits one message.
        let many: Vec<_> = (0..4000_u32)
            .map(|n| Ipv4Addr::from_bits(0x0a03_0000 + n))
            .collect();
        table.publish(mark(1), &many).unwrap();
        assert_eq!(table.pods().unwrap().len(), 4000);
        table.unpublish(&many).unwrap();
        assert!(table.pods().unwrap().is_empty());
    });
}

#[test]
fn published_addresses_are_put_right() {
    on_node(|node| {
        let mut table = Nft::open().unwrap();
        let mut want = node.ruleset();
        want.enis.insert(mark(2), node.eth0);
        table.apply(&want).unwrap();
        table.publish(mark(1), &addresses(1, 4)).unwrap();
        nft("add element ip aws-cni pod-eni { 10.9.9.9 : drop }");
        let wanted: BTreeMap<_, _> = addresses(2, 3)
            .into_iter()
            .zip([mark(1), mark(2), mark(2)])
            .collect();
        assert!(table.publish_only(&wanted).unwrap());
        let found: BTreeMap<_, _> = table
            .pods()
            .unwrap()
            .into_iter()
            .map(|(address, mark)| (address, mark.unwrap()))
            .collect();
        assert_eq!(found, wanted);
        assert!(!table.publish_only(&wanted).unwrap());
        let unknown = [(addresses(9, 1)[0], mark(9))].into();
        assert!(matches!(table.publish_only(&unknown), Err(NftError::UnknownEni(m)) if m == mark(9)));
        assert_eq!(
            table.pods().unwrap().len(),
            3,
            "a refused transaction changes nothing"
        );
        assert!(table.publish_only(&BTreeMap::new()).unwrap());
    });
}

/// kube-proxy's and portmap's translations come first, as before the Go daemon's appended rule, no matter which
/// table was registered last.
#[test]
fn other_source_translations_come_first_in_any_order() {
    on_node(|node| {
        run("ip addr add 10.0.0.99/32 dev eth0");
        let theirs = "table ip theirs {
            chain post { type nat hook postrouting priority 100; ip daddr 8.8.8.8 snat to 10.0.0.99
            }
        }";
        let other: Ipv4Addr = "10.0.0.99".parse().unwrap();
        let mut table = Nft::open().unwrap();
        table.apply(&node.ruleset()).unwrap();
        nft(theirs);
        assert_eq!(node.echo(&node.pod_a, INTERNET), (other, "w0"));
        run("nft delete table ip aws-cni");
        table.apply(&node.ruleset()).unwrap();
        assert_eq!(node.echo(&node.pod_a, INTERNET), (other, "w0"));
    });
}

/// Conformance 33, 34 and 35: whatever was done to the table, it is ours again, and others' tables stay.
#[test]
fn dataplane_18_34_35_a_meddled_table_is_replaced_and_keeps_its_addresses() {
    on_node(|node| {
        with_foreign_table();
        let mut table = Nft::open().unwrap();
        let want = node.ruleset();
        table.apply(&want).unwrap();
        table.publish(mark(1), &[POD_B]).unwrap();
        let clean = table.facts().unwrap().unwrap();
        let foreign = run("nft list table ip other");
        for meddling in [
            "add rule ip aws-cni snat-mark drop",
            "insert rule ip aws-cni mangle-prerouting counter",
            "flush chain ip aws-cni connmark-restore",
            "add chain ip aws-cni intruder",
            "add set ip aws-cni intruder { type ipv4_addr; }",
            "delete rule ip aws-cni eni-1 handle HANDLE",
            "add element ip aws-cni exempt { 99.0.0.0/8 }",
            "delete element ip aws-cni eni-link { eth1 }",
            "add element ip aws-cni pod-eni { 10.9.9.9 : drop }",
        ] {
            let shown = run("nft -a list chain ip aws-cni eni-1");
            let handle = shown
                .lines()
                .find(|l| l.contains("meta mark"))
                .unwrap()
                .rsplit(' ')
                .next()
                .unwrap();
            nft(&meddling.replace("HANDLE", handle));
            assert_ne!(table.apply(&want).unwrap(), Applied::Unchanged, "{meddling}");
            assert_eq!(table.facts().unwrap().unwrap(), clean, "{meddling}");
        }
        assert_eq!(run("nft list table ip other"), foreign);
        let prefix = HostRuleset {
            veth_prefix: "veth".into(),
            ..want
        };
        assert_eq!(table.apply(&prefix).unwrap(), Applied::Replaced);
        let listing = nft_listing();
        assert!(
            listing.contains("iifname \"veth*\"") && !listing.contains("\"eni*\""),
            "{listing}"
        );
        assert_eq!(table.pods().unwrap().len(), 1);
    });
}

const GO_TABLE: &str = "table ip aws-cni {
    chain nat-prerouting { type nat hook prerouting priority -100; policy accept;
        fib daddr type local return
        iifname \"eni*\" counter jump snat-mark
        counter meta mark set ct mark & 0x80
    }
    chain snat-mark { ip daddr 10.0.0.0/16 return; counter ct mark set ct mark | 0x80
    }
    }";

#[test]
fn dataplane_33_the_go_daemons_table_is_recognised_and_replaced() {
    on_node(|node| {
        nft(&GO_TABLE.replace("chain snat-mark", "chain snat-mark {\n}\n chain snat-mark"));
        let mut table = Nft::open().unwrap();
        assert_eq!(table.leftovers().unwrap(), [Leftover::Table]);
        assert_eq!(table.apply(&node.ruleset()).unwrap(), Applied::Replaced);
        assert_eq!(table.leftovers().unwrap(), []);
        let facts = table.facts().unwrap().unwrap();
        let HookFacts::Base(hook) = facts.chains["nat-prerouting"].hook else {
            panic!()
        };
        assert_eq!(hook.priority, -90);
    });
}

#[test]
fn dataplane_14_43_external_snat_leaves_nothing() {
    on_node(|node| {
        with_foreign_table();
        let before = nft_listing();
        let mut table = Nft::open().unwrap();
        table.apply(&node.ruleset()).unwrap();
        let external = HostRuleset {
            snat: None,
            ..node.ruleset()
        };
        table.apply(&external).unwrap();
        let listing = nft_listing();
        assert!(
            !listing.contains("snat") && !listing.contains("type nat"),
            "{listing}"
        );
        let plain = HostRuleset {
            node_port: false,
            layout: RuleLayout::PerPod,
            ..external
        };
        assert_eq!(table.apply(&plain).unwrap(), Applied::Removed);
        assert_eq!(nft_listing(), before);
        assert_eq!(table.apply(&plain).unwrap(), Applied::Unchanged);
    });
}

#[test]
fn contradictions_are_refused_before_anything_is_written() {
    in_fresh_netns(|| {
        let good = HostRuleset {
            connmark: 0x80,
            veth_prefix: "eni".into(),
            node_ip: NODE_IP,
            exempt: ["10.0.0.0/16".parse().unwrap()].into(),
            snat: Some(SnatPorts::default()),
            node_port: true,
            primary_link: 1,
            enis: [].into(),
            layout: RuleLayout::Shared,
        };
        let refusal = |bad: HostRuleset| match Nft::open().unwrap().apply(&bad) {
            Err(NftError::Ruleset(why)) => why,
            other => panic!("{other:?}"),
        };
        assert_eq!(
            refusal(HostRuleset {
                connmark: 0,
                ..good.clone()
            }),
            RulesetError::ZeroConnmark
        );
        let overlap = HostRuleset {
            connmark: 0x40,
            ..good.clone()
        };
        assert_eq!(
            refusal(overlap.clone()),
            RulesetError::MarksOverlap { connmark: 0x40 }
        );
        assert!(
            HostRuleset {
                layout: RuleLayout::PerPod,
                ..overlap
            }
            .check()
            .is_ok()
        );
        assert_eq!(
            refusal(HostRuleset {
                veth_prefix: String::new(),
                ..good.clone()
            }),
            RulesetError::EmptyPrefix
        );
        assert_eq!(
            refusal(HostRuleset {
                exempt: [].into(),
                ..good
            }),
            RulesetError::NothingExempt
        );
        assert_eq!(nft_listing(), "");
    });
}

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
