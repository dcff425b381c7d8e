//! Deferred DELs: what the plugin cleaned from the kernel while the daemon was away, kept until the daemon has
//! given the addresses back.
//!
//! One JSON file per sandbox in `<state>/pending-del/`. The file is complete or absent: it is written under a
//! temporary name, synced, renamed, and the directory synced. Writing the same sandbox twice leaves one file.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Read, Write};
use std::net::IpAddr;
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use serde::{Deserialize, Serialize};
use sha1::{Digest, Sha1};
use thiserror::Error;

/// The directory's name below the state directory.
pub const DIRECTORY: &str = "pending-del";

/// The `version` this code writes and the highest it reads.
pub const VERSION: u32 = 1;

/// A longer file is not ours: a record with all its fields is well under a kilobyte.
pub const MAX_FILE_BYTES: u64 = 16 * 1024;

/// A temporary file older than this was left by a plugin that died while writing.
const ABANDONED_AFTER: Duration = Duration::from_hours(1);

/// One DEL the daemon has not heard of yet. Fields that later versions add are ignored by this one.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct PendingDel {
    /// Format version, [`VERSION`] when written here.
    pub version: u32,
    /// The CNI network's name.
    pub network: String,
    /// `CNI_CONTAINERID`.
    pub container_id: String,
    /// `CNI_IFNAME`.
    pub ifname: String,
    /// `K8S_POD_NAMESPACE`, empty when the runtime gave none.
    #[serde(default)]
    pub pod_namespace: String,
    /// `K8S_POD_NAME`, empty when the runtime gave none.
    #[serde(default)]
    pub pod_name: String,
    /// The host's end of the pair, when known.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub host_veth: Option<String>,
    /// The pod's addresses as far as prevResult or the kernel told.
    #[serde(default)]
    pub addresses: Vec<IpAddr>,
    /// When the DEL was asked for, seconds since 1970. For humans; nothing is decided by it.
    #[serde(default)]
    pub at_unix: u64,
}

impl PendingDel {
    /// A record of this version for one sandbox; the rest is for the caller to fill in.
    pub fn new(network: &str, container_id: &str, ifname: &str) -> Self {
        Self {
            version: VERSION,
            network: network.to_owned(),
            container_id: container_id.to_owned(),
            ifname: ifname.to_owned(),
            pod_namespace: String::new(),
            pod_name: String::new(),
            host_veth: None,
            addresses: Vec::new(),
            at_unix: 0,
        }
    }

    /// The file's name. Hashed, since a network's name may hold any character and be of any length.
    pub fn file_name(&self) -> String {
        let mut hash = Sha1::new();
        for part in [&self.network, &self.container_id, &self.ifname] {
            hash.update(part.as_bytes());
            hash.update([0]);
        }
        format!("{:x}.json", hash.finalize())
    }
}

/// A file found by [`list`].
#[derive(Debug)]
pub struct Listed {
    /// Where it lies; the handle for [`remove`].
    pub path: PathBuf,
    /// What it says, or why it can't be read. One bad file never hides the others.
    pub content: Result<PendingDel, PendingError>,
}

/// Why a deferred DEL could not be written, read or removed.
#[derive(Debug, Error)]
pub enum PendingError {
    /// The directory can't be made.
    #[error("cannot create {path}")]
    CreateDirectory {
        /// The directory.
        path: PathBuf,
        /// The system's answer.
        source: io::Error,
    },
    /// The record can't be written durably.
    #[error("cannot write {path}")]
    Write {
        /// The file.
        path: PathBuf,
        /// The system's answer.
        source: io::Error,
    },
    /// The directory or a file in it can't be read.
    #[error("cannot read {path}")]
    Read {
        /// The file or directory.
        path: PathBuf,
        /// The system's answer.
        source: io::Error,
    },
    /// A file is longer than any record of ours.
    #[error("{path} is longer than {MAX_FILE_BYTES} bytes and was not written by aws-cni")]
    TooLong {
        /// The file.
        path: PathBuf,
    },
    /// A file is no record.
    #[error("{path} does not hold a deferred DEL")]
    Decode {
        /// The file.
        path: PathBuf,
        /// The parser's answer.
        source: serde_json::Error,
    },
    /// A newer version wrote it.
    #[error("{path} has format {found}, this version reads up to {VERSION}")]
    FutureVersion {
        /// The file.
        path: PathBuf,
        /// The version it names.
        found: u32,
    },
    /// A finished record can't be removed.
    #[error("cannot remove {path}")]
    Remove {
        /// The file.
        path: PathBuf,
        /// The system's answer.
        source: io::Error,
    },
}

/// Writes `record` durably into `dir`, which is created (with its parents, 0700) when missing.
pub fn write(dir: &Path, record: &PendingDel) -> Result<PathBuf, PendingError> {
    create_directory(dir)?;
    let path = dir.join(record.file_name());
    let temporary = dir.join(temporary_name());
    write_and_rename(record, &temporary, &path)
        .and_then(|()| sync_directory(dir))
        .map_err(|source| {
            // Best effort: a left-over is swept by `list` after an hour.
            drop(fs::remove_file(&temporary));
            PendingError::Write {
                path: path.clone(),
                source,
            }
        })?;
    Ok(path)
}

/// Every deferred DEL in `dir`, in the order of their names; none when there is no such directory. Temporary files
/// that a dead plugin left behind are removed on the way.
pub fn list(dir: &Path) -> Result<Vec<Listed>, PendingError> {
    let unreadable = |source| PendingError::Read {
        path: dir.to_owned(),
        source,
    };
    let entries = match fs::read_dir(dir) {
        Ok(entries) => entries,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(error) => return Err(unreadable(error)),
    };
    let mut found = Vec::new();
    for entry in entries {
        let entry = entry.map_err(unreadable)?;
        let path = entry.path();
        if path.extension().is_some_and(|extension| extension == "json") {
            let content = read(&path);
            // Somebody else removed it since the directory was read.
            if !matches!(&content, Err(PendingError::Read { source, .. }) if source.kind() == io::ErrorKind::NotFound)
            {
                found.push(Listed { path, content });
            }
        } else if path.extension().is_some_and(|extension| extension == "tmp") && is_abandoned(&entry) {
            drop(fs::remove_file(&path));
        }
    }
    found.sort_by(|left, right| left.path.cmp(&right.path));
    Ok(found)
}

/// Removes a file that [`list`] found, once its release is durable. A file already gone is fine. The removal itself
/// is not synced: a record that comes back after a power cut is a second DEL, and that succeeds.
pub fn remove(path: &Path) -> Result<(), PendingError> {
    match fs::remove_file(path) {
        Err(source) if source.kind() != io::ErrorKind::NotFound => Err(PendingError::Remove {
            path: path.to_owned(),
            source,
        }),
        _ => Ok(()),
    }
}

fn read(path: &Path) -> Result<PendingDel, PendingError> {
    let unreadable = |source| PendingError::Read {
        path: path.to_owned(),
        source,
    };
    let mut text = Vec::new();
    File::open(path)
        .map_err(unreadable)?
        .take(MAX_FILE_BYTES + 1)
        .read_to_end(&mut text)
        .map_err(unreadable)?;
    if text.len() as u64 > MAX_FILE_BYTES {
        return Err(PendingError::TooLong {
            path: path.to_owned(),
        });
    }
    let record: PendingDel = serde_json::from_slice(&text).map_err(|source| PendingError::Decode {
        path: path.to_owned(),
        source,
    })?;
    if record.version > VERSION {
        return Err(PendingError::FutureVersion {
            path: path.to_owned(),
            found: record.version,
        });
    }
    Ok(record)
}

fn create_directory(dir: &Path) -> Result<(), PendingError> {
    if dir.is_dir() {
        return Ok(());
    }
    let failed = |source| PendingError::CreateDirectory {
        path: dir.to_owned(),
        source,
    };
    fs::DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(dir)
        .map_err(failed)?;
    match dir.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => sync_directory(parent).map_err(failed),
        _ => Ok(()),
    }
}

fn write_and_rename(record: &PendingDel, temporary: &Path, path: &Path) -> io::Result<()> {
    let mut text = serde_json::to_vec(record)?;
    text.push(b'\n');
    let mut file = OpenOptions::new()
        .write(true)
        .create_new(true)
        .mode(0o600)
        .open(temporary)?;
    file.write_all(&text)?;
    file.sync_all()?;
    fs::rename(temporary, path)
}

fn sync_directory(dir: &Path) -> io::Result<()> {
    File::open(dir)?.sync_all()
}

fn temporary_name() -> String {
    static COUNTER: AtomicU64 = AtomicU64::new(0);
    let count = COUNTER.fetch_add(1, Ordering::Relaxed);
    format!("{}-{count}.tmp", std::process::id())
}

fn is_abandoned(entry: &fs::DirEntry) -> bool {
    entry
        .metadata()
        .and_then(|metadata| metadata.modified())
        .ok()
        .and_then(|modified| modified.elapsed().ok())
        .is_some_and(|age| age > ABANDONED_AFTER)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn record(container_id: &str) -> PendingDel {
        PendingDel {
            pod_namespace: "default".into(),
            pod_name: "web".into(),
            host_veth: Some("eni0123".into()),
            addresses: vec!["10.0.1.2".parse().unwrap(), "fd00::1".parse().unwrap()],
            at_unix: 1_700_000_000,
            ..PendingDel::new("a/b net", container_id, "eth0")
        }
    }

    #[test]
    fn written_listed_removed() {
        let state = tempfile::tempdir().unwrap();
        let dir = state.path().join("deep").join(DIRECTORY);
        assert!(list(&dir).unwrap().is_empty());
        write(&dir, &record("one")).unwrap();
        write(&dir, &record("one")).unwrap();
        write(&dir, &record("two")).unwrap();
        let listed = list(&dir).unwrap();
        let mut seen: Vec<_> = listed
            .iter()
            .map(|l| l.content.as_ref().unwrap().clone())
            .collect();
        seen.sort_by(|a, b| a.container_id.cmp(&b.container_id));
        assert_eq!(seen, [record("one"), record("two")]);
        for item in &listed {
            remove(&item.path).unwrap();
            remove(&item.path).unwrap();
        }
        assert!(list(&dir).unwrap().is_empty());
        assert_eq!(fs::read_dir(&dir).unwrap().count(), 0, "no temporary file stays");
    }

    #[test]
    fn a_bad_file_hides_no_other() {
        let dir = tempfile::tempdir().unwrap();
        write(dir.path(), &record("good")).unwrap();
        fs::write(dir.path().join("0.json"), b"{").unwrap();
        let mut future = record("future");
        future.version = 9;
        write(dir.path(), &future).unwrap();
        fs::write(dir.path().join("1.json"), vec![b' '; 20_000]).unwrap();
        fs::write(dir.path().join("77-0.tmp"), b"half").unwrap();
        let listed = list(dir.path()).unwrap();
        assert_eq!(listed.len(), 4);
        let count = |wanted: fn(&Result<PendingDel, PendingError>) -> bool| {
            listed.iter().filter(|item| wanted(&item.content)).count()
        };
        assert_eq!(count(Result::is_ok), 1);
        assert_eq!(count(|c| matches!(c, Err(PendingError::Decode { .. }))), 1);
        assert_eq!(count(|c| matches!(c, Err(PendingError::TooLong { .. }))), 1);
        assert_eq!(
            count(|c| matches!(c, Err(PendingError::FutureVersion { found: 9, .. }))),
            1
        );
        assert!(
            dir.path().join("77-0.tmp").exists(),
            "a young temporary may still be in use"
        );
    }

    #[test]
    fn unknown_fields_are_ignored() {
        let dir = tempfile::tempdir().unwrap();
        let text = r#"{"version":1,"network":"n","container_id":"c","ifname":"eth0","later":[1]}"#;
        fs::write(dir.path().join("x.json"), text).unwrap();
        let listed = list(dir.path()).unwrap();
        assert_eq!(
            listed[0].content.as_ref().unwrap(),
            &PendingDel::new("n", "c", "eth0")
        );
    }
}
