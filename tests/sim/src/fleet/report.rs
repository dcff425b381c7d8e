//! Runs plan after plan, and writes what they came to.

use std::collections::BTreeMap;
use std::num::NonZero;
use std::path::Path;
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread::available_parallelism;
use std::time::Instant;

use super::measure::Row;
use super::scenario::Scenario;
use super::setting::{Setting, Side};
use super::{Plan, chart, table};

/// What to run.
#[derive(Debug)]
pub struct Wanted {
    /// Sizes of fleets.
    pub nodes: Vec<u32>,
    /// What happens to them.
    pub scenarios: Vec<Scenario>,
    /// More nodes than this do not churn.
    pub churn_up_to: u32,
    /// Of everything that is rolled.
    pub seed: u64,
}

impl Wanted {
    /// All plans, small fleets first.
    pub fn plans(&self) -> Vec<Plan> {
        let mut plans = Vec::new();
        for scenario in &self.scenarios {
            for nodes in &self.nodes {
                if *scenario == Scenario::Churn && *nodes > self.churn_up_to {
                    continue;
                }
                for setting in Setting::ALL {
                    for side in [Side::Ours, Side::Upstream] {
                        if side == Side::Ours || setting.upstream().is_some() {
                            plans.push(Plan {
                                nodes: *nodes,
                                scenario: *scenario,
                                setting: *setting,
                                side,
                                seed: self.seed,
                            });
                        }
                    }
                }
            }
        }
        plans
    }

    /// Runs everything on all processors, with a line for each run; the greatest last, as many at a time as there are
    /// processors.
    pub fn run(&self, tell: impl Fn(&str) + Sync) -> Vec<Row> {
        let plans = self.plans();
        let next = AtomicUsize::new(0);
        let rows = Mutex::new(BTreeMap::new());
        let work = || {
            while let Some((place, plan)) = {
                let place = next.fetch_add(1, Ordering::Relaxed);
                plans.get(place).map(|plan| (place, plan))
            } {
                let started = Instant::now();
                let Some(row) = plan.run() else { continue };
                let spent = started.elapsed().as_secs_f64();
                let broken = row.violation.as_ref();
                let broken = broken.map_or(String::new(), |what| format!("; VIOLATION {what}"));
                let (nodes, scenario, setting, side) = (plan.nodes, plan.scenario, plan.setting, plan.side);
                tell(&format!(
                    "{nodes} {scenario} {setting} {side}: {spent:.1} s; {}{broken}",
                    row.traffic
                ));
                if let Ok(mut rows) = rows.lock() {
                    rows.insert(place, row);
                }
            }
        };
        std::thread::scope(|scope| {
            for _ in 1..available_parallelism().map_or(1, NonZero::get) {
                scope.spawn(work);
            }
            work();
        });
        let rows = rows.into_inner().unwrap_or_default();
        rows.into_values().collect()
    }

    /// Writes table and chart into a folder.
    ///
    /// # Errors
    /// When they cannot be written.
    pub fn write(&self, rows: &[Row], folder: &Path) -> std::io::Result<()> {
        std::fs::create_dir_all(folder)?;
        let mut text = HOW_TO_READ.replace("SEED", &self.seed.to_string());
        for scenario in &self.scenarios {
            text.push_str(&["\n## ", &scenario.to_string(), "\n\n", about(*scenario), "\n\n"].concat());
            text.push_str(&table::table(*scenario, rows));
        }
        std::fs::write(folder.join("fleet.md"), text)?;
        std::fs::write(folder.join("fleet.svg"), chart::chart(rows))
    }
}

const fn about(scenario: Scenario) -> &'static str {
    match scenario {
        Scenario::ScaleOut => {
            "All nodes start within a minute, and thirty pods come to each at once a second after its start."
        }
        Scenario::Rolling => {
            "A tenth of the nodes is replaced every two minutes, and the thirty pods of each come to its replacement at once."
        }
        Scenario::Churn => {
            "Ten pods come to each node at once; then, for an hour, one every minute on average, six times in a hundred ten at once. They live for one to twenty minutes."
        }
    }
}

const HOW_TO_READ: &str = "# A fleet under one account's EC2 limits

Made by `make fleet` (`aws-cni-sim fleet`, seed SEED); the same command makes the same figures.

![time to the first pod and to all pods, calls a pod and addresses held a pod, by size of the fleet](fleet.svg)

Simulated: nodes of 8 ENIs with 30 addresses each (m5.4xlarge), all in one account and region, whose published request buckets they share: 100 calls at once and 5 a second for `CreateNetworkInterface`, `AssignPrivateIpAddresses`, `UnassignPrivateIpAddresses` and `ModifyNetworkInterfaceAttribute`, 100 and 10 for `CreateTags`, 50 and 5 for attach and detach, 100 and 20 for Describes, 50 and 10 for those with neither filter nor page ([EC2 API throttling](https://docs.aws.amazon.com/ec2/latest/devguide/ec2-api-throttling.html)). A call takes 60 ms to EC2 and 80 (Describe) or 300 ms back, an attached ENI appears after 1.5 s, each spread from half to ten times that.

- *ours* is the real `Pool::step` of ipamd with its own records, commits and retries, on a node without any fault. An ADD waits for up to 110 s.
- *upstream* is a model of what the Go daemon decides at the same setting (`tests/sim/src/upstream`): one thread, ticks of 5 s with one step of growth each, six calls an ENI, three attempts a call. An ADD fails at once where no address is free, and kubelet tries again after 13 to 15 s. Held against its measured figures by `tests/sim/tests/fleet.rs`. It is kind to it where kindness is simpler: IMDS shows an ENI as soon as the kernel does, subnets never fill.
- Times are from a node's start; p50 and p99 over nodes, for a pod's wait over pods. Calls include throttled ones and are counted from the start until two minutes after all pods run. Addresses held are those at the end, used ones included. Adaptive settings exist on our side alone.
- In fleets of 10,000 nodes three pods come to each node instead of thirty, and they do not churn. The whole table took 7.1 minutes of one processor: half a minute to two for a scale-out of 10,000 nodes at one setting, up to a minute for their replacement and for the churn of 1,000, less than 10 s for anything else.
- The buckets set the floor: with one mutating call of a kind for each node, 10,000 nodes take (10,000 − 100) / 5 s = 33 minutes, whoever decides. What is left to decide is how many kinds of call a node makes before its first pod, whether blocked pods or warm addresses come first, and how refusals are retried.
";
