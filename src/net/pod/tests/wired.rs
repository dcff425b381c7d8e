//! What wiring makes, what it meets, and what it leaves when it fails.

use super::*;

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
            .neighbour(lab.gateway(), wired.pod_index)
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
        match lab.family() {
            IpFamily::V4 => iproute2_sees_the_pod(&lab),
            IpFamily::V6 => iproute2_sees_the_ipv6_pod(&lab),
        }
    });
}

/// A kernel without IPv6 has no such directory; here another file system hides it from this thread alone.
#[test]
fn dataplane_66_a_host_without_ipv6_wires_pods() {
    lab_of(POD, RuleLayout::Shared, 3, |lab| {
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
        super::super::super::netns::run_in(lab.netns.as_fd(), move || ip_json(args).unwrap()).unwrap()
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

/// Conformance: dataplane §3.3 and §8.1 for IPv6: the kernel's own route to the pod's address is there besides.
fn iproute2_sees_the_ipv6_pod(lab: &Lab) {
    let Some(routes) = ip_json(&["-6", "route", "show", "table", "512"]) else {
        return;
    };
    assert_eq!(
        (routes[0]["dst"].as_str(), routes[0]["dev"].as_str()),
        (Some("2001:db8:0:1::5"), Some("enic440f455693"))
    );
    let view = |args: &'static [&'static str]| {
        super::super::super::netns::run_in(lab.netns.as_fd(), move || ip_json(args).unwrap()).unwrap()
    };
    let routes = view(&["-6", "route", "show"]);
    let route = |dst: &str| {
        let mut all = routes.as_array().unwrap().iter();
        all.find(|route| route["dst"] == dst)
            .unwrap_or_else(|| panic!("{routes:#}"))
    };
    assert_eq!(route("default")["gateway"], "fe80::1");
    assert_eq!(route("fe80::1")["metric"], 1024);
    assert_eq!(
        (
            route("2001:db8:0:1::5")["protocol"].as_str(),
            route("2001:db8:0:1::5")["metric"].as_u64()
        ),
        (Some("kernel"), Some(256))
    );
    let address = view(&["-6", "addr", "show", "eth0"]);
    let infos = address[0]["addr_info"].as_array().unwrap();
    let pod = infos
        .iter()
        .find(|info| info["local"] == "2001:db8:0:1::5")
        .unwrap();
    assert_eq!(
        (pod["prefixlen"].as_u64(), pod.get("tentative")),
        (Some(128), None)
    );
    let known = ip_json(&["-6", "neigh", "show", "dev", "enic440f455693"]).unwrap();
    let known = known.as_array().unwrap();
    assert!(
        known.iter().any(|at| at["dst"] == "2001:db8:0:1::5"
            && at["lladdr"] == lab.intent.pod_mac.to_string()
            && at["state"][0] == "PERMANENT"),
        "{known:?}"
    );
}

/// Conformance: dataplane cases 59 and 78.
#[test]
fn dataplane_59_78_the_per_pod_layout_is_the_go_plugins() {
    lab(RuleLayout::PerPod, 3, |mut lab| {
        let wired = wire_pod(&lab.intent).unwrap();
        assert_eq!(words(&lab.intent), [""; 0]);
        assert_eq!(
            lab.rules_about_the_pod(),
            [(512, Some(TableId::MAIN)), (1536, Some(TableId(3)))]
        );
        let main = lab.routes(TableId::MAIN);
        assert_eq!(
            (main.len(), main[0].host_on_link(), main[0].oif),
            (1, Some(lab.intent.address), wired.host_index)
        );
        if lab.family() == IpFamily::V4 {
            assert_eq!(main[0].scope, 253);
        }
        assert!(lab.routes(POD_TABLE).is_empty());
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
                    .apply_all(&[NetOp::AddRule(Rule::from(
                        lab.intent.address,
                        FROM_POD_PRIORITY,
                        TableId(stale),
                    ))])
                    .unwrap();
            }
            let other = Rule::from(lab.another(6), FROM_POD_PRIORITY, TableId(7));
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
                    .rules(lab.intent.family())
                    .unwrap()
                    .iter()
                    .any(|rule| rule.table == Some(TableId(7)))
            );
            assert_eq!(words(&lab.intent), [""; 0]);
        });
    }
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
        old.address = lab.another(99);
        let before = wire_pod(&old).unwrap();
        let wired = wire_pod(&lab.intent).unwrap();
        assert_ne!(before.host_index, wired.host_index);
        assert_eq!(words(&lab.intent), [""; 0]);
        assert_eq!(lab.routes(POD_TABLE).len(), 1);
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
        let gateway = lab.another(1);
        inside
            .apply_all(&[
                NetOp::ReplaceRoute(Route::host(gateway, index, TableId::MAIN)),
                NetOp::AddRoute(Route::default_via(gateway, index, TableId::MAIN)),
            ])
            .unwrap();
        let error = wire_pod(&lab.intent).unwrap_err();
        assert!(matches!(error.failure, WireFailure::Pod(_)));
        let text = error.to_string();
        assert!(
            text.contains(&format!("route add default via {}", lab.gateway()))
                && text.ends_with("file exists"),
            "{text}"
        );
        assert!(error.left_behind.is_empty(), "{text}");
        assert_eq!(lab.traces(), before);
        assert_eq!(inside.links().unwrap().len(), 2, "eth0 is gone, net1 stays");
    });
}

#[test]
fn pods_are_wired_side_by_side() {
    side_by_side(|worker, pod| Ipv4Addr::new(10, 0, worker, pod).into());
    side_by_side(|worker, pod| Ipv6Addr::from([0x2001, 0xdb8, 0, 0, 0, 0, worker.into(), pod.into()]).into());
}

fn side_by_side(address: fn(u8, u8) -> IpAddr) {
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
                            address: address(worker, pod),
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
