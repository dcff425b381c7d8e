//! News about network interfaces, as events.

use tokio::sync::mpsc::UnboundedSender;
use tracing::{error, warn};

use super::kernel::{Job, Kernel};
use super::mail::Mail;
use crate::ipam::event::Event;
use crate::ipam::witness::LinkFact;
use crate::net::netlink::NetError;
use crate::net::veth;
use crate::net::watch::{AsyncLinkWatch, LinkChange, LinkEvent, LinkWatch, Notice};

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
        // Pods come and go by the hundred, and none of their links is an ENI.
        let is_pods = !veth_prefix.is_empty() && veth::prefix_of(&event.name) == Some(veth_prefix);
        if event.change != LinkChange::Doomed && is_pods {
            continue;
        }
        let Some(mac) = event.mac else { continue };
        let event = match event.change {
            LinkChange::Gone => Event::LinkGone { mac },
            LinkChange::Doomed => {
                kernel.ask(Job::Reap);
                continue;
            }
            LinkChange::Altered => {
                kernel.ask(Job::GuardLink(mac));
                continue;
            }
            LinkChange::Appeared | LinkChange::Renamed { .. } => {
                kernel.ask(Job::GuardLink(mac));
                Event::LinkSeen(LinkFact {
                    mac,
                    name: event.name,
                    ifindex: event.index,
                })
            }
        };
        // The actor is gone only when the daemon ends.
        drop(mail.send(event.into()));
    }
}
