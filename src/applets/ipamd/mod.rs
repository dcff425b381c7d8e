//! The daemon that owns this node's ENIs and addresses.

mod actor;
mod alarms;
mod answers;
mod args;
mod clock;
mod conflist;
mod cordon;
mod deferred;
mod eni_configs;
mod export;
mod guardian;
mod hands;
mod host;
mod identify;
mod import;
mod kernel;
mod left_behind;
mod links;
mod mail;
mod max_pods;
mod node;
mod ports;
mod refresh;
mod reload;
mod settings;
mod show;
mod start;
mod state;
mod stop;
mod takeover;
mod vpc;

pub(super) use args::run;
