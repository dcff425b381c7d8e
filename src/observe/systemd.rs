//! Telling systemd how we are: `sd_notify(3)` without its library.

use std::collections::BTreeMap;
use std::io;
use std::os::linux::net::SocketAddrExt;
use std::os::unix::net::{SocketAddr, UnixDatagram};
use std::time::Duration;

/// Why systemd cannot be told.
#[derive(Debug, thiserror::Error)]
pub enum NotifyError {
    /// `NOTIFY_SOCKET` is neither a path nor an abstract name.
    #[error("NOTIFY_SOCKET={address:?} is neither an absolute path nor an abstract name (@…)")]
    Address {
        /// As found.
        address: String,
    },
    /// The kernel refused.
    #[error("cannot notify systemd: {source}")]
    Send {
        /// What the kernel said.
        source: io::Error,
    },
}

/// The way to systemd; without `NOTIFY_SOCKET` every message goes nowhere and succeeds.
#[derive(Debug)]
pub struct Systemd {
    target: Option<(UnixDatagram, SocketAddr)>,
    watchdog: Option<Duration>,
}

impl Systemd {
    /// Reads `NOTIFY_SOCKET`, `WATCHDOG_USEC` and `WATCHDOG_PID` of an environment.
    pub fn from_env(env: &BTreeMap<String, String>, own_pid: u32) -> Result<Self, NotifyError> {
        let target = match env.get("NOTIFY_SOCKET").filter(|address| !address.is_empty()) {
            Some(address) => Some((socket()?, parse(address)?)),
            None => None,
        };
        Ok(Self {
            target,
            watchdog: watchdog(env, own_pid),
        })
    }

    /// How often [`Systemd::alive`] is to be called: half of what systemd tolerates, as `sd_watchdog_enabled(3)` advises.
    pub fn watchdog_interval(&self) -> Option<Duration> {
        self.watchdog.map(|tolerated| tolerated / 2)
    }

    /// Start-up is complete.
    pub fn ready(&self, status: &str) -> Result<(), NotifyError> {
        self.send(&format!("READY=1\nSTATUS={}\n", one_line(status)))
    }

    /// Still working; only for the task whose hanging should restart the daemon.
    pub fn alive(&self) -> Result<(), NotifyError> {
        self.send("WATCHDOG=1\n")
    }

    /// Shutting down.
    pub fn stopping(&self) -> Result<(), NotifyError> {
        self.send("STOPPING=1\n")
    }

    fn send(&self, message: &str) -> Result<(), NotifyError> {
        let Some((socket, address)) = &self.target else {
            return Ok(());
        };
        let sent = socket.send_to_addr(message.as_bytes(), address);
        sent.map(|_| ()).map_err(|source| NotifyError::Send { source })
    }
}

/// Never waits: a stuck service manager must not stop the daemon.
fn socket() -> Result<UnixDatagram, NotifyError> {
    let socket = UnixDatagram::unbound().map_err(|source| NotifyError::Send { source })?;
    socket
        .set_nonblocking(true)
        .map_err(|source| NotifyError::Send { source })?;
    Ok(socket)
}

fn parse(address: &str) -> Result<SocketAddr, NotifyError> {
    let parsed = match address.strip_prefix('@') {
        Some(name) => SocketAddr::from_abstract_name(name),
        None if address.starts_with('/') => SocketAddr::from_pathname(address),
        None => Err(io::ErrorKind::InvalidInput.into()),
    };
    parsed.map_err(|_| NotifyError::Address {
        address: address.to_owned(),
    })
}

fn watchdog(env: &BTreeMap<String, String>, own_pid: u32) -> Option<Duration> {
    let meant_for_us = env
        .get("WATCHDOG_PID")
        .is_none_or(|pid| pid.parse() == Ok(own_pid));
    let microseconds = env
        .get("WATCHDOG_USEC")?
        .parse()
        .ok()
        .filter(|microseconds| *microseconds > 0)?;
    meant_for_us.then(|| Duration::from_micros(microseconds))
}

/// A line break would end the assignment and begin another one.
fn one_line(text: &str) -> String {
    text.replace(['\n', '\r'], " ")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn env(pairs: &[(&str, &str)]) -> BTreeMap<String, String> {
        pairs
            .iter()
            .map(|(name, value)| ((*name).to_owned(), (*value).to_owned()))
            .collect()
    }

    fn receive(socket: &UnixDatagram) -> String {
        let mut buffer = [0; 512];
        let length = socket.recv(&mut buffer).unwrap();
        String::from_utf8(buffer[..length].to_vec()).unwrap()
    }

    #[test]
    fn messages_reach_a_path() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("notify");
        let server = UnixDatagram::bind(&path).unwrap();
        let systemd = Systemd::from_env(&env(&[("NOTIFY_SOCKET", path.to_str().unwrap())]), 1).unwrap();
        systemd.ready("12 addresses\nREADY=0").unwrap();
        assert_eq!(receive(&server), "READY=1\nSTATUS=12 addresses READY=0\n");
        systemd.alive().unwrap();
        assert_eq!(receive(&server), "WATCHDOG=1\n");
        systemd.stopping().unwrap();
        assert_eq!(receive(&server), "STOPPING=1\n");
    }

    #[test]
    fn messages_reach_an_abstract_name() {
        let name = format!("aws-cni-test-{}", std::process::id());
        let server = UnixDatagram::bind_addr(&SocketAddr::from_abstract_name(&name).unwrap()).unwrap();
        let systemd = Systemd::from_env(&env(&[("NOTIFY_SOCKET", &format!("@{name}"))]), 1).unwrap();
        systemd.alive().unwrap();
        assert_eq!(receive(&server), "WATCHDOG=1\n");
    }

    #[test]
    fn without_systemd_everything_succeeds() {
        for environment in [env(&[]), env(&[("NOTIFY_SOCKET", "")])] {
            let systemd = Systemd::from_env(&environment, 1).unwrap();
            systemd.ready("x").unwrap();
            assert_eq!(systemd.watchdog_interval(), None);
        }
    }

    #[test]
    fn addresses_that_are_none_are_named() {
        for address in ["relative", "vsock:2:1", "@", &"/x".repeat(200)] {
            let result = Systemd::from_env(&env(&[("NOTIFY_SOCKET", address)]), 1);
            if address != "@" {
                assert!(result.unwrap_err().to_string().contains(address));
            }
        }
    }

    #[test]
    fn a_dead_manager_is_an_error_and_no_wait() {
        let systemd = Systemd::from_env(&env(&[("NOTIFY_SOCKET", "/nonexistent")]), 1).unwrap();
        assert!(matches!(systemd.alive(), Err(NotifyError::Send { .. })));
    }

    #[test]
    fn the_watchdog_is_half_and_only_ours() {
        let interval =
            |pairs: &[(&str, &str)]| Systemd::from_env(&env(pairs), 42).unwrap().watchdog_interval();
        assert_eq!(
            interval(&[("WATCHDOG_USEC", "30000000")]),
            Some(Duration::from_secs(15))
        );
        assert_eq!(
            interval(&[("WATCHDOG_USEC", "2000000"), ("WATCHDOG_PID", "42")]),
            Some(Duration::from_secs(1))
        );
        assert_eq!(
            interval(&[("WATCHDOG_USEC", "2000000"), ("WATCHDOG_PID", "43")]),
            None
        );
        for bad in ["0", "", "x", "-1"] {
            assert_eq!(interval(&[("WATCHDOG_USEC", bad)]), None);
        }
    }
}
