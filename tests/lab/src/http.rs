//! A small HTTP/1.1 server that can also misbehave: close without an answer, reset, answer with a given TTL.
//!
//! Written out here because the misbehaviour is the point, and because another HTTP library's features would make
//! cargo build the product's dependencies a second time for tests.

use std::future::Future;
use std::io;
use std::net::IpAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, Sender, channel};
use std::task::Poll;
use std::time::Duration;

use socket2::SockRef;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;

const MAX_HEAD: usize = 64 * 1024;
const MAX_BODY: usize = 4 * 1024 * 1024;
const DEFAULT_TTL: u32 = 64;
const BACKLOG: i32 = 1024;

/// A request.
#[derive(Debug, Clone)]
pub struct Request {
    /// `GET`, `PUT`, `POST`, ….
    pub method: String,
    /// The path as sent, without the query.
    pub path: String,
    /// The query as sent, without the question mark.
    pub query: String,
    /// Headers with lower-case names.
    pub headers: Vec<(String, String)>,
    /// The body.
    pub body: Vec<u8>,
    /// Where it came from.
    pub peer: IpAddr,
}

impl Request {
    /// A header by its lower-case name.
    pub fn header(&self, name: &str) -> Option<&str> {
        self.headers
            .iter()
            .find(|(key, _)| key == name)
            .map(|(_, value)| value.as_str())
    }
}

/// An answer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Response {
    /// HTTP status.
    pub status: u16,
    /// Headers besides length and connection.
    pub headers: Vec<(&'static str, String)>,
    /// The body.
    pub body: String,
    /// The IP time-to-live of the answer's packets.
    pub ttl: Option<u8>,
}

impl Response {
    /// An answer with a body of a type.
    pub fn new(status: u16, content_type: &str, body: impl Into<String>) -> Self {
        Self {
            status,
            headers: vec![("Content-Type", content_type.to_owned())],
            body: body.into(),
            ttl: None,
        }
    }
}

/// What becomes of a request.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Reply {
    /// An answer.
    Answer(Response),
    /// The connection is closed without one.
    Close,
    /// The connection is reset.
    Reset,
}

/// What becomes of a connection before anything is read from it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Admission {
    /// It is served.
    Serve,
    /// It is reset.
    Reset,
    /// It stays open and is never answered.
    Ignore,
}

/// A boxed future of a reply.
pub type ReplyFuture = Pin<Box<dyn Future<Output = Reply> + Send>>;

/// What answers requests.
pub trait Handler: Send + Sync + 'static {
    /// Decides about a new connection.
    fn admit(&self, peer: IpAddr) -> Admission;
    /// Answers a request.
    fn handle(self: Arc<Self>, request: Request) -> ReplyFuture;
}

/// A running server; dropping it ends it with all its connections and frees its address.
#[derive(Debug)]
pub struct Server {
    local: std::net::SocketAddr,
    /// Counts the changes between listening (even) and refusing (odd).
    changes: Option<watch::Sender<u64>>,
    socket: std::net::TcpListener,
    closed: std::sync::Mutex<Receiver<()>>,
}

impl Drop for Server {
    fn drop(&mut self) {
        drop(self.changes.take());
        // The clone would keep the address taken.
        drop(SockRef::from(&self.socket).shutdown(std::net::Shutdown::Both));
        // Nothing is ever sent: the other end goes right after the listener.
        if let Ok(closed) = self.closed.lock() {
            while closed.recv().is_ok() {}
        }
    }
}

impl Server {
    /// Serves a listener made anywhere, in any network namespace.
    pub fn start(
        runtime: &tokio::runtime::Handle,
        listener: std::net::TcpListener,
        handler: Arc<dyn Handler>,
    ) -> io::Result<Self> {
        let local = listener.local_addr()?;
        listener.set_nonblocking(true)?;
        let socket = listener.try_clone()?;
        let (changes, watched) = watch::channel(0);
        let (ending, ended) = channel();
        runtime.spawn(accept_all(ending, listener, watched, handler));
        Ok(Self {
            local,
            changes: Some(changes),
            socket,
            closed: std::sync::Mutex::new(ended),
        })
    }

    /// Where it listens.
    pub fn local_addr(&self) -> std::net::SocketAddr {
        self.local
    }

    /// Makes the kernel refuse connections, as if no server were there; open ones are closed. The listener must
    /// have been bound to an explicit port to get it back.
    ///
    /// shutdown(2) takes a listening socket out of the listening state, listen(2) puts it back (`inet_shutdown` and
    /// `inet_listen` in the kernel's `net/ipv4/af_inet.c`).
    pub fn refuse(&self, refuse: bool) -> io::Result<()> {
        let Some(changes) = &self.changes else {
            return Ok(());
        };
        if is_refusing(*changes.borrow()) == refuse {
            return Ok(());
        }
        let socket = SockRef::from(&self.socket);
        let mut switched = Ok(());
        // Inside, so that no connection is accepted between the switch and its count (`accept_in`).
        changes.send_if_modified(|count| {
            switched = if refuse {
                socket.shutdown(std::net::Shutdown::Both)
            } else {
                socket.listen(BACKLOG)
            };
            *count += u64::from(switched.is_ok());
            switched.is_ok()
        });
        switched
    }
}

fn is_refusing(changes: u64) -> bool {
    changes % 2 == 1
}

/// `_closing` is the first parameter, so that it is dropped after the listener.
async fn accept_all(
    _closing: Sender<()>,
    listener: std::net::TcpListener,
    mut changed: watch::Receiver<u64>,
    handler: Arc<dyn Handler>,
) {
    loop {
        let refusing = is_refusing(*changed.borrow_and_update());
        // Registered anew after each change: to epoll a socket that was shut down stays hung up.
        let registered = listener.try_clone().and_then(TcpListener::from_std);
        let gone = match registered {
            Ok(registered) if !refusing => accept_until_changed(&registered, &mut changed, &handler).await,
            _ => changed.changed().await.is_err(),
        };
        if gone {
            return;
        }
    }
}

/// Accepts until the server is switched or dropped; tells whether it was dropped.
async fn accept_until_changed(
    listener: &TcpListener,
    changed: &mut watch::Receiver<u64>,
    handler: &Arc<dyn Handler>,
) -> bool {
    loop {
        let mut closing = changed.clone();
        match race(changed.changed(), accept_in(listener, &closing)).await {
            Either::Left(change) => return change.is_err(),
            Either::Right(Ok((stream, peer, era))) => {
                let serve = serve(stream, peer, Arc::clone(handler));
                tokio::spawn(async move {
                    race(serve, closing.wait_for(|now| *now != era)).await;
                });
            }
            // Out of descriptors and the like: nothing tells when that ends.
            Either::Right(Err(_)) => tokio::time::sleep(Duration::from_millis(20)).await,
        }
    }
}

/// Accepts a connection and tells after how many changes, the count held still meanwhile: a connection that waited
/// in the queue of a socket since switched twice would otherwise count as one from before, and be closed.
async fn accept_in(
    listener: &TcpListener,
    changes: &watch::Receiver<u64>,
) -> io::Result<(TcpStream, IpAddr, u64)> {
    std::future::poll_fn(|context| {
        let changes = changes.borrow();
        let accepted = std::task::ready!(listener.poll_accept(context));
        Poll::Ready(accepted.map(|(stream, peer)| (stream, peer.ip(), *changes)))
    })
    .await
}

enum Either<A, B> {
    Left(A),
    Right(B),
}

/// Whichever future is ready first, `left` if both are; the macro for this is a tokio feature the lab does without.
async fn race<A, B>(left: impl Future<Output = A>, right: impl Future<Output = B>) -> Either<A, B> {
    let (mut left, mut right) = (Box::pin(left), Box::pin(right));
    std::future::poll_fn(move |context| {
        if let Poll::Ready(value) = left.as_mut().poll(context) {
            return Poll::Ready(Either::Left(value));
        }
        right.as_mut().poll(context).map(Either::Right)
    })
    .await
}

fn reset(stream: &TcpStream) {
    // Linger zero makes close(2) send RST. A socket that refuses is closing anyway.
    drop(SockRef::from(stream).set_linger(Some(Duration::ZERO)));
}

async fn serve(mut stream: TcpStream, peer: IpAddr, handler: Arc<dyn Handler>) {
    let peer = match peer {
        IpAddr::V6(v6) => v6.to_ipv4_mapped().map_or(peer, IpAddr::V4),
        IpAddr::V4(_) => peer,
    };
    match handler.admit(peer) {
        Admission::Serve => {}
        Admission::Reset => return reset(&stream),
        Admission::Ignore => std::future::pending().await,
    }
    drop(stream.set_nodelay(true));
    let mut buffer = Vec::new();
    let mut ttl_lowered = false;
    while let Ok(Some((request, keep_alive))) = read_request(&mut stream, &mut buffer, peer).await {
        if ttl_lowered {
            // The client has asked again, so the answer with the low TTL has arrived.
            drop(stream.set_ttl(DEFAULT_TTL));
            ttl_lowered = false;
        }
        match Arc::clone(&handler).handle(request).await {
            Reply::Answer(response) => {
                if let Some(ttl) = response.ttl {
                    drop(stream.set_ttl(u32::from(ttl)));
                    ttl_lowered = true;
                }
                if stream.write_all(&encode(&response, keep_alive)).await.is_err() || !keep_alive {
                    break;
                }
            }
            Reply::Close => break,
            Reply::Reset => return reset(&stream),
        }
    }
    drop(stream.shutdown().await);
}

fn encode(response: &Response, keep_alive: bool) -> Vec<u8> {
    let reason = match response.status {
        200 => "OK",
        301 => "Moved Permanently",
        400 => "Bad Request",
        401 => "Unauthorized",
        403 => "Forbidden",
        404 => "Not Found",
        500 => "Internal Server Error",
        503 => "Service Unavailable",
        _ => "Status",
    };
    let connection = if keep_alive { "keep-alive" } else { "close" };
    let mut lines = vec![format!("HTTP/1.1 {} {reason}", response.status)];
    lines.extend(
        response
            .headers
            .iter()
            .map(|(name, value)| format!("{name}: {value}")),
    );
    lines.push(format!("Content-Length: {}", response.body.len()));
    lines.push(format!("Connection: {connection}\r\n\r\n"));
    let mut answer = lines.join("\r\n");
    answer.push_str(&response.body);
    answer.into_bytes()
}

fn malformed(what: &str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, what.to_owned())
}

/// A request and whether the connection may be used again; `None` when the client is done.
async fn read_request(
    stream: &mut TcpStream,
    buffer: &mut Vec<u8>,
    peer: IpAddr,
) -> io::Result<Option<(Request, bool)>> {
    let (mut request, head_len, keep_alive) = loop {
        if let Some(parsed) = parse_head(buffer, peer)? {
            break parsed;
        }
        if buffer.len() > MAX_HEAD {
            return Err(malformed("the head is too long"));
        }
        if fill(stream, buffer).await? == 0 {
            return Ok(None);
        }
    };
    if request
        .header("expect")
        .is_some_and(|value| value.eq_ignore_ascii_case("100-continue"))
    {
        stream.write_all(b"HTTP/1.1 100 Continue\r\n\r\n").await?;
    }
    buffer.drain(..head_len);
    let chunked = request
        .header("transfer-encoding")
        .is_some_and(|value| value.to_ascii_lowercase().contains("chunked"));
    request.body = if chunked {
        read_chunks(stream, buffer).await?
    } else {
        let length = match request.header("content-length") {
            Some(text) => text.trim().parse().map_err(|_| malformed("content-length"))?,
            None => 0,
        };
        read_exact(stream, buffer, length).await?
    };
    Ok(Some((request, keep_alive)))
}

async fn fill(stream: &mut TcpStream, buffer: &mut Vec<u8>) -> io::Result<usize> {
    stream.read_buf(buffer).await
}

async fn read_exact(stream: &mut TcpStream, buffer: &mut Vec<u8>, length: usize) -> io::Result<Vec<u8>> {
    if length > MAX_BODY {
        return Err(malformed("the body is too long"));
    }
    while buffer.len() < length {
        if fill(stream, buffer).await? == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
    }
    Ok(buffer.drain(..length).collect())
}

async fn read_chunks(stream: &mut TcpStream, buffer: &mut Vec<u8>) -> io::Result<Vec<u8>> {
    let mut body = Vec::new();
    loop {
        let (consumed, size) = loop {
            match httparse::parse_chunk_size(buffer).map_err(|_| malformed("chunk size"))? {
                httparse::Status::Complete(found) => break found,
                httparse::Status::Partial => {
                    if fill(stream, buffer).await? == 0 {
                        return Err(io::ErrorKind::UnexpectedEof.into());
                    }
                }
            }
        };
        buffer.drain(..consumed);
        let size = usize::try_from(size).map_err(|_| malformed("chunk size"))?;
        body.extend(read_exact(stream, buffer, size).await?);
        read_exact(stream, buffer, 2).await?;
        if size == 0 || body.len() > MAX_BODY {
            return Ok(body);
        }
    }
}

fn parse_head(buffer: &[u8], peer: IpAddr) -> io::Result<Option<(Request, usize, bool)>> {
    let mut slots = [httparse::EMPTY_HEADER; 64];
    let mut parsed = httparse::Request::new(&mut slots);
    let status = parsed
        .parse(buffer)
        .map_err(|error| malformed(&error.to_string()))?;
    let httparse::Status::Complete(head_len) = status else {
        return Ok(None);
    };
    let target = parsed.path.unwrap_or("/");
    let (path, query) = target.split_once('?').unwrap_or((target, ""));
    let headers: Vec<(String, String)> = parsed
        .headers
        .iter()
        .map(|header| {
            let value = String::from_utf8_lossy(header.value).into_owned();
            (header.name.to_ascii_lowercase(), value)
        })
        .collect();
    let request = Request {
        method: parsed.method.unwrap_or("GET").to_owned(),
        path: path.to_owned(),
        query: query.to_owned(),
        headers,
        body: Vec::new(),
        peer,
    };
    let close = request
        .header("connection")
        .is_some_and(|value| value.to_ascii_lowercase().contains("close"));
    let keep_alive = parsed.version == Some(1) && !close;
    Ok(Some((request, head_len, keep_alive)))
}
