//! What the demo prints.
#![allow(clippy::print_stdout, reason = "what it prints is what it is for")]

use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Instant;

use super::stage::Worker;
use crate::lab::Lab;
use crate::node::Node;
use crate::pod::{CniOutcome, Pod};
use crate::vpc::Eni;

/// Numbered steps, each with the time since the start and what it proves.
pub(super) struct Story {
    started: Instant,
    steps: u32,
}

impl Story {
    pub(super) fn begin() -> Self {
        Self {
            started: Instant::now(),
            steps: 0,
        }
    }

    pub(super) fn step(&mut self, title: &str, proves: &str) {
        self.steps += 1;
        let elapsed = self.started.elapsed().as_secs_f64();
        println!("\n{}. {title}  [{elapsed:.1} s]", self.steps);
        for line in proves.lines() {
            println!("   {}", line.trim_start());
        }
        println!();
    }

    pub(super) fn end(&self) {
        println!(
            "\nAll of it holds, after {:.1} s.",
            self.started.elapsed().as_secs_f64()
        );
    }
}

/// A cell of the table of who reaches whom.
pub(super) fn of(reached: usize, all: usize) -> String {
    format!("{reached} of {all}")
}

pub(super) fn nodes(lab: &Lab) {
    println!("   node  type       instance             address");
    for node in lab.nodes() {
        let instance = node.instance();
        let kind = lab.cloud().model(|model| {
            let found = model.instances().get(instance);
            found.map(|instance| instance.instance_type.clone())
        });
        println!(
            "   {:<4}  {:<9}  {instance}  {}",
            node.name(),
            kind.unwrap_or_default(),
            node.address()
        );
    }
}

/// A table of pods, a line for each as it comes.
pub(super) struct Pods {
    all: usize,
    done: AtomicUsize,
}

impl Pods {
    pub(super) fn begin(all: usize) -> Self {
        println!("            node  pod   address          ENI                    device  ADD took");
        Self {
            all,
            done: AtomicUsize::new(0),
        }
    }

    pub(super) fn line(&self, node: &str, pod: &Pod, outcome: &CniOutcome, remark: &str, lab: &Lab) {
        let done = self.done.fetch_add(1, Ordering::Relaxed) + 1;
        let address = outcome.address();
        let (eni, device) = address
            .and_then(|address| owner(lab, address))
            .unwrap_or_else(|| ("-".to_owned(), "-".to_owned()));
        let remark = if remark.is_empty() {
            String::new()
        } else {
            format!("  {remark}")
        };
        println!(
            "   {:>7}  {node:<4}  {:<4}  {:<15}  {eni:<21}  {device:<6}  {:>8}{remark}",
            format!("{done}/{}", self.all),
            pod.identity().name,
            address.map_or("none".to_owned(), |address| address.to_string()),
            took(outcome.took),
        );
    }
}

pub(super) fn took(time: std::time::Duration) -> String {
    format!("{} ms", time.as_millis())
}

fn owner(lab: &Lab, address: std::net::Ipv4Addr) -> Option<(String, String)> {
    let owns = |eni: &Eni| eni.owned().owns(address.into());
    lab.cloud().model(|model| {
        let eni = model.enis().values().find(|eni| owns(eni))?;
        let device = eni.attachment.as_ref().map(|at| at.device.to_string());
        Some((eni.id.to_string(), device.unwrap_or_default()))
    })
}

/// How a human gets into a node.
pub fn node_hint(node: &Node) -> String {
    format!(
        "node {} {} {}: nsenter --net={} ip addr",
        node.name(),
        node.instance(),
        node.address(),
        node.netns().path().display()
    )
}

pub(super) fn how_to_look_around(lab: &Lab, workers: &[Worker]) {
    println!("\nEverything holds and is left running; Ctrl-C takes it all away. From another terminal:");
    for worker in workers {
        let node = &worker.node;
        let dirs = node.dirs();
        let enter = format!("nsenter --net={}", node.netns().path().display());
        println!("\n   # node {}", node.name());
        println!(
            "   AWS_CNI_SOCKET={} {} status",
            dirs.socket().display(),
            dirs.bin.join("ipamd").display()
        );
        println!("   {enter} ip route show table 512     # one route for each pod");
        println!("   {enter} ip rule                     # and no rule for any of them");
        println!("   {enter} nft list table ip aws-cni");
        println!("   less {}", dirs.log.join("ipamd.log").display());
        let pod = worker.pods.first();
        if let Some((pod, netns)) = pod.and_then(|pod| Some((pod, pod.netns()?))) {
            println!(
                "   nsenter --net={} ip addr            # pod {}",
                netns.path().display(),
                pod.label()
            );
        }
    }
    println!("\n   # everything of the lab: {}", lab.dir().display());
}
