//! Answers of the kernel as facts. What is neither IPv4 nor IPv6 is left out; what is torn is an error, never a guess.

use std::net::IpAddr;

use nix::libc::{
    IFA_ADDRESS, IFA_LOCAL, IFF_UP, IFLA_ADDRESS, IFLA_GROUP, IFLA_IFNAME, IFLA_INFO_KIND, IFLA_LINK,
    IFLA_LINKINFO, IFLA_MTU, IFLA_QDISC, NDA_DST, NDA_LLADDR, NUD_PERMANENT, RTA_DST, RTA_GATEWAY, RTA_OIF,
    RTA_PREFSRC, RTA_TABLE, RTM_DELLINK, RTM_NEWLINK,
};

use serde::Serialize;

use super::super::netlink::Reply;
use super::super::op::{Ends, Route, Rule, Selector};
use super::super::wire::{Attrs, Malformed, array};
use super::encode::{
    FR_ACT_TO_TBL, FRA_DST, FRA_FWMARK, FRA_FWMASK, FRA_IIFNAME, FRA_PRIORITY, FRA_SRC, FRA_TABLE, INET,
    INET6,
};
use crate::ipam::ids::{Mac, TableId};
use crate::ipam::ip::{Cidr, IpFamily};

const IFINFO_LEN: usize = 16;
const RTM_LEN: usize = 12;
const IFADDR_LEN: usize = 8;
const UP: u32 = IFF_UP as u32;
/// `RTN_UNICAST`
const UNICAST: u8 = 1;
/// `RTN_LOCAL`
const LOCAL: u8 = 2;

/// A link, as the kernel shows it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct LinkFact {
    /// Its index.
    pub index: u32,
    /// Its name.
    pub name: String,
    /// Its hardware address, if it has one of six bytes.
    pub mac: Option<Mac>,
    /// Its MTU.
    pub mtu: u32,
    /// Its group; 0 unless somebody set one.
    pub group: u32,
    /// Whether it is administratively up.
    pub up: bool,
    /// Whether what is sent over it leaves: until the kernel has noticed that it has carrier, that is dropped.
    pub sends: bool,
    /// The index of what it is stacked on; for a veth its peer, in the peer's namespace.
    pub peer: Option<u32>,
    /// What made it, such as `veth`; none for hardware.
    pub kind: Option<String>,
}

/// A route, as the kernel shows it.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize)]
pub struct RouteFact {
    /// Destination.
    pub dst: Cidr,
    /// Next hop.
    pub via: Option<IpAddr>,
    /// Link index, 0 when the route has none or several.
    pub oif: u32,
    /// Table.
    pub table: TableId,
    /// Preferred source.
    pub prefsrc: Option<IpAddr>,
    /// Scope: 0 universe, 253 link, 254 host; always 0 with IPv6.
    pub scope: u8,
    /// Who made it: 2 kernel, 3 boot, 4 static.
    pub protocol: u8,
    /// Type: 1 unicast, 2 local, 3 broadcast.
    pub kind: u8,
}

impl RouteFact {
    /// The address that it leads to, if that is a single one of another host's, directly over a link.
    pub fn host_on_link(&self) -> Option<IpAddr> {
        let is_direct = self.via.is_none() && self.oif != 0 && self.kind == UNICAST;
        self.dst.single().filter(|_| is_direct)
    }

    /// The same as something to delete.
    pub fn route(&self) -> Route {
        Route::as_seen(self.dst, self.via, self.oif, self.table, self.prefsrc)
    }

    /// Whether what it leads to is the namespace itself.
    pub fn is_local(&self) -> bool {
        self.kind == LOCAL
    }
}

/// A rule, as the kernel shows it.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize)]
pub struct RuleFact {
    /// Priority.
    pub priority: u32,
    /// Family, source and destination.
    #[serde(flatten)]
    pub selector: Selector,
    /// Mark and mask.
    pub fwmark: Option<(u32, u32)>,
    /// Name of the link the packet came in by.
    pub iif: Option<String>,
    /// The table it looks up; `None` when its action is another.
    pub table: Option<TableId>,
}

impl RuleFact {
    /// The same as something to delete or add; without the link's name, which no rule of ours has.
    pub fn rule(&self) -> Rule {
        Rule {
            priority: self.priority,
            selector: self.selector,
            fwmark: self.fwmark,
            table: self.table,
        }
    }

    /// The single address whose packets it is about, if it selects by one.
    pub fn from_host(&self) -> Option<IpAddr> {
        self.selector.from().and_then(Cidr::single)
    }

    /// The single address it leads to, if it selects by one.
    pub fn to_host(&self) -> Option<IpAddr> {
        self.selector.to().and_then(Cidr::single)
    }
}

/// An address of a link.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize)]
pub struct AddressFact {
    /// The address.
    pub address: IpAddr,
    /// Its prefix length.
    pub len: u8,
    /// The link it is on.
    pub link: u32,
}

/// A neighbour.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct NeighbourFact {
    /// Its address.
    pub address: IpAddr,
    /// Its hardware address, when known.
    pub mac: Option<Mac>,
    /// Whether the entry is there to stay.
    pub permanent: bool,
}

fn short(expected: &'static str, message: &[u8]) -> Malformed {
    Malformed {
        expected,
        offset: message.len(),
    }
}

/// A message about one family, and its addresses, which are all of it.
struct Message<'a> {
    family: IpFamily,
    attrs: Attrs<'a>,
}

impl<'a> Message<'a> {
    /// `None` for another family than the two.
    fn read(message: &'a [u8], header: usize) -> Result<Option<Self>, Malformed> {
        let attrs = Attrs::after(message, header)?;
        let family = match message.first() {
            Some(&INET) => IpFamily::V4,
            Some(&INET6) => IpFamily::V6,
            _ => return Ok(None),
        };
        Ok(Some(Self { family, attrs }))
    }

    fn number(&self, kind: u16) -> Option<u32> {
        self.attrs.find(kind).and_then(|attr| attr.u32())
    }

    fn address(&self, kind: u16) -> Result<Option<IpAddr>, Malformed> {
        let Some(attr) = self.attrs.find(kind) else {
            return Ok(None);
        };
        let address = match self.family {
            IpFamily::V4 => attr.ipv4().map(IpAddr::V4),
            IpFamily::V6 => attr.ipv6().map(IpAddr::V6),
        };
        address
            .map(Some)
            .ok_or(short("an address of the message's family", attr.payload))
    }

    /// The network of this attribute; `None` without the attribute, which means everywhere.
    fn network(&self, kind: u16, len: u8) -> Result<Option<Cidr>, Malformed> {
        let network = |base| Cidr::new(base, len).ok_or(short("a prefix length that fits", &[]));
        self.address(kind)?.map(network).transpose()
    }
}

fn mac(payload: &[u8]) -> Option<Mac> {
    payload.try_into().ok().map(Mac)
}

pub(super) fn link(message: &[u8]) -> Result<Option<LinkFact>, Malformed> {
    let attrs = Attrs::after(message, IFINFO_LEN)?;
    let word = |offset| {
        array(message, offset)
            .map(u32::from_ne_bytes)
            .ok_or(short("ifinfomsg", message))
    };
    let number = |kind| attrs.find(kind).and_then(|attr| attr.u32());
    let name = attrs.find(IFLA_IFNAME).and_then(|attr| attr.str());
    let kind = match attrs.find(IFLA_LINKINFO) {
        Some(info) => info.nested()?.find(IFLA_INFO_KIND).and_then(|kind| kind.str()),
        None => None,
    };
    Ok(Some(LinkFact {
        index: word(4)?,
        name: name.ok_or(short("a link name", message))?.to_owned(),
        mac: attrs.find(IFLA_ADDRESS).and_then(|attr| mac(attr.payload)),
        mtu: number(IFLA_MTU).unwrap_or(0),
        group: number(IFLA_GROUP).unwrap_or(0),
        up: word(8)? & UP != 0,
        sends: attrs.find(IFLA_QDISC).and_then(|attr| attr.str()) != Some("noop"),
        peer: number(IFLA_LINK),
        kind: kind.map(str::to_owned),
    }))
}

/// A link notification: whether the link is there, and what it is. `None` for notifications of something else, such
/// as a bridge port (`AF_BRIDGE`) whose `RTM_DELLINK` does not mean that the link is gone.
pub(crate) fn link_event(reply: &Reply) -> Result<Option<(bool, LinkFact)>, Malformed> {
    if reply.payload.first() != Some(&0) {
        return Ok(None);
    }
    match reply.kind {
        RTM_NEWLINK => Ok(link(&reply.payload)?.map(|link| (true, link))),
        RTM_DELLINK => Ok(link(&reply.payload)?.map(|link| (false, link))),
        _ => Ok(None),
    }
}

/// A route notification; `None` for other families.
pub(crate) fn route_news(reply: &Reply) -> Result<Option<RouteFact>, Malformed> {
    route(&reply.payload)
}

/// A rule notification; `None` for other families.
pub(crate) fn rule_news(reply: &Reply) -> Result<Option<RuleFact>, Malformed> {
    rule(&reply.payload)
}

/// An address notification; `None` for other families.
pub(crate) fn address_news(reply: &Reply) -> Result<Option<AddressFact>, Malformed> {
    address(&reply.payload)
}

pub(super) fn route(message: &[u8]) -> Result<Option<RouteFact>, Malformed> {
    let Some(read) = Message::read(message, RTM_LEN)? else {
        return Ok(None);
    };
    let Some([_, dst_len, _, _, table, protocol, scope, kind]) = array(message, 0) else {
        return Err(short("rtmsg", message));
    };
    let everywhere = Cidr::everywhere(read.family);
    let dst = match read.network(RTA_DST, dst_len)? {
        Some(dst) => dst,
        None => Cidr::new(everywhere.base(), dst_len).ok_or(short("a prefix length that fits", message))?,
    };
    Ok(Some(RouteFact {
        dst,
        via: read.address(RTA_GATEWAY)?,
        oif: read.number(RTA_OIF).unwrap_or(0),
        table: TableId(read.number(RTA_TABLE).unwrap_or(u32::from(table))),
        prefsrc: read.address(RTA_PREFSRC)?,
        scope,
        protocol,
        kind,
    }))
}

pub(super) fn rule(message: &[u8]) -> Result<Option<RuleFact>, Malformed> {
    let Some(read) = Message::read(message, RTM_LEN)? else {
        return Ok(None);
    };
    let Some([_, dst_len, src_len, _, table, _, _, action]) = array(message, 0) else {
        return Err(short("fib_rule_hdr", message));
    };
    let table = TableId(read.number(FRA_TABLE).unwrap_or(u32::from(table)));
    let mark = read.number(FRA_FWMARK);
    let iif = read.attrs.find(FRA_IIFNAME).and_then(|attr| attr.str());
    Ok(Some(RuleFact {
        // The kernel leaves the attribute out for priority 0.
        priority: read.number(FRA_PRIORITY).unwrap_or(0),
        selector: selector(
            read.family,
            read.network(FRA_SRC, src_len)?,
            read.network(FRA_DST, dst_len)?,
        ),
        fwmark: mark.map(|mark| (mark, read.number(FRA_FWMASK).unwrap_or(u32::MAX))),
        iif: iif.map(str::to_owned),
        table: (action == FR_ACT_TO_TBL).then_some(table),
    }))
}

/// Both networks are of the message's family, or [`Message::address`] had refused them.
fn selector(family: IpFamily, from: Option<Cidr>, to: Option<Cidr>) -> Selector {
    let v4 = |network| match network {
        Some(Cidr::V4(network)) => Some(network),
        _ => None,
    };
    let v6 = |network| match network {
        Some(Cidr::V6(network)) => Some(network),
        _ => None,
    };
    match family {
        IpFamily::V4 => Selector::V4(Ends {
            from: v4(from),
            to: v4(to),
        }),
        IpFamily::V6 => Selector::V6(Ends {
            from: v6(from),
            to: v6(to),
        }),
    }
}

pub(super) fn address(message: &[u8]) -> Result<Option<AddressFact>, Malformed> {
    let Some(read) = Message::read(message, IFADDR_LEN)? else {
        return Ok(None);
    };
    let Some([_, len, _, _]) = array(message, 0) else {
        return Err(short("ifaddrmsg", message));
    };
    // Of IPv6 the kernel names the local address only where there is a peer's, too.
    let address = match read.address(IFA_LOCAL)? {
        None => read.address(IFA_ADDRESS)?,
        local => local,
    };
    Ok(Some(AddressFact {
        address: address.ok_or(short("an address", message))?,
        len,
        link: array(message, 4)
            .map(u32::from_ne_bytes)
            .ok_or(short("ifaddrmsg", message))?,
    }))
}

pub(super) fn neighbour(message: &[u8]) -> Result<Option<NeighbourFact>, Malformed> {
    let Some(read) = Message::read(message, RTM_LEN)? else {
        return Ok(None);
    };
    let state = array(message, 8)
        .map(u16::from_ne_bytes)
        .ok_or(short("ndmsg", message))?;
    Ok(Some(NeighbourFact {
        address: read.address(NDA_DST)?.ok_or(short("an address", message))?,
        mac: read.attrs.find(NDA_LLADDR).and_then(|attr| mac(attr.payload)),
        permanent: state & NUD_PERMANENT != 0,
    }))
}
