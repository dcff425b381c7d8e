//! The last-good copy: everything durable at one generation, as JSON that a human and the support tool can read
//! while sled holds its lock.
//!
//! Written by temporary file, fsync, rename and fsync of the directory; the one before stays as `last-good.prev`.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::{self, Read};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{SystemTime, UNIX_EPOCH};

use serde::{Deserialize, Serialize};
use thiserror::Error;

use super::layout::{sync_directory, write_synced};
use super::mirror::Mirror;
use super::record::Generation;
use super::{MAX_ENTRIES, MAX_KEY_BYTES, MAX_VALUE_BYTES};

const FORMAT: u32 = 1;
/// Values that are no text take two bytes for one.
const MAX_FILE_BYTES: u64 = (MAX_ENTRIES * (MAX_KEY_BYTES + 2 * MAX_VALUE_BYTES)) as u64;

/// A copy as read back, its checksum verified.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Copy {
    /// The generation of the last commit in it.
    pub generation: Generation,
    /// When it was written, seconds since 1970.
    pub written_unix: u64,
    /// Key to value.
    pub entries: BTreeMap<String, Vec<u8>>,
}

/// Why there is no copy to be had.
#[derive(Debug, Error)]
pub enum CopyError {
    /// Not readable.
    #[error("cannot read {path}")]
    Read {
        /// The file.
        path: PathBuf,
        /// The answer.
        source: io::Error,
    },
    /// Not a copy.
    #[error("{path} is not a copy of the database")]
    Decode {
        /// The file.
        path: PathBuf,
        /// The answer.
        source: serde_json::Error,
    },
    /// A later version wrote it.
    #[error("{path} has format {found}, this version knows {FORMAT}")]
    Format {
        /// The file.
        path: PathBuf,
        /// Its format.
        found: u32,
    },
    /// Changed since it was written.
    #[error("{path}: the checksum does not match")]
    Checksum {
        /// The file.
        path: PathBuf,
    },
}

#[derive(Serialize, Deserialize)]
struct Document {
    format: u32,
    generation: Generation,
    written_unix: u64,
    crc32: u32,
    entries: BTreeMap<String, Value>,
}

/// Text where it is text, so that the file can be read by humans.
#[derive(Serialize, Deserialize)]
#[serde(untagged)]
enum Value {
    Text(String),
    Bytes { hex: String },
}

/// Reads the copy in the database directory `dir`, or the one before it when the newest is damaged.
pub fn read_copy(dir: &Path) -> Result<Copy, CopyError> {
    let newest = super::layout::Layout::new(dir).copy();
    read(&newest).or_else(|error| read(&previous(&newest)).map_err(|_| error))
}

/// Writes `mirror` to `path`.
pub(super) fn write(path: &Path, mirror: &Mirror) -> io::Result<()> {
    let document = Document {
        format: FORMAT,
        generation: mirror.generation,
        written_unix: SystemTime::now()
            .duration_since(UNIX_EPOCH)
            .map_or(0, |since| since.as_secs()),
        crc32: checksum(mirror.generation, &mirror.entries),
        entries: mirror
            .entries
            .iter()
            .map(|(key, value)| (key.clone(), Value::of(value)))
            .collect(),
    };
    let mut text = serde_json::to_vec_pretty(&document)?;
    text.push(b'\n');
    let temporary = path.with_extension("tmp");
    write_synced(&temporary, &text)
        .and_then(|()| keep_previous(path))
        .and_then(|()| fs::rename(&temporary, path))
        .inspect_err(|_| drop(fs::remove_file(&temporary)))?;
    path.parent().map_or(Ok(()), sync_directory)
}

/// A second name for the newest copy, so that there is one at every instant.
fn keep_previous(path: &Path) -> io::Result<()> {
    let previous = previous(path);
    match fs::remove_file(&previous) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    match fs::hard_link(path, &previous) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}

fn previous(path: &Path) -> PathBuf {
    path.with_extension("prev.json")
}

fn read(path: &Path) -> Result<Copy, CopyError> {
    let mut text = Vec::new();
    File::open(path)
        .and_then(|file| file.take(MAX_FILE_BYTES).read_to_end(&mut text))
        .map_err(|source| CopyError::Read {
            path: path.to_owned(),
            source,
        })?;
    let document: Document = serde_json::from_slice(&text).map_err(|source| CopyError::Decode {
        path: path.to_owned(),
        source,
    })?;
    if document.format != FORMAT {
        return Err(CopyError::Format {
            path: path.to_owned(),
            found: document.format,
        });
    }
    let damaged = || CopyError::Checksum {
        path: path.to_owned(),
    };
    let entries = document
        .entries
        .into_iter()
        .map(|(key, value)| Some((key, Arc::from(value.bytes()?))))
        .collect::<Option<BTreeMap<String, Arc<[u8]>>>>()
        .ok_or_else(damaged)?;
    if checksum(document.generation, &entries) != document.crc32 {
        return Err(damaged());
    }
    Ok(Copy {
        generation: document.generation,
        written_unix: document.written_unix,
        entries: entries
            .into_iter()
            .map(|(key, value)| (key, value.to_vec()))
            .collect(),
    })
}

fn checksum(generation: Generation, entries: &BTreeMap<String, Arc<[u8]>>) -> u32 {
    let mut hash = crc32fast::Hasher::new();
    hash.update(&generation.0.to_le_bytes());
    for (key, value) in entries {
        hash.update(&(key.len() as u64).to_le_bytes());
        hash.update(key.as_bytes());
        hash.update(&(value.len() as u64).to_le_bytes());
        hash.update(value);
    }
    hash.finalize()
}

impl Value {
    fn of(bytes: &[u8]) -> Self {
        match std::str::from_utf8(bytes) {
            Ok(text) => Self::Text(text.to_owned()),
            Err(_) => Self::Bytes {
                hex: bytes
                    .iter()
                    .fold(String::new(), |hex, byte| hex + &format!("{byte:02x}")),
            },
        }
    }

    fn bytes(self) -> Option<Vec<u8>> {
        match self {
            Self::Text(text) => Some(text.into_bytes()),
            Self::Bytes { hex } => hex
                .as_bytes()
                .chunks(2)
                .map(|pair| u8::from_str_radix(std::str::from_utf8(pair).ok()?, 16).ok())
                .collect(),
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn mirror(generation: u64, entries: BTreeMap<String, Vec<u8>>) -> Mirror {
        Mirror::new(Generation(generation), entries)
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(32))]
        #[test]
        fn round_trip(generation: u64, entries: BTreeMap<String, Vec<u8>>) {
            let dir = tempfile::tempdir().unwrap();
            write(&dir.path().join("last-good.json"), &mirror(generation, entries.clone())).unwrap();
            let copy = read_copy(dir.path()).unwrap();
            prop_assert_eq!((copy.generation, copy.entries), (Generation(generation), entries));
        }
    }

    #[test]
    fn every_damaged_byte_is_noticed_and_the_previous_copy_takes_over() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("last-good.json");
        let entries =
            |text: &str| BTreeMap::from([("k".to_owned(), text.into()), ("b".to_owned(), vec![0xff])]);
        write(&path, &mirror(1, entries("one"))).unwrap();
        write(&path, &mirror(2, entries("two"))).unwrap();
        assert_eq!(read_copy(dir.path()).unwrap().entries, entries("two"));
        let good = fs::read(&path).unwrap();
        for at in 0..good.len() {
            let mut bad = good.clone();
            bad[at] ^= 0x11;
            fs::write(&path, &bad).unwrap();
            let copy = read_copy(dir.path()).unwrap();
            // Layout and the time stamp are not covered, nothing else may pass.
            assert!(
                copy.entries == entries("one")
                    || (copy.entries == entries("two") && copy.generation == Generation(2)),
                "byte {at}"
            );
        }
        fs::remove_file(&path).unwrap();
        assert_eq!(read_copy(dir.path()).unwrap().entries, entries("one"));
    }
}
