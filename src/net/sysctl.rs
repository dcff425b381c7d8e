//! Kernel settings under `/proc/sys`: read, compare, write only on difference.
//!
//! `/proc/sys/net` shows the namespace of the thread that opens it.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

/// What a missing file means.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Missing {
    /// The kernel lacks the feature (no IPv6, say), and the setting is moot.
    Tolerated,
    /// The setting is needed.
    Refused,
}

/// A setting and the value it should have.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Setting {
    path: PathBuf,
    value: &'static str,
    missing: Missing,
}

/// Why a setting could not be brought to its value.
#[derive(Debug, thiserror::Error)]
pub enum SysctlError {
    /// Reading failed.
    #[error("read {path:?}: {error}")]
    Read {
        /// The file.
        path: PathBuf,
        /// Why.
        error: io::Error,
    },
    /// Writing failed; EROFS where `/proc/sys` is mounted read-only.
    #[error("write {value} to {path:?}: {error}")]
    Write {
        /// The file.
        path: PathBuf,
        /// What was to be written.
        value: &'static str,
        /// Why.
        error: io::Error,
    },
}

impl Setting {
    /// `/proc/sys/<key>`, for example `net/ipv4/ip_forward`.
    pub fn new(key: &str, value: &'static str, missing: Missing) -> Self {
        Self {
            path: Path::new("/proc/sys").join(key),
            value,
            missing,
        }
    }

    /// `/proc/sys/net/<family>/conf/<interface>/<key>`; the name is one path component, dots and all.
    pub fn of_interface(
        family: &str,
        interface: &str,
        key: &str,
        value: &'static str,
        missing: Missing,
    ) -> Self {
        Self::new(&format!("net/{family}/conf/{interface}/{key}"), value, missing)
    }

    /// The file below `/proc/sys`.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Whether it has its value, or is missing where that does not matter.
    ///
    /// # Errors
    /// When the file can't be read, or is missing where that is refused.
    pub fn stands(&self) -> Result<bool, SysctlError> {
        match fs::read_to_string(&self.path) {
            Ok(current) => Ok(current.trim_end() == self.value),
            Err(error) if error.kind() == io::ErrorKind::NotFound && self.missing == Missing::Tolerated => {
                Ok(true)
            }
            Err(error) => Err(SysctlError::Read {
                path: self.path.clone(),
                error,
            }),
        }
    }

    /// Brings the setting to its value; returns whether it was another.
    ///
    /// # Errors
    /// When the file can't be read or written, or is missing where that is refused.
    pub fn ensure(&self) -> Result<bool, SysctlError> {
        if self.stands()? {
            return Ok(false);
        }
        fs::write(&self.path, self.value)
            .map(|()| true)
            .map_err(|error| SysctlError::Write {
                path: self.path.clone(),
                value: self.value,
                error,
            })
    }
}

/// Brings all settings to their values in the calling thread's namespace; stops at the first failure.
///
/// # Errors
/// The first failure.
pub fn ensure_all(settings: &[Setting]) -> Result<(), SysctlError> {
    settings
        .iter()
        .try_for_each(|setting| setting.ensure().map(|_changed| ()))
}

#[cfg(test)]
mod tests {
    use std::os::fd::AsFd;

    use super::super::netns;
    use super::super::testing::{fresh_netns, in_fresh_netns};
    use super::*;

    #[test]
    fn written_only_on_difference_and_only_there() {
        in_fresh_netns(|| {
            let setting = Setting::of_interface("ipv4", "lo", "rp_filter", "2", Missing::Refused);
            let other = fresh_netns();
            netns::run_in(other.as_fd(), || ensure_all(std::slice::from_ref(&setting)))
                .unwrap()
                .unwrap();
            assert!(
                setting.ensure().unwrap(),
                "the other namespace's setting is not ours"
            );
            assert!(!setting.ensure().unwrap());
            let read = || fs::read_to_string("/proc/sys/net/ipv4/conf/lo/rp_filter").unwrap();
            assert_eq!(netns::run_in(other.as_fd(), read).unwrap(), "2\n");
        });
    }

    #[test]
    fn missing_is_tolerated_where_said() {
        in_fresh_netns(|| {
            let gone = |missing| Setting::of_interface("ipv4", "nowhere", "rp_filter", "2", missing);
            assert!(!gone(Missing::Tolerated).ensure().unwrap());
            let error = gone(Missing::Refused).ensure().unwrap_err().to_string();
            assert!(
                error.starts_with("read \"/proc/sys/net/ipv4/conf/nowhere/rp_filter\""),
                "{error}"
            );
            let refused = Setting::of_interface("ipv4", "lo", "rp_filter", "x", Missing::Refused);
            assert!(matches!(
                refused.ensure(),
                Err(SysctlError::Write { value: "x", .. })
            ));
        });
    }
}
