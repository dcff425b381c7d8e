//! What the kernel makes of our messages: what is written, when nothing is, and what a change touches.

use std::collections::BTreeMap;
use std::net::Ipv4Addr;

use super::super::model::SnatPorts;
use super::super::testbed::{NODE_IP, POD_B, exempt, mark, nft, nft_listing, numbers, on_node, run};
use super::super::{Applied, Nft, NftError};
use super::addresses;
use crate::net::layout::RuleLayout;
use crate::net::ruleset::{ENI_LINK, HostRuleset, RulesetError};
use crate::net::testing::in_fresh_netns;

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
            "elements = { \"eth1\" : jump link-1 }",
            "iif vmap @eni-link",
            "iif \"eth0\" ct direction original fib daddr . iif type local ct mark set ct mark | 0x00000080",
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
        assert_eq!(exempt(&mut table), want.exempt_ranges());
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
                    assert_eq!(first, Applied::Replaced, "{want:?}");
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
        assert_eq!(exempt(&mut table), want.exempt_ranges());
        // Another ENI comes, then the first one goes and takes its addresses along.
        want.enis.insert(mark(2), node.eth0);
        assert_eq!(table.apply(&want).unwrap(), Applied::Amended);
        table.publish(mark(2), &addresses(7, 1)).unwrap();
        want.enis.remove(&mark(1));
        assert_eq!(table.apply(&want).unwrap(), Applied::Amended);
        let facts = table.facts().unwrap().unwrap();
        assert_eq!(
            table.pods().unwrap().into_iter().collect::<Vec<_>>(),
            [(addresses(7, 1)[0], Some(mark(2)))]
        );
        assert_eq!(numbers(&mut table, ENI_LINK), [(node.eth0, Some(mark(2)))]);
        assert!(!facts.chains.contains_key("eni-1"));
        assert_eq!(table.apply(&want).unwrap(), Applied::Unchanged);
        // Its link got another index (renamed driver, re-attached ENI).
        want.enis.insert(mark(2), node.eth1);
        assert_eq!(table.apply(&want).unwrap(), Applied::Amended);
        assert_eq!(numbers(&mut table, ENI_LINK), [(node.eth1, Some(mark(2)))]);
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
        // A set that grows is rehashed by the kernel at leisure, and what is listed meanwhile may lack some
        // (nft_rhash_walk, net/netfilter/nft_set_hash.c, goes on after EAGAIN).
        let mut listed = || table.pods().unwrap().len();
        let whole = (0..200).any(|_| {
            std::thread::sleep(std::time::Duration::from_millis(20));
            listed() == 4000
        });
        assert!(whole, "{} of 4000", listed());
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
