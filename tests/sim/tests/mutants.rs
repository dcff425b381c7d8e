//! Plants realistic bugs in a copy of the core, one at a time, and shows that seeds find each.
//!
//! Every bug is an expression put in the place of another one, chosen when the program runs: so all of them are built
//! once. `cargo test -p aws-cni-sim --test mutants -- --nocapture` prints the table.
#![allow(
    clippy::expect_used,
    clippy::indexing_slicing,
    clippy::panic,
    clippy::print_stdout,
    clippy::unwrap_used,
    reason = "helpers of tests fail as tests do"
)]

use std::fmt::Write as _;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

/// A bug: in these files these expressions become those.
struct Mutant {
    name: &'static str,
    /// The profile whose faults it shows under first.
    profile: &'static str,
    edits: &'static [(&'static str, &'static str, &'static str)],
}

const MUTANTS: &[Mutant] = &[
    Mutant {
        name: "no cooldown",
        profile: "calm",
        edits: &[(
            "pool.rs",
            "(!cooldown.is_zero()).then(|| now.after(cooldown))",
            "None",
        )],
    },
    Mutant {
        name: "cooldown forgotten at a restart",
        profile: "deaths",
        edits: &[(
            "recover.rs",
            "record.rests_until.map(|until| until.min(longest))",
            "None",
        )],
    },
    Mutant {
        name: "IMDS believed as if it were EC2",
        profile: "lies",
        edits: &[
            (
                "pool/reading.rs",
                "placed.published && (placed.verified || trusting)",
                "placed.published",
            ),
            (
                "pool/reading.rs",
                "self.stands(eni) && placed.published && (placed.verified || self.trusts_imds(now))",
                "self.stands(eni) && placed.published",
            ),
        ],
    },
    Mutant {
        name: "reused before the kernel let go of it",
        profile: "calm",
        edits: &[("pool/reading.rs", "!self.memory.is_unproven(address)", "true")],
    },
    Mutant {
        name: "durable before it is committed",
        profile: "calm",
        edits: &[(
            "serve.rs",
            "out.durable(waiter, key)",
            "{ let _ = key; out.now(Effect::Reply { waiter, reply: Reply::Durable }) }",
        )],
    },
    Mutant {
        name: "an assignment's intent forgotten at a restart",
        profile: "deaths",
        edits: &[(
            "recover.rs",
            "eni.state == EniState::Attaching || eni.assigning.is_some()",
            "false",
        )],
    },
    Mutant {
        name: "the kernel's pod routes ignored",
        profile: "deaths",
        edits: &[(
            "observe.rs",
            "pool.addresses().get(&address).is_some_and(idle)",
            "false && pool.addresses().get(&address).is_some_and(idle)",
        )],
    },
    Mutant {
        name: "a repeated ADD taken for a new one",
        profile: "calm",
        edits: &[(
            "serve.rs",
            "pool.allocations().contains_key(&request.key)",
            "false",
        )],
    },
    Mutant {
        name: "an allocation not written",
        profile: "calm",
        edits: &[(
            "pool.rs",
            "self.dirty.insert(RecordKey::Allocation(request.key.clone()))",
            "true",
        )],
    },
    Mutant {
        name: "no back-off",
        profile: "kernel",
        edits: &[(
            "memory.rs",
            "pace.wait(attempt, dice).max(asked.unwrap_or_default())",
            "{ let _ = (pace, attempt, dice, asked); std::time::Duration::from_millis(1) }",
        )],
    },
    Mutant {
        name: "a waiter forgotten at its deadline",
        profile: "crowd",
        edits: &[("serve.rs", "deadline <= now", "false")],
    },
    Mutant {
        name: "another boot not noticed",
        profile: "deaths",
        edits: &[("recover.rs", "since != Since::SameBoot", "false")],
    },
    Mutant {
        name: "a failed commit not written again",
        profile: "deaths",
        edits: &[("serve.rs", "pool.mark(tail.keys)", "drop(tail.keys)")],
    },
    Mutant {
        name: "one device index for two ENIs",
        profile: "calm",
        edits: &[(
            "pool.rs",
            "!taken.contains(device)",
            "{ let _ = &taken; device.0 > 0 }",
        )],
    },
];

const SEEDS: u32 = 240;

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../..")
}

/// Copies a folder, and writes only what differs, so that cargo builds only that.
fn copy(from: &Path, to: &Path) {
    fs::create_dir_all(to).unwrap();
    for entry in fs::read_dir(from).unwrap() {
        let entry = entry.unwrap();
        let target = to.join(entry.file_name());
        if entry.file_type().unwrap().is_dir() {
            copy(&entry.path(), &target);
        } else {
            write(&target, &fs::read(entry.path()).unwrap());
        }
    }
}

fn write(path: &Path, content: &[u8]) {
    if fs::read(path).is_ok_and(|old| old == content) {
        return;
    }
    fs::write(path, content).unwrap();
}

/// Puts every bug of a file beside what it replaces.
fn planted(file: &str, mut text: String) -> String {
    for (number, mutant) in MUTANTS.iter().enumerate() {
        for (_, snippet, replacement) in mutant.edits.iter().filter(|(name, ..)| *name == file) {
            let found = text.matches(snippet).count();
            assert_eq!(
                found, 1,
                "the mutant {:?} is stale: {file} has {snippet:?} {found} times",
                mutant.name
            );
            let both = format!("(if crate::mutant::on({number}) {{ {replacement} }} else {{ {snippet} }})");
            text = text.replacen(snippet, &both, 1);
        }
    }
    text
}

const SWITCH: &str = r#"
pub(crate) fn on(number: usize) -> bool {
    static CHOSEN: std::sync::OnceLock<Option<usize>> = std::sync::OnceLock::new();
    *CHOSEN.get_or_init(|| std::env::var("SIM_MUTANT").ok()?.parse().ok()) == Some(number)
}
"#;

fn walk(from: &Path, to: &Path, inner: &Path, planted_files: &[&str]) {
    fs::create_dir_all(to.join(inner)).unwrap();
    for entry in fs::read_dir(from.join(inner)).unwrap() {
        let entry = entry.unwrap();
        let name = inner.join(entry.file_name());
        if entry.file_type().unwrap().is_dir() {
            walk(from, to, &name, planted_files);
            continue;
        }
        let mut content = fs::read(entry.path()).unwrap();
        let file = name.to_str().unwrap();
        if planted_files.contains(&file) {
            content = planted(file, String::from_utf8(content).unwrap()).into_bytes();
        }
        if file == "lib.rs" {
            content.extend(b"\nmod mutant;\n");
        }
        write(&to.join(&name), &content);
    }
}

/// The copy's core: every file once, with its bugs; the same bytes as last time when nothing changed.
fn plant_core(to: &Path) {
    let from = root().join("src/ipam");
    let planted_files: Vec<&str> = MUTANTS
        .iter()
        .flat_map(|mutant| mutant.edits)
        .map(|edit| edit.0)
        .collect();
    walk(&from, to, Path::new(""), &planted_files);
    write(&to.join("mutant.rs"), SWITCH.as_bytes());
}

fn workspace() -> PathBuf {
    let to = Path::new(env!("CARGO_TARGET_TMPDIR")).join("mutants");
    plant_core(&to.join("src/ipam"));
    copy(&root().join("data"), &to.join("data"));
    copy(&root().join("tests/sim/src"), &to.join("tests/sim/src"));
    write(
        &to.join("tests/sim/Cargo.toml"),
        &fs::read(root().join("tests/sim/Cargo.toml")).unwrap(),
    );
    let manifest = fs::read_to_string(root().join("Cargo.toml")).unwrap();
    let package = manifest.split("[workspace.package]").nth(1).unwrap();
    let package = package.split("\n[").next().unwrap();
    let text = format!(
        "[workspace]\nmembers = [\"src/ipam\", \"tests/sim\"]\nresolver = \"3\"\n\n[workspace.package]{package}\n\
         [workspace.lints.rust]\n\n[profile.dev]\nopt-level = 1\ndebug = false\n"
    );
    write(&to.join("Cargo.toml"), text.as_bytes());
    if !to.join("Cargo.lock").exists() {
        fs::copy(root().join("Cargo.lock"), to.join("Cargo.lock")).unwrap();
    }
    to
}

fn build(workspace: &Path) -> PathBuf {
    let target = workspace.join("target");
    let cargo = std::env::var("CARGO").unwrap_or_else(|_| "cargo".to_owned());
    let output = Command::new(cargo)
        .current_dir(workspace)
        .env("CARGO_TARGET_DIR", &target)
        .env("RUSTFLAGS", "--cap-lints allow")
        .args(["build", "--offline", "--quiet", "--package", "aws-cni-sim"])
        .output()
        .unwrap();
    assert!(
        output.status.success(),
        "{}",
        String::from_utf8_lossy(&output.stderr)
    );
    target.join("debug/aws-cni-sim")
}

/// Which oracle found it, and after how many seeds.
fn hunt(
    program: &Path,
    number: Option<usize>,
    profile: &str,
    seeds: u32,
) -> Result<(String, String), String> {
    let mut command = Command::new(program);
    command.args([
        "seeds",
        "--days",
        "2",
        "--profile",
        profile,
        "--count",
        &seeds.to_string(),
    ]);
    if let Some(number) = number {
        command.env("SIM_MUTANT", number.to_string());
    }
    let output = command.output().unwrap();
    let said = String::from_utf8_lossy(&output.stdout).into_owned();
    let crashed = String::from_utf8_lossy(&output.stderr).into_owned();
    let after = |word: &str| {
        said.lines()
            .find_map(|line| Some(line.trim().strip_prefix(word)?.trim().to_owned()))
    };
    let ran = after("seeds").unwrap_or_default();
    match after("VIOLATION ") {
        Some(violation) => {
            let oracle = violation.split_whitespace().next().unwrap_or_default().to_owned();
            Ok((oracle, ran))
        }
        None if crashed.contains("panicked") => Ok(("panic".to_owned(), ran)),
        None => Err(ran),
    }
}

#[test]
fn every_planted_bug_is_found() {
    let program = build(&workspace());
    let sound: Vec<&str> = ["calm", "lies", "crowd", "kernel", "deaths"]
        .into_iter()
        .filter(|profile| hunt(&program, None, profile, 4).is_ok())
        .collect();
    assert!(sound.is_empty(), "without any bug, {sound:?} find one");
    let mut table = String::new();
    let mut missed = Vec::new();
    for (number, mutant) in MUTANTS.iter().enumerate() {
        let found = hunt(&program, Some(number), mutant.profile, SEEDS)
            .or_else(|_| hunt(&program, Some(number), "storm", SEEDS));
        let (oracle, seeds) = found.unwrap_or_else(|seeds| {
            missed.push(mutant.name);
            ("NOT FOUND".to_owned(), seeds)
        });
        writeln!(table, "{:<48} {oracle:<26} {seeds:>4} seeds", mutant.name).unwrap();
    }
    println!("{table}");
    assert!(missed.is_empty(), "{missed:?} were not found\n{table}");
}
