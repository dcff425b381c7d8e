//! Opening: what is there, can it be believed, and what to do when it can't.

use std::fs::File;
use std::path::PathBuf;

use nix::fcntl::Flock;

use super::copy::{self, read_copy};
use super::engine::{Engine, EngineError};
use super::journal::{self, Found, Journal};
use super::layout::{self, Format, Layout};
use super::mirror::Mirror;
use super::probe::{ProbeFailure, probe};
use super::record::{self, Generation};
use super::scan::{Scan, count_existing, head, scan, with_copies};
use super::witness::{Resume, Witness};
use super::{Loaded, OpenError, Options, Origin, ballast};
use crate::causes::chain;

/// A database that is ready for commits.
pub(super) struct Opened {
    pub(super) engine: Engine,
    pub(super) journal: Journal,
    pub(super) loaded: Loaded,
    pub(super) mirror: Mirror,
    pub(super) copied: Generation,
    pub(super) has_ballast: bool,
    pub(super) lock: Flock<File>,
}

/// What was opened, before the opening's own writes.
struct Chosen {
    engine: Engine,
    scan: Scan,
    origin: Origin,
    set_aside: Option<PathBuf>,
    damage: Option<String>,
    /// Where the journal goes on, when the copy and the journal make up all of it.
    resume: Option<Resume>,
}

/// Why a database is not used.
enum Refusal {
    /// It is damaged: set it aside.
    Damage(String),
    /// Something else is wrong: leave it alone.
    Stop(OpenError),
}

impl From<OpenError> for Refusal {
    fn from(error: OpenError) -> Self {
        Self::Stop(error)
    }
}

/// See [`super::Store::open`].
pub(super) fn open(layout: &Layout, options: &Options) -> Result<Opened, OpenError> {
    let lock = layout.lock()?;
    match open_locked(layout, options, &lock) {
        Err(error) if error.is_disk_full() && ballast::release(&layout.ballast()) => {
            open_locked(layout, options, &lock)
        }
        other => other,
    }
    .map_err(|error| {
        if error.is_disk_full() {
            OpenError::DiskFull {
                dir: layout.dir().to_owned(),
            }
        } else {
            error
        }
    })
    .map(|(engine, journal, loaded, copied)| Opened {
        mirror: Mirror::new(loaded.generation, loaded.entries.clone()),
        has_ballast: ballast::lay_down(&layout.ballast(), options.ballast_bytes).unwrap_or(false),
        engine,
        journal,
        loaded,
        copied,
        lock,
    })
}

fn open_locked(
    layout: &Layout,
    options: &Options,
    lock: &File,
) -> Result<(Engine, Journal, Loaded, Generation), OpenError> {
    layout.finish_exchange()?;
    let journal = prepare(layout, options)?;
    let witness = read_copy(layout.dir())
        .ok()
        .map(|copy| Witness::new(copy, &journal));
    let chosen = choose(layout, options, lock, &journal, witness.as_ref())?;
    let Chosen { engine, scan, .. } = chosen;
    // The first write belongs to the opening: a database that can be read but not written to must not get the
    // daemon into a crash loop either.
    let generation = scan.reach().next();
    let entries = scan.entries.len() + count_existing(&scan.doubts);
    engine
        .apply(
            scan.missing_records()
                .chain(std::iter::once(head(generation, entries))),
        )
        .map_err(|source| engine_error(layout, source))?;
    let resume = match chosen.resume {
        Some(resume) => resume,
        None => start_again(layout, &Mirror::new(generation, scan.entries.clone()))?,
    };
    let path = layout.journal();
    let journal =
        Journal::open(&path, resume.needed, resume.last).map_err(layout::io_error("open", &path))?;
    if chosen.origin != Origin::Database || chosen.set_aside.is_some() {
        // sled has made files and synced none of their names.
        layout.sync_everything()?;
    }
    layout.note_opened()?;
    let copy = witness.as_ref().map(|witness| &witness.copy);
    let loaded = Loaded {
        doubts: with_copies(scan.doubts, copy, &scan.entries, scan.expected),
        entries: scan.entries,
        generation,
        origin: chosen.origin,
        set_aside: chosen.set_aside,
        damage: chosen.damage,
        set_aside_count: layout.set_aside_count(),
    };
    Ok((engine, journal, loaded, resume.copied))
}

/// Makes sure that the directory is ours, and reads its journal.
fn prepare(layout: &Layout, options: &Options) -> Result<Found, OpenError> {
    match layout.format()? {
        Format::Current => {}
        Format::Empty => drop(build(layout, options, &Mirror::default())?),
        Format::WithoutJournal => {
            let path = layout.journal();
            Journal::create(&path, Generation::default()).map_err(layout::io_error("create", &path))?;
            layout.mark_format()?;
        }
        // The marker is lost, but the copy's checksum proves that the directory is ours.
        Format::Unmarked if read_copy(layout.dir()).is_ok() => layout.mark_format()?,
        Format::Unmarked => {
            return Err(OpenError::Foreign {
                dir: layout.dir().to_owned(),
            });
        }
        Format::Future(found) => {
            return Err(OpenError::FutureFormat {
                dir: layout.dir().to_owned(),
                found,
                supported: layout::FORMAT,
            });
        }
    }
    Ok(journal::read(&layout.journal()))
}

/// Takes the database with the journal, or, when it can't be believed, the copy with the journal.
fn choose(
    layout: &Layout,
    options: &Options,
    lock: &File,
    journal: &Found,
    witness: Option<&Witness>,
) -> Result<Chosen, OpenError> {
    match open_as_is(layout, options, lock, journal, witness) {
        Ok((engine, scan, None)) if !layout.panicked().exists() => {
            let resume = witness
                .and_then(|witness| witness.resume.clone())
                .filter(|resume| resume.last == scan.head.unwrap_or_default());
            Ok(Chosen {
                engine,
                origin: scan.head.map_or(Origin::Fresh, |_| Origin::Database),
                scan,
                set_aside: None,
                damage: None,
                resume,
            })
        }
        Ok((engine, scan, damage)) => {
            engine.close();
            let to = match damage {
                Some(_) => scan.reach().beyond_what_was_lost(),
                None => scan.reach(),
            };
            let damage = damage.unwrap_or_else(|| "sled panicked while it was open".to_owned());
            let mirror = Mirror::new(to, scan.entries);
            let mut chosen = rebuild(layout, options, &mirror, Origin::Database, damage)?;
            chosen.scan.doubts = scan.doubts;
            Ok(chosen)
        }
        Err(Refusal::Stop(error)) => Err(error),
        Err(Refusal::Damage(mut reason)) => {
            if let Some(lost) = journal_damage(journal, witness.is_none_or(|witness| witness.complete)) {
                reason = format!("{reason}; {lost}");
            }
            let (mirror, origin) = match witness.map(|witness| &witness.copy) {
                Some(copy) => (
                    Mirror::new(copy.generation.beyond_what_was_lost(), copy.entries.clone()),
                    Origin::LastGoodCopy,
                ),
                None => (Mirror::default(), Origin::Fresh),
            };
            rebuild(layout, options, &mirror, origin, reason)
        }
    }
}

/// The database brought forward by the journal, and what the journal lacks.
fn open_as_is(
    layout: &Layout,
    options: &Options,
    lock: &File,
    journal: &Found,
    witness: Option<&Witness>,
) -> Result<(Engine, Scan, Option<String>), Refusal> {
    layout.wait_for_engine_lock()?;
    if let (true, Some(command)) = (layout.was_interrupted(), &options.probe) {
        match probe(layout.dir(), command, lock) {
            Err(ProbeFailure::DiskFull) => {
                return Err(Refusal::Stop(OpenError::DiskFull {
                    dir: layout.dir().to_owned(),
                }));
            }
            Err(failure) if failure.is_damage() => return Err(Refusal::Damage(chain(&failure))),
            // It opens, or nothing is known about it: try it, as without a probe.
            Ok(()) | Err(_) => {}
        }
    }
    layout.note_opening()?;
    let (engine, mut scan) = match open_and_scan(layout, options) {
        Ok(opened) => opened,
        Err(error) if error.is_environment() => return Err(Refusal::Stop(engine_error(layout, error))),
        Err(error) => {
            // sled does not tell a lock from other trouble; a database in use is not a damaged one.
            layout.wait_for_engine_lock()?;
            return Err(Refusal::Damage(chain(&error)));
        }
    };
    let own = scan.head.unwrap_or_default();
    let complete = scan
        .bring_forward(journal)
        .is_none_or(|forward| forward.gap.is_none());
    let damage = scan.damage(witness.map(|witness| &witness.copy)).or_else(|| {
        let witness = witness.filter(|witness| witness.complete)?;
        if !complete {
            return Some(format!(
                "it ends at generation {own}, and its journal begins later"
            ));
        }
        // One of the two is stale. The copy is checked as a whole, sled's pages are not.
        scan.contradicts(&witness.copy).then(|| {
            format!(
                "at generation {} its records are not the copy's",
                witness.copy.generation
            )
        })
    });
    if let Some(reason) = damage {
        engine.close();
        return Err(Refusal::Damage(reason));
    }
    Ok((engine, scan, journal_damage(journal, complete)))
}

fn journal_damage(journal: &Found, complete: bool) -> Option<String> {
    let gap = || (!complete).then(|| "commits are missing from its journal".to_owned());
    journal.damage.clone().or_else(gap)
}

/// Writes the copy, so that the journal can begin anew.
fn start_again(layout: &Layout, mirror: &Mirror) -> Result<Resume, OpenError> {
    let path = layout.copy();
    copy::write(&path, mirror).map_err(layout::io_error("write", &path))?;
    Ok(Resume::anew(mirror.generation))
}

fn open_and_scan(layout: &Layout, options: &Options) -> Result<(Engine, Scan), EngineError> {
    let engine = Engine::open(layout.dir(), options.cache_bytes)?;
    match scan(&engine) {
        Ok(scan) => Ok((engine, scan)),
        Err(error) => {
            engine.close();
            Err(error)
        }
    }
}

/// Puts a new database that holds `mirror` in the place of the one that can't be used, and opens it.
fn rebuild(
    layout: &Layout,
    options: &Options,
    mirror: &Mirror,
    origin: Origin,
    damage: String,
) -> Result<Chosen, OpenError> {
    let set_aside = build(layout, options, mirror)?;
    layout.note_opening()?;
    let (engine, scan) = open_and_scan(layout, options).map_err(|source| engine_error(layout, source))?;
    Ok(Chosen {
        engine,
        scan,
        origin,
        set_aside,
        damage: Some(damage),
        resume: Some(Resume::anew(mirror.generation)),
    })
}

/// Makes a new database that holds `mirror` and puts it in place; what was there is set aside.
pub(super) fn build(
    layout: &Layout,
    options: &Options,
    mirror: &Mirror,
) -> Result<Option<PathBuf>, OpenError> {
    layout.finish_exchange()?;
    let building = layout.building();
    building.create()?;
    building.mark_format()?;
    // Of a database that never was there is nothing to import; sled makes its files when it is opened in place.
    if mirror.generation > Generation(0) {
        let records = mirror
            .entries
            .iter()
            .map(|(key, value)| {
                (
                    key.clone().into_bytes(),
                    Some(record::encode(key, mirror.generation, value)),
                )
            })
            .chain(std::iter::once(head(mirror.generation, mirror.entries.len())));
        let engine = Engine::open(building.dir(), options.cache_bytes)
            .map_err(|source| engine_error(layout, source))?;
        let applied = engine.apply(records);
        engine.close();
        applied.map_err(|source| engine_error(layout, source))?;
    }
    let path = building.copy();
    copy::write(&path, mirror).map_err(layout::io_error("write", &path))?;
    let path = building.journal();
    Journal::create(&path, mirror.generation).map_err(layout::io_error("write", &path))?;
    layout.exchange()
}

pub(super) fn engine_error(layout: &Layout, source: EngineError) -> OpenError {
    OpenError::Engine {
        dir: layout.dir().to_owned(),
        source,
    }
}
