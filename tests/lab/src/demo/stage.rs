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
use crate::probe::Steady;
use crate::process::Daemon;

/// From exec to the first connection taken; growing the pool comes later.
const DAEMON_START: Duration = Duration::from_secs(30);

/// From SIGTERM to the daemon's end.
const DAEMON_STOP: Duration = Duration::from_secs(30);

/// A datagram this often while the daemon is dead.
const PACE: Duration = Duration::from_millis(5);

/// Until the first pod of a burst has an answer; attaching an ENI may come before.
const BURST_START: Duration = Duration::from_mins(1);

/// How many sandboxes a runtime makes at a time: some of the burst come before the kill, some in it, some after it.
const AT_ONCE: usize = 3;

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

    /// Ends the daemon as `systemctl restart` does, and starts it again.
    pub(super) fn restart_gently(&mut self) -> Result<(), DemoError> {
        let status = self.daemon.terminate(DAEMON_STOP)?;
        if !status.success() {
            let name = self.node.name();
            return Err(DemoError::Wrong(format!(
                "SIGTERM ended ipamd on node {name} with {status}"
            )));
        }
        self.restart()
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

/// More pods at once, and the daemon killed after the first of them has its address, while a pod of this node talks
/// with one of another.
pub(super) fn killed_in_a_burst(
    worker: &mut Worker,
    others: &[Worker],
    count: usize,
    lab: &Lab,
) -> Result<(), DemoError> {
    let stream = stream_between(worker, others)?;
    let before = worker.pods.len();
    worker.add_pods(count)?;
    let mut pods = std::mem::take(&mut worker.pods);
    let burst = pods.get(before..).unwrap_or_default();
    let downtime = burst_and_kill(worker, burst, lab)?;
    worker.pods.append(&mut pods);
    println!("   ipamd serves again {} after its death", report::took(downtime));
    let Some(stream) = stream else { return Ok(()) };
    let seen = stream.stop().map_err(DemoError::Stream)?;
    println!(
        "   {} packets went to a pod on the other node and back meanwhile, {} were lost",
        seen.sent,
        seen.lost()
    );
    if seen.lost() == 0 {
        return Ok(());
    }
    Err(DemoError::Wrong(format!(
        "packets of a running pod were lost: {seen:?}"
    )))
}

fn stream_between(worker: &Worker, others: &[Worker]) -> Result<Option<Steady>, DemoError> {
    let here = worker.pods.last().and_then(Pod::netns);
    let there = others.iter().flat_map(|other| &other.pods).find_map(Pod::target);
    let (Some(here), Some(there)) = (here, there) else {
        return Ok(None);
    };
    let stream = Steady::start(&here, there.address, PACE).map_err(crate::node::NodeError::from)?;
    Ok(Some(stream))
}

fn burst_and_kill(worker: &mut Worker, burst: &[Pod], lab: &Lab) -> Result<Duration, DemoError> {
    let (first, first_done) = mpsc::channel();
    let name = worker.node.name().to_owned();
    let table = report::Pods::begin(burst.len());
    let (added, downtime) = std::thread::scope(|scope| {
        let running = scope.spawn(|| {
            side_by_side(burst, AT_ONCE, |pod| {
                let (outcome, remark) = add_as_a_runtime(pod)?;
                table.line(&name, pod, &outcome, &remark, lab);
                if let Err(mpsc::SendError(())) = first.send(()) {} // only the first is waited for
                must_succeed(pod, "ADD", &outcome)?;
                Ok::<_, DemoError>(pod.serve_echo()?)
            })
        });
        first_done
            .recv_timeout(BURST_START)
            .map_err(|_| DemoError::Wrong("no pod of the burst got an answer".to_owned()))?;
        let status = worker.daemon.kill()?;
        let died = Instant::now();
        println!("            {name}     ---   ipamd was ended by {status}");
        worker.restart()?;
        let downtime = died.elapsed();
        let added = running.join();
        Ok::<_, DemoError>((
            added.unwrap_or_else(|panic| std::panic::resume_unwind(panic)),
            downtime,
        ))
    })?;
    added.into_iter().collect::<Result<(), _>>()?;
    Ok(downtime)
}

/// A runtime deletes a sandbox whose ADD failed and tries again. Also says what happened.
fn add_as_a_runtime(pod: &Pod) -> Result<(CniOutcome, String), DemoError> {
    let mut outcome = pod.add()?;
    let mut remark = String::new();
    for attempt in 2..=ATTEMPTS {
        if outcome.succeeded() {
            break;
        }
        let code = outcome.error_code().unwrap_or_default();
        remark = format!("attempt {attempt}, after CNI error {code}");
        must_succeed(pod, "DEL", &pod.del()?)?;
        outcome = pod.add()?;
    }
    Ok((outcome, remark))
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
        "   node {}: {} pods deleted, 8 at a time, the slowest DEL took {}",
        worker.node.name(),
        deleted.len(),
        report::took(slowest)
    );
    Ok(())
}
