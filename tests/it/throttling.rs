//! EC2's token buckets: the account's other callers take what there is, and nobody here fails or hammers for it.

use std::collections::{BTreeMap, BTreeSet};
use std::io::{Read, Write};
use std::net::{SocketAddrV4, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use aws_cni_lab::calls::{Call, Outcome, Service};
use aws_cni_lab::faults::{Bucket, Throttling};
use aws_cni_lab::lab::{Lab, NodeSpec};
use aws_cni_lab::node::Node;
use aws_cni_lab::pod::Pod;

use crate::pair::serve;
use crate::scene::Scene;

/// The shortest wait after a refusal: what the pool announces, without its jitter.
const FIRST_WAIT: Duration = Duration::from_secs(1);

/// These actions from one bucket each, for all nodes together.
fn shared_bucket(burst: f64, refill: f64) -> Throttling {
    let actions = [
        "AssignPrivateIpAddresses",
        "AttachNetworkInterface",
        "CreateNetworkInterface",
        "DescribeNetworkInterfaces",
        "ModifyNetworkInterfaceAttribute",
    ];
    let bucket = Bucket::new(burst, refill);
    Throttling::Only(actions.map(|action| (action.to_owned(), bucket)).into())
}

/// Pods whose ADDs wait a minute.
fn patient_pods(node: &Arc<Node>, count: usize) -> Vec<Pod> {
    let mut runtime = node.runtime();
    runtime.conflist = runtime.conflist.env("AWS_CNI_ADD_DEADLINE", "60");
    let runtime = Arc::new(runtime);
    let pod = |index| {
        node.pod_of(Arc::clone(&runtime), "default", &format!("web-{index}"))
            .unwrap()
    };
    (0..count).map(pod).collect()
}

/// What a call is about, if it is the daemon's; a call that repeats it says the same.
fn subject(call: &Call) -> Option<String> {
    let names = ["ClientToken", "NetworkInterfaceId", "Filter.1.Name"];
    let subject = names.iter().find_map(|name| call.param(name))?;
    Some(format!("{:?} {} {subject}", call.instance, call.action))
}

fn throttled(call: &Call) -> bool {
    call.outcome == Outcome::Error("RequestLimitExceeded".to_owned())
}

/// A call that was refused is not repeated before the shortest wait is over; how much longer it takes is left to chance.
fn assert_paced(scene: &Scene) -> usize {
    let mut by_subject: BTreeMap<String, Vec<Call>> = BTreeMap::new();
    let mut calls = scene.lab.cloud().calls().all();
    calls.retain(|call| call.service == Service::Ec2);
    calls.sort_by_key(|call| call.seq);
    for call in calls {
        if let Some(subject) = subject(&call) {
            by_subject.entry(subject).or_default().push(call);
        }
    }
    let mut refusals = 0;
    for (subject, calls) in by_subject {
        for pair in calls.windows(2).filter(|pair| throttled(&pair[0])) {
            refusals += 1;
            let waited = pair[1].at - pair[0].at;
            assert!(waited >= FIRST_WAIT, "{subject} was repeated after {waited:?}");
        }
    }
    refusals
}

/// Who else calls EC2 in this account: from another node, and never content with the answer.
struct Neighbours {
    insists: Arc<AtomicBool>,
    stops: Arc<AtomicBool>,
}

impl Neighbours {
    /// They take every call of this action there is, until they relent.
    fn draining(node: &Node, endpoint: SocketAddrV4, action: &'static str) -> Self {
        let (insists, stops) = (Arc::new(AtomicBool::new(true)), Arc::new(AtomicBool::new(false)));
        let this = Self {
            insists: Arc::clone(&insists),
            stops: Arc::clone(&stops),
        };
        let work = move || {
            while !stops.load(Ordering::Relaxed) {
                call(endpoint, action);
                let insists = insists.load(Ordering::Relaxed);
                std::thread::sleep(if insists {
                    Duration::from_millis(5)
                } else {
                    FIRST_WAIT
                });
            }
        };
        node.netns().spawn("neighbours", work).unwrap();
        this
    }

    /// From now on they leave most of what the bucket gains to others.
    fn relent(&self) {
        self.insists.store(false, Ordering::Relaxed);
    }
}

impl Drop for Neighbours {
    fn drop(&mut self) {
        self.stops.store(true, Ordering::Relaxed);
    }
}

/// One call, without parameters: it takes its token before it is found wanting.
fn call(endpoint: SocketAddrV4, action: &str) {
    let body = format!("Action={action}&Version=2016-11-15");
    let request = format!(
        "POST / HTTP/1.1\r\nHost: {endpoint}\r\nConnection: close\r\nX-Amz-Date: 20260101T000000Z\r\n\
         Authorization: AWS4-HMAC-SHA256 Credential=a, SignedHeaders=b, Signature=c\r\n\
         Content-Type: application/x-www-form-urlencoded\r\nContent-Length: {}\r\n\r\n{body}",
        body.len()
    );
    // The lab may be on its way out.
    if let Ok(mut stream) = TcpStream::connect(endpoint) {
        let _sent = stream.write_all(request.as_bytes());
        let _answer = stream.read_to_end(&mut Vec::new());
    }
}

#[test]
fn with_a_small_bucket_waiting_adds_are_served_and_every_retry_keeps_its_distance() {
    let mut scene = Scene::stage(Lab::builder(), "m5.4xlarge", &[("WARM_ENI_TARGET", "0")]);
    scene.faults().throttle(shared_bucket(1.0, 0.5));
    scene.start();
    let pods = scene.patient_pods("web", 110, 60);
    scene.add(&pods, 110);
    scene.settle_at(116);
    scene.check(&pods);
    let refusals = assert_paced(&scene);
    assert!(refusals >= 2, "three ENIs are asked for at once: {refusals}");
}

#[test]
fn three_nodes_that_grow_from_one_bucket_fail_nobody() {
    let no_warm_eni = [("WARM_ENI_TARGET", "0")];
    let spec = |name| NodeSpec::new(name, "m5.large");
    let builder = Lab::builder()
        .node_with(spec("b"), |_| {})
        .node_with(spec("c"), |_| {});
    let mut scene = Scene::stage(builder, "m5.large", &no_warm_eni);
    scene.faults().throttle(shared_bucket(2.0, 1.0));
    scene.start();
    let others: Vec<_> = ["b", "c"].map(|name| scene.lab.node(name).unwrap()).into();
    let _daemons: Vec<_> = others.iter().map(|node| serve(node, &no_warm_eni)).collect();
    let mut pods = patient_pods(&scene.node, 27);
    pods.extend(others.iter().flat_map(|node| patient_pods(node, 27)));
    scene.add(&pods, pods.len());
    let addresses: BTreeSet<_> = pods.iter().map(|pod| pod.address().unwrap()).collect();
    assert_eq!(addresses.len(), pods.len());
    assert!(assert_paced(&scene) > 0);
}

#[test]
fn with_ec2s_published_buckets_emptied_by_others_status_tells_it_and_waiting_adds_are_served() {
    let no_warm_eni = [("WARM_ENI_TARGET", "0")];
    let builder = Lab::builder().node_with(NodeSpec::new("b", "m5.large"), |_| {});
    let mut scene = Scene::stage(builder, "m5.4xlarge", &no_warm_eni);
    scene.start();
    scene.settle_at(29);
    scene.faults().throttle(Throttling::Published);
    let action = "CreateNetworkInterface";
    let other = scene.lab.node("b").unwrap();
    let neighbours = Neighbours::draining(&other, scene.lab.fabric().ec2_endpoint(), action);
    scene.wait_until("the bucket to be empty", || {
        let calls = scene.lab.cloud().calls().of(action);
        calls.last().filter(|call| throttled(call)).map(|_| ())
    });
    let pods = scene.patient_pods("web", 110, 60);
    std::thread::scope(|threads| {
        threads.spawn(|| scene.add(&pods, 110));
        let status = scene.wait_for("the reason to be told", |status| {
            let reasons = status["reasons"].as_array().unwrap().iter();
            let mut reasons = reasons.filter_map(|reason| reason.as_str());
            reasons.any(|reason| {
                [action, "RequestLimitExceeded", "next try in"]
                    .iter()
                    .all(|part| reason.contains(part))
            })
        });
        assert_eq!(status["serving"], true, "{status:#}");
        neighbours.relent();
    });
    scene.settle_at(116);
    scene.check(&pods);
    assert_paced(&scene);
}
