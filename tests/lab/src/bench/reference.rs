//! The Go daemon's figures (amazon-vpc-cni-k8s v1.23.1) and what we owe.
//!
//! Measured separately, not in this run: on a machine of this kind (2 cores, Linux 6.18), with a simulated EC2 (100 ms a
//! call, attach 2 s, 8 ENIs of 30 addresses). Absolute times drift with the machine; compare ratios.

/// ADD and DEL at a number of pods.
#[derive(Debug)]
pub(super) struct GoLevel {
    pub(super) pods: usize,
    /// Milliseconds, p50 and p99.
    pub(super) add: (f64, f64),
    pub(super) floor_add: f64,
    pub(super) del: f64,
    /// CPU milliseconds of an ADD, where it was measured.
    pub(super) cpu: Option<f64>,
}

pub(super) const GO_LEVELS: [GoLevel; 4] = [
    level(1, (8.9, 11.7), 0.96, 6.5, Some(9.5)),
    level(30, (10.5, 16.4), 1.07, 7.4, None),
    level(110, (11.1, 14.4), 1.08, 6.8, None),
    level(250, (14.9, 19.7), 1.15, 7.2, Some(16.5)),
];

const fn level(pods: usize, add: (f64, f64), floor_add: f64, del: f64, cpu: Option<f64>) -> GoLevel {
    GoLevel {
        pods,
        add,
        floor_add,
        del,
        cpu,
    }
}

/// Milliseconds for a warm burst of 110 with the real agent, 8 at a time and all at once.
pub(super) const GO_BURSTS: (f64, f64) = (684.0, 910.0);
/// And of the floor, then.
pub(super) const GO_BURST_FLOORS: (f64, f64) = (77.0, 82.0);
/// VERSION and a static hello, milliseconds.
pub(super) const GO_VERSION: (f64, f64) = (4.1, 0.25);
/// EC2 and IMDS calls to grow to 110 pods with default targets.
pub(super) const GO_GROWTH_CALLS: (usize, usize) = (24, 714);
/// EC2 and IMDS calls at start.
pub(super) const GO_START_CALLS: (usize, usize) = (5, 24);
/// A cold burst of 110: seconds to the last pod with retries, and ADDs that failed at first.
pub(super) const GO_COLD: (f64, usize) = (23.8, 81);
/// Seconds from restart to serving with 110 pods: all reachable, and not.
pub(super) const GO_RESTART: (f64, f64) = (1.5, 30.6);
/// Resident MB: idle, 110 pods, after bursts.
pub(super) const GO_RESIDENT: (f64, f64, f64) = (53.0, 61.0, 69.0);

/// ADD in (floor + one fdatasync).
pub(super) const OWED_ADD: f64 = 1.25;
/// Times faster than the Go plugin, both in floors of their own run.
pub(super) const OWED_FASTER: f64 = 5.0;
/// DEL, milliseconds.
pub(super) const OWED_DEL: f64 = 1.5;
/// A warm burst of 110, milliseconds.
pub(super) const OWED_BURST: f64 = 180.0;
/// VERSION in hellos.
pub(super) const OWED_VERSION: f64 = 1.5;
/// EC2 and IMDS calls to grow to 110.
pub(super) const OWED_GROWTH_CALLS: (usize, usize) = (10, 20);
/// A cold burst, seconds: two attach times.
pub(super) const OWED_COLD: f64 = 4.0;
/// Restart to serving, milliseconds.
pub(super) const OWED_RESTART: f64 = 50.0;
/// Resident MiB.
pub(super) const OWED_RESIDENT: f64 = 10.0;

/// Figures in three modes: default targets, `WARM_IP_TARGET=5 MINIMUM_IP_TARGET=10`, prefixes. `-` was not published.
#[derive(Debug)]
pub(super) struct GoModes {
    pub(super) start: &'static str,
    pub(super) seconds: &'static str,
    pub(super) failed: &'static str,
    pub(super) calls: &'static str,
    pub(super) idle: &'static str,
    pub(super) shrink: &'static str,
}

pub(super) const GO_MODES: GoModes = GoModes {
    start: "5 + 24 / - / -",
    seconds: "23.8 s / 116 s / -, with retries",
    failed: "81 / 842 / -",
    calls: "24 + 714 / 37 + 489 / 7 + 114",
    idle: "1 + 3000 with 5 ENIs, 1 + 840 with one",
    shrink: "EC2 3 / 9 / 1",
};

/// EC2 calls of a node at rest.
pub(super) const DESCRIBES_AN_HOUR: usize = 4;

/// EC2 calls that growing to 110 pods may cost in a mode.
pub(super) fn owed_to_grow(mode: &str) -> usize {
    if mode == "prefixes" {
        2
    } else {
        OWED_GROWTH_CALLS.0
    }
}
