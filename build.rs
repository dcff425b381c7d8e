//! Turns `data/instance-limits.csv` into a sorted static table and stamps the version.

use std::fmt::Write as _;
use std::path::Path;
use std::process::Command;
use std::{env, fs};

type AnyError = Box<dyn std::error::Error>;

fn main() -> Result<(), AnyError> {
    let out = env::var("OUT_DIR")?;
    println!("cargo:rerun-if-changed=data/instance-limits.csv");
    let csv = fs::read_to_string("data/instance-limits.csv")?;
    fs::write(Path::new(&out).join("limits_table.rs"), limits_table(&csv)?)?;

    // Grows with every commit and checkout; `.git/HEAD` names the branch and stays as it is.
    println!("cargo:rerun-if-changed=.git/logs/HEAD");
    println!("cargo:rerun-if-env-changed=AWS_CNI_COMMIT");
    println!("cargo:rustc-env=AWS_CNI_COMMIT={}", commit());
    println!("cargo:rustc-env=AWS_CNI_TARGET={}", env::var("TARGET")?);
    println!("cargo:rustc-env=AWS_CNI_PROFILE={}", env::var("PROFILE")?);
    Ok(())
}

/// One `(type, ENIs, IPv4 addresses an ENI)` row a type, sorted for binary search.
fn limits_table(csv: &str) -> Result<String, AnyError> {
    let mut rows = Vec::new();
    for (number, line) in csv
        .lines()
        .enumerate()
        .skip(1)
        .filter(|(_, line)| !line.is_empty())
    {
        let row =
            parse_row(line).ok_or_else(|| format!("data/instance-limits.csv:{}: {line}", number + 1))?;
        rows.push(row);
    }
    rows.sort_unstable();
    let mut table = format!(
        "pub(super) static LIMITS: [(&str, u32, u32); {}] = [\n",
        rows.len()
    );
    for (name, enis, ipv4) in rows {
        writeln!(table, "    ({name:?}, {enis}, {ipv4}),")?;
    }
    table.push_str("];\n");
    Ok(table)
}

fn parse_row(line: &str) -> Option<(&str, u32, u32)> {
    let mut fields = line.split(',');
    Some((
        fields.next()?,
        fields.next()?.parse().ok()?,
        fields.next()?.parse().ok()?,
    ))
}

/// The commit, from the environment where there is no repository (packages), else from git, else unknown.
fn commit() -> String {
    if let Ok(commit) = env::var("AWS_CNI_COMMIT") {
        return commit;
    }
    let output = Command::new("git")
        .args(["rev-parse", "--short=12", "HEAD"])
        .output();
    match output {
        Ok(output) if output.status.success() => String::from_utf8_lossy(&output.stdout).trim().to_owned(),
        _ => "unknown".to_owned(),
    }
}
