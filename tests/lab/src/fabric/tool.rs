//! `ip` and `nft`, run inside a namespace.

use std::io::{self, Write};
use std::process::{Child, Command, Output, Stdio};

use crate::netns::{Netns, NetnsError};

/// Why a kernel object of the lab could not be made, changed or read.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ToolError {
    /// The namespace could not be entered.
    #[error(transparent)]
    Netns(#[from] NetnsError),
    /// The executable could not be run.
    #[error("running {program}: {error}; packages iproute2 and nftables provide ip and nft")]
    Run {
        /// Which executable.
        program: &'static str,
        /// Why not.
        error: io::Error,
    },
    /// The executable refused.
    #[error("{program} failed: {stderr}\nscript:\n{script}")]
    Failed {
        /// Which executable.
        program: &'static str,
        /// What it was told.
        script: String,
        /// What it said.
        stderr: String,
    },
    /// Its answer could not be read.
    #[error("reading the answer of {program}: {error}")]
    Answer {
        /// Which executable.
        program: &'static str,
        /// Why not.
        error: serde_json::Error,
    },
}

/// Runs a script of `ip` commands, stopping at the first that fails.
pub(crate) fn ip_batch(netns: &Netns, script: &str) -> Result<(), ToolError> {
    feed(netns, "ip", &["-batch", "-"], script).map(drop)
}

/// Runs an nftables script as one transaction.
pub(crate) fn nft(netns: &Netns, script: &str) -> Result<(), ToolError> {
    feed(netns, "nft", &["-f", "-"], script).map(drop)
}

/// What `ip -json …` says.
pub(crate) fn ip_json(netns: &Netns, arguments: &[&str]) -> Result<serde_json::Value, ToolError> {
    json(netns, "ip", &[&["-json"], arguments].concat())
}

/// What `nft -j …` says.
pub(crate) fn nft_json(netns: &Netns, arguments: &[&str]) -> Result<serde_json::Value, ToolError> {
    json(netns, "nft", &[&["-j"], arguments].concat())
}

fn json(netns: &Netns, program: &'static str, arguments: &[&str]) -> Result<serde_json::Value, ToolError> {
    let output = feed(netns, program, arguments, "")?;
    if output.stdout.trim_ascii().is_empty() {
        return Ok(serde_json::Value::Array(Vec::new())); // `ip -json` says nothing at all for an empty list
    }
    serde_json::from_slice(&output.stdout).map_err(|error| ToolError::Answer { program, error })
}

fn feed(netns: &Netns, program: &'static str, arguments: &[&str], script: &str) -> Result<Output, ToolError> {
    let output = netns
        .run(|| run_with_input(program, arguments, script))?
        .map_err(|error| ToolError::Run { program, error })?;
    if output.status.success() {
        return Ok(output);
    }
    Err(ToolError::Failed {
        program,
        script: format!("{}\n{script}", arguments.join(" ")),
        stderr: String::from_utf8_lossy(&output.stderr).trim().to_owned(),
    })
}

fn run_with_input(program: &str, arguments: &[&str], input: &str) -> io::Result<Output> {
    spawn_with_input(Command::new(program).args(arguments), input)?.wait_with_output()
}

/// Starts a program with its input, and both its outputs to be read.
pub(crate) fn spawn_with_input(command: &mut Command, input: &str) -> io::Result<Child> {
    let mut child = command
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()?;
    if let Some(mut stdin) = child.stdin.take() {
        // A program need not read its input, and one that fails early does not; what it says then, says more than EPIPE.
        match stdin.write_all(input.as_bytes()) {
            Err(error) if error.kind() != io::ErrorKind::BrokenPipe => return Err(error),
            _ => {}
        }
    }
    Ok(child)
}
