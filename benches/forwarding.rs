//! What a packet costs on its way from a pod out of a secondary ENI, by the number of pods on the node: our layout
//! beside the Go daemon's, and beside no rules at all, in one run.
//!
//! Each node is a network namespace with pods in namespaces of their own, wired and set up by the functions the product
//! uses; its ENIs are veth pairs that end in a namespace which takes packets and says nothing. The sender's core does all
//! of the work, up to the receiving socket. `make bench` runs this; `cargo bench --profile dev --bench forwarding` as root
//! does as well, since the time is the kernel's.

#![allow(
    clippy::print_stdout,
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::indexing_slicing,
    clippy::cast_precision_loss,
    reason = "a measurement for developers: it prints, and stops at the first surprise"
)]

use std::collections::{BTreeMap, BTreeSet};
use std::fs::File;
use std::net::{Ipv4Addr, SocketAddrV4, UdpSocket};
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::process::Command;
use std::time::Instant;

use aws_cni::net::eni::{EniIntent, configure_eni};
use aws_cni::net::host::{Host, HostIntent};
use aws_cni::net::layout::{EniMark, RuleLayout};
use aws_cni::net::netns::run_in;
use aws_cni::net::nft::model::SnatPorts;
use aws_cni::net::pod::{PodIntent, wire_pod};
use aws_cni::net::veth;
use aws_cni_ipam::cidr::Ipv4Cidr;
use aws_cni_ipam::ids::{Mac, TableId};
use nix::sched::{CloneFlags, CpuSet, sched_setaffinity, unshare};
use nix::unistd::Pid;

const LEVELS: [usize; 5] = [1, 30, 110, 250, 1000];
const ROUNDS: usize = 15;
const PACKETS: u32 = 4_000;
const FLOWS: u32 = 400;
const ENI_TABLE: TableId = TableId(2);
/// In the VPC: reached with the pod's own address.
const PEER: Ipv4Addr = Ipv4Addr::new(10, 200, 0, 9);
/// Outside: reached with the node's.
const INTERNET: Ipv4Addr = Ipv4Addr::new(198, 51, 100, 1);
const PORT: u16 = 4242;

fn main() {
    // `cargo test --benches` and `cargo clippy` hand over arguments of their own; only a bench run measures.
    if !std::env::args().any(|argument| argument == "--bench") {
        return;
    }
    let mut core = CpuSet::new();
    core.set(0).unwrap();
    sched_setaffinity(Pid::from_raw(0), &core).unwrap();
    // All at once, so that a machine that drifts drifts for all.
    let layouts = LEVELS
        .into_iter()
        .flat_map(|pods| [(Kind::Shared, pods), (Kind::PerPod, pods)]);
    let nodes: Vec<Node> = [(Kind::Bare, 1)]
        .into_iter()
        .chain(layouts)
        .map(|(kind, pods)| Node::new(kind, pods))
        .collect();
    let mut costs = vec![Costs::default(); nodes.len()];
    for _round in 0..ROUNDS {
        for (node, costs) in nodes.iter().zip(&mut costs) {
            costs.measure(node);
        }
    }
    print(&costs);
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    Bare,
    Shared,
    PerPod,
}

impl Kind {
    fn layout(self) -> RuleLayout {
        match self {
            Self::Shared => RuleLayout::Shared,
            Self::Bare | Self::PerPod => RuleLayout::PerPod,
        }
    }
}

struct Node {
    kind: Kind,
    netns: OwnedFd,
    _world: OwnedFd,
    /// Takes what arrives, and is not read.
    _sinks: Vec<UdpSocket>,
    pods: Vec<OwnedFd>,
}

impl Node {
    fn new(kind: Kind, pods: usize) -> Self {
        let (netns, world) = (fresh_netns(), fresh_netns());
        let pid = std::process::id();
        let path = format!("/proc/{pid}/fd/{}", world.as_raw_fd());
        in_ns(&netns, || {
            let pair = |host: &str, peer: &str, mac: &str| {
                format!(
                    "ip link add {host} address {mac} type veth peer name {peer} netns {path}; ip link set {host} up"
                )
            };
            sh(&format!(
                "ip link set lo up; {}; {}; ip addr add 10.0.0.10/24 dev eth0; ip route add default via 10.0.0.1; \
                 echo 1 >/proc/sys/net/ipv4/ip_forward",
                pair("eth0", "w0", "02:00:00:00:00:01"),
                pair("eth1", "w1", "02:00:00:00:00:02"),
            ));
        });
        let sinks = in_ns(&world, || {
            sh(&format!(
                "echo 0 >/proc/sys/net/ipv4/conf/all/rp_filter; echo 0 >/proc/sys/net/ipv4/conf/default/rp_filter; \
                 ip link set lo up; ip addr add 10.0.0.1/24 dev w0; ip link set w0 up; ip addr add 10.0.1.1/24 dev w1; \
                 ip link set w1 up; ip addr add {PEER}/32 dev lo; ip addr add {INTERNET}/32 dev lo; \
                 ip route add 10.1.0.0/16 via 10.0.1.10"
            ));
            [PEER, INTERNET]
                .map(|address| UdpSocket::bind((address, PORT)).unwrap())
                .into()
        });
        let mut node = Self {
            kind,
            netns,
            _world: world,
            _sinks: sinks,
            pods: Vec::new(),
        };
        node.set_up();
        node.grow(pods);
        node
    }

    fn set_up(&self) {
        in_ns(&self.netns, || {
            if self.kind == Kind::Bare {
                return sh(
                    "ip addr add 10.0.1.10/24 dev eth1; ip route add default via 10.0.1.1 table 2; \
                           ip route add 10.200.0.0/16 via 10.0.1.1 dev eth1",
                );
            }
            let layout = self.kind.layout();
            let mark = (layout == RuleLayout::Shared).then_some(eni_mark());
            let eni = configure_eni(&EniIntent {
                mac: Mac([2, 0, 0, 0, 0, 2]),
                primary: Ipv4Addr::new(10, 0, 1, 10),
                subnet: cidr([10, 0, 1, 0], 24),
                table: ENI_TABLE,
                mtu: 9001,
                mark,
            })
            .unwrap();
            let enis = mark.map(|mark| (mark, eni.ifindex));
            Host::open()
                .unwrap()
                .apply(&intent(layout, enis.into_iter().collect()))
                .unwrap();
        });
    }

    /// Adds pods until there are so many, all of them on the secondary ENI.
    fn grow(&mut self, to: usize) {
        let mut fresh = Vec::new();
        while self.pods.len() < to {
            let address = pod_address(self.pods.len());
            let sandbox = fresh_netns();
            let path = format!("/proc/{}/fd/{}", std::process::id(), sandbox.as_raw_fd());
            let intent = PodIntent {
                host_veth: veth::host_name("eni", "default", &format!("web-{}", self.pods.len()), 0),
                ifname: "eth0".to_owned(),
                netns: path.into(),
                address: address.into(),
                mtu: 9001,
                host_mac: veth::random_mac().unwrap(),
                pod_mac: veth::random_mac().unwrap(),
                // On the bare node no rule leads to the ENI.
                eni_table: if self.kind == Kind::Bare {
                    TableId::MAIN
                } else {
                    ENI_TABLE
                },
                layout: self.kind.layout(),
            };
            in_ns(&self.netns, || {
                wire_pod(&intent).unwrap();
                if self.kind == Kind::Bare {
                    sh(&format!("ip rule del to {address} pref 512"));
                }
            });
            self.pods.push(sandbox);
            fresh.push(address);
        }
        if self.kind == Kind::Shared {
            in_ns(&self.netns, || {
                Host::open().unwrap().table().publish(eni_mark(), &fresh).unwrap();
            });
        }
    }

    /// Of the pod that came last: rules are walked from the first.
    fn in_last_pod<T: Send>(&self, work: impl FnOnce() -> T + Send) -> T {
        in_ns(self.pods.last().unwrap(), work)
    }

    /// Microseconds a packet of a connection that is known.
    fn per_packet(&self, to: Ipv4Addr) -> f64 {
        self.in_last_pod(|| {
            let socket = UdpSocket::bind("0.0.0.0:0").unwrap();
            socket.connect(SocketAddrV4::new(to, PORT)).unwrap();
            let send = |count| (0..count).for_each(|_| assert_eq!(socket.send(&[0; 64]).unwrap(), 64));
            send(PACKETS / 10);
            let begin = Instant::now();
            send(PACKETS);
            begin.elapsed().as_secs_f64() * 1e6 / f64::from(PACKETS)
        })
    }

    /// Connections a second: a socket, its first packet, and its end.
    fn flows_per_second(&self, to: Ipv4Addr) -> f64 {
        self.in_last_pod(|| {
            let begin = Instant::now();
            for _ in 0..FLOWS {
                let socket = UdpSocket::bind("0.0.0.0:0").unwrap();
                socket.send_to(&[0; 64], (to, PORT)).unwrap();
            }
            f64::from(FLOWS) / begin.elapsed().as_secs_f64()
        })
    }
}

#[derive(Debug, Clone, Default)]
struct Costs {
    packet: Vec<f64>,
    packet_out: Vec<f64>,
    flows: Vec<f64>,
}

impl Costs {
    fn measure(&mut self, node: &Node) {
        self.packet.push(node.per_packet(PEER));
        self.flows.push(node.flows_per_second(PEER));
        if node.kind != Kind::Bare {
            self.packet_out.push(node.per_packet(INTERNET));
        }
    }
}

fn print(costs: &[Costs]) {
    let (bare, layouts) = costs.split_first().unwrap();
    println!(
        "\nForwarding: pod on a secondary ENI to outside, 64 bytes of UDP, one core; medians of {ROUNDS} rounds in turn."
    );
    println!(
        "Without any rule, set or connection tracking: {:.2} µs a packet, {:.0} connections a second.\n",
        median(&bare.packet),
        median(&bare.flows)
    );
    println!(
        "| pods | ours µs | × 1 pod | per-pod rules µs | × 1 pod | to the internet: ours, per-pod µs | connections/s: ours, × 1 pod | per-pod, × 1 pod |"
    );
    println!("|---|---|---|---|---|---|---|---|");
    let first = &layouts[..2];
    let ratio = |of: &[f64], to: &[f64]| median(of) / median(to);
    for (pods, pair) in LEVELS.iter().zip(layouts.chunks_exact(2)) {
        let (ours, per_pod) = (&pair[0], &pair[1]);
        println!(
            "| {pods} | {:.2} | {:.2} | {:.2} | {:.2} | {:.2}, {:.2} | {:.0}, {:.2} | {:.0}, {:.2} |",
            median(&ours.packet),
            ratio(&ours.packet, &first[0].packet),
            median(&per_pod.packet),
            ratio(&per_pod.packet, &first[1].packet),
            median(&ours.packet_out),
            median(&per_pod.packet_out),
            median(&ours.flows),
            ratio(&ours.flows, &first[0].flows),
            median(&per_pod.flows),
            ratio(&per_pod.flows, &first[1].flows),
        );
    }
}

fn median(values: &[f64]) -> f64 {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    sorted[sorted.len() / 2]
}

fn intent(layout: RuleLayout, enis: BTreeMap<EniMark, u32>) -> HostIntent {
    HostIntent {
        family: aws_cni_ipam::ip::IpFamily::V4,
        primary_mac: Mac([2, 0, 0, 0, 0, 1]),
        node_ip: Ipv4Addr::new(10, 0, 0, 10),
        eni_mtu: 9001,
        connmark: 0x80,
        veth_prefix: "eni".to_owned(),
        node_port: true,
        snat: Some(SnatPorts::default()),
        vpc_cidrs: BTreeSet::from([cidr([10, 0, 0, 0], 8)]),
        exclude_snat_cidrs: BTreeSet::new(),
        external_service_cidrs: BTreeSet::new(),
        disable_tcp_early_demux: false,
        enis,
        layout,
    }
}

fn eni_mark() -> EniMark {
    EniMark::new(1).unwrap()
}

fn cidr(base: [u8; 4], len: u8) -> Ipv4Cidr {
    Ipv4Cidr::new(base.into(), len).unwrap()
}

fn pod_address(index: usize) -> Ipv4Addr {
    let index = u32::try_from(index).unwrap();
    Ipv4Addr::from_bits(Ipv4Addr::new(10, 1, 0, 10).to_bits() + index)
}

fn fresh_netns() -> OwnedFd {
    std::thread::scope(|scope| {
        let make = || {
            unshare(CloneFlags::CLONE_NEWNET).expect("root, or a user namespace");
            File::open("/proc/thread-self/ns/net").unwrap().into()
        };
        scope.spawn(make).join().unwrap()
    })
}

fn in_ns<T: Send>(netns: &OwnedFd, work: impl FnOnce() -> T + Send) -> T {
    run_in(netns.as_fd(), work).unwrap()
}

fn sh(script: &str) {
    let output = Command::new("sh").args(["-ec", script]).output().unwrap();
    let complaint = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{script}: {complaint}");
}
