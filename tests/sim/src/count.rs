//! What a run counts.

use std::collections::BTreeMap;

use crate::script::Which;

/// Numbers of a run, or of many.
#[derive(Debug, Default, Clone)]
pub struct Counts {
    /// Runs.
    pub runs: u64,
    /// Simulated milliseconds.
    pub simulated: u64,
    /// Pods that came.
    pub pods: u64,
    /// ADD requests.
    pub adds: u64,
    /// Pods that got an address.
    pub granted: u64,
    /// DELs that were settled.
    pub dels: u64,
    /// Events the pool took.
    pub events: u64,
    /// Batches written.
    pub commits: u64,
    /// Daemon starts.
    pub starts: u64,
    /// Daemon deaths.
    pub deaths: u64,
    /// Refused ADDs by kind.
    pub refused: BTreeMap<String, u64>,
    /// EC2 calls by kind.
    pub calls: BTreeMap<Which, u64>,
    /// Faults by kind.
    pub faults: BTreeMap<String, u64>,
    /// Features of the pool that were used.
    pub features: BTreeMap<String, u64>,
    /// Alarms by kind.
    pub alarms: BTreeMap<&'static str, u64>,
    /// Violations by oracle.
    pub violations: BTreeMap<&'static str, u64>,
}

fn merge<K: Ord + Clone>(into: &mut BTreeMap<K, u64>, from: &BTreeMap<K, u64>) {
    for (key, count) in from {
        *into.entry(key.clone()).or_default() += count;
    }
}

impl Counts {
    /// A feature was used.
    pub fn met(&mut self, feature: &str) {
        *self.features.entry(feature.to_owned()).or_default() += 1;
    }

    /// Adds another run's numbers.
    pub fn add(&mut self, other: &Self) {
        self.runs += other.runs;
        self.simulated += other.simulated;
        self.pods += other.pods;
        self.adds += other.adds;
        self.granted += other.granted;
        self.dels += other.dels;
        self.events += other.events;
        self.commits += other.commits;
        self.starts += other.starts;
        self.deaths += other.deaths;
        merge(&mut self.refused, &other.refused);
        merge(&mut self.calls, &other.calls);
        merge(&mut self.faults, &other.faults);
        merge(&mut self.features, &other.features);
        merge(&mut self.alarms, &other.alarms);
        merge(&mut self.violations, &other.violations);
    }

    /// Simulated days.
    pub fn days(&self) -> u64 {
        self.simulated / 86_400_000
    }
}
