//! How much is logged and where to, in upstream's words.

use std::fmt;
use std::path::PathBuf;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

/// The least severe event that is logged.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum LogLevel {
    /// Everything.
    Debug,
    /// What changed, and why.
    #[default]
    Info,
    /// What deserves a look.
    Warn,
    /// What failed.
    Error,
    /// Upstream's word for "only what ends the process"; here the same as [`LogLevel::Error`].
    Fatal,
}

impl LogLevel {
    /// The words of this setting, in order.
    pub const WORDS: &'static str = "debug, info, warn, error or fatal";

    /// The same level in terms of `tracing`.
    pub fn filter(self) -> tracing::level_filters::LevelFilter {
        use tracing::level_filters::LevelFilter;
        match self {
            Self::Debug => LevelFilter::DEBUG,
            Self::Info => LevelFilter::INFO,
            Self::Warn => LevelFilter::WARN,
            Self::Error | Self::Fatal => LevelFilter::ERROR,
        }
    }
}

impl fmt::Display for LogLevel {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Debug => "debug",
            Self::Info => "info",
            Self::Warn => "warn",
            Self::Error => "error",
            Self::Fatal => "fatal",
        })
    }
}

/// A word that is none of [`LogLevel::WORDS`].
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{word:?} is not a log level ({})", LogLevel::WORDS)]
pub struct UnknownLogLevel {
    /// What was read.
    pub word: String,
}

impl FromStr for LogLevel {
    type Err = UnknownLogLevel;

    fn from_str(word: &str) -> Result<Self, Self::Err> {
        match word.to_ascii_lowercase().as_str() {
            "debug" => Ok(Self::Debug),
            "info" => Ok(Self::Info),
            "warn" => Ok(Self::Warn),
            "error" => Ok(Self::Error),
            "fatal" => Ok(Self::Fatal),
            _ => Err(UnknownLogLevel {
                word: word.to_owned(),
            }),
        }
    }
}

/// Where log lines go.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub enum LogDestination {
    /// journald when its socket is there, stderr otherwise.
    #[default]
    Auto,
    /// One line per event on stderr.
    Stderr,
    /// One line per event on stdout; the plugin applets treat it as [`LogDestination::Stderr`], because stdout is
    /// their answer to the runtime.
    Stdout,
    /// One line per event appended to a file.
    File(PathBuf),
}

impl LogDestination {
    /// What a plugin's `pluginLogFile` means; without one journald is asked.
    pub fn of_plugin(file: Option<&str>) -> Self {
        match file {
            None | Some("") => Self::Auto,
            Some(word) if word.eq_ignore_ascii_case("stderr") => Self::Stderr,
            Some(word) if word.eq_ignore_ascii_case("stdout") => Self::Stdout,
            Some(path) => Self::File(path.into()),
        }
    }
}

impl fmt::Display for LogDestination {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Auto => f.write_str("journald"),
            Self::Stderr => f.write_str("stderr"),
            Self::Stdout => f.write_str("stdout"),
            Self::File(path) => write!(f, "{}", path.display()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn levels_are_read_in_any_case_and_nothing_else_is() {
        for (word, level) in [
            ("DEBUG", LogLevel::Debug),
            ("Info", LogLevel::Info),
            ("warn", LogLevel::Warn),
            ("ERROR", LogLevel::Error),
            ("Fatal", LogLevel::Fatal),
        ] {
            assert_eq!(word.parse(), Ok(level));
            assert_eq!(level.to_string().parse(), Ok(level));
        }
        for word in ["", " info", "warning", "trace", "0"] {
            assert!(word.parse::<LogLevel>().is_err(), "{word}");
        }
    }
}
