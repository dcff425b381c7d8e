//! What every CNI plugin does around its own work: read the call, print the answer, nothing else on stdout.

use std::io::{Read, Write};
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::process::ExitCode;

use argh::FromArgs;

use super::terminal;
use crate::cni::environment::Environment;
use crate::cni::error::{CniError, Code};
use crate::cni::request::{self, Call, MAX_STDIN, Request};
use crate::cni::version;
use crate::observe::{self, LogDestination, LogLevel, Stdout};

/// A CNI plugin, run by the container runtime with `CNI_COMMAND` in its environment
/// (<https://github.com/containernetworking/cni/blob/main/SPEC.md>).
#[derive(FromArgs)]
struct Arguments {
    /// print the version
    #[argh(switch)]
    version: bool,
}

/// Runs a plugin: `serve` answers what goes to stdout. Without `CNI_COMMAND` it says what it is, as upstream does.
pub(super) fn run(
    applet: &str,
    about: &str,
    args: &[String],
    serve: impl FnOnce(&Call) -> Result<String, CniError>,
) -> ExitCode {
    let environment = Environment::read(|name| {
        std::env::var_os(name)
            .map(|value| value.to_string_lossy().into_owned())
            .unwrap_or_default()
    });
    if environment.command.is_empty() {
        return introduce(applet, about, args);
    }
    let outcome = match request::read(environment, read_stdin) {
        Ok(Request::Version) => Ok(version::answer()),
        Ok(Request::Call(call)) => serve(&call),
        Err(error) => Err(error),
    };
    match outcome.and_then(|answer| print(&answer)) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            print(&error.to_json()).ok();
            ExitCode::FAILURE
        }
    }
}

fn introduce(applet: &str, about: &str, args: &[String]) -> ExitCode {
    match terminal::parse::<Arguments>(applet, args) {
        Ok(Arguments { version: true }) => terminal::say(&terminal::version_text(applet)),
        Ok(_) => {
            terminal::complain(&format!("{about} {}", env!("CARGO_PKG_VERSION")));
            terminal::complain(&format!("CNI protocol versions supported: {}", version::list()));
        }
        Err(status) => return status,
    }
    ExitCode::SUCCESS
}

fn read_stdin() -> std::io::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    std::io::stdin().lock().take(MAX_STDIN).read_to_end(&mut bytes)?;
    Ok(bytes)
}

/// Starts logging where the conflist says. A place that can't be written to costs the log, never the pod.
pub(super) fn start_log(applet: &str, file: Option<&str>, level: &str) {
    let destination = LogDestination::of_plugin(file);
    let level = level.parse().unwrap_or(LogLevel::Info);
    if let Err(error) = observe::init(applet, level, &destination, Stdout::Protocol) {
        tracing::warn!("{error}");
    }
}

/// Writes an answer whole.
///
/// # Errors
/// Code 5 when the runtime is gone.
pub(super) fn print(answer: &str) -> Result<(), CniError> {
    let mut stdout = std::io::stdout().lock();
    stdout
        .write_all(answer.as_bytes())
        .and_then(|()| stdout.flush())
        .map_err(|error| CniError::new(Code::Io, format!("error writing to stdout: {error}")))
}

/// Whether a namespace path is the namespace this process is in; what can't be looked at is not.
pub(super) fn is_own_netns(path: &str) -> bool {
    let identity = |path: &Path| std::fs::metadata(path).ok().map(|file| (file.dev(), file.ino()));
    let own = identity(Path::new("/proc/self/ns/net"));
    own.is_some() && own == identity(Path::new(path))
}
