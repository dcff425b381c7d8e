//! The daemon's side of the socket: accepts, checks the peer, reads one request and writes its replies.
//!
//! Deciding happens elsewhere: every request goes as an [`Incoming::Call`] into one channel, with a [`Replies`] to
//! answer through. When the client goes away before it has read the last reply, [`Incoming::HungUp`] follows, so
//! that what was done for it can be undone.

use std::future::Future;
use std::io;
use std::os::fd::AsFd;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use nix::poll::{PollFd, PollFlags, PollTimeout};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::{Semaphore, mpsc};
use tokio::task::JoinSet;
use tokio::time::{Instant, timeout, timeout_at};

use super::frame::{self, FrameBuffer, FrameError, MAX_REQUEST};
use super::types::{ErrorKind, Reply, Request, ServiceError};

/// The socket's bounds.
#[derive(Debug, Clone, Copy)]
pub struct Limits {
    /// Connections at once; one more is told to try again. 440 pods at once on a node are the largest burst known.
    pub connections: usize,
    /// How long a client may take to send its request.
    pub read: Duration,
    /// How long a client may take to accept a reply.
    pub write: Duration,
    /// The longest deadline a request may ask for, and the one of requests that carry none.
    pub longest: Duration,
    /// How much later than the deadline the server itself answers, should the daemon not have done so.
    pub grace: Duration,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            connections: 1024,
            read: Duration::from_secs(5),
            write: Duration::from_secs(5),
            longest: Duration::from_mins(5),
            grace: Duration::from_secs(2),
        }
    }
}

/// What a call is answered with.
pub type Answer = Result<Reply, Box<ServiceError>>;

/// One request's number, unique while the daemon runs; the pool's waiter id.
pub type CallId = u64;

/// What the socket tells the daemon.
#[derive(Debug)]
pub enum Incoming {
    /// A request to answer.
    Call(Box<Call>),
    /// The client of this call went away before it had read the last reply.
    HungUp {
        /// Which call.
        id: CallId,
    },
}

/// A request and the way to answer it.
#[derive(Debug)]
pub struct Call {
    /// Its number.
    pub id: CallId,
    /// What is asked.
    pub request: Request,
    /// When the client stops waiting.
    pub deadline: Instant,
    /// Where the answers go.
    pub replies: Replies,
}

/// Answers one call; never blocks. Dropping it before the last reply answers [`ErrorKind::Internal`].
#[derive(Debug)]
pub struct Replies {
    sender: mpsc::UnboundedSender<Answer>,
}

impl Replies {
    /// Sends a reply; false when the client is gone already.
    pub fn send(&self, reply: Reply) -> bool {
        self.sender.send(Ok(reply)).is_ok()
    }

    /// Sends a failure, which is always the last reply; false when the client is gone already.
    pub fn fail(&self, error: ServiceError) -> bool {
        self.sender.send(Err(Box::new(error))).is_ok()
    }
}

/// Binds the socket for root alone, in place of one that a dead daemon left behind.
///
/// # Errors
/// What the kernel says, also when another daemon listens there.
pub fn bind(path: &Path) -> io::Result<UnixListener> {
    if let Some(folder) = path.parent() {
        std::fs::create_dir_all(folder)?;
    }
    if std::os::unix::net::UnixStream::connect(path).is_ok() {
        return Err(io::Error::new(
            io::ErrorKind::AddrInUse,
            format!("another daemon listens on {}", path.display()),
        ));
    }
    match std::fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    let listener = UnixListener::bind(path)?;
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o600))?;
    Ok(listener)
}

/// Serves until `stop` resolves, then finishes the calls that are open.
///
/// # Errors
/// None today; accept errors are waited out, since they are about file descriptors that come back.
pub async fn serve(
    listener: UnixListener,
    limits: Limits,
    calls: mpsc::Sender<Incoming>,
    stop: impl Future<Output = ()>,
) {
    let slots = Arc::new(Semaphore::new(limits.connections));
    let mut open = JoinSet::new();
    let mut next_id: CallId = 1;
    tokio::pin!(stop);
    loop {
        let accepted = tokio::select! {
            biased;
            () = &mut stop => break,
            Some(_) = open.join_next(), if !open.is_empty() => continue,
            accepted = listener.accept() => accepted,
        };
        let Ok((stream, _)) = accepted else {
            // EMFILE and ENFILE pass when connections close; accepting in a tight loop would only burn CPU.
            tokio::time::sleep(Duration::from_millis(50)).await;
            continue;
        };
        let connection = Connection {
            id: next_id,
            stream,
            limits,
            calls: calls.clone(),
        };
        next_id = next_id.saturating_add(1);
        match Arc::clone(&slots).try_acquire_owned() {
            Ok(slot) => {
                open.spawn(async move {
                    connection.run().await;
                    drop(slot);
                });
            }
            Err(_) => connection.turn_away(),
        }
    }
    drop(listener);
    while open.join_next().await.is_some() {}
}

struct Connection {
    id: CallId,
    stream: UnixStream,
    limits: Limits,
    calls: mpsc::Sender<Incoming>,
}

enum Outcome {
    Delivered,
    HungUp,
}

impl Connection {
    /// Says no without waiting: the frame fits the fresh socket's buffer.
    fn turn_away(self) {
        let error = ServiceError::new(
            ErrorKind::TryAgain,
            format!(
                "{} requests are open, which is the limit",
                self.limits.connections
            ),
        )
        .with_next_step("nothing; the runtime retries");
        if let Ok(frame) = frame::encode_error(&error) {
            self.stream.try_write(&frame).ok();
        }
    }

    async fn run(mut self) {
        let request = match self.read_request().await {
            Ok(Some(request)) => request,
            Ok(None) => return,
            Err(error) => {
                self.write_last(Err(error)).await.ok();
                return;
            }
        };
        let deadline = Instant::now() + self.deadline_of(&request);
        let (sender, receiver) = mpsc::unbounded_channel();
        let call = Call {
            id: self.id,
            request,
            deadline,
            replies: Replies { sender },
        };
        if self.calls.try_send(Incoming::Call(Box::new(call))).is_err() {
            let error = ServiceError::new(ErrorKind::TryAgain, "the daemon has too many requests to work on");
            self.write_last(Err(error.into())).await.ok();
            return;
        }
        if let Outcome::HungUp = self.answer(receiver, deadline + self.limits.grace).await {
            self.calls.send(Incoming::HungUp { id: self.id }).await.ok();
        }
    }

    fn deadline_of(&self, request: &Request) -> Duration {
        match request {
            Request::Add(add) => Duration::from_millis(add.deadline_ms).min(self.limits.longest),
            _ => self.limits.longest,
        }
    }

    /// `None` when the peer said nothing at all, as a probe that only connects does.
    async fn read_request(&mut self) -> Result<Option<Request>, Box<ServiceError>> {
        self.check_peer()?;
        let frame = timeout(self.limits.read, self.read_frame())
            .await
            .map_err(|_| ServiceError::new(ErrorKind::Deadline, "no whole request came in time"))?;
        match frame {
            Ok(Some(frame)) => frame::decode_request(&frame).map(Some),
            Ok(None) => Ok(None),
            Err(error) => Err(ServiceError::new(ErrorKind::BadRequest, error.to_string()).into()),
        }
    }

    fn check_peer(&self) -> Result<(), Box<ServiceError>> {
        let refuse = |who: String| -> Box<ServiceError> {
            ServiceError::new(ErrorKind::Denied, format!("{who} may not use this socket"))
                .with_next_step("run as root")
                .into()
        };
        let peer = self
            .stream
            .peer_cred()
            .map_err(|error| refuse(format!("a peer without credentials ({error})")))?;
        if peer.uid() == 0 || peer.uid() == nix::unistd::geteuid().as_raw() {
            return Ok(());
        }
        Err(refuse(format!("uid {}", peer.uid())))
    }

    async fn read_frame(&mut self) -> Result<Option<Vec<u8>>, FrameError> {
        let mut buffer = FrameBuffer::new(MAX_REQUEST);
        let mut chunk = [0_u8; 4096];
        loop {
            // A reset is the same news as an end: nobody is there to be told.
            let count = self.stream.read(&mut chunk).await.unwrap_or(0);
            if count == 0 {
                return Ok(None);
            }
            buffer.push(chunk.get(..count).unwrap_or_default());
            if let Some(frame) = buffer.next_frame()? {
                return match buffer.pending() {
                    0 => Ok(Some(frame)),
                    extra => Err(FrameError::Trailing { extra }),
                };
            }
        }
    }

    async fn answer(&mut self, mut replies: mpsc::UnboundedReceiver<Answer>, backstop: Instant) -> Outcome {
        loop {
            let reply = tokio::select! {
                biased;
                reply = replies.recv() => reply,
                () = hung_up(&self.stream) => return Outcome::HungUp,
                () = tokio::time::sleep_until(backstop) => {
                    let late = ServiceError::new(ErrorKind::Deadline, "the daemon found no answer in time");
                    self.write_last(Err(late.into())).await.ok();
                    return Outcome::HungUp;
                }
            };
            let dropped = ServiceError::new(ErrorKind::Internal, "the daemon dropped the request");
            let reply = reply.unwrap_or_else(|| Err(dropped.into()));
            if !matches!(&reply, Ok(reply) if reply.continues()) {
                return self.write_last(reply).await.unwrap_or(Outcome::HungUp);
            }
            // Both frames of a fast ADD go out in one write, which is one wake-up of the plugin.
            let mut bytes = encode(&reply);
            match replies.try_recv() {
                Ok(last) => {
                    bytes.extend(encode(&last));
                    return self.write_and_linger(&bytes).await.unwrap_or(Outcome::HungUp);
                }
                Err(_) if self.write(&bytes).await.is_err() => return Outcome::HungUp,
                Err(_) => {}
            }
        }
    }

    async fn write_last(&mut self, reply: Answer) -> io::Result<Outcome> {
        let bytes = encode(&reply);
        self.write_and_linger(&bytes).await
    }

    async fn write(&mut self, bytes: &[u8]) -> io::Result<()> {
        timeout(self.limits.write, self.stream.write_all(bytes)).await?
    }

    /// Writes the last bytes and waits until the client closes. A unix socket closed with unread bytes resets its
    /// peer (unix(7) leaves it to `unix_release_sock` in `net/unix/af_unix.c`), which tells a delivered answer from a
    /// lost one.
    async fn write_and_linger(&mut self, bytes: &[u8]) -> io::Result<Outcome> {
        self.write(bytes).await?;
        self.stream.shutdown().await?;
        let until = Instant::now() + self.limits.write;
        let mut chunk = [0_u8; 256];
        loop {
            match timeout_at(until, self.stream.read(&mut chunk)).await {
                Ok(Ok(0)) | Err(_) => return Ok(Outcome::Delivered),
                Ok(Ok(_)) => {}
                Ok(Err(error)) => return Err(error),
            }
        }
    }
}

fn encode(reply: &Answer) -> Vec<u8> {
    let encoded = match reply {
        Ok(reply) => frame::encode_reply(reply),
        Err(error) => frame::encode_error(error),
    };
    encoded.unwrap_or_else(|error| {
        let defect = ServiceError::new(ErrorKind::Internal, format!("the reply can't be sent: {error}"));
        frame::encode_error(&defect).unwrap_or_default()
    })
}

/// Resolves when the client is gone. A client that only finished sending (`socat` at the end of its input) still
/// reads, so an end of input is followed up until the other direction is closed as well.
async fn hung_up(stream: &UnixStream) {
    loop {
        if stream.readable().await.is_err() {
            return;
        }
        let mut scrap = [0_u8; 256];
        match stream.try_read(&mut scrap) {
            Ok(0) => break,
            Ok(_) => {}
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
            Err(_) => return,
        }
    }
    while !both_directions_closed(stream) {
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
}

fn both_directions_closed(stream: &UnixStream) -> bool {
    let mut poll = [PollFd::new(stream.as_fd(), PollFlags::empty())];
    match nix::poll::poll(&mut poll, PollTimeout::ZERO) {
        Ok(0) => false,
        Ok(_) => poll.iter().any(|fd| {
            fd.revents()
                .is_some_and(|seen| seen.intersects(PollFlags::POLLHUP | PollFlags::POLLERR))
        }),
        Err(_) => true,
    }
}
