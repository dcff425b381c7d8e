//! The first packet, in both directions, the moment the pod is wired: nothing waits for neighbour discovery or for
//! duplicate address detection (dataplane case 77, which we do otherwise: decision 0033).

use std::io::ErrorKind;
use std::net::{SocketAddr, UdpSocket};
use std::time::Duration;

use super::super::super::netns::run_in;
use super::*;

const HOST: IpAddr = IpAddr::V6(Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, 0x10));

/// Longer than any machine is busy, shorter than a second attempt of a resolver: nothing here is sent twice.
const PATIENCE: Duration = Duration::from_secs(5);

fn socket(address: IpAddr, port: u16) -> UdpSocket {
    let socket = UdpSocket::bind((address, port)).unwrap();
    socket.set_read_timeout(Some(PATIENCE)).unwrap();
    socket
}

fn hears(socket: &UdpSocket, from: SocketAddr) {
    let mut word = [0; 8];
    match socket.recv_from(&mut word) {
        Ok((_, sender)) => assert_eq!(sender, from),
        Err(error) if error.kind() == ErrorKind::WouldBlock => panic!("a packet from {from} never came"),
        Err(error) => panic!("{error}"),
    }
}

/// The host has an address of its own, as a node has.
fn address_of_the_host(host: &mut Rtnl) {
    let lo = link::index_of(&*host, "lo").unwrap().unwrap();
    let address = NetOp::AddAddress {
        address: HOST,
        len: 128,
        link: lo,
    };
    host.apply_all(&[NetOp::LinkUp(LinkRef::Index(lo)), address])
        .unwrap();
    while host.route_to(HOST).unwrap().is_none_or(|route| !route.is_local()) {
        std::thread::yield_now();
    }
}

/// One packet each way and no second try: the first from the host, then the first from the pod, by new pods each.
#[test]
fn dataplane_77_the_first_packet_of_an_ipv6_pod_gets_through_in_both_directions() {
    for pod_speaks_first in [false, true] {
        for _ in 0..20 {
            lab_of(POD6, RuleLayout::Shared, 254, |mut lab| {
                address_of_the_host(&mut lab.host);
                let ours = socket(HOST, 7001);
                wire_pod(&lab.intent).unwrap();
                let theirs = run_in(lab.netns.as_fd(), || socket(POD6, 7002)).unwrap();
                let (host, pod): (SocketAddr, SocketAddr) = ((HOST, 7001).into(), (POD6, 7002).into());
                if pod_speaks_first {
                    theirs.send_to(b"up", host).unwrap();
                    hears(&ours, pod);
                }
                ours.send_to(b"down", pod).unwrap();
                hears(&theirs, host);
            });
        }
    }
}

/// Runtimes switch IPv6 off in sandboxes: in what is there, or in all that will be.
#[test]
fn ipv6_that_the_runtime_switched_off_is_switched_on_again() {
    lab_of(POD6, RuleLayout::Shared, 254, |lab| {
        let write = |of: &'static str| {
            run_in(lab.netns.as_fd(), move || {
                fs::write(format!("/proc/sys/net/ipv6/conf/{of}/disable_ipv6"), "1").unwrap();
            })
            .unwrap();
        };
        write("all");
        write("default");
        wire_pod(&lab.intent).unwrap();
        assert_eq!(words(&lab.intent), [""; 0]);
        let off = |of: &'static str| {
            let read =
                move || fs::read_to_string(format!("/proc/sys/net/ipv6/conf/{of}/disable_ipv6")).unwrap();
            run_in(lab.netns.as_fd(), read).unwrap().trim().to_owned()
        };
        assert_eq!((off("eth0"), off("lo")), ("0".to_owned(), "0".to_owned()));
        assert_eq!(
            (off("all"), off("default")),
            ("1".to_owned(), "1".to_owned()),
            "as found"
        );
    });
}
