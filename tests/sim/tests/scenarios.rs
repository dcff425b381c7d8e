//! The failure scenarios that concern address management, each with a transcript to read what changed.
//!
//! `SIM_GOLDEN=write cargo test -p aws-cni-sim --test scenarios` writes the transcripts anew.
#![allow(
    clippy::expect_used,
    clippy::indexing_slicing,
    clippy::panic,
    clippy::print_stdout,
    clippy::unwrap_used,
    reason = "helpers of tests fail as tests do"
)]

use std::fmt::Write as _;
use std::path::{Path, PathBuf};

use aws_cni_sim::script::Script;
use aws_cni_sim::world;

fn folder(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join(name)
}

fn transcript(path: &Path) -> String {
    let text = std::fs::read_to_string(path).unwrap();
    let script: Script = text
        .parse()
        .unwrap_or_else(|error| panic!("{}: {error}", path.display()));
    let outcome = world::run(&script, 0, true);
    assert_eq!(outcome.violation, None, "{}", path.display());
    let mut out: String = text
        .lines()
        .filter(|line| line.starts_with('#'))
        .fold(String::new(), |out, line| out + line + "\n");
    for line in &outcome.trace {
        writeln!(out, "{line}").unwrap();
        // Hours of healing follow, in which nothing may be wrong but little is to be read.
        if line.ends_with("everything is well again") {
            break;
        }
    }
    out
}

/// The first line in which two texts differ, of each.
fn difference(before: &str, now: &str) -> (usize, String, String) {
    let (mut before, mut now) = (before.lines(), now.lines());
    for number in 1.. {
        let (was, is) = (before.next(), now.next());
        if was != is || was.is_none() {
            let text = |line: Option<&str>| line.unwrap_or("(the end)").to_owned();
            return (number, text(was), text(is));
        }
    }
    (0, String::new(), String::new())
}

#[test]
fn every_scenario_holds_and_reads_as_it_did() {
    let rewrite = std::env::var("SIM_GOLDEN").is_ok_and(|value| value == "write");
    let mut scripts: Vec<PathBuf> = std::fs::read_dir(folder("scenarios"))
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .collect();
    scripts.sort();
    assert!(scripts.len() >= 12);
    let mut changed = String::new();
    for path in scripts {
        let golden = folder("golden").join(path.file_name().unwrap());
        let now = transcript(&path);
        if rewrite {
            std::fs::create_dir_all(folder("golden")).unwrap();
            std::fs::write(&golden, &now).unwrap();
            continue;
        }
        let before = std::fs::read_to_string(&golden).unwrap_or_default();
        if before != now {
            let (number, was, is) = difference(&before, &now);
            let name = golden.display();
            writeln!(changed, "{name} line {number}:\n  was {was}\n  now {is}").unwrap();
        }
    }
    assert!(
        changed.is_empty(),
        "transcripts changed; if that is meant, write them anew with SIM_GOLDEN=write\n{changed}"
    );
}

#[test]
fn a_run_is_a_function_of_its_script_and_seed() {
    let text = std::fs::read_to_string(folder("scenarios").join("12-runtime-faults.txt")).unwrap();
    let script: Script = text.parse().unwrap();
    let run = |seed| world::run(&script, seed, true).trace;
    assert_eq!(run(7), run(7));
    assert_ne!(run(7), run(8));
}
