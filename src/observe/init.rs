//! Switching logging on, once for each process.

use std::io::{self, IsTerminal};
use std::path::PathBuf;
use std::sync::Mutex;

use tracing::level_filters::LevelFilter;
use tracing_subscriber::filter::Targets;
use tracing_subscriber::layer::{Layer as _, SubscriberExt};

use super::auto::Auto;
use super::file::LogFile;
use super::layer::{Output, Sink};
use super::level::{LogDestination, LogLevel};

/// What stdout is for in this process.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Stdout {
    /// The answer to the container runtime: never a log line.
    Protocol,
    /// Nobody's in particular.
    Free,
}

/// Why nothing will be logged, or not where it was asked for.
#[derive(Debug, thiserror::Error)]
pub enum LogError {
    /// Somebody switched logging on before.
    #[error("logging is already switched on in this process")]
    AlreadyOn,
    /// The file cannot be written; logging goes to the default destination instead.
    #[error("cannot log to {}: {source}; logging to journald or stderr instead", path.display())]
    File {
        /// The file.
        path: PathBuf,
        /// What the kernel said.
        source: io::Error,
    },
}

/// Switches logging on.
///
/// Our own events are filtered by `level`, those of libraries by warning: their debug output describes their insides.
/// With [`LogDestination::Auto`] a terminal on stderr has precedence over journald, because somebody is watching.
/// After [`LogError::File`] logging is on nevertheless.
pub fn init(
    applet: &str,
    level: LogLevel,
    destination: &LogDestination,
    stdout: Stdout,
) -> Result<(), LogError> {
    let (place, problem) = match destination {
        LogDestination::File(path) => match LogFile::open(path) {
            Ok(file) => (lines(Sink::File(Mutex::new(file))), None),
            Err(source) => (
                auto(applet),
                Some(LogError::File {
                    path: path.clone(),
                    source,
                }),
            ),
        },
        LogDestination::Stdout if stdout == Stdout::Free => (lines(Sink::Stdout), None),
        LogDestination::Stdout | LogDestination::Stderr => (stderr(), None),
        LogDestination::Auto => (auto(applet), None),
    };
    let subscriber = tracing_subscriber::registry()
        .with(place.auto.map(|auto| auto.with_filter(filter(level))))
        .with(place.lines.map(|lines| lines.with_filter(filter(level))));
    tracing::subscriber::set_global_default(subscriber).map_err(|_| LogError::AlreadyOn)?;
    problem.map_or(Ok(()), Err)
}

/// One of the two.
struct Place {
    auto: Option<Auto>,
    lines: Option<Output>,
}

fn lines(sink: Sink) -> Place {
    Place {
        auto: None,
        lines: Some(Output { sink }),
    }
}

fn filter(level: LogLevel) -> Targets {
    let libraries = level.filter().min(LevelFilter::WARN);
    Targets::new()
        .with_default(libraries)
        .with_target("aws_cni", level.filter())
}

fn stderr() -> Place {
    lines(Sink::stderr())
}

fn auto(applet: &str) -> Place {
    if io::stderr().is_terminal() {
        return stderr();
    }
    Place {
        auto: Some(Auto::new(applet)),
        lines: None,
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;
    use crate::observe::record::Record;

    fn collect(level: LogLevel, log: impl FnOnce()) -> Vec<Record> {
        let records = Arc::new(Mutex::new(Vec::new()));
        let output = Output {
            sink: Sink::Memory(Arc::clone(&records)),
        };
        let subscriber = tracing_subscriber::registry().with(output.with_filter(filter(level)));
        tracing::subscriber::with_default(subscriber, log);
        let records = records.lock().unwrap();
        records.clone()
    }

    #[test]
    fn spans_lend_their_fields_to_events() {
        let records = collect(LogLevel::Info, || {
            let span = tracing::info_span!("add", pod = "ns/a", address = tracing::field::Empty);
            let _entered = span.enter();
            span.record("address", "10.0.0.5");
            tracing::info!(eni = %"eni-1", pod = "ns/b", count = 3, "assigned");
        });
        assert_eq!(
            records[0].text(),
            "assigned pod=ns/b address=10.0.0.5 eni=eni-1 count=3"
        );
    }

    #[test]
    fn libraries_are_heard_from_warnings_on() {
        let log = || {
            tracing::debug!("ours");
            tracing::debug!(target: "aws_smithy_runtime", "theirs");
            tracing::warn!(target: "aws_smithy_runtime", "their warning");
            tracing::error!("our error");
        };
        let messages =
            |level| -> Vec<String> { collect(level, log).into_iter().map(|r| r.message).collect() };
        assert_eq!(messages(LogLevel::Debug), ["ours", "their warning", "our error"]);
        assert_eq!(messages(LogLevel::Warn), ["their warning", "our error"]);
        assert_eq!(messages(LogLevel::Fatal), ["our error"]);
    }
}
