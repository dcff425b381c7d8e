//! Network namespaces: opening one by path, and working inside one without the caller leaving its own.

use std::fs::File;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd};
use std::path::{Path, PathBuf};
use std::thread;

use nix::errno::Errno;
use nix::fcntl::{OFlag, open};
use nix::sched::{CloneFlags, setns};
use nix::sys::stat::{Mode, fstat};
use nix::sys::statfs::{FsType, PROC_SUPER_MAGIC, fstatfs};

/// The magic of the file system that namespace files live on (`include/uapi/linux/magic.h`).
const NSFS_MAGIC: FsType = FsType(0x6e73_6673);

/// Why a namespace could not be used.
#[derive(Debug, thiserror::Error)]
pub enum NetnsError {
    /// The path does not open.
    #[error("failed to open netns {path:?}: {}", errno.desc().to_lowercase())]
    Open {
        /// The path as given.
        path: PathBuf,
        /// The kernel's answer.
        errno: Errno,
    },
    /// The file system behind the path does not answer.
    #[error("failed to Statfs {path:?}: {}", errno.desc().to_lowercase())]
    Statfs {
        /// The path as given.
        path: PathBuf,
        /// The kernel's answer.
        errno: Errno,
    },
    /// The path is a file, but not of a namespace.
    #[error("unknown FS magic on {path:?}: {magic:x}")]
    UnknownMagic {
        /// The path as given.
        path: PathBuf,
        /// What it is on.
        magic: u64,
    },
    /// It is a namespace, but not one of networks, or entering it is not allowed.
    #[error("enter network namespace: {}", .0.desc().to_lowercase())]
    Enter(Errno),
    /// The calling thread could not come back from it.
    #[error("come back from a network namespace: {}", .0.desc().to_lowercase())]
    Return(Errno),
    /// The scratch thread could not be started.
    #[error("start a thread to enter a network namespace: {0}")]
    Thread(#[source] std::io::Error),
    /// The work inside panicked.
    #[error("the work inside the network namespace panicked")]
    Panicked,
}

/// An open network namespace; it exists at least as long as this.
#[derive(Debug)]
pub struct Netns {
    file: File,
}

impl AsFd for Netns {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.file.as_fd()
    }
}

impl Netns {
    /// Opens `path` and makes sure that a namespace is what lies there: a plain file, such as the mount point of a
    /// namespace that is gone, would only be refused later and less clearly.
    ///
    /// # Errors
    /// [`NetnsError`] with the path inside.
    pub fn open(path: &Path) -> Result<Self, NetnsError> {
        let fd =
            open(path, OFlag::O_RDONLY | OFlag::O_CLOEXEC, Mode::empty()).map_err(|errno| match errno {
                // The words the Go plugin's users and tools know.
                Errno::ENOENT => NetnsError::Statfs {
                    path: path.to_owned(),
                    errno,
                },
                errno => NetnsError::Open {
                    path: path.to_owned(),
                    errno,
                },
            })?;
        let magic = fstatfs(&fd)
            .map_err(|errno| NetnsError::Statfs {
                path: path.to_owned(),
                errno,
            })?
            .filesystem_type();
        // Before Linux 3.19 namespace files were on procfs, and runtimes still check for both.
        if magic != NSFS_MAGIC && magic != PROC_SUPER_MAGIC {
            return Err(NetnsError::UnknownMagic {
                path: path.to_owned(),
                magic: u64::try_from(magic.0).unwrap_or_default(),
            });
        }
        Ok(Self { file: File::from(fd) })
    }

    /// The namespace the calling thread is in.
    ///
    /// # Errors
    /// When `/proc` does not answer.
    pub fn own() -> Result<Self, NetnsError> {
        Self::open(Path::new("/proc/thread-self/ns/net"))
    }

    /// Whether this is `other`.
    ///
    /// # Errors
    /// When the kernel does not tell the one or the other.
    pub fn is_same(&self, other: &Self) -> Result<bool, NetnsError> {
        let identity = |netns: &Self| {
            let file = fstat(&netns.file).map_err(|errno| NetnsError::Statfs {
                path: format!("/proc/self/fd/{}", netns.file.as_raw_fd()).into(),
                errno,
            })?;
            Ok((file.st_dev, file.st_ino))
        };
        Ok(identity(self)? == identity(other)?)
    }
}

/// Runs `work` on a scratch thread inside `netns` and returns what it returned. The thread ends with the call, so no
/// other code can find itself in the wrong namespace.
///
/// # Errors
/// When the namespace cannot be entered; errors of `work` are inside its own result.
pub fn run_in<T: Send>(netns: BorrowedFd<'_>, work: impl FnOnce() -> T + Send) -> Result<T, NetnsError> {
    thread::scope(|scope| {
        thread::Builder::new()
            .name("netns".to_owned())
            .stack_size(256 * 1024)
            .spawn_scoped(scope, || {
                setns(netns, CloneFlags::CLONE_NEWNET).map_err(NetnsError::Enter)?;
                Ok(work())
            })
            .map_err(NetnsError::Thread)?
            .join()
            .map_err(|_panic| NetnsError::Panicked)?
    })
}

/// Runs `work` with the calling thread itself inside `netns` and takes it back to `home`, its own namespace: a tenth
/// of a millisecond less than [`run_in`]. For the plugins, which have one thread and whose panics end the process.
///
/// # Errors
/// When the namespace cannot be entered. After [`NetnsError::Return`] the thread must do nothing that depends on its
/// namespace; that it may enter one and not the other is not known to happen.
pub fn visit<T>(netns: &Netns, home: &Netns, work: impl FnOnce() -> T) -> Result<T, NetnsError> {
    setns(netns, CloneFlags::CLONE_NEWNET).map_err(NetnsError::Enter)?;
    let result = work();
    setns(home, CloneFlags::CLONE_NEWNET).map_err(NetnsError::Return)?;
    Ok(result)
}

#[cfg(test)]
mod tests {
    use super::super::testing::{fd_path, fresh_netns};
    use super::*;

    fn own() -> PathBuf {
        std::fs::read_link("/proc/thread-self/ns/net").unwrap()
    }

    #[test]
    fn work_happens_inside_and_nothing_stays_there() {
        let before = own();
        let ns = fresh_netns();
        let path = fd_path(&ns);
        let netns = Netns::open(&path).unwrap();
        let inside = run_in(netns.as_fd(), own).unwrap();
        assert_ne!(inside, before);
        assert_eq!(inside, std::fs::read_link(&path).unwrap());
        assert_eq!(own(), before);
    }

    #[test]
    fn a_visitor_is_inside_meanwhile_and_back_afterwards() {
        let before = own();
        let ns = fresh_netns();
        let (netns, home) = (Netns::open(&fd_path(&ns)).unwrap(), Netns::own().unwrap());
        assert!(!netns.is_same(&home).unwrap() && home.is_same(&Netns::own().unwrap()).unwrap());
        let inside = visit(&netns, &home, own).unwrap();
        assert_eq!(inside, std::fs::read_link(fd_path(&ns)).unwrap());
        assert_eq!(own(), before);
    }

    /// Conformance: dataplane 8.1, the words of the Go plugin.
    #[test]
    fn what_is_no_namespace_is_refused_in_known_words() {
        let missing = Netns::open(Path::new("/nowhere/ns")).unwrap_err().to_string();
        assert_eq!(
            missing,
            "failed to Statfs \"/nowhere/ns\": no such file or directory"
        );
        let file = tempfile::NamedTempFile::new().unwrap();
        let text = Netns::open(file.path()).unwrap_err().to_string();
        assert!(text.starts_with("unknown FS magic on "), "{text}");
        let other = Netns::open(Path::new("/proc/self/ns/uts")).unwrap();
        let text = run_in(other.as_fd(), || ()).unwrap_err().to_string();
        assert_eq!(text, "enter network namespace: invalid argument");
    }

    #[test]
    fn a_panic_inside_is_an_error_outside() {
        let ns = fresh_netns();
        assert!(matches!(
            run_in(ns.as_fd(), || panic!("expected")),
            Err::<(), _>(NetnsError::Panicked)
        ));
    }
}
