//! The database's directory and its neighbours: names, format marker, lock, exchange of a damaged directory.
//!
//! A directory is made complete under a name of its own (`<dir>.building`), then renamed to `<dir>.new`, then the
//! damaged one is renamed away and `<dir>.new` takes its place. Whatever instant a crash picks, the next opening
//! knows what to finish: `.building` is rubbish, `.new` is complete, and `<dir>` is what it was or what it becomes.

use std::fs::{self, DirBuilder, File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::fcntl::{Flock, FlockArg};

use super::OpenError;
use super::engine;
use super::full::is_disk_full;

/// The directory format written here.
pub(super) const FORMAT: u32 = 2;
/// The one before had no journal; otherwise it was the same.
const FORMAT_WITHOUT_JOURNAL: u32 = 1;
const FORMAT_FILE: &str = "FORMAT";
const FORMAT_PREFIX: &str = "aws-cni address database, sled 0.34, format ";
/// How long a predecessor that is just ending, or its orphaned probe, may still hold a lock.
const LOCK_PATIENCE: Duration = Duration::from_secs(2);
const LOCK_POLL: Duration = Duration::from_millis(5);

/// Where everything lies.
#[derive(Debug, Clone)]
pub(super) struct Layout {
    dir: PathBuf,
}

/// What the format marker says.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Format {
    /// Nothing there at all.
    Empty,
    /// This version's.
    Current,
    /// An earlier version's, which had no journal.
    WithoutJournal,
    /// A later version's.
    Future(u32),
    /// There is something, but no legible marker.
    Unmarked,
}

impl Layout {
    pub(super) fn new(dir: &Path) -> Self {
        Self { dir: dir.to_owned() }
    }

    pub(super) fn dir(&self) -> &Path {
        &self.dir
    }

    /// The same layout at the name under which a new directory is made.
    pub(super) fn building(&self) -> Self {
        Self::new(&self.neighbour("building"))
    }

    pub(super) fn copy(&self) -> PathBuf {
        self.dir.join("last-good.json")
    }

    pub(super) fn journal(&self) -> PathBuf {
        self.dir.join("journal")
    }

    pub(super) fn ballast(&self) -> PathBuf {
        self.dir.join("ballast")
    }

    fn opening(&self) -> PathBuf {
        self.dir.join("opening")
    }

    /// Left by a panic in a thread that runs sled.
    pub(super) fn panicked(&self) -> PathBuf {
        self.dir.join("panicked")
    }

    fn neighbour(&self, suffix: &str) -> PathBuf {
        let mut name = self.dir.clone().into_os_string();
        name.push(".");
        name.push(suffix);
        name.into()
    }

    fn parent(&self) -> PathBuf {
        match self.dir.parent() {
            Some(parent) if !parent.as_os_str().is_empty() => parent.to_owned(),
            _ => PathBuf::from("."),
        }
    }

    /// Takes the lock that makes us the database's only user. It lies beside the directory, since that can be
    /// exchanged.
    pub(super) fn lock(&self) -> Result<Flock<File>, OpenError> {
        let parent = self.parent();
        DirBuilder::new()
            .recursive(true)
            .mode(0o700)
            .create(&parent)
            .map_err(io_error("create directory", &parent))?;
        let path = self.neighbour("lock");
        let file = OpenOptions::new()
            .create(true)
            .truncate(false)
            .write(true)
            .mode(0o600)
            .open(&path)
            .map_err(io_error("open", &path))?;
        let end = Instant::now() + LOCK_PATIENCE;
        let mut file = file;
        loop {
            match Flock::lock(file, FlockArg::LockExclusiveNonblock) {
                Ok(lock) => return Ok(lock),
                Err((returned, Errno::EWOULDBLOCK)) if Instant::now() < end => {
                    file = returned;
                    std::thread::sleep(LOCK_POLL);
                }
                Err((_, Errno::EWOULDBLOCK)) => {
                    return Err(OpenError::Locked {
                        dir: self.dir.clone(),
                    });
                }
                Err((_, errno)) => return Err(io_error("lock", &path)(errno.into())),
            }
        }
    }

    /// Waits until nobody has the database file itself open in sled.
    pub(super) fn wait_for_engine_lock(&self) -> Result<(), OpenError> {
        let end = Instant::now() + LOCK_PATIENCE;
        while engine::is_locked(&engine::file_in(&self.dir)) {
            if Instant::now() >= end {
                return Err(OpenError::Locked {
                    dir: self.dir.clone(),
                });
            }
            std::thread::sleep(LOCK_POLL);
        }
        Ok(())
    }

    /// Finishes or forgets what an interrupted exchange left.
    pub(super) fn finish_exchange(&self) -> Result<(), OpenError> {
        remove_tree(&self.neighbour("building"))?;
        let new = self.neighbour("new");
        if !new.exists() {
            return Ok(());
        }
        if self.format()? == Format::Empty {
            rename(&new, &self.dir)?;
            return sync(&self.parent());
        }
        // The exchange had not begun: the old directory is still there and decides anew.
        remove_tree(&new)
    }

    /// Puts the complete directory under [`Layout::building`] in place, and what is there aside.
    pub(super) fn exchange(&self) -> Result<Option<PathBuf>, OpenError> {
        let building = self.building();
        sync_tree(&building.dir)?;
        let new = self.neighbour("new");
        rename(&building.dir, &new)?;
        sync(&self.parent())?;
        let aside = match self.format()? {
            Format::Empty => None,
            _ => Some(set_aside(&self.dir)?),
        };
        rename(&new, &self.dir)?;
        sync(&self.parent())?;
        Ok(aside)
    }

    /// How many directories were set aside.
    pub(super) fn set_aside_count(&self) -> usize {
        damaged_numbers(&self.dir).len()
    }

    /// What the directory is.
    pub(super) fn format(&self) -> Result<Format, OpenError> {
        let mut entries = match fs::read_dir(&self.dir) {
            Ok(entries) => entries,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Format::Empty),
            Err(error) => return Err(io_error("read directory", &self.dir)(error)),
        };
        if entries.next().is_none() {
            return Ok(Format::Empty);
        }
        let text = fs::read(self.dir.join(FORMAT_FILE)).unwrap_or_default();
        let number = std::str::from_utf8(&text)
            .ok()
            .and_then(|text| text.trim().strip_prefix(FORMAT_PREFIX))
            .and_then(|number| number.parse::<u32>().ok());
        Ok(match number {
            Some(FORMAT) => Format::Current,
            Some(FORMAT_WITHOUT_JOURNAL) => Format::WithoutJournal,
            Some(number) if number > FORMAT => Format::Future(number),
            Some(_) | None => Format::Unmarked,
        })
    }

    /// Writes the format marker.
    pub(super) fn mark_format(&self) -> Result<(), OpenError> {
        let path = self.dir.join(FORMAT_FILE);
        write_synced(&path, format!("{FORMAT_PREFIX}{FORMAT}\n").as_bytes())
            .and_then(|()| sync_directory(&self.dir))
            .map_err(io_error("write", &path))
    }

    /// Makes the directory, which must not exist.
    pub(super) fn create(&self) -> Result<(), OpenError> {
        DirBuilder::new()
            .mode(0o700)
            .create(&self.dir)
            .map_err(io_error("create directory", &self.dir))
    }

    /// Syncs every file in the directory, the directory and its name.
    pub(super) fn sync_everything(&self) -> Result<(), OpenError> {
        sync_tree(&self.dir)?;
        sync(&self.parent())
    }

    /// Whether an earlier opening did not finish.
    pub(super) fn was_interrupted(&self) -> bool {
        self.opening().exists()
    }

    /// Notes that an opening has begun. Not synced: it must survive a crash of the process, and a power cut takes
    /// the process's guilt with it. On a full disk the note may be missing, which costs the probe, not the data.
    pub(super) fn note_opening(&self) -> Result<(), OpenError> {
        let path = self.opening();
        match File::create(&path) {
            Err(error) if !is_disk_full(&error) => Err(io_error("create", &path)(error)),
            _ => Ok(()),
        }
    }

    /// Notes that the opening is finished.
    pub(super) fn note_opened(&self) -> Result<(), OpenError> {
        let path = self.opening();
        match fs::remove_file(&path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => Err(io_error("remove", &path)(error)),
            _ => Ok(()),
        }
    }
}

/// Renames the database directory `dir` to `<dir>.damaged-<n>`. Only its ballast is dropped; the rest is kept for
/// whoever wants to know, and for ever: deleting evidence is a human's decision.
pub fn set_aside(dir: &Path) -> Result<PathBuf, OpenError> {
    let layout = Layout::new(dir);
    drop(fs::remove_file(layout.ballast()));
    let number = damaged_numbers(dir)
        .last()
        .map_or(1, |last| last.saturating_add(1));
    let aside = layout.neighbour(&format!("damaged-{number}"));
    rename(dir, &aside)?;
    sync(&layout.parent())?;
    Ok(aside)
}

fn damaged_numbers(dir: &Path) -> Vec<u64> {
    let Some(name) = dir.file_name().and_then(|name| name.to_str()) else {
        return Vec::new();
    };
    let prefix = format!("{name}.damaged-");
    let mut numbers: Vec<u64> = fs::read_dir(Layout::new(dir).parent())
        .into_iter()
        .flatten()
        .filter_map(Result::ok)
        .filter_map(|entry| entry.file_name().to_str()?.strip_prefix(&prefix)?.parse().ok())
        .collect();
    numbers.sort_unstable();
    numbers
}

/// An empty file for root alone.
pub(super) fn create(path: &Path) -> io::Result<File> {
    OpenOptions::new()
        .create(true)
        .truncate(true)
        .write(true)
        .mode(0o600)
        .open(path)
}

/// Writes a whole file and syncs it.
pub(super) fn write_synced(path: &Path, bytes: &[u8]) -> io::Result<()> {
    let mut file = create(path)?;
    file.write_all(bytes)?;
    file.sync_all()
}

/// Makes names in `dir` durable.
pub(super) fn sync_directory(dir: &Path) -> io::Result<()> {
    File::open(dir)?.sync_all()
}

/// For `map_err`.
pub(super) fn io_error(action: &'static str, path: &Path) -> impl FnOnce(io::Error) -> OpenError {
    let path = path.to_owned();
    move |source| OpenError::Io { action, path, source }
}

fn sync(dir: &Path) -> Result<(), OpenError> {
    sync_directory(dir).map_err(io_error("sync directory", dir))
}

/// Syncs every file and directory below `dir`, and `dir`.
fn sync_tree(dir: &Path) -> Result<(), OpenError> {
    for entry in fs::read_dir(dir).map_err(io_error("read directory", dir))? {
        let path = entry.map_err(io_error("read directory", dir))?.path();
        if path.is_dir() {
            sync_tree(&path)?;
        } else {
            File::open(&path)
                .and_then(|file| file.sync_all())
                .map_err(io_error("sync", &path))?;
        }
    }
    sync(dir)
}

fn rename(from: &Path, to: &Path) -> Result<(), OpenError> {
    fs::rename(from, to).map_err(io_error("rename", from))
}

fn remove_tree(dir: &Path) -> Result<(), OpenError> {
    match fs::remove_dir_all(dir) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(io_error("remove", dir)(error)),
        _ => Ok(()),
    }
}
