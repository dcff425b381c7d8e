//! A /80 on an ENI, and how far addresses of it may have been told.

use std::net::Ipv6Addr;

use serde::{Deserialize, Serialize};

use crate::cidr6::Ipv6Cidr;
use crate::model::Placed;

/// The first place that is given out. Upstream begins with the base itself; that is the Subnet-Router anycast address of
/// the prefix, which every router with an interface in it answers for (RFC 4291, 2.6.1), and this host is a router: one of
/// 2^48 addresses is a small price.
pub const FIRST: u64 = 1;

/// The last place that is given out: the 128 behind it are reserved for anycast (RFC 2526, 2).
pub const LAST: u64 = (1 << 48) - 1 - 128;

/// How many places are reserved at a time. Reserving is one more record in the commit of every so many ADDs, and up to so
/// many places are skipped by a restart.
const STEP: u64 = 256;

/// A reservation is made when so few places are left of the last, so that it is durable before it is needed.
const AHEAD: u64 = 128;

/// The /80 of an ENI.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Block {
    /// Which.
    pub prefix: Ipv6Cidr,
    /// EC2 itself named it, not only IMDS.
    pub verified: bool,
    /// No address from this place on has been told to anybody. Stored before any place below it is used, so that no start
    /// gives again what an earlier one has told, whatever became of its last commits.
    pub reserved: u64,
}

impl Block {
    /// A /80 of which no place below `first` is to be given out.
    pub fn new(prefix: Ipv6Cidr, verified: bool, first: u64) -> Self {
        Self {
            prefix,
            verified,
            reserved: first.clamp(FIRST, LAST),
        }
    }

    /// How an address of it stands: the kernel's map is for IPv4 alone, and a /80 is not given back.
    pub fn placed(&self) -> Placed {
        Placed {
            verified: self.verified,
            published: true,
            releasing: false,
        }
    }

    /// The place an address has in it.
    pub fn place_of(&self, address: Ipv6Addr) -> Option<u64> {
        self.prefix.place_of(address)
    }

    /// How far it is to be reserved when `next` is the next place that is looked at; `None` when that is far enough.
    pub(super) fn reserve(&self, next: u64) -> Option<u64> {
        let is_short = next.saturating_add(AHEAD) > self.reserved && self.reserved <= LAST;
        is_short.then(|| {
            let wanted = next.max(self.reserved).saturating_add(STEP);
            wanted.min(LAST.saturating_add(1))
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn block(reserved: u64) -> Block {
        Block {
            prefix: "2001:db8:0:0:5::/80".parse().unwrap(),
            verified: true,
            reserved,
        }
    }

    #[test]
    fn what_a_host_could_confuse_is_left_out_at_both_ends() {
        let block = Block::new("2001:db8:0:0:5::/80".parse().unwrap(), true, 0);
        assert_eq!(block.reserved, FIRST);
        assert_eq!(
            block.prefix.at(LAST),
            Some("2001:db8:0:0:5:ffff:ffff:ff7f".parse().unwrap())
        );
        assert_eq!(Block::new(block.prefix, true, u64::MAX).reserved, LAST);
    }

    #[test]
    fn places_are_reserved_ahead_and_never_beyond_the_end() {
        assert_eq!(block(1).reserve(1), Some(257));
        assert_eq!(block(257).reserve(100), None);
        assert_eq!(block(257).reserve(130), Some(513));
        // Somebody's pod sits beyond what is reserved.
        assert_eq!(block(257).reserve(5000), Some(5256));
        assert_eq!(block(LAST).reserve(LAST), Some(LAST + 1));
        assert_eq!(block(LAST + 1).reserve(LAST + 1), None);
    }
}
