use std::net::Ipv4Addr;

use super::*;
use crate::net::netlink::{Family, Reply, Socket};
use crate::net::nft::testbed::{
    INTERNET, NODE_IP, Node, POD_B, VPC_PEER, exempt, index, mark, nft, on_bare_node, run,
};
use crate::net::testing::in_fresh_netns;

fn intent(node: &Node) -> HostIntent {
    let links = Rtnl::open().unwrap().links().unwrap();
    let primary = links.into_iter().find(|link| link.name == "eth0").unwrap();
    HostIntent {
        family: IpFamily::V4,
        primary_mac: primary.mac.unwrap(),
        node_ip: NODE_IP,
        eni_mtu: 9001,
        connmark: 0x80,
        veth_prefix: "eni".into(),
        node_port: true,
        snat: Some(SnatPorts::default()),
        vpc_cidrs: ["10.0.0.0/16", "10.1.0.0/16"]
            .map(|cidr| cidr.parse().unwrap())
            .into(),
        exclude_snat_cidrs: [].into(),
        external_service_cidrs: [].into(),
        disable_tcp_early_demux: false,
        enis: [(mark(1), node.eth1)].into(),
        layout: RuleLayout::Shared,
    }
}

fn rules_at(priority: u32) -> Vec<String> {
    let prefix = format!("{priority}:");
    let shown = run("ip rule");
    let lines = shown.lines().filter_map(|line| line.strip_prefix(&prefix));
    lines.map(|line| line.trim().to_owned()).collect()
}

fn sysctl(key: &str) -> String {
    std::fs::read_to_string(format!("/proc/sys/net/ipv4/{key}"))
        .unwrap()
        .trim()
        .to_owned()
}

/// Everything that changes addresses, routes, rules, parameters or `nf_tables` in this namespace.
fn monitors() -> [Socket; 2] {
    // RTNLGRP_IPV4_IFADDR, IPV4_ROUTE, IPV4_RULE, IPV4_NETCONF; NFNLGRP_NFTABLES. Links speak by themselves while
    // they get carrier.
    [
        Socket::subscribe(Family::Route, &[5, 7, 8, 24]).unwrap(),
        Socket::subscribe(Family::Netfilter, &[7]).unwrap(),
    ]
}

fn heard(monitors: &mut [Socket; 2]) -> Vec<Reply> {
    monitors
        .iter_mut()
        .flat_map(|monitor| monitor.drain().unwrap())
        .collect()
}

/// Conformance: dataplane 1, 13 and 28.
#[test]
fn dataplane_1_13_133_a_second_start_changes_nothing() {
    on_bare_node(|node| {
        let intent = intent(node);
        let mut host = Host::open().unwrap();
        let mut monitors = monitors();
        let first = host.apply(&intent).unwrap();
        assert_eq!(first.primary.name, "eth0");
        assert_eq!(first.primary.mtu, 9001);
        assert!(
            first.changes.contains(&HostChange::Table(Applied::Replaced)),
            "{:?}",
            first.changes
        );
        assert_eq!(rules_at(512), ["from all lookup 512"]);
        assert_eq!(rules_at(1024), ["from all fwmark 0x80/0x80 lookup main"]);
        assert_eq!(
            (sysctl("conf/eth0/rp_filter"), sysctl("ip_forward")),
            ("2".into(), "1".into())
        );
        assert_eq!(sysctl("tcp_early_demux"), "1");
        assert_ne!(heard(&mut monitors), [], "the monitors work");
        while !heard(&mut monitors).is_empty() {}
        for mut host in [host, Host::open().unwrap()] {
            let again = host.apply(&intent).unwrap();
            assert_eq!(again.changes, []);
            assert_eq!(heard(&mut monitors), []);
        }
    });
}

fn sysctl6(key: &str) -> String {
    let value = std::fs::read_to_string(format!("/proc/sys/net/ipv6/conf/{key}")).unwrap();
    value.trim().to_owned()
}

/// Conformance: dataplane 45 and 134. Nothing of IPv4 but what every node gets, and no IPv4 table.
#[test]
fn dataplane_45_134_a_node_of_ipv6_pods_gets_its_rules_and_parameters_once() {
    for layout in [RuleLayout::Shared, RuleLayout::PerPod] {
        on_bare_node(|node| {
            for (key, value) in [
                ("all/disable_ipv6", "1"),
                ("default/disable_ipv6", "1"),
                ("eth0/accept_ra", "1"),
            ] {
                std::fs::write(format!("/proc/sys/net/ipv6/conf/{key}"), value).unwrap();
            }
            let before = (run("ip rule"), run("nft list tables ip"), sysctl("ip_forward"));
            let intent = HostIntent {
                family: IpFamily::V6,
                layout,
                external_service_cidrs: ["10.9.0.0/16".parse().unwrap()].into(),
                ..intent(node)
            };
            let mut host = Host::open().unwrap();
            // RTNLGRP_IPV6_ROUTE, IPV6_RULE, IPV6_NETCONF; those of IPv4 and nftables.
            let mut six = Socket::subscribe(Family::Route, &[11, 19, 25]).unwrap();
            host.apply(&intent).unwrap();
            let rules = run("ip -6 rule");
            let mark = "1024:\tfrom all fwmark 0x80/0x80 lookup main";
            let pods = "512:\tfrom all lookup 512";
            assert!(rules.contains(mark), "{rules}");
            assert_eq!(rules.contains(pods), layout == RuleLayout::Shared, "{rules}");
            let set = [
                "all/disable_ipv6",
                "default/disable_ipv6",
                "eth0/disable_ipv6",
                "all/forwarding",
                "eth0/accept_ra",
            ];
            assert_eq!(set.map(sysctl6), ["0", "0", "0", "1", "2"]);
            assert_eq!(sysctl("conf/eth0/rp_filter"), "2");
            let after = (run("ip rule"), run("nft list tables ip"), sysctl("ip_forward"));
            assert_eq!(after, before);

            assert_ne!(six.drain().unwrap(), [], "the monitor works");
            while !six.drain().unwrap().is_empty() {}
            let rules = || Socket::subscribe(Family::Route, &[8, 19, 24, 25]).unwrap();
            let mut told = (rules(), monitors());
            for mut host in [host, Host::open().unwrap()] {
                assert_eq!(host.apply(&intent).unwrap().changes, []);
            }
            assert_eq!(told.0.drain().unwrap(), []);
            assert_eq!(heard(&mut told.1), []);
        });
    }
}

/// A host that begins to forward forgets the default route its router announced, unless it goes on listening.
#[test]
fn dataplane_134_the_default_route_that_the_router_announced_survives_forwarding() {
    on_bare_node(|node| {
        // As the kernel itself makes it of an announcement.
        run("ip -6 route add default via fe80::99 dev eth0 proto ra expires 1800");
        let six = HostIntent {
            family: IpFamily::V6,
            ..intent(node)
        };
        let before = sysctl6("all/forwarding");
        Host::open().unwrap().apply(&six).unwrap();
        assert_eq!((before.as_str(), sysctl6("all/forwarding").as_str()), ("0", "1"));
        let order: Vec<String> = six.sysctls("eth0").into_iter().map(|(key, ..)| key).collect();
        let place = |of: &str| order.iter().position(|key| key.ends_with(of)).unwrap();
        assert!(place("eth0/accept_ra") < place("all/forwarding"));
        assert!(run("ip -6 route show default").contains("via fe80::99"));
    });
}

#[test]
fn pods_of_ipv6_wired_before_the_layout_changed_keep_their_way() {
    on_bare_node(|node| {
        let shared = HostIntent {
            family: IpFamily::V6,
            ..intent(node)
        };
        let mut host = Host::open().unwrap();
        host.apply(&shared).unwrap();
        run("ip -6 route add 2001:db8::5/128 dev eth0 table 512");
        let per_pod = HostIntent {
            layout: RuleLayout::PerPod,
            ..shared
        };
        assert_eq!(host.apply(&per_pod).unwrap().changes, []);
        run("ip -6 route flush table 512");
        host.apply(&per_pod).unwrap();
        assert!(!run("ip -6 rule").contains("lookup 512"));
    });
}

/// Conformance: dataplane 7.1. `ip rule add` sends no protocol either and is refused only by an equal rule without.
#[test]
fn dataplane_1_109_rules_carry_no_protocol() {
    on_bare_node(|node| {
        Host::open().unwrap().apply(&intent(node)).unwrap();
        let shown: serde_json::Value = serde_json::from_str(&run("ip -j -d rule")).unwrap();
        let ours = shown
            .as_array()
            .unwrap()
            .iter()
            .filter(|rule| [512, 1024].contains(&rule["priority"].as_u64().unwrap()));
        let protocols: Vec<_> = ours.map(|rule| rule["protocol"].clone()).collect();
        assert_eq!(protocols, ["unspec", "unspec"]);
    });
}

#[test]
fn dataplane_2_3_without_node_port_and_snat_the_mark_rule_goes() {
    on_bare_node(|node| {
        run("ip rule add pref 1024 fwmark 0x80/0x80 lookup main");
        let mut host = Host::open().unwrap();
        let plain = HostIntent {
            node_port: false,
            snat: None,
            ..intent(node)
        };
        host.apply(&plain).unwrap();
        assert_eq!(rules_at(1024), [""; 0]);
        // 3: either of the two is enough.
        for wanted in [
            HostIntent {
                node_port: true,
                ..plain.clone()
            },
            HostIntent {
                snat: Some(SnatPorts::None),
                ..plain.clone()
            },
        ] {
            host.apply(&wanted).unwrap();
            assert_eq!(rules_at(1024), ["from all fwmark 0x80/0x80 lookup main"]);
            host.apply(&plain).unwrap();
        }
    });
}

/// Conformance: dataplane 17 and 8.1 (the Go daemon leaves the old mark's rule behind).
#[test]
fn dataplane_17_a_new_mark_replaces_the_old_one_everywhere() {
    on_bare_node(|node| {
        // Duplicates of every making, and others' rules at the same priorities.
        for rule in [
            "pref 1024 fwmark 0x80/0x80 lookup main",
            "pref 1024 fwmark 0x80/0x80 lookup main protocol static",
            "pref 1024 fwmark 0x40/0x40 lookup main",
            "pref 1024 fwmark 0x4000/0xff00 lookup main",
            "pref 1024 from 10.9.9.9 lookup 77",
            "pref 512 to 10.0.1.77 lookup main",
            "pref 512 iif eth1 lookup 513",
            "pref 512 lookup 512 protocol boot",
            "pref 512 lookup 512",
        ] {
            run(&format!("ip rule add {rule}"));
        }
        let mut host = Host::open().unwrap();
        host.apply(&HostIntent {
            connmark: 0x100,
            ..intent(node)
        })
        .unwrap();
        let mut marks = rules_at(1024);
        marks.sort();
        assert_eq!(
            marks,
            [
                "from 10.9.9.9 lookup 77",
                "from all fwmark 0x100/0x100 lookup main",
                "from all fwmark 0x4000/0xff00 lookup main",
            ]
        );
        let mut pods: Vec<_> = rules_at(512)
            .into_iter()
            .map(|rule| rule.replace(" proto boot", ""))
            .collect();
        pods.sort();
        assert_eq!(
            pods,
            [
                "from all iif eth1 lookup 513",
                "from all lookup 512",
                "from all to 10.0.1.77 lookup main"
            ]
        );
        let listing = run("nft list table ip aws-cni");
        assert!(
            listing.contains("0x00000100") && !listing.contains("0x00000080"),
            "{listing}"
        );
    });
}

#[test]
fn external_service_networks_come_and_go() {
    on_bare_node(|node| {
        run("ip rule add pref 1535 to 172.16.0.0/12 lookup main");
        run("ip rule add pref 1535 to 172.16.0.0/12 lookup 99");
        let cidrs = |texts: &[&str]| texts.iter().map(|text| text.parse().unwrap()).collect();
        let mut host = Host::open().unwrap();
        let mut wanted = intent(node);
        wanted.external_service_cidrs = cidrs(&["192.0.2.0/24", "198.51.100.0/24"]);
        host.apply(&wanted).unwrap();
        let mut rules = rules_at(1535);
        rules.sort();
        assert_eq!(
            rules,
            [
                "from all to 172.16.0.0/12 lookup 99",
                "from all to 192.0.2.0/24 lookup main",
                "from all to 198.51.100.0/24 lookup main"
            ]
        );
        wanted.external_service_cidrs = cidrs(&["192.0.2.0/24"]);
        let report = host.apply(&wanted).unwrap();
        assert_eq!(
            report.changes.iter().map(ToString::to_string).collect::<Vec<_>>(),
            ["rule del from all to 198.51.100.0/24 lookup main pref 1535"]
        );
        assert_eq!(host.apply(&wanted).unwrap().changes, []);
    });
}

#[test]
fn pods_of_the_other_layout_keep_their_rule_until_they_are_gone() {
    on_bare_node(|node| {
        let mut host = Host::open().unwrap();
        host.apply(&intent(node)).unwrap();
        let per_pod = HostIntent {
            layout: RuleLayout::PerPod,
            ..intent(node)
        };
        host.apply(&per_pod).unwrap();
        assert_eq!(rules_at(512), ["from all lookup 512"]);
        run("ip route flush table 512");
        host.apply(&per_pod).unwrap();
        assert_eq!(rules_at(512), [""; 0]);
    });
}

/// Conformance: dataplane 26; and the set-up as a whole carries packets.
#[test]
fn dataplane_26_a_new_vpc_network_is_an_element() {
    on_bare_node(|node| {
        let mut host = Host::open().unwrap();
        let mut wanted = intent(node);
        host.apply(&wanted).unwrap();
        host.table().publish(mark(1), &[POD_B]).unwrap();
        assert_eq!(node.echo(&node.pod_b, INTERNET), (NODE_IP, "w0"));
        wanted.vpc_cidrs.insert("8.8.0.0/16".parse().unwrap());
        assert_eq!(
            host.apply(&wanted).unwrap().changes,
            [HostChange::Table(Applied::Amended)]
        );
        assert_eq!(node.echo(&node.pod_b, INTERNET), (POD_B, "w1"));
        assert_eq!(node.echo(&node.pod_b, VPC_PEER), (POD_B, "w1"));
    });
}

/// Conformance: dataplane 6 and 11.
#[test]
fn dataplane_6_11_excluded_networks_come_and_go_and_those_of_the_vpc_stay() {
    on_bare_node(|node| {
        let exempt = |host: &mut Host| exempt(host.table());
        let mut host = Host::open().unwrap();
        let mut wanted = intent(node);
        host.apply(&wanted).unwrap();
        let vpc = exempt(&mut host);
        wanted.exclude_snat_cidrs = ["8.8.8.0/24", "10.13.0.0/16"]
            .map(|cidr| cidr.parse().unwrap())
            .into();
        host.apply(&wanted).unwrap();
        host.table().publish(mark(1), &[POD_B]).unwrap();
        assert_eq!(exempt(&mut host).difference(&vpc).count(), 2);
        assert_eq!(node.echo(&node.pod_b, INTERNET), (POD_B, "w1"));
        wanted.exclude_snat_cidrs.clear();
        host.apply(&wanted).unwrap();
        assert_eq!(exempt(&mut host), vpc);
        assert_eq!(node.echo(&node.pod_b, INTERNET), (NODE_IP, "w0"));
    });
}

#[test]
fn dataplane_133_a_drifted_node_is_put_right() {
    on_bare_node(|node| {
        let mut host = Host::open().unwrap();
        host.apply(&intent(node)).unwrap();
        std::fs::write("/proc/sys/net/ipv4/conf/eth0/rp_filter", "1").unwrap();
        std::fs::write("/proc/sys/net/ipv4/tcp_early_demux", "0").unwrap();
        run("ip link set eth0 mtu 1500");
        run("ip rule del pref 1024");
        nft("flush chain ip aws-cni snat-mark");
        let report = host.apply(&intent(node)).unwrap();
        assert_eq!(
            report.changes.iter().map(ToString::to_string).collect::<Vec<_>>(),
            [
                "mtu of the primary ENI: 1500 -> 9001",
                "sysctl net/ipv4/conf/eth0/rp_filter = 2",
                "sysctl net/ipv4/tcp_early_demux = 1",
                "rule add from all fwmark 0x80/0x80 lookup main pref 1024",
                "nftables table aws-cni: Replaced",
            ]
        );
        assert_eq!(host.apply(&intent(node)).unwrap().changes, []);
        host.apply(&HostIntent {
            disable_tcp_early_demux: true,
            ..intent(node)
        })
        .unwrap();
        assert_eq!(sysctl("tcp_early_demux"), "0");
    });
}

#[test]
fn a_missing_primary_link_is_named() {
    in_fresh_netns(|| {
        let intent = HostIntent {
            family: IpFamily::V4,
            primary_mac: "0a:00:00:00:00:01".parse().unwrap(),
            node_ip: Ipv4Addr::LOCALHOST,
            eni_mtu: 9001,
            connmark: 0x80,
            veth_prefix: "eni".into(),
            node_port: true,
            snat: None,
            vpc_cidrs: [].into(),
            exclude_snat_cidrs: [].into(),
            external_service_cidrs: [].into(),
            disable_tcp_early_demux: false,
            enis: [].into(),
            layout: RuleLayout::Shared,
        };
        let error = Host::open().unwrap().apply(&intent).unwrap_err();
        assert!(error.to_string().contains("0a:00:00:00:00:01"), "{error}");
        assert_eq!(index("lo"), 1);
        assert_eq!(rules_at(512), [""; 0]);
    });
}

#[test]
#[ignore = "a measurement"]
fn measure() {
    on_bare_node(|node| {
        let mut host = Host::open().unwrap();
        let intent = intent(node);
        let start = std::time::Instant::now();
        host.apply(&intent).unwrap();
        println!("first apply: {:?}", start.elapsed());
        for published in [0_u32, 250, 750] {
            let pods: Vec<_> = (0..published)
                .map(|n| Ipv4Addr::from_bits(0x0a00_0200 + n))
                .collect();
            host.table().publish(mark(1), &pods).unwrap();
            let mut spent: Vec<_> = (0..100)
                .map(|_| {
                    let start = std::time::Instant::now();
                    assert_eq!(host.apply(&intent).unwrap().changes, []);
                    start.elapsed()
                })
                .collect();
            spent.sort_unstable();
            println!(
                "unchanged apply, {published} addresses: p50 {:?}, p95 {:?}",
                spent[50], spent[95]
            );
        }
    });
}
