//! Space kept to be given up: sled can't even be opened on a full disk.

use std::fs;
use std::io::{self, Write};
use std::path::Path;

use nix::errno::Errno;
use nix::fcntl::{FallocateFlags, fallocate};
use nix::sys::statvfs::statvfs;

use super::layout::{create, sync_directory};

/// The ballast is laid down only when this many times its size is free, so that it never is what fills the disk.
const HEADROOM: u64 = 3;

/// Gives the space up. True when there was any.
pub(super) fn release(path: &Path) -> bool {
    let released = fs::remove_file(path).is_ok();
    if let (true, Some(dir)) = (released, path.parent()) {
        // ext4 hands freed blocks out again once the transaction that freed them is committed.
        drop(sync_directory(dir));
    }
    released
}

/// Whether the ballast is there in full.
pub(super) fn is_there(path: &Path, bytes: u64) -> bool {
    bytes == 0 || fs::metadata(path).is_ok_and(|metadata| metadata.len() >= bytes)
}

/// Lays the ballast down when there is room. True when it is there afterwards.
pub(super) fn lay_down(path: &Path, bytes: u64) -> io::Result<bool> {
    if is_there(path, bytes) {
        return Ok(true);
    }
    let dir = path.parent().unwrap_or(Path::new("."));
    let free = statvfs(dir)?;
    if free.blocks_available().saturating_mul(free.fragment_size()) < bytes.saturating_mul(HEADROOM) {
        return Ok(false);
    }
    allocate(path, bytes).inspect_err(|_| drop(fs::remove_file(path)))?;
    Ok(true)
}

fn allocate(path: &Path, bytes: u64) -> io::Result<()> {
    let mut file = create(path)?;
    let length = i64::try_from(bytes).map_err(|_| io::ErrorKind::InvalidInput)?;
    match fallocate(&file, FallocateFlags::empty(), 0, length) {
        Err(Errno::EOPNOTSUPP | Errno::ENOSYS) => write_noise(&mut file, bytes),
        other => Ok(other?),
    }
}

/// Where blocks can't be reserved: bytes that no file system can compress away.
fn write_noise(file: &mut fs::File, bytes: u64) -> io::Result<()> {
    let mut block = [0_u8; 4096];
    for _ in 0..bytes.div_ceil(4096) {
        getrandom::fill(&mut block).map_err(|error| io::Error::other(error.to_string()))?;
        file.write_all(&block)?;
    }
    file.sync_all()
}
