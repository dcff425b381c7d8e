//! Many seeds on all processors, and the table of what was run.

use std::fmt::Write as _;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use crate::count::Counts;
use crate::profile::{Profile, Size, script};
use crate::truth::Violation;
use crate::world;

/// What to run.
#[derive(Debug, Clone)]
pub struct Plan {
    /// The first seed.
    pub first: u64,
    /// How many seeds, shared among the profiles.
    pub count: u64,
    /// Which profiles, in turn.
    pub profiles: Vec<Profile>,
    /// How long and busy each is.
    pub size: Size,
    /// Whether to go on after a violation.
    pub keep_going: bool,
}

/// A seed that broke a promise.
#[derive(Debug, Clone)]
pub struct Failure {
    /// The seed.
    pub seed: u64,
    /// Its profile.
    pub profile: Profile,
    /// What was broken.
    pub violation: Violation,
}

/// What many seeds came to.
#[derive(Debug, Default)]
pub struct Report {
    /// Numbers of all.
    pub counts: Counts,
    /// Those that failed, in the order of seeds.
    pub failures: Vec<Failure>,
}

impl Failure {
    /// The command that shows it again.
    pub fn command(&self, size: Size) -> String {
        let usual = Size::default();
        let mut command = format!(
            "cargo run -p aws-cni-sim -- run --seed {} --profile {}",
            self.seed, self.profile
        );
        if size.days != usual.days {
            write!(command, " --days {}", size.days).unwrap_or_default();
        }
        if size.pods != usual.pods {
            write!(command, " --pods {}", size.pods).unwrap_or_default();
        }
        command
    }
}

/// The profile of a seed.
pub fn profile_of(plan: &Plan, seed: u64) -> Profile {
    let index = usize::try_from(seed)
        .unwrap_or(0)
        .checked_rem(plan.profiles.len());
    index
        .and_then(|index| plan.profiles.get(index))
        .copied()
        .unwrap_or(Profile::Storm)
}

/// Runs all seeds.
pub fn run(plan: &Plan) -> Report {
    let next = AtomicU64::new(plan.first);
    let stop = AtomicBool::new(false);
    let report = Mutex::new(Report::default());
    let end = plan.first.saturating_add(plan.count);
    let work = || {
        while !stop.load(Ordering::Relaxed) {
            let seed = next.fetch_add(1, Ordering::Relaxed);
            if seed >= end {
                return;
            }
            let profile = profile_of(plan, seed);
            let outcome = world::run(&script(profile, seed, plan.size), seed, false);
            let Ok(mut report) = report.lock() else { return };
            report.counts.add(&outcome.counts);
            if let Some(violation) = outcome.violation {
                report.failures.push(Failure {
                    seed,
                    profile,
                    violation,
                });
                if !plan.keep_going {
                    stop.store(true, Ordering::Relaxed);
                }
            }
        }
    };
    let workers = std::thread::available_parallelism().map_or(2, std::num::NonZero::get);
    std::thread::scope(|scope| {
        for _ in 1..workers {
            scope.spawn(work);
        }
        work();
    });
    let mut report = report.into_inner().unwrap_or_default();
    report.failures.sort_by_key(|failure| failure.seed);
    report
}

fn row(out: &mut String, name: &str, value: impl std::fmt::Display) {
    // Writing to a String cannot fail.
    writeln!(out, "  {name:<44} {value:>14}").unwrap_or_default();
}

/// The table of what was run.
pub fn table(counts: &Counts) -> String {
    let mut out = String::new();
    row(&mut out, "seeds", counts.runs);
    row(&mut out, "node-days", counts.days());
    row(&mut out, "pods", counts.pods);
    row(&mut out, "ADDs", counts.adds);
    row(&mut out, "pods that got an address", counts.granted);
    for (kind, count) in &counts.refused {
        row(&mut out, &format!("ADDs refused: {kind}"), count);
    }
    row(&mut out, "DELs", counts.dels);
    row(&mut out, "events", counts.events);
    row(&mut out, "commits", counts.commits);
    row(&mut out, "daemon starts", counts.starts);
    row(&mut out, "daemon deaths", counts.deaths);
    for (which, count) in &counts.calls {
        row(&mut out, &format!("EC2 calls: {which}"), count);
    }
    for (kind, count) in &counts.faults {
        row(&mut out, &format!("faults: {kind}"), count);
    }
    for (feature, count) in &counts.features {
        row(&mut out, feature, count);
    }
    for (kind, count) in &counts.alarms {
        row(&mut out, &format!("alarms: {kind}"), count);
    }
    for (oracle, count) in &counts.violations {
        row(&mut out, &format!("VIOLATIONS: {oracle}"), count);
    }
    row(&mut out, "violations", counts.violations.values().sum::<u64>());
    out
}
