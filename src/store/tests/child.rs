//! The test binary run again as another process: a probe, a writer to be killed, an owner of a tiny disk.

use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::time::Duration;

use super::super::probe::verdict;
use super::ProbeCommand;

const ENTRY: &str = "store::tests::child::entry";

/// How the child is told what to do: a test filter that matches nothing.
fn arguments(mode: &str) -> Vec<std::ffi::OsString> {
    [ENTRY, "--exact", "--nocapture", "--test-threads=1", mode]
        .map(Into::into)
        .to_vec()
}

pub(super) fn probe_command() -> ProbeCommand {
    ProbeCommand {
        program: std::env::current_exe().unwrap(),
        arguments: arguments("mode=probe"),
        deadline: Duration::from_secs(20),
    }
}

pub(super) fn command(mode: &str, dir: &std::path::Path) -> Command {
    let mut command = Command::new(std::env::current_exe().unwrap());
    command
        .args(arguments(mode))
        .arg(dir)
        .stdin(Stdio::null())
        .stdout(Stdio::piped());
    command
}

/// Runs a child that judges by itself, and says where it had to be skipped.
pub(super) fn succeed(mode: &str, dir: &std::path::Path) {
    let output = command(mode, dir).output().unwrap();
    let text = String::from_utf8_lossy(&output.stdout);
    assert!(
        output.status.success(),
        "{text}\n{}",
        String::from_utf8_lossy(&output.stderr)
    );
    if text.contains("SKIPPED") {
        println!("{text}");
    }
}

/// Does nothing when run as a test.
#[test]
fn entry() {
    let mut arguments: Vec<_> = std::env::args().collect();
    let dir = PathBuf::from(arguments.pop().unwrap());
    match arguments.pop().as_deref() {
        Some("mode=probe") => leave(verdict(&dir)),
        Some("mode=abort") => std::process::abort(),
        Some("mode=hang") => std::thread::park(),
        Some("mode=write") => super::crash::write_for_ever(&dir),
        Some("mode=open") => super::damage::open_once(&dir),
        Some("mode=broken") => super::full::lose_the_database_while_open(&dir),
        Some("mode=full-journal") => super::full::commit_into_the_journal_alone(&dir),
        Some("mode=full") => super::full::live_on_a_tiny_disk(&dir),
        Some("mode=power") => super::power::cut_the_power(&dir),
        Some("mode=panic") => super::damage::panic_while_committing(&dir),
        Some("mode=measure") => super::measure::measure(&dir),
        _ => {}
    }
}

#[expect(clippy::exit, reason = "a probe answers by its exit code")]
fn leave(code: u8) {
    std::process::exit(code.into());
}
