//! Who reaches whom: echo servers that report the source they saw, and exchanges with them under a deadline.

mod echo;
mod matrix;
mod steady;

use std::fmt;
use std::io::{self, Read};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpStream, UdpSocket};
use std::time::{Duration, Instant};

pub use echo::{EchoError, EchoServer};
pub use matrix::{Matrix, Source, Target, matrix};
pub use steady::{Steady, SteadyReport};

use crate::netns::Netns;

/// The port every echo server of the lab uses.
pub const ECHO_PORT: u16 = 7007;

/// A request is sent again after this long: the network may drop UDP.
const RESEND: Duration = Duration::from_millis(150);

/// What to send.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Protocol {
    /// One datagram each way.
    Udp,
    /// A connection, as kubelet's TCP probe makes.
    Tcp,
}

impl fmt::Display for Protocol {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Udp => "udp",
            Self::Tcp => "tcp",
        })
    }
}

/// Why an exchange failed.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum Failure {
    /// Nothing came back in time.
    #[error("timed out")]
    TimedOut,
    /// The other side has no listener.
    #[error("refused")]
    Refused,
    /// A router on the way, or the own kernel, knows no way.
    #[error("unreachable")]
    Unreachable,
    /// Something else.
    #[error("{0}")]
    Other(String),
}

impl From<io::Error> for Failure {
    fn from(error: io::Error) -> Self {
        match error.kind() {
            io::ErrorKind::TimedOut | io::ErrorKind::WouldBlock => Self::TimedOut,
            io::ErrorKind::ConnectionRefused => Self::Refused,
            io::ErrorKind::HostUnreachable | io::ErrorKind::NetworkUnreachable => Self::Unreachable,
            _ => Self::Other(error.to_string()),
        }
    }
}

/// Exchanges one message from inside `netns` and returns the source address the other side saw.
pub fn exchange(
    netns: &Netns,
    protocol: Protocol,
    target: impl Into<SocketAddr>,
    within: Duration,
) -> Result<SocketAddr, Failure> {
    let target = target.into();
    netns
        .run(|| exchange_here(protocol, target, within))
        .map_err(|error| Failure::Other(error.to_string()))?
}

/// Sends UDP from a chosen source address, which must be one the namespace has.
pub fn exchange_from(
    netns: &Netns,
    source: impl Into<IpAddr>,
    target: impl Into<SocketAddr>,
    within: Duration,
) -> Result<SocketAddr, Failure> {
    let (source, target) = (source.into(), target.into());
    netns
        .run(|| udp(source, target, within))
        .map_err(|error| Failure::Other(error.to_string()))?
}

pub(crate) fn exchange_here(
    protocol: Protocol,
    target: SocketAddr,
    within: Duration,
) -> Result<SocketAddr, Failure> {
    match protocol {
        Protocol::Udp => udp(any_of(target), target, within),
        Protocol::Tcp => tcp(target, within),
    }
}

/// No address in particular, of the family of another.
pub(crate) fn any_of(other: SocketAddr) -> IpAddr {
    match other {
        SocketAddr::V4(_) => Ipv4Addr::UNSPECIFIED.into(),
        SocketAddr::V6(_) => Ipv6Addr::UNSPECIFIED.into(),
    }
}

fn udp(source: IpAddr, target: SocketAddr, within: Duration) -> Result<SocketAddr, Failure> {
    let until = Instant::now() + within;
    let socket = UdpSocket::bind((source, 0))?;
    socket.connect(target)?;
    let mut answer = [0_u8; 2048];
    loop {
        let left = until.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return Err(Failure::TimedOut);
        }
        let _sent = socket.send(b"who am I?")?;
        socket.set_read_timeout(Some(left.min(RESEND)))?;
        match socket.recv(&mut answer) {
            Ok(length) => return seen(answer.get(..length).unwrap_or_default()),
            Err(error) if Failure::from(io::Error::from(error.kind())) == Failure::TimedOut => {}
            Err(error) => return Err(error.into()),
        }
    }
}

fn tcp(target: SocketAddr, within: Duration) -> Result<SocketAddr, Failure> {
    let until = Instant::now() + within;
    let mut stream = TcpStream::connect_timeout(&target, within)?;
    let left = until.saturating_duration_since(Instant::now());
    stream.set_read_timeout(Some(left.max(Duration::from_millis(1))))?;
    let mut answer = Vec::new();
    let _length = stream.read_to_end(&mut answer)?;
    seen(&answer)
}

fn seen(answer: &[u8]) -> Result<SocketAddr, Failure> {
    let text = String::from_utf8_lossy(answer);
    text.trim()
        .parse()
        .map_err(|_| Failure::Other(format!("strange answer {text:?}")))
}
