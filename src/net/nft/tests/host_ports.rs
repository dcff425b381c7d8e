//! Ports of the node that lead to pods, with real packets.

use std::io::{Read, Write};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::os::fd::OwnedFd;
use std::time::Duration;

use super::super::testbed::{NODE_IP, Node, POD_A, POD_B, inside, mark, nft_listing, on_node, run};
use super::super::{Applied, Nft, PodPorts};
use super::nft;
use crate::ipam::ip::IpFamily;
use crate::net::nft::model::SnatPorts;
use crate::net::ruleset::{HostRuleset, HostRuleset6};

const NODE_IP6: Ipv6Addr = Ipv6Addr::new(0x2600, 0, 0, 1, 0, 0, 0, 0x10);
const POD_A6: Ipv6Addr = Ipv6Addr::new(0x2600, 0, 0, 1, 0, 0, 0, 0x50);
const WORLD6: Ipv6Addr = Ipv6Addr::new(0x2600, 0, 0, 1, 0, 0, 0, 1);
const PATIENCE: Duration = Duration::from_secs(5);
const NOT_REACHED: Duration = Duration::from_millis(300);

fn ports(texts: &[&str]) -> Vec<crate::ipam::ports::HostPort> {
    texts.iter().map(|text| text.parse().unwrap()).collect()
}

fn table(node: &Node) -> Nft {
    let mut table = Nft::open().unwrap();
    table.apply(&node.ruleset()).unwrap();
    table.publish(mark(1), &[POD_B]).unwrap();
    for veth in ["eni000000000a", "eni000000000b"] {
        let key = format!("/proc/sys/net/ipv4/conf/{veth}/route_localnet");
        std::fs::write(key, "1").unwrap();
    }
    table
}

/// Pod A and the world have IPv6, too.
fn with_ipv6(node: &Node) -> Nft {
    for line in [
        "ip -6 addr add 2600:0:0:1::10/64 dev eth0 nodad",
        "ip -6 route add 2600:0:0:1::50/128 dev eni000000000a",
    ] {
        run(line);
    }
    for key in ["conf/all/forwarding", "conf/eni000000000a/proxy_ndp"] {
        std::fs::write(format!("/proc/sys/net/ipv6/{key}"), "1").unwrap();
    }
    inside(&node.world, || {
        run("ip -6 addr add 2600:0:0:1::1/64 dev w0 nodad");
        run("ip -6 route add 2600:0:0:1::50/128 via 2600:0:0:1::10");
    });
    let gateway = link_local("eni000000000a");
    inside(&node.pod_a, || {
        run("ip -6 addr add 2600:0:0:1::50/128 dev eth0 nodad");
        run(&format!("ip -6 route add default via {gateway} dev eth0"));
    });
    let mut table = Nft::of(IpFamily::V6).unwrap();
    let want = HostRuleset6 {
        veth_prefix: "eni".into(),
    };
    assert_eq!(table.apply(&want).unwrap(), Applied::Replaced);
    assert_eq!(table.apply(&want).unwrap(), Applied::Unchanged);
    table
}

/// Waits for it: the kernel checks first that nobody else has it.
fn link_local(link: &str) -> String {
    let shown = || run(&format!("ip -6 -o addr show dev {link} scope link -tentative"));
    let found = (0..500).find_map(|_| {
        std::thread::sleep(Duration::from_millis(10));
        let text = shown();
        let address = text.split_whitespace().find(|word| word.starts_with("fe80"))?;
        Some(address.split('/').next()?.to_owned())
    });
    found.expect("a link-local address")
}

/// Says to whoever asks whom it sees.
struct Server {
    udp: UdpSocket,
    tcp: TcpListener,
}

impl Server {
    fn new(netns: &OwnedFd, address: impl Into<IpAddr> + Send, port: u16) -> Self {
        let address = SocketAddr::new(address.into(), port);
        inside(netns, || {
            let udp = UdpSocket::bind(address).unwrap();
            udp.set_read_timeout(Some(PATIENCE)).unwrap();
            Self {
                udp,
                tcp: TcpListener::bind(address).unwrap(),
            }
        })
    }

    /// One datagram and one connection: the sources it saw.
    fn asked(&self, from: Option<&OwnedFd>, to: impl Into<IpAddr>, port: u16) -> [IpAddr; 2] {
        let to = SocketAddr::new(to.into(), port);
        std::thread::scope(|scope| {
            let served = scope.spawn(|| {
                let (_, peer) = self.udp.recv_from(&mut [0; 16]).expect("no datagram came");
                self.udp.send_to(b"pong", peer).unwrap();
                let (mut stream, other) = self.tcp.accept().unwrap();
                stream.write_all(b"pong").unwrap();
                [peer.ip(), other.ip()]
            });
            let ask = || {
                assert!(datagram(to, PATIENCE), "no datagram came back");
                let mut stream = TcpStream::connect_timeout(&to, PATIENCE).unwrap();
                stream.set_read_timeout(Some(PATIENCE)).unwrap();
                let mut answer = String::new();
                stream.read_to_string(&mut answer).unwrap();
                assert_eq!(answer, "pong");
            };
            match from {
                Some(netns) => inside(netns, ask),
                None => ask(),
            }
            served.join().unwrap()
        })
    }
}

/// Whether a datagram is answered.
fn datagram(to: SocketAddr, patience: Duration) -> bool {
    let any: IpAddr = match to {
        SocketAddr::V4(_) => Ipv4Addr::UNSPECIFIED.into(),
        SocketAddr::V6(_) => Ipv6Addr::UNSPECIFIED.into(),
    };
    let client = UdpSocket::bind((any, 0)).unwrap();
    client.connect(to).unwrap();
    client.set_read_timeout(Some(patience)).unwrap();
    client.send(b"ping").is_ok() && client.recv(&mut [0; 16]).is_ok()
}

/// portmap's semantics: the source stays, but for the pod itself and the node's loopback.
#[test]
fn a_host_port_leads_to_the_pod_from_everywhere() {
    on_node(|node| {
        let mut table = table(node);
        table
            .open_ports(POD_A.into(), &ports(&["tcp:8080:80", "udp:8080:80"]))
            .unwrap();
        table
            .open_ports(POD_B.into(), &ports(&["tcp:8081:80", "udp:8081:80"]))
            .unwrap();
        let node_ip = IpAddr::from(NODE_IP);
        for (pod, address, port) in [(&node.pod_a, POD_A, 8080), (&node.pod_b, POD_B, 8081)] {
            let server = Server::new(pod, address, 80);
            // The world has several addresses and takes the nearest.
            let world = IpAddr::from([10, 0, 0, 1]);
            assert_eq!(
                server.asked(Some(&node.world), NODE_IP, port),
                [world; 2],
                "from outside"
            );
            let other = if address == POD_A {
                (&node.pod_b, POD_B)
            } else {
                (&node.pod_a, POD_A)
            };
            let seen = server.asked(Some(other.0), NODE_IP, port);
            assert_eq!(seen, [IpAddr::from(other.1); 2], "from the other pod");
            assert_eq!(
                server.asked(Some(pod), NODE_IP, port),
                [node_ip; 2],
                "from itself"
            );
            assert_eq!(server.asked(None, NODE_IP, port), [node_ip; 2], "from the node");
            let loopback = server.asked(None, Ipv4Addr::LOCALHOST, port);
            assert_eq!(loopback, [node_ip; 2], "from the node's loopback");
        }
    });
}

#[test]
fn a_host_port_of_one_address_is_open_on_that_one_only() {
    on_node(|node| {
        let mut table = table(node);
        table
            .open_ports(
                POD_A.into(),
                &ports(&["udp:53:80:10.0.0.10", "tcp:53:80:10.0.0.10"]),
            )
            .unwrap();
        table
            .open_ports(
                POD_B.into(),
                &ports(&["udp:53:80:127.0.0.1", "tcp:53:80:127.0.0.1"]),
            )
            .unwrap();
        let (a, b) = (
            Server::new(&node.pod_a, POD_A, 80),
            Server::new(&node.pod_b, POD_B, 80),
        );
        a.asked(Some(&node.world), NODE_IP, 53);
        a.asked(None, NODE_IP, 53);
        b.asked(None, Ipv4Addr::LOCALHOST, 53);
        let elsewhere = SocketAddr::from(([10, 0, 1, 20], 53));
        assert!(!inside(&node.world, || datagram(elsewhere, NOT_REACHED)));
    });
}

#[test]
fn a_host_port_of_an_ipv6_pod_leads_to_it() {
    on_node(|node| {
        let mut table = with_ipv6(node);
        let wanted = ports(&[
            "tcp:8080:80",
            "udp:8080:80",
            "udp:53:80:2600:0:0:1::10",
            "tcp:53:80:2600:0:0:1::10",
        ]);
        table.open_ports(POD_A6.into(), &wanted).unwrap();
        let listing = nft_listing();
        assert!(
            listing.contains("2600:0:0:1::10 . udp . 53 : 2600:0:0:1::50 . 80"),
            "{listing}"
        );
        let server = Server::new(&node.pod_a, POD_A6, 80);
        for port in [8080, 53] {
            assert_eq!(
                server.asked(Some(&node.world), NODE_IP6, port),
                [IpAddr::from(WORLD6); 2]
            );
            assert_eq!(
                server.asked(Some(&node.pod_a), NODE_IP6, port),
                [IpAddr::from(NODE_IP6); 2]
            );
            assert_eq!(server.asked(None, NODE_IP6, port), [IpAddr::from(NODE_IP6); 2]);
        }
        table.close_ports(&[POD_A6.into()]).unwrap();
        assert!(table.port_contents().unwrap().is_empty());
        assert!(!inside(&node.world, || datagram(
            (NODE_IP6, 8080).into(),
            NOT_REACHED
        )));
    });
}

#[test]
fn a_closed_port_leads_nowhere_and_a_late_closing_leaves_the_next_pod_alone() {
    on_node(|node| {
        let mut table = table(node);
        let both = ports(&["tcp:8080:80", "udp:8080:80"]);
        table.open_ports(POD_A.into(), &both).unwrap();
        table.open_ports(POD_A.into(), &both).unwrap();
        // A new sandbox of the pod has the ports before the old one's DEL came through.
        table.open_ports(POD_B.into(), &both).unwrap();
        table.close_ports(&[POD_A.into()]).unwrap();
        Server::new(&node.pod_b, POD_B, 80).asked(Some(&node.world), NODE_IP, 8080);
        table.close_ports(&[POD_B.into(), POD_A.into()]).unwrap();
        table.close_ports(&[POD_B.into()]).unwrap();
        assert!(table.port_contents().unwrap().is_empty());
        assert!(!inside(&node.world, || datagram(
            (NODE_IP, 8080).into(),
            NOT_REACHED
        )));
    });
}

/// While others change tables of theirs all the time.
#[test]
fn ports_are_opened_and_closed_side_by_side() {
    use std::sync::atomic::{AtomicBool, Ordering};
    on_node(|node| {
        let mut table = table(node);
        let here = std::fs::File::open("/proc/thread-self/ns/net").unwrap();
        let here = OwnedFd::from(here);
        let done = AtomicBool::new(false);
        let start = std::time::Instant::now();
        std::thread::scope(|scope| {
            let noise = scope.spawn(|| {
                inside(&here, || {
                    while !done.load(Ordering::Relaxed) && start.elapsed() < Duration::from_mins(1) {
                        nft("table ip noise { }\ndelete table ip noise");
                    }
                });
            });
            let pods: Vec<_> = (1..=8_u8)
                .map(|last| {
                    let here = &here;
                    scope.spawn(move || {
                        inside(here, || {
                            let mut own = Nft::open().unwrap();
                            let pod = IpAddr::from([10, 0, 9, last]);
                            let port = format!("udp:{}:80", 1000 + u16::from(last));
                            for _ in 0..20 {
                                own.open_ports(pod, &ports(&[&port])).unwrap();
                                own.close_ports(&[pod]).unwrap();
                            }
                            own.open_ports(pod, &ports(&[&port])).unwrap();
                        });
                    })
                })
                .collect();
            let ended: Vec<_> = pods
                .into_iter()
                .map(std::thread::ScopedJoinHandle::join)
                .collect();
            done.store(true, Ordering::Relaxed);
            noise.join().unwrap();
            assert!(ended.iter().all(Result::is_ok));
        });
        let wanted: PodPorts = (1..=8_u8)
            .map(|last| {
                (
                    IpAddr::from([10, 0, 9, last]),
                    ports(&[&format!("udp:{}:80", 1000 + u16::from(last))]),
                )
            })
            .collect();
        assert!(!table.ports_only(&wanted).unwrap());
        assert!(table.ports_only(&PodPorts::new()).unwrap());
    });
}

#[test]
fn ports_outlive_a_table_that_is_written_anew_and_are_put_right() {
    on_node(|node| {
        let mut table = table(node);
        let wanted: PodPorts = [
            (
                POD_A.into(),
                ports(&["tcp:8080:80", "sctp:9:9", "udp:53:53:10.0.0.10"]),
            ),
            (POD_B.into(), ports(&["udp:8080:80"])),
        ]
        .into();
        assert!(table.ports_only(&wanted).unwrap());
        assert!(!table.ports_only(&wanted).unwrap());
        let listing = nft_listing();
        for line in [
            "type inet_proto . inet_service : ipv4_addr . inet_service",
            "tcp . 8080 : 10.0.0.50 . 80",
            "sctp . 9 : 10.0.0.50 . 9",
            "10.0.0.10 . udp . 53 : 10.0.0.50 . 53",
            "10.0.1.50 . 10.0.1.50",
            "priority dstnat + 5; policy accept;",
            "priority srcnat + 5; policy accept;",
            "dnat ip to ip daddr . meta l4proto . th dport map @host-port-at",
            "ip saddr . ip daddr @host-port-pod masquerade",
        ] {
            assert!(listing.contains(line), "{line:?} is not in:\n{listing}");
        }
        let before = table.port_contents().unwrap();
        let other = HostRuleset {
            snat: Some(SnatPorts::None),
            ..node.ruleset()
        };
        assert_eq!(table.apply(&other).unwrap(), Applied::Replaced);
        assert_eq!(table.port_contents().unwrap(), before);
        nft(
            "delete element ip aws-cni host-port { tcp . 8080 }; add element ip aws-cni host-port { tcp . 1 : 1.2.3.4 . 5 }",
        );
        assert!(table.ports_only(&wanted).unwrap());
        assert_eq!(table.port_contents().unwrap(), before);
    });
}

/// `route_localnet` on a pod's link is not to open the node's loopback to it (CVE-2020-8558).
#[test]
fn a_pod_reaches_nothing_on_the_nodes_loopback_and_does_not_speak_in_its_name() {
    on_node(|node| {
        let _table = table(node);
        let server = UdpSocket::bind(("127.0.0.1", 0)).unwrap();
        let public = UdpSocket::bind((NODE_IP, 0)).unwrap();
        for socket in [&server, &public] {
            socket.set_read_timeout(Some(NOT_REACHED)).unwrap();
        }
        inside(&node.pod_a, || {
            run("ip addr del 127.0.0.1/8 dev lo");
            run("ip addr add 127.0.0.2/32 dev eth0");
            run("ip route add 127.0.0.1 via 169.254.1.1 dev eth0 src 10.0.0.50");
            std::fs::write("/proc/sys/net/ipv4/conf/eth0/route_localnet", "1").unwrap();
            let own = UdpSocket::bind((POD_A, 0)).unwrap();
            own.send_to(b"ping", server.local_addr().unwrap()).unwrap();
            let disguised = UdpSocket::bind(("127.0.0.2", 0)).unwrap();
            disguised.send_to(b"ping", public.local_addr().unwrap()).unwrap();
        });
        assert!(server.recv_from(&mut [0; 8]).is_err());
        assert!(public.recv_from(&mut [0; 8]).is_err());
        nft("delete table ip aws-cni");
        inside(&node.pod_a, || {
            let own = UdpSocket::bind((POD_A, 0)).unwrap();
            own.send_to(b"ping", server.local_addr().unwrap()).unwrap();
        });
        server
            .recv_from(&mut [0; 8])
            .expect("it would have come through without the table");
    });
}

/// A NodePort of the same number is stronger, as beside portmap.
#[test]
fn a_service_of_the_same_port_comes_first() {
    on_node(|node| {
        let mut table = table(node);
        nft(
            "table ip services { chain services { type nat hook prerouting priority -100;
            fib daddr type local meta l4proto { tcp, udp } th dport 8080 dnat to 10.0.1.50:80
            }
            }",
        );
        table
            .open_ports(POD_A.into(), &ports(&["tcp:8080:80", "udp:8080:80"]))
            .unwrap();
        let server = Server::new(&node.pod_b, POD_B, 80);
        server.asked(Some(&node.world), NODE_IP, 8080);
    });
}

/// A client that goes on sending must not reach whoever gets the pod's address next.
#[test]
fn connections_to_a_pod_that_is_gone_are_forgotten_and_others_are_not() {
    on_node(|node| {
        let mut table = table(node);
        let mut six = with_ipv6(node);
        table.open_ports(POD_A.into(), &ports(&["udp:8080:80"])).unwrap();
        table.open_ports(POD_B.into(), &ports(&["udp:8081:80"])).unwrap();
        six.open_ports(POD_A6.into(), &ports(&["udp:8080:80"])).unwrap();
        let pods = [
            (&node.pod_a, IpAddr::from(POD_A)),
            (&node.pod_b, POD_B.into()),
            (&node.pod_a, POD_A6.into()),
        ];
        let servers = pods.map(|(netns, pod)| {
            let server = inside(netns, || UdpSocket::bind((pod, 80)).unwrap());
            server.set_read_timeout(Some(PATIENCE)).unwrap();
            server
        });
        let to = [
            (IpAddr::from(NODE_IP), 8080),
            (NODE_IP.into(), 8081),
            (NODE_IP6.into(), 8080),
        ];
        let clients = to.map(|to| {
            let any: IpAddr = if to.0.is_ipv4() {
                Ipv4Addr::UNSPECIFIED.into()
            } else {
                Ipv6Addr::UNSPECIFIED.into()
            };
            let client = inside(&node.world, || UdpSocket::bind((any, 0)).unwrap());
            client.connect(SocketAddr::from(to)).unwrap();
            client
        });
        let send_all = || clients.iter().for_each(|client| drop(client.send(b"ping")));
        let arrived = |server: &UdpSocket| server.recv_from(&mut [0; 8]).is_ok();
        send_all();
        assert!(servers.iter().all(arrived));
        table.close_ports(&[POD_A.into()]).unwrap();
        six.close_ports(&[POD_A6.into()]).unwrap();
        send_all();
        assert!(servers.iter().all(arrived), "a connection outlives its rule");
        assert_eq!(crate::net::conntrack::forget(POD_A.into()).unwrap(), 1);
        assert_eq!(crate::net::conntrack::forget(POD_A6.into()).unwrap(), 1);
        for server in &servers {
            server.set_read_timeout(Some(NOT_REACHED)).unwrap();
        }
        send_all();
        assert_eq!(servers.each_ref().map(arrived), [false, true, false]);
        assert_eq!(crate::net::conntrack::forget(POD_A.into()).unwrap(), 0);
    });
}
