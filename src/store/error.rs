//! What can go wrong, and which of it passes.

use std::io;
use std::path::PathBuf;
use std::sync::Arc;

use thiserror::Error;

use super::engine::EngineError;
use super::full::is_disk_full;
use super::{MAX_ENTRIES, MAX_KEY_BYTES, MAX_QUEUED, MAX_VALUE_BYTES, MAX_WRITES, Write};

/// Why the database can't be opened. Damage is not among the reasons: it is repaired.
#[derive(Debug, Error)]
pub enum OpenError {
    /// Somebody else has it.
    #[error("the database {dir} is locked by another process; is a second ipamd running?")]
    Locked {
        /// The database's directory.
        dir: PathBuf,
    },
    /// The directory holds something else.
    #[error("{dir} is not empty and holds no aws-cni database; nothing was touched")]
    Foreign {
        /// The directory.
        dir: PathBuf,
    },
    /// A later version made it.
    #[error(
        "the database {dir} has format {found}, this version knows up to {supported}; nothing was touched"
    )]
    FutureFormat {
        /// The directory.
        dir: PathBuf,
        /// Its format.
        found: u32,
        /// Ours.
        supported: u32,
    },
    /// No space left, even with the ballast given up.
    #[error("no space left on the disk of {dir}")]
    DiskFull {
        /// The directory.
        dir: PathBuf,
    },
    /// The system refuses something, and not because the database is damaged.
    #[error("cannot {action} {path}")]
    Io {
        /// What was tried.
        action: &'static str,
        /// With what.
        path: PathBuf,
        /// The answer.
        source: io::Error,
    },
    /// The database engine refuses, and not because the database is damaged.
    #[error("cannot open the database {dir}")]
    Engine {
        /// The directory.
        dir: PathBuf,
        /// The answer.
        source: EngineError,
    },
    /// No thread to work in.
    #[error("cannot start the store's thread")]
    Thread {
        /// The answer.
        source: io::Error,
    },
}

impl OpenError {
    /// Whether only space is missing.
    pub fn is_disk_full(&self) -> bool {
        match self {
            Self::DiskFull { .. } => true,
            Self::Io { source, .. } => is_disk_full(source),
            Self::Engine { source, .. } => source.is_disk_full(),
            Self::Locked { .. } | Self::Foreign { .. } | Self::FutureFormat { .. } | Self::Thread { .. } => {
                false
            }
        }
    }
}

/// Why a change is not on the disk.
#[derive(Debug, Clone, Error)]
pub enum CommitError {
    /// Never written.
    #[error("key of {bytes} bytes is longer than {MAX_KEY_BYTES}")]
    KeyTooLong {
        /// Its length.
        bytes: usize,
    },
    /// Never written: keys that start with NUL are the store's own.
    #[error("key is empty or starts with NUL")]
    ReservedKey,
    /// Never written.
    #[error("value of {key} has {bytes} bytes, more than {MAX_VALUE_BYTES}")]
    ValueTooLong {
        /// Its key.
        key: String,
        /// Its length.
        bytes: usize,
    },
    /// Never written.
    #[error("{writes} writes in one commit are more than {MAX_WRITES}")]
    TooManyWrites {
        /// How many.
        writes: usize,
    },
    /// Never written.
    #[error("the database is full: {entries} keys would be more than {MAX_ENTRIES}")]
    TooManyEntries {
        /// How many there would be.
        entries: usize,
    },
    /// Never written.
    #[error("{MAX_QUEUED} commits are waiting for the disk already")]
    QueueFull,
    /// Never written.
    #[error("the store is closed")]
    Stopped,
    /// Kept in memory, in order, and written as soon as there is space.
    #[error("the disk is full; the change waits in memory")]
    DiskFull,
    /// Kept in memory, in order, and tried again.
    #[error("the change can't be written and waits in memory")]
    Engine {
        /// The answer.
        source: Arc<EngineError>,
    },
    /// A directory operation of the repair failed; kept in memory, in order, and tried again.
    #[error("the database can't be repaired and the change waits in memory")]
    Repair {
        /// The answer.
        source: Arc<OpenError>,
    },
}

impl CommitError {
    /// Whether the change stays queued and becomes durable later.
    pub fn will_be_retried(&self) -> bool {
        matches!(self, Self::DiskFull | Self::Engine { .. } | Self::Repair { .. })
    }
}

pub(super) fn check_sizes(writes: &[Write]) -> Result<(), CommitError> {
    if writes.len() > MAX_WRITES {
        return Err(CommitError::TooManyWrites { writes: writes.len() });
    }
    writes.iter().try_for_each(|write| {
        let key = write.key();
        if key.is_empty() || key.starts_with('\0') {
            return Err(CommitError::ReservedKey);
        }
        if key.len() > MAX_KEY_BYTES {
            return Err(CommitError::KeyTooLong { bytes: key.len() });
        }
        match write {
            Write::Put { value, .. } if value.len() > MAX_VALUE_BYTES => Err(CommitError::ValueTooLong {
                key: key.to_owned(),
                bytes: value.len(),
            }),
            Write::Put { .. } | Write::Remove { .. } => Ok(()),
        }
    })
}
