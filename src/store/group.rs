//! How one group of commits lies in the journal.
//!
//! ```text
//! magic u32 | CRC-32 of all that follows u32 | length of the changes u32 | keys in the database u32
//! generation before u64 | generation u64
//! changes: key length u16 | value length u32, all ones to remove | key | value
//! zeros up to a multiple of eight
//! ```

use super::record::Generation;
use super::{MAX_KEY_BYTES, MAX_VALUE_BYTES};

/// Groups begin at multiples of this, so that one can be looked for behind a damaged one.
pub(super) const ALIGNMENT: usize = 8;
const MAGIC: [u8; 4] = *b"ipj\x01";
const HEADER: usize = 32;
const CRC_FROM: usize = 8;
const REMOVED: u32 = u32::MAX;

/// A group as read back.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Group {
    /// The generation of everything before.
    pub(super) after: Generation,
    pub(super) generation: Generation,
    /// How many keys the database holds with this group.
    pub(super) entries: u32,
    /// `None` removes.
    pub(super) changes: Vec<(String, Option<Vec<u8>>)>,
}

/// Frames a group. `None` when it is longer than any journal.
pub(super) fn encode<'c>(
    after: Generation,
    generation: Generation,
    entries: usize,
    changes: impl Iterator<Item = (&'c str, Option<&'c [u8]>)>,
) -> Option<Vec<u8>> {
    let mut body = Vec::new();
    for (key, value) in changes {
        let length = match value {
            Some(value) => u32::try_from(value.len()).ok()?,
            None => REMOVED,
        };
        body.extend_from_slice(&u16::try_from(key.len()).ok()?.to_le_bytes());
        body.extend_from_slice(&length.to_le_bytes());
        body.extend_from_slice(key.as_bytes());
        body.extend_from_slice(value.unwrap_or_default());
    }
    let mut covered = Vec::with_capacity(HEADER + body.len() + ALIGNMENT);
    covered.extend_from_slice(&u32::try_from(body.len()).ok()?.to_le_bytes());
    covered.extend_from_slice(&u32::try_from(entries).unwrap_or(u32::MAX).to_le_bytes());
    covered.extend_from_slice(&after.0.to_le_bytes());
    covered.extend_from_slice(&generation.0.to_le_bytes());
    covered.append(&mut body);
    let mut bytes = Vec::with_capacity(covered.len() + CRC_FROM + ALIGNMENT);
    bytes.extend_from_slice(&MAGIC);
    bytes.extend_from_slice(&crc32fast::hash(&covered).to_le_bytes());
    bytes.append(&mut covered);
    bytes.resize(bytes.len().next_multiple_of(ALIGNMENT), 0);
    Some(bytes)
}

/// The group that `bytes` begin with and its length there; `None` when they begin with no whole and sound one.
pub(super) fn decode(bytes: &[u8]) -> Option<(Group, usize)> {
    let mut rest = bytes;
    if take::<4>(&mut rest)? != MAGIC {
        return None;
    }
    let crc = u32::from_le_bytes(take(&mut rest)?);
    let mut header = rest;
    let length = u32::from_le_bytes(take(&mut header)?) as usize;
    let end = HEADER.checked_add(length)?;
    if crc32fast::hash(bytes.get(CRC_FROM..end)?) != crc {
        return None;
    }
    let entries = u32::from_le_bytes(take(&mut header)?);
    let after = Generation(u64::from_le_bytes(take(&mut header)?));
    let generation = Generation(u64::from_le_bytes(take(&mut header)?));
    let mut body = header.get(..length)?;
    let mut changes = Vec::new();
    while !body.is_empty() {
        changes.push(change(&mut body)?);
    }
    let group = Group {
        after,
        generation,
        entries,
        changes,
    };
    (group.generation > group.after).then(|| (group, end.next_multiple_of(ALIGNMENT)))
}

fn change(body: &mut &[u8]) -> Option<(String, Option<Vec<u8>>)> {
    let key_length = usize::from(u16::from_le_bytes(take(body)?));
    let value_length = u32::from_le_bytes(take(body)?);
    if key_length > MAX_KEY_BYTES {
        return None;
    }
    let (key, rest) = body.split_at_checked(key_length)?;
    let key = std::str::from_utf8(key).ok()?.to_owned();
    *body = rest;
    if value_length == REMOVED {
        return Some((key, None));
    }
    let value_length = value_length as usize;
    if value_length > MAX_VALUE_BYTES {
        return None;
    }
    let (value, rest) = body.split_at_checked(value_length)?;
    *body = rest;
    Some((key, Some(value.to_vec())))
}

fn take<const N: usize>(rest: &mut &[u8]) -> Option<[u8; N]> {
    let (taken, left) = rest.split_first_chunk::<N>()?;
    *rest = left;
    Some(*taken)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    type Changes = Vec<(String, Option<Vec<u8>>)>;

    fn framed(changes: &Changes) -> Vec<u8> {
        let changes = changes
            .iter()
            .map(|(key, value)| (key.as_str(), value.as_deref()));
        encode(Generation(6), Generation(9), 3, changes).unwrap()
    }

    fn changes() -> impl Strategy<Value = Changes> {
        let value = prop::option::of(prop::collection::vec(any::<u8>(), 0..40));
        prop::collection::vec(("[a-z/]{1,20}", value), 0..5)
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]
        #[test]
        fn round_trip(changes in changes(), behind: Vec<u8>) {
            let mut bytes = framed(&changes);
            let length = bytes.len();
            bytes.extend(behind);
            let group = Group { after: Generation(6), generation: Generation(9), entries: 3, changes };
            prop_assert_eq!(decode(&bytes), Some((group, length)));
        }

        #[test]
        fn every_bit_counts_but_the_padding(changes in changes(), bit: prop::sample::Index) {
            let mut bytes = framed(&changes);
            let whole = decode(&bytes);
            let bit = bit.index(bytes.len() * 8);
            bytes[bit / 8] ^= 1 << (bit % 8);
            let read = decode(&bytes);
            prop_assert!(read.is_none() || (read == whole && bit / 8 + ALIGNMENT > bytes.len()));
        }

        #[test]
        fn a_cut_group_is_none(changes in changes(), cut: prop::sample::Index) {
            let bytes = framed(&changes);
            let cut = cut.index(bytes.len());
            let read = decode(&bytes[..cut]);
            prop_assert!(read.is_none() || cut + ALIGNMENT > bytes.len());
        }

        #[test]
        fn noise_never_panics(noise: Vec<u8>) {
            let mut bytes = MAGIC.to_vec();
            bytes.extend(noise);
            prop_assert_eq!(decode(&bytes), None);
        }
    }
}
