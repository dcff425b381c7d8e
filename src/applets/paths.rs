//! Where the daemon's socket and state are.

use std::path::PathBuf;

/// The daemon's socket.
pub(super) fn socket() -> PathBuf {
    from_environment("AWS_CNI_SOCKET", "/run/aws-cni/ipamd.sock")
}

/// The folder of everything that outlives a reboot.
pub(super) fn state_dir() -> PathBuf {
    from_environment("AWS_CNI_STATE_DIR", "/var/lib/aws-cni")
}

fn from_environment(variable: &str, default: &str) -> PathBuf {
    std::env::var_os(variable)
        .filter(|value| !value.is_empty())
        .map_or_else(|| PathBuf::from(default), PathBuf::from)
}
