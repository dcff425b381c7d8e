//! Which address comes next.
//!
//! Every sandbox gets an address nobody has had before, one after the other: 2^48 of them last longer than any node. So
//! a rest is never waited for, and whoever still sends to a pod that is gone reaches nobody else. A start goes on behind
//! the reservation of the last: what that has told, but not written, is left alone even before the kernel has been read.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use super::block::{Block, FIRST, LAST};
use crate::cidr6::Ipv6Cidr;
use crate::ids::{CommitId, EniId, Tick};
use crate::model::{Eni, EniRole};
use crate::pool::Pool;
use crate::records::RecordKey;

/// How far the present /80 has been given out; what a start forgets, since the reservation stands in the store.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Cursor {
    prefix: Option<Ipv6Cidr>,
    /// The next place to look at.
    next: u64,
    /// Places below are reserved, and that is durable.
    durable: u64,
    /// Reservations on their way to the disk.
    writing: BTreeMap<CommitId, (Ipv6Cidr, u64)>,
}

impl Cursor {
    /// A batch with these records is handed over.
    pub(crate) fn handed_over(&mut self, commit: CommitId, block: &Block) {
        self.writing.insert(commit, (block.prefix, block.reserved));
    }

    /// A batch has ended.
    pub(crate) fn ended(&mut self, commit: CommitId, is_durable: bool) {
        let Some((prefix, reserved)) = self.writing.remove(&commit) else {
            return;
        };
        if is_durable && self.prefix == Some(prefix) {
            self.durable = self.durable.max(reserved);
        }
    }

    /// An address of this /80 has been given.
    pub(crate) fn pass(&mut self, prefix: Ipv6Cidr, place: u64) {
        if self.prefix == Some(prefix) {
            self.next = self.next.max(place.saturating_add(1));
        }
    }

    fn follow(&mut self, block: &Block) {
        if self.prefix == Some(block.prefix) {
            return;
        }
        // Nothing below has been told by this daemon, and what others have is skipped by its being known.
        let begin = if block.reserved > LAST {
            FIRST
        } else {
            block.reserved
        };
        *self = Self {
            prefix: Some(block.prefix),
            next: begin,
            durable: begin,
            writing: std::mem::take(&mut self.writing),
        };
    }
}

/// The ENI whose /80 is given out: the primary one unless its subnet is not for pods.
fn home(pool: &Pool, now: Tick) -> Option<(&Eni, &Block)> {
    let serves = |eni: &&Eni| {
        eni.role != EniRole::Unmanaged
            && !eni.excluded
            && pool.stands(eni)
            && eni
                .block
                .as_ref()
                .is_some_and(|block| block.verified || pool.trusts_imds(now))
    };
    let enis = pool.enis().values().filter(serves);
    let eni = enis.min_by_key(|eni| eni.device)?;
    Some((eni, eni.block.as_ref()?))
}

/// Whether there is a /80 that addresses are given of.
pub(crate) fn is_serving(pool: &Pool, now: Tick) -> bool {
    pool.policy().is_six() && home(pool, now).is_some()
}

/// Goes on with the /80 that is given out now, and reserves more of it in time.
pub(crate) fn keep_ahead(pool: &mut Pool, now: Tick) {
    if !pool.policy().is_six() {
        return;
    }
    let Some((id, block)) = home(pool, now).map(|(eni, block)| (eni.id.clone(), block.clone())) else {
        return;
    };
    pool.memory.cursor.follow(&block);
    let next = pool.memory.cursor.next;
    if let Some(reserved) = block.reserve(next) {
        pool.edit_eni(&id, |eni| {
            if let Some(block) = &mut eni.block {
                block.reserved = reserved;
            }
        });
    }
}

/// A batch is handed over: what it reserves counts once it is durable.
pub(crate) fn settles(pool: &mut Pool, commit: CommitId, keys: &BTreeSet<RecordKey>) {
    if !pool.policy().is_six() {
        return;
    }
    let is_written = |id: &EniId| keys.contains(&RecordKey::Eni(id.clone()));
    let current = pool.memory.cursor.prefix;
    let block = pool.enis().values().find_map(|eni| {
        let block = eni.block.as_ref().filter(|block| Some(block.prefix) == current)?;
        is_written(&eni.id).then(|| block.clone())
    });
    if let Some(block) = block {
        pool.memory.cursor.handed_over(commit, &block);
    }
}

/// The next addresses in order, as far as places are reserved: none that anybody has, that rests or is in doubt.
pub(crate) fn free(pool: &Pool, now: Tick) -> impl Iterator<Item = IpAddr> {
    let cursor = &pool.memory.cursor;
    let home = home(pool, now).filter(|(_, block)| cursor.prefix == Some(block.prefix));
    let free = home.map(|(_, block)| {
        let places = cursor.next..cursor.durable.min(LAST.saturating_add(1));
        let addresses = places.filter_map(|place| block.prefix.at(place)).map(IpAddr::V6);
        addresses.filter(|address| !pool.knows(*address))
    });
    free.into_iter().flatten()
}

/// How many addresses of the present /80 nobody has had.
pub(crate) fn count_free(pool: &Pool, now: Tick) -> u64 {
    let cursor = &pool.memory.cursor;
    let is_current = home(pool, now).is_some_and(|(_, block)| cursor.prefix == Some(block.prefix));
    if is_current {
        LAST.saturating_add(1).saturating_sub(cursor.next)
    } else {
        0
    }
}

/// Whether a sandbox may have this one: it is one of the next.
pub(crate) fn fits(pool: &Pool, address: std::net::Ipv6Addr, now: Tick) -> bool {
    let cursor = &pool.memory.cursor;
    let place = home(pool, now)
        .filter(|(_, block)| cursor.prefix == Some(block.prefix))
        .and_then(|(_, block)| block.place_of(address));
    place.is_some_and(|place| place >= cursor.next && place < cursor.durable.min(LAST.saturating_add(1)))
        && !pool.knows(address)
}
