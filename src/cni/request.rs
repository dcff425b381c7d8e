//! A runtime's call, checked in upstream's order.

use super::conf::check_name;
use super::environment::{Environment, Verb};
use super::error::{CniError, Code};
use super::version::{self, Version};

/// Largest configuration; a conflist with a `prevResult` has a few kilobytes.
pub const MAX_STDIN: u64 = 4 * 1024 * 1024;

/// What is wanted.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Request {
    /// Print the versions; nothing is read for it.
    Version,
    /// Do something.
    Call(Call),
}

/// A call whose environment and version are in order. Its configuration beyond that is the plugin's to judge.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Call {
    /// What to do.
    pub verb: Verb,
    /// The variables.
    pub environment: Environment,
    /// The version the configuration asks for.
    pub version: Version,
    /// The configuration.
    pub stdin: Vec<u8>,
}

/// Reads a call: variables, then stdin through `read_stdin` (not for VERSION), name, ids, verb and version.
///
/// # Errors
/// The first check that fails.
pub fn read(
    environment: Environment,
    read_stdin: impl FnOnce() -> std::io::Result<Vec<u8>>,
) -> Result<Request, CniError> {
    environment.check_required()?;
    if environment.command == "VERSION" {
        return Ok(Request::Version);
    }
    let stdin = read_stdin()
        .map_err(|error| CniError::new(Code::Io, format!("error reading from stdin: {error}")))?;
    check_name(&stdin)?;
    environment.check_names()?;
    let verb = environment.verb().ok_or_else(|| {
        CniError::new(
            Code::InvalidEnvironment,
            format!("unknown CNI_COMMAND: {}", environment.command),
        )
    })?;
    let version = version_for(verb, &stdin)?;
    Ok(Request::Call(Call {
        verb,
        environment,
        version,
        stdin,
    }))
}

fn version_for(verb: Verb, stdin: &[u8]) -> Result<Version, CniError> {
    let since = match verb {
        Verb::Add | Verb::Del => None,
        Verb::Check => Some((Version::V0_4_0, "CHECK")),
        Verb::Status => Some((Version::V1_1_0, "STATUS")),
        Verb::Gc => Some((Version::V1_1_0, "GC")),
    };
    if let Some((since, verb)) = since
        && !version::at_least(&version::asked_for(stdin)?, since)?
    {
        let message = format!("config version does not allow {verb}");
        return Err(CniError::new(Code::IncompatibleVersion, message));
    }
    Version::of_config(stdin)
}
