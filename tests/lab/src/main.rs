//! `aws-cni-lab`: a VPC in a box to look around in, and the demo.
#![allow(clippy::print_stdout, reason = "what it prints is what it is for")]

use std::os::unix::process::CommandExt;
use std::path::PathBuf;
use std::process::{Command, ExitCode};
use std::thread;
use std::time::Duration;

use argh::FromArgs;
use aws_cni_lab::bench::{self, BenchError, BenchOptions};
use aws_cni_lab::demo::{self, DemoOptions};
use aws_cni_lab::faults::Preset;
use aws_cni_lab::lab::{Lab, LabError};
use aws_cni_lab::process::Daemon;

/// A VPC in a box: EC2, IMDS, a router and nodes in network namespaces.
#[derive(FromArgs)]
struct Arguments {
    #[argh(subcommand)]
    command: Subcommand,
}

#[derive(FromArgs)]
#[argh(subcommand)]
enum Subcommand {
    Up(Up),
    Demo(Demo),
    Bench(Bench),
}

/// Build a lab and keep it until Ctrl-C.
#[derive(FromArgs)]
#[argh(subcommand, name = "up")]
struct Up {
    /// a node as NAME:TYPE, such as a:t3.medium; may be repeated
    #[argh(option)]
    node: Vec<String>,
    /// seconds for attaching and EC2's throttling instead of instant answers
    #[argh(switch)]
    realistic: bool,
    /// a shell command to run in every node
    #[argh(option)]
    run: Option<String>,
}

/// Pods on two nodes through the real daemon and plugin, from first address to empty.
#[derive(FromArgs)]
#[argh(subcommand, name = "demo")]
struct Demo {
    /// the aws-cni binary; without it the one built beside this program
    #[argh(option)]
    binary: Option<PathBuf>,
    /// pods on each node
    #[argh(option, default = "12")]
    pods: usize,
    /// leave everything running at the end, until Ctrl-C
    #[argh(switch)]
    keep: bool,
}

/// ADD, DEL, bursts, growth and restarts beside the kernel floor.
#[derive(FromArgs)]
#[argh(subcommand, name = "bench")]
struct Bench {
    /// the aws-cni binary, a static release build
    #[argh(option)]
    binary: PathBuf,
    /// benches/floor.rs, built
    #[argh(option)]
    floor: PathBuf,
    /// a static hello
    #[argh(option)]
    hello: PathBuf,
    /// runs at each number of pods
    #[argh(option, default = "200")]
    runs: usize,
    /// warm bursts of each kind
    #[argh(option, default = "9")]
    bursts: usize,
    /// instead: calls and seconds of growth, rest and shrinking in each mode of the warm pool
    #[argh(switch)]
    modes: bool,
    /// seconds of rest to count in, with --modes
    #[argh(option, default = "300")]
    quiet: u64,
}

fn main() -> ExitCode {
    let arguments: Arguments = argh::from_env();
    if !nix::unistd::geteuid().is_root() {
        return become_root_of_a_user_namespace();
    }
    let done = match arguments.command {
        Subcommand::Up(up) => run_up(&up).map_err(|error| error.to_string()),
        Subcommand::Demo(demo) => run_demo(demo),
        Subcommand::Bench(bench) => run_bench(bench).map_err(|error| error.to_string()),
    };
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("aws-cni-lab: {error}");
            ExitCode::FAILURE
        }
    }
}

/// Executes itself again as root of a user namespace of its own; see [`aws_cni_lab::netns`].
fn become_root_of_a_user_namespace() -> ExitCode {
    let Ok(own) = std::env::current_exe() else {
        eprintln!("aws-cni-lab: not root, and the own executable can't be found to try a user namespace");
        return ExitCode::FAILURE;
    };
    let error = Command::new("unshare")
        .args(["--user", "--map-root-user", "--net", "--mount", "--"])
        .arg(own)
        .args(std::env::args_os().skip(1))
        .exec();
    eprintln!("aws-cni-lab: not root, and unshare (util-linux) can't be run: {error}");
    ExitCode::FAILURE
}

fn run_bench(bench: Bench) -> Result<(), BenchError> {
    let options = BenchOptions {
        binary: bench.binary,
        floor: bench.floor,
        hello: bench.hello,
        runs: bench.runs,
        bursts: bench.bursts,
    };
    if bench.modes {
        return bench::run_figures(&options, Duration::from_secs(bench.quiet));
    }
    bench::run(&options)
}

fn run_demo(options: Demo) -> Result<(), String> {
    let binary = options.binary.map_or_else(built_beside, Ok)?;
    // The nodes have links to it, which must lead there from any directory.
    let binary = binary
        .canonicalize()
        .map_err(|error| format!("{}: {error}; build it: cargo build --bins", binary.display()))?;
    let options = DemoOptions {
        binary,
        pods: options.pods,
        keep: options.keep,
    };
    demo::run(&options).map_err(|error| error.to_string())
}

fn built_beside() -> Result<PathBuf, String> {
    let own =
        std::env::current_exe().map_err(|error| format!("the own executable can't be found: {error}"))?;
    Ok(own.with_file_name("aws-cni"))
}

fn run_up(up: &Up) -> Result<(), LabError> {
    let preset = if up.realistic {
        Preset::Realistic
    } else {
        Preset::Instant
    };
    let named = |text: &str| match text.split_once(':') {
        Some((name, kind)) => (name.to_owned(), kind.to_owned()),
        None => (text.to_owned(), "t3.medium".to_owned()),
    };
    let nodes = if up.node.is_empty() {
        vec!["a".to_owned(), "b".to_owned()]
    } else {
        up.node.clone()
    };
    let builder = nodes
        .iter()
        .map(|text| named(text))
        .fold(Lab::builder().preset(preset), |builder, (name, kind)| {
            builder.node(&name, &kind)
        });
    let lab = builder.build()?;
    let mut daemons: Vec<Daemon> = Vec::new();
    for node in lab.nodes() {
        if let Some(script) = &up.run {
            let spec = node.daemon_spec("/bin/sh").arg("-c").arg(script);
            match node.start(spec) {
                Ok(daemon) => daemons.push(daemon),
                Err(error) => eprintln!("node {}: {error}", node.name()),
            }
        }
        println!("  {}", demo::node_hint(node));
    }
    println!(
        "EC2: http://{}  IMDS: http://169.254.169.254  directory: {}",
        lab.fabric().ec2_endpoint(),
        lab.dir().display()
    );
    println!("ready; Ctrl-C ends it");
    loop {
        thread::park();
    }
}
