//! The router's own configuration and the networks that are not ENIs.

use std::fmt::Write as _;
use std::net::{Ipv4Addr, Ipv6Addr};

use super::tool::ip_batch;
use super::{FabricError, IMDS};
use crate::netns::Netns;
use crate::vpc::cidr::{Ipv4Cidr, Ipv6Cidr};

/// Address ranges of the lab.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Networks {
    /// The VPC's networks; nodes live in the first.
    pub vpc: Vec<Ipv4Cidr>,
    /// A further VPC network with a host in it and no ENI.
    pub second: Ipv4Cidr,
    /// The network reached by peering or a private gateway.
    pub on_premises: Ipv4Cidr,
    /// What stands for the internet.
    pub internet: Ipv4Cidr,
    /// The same in IPv6; `None` where nobody knows of IPv6.
    pub six: Option<Networks6>,
}

/// Address ranges of the lab in IPv6.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Networks6 {
    /// The VPC's network, a /56.
    pub vpc: Ipv6Cidr,
    /// What stands for the internet, a /64.
    pub internet: Ipv6Cidr,
}

impl Default for Networks6 {
    fn default() -> Self {
        // RFC 3849
        let net = |third, len| Ipv6Cidr::new(Ipv6Addr::new(0x2001, 0xdb8, third, 0, 0, 0, 0, 0), len);
        Self {
            vpc: net(1, 56),
            internet: net(0xffff, 64),
        }
    }
}

impl Networks6 {
    /// The network of a subnet, by its number.
    pub fn subnet(self, number: u64) -> Ipv6Cidr {
        Ipv6Cidr::new(self.vpc.nth(u128::from(number) << 64), 64)
    }

    /// The host on the internet.
    pub fn internet_host(self) -> Ipv6Addr {
        self.internet.nth(0x10)
    }
}

impl Default for Networks {
    fn default() -> Self {
        let net = |a, b, c, d, len| Ipv4Cidr::new(Ipv4Addr::new(a, b, c, d), len);
        Self {
            vpc: vec![net(10, 0, 0, 0, 16)],
            second: net(100, 64, 0, 0, 16),
            on_premises: net(192, 168, 0, 0, 16),
            internet: net(198, 51, 100, 0, 24), // TEST-NET-2, RFC 5737
            six: None,
        }
    }
}

impl Networks {
    /// The address the VPC reserves for its own services, base plus two, where the EC2 endpoint listens.
    pub fn service_address(&self) -> Ipv4Addr {
        self.vpc
            .first()
            .map_or(Ipv4Addr::new(10, 0, 0, 2), |cidr| cidr.nth(2))
    }

    /// All networks of the VPC.
    pub fn all_vpc(&self) -> impl Iterator<Item = Ipv4Cidr> {
        self.vpc.iter().copied().chain([self.second])
    }
}

/// A host beyond the router.
#[derive(Debug, Clone)]
pub struct Host {
    /// Its namespace.
    pub netns: Netns,
    /// Its address.
    pub address: Ipv4Addr,
}

/// The hosts that are not in the VPC, or not behind an ENI.
#[derive(Debug, Clone)]
pub struct Outside {
    /// A host on the internet.
    pub internet: Host,
    /// A host on premises.
    pub on_premises: Host,
    /// A host in the VPC's second network.
    pub second_vpc: Host,
}

impl Outside {
    pub(super) fn connect(router: &Netns, networks: &Networks) -> Result<Self, FabricError> {
        let internet = connect(router, "inet0", networks.internet, 1500)?;
        if let Some(six) = networks.six {
            connect6(router, "inet0", &internet, six)?;
        }
        Ok(Self {
            internet,
            on_premises: connect(router, "onprem0", networks.on_premises, 1500)?,
            second_vpc: connect(router, "extra0", networks.second, super::ENI_MTU)?,
        })
    }
}

/// Forwarding, no redirects, no ICMP surprises, the addresses that every VPC has, and nothing for unowned ones.
pub(super) fn prepare_router(router: &Netns, networks: &Networks) -> Result<(), FabricError> {
    match networks.six {
        None => router.sysctl(&[("net/ipv6/conf/default/disable_ipv6", "1")])?,
        // The VPC's router does not ask whether anybody else has its addresses.
        Some(_) => router.sysctl(&[
            ("net/ipv6/conf/all/forwarding", "1"),
            ("net/ipv6/conf/default/accept_dad", "0"),
        ])?,
    }
    router.sysctl(&[
        ("net/ipv4/ip_forward", "1"),
        ("net/ipv4/conf/all/rp_filter", "0"),
        ("net/ipv4/conf/default/rp_filter", "0"),
        ("net/ipv4/conf/all/send_redirects", "0"),
        ("net/ipv4/conf/default/send_redirects", "0"),
    ])?;
    let mut script = String::new();
    // Host scope, or the kernel would pick it as a source address.
    _ = writeln!(script, "addr add {}/32 dev lo scope host", IMDS.ip());
    _ = writeln!(script, "addr add {}/32 dev lo", networks.service_address());
    for cidr in networks.all_vpc() {
        _ = writeln!(script, "route add blackhole {cidr} metric 4096");
    }
    if let Some(six) = networks.six {
        _ = writeln!(script, "route add blackhole {} metric 4096", six.vpc);
    }
    ip_batch(router, &script)?;
    Ok(())
}

fn connect6(router: &Netns, link: &str, host: &Host, six: Networks6) -> Result<(), FabricError> {
    let (gateway, address, len) = (
        six.internet.nth(1),
        six.internet_host(),
        six.internet.prefix_len(),
    );
    ip_batch(router, &format!("addr add {gateway}/{len} dev {link} nodad\n"))?;
    Ok(ip_batch(
        &host.netns,
        &format!("addr add {address}/{len} dev eth0 nodad\nroute add default via {gateway}\n"),
    )?)
}

fn connect(router: &Netns, link: &str, network: Ipv4Cidr, mtu: u32) -> Result<Host, FabricError> {
    let netns = Netns::new()?;
    let (gateway, address, len) = (network.nth(1), network.nth(10), network.prefix_len());
    let path = netns.path();
    ip_batch(
        router,
        &format!(
            "link add {link} mtu {mtu} type veth peer name eth0 netns {} mtu {mtu}\n\
             addr add {gateway}/{len} dev {link}\n\
             link set {link} up\n",
            path.display()
        ),
    )?;
    ip_batch(
        &netns,
        &format!(
            "addr add {address}/{len} dev eth0\n\
             link set eth0 up\n\
             route add default via {gateway}\n"
        ),
    )?;
    Ok(Host { netns, address })
}
