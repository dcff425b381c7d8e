//! Who owns which address: pure decisions over plain values.
//!
//! Nothing here does I/O, reads a clock or rolls dice; `tests/it/arch.rs` and the lints below hold it to that.
#![deny(clippy::disallowed_methods, clippy::disallowed_types)]

mod adaptive;
mod answers;
pub mod budget;
mod cards;
mod census;
pub mod checkpoint;
pub mod cidr;
pub mod cidr6;
mod claims;
pub mod cloud;
mod companions;
mod drift;
pub mod effect;
pub mod egress;
pub mod event;
mod evidence;
pub mod explain;
mod gathering;
mod groups;
mod growing;
mod growth;
pub mod ids;
pub mod import;
pub mod ip;
mod leaks;
mod lifecycle;
pub mod limits;
mod local;
mod memory;
pub mod model;
pub mod node;
mod observe;
pub mod obstacle;
mod outbox;
pub mod places;
pub mod plan;
pub mod policy;
pub mod pool;
pub mod ports;
mod quick;
mod reconcile;
pub mod records;
pub mod recover;
mod refusal;
mod release;
mod roles;
mod serve;
mod shortage;
pub mod six;
mod sound;
pub mod stamp;
pub mod status;
pub mod step;
mod subnets;
pub mod surplus;
mod tagging;
pub mod tags;
mod targets;
pub mod treatment;
mod upkeep;
pub mod verdict;
pub mod verify;
mod watched;
pub mod wishes;
pub mod witness;

#[cfg(test)]
mod testing;
