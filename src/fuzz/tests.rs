//! Every target over its corpus and over mutations of it, the same in each run.

use std::path::{Path, PathBuf};

use super::{TARGETS, Target};

/// For each target; a thousand of the slowest take about a second.
const MUTATIONS: u32 = 1500;

fn corpus(name: &str) -> Vec<(PathBuf, Vec<u8>)> {
    let directory = Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("fuzz/corpus")
        .join(name);
    let mut files: Vec<PathBuf> = std::fs::read_dir(&directory)
        .unwrap_or_else(|error| panic!("{}: {error}", directory.display()))
        .map(|entry| entry.unwrap().path())
        .collect();
    files.sort();
    assert!(!files.is_empty(), "{} is empty", directory.display());
    files
        .into_iter()
        .map(|file| {
            let bytes = std::fs::read(&file).unwrap();
            (file, bytes)
        })
        .collect()
}

/// splitmix64 (<https://prng.di.unimi.it/splitmix64.c>): the same numbers for the same seed, everywhere.
struct Dice(u64);

impl Dice {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    fn below(&mut self, bound: usize) -> usize {
        usize::try_from(self.next() % u64::try_from(bound.max(1)).unwrap()).unwrap()
    }
}

/// What is likely to matter somewhere, besides any byte.
const WORDS: &[&[u8]] = &[
    b"\0",
    b"\n",
    b"=",
    b"0",
    b"-1",
    b"4294967296",
    b"99999999999999999999",
    b"\"",
    b"'",
    b"{",
    b"}",
    b"[",
    b"]",
    b": ",
    b"- ",
    b"&a ",
    b"*a",
    b"!!x ",
    b"---\n",
    b"<",
    b"</",
    b">",
    b"/>",
    b"&lt;",
    b"true",
    b"null",
    b"\xff",
    b"\xc3\xa9",
    b"10.0.0.1",
    b"/33",
    b"eni-1",
    b"10.0.1.5",
    b"10.0.2.3",
    b"\n--\n{\"version\":\"vpc-cni-ipam/1\",\"allocations\":[",
    b"\r\n",
];

fn mutate(bytes: &mut Vec<u8>, others: &[(PathBuf, Vec<u8>)], dice: &mut Dice) {
    for _ in 0..=dice.below(6) {
        let at = dice.below(bytes.len().saturating_add(1));
        let end = at.saturating_add(dice.below(12)).min(bytes.len());
        match dice.below(7) {
            0 if at < bytes.len() => bytes[at] = u8::try_from(dice.below(256)).unwrap(),
            1 if at < bytes.len() => bytes[at] ^= 1 << dice.below(8),
            2 => drop(bytes.drain(at..end)),
            3 => drop(bytes.splice(at..at, WORDS[dice.below(WORDS.len())].iter().copied())),
            4 => {
                let again = bytes[at..end].to_vec();
                bytes.splice(at..at, again);
            }
            5 => bytes.truncate(at),
            _ => {
                let other = &others[dice.below(others.len())].1;
                let from = dice.below(other.len().saturating_add(1));
                bytes.truncate(at);
                bytes.extend_from_slice(&other[from..]);
            }
        }
    }
    bytes.truncate(1 << 14);
}

fn run(name: &str, target: Target) {
    let corpus = corpus(name);
    for (_, bytes) in &corpus {
        target(bytes);
    }
    let mut dice = Dice(7);
    for n in 0..MUTATIONS {
        let mut bytes = corpus[dice.below(corpus.len())].1.clone();
        mutate(&mut bytes, &corpus, &mut dice);
        let kept = bytes.clone();
        let outcome = std::panic::catch_unwind(move || target(&bytes));
        assert!(
            outcome.is_ok(),
            "mutation {n} of {name}, as fuzz/corpus/{name}/ would have it: {}",
            kept.escape_ascii()
        );
    }
}

fn target(name: &str) {
    let (name, target) = TARGETS.iter().find(|(known, _)| *known == name).unwrap();
    run(name, *target);
}

/// The Go daemon's, or what somebody has made of it.
#[test]
fn any_checkpoint_is_imported_or_refused() {
    target("checkpoint_files");
}

#[test]
fn any_environment_and_file_is_configured_or_refused() {
    target("configuration");
}

#[test]
fn any_answer_of_ec2_is_understood_or_refused() {
    target("ec2_answers");
}

#[test]
fn any_eni_config_file_is_understood_or_refused() {
    target("eni_configs");
}

#[test]
fn any_answer_of_imds_is_understood_or_refused() {
    target("imds_answers");
}

#[test]
fn any_kubelet_configuration_is_understood_or_refused() {
    target("kubelet_files");
}

#[test]
fn any_bytes_on_the_socket_are_understood_or_refused() {
    target("socket_frames");
}

#[test]
fn any_message_of_the_kernel_is_a_fact_or_an_error() {
    target("netlink_messages");
}

#[test]
fn any_call_of_a_runtime_is_understood_or_refused() {
    target("plugin_calls");
}

#[test]
fn any_plugin_to_be_chained_comes_out_whole_or_is_refused() {
    target("chained_plugins");
}

/// The store is the daemon's own, but disks and people are not.
#[test]
fn any_records_give_a_pool_that_holds_its_invariants() {
    target("stored_records");
}

#[test]
fn every_target_has_its_libfuzzer_side() {
    let fuzz = Path::new(env!("CARGO_MANIFEST_DIR")).join("fuzz");
    let manifest = std::fs::read_to_string(fuzz.join("Cargo.toml")).unwrap();
    for (name, _) in TARGETS {
        assert!(manifest.contains(&format!("name = \"{name}\"")), "{name}");
        let body = std::fs::read_to_string(fuzz.join(format!("fuzz_targets/{name}.rs"))).unwrap();
        assert!(body.contains(&format!("aws_cni::fuzz::{name}(data)")), "{body}");
    }
}
