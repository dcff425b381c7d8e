//! Where the daemon's socket and state are.

use std::path::PathBuf;

use crate::config::{DEFAULT_SOCKET, DEFAULT_STATE_DIR};

/// The daemon's socket.
pub(super) fn socket() -> PathBuf {
    from_environment("AWS_CNI_SOCKET", DEFAULT_SOCKET)
}

/// The folder of everything that outlives a reboot.
pub(super) fn state_dir() -> PathBuf {
    from_environment("AWS_CNI_STATE_DIR", DEFAULT_STATE_DIR)
}

fn from_environment(variable: &str, default: &str) -> PathBuf {
    std::env::var_os(variable)
        .filter(|value| !value.is_empty())
        .map_or_else(|| PathBuf::from(default), PathBuf::from)
}
