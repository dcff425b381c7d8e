//! What tests must know of the place they run in.

/// Whether this process is the machine's root, and not that of a user namespace, who may not force buffers, become
/// other users or mount block devices.
pub(crate) fn is_real_root() -> bool {
    let map = std::fs::read_to_string("/proc/self/uid_map").unwrap_or_default();
    let everyone = ["0", "0", "4294967295"];
    nix::unistd::geteuid().is_root() && map.split_whitespace().eq(everyone)
}
