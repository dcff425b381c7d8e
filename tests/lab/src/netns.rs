//! Network namespaces without names: an open descriptor is all that keeps one alive.
//!
//! Nothing is mounted under `/run/netns`, so when the lab's process ends, in whatever way, the kernel closes the
//! descriptors and takes links, routes and rules with them. Other processes reach a namespace through
//! [`Netns::path`], `/proc/<pid>/fd/<n>`.
//!
//! Rootless: every call here works for an ordinary user inside `unshare --user --map-root-user --net --mount`, where
//! the kernel allows that. Tried as `nobody` on Linux 6.18; Ubuntu restricts it by
//! `kernel.apparmor_restrict_unprivileged_userns`, older Debian by `kernel.unprivileged_userns_clone`. A process that already has threads can't move into a user namespace
//! (`unshare(2)`: `EINVAL`), so a test harness can't do it for itself; `aws-cni-lab` executes itself again that way,
//! and tests run as `unshare --user --map-root-user --net --mount cargo test …`.

use std::fs::File;
use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicI32, Ordering};
use std::thread::{self, JoinHandle};

use nix::errno::Errno;
use nix::sched::{CloneFlags, setns, unshare};
use nix::sys::resource::{Resource, getrlimit, setrlimit};
use nix::sys::socket::{
    AddressFamily, MsgFlags, NetlinkAddr, SockFlag, SockProtocol, SockType, recv, sendto, socket,
};

/// Why a namespace can't be made or entered.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum NetnsError {
    /// No thread could be started.
    #[error("starting a thread for a network namespace: {0}")]
    Thread(io::Error),
    /// `unshare(CLONE_NEWNET)` was refused.
    #[error(
        "making a network namespace: {0}; run as root or inside `unshare --user --map-root-user --net --mount`"
    )]
    Unshare(Errno),
    /// The new namespace could not be held open.
    #[error("holding a network namespace open: {0}")]
    Hold(io::Error),
    /// `setns` was refused.
    #[error("entering a network namespace: {0}")]
    Enter(Errno),
    /// The loopback link would not come up.
    #[error("bringing lo up: {0}")]
    Loopback(Errno),
    /// A sysctl could not be written.
    #[error("writing {value:?} to /proc/sys/{key}: {error}")]
    Sysctl {
        /// Path below `/proc/sys`.
        key: String,
        /// What was to be written.
        value: String,
        /// The kernel's answer.
        error: io::Error,
    },
}

/// An anonymous network namespace; it ends with its last clone and the last process inside.
#[derive(Debug, Clone)]
pub struct Netns {
    fd: Arc<OwnedFd>,
}

impl Netns {
    /// Makes a namespace with `lo` up.
    pub fn new() -> Result<Self, NetnsError> {
        on_scratch_thread(|| {
            unshare(CloneFlags::CLONE_NEWNET).map_err(NetnsError::Unshare)?;
            let own = File::open("/proc/thread-self/ns/net").map_err(NetnsError::Hold)?;
            let fd = Arc::new(numbered_once(&own).map_err(NetnsError::Hold)?);
            loopback_up().map_err(NetnsError::Loopback)?;
            Ok(Self { fd })
        })?
    }

    /// A path by which any process of the same user reaches the namespace while it is held here.
    pub fn path(&self) -> PathBuf {
        PathBuf::from(format!("/proc/{}/fd/{}", std::process::id(), self.fd.as_raw_fd()))
    }

    /// Runs `work` on a thread inside the namespace; sockets it makes and processes it starts stay inside.
    ///
    /// # Panics
    /// Hands on a panic of `work`.
    pub fn run<T: Send>(&self, work: impl FnOnce() -> T + Send) -> Result<T, NetnsError> {
        on_scratch_thread(|| {
            self.enter()?;
            Ok(work())
        })?
    }

    /// Starts a named thread that lives inside the namespace and keeps it alive.
    pub fn spawn<T: Send + 'static>(
        &self,
        name: &str,
        work: impl FnOnce() -> T + Send + 'static,
    ) -> Result<JoinHandle<Result<T, NetnsError>>, NetnsError> {
        let netns = self.clone();
        thread::Builder::new()
            .name(name.chars().take(15).collect())
            .spawn(move || {
                netns.enter()?;
                Ok(work())
            })
            .map_err(NetnsError::Thread)
    }

    /// Writes sysctls, each a path below `/proc/sys` and its value; `/proc/sys/net` is that of the writing thread.
    pub fn sysctl(&self, settings: &[(&str, &str)]) -> Result<(), NetnsError> {
        self.run(|| {
            settings.iter().try_for_each(|(key, value)| {
                std::fs::write(format!("/proc/sys/{key}"), value).map_err(|error| NetnsError::Sysctl {
                    key: (*key).to_owned(),
                    value: (*value).to_owned(),
                    error,
                })
            })
        })?
    }

    fn enter(&self) -> Result<(), NetnsError> {
        setns(&*self.fd, CloneFlags::CLONE_NEWNET).map_err(NetnsError::Enter)
    }
}

fn on_scratch_thread<T: Send>(work: impl FnOnce() -> T + Send) -> Result<T, NetnsError> {
    thread::scope(|scope| {
        let worker = thread::Builder::new()
            .name("in-netns".to_owned())
            .spawn_scoped(scope, work)
            .map_err(NetnsError::Thread)?;
        worker.join().map_err(|panic| std::panic::resume_unwind(panic))
    })
}

/// Descriptor numbers below this stay free for everything else in the process.
const FIRST_NUMBER: i32 = 256;

/// Duplicates a descriptor under a number that this process has not used for a namespace before.
///
/// The number is part of the path that plugins and daemons are told. Were it reused at once, a late DEL for a
/// sandbox that is gone would clean another sandbox. Numbers start over only at the limit of open files.
fn numbered_once(own: &File) -> io::Result<OwnedFd> {
    static NEXT: AtomicI32 = AtomicI32::new(FIRST_NUMBER);
    loop {
        let wanted = NEXT.fetch_add(1, Ordering::Relaxed);
        match rustix::io::fcntl_dupfd_cloexec(own, wanted) {
            Ok(fd) => {
                NEXT.fetch_max(fd.as_raw_fd().saturating_add(1), Ordering::Relaxed);
                return Ok(fd);
            }
            Err(rustix::io::Errno::INVAL | rustix::io::Errno::MFILE) if wanted > FIRST_NUMBER => {
                NEXT.store(FIRST_NUMBER, Ordering::Relaxed);
            }
            Err(error) => return Err(error.into()),
        }
    }
}

/// Raises the soft limit of open files to the hard one: a lab holds a descriptor or more for each pod.
pub fn raise_open_files() -> Result<(), Errno> {
    let (_, hard) = getrlimit(Resource::RLIMIT_NOFILE)?;
    setrlimit(Resource::RLIMIT_NOFILE, hard, hard)
}

/// Sets `lo` up with one rtnetlink request; starting `ip` for it would cost more than making the namespace.
fn loopback_up() -> Result<(), Errno> {
    const RTM_NEWLINK: u16 = 16;
    const NLM_F_REQUEST_ACK: u16 = 1 | 4;
    const LOOPBACK_INDEX: u32 = 1; // the first link of every namespace (net/core/net_namespace.c)
    const IFF_UP: u32 = 1;
    let mut request = Vec::with_capacity(32);
    request.extend(32_u32.to_ne_bytes());
    request.extend(RTM_NEWLINK.to_ne_bytes());
    request.extend(NLM_F_REQUEST_ACK.to_ne_bytes());
    request.extend([0; 8]); // sequence, port
    request.extend([0; 4]); // family, padding, device type
    request.extend(LOOPBACK_INDEX.to_ne_bytes());
    request.extend(IFF_UP.to_ne_bytes());
    request.extend(IFF_UP.to_ne_bytes());
    let socket = socket(
        AddressFamily::Netlink,
        SockType::Raw,
        SockFlag::SOCK_CLOEXEC,
        SockProtocol::NetlinkRoute,
    )?;
    sendto(
        socket.as_raw_fd(),
        &request,
        &NetlinkAddr::new(0, 0),
        MsgFlags::empty(),
    )?;
    let mut answer = [0_u8; 512];
    let _length = recv(socket.as_raw_fd(), &mut answer, MsgFlags::empty())?;
    // struct nlmsgerr follows the 16-byte header and starts with the negative errno, 0 for an acknowledgement.
    let code = answer
        .get(16..20)
        .and_then(|bytes| bytes.try_into().ok())
        .map_or(0, i32::from_ne_bytes);
    if code == 0 {
        Ok(())
    } else {
        Err(Errno::from_raw(code.saturating_neg()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::net::{TcpListener, TcpStream};
    use std::os::unix::fs::MetadataExt;

    #[test]
    fn loopback_works_and_namespaces_are_apart() {
        let (one, two) = (Netns::new().unwrap(), Netns::new().unwrap());
        let listener = one.run(|| TcpListener::bind("127.0.0.1:0").unwrap()).unwrap();
        let address = listener.local_addr().unwrap();
        assert!(one.run(|| TcpStream::connect(address).is_ok()).unwrap());
        assert!(!two.run(|| TcpStream::connect(address).is_ok()).unwrap());
    }

    #[test]
    fn the_path_is_the_namespace_and_is_not_reused() {
        let first = Netns::new().unwrap();
        let path = first.path();
        let inside = first.run(|| std::fs::metadata("/proc/thread-self/ns/net").unwrap().ino());
        assert_eq!(std::fs::metadata(&path).unwrap().ino(), inside.unwrap());
        drop(first);
        let second = Netns::new().unwrap();
        assert_ne!(second.path(), path);
        assert!(!path.exists());
    }

    #[test]
    fn a_panic_inside_comes_out() {
        let netns = Netns::new().unwrap();
        let caught = std::panic::catch_unwind(|| netns.run(|| panic!("inside")));
        assert!(caught.is_err());
    }
}
