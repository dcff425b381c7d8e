//! Who changed something: the kernel tells the socket, `/proc` whose it is.

use std::fmt;
use std::fs;
use std::path::Path;

use super::super::netlink::is_own_port;

/// Ports above this are no process ids but numbers the kernel makes up for a process's further sockets
/// (`netlink_autobind` in `net/netlink/af_netlink.c`).
const MOST_PROCESSES: u32 = 1 << 22;

/// Whoever changed something in the kernel.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub enum Author {
    /// Nobody asked for it: a link went, an address expired.
    Kernel,
    /// A process.
    Process {
        /// Its id, or its thread's.
        pid: u32,
        /// Its name.
        name: String,
    },
    /// Somebody: the kernel does not tell who writes its parameters.
    Unnamed,
    /// A process that is gone, or one of another process namespace.
    Unknown {
        /// The netlink socket it used; of most processes also their id.
        port: u32,
    },
}

impl fmt::Display for Author {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Kernel => f.write_str("the kernel"),
            Self::Process { pid, name } => write!(f, "{name} (process {pid})"),
            Self::Unnamed => f.write_str("somebody"),
            Self::Unknown { port } if *port <= MOST_PROCESSES => {
                write!(f, "process {port}, which is gone")
            }
            Self::Unknown { port } => write!(f, "netlink socket {port}, which is gone"),
        }
    }
}

impl Author {
    /// Of a netlink message: the owner of the socket `port`.
    pub fn of_port(port: u32) -> Self {
        Self::at_a_glance(port).found()
    }

    /// The same as far as it costs next to nothing: plugins come and go by the hundred, and searching for the owner of a
    /// further socket takes milliseconds.
    pub(super) fn at_a_glance(port: u32) -> Self {
        match port {
            0 => Self::Kernel,
            port if is_own_port(port) => Self::Process {
                pid: std::process::id(),
                name: "ipamd".to_owned(),
            },
            port => by_pid(port).unwrap_or(Self::Unknown { port }),
        }
    }

    /// Searched for, if it is not known yet.
    #[must_use]
    pub fn found(self) -> Self {
        match self {
            Self::Unknown { port } => by_socket(port).unwrap_or(self),
            known => known,
        }
    }

    /// Whether it is this process: one of its threads.
    pub fn is_own(&self) -> bool {
        match self {
            Self::Process { pid, .. } => Path::new("/proc/self/task").join(pid.to_string()).exists(),
            Self::Kernel | Self::Unnamed | Self::Unknown { .. } => false,
        }
    }
}

fn by_pid(port: u32) -> Option<Author> {
    (port <= MOST_PROCESSES).then_some(())?;
    let name = fs::read_to_string(format!("/proc/{port}/comm")).ok()?;
    Some(Author::Process {
        pid: port,
        name: name.trim_end().to_owned(),
    })
}

/// A process has one socket that is numbered like itself; of the others `/proc/net/netlink` tells the inode, and the
/// process that has it open is to be searched for.
fn by_socket(port: u32) -> Option<Author> {
    (port > MOST_PROCESSES).then_some(())?;
    let sockets = fs::read_to_string("/proc/thread-self/net/netlink").ok()?;
    let inode = inode_of(&sockets, port)?;
    let target = format!("socket:[{inode}]");
    let pids = fs::read_dir("/proc").ok()?.flatten();
    let pids = pids.filter_map(|entry| entry.file_name().to_str()?.parse::<u32>().ok());
    let mut holders = pids.filter(|pid| holds(*pid, &target));
    let pid = holders.next()?;
    let name = fs::read_to_string(format!("/proc/{pid}/comm")).ok()?;
    Some(Author::Process {
        pid,
        name: name.trim_end().to_owned(),
    })
}

/// Columns: sk, Eth, Pid, Groups, Rmem, Wmem, Dump, Locks, Drops, Inode.
fn inode_of(table: &str, port: u32) -> Option<&str> {
    let mut rows = table.lines().skip(1).map(|row| row.split_whitespace());
    rows.find_map(|mut row| {
        let found = row.nth(2)?.parse::<u32>().ok()?;
        (found == port).then(|| row.nth(6)).flatten()
    })
}

fn holds(pid: u32, target: &str) -> bool {
    let Ok(open) = fs::read_dir(format!("/proc/{pid}/fd")) else {
        return false;
    };
    open.flatten()
        .filter_map(|entry| fs::read_link(entry.path()).ok())
        .any(|link| link.as_os_str() == target)
}

#[cfg(test)]
mod tests {
    use std::os::fd::AsRawFd;

    use nix::sys::socket::{NetlinkAddr, getsockname};

    use super::super::super::netlink::{Family, Socket};
    use super::*;

    #[test]
    fn every_socket_of_a_process_leads_to_it() {
        let sockets: Vec<Socket> = (0..3).map(|_| Socket::open(Family::Route).unwrap()).collect();
        let port = |socket: &Socket| getsockname::<NetlinkAddr>(socket.as_raw_fd()).unwrap().pid();
        let ports: Vec<u32> = sockets.iter().map(port).collect();
        assert!(ports.iter().any(|port| *port > MOST_PROCESSES), "{ports:?}");
        for port in &ports {
            let author = by_pid(*port).or_else(|| by_socket(*port)).unwrap();
            assert!(author.is_own(), "{author}");
        }
        drop(sockets);
        for port in ports {
            let author = Author::of_port(port);
            assert!(author.is_own(), "{author}, though it is closed");
        }
    }

    #[test]
    fn what_cannot_be_known_is_said() {
        assert_eq!(Author::of_port(0), Author::Kernel);
        let gone = Author::of_port(MOST_PROCESSES);
        assert_eq!(gone.to_string(), "process 4194304, which is gone");
        assert!(!gone.is_own());
    }
}
