//! The architecture as tests: what a pure file may name, who may know whom, how long a file may get.

use std::fs;
use std::path::{Path, PathBuf};

fn sources(folder: &str) -> Vec<(PathBuf, String)> {
    fn walk(folder: &Path, found: &mut Vec<(PathBuf, String)>) {
        for entry in fs::read_dir(folder).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                walk(&path, found);
            } else if path.extension().is_some_and(|extension| extension == "rs") {
                let text = fs::read_to_string(&path).unwrap();
                found.push((path, text));
            }
        }
    }
    let mut found = Vec::new();
    walk(&Path::new(env!("CARGO_MANIFEST_DIR")).join(folder), &mut found);
    found.sort();
    assert!(
        !found.is_empty(),
        "{folder} has no sources: the test looks in the wrong place"
    );
    found
}

/// The code of a file without comments and text literals, so that explaining a word is not using it.
fn code(text: &str) -> String {
    let mut out = String::new();
    for line in text.lines() {
        let mut in_text = false;
        let mut previous = ' ';
        for (at, c) in line.char_indices() {
            if !in_text && line.get(at..).is_some_and(|rest| rest.starts_with("//")) {
                break;
            }
            if c == '"' && previous != '\\' && previous != '\'' {
                in_text = !in_text;
            } else if !in_text {
                out.push(c);
            }
            previous = c;
        }
        out.push('\n');
    }
    out
}

/// Whether `word` stands in `code` by itself, not as part of a longer name.
fn names(code: &str, word: &str) -> bool {
    let part = |c: char| c.is_alphanumeric() || c == '_';
    code.match_indices(word).any(|(at, _)| {
        let before = code.get(..at).and_then(|text| text.chars().next_back());
        let after = code.get(at + word.len()..).and_then(|text| text.chars().next());
        !before.is_some_and(part) && !after.is_some_and(part)
    })
}

/// What no pure file may reach for: clocks, files, processes, sockets, threads, chance, and maps without an order.
const IMPURE: [&str; 28] = [
    "std::fs",
    "std::env",
    "std::io",
    "std::os",
    "std::process",
    "std::thread",
    "std::sync",
    "std::path",
    "std::time::Instant",
    "std::time::SystemTime",
    "Instant",
    "SystemTime",
    "TcpStream",
    "TcpListener",
    "UdpSocket",
    "UnixStream",
    "UnixDatagram",
    "HashMap",
    "HashSet",
    "RandomState",
    "tokio",
    "rand",
    "getrandom",
    "nix",
    "neli",
    "sled",
    "tracing",
    "unsafe",
];

/// The pure crate's own files; its build script reads the tables of `data/`.
fn pure_sources() -> Vec<(PathBuf, String)> {
    let mut found = sources("src/ipam");
    found.retain(|(path, _)| !path.ends_with("build.rs"));
    found
}

#[test]
fn ipam_is_pure() {
    for (path, text) in pure_sources() {
        let code = code(&text);
        for word in IMPURE {
            assert!(!names(&code, word), "{} reaches for {word}", path.display());
        }
        assert!(
            !names(&code, "std::{"),
            "{}: write out what is taken from std, so that it can be checked",
            path.display()
        );
    }
}

#[test]
fn ipam_carries_the_lint_that_forbids_clocks_and_hash_maps() {
    let (_, text) = sources("src/ipam")
        .into_iter()
        .find(|(path, _)| path.ends_with("lib.rs"))
        .unwrap();
    let lint = "#![deny(clippy::disallowed_methods, clippy::disallowed_types)]";
    assert!(text.lines().any(|line| line == lint));
    for (path, text) in sources("src/ipam") {
        assert!(
            !text.contains("allow(clippy::disallowed"),
            "{} lifts the lint",
            path.display()
        );
    }
}

const MODULES: [&str; 9] = [
    "applets", "cloud", "cni", "config", "ipam", "net", "observe", "rpc", "store",
];

/// The siblings a file names, by `crate::x` or `aws_cni::x`, also in grouped imports.
fn siblings(code: &str) -> Vec<&'static str> {
    let flat: String = code.split_whitespace().collect::<Vec<_>>().join(" ");
    let named = |module: &str| {
        names(&flat, &format!("crate::{module}"))
            || names(&flat, &format!("aws_cni::{module}"))
            || flat.split("crate::{").skip(1).any(|rest| {
                let group = rest.split(';').next().unwrap_or_default();
                names(group, module)
            })
    };
    MODULES.into_iter().filter(|module| named(module)).collect()
}

fn may_only_know(folder: &str, known: &[&str]) {
    for (path, text) in sources(&format!("src/{folder}")) {
        for module in siblings(&code(&text)) {
            assert!(
                module == folder || known.contains(&module),
                "{} knows {module}; {folder} may know {known:?} only",
                path.display()
            );
        }
    }
}

/// A crate of its own, so that it can name nothing but what its manifest lists.
#[test]
fn ipam_depends_on_nothing_that_does_io() {
    let manifest = Path::new(env!("CARGO_MANIFEST_DIR")).join("src/ipam/Cargo.toml");
    let manifest = fs::read_to_string(manifest).unwrap();
    let section = manifest.split("[dependencies]").nth(1).unwrap();
    let names: Vec<&str> = section
        .lines()
        .take_while(|line| !line.starts_with('['))
        .filter_map(|line| Some(line.split_once('=')?.0.trim()))
        .collect();
    assert_eq!(names, ["serde", "serde_json", "thiserror"]);
}

#[test]
fn net_and_cloud_know_nothing_of_each_other() {
    may_only_know("net", &["ipam"]);
    // The settings of the SDK are configuration, as plain values.
    may_only_know("cloud", &["config", "ipam"]);
}

#[test]
fn the_store_knows_nobody() {
    may_only_know("store", &[]);
}

/// Only `store` names sled, only `cloud` the AWS SDK, only `net` lifts the ban on unsafe code.
#[test]
fn every_library_has_one_door() {
    for (path, text) in sources("src") {
        let code = code(&text);
        let inside = |folder: &str| path.components().any(|part| part.as_os_str() == folder);
        assert!(
            inside("store") || !names(&code, "sled"),
            "{} names sled",
            path.display()
        );
        assert!(
            inside("cloud") || !code.contains("aws_sdk_ec2") && !code.contains("aws_config"),
            "{} names the AWS SDK",
            path.display()
        );
        assert!(
            inside("net") || !names(&code, "unsafe"),
            "{} is unsafe",
            path.display()
        );
    }
}

#[test]
fn no_file_is_longer_than_can_be_read_at_a_sitting() {
    for (path, text) in sources("src") {
        let lines = text.lines().count();
        // Tests of one thing are read one at a time.
        let is_tests = path.components().any(|part| part.as_os_str() == "testing")
            || path
                .file_stem()
                .is_some_and(|stem| stem.to_string_lossy().ends_with("tests"));
        let most = if is_tests { 900 } else { 600 };
        assert!(
            lines <= most,
            "{} has {lines} lines, {most} may be",
            path.display()
        );
    }
}

#[test]
fn the_checks_can_fail() {
    assert!(names(&code("use std::fs;"), "std::fs"));
    assert!(names(&code("let x = \"a\"; HashMap::new()"), "HashMap"));
    assert!(!names(&code("// std::fs\nlet a = \"std::fs\";"), "std::fs"));
    assert!(!names(&code("let brand = operand;"), "rand"));
    assert_eq!(siblings("use crate::{ipam::ids, net::link};"), ["ipam", "net"]);
    assert_eq!(siblings("use crate::cloud::Ec2;"), ["cloud"]);
}
