//! Pods wired, checked and unwired in fresh namespaces; iproute2 as the independent judge.

use std::fs;
use std::os::fd::{AsFd, OwnedFd};

use nix::libc::{RTNLGRP_IPV4_ROUTE, RTNLGRP_IPV4_RULE};
use serde_json::Value;

use super::super::layout::{DOOMED_GROUP, FROM_POD_PRIORITY, POD_GATEWAY, POD_TABLE, TO_POD_PRIORITY};
use super::super::link;
use super::super::netlink::{Family, Socket};
use super::super::op::{LinkRef, NetOp, Route, Rule, VethEnd};
use super::super::rtnl::Rtnl;
use super::super::testing::{fd_path, fresh_netns, in_fresh_netns, ip_json};
use super::super::veth;
use super::*;
use crate::ipam::cidr::Ipv4Cidr;

const POD: Ipv4Addr = Ipv4Addr::new(10, 0, 1, 5);

struct Lab {
    netns: OwnedFd,
    host: Rtnl,
    intent: PodIntent,
}

/// A host with its rule to the pod table, and one pod's namespace.
fn lab(layout: RuleLayout, table: u32, test: impl FnOnce(Lab) + Send) {
    in_fresh_netns(|| {
        let netns = fresh_netns();
        let mut host = Rtnl::open().unwrap();
        host.apply_all(&[NetOp::AddRule(Rule::all(TO_POD_PRIORITY, POD_TABLE))])
            .unwrap();
        let intent = PodIntent {
            host_veth: veth::host_name("eni", "default", "nginx", 0),
            ifname: "eth0".to_owned(),
            netns: fd_path(&netns),
            address: POD,
            mtu: 9001,
            host_mac: veth::random_mac().unwrap(),
            pod_mac: veth::random_mac().unwrap(),
            eni_table: TableId(table),
            layout,
        };
        test(Lab { netns, host, intent });
    });
}

impl Lab {
    fn removal(&self, link: LinkRemoval) -> PodRemoval {
        PodRemoval {
            host_veth: Some(self.intent.host_veth.clone()),
            address: self.intent.address,
            eni_table: Some(self.intent.eni_table),
            layout: self.intent.layout,
            link,
        }
    }

    fn inside(&self) -> Rtnl {
        Rtnl::open_in(self.netns.as_fd()).unwrap()
    }

    /// Everything a wiring may leave on the host.
    fn traces(&mut self) -> (usize, usize, usize) {
        let links = self.host.links().unwrap().len();
        let routes = self
            .host
            .routes(None, None)
            .unwrap()
            .iter()
            .filter(|route| route.kind == 1)
            .count();
        (links, routes, self.host.rules().unwrap().len())
    }

    fn rules_about_the_pod(&mut self) -> Vec<(u32, Option<TableId>)> {
        let pod = Some(Ipv4Cidr::host(POD));
        let rules = self.host.rules().unwrap();
        let about = rules
            .into_iter()
            .filter(|rule| rule.from == pod || rule.to == pod);
        about.map(|rule| (rule.priority, rule.table)).collect()
    }
}

fn words(intent: &PodIntent) -> Vec<String> {
    check_pod(intent).iter().map(ToString::to_string).collect()
}

/// Conformance: dataplane cases 61 to 63 and 65.
#[test]
fn dataplane_62_63_65_a_wired_pod_is_what_was_meant() {
    lab(RuleLayout::Shared, 3, |mut lab| {
        let wired = wire_pod(&lab.intent).unwrap();
        assert_eq!(words(&lab.intent), [""; 0]);
        let host = lab.host.link_named("enic440f455693").unwrap().unwrap();
        assert_eq!(
            (host.index, host.mac, host.mtu),
            (wired.host_index, Some(lab.intent.host_mac), 9001)
        );
        let pod = lab.inside().link_named("eth0").unwrap().unwrap();
        assert_eq!(
            (pod.index, pod.mac, pod.mtu),
            (wired.pod_index, Some(lab.intent.pod_mac), 9001)
        );
        let neighbour = lab
            .inside()
            .neighbour(POD_GATEWAY, wired.pod_index)
            .unwrap()
            .unwrap();
        assert_eq!(
            (neighbour.mac, neighbour.permanent),
            (Some(lab.intent.host_mac), true)
        );
        let setting = |key| fs::read_to_string(format!("/proc/sys/net/ipv6/conf/enic440f455693/{key}")).ok();
        for (key, value) in [("accept_ra", "0"), ("accept_redirects", "1"), ("forwarding", "0")] {
            assert!(setting(key).is_none_or(|found| found.trim() == value), "{key}");
        }
        assert!(
            lab.rules_about_the_pod().is_empty(),
            "no rule per pod in the shared layout"
        );
        iproute2_sees_the_pod(&lab);
    });
}

/// A kernel without IPv6 has no such directory; here another file system hides it from this thread alone.
#[test]
fn dataplane_66_a_host_without_ipv6_wires_pods() {
    lab(RuleLayout::Shared, 3, |lab| {
        use nix::mount::{MsFlags, mount};
        let none = None::<&str>;
        nix::sched::unshare(nix::sched::CloneFlags::CLONE_NEWNS).unwrap();
        mount(none, "/", none, MsFlags::MS_REC | MsFlags::MS_PRIVATE, none).unwrap();
        mount(
            Some("none"),
            "/proc/sys/net/ipv6",
            Some("tmpfs"),
            MsFlags::empty(),
            none,
        )
        .unwrap();
        assert!(!fs::exists("/proc/sys/net/ipv6/conf").unwrap());
        wire_pod(&lab.intent).unwrap();
        assert_eq!(words(&lab.intent), [""; 0]);
    });
}

fn iproute2_sees_the_pod(lab: &Lab) {
    let Some(routes) = ip_json(&["route", "show", "table", "512"]) else {
        return;
    };
    let expected = serde_json::json!({"dst": "10.0.1.5", "dev": "enic440f455693", "scope": "link"});
    for (key, value) in expected.as_object().unwrap() {
        assert_eq!(&routes[0][key], value);
    }
    let view = |args: &'static [&'static str]| {
        super::super::netns::run_in(lab.netns.as_fd(), move || ip_json(args).unwrap()).unwrap()
    };
    let routes = view(&["route", "show"]);
    assert_eq!(
        (routes[0]["dst"].as_str(), routes[0]["gateway"].as_str()),
        (Some("default"), Some("169.254.1.1"))
    );
    assert_eq!(
        (routes[1]["dst"].as_str(), routes[1]["scope"].as_str()),
        (Some("169.254.1.1"), Some("link"))
    );
    assert_eq!(routes.as_array().unwrap().len(), 2);
    let neighbours = view(&["neigh", "show"]);
    assert_eq!(neighbours[0]["state"][0], "PERMANENT");
    let address = view(&["addr", "show", "eth0"]);
    let inet: Vec<&Value> = address[0]["addr_info"]
        .as_array()
        .unwrap()
        .iter()
        .filter(|a| a["family"] == "inet")
        .collect();
    assert_eq!(
        (inet[0]["local"].as_str(), inet[0]["prefixlen"].as_u64()),
        (Some("10.0.1.5"), Some(32))
    );
    assert!(inet[0].get("broadcast").is_none());
}

/// Conformance: dataplane case 59.
#[test]
fn dataplane_59_the_per_pod_layout_is_the_go_plugins() {
    lab(RuleLayout::PerPod, 3, |mut lab| {
        let wired = wire_pod(&lab.intent).unwrap();
        assert_eq!(words(&lab.intent), [""; 0]);
        assert_eq!(
            lab.rules_about_the_pod(),
            [(512, Some(TableId::MAIN)), (1536, Some(TableId(3)))]
        );
        let main = lab
            .host
            .routes(Some(TableId::MAIN), Some(wired.host_index))
            .unwrap();
        assert_eq!((main[0].dst, main[0].scope), (Ipv4Cidr::host(POD), 253));
        assert!(lab.host.routes(Some(POD_TABLE), None).unwrap().is_empty());
    });
    lab(RuleLayout::PerPod, 254, |mut lab| {
        wire_pod(&lab.intent).unwrap();
        assert_eq!(lab.rules_about_the_pod(), [(512, Some(TableId::MAIN))]);
        assert_eq!(words(&lab.intent), [""; 0]);
    });
}

/// Quirk 9: rules of an earlier owner of the address win because they are older.
#[test]
fn dataplane_quirk_9_stale_rules_from_the_pod_go_first() {
    for (table, expected) in [(3, Some(TableId(3))), (254, None)] {
        lab(RuleLayout::PerPod, table, |mut lab| {
            for stale in [7, 3, 9] {
                lab.host
                    .apply_all(&[NetOp::AddRule(Rule::from(POD, FROM_POD_PRIORITY, TableId(stale)))])
                    .unwrap();
            }
            let other = Rule::from(Ipv4Addr::new(10, 0, 1, 6), FROM_POD_PRIORITY, TableId(7));
            lab.host.apply_all(&[NetOp::AddRule(other)]).unwrap();
            wire_pod(&lab.intent).unwrap();
            let from: Vec<_> = lab
                .rules_about_the_pod()
                .into_iter()
                .filter(|(priority, _)| *priority == 1536)
                .collect();
            assert_eq!(
                from,
                expected
                    .map(|table| (1536, Some(table)))
                    .into_iter()
                    .collect::<Vec<_>>()
            );
            assert!(
                lab.host
                    .rules()
                    .unwrap()
                    .iter()
                    .any(|rule| rule.table == Some(TableId(7)))
            );
            assert_eq!(words(&lab.intent), [""; 0]);
        });
    }
}

#[test]
fn a_pair_made_before_the_address_is_known_becomes_the_pods() {
    lab(RuleLayout::Shared, 3, |mut lab| {
        let mut sandbox = Sandbox::open(&lab.intent.netns).unwrap();
        sandbox.make_pair(&lab.intent.pair());
        let early = lab.host.link_named(&lab.intent.host_veth).unwrap().unwrap();
        assert!(!early.up);
        let wired = sandbox.wire(&lab.intent).unwrap();
        assert_eq!(wired.host_index, early.index, "the same pair");
        assert_eq!(words(&lab.intent), [""; 0]);
    });
}

#[test]
fn a_pair_that_no_address_comes_for_is_left_to_the_daemon() {
    lab(RuleLayout::Shared, 3, |mut lab| {
        let mut sandbox = Sandbox::open(&lab.intent.netns).unwrap();
        sandbox.make_pair(&lab.intent.pair());
        sandbox.give_up();
        let left = lab.host.link_named(&lab.intent.host_veth).unwrap().unwrap();
        assert_eq!((left.group, left.up), (DOOMED_GROUP, false));
        // The next attempt does not wait for that.
        wire_pod(&lab.intent).unwrap();
        assert_eq!(words(&lab.intent), [""; 0]);
    });
}

/// Until an address is there nothing that exists is touched: the ADD may be refused, and what exists may be in use.
#[test]
fn a_pair_in_use_is_replaced_only_once_there_is_an_address() {
    lab(RuleLayout::Shared, 3, |mut lab| {
        let before = wire_pod(&lab.intent).unwrap();
        let again = PodIntent {
            host_mac: veth::random_mac().unwrap(),
            pod_mac: veth::random_mac().unwrap(),
            ..lab.intent.clone()
        };
        let mut sandbox = Sandbox::open(&again.netns).unwrap();
        sandbox.make_pair(&again.pair());
        sandbox.give_up();
        assert_eq!(words(&lab.intent), [""; 0], "as it was");
        let mut sandbox = Sandbox::open(&again.netns).unwrap();
        sandbox.make_pair(&again.pair());
        let wired = sandbox.wire(&again).unwrap();
        assert_ne!(before.host_index, wired.host_index);
        lab.intent = again;
        assert_eq!(words(&lab.intent), [""; 0]);
    });
}

/// What failed on the way is undone, the pair made in advance included.
#[test]
fn a_pair_made_in_advance_goes_when_the_rest_fails() {
    lab(RuleLayout::Shared, 3, |mut lab| {
        let before = lab.traces();
        let mut sandbox = Sandbox::open(&lab.intent.netns).unwrap();
        sandbox.make_pair(&lab.intent.pair());
        // An address twice is refused.
        let pod = lab.inside().link_named("eth0").unwrap().unwrap();
        let taken = NetOp::AddAddress {
            address: POD,
            len: 32,
            link: pod.index,
        };
        lab.inside().apply_all(&[taken]).unwrap();
        let error = sandbox.wire(&lab.intent).unwrap_err();
        assert!(matches!(error.failure, WireFailure::Pod(_)), "{error}");
        assert_eq!(lab.traces(), before);
    });
}

/// Two plugins may believe in one address for a moment, when the daemon dies after it has assigned it and before that is
/// on the disk. Whoever comes second waits, and takes nothing away.
#[test]
fn an_address_that_is_routed_is_waited_for_and_never_taken_over() {
    lab(RuleLayout::Shared, 3, |mut lab| {
        wire_pod(&lab.intent).unwrap();
        let second_sandbox = fresh_netns();
        let second = PodIntent {
            host_veth: veth::host_name("eni", "default", "second", 0),
            netns: fd_path(&second_sandbox),
            ..lab.intent.clone()
        };
        let error = wire_pod(&second).unwrap_err();
        assert!(
            matches!(&error.failure, WireFailure::Host(why) if why.errno == nix::errno::Errno::EEXIST),
            "{error}"
        );
        assert!(error.left_behind.is_empty());
        assert_eq!(words(&lab.intent), [""; 0], "the first one is as it was");
        assert!(lab.host.link_named(&second.host_veth).unwrap().is_none());
        std::thread::scope(|scope| {
            let wiring = scope.spawn(|| wire_pod(&second));
            while lab.host.link_named(&second.host_veth).unwrap().is_none() {
                std::thread::yield_now();
            }
            unwire_pod(&lab.removal(LinkRemoval::Doom)).unwrap();
            wiring.join().unwrap().unwrap();
        });
        assert_eq!(words(&second), [""; 0]);
    });
}

/// Conformance: dataplane case 67.
#[test]
fn dataplane_67_a_leftover_of_that_name_is_replaced() {
    lab(RuleLayout::Shared, 3, |mut lab| {
        let old_sandbox = fresh_netns();
        let mut old = lab.intent.clone();
        old.netns = fd_path(&old_sandbox);
        old.address = Ipv4Addr::new(10, 0, 1, 99);
        let before = wire_pod(&old).unwrap();
        let wired = wire_pod(&lab.intent).unwrap();
        assert_ne!(before.host_index, wired.host_index);
        assert_eq!(words(&lab.intent), [""; 0]);
        assert_eq!(lab.host.routes(Some(POD_TABLE), None).unwrap().len(), 1);
        // An ADD repeated for the same sandbox meets its own pair.
        wire_pod(&lab.intent).unwrap();
        assert_eq!(words(&lab.intent), [""; 0]);
    });
}

/// Conformance: dataplane case 70 and 8.1 (the Go plugin deletes the live interface first).
#[test]
fn dataplane_70_a_missing_namespace_costs_nothing() {
    lab(RuleLayout::Shared, 3, |mut lab| {
        wire_pod(&lab.intent).unwrap();
        let before = lab.traces();
        let mut lost = lab.intent.clone();
        for (path, start) in [
            (
                "/nowhere/ns",
                "failed to Statfs \"/nowhere/ns\": no such file or directory",
            ),
            ("/proc/version", "enter network namespace: invalid argument"),
            ("/etc/passwd", "unknown FS magic on \"/etc/passwd\": "),
            (
                "/proc/thread-self/ns/net",
                "the pod's network namespace is the host's own",
            ),
        ] {
            lost.netns = path.into();
            let error = wire_pod(&lost).unwrap_err().to_string();
            assert!(error.starts_with(start), "{error}");
        }
        assert_eq!(lab.traces(), before);
        assert_eq!(words(&lab.intent), [""; 0]);
    });
}

#[test]
fn an_interface_of_that_name_in_the_pod_is_refused() {
    lab(RuleLayout::Shared, 3, |mut lab| {
        let foreign = fresh_netns();
        let end = |name: &str| VethEnd {
            name: name.to_owned(),
            mac: veth::random_mac().unwrap(),
        };
        let taken = NetOp::AddVeth {
            here: end("eth0"),
            there: end("other"),
            netns: std::os::fd::AsRawFd::as_raw_fd(&foreign),
            mtu: 1500,
        };
        lab.inside().apply_all(&[taken]).unwrap();
        let before = lab.traces();
        let error = wire_pod(&lab.intent).unwrap_err();
        assert!(matches!(error.failure, WireFailure::IfnameTaken(_)), "{error}");
        assert!(error.to_string().ends_with("file exists") && error.left_behind.is_empty());
        assert_eq!(lab.traces(), before);

        // Also when the host's name is taken by a live pair of another sandbox, which then stays.
        let mut elsewhere = lab.intent.clone();
        let other_sandbox = fresh_netns();
        elsewhere.netns = fd_path(&other_sandbox);
        // Make the peers' indexes differ, so that they can be told apart.
        let mut inside_other = Rtnl::open_in(other_sandbox.as_fd()).unwrap();
        let filler = NetOp::AddVeth {
            here: end("f0"),
            there: end("f1"),
            netns: std::os::fd::AsRawFd::as_raw_fd(&foreign),
            mtu: 1500,
        };
        inside_other.apply_all(&[filler]).unwrap();
        wire_pod(&elsewhere).unwrap();
        assert!(matches!(
            wire_pod(&lab.intent).unwrap_err().failure,
            WireFailure::IfnameTaken(_)
        ));
        assert_eq!(words(&elsewhere), [""; 0]);
    });
}

/// Quirk 7: the Go plugin leaves what it made.
#[test]
fn dataplane_quirk_7_a_failure_undoes_what_was_made() {
    lab(RuleLayout::PerPod, 3, |mut lab| {
        let before = lab.traces();
        // A default route is there already, so that the pod's side fails late.
        let occupant = fresh_netns();
        let end = |name: &str| VethEnd {
            name: name.to_owned(),
            mac: veth::random_mac().unwrap(),
        };
        let mut inside = lab.inside();
        let add = NetOp::AddVeth {
            here: end("net1"),
            there: end("x"),
            netns: std::os::fd::AsRawFd::as_raw_fd(&occupant),
            mtu: 1500,
        };
        inside
            .apply_all(&[add, NetOp::LinkUp(LinkRef::Name("net1".to_owned()))])
            .unwrap();
        let index = link::index_of(&inside, "net1").unwrap().unwrap();
        let gateway = Ipv4Addr::new(192, 0, 2, 1);
        inside
            .apply_all(&[
                NetOp::ReplaceRoute(Route::link(Ipv4Cidr::host(gateway), index, TableId::MAIN)),
                NetOp::AddRoute(Route::default_via(gateway, index, TableId::MAIN)),
            ])
            .unwrap();
        let error = wire_pod(&lab.intent).unwrap_err();
        assert!(matches!(error.failure, WireFailure::Pod(_)));
        let text = error.to_string();
        assert!(
            text.contains("route add default via 169.254.1.1") && text.ends_with("file exists"),
            "{text}"
        );
        assert!(error.left_behind.is_empty(), "{text}");
        assert_eq!(lab.traces(), before);
        assert_eq!(inside.links().unwrap().len(), 2, "eth0 is gone, net1 stays");
    });
}

#[test]
fn unwiring_stops_traffic_and_dooms_the_link() {
    for layout in [RuleLayout::Shared, RuleLayout::PerPod] {
        lab(layout, 3, |mut lab| {
            let before = lab.traces();
            let wired = wire_pod(&lab.intent).unwrap();
            let first = unwire_pod(&lab.removal(LinkRemoval::Doom)).unwrap();
            assert_eq!((first.route_removed, first.link), (true, LinkFate::Doomed));
            assert_eq!(lab.host.route_to(POD).unwrap(), None);
            assert!(lab.rules_about_the_pod().is_empty());
            let doomed = lab.host.link_named(&lab.intent.host_veth).unwrap().unwrap();
            assert_eq!((doomed.group, doomed.up), (DOOMED_GROUP, false));
            assert!(
                words(&lab.intent)
                    .iter()
                    .any(|text| text.ends_with("is marked for deletion"))
            );
            // Twice is the same as once, and a name doomed meanwhile can be wired again.
            let second = unwire_pod(&lab.removal(LinkRemoval::Doom)).unwrap();
            assert_eq!((second.route_removed, second.link), (false, LinkFate::Doomed));
            let again = wire_pod(&lab.intent).unwrap();
            assert_ne!(again.host_index, wired.host_index);
            assert!(!link::reap_doomed(&mut lab.host).unwrap());
            assert_eq!(words(&lab.intent), [""; 0]);
            unwire_pod(&lab.removal(LinkRemoval::Doom)).unwrap();
            assert!(link::reap_doomed(&mut lab.host).unwrap());
            assert_eq!(lab.traces(), before);
            let third = unwire_pod(&lab.removal(LinkRemoval::Delete)).unwrap();
            assert_eq!((third.route_removed, third.link), (false, LinkFate::Absent));
        });
    }
}

/// Conformance: dataplane cases 93 and 94 (several rules of old releases; no namespace needed).
#[test]
fn dataplane_93_94_all_rules_go_without_the_namespace() {
    lab(RuleLayout::PerPod, 3, |mut lab| {
        wire_pod(&lab.intent).unwrap();
        for to in ["10.0.0.0/16", "10.1.0.0/16"] {
            let rule = Rule {
                to: Some(to.parse().unwrap()),
                ..Rule::from(POD, FROM_POD_PRIORITY, TableId(3))
            };
            lab.host.apply_all(&[NetOp::AddRule(rule)]).unwrap();
        }
        let elsewhere = NetOp::AddRule(Rule::from(POD, FROM_POD_PRIORITY, TableId(8)));
        lab.host.apply_all(&[elsewhere]).unwrap();
        let unwired = unwire_pod(&lab.removal(LinkRemoval::Delete)).unwrap();
        assert_eq!((unwired.route_removed, unwired.link), (true, LinkFate::Deleted));
        assert_eq!(
            lab.rules_about_the_pod(),
            [(1536, Some(TableId(8)))],
            "another table's rule stays"
        );
        let mut unknown = lab.removal(LinkRemoval::Delete);
        unknown.eni_table = None;
        unknown.host_veth = None;
        unwire_pod(&unknown).unwrap();
        assert!(lab.rules_about_the_pod().is_empty());
    });
}

#[test]
fn without_a_name_the_route_still_goes() {
    lab(RuleLayout::Shared, 3, |mut lab| {
        wire_pod(&lab.intent).unwrap();
        let mut removal = lab.removal(LinkRemoval::Doom);
        removal.host_veth = None;
        let unwired = unwire_pod(&removal).unwrap();
        assert_eq!((unwired.route_removed, unwired.link), (true, LinkFate::Absent));
        assert_eq!(lab.host.route_to(POD).unwrap(), None);
    });
}

#[test]
fn a_link_without_the_route_may_be_the_next_sandboxs_and_stays() {
    for layout in [RuleLayout::Shared, RuleLayout::PerPod] {
        lab(layout, 3, |mut lab| {
            wire_pod(&lab.intent).unwrap();
            let address = lab.intent.address;
            let mut removal = lab.removal(LinkRemoval::DoomIfRouted);
            removal.address = Ipv4Addr::new(10, 0, 1, 77);
            assert_eq!(unwire_pod(&removal).unwrap().link, LinkFate::OfAnotherSandbox);
            let index = lab.host.link_named(&lab.intent.host_veth).unwrap().unwrap().index;
            let route = Route::link(Ipv4Cidr::host(address), index, layout.pod_table());
            lab.host.apply_all(&[NetOp::DelRoute(route.clone())]).unwrap();
            removal.address = address;
            assert_eq!(unwire_pod(&removal).unwrap().link, LinkFate::OfAnotherSandbox);
            lab.host.apply_all(&[NetOp::AddRoute(route)]).unwrap();
            assert_eq!(unwire_pod(&removal).unwrap().link, LinkFate::Doomed);
        });
    }
}

/// The runtime repeats DEL for a dead sandbox long after the pod was given a new one of the same name, or after its
/// address went to another pod.
#[test]
fn a_late_del_leaves_new_owners_alone() {
    for layout in [RuleLayout::Shared, RuleLayout::PerPod] {
        lab(layout, 3, |mut lab| {
            let mut stale = lab.removal(LinkRemoval::Delete);
            stale.address = Ipv4Addr::new(10, 0, 1, 200);
            wire_pod(&lab.intent).unwrap();
            let unwired = unwire_pod(&stale).unwrap();
            assert_eq!(
                (unwired.route_removed, unwired.link),
                (false, LinkFate::OfAnotherSandbox)
            );
            assert_eq!(words(&lab.intent), [""; 0]);

            let mut gone = lab.removal(LinkRemoval::Delete);
            gone.host_veth = Some(veth::host_name("eni", "default", "gone", 0));
            let unwired = unwire_pod(&gone).unwrap();
            assert_eq!((unwired.route_removed, unwired.link), (false, LinkFate::Absent));
            assert_eq!(words(&lab.intent), [""; 0]);
            assert!(!lab.traces().0.eq(&1));
        });
    }
}

#[test]
fn check_says_what_differs_in_words() {
    lab(RuleLayout::PerPod, 3, |mut lab| {
        wire_pod(&lab.intent).unwrap();
        let index = link::index_of(&lab.host, &lab.intent.host_veth).unwrap().unwrap();
        lab.host
            .apply_all(&[
                NetOp::DelRule(Rule::to(POD, TO_POD_PRIORITY, TableId::MAIN)),
                NetOp::DelRule(Rule::from(POD, FROM_POD_PRIORITY, TableId(3))),
                NetOp::AddRule(Rule::from(POD, FROM_POD_PRIORITY, TableId(5))),
                NetOp::LinkMtu(LinkRef::Index(index), 1500),
            ])
            .unwrap();
        assert_eq!(
            words(&lab.intent),
            [
                "host interface enic440f455693 has MTU 1500, should be 9001",
                "the rule to 10.0.1.5 is missing at priority 512",
                "the rule from 10.0.1.5 leads to table 5, should be table 3",
            ]
        );
        let mut inside = lab.inside();
        let eth0 = link::index_of(&inside, "eth0").unwrap().unwrap();
        inside
            .apply_all(&[NetOp::DelAddress {
                address: POD,
                len: 32,
                link: eth0,
            }])
            .unwrap();
        assert!(words(&lab.intent).contains(&"pod interface eth0 lacks address 10.0.1.5/32".to_owned()));
        lab.host
            .apply_all(&[NetOp::DelLink(LinkRef::Index(index))])
            .unwrap();
        let gone = words(&lab.intent);
        assert!(
            gone.contains(&"host interface enic440f455693 is missing".to_owned()),
            "{gone:?}"
        );
        assert!(
            gone.contains(&"pod interface eth0 is missing".to_owned()),
            "{gone:?}"
        );
        lab.intent.netns = "/nowhere/ns".into();
        assert!(
            words(&lab.intent)
                .iter()
                .any(|text| text.starts_with("the pod's namespace cannot be opened: "))
        );
    });
    lab(RuleLayout::Shared, 3, |mut lab| {
        wire_pod(&lab.intent).unwrap();
        lab.host
            .apply_all(&[NetOp::DelRule(Rule::all(TO_POD_PRIORITY, POD_TABLE))])
            .unwrap();
        assert_eq!(words(&lab.intent), ["the host's route to 10.0.1.5 is missing"]);
    });
}

#[test]
fn a_check_changes_nothing() {
    lab(RuleLayout::PerPod, 3, |mut lab| {
        wire_pod(&lab.intent).unwrap();
        let before = (lab.host.links().unwrap(), lab.inside().links().unwrap());
        // Not the link group: the kernel tells of the new pair's carrier when it gets round to it.
        let mut watch = Socket::subscribe(Family::Route, &[RTNLGRP_IPV4_ROUTE, RTNLGRP_IPV4_RULE]).unwrap();
        check_pod(&lab.intent);
        assert_eq!(watch.drain().unwrap(), []);
        assert_eq!((lab.host.links().unwrap(), lab.inside().links().unwrap()), before);
    });
}

#[test]
fn pods_are_wired_side_by_side() {
    in_fresh_netns(|| {
        let host = fs::File::open("/proc/thread-self/ns/net").unwrap();
        std::thread::scope(|scope| {
            for worker in 0_u8..4 {
                let host = &host;
                scope.spawn(move || {
                    nix::sched::setns(host, nix::sched::CloneFlags::CLONE_NEWNET).unwrap();
                    for pod in 0_u8..8 {
                        let netns = fresh_netns();
                        let intent = PodIntent {
                            host_veth: veth::host_name("eni", "burst", &format!("{worker}-{pod}"), 0),
                            ifname: "eth0".to_owned(),
                            netns: fd_path(&netns),
                            address: Ipv4Addr::new(10, 0, worker, pod),
                            mtu: 9001,
                            host_mac: veth::random_mac().unwrap(),
                            pod_mac: veth::random_mac().unwrap(),
                            eni_table: TableId(2),
                            layout: RuleLayout::PerPod,
                        };
                        wire_pod(&intent).unwrap();
                        assert_eq!(words(&intent), [""; 0]);
                    }
                });
            }
        });
    });
}
