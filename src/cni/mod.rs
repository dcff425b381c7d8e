//! The CNI protocol as a plugin sees it: environment and stdin in, JSON out.
//!
//! Specification: <https://github.com/containernetworking/cni/blob/main/SPEC.md>. Where it leaves room, codes, texts
//! and the order of checks are those of upstream's plugin, because runtimes' logs are grepped for them. Nothing here
//! talks to the kernel or the daemon.

pub mod args;
pub mod conf;
pub mod conflist;
pub mod environment;
pub mod error;
pub mod ports;
pub mod previous;
pub mod request;
pub mod result;
pub mod version;

#[cfg(test)]
mod tests;
