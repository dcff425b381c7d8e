//! The demo: real pods on two nodes get addresses of the VPC, reach each other, survive a `kill -9`, and go.
//!
//! Every step checks what it shows; the first that does not hold ends the demo with its reason.
#![allow(clippy::print_stdout, reason = "what it prints is what it is for")]

mod report;
mod stage;

use std::collections::BTreeSet;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use report::Progress;
pub use report::node_hint;
use stage::Worker;

use crate::faults::Preset;
use crate::lab::{Lab, LabError};
use crate::node::NodeError;
use crate::pod::{CniError, Pod, side_by_side};
use crate::probe::{EchoError, Matrix, Protocol, Source, matrix};
use crate::process::ProcessError;
use crate::varlink::CallError;

/// How long one exchange may take; a healthy one takes less than a millisecond.
const EXCHANGE: Duration = Duration::from_secs(2);

/// How the demo is run.
#[derive(Debug, Clone)]
pub struct DemoOptions {
    /// The product's binary.
    pub binary: PathBuf,
    /// Pods on each node.
    pub pods: usize,
    /// Leave everything running at the end.
    pub keep: bool,
}

/// Why the demo failed.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum DemoError {
    /// The lab.
    #[error(transparent)]
    Lab(#[from] LabError),
    /// A node.
    #[error(transparent)]
    Node(#[from] NodeError),
    /// A daemon.
    #[error(transparent)]
    Process(#[from] ProcessError),
    /// A plugin could not be run.
    #[error(transparent)]
    Cni(#[from] CniError),
    /// An echo server.
    #[error(transparent)]
    Echo(#[from] EchoError),
    /// The daemon's socket.
    #[error("listening at {path}: {error}", path = path.display())]
    Socket {
        /// Where.
        path: PathBuf,
        /// Why not.
        error: std::io::Error,
    },
    /// The daemon did not answer.
    #[error(transparent)]
    Call(#[from] CallError),
    /// Something that should hold does not.
    #[error("{0}")]
    Wrong(String),
}

/// Runs the demo; `Ok` only when all holds.
pub fn run(options: &DemoOptions) -> Result<(), DemoError> {
    let progress = Progress::start();
    progress
        .step("building a VPC: node a (t3.medium), node b (m5.large), EC2 and IMDS as slow as the real ones");
    let lab = Lab::builder()
        .node("a", "t3.medium")
        .node("b", "m5.large")
        .preset(Preset::Realistic)
        .build()?;
    progress.step("starting ipamd on each node");
    let mut workers = Vec::new();
    for node in lab.nodes() {
        workers.push(Worker::start(Arc::clone(node), &options.binary)?);
        println!("{}", node_hint(node));
    }
    progress.step(&format!("starting {} pods on each node", options.pods));
    for worker in &mut workers {
        worker.add_pods(options.pods)?;
    }
    add_all(&workers, &lab)?;
    check_unique(&workers, &lab)?;
    progress.step("who reaches whom");
    reachability(&lab, &workers)?;
    if let Some(worker) = workers.last_mut() {
        progress.step(&format!(
            "kill -9 of ipamd on node {} in the middle of a burst",
            worker.node.name()
        ));
        stage::killed_in_a_burst(worker, 8, &lab)?;
    }
    check_unique(&workers, &lab)?;
    progress.step("after the kill: who reaches whom");
    reachability(&lab, &workers)?;
    if options.keep {
        report::how_to_look_around(&lab);
        loop {
            std::thread::park();
        }
    }
    progress.step("deleting every pod");
    for worker in &workers {
        stage::delete_all(worker)?;
    }
    progress.step("kernel, daemon and EC2 agree on empty");
    for worker in &workers {
        stage::check_empty(worker, &lab)?;
    }
    progress.done();
    Ok(())
}

fn add_all(workers: &[Worker], lab: &Lab) -> Result<(), DemoError> {
    let pods: Vec<(&str, &Pod)> = workers
        .iter()
        .flat_map(|worker| worker.pods.iter().map(|pod| (worker.node.name(), pod)))
        .collect();
    let added = side_by_side(&pods, pods.len(), |(node, pod)| {
        let outcome = pod.add()?;
        println!("{}", report::added(node, pod, &outcome, lab));
        stage::must_succeed(pod, "ADD", &outcome)?;
        Ok::<_, DemoError>(pod.serve_echo()?)
    });
    added.into_iter().collect()
}

/// No address twice, and the daemons count the same pods.
fn check_unique(workers: &[Worker], lab: &Lab) -> Result<(), DemoError> {
    let mut seen = BTreeSet::new();
    for pod in workers.iter().flat_map(|worker| &worker.pods) {
        let address = pod.address();
        let address = address.ok_or_else(|| DemoError::Wrong(format!("{} has no address", pod.label())))?;
        if !seen.insert(address) {
            return Err(DemoError::Wrong(format!("two pods have {address}")));
        }
    }
    println!("  {0} pods, {0} different addresses", seen.len());
    let count = |worker: &Worker| u64::try_from(worker.pods.len()).unwrap_or(u64::MAX);
    workers
        .iter()
        .try_for_each(|worker| stage::check_count(worker, count(worker), lab))
}

fn reachability(lab: &Lab, workers: &[Worker]) -> Result<(), DemoError> {
    let pods: Vec<_> = workers.iter().flat_map(|worker| &worker.pods).collect();
    let sources: Vec<Source> = pods.iter().filter_map(|pod| pod.source()).collect();
    let targets: Vec<_> = pods.iter().filter_map(|pod| pod.target()).collect();
    let show = |title: &str, outcome: &Matrix| {
        let (reached, all) = outcome.reached();
        println!("  {title}: {reached} of {all}");
        if outcome.all_reached() {
            Ok(())
        } else {
            println!("{outcome}");
            Err(DemoError::Wrong(format!("{title}: not everything was reached")))
        }
    };
    show(
        "pod to pod, UDP",
        &matrix(&sources, &targets, Protocol::Udp, EXCHANGE),
    )?;
    for worker in workers {
        let own: Vec<_> = worker.pods.iter().filter_map(Pod::target).collect();
        let probe = matrix(&[worker.node.source()], &own, Protocol::Tcp, EXCHANGE);
        show("node to its pods, TCP as kubelet probes", &probe)?;
        let inside: Vec<_> = worker.pods.iter().filter_map(Pod::source).collect();
        let out = matrix(&inside, &[lab.internet()], Protocol::Tcp, EXCHANGE);
        show("pod to internet, TCP", &out)?;
        let seen: BTreeSet<_> = out.seen().map(|(_, _, source)| *source.ip()).collect();
        println!(
            "  the internet saw {seen:?}; node {} is {}",
            worker.node.name(),
            worker.node.address()
        );
        if seen != BTreeSet::from([worker.node.address()]) {
            return Err(DemoError::Wrong(
                "the internet saw another address than the node's".to_owned(),
            ));
        }
    }
    let spoofed = lab.fabric().offences().map_err(LabError::from)?;
    if spoofed.is_empty() {
        Ok(())
    } else {
        Err(DemoError::Wrong(format!(
            "the VPC dropped packets with a wrong source: {spoofed:?}"
        )))
    }
}
