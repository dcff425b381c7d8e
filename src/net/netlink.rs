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

mod batch;
mod error;
mod own;
mod received;

pub use batch::Batch;
pub use error::NetError;
pub use own::is_own_port;

use batch::summary;
use received::Received;

use super::netns::{self, NetnsError};
use super::wire::Body;

/// The kernel never fills more than this into one part of a dump, and fits its parts to the reader's buffer.
const RECEIVE_BUFFER: usize = 32 * 1024;
/// An acknowledgement is short, but one of a failure may carry the whole message back.
const ANSWER_BUFFER: usize = 2 * 1024;
/// The default send buffer is 208 KiB; a batch near that asks for more.
const ROOMY_BATCH: usize = 128 * 1024;
/// A dump that other changes interrupted is started again this often (the Go daemon's number).
const DUMP_ATTEMPTS: u32 = 5;
/// An answer that is not there after this long is never coming.
const ANSWER_TIMEOUT_MS: u16 = 5_000;

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

/// What one message of a batch came to.
pub type Outcome = Result<(), NetError>;

/// A message the kernel sent.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Reply {
    /// The message type.
    pub kind: u16,
    /// The socket whose request this is about; 0 when it is the kernel's own doing.
    pub port: u32,
    /// Everything after the netlink header.
    pub payload: Vec<u8>,
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
        socket.pid().map_or_else(drop, own::remember);
        // Old kernels lack both options; errors are then bare numbers and dumps unfiltered, which facts cope with.
        let _bare_errors_will_do = socket.enable_ext_ack(true);
        if family == Family::Route {
            let _unfiltered_dumps_will_do = socket.enable_strict_checking(true);
        }
        Ok(Self {
            fd: socket,
            next_seq: 1,
            buffer: Vec::new(),
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
        self.make_room(batch.byte_len().saturating_add(ANSWER_BUFFER));
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
        self.make_room(RECEIVE_BUFFER);
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
        self.make_room(RECEIVE_BUFFER);
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
        self.make_room(RECEIVE_BUFFER);
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

    /// What a socket of a plugin never needs is not allocated.
    fn make_room(&mut self, len: usize) {
        if self.buffer.len() < len {
            self.buffer.resize(len, 0);
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

/// The messages of a receive buffer, up to the first whose length lies.
#[cfg(any(test, feature = "fuzz"))]
pub fn read_messages(mut bytes: &[u8]) -> Vec<Reply> {
    let mut replies = Vec::new();
    while let Some((message, after)) = Received::split(bytes) {
        replies.push(message.to_reply());
        let _never_panics = message.verdict("fuzz");
        if after.len() >= bytes.len() {
            break;
        }
        bytes = after;
    }
    replies
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

#[cfg(test)]
mod tests;
