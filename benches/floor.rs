//! The floor of ADD and DEL: a process that only makes and removes the kernel objects of one pod.
//!
//! `floor add NETNS HOST-LINK ADDRESS`, `floor del HOST-LINK ADDRESS`, `floor reap`. The same objects by the same
//! messages as the plugin's (8 in 3 sends for ADD), but with everything known beforehand: no daemon, no configuration,
//! no result, no log, no sysctl, no undo. What the plugin takes beyond this is ours to answer for.
//!
//! One file without dependencies, built as a static musl binary by `scripts/bench.sh`.

use std::error::Error;
use std::ffi::{c_int, c_ulong, c_void};
use std::fs::File;
use std::io;
use std::net::Ipv4Addr;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};

const AF_INET: u8 = 2;
const AF_NETLINK: c_int = 16;
const SOCK_RAW_CLOEXEC: c_int = 3 | 0o2_000_000;
const CLONE_NEWNET: c_int = 0x4000_0000;
const SIOCGIFINDEX: c_ulong = 0x8933;

const REQUEST: u16 = 0x1;
const ACK: u16 = 0x4;
const REPLACE: u16 = 0x100;
const EXCL: u16 = 0x200;
const CREATE: u16 = 0x400;

const RTM_NEWLINK: u16 = 16;
const RTM_DELLINK: u16 = 17;
const RTM_NEWADDR: u16 = 20;
const RTM_NEWROUTE: u16 = 24;
const RTM_DELROUTE: u16 = 25;
const RTM_NEWNEIGH: u16 = 28;

const POD_TABLE: u32 = 512;
const MAIN_TABLE: u32 = 254;
const DOOMED_GROUP: u32 = 512_512;
const GATEWAY: Ipv4Addr = Ipv4Addr::new(169, 254, 1, 1);
const HOST_MAC: [u8; 6] = [0x02, 0, 0, 0, 0, 1];
const POD_MAC: [u8; 6] = [0x02, 0, 0, 0, 0, 2];
const MTU: u32 = 9001;

unsafe extern "C" {
    fn socket(domain: c_int, kind: c_int, protocol: c_int) -> c_int;
    fn setns(fd: c_int, kind: c_int) -> c_int;
    fn send(fd: c_int, bytes: *const c_void, length: usize, flags: c_int) -> isize;
    fn recv(fd: c_int, bytes: *mut c_void, length: usize, flags: c_int) -> isize;
    fn ioctl(fd: c_int, request: c_ulong, ...) -> c_int;
}

fn main() -> Result<(), Box<dyn Error>> {
    let args: Vec<String> = std::env::args().collect();
    match args.iter().map(String::as_str).collect::<Vec<_>>()[1..] {
        ["add", netns, host, address] => add(netns, host, address.parse()?),
        ["del", host, address] => del(host, address.parse()?),
        ["reap"] => reap(),
        _ => Err("usage: floor add NETNS HOST-LINK ADDRESS | del HOST-LINK ADDRESS | reap".into()),
    }
}

fn add(netns: &str, host_name: &str, address: Ipv4Addr) -> Result<(), Box<dyn Error>> {
    let netns = File::open(netns)?;
    let mut host = Netlink::open()?;
    // SAFETY: an open descriptor and a constant; this process has one thread.
    ok(unsafe { setns(netns.as_raw_fd(), CLONE_NEWNET) })?;
    let mut pod = Netlink::open()?; // the socket of the host stays in its namespace

    host.run(&[veth(host_name, "eth0", netns.as_raw_fd())])?;
    let host_index = host.index_of(host_name)?;
    let route = route(
        RTM_NEWROUTE,
        CREATE | REPLACE,
        POD_TABLE,
        Some(address),
        None,
        host_index,
    );
    host.run(&[link_up(host_index), route])?;
    let index = pod.index_of("eth0")?;
    pod.run(&[
        link_up(index),
        self::route(
            RTM_NEWROUTE,
            CREATE | REPLACE,
            MAIN_TABLE,
            Some(GATEWAY),
            None,
            index,
        ),
        self::route(
            RTM_NEWROUTE,
            CREATE | EXCL,
            MAIN_TABLE,
            None,
            Some(GATEWAY),
            index,
        ),
        inet_address(address, index),
        neighbour(index),
    ])
}

/// Address unreachable, link down and in the group that is deleted in batches, as the plugin's DEL leaves it.
fn del(host_name: &str, address: Ipv4Addr) -> Result<(), Box<dyn Error>> {
    let mut host = Netlink::open()?;
    let index = host.index_of(host_name)?;
    let mut group = Message::new(RTM_NEWLINK, 0, &link_header(index, 0, 0));
    group.attr(27, &DOOMED_GROUP.to_ne_bytes());
    host.run(&[
        route(RTM_DELROUTE, 0, POD_TABLE, Some(address), None, index),
        group,
        Message::new(RTM_NEWLINK, 0, &link_header(index, 0, 1)),
    ])
    .or_else(gone_is_fine)
}

/// Once a link is in its group the daemon may delete it at any moment: ENODEV.
fn gone_is_fine(error: Box<dyn Error>) -> Result<(), Box<dyn Error>> {
    if error.to_string().ends_with("(os error 19)") {
        Ok(())
    } else {
        Err(error)
    }
}

/// What the daemon does some time after DELs: all doomed links in one request.
fn reap() -> Result<(), Box<dyn Error>> {
    let mut all = Message::new(RTM_DELLINK, 0, &link_header(0, 0, 0));
    all.attr(27, &DOOMED_GROUP.to_ne_bytes());
    Netlink::open()?.run(&[all]).or_else(gone_is_fine)
}

fn veth(host: &str, pod: &str, netns: c_int) -> Message {
    let end = |message: &mut Message, name: &str, mac: &[u8; 6]| {
        message.attr(3, &[name.as_bytes(), b"\0"].concat()); // IFLA_IFNAME
        message.attr(4, &MTU.to_ne_bytes());
        message.attr(13, &0_u32.to_ne_bytes()); // IFLA_TXQLEN
        message.attr(1, mac);
    };
    let mut message = Message::new(RTM_NEWLINK, CREATE | EXCL, &link_header(0, 0, 0));
    end(&mut message, host, &HOST_MAC);
    let info = message.open(18); // IFLA_LINKINFO
    message.attr(1, b"veth");
    let data = message.open(2); // IFLA_INFO_DATA
    let peer = message.open(1); // VETH_INFO_PEER
    message.0.extend(link_header(0, 0, 0));
    end(&mut message, pod, &POD_MAC);
    message.attr(28, &netns.to_ne_bytes()); // IFLA_NET_NS_FD
    for start in [peer, data, info] {
        message.close(start);
    }
    message
}

fn link_header(index: u32, flags: u32, change: u32) -> Vec<u8> {
    let mut header = vec![0; 4];
    for number in [index, flags, change] {
        header.extend(number.to_ne_bytes());
    }
    header
}

fn link_up(index: u32) -> Message {
    Message::new(RTM_NEWLINK, 0, &link_header(index, 1, 1))
}

fn route(
    kind: u16,
    flags: u16,
    table: u32,
    to: Option<Ipv4Addr>,
    via: Option<Ipv4Addr>,
    oif: u32,
) -> Message {
    let (scope, boot, unicast) = if kind == RTM_DELROUTE {
        (253, 0, 0)
    } else {
        (253, 3, 1)
    };
    let scope = if via.is_some() { 0 } else { scope };
    let bits = if to.is_some() { 32 } else { 0 };
    let short = u8::try_from(table).unwrap_or(0);
    let header = [AF_INET, bits, 0, 0, short, boot, scope, unicast, 0, 0, 0, 0];
    let mut message = Message::new(kind, flags, &header);
    if let Some(to) = to {
        message.attr(1, &to.octets());
    }
    if let Some(via) = via {
        message.attr(5, &via.octets());
    }
    message.attr(4, &oif.to_ne_bytes());
    if short == 0 {
        message.attr(15, &table.to_ne_bytes());
    }
    message
}

fn inet_address(address: Ipv4Addr, link: u32) -> Message {
    let [a, b, c, d] = link.to_ne_bytes();
    let mut message = Message::new(RTM_NEWADDR, CREATE | EXCL, &[AF_INET, 32, 0, 0, a, b, c, d]);
    message.attr(2, &address.octets());
    message.attr(1, &address.octets());
    message
}

fn neighbour(link: u32) -> Message {
    let [a, b, c, d] = link.to_ne_bytes();
    let permanent = 0x80;
    let mut message = Message::new(
        RTM_NEWNEIGH,
        CREATE | REPLACE,
        &[AF_INET, 0, 0, 0, a, b, c, d, permanent, 0, 0, 0],
    );
    message.attr(1, &GATEWAY.octets());
    message.attr(2, &HOST_MAC);
    message
}

struct Message(Vec<u8>);

impl Message {
    fn new(kind: u16, flags: u16, body: &[u8]) -> Self {
        let mut bytes = vec![0; 16];
        bytes[4..6].copy_from_slice(&kind.to_ne_bytes());
        bytes[6..8].copy_from_slice(&(flags | REQUEST).to_ne_bytes());
        bytes.extend_from_slice(body);
        Self(bytes)
    }

    fn attr(&mut self, kind: u16, value: &[u8]) {
        let start = self.open(kind);
        self.0.extend_from_slice(value);
        self.close(start);
    }

    fn open(&mut self, kind: u16) -> usize {
        let start = self.0.len();
        self.0.extend([0; 2]);
        self.0.extend(kind.to_ne_bytes());
        start
    }

    fn close(&mut self, start: usize) {
        let length = u16::try_from(self.0.len() - start).expect("attributes are short");
        self.0[start..start + 2].copy_from_slice(&length.to_ne_bytes());
        self.0.resize(self.0.len().next_multiple_of(4), 0);
    }
}

struct Netlink(OwnedFd);

impl Netlink {
    fn open() -> io::Result<Self> {
        // SAFETY: constants only; the descriptor is new and nobody else's.
        Ok(Self(unsafe {
            OwnedFd::from_raw_fd(ok(socket(AF_NETLINK, SOCK_RAW_CLOEXEC, 0))?)
        }))
    }

    /// Sends all messages at once; the last one is acknowledged, of the others only a failure is told.
    fn run(&mut self, messages: &[Message]) -> Result<(), Box<dyn Error>> {
        let mut bytes = Vec::new();
        for (message, seq) in messages.iter().zip(1_u32..) {
            let start = bytes.len();
            bytes.extend_from_slice(&message.0);
            let length = u32::try_from(message.0.len())?;
            bytes[start..start + 4].copy_from_slice(&length.to_ne_bytes());
            bytes[start + 8..start + 12].copy_from_slice(&seq.to_ne_bytes());
            if seq as usize == messages.len() {
                bytes[start + 6] |= ACK as u8;
            }
        }
        let fd = self.0.as_raw_fd();
        // SAFETY: the buffer outlives the call and its length is its own.
        if unsafe { send(fd, bytes.as_ptr().cast(), bytes.len(), 0) } < 0 {
            return Err(io::Error::last_os_error().into());
        }
        let mut last = 0;
        let mut buffer = [0_u8; 8192];
        while last < messages.len() {
            // SAFETY: as above.
            let length = unsafe { recv(fd, buffer.as_mut_ptr().cast(), buffer.len(), 0) };
            let mut rest = &buffer[..usize::try_from(length).map_err(|_| io::Error::last_os_error())?];
            while let Some(length) = rest
                .first_chunk()
                .map(|bytes| u32::from_ne_bytes(*bytes) as usize)
            {
                let code = i32::from_ne_bytes(rest[16..20].try_into()?);
                last = u32::from_ne_bytes(rest[8..12].try_into()?) as usize;
                if code != 0 {
                    let error = io::Error::from_raw_os_error(-code);
                    return Err(format!("message {last} of {}: {error}", messages.len()).into());
                }
                rest = &rest[length.next_multiple_of(4).min(rest.len())..];
            }
        }
        Ok(())
    }

    fn index_of(&self, name: &str) -> io::Result<u32> {
        let mut request = [0_u8; 40]; // struct ifreq
        request[..name.len().min(15)].copy_from_slice(&name.as_bytes()[..name.len().min(15)]);
        // SAFETY: SIOCGIFINDEX reads a name and writes an index inside a buffer of struct ifreq's size.
        ok(unsafe { ioctl(self.0.as_raw_fd(), SIOCGIFINDEX, request.as_mut_ptr()) })?;
        let index = request[16..20].try_into().map(u32::from_ne_bytes);
        index.map_err(io::Error::other)
    }
}

fn ok(result: c_int) -> io::Result<c_int> {
    if result < 0 {
        Err(io::Error::last_os_error())
    } else {
        Ok(result)
    }
}
