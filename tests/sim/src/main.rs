//! `aws-cni-sim`: runs seeds and scripts, and makes failing ones small.
#![allow(clippy::print_stdout, reason = "what it finds is for people to read")]

use std::path::Path;
use std::process::ExitCode;
use std::time::Instant;

use argh::FromArgs;
use aws_cni_sim::fleet::report::Wanted;
use aws_cni_sim::fleet::scenario::Scenario as FleetScenario;
use aws_cni_sim::profile::{Profile, Size, script};
use aws_cni_sim::script::Script;
use aws_cni_sim::{seeds, shrink, world};

/// Runs the real pool in virtual time against models of EC2, IMDS, the kernel and the disk.
#[derive(FromArgs)]
struct Arguments {
    #[argh(subcommand)]
    command: Command,
}

#[derive(FromArgs)]
#[argh(subcommand)]
enum Command {
    Run(One),
    Shrink(Shrink),
    Seeds(Seeds),
    Long(Long),
    Scenario(Scenario),
    Fleet(Fleet),
}

/// Run one seed.
#[derive(FromArgs)]
#[argh(subcommand, name = "run")]
struct One {
    /// the seed
    #[argh(option)]
    seed: u64,
    /// the profile: calm, cloud, lies, crowd, kernel, deaths, hands, modes, guests, fixed, six or storm
    #[argh(option)]
    profile: Profile,
    /// days (10)
    #[argh(option, default = "Size::default().days")]
    days: u64,
    /// pods a day (220)
    #[argh(option, default = "Size::default().pods")]
    pods: u64,
    /// print everything that happens
    #[argh(switch)]
    trace: bool,
    /// print the script instead of running it
    #[argh(switch)]
    script: bool,
}

/// Find the smallest script that breaks the same promise as a seed.
#[derive(FromArgs)]
#[argh(subcommand, name = "shrink")]
struct Shrink {
    /// the seed
    #[argh(option)]
    seed: u64,
    /// the profile
    #[argh(option)]
    profile: Profile,
    /// days (10)
    #[argh(option, default = "Size::default().days")]
    days: u64,
    /// pods a day (220)
    #[argh(option, default = "Size::default().pods")]
    pods: u64,
}

/// Run many seeds and print the table.
#[derive(FromArgs)]
#[argh(subcommand, name = "seeds")]
struct Seeds {
    /// the first seed (0)
    #[argh(option, default = "0")]
    first: u64,
    /// how many (1000)
    #[argh(option, default = "1000")]
    count: u64,
    /// only this profile; else all in turn
    #[argh(option)]
    profile: Option<Profile>,
    /// days each (10)
    #[argh(option, default = "Size::default().days")]
    days: u64,
    /// pods a day (220)
    #[argh(option, default = "Size::default().pods")]
    pods: u64,
    /// go on after a violation
    #[argh(switch)]
    keep_going: bool,
}

/// Run so many node-days, a batch at a time; started again with the same file, it goes on where it was.
#[derive(FromArgs)]
#[argh(subcommand, name = "long")]
struct Long {
    /// node-days in all (1000000)
    #[argh(option, default = "1_000_000")]
    days: u64,
    /// where to remember how far it has come
    #[argh(option)]
    progress: String,
}

/// Run a script from a file and print what happens.
#[derive(FromArgs)]
#[argh(subcommand, name = "scenario")]
struct Scenario {
    /// the file
    #[argh(positional)]
    file: String,
    /// the seed of delays (0)
    #[argh(option, default = "0")]
    seed: u64,
}

/// Run fleets that share one account's EC2 limits, and write table and chart.
#[derive(FromArgs)]
#[argh(subcommand, name = "fleet")]
struct Fleet {
    /// size of a fleet; may be repeated (1, 100, 1000, 10000)
    #[argh(option)]
    nodes: Vec<u32>,
    /// only this scenario: scale-out, rolling or churn; may be repeated
    #[argh(option)]
    scenario: Vec<FleetScenario>,
    /// more nodes than this do not churn (1000)
    #[argh(option, default = "1000")]
    churn_up_to: u32,
    /// the seed (0)
    #[argh(option, default = "0")]
    seed: u64,
    /// folder to write fleet.md and fleet.svg to
    #[argh(option)]
    into: String,
}

fn fleet(run: Fleet) -> Result<ExitCode, std::io::Error> {
    let or = |given: Vec<u32>, all: &[u32]| if given.is_empty() { all.to_vec() } else { given };
    let wanted = Wanted {
        nodes: or(run.nodes, &[1, 100, 1000, 10_000]),
        scenarios: if run.scenario.is_empty() {
            FleetScenario::ALL.to_vec()
        } else {
            run.scenario
        },
        churn_up_to: run.churn_up_to,
        seed: run.seed,
    };
    let rows = wanted.run(|line| println!("{line}"));
    wanted.write(&rows, Path::new(&run.into))?;
    let broken = rows.iter().any(|row| row.violation.is_some());
    Ok(if broken {
        ExitCode::FAILURE
    } else {
        ExitCode::SUCCESS
    })
}

fn verdict(outcome: &world::Outcome) -> ExitCode {
    print!("{}", seeds::table(&outcome.counts));
    match &outcome.violation {
        None => ExitCode::SUCCESS,
        Some(violation) => {
            println!("VIOLATION {violation}");
            ExitCode::FAILURE
        }
    }
}

fn one(run: &One) -> ExitCode {
    let size = Size {
        days: run.days,
        pods: run.pods,
    };
    let script = script(run.profile, run.seed, size);
    if run.script {
        print!("{script}");
        return ExitCode::SUCCESS;
    }
    let outcome = world::run(&script, run.seed, run.trace);
    for line in &outcome.trace {
        println!("{line}");
    }
    verdict(&outcome)
}

fn smaller(shrink: &Shrink) -> ExitCode {
    let size = Size {
        days: shrink.days,
        pods: shrink.pods,
    };
    let script = script(shrink.profile, shrink.seed, size);
    let Some(small) = shrink::shrink(&script, shrink.seed) else {
        println!("seed {} of {} breaks no promise", shrink.seed, shrink.profile);
        return ExitCode::SUCCESS;
    };
    println!("# aws-cni-sim scenario FILE --seed {}", shrink.seed);
    print!("{small}");
    let outcome = world::run(&small, shrink.seed, false);
    if let Some(violation) = &outcome.violation {
        println!("# {violation}");
    }
    ExitCode::FAILURE
}

fn many(plan: &seeds::Plan) -> seeds::Report {
    let started = Instant::now();
    let report = seeds::run(plan);
    print!("{}", seeds::table(&report.counts));
    println!("  {:<44} {:>14.1}", "seconds", started.elapsed().as_secs_f64());
    for failure in &report.failures {
        println!("VIOLATION {}", failure.violation);
        println!("  {}", failure.command(plan.size));
    }
    report
}

/// Node-days of one batch between two remarks.
const BATCH: u64 = 1000;

fn long(long: &Long) -> Result<ExitCode, std::io::Error> {
    let size = Size::default();
    let seeds = long.days / size.days;
    let mut progress = Progress::read(&long.progress)?;
    let started = Instant::now();
    let begun_at = progress.first;
    while progress.first < seeds {
        let plan = seeds::Plan {
            first: progress.first,
            count: (BATCH / size.days).min(seeds - progress.first),
            profiles: Profile::ALL.to_vec(),
            size,
            keep_going: true,
        };
        let report = seeds::run(&plan);
        for failure in &report.failures {
            println!("VIOLATION {}", failure.violation);
            println!("  {}", failure.command(size));
            progress.failed.push(failure.command(size));
        }
        progress.first += plan.count;
        std::fs::write(&long.progress, progress.to_string())?;
        println!(
            "{} of {} node-days, {} violations; {} of them in {} s",
            progress.first * size.days,
            seeds * size.days,
            progress.failed.len(),
            (progress.first - begun_at) * size.days,
            started.elapsed().as_secs()
        );
    }
    let clean = progress.failed.is_empty();
    Ok(if clean {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    })
}

/// How far the long run has come: the next seed, and a line for each that failed.
struct Progress {
    first: u64,
    failed: Vec<String>,
}

impl Progress {
    fn read(path: &str) -> Result<Self, std::io::Error> {
        let text = match std::fs::read_to_string(path) {
            Ok(text) => text,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
                return Ok(Self {
                    first: 0,
                    failed: Vec::new(),
                });
            }
            Err(error) => return Err(error),
        };
        let mut lines = text.lines();
        let first = lines.next().and_then(|line| line.trim().parse().ok());
        let first = first.ok_or_else(|| {
            let what = format!("{path} does not begin with a seed: remove it to begin anew");
            std::io::Error::new(std::io::ErrorKind::InvalidData, what)
        })?;
        Ok(Self {
            first,
            failed: lines.map(str::to_owned).collect(),
        })
    }
}

impl std::fmt::Display for Progress {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        writeln!(f, "{}", self.first)?;
        self.failed.iter().try_for_each(|failed| writeln!(f, "{failed}"))
    }
}

fn scenario(scenario: &Scenario) -> Result<ExitCode, std::io::Error> {
    let text = std::fs::read_to_string(&scenario.file)?;
    let script: Script = text
        .parse()
        .map_err(|error: String| std::io::Error::new(std::io::ErrorKind::InvalidData, error))?;
    let outcome = world::run(&script, scenario.seed, true);
    for line in &outcome.trace {
        println!("{line}");
    }
    Ok(verdict(&outcome))
}

fn main() -> Result<ExitCode, std::io::Error> {
    let arguments: Arguments = argh::from_env();
    match arguments.command {
        Command::Run(run) => Ok(one(&run)),
        Command::Shrink(shrink) => Ok(smaller(&shrink)),
        Command::Seeds(seeds) => {
            let plan = seeds::Plan {
                first: seeds.first,
                count: seeds.count,
                profiles: seeds
                    .profile
                    .map_or_else(|| Profile::ALL.to_vec(), |one| vec![one]),
                size: Size {
                    days: seeds.days,
                    pods: seeds.pods,
                },
                keep_going: seeds.keep_going,
            };
            let report = many(&plan);
            Ok(if report.failures.is_empty() {
                ExitCode::SUCCESS
            } else {
                ExitCode::FAILURE
            })
        }
        Command::Long(run) => long(&run),
        Command::Scenario(run) => scenario(&run),
        Command::Fleet(run) => fleet(run),
    }
}
