//! The store against real files, real processes and a really full disk.

mod child;
mod churn;
mod crash;
mod damage;
mod full;
mod journal;
mod measure;
mod plain;
mod power;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::mpsc;
use std::time::Duration;

use super::*;

/// A database directory with room for its neighbours.
struct Place {
    root: tempfile::TempDir,
}

impl Place {
    fn new() -> Self {
        Self {
            root: tempfile::tempdir().unwrap(),
        }
    }

    fn dir(&self) -> PathBuf {
        self.root.path().join("ipam")
    }

    fn open(&self) -> (Store, Loaded) {
        Store::open(&self.dir(), options()).unwrap()
    }

    fn damaged(&self) -> Vec<PathBuf> {
        let mut found: Vec<_> = std::fs::read_dir(self.root.path())
            .unwrap()
            .map(|entry| entry.unwrap().path())
            .filter(|path| path.to_string_lossy().contains(".damaged-"))
            .collect();
        found.sort();
        found
    }
}

fn options() -> Options {
    Options {
        probe: Some(child::probe_command()),
        ballast_bytes: 64 << 10,
        retry_min: Duration::from_millis(5),
        retry_max: Duration::from_millis(20),
        ..Options::default()
    }
}

fn put(key: &str, value: &[u8]) -> Write {
    Write::Put {
        key: key.into(),
        value: value.into(),
    }
}

fn remove(key: &str) -> Write {
    Write::Remove { key: key.into() }
}

fn commit(store: &Store, writes: Vec<Write>) -> Result<Generation, CommitError> {
    let (done, outcome) = mpsc::channel();
    store.commit(writes, Box::new(move |result| drop(done.send(result))));
    outcome
        .recv_timeout(Duration::from_mins(1))
        .expect("every commit is answered")
}

fn wait_until(what: &str, mut condition: impl FnMut() -> bool) {
    let end = std::time::Instant::now() + Duration::from_secs(30);
    while !condition() {
        assert!(std::time::Instant::now() < end, "never happened: {what}");
        std::thread::sleep(Duration::from_millis(2));
    }
}

fn text_entries(entries: &BTreeMap<String, Vec<u8>>) -> BTreeMap<String, String> {
    entries
        .iter()
        .map(|(key, value)| (key.clone(), String::from_utf8_lossy(value).into_owned()))
        .collect()
}

/// sled's own view, for putting damage where our API would not.
fn raw(dir: &Path) -> sled::Db {
    sled::Config::new()
        .path(dir)
        .mode(sled::Mode::LowSpace)
        .flush_every_ms(None)
        .open()
        .unwrap()
}

/// Repeatable chance: xorshift64.
struct Dice(u64);

impl Dice {
    fn below(&mut self, limit: u64) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0 % limit
    }
}
