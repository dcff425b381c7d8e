//! sled, and only what we need of it. No other file names it.

use std::fs::File;
use std::io;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use nix::fcntl::{Flock, FlockArg};
use thiserror::Error;

use super::full::is_disk_full;

/// sled's threads may hold its file a moment longer than the database lives.
const UNLOCK_PATIENCE: Duration = Duration::from_secs(2);
const UNLOCK_POLL: Duration = Duration::from_millis(1);
/// An open that fails for the system's reasons is repeated for this long.
const OPEN_PATIENCE: Duration = Duration::from_millis(500);
const OPEN_POLL: Duration = Duration::from_millis(5);

/// What the engine answers.
#[derive(Debug, Error)]
pub enum EngineError {
    /// sled failed; the database must be reopened before anything else.
    #[error("sled")]
    Sled(#[from] sled::Error),
    /// `fdatasync` failed. The kernel has dropped what it could not write, so syncing again proves nothing: the
    /// database must be written anew.
    #[error("fdatasync of the database file")]
    Sync(#[source] io::Error),
    /// The database file itself can't be had.
    #[error("database file")]
    File(#[source] io::Error),
    /// Reopened, it lacks commits that were acknowledged.
    #[error("the database lacks acknowledged commits")]
    WentBack,
    /// The next attempt is not due; this is what the last one said.
    #[error("{0}")]
    Earlier(String),
}

impl EngineError {
    /// Whether only space is missing.
    pub fn is_disk_full(&self) -> bool {
        self.io().is_some_and(is_disk_full)
    }

    /// Whether the cause lies outside of the database: rights, mounts, memory, space.
    pub(super) fn is_environment(&self) -> bool {
        self.io().is_some_and(|error| {
            is_disk_full(error)
                || matches!(
                    error.kind(),
                    io::ErrorKind::PermissionDenied
                        | io::ErrorKind::ReadOnlyFilesystem
                        | io::ErrorKind::OutOfMemory
                        | io::ErrorKind::Interrupted
                )
        })
    }

    fn io(&self) -> Option<&io::Error> {
        match self {
            Self::Sled(sled::Error::Io(error)) | Self::Sync(error) | Self::File(error) => Some(error),
            Self::Sled(_) | Self::WentBack | Self::Earlier(_) => None,
        }
    }
}

/// An open database.
#[derive(Debug)]
pub(super) struct Engine {
    db: sled::Db,
    file: File,
    path: PathBuf,
}

impl Engine {
    /// Opens or creates the database in `dir`.
    pub(super) fn open(dir: &Path, cache_bytes: u64) -> Result<Self, EngineError> {
        let path = file_in(dir);
        remove_unfinished_snapshots(dir);
        // What an earlier process left in the page cache goes to the disk before sled writes a snapshot that
        // refers to it.
        if let Ok(file) = File::open(&path) {
            file.sync_data().map_err(EngineError::Sync)?;
        }
        let db = open_patiently(
            &sled::Config::new()
                .path(dir)
                .mode(sled::Mode::LowSpace)
                .cache_capacity(cache_bytes)
                .flush_every_ms(None),
        )?;
        let file = File::open(&path).map_err(EngineError::File)?;
        Ok(Self { db, file, path })
    }

    /// All keys and values, in the keys' order.
    pub(super) fn scan(&self) -> impl Iterator<Item = Result<(Vec<u8>, Vec<u8>), EngineError>> {
        self.db.iter().map(|item| {
            let (key, value) = item?;
            Ok((key.to_vec(), value.to_vec()))
        })
    }

    /// Applies all of `changes` (`None` removes) or nothing, and returns when they are on the disk.
    pub(super) fn apply(
        &self,
        changes: impl Iterator<Item = (Vec<u8>, Option<Vec<u8>>)>,
    ) -> Result<(), EngineError> {
        let mut batch = sled::Batch::default();
        for (key, value) in changes {
            match value {
                Some(value) => batch.insert(key, value),
                None => batch.remove(key),
            }
        }
        self.db.apply_batch(batch)?;
        self.db.flush()?;
        // sled's flush ends in sync_file_range, which on ext4 and XFS loses acknowledged writes in a power cut
        // (sync_file_range(2): "does not write the file's metadata", "does not flush disk write caches").
        self.file.sync_data().map_err(EngineError::Sync)
    }

    /// Closes the database and waits until its lock is free.
    pub(super) fn close(self) {
        let Self { db, file, path } = self;
        drop(db);
        drop(file);
        let patience = Instant::now() + UNLOCK_PATIENCE;
        while is_locked(&path) && Instant::now() < patience {
            std::thread::sleep(UNLOCK_POLL);
        }
    }
}

/// sled says in words only that its lock is taken, as an I/O error of no kind. Whoever has it for a moment (somebody
/// else's look at it) must not make a sound database a damaged one: damage is `Error::Corruption` or a panic, and
/// is not repeated here.
fn open_patiently(config: &sled::Config) -> Result<sled::Db, EngineError> {
    let end = Instant::now() + OPEN_PATIENCE;
    loop {
        match config.open().map_err(EngineError::from) {
            Err(EngineError::Sled(sled::Error::Io(error)))
                if error.kind() == io::ErrorKind::Other && Instant::now() < end =>
            {
                std::thread::sleep(OPEN_POLL);
            }
            other => return other,
        }
    }
}

/// sled writes `snap.<lsn>.generating`, syncs and renames it, and takes whatever begins with `snap.` for a snapshot
/// (its `RunningConfig::get_snapshot_files` leaves out `.in___motion`, a name it no longer uses). So one that a kill
/// or a full disk cut short makes every later open fail with "corrupted". Before the rename it is worth nothing.
fn remove_unfinished_snapshots(dir: &Path) {
    for path in snapshots(dir) {
        if path
            .extension()
            .is_some_and(|extension| extension == "generating")
        {
            drop(std::fs::remove_file(path));
        }
    }
}

fn snapshots(dir: &Path) -> Vec<PathBuf> {
    std::fs::read_dir(dir)
        .into_iter()
        .flatten()
        .filter_map(|entry| Some(entry.ok()?.path()))
        .filter(|path| {
            path.file_name()
                .is_some_and(|name| name.to_string_lossy().starts_with("snap."))
        })
        .collect()
}

/// The file that sled keeps everything in, and locks.
pub(super) fn file_in(dir: &Path) -> PathBuf {
    dir.join("db")
}

/// Whether somebody has the database file `path` open in sled, as far as one can tell.
pub(super) fn is_locked(path: &Path) -> bool {
    let Ok(file) = File::open(path) else { return false };
    matches!(
        Flock::lock(file, FlockArg::LockExclusiveNonblock),
        Err((_, nix::errno::Errno::EWOULDBLOCK))
    )
}
