//! What happens on one node.
#![allow(clippy::print_stdout, reason = "what it prints is what it is for")]

use std::os::unix::net::UnixListener;
use std::path::Path;
use std::sync::Arc;
use std::sync::mpsc;
use std::time::{Duration, Instant};

use super::{DemoError, report};
use crate::lab::Lab;
use crate::node::Node;
use crate::pod::{CniOutcome, Pod, side_by_side};
use crate::process::Daemon;
use crate::vpc::Eni;

/// From exec to the first connection taken; growing the pool comes later.
const DAEMON_START: Duration = Duration::from_secs(30);

/// The daemon may still be deleting links after the last DEL has returned.
const DEFERRED_WORK: Duration = Duration::from_secs(15);

/// Until the first pod of a burst has an answer; attaching an ENI may come before.
const BURST_START: Duration = Duration::from_mins(1);

/// How often a runtime asks again for a pod whose ADD failed in passing.
const ATTEMPTS: usize = 5;

/// A node with its daemon and pods. The listening socket is the node's, as systemd would hold it.
pub(super) struct Worker {
    pub(super) node: Arc<Node>,
    pub(super) pods: Vec<Pod>,
    listener: UnixListener,
    daemon: Daemon,
}

impl Worker {
    pub(super) fn start(node: Arc<Node>, binary: &Path) -> Result<Self, DemoError> {
        node.install(binary)?;
        let path = node.dirs().socket();
        let listener = UnixListener::bind(&path).map_err(|error| DemoError::Socket { path, error })?;
        let daemon = start_daemon(&node, &listener)?;
        Ok(Self {
            node,
            pods: Vec::new(),
            listener,
            daemon,
        })
    }

    pub(super) fn add_pods(&mut self, count: usize) -> Result<(), DemoError> {
        for _ in 0..count {
            let name = format!("{}-{}", self.node.name(), self.pods.len());
            self.pods.push(self.node.pod("demo", &name)?);
        }
        Ok(())
    }

    fn restart(&mut self) -> Result<(), DemoError> {
        self.daemon = start_daemon(&self.node, &self.listener)?;
        Ok(())
    }
}

fn start_daemon(node: &Node, listener: &UnixListener) -> Result<Daemon, DemoError> {
    let listener = listener.try_clone().map_err(|error| DemoError::Socket {
        path: node.dirs().socket(),
        error,
    })?;
    let daemon = node.start(node.ipamd_spec().listener(listener))?;
    daemon.wait_ready(DAEMON_START)?;
    Ok(daemon)
}

pub(super) fn must_succeed(pod: &Pod, verb: &str, outcome: &CniOutcome) -> Result<(), DemoError> {
    if outcome.succeeded() {
        return Ok(());
    }
    let said = format!("{}{}", outcome.stdout, outcome.stderr);
    Err(DemoError::Wrong(format!(
        "{verb} of {} failed: {said}",
        pod.label()
    )))
}

/// More pods at once, and the daemon killed after the first of them has its address.
pub(super) fn killed_in_a_burst(worker: &mut Worker, count: usize, lab: &Lab) -> Result<(), DemoError> {
    let before = worker.pods.len();
    worker.add_pods(count)?;
    let (first, first_done) = mpsc::channel();
    let mut pods = std::mem::take(&mut worker.pods);
    let burst = pods.get(before..).unwrap_or_default();
    let name = worker.node.name().to_owned();
    let added = std::thread::scope(|scope| {
        let running = scope.spawn(|| {
            side_by_side(burst, count, |pod| {
                let outcome = add_as_a_runtime(pod)?;
                println!("{}", report::added(&name, pod, &outcome, lab));
                if let Err(mpsc::SendError(())) = first.send(()) {} // only the first is waited for
                must_succeed(pod, "ADD", &outcome)?;
                Ok::<_, DemoError>(pod.serve_echo()?)
            })
        });
        first_done
            .recv_timeout(BURST_START)
            .map_err(|_| DemoError::Wrong("no pod of the burst got an answer".to_owned()))?;
        let status = worker.daemon.kill()?;
        println!("  the daemon ended with {status}; starting it again");
        worker.restart()?;
        Ok::<_, DemoError>(
            running
                .join()
                .unwrap_or_else(|panic| std::panic::resume_unwind(panic)),
        )
    })?;
    worker.pods.append(&mut pods);
    added.into_iter().collect()
}

/// A runtime deletes a sandbox whose ADD failed and tries again.
fn add_as_a_runtime(pod: &Pod) -> Result<CniOutcome, DemoError> {
    let mut outcome = pod.add()?;
    for _ in 1..ATTEMPTS {
        if outcome.succeeded() {
            break;
        }
        println!("  {} is tried again: {}", pod.label(), outcome.stdout.trim());
        must_succeed(pod, "DEL", &pod.del()?)?;
        outcome = pod.add()?;
    }
    Ok(outcome)
}

pub(super) fn delete_all(worker: &Worker) -> Result<(), DemoError> {
    let deleted = side_by_side(&worker.pods, 8, |pod| {
        let outcome = pod.del()?;
        must_succeed(pod, "DEL", &outcome)?;
        Ok::<_, DemoError>(outcome.took)
    });
    let deleted: Vec<_> = deleted.into_iter().collect::<Result<_, _>>()?;
    let slowest = deleted.iter().max().copied().unwrap_or_default();
    println!(
        "  node {}: {} pods, slowest DEL {slowest:.1?}",
        worker.node.name(),
        deleted.len()
    );
    Ok(())
}

/// No link, route or rule of a pod is left, the daemon counts none, and it holds exactly what EC2 shows.
pub(super) fn check_empty(worker: &Worker, lab: &Lab) -> Result<(), DemoError> {
    let until = Instant::now() + DEFERRED_WORK;
    let mut left = leftovers(&worker.node)?;
    while !left.is_empty() && Instant::now() < until {
        std::thread::sleep(Duration::from_millis(100));
        left = leftovers(&worker.node)?;
    }
    let troubles = lab.troubles();
    if !left.is_empty() || !troubles.is_empty() {
        let name = worker.node.name();
        return Err(DemoError::Wrong(format!(
            "node {name} still has {left:?}; lab: {troubles:?}"
        )));
    }
    println!(
        "  node {}: no link, route or rule of a pod is left",
        worker.node.name()
    );
    check_count(worker, 0, lab)
}

/// The daemon counts `assigned` pods, and what it holds besides is what EC2 shows.
pub(super) fn check_count(worker: &Worker, assigned: u64, lab: &Lab) -> Result<(), DemoError> {
    let status = worker.node.call_ipamd("Status", &serde_json::json!({}))?;
    let count = |name: &str| status.get(name).and_then(serde_json::Value::as_u64).unwrap_or(0);
    let held = count("free") + count("cooling") + count("assigned");
    let secondary = secondary_addresses(&worker.node, lab);
    println!(
        "  node {}: ipamd counts {} assigned, {} free, {} cooling; EC2 shows {secondary} secondary addresses",
        worker.node.name(),
        count("assigned"),
        count("free"),
        count("cooling"),
    );
    if count("assigned") == assigned && held == secondary {
        return Ok(());
    }
    let name = worker.node.name();
    Err(DemoError::Wrong(format!(
        "ipamd on node {name} disagrees with its {assigned} pods or with EC2"
    )))
}

fn secondary_addresses(node: &Node, lab: &Lab) -> u64 {
    let here = |eni: &Eni| {
        eni.attachment
            .as_ref()
            .is_some_and(|at| at.instance == *node.instance())
    };
    let count = |eni: &Eni| u64::try_from(eni.secondary.len() + 16 * eni.prefixes.len()).unwrap_or(u64::MAX);
    lab.cloud().model(|model| {
        model
            .enis()
            .values()
            .filter(|eni| here(eni))
            .map(|eni| count(eni))
            .sum()
    })
}

/// Pod links by the prefix of their name, pod routes in table 512, rules for single addresses.
fn leftovers(node: &Node) -> Result<Vec<String>, DemoError> {
    let mut left: Vec<String> = node
        .links()?
        .into_iter()
        .map(|link| link.name)
        .filter(|name| name.starts_with("eni"))
        .collect();
    let routes = node.ip_json(&["route", "show", "table", "all"])?;
    let of_pods = routes.as_array().into_iter().flatten().filter(|route| {
        let device = route.get("dev").and_then(serde_json::Value::as_str);
        device.is_some_and(|device| device.starts_with("eni"))
    });
    left.extend(of_pods.map(ToString::to_string));
    Ok(left)
}
