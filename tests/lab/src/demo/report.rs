//! What the demo prints.
#![allow(clippy::print_stdout, reason = "what it prints is what it is for")]

use std::time::Instant;

use crate::lab::Lab;
use crate::node::Node;
use crate::pod::{CniOutcome, Pod};

/// Numbered steps with the time since the start.
pub(super) struct Progress {
    started: Instant,
}

impl Progress {
    pub(super) fn start() -> Self {
        Self {
            started: Instant::now(),
        }
    }

    pub(super) fn step(&self, what: &str) {
        println!("\n[{:5.1} s] {what}", self.started.elapsed().as_secs_f64());
    }

    pub(super) fn done(&self) {
        self.step("all of it holds");
    }
}

/// One line about a pod: its address, the ENI that owns it, and how long the runtime waited.
pub(super) fn added(node: &str, pod: &Pod, outcome: &CniOutcome, lab: &Lab) -> String {
    let Some(address) = outcome.address() else {
        return format!("  {node} {:16} no address after {:?}", pod.label(), outcome.took);
    };
    let owner = lab.cloud().model(|model| {
        let owns = |eni: &crate::vpc::Eni| eni.owned().owns(address.into());
        let found = model.enis().values().find(|eni| owns(eni));
        found.map(|eni| {
            format!(
                "{} device {}",
                eni.id,
                eni.attachment.as_ref().map_or(0, |a| a.device)
            )
        })
    });
    let owner = owner.unwrap_or_else(|| "an ENI nobody knows".to_owned());
    format!(
        "  {node} {:16} {address:<15} {owner}  {:.1?}",
        pod.label(),
        outcome.took
    )
}

/// How a human gets into a node.
pub fn node_hint(node: &Node) -> String {
    format!(
        "  node {} {} {}: nsenter --net={} ip addr",
        node.name(),
        node.instance(),
        node.address(),
        node.netns().path().display()
    )
}

pub(super) fn how_to_look_around(lab: &Lab) {
    println!("\nEverything is left running; Ctrl-C ends it. Look around from another terminal:");
    for node in lab.nodes() {
        let dirs = node.dirs();
        println!("{}", node_hint(node));
        println!(
            "    AWS_CNI_SOCKET={} {} status",
            dirs.socket().display(),
            dirs.bin.join("ipamd").display()
        );
        println!("    less {}", dirs.log.display());
    }
}
