//! Logs and metrics.

pub mod level;

pub use level::{LogDestination, LogLevel};
