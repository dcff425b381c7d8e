//! A log file that several processes append to and that never grows without end.

use std::fs::{self, DirBuilder, File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

/// When a file reaches this size it is moved aside.
const MOST_BYTES: u64 = 64 * 1024 * 1024;

/// How many moved-aside files are kept: `.1` is the newest.
const KEPT: u32 = 4;

#[derive(Debug)]
pub(super) struct LogFile {
    path: PathBuf,
    file: File,
    most_bytes: u64,
    /// What was written since the size was last looked up; several processes write, so it is only a hint.
    unchecked: u64,
}

impl LogFile {
    pub(super) fn open(path: &Path) -> io::Result<Self> {
        Self::with_limit(path, MOST_BYTES)
    }

    fn with_limit(path: &Path, most_bytes: u64) -> io::Result<Self> {
        if let Some(directory) = path.parent() {
            DirBuilder::new().recursive(true).mode(0o755).create(directory)?;
        }
        Ok(Self {
            path: path.to_owned(),
            file: append(path)?,
            most_bytes,
            unchecked: u64::MAX,
        })
    }

    /// One write for one line: with `O_APPEND` lines of several processes do not mix.
    pub(super) fn write(&mut self, line: &str) -> io::Result<()> {
        self.file.write_all(line.as_bytes())?;
        self.unchecked = self
            .unchecked
            .saturating_add(u64::try_from(line.len()).unwrap_or(u64::MAX));
        if self.unchecked > self.most_bytes / 64 {
            self.unchecked = 0;
            self.rotate_if_large()?;
        }
        Ok(())
    }

    fn rotate_if_large(&mut self) -> io::Result<()> {
        let ours = self.file.metadata()?;
        match fs::metadata(&self.path) {
            // Another process or logrotate was here first.
            Ok(current) if (current.dev(), current.ino()) != (ours.dev(), ours.ino()) => {}
            Ok(_) if ours.size() < self.most_bytes => return Ok(()),
            Ok(_) => self.move_aside()?,
            Err(_) => {}
        }
        self.file = append(&self.path)?;
        Ok(())
    }

    fn move_aside(&self) -> io::Result<()> {
        let numbered = |number: u32| {
            let mut name = self.path.clone().into_os_string();
            name.push(format!(".{number}"));
            PathBuf::from(name)
        };
        for number in (1..KEPT).rev() {
            match fs::rename(numbered(number), numbered(number.saturating_add(1))) {
                Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
                _ => {}
            }
        }
        fs::rename(&self.path, numbered(1))
    }
}

fn append(path: &Path) -> io::Result<File> {
    OpenOptions::new()
        .append(true)
        .create(true)
        .mode(0o600)
        .open(path)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn names(directory: &Path) -> Vec<String> {
        let mut names: Vec<String> = fs::read_dir(directory)
            .unwrap()
            .map(|e| e.unwrap().file_name().into_string().unwrap())
            .collect();
        names.sort();
        names
    }

    #[test]
    fn grows_to_its_limit_and_keeps_a_few() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("logs/x.log");
        let mut log = LogFile::with_limit(&path, 640).unwrap();
        for number in 0..200 {
            log.write(&format!("{number:063}\n")).unwrap();
        }
        let parent = path.parent().unwrap();
        assert_eq!(
            names(parent),
            ["x.log", "x.log.1", "x.log.2", "x.log.3", "x.log.4"]
        );
        for name in names(parent) {
            let text = fs::read_to_string(parent.join(name)).unwrap();
            assert!(text.len() <= 704 && text.lines().all(|line| line.len() == 63));
        }
        assert!(fs::metadata(&path).unwrap().mode() & 0o777 == 0o600);
    }

    #[test]
    fn follows_when_another_moved_the_file() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("x.log");
        let mut log = LogFile::with_limit(&path, 64).unwrap();
        log.write("one\n").unwrap();
        fs::rename(&path, directory.path().join("moved")).unwrap();
        log.write("two\n").unwrap();
        log.write("three\n").unwrap();
        assert_eq!(
            fs::read_to_string(directory.path().join("moved")).unwrap(),
            "one\ntwo\n"
        );
        assert_eq!(fs::read_to_string(&path).unwrap(), "three\n");
    }

    #[test]
    fn appends_to_what_is_there() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("x.log");
        fs::write(&path, "old\n").unwrap();
        LogFile::open(&path).unwrap().write("new\n").unwrap();
        assert_eq!(fs::read_to_string(&path).unwrap(), "old\nnew\n");
    }
}
