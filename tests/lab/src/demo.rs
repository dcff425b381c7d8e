//! The demo: real pods on two nodes get addresses of the VPC, reach each other, survive a `kill -9`, and go.
//!
//! Every step checks what it shows; the first that does not hold ends the demo with its reason.
#![allow(clippy::print_stdout, reason = "what it prints is what it is for")]

mod books;
mod reach;
mod report;
mod stage;

use std::path::PathBuf;
use std::sync::Arc;

use report::Story;
pub use report::node_hint;
use stage::Worker;

use crate::fabric::FabricError;
use crate::faults::Preset;
use crate::lab::{Lab, LabError};
use crate::node::NodeError;
use crate::pod::{CniError, Pod, side_by_side};
use crate::probe::EchoError;
use crate::process::ProcessError;
use crate::varlink::CallError;

/// Pods added while a daemon is killed; the bigger node has addresses for them at hand.
const BURST: usize = 12;

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
    /// The router could not be asked what it dropped.
    #[error(transparent)]
    Fabric(#[from] FabricError),
    /// The steady stream of packets broke off.
    #[error("the stream of packets: {0}")]
    Stream(#[source] std::io::Error),
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
    let mut story = Story::begin();
    story.step(
        "A VPC with two worker nodes",
        "EC2, IMDS and the VPC's router are simulated, with the delays of the real ones; what happens on a node\n\
         is real: network namespaces, links, routes, rules, nftables.",
    );
    let lab = Lab::builder()
        .node("a", "t3.medium")
        .node("b", "m5.large")
        .preset(Preset::Realistic)
        .build()?;
    report::nodes(&lab);

    story.step(
        "ipamd starts on both",
        "From nothing but its environment it finds out where it is and sets the host up.",
    );
    let mut workers = Vec::new();
    for node in lab.nodes() {
        workers.push(Worker::start(Arc::clone(node), &options.binary)?);
        println!("   node {}: ready to take ADDs and DELs", node.name());
    }

    story.step(
        &format!("{} pods on each node, all at once", options.pods),
        "The aws-cni binary is run as a container runtime runs it. There are more pods than addresses at first:\n\
         their ADDs wait until ipamd has attached further ENIs, and none fails.",
    );
    add_all(&mut workers, options.pods, &lab)?;
    books::agree(&workers, &lab)?;

    story.step(
        "Who reaches whom",
        "Every pod sends to every other over UDP and to the internet over TCP; every node connects to every pod\n\
         over TCP, as the kubelet's probes do. Inside the VPC a pod is seen under its own address, outside under\n\
         its node's.",
    );
    reach::check(&lab, &workers)?;

    if let Some((worker, others)) = workers.split_last_mut() {
        story.step(
            &format!("kill -9 of ipamd on node {} in the middle of a burst", worker.node.name()),
            "systemd would hold the socket and start the daemon again; here the demo does. What was told to a\n\
             runtime is on the disk, what was not is undone, and no packet of a running pod is lost meanwhile.",
        );
        stage::killed_in_a_burst(worker, others, BURST, &lab)?;
    }
    books::agree(&workers, &lab)?;
    reach::check(&lab, &workers)?;

    if options.keep {
        report::how_to_look_around(&lab, &workers);
        loop {
            std::thread::park();
        }
    }

    story.step(
        "Every pod is deleted",
        "Their addresses rest for 30 s before another pod gets them; ENIs stay for the pods to come.",
    );
    for worker in &workers {
        stage::delete_all(worker)?;
    }

    story.step(
        "Kernel, store and EC2 agree on empty",
        "No link, route or rule of a pod is left in the kernel; both daemons are started again and know from\n\
         their store what EC2 shows, address by address; no ENI is left over.",
    );
    for worker in &mut workers {
        books::kernel_is_empty(worker, &lab)?;
        worker.restart_gently()?;
    }
    books::agree(&workers, &lab)?;
    story.end();
    Ok(())
}

fn add_all(workers: &mut [Worker], count: usize, lab: &Lab) -> Result<(), DemoError> {
    for worker in &mut *workers {
        worker.add_pods(count)?;
    }
    let pods: Vec<(&Worker, &Pod)> = workers
        .iter()
        .flat_map(|worker| worker.pods.iter().map(move |pod| (worker, pod)))
        .collect();
    let table = report::Pods::begin(pods.len());
    let added = side_by_side(&pods, pods.len(), |(worker, pod)| {
        let outcome = pod.add()?;
        table.line(worker.node.name(), pod, &outcome, "", lab);
        stage::must_succeed(pod, "ADD", &outcome)?;
        Ok::<_, DemoError>(pod.serve_echo()?)
    });
    added.into_iter().collect()
}
