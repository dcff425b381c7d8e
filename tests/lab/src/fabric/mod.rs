//! The VPC's wires: a router with one link for each attached ENI, and the networks beyond it.
//!
//! ```text
//!   node a            router                      internet    198.51.100.10
//!   eth0 ──────────── eni0a…  ── inet0 ─────────── eth0
//!   eth1 ──────────── eni0a…  ── onprem0 ───────── eth0        on-premises 192.168.0.10
//!   node b                    ── extra0 ────────── eth0        second VPC network 100.64.0.10
//!   eth0 ──────────── eni0a…  lo: gateways, 10.0.0.2 (EC2), 169.254.169.254 (IMDS)
//! ```
//!
//! Like a real VPC the router delivers an address only to the ENI that owns it, without asking by ARP, and drops
//! what an ENI may not send ([`guard`]). With IPv6 ([`Networks6`]) it is `fe80:ec2::1` on each ENI's link, and delivers
//! addresses and delegated prefixes alike.

mod eni;
pub mod guard;
mod networks;
mod tool;

use std::collections::BTreeMap;
use std::net::{Ipv4Addr, SocketAddrV4, TcpListener};
use std::sync::Mutex;

pub use eni::{LinkName, NodeLink};
pub use networks::{Networks, Networks6, Outside};
pub use tool::ToolError;
pub(crate) use tool::{ip_batch, ip_json, nft, nft_json, spawn_with_input};

use crate::netns::{Netns, NetnsError};
use crate::vpc::ids::EniId;

/// Where IMDS answers.
pub const IMDS: SocketAddrV4 = SocketAddrV4::new(Ipv4Addr::new(169, 254, 169, 254), 80);

/// The MTU of an ENI: jumbo frames inside the VPC.
pub const ENI_MTU: u32 = 9001;

/// Why the fabric can't do what it was told.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum FabricError {
    /// A kernel object could not be made, changed or read.
    #[error(transparent)]
    Tool(#[from] ToolError),
    /// A namespace could not be made or entered.
    #[error(transparent)]
    Netns(#[from] NetnsError),
    /// A listener could not be bound in the router's namespace.
    #[error("listening on {address} in the router's namespace: {error}")]
    Listen {
        /// Where.
        address: SocketAddrV4,
        /// Why not.
        error: std::io::Error,
    },
    /// The ENI has no link.
    #[error("{0} has no link in the fabric")]
    NotAttached(EniId),
}

/// The router and the networks around it.
#[derive(Debug)]
pub struct Fabric {
    router: Netns,
    networks: Networks,
    outside: Outside,
    links: Mutex<BTreeMap<EniId, eni::RouterLink>>,
}

impl Fabric {
    /// Builds the router, the internet, the on-premises network and the second VPC network.
    pub fn new(networks: Networks) -> Result<Self, FabricError> {
        let router = Netns::new()?;
        networks::prepare_router(&router, &networks)?;
        guard::install(&router, networks.six.is_some())?;
        let outside = Outside::connect(&router, &networks)?;
        Ok(Self {
            router,
            networks,
            outside,
            links: Mutex::default(),
        })
    }

    /// The router's namespace.
    pub fn router(&self) -> &Netns {
        &self.router
    }

    /// The networks it was built with.
    pub fn networks(&self) -> &Networks {
        &self.networks
    }

    /// The internet, the on-premises network and the host in the second VPC network.
    pub fn outside(&self) -> &Outside {
        &self.outside
    }

    /// A listener for IMDS at 169.254.169.254:80; who asks is told apart by the peer's address.
    pub fn listen_imds(&self) -> Result<TcpListener, FabricError> {
        self.listen(IMDS)
    }

    /// A listener for the EC2 endpoint at an address inside the VPC.
    pub fn listen_ec2(&self) -> Result<TcpListener, FabricError> {
        self.listen(self.ec2_endpoint())
    }

    /// Where the EC2 endpoint is for nodes and pods.
    pub fn ec2_endpoint(&self) -> SocketAddrV4 {
        SocketAddrV4::new(self.networks.service_address(), 80)
    }

    fn listen(&self, address: SocketAddrV4) -> Result<TcpListener, FabricError> {
        self.router
            .run(|| TcpListener::bind(address))?
            .map_err(|error| FabricError::Listen { address, error })
    }

    fn links(&self) -> std::sync::MutexGuard<'_, BTreeMap<EniId, eni::RouterLink>> {
        self.links
            .lock()
            .unwrap_or_else(std::sync::PoisonError::into_inner)
    }
}
