//! Plants realistic bugs in a copy of the core, one at a time, and shows that seeds find each.
//!
//! Every bug is an expression put in the place of another one, chosen when the program runs: so all of them are built
//! once. `cargo test -p aws-cni-sim --test mutants -- --nocapture` prints the table; `SIM_MUTANTS=six` tries only those of
//! one profile, or with this in their name.
#![allow(
    clippy::expect_used,
    clippy::indexing_slicing,
    clippy::panic,
    clippy::print_stdout,
    clippy::unwrap_used,
    reason = "helpers of tests fail as tests do"
)]

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

/// A bug: in these files these expressions become those.
struct Mutant {
    name: &'static str,
    /// The profile whose faults it shows under first.
    profile: &'static str,
    edits: &'static [Edit],
}

/// A file, an expression in it, and what is put in its place.
type Edit = (&'static str, &'static str, &'static str);

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
            ("pool/reading.rs", "!self.policy.ask_ec2", "true"),
            ("evidence.rs", "eni.attachment.is_some()", "false"),
            (
                "local.rs",
                "pool.memory.imds_pending = pool.memory.ec2 != Ec2View::Answered",
                "pool.memory.imds_pending = true",
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
        name: "another boot taken for the same",
        profile: "deaths",
        edits: &[("recover.rs", "*boot == facts.boot", "{ let _ = boot; true }")],
    },
    Mutant {
        name: "the kernel's pod routes ignored",
        profile: "deaths",
        edits: &[("evidence.rs", "pool.memory.is_routed(address)", "false")],
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
        name: "a failed commit not written again",
        profile: "deaths",
        edits: &[("serve.rs", "pool.mark(tail.keys)", "drop(tail.keys)")],
    },
    Mutant {
        name: "one device index for two ENIs",
        profile: "calm",
        edits: &[(
            "cards.rs",
            "!taken.contains(device)",
            "{ let _ = &taken; device.0 > 0 }",
        )],
    },
    Mutant {
        name: "a prefix given back without proof",
        profile: "modes",
        edits: &[
            (
                "surplus.rs",
                "cidr.addresses().all(is_usable)",
                "cidr.addresses().any(is_usable)",
            ),
            UNPROVEN[0],
            UNPROVEN[1],
            UNPROVEN[2],
            UNPROVEN[3],
        ],
    },
    Mutant {
        name: "an ENI given back without proof",
        profile: "calm",
        edits: &[
            ("surplus.rs", "self.pods_on(eni) == 0", "true"),
            (
                "surplus.rs",
                "eni.cidrs.keys().all(|cidr| self.is_idle(eni, *cidr))",
                "true",
            ),
            UNPROVEN[0],
            UNPROVEN[1],
            UNPROVEN[2],
            UNPROVEN[3],
        ],
    },
    Mutant {
        name: "deleted without EC2's word that it is unattached",
        profile: "cloud",
        edits: &[("witness.rs", "ec2 != Ec2Says::Unattached", "false")],
    },
    Mutant {
        name: "an ENI deleted although its owner lives",
        profile: "hands",
        edits: &[
            (
                "leaks.rs",
                "says != OwnerSays::Lives && age.map_or(true, |age| reaper.is_gone(says, age))",
                "true",
            ),
            (
                "witness/left.rs",
                "!reaper.is_gone(first.owner, age) || !reaper.is_gone(second.owner, age)",
                "false",
            ),
        ],
    },
    Mutant {
        name: "an ENI of an unknown owner deleted at once",
        profile: "hands",
        edits: &[("witness/left.rs", "age > OLD", "true")],
    },
    Mutant {
        name: "the primary ENI's addresses in custom networking",
        profile: "modes",
        edits: &[(
            "pool/reading.rs",
            "!eni.excluded && self.may_manage(eni.card)",
            "self.may_manage(eni.card)",
        )],
    },
    Mutant {
        name: "places of a /80 used before their reservation is durable",
        profile: "six",
        edits: &[
            (
                "six/cursor.rs",
                "cursor.next..cursor.durable.min(LAST.saturating_add(1))",
                "cursor.next..block.reserved.min(LAST.saturating_add(1))",
            ),
            (
                "six/cursor.rs",
                "place >= cursor.next && place < cursor.durable.min(LAST.saturating_add(1))",
                "place >= cursor.next",
            ),
        ],
    },
    Mutant {
        name: "a /80 counted from its beginning after a start",
        profile: "six",
        edits: &[(
            "six/cursor.rs",
            "pool.memory.cursor.follow(&block)",
            "{ let is_new = pool.memory.cursor.prefix.is_none(); pool.memory.cursor.follow(&block); \
             if is_new { pool.memory.cursor.next = FIRST; } }",
        )],
    },
    Mutant {
        name: "the kernel's routes of a /80 ignored",
        profile: "six",
        edits: &[
            (
                "six/word.rs",
                "places.filter_map(|address| prefix.place_of(address)).max()",
                "{ drop(places); known(pool, prefix).into_iter().filter_map(|address| prefix.place_of(address)).max() }",
            ),
            ("six/word.rs", "!pool.knows(*address)", "false"),
        ],
    },
    Mutant {
        name: "another /80 asked for as soon as a list lacks it",
        profile: "six",
        edits: &[("six/word.rs", "asked >= at.after(lag)", "true")],
    },
    Mutant {
        name: "a /80 given up at the first omission",
        profile: "six",
        edits: &[(
            "six/word.rs",
            "now.since(since) >= lag && !by_imds",
            "{ let _ = (since, by_imds); true }",
        )],
    },
    Mutant {
        name: "a call for a /80 that died with its daemon waited for",
        profile: "six",
        edits: &[("recover.rs", "eni.assigning == Some(Amount::Block)", "false")],
    },
    Mutant {
        name: "a copy's reservation of a /80 believed",
        profile: "six",
        edits: &[(
            "six/copy.rs",
            "block.reserved.saturating_add(BEHIND)",
            "{ let _ = BEHIND; block.reserved }",
        )],
    },
];

const SEEDS: u32 = 240;

/// What the kernel and the store say of what is to be given back, and the checks before anybody is asked: a bug must
/// get past all of them.
const UNPROVEN: [Edit; 4] = [
    (
        "release.rs",
        "verify::returns(pool, &found.returns, now)",
        "{ let _ = &found; Vec::<verify::Violation>::new() }",
    ),
    (
        "release.rs",
        "pool.allocations().values().any(|held| held.address == address)",
        "false",
    ),
    (
        "release.rs",
        "known.is_some_and(|known| known.holder.is_some())",
        "false",
    ),
    ("release.rs", "pool.memory.is_routed(address)", "false"),
];

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
    let mut table = String::new();
    let mut missed = Vec::new();
    let mut needed = BTreeMap::new();
    let only = std::env::var("SIM_MUTANTS").unwrap_or_default();
    let wanted = |mutant: &Mutant| mutant.profile == only || mutant.name.contains(&only);
    for (number, mutant) in MUTANTS.iter().enumerate().filter(|(_, mutant)| wanted(mutant)) {
        let mut profile = mutant.profile;
        let found = hunt(&program, Some(number), profile, SEEDS).or_else(|_| {
            profile = "storm";
            hunt(&program, Some(number), profile, SEEDS)
        });
        let (oracle, seeds) = found.unwrap_or_else(|seeds| {
            missed.push(mutant.name);
            ("NOT FOUND".to_owned(), seeds)
        });
        // Seeds run side by side: a few more may have begun.
        let ran = seeds.parse::<u32>().unwrap_or(SEEDS) + 8;
        let most: &mut u32 = needed.entry(profile).or_default();
        *most = ran.max(*most);
        writeln!(table, "{:<48} {oracle:<26} {seeds:>4} seeds", mutant.name).unwrap();
    }
    println!("{table}");
    // The same seeds find nothing without any bug.
    for (profile, seeds) in needed {
        let found = hunt(&program, None, profile, seeds);
        assert!(
            found.is_err(),
            "without any bug, {profile} finds {found:?}\n{table}"
        );
    }
    assert!(missed.is_empty(), "{missed:?} were not found\n{table}");
}
