//! What each mode of the warm pool costs EC2 and IMDS, and how fast it grows: the Go daemon's published figures again.
//!
//! EC2 takes 100 ms a call and attaching 2 s, as when those were taken. Growth is measured in turn; what is counted
//! while nothing happens is counted on all nodes side by side.

use std::time::{Duration, Instant};

use super::bursts::{SIZE, together};
use super::figures_report as report;
use super::stage::{Added, Sandbox, Stage, count, sandboxes};
use super::{BenchError, BenchOptions, io_error};
use crate::calls::Service;
use crate::faults::{Latency, Scope};
use crate::lab::Lab;

/// Pods that stay when the others go.
const FEW: usize = 5;
/// After they have gone, as in the Go daemon's figure.
const SHRINKING: Duration = Duration::from_mins(2);
/// Growth is followed by a Describe a minute later, which is not the quiet after it.
const AFTERMATH: Duration = Duration::from_secs(90);

/// Settings under one heading.
#[derive(Debug)]
pub(super) struct Mode {
    pub(super) heading: &'static str,
    environment: &'static [(&'static str, &'static str)],
    /// What the kubelet's file says, if there is one.
    kubelet: Option<&'static str>,
}

const MODES: [Mode; 4] = [
    Mode {
        heading: "default",
        environment: &[],
        kubelet: None,
    },
    Mode {
        heading: "+ kubelet 110",
        environment: &[],
        kubelet: Some(r#"{"kind": "KubeletConfiguration", "maxPods": 110}"#),
    },
    Mode {
        heading: "WARM_IP 5/10",
        environment: &[("WARM_IP_TARGET", "5"), ("MINIMUM_IP_TARGET", "10")],
        kubelet: None,
    },
    Mode {
        heading: "prefixes",
        environment: &[("ENABLE_PREFIX_DELEGATION", "true"), ("WARM_PREFIX_TARGET", "1")],
        kubelet: None,
    },
];

/// EC2 and IMDS calls.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Calls {
    pub(super) ec2: usize,
    pub(super) imds: usize,
}

/// From no pods to 110 and at rest.
#[derive(Debug)]
pub(super) struct Grown {
    pub(super) took: Duration,
    pub(super) failed: usize,
    pub(super) calls: Calls,
    pub(super) by_action: String,
    /// Addresses the node then has.
    pub(super) held: usize,
}

/// All figures of a mode.
#[derive(Debug)]
pub(super) struct Figures {
    pub(super) mode: &'static Mode,
    pub(super) start: Calls,
    pub(super) at_once: Grown,
    pub(super) in_turn: Grown,
    pub(super) quiet: Calls,
    pub(super) shrink: Calls,
    pub(super) shrink_by_action: String,
    /// Addresses held afterwards.
    pub(super) left: usize,
}

/// Measures every mode and prints the table.
pub(super) fn run(options: &BenchOptions, quiet: Duration) -> Result<(), BenchError> {
    let started = Instant::now();
    let progress = |what: &str| eprintln!("[{:5.1} s] {what}", started.elapsed().as_secs_f64());
    let mut grown = Vec::new();
    for mode in &MODES {
        progress(&format!("{}: 110 pods at once", mode.heading));
        let mut node = Grower::new(mode, options)?;
        let at_once = node.grow(SIZE)?;
        progress(&format!("{}: 110 pods one after another", mode.heading));
        let in_turn = Grower::new(mode, options)?.grow(1)?;
        grown.push((node, at_once, in_turn));
    }
    progress("waiting for what follows on growth");
    std::thread::sleep(AFTERMATH);
    progress(&format!("counting for {} s of quiet", quiet.as_secs()));
    let marks: Vec<u64> = grown.iter().map(|(node, ..)| node.mark()).collect();
    std::thread::sleep(quiet);
    let counted: Vec<Calls> = grown
        .iter()
        .zip(&marks)
        .map(|((node, ..), mark)| node.calls(*mark))
        .collect();
    progress("105 pods go");
    let mut marks = Vec::new();
    for (node, ..) in &mut grown {
        marks.push((node.mark(), node.leave(FEW)?));
    }
    let mut figures = Vec::new();
    for (((node, at_once, in_turn), quiet), (mark, left)) in grown.into_iter().zip(counted).zip(marks) {
        std::thread::sleep((left + SHRINKING).saturating_duration_since(Instant::now()));
        figures.push(Figures {
            mode: node.mode,
            start: node.start,
            at_once,
            in_turn,
            quiet,
            shrink: node.calls(mark),
            shrink_by_action: node.by_action(mark),
            left: node.held()?,
        });
        node.stage.check(FEW)?;
    }
    report::print(&figures, quiet);
    progress("done");
    Ok(())
}

/// A node in one mode.
#[derive(Debug)]
struct Grower {
    mode: &'static Mode,
    stage: Stage,
    start: Calls,
    pods: Vec<(Sandbox, Added)>,
}

impl Grower {
    fn new(mode: &'static Mode, options: &BenchOptions) -> Result<Self, BenchError> {
        let environment = mode.environment.to_vec();
        let stage = Stage::prepared(Lab::builder(), "m5.4xlarge", environment, options, |lab, node| {
            lab.cloud().faults().timing(&Scope::All, |timing| {
                timing.ec2 = Latency::millis(100);
                timing.attach_link = Latency::secs(2);
                timing.attach_status = Latency::Zero;
            });
            let Some(text) = mode.kubelet else { return Ok(()) };
            std::fs::write(node.dirs().kubelet_config(), text).map_err(io_error("writing kubelet's file"))
        })?;
        let mut new = Self {
            mode,
            stage,
            start: Calls::default(),
            pods: Vec::new(),
        };
        new.rest()?;
        new.start = new.calls(0);
        Ok(new)
    }

    fn grow(&mut self, at_once: usize) -> Result<Grown, BenchError> {
        let mark = self.mark();
        let new = sandboxes("cold", SIZE)?;
        let stage = &self.stage;
        let node = stage.node.netns().clone();
        let (took, added) = node.run(|| together(&new, at_once, |_, sandbox| Ok(stage.add(sandbox))))??;
        let mut failed = 0_usize;
        for (sandbox, added) in new.into_iter().zip(added) {
            match added {
                Ok(added) => self.pods.push((sandbox, added)),
                Err(error) => {
                    eprintln!("{}: {error}", self.mode.heading);
                    failed = failed.saturating_add(1);
                }
            }
        }
        self.rest()?;
        self.stage.check(self.pods.len())?;
        Ok(Grown {
            took,
            failed,
            calls: self.calls(mark),
            by_action: self.by_action(mark),
            held: self.held()?,
        })
    }

    /// All but so many pods go. Says when the last one had gone.
    fn leave(&mut self, stay: usize) -> Result<Instant, BenchError> {
        let go = self.pods.split_off(stay.min(self.pods.len()));
        let node = self.stage.node.netns().clone();
        let del = |_, (sandbox, added): &(Sandbox, Added)| self.stage.del(sandbox, added);
        node.run(|| together(&go, 8, del))??;
        Ok(Instant::now())
    }

    /// Nothing is on its way, nobody waits and every ENI would go with the instance, twice with a while in between.
    fn rest(&self) -> Result<(), BenchError> {
        let tidy = || {
            self.stage.lab.cloud().model(|model| {
                let with_it = |at: &crate::vpc::types::Attachment| at.delete_on_termination;
                model
                    .enis()
                    .values()
                    .all(|eni| eni.attachment.as_ref().is_some_and(with_it))
            })
        };
        for _ in 0..2 {
            self.stage.wait("the pool to rest", |status| {
                count(status, "coming") == 0 && count(status, "waiting") == 0 && tidy()
            })?;
            std::thread::sleep(Duration::from_secs(1));
        }
        Ok(())
    }

    fn held(&self) -> Result<usize, BenchError> {
        let status = self.stage.status()?;
        Ok(["free", "assigned", "cooling"]
            .iter()
            .map(|what| count(&status, what))
            .sum())
    }

    fn mark(&self) -> u64 {
        self.stage.lab.cloud().calls().mark()
    }

    fn calls(&self, mark: u64) -> Calls {
        let counted = |service| {
            let counters = self.stage.lab.cloud().calls().counters(service, mark);
            counters.values().sum::<usize>()
        };
        Calls {
            ec2: counted(Service::Ec2),
            imds: counted(Service::Imds),
        }
    }

    fn by_action(&self, mark: u64) -> String {
        let counters = self.stage.lab.cloud().calls().counters(Service::Ec2, mark);
        let each = counters.iter().map(|(action, count)| format!("{count} {action}"));
        each.collect::<Vec<_>>().join(", ")
    }
}
