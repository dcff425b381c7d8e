//! The listening socket systemd holds for us across restarts (`sd_listen_fds(3)`).

use std::env;
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};
use std::sync::atomic::{AtomicBool, Ordering};

use nix::errno::Errno;
use nix::fcntl::{FcntlArg, FdFlag, fcntl};
use nix::libc;
use nix::sys::socket::{SockType, SockaddrLike, SockaddrStorage, getsockname, getsockopt, sockopt};

/// Where passed descriptors start; fixed by the protocol.
const FIRST_FD: RawFd = 3;

static ADOPTED: AtomicBool = AtomicBool::new(false);

/// Why what was passed is not a listening socket of ours.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum InheritedError {
    /// `LISTEN_FDS` is not a number.
    #[error("LISTEN_FDS={0:?} is not a number")]
    Count(String),
    /// More than one, and no telling which.
    #[error("{0} sockets were passed, one was expected: check the [Socket] section of the unit")]
    Several(u32),
    /// It was announced but is not open.
    #[error("descriptor 3 was announced by LISTEN_FDS and is not open: {0}")]
    NotOpen(Errno),
    /// It is something else.
    #[error("the passed descriptor is not a listening unix stream socket: {0}")]
    NotAListener(&'static str),
    /// It was taken already.
    #[error("the passed socket was adopted before")]
    Twice,
}

/// The socket systemd passed, or `None` when it passed none to this process.
///
/// # Errors
/// [`InheritedError`] when something was passed that cannot be listened on.
pub fn listener() -> Result<Option<OwnedFd>, InheritedError> {
    let var = |name| env::var(name).ok();
    if !announced(
        var("LISTEN_PID").as_deref(),
        var("LISTEN_FDS").as_deref(),
        std::process::id(),
    )? {
        return Ok(None);
    }
    if ADOPTED.swap(true, Ordering::SeqCst) {
        return Err(InheritedError::Twice);
    }
    #[expect(
        unsafe_code,
        reason = "whether a number is an open descriptor has no safe question"
    )]
    // SAFETY: F_GETFD takes any number and touches no memory; for one that is not open it answers EBADF.
    let open = unsafe { libc::fcntl(FIRST_FD, libc::F_GETFD) };
    Errno::result(open).map_err(InheritedError::NotOpen)?;
    #[expect(
        unsafe_code,
        reason = "a descriptor that comes by number has no safe constructor"
    )]
    // SAFETY: LISTEN_PID names this process, so the service manager has passed descriptor 3 to it for its own use and
    // nothing in this program opened or owns it; it is open, as just asked; and ADOPTED lets only one caller of the
    // process's life get here, so there is exactly one owner.
    let listener = unsafe { OwnedFd::from_raw_fd(FIRST_FD) };
    check(std::os::fd::AsFd::as_fd(&listener))?;
    fcntl(&listener, FcntlArg::F_SETFD(FdFlag::FD_CLOEXEC)).map_err(InheritedError::NotOpen)?;
    Ok(Some(listener))
}

/// Whether a socket was passed to process `own`: the variables are inherited by children, who must not believe them.
fn announced(pid: Option<&str>, count: Option<&str>, own: u32) -> Result<bool, InheritedError> {
    let (Some(pid), Some(count)) = (pid, count) else {
        return Ok(false);
    };
    if pid.parse() != Ok(own) {
        return Ok(false);
    }
    match count.parse() {
        Ok(0) => Ok(false),
        Ok(1) => Ok(true),
        Ok(several) => Err(InheritedError::Several(several)),
        Err(_) => Err(InheritedError::Count(count.to_owned())),
    }
}

fn check(socket: BorrowedFd<'_>) -> Result<(), InheritedError> {
    let kind = getsockopt(&socket, sockopt::SockType);
    let kind = kind.map_err(|_| InheritedError::NotAListener("it is no socket"))?;
    if kind != SockType::Stream {
        return Err(InheritedError::NotAListener("it is no stream socket"));
    }
    if getsockopt(&socket, sockopt::AcceptConn) != Ok(true) {
        return Err(InheritedError::NotAListener("it does not listen"));
    }
    let family = getsockname::<SockaddrStorage>(socket.as_raw_fd())
        .ok()
        .and_then(|address| address.family());
    match family {
        Some(nix::sys::socket::AddressFamily::Unix) => Ok(()),
        _ => Err(InheritedError::NotAListener("it is no unix socket")),
    }
}

#[cfg(test)]
mod tests {
    use std::net::TcpListener;
    use std::os::fd::AsFd;
    use std::os::unix::net::{UnixDatagram, UnixListener, UnixStream};
    use std::process::{Command, Stdio};

    use super::*;

    #[test]
    fn only_what_is_addressed_to_this_process_counts() {
        assert_eq!(announced(None, None, 7), Ok(false));
        assert_eq!(announced(Some("7"), None, 7), Ok(false));
        assert_eq!(announced(Some("8"), Some("1"), 7), Ok(false));
        assert_eq!(announced(Some("x"), Some("1"), 7), Ok(false));
        assert_eq!(announced(Some("7"), Some("0"), 7), Ok(false));
        assert_eq!(announced(Some("7"), Some("1"), 7), Ok(true));
        assert_eq!(
            announced(Some("7"), Some("2"), 7),
            Err(InheritedError::Several(2))
        );
        assert_eq!(
            announced(Some("7"), Some("-"), 7),
            Err(InheritedError::Count("-".to_owned()))
        );
    }

    #[test]
    fn only_a_listening_unix_stream_socket_will_do() {
        let folder = tempfile::tempdir().unwrap();
        let why = |fd: BorrowedFd<'_>| match check(fd) {
            Err(InheritedError::NotAListener(why)) => why,
            other => panic!("{other:?}"),
        };
        assert_eq!(
            check(UnixListener::bind(folder.path().join("s")).unwrap().as_fd()),
            Ok(())
        );
        assert_eq!(
            why(std::fs::File::open("/dev/null").unwrap().as_fd()),
            "it is no socket"
        );
        assert_eq!(
            why(UnixDatagram::unbound().unwrap().as_fd()),
            "it is no stream socket"
        );
        assert_eq!(why(UnixStream::pair().unwrap().0.as_fd()), "it does not listen");
        assert_eq!(
            why(TcpListener::bind("127.0.0.1:0").unwrap().as_fd()),
            "it is no unix socket"
        );
    }

    /// Run by the next test in a process of its own.
    #[test]
    #[ignore = "needs descriptor 3"]
    fn child_adopts_descriptor_3() {
        let listener = UnixListener::from(listener().unwrap().unwrap());
        listener.accept().unwrap();
        assert_eq!(super::listener().unwrap_err(), InheritedError::Twice);
    }

    #[test]
    fn a_passed_socket_is_adopted_once() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("s");
        let passed = UnixListener::bind(&path).unwrap();
        let _waiting = UnixStream::connect(&path).unwrap();
        let child = "net::inherited::tests::child_adopts_descriptor_3";
        let output = Command::new("sh")
            .args([
                "-c",
                "LISTEN_PID=$$ LISTEN_FDS=1 exec \"$0\" --exact \"$1\" --ignored 3<&0",
            ])
            .arg(env::current_exe().unwrap())
            .arg(child)
            .stdin(Stdio::from(OwnedFd::from(passed)))
            .output()
            .unwrap();
        let text = String::from_utf8_lossy(&output.stdout).into_owned();
        assert!(output.status.success() && text.contains("1 passed"), "{text}");
    }
}
