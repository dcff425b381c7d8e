//! A small synchronous netlink engine: one socket, batches in one send, every answer mapped to its message.
//!
//! The kernel works a request off inside `sendmsg`, so its answers wait in the queue when the call returns; nothing
//! here needs a thread or an executor. Both families are spoken: rtnetlink runs each message of a batch on its own and
//! goes on after a failure, nftables runs what lies between its begin and end messages as one transaction.
//! <https://docs.kernel.org/userspace-api/netlink/intro.html>

use std::borrow::Cow;
use std::fmt;
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, RawFd};

use neli::consts::nl::{NlmF, Nlmsg};
use neli::consts::socket::{Msg, NlFamily};
use neli::socket::NlSocket;
use neli::utils::Groups;
use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::socket::{setsockopt, sockopt};

use super::netns::{self, NetnsError};
use super::wire::{Attrs, Body, align, array};

const MESSAGE_HEADER: usize = 16;
/// The kernel never fills more than this into one part of a dump, and fits its parts to the reader's buffer.
const RECEIVE_BUFFER: usize = 32 * 1024;
/// The default send buffer is 208 KiB; a batch near that asks for more.
const ROOMY_BATCH: usize = 128 * 1024;
/// A dump that other changes interrupted is started again this often (the Go daemon's number).
const DUMP_ATTEMPTS: u32 = 5;
/// An answer that is not there after this long is never coming.
const ANSWER_TIMEOUT_MS: u16 = 5_000;
const NLMSGERR_ATTR_MSG: u16 = 1;

/// Which part of the kernel a socket talks to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Family {
    /// Links, addresses, routes, rules, neighbours.
    Route,
    /// The firewall.
    Netfilter,
}

impl Family {
    fn protocol(self) -> NlFamily {
        match self {
            Self::Route => NlFamily::Route,
            Self::Netfilter => NlFamily::Netfilter,
        }
    }
}

/// What the kernel refused, in its own words.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub struct NetError {
    /// The operation, as iproute2 would write it.
    pub op: String,
    /// The kernel's error number.
    pub errno: Errno,
    /// The kernel's sentence about it, where it has one.
    pub ext_ack: Option<String>,
}

impl fmt::Display for NetError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // Lower case like Go's and strerror's users grep for: `file exists`.
        let mut text = self.errno.desc().to_owned();
        if let Some(first) = text.get_mut(..1) {
            first.make_ascii_lowercase();
        }
        write!(f, "{}: {text}", self.op)?;
        match &self.ext_ack {
            Some(sentence) => write!(f, " ({sentence})"),
            None => Ok(()),
        }
    }
}

impl NetError {
    pub(crate) fn new(op: impl Into<String>, errno: Errno) -> Self {
        Self {
            op: op.into(),
            errno,
            ext_ack: None,
        }
    }

    pub(crate) fn io(op: impl Into<String>, error: &io::Error) -> Self {
        Self::new(op, error.raw_os_error().map_or(Errno::EIO, Errno::from_raw))
    }

    pub(crate) fn malformed(op: impl Into<String>, why: impl fmt::Display) -> Self {
        Self {
            op: op.into(),
            errno: Errno::EBADMSG,
            ext_ack: Some(why.to_string()),
        }
    }
}

/// What one message of a batch came to.
pub type Outcome = Result<(), NetError>;

/// A message the kernel sent.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Reply {
    /// The message type.
    pub kind: u16,
    /// Everything after the netlink header.
    pub payload: Vec<u8>,
}

#[derive(Debug, Clone)]
struct Entry {
    offset: usize,
    what: Cow<'static, str>,
    control: bool,
}

/// Messages that travel in one send, in order.
#[derive(Debug, Clone, Default)]
pub struct Batch {
    bytes: Vec<u8>,
    entries: Vec<Entry>,
    refused: Option<Cow<'static, str>>,
}

impl Batch {
    /// An empty batch.
    pub fn new() -> Self {
        Self::default()
    }

    /// Adds a message. `flags` are added to REQUEST (so `NlmF::CREATE | NlmF::EXCL` or empty); asking for
    /// acknowledgements is the engine's business. `what` names the message in errors.
    pub fn push(
        &mut self,
        kind: u16,
        flags: NlmF,
        what: impl Into<Cow<'static, str>>,
        body: &Body,
    ) -> &mut Self {
        self.append(kind, flags, what.into(), body, false)
    }

    /// Adds a message that only frames others (`NFNL_MSG_BATCH_BEGIN`, `…_END`): it gets no outcome of its own, and
    /// an error answered to it is the failure of the whole batch.
    pub fn push_control(&mut self, kind: u16, what: impl Into<Cow<'static, str>>, body: &Body) -> &mut Self {
        self.append(kind, NlmF::empty(), what.into(), body, true)
    }

    /// How many messages have an outcome.
    pub fn len(&self) -> usize {
        self.entries.iter().filter(|entry| !entry.control).count()
    }

    /// Whether there is nothing to send.
    pub fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }

    /// How many bytes the send takes.
    pub fn byte_len(&self) -> usize {
        self.bytes.len()
    }

    fn append(
        &mut self,
        kind: u16,
        flags: NlmF,
        what: Cow<'static, str>,
        body: &Body,
        control: bool,
    ) -> &mut Self {
        let payload = body.as_bytes();
        let len = u32::try_from(MESSAGE_HEADER.saturating_add(payload.len()));
        let (Ok(len), false) = (len, body.is_too_long()) else {
            self.refused = Some(what);
            return self;
        };
        let offset = self.bytes.len();
        self.bytes.extend_from_slice(&len.to_ne_bytes());
        self.bytes.extend_from_slice(&kind.to_ne_bytes());
        self.bytes
            .extend_from_slice(&(flags | NlmF::REQUEST).bits().to_ne_bytes());
        self.bytes.extend_from_slice(&[0; 8]); // sequence, filled in at send; port, the kernel knows it
        self.bytes.extend_from_slice(payload);
        self.bytes.resize(align(self.bytes.len()), 0);
        self.entries.push(Entry {
            offset,
            what,
            control,
        });
        self
    }

    /// The bytes with sequence numbers `first`, `first + 1`, …, and an acknowledgement asked of the last message.
    ///
    /// Errors are answered without being asked for, in order, so the last acknowledgement says that every other
    /// message without an error succeeded. Asking for all of them would overrun the receive buffer at some 250.
    fn stamped(&self, first: u32) -> Vec<u8> {
        let mut bytes = self.bytes.clone();
        let last = self.entries.iter().rposition(|entry| !entry.control);
        for (index, entry) in self.entries.iter().enumerate() {
            let seq = first.wrapping_add(u32::try_from(index).unwrap_or(u32::MAX));
            put(&mut bytes, entry.offset.saturating_add(8), seq.to_ne_bytes());
            if Some(index) == last {
                let at = entry.offset.saturating_add(6);
                let flags = array(&bytes, at).map_or(0, u16::from_ne_bytes);
                put(&mut bytes, at, (flags | NlmF::ACK.bits()).to_ne_bytes());
            }
        }
        bytes
    }
}

fn put<const N: usize>(bytes: &mut [u8], at: usize, value: [u8; N]) {
    if let Some(slot) = bytes.get_mut(at..at.saturating_add(N)) {
        slot.copy_from_slice(&value);
    }
}

/// A netlink socket of one network namespace: the one it was created in, wherever it is used from.
pub struct Socket {
    fd: NlSocket,
    next_seq: u32,
    buffer: Vec<u8>,
}

impl fmt::Debug for Socket {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Socket")
            .field("fd", &self.fd.as_raw_fd())
            .finish_non_exhaustive()
    }
}

impl AsRawFd for Socket {
    fn as_raw_fd(&self) -> RawFd {
        self.fd.as_raw_fd()
    }
}

impl AsFd for Socket {
    fn as_fd(&self) -> BorrowedFd<'_> {
        #[expect(
            unsafe_code,
            reason = "neli's NlSocket offers its descriptor only as a raw number"
        )]
        // SAFETY: the descriptor is owned by `self.fd`, which closes it only when dropped, and the returned
        // borrow cannot outlive `self`.
        unsafe {
            BorrowedFd::borrow_raw(self.fd.as_raw_fd())
        }
    }
}

impl Socket {
    /// A socket in the calling thread's namespace.
    ///
    /// # Errors
    /// When the kernel refuses the socket (out of descriptors, family missing).
    pub fn open(family: Family) -> Result<Self, NetError> {
        let op = || format!("open a {family:?} netlink socket");
        let socket = NlSocket::connect(family.protocol(), None, Groups::empty())
            .map_err(|e| NetError::io(op(), &e))?;
        // Old kernels lack both options; errors are then bare numbers and dumps unfiltered, which facts cope with.
        let _bare_errors_will_do = socket.enable_ext_ack(true);
        if family == Family::Route {
            let _unfiltered_dumps_will_do = socket.enable_strict_checking(true);
        }
        Ok(Self {
            fd: socket,
            next_seq: 1,
            buffer: vec![0; RECEIVE_BUFFER],
        })
    }

    /// A socket in the namespace `netns`, made by a scratch thread that enters it and hands the socket back; the
    /// calling thread never leaves its own namespace.
    ///
    /// # Errors
    /// When the namespace cannot be entered or the socket is refused.
    pub fn open_in(netns: BorrowedFd<'_>, family: Family) -> Result<Self, OpenInError> {
        Ok(netns::run_in(netns, || Self::open(family))??)
    }

    /// A non-blocking socket that receives the multicast `groups` (numbers such as `RTNLGRP_LINK`), for
    /// [`Socket::drain`] behind a readiness loop.
    ///
    /// # Errors
    /// When the socket or a group is refused.
    pub fn subscribe(family: Family, groups: &[u32]) -> Result<Self, NetError> {
        let op = || format!("subscribe to {family:?} notifications {groups:?}");
        let socket = Self::open(family)?;
        socket
            .fd
            .add_mcast_membership(Groups::new_groups(groups))
            .and_then(|()| socket.fd.nonblock())
            .map_err(|e| NetError::io(op(), &e))?;
        // Bursts of a few hundred links must fit; without the privilege the default buffer stays, and ENOBUFS tells.
        let _default_will_do = setsockopt(&socket, sockopt::RcvBufForce, &(4 << 20));
        Ok(socket)
    }

    /// Sends the batch and returns one outcome per message, in order.
    ///
    /// # Errors
    /// When the batch as a whole failed: not sent, not answered, or its framing refused.
    pub fn run(&mut self, batch: &Batch) -> Result<Vec<Outcome>, NetError> {
        if let Some(what) = &batch.refused {
            return Err(NetError::new(what.as_ref(), Errno::EMSGSIZE));
        }
        let Some(last) = batch.entries.iter().rposition(|entry| !entry.control) else {
            return Ok(Vec::new());
        };
        let first = self.take_seqs(batch.entries.len());
        if batch.byte_len() > ROOMY_BATCH {
            // Refused without CAP_NET_ADMIN; then the send says EMSGSIZE itself.
            let _send_will_tell = setsockopt(self, sockopt::SndBufForce, &batch.byte_len().saturating_mul(2));
        }
        self.send(&batch.stamped(first), || summary(batch))?;
        let mut outcomes: Vec<Outcome> = batch.entries.iter().map(|_| Ok(())).collect();
        let mut done = false;
        while !done {
            self.receive(
                || summary(batch),
                |message| {
                    let index = usize::try_from(message.seq.wrapping_sub(first)).unwrap_or(usize::MAX);
                    let Some(entry) = batch.entries.get(index) else {
                        return Ok(()); // an answer to an earlier request that was given up
                    };
                    if message.kind != u16::from(Nlmsg::Error) {
                        return Ok(()); // an echo
                    }
                    let outcome = message.verdict(&entry.what);
                    if entry.control {
                        return outcome;
                    }
                    done |= index == last;
                    if let Some(slot) = outcomes.get_mut(index) {
                        *slot = outcome;
                    }
                    Ok(())
                },
            )?;
        }
        let mut entries = batch.entries.iter();
        outcomes.retain(|_| entries.next().is_some_and(|entry| !entry.control));
        Ok(outcomes)
    }

    /// Sends the batch and returns its first failure.
    ///
    /// # Errors
    /// The first message's error in order; later rtnetlink messages may have succeeded nevertheless.
    pub fn run_all(&mut self, batch: &Batch) -> Result<(), NetError> {
        self.run(batch)?.into_iter().collect()
    }

    /// Asks for one object. `None` never happens for requests the kernel answers; see the error for "not found".
    ///
    /// # Errors
    /// The kernel's, for example ENODEV for a link that is not there.
    pub fn get(
        &mut self,
        kind: u16,
        what: impl Into<Cow<'static, str>>,
        body: &Body,
    ) -> Result<Option<Reply>, NetError> {
        let what = what.into();
        let mut batch = Batch::new();
        batch.push(kind, NlmF::empty(), what.clone(), body);
        if batch.refused.is_some() {
            return Err(NetError::new(what, Errno::EMSGSIZE));
        }
        let seq = self.take_seqs(1);
        self.send(&batch.stamped(seq), || what.to_string())?;
        let (mut reply, mut done) = (None, false);
        while !done {
            self.receive(
                || what.to_string(),
                |message| {
                    if message.seq != seq {
                        return Ok(());
                    }
                    if message.kind == u16::from(Nlmsg::Error) {
                        done = true;
                        return message.verdict(&what);
                    }
                    reply = Some(message.to_reply());
                    Ok(())
                },
            )?;
        }
        Ok(reply)
    }

    /// Asks for all objects of a kind; a dump torn by concurrent changes is repeated.
    ///
    /// # Errors
    /// The kernel's; EINTR when five attempts were all torn.
    pub fn dump(
        &mut self,
        kind: u16,
        what: impl Into<Cow<'static, str>>,
        body: &Body,
    ) -> Result<Vec<Reply>, NetError> {
        let what = what.into();
        for _attempt in 0..DUMP_ATTEMPTS {
            if let Some(replies) = self.dump_once(kind, &what, body)? {
                return Ok(replies);
            }
        }
        Err(NetError::new(what, Errno::EINTR))
    }

    fn dump_once(&mut self, kind: u16, what: &str, body: &Body) -> Result<Option<Vec<Reply>>, NetError> {
        let mut batch = Batch::new();
        batch.push(kind, NlmF::DUMP, what.to_owned(), body);
        let seq = self.take_seqs(1);
        self.send(&batch.stamped(seq), || what.to_owned())?;
        let (mut replies, mut done, mut torn) = (Vec::new(), false, false);
        while !done {
            self.receive(
                || what.to_owned(),
                |message| {
                    if message.seq != seq {
                        return Ok(());
                    }
                    torn |= message.flags & NlmF::DUMP_INTR.bits() != 0;
                    if message.kind == u16::from(Nlmsg::Done) || message.kind == u16::from(Nlmsg::Error) {
                        done = true;
                        return message.verdict(what);
                    }
                    replies.push(message.to_reply());
                    Ok(())
                },
            )?;
        }
        Ok((!torn).then_some(replies))
    }

    /// Reads what a subscription has received, without waiting. Empty when there is nothing more.
    ///
    /// # Errors
    /// ENOBUFS when the kernel dropped notifications: whoever listens must look at everything again.
    pub fn drain(&mut self) -> Result<Vec<Reply>, NetError> {
        let mut replies = Vec::new();
        match self.receive_once(|| "receive notifications".to_owned(), &mut |message: Received<
            '_,
        >| {
            replies.push(message.to_reply());
            Ok(())
        }) {
            Err(error) if error.errno == Errno::EAGAIN => Ok(replies),
            Err(error) => Err(error),
            Ok(()) => Ok(replies),
        }
    }

    fn take_seqs(&mut self, count: usize) -> u32 {
        let first = self.next_seq;
        self.next_seq = first.wrapping_add(u32::try_from(count).unwrap_or(u32::MAX));
        first
    }

    fn send(&self, bytes: &[u8], op: impl Fn() -> String) -> Result<(), NetError> {
        loop {
            match self.fd.send(bytes, Msg::empty()) {
                Ok(_) => return Ok(()),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(NetError::io(op(), &error)),
            }
        }
    }

    fn receive(
        &mut self,
        op: impl Fn() -> String,
        mut each: impl FnMut(Received<'_>) -> Result<(), NetError>,
    ) -> Result<(), NetError> {
        match self.receive_once(&op, &mut each) {
            Err(error) if error.errno == Errno::EAGAIN => {
                let mut fds = [PollFd::new(self.as_fd(), PollFlags::POLLIN)];
                match poll(&mut fds, PollTimeout::from(ANSWER_TIMEOUT_MS)) {
                    Ok(0) => Err(NetError::new(op(), Errno::ETIMEDOUT)),
                    Ok(_) | Err(Errno::EINTR) => Ok(()),
                    Err(errno) => Err(NetError::new(op(), errno)),
                }
            }
            result => result,
        }
    }

    fn receive_once(
        &mut self,
        op: impl Fn() -> String,
        each: &mut impl FnMut(Received<'_>) -> Result<(), NetError>,
    ) -> Result<(), NetError> {
        let len = match self.fd.recv(&mut self.buffer, Msg::DONTWAIT | Msg::TRUNC) {
            Ok((len, _groups)) => len,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => return Ok(()),
            Err(error) => return Err(NetError::io(op(), &error)),
        };
        let mut rest = self.buffer.get(..len).ok_or_else(|| {
            NetError::malformed(op(), format_args!("an answer of {len} bytes exceeds the buffer"))
        })?;
        while !rest.is_empty() {
            let (message, after) =
                Received::split(rest).ok_or_else(|| NetError::malformed(op(), "a message length lies"))?;
            each(message)?;
            rest = after;
        }
        Ok(())
    }
}

fn summary(batch: &Batch) -> String {
    match batch.entries.as_slice() {
        [only] => only.what.to_string(),
        [first, rest @ ..] => format!("{} and {} more", first.what, rest.len()),
        [] => "nothing".to_owned(),
    }
}

/// Why a socket could not be opened inside another namespace.
#[derive(Debug, thiserror::Error)]
pub enum OpenInError {
    /// The namespace could not be entered.
    #[error(transparent)]
    Netns(#[from] NetnsError),
    /// The socket was refused.
    #[error(transparent)]
    Socket(#[from] NetError),
}

#[derive(Debug, Clone, Copy)]
struct Received<'a> {
    kind: u16,
    flags: u16,
    seq: u32,
    payload: &'a [u8],
}

impl<'a> Received<'a> {
    fn split(bytes: &'a [u8]) -> Option<(Self, &'a [u8])> {
        let len = usize::try_from(array(bytes, 0).map(u32::from_ne_bytes)?).ok()?;
        let message = Self {
            kind: array(bytes, 4).map(u16::from_ne_bytes)?,
            flags: array(bytes, 6).map(u16::from_ne_bytes)?,
            seq: array(bytes, 8).map(u32::from_ne_bytes)?,
            payload: bytes.get(MESSAGE_HEADER..len)?,
        };
        Some((message, bytes.get(align(len)..).unwrap_or_default()))
    }

    fn to_reply(self) -> Reply {
        Reply {
            kind: self.kind,
            payload: self.payload.to_vec(),
        }
    }

    /// Reads `NLMSG_ERROR` and `NLMSG_DONE`: both start with an error number, zero or negative.
    fn verdict(self, what: &str) -> Outcome {
        let Some(code) = array(self.payload, 0).map(i32::from_ne_bytes) else {
            // A DONE without a number ended well on kernels before 2.6.
            return Ok(());
        };
        if code == 0 {
            return Ok(());
        }
        Err(NetError {
            op: what.to_owned(),
            errno: Errno::from_raw(code.wrapping_neg()),
            ext_ack: self.ext_ack(),
        })
    }

    /// The extended acknowledgement follows the number and, unless capped, an echo of the whole request.
    fn ext_ack(self) -> Option<String> {
        if self.flags & NlmF::ACK_TLVS.bits() == 0 {
            return None;
        }
        let skip = if self.kind == u16::from(Nlmsg::Done) {
            4
        } else if self.flags & NlmF::CAPPED.bits() != 0 {
            4 + MESSAGE_HEADER
        } else {
            let echoed = usize::try_from(array(self.payload, 4).map(u32::from_ne_bytes)?).ok()?;
            align(echoed.checked_add(4)?)
        };
        let text = Attrs::parse(self.payload.get(skip..)?)
            .ok()?
            .find(NLMSGERR_ATTR_MSG)?
            .str()?;
        Some(text.to_owned())
    }
}

#[cfg(test)]
mod tests {
    use nix::libc::{IFLA_IFNAME, RTM_DELLINK, RTM_GETLINK, RTM_NEWLINK, RTM_NEWRULE, RTNLGRP_LINK};
    use proptest::prelude::*;

    use super::super::testing::in_fresh_netns;
    use super::*;

    fn link_named(name: &str) -> Body {
        let mut body = Body::new(&[0; 16]);
        body.str(IFLA_IFNAME, name);
        body
    }

    #[test]
    fn each_message_of_a_batch_gets_its_own_outcome() {
        in_fresh_netns(|| {
            let mut socket = Socket::open(Family::Route).unwrap();
            let mut batch = Batch::new();
            batch
                .push(RTM_DELLINK, NlmF::empty(), "delete link a", &link_named("a"))
                .push(RTM_NEWLINK, NlmF::empty(), "set link lo", &link_named("lo"))
                .push(RTM_DELLINK, NlmF::empty(), "delete link b", &link_named("b"))
                .push(RTM_NEWLINK, NlmF::empty(), "set link lo", &link_named("lo"));
            let outcomes = socket.run(&batch).unwrap();
            let errnos: Vec<_> = outcomes
                .iter()
                .map(|o| o.as_ref().err().map(|e| e.errno))
                .collect();
            assert_eq!(errnos, [Some(Errno::ENODEV), None, Some(Errno::ENODEV), None]);
            assert_eq!(
                outcomes[2].as_ref().unwrap_err().to_string(),
                "delete link b: no such device"
            );
            assert_eq!(socket.run_all(&batch).unwrap_err().op, "delete link a");
            // The socket stays in step after errors.
            assert!(
                socket
                    .get(RTM_GETLINK, "get lo", &link_named("lo"))
                    .unwrap()
                    .is_some()
            );
        });
    }

    #[test]
    fn a_failing_last_message_ends_the_batch_too() {
        in_fresh_netns(|| {
            let mut socket = Socket::open(Family::Route).unwrap();
            let mut batch = Batch::new();
            batch.push(RTM_DELLINK, NlmF::empty(), "delete link a", &link_named("a"));
            assert!(socket.run(&batch).unwrap()[0].is_err());
            assert!(socket.run(&Batch::new()).unwrap().is_empty());
        });
    }

    #[test]
    fn the_kernels_own_sentence_is_kept() {
        in_fresh_netns(|| {
            let mut socket = Socket::open(Family::Route).unwrap();
            // A rule for an address family that has no rules.
            let mut batch = Batch::new();
            batch.push(
                RTM_NEWRULE,
                NlmF::CREATE,
                "add rule",
                &Body::new(&[77, 32, 0, 0, 0, 0, 0, 1, 0, 0, 0, 0]),
            );
            let error = socket.run_all(&batch).unwrap_err();
            assert!(error.ext_ack.is_some(), "{error:?}");
        });
    }

    #[test]
    fn dumps_and_subscriptions() {
        in_fresh_netns(|| {
            let mut watch = Socket::subscribe(Family::Route, &[RTNLGRP_LINK]).unwrap();
            let mut socket = Socket::open(Family::Route).unwrap();
            let links = socket
                .dump(RTM_GETLINK, "list links", &Body::new(&[0; 16]))
                .unwrap();
            assert!(!links.is_empty());
            assert!(links.iter().all(|link| link.kind == RTM_NEWLINK));
            assert!(watch.drain().unwrap().is_empty());
            let mut up = [0; 16];
            up[4] = 1; // lo
            up[8] = 1; // IFF_UP
            up[12] = 1;
            let mut batch = Batch::new();
            batch.push(RTM_NEWLINK, NlmF::empty(), "set lo up", &Body::new(&up));
            socket.run_all(&batch).unwrap();
            assert!(!watch.drain().unwrap().is_empty());
        });
    }

    #[test]
    fn too_long_a_message_is_refused_before_the_send() {
        in_fresh_netns(|| {
            let mut body = Body::new(&[0; 16]);
            body.bytes(1, &vec![0; 70_000]);
            let mut batch = Batch::new();
            batch.push(RTM_NEWLINK, NlmF::empty(), "add a monster", &body);
            let error = Socket::open(Family::Route).unwrap().run(&batch).unwrap_err();
            assert_eq!(
                (error.errno, error.op.as_str()),
                (Errno::EMSGSIZE, "add a monster")
            );
        });
    }

    #[test]
    fn a_batch_larger_than_the_default_send_buffer_travels_whole() {
        in_fresh_netns(|| {
            let mut socket = Socket::open(Family::Route).unwrap();
            let mut batch = Batch::new();
            for _ in 0..6_000 {
                batch.push(RTM_NEWLINK, NlmF::empty(), "set link lo", &link_named("lo"));
            }
            assert!(batch.byte_len() > 212_992);
            assert_eq!(socket.run(&batch).unwrap().len(), 6_000);
        });
    }

    proptest! {
        #[test]
        fn hostile_answers_never_panic(bytes in proptest::collection::vec(any::<u8>(), 0..128)) {
            if let Some((message, _)) = Received::split(&bytes) {
                let _seen = (message.verdict("x"), message.to_reply());
            }
        }
    }
}
