//! Who owns which address: pure decisions over plain values.
//!
//! Nothing here does I/O, reads a clock or rolls dice; `tests/it/arch.rs` and the lints below hold it to that.
#![deny(clippy::disallowed_methods, clippy::disallowed_types)]

pub mod cidr;
pub mod cloud;
pub mod effect;
pub mod event;
pub mod ids;
pub mod limits;
pub mod model;
pub mod node;
pub mod policy;
pub mod records;
pub mod witness;
