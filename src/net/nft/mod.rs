//! `nf_tables` over netlink: our one table, written in transactions and compared before it is written.
//!
//! `model` says what rules are, `encode` and `facts` turn them into messages and back, `diff` decides, `table` acts.

pub mod diff;
pub mod encode;
mod expr;
pub mod facts;
mod leftovers;
pub mod model;
pub(crate) mod news;
mod ports;
mod table;
#[cfg(test)]
pub(crate) mod testbed;
#[cfg(test)]
mod tests;
mod uapi;

pub use leftovers::{Leftover, LegacyTables};
pub use ports::PodPorts;
pub use table::{Applied, Nft, NftError};
