//! Tests of the whole: a small world around the pool, scenarios in it, and random interleavings.
#![allow(
    clippy::duration_suboptimal_units,
    reason = "seconds throughout, so that spans of time compare at a glance"
)]

mod budget;
mod cards;
mod claims;
mod conformance;
mod conformance_modes;
mod cordon;
mod drift;
mod ec2;
mod egress;
mod explain;
mod gather;
mod growth;
mod imported;
mod leaks;
mod model_check;
mod oracle;
mod places;
mod short_ways;
mod shrink;
mod simulated;
mod six;
mod six_drift;
mod six_words;
mod small;
mod sound;
mod subnets;
mod survival;
mod targets;
mod treatment;
mod upkeep;
mod verdicts;
mod world;
