//! When nodes start and pods come to them: a function of the seed.

use std::fmt;
use std::str::FromStr;

use crate::dice::Dice;

/// What happens to a fleet.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Scenario {
    /// All nodes start within a minute, and each gets thirty pods at once.
    ScaleOut,
    /// A tenth of the nodes is replaced every two minutes; the pods of each come to its replacement at once. A node that
    /// goes costs no calls: EC2 deletes its ENIs with it.
    Rolling,
    /// Pods come and go for an hour, ten at once now and then.
    Churn,
}

impl Scenario {
    /// All of them.
    pub const ALL: &[Self] = &[Self::ScaleOut, Self::Rolling, Self::Churn];

    /// How long it lasts at least.
    pub const fn lasts(self) -> u64 {
        match self {
            Self::ScaleOut => 60_000,
            Self::Rolling => 10 * WAVE,
            Self::Churn => 3_660_000,
        }
    }

    /// When a node starts.
    pub fn start(self, node: u32, dice: &mut Dice) -> u64 {
        match self {
            Self::ScaleOut | Self::Churn => dice.below(60_000),
            Self::Rolling => u64::from(node % 10) * WAVE + dice.below(10_000),
        }
    }

    /// The pods of a node of so many: when after its start they come, and how long they live. Those that come at once are
    /// first; in a great fleet they are fewer, since it is the waiting pods that take a simulation's time.
    pub fn pods(self, nodes: u32, dice: &mut Dice) -> (usize, Vec<(u64, u64)>) {
        match self {
            Self::ScaleOut | Self::Rolling => {
                let count = if nodes > GREAT { 3 } else { 30 };
                let pods = (0..count).map(|_| (BOOT + dice.below(200), FOREVER));
                (count, pods.collect())
            }
            Self::Churn => {
                let first = (0..10).map(|_| (BOOT + dice.below(200), dice.between(600_000, 3_600_000)));
                let mut pods: Vec<(u64, u64)> = first.collect();
                let mut at = BOOT;
                loop {
                    at += dice.between(10_000, 110_000);
                    if at > 3_600_000 {
                        return (10, pods);
                    }
                    let count = if dice.chance(60) { 10 } else { 1 };
                    pods.extend((0..count).map(|_| (at, dice.between(60_000, 1_200_000))));
                }
            }
        }
    }
}

/// A fleet of more nodes is great.
const GREAT: u32 = 1000;
/// From one wave of replacements to the next.
const WAVE: u64 = 120_000;
/// From a node's start to its first pod.
const BOOT: u64 = 1000;
/// Longer than any run.
const FOREVER: u64 = 1_000_000_000;

impl fmt::Display for Scenario {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::ScaleOut => "scale-out",
            Self::Rolling => "rolling",
            Self::Churn => "churn",
        })
    }
}

impl FromStr for Scenario {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let known = Self::ALL.iter().find(|known| known.to_string() == text);
        known
            .copied()
            .ok_or_else(|| format!("{text:?} is none of scale-out, rolling and churn"))
    }
}
