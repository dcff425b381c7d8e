//! Trying an open in a child process, so that a database whose opening panics, hangs or is killed for its memory
//! can't take the daemon with it over and over.

use std::ffi::OsString;
use std::fs::File;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitCode, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use nix::sys::prctl::set_pdeathsig;
use nix::sys::signal::Signal;
use nix::unistd::alarm;
use thiserror::Error;

use super::Options;
use super::engine::{Engine, EngineError, file_in, is_locked};

const HEALTHY: u8 = 0;
const DAMAGED: u8 = 10;
const DISK_FULL: u8 = 11;
const ENVIRONMENT: u8 = 12;

/// An open takes tens of milliseconds; a disk may be slow, a child must not be waited for for ever.
const DEADLINE: Duration = Duration::from_secs(15);
const POLL: Duration = Duration::from_millis(1);

/// The program that calls [`probe_in_this_process`]; the database directory is its last argument.
#[derive(Debug, Clone)]
pub struct ProbeCommand {
    /// What to run.
    pub program: PathBuf,
    /// With these arguments before the directory.
    pub arguments: Vec<OsString>,
    /// Killed after this long.
    pub deadline: Duration,
}

impl ProbeCommand {
    /// `<self_exe> ipamd --probe-store <dir>`.
    pub fn daemon(self_exe: &Path) -> Self {
        Self {
            program: self_exe.to_owned(),
            arguments: vec!["ipamd".into(), "--probe-store".into()],
            deadline: DEADLINE,
        }
    }
}

/// What a child found out.
#[derive(Debug, Error)]
pub enum ProbeFailure {
    /// The database does not open.
    #[error("the database does not open: {status}")]
    Damaged {
        /// How the child ended.
        status: ExitStatus,
    },
    /// The child did not come back.
    #[error("opening the database did not end within {deadline:?}")]
    Deadline {
        /// How long it had.
        deadline: Duration,
    },
    /// Only space is missing.
    #[error("no space left to open the database")]
    DiskFull,
    /// The system refuses; nothing is known about the database.
    #[error("the system does not let the database be opened")]
    Environment,
    /// No child; nothing is known about the database.
    #[error("cannot run {program}")]
    Spawn {
        /// The program.
        program: PathBuf,
        /// The answer.
        source: std::io::Error,
    },
}

impl ProbeFailure {
    /// Whether the database is to blame.
    pub(super) fn is_damage(&self) -> bool {
        matches!(self, Self::Damaged { .. } | Self::Deadline { .. })
    }
}

/// Opens and reads the database in `dir` in a child process.
///
/// The child holds `lock`, too, by inheriting its open file description as standard input: when we are killed, our
/// successor waits until the orphan has let go of the database, instead of finding sled's lock taken by it.
pub(super) fn probe(dir: &Path, command: &ProbeCommand, lock: &File) -> Result<(), ProbeFailure> {
    let failed = |source| ProbeFailure::Spawn {
        program: command.program.clone(),
        source,
    };
    let child = Command::new(&command.program)
        .args(&command.arguments)
        .arg(dir)
        .stdin(lock.try_clone().map_err(failed)?)
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .map_err(failed)?;
    let Some(status) = wait(child, command.deadline) else {
        return Err(ProbeFailure::Deadline {
            deadline: command.deadline,
        });
    };
    match status.code().and_then(|code| u8::try_from(code).ok()) {
        Some(HEALTHY) => Ok(()),
        Some(DISK_FULL) => Err(ProbeFailure::DiskFull),
        Some(ENVIRONMENT) => Err(ProbeFailure::Environment),
        _ => Err(ProbeFailure::Damaged { status }),
    }
}

/// The child's side: opens, reads everything, closes. A panic or a signal is an answer, too.
pub fn probe_in_this_process(dir: &Path) -> ExitCode {
    ExitCode::from(verdict(dir))
}

pub(super) fn verdict(dir: &Path) -> u8 {
    // An orphan keeps the database locked. It dies with its parent, or, when the parent died before this line, by
    // the alarm.
    set_pdeathsig(Signal::SIGKILL).ok();
    alarm::set(u32::try_from(DEADLINE.as_secs()).unwrap_or(u32::MAX));
    // Expected here, and nobody reads it.
    std::panic::set_hook(Box::new(|_| {}));
    if is_locked(&file_in(dir)) {
        return ENVIRONMENT;
    }
    match read_everything(dir) {
        Ok(()) => HEALTHY,
        Err(error) if error.is_disk_full() => DISK_FULL,
        Err(error) if error.is_environment() => ENVIRONMENT,
        Err(_) => DAMAGED,
    }
}

fn read_everything(dir: &Path) -> Result<(), EngineError> {
    let engine = Engine::open(dir, Options::default().cache_bytes)?;
    engine.scan().try_for_each(|item| item.map(drop))?;
    engine.close();
    Ok(())
}

/// `None` when the child had to be killed.
fn wait(mut child: Child, deadline: Duration) -> Option<ExitStatus> {
    let end = Instant::now() + deadline;
    loop {
        match child.try_wait() {
            Ok(Some(status)) => return Some(status),
            Ok(None) if Instant::now() < end => std::thread::sleep(POLL),
            Ok(None) | Err(_) => {
                drop(child.kill());
                drop(child.wait());
                return None;
            }
        }
    }
}
