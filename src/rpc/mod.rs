//! The local protocol between the plugins and the daemon.
