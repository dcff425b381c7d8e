//! What the kernel refused.

use std::fmt;
use std::io;

use nix::errno::Errno;

/// What the kernel refused, in its own words.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub struct NetError {
    /// The operation, as iproute2 would write it.
    pub op: String,
    /// The kernel's error number.
    pub errno: Errno,
    /// The kernel's sentence about it, where it has one.
    pub ext_ack: Option<String>,
}

impl fmt::Display for NetError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // Lower case like Go's and strerror's users grep for: `file exists`.
        let mut text = self.errno.desc().to_owned();
        if let Some(first) = text.get_mut(..1) {
            first.make_ascii_lowercase();
        }
        write!(f, "{}: {text}", self.op)?;
        match &self.ext_ack {
            Some(sentence) => write!(f, " ({sentence})"),
            None => Ok(()),
        }
    }
}

impl NetError {
    pub(crate) fn new(op: impl Into<String>, errno: Errno) -> Self {
        Self {
            op: op.into(),
            errno,
            ext_ack: None,
        }
    }

    pub(crate) fn io(op: impl Into<String>, error: &io::Error) -> Self {
        Self::new(op, error.raw_os_error().map_or(Errno::EIO, Errno::from_raw))
    }

    pub(crate) fn malformed(op: impl Into<String>, why: impl fmt::Display) -> Self {
        Self {
            op: op.into(),
            errno: Errno::EBADMSG,
            ext_ack: Some(why.to_string()),
        }
    }
}
