//! Whether the disk is full.

use std::io;

/// ENOSPC or EDQUOT. The kind survives sled's cloning of errors, the number does not.
pub(super) fn is_disk_full(error: &io::Error) -> bool {
    matches!(
        error.kind(),
        io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded
    )
}
