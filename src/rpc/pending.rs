//! DELs that found the daemon away: one durable file per sandbox, which the daemon consumes when it is back.

use std::fs::{self, File};
use std::io::{self, Write};
use std::path::{Path, PathBuf};

use sha1::{Digest, Sha1};

use super::types::Del;
use crate::ipam::ids::SandboxKey;

/// The folder below the state directory.
pub const FOLDER: &str = "pending-del";

const SUFFIX: &str = "json";

/// A file that waits, with what could be read from it.
#[derive(Debug)]
pub struct PendingDel {
    /// Where it is; [`remove`] it once the release is durable.
    pub path: PathBuf,
    /// The release, or why the file can't be understood.
    pub del: Result<Del, io::Error>,
}

/// Writes the file so that it survives a power cut: a temporary one, fsync, rename, fsync of the folder.
///
/// # Errors
/// What the file system says; then nothing was promised.
pub fn write(state_dir: &Path, del: &Del) -> io::Result<PathBuf> {
    let folder = state_dir.join(FOLDER);
    fs::create_dir_all(&folder)?;
    let path = path_of(state_dir, &del.key());
    let temporary = path.with_extension(format!("tmp{}", std::process::id()));
    let written = write_synced(&temporary, del).and_then(|()| fs::rename(&temporary, &path));
    if written.is_err() {
        fs::remove_file(&temporary).ok();
    }
    written?;
    File::open(&folder)?.sync_all()?;
    Ok(path)
}

fn write_synced(path: &Path, del: &Del) -> io::Result<()> {
    let mut file = File::create(path)?;
    file.write_all(&serde_json::to_vec(del)?)?;
    file.sync_all()
}

/// Every file that waits, oldest name first; a missing folder holds none.
///
/// # Errors
/// When the folder exists and can't be listed.
pub fn list(state_dir: &Path) -> io::Result<Vec<PendingDel>> {
    let entries = match fs::read_dir(state_dir.join(FOLDER)) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        entries => entries?,
    };
    let mut found = Vec::new();
    for entry in entries {
        let path = entry?.path();
        if path.extension().is_some_and(|suffix| suffix == SUFFIX) {
            let del = fs::read(&path).and_then(|bytes| Ok(serde_json::from_slice(&bytes)?));
            found.push(PendingDel { path, del });
        }
    }
    found.sort_by(|one, other| one.path.cmp(&other.path));
    Ok(found)
}

/// Removes the file of a release that is done, or of a sandbox that came back; absence is success.
///
/// # Errors
/// What the file system says.
pub fn remove(path: &Path) -> io::Result<()> {
    match fs::remove_file(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        outcome => outcome,
    }
}

/// Where the file of a sandbox's interface is; a hash because ids may be as long as a file name already.
pub fn path_of(state_dir: &Path, key: &SandboxKey) -> PathBuf {
    let digest = Sha1::digest(key.to_string().as_bytes());
    let name = digest
        .iter()
        .fold(String::new(), |name, byte| name + &format!("{byte:02x}"));
    state_dir.join(FOLDER).join(name).with_extension(SUFFIX)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ipam::ids::PodRef;
    use crate::rpc::types::DelReason;

    fn del(container: &str) -> Del {
        Del {
            network: "aws-cni".into(),
            container_id: container.into(),
            ifname: "eth0".into(),
            pod: PodRef::default(),
            reason: DelReason::PodDeleted,
        }
    }

    #[test]
    fn a_release_waits_once_however_often_it_is_written() {
        let state = tempfile::tempdir().unwrap();
        assert!(list(state.path()).unwrap().is_empty());
        for container in ["a", "b", "a"] {
            write(state.path(), &del(container)).unwrap();
        }
        let mut waiting: Vec<String> = list(state.path())
            .unwrap()
            .into_iter()
            .map(|pending| pending.del.unwrap().container_id.0)
            .collect();
        waiting.sort();
        assert_eq!(waiting, ["a", "b"]);
        for pending in list(state.path()).unwrap() {
            remove(&pending.path).unwrap();
            remove(&pending.path).unwrap();
        }
        assert!(list(state.path()).unwrap().is_empty());
    }

    #[test]
    fn half_written_files_are_not_seen_and_damaged_ones_are_reported() {
        let state = tempfile::tempdir().unwrap();
        let path = write(state.path(), &del("a")).unwrap();
        fs::write(path.with_extension("tmp7"), b"{").unwrap();
        fs::write(&path, b"{\"network\":").unwrap();
        let found = list(state.path()).unwrap();
        assert_eq!(found.len(), 1);
        assert!(found[0].del.is_err());
    }
}
