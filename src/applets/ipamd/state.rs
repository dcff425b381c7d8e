//! Opens the store, whatever lies in its place: what this daemon cannot use is set aside, never deleted.

use std::path::Path;
use std::sync::mpsc::channel;

use tracing::{error, warn};

use crate::ipam::node::NodeFacts;
use crate::ipam::records::stored_facts;
use crate::ipam::six;
use crate::store::{
    CommitError, Loaded, OpenError, Options, Origin, ProbeCommand, Store, Write, read_copy, set_aside,
};

/// A change this size is far below what one commit may hold.
const IMPORT_AT_ONCE: usize = 1024;

/// Opens the database in `dir`. One that a later version wrote gives way to a new one with what its copy holds: a node
/// whose daemon was downgraded must go on giving out addresses.
///
/// # Errors
/// What kept it from being opened, and is no damage.
pub(super) fn open(dir: &Path) -> Result<(Store, Loaded), OpenError> {
    let (found, supported) = match Store::open(dir, options()) {
        Err(OpenError::FutureFormat { found, supported, .. }) => (found, supported),
        Ok((store, loaded)) if loaded.origin == Origin::LastGoodCopy => {
            return Ok(behind_copy(store, loaded));
        }
        opened => return opened,
    };
    let aside = set_aside(dir)?;
    let copy = read_copy(&aside);
    let (store, mut loaded) = Store::open(dir, options())?;
    loaded.damage = Some(format!(
        "a later version wrote it in format {found}, this one reads up to {supported}"
    ));
    loaded.set_aside = Some(aside);
    match copy {
        Ok(copy) => {
            import(&store, copy.entries.clone());
            loaded.entries = copy.entries;
            loaded.origin = Origin::LastGoodCopy;
            return Ok(behind_copy(store, loaded));
        }
        Err(error) => warn!("nor can its copy be read: {error}"),
    }
    Ok((store, loaded))
}

/// A copy may be older than the last address that was given out: those of a /80 go on behind whatever it lacks.
fn behind_copy(store: Store, mut loaded: Loaded) -> (Store, Loaded) {
    let behind = six::behind_copy(&loaded.entries);
    import(&store, behind.clone());
    loaded.entries.extend(behind);
    (store, loaded)
}

/// Replaces state that was made on another instance, as when an image was made of a node that had run.
///
/// # Errors
/// What kept the new database from being opened.
pub(super) fn of_this_instance(
    opened: (Store, Loaded),
    facts: &NodeFacts,
    dir: &Path,
) -> Result<(Store, Loaded), OpenError> {
    let (store, loaded) = opened;
    let Some(other) = stored_facts(&loaded.entries).filter(|stored| stored.instance != facts.instance) else {
        return Ok((store, loaded));
    };
    store.close();
    let aside = set_aside(dir)?;
    warn!(
        path = %aside.display(),
        "the database was made on instance {}, this is {}; it was set aside and means nothing here",
        other.instance,
        facts.instance
    );
    Store::open(dir, options())
}

/// The records of a copy, durable before anything rests on them.
fn import(store: &Store, entries: impl IntoIterator<Item = (String, Vec<u8>)>) {
    let mut writes = entries.into_iter().map(|(key, value)| Write::Put { key, value });
    loop {
        let some: Vec<Write> = writes.by_ref().take(IMPORT_AT_ONCE).collect();
        if some.is_empty() {
            return;
        }
        if let Err(error) = write(store, some) {
            error!("the copy could not be taken over: {error}");
        }
    }
}

/// Commits and waits until it is durable.
///
/// # Errors
/// Why it is not.
pub(super) fn write(store: &Store, writes: Vec<Write>) -> Result<(), CommitError> {
    let (tell, told) = channel();
    store.commit(
        writes,
        Box::new(move |result| {
            // Nobody listens only when the daemon ends.
            drop(tell.send(result));
        }),
    );
    told.recv().unwrap_or(Err(CommitError::Stopped)).map(|_| ())
}

/// Opens the database in `dir` if there is one: a question must not make it.
///
/// # Errors
/// What kept it from being opened.
pub(super) fn open_existing(dir: &Path) -> Result<Option<(Store, Loaded)>, OpenError> {
    if dir.is_dir() {
        open(dir).map(Some)
    } else {
        Ok(None)
    }
}

/// The binary is `ipamd` itself only where it was installed as a copy; then it takes no applet's name.
fn options() -> Options {
    let probe = std::env::current_exe().ok().map(|exe| {
        let mut command = ProbeCommand::daemon(&exe);
        if exe.file_name().is_some_and(|name| name == "ipamd") {
            command.arguments.remove(0);
        }
        command
    });
    Options {
        probe,
        ..Options::default()
    }
}

/// Says how it went.
pub(super) fn tell(loaded: &Loaded) {
    let records = loaded.entries.len();
    match loaded.origin {
        Origin::Database => tracing::info!(records, "database opened"),
        Origin::Fresh => tracing::info!("new database"),
        Origin::LastGoodCopy => warn!(
            records,
            "the database could not be used; started from its last good copy"
        ),
    }
    if let Some(path) = &loaded.set_aside {
        warn!(path = %path.display(), why = loaded.damage, "the old database was set aside");
    }
    for doubt in &loaded.doubts {
        warn!(?doubt, "a stored record cannot be believed");
    }
}
