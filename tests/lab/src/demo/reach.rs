//! Who reaches whom, and under which address they are seen.
#![allow(clippy::print_stdout, reason = "what it prints is what it is for")]

use std::collections::{BTreeMap, BTreeSet};
use std::net::Ipv4Addr;
use std::time::Duration;

use super::stage::Worker;
use super::{DemoError, report};
use crate::lab::Lab;
use crate::pod::Pod;
use crate::probe::{Matrix, Protocol, Source, Target, matrix};

/// How long one exchange may take; a healthy one takes less than a millisecond.
const EXCHANGE: Duration = Duration::from_secs(5);

/// What is expected of a row's sources.
enum SeenAs {
    /// The pod's own address.
    Itself(BTreeMap<String, Ipv4Addr>),
    /// One address for all.
    Only(Ipv4Addr),
}

/// Prints the table and checks every cell of it.
pub(super) fn check(lab: &Lab, workers: &[Worker]) -> Result<(), DemoError> {
    let names: Vec<String> = workers
        .iter()
        .map(|worker| format!("pods on {}", worker.node.name()))
        .collect();
    print!("   {:<16}", "from \\ to");
    for name in &names {
        print!("{name:<14}");
    }
    println!("internet      seen there as");
    for worker in workers {
        pods_row(lab, worker, workers)?;
    }
    for worker in workers {
        node_row(worker, workers)?;
    }
    let offences = lab.fabric().offences()?;
    if offences.is_empty() {
        println!("   no packet was dropped for a source address that its ENI does not own");
        return Ok(());
    }
    Err(DemoError::Wrong(format!(
        "the VPC dropped packets with a wrong source address: {offences:?}"
    )))
}

fn pods_row(lab: &Lab, worker: &Worker, workers: &[Worker]) -> Result<(), DemoError> {
    let name = format!("pods on {}", worker.node.name());
    let sources: Vec<Source> = worker.pods.iter().filter_map(Pod::source).collect();
    let own = worker
        .pods
        .iter()
        .filter_map(|pod| Some((pod.label(), pod.address()?)));
    let own = SeenAs::Itself(own.collect());
    print!("   {name:<16}");
    for other in workers {
        cell(&sources, &targets(other), Protocol::Udp, &own)?;
    }
    let node = SeenAs::Only(worker.node.address());
    let out = cell(&sources, &[lab.internet()], Protocol::Tcp, &node)?;
    let seen: BTreeSet<String> = out.seen().map(|(_, _, source)| source.ip().to_string()).collect();
    let seen: Vec<String> = seen.into_iter().collect();
    println!("{}, node {}", seen.join(", "), worker.node.name());
    Ok(())
}

fn node_row(worker: &Worker, workers: &[Worker]) -> Result<(), DemoError> {
    let node = SeenAs::Only(worker.node.address());
    print!("   {:<16}", format!("node {}", worker.node.name()));
    for other in workers {
        cell(&[worker.node.source()], &targets(other), Protocol::Tcp, &node)?;
    }
    println!();
    Ok(())
}

fn targets(worker: &Worker) -> Vec<Target> {
    worker.pods.iter().filter_map(Pod::target).collect()
}

fn cell(
    sources: &[Source],
    targets: &[Target],
    protocol: Protocol,
    seen_as: &SeenAs,
) -> Result<Matrix, DemoError> {
    let outcome = matrix(sources, targets, protocol, EXCHANGE);
    let (reached, all) = outcome.reached();
    print!("{:<14}", report::of(reached, all));
    if !outcome.all_reached() || all == 0 {
        println!("\n{outcome}");
        return Err(DemoError::Wrong(format!(
            "not everything was reached over {protocol}"
        )));
    }
    for (source, target, address) in outcome.seen() {
        let expected = match seen_as {
            SeenAs::Itself(own) => own.get(source).copied(),
            SeenAs::Only(address) => Some(*address),
        };
        if expected.is_none_or(|expected| address.ip() != expected) {
            return Err(DemoError::Wrong(format!(
                "{target} saw {source} as {}, not as {expected:?}",
                address.ip()
            )));
        }
    }
    Ok(outcome)
}
