//! A server that tells each client the address and port it came from, over UDP and TCP.

use std::io::{self, Write};
use std::net::{Ipv6Addr, SocketAddr, TcpListener, UdpSocket};
use std::os::fd::AsFd;
use std::os::unix::net::UnixStream;
use std::thread::JoinHandle;

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};

use crate::netns::{Netns, NetnsError};

/// A running echo server; dropping it stops it.
#[derive(Debug)]
pub struct EchoServer {
    stop: Option<UnixStream>,
    thread: Option<JoinHandle<()>>,
}

impl EchoServer {
    /// Listens on `port` of every address in `netns`.
    pub fn start(netns: &Netns, port: u16) -> Result<Self, EchoError> {
        let (tcp, udp) = netns.run(|| bind(port))??;
        let (stop, stopped) = UnixStream::pair()?;
        let thread = std::thread::Builder::new()
            .name("echo".to_owned())
            .spawn(move || serve(&tcp, &udp, &stopped))?;
        Ok(Self {
            stop: Some(stop),
            thread: Some(thread),
        })
    }
}

impl Drop for EchoServer {
    fn drop(&mut self) {
        drop(self.stop.take());
        if let Some(thread) = self.thread.take() {
            drop(thread.join());
        }
    }
}

/// Why an echo server can't run.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum EchoError {
    /// The namespace could not be entered.
    #[error(transparent)]
    Netns(#[from] NetnsError),
    /// A socket or thread could not be made.
    #[error("starting an echo server: {0}")]
    Start(#[from] io::Error),
}

fn bind(port: u16) -> io::Result<(TcpListener, UdpSocket)> {
    // For both families: IPv4 addresses show themselves as mapped ones.
    let tcp = TcpListener::bind((Ipv6Addr::UNSPECIFIED, port))?;
    let udp = UdpSocket::bind((Ipv6Addr::UNSPECIFIED, port))?;
    tcp.set_nonblocking(true)?;
    udp.set_nonblocking(true)?;
    Ok((tcp, udp))
}

fn shown(peer: SocketAddr) -> String {
    SocketAddr::new(peer.ip().to_canonical(), peer.port()).to_string()
}

fn serve(tcp: &TcpListener, udp: &UdpSocket, stopped: &UnixStream) {
    loop {
        let mut ready =
            [tcp.as_fd(), udp.as_fd(), stopped.as_fd()].map(|fd| PollFd::new(fd, PollFlags::POLLIN));
        if poll(&mut ready, PollTimeout::NONE).is_err() {
            continue; // EINTR
        }
        let [_, _, stop] = &ready;
        if stop.any().unwrap_or(true) {
            return;
        }
        // A client that went away, or an ICMP error for an earlier answer, is no reason to stop serving.
        while let Ok((mut client, peer)) = tcp.accept() {
            drop(client.write_all(shown(peer).as_bytes()));
        }
        let mut request = [0_u8; 9216];
        while let Ok((_, peer)) = udp.recv_from(&mut request) {
            drop(udp.send_to(shown(peer).as_bytes(), peer));
        }
    }
}
