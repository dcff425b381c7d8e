//! Connections the kernel remembers: those that lead to a pod that is gone are to be forgotten.
//!
//! A translation is chosen when a connection begins and kept as long as packets come. A UDP client that goes on sending
//! would reach whoever gets the address next. Numbers: `linux/netfilter/nfnetlink_conntrack.h`, `nf_conntrack_common.h`.

use std::net::IpAddr;

use neli::consts::nl::NlmF;
use nix::errno::Errno;

use super::netlink::{Batch, Family, NetError, Reply, Socket};
use super::wire::{Attr, Attrs, Body, Malformed};

const NFNL_SUBSYS_CTNETLINK: u16 = 1;
const IPCTNL_MSG_CT_GET: u16 = NFNL_SUBSYS_CTNETLINK << 8 | 1;
const IPCTNL_MSG_CT_DELETE: u16 = NFNL_SUBSYS_CTNETLINK << 8 | 2;
const CTA_TUPLE_ORIG: u16 = 1;
const CTA_TUPLE_REPLY: u16 = 2;
const CTA_STATUS: u16 = 3;
const CTA_ID: u16 = 12;
const CTA_FILTER: u16 = 25;
const CTA_FILTER_REPLY_FLAGS: u16 = 2;
const CTA_FILTER_FLAG_CTA_IP_SRC: u32 = 1;
const CTA_TUPLE_IP: u16 = 1;
const CTA_IP_V4_SRC: u16 = 1;
const CTA_IP_V6_SRC: u16 = 3;
const IPS_DST_NAT: u32 = 1 << 5;
/// `nfgenmsg`.
const GENERIC_HEADER: usize = 4;
const NLA_F_NESTED: u16 = 1 << 15;

/// Forgets the connections whose destination was translated to this address. Returns how many.
///
/// # Errors
/// When the kernel can't be asked.
pub fn forget(pod: IpAddr) -> Result<usize, NetError> {
    let mut socket = Socket::open(Family::Netfilter)?;
    let what = format!("list connections translated to {pod}");
    let replies = socket.dump(IPCTNL_MSG_CT_GET, what, &filter(pod))?;
    let mut batch = Batch::new();
    for reply in &replies {
        if let Ok(Some(delete)) = deletion(pod, reply) {
            let what = format!("forget a connection to {pod}");
            batch.push(IPCTNL_MSG_CT_DELETE, NlmF::empty(), what, &delete);
        }
    }
    let outcomes = socket.run(&batch)?;
    let mut forgotten = 0_usize;
    for outcome in outcomes {
        match outcome {
            Ok(()) => forgotten = forgotten.saturating_add(1),
            // It has ended by itself.
            Err(error) if error.errno == Errno::ENOENT => {}
            Err(error) => return Err(error),
        }
    }
    Ok(forgotten)
}

fn header(pod: IpAddr) -> Body {
    let family = if pod.is_ipv4() { 2 } else { 10 };
    Body::new(&[family, 0, 0, 0])
}

/// Answers come from the address. A kernel before 5.8 ignores this, and one of today leaves out exactly the connections
/// that match when it compares IPv6 addresses (`ctnetlink_filter_match_tuple`), so that all are looked at.
fn filter(pod: IpAddr) -> Body {
    let mut body = header(pod);
    let IpAddr::V4(address) = pod else {
        return body;
    };
    body.nest(CTA_TUPLE_REPLY, |tuple| {
        tuple.nest(CTA_TUPLE_IP, |ip| {
            ip.bytes(CTA_IP_V4_SRC, &address.octets());
        });
    })
    .nest(CTA_FILTER, |flags| {
        flags.u32(CTA_FILTER_REPLY_FLAGS, CTA_FILTER_FLAG_CTA_IP_SRC);
    });
    body
}

fn deletion(pod: IpAddr, reply: &Reply) -> Result<Option<Body>, Malformed> {
    let attrs = Attrs::after(&reply.payload, GENERIC_HEADER)?;
    let status = attrs.find(CTA_STATUS).and_then(|attr| attr.be32()).unwrap_or(0);
    let (Some(original), Some(answers)) = (attrs.find(CTA_TUPLE_ORIG), attrs.find(CTA_TUPLE_REPLY)) else {
        return Ok(None);
    };
    if status & IPS_DST_NAT == 0 || source(answers)? != Some(pod) {
        return Ok(None);
    }
    let mut body = header(pod);
    body.bytes(CTA_TUPLE_ORIG | NLA_F_NESTED, original.payload);
    if let Some(id) = attrs.find(CTA_ID) {
        body.bytes(CTA_ID, id.payload);
    }
    Ok(Some(body))
}

fn source(tuple: Attr<'_>) -> Result<Option<IpAddr>, Malformed> {
    let Some(ip) = tuple.nested()?.find(CTA_TUPLE_IP) else {
        return Ok(None);
    };
    let ip = ip.nested()?;
    let v4 = ip
        .find(CTA_IP_V4_SRC)
        .and_then(|attr| attr.ipv4())
        .map(IpAddr::V4);
    let v6 = || {
        let octets: [u8; 16] = ip.find(CTA_IP_V6_SRC)?.payload.try_into().ok()?;
        Some(IpAddr::from(octets))
    };
    Ok(v4.or_else(v6))
}
