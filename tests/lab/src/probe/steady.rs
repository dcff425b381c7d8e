//! A steady stream of datagrams that counts what was lost while something else happens.

use std::io;
use std::net::{SocketAddr, UdpSocket};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use super::any_of;
use crate::netns::{Netns, NetnsError};

/// An answer later than this counts as lost.
const PATIENCE: Duration = Duration::from_secs(1);

/// What became of a stream.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct SteadyReport {
    /// Datagrams sent.
    pub sent: u64,
    /// Answers received.
    pub answered: u64,
    /// Sends the kernel refused outright.
    pub refused: u64,
    /// The longest time between two answers.
    pub longest_gap: Duration,
}

impl SteadyReport {
    /// Datagrams without an answer.
    pub fn lost(&self) -> u64 {
        self.sent.saturating_sub(self.answered)
    }
}

/// A running stream from one namespace to an echo server.
#[derive(Debug)]
pub struct Steady {
    stop: Arc<AtomicBool>,
    thread: JoinHandle<Result<io::Result<SteadyReport>, NetnsError>>,
}

impl Steady {
    /// Sends one datagram at every `pace`.
    pub fn start(netns: &Netns, target: impl Into<SocketAddr>, pace: Duration) -> Result<Self, NetnsError> {
        let target = target.into();
        let stop = Arc::new(AtomicBool::new(false));
        let stopped = Arc::clone(&stop);
        let thread = netns.spawn("steady", move || stream(target, pace, &stopped))?;
        Ok(Self { stop, thread })
    }

    /// Ends the stream, waits for answers still on their way, and reports.
    ///
    /// # Panics
    /// Hands on a panic of the stream's thread.
    pub fn stop(self) -> Result<SteadyReport, io::Error> {
        self.stop.store(true, Ordering::Relaxed);
        match self.thread.join() {
            Ok(Ok(report)) => report,
            Ok(Err(error)) => Err(io::Error::other(error)),
            Err(panic) => std::panic::resume_unwind(panic),
        }
    }
}

fn stream(target: SocketAddr, pace: Duration, stopped: &AtomicBool) -> io::Result<SteadyReport> {
    let socket = UdpSocket::bind((any_of(target), 0))?;
    socket.connect(target)?;
    let mut report = SteadyReport::default();
    let mut last_answer = Instant::now();
    let mut next = Instant::now();
    while !stopped.load(Ordering::Relaxed) {
        match socket.send(b"still there?") {
            Ok(_) => {}
            Err(_) => report.refused += 1,
        }
        report.sent += 1;
        next += pace;
        receive_until(&socket, next, &mut report, &mut last_answer)?;
    }
    let end = Instant::now() + PATIENCE;
    while report.lost() > 0 && Instant::now() < end {
        receive_until(
            &socket,
            (Instant::now() + pace).min(end),
            &mut report,
            &mut last_answer,
        )?;
    }
    Ok(report)
}

fn receive_until(
    socket: &UdpSocket,
    until: Instant,
    report: &mut SteadyReport,
    last_answer: &mut Instant,
) -> io::Result<()> {
    let mut answer = [0_u8; 64];
    loop {
        let left = until.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return Ok(());
        }
        socket.set_read_timeout(Some(left))?;
        // An ICMP error for an earlier datagram says that it was lost, which the count says already.
        if socket.recv(&mut answer).is_ok() {
            report.answered += 1;
            report.longest_gap = report.longest_gap.max(last_answer.elapsed());
            *last_answer = Instant::now();
        }
    }
}

#[cfg(test)]
mod tests {
    use std::net::{Ipv4Addr, SocketAddrV4};

    use super::*;
    use crate::probe::{ECHO_PORT, EchoServer};

    #[test]
    fn losses_are_counted() {
        let netns = Netns::new().unwrap();
        let target = SocketAddrV4::new(Ipv4Addr::LOCALHOST, ECHO_PORT);
        let pace = Duration::from_millis(2);
        let server = EchoServer::start(&netns, ECHO_PORT).unwrap();
        let steady = Steady::start(&netns, target, pace).unwrap();
        std::thread::sleep(Duration::from_millis(50));
        let report = steady.stop().unwrap();
        assert!(report.sent > 0 && report.lost() == 0, "{report:?}");
        drop(server);
        let steady = Steady::start(&netns, target, pace).unwrap();
        std::thread::sleep(Duration::from_millis(50));
        let report = steady.stop().unwrap();
        assert!(report.sent > 0 && report.answered == 0, "{report:?}");
    }
}
