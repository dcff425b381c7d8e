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
/// Reads a message as everything it could be; whether it is a notification that can be read, or none of ours.
#[cfg(any(test, feature = "fuzz"))]
pub fn read_anything(reply: &crate::net::netlink::Reply) -> bool {
    let read = [
        facts::table(reply).is_ok(),
        facts::chain(reply).is_ok(),
        facts::rule(reply).is_ok(),
        facts::set(reply).is_ok(),
        facts::generation(reply).is_ok(),
    ];
    std::hint::black_box(read);
    for family in [crate::ipam::ip::IpFamily::V4, crate::ipam::ip::IpFamily::V6] {
        for set in crate::net::ruleset::SETS {
            std::hint::black_box(facts::elements(family, set, std::slice::from_ref(reply)).is_ok());
        }
    }
    news::Heard::of(reply).is_ok()
}

#[cfg(test)]
mod tests;
mod uapi;

pub use leftovers::{Leftover, LegacyTables};
pub use ports::PodPorts;
pub use table::{Applied, Nft, NftError};
