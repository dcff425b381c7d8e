//! Operations and questions as rtnetlink messages.
//!
//! Encoded as the Go daemon's library does where the kernel would tell the difference (so that either can delete what
//! the other made): rules without a protocol, routes with protocol boot, table numbers below 256 in the header.

use std::net::IpAddr;

use neli::consts::nl::NlmF;
use nix::libc::{
    IFA_ADDRESS, IFA_BROADCAST, IFA_LOCAL, IFF_UP, IFLA_ADDRESS, IFLA_EXT_MASK, IFLA_GROUP, IFLA_IFNAME,
    IFLA_INFO_DATA, IFLA_INFO_KIND, IFLA_LINKINFO, IFLA_MTU, IFLA_NET_NS_FD, IFLA_TXQLEN, NDA_DST,
    NDA_LLADDR, NUD_PERMANENT, RT_SCOPE_LINK, RT_SCOPE_UNIVERSE, RTA_DST, RTA_GATEWAY, RTA_OIF, RTA_PREFSRC,
    RTA_TABLE, RTM_DELADDR, RTM_DELLINK, RTM_DELROUTE, RTM_DELRULE, RTM_NEWADDR, RTM_NEWLINK, RTM_NEWNEIGH,
    RTM_NEWROUTE, RTM_NEWRULE, RTN_LOCAL, RTN_UNICAST, RTN_UNSPEC, RTPROT_BOOT, RTPROT_UNSPEC,
};

use super::super::netlink::Batch;
use super::super::op::{LinkRef, NetOp, Route, Rule, VethEnd};
use super::super::wire::Body;
use crate::ipam::cidr::Ipv4Cidr;
use crate::ipam::ids::TableId;
use crate::ipam::ip::{Cidr, IpFamily};

/// `AF_INET`, which headers hold as a byte.
pub(super) const INET: u8 = 2;
/// `AF_INET6`.
pub(super) const INET6: u8 = 10;
// `include/uapi/linux/fib_rules.h`
pub(super) const FRA_DST: u16 = 1;
pub(super) const FRA_SRC: u16 = 2;
pub(super) const FRA_IIFNAME: u16 = 3;
pub(super) const FRA_PRIORITY: u16 = 6;
pub(super) const FRA_FWMARK: u16 = 10;
pub(super) const FRA_TABLE: u16 = 15;
pub(super) const FRA_FWMASK: u16 = 16;
pub(super) const FR_ACT_TO_TBL: u8 = 1;
// `include/uapi/linux/veth.h`, `rtnetlink.h`
const VETH_INFO_PEER: u16 = 1;
const RTM_F_LOOKUP_TABLE: u32 = 0x1000;
const RTM_F_FIB_MATCH: u32 = 0x2000;
/// Leaves the counters out of link messages: half of their size, and the costly half.
const RTEXT_FILTER_SKIP_STATS: u32 = 1 << 3;
const UP: u32 = IFF_UP as u32;
/// `IFA_F_NODAD`, which fits the byte that `ifaddrmsg` has for flags.
const NODAD: u8 = 0x02;

fn byte(family: IpFamily) -> u8 {
    match family {
        IpFamily::V4 => INET,
        IpFamily::V6 => INET6,
    }
}

pub(super) fn push(batch: &mut Batch, op: &NetOp) {
    let (kind, flags, body) = message(op);
    batch.push(kind, flags, op.to_string(), &body);
}

fn message(op: &NetOp) -> (u16, NlmF, Body) {
    let new = NlmF::CREATE | NlmF::EXCL;
    let none = NlmF::empty();
    match op {
        NetOp::AddVeth {
            here,
            there,
            netns,
            mtu,
        } => (RTM_NEWLINK, new, veth(here, there, *netns, *mtu)),
        NetOp::DelLink(target) => (RTM_DELLINK, none, link(target, 0, 0)),
        NetOp::DelLinkGroup(group) => {
            let mut body = Body::new(&ifinfo(0, 0, 0));
            body.u32(IFLA_GROUP, *group);
            (RTM_DELLINK, none, body)
        }
        NetOp::LinkUp(target) => (RTM_NEWLINK, none, link(target, UP, UP)),
        NetOp::LinkDown(target) => (RTM_NEWLINK, none, link(target, 0, UP)),
        NetOp::LinkMtu(target, mtu) => {
            let mut body = link(target, 0, 0);
            body.u32(IFLA_MTU, *mtu);
            (RTM_NEWLINK, none, body)
        }
        NetOp::LinkGroup(target, group) => {
            let mut body = link(target, 0, 0);
            body.u32(IFLA_GROUP, *group);
            (RTM_NEWLINK, none, body)
        }
        NetOp::AddAddress { address, len, link } => (RTM_NEWADDR, new, inet_address(*address, *len, *link)),
        NetOp::DelAddress { address, len, link } => (RTM_DELADDR, none, inet_address(*address, *len, *link)),
        NetOp::AddRoute(target) => (RTM_NEWROUTE, new, route(target, RTPROT_BOOT, kind_of(target))),
        NetOp::ReplaceRoute(target) => {
            let flags = NlmF::CREATE | NlmF::REPLACE;
            (RTM_NEWROUTE, flags, route(target, RTPROT_BOOT, kind_of(target)))
        }
        NetOp::DelRoute(target) => (RTM_DELROUTE, none, route(target, RTPROT_UNSPEC, RTN_UNSPEC)),
        NetOp::AddRule(target) => (RTM_NEWRULE, new, rule(target, FR_ACT_TO_TBL)),
        NetOp::DelRule(target) => (RTM_DELRULE, none, rule(target, 0)),
        NetOp::AddNeighbour { address, mac, link } => {
            let mut body = Body::new(&neighbour_header(IpFamily::of(*address), *link, NUD_PERMANENT));
            body.ip(NDA_DST, *address).bytes(NDA_LLADDR, &mac.0);
            (RTM_NEWNEIGH, NlmF::CREATE | NlmF::REPLACE, body)
        }
    }
}

/// `struct ifinfomsg`
fn ifinfo(index: u32, flags: u32, change: u32) -> [u8; 16] {
    let mut header = [0; 16];
    let (_, numbers) = header.split_at_mut(4);
    for (slot, value) in numbers.chunks_exact_mut(4).zip([index, flags, change]) {
        slot.copy_from_slice(&value.to_ne_bytes());
    }
    header
}

fn link(target: &LinkRef, flags: u32, change: u32) -> Body {
    match target {
        LinkRef::Index(index) => Body::new(&ifinfo(*index, flags, change)),
        LinkRef::Name(name) => {
            let mut body = Body::new(&ifinfo(0, flags, change));
            body.str(IFLA_IFNAME, name);
            body
        }
    }
}

fn veth(here: &VethEnd, there: &VethEnd, netns: i32, mtu: u32) -> Body {
    let end = |body: &mut Body, end: &VethEnd| {
        // A queue length of 0 means no queue, as the Go plugin's pairs have.
        body.str(IFLA_IFNAME, &end.name)
            .u32(IFLA_MTU, mtu)
            .u32(IFLA_TXQLEN, 0)
            .bytes(IFLA_ADDRESS, &end.mac.0);
    };
    let mut body = Body::new(&ifinfo(0, 0, 0));
    end(&mut body, here);
    body.nest(IFLA_LINKINFO, |info| {
        info.bytes(IFLA_INFO_KIND, b"veth").nest(IFLA_INFO_DATA, |data| {
            data.nest(VETH_INFO_PEER, |peer| {
                end(peer.raw(&ifinfo(0, 0, 0)), there);
                peer.bytes(IFLA_NET_NS_FD, &netns.to_ne_bytes());
            });
        });
    });
    body
}

/// `struct ifaddrmsg`
fn ifaddr(family: IpFamily, len: u8, flags: u8, link: u32) -> [u8; 8] {
    let [a, b, c, d] = link.to_ne_bytes();
    [byte(family), len, flags, RT_SCOPE_UNIVERSE, a, b, c, d]
}

fn inet_address(address: IpAddr, len: u8, link: u32) -> Body {
    let family = IpFamily::of(address);
    let flags = match family {
        IpFamily::V4 => 0,
        IpFamily::V6 => NODAD,
    };
    let mut body = Body::new(&ifaddr(family, len, flags, link));
    body.ip(IFA_LOCAL, address).ip(IFA_ADDRESS, address);
    if let (..=30, IpAddr::V4(address)) = (len, address)
        && let Some(cidr) = Ipv4Cidr::new(address, len)
    {
        body.ipv4(IFA_BROADCAST, cidr.broadcast());
    }
    body
}

/// `struct rtmsg`
#[derive(Clone, Copy)]
struct RouteHeader {
    family: IpFamily,
    dst_len: u8,
    table: TableId,
    protocol: u8,
    scope: u8,
    kind: u8,
    flags: u32,
}

impl RouteHeader {
    /// Everything open, as questions have it.
    fn any(family: IpFamily) -> Self {
        Self {
            family,
            dst_len: 0,
            table: TableId(0),
            protocol: RTPROT_UNSPEC,
            scope: RT_SCOPE_UNIVERSE,
            kind: RTN_UNSPEC,
            flags: 0,
        }
    }

    fn bytes(self) -> [u8; 12] {
        let (family, table) = (byte(self.family), short_table(self.table));
        let [a, b, c, d] = self.flags.to_ne_bytes();
        [
            family,
            self.dst_len,
            0,
            0,
            table,
            self.protocol,
            self.scope,
            self.kind,
            a,
            b,
            c,
            d,
        ]
    }
}

/// A table's number where it fits the header's byte, else 0 and the attribute has it.
fn short_table(table: TableId) -> u8 {
    u8::try_from(table.0).unwrap_or(0)
}

fn long_table(body: &mut Body, kind: u16, table: TableId) {
    if table.0 > u32::from(u8::MAX) {
        body.u32(kind, table.0);
    }
}

fn kind_of(route: &Route) -> u8 {
    if route.is_local() { RTN_LOCAL } else { RTN_UNICAST }
}

fn route(route: &Route, protocol: u8, kind: u8) -> Body {
    let dst = route.dst();
    let header = RouteHeader {
        dst_len: dst.prefix_len(),
        table: route.table(),
        protocol,
        // Of IPv6 the kernel ignores it.
        scope: if route.via().is_some() {
            RT_SCOPE_UNIVERSE
        } else {
            RT_SCOPE_LINK
        },
        kind,
        ..RouteHeader::any(dst.family())
    };
    let mut body = Body::new(&header.bytes());
    if dst.prefix_len() > 0 {
        body.ip(RTA_DST, dst.base());
    }
    if let Some(via) = route.via() {
        body.ip(RTA_GATEWAY, via);
    }
    if let Some(source) = route.prefsrc() {
        body.ip(RTA_PREFSRC, source);
    }
    body.u32(RTA_OIF, route.oif());
    long_table(&mut body, RTA_TABLE, route.table());
    body
}

/// `struct fib_rule_hdr`
fn rule_header(family: IpFamily, dst_len: u8, src_len: u8, table: TableId, action: u8) -> [u8; 12] {
    let table = short_table(table);
    [byte(family), dst_len, src_len, 0, table, 0, 0, action, 0, 0, 0, 0]
}

fn rule(rule: &Rule, action: u8) -> Body {
    let len = |network: Option<Cidr>| network.map_or(0, Cidr::prefix_len);
    let (family, from, to) = (rule.selector.family(), rule.selector.from(), rule.selector.to());
    let table = rule.table.unwrap_or(TableId(0));
    let mut body = Body::new(&rule_header(family, len(to), len(from), table, action));
    if let Some(to) = to {
        body.ip(FRA_DST, to.base());
    }
    if let Some(from) = from {
        body.ip(FRA_SRC, from.base());
    }
    body.u32(FRA_PRIORITY, rule.priority);
    if let Some((mark, mask)) = rule.fwmark {
        body.u32(FRA_FWMARK, mark).u32(FRA_FWMASK, mask);
    }
    long_table(&mut body, FRA_TABLE, table);
    body
}

/// `struct ndmsg`
fn neighbour_header(family: IpFamily, link: u32, state: u16) -> Vec<u8> {
    [
        &[byte(family), 0, 0, 0][..],
        &link.to_ne_bytes(),
        &state.to_ne_bytes(),
        &[0, 0],
    ]
    .concat()
}

pub(super) fn get_link(name: Option<&str>) -> Body {
    let mut body = Body::new(&ifinfo(0, 0, 0));
    body.u32(IFLA_EXT_MASK, RTEXT_FILTER_SKIP_STATS);
    if let Some(name) = name {
        body.str(IFLA_IFNAME, name);
    }
    body
}

pub(super) fn list_routes(family: IpFamily, table: Option<TableId>, oif: Option<u32>) -> Body {
    let table = table.unwrap_or(TableId(0));
    let header = RouteHeader {
        table,
        ..RouteHeader::any(family)
    };
    let mut body = Body::new(&header.bytes());
    long_table(&mut body, RTA_TABLE, table);
    if let Some(oif) = oif {
        body.u32(RTA_OIF, oif);
    }
    body
}

pub(super) fn get_route(address: IpAddr) -> Body {
    let family = IpFamily::of(address);
    let flags = match family {
        IpFamily::V4 => RTM_F_LOOKUP_TABLE | RTM_F_FIB_MATCH,
        // Of IPv6 the kernel always tells the table, and refuses to be asked for it.
        IpFamily::V6 => RTM_F_FIB_MATCH,
    };
    let header = RouteHeader {
        dst_len: family.bits(),
        flags,
        ..RouteHeader::any(family)
    };
    let mut body = Body::new(&header.bytes());
    body.ip(RTA_DST, address);
    body
}

pub(super) fn list_rules(family: IpFamily) -> Body {
    Body::new(&rule_header(family, 0, 0, TableId(0), 0))
}

pub(super) fn list_addresses(family: IpFamily, link: Option<u32>) -> Body {
    Body::new(&ifaddr(family, 0, 0, link.unwrap_or(0)))
}

pub(super) fn get_neighbour(address: IpAddr, link: u32) -> Body {
    let mut body = Body::new(&neighbour_header(IpFamily::of(address), link, 0));
    body.ip(NDA_DST, address);
    body
}
