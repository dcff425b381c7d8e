//! The daemon's durable state: a sled database behind a journal, nothing told before it is on the disk.
//!
//! ```text
//! <dir>.lock            taken for the daemon's life: one daemon per database
//! <dir>/FORMAT          what this directory is and which version wrote it
//! <dir>/journal         what was acknowledged last
//! <dir>/db, conf, …     sled's own files
//! <dir>/last-good.json  a copy of everything, for recovery and for the support tool
//! <dir>/ballast         space given up when the disk is full
//! <dir>/opening         there while an open is unfinished: the next one is tried in a child process first
//! <dir>/panicked        there after a panic inside sled: the next one moves to a new database
//! <dir>.damaged-<n>     databases set aside; never deleted
//! ```
//!
//! A commit is one write to the journal and one `fdatasync`; then it is acknowledged. sled gets it in one batch with
//! others when it is quiet, the copy likewise. A place in the journal is written again only when sled and the copy
//! both have what is in it, so at every instant sled with the journal and the copy with the journal are two complete
//! witnesses, and the loss of either costs nothing.
//!
//! sled 0.34 is used with open eyes. Its `flush` ends in `sync_file_range`, which persists neither metadata nor
//! the device's cache, so every batch is followed by our own `fdatasync`. After any error every later
//! call fails until the database is reopened, so the writer reopens it and repeats what was not yet durable, in
//! order. What can't be opened is set aside and rebuilt from the copy and the journal. A failed `fdatasync` makes a
//! file untrustworthy; it is written anew.
//!
//! Release builds abort on a panic, so one inside sled must not come back at every start. `opening` is made before
//! sled is touched and removed when everything has been read and the opening's own commit is durable. Normally, also
//! after a kill, it is absent and nothing is probed: a restart costs one open. Where it is present an opening did
//! not finish, and the next is tried in a child process with a deadline first ([`ProbeCommand`]), whose panic, hang
//! or death sets the database aside. A panic after the opening leaves `panicked`, and the next opening moves the
//! records to a new database. So one database costs at most one start for either reason.
//!
//! Keys and values are opaque here. sled is named in `engine` alone.

mod ballast;
mod copy;
mod engine;
mod error;
mod failure;
mod full;
mod group;
mod journal;
mod keeper;
mod layout;
mod mirror;
mod open;
mod panics;
pub mod pending;
mod probe;
mod record;
mod repair;
mod scan;
mod witness;
mod writer;

#[cfg(test)]
mod tests;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::mpsc::Sender;
use std::thread::JoinHandle;
use std::time::Duration;

pub use copy::{Copy, CopyError, read_copy};
pub use engine::EngineError;
pub use error::{CommitError, OpenError};
pub use layout::set_aside;
pub use probe::{ProbeCommand, ProbeFailure, probe_in_this_process};
pub use record::{Doubt, DoubtReason, Generation};

use layout::Layout;
use mirror::Shared;
use writer::Job;
pub use writer::OnDone;

/// A key is at most this long.
pub const MAX_KEY_BYTES: usize = 256;
/// A value is at most this long. Seventeen records to a sled leaf stay far below the 128 KiB at which sled would
/// start files of their own, which our `fdatasync` would not reach.
pub const MAX_VALUE_BYTES: usize = 3 * 1024;
/// One commit holds at most this many writes.
pub const MAX_WRITES: usize = 16 * 1024;
/// The database holds at most this many keys: sixteen times the largest instance's addresses.
pub const MAX_ENTRIES: usize = 64 * 1024;
/// At most this many commits wait for the disk.
pub const MAX_QUEUED: usize = 8 * 1024;

/// One change.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Write {
    /// Sets `key` to `value`.
    Put {
        /// Up to [`MAX_KEY_BYTES`], not starting with NUL.
        key: String,
        /// Up to [`MAX_VALUE_BYTES`].
        value: Vec<u8>,
    },
    /// Removes `key`; fine when there is none.
    Remove {
        /// As above.
        key: String,
    },
}

impl Write {
    /// The key this change is about.
    pub fn key(&self) -> &str {
        match self {
            Self::Put { key, .. } | Self::Remove { key } => key,
        }
    }
}

/// How the store works; the defaults are for production.
#[derive(Debug, Clone)]
pub struct Options {
    /// How to try an open in a child process. Without it an unfinished open is simply repeated.
    pub probe: Option<ProbeCommand>,
    /// sled's page cache.
    pub cache_bytes: u64,
    /// Space kept to get through a full disk; 0 for none.
    pub ballast_bytes: u64,
    /// Write the copy at the latest after this many generations, or when the journal is half full …
    pub copy_every: u64,
    /// … or, and have sled follow, when nothing was committed for this long …
    pub copy_when_quiet: Duration,
    /// … or when the oldest change that is missing from it is this old.
    pub copy_max_age: Duration,
    /// First pause before a failed write is tried again; it doubles …
    pub retry_min: Duration,
    /// … up to this.
    pub retry_max: Duration,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            probe: None,
            cache_bytes: 4 << 20,
            ballast_bytes: 4 << 20,
            copy_every: 1024,
            copy_when_quiet: Duration::from_secs(1),
            copy_max_age: Duration::from_secs(10),
            retry_min: Duration::from_millis(100),
            retry_max: Duration::from_secs(5),
        }
    }
}

/// Where the loaded entries come from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Origin {
    /// The database, as it was left.
    Database,
    /// The database could not be used; its last-good copy and the journal were taken.
    LastGoodCopy,
    /// There was nothing usable.
    Fresh,
}

/// What [`Store::open`] found.
#[derive(Debug)]
pub struct Loaded {
    /// Everything that could be read and verified.
    pub entries: BTreeMap<String, Vec<u8>>,
    /// Records that can't be believed; other witnesses must resolve them. A commit to the key ends the doubt.
    pub doubts: Vec<Doubt>,
    /// The generation of this opening; every commit gets a higher one.
    pub generation: Generation,
    /// Where `entries` come from.
    pub origin: Origin,
    /// Where the damaged database was put, when this opening had to.
    pub set_aside: Option<PathBuf>,
    /// Why it was.
    pub damage: Option<String>,
    /// How many databases lie set aside in all.
    pub set_aside_count: usize,
}

/// How the store is doing.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Condition {
    /// Every commit reaches the disk.
    Healthy,
    /// Commits still reach the disk, but only because the ballast was given up or the journal has room: start nothing
    /// new.
    ReserveSpent,
    /// The disk is full; commits wait in memory.
    DiskFull,
    /// The disk or the database fails otherwise; commits wait in memory.
    Failing {
        /// The last error with its causes.
        reason: String,
    },
}

/// A snapshot of [`Condition`] with its figures.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Health {
    /// See there.
    pub condition: Condition,
    /// The last durable generation.
    pub durable: Generation,
    /// Changes decided but not durable.
    pub waiting_writes: usize,
    /// The generation of the last-good copy.
    pub copied: Generation,
    /// Why the last attempt to write the copy failed.
    pub copy_error: Option<String>,
}

/// Everything durable at one generation.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Export {
    /// The generation of the last commit in it.
    pub generation: Generation,
    /// Key to value.
    pub entries: BTreeMap<String, Vec<u8>>,
}

/// The open database. Dropping it (or [`Store::close`]) finishes what is queued and writes the copy.
#[derive(Debug)]
pub struct Store {
    jobs: Sender<Job>,
    shared: Arc<Shared>,
    writer: Option<JoinHandle<()>>,
    keeper: Option<JoinHandle<()>>,
}

impl Store {
    /// Opens the database in `dir`, creating, finishing an interrupted exchange, or rebuilding it as needed.
    pub fn open(dir: &Path, options: Options) -> Result<(Self, Loaded), OpenError> {
        let layout = Layout::new(dir);
        let opened = open::open(&layout, &options)?;
        panics::watch(&layout.panicked());
        let shared = Arc::new(Shared::new(opened.mirror, opened.copied, opened.has_ballast));
        let failed = |source| OpenError::Thread { source };
        let (jobs, queue) = std::sync::mpsc::channel();
        let writer = writer::Writer::new(
            layout.clone(),
            options.clone(),
            Arc::clone(&shared),
            opened.engine,
            opened.journal,
            &opened.loaded,
        );
        let keeper = keeper::Keeper::new(layout, options, Arc::clone(&shared));
        let writer = std::thread::Builder::new()
            .name(panics::WRITER_THREAD.into())
            .spawn(move || writer.run(&queue, opened.lock))
            .map_err(failed)?;
        let keeper = std::thread::Builder::new()
            .name("store-keeper".into())
            .spawn(move || keeper.run())
            .map_err(failed)?;
        let store = Self {
            jobs,
            shared,
            writer: Some(writer),
            keeper: Some(keeper),
        };
        Ok((store, opened.loaded))
    }

    /// Queues `writes` as one atomic change. `on_done` is called once: with the change's generation when it is on
    /// the disk, or with the reason why it is not.
    ///
    /// Changes take effect in the order of the calls. [`CommitError::will_be_retried`] tells whether a failed one
    /// stays queued; it then becomes durable as soon as the disk allows, before anything committed later, so a
    /// caller who has changed its mind commits the opposite. `on_done` runs on the store's thread (or at once on
    /// the caller's for a change that is refused) and must neither block nor panic.
    pub fn commit(&self, writes: Vec<Write>, on_done: OnDone) {
        if let Err(error) = self.admit(&writes) {
            on_done(Err(error));
            return;
        }
        if let Err(returned) = self.jobs.send(Job::Commit { writes, on_done }) {
            self.shared.leave_queue(1);
            if let Job::Commit { on_done, .. } = returned.0 {
                on_done(Err(CommitError::Stopped));
            }
        }
    }

    fn admit(&self, writes: &[Write]) -> Result<(), CommitError> {
        error::check_sizes(writes)?;
        self.shared.enter_queue(MAX_QUEUED)
    }

    /// Everything durable now.
    pub fn export(&self) -> Export {
        let mirror = self.shared.mirror();
        Export {
            generation: mirror.generation,
            entries: mirror
                .entries
                .iter()
                .map(|(key, value)| (key.clone(), value.to_vec()))
                .collect(),
        }
    }

    /// How the store is doing.
    pub fn health(&self) -> Health {
        self.shared.health().clone()
    }

    /// Finishes what is queued, writes the copy and closes the database. Blocks while it does.
    pub fn close(mut self) {
        self.stop();
    }

    fn stop(&mut self) {
        if let Some(writer) = self.writer.take() {
            drop(self.jobs.send(Job::Stop));
            drop(writer.join());
        }
        if let Some(keeper) = self.keeper.take() {
            self.shared.stop_keeper();
            drop(keeper.join());
        }
    }
}

impl Drop for Store {
    fn drop(&mut self) {
        self.stop();
    }
}
