//! One program from exec to exit.

use std::io::{Read, Write};
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use super::{BenchError, io_error};

/// A run that ended well.
#[derive(Debug)]
pub(super) struct Ran {
    pub(super) took: Duration,
    pub(super) stdout: String,
}

/// Runs a program with this input, in the namespace of the calling thread.
///
/// Nothing but the process is inside the measured time: no thread is started, no deadline watched.
pub(super) fn run(command: &mut Command, input: &str) -> Result<Ran, BenchError> {
    let program = command.get_program().to_string_lossy().into_owned();
    let failed = |error| io_error(&format!("running {program}"))(error);
    command
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped());
    let mut stdout = String::new();
    let started = Instant::now();
    let mut child = command.spawn().map_err(failed)?;
    if let Some(mut pipe) = child.stdin.take() {
        match pipe.write_all(input.as_bytes()) {
            // The floor reads nothing.
            Err(error) if error.kind() != std::io::ErrorKind::BrokenPipe => return Err(failed(error)),
            _ => {}
        }
    }
    if let Some(mut pipe) = child.stdout.take() {
        pipe.read_to_string(&mut stdout).map_err(failed)?;
    }
    let status = child.wait().map_err(failed)?;
    let took = started.elapsed();
    if status.success() {
        return Ok(Ran { took, stdout });
    }
    let mut stderr = String::new();
    if let Some(mut pipe) = child.stderr.take() {
        pipe.read_to_string(&mut stderr).map_err(failed)?;
    }
    Err(BenchError::Wrong(format!(
        "{program}: {status}: {stdout}{stderr}"
    )))
}

/// The same without arguments and input.
pub(super) fn run_plain(program: &Path, environment: &[(&str, &str)]) -> Result<Ran, BenchError> {
    let mut command = Command::new(program);
    command.env_clear().envs(environment.iter().copied());
    run(&mut command, "")
}
