//! Tests of the built binary, run as root against the real kernel.
#![allow(
    clippy::expect_used,
    clippy::indexing_slicing,
    clippy::panic,
    clippy::unwrap_used,
    clippy::print_stderr,
    missing_docs,
    unreachable_pub,
    reason = "a test's way to fail is to panic"
)]

mod cli;
mod cloud;
mod dataplane;
mod demo;
mod fake_daemon;
mod growth;
mod pair;
mod plugin;
mod scene;
mod verbs;
