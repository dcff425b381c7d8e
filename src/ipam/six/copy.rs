//! What a copy of the records may lack.

use std::collections::BTreeMap;

use super::block::LAST;
use crate::records::{Record, decode};

/// Many times what can be given out between two copies: those are some thousand commits apart at the most.
const BEHIND: u64 = 1 << 20;

/// A daemon that starts with a copy of its records goes on where none can have counted to since that was written.
/// Returns what differs, to be stored before the start.
pub fn behind_copy(records: &BTreeMap<String, Vec<u8>>) -> BTreeMap<String, Vec<u8>> {
    let moved = |(key, value): (&String, &Vec<u8>)| {
        let Ok(Record::Eni(mut eni)) = decode(key, value) else {
            return None;
        };
        let block = eni.block.as_mut()?;
        block.reserved = block.reserved.saturating_add(BEHIND).min(LAST.saturating_add(1));
        Some((key.clone(), Record::Eni(eni).value()))
    };
    records.iter().filter_map(moved).collect()
}
