//! The daemon that owns this node's ENIs and addresses.

mod actor;
mod answers;
mod args;
mod clock;
mod deferred;
mod hands;
mod host;
mod kernel;
mod links;
mod node;
mod settings;
mod start;
mod state;
mod vpc;

pub(super) use args::run;
