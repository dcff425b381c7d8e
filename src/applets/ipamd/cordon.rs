//! The operator's word that this node takes no new pods, or does again.
//!
//! What follows from it is the pool's to decide ([`crate::ipam::event::Event::Cordon`]); who else comes to know of it, an
//! API server for one, sends the same event.

use std::process::ExitCode;

use argh::FromArgs;

use super::show::{ask, tell};

/// Say that this node takes no new pods: its pool stays as it is, until `ipamd uncordon`.
#[derive(FromArgs)]
#[argh(subcommand, name = "cordon")]
pub(super) struct Cordon {}

/// Say that this node takes pods again.
#[derive(FromArgs)]
#[argh(subcommand, name = "uncordon")]
pub(super) struct Uncordon {}

/// `ipamd cordon` and `ipamd uncordon`.
pub(super) fn say(cordoned: bool) -> ExitCode {
    tell(ask(|client| {
        client.cordon(cordoned)?;
        let said = if cordoned {
            "cordoned: nothing more is held ready than is there, and nothing is given back; pods that come get addresses"
        } else {
            "uncordoned"
        };
        Ok(said.to_owned())
    }))
}
