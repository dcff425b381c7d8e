//! What is measured of a node, and what a fleet comes to.

use super::Plan;
use super::limits::Limits;

/// One node's times, in milliseconds.
#[derive(Debug, Default)]
pub struct Measure {
    started: u64,
    at_once: usize,
    came: Vec<u64>,
    left: usize,
    first: Option<u64>,
    all: Option<u64>,
}

impl Measure {
    /// A node starts; so many of its pods come at once.
    pub fn new(started: u64, at_once: usize) -> Self {
        Self {
            started,
            at_once,
            left: at_once,
            ..Self::default()
        }
    }

    /// A pod came; the numbers begin at 0.
    pub fn came(&mut self, now: u64) -> u32 {
        self.came.push(now);
        u32::try_from(self.came.len() - 1).unwrap_or(u32::MAX)
    }

    /// A pod runs: how long it waited.
    pub fn runs(&mut self, pod: u32, now: u64) -> u64 {
        let since = now - self.started;
        self.first.get_or_insert(since);
        if (pod as usize) < self.at_once {
            self.left = self.left.saturating_sub(1);
            if self.left == 0 {
                self.all.get_or_insert(since);
            }
        }
        now - self.came.get(pod as usize).copied().unwrap_or(now)
    }

    /// Whether all pods that came at once run.
    pub const fn is_complete(&self) -> bool {
        self.all.is_some()
    }
}

/// The middle and the 99th of a hundred.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Spread {
    /// p50.
    pub middle: u64,
    /// p99.
    pub tail: u64,
}

impl Spread {
    /// Of these.
    pub fn of(mut values: Vec<u64>) -> Self {
        values.sort_unstable();
        let at = |percent: usize| {
            let place = (values.len() * percent).div_ceil(100).saturating_sub(1);
            values.get(place).copied().unwrap_or(0)
        };
        Self {
            middle: at(50),
            tail: at(99),
        }
    }
}

/// What a fleet came to.
#[derive(Debug, Clone, PartialEq)]
pub struct Row {
    /// What was run.
    pub plan: Plan,
    /// From a node's start to its first pod, over nodes.
    pub first: Spread,
    /// From a node's start until all pods run that came at once, over nodes.
    pub all: Spread,
    /// How long a pod waits, over pods.
    pub pod: Spread,
    /// Pods that ran.
    pub pods: u64,
    /// EC2 calls, refused ones included.
    pub calls: u64,
    /// Those that change something.
    pub changes: u64,
    /// Calls that EC2 refused for being too many.
    pub throttled: u64,
    /// ADDs that failed.
    pub failed: u64,
    /// Addresses held at the end.
    pub held: u64,
    /// Pods that run at the end.
    pub running: u64,
    /// Nodes without all of their first pods at the end.
    pub incomplete: usize,
    /// The first broken promise.
    pub violation: Option<String>,
    /// Calls and refusals of each action, in words.
    pub traffic: String,
}

impl Row {
    /// The row of a run that ended at some time.
    pub fn new(plan: Plan, now: u64, nodes: &[Measure], waits: Vec<u64>, limits: &Limits) -> Self {
        let since = |node: &Measure| now.saturating_sub(node.started);
        let first = nodes.iter().map(|node| node.first.unwrap_or(since(node)));
        let all = nodes.iter().map(|node| node.all.unwrap_or(since(node)));
        let traffic = limits.traffic();
        let words = traffic
            .iter()
            .map(|(api, traffic)| format!("{api:?} {}-{}", traffic.calls, traffic.throttled));
        let changing = traffic.iter().filter(|(api, _)| !api.looks());
        Self {
            plan,
            first: Spread::of(first.collect()),
            all: Spread::of(all.collect()),
            pods: waits.len() as u64,
            pod: Spread::of(waits),
            calls: traffic.values().map(|traffic| traffic.calls).sum(),
            changes: changing.map(|(_, traffic)| traffic.calls).sum(),
            throttled: traffic.values().map(|traffic| traffic.throttled).sum(),
            failed: 0,
            held: 0,
            running: 0,
            incomplete: nodes.iter().filter(|node| !node.is_complete()).count(),
            violation: None,
            traffic: words.collect::<Vec<_>>().join(", "),
        }
    }
}
