//! The benchmark: the real plugin and daemon beside a process that makes the same kernel objects and nothing else.
//!
//! Everything that is compared is run in turn, so that a machine that drifts drifts for all. Nothing is asserted about
//! time: it fails only when a plugin fails or the daemon's count is wrong.
#![allow(clippy::print_stdout, reason = "what it prints is what it is for")]

mod bursts;
mod exec;
mod figures;
mod figures_report;
mod floor;
mod growth;
mod journal;
mod levels;
mod reference;
mod report;
mod stage;
mod statistics;
mod versions;

use std::io;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use crate::lab::LabError;
use crate::netns::NetnsError;
use crate::node::NodeError;
use crate::process::ProcessError;
use crate::varlink::CallError;

/// How the benchmark is run.
#[derive(Debug, Clone)]
pub struct BenchOptions {
    /// The product's binary.
    pub binary: PathBuf,
    /// `benches/floor.rs`, built.
    pub floor: PathBuf,
    /// A static hello, built with the same toolchain.
    pub hello: PathBuf,
    /// ADDs and DELs at each number of pods.
    pub runs: usize,
    /// Bursts of each kind.
    pub bursts: usize,
}

/// Why the benchmark ended without its figures.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum BenchError {
    /// The lab.
    #[error(transparent)]
    Lab(#[from] LabError),
    /// A node.
    #[error(transparent)]
    Node(#[from] NodeError),
    /// A namespace.
    #[error(transparent)]
    Netns(#[from] NetnsError),
    /// A daemon.
    #[error(transparent)]
    Process(#[from] ProcessError),
    /// The daemon did not answer.
    #[error(transparent)]
    Call(#[from] CallError),
    /// A file, a process or a socket.
    #[error("{doing}: {error}")]
    Io {
        /// What was being done.
        doing: String,
        /// Why it failed.
        error: io::Error,
    },
    /// A program said no.
    #[error("{0}")]
    Wrong(String),
}

fn io_error(doing: &str) -> impl FnOnce(io::Error) -> BenchError {
    let doing = doing.to_owned();
    move |error| BenchError::Io { doing, error }
}

/// Runs what each mode of the warm pool costs, and prints that table.
pub fn run_figures(options: &BenchOptions, quiet: Duration) -> Result<(), BenchError> {
    let _journal = journal::stand_in();
    figures::run(options, quiet)
}

/// Runs the benchmark and prints its table.
pub fn run(options: &BenchOptions) -> Result<(), BenchError> {
    let started = Instant::now();
    let _journal = journal::stand_in();
    let progress = |what: &str| eprintln!("[{:5.1} s] {what}", started.elapsed().as_secs_f64());
    progress("exec to exit of VERSION and a static hello");
    report::versions(&versions::measure(options)?);
    progress("a fresh node grows to 110 pods, attaching takes 2 s; then restarts");
    report::growth(&growth::measure(options)?);
    progress("a node with all its addresses: warm bursts of 110");
    let mut stage = stage::Stage::warm(options)?;
    report::bursts(&bursts::measure(&mut stage, options)?);
    report::level_head();
    for pods in [1, 30, 110, 250] {
        progress(&format!("ADD and DEL with {pods} pods present"));
        report::level(&levels::measure(&mut stage, pods, options.runs)?);
    }
    stage.finish()?;
    report::memory_of_warm_node(stage.resident()?);
    progress("done");
    Ok(())
}
