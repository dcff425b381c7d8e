//! Changes to the kernel as values: what is sent, how it reads, how it is undone.

use std::fmt;
use std::net::Ipv4Addr;
use std::os::fd::RawFd;

use crate::ipam::cidr::Ipv4Cidr;
use crate::ipam::ids::{Mac, TableId};

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

/// A route of IPv4; protocol boot, type unicast.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Route {
    /// Destination.
    pub dst: Ipv4Cidr,
    /// Next hop; without one the destination is on the link (scope link).
    pub via: Option<Ipv4Addr>,
    /// Link index; 0 leaves it open, for deletions.
    pub oif: u32,
    /// Table.
    pub table: TableId,
    /// Preferred source; set only to recognise the kernel's own subnet routes.
    pub prefsrc: Option<Ipv4Addr>,
}

impl Route {
    /// `dst dev oif scope link`.
    pub fn link(dst: Ipv4Cidr, oif: u32, table: TableId) -> Self {
        Self {
            dst,
            via: None,
            oif,
            table,
            prefsrc: None,
        }
    }

    /// `default via gateway dev oif`.
    pub fn default_via(gateway: Ipv4Addr, oif: u32, table: TableId) -> Self {
        Self {
            dst: everywhere(),
            via: Some(gateway),
            oif,
            table,
            prefsrc: None,
        }
    }
}

impl fmt::Display for Route {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
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
        if self.via.is_none() {
            f.write_str(" scope link")?;
        }
        if let Some(source) = self.prefsrc {
            write!(f, " src {source}")?;
        }
        write!(f, " table {}", Table(self.table))
    }
}

/// `0.0.0.0/0`.
fn everywhere() -> Ipv4Cidr {
    Ipv4Cidr::new(Ipv4Addr::UNSPECIFIED, 0).unwrap_or(Ipv4Cidr::host(Ipv4Addr::UNSPECIFIED))
}

/// A routing rule of IPv4 with action lookup. Sent without a protocol, so that it equals the Go daemon's.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Rule {
    /// Priority.
    pub priority: u32,
    /// Source selector.
    pub from: Option<Ipv4Cidr>,
    /// Destination selector.
    pub to: Option<Ipv4Cidr>,
    /// Mark and mask.
    pub fwmark: Option<(u32, u32)>,
    /// Table to look up; `None` in a deletion means any.
    pub table: Option<TableId>,
}

impl Rule {
    /// `from all lookup table`.
    pub fn all(priority: u32, table: TableId) -> Self {
        Self {
            priority,
            from: None,
            to: None,
            fwmark: None,
            table: Some(table),
        }
    }

    /// `from address lookup table`.
    pub fn from(address: Ipv4Addr, priority: u32, table: TableId) -> Self {
        Self {
            from: Some(Ipv4Cidr::host(address)),
            ..Self::all(priority, table)
        }
    }

    /// `to address lookup table`.
    pub fn to(address: Ipv4Addr, priority: u32, table: TableId) -> Self {
        Self {
            to: Some(Ipv4Cidr::host(address)),
            ..Self::all(priority, table)
        }
    }

    /// `fwmark value/mask lookup table`.
    pub fn marked(value: u32, mask: u32, priority: u32, table: TableId) -> Self {
        Self {
            fwmark: Some((value, mask)),
            ..Self::all(priority, table)
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
        match self.from {
            Some(from) => write!(f, "from {}", Host(from))?,
            None => f.write_str("from all")?,
        }
        if let Some(to) = self.to {
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

/// A network without `/32`, as `ip rule` prints it.
struct Host(Ipv4Cidr);

impl fmt::Display for Host {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0.prefix_len() {
            32 => write!(f, "{}", self.0.base()),
            _ => write!(f, "{}", self.0),
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
    /// Adds an address; with a broadcast address for prefixes up to /30.
    AddAddress {
        /// The address.
        address: Ipv4Addr,
        /// Its prefix length.
        len: u8,
        /// The link.
        link: u32,
    },
    /// Removes an address.
    DelAddress {
        /// The address.
        address: Ipv4Addr,
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
        address: Ipv4Addr,
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
            Self::AddAddress { address, len, link } => write!(f, "addr add {address}/{len} dev if{link}"),
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
    use super::*;

    const POD: Ipv4Addr = Ipv4Addr::new(10, 0, 1, 5);

    /// Conformance: dataplane case 59, the rules as `ip rule` prints them.
    #[test]
    fn operations_read_like_iproute2() {
        let texts = [
            NetOp::AddRule(Rule::to(POD, 512, TableId::MAIN)).to_string(),
            NetOp::AddRule(Rule::from(POD, 1536, TableId(3))).to_string(),
            NetOp::AddRule(Rule::marked(0x80, 0x80, 1024, TableId::MAIN)).to_string(),
            NetOp::DelRule(Rule::from(POD, 1536, TableId(3)).any_table()).to_string(),
            NetOp::ReplaceRoute(Route::link(Ipv4Cidr::host(POD), 7, TableId(512))).to_string(),
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

    #[test]
    fn inverses_come_in_pairs() {
        let route = Route::link(Ipv4Cidr::host(POD), 7, TableId(512));
        let add = NetOp::AddRoute(route.clone());
        assert_eq!(add.inverse(), Some(NetOp::DelRoute(route)));
        assert_eq!(add.inverse().and_then(|op| op.inverse()), Some(add));
        let rule = Rule::from(POD, 1536, TableId(3));
        assert_eq!(NetOp::DelRule(rule.any_table()).inverse(), None);
    }
}
