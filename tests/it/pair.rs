//! Two nodes of one VPC with our daemon on each, and pods on both kinds of ENI.
#![expect(
    single_use_lifetimes,
    reason = "anonymous lifetimes in impl Trait are not stable"
)]

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::os::unix::net::UnixListener;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use aws_cni_lab::lab::{Lab, NodeSpec};
use aws_cni_lab::netns::Netns;
use aws_cni_lab::node::{Node, NodeOptions};
use aws_cni_lab::pod::{Pod, side_by_side};
use aws_cni_lab::probe::{ECHO_PORT, Failure, Protocol, Source, Target, exchange, matrix};
use aws_cni_lab::process::Daemon;
use serde_json::Value;

use crate::scene::{PATIENCE, Scene};

/// Three addresses for pods on each of three ENIs: four pods are always on more than one.
const INSTANCE_TYPE: &str = "t3.small";
const ENOUGH_FOR_TWO_ENIS: usize = 4;

/// A healthy exchange takes less than a millisecond.
const REACHED: Duration = Duration::from_secs(20);
/// Long enough for a packet that would arrive.
const NOT_REACHED: Duration = Duration::from_millis(400);

/// Node `a` is the scene's; node `b` has one pod.
pub struct Pair {
    pub scene: Scene,
    pub pods: Vec<Pod>,
    pub b: Arc<Node>,
    pub there: Pod,
    _daemon_b: Daemon,
}

impl Pair {
    /// Both nodes with these settings, and their pods.
    pub fn new(environment: &[(&str, &str)], rp_filter: u8) -> Self {
        let [spec_a, spec_b] = ["a", "b"].map(|name| NodeSpec {
            options: options(rp_filter),
            ..NodeSpec::new(name, INSTANCE_TYPE)
        });
        let builder = Lab::builder().node_with(spec_b, |_| {});
        let mut scene = Scene::stage_with(builder, spec_a, |_| {}, environment);
        scene.start();
        let b = scene.lab.node("b").unwrap();
        let daemon_b = serve(&b, environment);
        let pods = scene.pods("here", ENOUGH_FOR_TWO_ENIS);
        scene.add(&pods, ENOUGH_FOR_TWO_ENIS);
        let there = b.pod("default", "there").unwrap();
        let outcome = there.add().unwrap();
        assert!(outcome.succeeded(), "{outcome:?}\n{}", daemon_b.log());
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

    /// Node `a`.
    pub fn a(&self) -> &Node {
        &self.scene.node
    }

    /// A pod on the primary ENI of node `a`.
    pub fn on_primary(&self) -> &Pod {
        self.pods.iter().find(|pod| device(pod) == 0).unwrap()
    }

    /// A pod on a secondary ENI of node `a`.
    pub fn on_secondary(&self) -> &Pod {
        self.pods.iter().find(|pod| device(pod) != 0).unwrap()
    }

    /// The router dropped nothing for its source address.
    pub fn assert_nothing_spoofed(&self) {
        let fabric = self.scene.lab.fabric();
        let dropped = fabric.dropped_spoofed().unwrap();
        // Read after the counter, so whatever that counted has a name in here.
        let offences: Vec<_> = fabric
            .offences()
            .unwrap()
            .iter()
            .map(ToString::to_string)
            .collect();
        assert_eq!(dropped, 0, "{offences:#?}");
    }
}

/// Everything arrives with `rp_filter` as given.
pub fn options(rp_filter: u8) -> NodeOptions {
    NodeOptions {
        rp_filter,
        ..NodeOptions::default()
    }
}

/// The daemon of another node, with its socket.
pub fn serve(node: &Node, environment: &[(&str, &str)]) -> Daemon {
    node.install(Path::new(env!("CARGO_BIN_EXE_aws-cni"))).unwrap();
    let listener = UnixListener::bind(node.dirs().socket()).unwrap();
    let spec = environment
        .iter()
        .fold(node.ipamd_spec().listener(listener), |spec, (name, value)| {
            spec.env(name, value)
        });
    let daemon = node.start(spec).unwrap();
    daemon.wait_ready(PATIENCE).unwrap();
    daemon
}

/// The device index of a pod's ENI, as its result keeps it.
pub fn device(pod: &Pod) -> u32 {
    interfaces(pod).last().unwrap()["sandbox"]
        .as_str()
        .unwrap()
        .parse()
        .unwrap()
}

/// The host's end of a pod's link.
pub fn host_veth(pod: &Pod) -> String {
    interfaces(pod)[0]["name"].as_str().unwrap().to_owned()
}

/// The route table of a pod's ENI, as its result keeps it.
pub fn table(pod: &Pod) -> u32 {
    interfaces(pod)[1]["mac"].as_str().unwrap().parse().unwrap()
}

fn interfaces(pod: &Pod) -> Vec<Value> {
    pod.result().unwrap()["interfaces"].as_array().unwrap().clone()
}

/// Every source reaches every target over UDP and TCP, and is seen under the address that `seen_as` says.
pub fn assert_reach<A: Into<IpAddr>>(sources: &[Source], targets: &[Target], seen_as: impl Fn(&str) -> A) {
    for protocol in [Protocol::Udp, Protocol::Tcp] {
        let outcome = matrix(sources, targets, protocol, REACHED);
        let failures: Vec<_> = outcome.failures().collect();
        assert!(outcome.all_reached(), "{protocol}: {failures:?}\n{outcome}");
        for (source, target, seen) in outcome.seen() {
            assert_eq!(
                seen.ip(),
                seen_as(source).into(),
                "{protocol}: {target} saw {source}"
            );
        }
    }
}

/// The pods as starting points.
pub fn sources<'a>(pods: impl IntoIterator<Item = &'a Pod>) -> Vec<Source> {
    pods.into_iter().map(|pod| pod.source().unwrap()).collect()
}

/// The pods as targets.
pub fn targets<'a>(pods: impl IntoIterator<Item = &'a Pod>) -> Vec<Target> {
    pods.into_iter().map(|pod| pod.target().unwrap()).collect()
}

/// Looks a pod's own address up by its label.
pub fn own<'a>(pods: impl IntoIterator<Item = &'a Pod>) -> impl Fn(&str) -> Ipv4Addr {
    let known: Vec<_> = pods
        .into_iter()
        .map(|pod| (pod.label(), pod.address().unwrap()))
        .collect();
    move |label| known.iter().find(|(known, _)| known == label).unwrap().1
}

/// No packet from `netns` reaches `address`, or none comes back.
pub fn assert_unreachable(netns: &Netns, address: impl Into<IpAddr>) {
    let target = SocketAddr::new(address.into(), ECHO_PORT);
    for protocol in [Protocol::Udp, Protocol::Tcp] {
        let outcome = exchange(netns, protocol, target, NOT_REACHED);
        assert!(
            matches!(outcome, Err(Failure::TimedOut | Failure::Unreachable)),
            "{protocol}: {outcome:?}"
        );
    }
}

/// Waits for a condition that has no event.
pub fn eventually(what: &str, mut holds: impl FnMut() -> bool) {
    let start = Instant::now();
    while !holds() {
        assert!(start.elapsed() < PATIENCE, "waited in vain for {what}");
        std::thread::sleep(Duration::from_millis(20));
    }
}

/// Nothing of any pod stays in the node's kernel; the last links go a little later than their pods.
pub fn assert_no_pod_left(node: &Node) {
    let start = Instant::now();
    loop {
        let left = node.pod_objects().unwrap();
        if left.is_empty() {
            return;
        }
        assert!(start.elapsed() < PATIENCE, "{left:#?}");
        std::thread::sleep(Duration::from_millis(20));
    }
}

/// DELs all of them.
pub fn del_all(pods: &[Pod]) {
    for outcome in side_by_side(pods, pods.len(), |pod| pod.del().unwrap()) {
        assert!(outcome.succeeded(), "{outcome:?}");
    }
}
