//! The copy with the journal: what the database should be, known without sled.

use std::collections::VecDeque;

use super::copy::Copy;
use super::journal::{Found, Place};
use super::record::Generation;

/// What of the journal is needed, the generation of its last group and that of the copy.
#[derive(Clone)]
pub(super) struct Resume {
    pub(super) needed: VecDeque<Place>,
    pub(super) last: Generation,
    pub(super) copied: Generation,
}

impl Resume {
    /// The copy has everything.
    pub(super) fn anew(copied: Generation) -> Self {
        Self {
            needed: VecDeque::new(),
            last: copied,
            copied,
        }
    }
}

/// The copy, brought forward by the journal.
pub(super) struct Witness {
    pub(super) copy: Copy,
    /// Nothing is missing in between.
    pub(super) complete: bool,
    /// How the journal goes on, when the copy and the journal make up all of it.
    pub(super) resume: Option<Resume>,
}

impl Witness {
    pub(super) fn new(mut copy: Copy, journal: &Found) -> Self {
        let copied = copy.generation;
        let entries = &mut copy.entries;
        let forward = journal.bring_forward(copied, |_, key, value| match value {
            Some(value) => drop(entries.insert(key.to_owned(), value.to_vec())),
            None => drop(entries.remove(key)),
        });
        copy.generation = forward.to;
        let complete = forward.gap.is_none();
        let resume = (complete && journal.damage.is_none()).then(|| Resume {
            needed: journal.needed_after(copied),
            last: forward.to,
            copied,
        });
        Self {
            copy,
            complete,
            resume,
        }
    }
}
