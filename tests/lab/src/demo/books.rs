//! What the runtime, the daemon, the kernel and EC2 each hold to be true, compared item by item.
#![allow(clippy::print_stdout, reason = "what it prints is what it is for")]

use std::collections::{BTreeMap, BTreeSet};
use std::net::Ipv4Addr;
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use super::DemoError;
use super::stage::Worker;
use crate::lab::Lab;
use crate::node::Node;
use crate::pod::Pod;

/// Until nothing is on its way any more: attaching an ENI takes seconds, and EC2 may be throttling.
const GROWTH: Duration = Duration::from_mins(1);

/// The daemon may still be deleting links after the last DEL has returned.
const DEFERRED_WORK: Duration = Duration::from_secs(15);

/// How often a condition is looked at that has no event.
const LOOK: Duration = Duration::from_millis(50);

/// No address twice; each daemon has exactly its pods; it and EC2 know the same addresses on the same ENIs; no ENI
/// is unattached.
pub(super) fn agree(workers: &[Worker], lab: &Lab) -> Result<(), DemoError> {
    all_different(workers)?;
    println!(
        "\n         pods  ipamd: ENIs  assigned  free  cooling  quarantined   EC2: ENIs  secondary addresses"
    );
    for worker in workers {
        compare(worker, lab)?;
    }
    let unattached = lab.cloud().model(|model| {
        let unattached = model.enis().values().filter(|eni| eni.attachment.is_none());
        unattached.map(|eni| eni.id.to_string()).collect::<Vec<_>>()
    });
    if unattached.is_empty() {
        println!(
            "   ipamd has the runtime's pods, the kernel their routes, EC2 the same addresses on the same ENIs\n"
        );
        return Ok(());
    }
    Err(DemoError::Wrong(format!("ENIs that nobody uses: {unattached:?}")))
}

fn all_different(workers: &[Worker]) -> Result<(), DemoError> {
    let mut seen = BTreeSet::new();
    // A deleted pod has none; one that should have an address is missed by `compare`.
    let addresses = workers
        .iter()
        .flat_map(|worker| &worker.pods)
        .filter_map(Pod::address);
    for address in addresses {
        if !seen.insert(address) {
            return Err(DemoError::Wrong(format!("two pods have {address}")));
        }
    }
    Ok(())
}

fn compare(worker: &Worker, lab: &Lab) -> Result<(), DemoError> {
    let node = &worker.node;
    let status = settled(node)?;
    let count = |name: &str| status.get(name).and_then(Value::as_u64).unwrap_or(0);
    let dump = node.call_ipamd("Dump", &json!({}))?;
    let pods = runtimes_view(&worker.pods);
    let ec2 = ec2_view(node, lab);
    let addresses: usize = ec2.values().map(BTreeSet::len).sum();
    println!(
        "   node {}  {:>3}  {:>11}  {:>8}  {:>4}  {:>7}  {:>11}  {:>10}  {addresses:>19}",
        node.name(),
        pods.len(),
        count("enis"),
        count("assigned"),
        count("free"),
        count("cooling"),
        count("quarantined"),
        ec2.len(),
    );
    let same = |what: &str, ours: &dyn std::fmt::Debug, theirs: &dyn std::fmt::Debug, equal: bool| {
        if equal {
            return Ok(());
        }
        let name = node.name();
        Err(DemoError::Wrong(format!(
            "node {name}: {what} disagree\n  ipamd: {ours:?}\n  other: {theirs:?}"
        )))
    };
    let held = daemons_pods(&dump);
    same("ipamd and the runtime", &held, &pods, held == pods)?;
    let known = daemons_addresses(&dump);
    same("ipamd and EC2", &known, &ec2, known == ec2)?;
    let routed = pod_routes(node)?;
    let wanted: BTreeSet<Ipv4Addr> = pods.values().copied().collect();
    same(
        "the kernel's pod routes and the runtime",
        &routed,
        &wanted,
        routed == wanted,
    )?;
    let sum = count("free") + count("assigned") + count("cooling") + count("quarantined");
    let total = u64::try_from(addresses).unwrap_or(u64::MAX);
    same("the daemon's sum and EC2", &sum, &total, sum == total)
}

/// The daemon's status once nothing is on its way and nobody waits.
fn settled(node: &Node) -> Result<Value, DemoError> {
    let until = Instant::now() + GROWTH;
    loop {
        let status = node.call_ipamd("Status", &json!({}))?;
        let is_zero = |name: &str| status.get(name).and_then(Value::as_u64) == Some(0);
        if is_zero("coming") && is_zero("waiting") {
            return Ok(status);
        }
        if Instant::now() >= until {
            let name = node.name();
            return Err(DemoError::Wrong(format!(
                "ipamd on node {name} does not come to rest: {status}"
            )));
        }
        std::thread::sleep(LOOK);
    }
}

fn runtimes_view(pods: &[Pod]) -> BTreeMap<String, Ipv4Addr> {
    let live = pods
        .iter()
        .filter_map(|pod| Some((pod.identity().container.clone(), pod.address()?)));
    live.collect()
}

fn list<'a>(dump: &'a Value, name: &str) -> impl Iterator<Item = &'a Value> {
    dump.get(name).and_then(Value::as_array).into_iter().flatten()
}

fn daemons_pods(dump: &Value) -> BTreeMap<String, Ipv4Addr> {
    let held = list(dump, "allocations").filter_map(|held| {
        let container = held.get("key")?.get("container")?.as_str()?.to_owned();
        Some((container, address(held)?))
    });
    held.collect()
}

fn daemons_addresses(dump: &Value) -> BTreeMap<String, BTreeSet<Ipv4Addr>> {
    let enis = list(dump, "enis").filter_map(|eni| eni.get("id")?.as_str());
    let mut known: BTreeMap<String, BTreeSet<Ipv4Addr>> =
        enis.map(|id| (id.to_owned(), BTreeSet::new())).collect();
    for entry in list(dump, "addresses") {
        let eni = entry.get("eni").and_then(Value::as_str).unwrap_or_default();
        known.entry(eni.to_owned()).or_default().extend(address(entry));
    }
    known
}

fn address(entry: &Value) -> Option<Ipv4Addr> {
    entry.get("address")?.as_str()?.parse().ok()
}

fn ec2_view(node: &Node, lab: &Lab) -> BTreeMap<String, BTreeSet<Ipv4Addr>> {
    lab.cloud().model(|model| {
        let mine = model.enis().values().filter(|eni| {
            let at = eni.attachment.as_ref();
            at.is_some_and(|at| at.instance == *node.instance())
        });
        mine.map(|eni| (eni.id.to_string(), eni.secondary.iter().copied().collect()))
            .collect()
    })
}

/// Destinations of all routes over pods' links, in whatever table.
fn pod_routes(node: &Node) -> Result<BTreeSet<Ipv4Addr>, DemoError> {
    let routes = node.ip_json(&["route", "show", "table", "all"])?;
    let of_pods = routes.as_array().into_iter().flatten().filter_map(|route| {
        let over_pod = route.get("dev")?.as_str()?.starts_with("eni");
        over_pod.then(|| route.get("dst")?.as_str()?.parse().ok())?
    });
    Ok(of_pods.collect())
}

/// No link, route or rule of a pod is left, and the lab itself had no trouble.
pub(super) fn kernel_is_empty(worker: &Worker, lab: &Lab) -> Result<(), DemoError> {
    let name = worker.node.name();
    let until = Instant::now() + DEFERRED_WORK;
    let mut left = worker.node.pod_objects()?;
    while !left.is_empty() && Instant::now() < until {
        std::thread::sleep(LOOK);
        left = worker.node.pod_objects()?;
    }
    let troubles = lab.troubles();
    if left.is_empty() && troubles.is_empty() {
        println!("   node {name}: no link, route or rule of a pod is left");
        return Ok(());
    }
    Err(DemoError::Wrong(format!(
        "node {name} still has {left:?}; lab: {troubles:?}"
    )))
}
