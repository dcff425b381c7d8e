//! The router against a real kernel, without the cloud's half.
#![allow(
    clippy::unwrap_used,
    clippy::indexing_slicing,
    clippy::panic,
    reason = "a test may fail"
)]

use std::collections::BTreeSet;
use std::net::{Ipv4Addr, SocketAddrV4, TcpStream};
use std::process::Command;
use std::time::Duration;

use aws_cni_lab::fabric::guard::{Dropped, Wrong};
use aws_cni_lab::fabric::{Fabric, Networks, NodeLink};
use aws_cni_lab::netns::Netns;
use aws_cni_lab::probe::{ECHO_PORT, EchoServer, Failure, Protocol, exchange, exchange_from};
use aws_cni_lab::vpc::change::{AttachedEni, Owned};
use aws_cni_lab::vpc::cidr::Ipv4Cidr;
use aws_cni_lab::vpc::ids::Mac;

const SOON: Duration = Duration::from_secs(20);
const BRIEF: Duration = Duration::from_millis(400);
const STRANGER: Ipv4Addr = Ipv4Addr::new(10, 0, 1, 99);

fn eni(last: u8, device: u32) -> AttachedEni {
    AttachedEni {
        instance: format!("i-{last}").into(),
        eni: format!("eni-{last}").into(),
        attachment: format!("eni-attach-{last}").into(),
        mac: Mac([0x0a, 0, 0, 0, 0, last]),
        device,
        card: 0,
        subnet: "subnet-1".into(),
        vpc: "vpc-1".into(),
        subnet_cidr: "10.0.1.0/24".parse().unwrap(),
        subnet_ipv6_cidr: None,
        owned: Owned {
            primary: Ipv4Addr::new(10, 0, 1, last),
            secondary: BTreeSet::new(),
            prefixes: BTreeSet::new(),
            ipv6: BTreeSet::new(),
            ipv6_prefixes: BTreeSet::new(),
        },
        source_dest_check: true,
    }
}

fn ip(netns: &Netns, arguments: &str) {
    let run = || {
        Command::new("ip")
            .args(arguments.split_whitespace())
            .status()
            .unwrap()
    };
    assert!(netns.run(run).unwrap().success(), "ip {arguments}");
}

fn at(address: Ipv4Addr) -> SocketAddrV4 {
    SocketAddrV4::new(address, ECHO_PORT)
}

struct Machine {
    netns: Netns,
    eni: AttachedEni,
    _echo: EchoServer,
}

impl Machine {
    fn boot(fabric: &Fabric, last: u8) -> Self {
        let (netns, eni) = (Netns::new().unwrap(), eni(last, 0));
        fabric
            .attach(
                &eni,
                NodeLink {
                    netns: &netns,
                    name: "eth0",
                },
            )
            .unwrap();
        ip(&netns, &format!("addr add 10.0.1.{last}/24 dev eth0"));
        ip(&netns, "link set eth0 up");
        ip(&netns, "route add default via 10.0.1.1");
        // The kernel drops what is sent before its link watch has seen the carrier, up to a second later
        // (net/core/link_watch.c). After this the link works and the gateway is known.
        let gateway = SocketAddrV4::new(Ipv4Addr::new(10, 0, 1, 1), 9);
        let refused = exchange(&netns, Protocol::Tcp, gateway, SOON);
        assert_eq!(refused, Err(Failure::Refused));
        let echo = EchoServer::start(&netns, ECHO_PORT).unwrap();
        Self {
            netns,
            eni,
            _echo: echo,
        }
    }

    fn echo(&self) -> SocketAddrV4 {
        at(self.eni.owned.primary)
    }

    fn received(&self) -> u64 {
        let read = || std::fs::read_to_string("/proc/thread-self/net/dev").unwrap();
        let text = self.netns.run(read).unwrap();
        let line = text
            .lines()
            .find(|line| line.trim_start().starts_with("eth0:"))
            .unwrap();
        line.split_whitespace().nth(2).unwrap().parse().unwrap()
    }
}

#[test]
fn nodes_reach_each_other_and_every_network_with_their_own_address() {
    let fabric = Fabric::new(Networks::default()).unwrap();
    let (a, b) = (Machine::boot(&fabric, 10), Machine::boot(&fabric, 11));
    let outside = fabric.outside();
    let hosts = [&outside.internet, &outside.on_premises, &outside.second_vpc];
    let start = |netns| EchoServer::start(netns, ECHO_PORT).unwrap();
    let _servers: Vec<_> = hosts.iter().map(|host| start(&host.netns)).collect();
    for target in hosts.iter().map(|host| at(host.address)).chain([b.echo()]) {
        for protocol in [Protocol::Udp, Protocol::Tcp] {
            let seen = exchange(&a.netns, protocol, target, SOON).unwrap();
            assert_eq!(seen.ip(), a.eni.owned.primary, "{protocol} to {target}");
        }
    }
    let back = exchange(&outside.internet.netns, Protocol::Tcp, a.echo(), SOON).unwrap();
    assert_eq!(back.ip(), outside.internet.address);
    assert_eq!(fabric.dropped().unwrap(), Dropped::default());
}

#[test]
fn a_foreign_source_is_dropped_counted_and_named() {
    let fabric = Fabric::new(Networks::default()).unwrap();
    let (a, b) = (Machine::boot(&fabric, 10), Machine::boot(&fabric, 11));
    ip(&a.netns, &format!("addr add {STRANGER}/32 dev lo"));
    let refused = exchange_from(&a.netns, STRANGER, b.echo(), BRIEF);
    assert_eq!(refused, Err(Failure::TimedOut));
    assert!(fabric.dropped_spoofed().unwrap() > 0);
    let offences = fabric.offences().unwrap();
    assert_eq!(offences.len(), 1, "{offences:?}");
    let offence = (offences[0].link.as_str(), offences[0].source.as_str());
    assert_eq!(offence, ("eni0a000000000a", "10.0.1.99"));
    assert_eq!(
        (offences[0].wrong, offences[0].destination.as_str()),
        (Wrong::Source, "10.0.1.11")
    );
    assert!(offences[0].packets > 0);
    // Once the ENI owns it, it is accepted and delivered; once it does not, no more.
    let mut owned = a.eni.owned.clone();
    owned.secondary.insert(STRANGER);
    fabric.change_addresses(&a.eni.eni, &owned, true).unwrap();
    let seen = exchange_from(&a.netns, STRANGER, b.echo(), SOON).unwrap();
    assert_eq!(seen.ip(), STRANGER);
    fabric.change_addresses(&a.eni.eni, &a.eni.owned, true).unwrap();
    let refused = exchange_from(&a.netns, STRANGER, b.echo(), BRIEF);
    assert_eq!(refused, Err(Failure::TimedOut));
}

#[test]
fn a_foreign_hardware_address_is_dropped_and_counted() {
    let fabric = Fabric::new(Networks::default()).unwrap();
    let (a, b) = (Machine::boot(&fabric, 10), Machine::boot(&fabric, 11));
    ip(&a.netns, "link set eth0 address 0a:00:00:00:00:77");
    assert!(exchange(&a.netns, Protocol::Udp, b.echo(), BRIEF).is_err());
    assert!(fabric.dropped().unwrap().spoofed_mac > 0);
    let offences = fabric.offences().unwrap();
    assert_eq!(offences.len(), 1, "{offences:?}");
    assert_eq!(
        (offences[0].wrong, offences[0].mac.as_str()),
        (Wrong::Mac, "0a:00:00:00:00:77")
    );
    assert!(
        offences[0].to_string().ends_with(
            "through eni0a000000000a with a wrong hardware address: 10.0.1.10 (0a:00:00:00:00:77) > 10.0.1.11, udp"
        ),
        "{}",
        offences[0]
    );
}

#[test]
fn without_the_source_check_anything_may_be_sent() {
    let fabric = Fabric::new(Networks::default()).unwrap();
    let (a, b) = (Machine::boot(&fabric, 10), Machine::boot(&fabric, 11));
    ip(&a.netns, &format!("addr add {STRANGER}/32 dev lo"));
    fabric.change_addresses(&a.eni.eni, &a.eni.owned, false).unwrap();
    let b_received = b.received();
    assert!(
        exchange_from(&a.netns, STRANGER, b.echo(), BRIEF).is_err(),
        "the answer has no owner to go to"
    );
    assert_eq!(fabric.dropped().unwrap().spoofed_source, 0);
    assert!(b.received() > b_received);
    fabric.change_addresses(&a.eni.eni, &a.eni.owned, true).unwrap();
    assert!(exchange_from(&a.netns, STRANGER, b.echo(), BRIEF).is_err());
    assert!(fabric.dropped().unwrap().spoofed_source > 0);
}

#[test]
fn an_address_is_delivered_to_its_owner_only_and_follows_it() {
    let fabric = Fabric::new(Networks::default()).unwrap();
    let [a, b, c] = [10, 11, 12].map(|last| Machine::boot(&fabric, last));
    let moving: Ipv4Cidr = "10.0.1.64/28".parse().unwrap();
    let inside = moving.nth(5);
    for machine in [&a, &b] {
        ip(&machine.netns, &format!("addr add {inside}/32 dev lo"));
    }
    assert!(exchange(&c.netns, Protocol::Tcp, at(inside), BRIEF).is_err());
    for (owner, other) in [(&a, &b), (&b, &a)] {
        fabric
            .change_addresses(&other.eni.eni, &other.eni.owned, true)
            .unwrap();
        let mut owned = owner.eni.owned.clone();
        owned.prefixes.insert(moving);
        fabric.change_addresses(&owner.eni.eni, &owned, true).unwrap();
        ip(&c.netns, "neigh flush dev eth0"); // or a failed attempt before is remembered for a second
        exchange(&c.netns, Protocol::Tcp, at(inside), SOON).unwrap();
        let before = (owner.received(), other.received());
        for _ in 0..5 {
            exchange(&c.netns, Protocol::Tcp, at(inside), SOON).unwrap();
        }
        assert!(owner.received() >= before.0 + 5);
        assert!(other.received() < before.1 + 5);
    }
}

#[test]
fn nothing_is_delivered_to_an_address_without_owner() {
    let fabric = Fabric::new(Networks::default()).unwrap();
    let a = Machine::boot(&fabric, 10);
    let far = at(Ipv4Addr::new(10, 0, 2, 9));
    assert_eq!(
        exchange(&a.netns, Protocol::Udp, far, BRIEF),
        Err(Failure::TimedOut)
    );
    assert!(fabric.dropped().unwrap().no_owner > 0);
    let drops = fabric.drops().unwrap();
    assert_eq!(
        (drops[0].wrong, drops[0].destination.as_str()),
        (Wrong::Destination, "10.0.2.9")
    );
    assert_eq!(fabric.offences().unwrap(), []);
}

#[test]
fn a_link_appears_down_with_the_right_mac_and_goes_with_the_detach() {
    let fabric = Fabric::new(Networks::default()).unwrap();
    let a = Machine::boot(&fabric, 10);
    let second = eni(20, 1);
    let links = || {
        let show = || Command::new("ip").args(["-br", "link"]).output().unwrap();
        String::from_utf8(a.netns.run(show).unwrap().stdout).unwrap()
    };
    fabric
        .attach(
            &second,
            NodeLink {
                netns: &a.netns,
                name: "ens6",
            },
        )
        .unwrap();
    let line = links()
        .lines()
        .find(|line| line.starts_with("ens6"))
        .unwrap()
        .to_owned();
    assert!(
        line.contains("DOWN") && line.contains("0a:00:00:00:00:14"),
        "{line}"
    );
    fabric.detach(&second.eni).unwrap();
    fabric.detach(&second.eni).unwrap();
    assert!(!links().contains("ens6"));
    fabric
        .attach(
            &second,
            NodeLink {
                netns: &a.netns,
                name: "eth7",
            },
        )
        .unwrap();
    assert!(links().contains("eth7"));
}

#[test]
fn services_of_the_vpc_are_reached_from_a_node() {
    let fabric = Fabric::new(Networks::default()).unwrap();
    let a = Machine::boot(&fabric, 10);
    for listener in [fabric.listen_imds().unwrap(), fabric.listen_ec2().unwrap()] {
        let address = listener.local_addr().unwrap();
        let client = a.netns.run(|| TcpStream::connect(address).unwrap()).unwrap();
        let (_, peer) = listener.accept().unwrap();
        assert_eq!(peer, client.local_addr().unwrap());
        assert_eq!(peer.ip(), a.eni.owned.primary);
    }
}

#[test]
fn fabrics_side_by_side_do_not_meet() {
    std::thread::scope(|scope| {
        for _ in 0..6 {
            scope.spawn(|| {
                let fabric = Fabric::new(Networks::default()).unwrap();
                let (a, b) = (Machine::boot(&fabric, 10), Machine::boot(&fabric, 11));
                exchange(&a.netns, Protocol::Tcp, b.echo(), SOON).unwrap();
            });
        }
    });
}
