//! The lab's directory, which goes when the lab's process ends, even by SIGKILL.
//!
//! A shell waits on a pipe whose other end only the lab holds. However the lab ends, the pipe closes, and the shell
//! removes the directory. It has a process group of its own, so Ctrl-C does not reach it.

use std::io;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

/// Daemons are killed at the same moment; until they are gone they may still make files.
const REMOVE: &str = r#"
read -r _
tries=0
while [ -e "$0" ] && [ $tries -lt 100 ]; do
  rm -rf "$0" || sleep 0.1
  tries=$((tries + 1))
done
"#;

/// A directory that is removed with this value, or with the process.
#[derive(Debug)]
pub struct Workspace {
    dir: PathBuf,
    remover: Child,
}

impl Workspace {
    /// Makes the directory below the system's place for temporary files.
    pub fn new() -> io::Result<Self> {
        let dir = tempfile::Builder::new().prefix("aws-cni-lab-").tempdir()?;
        let remover = Command::new("sh")
            .args(["-c", REMOVE])
            .arg(dir.path())
            .current_dir("/")
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .process_group(0)
            .spawn()?;
        Ok(Self {
            dir: dir.keep(),
            remover,
        })
    }

    /// Where it is.
    pub fn path(&self) -> &Path {
        &self.dir
    }
}

impl Drop for Workspace {
    fn drop(&mut self) {
        drop(self.remover.stdin.take());
        drop(self.remover.wait());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_directory_goes_with_the_value() {
        let workspace = Workspace::new().unwrap();
        let dir = workspace.path().to_owned();
        std::fs::create_dir_all(dir.join("a/b")).unwrap();
        drop(workspace);
        assert!(!dir.exists());
    }
}
