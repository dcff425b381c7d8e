//! Where the plugins log: journald, else stderr, or a file when the conflist names one. Never stdout, which carries
//! the result.

use std::fs::{File, OpenOptions};
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

use tracing::level_filters::LevelFilter;
use tracing_subscriber::layer::SubscriberExt;
use tracing_subscriber::{Layer, Registry, fmt};

/// The file is set aside under `.1` beyond this size, so that a node never keeps more than twice as much.
const LARGEST_FILE: u64 = 100 * 1024 * 1024;

/// Starts logging. A place that can't be written to costs the log, never the pod.
pub(super) fn start(applet: &str, file: Option<&str>, level: &str) {
    let layer = match file {
        Some(name) if name.eq_ignore_ascii_case("stderr") => to_stderr(),
        Some(path) if !path.eq_ignore_ascii_case("stdout") => {
            to_file(Path::new(path)).unwrap_or_else(to_stderr)
        }
        _ => to_journald(applet).unwrap_or_else(to_stderr),
    };
    let subscriber = Registry::default().with(layer.with_filter(filter(level)));
    // Set a second time only in tests, where the first one serves.
    tracing::subscriber::set_global_default(subscriber).ok();
}

type BoxedLayer = Box<dyn Layer<Registry> + Send + Sync>;

fn filter(level: &str) -> LevelFilter {
    match level.to_ascii_lowercase().as_str() {
        "debug" => LevelFilter::DEBUG,
        "warn" => LevelFilter::WARN,
        "error" | "fatal" => LevelFilter::ERROR,
        _ => LevelFilter::INFO,
    }
}

fn to_journald(applet: &str) -> Option<BoxedLayer> {
    let layer = tracing_journald::layer().ok()?;
    Some(Box::new(
        layer
            .with_syslog_identifier(applet.to_owned())
            .with_field_prefix(None),
    ))
}

fn to_stderr() -> BoxedLayer {
    Box::new(
        fmt::layer()
            .with_ansi(false)
            .with_target(false)
            .with_writer(std::io::stderr),
    )
}

fn to_file(path: &Path) -> Option<BoxedLayer> {
    let file = open(path).ok()?;
    Some(Box::new(
        fmt::layer().with_ansi(false).with_target(false).with_writer(file),
    ))
}

fn open(path: &Path) -> std::io::Result<File> {
    if std::fs::metadata(path).is_ok_and(|file| file.len() > LARGEST_FILE) {
        let mut aside = path.as_os_str().to_owned();
        aside.push(".1");
        std::fs::rename(path, aside)?;
    }
    OpenOptions::new()
        .append(true)
        .create(true)
        .mode(0o640)
        .open(path)
}
