//! Our table beside others': theirs stay, ours comes back whatever was done to it.

use std::net::Ipv4Addr;

use super::super::facts::HookFacts;
use super::super::testbed::{INTERNET, POD_B, mark, nft, nft_listing, on_node, run};
use super::super::{Applied, Leftover, Nft};
use super::with_foreign_table;
use crate::net::layout::RuleLayout;
use crate::net::ruleset::HostRuleset;

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
fn dataplane_18_34_35_a_meddled_table_or_one_of_another_prefix_is_replaced_and_keeps_its_addresses() {
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
        assert!(!nft_listing().contains("\"eni*\""));
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
fn dataplane_43_external_snat_leaves_nothing_that_translates_but_host_ports() {
    on_node(|node| {
        with_foreign_table();
        let mut table = Nft::open().unwrap();
        table.apply(&node.ruleset()).unwrap();
        let external = HostRuleset {
            snat: None,
            ..node.ruleset()
        };
        table.apply(&external).unwrap();
        let listing = nft_listing();
        assert!(
            !listing.contains("snat to") && !listing.contains("@exempt"),
            "{listing}"
        );
        let plain = HostRuleset {
            node_port: false,
            layout: RuleLayout::PerPod,
            ..external
        };
        assert_eq!(table.apply(&plain).unwrap(), Applied::Replaced);
        assert!(!nft_listing().contains("mark"));
        let chains = table.facts().unwrap().unwrap().chains;
        let others = chains.keys().filter(|name| !name.starts_with("host-ports"));
        assert_eq!(others.collect::<Vec<_>>(), ["mangle-prerouting"]);
        assert_eq!(table.apply(&plain).unwrap(), Applied::Unchanged);
    });
}
