//! Links: a name's index, a hardware address's link, and the group of those that are to go.

use std::os::fd::{AsFd, AsRawFd};

use nix::errno::Errno;
use nix::libc;

use super::layout::DOOMED_GROUP;
use super::netlink::NetError;
use super::op::NetOp;
use super::rtnl::{LinkFact, Rtnl};
use super::veth::MAX_NAME;
use crate::ipam::ids::Mac;

/// The index of the link `name` in the namespace of `socket`, any socket; `None` when there is none.
///
/// One system call that takes no lock others wait for, unlike a dump of all links, which concurrent changes tear.
///
/// # Errors
/// The kernel's, other than "no such device".
pub fn index_of(socket: impl AsFd, name: &str) -> Result<Option<u32>, NetError> {
    if name.len() > MAX_NAME {
        return Ok(None); // no link can have it
    }
    #[expect(unsafe_code, reason = "the kernel's structure has no safe constructor")]
    // SAFETY: `ifreq` is plain old data, for which all zeroes is a valid value (an empty name, a null union).
    let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
    for (slot, byte) in request.ifr_name.iter_mut().zip(name.bytes()) {
        *slot = libc::c_char::from_ne_bytes([byte]);
    }
    #[expect(unsafe_code, reason = "ioctl has no safe form")]
    // SAFETY: the descriptor is borrowed and open for the whole call; `request` is a live, writable `ifreq` with a
    // NUL-terminated name (zeroed, and at most 15 of 16 bytes written), which is what SIOCGIFINDEX reads and writes.
    let result = unsafe {
        libc::ioctl(
            socket.as_fd().as_raw_fd(),
            libc::SIOCGIFINDEX as _,
            &raw mut request,
        )
    };
    match Errno::result(result) {
        Ok(_) => {}
        Err(Errno::ENODEV) => return Ok(None),
        Err(errno) => return Err(NetError::new(format!("get the index of link {name}"), errno)),
    }
    #[expect(unsafe_code, reason = "reading a union field")]
    // SAFETY: SIOCGIFINDEX succeeded, so the kernel has written `ifru_ifindex`; every bit pattern is a valid integer.
    let index = unsafe { request.ifr_ifru.ifru_ifindex };
    Ok(u32::try_from(index).ok())
}

/// The link with hardware address `mac`. Of several, a device comes before what is stacked on it (a VLAN or a bridge
/// inherits its parent's address).
///
/// # Errors
/// The kernel's.
pub fn with_mac(rtnl: &mut Rtnl, mac: Mac) -> Result<Option<LinkFact>, NetError> {
    let mut links = rtnl.links()?;
    links.retain(|link| link.mac == Some(mac));
    Ok(links.into_iter().min_by_key(|link| {
        (
            link.peer.is_some() && link.kind.as_deref() != Some("veth"),
            link.index,
        )
    }))
}

/// Deletes every doomed link in one request, which waits for RCU once instead of once per link. Returns whether there
/// was any.
///
/// # Errors
/// The kernel's, other than "no link in that group".
pub fn reap_doomed(rtnl: &mut Rtnl) -> Result<bool, NetError> {
    match rtnl.apply_all(&[NetOp::DelLinkGroup(DOOMED_GROUP)]) {
        Err(error) if error.errno == Errno::ENODEV => Ok(false),
        result => result.map(|()| true),
    }
}
