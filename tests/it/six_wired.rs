//! IPv6 pods on the wire: with the real daemon, the real plugin and the real kernel, on two nodes of a VPC that
//! delivers a /80 to the ENI that has it and drops what an ENI may not send.

use std::collections::BTreeSet;
use std::fs;
use std::net::{IpAddr, Ipv6Addr, SocketAddr, UdpSocket};
use std::process::Command;
use std::sync::Arc;
use std::time::Duration;

use aws_cni_lab::lab::Lab;
use aws_cni_lab::netns::Netns;
use aws_cni_lab::node::Node;
use aws_cni_lab::pod::Pod;
use aws_cni_lab::probe::{ECHO_PORT, Source, Steady, Target};
use aws_cni_lab::process::Daemon;
use serde_json::{Value, json};

use crate::pair::{
    assert_no_pod_left, assert_reach, assert_unreachable, del_all, host_veth, serve, sources, targets,
};
use crate::scene::{Scene, said};

const SIX: (&str, &str) = ("ENABLE_IPv6", "true");
const LAYOUTS: [&str; 2] = ["shared", "per-pod"];

/// One node of an IPv6 cluster, its daemon serving.
fn node(environment: &[(&str, &str)]) -> Scene {
    let environment: Vec<_> = [SIX].into_iter().chain(environment.iter().copied()).collect();
    let mut scene = Scene::stage(Lab::builder().ipv6(), "m5.large", &environment);
    scene.start();
    scene
}

/// Two nodes, three pods on one and one on the other.
struct Pair {
    scene: Scene,
    pods: Vec<Pod>,
    b: Arc<Node>,
    there: Pod,
    _daemon_b: Daemon,
}

impl Pair {
    fn new(layout: &str) -> Self {
        let environment = [SIX, ("RULE_LAYOUT", layout)];
        let builder = Lab::builder().ipv6().node("b", "m5.large");
        let mut scene = Scene::stage(builder, "m5.large", &environment);
        scene.start();
        let b = scene.lab.node("b").unwrap();
        let daemon_b = serve(&b, &environment);
        let pods = scene.pods("here", 3);
        scene.add(&pods, 3);
        let there = b.pod("default", "there").unwrap();
        let outcome = there.add().unwrap();
        assert!(outcome.succeeded(), "{}\n{}", said(&outcome), daemon_b.log());
        for pod in pods.iter().chain([&there]) {
            pod.serve_echo().unwrap();
        }
        Self {
            scene,
            pods,
            b,
            there,
            _daemon_b: daemon_b,
        }
    }
}

fn address(pod: &Pod) -> Ipv6Addr {
    match pod.ip_address() {
        Some(IpAddr::V6(address)) => address,
        other => panic!("{} has {other:?}", pod.label()),
    }
}

/// Looks a pod's own address up by its label.
fn own(pods: &[&Pod]) -> impl Fn(&str) -> Ipv6Addr {
    let known: Vec<_> = pods.iter().map(|pod| (pod.label(), address(pod))).collect();
    move |label| known.iter().find(|(known, _)| known == label).unwrap().1
}

/// Runs one `ip -6` command; rules of no address in particular have no other way to say that.
fn ip6(netns: &Netns, words: &str) {
    let run = || {
        Command::new("ip")
            .arg("-6")
            .args(words.split(' '))
            .output()
            .unwrap()
    };
    let output = netns.run(run).unwrap();
    assert!(output.status.success(), "ip -6 {words}: {output:?}");
}

fn show(node: &Node, arguments: &[&str]) -> Vec<Value> {
    let answer = node.ip_json(&[&["-6"], arguments].concat()).unwrap();
    answer.as_array().unwrap().clone()
}

/// The rules that are not the kernel's own.
fn rules(node: &Node) -> Vec<Value> {
    let mut rules = show(node, &["rule", "show"]);
    rules.retain(|rule| !matches!(rule["priority"].as_u64(), Some(0 | 32_766)));
    rules
}

fn sysctl(node: &Node, key: &str) -> String {
    let read = || fs::read_to_string(format!("/proc/sys/net/ipv6/conf/{key}")).unwrap();
    node.netns().run(read).unwrap().trim().to_owned()
}

fn assert_nothing_spoofed(lab: &Lab) {
    let offences: Vec<_> = lab
        .fabric()
        .offences()
        .unwrap()
        .iter()
        .map(ToString::to_string)
        .collect();
    assert_eq!(lab.fabric().dropped_spoofed().unwrap(), 0, "{offences:#?}");
}

fn outside(lab: &Lab) -> (Source, Target) {
    let netns = lab.fabric().outside().internet.netns.clone();
    let source = Source {
        name: "internet".to_owned(),
        netns,
    };
    (source, lab.internet6().unwrap())
}

/// Everybody reaches everybody, over UDP and TCP, under the address that is theirs.
#[test]
fn dataplane_78_ipv6_pods_reach_pods_both_nodes_and_the_outside_and_are_reached_from_there() {
    for layout in LAYOUTS {
        let pair = Pair::new(layout);
        let (a, b) = (&*pair.scene.node, &*pair.b);
        let all: Vec<&Pod> = pair.pods.iter().chain([&pair.there]).collect();
        let every = || sources(all.iter().copied());
        let pods = targets(all.iter().copied());
        assert_reach(&every(), &pods, own(&all));
        let both = [a.target6().unwrap(), b.target6().unwrap()];
        assert_reach(&every(), &both, own(&all));
        let (internet, target) = outside(&pair.scene.lab);
        assert_reach(&every(), std::slice::from_ref(&target), own(&all));
        let SocketAddr::V6(seen) = target.address else {
            panic!()
        };
        assert_reach(std::slice::from_ref(&internet), &pods, |_| *seen.ip());
        let of_node = |name: &str| if name == "a" { a.address6() } else { b.address6() }.unwrap();
        assert_reach(&[a.source(), b.source()], &pods, of_node);
        assert_nothing_spoofed(&pair.scene.lab);

        let addresses: Vec<_> = pair.pods.iter().map(address).collect();
        let rule = |pod: Ipv6Addr| json!({"priority": 512, "src": "all", "dst": pod, "table": "main"});
        let found = rules(a);
        for pod in &addresses {
            assert_eq!(
                found.contains(&rule(*pod)),
                layout == "per-pod",
                "{layout}: {found:#?}"
            );
        }
        del_all(&pair.pods);
        for address in addresses {
            assert_unreachable(a.netns(), address);
            assert_unreachable(&internet.netns, address);
        }
        assert_no_pod_left(a);
        assert_eq!(pair.scene.count("assigned"), 0);
    }
}

/// One datagram, and one only: a packet that is lost is not sent again.
fn only_datagram(netns: &Netns, target: SocketAddr) -> std::io::Result<usize> {
    netns
        .run(|| {
            let socket = UdpSocket::bind((Ipv6Addr::UNSPECIFIED, 0))?;
            socket.set_read_timeout(Some(Duration::from_secs(10)))?;
            socket.send_to(b"who am I?", target)?;
            socket.recv(&mut [0; 128])
        })
        .unwrap()
}

/// The Go plugin waits for duplicate address detection, one to two seconds for each pod (decision 0033).
#[test]
fn dataplane_77_the_first_packet_after_an_add_gets_through_to_the_pod_and_from_it() {
    let scene = node(&[]);
    let own = scene.node.target6().unwrap().address;
    let (_, internet) = outside(&scene.lab);
    for (index, pod) in scene.pods("web", 12).iter().enumerate() {
        // The server is there before the address is.
        pod.serve_echo().unwrap();
        let outcome = pod.add().unwrap();
        assert!(outcome.succeeded(), "{}\n{}", said(&outcome), scene.log());
        let target = SocketAddr::new(address(pod).into(), ECHO_PORT);
        let netns = pod.netns().unwrap();
        match index % 3 {
            0 => only_datagram(scene.node.netns(), target),
            1 => only_datagram(&netns, own),
            _ => only_datagram(&netns, internet.address),
        }
        .unwrap_or_else(|error| panic!("{index}: {error}"));
    }
}

/// Dataplane 45, 47 and 134.
#[test]
fn dataplane_45_134_a_restart_changes_nothing_and_no_packet_of_a_pod_is_lost() {
    for layout in LAYOUTS {
        let mut scene = node(&[("RULE_LAYOUT", layout)]);
        let pods = scene.pods("web", 2);
        scene.add(&pods, 2);
        pods[1].serve_echo().unwrap();
        let keys = [
            "all/disable_ipv6",
            "default/disable_ipv6",
            "all/forwarding",
            "eth0/accept_ra",
        ];
        assert_eq!(keys.map(|key| sysctl(&scene.node, key)), ["0", "0", "1", "2"]);
        let has = |priority: u64, more: &dyn Fn(&Value) -> bool| {
            rules(&scene.node)
                .iter()
                .any(|rule| rule["priority"] == priority && more(rule))
        };
        assert!(has(1024, &|rule| rule["fwmark"] == "0x80" && rule["table"] == "main"));
        assert_eq!(has(512, &|rule| rule["table"] == "512"), layout == "shared");
        let of_v4 = scene.node.ip_json(&["-4", "rule", "show"]).unwrap();
        assert_eq!(of_v4.as_array().unwrap().len(), 3, "the kernel's own: {of_v4:#}");

        let state = |node: &Node| {
            let routes = show(node, &["route", "show", "table", "all"]);
            // The kernel's own follow a link-local address when that is no longer tentative, whoever restarts meanwhile.
            let ours = routes.iter().filter(|route| route["protocol"] != "kernel");
            let routes: BTreeSet<_> = ours.map(ToString::to_string).collect();
            let neighbours = show(node, &["neigh", "show", "nud", "permanent"]);
            let neighbours: BTreeSet<_> = neighbours.iter().map(ToString::to_string).collect();
            (rules(node), routes, neighbours, keys.map(|key| sysctl(node, key)))
        };
        let before = state(&scene.node);
        let target = SocketAddr::new(address(&pods[1]).into(), ECHO_PORT);
        let steady = Steady::start(&pods[0].netns().unwrap(), target, Duration::from_millis(5)).unwrap();
        scene.restart();
        assert!(!scene.log().contains("host: "), "{}", scene.log());
        assert!(!scene.log().contains("put right"), "{}", scene.log());
        let report = steady.stop().unwrap();
        assert_eq!((report.lost(), report.refused), (0, 0), "{report:?}");
        assert_eq!(state(&scene.node), before);
        assert_eq!(scene.count("assigned"), 2);
    }
}

#[test]
fn dataplane_94_a_del_while_the_daemon_is_away_takes_an_ipv6_pod_out_of_the_kernel_and_is_finished_later() {
    for layout in LAYOUTS {
        let mut scene = node(&[("RULE_LAYOUT", layout)]);
        let pods = scene.pods("web", 3);
        scene.add(&pods, 3);
        let mine: BTreeSet<_> = pods.iter().map(address).collect();
        scene.kill();
        // By the runtime's record; by the sandbox alone; by neither, so that only the daemon can.
        let of = |pod: &Pod| address(pod);
        let (first, last) = (of(&pods[0]), of(&pods[2]));
        pods[1].set_result(None);
        pods[2].set_result(None);
        pods[2].lose_netns();
        // Nobody listens: the socket that waits for the next daemon would keep the plugin waiting.
        scene.without_socket_activation();
        fs::remove_file(scene.node.dirs().socket()).unwrap();
        for pod in &pods {
            let outcome = pod.del().unwrap();
            assert!(outcome.succeeded(), "{}", said(&outcome));
        }
        assert_unreachable(scene.node.netns(), first);
        let last = last.to_string();
        scene.eventually("all but the last one's rule to go", || {
            let left = scene.node.pod_objects().unwrap();
            left.iter()
                .all(|object| object.contains(&last) && layout == "per-pod")
        });
        scene.start();
        scene.wait_for("every address to be given back", |status| status["assigned"] == 0);
        assert_no_pod_left(&scene.node);
        let again = scene.pods("again", 3);
        scene.add(&again, 3);
        assert!(again.iter().all(|pod| !mine.contains(&address(pod))));
        scene.del(&again, 3);
        assert_no_pod_left(&scene.node);
    }
}

#[test]
fn adds_of_ipv6_pods_that_a_kill_cuts_off_end_with_one_address_each_and_nothing_left_over() {
    let mut scene = node(&[]);
    // Whether a call that the kill cuts off was carried out, EC2 tells only later, and pods wait for that.
    scene.wait_for("the /80", |status| status["free"] != 0);
    for round in 0..4 {
        let pods = scene.pods(&format!("round-{round}"), 6);
        std::thread::scope(|scope| {
            let adds: Vec<_> = pods
                .iter()
                .map(|pod| scope.spawn(|| pod.add().unwrap()))
                .collect();
            scene.restart();
            for add in adds {
                let outcome = add.join().unwrap();
                assert!(outcome.succeeded(), "{}\n{}", said(&outcome), scene.log());
            }
        });
        let different: BTreeSet<_> = pods.iter().map(address).collect();
        assert_eq!(different.len(), pods.len());
        for pod in &pods {
            pod.serve_echo().unwrap();
        }
        let all: Vec<&Pod> = pods.iter().collect();
        assert_reach(&sources(&pods), &targets(&pods), own(&all));
        scene.del(&pods, 6);
        assert_no_pod_left(&scene.node);
        assert_eq!(scene.count("assigned"), 0);
    }
}

/// Takes away what leads to the pod.
fn take_away(scene: &Scene, pod: &Pod, layout: &str) {
    let at = address(pod);
    let table = if layout == "shared" { "512" } else { "main" };
    let link = host_veth(pod);
    ip6(
        scene.node.netns(),
        &format!("route del {at}/128 dev {link} table {table}"),
    );
    if layout == "per-pod" {
        ip6(scene.node.netns(), &format!("rule del to {at} pref 512"));
    }
}

#[test]
fn what_leads_to_an_ipv6_pod_is_put_back_while_the_daemon_runs_and_by_its_next_start() {
    for layout in LAYOUTS {
        let mut scene = node(&[("RULE_LAYOUT", layout)]);
        let pods = scene.pods("web", 1);
        scene.add(&pods, 1);
        pods[0].serve_echo().unwrap();
        let all = [&pods[0]];
        let is_reached = |scene: &Scene| {
            assert_reach(&[scene.node.source()], &targets(all), |_| {
                scene.node.address6().unwrap()
            });
        };
        take_away(&scene, &pods[0], layout);
        scene.eventually("the guardian to put it back", || {
            let checked = pods[0].check().unwrap();
            checked.succeeded()
        });
        is_reached(&scene);
        scene.kill();
        take_away(&scene, &pods[0], layout);
        scene.start();
        let said = format!("put right for {}", address(&pods[0]));
        assert!(scene.log().contains(&said), "{}", scene.log());
        is_reached(&scene);
        scene.del(&pods, 1);
        assert_no_pod_left(&scene.node);
    }
}

#[test]
fn check_finds_what_was_taken_from_inside_an_ipv6_pod() {
    let scene = node(&[]);
    let pods = scene.pods("web", 1);
    scene.add(&pods, 1);
    let (pod, at) = (&pods[0], address(&pods[0]));
    let checked = || pod.check().unwrap();
    assert!(checked().succeeded(), "{}", said(&checked()));
    let found = |words: &str| {
        let outcome = checked();
        assert!(
            !outcome.succeeded() && said(&outcome).contains(words),
            "{}",
            said(&outcome)
        );
    };
    let inside = pod.netns().unwrap();
    ip6(&inside, "route del default");
    found("lacks the default route via fe80::1");
    ip6(&inside, "route add default via fe80::1 dev eth0");
    ip6(&inside, "neigh del fe80::1 dev eth0");
    found("lacks the permanent neighbour fe80::1");
    ip6(&inside, &format!("addr del {at}/128 dev eth0"));
    found(&format!("lacks address {at}/128"));
    scene.del(&pods, 1);
    assert_no_pod_left(&scene.node);
}

#[test]
fn every_version_of_cni_gets_its_result_of_an_ipv6_pod() {
    let scene = node(&[]);
    for version in ["0.1.0", "0.2.0", "0.3.0", "0.3.1", "0.4.0", "1.0.0", "1.1.0"] {
        let mut runtime = scene.node.runtime();
        runtime.conflist.cni_version = version.to_owned();
        let pod = scene
            .node
            .pod_of(runtime.into(), "default", &format!("v{version}"))
            .unwrap();
        let outcome = pod.add().unwrap();
        assert!(outcome.succeeded(), "{}", said(&outcome));
        let result = pod.result().unwrap();
        let is_oldest = version < "0.3.0";
        let cidr = if is_oldest {
            &result["ip6"]["ip"]
        } else {
            &result["ips"][0]["address"]
        };
        let cidr = cidr.as_str().unwrap();
        assert!(cidr.contains(':') && cidr.ends_with("/128"), "{result:#}");
        assert!(result.get("ip4").is_none(), "{result:#}");
        let word = result["ips"][0]["version"].as_str();
        let expected = (!is_oldest && version < "1.0.0").then_some("6");
        assert_eq!(word, expected, "{version}: {result:#}");
        assert!(pod.del().unwrap().succeeded());
    }
    assert_no_pod_left(&scene.node);
}

/// What the kernel has of a pod of the Go daemon: its route in main, its rule at 512.
fn is_in_the_go_daemons_layout(scene: &Scene, pod: &Pod) -> bool {
    let at = address(pod).to_string();
    let rule = rules(&scene.node)
        .iter()
        .any(|rule| rule["dst"] == *at && rule["table"] == "main");
    let route = show(&scene.node, &["route", "show", "table", "main"])
        .iter()
        .any(|route| route["dst"] == *at && route["dev"] == *host_veth(pod));
    rule && route
}

#[test]
fn ipv6_pods_of_the_go_daemon_are_taken_over_with_their_rules_and_go_with_them() {
    let mut scene = Scene::stage(
        Lab::builder().ipv6(),
        "m5.large",
        &[SIX, ("RULE_LAYOUT", "per-pod")],
    );
    let folder = scene.node.dirs().root.join("aws-node");
    fs::create_dir(&folder).unwrap();
    let file = folder.join("ipam.json");
    scene.set_env("AWS_VPC_K8S_CNI_BACKING_STORE", file.to_str().unwrap());
    scene.start();
    let pods = scene.pods("web", 3);
    scene.add(&pods, 3);
    scene.kill();
    fs::remove_dir_all(scene.node.dirs().state.join("ipam")).unwrap();
    let entry = |pod: &Pod| {
        let identity = pod.identity();
        json!({
            "networkName": "aws-cni", "containerID": identity.container, "ifName": "eth0",
            "ipv6": address(pod), "allocationTimestamp": 1_600_000_000_000_000_000_u64,
            "metadata": {"k8sPodNamespace": identity.namespace, "k8sPodName": identity.name, "interfacesCount": 1}
        })
    };
    let entries: Vec<Value> = pods.iter().map(entry).collect();
    let text = json!({"version": "vpc-cni-ipam/1", "allocations": entries}).to_string();
    fs::write(&file, text).unwrap();
    scene.set_env("RULE_LAYOUT", "shared");
    scene.start();
    assert_eq!(scene.count("assigned"), 3, "{}", scene.log());
    let more = scene.pods("more", 2);
    scene.add(&more, 2);
    let all: Vec<&Pod> = pods.iter().chain(&more).collect();
    for pod in &all {
        pod.serve_echo().unwrap();
    }
    assert!(pods.iter().all(|pod| is_in_the_go_daemons_layout(&scene, pod)));
    assert!(!more.iter().any(|pod| is_in_the_go_daemons_layout(&scene, pod)));
    let every = sources(all.iter().copied());
    assert_reach(&every, &targets(all.iter().copied()), own(&all));
    assert_reach(&every, &[scene.lab.internet6().unwrap()], own(&all));
    scene.del(&pods, 3);
    scene.del(&more, 2);
    assert_no_pod_left(&scene.node);
}

#[test]
fn gc_takes_an_ipv6_pod_out_of_the_kernel_that_the_runtime_no_longer_knows() {
    let scene = node(&[]);
    let pods = scene.pods("web", 2);
    scene.add(&pods, 2);
    let gone = address(&pods[1]);
    let valid = json!([{"containerID": pods[0].identity().container, "ifname": "eth0"}]);
    let mut runtime = scene.node.runtime();
    runtime.conflist.plugins[0]["cni.dev/valid-attachments"] = valid;
    let collector = scene.node.pod_of(runtime.into(), "default", "gc").unwrap();
    let outcome = collector.cni("GC").unwrap();
    assert!(outcome.succeeded(), "{}", said(&outcome));
    scene.eventually("its route and link to go", || {
        let left = scene.node.pod_objects().unwrap();
        !left.iter().any(|object| object.contains(&gone.to_string())) && scene.pod_links().len() == 1
    });
    assert_eq!(scene.count("assigned"), 1);
    assert!(pods[0].check().unwrap().succeeded());
}

/// With a rule for each pod, a DEL that knew only the sandbox leaves the rule; a later look takes it away.
#[test]
fn a_rule_for_an_ipv6_address_that_nobody_holds_goes() {
    let mut scene = node(&[("RULE_LAYOUT", "per-pod")]);
    let pods = scene.pods("web", 1);
    scene.add(&pods, 1);
    let at = address(&pods[0]);
    let lost = Ipv6Addr::from_bits(at.to_bits() + 7);
    scene.kill();
    ip6(
        scene.node.netns(),
        &format!("rule add to {lost} lookup main pref 512"),
    );
    scene.start();
    scene.wait_until("the rule to go", || {
        let left = rules(&scene.node)
            .iter()
            .any(|rule| rule["dst"] == lost.to_string());
        (!left).then_some(())
    });
    assert!(
        rules(&scene.node)
            .iter()
            .any(|rule| rule["dst"] == at.to_string())
    );
}
