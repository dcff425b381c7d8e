//! What a database holds, and whether it can be believed.

use std::collections::{BTreeMap, BTreeSet};

use super::copy::Copy;
use super::engine::{Engine, EngineError};
use super::journal::{Forward, Found};
use super::record::{self, Doubt, DoubtReason, Generation};

/// The record that says how far the database has come and how many keys it holds. No caller's key starts with NUL.
const HEAD: &str = "\0head";

/// Everything in a database, judged.
#[derive(Debug, Default)]
pub(super) struct Scan {
    /// `None`: there is no legible head.
    pub(super) head: Option<Generation>,
    pub(super) expected: u32,
    /// The highest generation of any legible record.
    pub(super) highest: Generation,
    pub(super) entries: BTreeMap<String, Vec<u8>>,
    pub(super) doubts: Vec<Doubt>,
    /// What the journal adds, to be written to the database.
    pub(super) replayed: BTreeMap<String, (Generation, Option<Vec<u8>>)>,
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
    /// Adds what the journal has and the database has not.
    pub(super) fn bring_forward(&mut self, journal: &Found) -> Option<Forward> {
        // Without a head the database is new or damaged; the journal does not tell which.
        let forward = journal.bring_forward(self.head?, |generation, key, value| {
            self.doubts.retain(|doubt| doubt.key != key);
            match value {
                Some(value) => drop(self.entries.insert(key.to_owned(), value.to_vec())),
                None => drop(self.entries.remove(key)),
            }
            let value = value.map(<[u8]>::to_vec);
            self.replayed.insert(key.to_owned(), (generation, value));
        });
        self.head = Some(forward.to);
        self.highest = self.highest.max(forward.to);
        self.expected = forward.entries.unwrap_or(self.expected);
        Some(forward)
    }

    /// What the database lacks of what is in here.
    pub(super) fn missing_records(&self) -> impl Iterator<Item = (Vec<u8>, Option<Vec<u8>>)> {
        self.replayed.iter().map(|(key, (generation, value))| {
            let record = value
                .as_ref()
                .map(|value| record::encode(key, *generation, value));
            (key.clone().into_bytes(), record)
        })
    }

    /// The generation up to which it goes, whatever its head says.
    pub(super) fn reach(&self) -> Generation {
        self.head.unwrap_or_default().max(self.highest)
    }

    /// Why this database, though it opened, can't be believed. `copy` has the journal's changes, too.
    pub(super) fn damage(&self, copy: Option<&Copy>) -> Option<String> {
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
            Some(_) | None => None,
        }
    }

    /// Whether it is whole and as old as `copy`, and yet holds something else.
    pub(super) fn contradicts(&self, copy: &Copy) -> bool {
        let whole = self.doubts.is_empty() && self.missing() == 0;
        whole && self.head == Some(copy.generation) && self.entries != copy.entries
    }

    fn missing(&self) -> usize {
        (self.expected as usize).saturating_sub(self.entries.len() + self.doubts.len())
    }
}

/// Adds what the copy knows to each doubt, and a doubt for each key that only the copy still has when the database
/// is short of records.
pub(super) fn with_copies(
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

fn doubt(key: String, reason: DoubtReason, raw: Vec<u8>) -> Doubt {
    Doubt {
        key,
        reason,
        raw,
        in_copy: None,
    }
}
