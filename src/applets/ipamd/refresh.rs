//! What was stored of the node, asked for again once it is served.
//!
//! A start on the same boot, or on another boot of the same instance, needs nobody to tell it which node this is
//! ([`super::identify::remembered`]). What may have changed since is caught up with in the background.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::mpsc::UnboundedSender;
use tracing::warn;

use super::mail::Mail;
use super::node;
use crate::cloud::Imds;
use crate::ipam::event::Event;
use crate::ipam::ids::BootId;

/// Between two attempts: IMDS that is away when a node starts is back in seconds, or somebody has shut it off.
const AGAIN: Duration = Duration::from_secs(5);
const AGAIN_AT_MOST: Duration = Duration::from_mins(5);

/// Asks IMDS until it has answered once, and tells what it said.
pub(super) fn once(imds: Arc<Imds>, boot: BootId, mail: UnboundedSender<Mail>) {
    tokio::spawn(async move {
        let mut pause = AGAIN;
        loop {
            match imds.discover().await {
                Ok(found) => return tell(found, boot, &mail),
                Err(error) => warn!("what is stored of this node could not be confirmed: {error}"),
            }
            tokio::time::sleep(pause).await;
            pause = pause.saturating_mul(2).min(AGAIN_AT_MOST);
        }
    });
}

fn tell(found: crate::cloud::NodeDiscovery, boot: BootId, mail: &UnboundedSender<Mail>) {
    match node::facts(&found, boot) {
        // The actor is gone only when the daemon ends.
        Ok(facts) => drop(mail.send(Event::Facts(Box::new(facts)).into())),
        Err(error) => warn!("what is stored of this node could not be confirmed: {error}"),
    }
    drop(mail.send(Event::Imds(node::snapshot(found.enis)).into()));
}
