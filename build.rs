//! Stamps the binary with its version: commit, target and profile.

use std::env;
use std::process::Command;

fn main() -> Result<(), env::VarError> {
    // Grows with every commit and checkout; `.git/HEAD` names the branch and stays as it is.
    println!("cargo:rerun-if-changed=.git/logs/HEAD");
    println!("cargo:rerun-if-env-changed=AWS_CNI_COMMIT");
    println!("cargo:rustc-env=AWS_CNI_COMMIT={}", commit());
    println!("cargo:rustc-env=AWS_CNI_TARGET={}", env::var("TARGET")?);
    println!("cargo:rustc-env=AWS_CNI_PROFILE={}", env::var("PROFILE")?);
    Ok(())
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
