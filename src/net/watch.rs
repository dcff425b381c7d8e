//! News about links: which appeared, were renamed, or went.
//!
//! The kernel tells of every change to a link; this compares with what was known and passes on what matters to the
//! finding of ENIs and pods.

use std::collections::BTreeMap;
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, RawFd};

use nix::errno::Errno;
use nix::libc::RTNLGRP_LINK;
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;

use super::layout::DOOMED_GROUP;
use super::netlink::{Family, NetError, Socket};
use super::rtnl::{LinkFact, Rtnl, link_event};
use crate::ipam::ids::Mac;

/// What happened to a link.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum LinkChange {
    /// It is new, or its hardware address is.
    Appeared,
    /// It has another name than this.
    Renamed {
        /// The name before.
        from: String,
    },
    /// It was set down or up, or has another MTU.
    Altered,
    /// It was put into [`DOOMED_GROUP`]: its pod is deleted, and it waits to be.
    Doomed,
    /// It is gone from this namespace.
    Gone,
}

/// News about one link.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LinkEvent {
    /// Its index.
    pub index: u32,
    /// Its name now, or its last.
    pub name: String,
    /// Its hardware address, if it has one.
    pub mac: Option<Mac>,
    /// What happened.
    pub change: LinkChange,
}

/// What a watch has to say.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Notice {
    /// News about a link.
    Link(LinkEvent),
    /// The kernel dropped news because nobody read in time: [`LinkWatch::resync`] tells what was missed.
    Resync,
}

/// A subscription to the links of one namespace.
#[derive(Debug)]
pub struct LinkWatch {
    socket: Socket,
    known: BTreeMap<u32, Known>,
}

/// What was last heard of a link.
#[derive(Debug)]
struct Known {
    name: String,
    mac: Option<Mac>,
    mtu: u32,
    up: bool,
    doomed: bool,
}

impl AsRawFd for LinkWatch {
    fn as_raw_fd(&self) -> RawFd {
        self.socket.as_raw_fd()
    }
}

impl AsFd for LinkWatch {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}

impl LinkWatch {
    /// Subscribes in the calling thread's namespace, then lists what is there, so that nothing falls in between.
    ///
    /// # Errors
    /// The kernel's.
    pub fn open() -> Result<(Self, Vec<LinkEvent>), NetError> {
        let mut watch = Self {
            socket: Socket::subscribe(Family::Route, &[RTNLGRP_LINK])?,
            known: BTreeMap::new(),
        };
        let present = watch.resync()?;
        Ok((watch, present))
    }

    /// Reads the news that is waiting; empty when there is none. Never blocks.
    ///
    /// # Errors
    /// The kernel's, other than that it dropped news.
    pub fn read(&mut self) -> Result<Vec<Notice>, NetError> {
        let mut notices = Vec::new();
        loop {
            let replies = match self.socket.drain() {
                Err(error) if error.errno == Errno::ENOBUFS => {
                    notices.push(Notice::Resync);
                    continue;
                }
                replies => replies?,
            };
            if replies.is_empty() {
                return Ok(notices);
            }
            for reply in &replies {
                // News that cannot be read is news that was missed.
                let event = match link_event(reply) {
                    Ok(Some((true, link))) => self.seen(link),
                    Ok(Some((false, link))) => self.gone(link.index),
                    Ok(None) => None,
                    Err(_malformed) => {
                        notices.push(Notice::Resync);
                        None
                    }
                };
                notices.extend(event.map(Notice::Link));
            }
        }
    }

    /// Lists all links and returns what changed since the last news.
    ///
    /// # Errors
    /// The kernel's.
    pub fn resync(&mut self) -> Result<Vec<LinkEvent>, NetError> {
        // A socket of its own: this one's queue belongs to the subscription.
        let links = Rtnl::open()?.links()?;
        let gone: Vec<u32> = self
            .known
            .keys()
            .copied()
            .filter(|index| links.iter().all(|link| link.index != *index))
            .collect();
        let mut events: Vec<LinkEvent> = gone.into_iter().filter_map(|index| self.gone(index)).collect();
        events.extend(links.into_iter().filter_map(|link| self.seen(link)));
        Ok(events)
    }

    fn seen(&mut self, link: LinkFact) -> Option<LinkEvent> {
        let now = Known {
            name: link.name.clone(),
            mac: link.mac,
            mtu: link.mtu,
            up: link.up,
            doomed: link.group == DOOMED_GROUP,
        };
        let doomed = now.doomed;
        let change = match self.known.insert(link.index, now) {
            before if doomed && before.as_ref().is_none_or(|before| !before.doomed) => LinkChange::Doomed,
            Some(before) if before.mac != link.mac => LinkChange::Appeared,
            Some(before) if before.name != link.name => LinkChange::Renamed { from: before.name },
            Some(before) if (before.mtu, before.up) != (link.mtu, link.up) => LinkChange::Altered,
            Some(_) => return None,
            None => LinkChange::Appeared,
        };
        Some(LinkEvent {
            index: link.index,
            name: link.name,
            mac: link.mac,
            change,
        })
    }

    fn gone(&mut self, index: u32) -> Option<LinkEvent> {
        let Known { name, mac, .. } = self.known.remove(&index)?;
        Some(LinkEvent {
            index,
            name,
            mac,
            change: LinkChange::Gone,
        })
    }
}

/// A [`LinkWatch`] to be awaited.
#[derive(Debug)]
pub struct AsyncLinkWatch {
    // Private, so that nobody can swap the watch, and with it the registered descriptor, for another.
    watch: AsyncFd<LinkWatch>,
}

impl AsyncLinkWatch {
    /// Registers `watch` with the runtime this is called in.
    ///
    /// # Errors
    /// When the reactor refuses the descriptor.
    pub fn new(watch: LinkWatch) -> io::Result<Self> {
        #[expect(unsafe_code, reason = "tokio asks the caller to vouch for the descriptor")]
        // SAFETY: the descriptor belongs to the socket inside `watch`, which no method replaces or closes before it is
        // dropped, and which stays private to this type together with the registration; `as_raw_fd` is a constant
        // field of that socket.
        let watch = unsafe { AsyncFd::register_with_interest(watch, Interest::READABLE) }?;
        Ok(Self { watch })
    }

    /// Waits for news; never empty. Cancel-safe: what was not returned is still queued.
    ///
    /// # Errors
    /// The reactor's or the kernel's.
    pub async fn next(&mut self) -> Result<Vec<Notice>, NetError> {
        loop {
            let ready = self.watch.readable_mut().await;
            let mut ready = ready.map_err(|error| NetError::io("wait for link notifications", &error))?;
            let notices = ready.get_inner_mut().read()?;
            ready.clear_ready();
            if !notices.is_empty() {
                return Ok(notices);
            }
        }
    }

    /// See [`LinkWatch::resync`].
    ///
    /// # Errors
    /// The kernel's.
    pub fn resync(&mut self) -> Result<Vec<LinkEvent>, NetError> {
        self.watch.get_mut().resync()
    }
}

#[cfg(test)]
mod tests {
    use std::process::Command;

    use nix::sys::socket::{setsockopt, sockopt};

    use super::super::op::{LinkRef, NetOp, VethEnd};
    use super::super::testing::{fresh_netns, in_fresh_netns};
    use super::*;

    fn add(name: &str, netns: RawFd) -> NetOp {
        let end = |name: &str, last| VethEnd {
            name: name.to_owned(),
            mac: Mac([2, 0, 0, 0, 0, last]),
        };
        NetOp::AddVeth {
            here: end(name, 1),
            there: end(name, 2),
            netns,
            mtu: 1500,
        }
    }

    /// What is told; that a link was set up or down is told besides, whenever the kernel gets round to it.
    fn links(notices: Vec<Notice>) -> Vec<(String, LinkChange)> {
        let link = |notice| match notice {
            Notice::Link(event) => (event.name, event.change),
            Notice::Resync => panic!("nothing was dropped"),
        };
        let told = notices.into_iter().map(link);
        told.filter(|(_, change)| *change != LinkChange::Altered)
            .collect()
    }

    #[test]
    fn appearing_renaming_and_going_are_told_once() {
        in_fresh_netns(|| {
            let other = fresh_netns();
            let (mut watch, present) = LinkWatch::open().unwrap();
            assert_eq!((present.len(), present[0].name.as_str()), (1, "lo"));
            let mut rtnl = Rtnl::open().unwrap();
            let up = NetOp::LinkUp(LinkRef::Name("eth1".to_owned()));
            rtnl.apply_all(&[add("eth1", other.as_raw_fd()), up]).unwrap();
            assert_eq!(
                links(watch.read().unwrap()),
                [("eth1".to_owned(), LinkChange::Appeared)]
            );
            if Command::new("ip")
                .args(["link", "set", "eth1", "down", "name", "ens6"])
                .status()
                .is_ok()
            {
                let from = "eth1".to_owned();
                assert_eq!(
                    links(watch.read().unwrap()),
                    [("ens6".to_owned(), LinkChange::Renamed { from })]
                );
            }
            let index = rtnl.links().unwrap().last().unwrap().index;
            rtnl.apply_all(&[NetOp::DelLink(LinkRef::Index(index))]).unwrap();
            let gone = links(watch.read().unwrap());
            assert_eq!((gone.len(), &gone[0].1), (1, &LinkChange::Gone));
            assert!(watch.read().unwrap().is_empty());
        });
    }

    #[test]
    fn a_doomed_link_is_told_once_whether_it_was_known_or_not() {
        in_fresh_netns(|| {
            let other = fresh_netns();
            let (mut watch, _) = LinkWatch::open().unwrap();
            let mut rtnl = Rtnl::open().unwrap();
            let name = |name: &str| LinkRef::Name(name.to_owned());
            rtnl.apply_all(&[
                add("one", other.as_raw_fd()),
                NetOp::LinkUp(name("one")), // of a link that is down the kernel does not tell its group
                NetOp::LinkGroup(name("one"), DOOMED_GROUP),
                NetOp::LinkDown(name("one")),
            ])
            .unwrap();
            let told = [LinkChange::Appeared, LinkChange::Doomed].map(|change| ("one".to_owned(), change));
            assert_eq!(links(watch.read().unwrap()), told);
            let (_, present) = LinkWatch::open().unwrap();
            assert!(present.iter().any(|link| link.change == LinkChange::Doomed));
        });
    }

    #[test]
    fn dropped_news_is_told_and_made_up_for() {
        in_fresh_netns(|| {
            let other = fresh_netns();
            let (mut watch, _) = LinkWatch::open().unwrap();
            setsockopt(&watch, sockopt::RcvBuf, &2048).unwrap();
            let mut rtnl = Rtnl::open().unwrap();
            let ops: Vec<_> = (0..20)
                .map(|n| add(&format!("eth{n}"), other.as_raw_fd()))
                .collect();
            rtnl.apply_all(&ops).unwrap();
            let notices = watch.read().unwrap();
            assert!(notices.contains(&Notice::Resync), "{notices:?}");
            let told = notices
                .iter()
                .filter(|notice| matches!(notice, Notice::Link(_)))
                .count();
            let missed = watch.resync().unwrap();
            assert_eq!(told + missed.len(), 20);
            assert!(watch.resync().unwrap().is_empty());
        });
    }

    #[test]
    fn tokio_wakes_up_for_news() {
        in_fresh_netns(|| {
            let other = fresh_netns();
            let runtime = tokio::runtime::Builder::new_current_thread()
                .enable_io()
                .build()
                .unwrap();
            runtime.block_on(async {
                let mut watch = AsyncLinkWatch::new(LinkWatch::open().unwrap().0).unwrap();
                Rtnl::open()
                    .unwrap()
                    .apply_all(&[add("eth1", other.as_raw_fd())])
                    .unwrap();
                assert_eq!(links(watch.next().await.unwrap()).len(), 1);
                // Nothing is left over: the next wait ends with the next link.
                Rtnl::open()
                    .unwrap()
                    .apply_all(&[add("eth2", other.as_raw_fd())])
                    .unwrap();
                assert_eq!(
                    links(watch.next().await.unwrap()),
                    [("eth2".to_owned(), LinkChange::Appeared)]
                );
            });
        });
    }
}
