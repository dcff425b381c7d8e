//! Logs and metrics, and the word to systemd.
//!
//! Names of log fields, so that they can be searched for: `pod` and `namespace`, `container` (the sandbox), `eni`,
//! `address`, `action`, `code` and `request_id` (of EC2). In the journal they are `AWS_CNI_POD` and so on.

mod auto;
mod file;
mod init;
mod layer;
pub mod level;
mod record;
mod systemd;

pub use init::{LogError, Stdout, init};
pub use level::{LogDestination, LogLevel};
pub use systemd::{NotifyError, Systemd};
