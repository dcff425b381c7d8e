//! The other side of the comparison: the floor program, and one append with `fdatasync`.

use std::fs::{File, OpenOptions};
use std::io::Write;
use std::net::Ipv4Addr;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use super::{BenchError, exec, io_error};

/// `benches/floor.rs`, built.
#[derive(Debug, Clone)]
pub(super) struct Floor(pub(super) PathBuf);

impl Floor {
    pub(super) fn add(&self, netns: &Path, link: &str, address: Ipv4Addr) -> Result<Duration, BenchError> {
        let mut command = self.command();
        command.arg("add").arg(netns).arg(link).arg(address.to_string());
        Ok(exec::run(&mut command, "")?.took)
    }

    pub(super) fn del(&self, link: &str, address: Ipv4Addr) -> Result<Duration, BenchError> {
        let mut command = self.command();
        command.arg("del").arg(link).arg(address.to_string());
        Ok(exec::run(&mut command, "")?.took)
    }

    /// Deletes the links that DELs have left, which the daemon would do a little later.
    pub(super) fn reap(&self) -> Result<Duration, BenchError> {
        Ok(exec::run(self.command().arg("reap"), "")?.took)
    }

    fn command(&self) -> Command {
        let mut command = Command::new(&self.0);
        command.env_clear();
        command
    }
}

/// A file that grows by a record, durably.
#[derive(Debug)]
pub(super) struct Disk(File);

impl Disk {
    /// About what the store writes for one ADD.
    const RECORD: usize = 1024;

    pub(super) fn beside(state: &Path) -> Result<Self, BenchError> {
        let path = state.join("bench-fdatasync");
        let file = OpenOptions::new().create(true).append(true).open(path);
        file.map(Self).map_err(io_error("opening a file to sync"))
    }

    pub(super) fn sync(&mut self) -> Result<Duration, BenchError> {
        let record = [7_u8; Self::RECORD];
        let started = Instant::now();
        self.0
            .write_all(&record)
            .and_then(|()| self.0.sync_data())
            .map_err(io_error("appending and syncing"))?;
        Ok(started.elapsed())
    }
}
