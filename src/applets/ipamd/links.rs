//! News about network interfaces, as events.

use tokio::sync::mpsc::UnboundedSender;
use tracing::{error, warn};

use super::actor::Mail;
use super::kernel::{Job, Kernel};
use crate::ipam::event::Event;
use crate::ipam::witness::LinkFact;
use crate::net::netlink::NetError;
use crate::net::watch::{AsyncLinkWatch, LinkChange, LinkEvent, LinkWatch, Notice};

/// Digits of the hash that ends a pod's host interface name.
const HASH_DIGITS: usize = 11;

/// Subscribes; what is present is told as well, so that nothing falls in between.
pub(super) fn watch(
    veth_prefix: String,
    mail: UnboundedSender<Mail>,
    kernel: Kernel,
) -> Result<(), NetError> {
    let (watch, present) = LinkWatch::open()?;
    let mut watch = AsyncLinkWatch::new(watch).map_err(|error| NetError::io("watch links", &error))?;
    tell(present, &veth_prefix, &mail, &kernel);
    tokio::spawn(async move {
        loop {
            let notices = match watch.next().await {
                Ok(notices) => notices,
                Err(error) => {
                    error!("links can no longer be watched: {error}");
                    return;
                }
            };
            let mut news = Vec::new();
            let mut missed = false;
            for notice in notices {
                match notice {
                    Notice::Link(event) => news.push(event),
                    Notice::Resync => missed = true,
                }
            }
            if missed {
                match watch.resync() {
                    Ok(events) => news.extend(events),
                    Err(error) => warn!("links could not be listed: {error}"),
                }
            }
            tell(news, &veth_prefix, &mail, &kernel);
        }
    });
    Ok(())
}

fn tell(events: Vec<LinkEvent>, veth_prefix: &str, mail: &UnboundedSender<Mail>, kernel: &Kernel) {
    for event in events {
        if event.change != LinkChange::Doomed && is_pods(&event.name, veth_prefix) {
            continue;
        }
        let Some(mac) = event.mac else { continue };
        let event = match event.change {
            LinkChange::Gone => Event::LinkGone { mac },
            LinkChange::Doomed => {
                kernel.ask(Job::Reap);
                continue;
            }
            LinkChange::Appeared | LinkChange::Renamed { .. } => Event::LinkSeen(LinkFact {
                mac,
                name: event.name,
                ifindex: event.index,
            }),
        };
        // The actor is gone only when the daemon ends.
        drop(mail.send(event.into()));
    }
}

/// Pods come and go by the hundred, and none of their links is an ENI.
fn is_pods(name: &str, veth_prefix: &str) -> bool {
    !veth_prefix.is_empty()
        && name.strip_prefix(veth_prefix).is_some_and(|rest| {
            rest.len() == HASH_DIGITS && rest.bytes().all(|byte| byte.is_ascii_hexdigit())
        })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_hashed_names_are_pods() {
        assert!(is_pods("enic440f455693", "eni"));
        for other in ["eth1", "ens6", "eni1", "enic440f45569", "enix440f455693z"] {
            assert!(!is_pods(other, "eni"), "{other}");
        }
        assert!(!is_pods("c440f455693", ""));
    }
}
