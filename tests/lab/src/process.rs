//! Daemons inside a namespace: started, watched, killed, started again, and never outliving the lab.
//!
//! `PR_SET_PDEATHSIG` is sent when the *thread* that forked ends, so every daemon has a thread of its own that starts
//! it, waits for it and holds the namespace. It is set by `setpriv --pdeathsig KILL` (util-linux); a shell between
//! the two closes the gap in which the lab may already be gone, and places an inherited socket where systemd would.

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::fs::{File, OpenOptions};
use std::io::{self, Read};
use std::os::fd::OwnedFd;
use std::os::unix::net::{UnixDatagram, UnixListener, UnixStream};
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError, mpsc};
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::sys::signal::{Signal, kill, killpg};
use nix::sys::wait::{Id, WaitPidFlag, waitid};
use nix::unistd::Pid;

use crate::netns::{Netns, NetnsError};

/// Exits if the lab is gone already; hands an inherited listener over as systemd does, as descriptor 3.
const WRAPPER: &str = r#"
[ "$PPID" = "$0" ] || exit 125
if [ -n "$LAB_LISTENER" ]; then
  unset LAB_LISTENER
  LISTEN_PID=$$ LISTEN_FDS=1 exec "$@" 3<&0 </dev/null
fi
exec "$@"
"#;

/// Why a daemon can't be started or did not do what was waited for.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ProcessError {
    /// The namespace could not be entered.
    #[error(transparent)]
    Netns(#[from] NetnsError),
    /// It could not be started.
    #[error("starting {program}: {error}", program = program.display())]
    Start {
        /// What.
        program: PathBuf,
        /// Why not.
        error: io::Error,
    },
    /// A signal could not be sent.
    #[error("sending {signal} to process {pid}: {error}")]
    Signal {
        /// Which signal.
        signal: Signal,
        /// To whom.
        pid: i32,
        /// Why not.
        error: Errno,
    },
    /// It ended instead.
    #[error("the process ended with {status} while waiting for {awaited}; its log ends:\n{log_tail}")]
    Ended {
        /// What was waited for.
        awaited: String,
        /// How it ended.
        status: ExitStatus,
        /// The last lines it wrote.
        log_tail: String,
    },
    /// It did not happen in time.
    #[error("waited {within:?} for {awaited}; the process's log ends:\n{log_tail}")]
    Timeout {
        /// What was waited for.
        awaited: String,
        /// How long.
        within: Duration,
        /// The last lines it wrote.
        log_tail: String,
    },
}

/// What to start and how.
#[derive(Debug)]
pub struct DaemonSpec {
    program: PathBuf,
    arguments: Vec<OsString>,
    environment: BTreeMap<OsString, OsString>,
    log: PathBuf,
    listener: Option<UnixListener>,
}

impl DaemonSpec {
    /// Starts `program` with nothing but `PATH` in its environment and its output appended to `log`.
    pub fn new(program: impl Into<PathBuf>, log: impl Into<PathBuf>) -> Self {
        let path = ("PATH".into(), std::env::var_os("PATH").unwrap_or_default());
        Self {
            program: program.into(),
            arguments: Vec::new(),
            environment: [path].into(),
            log: log.into(),
            listener: None,
        }
    }

    /// Adds an argument.
    #[must_use]
    pub fn arg(mut self, argument: impl Into<OsString>) -> Self {
        self.arguments.push(argument.into());
        self
    }

    /// Sets an environment variable.
    #[must_use]
    pub fn env(mut self, name: impl Into<OsString>, value: impl Into<OsString>) -> Self {
        self.environment.insert(name.into(), value.into());
        self
    }

    /// The environment it would get.
    pub fn environment(&self) -> &BTreeMap<OsString, OsString> {
        &self.environment
    }

    /// Passes a listening socket as systemd's socket activation does (`sd_listen_fds(3)`).
    #[must_use]
    pub fn listener(mut self, listener: UnixListener) -> Self {
        self.listener = Some(listener);
        self
    }

    fn command(self, notify: &Path) -> io::Result<Command> {
        let log = OpenOptions::new().create(true).append(true).open(&self.log)?;
        let mut command = Command::new("setpriv");
        command
            .args(["--pdeathsig", "KILL", "--", "sh", "-c", WRAPPER])
            .arg(std::process::id().to_string())
            .arg(self.program)
            .args(self.arguments)
            .env_clear()
            .envs(self.environment)
            .env("NOTIFY_SOCKET", notify)
            .stdin(Stdio::null())
            .stdout(log.try_clone()?)
            .stderr(log)
            .process_group(0); // Ctrl-C is for the lab, which then takes its daemons along
        if let Some(listener) = self.listener {
            command.env("LAB_LISTENER", "1").stdin(OwnedFd::from(listener));
        }
        Ok(command)
    }
}

#[derive(Debug)]
enum State {
    Running(Pid),
    Ended(ExitStatus),
}

#[derive(Debug)]
struct Shared {
    state: Mutex<State>,
    changed: Condvar,
}

impl Shared {
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A started daemon; dropping it kills it.
#[derive(Debug)]
pub struct Daemon {
    shared: Arc<Shared>,
    pid: Pid,
    log: PathBuf,
    log_from: u64,
    notifications: UnixDatagram,
    notify_path: PathBuf,
}

impl Daemon {
    /// Starts it inside `netns`.
    pub fn start(netns: &Netns, spec: DaemonSpec) -> Result<Self, ProcessError> {
        let (program, log) = (spec.program.clone(), spec.log.clone());
        let failed = |error| ProcessError::Start {
            program: program.clone(),
            error,
        };
        let log_from = std::fs::metadata(&log).map_or(0, |metadata| metadata.len());
        let notify_path = log.with_extension("notify");
        remove_if_there(&notify_path).map_err(failed)?;
        let notifications = UnixDatagram::bind(&notify_path).map_err(failed)?;
        let command = spec.command(&notify_path).map_err(failed)?;
        let shared = start_and_watch(netns, command, notify_path.clone(), failed)?;
        let pid = match *shared.state() {
            State::Running(pid) => pid,
            State::Ended(_) => Pid::from_raw(0),
        };
        Ok(Self {
            shared,
            pid,
            log,
            log_from,
            notifications,
            notify_path,
        })
    }

    /// Its process id.
    pub fn pid(&self) -> i32 {
        self.pid.as_raw()
    }

    /// How it ended, if it has.
    pub fn exit_status(&self) -> Option<ExitStatus> {
        match *self.shared.state() {
            State::Running(_) => None,
            State::Ended(status) => Some(status),
        }
    }

    /// Sends a signal; to a process that has ended this does nothing.
    pub fn signal(&self, signal: Signal) -> Result<(), ProcessError> {
        // The watching thread reaps under the same lock, so the number can't have become another process's.
        let state = self.shared.state();
        let State::Running(pid) = *state else {
            return Ok(());
        };
        kill(pid, signal).map_err(|error| ProcessError::Signal {
            signal,
            pid: pid.as_raw(),
            error,
        })
    }

    /// Kills it as `kill -9` does and waits until it is gone.
    pub fn kill(&self) -> Result<ExitStatus, ProcessError> {
        self.signal(Signal::SIGKILL)?;
        self.wait(Duration::from_secs(30))
    }

    /// Asks it to end with SIGTERM and waits.
    pub fn terminate(&self, within: Duration) -> Result<ExitStatus, ProcessError> {
        self.signal(Signal::SIGTERM)?;
        self.wait(within)
    }

    /// Waits until it has ended.
    pub fn wait(&self, within: Duration) -> Result<ExitStatus, ProcessError> {
        let state = self.shared.state();
        let running = |state: &mut State| matches!(state, State::Running(_));
        let waited = self.shared.changed.wait_timeout_while(state, within, running);
        let (state, _) = waited.unwrap_or_else(PoisonError::into_inner);
        match *state {
            State::Ended(status) => Ok(status),
            State::Running(_) => Err(self.timeout("its end", within)),
        }
    }

    /// Waits for `READY=1` on its notification socket (`sd_notify(3)`).
    pub fn wait_ready(&self, within: Duration) -> Result<(), ProcessError> {
        self.wait_notification("READY=1", within)
    }

    /// Waits for a line on its notification socket; what comes before it is read and forgotten.
    pub fn wait_notification(&self, line: &str, within: Duration) -> Result<(), ProcessError> {
        let until = Instant::now() + within;
        let mut message = [0_u8; 4096];
        loop {
            let left = until.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return Err(self.timeout(line, within));
            }
            self.notifications
                .set_read_timeout(Some(left))
                .map_err(|error| self.start_error(error))?;
            let Ok(length) = self.notifications.recv(&mut message) else {
                continue;
            };
            let text = message.get(..length).unwrap_or_default();
            if text
                .split(|byte| *byte == b'\n')
                .any(|said| said == line.as_bytes())
            {
                return Ok(());
            }
            if let Some(status) = self.exit_status() {
                return Err(self.ended(line, status));
            }
        }
    }

    /// Waits until something accepts connections at `socket`.
    pub fn wait_socket(&self, socket: &Path, within: Duration) -> Result<(), ProcessError> {
        self.poll(&format!("a listener at {}", socket.display()), within, || {
            UnixStream::connect(socket).is_ok()
        })
    }

    /// Waits until it has written `text`.
    pub fn wait_log(&self, text: &str, within: Duration) -> Result<(), ProcessError> {
        self.poll(&format!("{text:?} in its log"), within, || {
            self.log().contains(text)
        })
    }

    /// What this run has written so far.
    pub fn log(&self) -> String {
        let mut text = Vec::new();
        let read = File::open(&self.log).and_then(|mut file| {
            io::Seek::seek(&mut file, io::SeekFrom::Start(self.log_from))?;
            file.read_to_end(&mut text)
        });
        match read {
            Ok(_) => String::from_utf8_lossy(&text).into_owned(),
            Err(error) => format!("(no log: {error})"),
        }
    }

    /// Neither a connectable socket nor a growing file has an event to wait for, so these two are looked at.
    fn poll(
        &self,
        awaited: &str,
        within: Duration,
        mut holds: impl FnMut() -> bool,
    ) -> Result<(), ProcessError> {
        let until = Instant::now() + within;
        while !holds() {
            if let Some(status) = self.exit_status() {
                return if holds() {
                    Ok(())
                } else {
                    Err(self.ended(awaited, status))
                };
            }
            if Instant::now() >= until {
                return Err(self.timeout(awaited, within));
            }
            std::thread::sleep(Duration::from_millis(5));
        }
        Ok(())
    }

    fn log_tail(&self) -> String {
        let log = self.log();
        let lines: Vec<_> = log.lines().collect();
        let tail = lines.get(lines.len().saturating_sub(20)..).unwrap_or_default();
        tail.join("\n")
    }

    fn timeout(&self, awaited: &str, within: Duration) -> ProcessError {
        ProcessError::Timeout {
            awaited: awaited.to_owned(),
            within,
            log_tail: self.log_tail(),
        }
    }

    fn ended(&self, awaited: &str, status: ExitStatus) -> ProcessError {
        ProcessError::Ended {
            awaited: awaited.to_owned(),
            status,
            log_tail: self.log_tail(),
        }
    }

    fn start_error(&self, error: io::Error) -> ProcessError {
        ProcessError::Start {
            program: self.notify_path.clone(),
            error,
        }
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        // Nothing more can be done about a process that will not die; its parent's death signal remains.
        drop(self.kill());
        drop(remove_if_there(&self.notify_path));
    }
}

/// Starts the daemon on a thread of its own, which then waits for its end.
fn start_and_watch(
    netns: &Netns,
    mut command: Command,
    notify: PathBuf,
    failed: impl Fn(io::Error) -> ProcessError,
) -> Result<Arc<Shared>, ProcessError> {
    let (started, starting) = mpsc::channel::<io::Result<Arc<Shared>>>();
    let _watcher = netns.spawn("watch-daemon", move || {
        let child = match command.spawn() {
            Ok(child) => child,
            Err(error) => return drop(started.send(Err(error))),
        };
        let pid = Pid::from_raw(i32::try_from(child.id()).unwrap_or(0));
        let shared = Arc::new(Shared {
            state: Mutex::new(State::Running(pid)),
            changed: Condvar::new(),
        });
        drop(command); // closes our copy of an inherited listener
        drop(started.send(Ok(Arc::clone(&shared))));
        watch(child, pid, &shared);
        // Wakes wait_ready, which waits for a datagram. Nobody listens after a drop.
        drop(UnixDatagram::unbound().and_then(|socket| socket.send_to(b"EXITED", &notify)));
    })?;
    starting
        .recv()
        .unwrap_or_else(|_| Err(io::Error::other("its namespace could not be entered")))
        .map_err(failed)
}

fn watch(mut child: Child, pid: Pid, shared: &Shared) {
    while waitid(Id::Pid(pid), WaitPidFlag::WEXITED | WaitPidFlag::WNOWAIT) == Err(Errno::EINTR) {}
    // Its children go with it, as systemd's KillMode=control-group has it. Until it is reaped the number of its
    // process group can't be another's.
    match killpg(pid, Signal::SIGKILL) {
        Ok(()) | Err(_) => {} // nobody else in the group is the usual case
    }
    let mut state = shared.state();
    // It has ended, so this only reaps. The fallback can't be reached: the child is ours.
    *state = State::Ended(child.wait().unwrap_or_else(|_| ExitStatus::from_raw(0)));
    shared.changed.notify_all();
}

fn remove_if_there(path: &Path) -> io::Result<()> {
    match std::fs::remove_file(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        other => other,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SOON: Duration = Duration::from_secs(20);

    fn shell(dir: &Path, script: &str) -> DaemonSpec {
        DaemonSpec::new("/bin/sh", dir.join("daemon.log"))
            .arg("-c")
            .arg(script)
    }

    #[test]
    fn a_daemon_is_started_logged_and_killed() {
        let (dir, netns) = (tempfile::tempdir().unwrap(), Netns::new().unwrap());
        let spec = shell(dir.path(), "echo up $WHO; exec sleep 1000").env("WHO", "node-a");
        let daemon = Daemon::start(&netns, spec).unwrap();
        daemon.wait_log("up node-a", SOON).unwrap();
        assert_eq!(daemon.exit_status(), None);
        let status = daemon.kill().unwrap();
        assert_eq!(status.signal(), Some(9));
        daemon.signal(Signal::SIGTERM).unwrap();
    }

    #[test]
    fn its_children_go_with_it() {
        let (dir, netns) = (tempfile::tempdir().unwrap(), Netns::new().unwrap());
        let daemon = Daemon::start(&netns, shell(dir.path(), "sleep 1000 & echo child $!.; wait")).unwrap();
        daemon.wait_log(".\n", SOON).unwrap();
        let log = daemon.log();
        let child = log
            .strip_prefix("child ")
            .unwrap()
            .trim_end()
            .trim_end_matches('.')
            .to_owned();
        daemon.kill().unwrap();
        let until = Instant::now() + SOON;
        // An orphan is reaped by init, some time after its death.
        while std::fs::read_to_string(format!("/proc/{child}/cmdline")).is_ok_and(|text| !text.is_empty()) {
            assert!(Instant::now() < until);
            std::thread::sleep(Duration::from_millis(5));
        }
    }

    #[test]
    fn its_end_is_reported_instead_of_readiness() {
        let (dir, netns) = (tempfile::tempdir().unwrap(), Netns::new().unwrap());
        let daemon = Daemon::start(&netns, shell(dir.path(), "echo no luck; exit 3")).unwrap();
        let error = daemon.wait_ready(SOON).unwrap_err();
        assert!(
            matches!(&error, ProcessError::Ended { status, log_tail, .. }
            if status.code() == Some(3) && log_tail.contains("no luck")),
            "{error}"
        );
    }

    #[test]
    fn a_listener_is_passed_as_systemd_does() {
        let (dir, netns) = (tempfile::tempdir().unwrap(), Netns::new().unwrap());
        let listener = UnixListener::bind(dir.path().join("socket")).unwrap();
        let script = "readlink /proc/self/fd/3; echo $LISTEN_FDS $((LISTEN_PID - $$)); sleep 1000";
        let daemon = Daemon::start(&netns, shell(dir.path(), script).listener(listener)).unwrap();
        daemon.wait_log("1 0\n", SOON).unwrap();
        assert!(daemon.log().starts_with("socket:["), "{}", daemon.log());
    }

    #[test]
    fn a_missing_program_is_named() {
        let (dir, netns) = (tempfile::tempdir().unwrap(), Netns::new().unwrap());
        let spec = DaemonSpec::new("/nonexistent/ipamd", dir.path().join("log"));
        let daemon = Daemon::start(&netns, spec).unwrap();
        let error = daemon.wait_ready(SOON).unwrap_err();
        assert!(error.to_string().contains("/nonexistent/ipamd"), "{error}");
    }
}
