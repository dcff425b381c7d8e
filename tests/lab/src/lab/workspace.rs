//! The lab's directory and processes, which go when the lab's process ends, even by SIGKILL.
//!
//! A shell waits on a pipe whose other end only the lab holds. However the lab ends, the pipe closes; the shell kills
//! whatever still carries the lab's mark in its environment (plugins under way, children of daemons) and removes the
//! directory. It has a process group of its own, so Ctrl-C does not reach it.

use std::io;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

/// The variable that marks every process of a lab; its value is the lab's directory. The daemon takes no notice of a name
/// that looks like none of its settings.
pub(crate) const MARK: &str = "VPC_IN_A_BOX";

/// The directory's name is this lab's alone, so nobody else's process can match.
const CLEAN_UP: &str = r#"
read -r _
tries=0
while
  for environment in $(grep -lzxF "$MARK=$0" /proc/[0-9]*/environ 2>/dev/null); do
    process=${environment#/proc/}
    kill -9 "${process%/environ}" 2>/dev/null
  done
  rm -rf "$0"
  [ -e "$0" ] && [ $tries -lt 100 ]
do
  sleep 0.1
  tries=$((tries + 1))
done
"#;

/// A directory that is removed with this value, or with the process.
#[derive(Debug)]
pub struct Workspace {
    dir: PathBuf,
    cleaner: Child,
}

impl Workspace {
    /// Makes the directory below the system's place for temporary files.
    pub fn new() -> io::Result<Self> {
        let dir = tempfile::Builder::new().prefix("aws-cni-lab-").tempdir()?;
        let cleaner = Command::new("sh")
            .args(["-c", CLEAN_UP])
            .arg(dir.path())
            .env("MARK", MARK)
            .current_dir("/")
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .process_group(0)
            .spawn()?;
        Ok(Self {
            dir: dir.keep(),
            cleaner,
        })
    }

    /// Where it is.
    pub fn path(&self) -> &Path {
        &self.dir
    }
}

impl Drop for Workspace {
    fn drop(&mut self) {
        drop(self.cleaner.stdin.take());
        drop(self.cleaner.wait());
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
