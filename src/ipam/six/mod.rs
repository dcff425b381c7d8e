//! IPv6: the one /80 that EC2 delegates to an ENI of the node, and who gets which address of it.
//!
//! A /80 has 2^48 addresses, so nothing is ever short but the /80 itself: there is no warm pool, and no address is
//! listed before somebody has it. What a sandbox holds, what rests and what is in doubt is known in the same map as IPv4
//! addresses are, with the same rules; only where the next one comes from is different, and that is here.

mod block;
mod copy;
mod cursor;
mod drift;
mod growth;
pub(crate) mod judge;
pub(crate) mod told;
mod word;

pub use block::{Block, FIRST, LAST};
pub use copy::behind_copy;
pub(crate) use cursor::Cursor;
pub(crate) use cursor::{count_free, fits, free, keep_ahead, settles};
pub(crate) use drift::of_blocks;
pub(crate) use growth::{cannot, census, delegated, is_wanted};
pub(crate) use word::{Words, judge_standing, listed, named, note_routes, overheard, settle_doubts};
