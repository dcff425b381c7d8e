//! The daemon's durable state: one sled tree, one batch per change, nothing told before it is on the disk.

pub mod pending;
