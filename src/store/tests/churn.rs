//! Pods come and go for years: the database stays as large as what is alive in it.
//!
//! Also part of the program that does this ten million times (`make churn`), so it names nothing of the tests beside it.

use std::collections::VecDeque;
use std::path::Path;
use std::sync::mpsc::channel;
use std::time::{Duration, Instant};

use crate::store::{Options, Store, Write};

/// Commits under way: a burst on a node whose disk is busy.
const AT_ONCE: usize = 64;

/// What it came to.
#[derive(Debug)]
#[allow(dead_code, reason = "printed whole")]
pub(crate) struct Churned {
    pub(crate) took: Duration,
    /// Records in the end.
    pub(crate) records: usize,
    /// Bytes of all files of the database, at most, of a hundred looks.
    pub(crate) largest: u64,
    /// The same after it was closed.
    pub(crate) closed: u64,
    /// How long the next opening took.
    pub(crate) opened: Duration,
}

/// DEL and ADD in turn for each of so many pods, each what the daemon commits for it: the allocation removed and the
/// address's rest put, then the next sandbox's allocation.
pub(crate) fn churn(dir: &Path, options: &Options, pods: u64, operations: u64) -> Churned {
    let (store, _) = Store::open(dir, options.clone()).unwrap();
    let begun = Instant::now();
    let mut under_way = VecDeque::new();
    let mut largest = 0;
    for operation in 0..operations {
        let pod = operation / 2 % pods;
        let sandbox = operation / 2 / pods;
        let writes = if operation % 2 == 0 {
            del(pod, sandbox)
        } else {
            vec![put(key_of(pod, sandbox + 1), &format!("pod {pod}"), 480)]
        };
        let (done, outcome) = channel();
        store.commit(writes, Box::new(move |result| drop(done.send(result))));
        under_way.push_back(outcome);
        if under_way.len() >= AT_ONCE {
            under_way.pop_front().unwrap().recv().unwrap().unwrap();
        }
        if operation % (operations / 100).max(1) == 0 {
            largest = largest.max(bytes_in(dir));
        }
    }
    for outcome in under_way {
        outcome.recv().unwrap().unwrap();
    }
    let took = begun.elapsed();
    largest = largest.max(bytes_in(dir));
    store.close();
    let closed = bytes_in(dir);
    let opening = Instant::now();
    let (store, loaded) = Store::open(dir, options.clone()).unwrap();
    let opened = opening.elapsed();
    assert!(loaded.damage.is_none() && loaded.doubts.is_empty());
    store.close();
    Churned {
        took,
        records: loaded.entries.len(),
        largest,
        closed,
        opened,
    }
}

/// Sandboxes have new ids, so that keys come and go, too.
fn key_of(pod: u64, sandbox: u64) -> String {
    format!("allocation/aws-cni/{pod:016x}{sandbox:048x}/eth0")
}

fn put(key: String, value: &str, length: usize) -> Write {
    Write::Put {
        key,
        value: format!("{value:<length$}").into_bytes(),
    }
}

fn del(pod: u64, sandbox: u64) -> Vec<Write> {
    let address = format!("address/10.0.{}.{}", pod / 256, pod % 256);
    vec![
        Write::Remove {
            key: key_of(pod, sandbox),
        },
        put(address, &format!("rests since {sandbox}"), 160),
    ]
}

fn bytes_in(dir: &Path) -> u64 {
    let entries = std::fs::read_dir(dir).unwrap();
    let size = |entry: std::fs::DirEntry| {
        // Temporary files come and go.
        let metadata = entry.metadata().ok()?;
        Some(if metadata.is_dir() {
            bytes_in(&entry.path())
        } else {
            metadata.len()
        })
    };
    entries.filter_map(|entry| size(entry.ok()?)).sum()
}

#[test]
fn twenty_thousand_adds_and_dels_leave_the_database_as_large_as_before() {
    const PODS: u64 = 110;
    let folder = tempfile::tempdir().unwrap();
    let options = Options {
        ballast_bytes: 0,
        ..Options::default()
    };
    let [first, later] = [4_000, 36_000].map(|operations| {
        let churned = churn(&folder.path().join("ipam"), &options, PODS, operations);
        println!("{operations} operations: {churned:?}");
        assert!(churned.records as u64 <= 2 * PODS + 1, "{churned:?}");
        churned
    });
    // The log grows until enough of it is garbage, and then turns over.
    assert!(
        later.largest < 4 * first.largest,
        "{} and then {} bytes",
        first.largest,
        later.largest
    );
}
