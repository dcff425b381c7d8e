//! Kernel parameters: which files to listen to. A write to `/proc/sys` tells whoever watches the file, as any write does.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::{self, File};
use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};

use nix::errno::Errno;
use nix::sys::inotify::{AddWatchFlags, InitFlags, Inotify, WatchDescriptor};

/// The parameters somebody may have written.
#[derive(Debug)]
pub struct SettingsWatch {
    inotify: Inotify,
    files: Mutex<BTreeMap<PathBuf, Watched>>,
}

#[derive(Debug)]
struct Watched {
    descriptor: WatchDescriptor,
    /// Kept open: a parameter's inode lives only as long as somebody uses it, and a later writer would get another one.
    file: File,
}

impl AsFd for SettingsWatch {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.inotify.as_fd()
    }
}

impl SettingsWatch {
    /// Of no parameter yet.
    ///
    /// # Errors
    /// When the kernel has no more to give.
    pub fn open() -> Result<Self, Errno> {
        let flags = InitFlags::IN_CLOEXEC | InitFlags::IN_NONBLOCK;
        Ok(Self {
            inotify: Inotify::init(flags)?,
            files: Mutex::default(),
        })
    }

    /// Listens to these from now on, in the calling thread's namespace, and no longer to others. Those that are not
    /// there, or are no longer what they were (a link renamed away and back), are seen to again the next time.
    ///
    /// # Errors
    /// The first one's that is there and cannot be listened to; the others are.
    pub fn watch_only(&self, paths: &BTreeSet<PathBuf>) -> io::Result<()> {
        let mut files = self.files.lock().unwrap_or_else(PoisonError::into_inner);
        files.retain(|path, watched| {
            let stays = paths.contains(path) && watched.is_at(path);
            if !stays {
                let _gone_with_its_file = self.inotify.rm_watch(watched.descriptor);
            }
            stays
        });
        let mut outcome = Ok(());
        for path in paths {
            if files.contains_key(path) {
                continue;
            }
            match self.add(path) {
                Ok(watched) => drop(files.insert(path.clone(), watched)),
                Err(error) if error.kind() == io::ErrorKind::NotFound => {}
                Err(error) => outcome = outcome.and(Err(error)),
            }
        }
        outcome
    }

    fn add(&self, path: &Path) -> io::Result<Watched> {
        let file = File::open(path)?;
        let descriptor = self.inotify.add_watch(path, AddWatchFlags::IN_MODIFY)?;
        Ok(Watched { descriptor, file })
    }

    /// Whether one was written since the last call. Never blocks.
    pub fn was_written(&self) -> bool {
        let told = AddWatchFlags::IN_MODIFY | AddWatchFlags::IN_Q_OVERFLOW;
        let mut written = false;
        while let Ok(events) = self.inotify.read_events()
            && !events.is_empty()
        {
            written |= events.iter().any(|event| event.mask.intersects(told));
        }
        written
    }
}

impl Watched {
    fn is_at(&self, path: &Path) -> bool {
        let there = fs::metadata(path).map(|found| found.ino());
        let ours = self.file.metadata().map(|found| found.ino());
        matches!((there, ours), (Ok(there), Ok(ours)) if there == ours)
    }
}

#[cfg(test)]
mod tests {
    use super::super::super::testing::in_fresh_netns;
    use super::*;

    fn path(key: &str) -> PathBuf {
        Path::new("/proc/sys/net/ipv4").join(key)
    }

    #[test]
    fn a_write_is_told_whatever_it_changes_and_only_for_what_is_watched() {
        in_fresh_netns(|| {
            let watch = SettingsWatch::open().unwrap();
            let filter = path("conf/lo/rp_filter");
            let both = BTreeSet::from([filter.clone(), path("ip_forward"), path("conf/nowhere/rp_filter")]);
            watch.watch_only(&both).unwrap();
            assert!(!watch.was_written());
            fs::write(&filter, "1").unwrap();
            assert!(watch.was_written());
            assert!(!watch.was_written(), "told once");
            fs::write(path("ip_forward"), "0").unwrap();
            assert!(watch.was_written());
            fs::write(path("conf/lo/src_valid_mark"), "1").unwrap();
            assert!(!watch.was_written(), "nobody asked for it");
            watch.watch_only(&BTreeSet::from([path("ip_forward")])).unwrap();
            fs::write(&filter, "2").unwrap();
            assert!(!watch.was_written(), "no longer");
        });
    }
}
