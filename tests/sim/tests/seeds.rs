//! A fixed budget of seeds, all profiles in turn.
//!
//! `SIM_SEEDS` sets how many; `make sim` runs the same and prints the table.
#![allow(
    clippy::expect_used,
    clippy::indexing_slicing,
    clippy::panic,
    clippy::print_stdout,
    clippy::unwrap_used,
    reason = "helpers of tests fail as tests do"
)]

use aws_cni_sim::profile::{Profile, Size};
use aws_cni_sim::seeds::{Plan, run, table};

#[test]
fn a_thousand_nodes_live_ten_days_without_a_broken_promise() {
    let count = std::env::var("SIM_SEEDS")
        .ok()
        .and_then(|count| count.parse().ok());
    let plan = Plan {
        first: 0,
        count: count.unwrap_or(1000),
        profiles: Profile::ALL.to_vec(),
        size: Size::default(),
        keep_going: true,
    };
    let report = run(&plan);
    let failures: Vec<String> = report
        .failures
        .iter()
        .map(|failure| format!("{}\n  {}", failure.violation, failure.command(plan.size)))
        .collect();
    assert!(
        failures.is_empty(),
        "{}\n{}",
        failures.join("\n"),
        table(&report.counts)
    );
    // A run in which nothing happens proves nothing.
    let counts = &report.counts;
    assert!(counts.days() >= plan.count * 10);
    assert!(counts.pods >= counts.runs * 10 * 200, "{}", table(counts));
    assert!(counts.granted * 2 > counts.pods, "{}", table(counts));
}
