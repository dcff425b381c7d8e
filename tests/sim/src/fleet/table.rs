//! The table of a fleet's runs, in Markdown.

use super::measure::Row;
use super::scenario::Scenario;

/// Seconds, as short as they can be read.
pub fn seconds(ms: u64) -> String {
    if ms < 10_000 {
        format!("{}.{}", ms / 1000, ms % 1000 / 100)
    } else {
        format!("{}", (ms + 500) / 1000)
    }
}

/// A quotient with two digits behind the point.
pub fn quotient(of: u64, by: u64) -> String {
    let hundredths = (of * 100).checked_div(by).unwrap_or(0);
    format!("{}.{:02}", hundredths / 100, hundredths % 100)
}

/// One scenario's rows.
pub fn table(scenario: Scenario, rows: &[Row]) -> String {
    let mut text = "| nodes | setting | | first pod p50 / p99 s | all pods p50 / p99 s | a pod's wait p50 / p99 s | failed ADDs a pod | EC2 calls a pod | throttled calls (a node) | addresses held a pod |\n|---|---|---|---|---|---|---|---|---|---|\n".to_owned();
    for row in rows.iter().filter(|row| row.plan.scenario == scenario) {
        let plan = row.plan;
        let incomplete = if row.incomplete > 0 {
            format!(" ({} nodes never)", row.incomplete)
        } else {
            String::new()
        };
        let line = format!(
            "| {} | {} | {} | {} / {} | {} / {}{incomplete} | {} / {} | {} | {} | {} ({}) | {} |\n",
            plan.nodes,
            plan.setting,
            plan.side,
            seconds(row.first.middle),
            seconds(row.first.tail),
            seconds(row.all.middle),
            seconds(row.all.tail),
            seconds(row.pod.middle),
            seconds(row.pod.tail),
            quotient(row.failed, row.pods),
            quotient(row.calls, row.pods),
            row.throttled,
            quotient(row.throttled, u64::from(plan.nodes)),
            quotient(row.held, row.running),
        );
        text.push_str(&line);
    }
    text
}
