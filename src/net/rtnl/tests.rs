//! The kernel and iproute2 as judges of what we write and read.

use std::os::fd::AsRawFd;

use proptest::prelude::*;
use serde_json::Value;

use super::super::link;
use super::super::op::{LinkRef, Route, Rule, VethEnd};
use super::super::testing::{fresh_netns, in_fresh_netns, inet_of, ip_json};
use super::*;
use crate::ipam::ids::Mac;

/// Addresses of one family in one round trip.
struct Case {
    family: IpFamily,
    pod: IpAddr,
    own: (IpAddr, u8),
    gateway: IpAddr,
    elsewhere: IpAddr,
    /// How many rules a fresh namespace has.
    rules: usize,
}

fn cases() -> [Case; 2] {
    let ip = |text: &str| text.parse().unwrap();
    [
        Case {
            family: IpFamily::V4,
            pod: ip("10.0.1.5"),
            own: (ip("10.0.2.20"), 24),
            gateway: ip("10.0.2.1"),
            elsewhere: ip("192.0.2.1"),
            rules: 3,
        },
        Case {
            family: IpFamily::V6,
            pod: ip("2001:db8:0:1::5"),
            own: (ip("2001:db8:0:2::20"), 64),
            gateway: ip("2001:db8:0:2::1"),
            elsewhere: ip("2001:db8:ffff::1"),
            rules: 2,
        },
    ]
}

fn end(name: &str, last: u8) -> VethEnd {
    VethEnd {
        name: name.to_owned(),
        mac: Mac([2, 0, 0, 0, 0, last]),
    }
}

fn pair(rtnl: &mut Rtnl, netns: RawFd) -> u32 {
    let add = NetOp::AddVeth {
        here: end("enia", 1),
        there: end("eth0", 2),
        netns,
        mtu: 8000,
    };
    rtnl.apply_all(&[add, NetOp::LinkUp(LinkRef::Name("enia".to_owned()))])
        .unwrap();
    link::index_of(&*rtnl, "enia").unwrap().unwrap()
}

fn field<'a>(value: &'a Value, index: usize, key: &str) -> &'a Value {
    &value[index][key]
}

#[test]
fn a_pair_is_born_in_two_namespaces() {
    in_fresh_netns(|| {
        let other = fresh_netns();
        let mut rtnl = Rtnl::open().unwrap();
        let mut inside = Rtnl::open_in(other.as_fd()).unwrap();
        let index = pair(&mut rtnl, other.as_raw_fd());
        let here = rtnl.link_named("enia").unwrap().unwrap();
        let there = inside.link_named("eth0").unwrap().unwrap();
        assert_eq!(
            (here.index, here.mtu, here.up, here.group),
            (index, 8000, true, 0)
        );
        assert_eq!(here.mac, Some(Mac([2, 0, 0, 0, 0, 1])));
        assert_eq!(
            (there.mac, there.mtu, there.up),
            (Some(Mac([2, 0, 0, 0, 0, 2])), 8000, false)
        );
        assert_eq!((here.peer, there.peer), (Some(there.index), Some(index)));
        assert_eq!(here.kind.as_deref(), Some("veth"));
        assert_eq!(link::index_of(&inside, "eth0").unwrap(), Some(there.index));
        assert_eq!(link::index_of(&inside, "enia").unwrap(), None);
        assert!(rtnl.link_named("eth0").unwrap().is_none());
        if let Some(seen) = ip_json(&["link", "show", "enia"]) {
            assert_eq!(field(&seen, 0, "address"), "02:00:00:00:00:01");
            assert_eq!(field(&seen, 0, "mtu"), 8000);
            assert_eq!(seen[0]["linkinfo"]["info_kind"], "veth");
            assert_eq!(seen[0].get("txqlen").and_then(Value::as_u64).unwrap_or(0), 0);
        }
        rtnl.apply_all(&[NetOp::DelLink(LinkRef::Index(index))]).unwrap();
        assert!(inside.link_named("eth0").unwrap().is_none());
    });
}

#[test]
fn routes_rules_addresses_and_neighbours_round_trip_in_both_families() {
    for case in cases() {
        in_fresh_netns(|| round_trip(&case));
    }
}

fn round_trip(case: &Case) {
    let other = fresh_netns();
    let mut rtnl = Rtnl::open().unwrap();
    // An IPv6 route over a link without carrier counts as dead.
    Rtnl::open_in(other.as_fd())
        .and_then(|mut inside| {
            let index = pair(&mut rtnl, other.as_raw_fd());
            inside.apply_all(&[NetOp::LinkUp(LinkRef::Name("eth0".to_owned()))])?;
            Ok(index)
        })
        .map(|index| run_round_trip(case, &mut rtnl, index))
        .unwrap();
}

fn run_round_trip(case: &Case, rtnl: &mut Rtnl, index: u32) {
    let (family, pod, gateway) = (case.family, case.pod, case.gateway);
    let mac = Mac([2, 9, 9, 9, 9, 9]);
    let ops = [
        NetOp::AddAddress {
            address: case.own.0,
            len: case.own.1,
            link: index,
        },
        NetOp::ReplaceRoute(Route::host(pod, index, TableId(512))),
        NetOp::ReplaceRoute(Route::host(gateway, index, TableId(3))),
        NetOp::AddRoute(Route::default_via(gateway, index, TableId(3))),
        NetOp::AddRule(Rule::all(family, 512, TableId(512))),
        NetOp::AddRule(Rule::to(pod, 512, TableId::MAIN)),
        NetOp::AddRule(Rule::marked(family, 0x80, 0x80, 1024, TableId::MAIN)),
        NetOp::AddRule(Rule::from(pod, 1536, TableId(10_101))),
        NetOp::AddNeighbour {
            address: gateway,
            mac,
            link: index,
        },
    ];
    rtnl.apply_all(&ops).unwrap();

    let matched = rtnl.route_to(pod).unwrap().unwrap();
    assert_eq!((matched.table, matched.oif), (TableId(512), index));
    assert_eq!((matched.protocol, matched.kind), (3, 1));
    assert_eq!(matched.host_on_link(), Some(pod));
    if family == IpFamily::V4 {
        assert_eq!(matched.scope, 253);
    }
    assert_eq!(rtnl.routes(family, Some(TableId(512)), None).unwrap(), [matched]);
    assert_eq!(
        rtnl.routes(family, Some(TableId(3)), Some(index)).unwrap().len(),
        2
    );
    assert!(rtnl.routes(family, Some(TableId(77)), None).unwrap().is_empty());
    assert!(rtnl.routes(family, None, Some(9_999)).unwrap().is_empty());
    assert!(rtnl.routes(family, None, None).unwrap().len() > 3);
    assert_eq!(rtnl.route_to(case.elsewhere).unwrap(), None);

    let neighbour = rtnl.neighbour(gateway, index).unwrap().unwrap();
    assert!(neighbour.permanent && neighbour.mac == Some(mac));
    assert_eq!(rtnl.neighbour(pod, index).unwrap(), None);
    let addresses = rtnl.addresses(family, Some(index)).unwrap();
    assert!(addresses.iter().any(|a| (a.address, a.len) == case.own));

    let rules = rtnl.rules(family).unwrap();
    let ours: Vec<_> = rules
        .iter()
        .filter(|rule| (1..32_766).contains(&rule.priority))
        .collect();
    assert_eq!(ours.len(), 4);
    assert_eq!(ours[1].to_host(), Some(pod));
    assert_eq!(ours[2].fwmark, Some((0x80, 0x80)));
    assert_eq!(
        (ours[3].from_host(), ours[3].table),
        (Some(pod), Some(TableId(10_101)))
    );
    match family {
        IpFamily::V4 => iproute2_agrees(),
        IpFamily::V6 => iproute2_agrees_on_ipv6(),
    }

    // Repeating is EEXIST for rules (no second copy), nothing for replaced routes; inverses remove all.
    let again = rtnl.apply(&ops).unwrap();
    assert!(again[1].is_ok());
    assert!(
        again[3..8]
            .iter()
            .all(|outcome| outcome.as_ref().unwrap_err().errno == Errno::EEXIST)
    );
    let undo: Vec<_> = ops.iter().rev().filter_map(NetOp::inverse).collect();
    assert_eq!(undo.len(), 8);
    rtnl.apply_all(&undo).unwrap();
    assert_eq!(rtnl.rules(family).unwrap().len(), case.rules);
    let gone = rtnl.apply(&undo).unwrap();
    assert_eq!(gone[0].as_ref().unwrap_err().errno, Errno::ENOENT);
}

/// Conformance: dataplane case 78 and §7 for IPv6; no address waits for duplicate address detection.
fn iproute2_agrees_on_ipv6() {
    let Some(rules) = ip_json(&["-6", "rule", "show"]) else {
        return;
    };
    let rules = rules.as_array().unwrap();
    let there = |priority: u64, key: &str, value: &str, table: &str| {
        rules
            .iter()
            .any(|r| r["priority"] == priority && r[key] == value && r["table"] == table)
    };
    assert!(there(512, "src", "all", "512"));
    assert!(there(512, "dst", "2001:db8:0:1::5", "main"));
    assert!(there(1024, "fwmark", "0x80", "main"));
    assert!(there(1536, "src", "2001:db8:0:1::5", "10101"));
    let routes = ip_json(&["-6", "route", "show", "table", "3"]).unwrap();
    let route = |dst: &str| {
        routes
            .as_array()
            .unwrap()
            .iter()
            .find(|route| route["dst"] == dst)
    };
    assert_eq!(route("default").unwrap()["gateway"], "2001:db8:0:2::1");
    let host = route("2001:db8:0:2::1").unwrap();
    assert_eq!(host["metric"], 1024);
    assert!(host.get("protocol").is_none_or(|p| p == "boot"));
    let shown = ip_json(&["-6", "addr", "show", "enia"]).unwrap();
    let infos = shown[0]["addr_info"].as_array().unwrap();
    let own = infos.iter().find(|a| a["local"] == "2001:db8:0:2::20").unwrap();
    assert_eq!((&own["nodad"], own.get("tentative")), (&Value::Bool(true), None));
}

/// Conformance: dataplane case 59 and §7 (no protocol on rules, boot on routes, broadcast on addresses).
fn iproute2_agrees() {
    let Some(rules) = ip_json(&["rule", "show"]) else {
        return;
    };
    let rule = |priority: u64| {
        rules
            .as_array()
            .unwrap()
            .iter()
            .filter(move |r| r["priority"] == priority)
    };
    assert!(rule(512).any(|r| r["src"] == "all" && r.get("dst").is_none() && r["table"] == "512"));
    assert!(rule(512).any(|r| r["dst"] == "10.0.1.5" && r["table"] == "main"));
    assert!(rule(1024).all(|r| r["fwmark"] == "0x80" && r["fwmask"] == "0x80" && r["table"] == "main"));
    assert!(rule(1536).all(|r| r["src"] == "10.0.1.5" && r["table"] == "10101"));
    assert!(
        rule(1536).all(|r| r.get("protocol").is_none_or(|p| p == "unspec" || p == "0")),
        "{rules}"
    );
    let routes = ip_json(&["route", "show", "table", "3"]).unwrap();
    assert_eq!(routes[0]["dst"], "default");
    assert_eq!(routes[0]["gateway"], "10.0.2.1");
    assert_eq!(
        (routes[1]["dst"].as_str(), routes[1]["scope"].as_str()),
        (Some("10.0.2.1"), Some("link"))
    );
    assert!(routes[1].get("protocol").is_none_or(|p| p == "boot"));
    assert_eq!(
        inet_of("enia").unwrap(),
        (Some("10.0.2.20".into()), Some("10.0.2.255".into()))
    );
    let neighbours = ip_json(&["neigh", "show", "dev", "enia"]).unwrap();
    assert!(
        neighbours
            .as_array()
            .unwrap()
            .iter()
            .any(|n| n["state"][0] == "PERMANENT")
    );
}

#[test]
fn a_group_goes_in_one_request_and_absence_is_no_error() {
    in_fresh_netns(|| {
        let other = fresh_netns();
        let mut rtnl = Rtnl::open().unwrap();
        assert!(!link::reap_doomed(&mut rtnl).unwrap());
        let index = pair(&mut rtnl, other.as_raw_fd());
        let doom = NetOp::LinkGroup(LinkRef::Index(index), super::super::layout::DOOMED_GROUP);
        rtnl.apply_all(&[doom]).unwrap();
        assert!(link::reap_doomed(&mut rtnl).unwrap());
        assert!(rtnl.link_named("enia").unwrap().is_none());
        assert!(rtnl.link_named("lo").unwrap().is_some());
    });
}

#[test]
fn a_link_is_found_by_its_mac() {
    in_fresh_netns(|| {
        let other = fresh_netns();
        let mut rtnl = Rtnl::open().unwrap();
        pair(&mut rtnl, other.as_raw_fd());
        let mac = Mac([2, 0, 0, 0, 0, 1]);
        assert_eq!(link::with_mac(&mut rtnl, mac).unwrap().unwrap().name, "enia");
        assert!(link::with_mac(&mut rtnl, Mac([6; 6])).unwrap().is_none());
    });
}

proptest! {
    #[test]
    fn hostile_answers_never_panic(bytes in proptest::collection::vec(any::<u8>(), 0..160)) {
        let _seen = (decode::link(&bytes), decode::route(&bytes), decode::rule(&bytes), decode::address(&bytes), decode::neighbour(&bytes));
    }
}
