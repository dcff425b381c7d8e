//! A node in a fresh network namespace with two ENIs and two pods, and the world on the other side of the ENIs.
//!
//! ```text
//! pod 10.0.0.50 -- eni000000000a  node  eth0 10.0.0.10 ==== w0 10.0.0.1  world  8.8.8.8 (internet)
//! pod 10.0.1.50 -- eni000000000b        eth1 10.0.1.20 ==== w1 10.0.1.1         10.1.0.9 (VPC)
//! ```

use std::collections::BTreeSet;
use std::net::{Ipv4Addr, SocketAddr, UdpSocket};
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::process::Command;
use std::sync::atomic::{AtomicU16, Ordering};
use std::time::Duration;

use nix::sys::socket::{setsockopt, sockopt};

use super::Nft;
use super::model::{AddressRange, Datum, Element, Key, Set, SnatPorts, Verdict};
use crate::net::layout::{EniMark, RuleLayout};
use crate::net::netns::run_in;
use crate::net::ruleset::{EXEMPT, HostRuleset, mark_of_chain};
use crate::net::testing::{fresh_netns, in_fresh_netns};

pub(crate) const NODE_IP: Ipv4Addr = Ipv4Addr::new(10, 0, 0, 10);
pub(crate) const POD_A: Ipv4Addr = Ipv4Addr::new(10, 0, 0, 50);
pub(crate) const POD_B: Ipv4Addr = Ipv4Addr::new(10, 0, 1, 50);
pub(crate) const INTERNET: Ipv4Addr = Ipv4Addr::new(8, 8, 8, 8);
pub(crate) const VPC_PEER: Ipv4Addr = Ipv4Addr::new(10, 1, 0, 9);
pub(crate) const PORT: u16 = 4242;

pub(crate) struct Node {
    pub(crate) world: OwnedFd,
    pub(crate) pod_a: OwnedFd,
    pub(crate) pod_b: OwnedFd,
    pub(crate) eth0: u32,
    pub(crate) eth1: u32,
    /// A port of its own for each exchange: a process that another test is just starting holds a copy of every open
    /// socket until it executes, so a port may still be taken after its socket was closed here.
    next_port: AtomicU16,
}

/// Runs a command in the calling thread's namespace and fails the test when it fails.
pub(crate) fn run(line: &str) -> String {
    let mut words = line.split_whitespace();
    let output = Command::new(words.next().unwrap()).args(words).output().unwrap();
    assert!(
        output.status.success(),
        "{line}: {}",
        String::from_utf8_lossy(&output.stderr)
    );
    String::from_utf8(output.stdout).unwrap()
}

/// Feeds a script to `nft`, the independent implementation.
pub(crate) fn nft(script: &str) -> String {
    let file = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(file.path(), format!("{script}\n")).unwrap();
    run(&format!("nft -f {}", file.path().display()))
}

/// Our table as `nft` reads it.
pub(crate) fn nft_listing() -> String {
    run("nft list ruleset")
}

/// The packets that a counter with this comment has seen.
pub(crate) fn counted(comment: &str) -> u64 {
    let listing: serde_json::Value = serde_json::from_str(&run("nft -j list ruleset")).unwrap();
    let mut rules = listing["nftables"]
        .as_array()
        .unwrap()
        .iter()
        .filter_map(|item| item.get("rule"));
    let rule = rules.rfind(|rule| rule["comment"] == comment).expect(comment);
    let counter = rule["expr"]
        .as_array()
        .unwrap()
        .iter()
        .find_map(|expr| expr.get("counter"));
    counter.unwrap()["packets"].as_u64().unwrap()
}

/// What the exemption set holds.
pub(crate) fn exempt(table: &mut Nft) -> BTreeSet<AddressRange> {
    let held = held(table, EXEMPT);
    let range = |element| match element {
        Element::Range(range) => range,
        Element::Entry(..) => panic!("{element:?}"),
    };
    held.into_iter().map(range).collect()
}

/// Which ENI the numbers of a map, links' or marks, lead to.
pub(crate) fn numbers(table: &mut Nft, map: Set) -> Vec<(u32, Option<EniMark>)> {
    let entry = |element| match element {
        Element::Entry(Key::Number(number), Datum::Verdict(Verdict::Jump(chain))) => {
            (number, mark_of_chain(&chain))
        }
        Element::Entry(Key::Number(number), _) => (number, None),
        other => panic!("{other:?}"),
    };
    held(table, map).into_iter().map(entry).collect()
}

/// What a set of ours holds; nothing when it is not there.
pub(crate) fn held(table: &mut Nft, set: Set) -> BTreeSet<Element> {
    let facts = table.facts().unwrap().unwrap();
    facts.contents.get(set.name).cloned().unwrap_or_default()
}

pub(crate) fn index(link: &str) -> u32 {
    nix::net::if_::if_nametoindex(link).unwrap()
}

pub(crate) fn mark(value: u8) -> EniMark {
    EniMark::new(value).unwrap()
}

/// Runs `test` as a node whose ENIs and pods are wired, but nothing of the host's own is set up.
pub(crate) fn on_bare_node(test: impl FnOnce(&Node) + Send) {
    in_fresh_netns(|| {
        let node = build();
        test(&node);
    });
}

/// The same with the host's routing rules, those of the shared layout.
pub(crate) fn on_node(test: impl FnOnce(&Node) + Send) {
    on_bare_node(|node| {
        run("ip rule add pref 512 lookup 512");
        run("ip rule add pref 1024 fwmark 0x80/0x80 lookup main");
        std::fs::write("/proc/sys/net/ipv4/conf/eth0/rp_filter", "2").unwrap();
        std::fs::write("/proc/sys/net/ipv4/ip_forward", "1").unwrap();
        test(node);
    });
}

fn build() -> Node {
    let (world, pod_a, pod_b) = (fresh_netns(), fresh_netns(), fresh_netns());
    let fd = |ns: &OwnedFd| format!("/proc/{}/fd/{}", std::process::id(), ns.as_raw_fd());
    let pair = |host: &str, ns: &OwnedFd, peer: &str| {
        run(&format!(
            "ip link add {host} type veth peer name {peer} netns {}",
            fd(ns)
        ));
        run(&format!("ip link set {host} up"));
    };
    run("ip link set lo up");
    pair("eth0", &world, "w0");
    pair("eth1", &world, "w1");
    pair("eni000000000a", &pod_a, "eth0");
    pair("eni000000000b", &pod_b, "eth0");
    for line in [
        "ip addr add 10.0.0.10/24 dev eth0",
        "ip addr add 10.0.1.20/24 dev eth1",
        "ip route del 10.0.1.0/24 dev eth1",
        "ip route add default via 10.0.0.1",
        "ip route add 10.0.1.1/32 dev eth1 table 3",
        "ip route add default via 10.0.1.1 dev eth1 table 3",
        "ip route add 10.0.0.50 dev eni000000000a table 512",
        "ip route add 10.0.1.50 dev eni000000000b table 512",
        "ip rule add pref 1536 fwmark 0x1/0x7f lookup 3",
    ] {
        run(line);
    }
    for (key, value) in [
        ("eth0/rp_filter", "1"),
        ("eth1/rp_filter", "1"),
        ("eth1/src_valid_mark", "1"),
    ] {
        std::fs::write(format!("/proc/sys/net/ipv4/conf/{key}"), value).unwrap();
    }
    std::fs::write("/proc/sys/net/ipv4/conf/all/rp_filter", "0").unwrap();
    inside(&world, || {
        for line in [
            "ip link set lo up",
            "ip link set w0 up",
            "ip link set w1 up",
            "ip addr add 8.8.8.8/32 dev lo",
            "ip addr add 10.1.0.9/32 dev lo",
            "ip addr add 10.0.0.1/24 dev w0",
            "ip addr add 10.0.1.1/24 dev w1",
            "ip route add 10.0.0.50 via 10.0.0.10",
            "ip route add 10.0.1.50 via 10.0.1.20",
        ] {
            run(line);
        }
    });
    for (ns, address, host) in [(&pod_a, POD_A, "eni000000000a"), (&pod_b, POD_B, "eni000000000b")] {
        let mac = std::fs::read_to_string(format!("/sys/class/net/{host}/address")).ok();
        let mac = mac.unwrap_or_else(|| link_mac(host));
        inside(ns, || {
            run("ip link set lo up");
            run("ip link set eth0 up");
            run(&format!("ip addr add {address}/32 dev eth0"));
            run("ip route add 169.254.1.1 dev eth0");
            run("ip route add default via 169.254.1.1 dev eth0");
            run(&format!(
                "ip neigh add 169.254.1.1 lladdr {} dev eth0 nud permanent",
                mac.trim()
            ));
        });
    }
    Node {
        world,
        pod_a,
        pod_b,
        eth0: index("eth0"),
        eth1: index("eth1"),
        next_port: AtomicU16::new(PORT + 1),
    }
}

/// `/sys` shows the namespace it was mounted in, so ask the kernel by netlink.
fn link_mac(link: &str) -> String {
    let shown: serde_json::Value = serde_json::from_str(&run(&format!("ip -j link show {link}"))).unwrap();
    shown[0]["address"].as_str().unwrap().to_owned()
}

pub(crate) fn inside<T: Send>(ns: &OwnedFd, work: impl FnOnce() -> T + Send) -> T {
    run_in(ns.as_fd(), work).unwrap()
}

impl Node {
    /// The ruleset of this node with the defaults of the Go daemon.
    pub(crate) fn ruleset(&self) -> HostRuleset {
        HostRuleset {
            connmark: 0x80,
            veth_prefix: "eni".into(),
            node_ip: NODE_IP,
            exempt: ["10.0.0.0/16", "10.1.0.0/16"]
                .map(|cidr| cidr.parse().unwrap())
                .into(),
            snat: Some(SnatPorts::FullyRandom),
            node_port: true,
            primary_link: self.eth0,
            enis: [(mark(1), self.eth1)].into(),
            layout: RuleLayout::Shared,
        }
    }

    /// One datagram there and back: the source the world saw, and the ENI's link it came by.
    pub(crate) fn echo(&self, from: &OwnedFd, to: Ipv4Addr) -> (Ipv4Addr, &'static str) {
        self.echo_of(from, to, to)
    }

    /// The same, where something on the way translates the destination to `server`.
    pub(crate) fn echo_of(&self, from: &OwnedFd, to: Ipv4Addr, server: Ipv4Addr) -> (Ipv4Addr, &'static str) {
        let port = self.next_port.fetch_add(1, Ordering::Relaxed);
        let listeners = inside(&self.world, || {
            ["w0", "w1"].map(|link| (link, listen(server, port, Some(link))))
        });
        let client = inside(from, || listen(Ipv4Addr::UNSPECIFIED, 0, None));
        client.send_to(b"ping", SocketAddr::from((to, port))).unwrap();
        let (link, server, source) = first_heard(&listeners).expect("nothing reached the world");
        server.send_to(b"pong", source).unwrap();
        let mut buffer = [0; 16];
        let (_, answerer) = client
            .recv_from(&mut buffer)
            .expect("the answer did not come back");
        assert_eq!(answerer.ip(), to);
        let SocketAddr::V4(source) = source else {
            unreachable!()
        };
        (*source.ip(), link)
    }
}

pub(crate) fn listen(address: Ipv4Addr, port: u16, link: Option<&str>) -> UdpSocket {
    let socket = match link {
        None => UdpSocket::bind((address, port)).unwrap(),
        Some(link) => {
            use nix::sys::socket::{AddressFamily, SockFlag, SockType, SockaddrIn, bind, socket};
            let fd = socket(
                AddressFamily::Inet,
                SockType::Datagram,
                SockFlag::SOCK_CLOEXEC,
                None,
            )
            .unwrap();
            setsockopt(&fd, sockopt::BindToDevice, &link.into()).unwrap();
            let address = std::net::SocketAddrV4::new(address, port);
            bind(fd.as_raw_fd(), &SockaddrIn::from(address)).unwrap();
            fd.into()
        }
    };
    socket.set_read_timeout(Some(Duration::from_secs(5))).unwrap();
    socket
}

fn first_heard<'a>(
    listeners: &'a [(&'static str, UdpSocket)],
) -> Option<(&'static str, &'a UdpSocket, SocketAddr)> {
    use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
    let mut fds: Vec<_> = listeners
        .iter()
        .map(|(_, s)| PollFd::new(s.as_fd(), PollFlags::POLLIN))
        .collect();
    poll(&mut fds, PollTimeout::from(5_000_u16)).unwrap();
    let ready = fds.iter().position(|fd| fd.any() == Some(true))?;
    let (link, socket) = listeners.get(ready)?;
    let (_, source) = socket.recv_from(&mut [0; 16]).ok()?;
    Some((link, socket, source))
}
