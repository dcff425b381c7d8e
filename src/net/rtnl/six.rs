//! IPv6 routes to single hosts, as witnesses of pods: nothing of them is written here.

use std::net::Ipv6Addr;

use nix::errno::Errno;
use nix::libc::{RTA_DST, RTA_GATEWAY, RTA_OIF, RTA_TABLE, RTM_GETROUTE};

use super::super::netlink::NetError;
use super::super::wire::{Attrs, Body, Malformed, array};
use super::{Rtnl, collect};
use crate::ipam::ids::TableId;

const INET6: u8 = 10;
const RTM_LEN: usize = 12;
const UNICAST: u8 = 1;

/// A route to one address over one link, in the main table.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HostRoute6 {
    /// Where it leads.
    pub address: Ipv6Addr,
    /// The link's index.
    pub oif: u32,
}

impl Rtnl {
    /// The main table's routes to single IPv6 addresses that are reached directly over a link.
    ///
    /// # Errors
    /// The kernel's. One without IPv6 has none.
    pub fn host_routes6(&mut self) -> Result<Vec<HostRoute6>, NetError> {
        let what = "list IPv6 routes";
        let body = Body::new(&[INET6, 0, 0, 0, 254, 0, 0, 0, 0, 0, 0, 0]);
        let replies = match self.socket.dump(RTM_GETROUTE, what, &body) {
            Err(error)
                if matches!(
                    error.errno,
                    Errno::ENOENT | Errno::EAFNOSUPPORT | Errno::EOPNOTSUPP
                ) =>
            {
                Vec::new()
            }
            dump => dump?,
        };
        collect(what, &replies, route)
    }
}

fn route(message: &[u8]) -> Result<Option<HostRoute6>, Malformed> {
    let attrs = Attrs::after(message, RTM_LEN)?;
    let Some([family, dst_len, _, _, table, _, _, kind]) = array(message, 0) else {
        return Err(Malformed {
            expected: "rtmsg",
            offset: message.len(),
        });
    };
    let number = |kind| attrs.find(kind).and_then(|attr| attr.u32());
    let table = TableId(number(RTA_TABLE).unwrap_or(u32::from(table)));
    let is_direct = attrs.find(RTA_GATEWAY).is_none() && kind == UNICAST;
    if family != INET6 || dst_len != 128 || table != TableId::MAIN || !is_direct {
        return Ok(None);
    }
    let address = attrs
        .find(RTA_DST)
        .and_then(|attr| <[u8; 16]>::try_from(attr.payload).ok());
    Ok(address.map(|octets| HostRoute6 {
        address: Ipv6Addr::from(octets),
        oif: number(RTA_OIF).unwrap_or(0),
    }))
}
