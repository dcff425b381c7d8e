//! Answers of the kernel as facts. What is not IPv4 is left out; what is torn is an error, never a guess.

use std::net::Ipv4Addr;

use nix::libc::{
    IFA_LOCAL, IFF_UP, IFLA_ADDRESS, IFLA_GROUP, IFLA_IFNAME, IFLA_INFO_KIND, IFLA_LINK, IFLA_LINKINFO,
    IFLA_MTU, NDA_DST, NDA_LLADDR, NUD_PERMANENT, RTA_DST, RTA_GATEWAY, RTA_OIF, RTA_PREFSRC, RTA_TABLE,
    RTM_DELLINK, RTM_NEWLINK,
};

use serde::Serialize;

use super::super::netlink::Reply;
use super::super::wire::{Attrs, Malformed, array};
use super::encode::{
    FR_ACT_TO_TBL, FRA_DST, FRA_FWMARK, FRA_FWMASK, FRA_IIFNAME, FRA_PRIORITY, FRA_SRC, FRA_TABLE, INET,
};
use crate::ipam::cidr::Ipv4Cidr;
use crate::ipam::ids::{Mac, TableId};

const IFINFO_LEN: usize = 16;
const RTM_LEN: usize = 12;
const IFADDR_LEN: usize = 8;
const UP: u32 = IFF_UP as u32;

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
    /// The index of what it is stacked on; for a veth its peer, in the peer's namespace.
    pub peer: Option<u32>,
    /// What made it, such as `veth`; none for hardware.
    pub kind: Option<String>,
}

/// A route, as the kernel shows it.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize)]
pub struct RouteFact {
    /// Destination.
    pub dst: Ipv4Cidr,
    /// Next hop.
    pub via: Option<Ipv4Addr>,
    /// Link index, 0 when the route has none or several.
    pub oif: u32,
    /// Table.
    pub table: TableId,
    /// Preferred source.
    pub prefsrc: Option<Ipv4Addr>,
    /// Scope: 0 universe, 253 link, 254 host.
    pub scope: u8,
    /// Who made it: 2 kernel, 3 boot, 4 static.
    pub protocol: u8,
    /// Type: 1 unicast, 2 local, 3 broadcast.
    pub kind: u8,
}

/// A rule, as the kernel shows it.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize)]
pub struct RuleFact {
    /// Priority.
    pub priority: u32,
    /// Source selector.
    pub from: Option<Ipv4Cidr>,
    /// Destination selector.
    pub to: Option<Ipv4Cidr>,
    /// Mark and mask.
    pub fwmark: Option<(u32, u32)>,
    /// Name of the link the packet came in by.
    pub iif: Option<String>,
    /// The table it looks up; `None` when its action is another.
    pub table: Option<TableId>,
}

/// An address of a link.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize)]
pub struct AddressFact {
    /// The address.
    pub address: Ipv4Addr,
    /// Its prefix length.
    pub len: u8,
    /// The link it is on.
    pub link: u32,
}

/// A neighbour.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct NeighbourFact {
    /// Its address.
    pub address: Ipv4Addr,
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
    let attrs = Attrs::after(message, RTM_LEN)?;
    let Some([family, dst_len, _, _, table, protocol, scope, kind]) = array(message, 0) else {
        return Err(short("rtmsg", message));
    };
    if family != INET {
        return Ok(None);
    }
    let address = |kind| attrs.find(kind).and_then(|attr| attr.ipv4());
    let number = |kind| attrs.find(kind).and_then(|attr| attr.u32());
    let base = address(RTA_DST).unwrap_or(Ipv4Addr::UNSPECIFIED);
    Ok(Some(RouteFact {
        dst: Ipv4Cidr::new(base, dst_len).ok_or(short("a prefix length up to 32", message))?,
        via: address(RTA_GATEWAY),
        oif: number(RTA_OIF).unwrap_or(0),
        table: TableId(number(RTA_TABLE).unwrap_or(u32::from(table))),
        prefsrc: address(RTA_PREFSRC),
        scope,
        protocol,
        kind,
    }))
}

pub(super) fn rule(message: &[u8]) -> Result<Option<RuleFact>, Malformed> {
    let attrs = Attrs::after(message, RTM_LEN)?;
    let Some([family, dst_len, src_len, _, table, _, _, action]) = array(message, 0) else {
        return Err(short("fib_rule_hdr", message));
    };
    if family != INET {
        return Ok(None);
    }
    let number = |kind| attrs.find(kind).and_then(|attr| attr.u32());
    let selector = |kind, len| match attrs.find(kind).and_then(|attr| attr.ipv4()) {
        Some(base) => Ipv4Cidr::new(base, len)
            .map(Some)
            .ok_or(short("a prefix length up to 32", message)),
        None => Ok(None),
    };
    let table = TableId(number(FRA_TABLE).unwrap_or(u32::from(table)));
    Ok(Some(RuleFact {
        // The kernel leaves the attribute out for priority 0.
        priority: number(FRA_PRIORITY).unwrap_or(0),
        from: selector(FRA_SRC, src_len)?,
        to: selector(FRA_DST, dst_len)?,
        fwmark: number(FRA_FWMARK).map(|mark| (mark, number(FRA_FWMASK).unwrap_or(u32::MAX))),
        iif: attrs
            .find(FRA_IIFNAME)
            .and_then(|attr| attr.str())
            .map(str::to_owned),
        table: (action == FR_ACT_TO_TBL).then_some(table),
    }))
}

pub(super) fn address(message: &[u8]) -> Result<Option<AddressFact>, Malformed> {
    let attrs = Attrs::after(message, IFADDR_LEN)?;
    let Some([family, len, _, _]) = array(message, 0) else {
        return Err(short("ifaddrmsg", message));
    };
    if family != INET {
        return Ok(None);
    }
    Ok(Some(AddressFact {
        address: attrs
            .find(IFA_LOCAL)
            .and_then(|attr| attr.ipv4())
            .ok_or(short("an address", message))?,
        len,
        link: array(message, 4)
            .map(u32::from_ne_bytes)
            .ok_or(short("ifaddrmsg", message))?,
    }))
}

pub(super) fn neighbour(message: &[u8]) -> Result<Option<NeighbourFact>, Malformed> {
    let attrs = Attrs::after(message, RTM_LEN)?;
    if message.first() != Some(&INET) {
        return Ok(None);
    }
    let state = array(message, 8)
        .map(u16::from_ne_bytes)
        .ok_or(short("ndmsg", message))?;
    Ok(Some(NeighbourFact {
        address: attrs
            .find(NDA_DST)
            .and_then(|attr| attr.ipv4())
            .ok_or(short("an address", message))?,
        mac: attrs.find(NDA_LLADDR).and_then(|attr| mac(attr.payload)),
        permanent: state & NUD_PERMANENT != 0,
    }))
}
