//! A panic while sled works, noted so that it does not come back at every start.
//!
//! The note about an unfinished opening covers panics of opening, reading and of the first write. One that comes
//! later (sled moves records between segments while it writes) would find an opening that succeeds, and repeat
//! itself at the next write but one. So a panic in a thread that runs sled leaves a note, and the next opening
//! writes the records to a new database and sets this one aside.

use std::collections::BTreeSet;
use std::fs::File;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, Once, PoisonError};

/// The thread that calls sled.
pub(super) const WRITER_THREAD: &str = "store-commit";
/// sled's own threads begin with this.
const SLED_THREADS: &str = "sled-";

static WATCHED: Mutex<BTreeSet<PathBuf>> = Mutex::new(BTreeSet::new());
static HOOK: Once = Once::new();

/// From now on a panic in a thread that runs sled leaves `note`.
pub(super) fn watch(note: &Path) {
    watched().insert(note.to_owned());
    HOOK.call_once(|| {
        let other = std::panic::take_hook();
        std::panic::set_hook(Box::new(move |panic| {
            let ours = std::thread::current()
                .name()
                .is_some_and(|name| name == WRITER_THREAD || name.starts_with(SLED_THREADS));
            if ours {
                for note in watched().iter() {
                    drop(File::create(note));
                }
            }
            other(panic);
        }));
    });
}

/// The database behind `note` is closed.
pub(super) fn forget(note: &Path) {
    watched().remove(note);
}

fn watched() -> std::sync::MutexGuard<'static, BTreeSet<PathBuf>> {
    WATCHED.lock().unwrap_or_else(PoisonError::into_inner)
}
