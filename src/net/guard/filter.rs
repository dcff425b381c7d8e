//! A socket filter for route news: the routes that plugins add for their pods are dropped before they wake anybody.

use std::os::fd::{AsFd, AsRawFd};

use nix::errno::Errno;
use nix::libc::{self, RTM_NEWROUTE, sock_filter, sock_fprog};

/// Where `nlmsghdr` has the message's type, and where the `rtmsg` behind it has its family and the destination's prefix
/// length (linux/netlink.h, linux/rtnetlink.h).
const TYPE_AT: u32 = 4;
const FAMILY_AT: u32 = 16;
const DST_LEN_AT: u32 = 17;
/// `AF_INET6`
const INET6: u32 = 10;

/// Drops news of routes to a single address that were added or replaced, and of IPv6 of any: the kernel itself adds some
/// for each link. One that has gone is still told.
///
/// # Errors
/// The kernel's; the socket then hears everything.
pub(super) fn ignore_new_host_routes(socket: impl AsFd) -> Result<(), Errno> {
    let mut program = program();
    let len = u16::try_from(program.len()).map_err(|_| Errno::EINVAL)?;
    let filter = sock_fprog {
        len,
        filter: program.as_mut_ptr(),
    };
    let size = libc::socklen_t::try_from(size_of::<sock_fprog>()).map_err(|_| Errno::EINVAL)?;
    #[expect(unsafe_code, reason = "setting a socket filter has no safe form")]
    // SAFETY: the descriptor is borrowed and open for the whole call; `filter` is a live `sock_fprog` of the size
    // given, whose pointer and length are those of `program`, which outlives the call. The kernel copies it.
    let result = unsafe {
        libc::setsockopt(
            socket.as_fd().as_raw_fd(),
            libc::SOL_SOCKET,
            libc::SO_ATTACH_FILTER,
            (&raw const filter).cast(),
            size,
        )
    };
    Errno::result(result).map(drop)
}

/// Classic BPF (<https://docs.kernel.org/networking/filter.html>). It loads in network byte order what netlink writes in
/// the host's.
fn program() -> [sock_filter; 8] {
    let op = |code: u32, jt, jf, k| sock_filter {
        code: u16::try_from(code).unwrap_or_default(),
        jt,
        jf,
        k,
    };
    let load_half = libc::BPF_LD | libc::BPF_H | libc::BPF_ABS;
    let load_byte = libc::BPF_LD | libc::BPF_B | libc::BPF_ABS;
    let equals = libc::BPF_JMP | libc::BPF_JEQ | libc::BPF_K;
    let give = libc::BPF_RET | libc::BPF_K;
    [
        op(load_half, 0, 0, TYPE_AT),
        op(equals, 0, 4, u32::from(RTM_NEWROUTE.to_be())),
        op(load_byte, 0, 0, FAMILY_AT),
        op(equals, 3, 0, INET6),
        op(load_byte, 0, 0, DST_LEN_AT),
        op(equals, 1, 0, 32),
        op(give, 0, 0, u32::MAX),
        op(give, 0, 0, 0),
    ]
}
