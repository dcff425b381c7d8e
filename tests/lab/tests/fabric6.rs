//! The router in IPv6 against a real kernel, without the cloud's half.
#![allow(
    clippy::unwrap_used,
    clippy::indexing_slicing,
    clippy::panic,
    reason = "a test may fail"
)]

use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr};
use std::process::Command;
use std::time::Duration;

use aws_cni_lab::fabric::guard::{Dropped, Wrong};
use aws_cni_lab::fabric::{Fabric, Networks, Networks6, NodeLink};
use aws_cni_lab::netns::Netns;
use aws_cni_lab::probe::{ECHO_PORT, EchoServer, Protocol, exchange, exchange_from};
use aws_cni_lab::vpc::change::{AttachedEni, Owned};
use aws_cni_lab::vpc::ids::Mac;

const SOON: Duration = Duration::from_secs(20);
const BRIEF: Duration = Duration::from_millis(400);

fn own(last: u16) -> Ipv6Addr {
    Ipv6Addr::new(0x2001, 0xdb8, 1, 1, 0, 0, 0, last)
}

/// An address of the machine's /80.
fn delegated(last: u16) -> Ipv6Addr {
    Ipv6Addr::new(0x2001, 0xdb8, 1, 1, last, 0, 0, 7)
}

fn echo(address: Ipv6Addr) -> SocketAddr {
    (address, ECHO_PORT).into()
}

struct Machine {
    netns: Netns,
    eni: AttachedEni,
    _echo: EchoServer,
}

impl Machine {
    /// With an address of its own, and one that a /80 would bring.
    fn boot(fabric: &Fabric, last: u8) -> Self {
        let number = u16::from(last);
        let eni = AttachedEni {
            instance: format!("i-{last}").into(),
            eni: format!("eni-{last}").into(),
            attachment: format!("eni-attach-{last}").into(),
            mac: Mac([0x0a, 0, 0, 0, 0, last]),
            device: 0,
            card: 0,
            subnet: "subnet-1".into(),
            vpc: "vpc-1".into(),
            subnet_cidr: "10.0.1.0/24".parse().unwrap(),
            subnet_ipv6_cidr: Some(Networks6::default().subnet(1)),
            owned: Owned {
                primary: Ipv4Addr::new(10, 0, 1, last),
                secondary: [].into(),
                prefixes: [].into(),
                ipv6: [own(number)].into(),
                ipv6_prefixes: [].into(),
            },
            source_dest_check: true,
        };
        let netns = Netns::new().unwrap();
        let link = NodeLink {
            netns: &netns,
            name: "eth0",
        };
        fabric.attach(&eni, link).unwrap();
        for words in [
            format!("addr add {}/128 dev eth0 nodad", own(number)),
            "link set eth0 up".to_owned(),
            format!("addr add {}/128 dev eth0 nodad", delegated(number)),
            format!("route add default via fe80:ec2::1 dev eth0 src {}", own(number)),
        ] {
            let run = || Command::new("ip").args(words.split(' ')).status().unwrap();
            assert!(netns.run(run).unwrap().success(), "ip {words}");
        }
        let echo = EchoServer::start(&netns, ECHO_PORT).unwrap();
        Self {
            netns,
            eni,
            _echo: echo,
        }
    }
}

fn fabric() -> Fabric {
    let networks = Networks {
        six: Some(Networks6::default()),
        ..Networks::default()
    };
    Fabric::new(networks).unwrap()
}

#[test]
fn machines_reach_each_other_and_the_internet_with_their_own_address() {
    let fabric = fabric();
    let (a, _b) = (Machine::boot(&fabric, 10), Machine::boot(&fabric, 11));
    let internet = &fabric.outside().internet;
    let _server = EchoServer::start(&internet.netns, ECHO_PORT).unwrap();
    for target in [own(11), Networks6::default().internet_host()] {
        for protocol in [Protocol::Udp, Protocol::Tcp] {
            let seen = exchange(&a.netns, protocol, echo(target), SOON).unwrap();
            assert_eq!(seen.ip(), own(10), "{protocol} to {target}");
        }
    }
    let back = exchange(&internet.netns, Protocol::Tcp, echo(own(10)), SOON).unwrap();
    assert_eq!(back.ip(), Networks6::default().internet_host());
    assert_eq!(fabric.dropped().unwrap(), Dropped::default());
}

#[test]
fn a_delegated_prefix_is_delivered_to_the_eni_that_has_it_and_may_be_sent_from() {
    let fabric = fabric();
    let (a, b) = (Machine::boot(&fabric, 10), Machine::boot(&fabric, 11));
    let to = |target| exchange(&b.netns, Protocol::Udp, echo(target), BRIEF);
    // Not before it is delegated: nobody has the address, and nobody may send from it.
    exchange(&b.netns, Protocol::Udp, echo(own(10)), SOON).unwrap();
    assert!(to(delegated(10)).is_err());
    assert!(fabric.dropped().unwrap().no_owner > 0);
    exchange_from(&a.netns, delegated(10), echo(own(11)), BRIEF).unwrap_err();
    let offences = fabric.offences().unwrap();
    assert!(
        offences
            .iter()
            .all(|drops| drops.wrong == Wrong::Source && drops.source == delegated(10).to_string()),
        "{offences:?}"
    );
    assert_eq!(
        fabric.dropped_spoofed().unwrap(),
        offences.iter().map(|drops| drops.packets).sum::<u64>()
    );
    assert!(!offences.is_empty());

    let mut owned = a.eni.owned.clone();
    owned.ipv6_prefixes = ["2001:db8:1:1:a::/80".parse().unwrap()].into();
    fabric.change_addresses(&a.eni.eni, &owned, true).unwrap();
    exchange(&b.netns, Protocol::Tcp, echo(delegated(10)), SOON).unwrap();
    let seen = exchange_from(&a.netns, delegated(10), echo(own(11)), SOON).unwrap();
    assert_eq!(seen.ip(), delegated(10));

    fabric.change_addresses(&a.eni.eni, &a.eni.owned, true).unwrap();
    assert!(to(delegated(10)).is_err());
    // Without the check it may send from anywhere.
    let before = fabric.dropped_spoofed().unwrap();
    fabric.change_addresses(&a.eni.eni, &a.eni.owned, false).unwrap();
    exchange_from(&a.netns, delegated(10), echo(own(11)), BRIEF).unwrap_err();
    assert_eq!(
        fabric.dropped_spoofed().unwrap(),
        before,
        "the answer finds nobody"
    );
    fabric.detach(&a.eni.eni).unwrap();
    assert!(to(own(10)).is_err());
}

#[test]
fn a_foreign_hardware_address_is_dropped_in_ipv6_too() {
    let fabric = fabric();
    let (a, _b) = (Machine::boot(&fabric, 10), Machine::boot(&fabric, 11));
    exchange(&a.netns, Protocol::Udp, echo(own(11)), SOON).unwrap();
    let run = || {
        let words = ["link", "set", "eth0", "address", "02:00:00:00:00:77"];
        Command::new("ip").args(words).status().unwrap()
    };
    assert!(a.netns.run(run).unwrap().success());
    exchange(&a.netns, Protocol::Udp, echo(own(11)), BRIEF).unwrap_err();
    assert!(fabric.dropped().unwrap().spoofed_mac > 0);
}
