//! How one record lies in the database: version, generation, CRC, payload.

use std::fmt;

use serde::{Deserialize, Serialize};

/// The record version written here.
pub(super) const VERSION: u8 = 1;

const CRC_AT: usize = 9;
const PAYLOAD_AT: usize = 13;

/// The place of a change in the order of all changes; strictly increasing over the database's life.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Generation(pub u64);

impl Generation {
    /// The one after.
    pub(super) fn next(self) -> Self {
        Self(self.0.saturating_add(1))
    }

    /// One that is higher than any that a lost database can have given out after writing the copy of `self`.
    pub(super) fn beyond_what_was_lost(self) -> Self {
        Self(self.0.saturating_add(1 << 32))
    }
}

impl fmt::Display for Generation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// A record that can't be believed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Doubt {
    /// Its key.
    pub key: String,
    /// What is wrong with it.
    pub reason: DoubtReason,
    /// The bytes as they lie in the database.
    pub raw: Vec<u8>,
    /// What the last-good copy says about the key: an older witness.
    pub in_copy: Option<Vec<u8>>,
}

/// What is wrong with a record.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum DoubtReason {
    /// Shorter than its own frame.
    TooShort,
    /// The checksum does not match.
    Checksum,
    /// Written by a version this one doesn't know.
    Version(u8),
    /// Its generation lies beyond the database's own.
    FromTheFuture(Generation),
    /// The key is no text.
    Key,
    /// The copy has it, the database does not, and the database lacks records.
    Missing,
}

impl fmt::Display for DoubtReason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::TooShort => f.write_str("shorter than its frame"),
            Self::Checksum => f.write_str("checksum does not match"),
            Self::Version(version) => write!(f, "unknown record version {version}"),
            Self::FromTheFuture(generation) => {
                write!(f, "generation {generation} is higher than the database's")
            }
            Self::Key => f.write_str("key is not UTF-8"),
            Self::Missing => f.write_str("lost by the database, known from the copy"),
        }
    }
}

/// Frames `payload`.
pub(super) fn encode(key: &str, generation: Generation, payload: &[u8]) -> Vec<u8> {
    let generation = generation.0.to_le_bytes();
    let crc = checksum(VERSION, generation, key, payload);
    let mut bytes = Vec::with_capacity(PAYLOAD_AT + payload.len());
    bytes.push(VERSION);
    bytes.extend_from_slice(&generation);
    bytes.extend_from_slice(&crc.to_le_bytes());
    bytes.extend_from_slice(payload);
    bytes
}

/// Takes `bytes` apart again.
pub(super) fn decode<'b>(key: &str, bytes: &'b [u8]) -> Result<(Generation, &'b [u8]), DoubtReason> {
    let (head, payload) = bytes.split_at_checked(PAYLOAD_AT).ok_or(DoubtReason::TooShort)?;
    let (start, crc) = head.split_at_checked(CRC_AT).ok_or(DoubtReason::TooShort)?;
    let (&version, generation) = start.split_first().ok_or(DoubtReason::TooShort)?;
    let generation: [u8; 8] = generation.try_into().map_err(|_| DoubtReason::TooShort)?;
    let crc = u32::from_le_bytes(crc.try_into().map_err(|_| DoubtReason::TooShort)?);
    // The checksum first: a flipped bit in the version is damage, not a message from the future.
    if crc != checksum(version, generation, key, payload) {
        return Err(DoubtReason::Checksum);
    }
    if version != VERSION {
        return Err(DoubtReason::Version(version));
    }
    Ok((Generation(u64::from_le_bytes(generation)), payload))
}

/// Covers the key too, so that a value that ended up under another key is found.
fn checksum(version: u8, generation: [u8; 8], key: &str, payload: &[u8]) -> u32 {
    let mut hash = crc32fast::Hasher::new();
    hash.update(&[version]);
    hash.update(&generation);
    hash.update(&(key.len() as u64).to_le_bytes());
    hash.update(key.as_bytes());
    hash.update(payload);
    hash.finalize()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn unknown_version_is_told_from_damage() {
        let mut bytes = encode("k", Generation(7), b"v");
        bytes[0] = 2;
        assert_eq!(decode("k", &bytes), Err(DoubtReason::Checksum));
        let crc = checksum(2, 7_u64.to_le_bytes(), "k", b"v");
        bytes[CRC_AT..PAYLOAD_AT].copy_from_slice(&crc.to_le_bytes());
        assert_eq!(decode("k", &bytes), Err(DoubtReason::Version(2)));
    }

    proptest! {
        #[test]
        fn round_trip(key in ".{0,40}", generation: u64, payload: Vec<u8>) {
            let bytes = encode(&key, Generation(generation), &payload);
            prop_assert_eq!(decode(&key, &bytes), Ok((Generation(generation), &payload[..])));
            let other = format!("{key}x");
            prop_assert!(decode(&other, &bytes).is_err());
        }

        #[test]
        fn every_single_bit_counts(payload in prop::collection::vec(any::<u8>(), 0..40), bit: prop::sample::Index) {
            let mut bytes = encode("key", Generation(3), &payload);
            let bit = bit.index(bytes.len() * 8);
            bytes[bit / 8] ^= 1 << (bit % 8);
            prop_assert_eq!(decode("key", &bytes), Err(DoubtReason::Checksum));
        }

        #[test]
        fn noise_never_panics(noise: Vec<u8>) {
            prop_assert!(decode("key", &noise).is_err());
        }
    }
}
