//! The subscriptions, and waiting for them.

use std::os::fd::{AsFd, BorrowedFd};
use std::sync::Arc;
use std::time::Duration;

use nix::errno::Errno;
use nix::libc::{
    RTNLGRP_IPV4_IFADDR, RTNLGRP_IPV4_ROUTE, RTNLGRP_IPV4_RULE, RTNLGRP_IPV6_ROUTE, RTNLGRP_IPV6_RULE, c_uint,
};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};

use super::super::netlink::{Family, NetError, Reply, Socket};
use super::{SettingsWatch, Sighting, filter};

/// `NFNLGRP_NFTABLES` of linux/netfilter/nfnetlink.h.
const NFNLGRP_NFTABLES: c_uint = 7;

/// Everything that tells of changes to what is ours in one network namespace.
#[derive(Debug)]
pub struct Watch {
    routes: Socket,
    firewall: Socket,
    /// Whose transaction has changed our table, until its end is read.
    open: Option<u32>,
    settings: Option<Arc<SettingsWatch>>,
}

/// Why the wait is over.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Woken {
    /// There is news.
    News,
    /// There was none for so long.
    Silence,
    /// Nobody needs the watch any more.
    Stopped,
}

impl Watch {
    /// Subscribes in the calling thread's namespace.
    ///
    /// # Errors
    /// The kernel's.
    pub fn open(settings: Option<Arc<SettingsWatch>>) -> Result<Self, NetError> {
        // No address of IPv6 is the host's affair: its ENIs have none but what the machine image gave them.
        let groups = [
            RTNLGRP_IPV4_RULE,
            RTNLGRP_IPV4_ROUTE,
            RTNLGRP_IPV4_IFADDR,
            RTNLGRP_IPV6_RULE,
            RTNLGRP_IPV6_ROUTE,
        ];
        let routes = Socket::subscribe(Family::Route, &groups)?;
        // Without it every ADD wakes the watch for nothing.
        let _hears_more = filter::ignore_new_host_routes(&routes);
        Ok(Self {
            routes,
            firewall: Socket::subscribe(Family::Netfilter, &[NFNLGRP_NFTABLES])?,
            open: None,
            settings,
        })
    }

    /// Waits for news, at most so long, or until `stop` is readable or hung up.
    ///
    /// # Errors
    /// The kernel's.
    pub fn wait(&self, stop: BorrowedFd<'_>, patience: Duration) -> Result<Woken, Errno> {
        let fds = [stop, self.routes.as_fd(), self.firewall.as_fd()];
        let settings = self.settings.iter().map(|settings| settings.as_fd());
        let fds = fds.into_iter().chain(settings);
        let mut fds: Vec<PollFd<'_>> = fds.map(|fd| PollFd::new(fd, PollFlags::POLLIN)).collect();
        let timeout = PollTimeout::try_from(patience).unwrap_or(PollTimeout::MAX);
        match poll(&mut fds, timeout) {
            Ok(0) => Ok(Woken::Silence),
            Ok(_) | Err(Errno::EINTR) => {
                let events = fds.first().and_then(PollFd::revents);
                let stopped = events.is_some_and(|events| !events.is_empty());
                Ok(if stopped { Woken::Stopped } else { Woken::News })
            }
            Err(errno) => Err(errno),
        }
    }

    /// Adds what is waiting to `sighting`. Never blocks.
    ///
    /// # Errors
    /// The kernel's, other than that it dropped news.
    pub fn read(&mut self, sighting: &mut Sighting) -> Result<(), NetError> {
        drain(&mut self.routes, sighting, Sighting::hear_route)?;
        let open = &mut self.open;
        drain(&mut self.firewall, sighting, |sighting, reply| {
            sighting.hear_firewall(reply, open);
        })?;
        if self
            .settings
            .as_ref()
            .is_some_and(|settings| settings.was_written())
        {
            sighting.hear_settings();
        }
        Ok(())
    }
}

fn drain(
    socket: &mut Socket,
    sighting: &mut Sighting,
    mut hear: impl FnMut(&mut Sighting, &Reply),
) -> Result<(), NetError> {
    loop {
        match socket.drain() {
            Ok(replies) if replies.is_empty() => return Ok(()),
            Ok(replies) => replies.iter().for_each(|reply| hear(sighting, reply)),
            Err(error) if error.errno == Errno::ENOBUFS => sighting.all = true,
            Err(error) => return Err(error),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::process::Command;

    use super::super::super::testing::in_fresh_netns;
    use super::super::Author;
    use super::*;

    fn sh(command: &str) {
        let status = Command::new("sh").args(["-ec", command]).status().unwrap();
        assert!(status.success(), "{command}");
    }

    /// What `commands`, run one after the other, make of a watch.
    fn seen(prepare: &str, command: &str) -> Sighting {
        in_fresh_netns(|| {
            sh(&format!(
                "ip link set lo up; ip link add v0 type veth peer name v1; ip link set v0 up; ip link set v1 up; {prepare}"
            ));
            let mut watch = Watch::open(None).unwrap();
            sh(command);
            let mut sighting = Sighting::default();
            watch.read(&mut sighting).unwrap();
            sighting
        })
    }

    #[test]
    fn rules_of_ours_are_news_and_others_are_not() {
        let ours = [
            "ip rule add pref 512 lookup 512",
            "ip rule add fwmark 0x80/0x80 pref 1024",
            "ip rule add fwmark 1/0x7f pref 1536 lookup 3",
            "ip rule add from 10.0.1.20 pref 32765 lookup 3",
        ];
        for rule in ours {
            assert_eq!(seen("", rule).host.len(), 1, "{rule}");
        }
        assert!(
            seen(
                "",
                "ip rule add pref 100 lookup 7; ip rule add from 10.0.1.5 pref 1536 lookup 3"
            )
            .is_empty()
        );
        let gone = seen(
            "ip rule add from 10.0.1.5 pref 1536 lookup 3; ip rule add to 10.0.1.6 pref 512",
            "ip rule del from 10.0.1.5 pref 1536; ip rule del to 10.0.1.6 pref 512",
        );
        let pods: Vec<_> = gone.pods.keys().map(ToString::to_string).collect();
        assert_eq!(pods, ["10.0.1.5", "10.0.1.6"]);
        assert!(gone.host.is_empty());
    }

    /// A plugin adds such a route with every ADD.
    #[test]
    fn a_new_route_to_a_pod_wakes_nobody_and_its_going_is_told() {
        let pod = "10.0.1.5/32 dev v0 table 512";
        assert!(seen("", &format!("ip route add {pod}")).is_empty());
        let gone = seen(&format!("ip route add {pod}"), &format!("ip route del {pod}"));
        assert_eq!(gone.pods.len(), 1, "{gone:?}");
        let table = "ip route add default dev v0 table 3";
        assert_eq!(seen("", table).host.len(), 1);
        assert!(
            seen("", "ip route add 192.0.2.0/24 dev v0").is_empty(),
            "main is not ours"
        );
    }

    /// The same of IPv6, where the kernel itself adds routes for each link.
    #[test]
    fn of_ipv6_rules_of_ours_and_routes_of_pods_that_go_are_news() {
        for rule in ["lookup 512 pref 512", "fwmark 0x80/0x80 pref 1024"] {
            assert_eq!(
                seen("", &format!("ip -6 rule add {rule}")).host.len(),
                1,
                "{rule}"
            );
        }
        for pod in ["2001:db8::5/128 dev v0 table 512", "2001:db8::5/128 dev v0"] {
            assert!(seen("", &format!("ip route add {pod}")).is_empty(), "{pod}");
            let gone = seen(&format!("ip route add {pod}"), &format!("ip route del {pod}"));
            let pods: Vec<_> = gone.pods.keys().map(ToString::to_string).collect();
            assert_eq!(
                (&pods[..], gone.host.len()),
                (&["2001:db8::5".to_owned()][..], 0),
                "{pod}"
            );
        }
        let rule = "to 2001:db8::6 pref 512";
        let gone = seen(
            &format!("ip -6 rule add {rule}"),
            &format!("ip -6 rule del {rule}"),
        );
        assert!(
            gone.pods.keys().any(|pod| pod.to_string() == "2001:db8::6"),
            "{gone:?}"
        );
        let link =
            "ip link add w0 type veth peer name w1; ip link set w0 up; ip link set w1 up; ip link del w0";
        assert!(seen("", link).is_empty());
    }

    #[test]
    fn addresses_are_news() {
        assert_eq!(seen("", "ip addr add 10.0.1.20/24 dev v0").host.len(), 1);
    }

    #[test]
    fn our_table_is_news_with_a_name_and_another_is_not() {
        if Command::new("nft").arg("--version").output().is_err() {
            return eprintln!("skipped: nft is not installed");
        }
        let flushed = seen("nft add table ip aws-cni", "nft flush ruleset");
        let authors: Vec<_> = flushed.host.iter().collect();
        assert!(
            matches!(&authors[..], [Author::Process { name, .. }] if name == "nft"),
            "{authors:?}"
        );
        assert!(seen("nft add table ip other", "nft flush ruleset").is_empty());
    }

    #[test]
    fn news_that_was_dropped_means_a_look_at_everything() {
        in_fresh_netns(|| {
            let mut watch = Watch::open(None).unwrap();
            nix::sys::socket::setsockopt(&watch.routes, nix::sys::socket::sockopt::RcvBuf, &2048).unwrap();
            for table in 0..50 {
                sh(&format!("ip rule add pref 1024 lookup {}", 100 + table));
            }
            let mut sighting = Sighting::default();
            watch.read(&mut sighting).unwrap();
            assert!(sighting.all);
        });
    }
}
