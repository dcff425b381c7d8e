//! The journal in front of sled: what is acknowledged lies here first.
//!
//! One file of fixed size, written full of zeros once, so that a commit is one write and one `fdatasync` that has no
//! metadata to write. The file is a ring: a group goes behind the one before it, or to the start when it does not
//! fit, and only over groups that sled and the last-good copy both have. Each carries the generation before it and
//! its own, which tell what comes after what, that nothing is missing, and which groups are old.
//!
//! So there are two complete witnesses at every instant: sled with the journal, and the copy with the journal.

use std::collections::VecDeque;
use std::fs::{self, File, OpenOptions};
use std::io::{self, Read, Write};
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use super::group::{self, Group};
use super::layout::sync_directory;
use super::record::Generation;

/// Some twelve hundred changes of a usual size; when half of it is used, sled and the copy follow.
pub(super) const JOURNAL_BYTES: usize = 512 << 10;

/// The journal as it is written.
#[derive(Debug)]
pub(super) struct Journal {
    path: PathBuf,
    file: File,
    /// Where the next group goes.
    at: u64,
    /// The generation of the last group, or of the checkpoint when there is none since.
    last: Generation,
    /// Groups that sled or the copy may lack, the oldest first.
    needed: VecDeque<Place>,
    /// A write or `fdatasync` failed. The kernel has dropped what it could not write, so the file may show what
    /// the disk does not have.
    distrusted: bool,
}

/// Where a group lies.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Place {
    generation: Generation,
    start: u64,
    end: u64,
}

/// The journal as it was found.
#[derive(Debug, Default)]
pub(super) struct Found {
    /// Everything whole and sound, in the order of the generations.
    groups: Vec<(Group, Place)>,
    /// Why there may have been more.
    pub(super) damage: Option<String>,
}

/// How far the journal brings a witness forward.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Forward {
    /// The generation it has then.
    pub(super) to: Generation,
    /// How many keys there are then; `None` when the journal adds nothing.
    pub(super) entries: Option<u32>,
    /// After this generation something is missing.
    pub(super) gap: Option<Generation>,
}

impl Journal {
    /// Makes a new journal, in place of one that may be there.
    pub(super) fn create(path: &Path, last: Generation) -> io::Result<Self> {
        let temporary = path.with_extension("tmp");
        let mut file = OpenOptions::new()
            .create(true)
            .truncate(true)
            .write(true)
            .mode(0o600)
            .open(&temporary)?;
        file.write_all(&vec![0; JOURNAL_BYTES])
            .and_then(|()| file.sync_all())
            .and_then(|()| fs::rename(&temporary, path))
            .inspect_err(|_| drop(fs::remove_file(&temporary)))?;
        path.parent().map_or(Ok(()), sync_directory)?;
        Ok(Self {
            path: path.to_owned(),
            file,
            at: 0,
            last,
            needed: VecDeque::new(),
            distrusted: false,
        })
    }

    /// Opens the journal to go on behind `needed`, which bring the copy to `last`.
    pub(super) fn open(path: &Path, needed: VecDeque<Place>, last: Generation) -> io::Result<Self> {
        Ok(Self {
            path: path.to_owned(),
            file: OpenOptions::new().write(true).open(path)?,
            at: needed.back().map_or(0, |newest| newest.end),
            last,
            needed,
            distrusted: false,
        })
    }

    /// Writes one group and returns when it is on the disk. False when it is not there, because there is no room or
    /// because the file failed and is not to be trusted any more.
    pub(super) fn append<'c>(
        &mut self,
        generation: Generation,
        entries: usize,
        changes: impl Iterator<Item = (&'c str, Option<&'c [u8]>)>,
    ) -> bool {
        let Some(bytes) = group::encode(self.last, generation, entries, changes) else {
            return false;
        };
        let Some(place) = self.room_for(bytes.len() as u64, generation) else {
            return false;
        };
        let written = self.file.write_all_at(&bytes, place.start);
        if written.and_then(|()| self.file.sync_data()).is_err() {
            self.distrusted = true;
            return false;
        }
        self.at = place.end;
        self.last = generation;
        self.needed.push_back(place);
        true
    }

    fn room_for(&self, length: u64, generation: Generation) -> Option<Place> {
        let behind = self.at.saturating_add(length) <= JOURNAL_BYTES as u64;
        let start = if behind { self.at } else { 0 };
        let end = start.saturating_add(length);
        let is_free = !self
            .needed
            .iter()
            .any(|other| other.start < end && start < other.end);
        let has_room = is_free && end <= JOURNAL_BYTES as u64 && !self.distrusted;
        has_room.then_some(Place {
            generation,
            start,
            end,
        })
    }

    /// Sled and the copy durably have everything up to `covered`.
    pub(super) fn release(&mut self, covered: Generation) {
        while self
            .needed
            .front()
            .is_some_and(|oldest| oldest.generation <= covered)
        {
            self.needed.pop_front();
        }
    }

    /// Whether sled and the copy have everything.
    pub(super) fn is_empty(&self) -> bool {
        self.needed.is_empty() && !self.distrusted
    }

    /// Whether it is time for sled and the copy to follow.
    pub(super) fn is_filling(&self) -> bool {
        let used: u64 = self.needed.iter().map(|place| place.end - place.start).sum();
        used > JOURNAL_BYTES as u64 / 2
    }

    /// Begins anew: sled and the copy durably have everything up to `last`.
    pub(super) fn begin(&mut self, last: Generation) -> io::Result<()> {
        if self.distrusted {
            *self = Self::create(&self.path, last)?;
        }
        self.needed.clear();
        self.last = last;
        Ok(())
    }

    /// The next write fails.
    #[cfg(test)]
    pub(super) fn fail_for_the_test(&mut self) {
        self.file = File::open(&self.path).unwrap();
    }
}

/// Reads the journal at `path`.
pub(super) fn read(path: &Path) -> Found {
    let mut bytes = Vec::new();
    let read = File::open(path).and_then(|file| file.take(JOURNAL_BYTES as u64).read_to_end(&mut bytes));
    let damage = match read {
        Ok(JOURNAL_BYTES) => None,
        Ok(length) => Some(format!(
            "its journal has {length} bytes instead of {JOURNAL_BYTES}"
        )),
        Err(error) => Some(format!("its journal cannot be read: {error}")),
    };
    Found {
        groups: find_groups(&bytes),
        damage,
    }
}

/// Groups are looked for behind damaged ones, too. Those of earlier rounds that are not overwritten yet are found
/// as well; they are older than sled and the copy and change nothing.
fn find_groups(bytes: &[u8]) -> Vec<(Group, Place)> {
    let mut groups = Vec::new();
    let mut at = 0;
    while let Some(rest) = bytes.get(at..).filter(|rest| !rest.is_empty()) {
        match group::decode(rest) {
            Some((group, length)) => {
                let place = Place {
                    generation: group.generation,
                    start: at as u64,
                    end: (at + length) as u64,
                };
                groups.push((group, place));
                at += length;
            }
            None => at += group::ALIGNMENT,
        }
    }
    groups.sort_by_key(|(group, _)| group.generation);
    groups
}

impl Found {
    /// Where the groups lie that a copy of generation `copied` lacks.
    pub(super) fn needed_after(&self, copied: Generation) -> VecDeque<Place> {
        let places = self.groups.iter().map(|(_, place)| *place);
        places.filter(|place| place.generation > copied).collect()
    }

    /// Brings a witness of generation `from` forward, change by change. A group behind a missing one is applied,
    /// too: its changes were acknowledged, and later ones than what is missing.
    pub(super) fn bring_forward(
        &self,
        from: Generation,
        mut change: impl FnMut(Generation, &str, Option<&[u8]>),
    ) -> Forward {
        let mut forward = Forward {
            to: from,
            entries: None,
            gap: None,
        };
        for (group, _) in self.groups.iter().filter(|(group, _)| group.generation > from) {
            if group.after > forward.to {
                forward.gap.get_or_insert(forward.to);
            }
            for (key, value) in &group.changes {
                change(group.generation, key, value.as_deref());
            }
            forward.to = group.generation;
            forward.entries = Some(group.entries);
        }
        forward
    }
}
