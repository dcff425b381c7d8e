//! Tests of the built binary, run as root against the real kernel, and of the tree's own order.
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

mod arch;
mod busy;
mod cards;
mod cli;
mod cloud;
mod cloud_faults;
mod conformance;
mod conformance_doc;
mod cordon;
mod crash;
mod database;
mod dataplane;
mod demo;
mod explain;
mod fake_daemon;
mod faults_of_go;
mod growth;
mod guardian;
mod host_ports;
mod hostile;
mod import;
mod leaks;
mod lifecycle;
mod limits;
mod link_up;
mod links;
mod networks;
mod node_ports;
mod outside_hands;
mod pair;
mod plugin;
mod reconcile_doc;
mod reuse;
mod scene;
mod shrink;
mod six;
mod six_wired;
mod subnets;
mod targets;
mod throttling;
mod upgrade;
mod verbs;
