//! What pods' packets do: with the real daemon, the real plugin and the real kernel, on two nodes of a VPC that drops
//! what an ENI may not send.

use std::net::{Ipv4Addr, SocketAddrV4};

use aws_cni_lab::netns::Netns;
use aws_cni_lab::node::Node;
use aws_cni_lab::pod::Pod;
use aws_cni_lab::probe::{Protocol, exchange};
use serde_json::Value;

use crate::pair::{
    Pair, assert_no_pod_left, assert_reach, assert_unreachable, del_all, device, host_veth, own, sources,
    table, targets,
};
use crate::scene::{PATIENCE, Scene};

const PER_POD: (&str, &str) = ("RULE_LAYOUT", "per-pod");
const EXTERNAL_SNAT: (&str, &str) = ("AWS_VPC_K8S_CNI_EXTERNALSNAT", "true");

fn rules(node: &Node) -> Vec<Value> {
    node.ip_json(&["rule", "show"])
        .unwrap()
        .as_array()
        .unwrap()
        .clone()
}

fn routes(node: &Node, arguments: &[&str]) -> Vec<Value> {
    let answer = node.ip_json(&[&["route", "show"], arguments].concat());
    answer.unwrap().as_array().unwrap().clone()
}

/// The whole matrix, with the default settings for SNAT.
fn everything_is_reached(environment: &[(&str, &str)], rp_filter: u8) {
    let pair = Pair::new(environment, rp_filter);
    let (a, b) = (pair.a(), &pair.b);
    let all = || pair.pods.iter().chain([&pair.there]);
    assert_reach(&sources(all()), &targets(all()), own(all()));
    let nodes_own = |name: &str| if name == "a" { a.address() } else { b.address() };
    let nodes = [a.source(), b.source()];
    assert_reach(&nodes, &targets(all()), nodes_own);
    assert_reach(&sources(all()), &[a.target(), b.target()], own(all()));
    assert_reach(&sources(all()), &[pair.scene.lab.second_vpc()], own(all()));
    let outside = [pair.scene.lab.internet(), pair.scene.lab.on_premises()];
    assert_reach(&sources(&pair.pods), &outside, |_| a.address());
    assert_reach(&sources([&pair.there]), &outside, |_| b.address());
    pair.assert_nothing_spoofed();
    let outside = &pair.scene.lab.fabric().outside().second_vpc;
    let addresses: Vec<_> = pair.pods.iter().map(|pod| pod.address().unwrap()).collect();
    del_all(&pair.pods);
    for address in addresses {
        assert_unreachable(a.netns(), address);
        assert_unreachable(&outside.netns, address);
    }
    assert_no_pod_left(a);
}

#[test]
fn pods_on_both_kinds_of_eni_reach_everything_with_strict_rp_filter() {
    everything_is_reached(&[], 1);
}

#[test]
fn pods_on_both_kinds_of_eni_reach_everything_with_loose_rp_filter() {
    everything_is_reached(&[], 2);
}

#[test]
fn pods_on_both_kinds_of_eni_reach_everything_with_a_rule_for_each_pod() {
    everything_is_reached(&[PER_POD], 2);
}

#[test]
fn dataplane_6_networks_excluded_from_snat_see_the_pods_own_address() {
    for layout in ["shared", "per-pod"] {
        let excluded = [
            ("AWS_VPC_K8S_CNI_EXCLUDE_SNAT_CIDRS", "192.168.0.0/16"),
            ("RULE_LAYOUT", layout),
        ];
        let pair = Pair::new(&excluded, 2);
        let lab = &pair.scene.lab;
        assert_reach(&sources(&pair.pods), &[lab.on_premises()], own(&pair.pods));
        assert_reach(&sources(&pair.pods), &[lab.internet()], |_| pair.a().address());
        pair.assert_nothing_spoofed();
    }
}

#[test]
fn dataplane_14_with_external_snat_the_internet_sees_the_pods_own_address() {
    let pair = Pair::new(&[EXTERNAL_SNAT], 1);
    let lab = &pair.scene.lab;
    let outside = [lab.internet(), lab.on_premises(), lab.second_vpc()];
    assert_reach(&sources(&pair.pods), &outside, own(&pair.pods));
    pair.assert_nothing_spoofed();
    let ruleset = pair.a().nft_json(&["list", "ruleset"]).unwrap();
    assert!(!ruleset.to_string().contains("snat"), "{ruleset:#}");
}

#[test]
fn dataplane_2_43_with_nothing_to_do_the_nft_table_only_leads_host_ports() {
    let pair = Pair::new(
        &[EXTERNAL_SNAT, PER_POD, ("AWS_VPC_CNI_NODE_PORT_SUPPORT", "false")],
        2,
    );
    let ruleset = pair.a().nft_json(&["list", "ruleset"]).unwrap().to_string();
    assert!(
        ruleset.contains("host-port") && !ruleset.contains("mark\"") && !ruleset.contains("\"snat\""),
        "{ruleset}"
    );
    assert!(
        rules(pair.a()).iter().all(|rule| rule["priority"] != 1024),
        "case 2"
    );
    assert_reach(
        &sources(&pair.pods),
        &[pair.scene.lab.internet()],
        own(&pair.pods),
    );
}

#[test]
fn the_shared_layout_has_as_many_rules_for_many_pods_as_for_none() {
    let scene = Scene::with_env("t3.small", &[("MAX_ENI", "2"), ("WARM_ENI_TARGET", "2")]);
    scene.wait_for("both ENIs", |status| status["free"] == 6);
    let before = rules(&scene.node);
    let pods = scene.pods("web", 6);
    scene.add(&pods, 6);
    assert_eq!(rules(&scene.node), before);
    let mut routed: Vec<_> = routes(&scene.node, &["table", "512"])
        .iter()
        .map(|route| (route["dst"].clone(), route["dev"].clone(), route["scope"].clone()))
        .collect();
    routed.sort_by_key(|route| route.0.to_string());
    let mut wanted: Vec<_> = pods
        .iter()
        .map(|pod| {
            let address = pod.address().unwrap().to_string();
            (address.into(), host_veth(pod).into(), Value::from("link"))
        })
        .collect();
    wanted.sort_by_key(|route: &(Value, Value, Value)| route.0.to_string());
    assert_eq!(routed, wanted);
    scene.del(&pods, 6);
    assert_eq!(rules(&scene.node), before);
    assert_no_pod_left(&scene.node);
}

fn of_pod(rules: &[Value], pod: &Pod) -> Vec<(u64, String, String, String)> {
    let address = pod.address().unwrap().to_string();
    let text = |rule: &Value, name: &str| rule[name].as_str().unwrap_or_default().to_owned();
    let mut found: Vec<_> = rules
        .iter()
        .map(|rule| {
            (
                rule["priority"].as_u64().unwrap(),
                text(rule, "src"),
                text(rule, "dst"),
                text(rule, "table"),
            )
        })
        .filter(|(_, from, to, _)| *from == address || *to == address)
        .collect();
    found.sort();
    found
}

#[test]
fn dataplane_59_rules_of_each_pod_in_the_per_pod_layout() {
    let pair = Pair::new(&[PER_POD], 2);
    let found = rules(pair.a());
    for pod in [pair.on_primary(), pair.on_secondary()] {
        let address = pod.address().unwrap().to_string();
        let mut wanted = vec![(512, "all".to_owned(), address.clone(), "main".to_owned())];
        if device(pod) != 0 {
            assert_eq!(table(pod), device(pod) + 1);
            wanted.push((1536, address.clone(), String::new(), table(pod).to_string()));
        }
        assert_eq!(of_pod(&found, pod), wanted);
        let main = routes(pair.a(), &["table", "main", &address]);
        assert_eq!(
            (main.len(), &main[0]["dev"], &main[0]["scope"]),
            (1, &host_veth(pod).into(), &"link".into())
        );
    }
    let all = routes(pair.a(), &["table", "all"]);
    assert!(all.iter().all(|route| route["table"] != "512"), "{all:#?}");
}

#[test]
fn dataplane_109_stale_rules_of_an_earlier_owner_of_the_address_do_not_lead_a_pod_astray() {
    let scene = Scene::with_env("t3.small", &[PER_POD, ("MAX_ENI", "2"), ("WARM_ENI_TARGET", "2")]);
    scene.wait_for("both ENIs", |status| status["free"] == 6);
    for address in scene.ec2_addresses() {
        let stale = format!(
            "rule add from {address} lookup 99 pref 1536\nrule add from {address} to 10.9.0.0/16 lookup 98 pref 1536\n"
        );
        scene.node.ip(&stale).unwrap();
    }
    let pods = scene.pods("web", 6);
    scene.add(&pods, 6);
    let found = rules(&scene.node);
    for pod in &pods {
        let from: Vec<_> = of_pod(&found, pod)
            .into_iter()
            .filter(|rule| rule.0 == 1536)
            .collect();
        let tables: Vec<_> = from.into_iter().map(|rule| rule.3).collect();
        let wanted: Vec<_> = (device(pod) != 0)
            .then(|| table(pod).to_string())
            .into_iter()
            .collect();
        assert_eq!(tables, wanted, "device {}", device(pod));
    }
    assert_reach(&sources(&pods), &[scene.lab.second_vpc()], own(&pods));
}

/// As kube-proxy does for a NodePort service whose endpoint is this pod, with the client's address preserved.
fn node_port(node: &Node, port: u16, pod: &Pod) {
    let address = pod.address().unwrap();
    node.nft(&format!(
        "table ip kube-proxy-{port} {{ chain nodeports {{ type nat hook prerouting priority dstnat; policy accept;\n\
           fib daddr type local meta l4proto {{ tcp, udp }} th dport {port} dnat to {address}:7007\n}}\n}}\n"
    ))
    .unwrap();
}

fn node_ports_answer(environment: &[(&str, &str)], rp_filter: u8) {
    let pair = Pair::new(environment, rp_filter);
    let outside = pair.scene.lab.fabric().outside();
    let clients: [(&Netns, Ipv4Addr); 4] = [
        (&outside.internet.netns, outside.internet.address),
        (&outside.on_premises.netns, outside.on_premises.address),
        (&outside.second_vpc.netns, outside.second_vpc.address),
        (pair.b.netns(), pair.b.address()),
    ];
    for (port, pod) in [(30_080, pair.on_primary()), (30_081, pair.on_secondary())] {
        node_port(pair.a(), port, pod);
        for (client, address) in clients {
            for protocol in [Protocol::Tcp, Protocol::Udp] {
                let service = SocketAddrV4::new(pair.a().address(), port);
                let seen = exchange(client, protocol, service, PATIENCE).unwrap();
                assert_eq!(seen.ip(), address, "{protocol} {port}");
            }
        }
    }
    pair.assert_nothing_spoofed();
}

#[test]
fn a_node_port_answers_through_the_primary_eni_whatever_eni_its_pod_is_on() {
    node_ports_answer(&[], 2);
}

#[test]
fn a_node_port_answers_with_strict_rp_filter() {
    node_ports_answer(&[], 1);
}

#[test]
fn a_node_port_answers_in_the_per_pod_layout_and_with_external_snat() {
    node_ports_answer(&[PER_POD, EXTERNAL_SNAT], 2);
}

fn link(answer: &Value) -> &Value {
    let links: Vec<_> = answer.as_array().unwrap().iter().collect();
    assert_eq!(links.len(), 1, "{answer:#}");
    links[0]
}

#[test]
fn dataplane_61_62_63_65_a_pods_link_is_as_the_go_plugin_makes_it() {
    let scene = Scene::new("t3.small");
    let pod = scene.node.pod("kube-system", "coredns-57ff979f67-qqbdh").unwrap();
    let pods = [pod];
    scene.add(&pods, 1);
    let pod = &pods[0];
    assert_eq!(host_veth(pod), "enib5faff8a083", "case 61");

    let host = scene
        .node
        .ip_json(&["-details", "link", "show", "enib5faff8a083"])
        .unwrap();
    let inside = pod.ip_json(&["-details", "link", "show", "eth0"]).unwrap();
    let (host, inside) = (link(&host), link(&inside));
    for end in [host, inside] {
        assert_eq!(
            (&end["mtu"], &end["operstate"]),
            (&9001.into(), &"UP".into()),
            "case 62"
        );
        assert!(end["txqlen"].is_null() || end["txqlen"] == 0, "{end:#}");
    }
    let mac = host["address"].as_str().unwrap();
    let first = u8::from_str_radix(&mac[..2], 16).unwrap();
    assert_eq!(
        first & 0b11,
        0b10,
        "case 63: {mac} is locally administered and unicast"
    );
    let others = scene.node.links().unwrap();
    assert_eq!(others.iter().filter(|link| link.mac == mac).count(), 1, "case 63");

    let neighbours = pod.ip_json(&["neigh", "show"]).unwrap();
    let neighbour = link(&neighbours);
    assert_eq!(neighbour["dst"], "169.254.1.1");
    assert_eq!(neighbour["lladdr"], mac, "case 63");
    assert_eq!(neighbour["state"], serde_json::json!(["PERMANENT"]));
    let inside_routes = pod.ip_json(&["route", "show"]).unwrap();
    let shown: Vec<_> = inside_routes
        .as_array()
        .unwrap()
        .iter()
        .map(|route| {
            (
                route["dst"].as_str().unwrap(),
                route["gateway"].as_str(),
                route["scope"].as_str(),
            )
        })
        .collect();
    assert_eq!(
        shown,
        [
            ("default", Some("169.254.1.1"), None),
            ("169.254.1.1", None, Some("link"))
        ]
    );
    let addresses = pod.ip_json(&["-4", "address", "show", "eth0"]).unwrap();
    let address = &link(&addresses)["addr_info"][0];
    assert_eq!(address["local"], pod.address().unwrap().to_string());
    assert_eq!(address["prefixlen"], 32);

    let sysctl = |name: &str| {
        let path = format!("/proc/sys/net/ipv6/conf/enib5faff8a083/{name}");
        scene
            .node
            .netns()
            .run(|| std::fs::read_to_string(path).unwrap())
            .unwrap()
    };
    let settings = ["accept_ra", "accept_redirects", "forwarding"].map(sysctl);
    assert_eq!(
        settings.each_ref().map(|value| value.trim()),
        ["0", "1", "0"],
        "case 65"
    );
}

#[test]
fn dataplane_62_the_mtu_of_the_configuration_holds_when_it_can() {
    let scene = Scene::new("t3.small");
    for (configured, effective) in [("8000", 8000), ("abc", 9001), ("500", 9001), ("10000", 9001)] {
        let mut runtime = scene.node.runtime();
        runtime.conflist.plugins[0]["mtu"] = configured.into();
        let pod = scene.node.pod_of(runtime.into(), "default", configured).unwrap();
        assert!(pod.add().unwrap().succeeded());
        let inside = pod.ip_json(&["link", "show", "eth0"]).unwrap();
        let host = scene.node.ip_json(&["link", "show", &host_veth(&pod)]).unwrap();
        assert_eq!(
            (&link(&inside)["mtu"], &link(&host)["mtu"]),
            (&effective.into(), &effective.into())
        );
        assert!(pod.del().unwrap().succeeded());
    }
}

#[test]
fn dataplane_67_a_leftover_link_with_the_pods_name_is_replaced() {
    let scene = Scene::new("t3.small");
    scene
        .node
        .ip("link add enic440f455693 type veth peer name leftover\nlink set enic440f455693 up\n")
        .unwrap();
    let pods = [scene.node.pod("default", "nginx").unwrap()];
    scene.add(&pods, 1);
    assert_eq!(host_veth(&pods[0]), "enic440f455693");
    assert_reach(&sources(&pods), &[scene.lab.second_vpc()], own(&pods));
    assert!(
        scene
            .node
            .links()
            .unwrap()
            .iter()
            .all(|link| link.name != "leftover")
    );
}

#[test]
fn a_second_sandbox_of_a_pod_takes_the_link_over_and_the_late_del_of_the_first_leaves_it_alone() {
    for layout in ["shared", "per-pod"] {
        let scene = Scene::with_env("t3.small", &[("RULE_LAYOUT", layout)]);
        let [first, second] = [0, 1].map(|_| scene.node.pod("default", "nginx").unwrap());
        assert!(first.add().unwrap().succeeded());
        assert!(second.add().unwrap().succeeded());
        assert_ne!(first.address(), second.address());
        let gone = first.address().unwrap();
        first.lose_netns();
        assert!(first.del().unwrap().succeeded());
        second.serve_echo().unwrap();
        let pods = [second];
        assert_reach(&[scene.node.source()], &targets(&pods), |_| scene.node.address());
        assert_reach(&sources(&pods), &[scene.lab.second_vpc()], own(&pods));
        assert_unreachable(scene.node.netns(), gone);
        assert!(pods[0].check().unwrap().succeeded());
        del_all(&pods);
        assert_no_pod_left(&scene.node);
    }
}
