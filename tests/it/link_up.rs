//! In which order the kernel hears of a pod's link: told by the kernel itself, so that nothing is read too late.

use std::os::fd::AsFd;

use aws_cni::net::netlink::{Family, Socket};
use aws_cni::net::wire::{Attrs, array};
use nix::libc::{IFF_UP, IFLA_AF_SPEC, IFLA_IFNAME, RTM_NEWLINK, RTNLGRP_LINK};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};

use crate::scene::{PATIENCE, Scene};

/// `struct ifinfomsg`; its flags are at byte 8 (rtnetlink(7)).
const IFINFOMSG: usize = 16;
const FLAGS: usize = 8;
const AF_INET6: u16 = 10;
/// The interface's settings as an array (`include/uapi/linux/if_link.h`) in the order of `include/uapi/linux/ipv6.h`.
const IFLA_INET6_CONF: u16 = 2;
const DEVCONF_FORWARDING: usize = 0;
const DEVCONF_ACCEPT_RA: usize = 3;
const DEVCONF_ACCEPT_REDIRECTS: usize = 4;

/// A link at the moment of one notification.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Moment {
    name: String,
    is_up: bool,
    forwarding: u32,
    accept_ra: u32,
    accept_redirects: u32,
}

/// The kernel makes a notification while it makes the change, holding the lock that both need.
fn moment(payload: &[u8]) -> Option<Moment> {
    let flags = array(payload, FLAGS).map(u32::from_ne_bytes)?;
    let attrs = Attrs::after(payload, IFINFOMSG).ok()?;
    let per_family = attrs.find(IFLA_AF_SPEC)?.nested().ok()?;
    let inet6 = per_family.find(AF_INET6)?.nested().ok()?;
    let conf = inet6.find(IFLA_INET6_CONF)?.payload;
    let setting = |index: usize| array(conf, index * 4).map(u32::from_ne_bytes);
    Some(Moment {
        name: attrs.find(IFLA_IFNAME)?.str()?.to_owned(),
        is_up: flags & IFF_UP as u32 != 0,
        forwarding: setting(DEVCONF_FORWARDING)?,
        accept_ra: setting(DEVCONF_ACCEPT_RA)?,
        accept_redirects: setting(DEVCONF_ACCEPT_REDIRECTS)?,
    })
}

/// Everything heard of a link until it is up.
fn heard_until_up(socket: &mut Socket, name: &str) -> Vec<Moment> {
    let mut heard = Vec::new();
    loop {
        for reply in socket.drain().unwrap() {
            let news = (reply.kind == RTM_NEWLINK).then(|| moment(&reply.payload));
            let Some(news) = news.flatten().filter(|news| news.name == name) else {
                continue;
            };
            let is_up = news.is_up;
            heard.push(news);
            if is_up {
                return heard;
            }
        }
        let mut fds = [PollFd::new(socket.as_fd(), PollFlags::POLLIN)];
        let ready = poll(&mut fds, PollTimeout::try_from(PATIENCE).unwrap()).unwrap();
        assert_eq!(ready, 1, "{name} is never up: {heard:#?}");
    }
}

#[test]
fn dataplane_65_the_host_link_has_its_sysctls_before_it_is_up() {
    let scene = Scene::new("t3.small");
    // What a new link would begin with, where the node's administrator has other defaults.
    let defaults = [
        ("net/ipv6/conf/default/accept_ra", "2"),
        ("net/ipv6/conf/default/accept_redirects", "0"),
        ("net/ipv6/conf/default/forwarding", "1"),
    ];
    scene.node.netns().sysctl(&defaults).unwrap();
    let subscribe = || Socket::subscribe(Family::Route, &[RTNLGRP_LINK]).unwrap();
    let mut socket = scene.node.netns().run(subscribe).unwrap();
    scene.add(&[scene.node.pod("default", "nginx").unwrap()], 1);

    let heard = heard_until_up(&mut socket, "enic440f455693");
    let (first, up) = (heard.first().unwrap(), heard.last().unwrap());
    assert_eq!(
        (
            first.is_up,
            first.accept_ra,
            first.accept_redirects,
            first.forwarding
        ),
        (false, 2, 0, 1),
        "{heard:#?}"
    );
    assert_eq!(
        (up.accept_ra, up.accept_redirects, up.forwarding),
        (0, 1, 0),
        "{heard:#?}"
    );
}
