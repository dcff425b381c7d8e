//! Opening: what is there, can it be believed, and what to do when it can't.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::File;
use std::path::PathBuf;

use nix::fcntl::Flock;

use super::copy::{self, Copy, read_copy};
use super::engine::{self, Engine, EngineError};
use super::layout::{self, Format, Layout};
use super::mirror::Mirror;
use super::probe::{ProbeFailure, probe};
use super::record::{self, Doubt, DoubtReason, Generation};
use super::{Loaded, OpenError, Options, Origin, ballast};
use crate::causes::chain;

/// The record that says how far the database has come and how many keys it holds. No caller's key starts with NUL.
const HEAD: &str = "\0head";

/// A database that is ready for commits.
pub(super) struct Opened {
    pub(super) engine: Engine,
    pub(super) loaded: Loaded,
    pub(super) mirror: Mirror,
    pub(super) copied: Generation,
    pub(super) has_ballast: bool,
    pub(super) lock: Flock<File>,
}

/// Everything in a database, judged.
#[derive(Debug, Default)]
pub(super) struct Scan {
    /// `None`: there is no legible head.
    pub(super) head: Option<Generation>,
    expected: u32,
    /// The highest generation of any legible record.
    highest: Generation,
    pub(super) entries: BTreeMap<String, Vec<u8>>,
    doubts: Vec<Doubt>,
}

/// Why a database is not used.
enum Refusal {
    /// It is damaged: set it aside.
    Damage(String),
    /// Something else is wrong: leave it alone.
    Stop(OpenError),
}

/// How a database came to be open.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Trust {
    Normal,
    /// Without its damaged snapshot, from the log alone: only if every record is there.
    Replayed,
}

impl Refusal {
    /// The first attempt's reason is the one to know: the second attempt works without the snapshot.
    fn after(self, first: &str) -> Self {
        match self {
            Self::Damage(second) => Self::Damage(format!("{first}; without its snapshot: {second}")),
            Self::Stop(error) => Self::Stop(error),
        }
    }
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
    .map(|(engine, loaded, copied)| Opened {
        mirror: Mirror::new(loaded.generation, loaded.entries.clone()),
        has_ballast: ballast::lay_down(&layout.ballast(), options.ballast_bytes).unwrap_or(false),
        engine,
        loaded,
        copied,
        lock,
    })
}

fn open_locked(
    layout: &Layout,
    options: &Options,
    lock: &File,
) -> Result<(Engine, Loaded, Generation), OpenError> {
    layout.finish_exchange()?;
    let mut copy = read_copy(layout.dir()).ok();
    match layout.format()? {
        Format::Current => {}
        Format::Empty => {
            build(layout, options, &Mirror::default())?;
            copy = read_copy(layout.dir()).ok();
        }
        // The marker is lost, but the copy's checksum proves that the directory is ours.
        Format::Unmarked if copy.is_some() => layout.mark_format()?,
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
    let as_is = match open_as_is(layout, options, lock, copy.as_ref(), Trust::Normal) {
        Err(Refusal::Damage(first)) if engine::retire_snapshots(layout.dir()) => {
            open_as_is(layout, options, lock, copy.as_ref(), Trust::Replayed)
                .map_err(|refusal| refusal.after(&first))
        }
        other => other,
    };
    let (engine, scan, origin, set_aside, damage) = match as_is {
        Ok((engine, scan)) if layout.panicked().exists() => {
            engine.close();
            let head = scan.head.unwrap_or_default().max(scan.highest);
            let mirror = Mirror::new(head, scan.entries);
            let (engine, moved, aside) = rebuild(layout, options, &mirror)?;
            let scan = Scan {
                doubts: scan.doubts,
                ..moved
            };
            (
                engine,
                scan,
                Origin::Database,
                aside,
                Some("sled panicked while it was open".to_owned()),
            )
        }
        Ok((engine, scan)) => {
            let fresh = scan.head.is_none();
            (
                engine,
                scan,
                if fresh { Origin::Fresh } else { Origin::Database },
                None,
                None,
            )
        }
        Err(Refusal::Stop(error)) => return Err(error),
        Err(Refusal::Damage(reason)) => {
            let mirror = copy.as_ref().map_or_else(Mirror::default, |copy| {
                Mirror::new(copy.generation.beyond_what_was_lost(), copy.entries.clone())
            });
            let (engine, scan, aside) = rebuild(layout, options, &mirror)?;
            let origin = if copy.is_some() {
                Origin::LastGoodCopy
            } else {
                Origin::Fresh
            };
            (engine, scan, origin, aside, Some(reason))
        }
    };
    // The first write belongs to the opening: a database that can be read but not written to must not get the
    // daemon into a crash loop either.
    let generation = scan.head.unwrap_or_default().max(scan.highest).next();
    let entries = scan.entries.len() + count_existing(&scan.doubts);
    engine
        .apply(std::iter::once(head(generation, entries)))
        .map_err(|source| engine_error(layout, source))?;
    if origin != Origin::Database || set_aside.is_some() {
        // sled has made files and synced none of their names.
        layout.sync_everything()?;
    }
    layout.note_opened()?;
    let doubts = with_copies(scan.doubts, copy.as_ref(), &scan.entries, scan.expected);
    let loaded = Loaded {
        entries: scan.entries,
        doubts,
        generation,
        origin,
        set_aside,
        damage,
        set_aside_count: layout.set_aside_count(),
    };
    let copied = match origin {
        Origin::Database => copy.map_or(Generation(0), |copy| copy.generation),
        Origin::LastGoodCopy | Origin::Fresh => Generation(0),
    };
    Ok((engine, loaded, copied))
}

fn open_as_is(
    layout: &Layout,
    options: &Options,
    lock: &File,
    copy: Option<&Copy>,
    trust: Trust,
) -> Result<(Engine, Scan), Refusal> {
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
    let (engine, scan) = match open_and_scan(layout, options) {
        Ok(opened) => opened,
        Err(error) if error.is_environment() => return Err(Refusal::Stop(engine_error(layout, error))),
        Err(error) => {
            // sled does not tell a lock from other trouble; a database in use is not a damaged one.
            layout.wait_for_engine_lock()?;
            return Err(Refusal::Damage(chain(&error)));
        }
    };
    if let Some(reason) = scan.damage(copy, trust) {
        engine.close();
        return Err(Refusal::Damage(reason));
    }
    Ok((engine, scan))
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
) -> Result<(Engine, Scan, Option<PathBuf>), OpenError> {
    let aside = build(layout, options, mirror)?;
    layout.note_opening()?;
    let (engine, scan) = open_and_scan(layout, options).map_err(|source| engine_error(layout, source))?;
    Ok((engine, scan, aside))
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
    layout.exchange()
}

/// Reads and judges everything.
pub(super) fn scan(engine: &Engine) -> Result<Scan, EngineError> {
    let mut scan = Scan::default();
    let mut found: Vec<(String, Generation, Vec<u8>)> = Vec::new();
    for item in engine.scan() {
        let (key, raw) = item?;
        let Ok(key) = String::from_utf8(key) else {
            scan.doubts.push(doubt(String::new(), DoubtReason::Key, raw));
            continue;
        };
        match record::decode(&key, &raw) {
            Ok((generation, payload)) if key == HEAD => {
                scan.head = Some(generation);
                scan.expected = payload.try_into().map_or(0, u32::from_le_bytes);
            }
            Ok((generation, payload)) => found.push((key, generation, payload.to_vec())),
            Err(_) if key == HEAD => {}
            Err(reason) => scan.doubts.push(doubt(key, reason, raw)),
        }
    }
    for (key, generation, payload) in found {
        match scan.head {
            Some(head) if generation > head => {
                let raw = record::encode(&key, generation, &payload);
                scan.doubts
                    .push(doubt(key, DoubtReason::FromTheFuture(generation), raw));
            }
            Some(_) | None => {
                scan.entries.insert(key, payload);
            }
        }
        scan.highest = scan.highest.max(generation);
    }
    Ok(scan)
}

impl Scan {
    /// Why this database, though it opened, can't be believed.
    fn damage(&self, copy: Option<&Copy>, trust: Trust) -> Option<String> {
        let present = self.entries.len() + self.doubts.len();
        let copied = copy.map_or(Generation(0), |copy| copy.generation);
        match self.head {
            None if present > 0 => Some("its head record is missing or illegible".into()),
            // Every directory of ours is made with a copy in it.
            None if copy.is_none() => Some("neither a head record nor a copy is legible".into()),
            None if copied > Generation(0) => Some(format!("it is empty, the copy has generation {copied}")),
            Some(head) if head < copied => {
                Some(format!("it ends at generation {head}, the copy at {copied}"))
            }
            Some(_) if self.doubts.len() * 2 > present => Some(format!(
                "{} of {present} records are illegible",
                self.doubts.len()
            )),
            Some(_) if self.missing() * 2 > self.expected as usize => Some(format!(
                "{} of {} records are missing",
                self.missing(),
                self.expected
            )),
            Some(_) if trust == Trust::Replayed && present != self.expected as usize => Some(format!(
                "replayed without its snapshot it has {present} records instead of {}",
                self.expected
            )),
            Some(_) | None => None,
        }
    }

    fn missing(&self) -> usize {
        (self.expected as usize).saturating_sub(self.entries.len() + self.doubts.len())
    }
}

/// Adds what the copy knows to each doubt, and a doubt for each key that only the copy still has when the database
/// is short of records.
fn with_copies(
    mut doubts: Vec<Doubt>,
    copy: Option<&Copy>,
    entries: &BTreeMap<String, Vec<u8>>,
    expected: u32,
) -> Vec<Doubt> {
    let Some(copy) = copy else { return doubts };
    for doubt in &mut doubts {
        doubt.in_copy = copy.entries.get(&doubt.key).cloned();
    }
    if entries.len() + doubts.len() < expected as usize {
        let doubtful: BTreeSet<String> = doubts.iter().map(|doubt| doubt.key.clone()).collect();
        let lost = copy
            .entries
            .iter()
            .filter(|(key, _)| !entries.contains_key(*key) && !doubtful.contains(*key));
        doubts.extend(lost.map(|(key, value)| Doubt {
            key: key.clone(),
            reason: DoubtReason::Missing,
            raw: Vec::new(),
            in_copy: Some(value.clone()),
        }));
    }
    doubts
}

/// The head record for a database of `entries` keys at `generation`.
pub(super) fn head(generation: Generation, entries: usize) -> (Vec<u8>, Option<Vec<u8>>) {
    let entries = u32::try_from(entries).unwrap_or(u32::MAX);
    let record = record::encode(HEAD, generation, &entries.to_le_bytes());
    (HEAD.as_bytes().to_vec(), Some(record))
}

/// Doubts about records that do lie in the database.
pub(super) fn count_existing(doubts: &[Doubt]) -> usize {
    doubts
        .iter()
        .filter(|doubt| doubt.reason != DoubtReason::Missing)
        .count()
}

pub(super) fn engine_error(layout: &Layout, source: EngineError) -> OpenError {
    OpenError::Engine {
        dir: layout.dir().to_owned(),
        source,
    }
}

fn doubt(key: String, reason: DoubtReason, raw: Vec<u8>) -> Doubt {
    Doubt {
        key,
        reason,
        raw,
        in_copy: None,
    }
}
