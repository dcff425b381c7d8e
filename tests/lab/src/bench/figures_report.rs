//! The modes' table: a line for each figure, a column for each mode, and the Go daemon's figures beside them.

use std::time::Duration;

use super::figures::{Calls, Figures, Grown};
use super::reference as go;

/// A line.
fn line(what: &str, figures: &[Figures], figure: impl Fn(&Figures) -> String, theirs: &str) {
    print!("{what:<36}");
    for of_mode in figures {
        print!(" | {:>13}", figure(of_mode));
    }
    println!(" | {theirs}");
}

fn pair(calls: Calls) -> String {
    format!("{} + {}", calls.ec2, calls.imds)
}

/// Calls in an hour if it goes on as it did; only IMDS has timers shorter than the stretch.
fn hourly(calls: usize, stretch: Duration) -> usize {
    let stretch = usize::try_from(stretch.as_secs()).unwrap_or(usize::MAX).max(1);
    calls.saturating_mul(3600).div_ceil(stretch)
}

pub(super) fn print(figures: &[Figures], stretch: Duration) {
    println!("EC2 + IMDS calls by mode: m5.4xlarge, EC2 100 ms a call, attaching 2 s");
    line(
        "",
        figures,
        |of| of.mode.heading.to_owned(),
        "Go: default / WARM_IP 5/10 / prefixes",
    );
    line("at start", figures, |of| pair(of.start), go::GO_MODES.start);
    grown(
        "110 at once",
        figures,
        |of| &of.at_once,
        (go::GO_MODES.seconds, go::GO_MODES.failed),
    );
    grown("110 in turn", figures, |of| &of.in_turn, ("", ""));
    let of_stretch = format!("idle for {} s", stretch.as_secs());
    line(&of_stretch, figures, |of| pair(of.quiet), "");
    let an_hour = |of: &Figures| {
        let ec2 = hourly(of.quiet.ec2, stretch).max(go::DESCRIBES_AN_HOUR);
        format!("{ec2} + {}", hourly(of.quiet.imds, stretch))
    };
    line("idle, an hour *", figures, an_hour, go::GO_MODES.idle);
    line(
        "110 to 5 pods, in 120 s",
        figures,
        |of| pair(of.shrink),
        go::GO_MODES.shrink,
    );
    line("  addresses held then", figures, |of| of.left.to_string(), "");
    println!(
        "* IMDS: the stretch's rate. EC2: its timers are hourly, so not what the stretch shows but what the core does\n  \
         in a simulated day, {} Describes an hour (test idle_costs_four_describes_an_hour).",
        go::DESCRIBES_AN_HOUR
    );
    for of in figures {
        println!("{}: 110 at once: {}", of.mode.heading, of.at_once.by_action);
        println!("{}: 110 in turn: {}", of.mode.heading, of.in_turn.by_action);
        println!("{}: to 5 pods: {}", of.mode.heading, of.shrink_by_action);
    }
}

fn grown(what: &str, figures: &[Figures], of: impl Fn(&Figures) -> &Grown, theirs: (&str, &str)) {
    let seconds = |figures: &Figures| format!("{:.2} s", of(figures).took.as_secs_f64());
    line(&format!("{what}, to the last pod"), figures, seconds, theirs.0);
    line(
        "  ADDs that failed",
        figures,
        |figures| of(figures).failed.to_string(),
        theirs.1,
    );
    line(
        "  calls",
        figures,
        |figures| pair(of(figures).calls),
        go::GO_MODES.calls,
    );
    let verdict = |figures: &Figures| {
        let (calls, owed) = (of(figures).calls.ec2, go::owed_to_grow(figures.mode.heading));
        let word = if calls <= owed { "ok" } else { "SHORT" };
        format!("{word} (<= {owed})")
    };
    line("  EC2 calls owed", figures, verdict, "");
    line(
        "  addresses then",
        figures,
        |figures| of(figures).held.to_string(),
        "",
    );
}
