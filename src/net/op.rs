//! Changes to the kernel as values: what is sent, how it reads, how it is undone.

use std::fmt;
use std::net::IpAddr;
use std::os::fd::RawFd;

use serde::Serialize;

use crate::ipam::cidr::Ipv4Cidr;
use crate::ipam::cidr6::Ipv6Cidr;
use crate::ipam::ids::{Mac, TableId};
use crate::ipam::ip::{Cidr, IpFamily};

/// One end of a veth pair at its creation.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct VethEnd {
    /// Its name.
    pub name: String,
    /// Its hardware address; always set, see [`super::veth::random_mac`].
    pub mac: Mac,
}

/// A link, by what is known of it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum LinkRef {
    /// By index.
    Index(u32),
    /// By name, for messages that need no index.
    Name(String),
}

impl fmt::Display for LinkRef {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Index(index) => write!(f, "if{index}"),
            Self::Name(name) => f.write_str(name),
        }
    }
}

/// The table in which the kernel keeps what is its own.
const LOCAL: TableId = TableId(255);

/// A route; protocol boot. Its addresses are of one family by the ways in which it can be made.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Route {
    dst: Cidr,
    via: Option<IpAddr>,
    oif: u32,
    table: TableId,
    prefsrc: Option<IpAddr>,
    /// Type local instead of unicast.
    is_local: bool,
}

impl Route {
    /// `dst dev oif scope link`; a link index of 0 leaves the link open, for deletions.
    pub fn link(dst: impl Into<Cidr>, oif: u32, table: TableId) -> Self {
        Self {
            dst: dst.into(),
            via: None,
            oif,
            table,
            prefsrc: None,
            is_local: false,
        }
    }

    /// `address dev oif scope link`.
    pub fn host(address: impl Into<IpAddr>, oif: u32, table: TableId) -> Self {
        Self::link(Cidr::host(address.into()), oif, table)
    }

    /// `default via gateway dev oif`.
    pub fn default_via(gateway: impl Into<IpAddr>, oif: u32, table: TableId) -> Self {
        let gateway = gateway.into();
        Self {
            via: Some(gateway),
            ..Self::link(Cidr::everywhere(IpFamily::of(gateway)), oif, table)
        }
    }

    /// As the kernel has shown it, all of one family.
    pub(super) fn as_seen(
        dst: Cidr,
        via: Option<IpAddr>,
        oif: u32,
        table: TableId,
        prefsrc: Option<IpAddr>,
    ) -> Self {
        Self {
            dst,
            via,
            oif,
            table,
            prefsrc,
            is_local: false,
        }
    }

    /// `local address dev oif table local`: packets to the address are for this namespace.
    pub fn local(address: impl Into<IpAddr>, oif: u32) -> Self {
        Self {
            is_local: true,
            ..Self::host(address, oif, LOCAL)
        }
    }

    /// Whether it leads to the namespace itself.
    pub fn is_local(&self) -> bool {
        self.is_local
    }

    /// Where it leads.
    pub fn dst(&self) -> Cidr {
        self.dst
    }

    /// Its next hop; without one the destination is on the link.
    pub fn via(&self) -> Option<IpAddr> {
        self.via
    }

    /// Its link's index, or 0.
    pub fn oif(&self) -> u32 {
        self.oif
    }

    /// The table it is in.
    pub fn table(&self) -> TableId {
        self.table
    }

    /// The source address it prefers; only to recognise the kernel's own subnet routes.
    pub fn prefsrc(&self) -> Option<IpAddr> {
        self.prefsrc
    }
}

impl fmt::Display for Route {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.is_local {
            f.write_str("local ")?;
        }
        match self.dst.prefix_len() {
            0 => f.write_str("default")?,
            _ => write!(f, "{}", self.dst)?,
        }
        if let Some(via) = self.via {
            write!(f, " via {via}")?;
        }
        if self.oif != 0 {
            write!(f, " dev if{}", self.oif)?;
        }
        // IPv6 routes have no scope.
        if self.via.is_none() && self.dst.family() == IpFamily::V4 {
            f.write_str(" scope link")?;
        }
        if let Some(source) = self.prefsrc {
            write!(f, " src {source}")?;
        }
        write!(f, " table {}", Table(self.table))
    }
}

/// Where a rule's packets come from and go to; nothing means all.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize)]
pub struct Ends<N> {
    /// Source.
    pub from: Option<N>,
    /// Destination.
    pub to: Option<N>,
}

impl<N> Ends<N> {
    /// From everywhere to everywhere.
    pub const ALL: Self = Self { from: None, to: None };

    fn from(network: N) -> Self {
        Self {
            from: Some(network),
            to: None,
        }
    }

    fn to(network: N) -> Self {
        Self {
            from: None,
            to: Some(network),
        }
    }
}

/// A rule's family, and what it selects by in it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(untagged)]
pub enum Selector {
    /// Packets of IPv4.
    V4(Ends<Ipv4Cidr>),
    /// Packets of IPv6.
    V6(Ends<Ipv6Cidr>),
}

impl Selector {
    /// Every packet of a family.
    pub fn all(family: IpFamily) -> Self {
        match family {
            IpFamily::V4 => Self::V4(Ends::ALL),
            IpFamily::V6 => Self::V6(Ends::ALL),
        }
    }

    /// What comes from a network.
    pub fn from_network(network: Cidr) -> Self {
        match network {
            Cidr::V4(network) => Self::V4(Ends::from(network)),
            Cidr::V6(network) => Self::V6(Ends::from(network)),
        }
    }

    /// What goes to a network.
    pub fn to_network(network: Cidr) -> Self {
        match network {
            Cidr::V4(network) => Self::V4(Ends::to(network)),
            Cidr::V6(network) => Self::V6(Ends::to(network)),
        }
    }

    /// Whose packets it is about.
    pub fn family(self) -> IpFamily {
        match self {
            Self::V4(_) => IpFamily::V4,
            Self::V6(_) => IpFamily::V6,
        }
    }

    /// Where the packets come from; `None` is everywhere.
    pub fn from(self) -> Option<Cidr> {
        match self {
            Self::V4(ends) => ends.from.map(Cidr::V4),
            Self::V6(ends) => ends.from.map(Cidr::V6),
        }
    }

    /// Where the packets go; `None` is everywhere.
    pub fn to(self) -> Option<Cidr> {
        match self {
            Self::V4(ends) => ends.to.map(Cidr::V4),
            Self::V6(ends) => ends.to.map(Cidr::V6),
        }
    }
}

/// A routing rule with action lookup. Sent without a protocol, so that it equals the Go daemon's.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Rule {
    /// Priority.
    pub priority: u32,
    /// Family, source and destination.
    pub selector: Selector,
    /// Mark and mask.
    pub fwmark: Option<(u32, u32)>,
    /// Table to look up; `None` in a deletion means any.
    pub table: Option<TableId>,
}

impl Rule {
    fn of(selector: Selector, priority: u32, table: TableId) -> Self {
        Self {
            priority,
            selector,
            fwmark: None,
            table: Some(table),
        }
    }

    /// `from all lookup table`.
    pub fn all(family: IpFamily, priority: u32, table: TableId) -> Self {
        Self::of(Selector::all(family), priority, table)
    }

    /// `from address lookup table`.
    pub fn from(address: impl Into<IpAddr>, priority: u32, table: TableId) -> Self {
        let host = Cidr::host(address.into());
        Self::of(Selector::from_network(host), priority, table)
    }

    /// `to address lookup table`.
    pub fn to(address: impl Into<IpAddr>, priority: u32, table: TableId) -> Self {
        Self::to_network(Cidr::host(address.into()), priority, table)
    }

    /// `to network lookup table`.
    pub fn to_network(network: impl Into<Cidr>, priority: u32, table: TableId) -> Self {
        Self::of(Selector::to_network(network.into()), priority, table)
    }

    /// `fwmark value/mask lookup table`.
    pub fn marked(family: IpFamily, value: u32, mask: u32, priority: u32, table: TableId) -> Self {
        Self {
            fwmark: Some((value, mask)),
            ..Self::all(family, priority, table)
        }
    }

    /// The same selectors with any table, for deletions.
    #[must_use]
    pub fn any_table(self) -> Self {
        Self { table: None, ..self }
    }
}

impl fmt::Display for Rule {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.selector.from() {
            Some(from) => write!(f, "from {}", Host(from))?,
            None => f.write_str("from all")?,
        }
        if let Some(to) = self.selector.to() {
            write!(f, " to {}", Host(to))?;
        }
        if let Some((mark, mask)) = self.fwmark {
            write!(f, " fwmark {mark:#x}/{mask:#x}")?;
        }
        if let Some(table) = self.table {
            write!(f, " lookup {}", Table(table))?;
        }
        write!(f, " pref {}", self.priority)
    }
}

/// A table by the name iproute2 gives it.
struct Table(TableId);

impl fmt::Display for Table {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0.0 {
            255 => f.write_str("local"),
            254 => f.write_str("main"),
            253 => f.write_str("default"),
            table => write!(f, "{table}"),
        }
    }
}

/// A network, or a single address without its length, as `ip rule` prints it.
struct Host(Cidr);

impl fmt::Display for Host {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0.single() {
            Some(address) => write!(f, "{address}"),
            None => write!(f, "{}", self.0),
        }
    }
}

/// One change to one network namespace.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum NetOp {
    /// A veth pair: `here` in the socket's namespace, `there` in the one behind the descriptor, both down.
    AddVeth {
        /// The end in this namespace.
        here: VethEnd,
        /// The end in the other.
        there: VethEnd,
        /// The other namespace.
        netns: RawFd,
        /// MTU of both ends.
        mtu: u32,
    },
    /// Deletes a link, and with it its peer, addresses and routes.
    DelLink(LinkRef),
    /// Deletes every link of a group in one go.
    DelLinkGroup(u32),
    /// Sets a link up.
    LinkUp(LinkRef),
    /// Sets a link down.
    LinkDown(LinkRef),
    /// Sets a link's MTU.
    LinkMtu(LinkRef, u32),
    /// Puts a link into a group.
    LinkGroup(LinkRef, u32),
    /// Adds an address: of IPv4 with a broadcast address for prefixes up to /30, of IPv6 to be used at once, without
    /// duplicate address detection (RFC 4862 §5.4), for those added here have one owner by the pool.
    AddAddress {
        /// The address.
        address: IpAddr,
        /// Its prefix length.
        len: u8,
        /// The link.
        link: u32,
    },
    /// Removes an address.
    DelAddress {
        /// The address.
        address: IpAddr,
        /// Its prefix length.
        len: u8,
        /// The link.
        link: u32,
    },
    /// Adds a route; EEXIST when its destination has one.
    AddRoute(Route),
    /// Adds a route or replaces the one of its destination.
    ReplaceRoute(Route),
    /// Removes a route.
    DelRoute(Route),
    /// Adds a rule; EEXIST when there is an equal one.
    AddRule(Rule),
    /// Removes the first rule that has these selectors.
    DelRule(Rule),
    /// Adds a permanent neighbour.
    AddNeighbour {
        /// Its address.
        address: IpAddr,
        /// Its hardware address.
        mac: Mac,
        /// The link.
        link: u32,
    },
}

impl NetOp {
    /// The operation that takes this one back, where there is one; what is replaced or deleted is not known any more.
    pub fn inverse(&self) -> Option<Self> {
        match self {
            Self::AddVeth { here, .. } => Some(Self::DelLink(LinkRef::Name(here.name.clone()))),
            Self::LinkUp(link) => Some(Self::LinkDown(link.clone())),
            Self::LinkDown(link) => Some(Self::LinkUp(link.clone())),
            Self::AddAddress { address, len, link } => Some(Self::DelAddress {
                address: *address,
                len: *len,
                link: *link,
            }),
            Self::DelAddress { address, len, link } => Some(Self::AddAddress {
                address: *address,
                len: *len,
                link: *link,
            }),
            Self::AddRoute(route) | Self::ReplaceRoute(route) => Some(Self::DelRoute(route.clone())),
            Self::AddRule(rule) => Some(Self::DelRule(rule.clone())),
            Self::DelRoute(route) => Some(Self::AddRoute(route.clone())),
            // Without a table it does not say which rule went.
            Self::DelRule(rule) => rule.table.map(|_| Self::AddRule(rule.clone())),
            Self::DelLink(_)
            | Self::DelLinkGroup(_)
            | Self::LinkMtu(..)
            | Self::LinkGroup(..)
            | Self::AddNeighbour { .. } => None,
        }
    }
}

impl fmt::Display for NetOp {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::AddVeth { here, there, mtu, .. } => write!(
                f,
                "link add {} address {} mtu {mtu} type veth peer name {} address {} netns (pod)",
                here.name, here.mac, there.name, there.mac
            ),
            Self::DelLink(link) => write!(f, "link del {link}"),
            Self::DelLinkGroup(group) => write!(f, "link del group {group}"),
            Self::LinkUp(link) => write!(f, "link set {link} up"),
            Self::LinkDown(link) => write!(f, "link set {link} down"),
            Self::LinkMtu(link, mtu) => write!(f, "link set {link} mtu {mtu}"),
            Self::LinkGroup(link, group) => write!(f, "link set {link} group {group}"),
            Self::AddAddress { address, len, link } => {
                write!(f, "addr add {address}/{len} dev if{link}")?;
                if address.is_ipv6() {
                    f.write_str(" nodad")?;
                }
                Ok(())
            }
            Self::DelAddress { address, len, link } => write!(f, "addr del {address}/{len} dev if{link}"),
            Self::AddRoute(route) => write!(f, "route add {route}"),
            Self::ReplaceRoute(route) => write!(f, "route replace {route}"),
            Self::DelRoute(route) => write!(f, "route del {route}"),
            Self::AddRule(rule) => write!(f, "rule add {rule}"),
            Self::DelRule(rule) => write!(f, "rule del {rule}"),
            Self::AddNeighbour { address, mac, link } => {
                write!(f, "neigh add {address} lladdr {mac} dev if{link} nud permanent")
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::net::Ipv4Addr;

    use super::*;

    const POD: Ipv4Addr = Ipv4Addr::new(10, 0, 1, 5);

    /// Conformance: dataplane case 59, the rules as `ip rule` prints them.
    #[test]
    fn operations_read_like_iproute2() {
        let texts = [
            NetOp::AddRule(Rule::to(POD, 512, TableId::MAIN)).to_string(),
            NetOp::AddRule(Rule::from(POD, 1536, TableId(3))).to_string(),
            NetOp::AddRule(Rule::marked(IpFamily::V4, 0x80, 0x80, 1024, TableId::MAIN)).to_string(),
            NetOp::DelRule(Rule::from(POD, 1536, TableId(3)).any_table()).to_string(),
            NetOp::ReplaceRoute(Route::host(POD, 7, TableId(512))).to_string(),
            NetOp::AddRoute(Route::default_via(
                Ipv4Addr::new(169, 254, 1, 1),
                2,
                TableId::MAIN,
            ))
            .to_string(),
        ];
        assert_eq!(
            texts,
            [
                "rule add from all to 10.0.1.5 lookup main pref 512",
                "rule add from 10.0.1.5 lookup 3 pref 1536",
                "rule add from all fwmark 0x80/0x80 lookup main pref 1024",
                "rule del from 10.0.1.5 pref 1536",
                "route replace 10.0.1.5/32 dev if7 scope link table 512",
                "route add default via 169.254.1.1 dev if2 table main",
            ]
        );
    }

    /// Conformance: dataplane cases 77 and 78, as iproute2 writes them.
    #[test]
    fn dataplane_78_operations_of_ipv6_read_the_same() {
        let pod: IpAddr = "2001:db8::5".parse().unwrap();
        let gateway: IpAddr = "fe80::1".parse().unwrap();
        let texts = [
            NetOp::AddRule(Rule::all(IpFamily::V6, 512, TableId(512))).to_string(),
            NetOp::AddRule(Rule::to(pod, 512, TableId::MAIN)).to_string(),
            NetOp::AddRoute(Route::host(pod, 7, TableId(512))).to_string(),
            NetOp::AddRoute(Route::default_via(gateway, 2, TableId::MAIN)).to_string(),
            NetOp::AddAddress {
                address: pod,
                len: 128,
                link: 2,
            }
            .to_string(),
            NetOp::AddRoute(Route::local(pod, 2)).to_string(),
        ];
        assert_eq!(
            texts,
            [
                "rule add from all lookup 512 pref 512",
                "rule add from all to 2001:db8::5 lookup main pref 512",
                "route add 2001:db8::5/128 dev if7 table 512",
                "route add default via fe80::1 dev if2 table main",
                "addr add 2001:db8::5/128 dev if2 nodad",
                "route add local 2001:db8::5/128 dev if2 table local",
            ]
        );
    }

    #[test]
    fn inverses_come_in_pairs() {
        let route = Route::host(POD, 7, TableId(512));
        let add = NetOp::AddRoute(route.clone());
        assert_eq!(add.inverse(), Some(NetOp::DelRoute(route)));
        assert_eq!(add.inverse().and_then(|op| op.inverse()), Some(add));
        let rule = Rule::from(POD, 1536, TableId(3));
        assert_eq!(NetOp::DelRule(rule.any_table()).inverse(), None);
    }
}
