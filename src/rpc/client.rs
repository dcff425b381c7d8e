//! The plugins' side of the socket: blocking, with a deadline, without tokio.

use std::io::{self, Read, Write};
use std::os::fd::{AsFd, AsRawFd};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::{Duration, Instant};

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::socket::{
    AddressFamily, MsgFlags, SockFlag, SockType, UnixAddr, connect, recv, setsockopt, socket, sockopt,
};
use nix::sys::time::TimeVal;

use super::frame::{self, FrameBuffer, FrameError, MAX_REPLY};
use super::types::{
    Add, Allocation, Assigned, Check, Collected, Cordon, Del, Gc, Released, Reply, Request, ServiceError,
    Status,
};

/// Why the daemon gave no usable answer.
#[derive(Debug, thiserror::Error)]
pub enum ClientError {
    /// Nobody listens, or not in time.
    #[error("cannot connect to {path}: {source}")]
    Connect {
        /// The socket.
        path: String,
        /// What the kernel said.
        source: io::Error,
    },
    /// The request could not be sent.
    #[error("cannot send the request: {0}")]
    Send(io::Error),
    /// The connection broke while waiting.
    #[error("cannot read the answer: {0}")]
    Receive(io::Error),
    /// The daemon closed without (the rest of) an answer.
    #[error("the daemon closed the connection without an answer")]
    Closed,
    /// The deadline passed.
    #[error("no answer within {0:?}")]
    Deadline(Duration),
    /// The answer is not understood.
    #[error("the answer is not understood: {0}")]
    Frame(#[from] FrameError),
    /// The daemon answered with a failure.
    #[error("{0}")]
    Service(Box<ServiceError>),
}

impl ClientError {
    /// The daemon's own explanation, when it gave one.
    pub fn service(&self) -> Option<&ServiceError> {
        match self {
            Self::Service(error) => Some(error),
            _ => None,
        }
    }
}

/// One connection for one request.
#[derive(Debug)]
pub struct Client {
    stream: UnixStream,
    buffer: FrameBuffer,
    patience: Duration,
    until: Instant,
}

impl Client {
    /// Connects; every later step shares the same deadline of `patience` from now.
    ///
    /// # Errors
    /// [`ClientError::Connect`].
    pub fn connect(path: &Path, patience: Duration) -> Result<Self, ClientError> {
        let until = Instant::now() + patience;
        let stream = connect_within(path, patience).map_err(|source| ClientError::Connect {
            path: path.display().to_string(),
            source,
        })?;
        Ok(Self {
            stream,
            buffer: FrameBuffer::new(MAX_REPLY),
            patience,
            until,
        })
    }

    /// Asks for an address without waiting for it, so that the plugin can prepare the kernel meanwhile.
    ///
    /// # Errors
    /// Any [`ClientError`].
    pub fn send_add(mut self, add: Add) -> Result<SentAdd, ClientError> {
        let request = Request::Add(add);
        self.send(&request)?;
        Ok(SentAdd {
            client: self,
            request,
        })
    }

    /// Gives an address back; [`PendingDel::settled`] then waits for the disk.
    ///
    /// # Errors
    /// Any [`ClientError`].
    pub fn del(mut self, del: Del) -> Result<(Released, PendingDel), ClientError> {
        let request = Request::Del(del);
        self.send(&request)?;
        match self.receive(&request)? {
            Reply::Released(released) => Ok((
                released,
                PendingDel {
                    client: self,
                    request,
                },
            )),
            _ => Err(FrameError::Empty.into()),
        }
    }

    /// Asks what a sandbox holds.
    ///
    /// # Errors
    /// Any [`ClientError`].
    pub fn check(self, check: Check) -> Result<Allocation, ClientError> {
        match self.ask(&Request::Check(check))? {
            Reply::Checked(allocation) => Ok(allocation),
            _ => Err(FrameError::Empty.into()),
        }
    }

    /// Tells which sandboxes live.
    ///
    /// # Errors
    /// Any [`ClientError`].
    pub fn gc(self, gc: Gc) -> Result<Collected, ClientError> {
        match self.ask(&Request::Gc(gc))? {
            Reply::Collected(collected) => Ok(collected),
            _ => Err(FrameError::Empty.into()),
        }
    }

    /// Says whether the node takes new pods, and waits until that is on the disk.
    ///
    /// # Errors
    /// Any [`ClientError`].
    pub fn cordon(self, cordoned: bool) -> Result<(), ClientError> {
        match self.ask(&Request::Cordon(Cordon { cordoned }))? {
            Reply::Settled => Ok(()),
            _ => Err(FrameError::Empty.into()),
        }
    }

    /// Asks whether ADDs can be served.
    ///
    /// # Errors
    /// Any [`ClientError`].
    pub fn status(self) -> Result<Status, ClientError> {
        match self.ask(&Request::Status)? {
            Reply::Status(status) => Ok(status),
            _ => Err(FrameError::Empty.into()),
        }
    }

    /// Asks for everything.
    ///
    /// # Errors
    /// Any [`ClientError`].
    pub fn dump(self) -> Result<serde_json::Value, ClientError> {
        match self.ask(&Request::Dump)? {
            Reply::Dump(value) => Ok(value),
            _ => Err(FrameError::Empty.into()),
        }
    }

    fn ask(mut self, request: &Request) -> Result<Reply, ClientError> {
        self.send(request)?;
        self.receive(request)
    }

    fn send(&mut self, request: &Request) -> Result<(), ClientError> {
        let frame = frame::encode_request(request)?;
        let remaining = self.remaining()?;
        let sent = self
            .stream
            .set_write_timeout(Some(remaining))
            .and_then(|()| self.stream.write_all(&frame));
        match sent {
            // A daemon that has no room refuses before it reads, and its answer waits to be read.
            Err(error) if error.kind() == io::ErrorKind::BrokenPipe => Ok(()),
            sent => sent.map_err(|error| self.late_or(error, ClientError::Send)),
        }
    }

    fn receive(&mut self, request: &Request) -> Result<Reply, ClientError> {
        let frame = self.read_frame()?;
        frame::decode_reply(request, &frame)?.map_err(ClientError::Service)
    }

    fn read_frame(&mut self) -> Result<Vec<u8>, ClientError> {
        let mut chunk = [0_u8; 4096];
        loop {
            if let Some(frame) = self.buffer.next_frame()? {
                return Ok(frame);
            }
            let remaining = self.remaining()?;
            let count = self
                .stream
                .set_read_timeout(Some(remaining))
                .and_then(|()| self.stream.read(&mut chunk));
            match count {
                Ok(0) => return Err(ClientError::Closed),
                Ok(count) => self.buffer.push(chunk.get(..count).unwrap_or_default()),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(self.late_or(error, ClientError::Receive)),
            }
        }
    }

    fn remaining(&self) -> Result<Duration, ClientError> {
        let remaining = self.until.saturating_duration_since(Instant::now());
        if remaining.is_zero() {
            return Err(ClientError::Deadline(self.patience));
        }
        Ok(remaining)
    }

    fn late_or(&self, error: io::Error, otherwise: fn(io::Error) -> ClientError) -> ClientError {
        match error.kind() {
            io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut => ClientError::Deadline(self.patience),
            _ => otherwise(error),
        }
    }
}

/// A connection that has served.
#[derive(Debug)]
#[must_use = "it closes when dropped"]
pub struct Connection(#[expect(dead_code, reason = "held, not used")] Client);

/// An ADD on its way.
#[derive(Debug)]
pub struct SentAdd {
    client: Client,
    request: Request,
}

impl SentAdd {
    /// Whether (part of) an answer, or the end of the connection, is there already. Never waits.
    pub fn is_answered(&self) -> bool {
        let mut fds = [PollFd::new(self.client.stream.as_fd(), PollFlags::POLLIN)];
        !matches!(poll(&mut fds, PollTimeout::ZERO), Ok(0))
    }

    /// Waits for the address; [`PendingAdd::durable`] then waits for the disk.
    ///
    /// # Errors
    /// Any [`ClientError`].
    pub fn assigned(mut self) -> Result<(Assigned, PendingAdd), ClientError> {
        match self.client.receive(&self.request)? {
            Reply::Assigned(assigned) => Ok((
                assigned,
                PendingAdd {
                    client: self.client,
                    request: self.request,
                },
            )),
            _ => Err(FrameError::Empty.into()),
        }
    }
}

/// An ADD that has its address and waits for it to be durable.
#[derive(Debug)]
pub struct PendingAdd {
    client: Client,
    request: Request,
}

impl PendingAdd {
    /// Whether the daemon is gone without its last word: then it may be another sandbox that has the address by now.
    /// Never waits.
    pub fn is_lost(&self) -> bool {
        let mut next = [0];
        self.client.buffer.pending() == 0
            && recv(
                self.client.stream.as_raw_fd(),
                &mut next,
                MsgFlags::MSG_PEEK | MsgFlags::MSG_DONTWAIT,
            )
            .is_ok_and(|count| count == 0)
    }

    /// Waits until the allocation is on the disk. The connection stays open as long as what is returned: the daemon,
    /// which wakes up when it closes, need not do so before the runtime has its answer.
    ///
    /// # Errors
    /// Any [`ClientError`].
    pub fn durable(mut self) -> Result<Connection, ClientError> {
        match self.client.receive(&self.request)? {
            Reply::Durable => Ok(Connection(self.client)),
            _ => Err(FrameError::Empty.into()),
        }
    }
}

/// A release that waits to be durable.
#[derive(Debug)]
pub struct PendingDel {
    client: Client,
    request: Request,
}

impl PendingDel {
    /// Waits until the release is on the disk.
    ///
    /// # Errors
    /// Any [`ClientError`].
    pub fn settled(mut self) -> Result<(), ClientError> {
        match self.client.receive(&self.request)? {
            Reply::Settled => Ok(()),
            _ => Err(FrameError::Empty.into()),
        }
    }
}

/// `connect` on a unix socket blocks while the listener's backlog is full; the send timeout bounds it (unix(7)).
fn connect_within(path: &Path, patience: Duration) -> io::Result<UnixStream> {
    let fd = socket(
        AddressFamily::Unix,
        SockType::Stream,
        SockFlag::SOCK_CLOEXEC,
        None,
    )?;
    let micros = i64::try_from(patience.as_micros()).unwrap_or(i64::MAX).max(1);
    let timeout = TimeVal::new(micros / 1_000_000, micros % 1_000_000);
    setsockopt(&fd, sockopt::SendTimeout, &timeout)?;
    connect(fd.as_raw_fd(), &UnixAddr::new(path)?)?;
    Ok(UnixStream::from(fd))
}
