//! A disk that fills up and is freed again: a small tmpfs in a mount namespace of the child's own.

use std::fs::{self, File};
use std::io::Write as _;
use std::path::Path;

use nix::errno::Errno;
use nix::mount::{MsFlags, mount};
use nix::sched::{CloneFlags, unshare};

use super::child::succeed;
use super::*;

#[test]
fn a_full_disk_is_survived_and_no_change_is_skipped() {
    let root = tempfile::tempdir().unwrap();
    succeed("mode=full", root.path());
}

#[test]
fn a_database_lost_while_open_is_written_anew_from_memory() {
    let root = tempfile::tempdir().unwrap();
    succeed("mode=broken", root.path());
}

/// The full disk makes the store close the database, which is the moment to take it away.
pub(super) fn lose_the_database_while_open(root: &Path) {
    if !on_a_tiny_disk(root) {
        return;
    }
    let dir = root.join("ipam");
    let options = Options {
        retry_min: Duration::from_hours(1),
        retry_max: Duration::from_hours(1),
        ..options()
    };
    let (store, _) = Store::open(&dir, options.clone()).unwrap();
    let mut expected = BTreeMap::new();
    for n in 0..50 {
        change(&store, &mut expected, n).unwrap();
    }
    fill(root);
    commit_until(&store, &mut expected, |store| {
        store.health().condition == Condition::DiskFull
    });
    fs::remove_file(root.join("filler")).unwrap();
    fs::write(dir.join("db"), b"").unwrap();
    for entry in fs::read_dir(&dir).unwrap() {
        let path = entry.unwrap().path();
        if path.file_name().unwrap().to_string_lossy().starts_with("snap.") {
            fs::remove_file(path).unwrap();
        }
    }
    // The stop is the last attempt.
    store.close();
    let (_store, loaded) = Store::open(&dir, options).unwrap();
    assert_unharmed(&loaded, &expected);
    assert_eq!((loaded.doubts.len(), loaded.set_aside_count), (0, 1));
}

#[test]
fn a_full_disk_leaves_the_journal_its_room() {
    let root = tempfile::tempdir().unwrap();
    succeed("mode=full-journal", root.path());
}

/// Commits go on, are safe without sled, and sled follows when there is space.
pub(super) fn commit_into_the_journal_alone(root: &Path) {
    if !on_a_tiny_disk(root) {
        return;
    }
    let dir = root.join("ipam");
    let options = Options {
        ballast_bytes: 0,
        ..options()
    };
    let (store, _) = Store::open(&dir, options.clone()).unwrap();
    let mut expected = BTreeMap::new();
    for n in 0..20 {
        change(&store, &mut expected, n).unwrap();
    }
    wait_until("sled and the copy to follow", || {
        store.health().copied == store.health().durable
    });
    fill(root);
    for n in 0..100 {
        change(&store, &mut expected, n).unwrap();
    }
    let killed = Place::new();
    damage::copy_files(&dir, &killed.dir());
    journal::destroy_sled(&killed.dir(), 0);
    assert!(killed.open().1.entries == expected);
    fs::remove_file(root.join("filler")).unwrap();
    wait_until("the copy to follow", || {
        store.health().copied == store.health().durable
    });
    store.close();
    let (_store, loaded) = Store::open(&dir, options).unwrap();
    assert_unharmed(&loaded, &expected);
}

/// Puts 24 MiB of a file system there, for this process alone.
fn on_a_tiny_disk(root: &Path) -> bool {
    if !own_mounts() {
        println!("SKIPPED: no right to make a mount namespace");
        return false;
    }
    let none = MsFlags::empty();
    mount(Some("tmpfs"), root, Some("tmpfs"), none, Some("size=24m")).unwrap();
    true
}

/// True when this thread, and the threads it starts, have mounts of their own.
pub(super) fn own_mounts() -> bool {
    match unshare(CloneFlags::CLONE_NEWNS) {
        Err(Errno::EPERM) => return false,
        other => other.unwrap(),
    }
    mount(
        None::<&str>,
        "/",
        None::<&str>,
        MsFlags::MS_REC | MsFlags::MS_PRIVATE,
        None::<&str>,
    )
    .unwrap();
    true
}

pub(super) fn live_on_a_tiny_disk(root: &Path) {
    if !on_a_tiny_disk(root) {
        return;
    }
    let dir = root.join("ipam");
    let options = Options {
        ballast_bytes: 4 << 20,
        ..options()
    };
    let (store, _) = Store::open(&dir, options.clone()).unwrap();
    let mut expected = BTreeMap::new();
    for n in 0..200 {
        change(&store, &mut expected, n).unwrap();
    }
    assert_eq!(store.health().condition, Condition::Healthy);

    fill(root);
    commit_until(&store, &mut expected, |store| {
        store.health().condition == Condition::ReserveSpent
    });
    assert!(!dir.join("ballast").exists());
    // The reserve carries many more commits.
    for n in 0..100 {
        change(&store, &mut expected, n).unwrap();
    }
    assert_eq!(store.health().condition, Condition::ReserveSpent);

    fill(root);
    let durable = commit_until(&store, &mut expected, |store| {
        store.health().condition == Condition::DiskFull
    });
    // What is decided now waits in memory, in order.
    for n in 0..50 {
        let error = change(&store, &mut expected, n).unwrap_err();
        assert!(matches!(error, CommitError::DiskFull) && error.will_be_retried());
    }
    let error = commit(&store, vec![remove("record/7")]).unwrap_err();
    assert!(error.will_be_retried());
    expected.remove("record/7");
    assert_eq!(
        store.export().entries,
        durable,
        "only what is on the disk is called durable"
    );
    assert!(store.health().waiting_writes >= 50);

    fs::remove_file(root.join("filler")).unwrap();
    wait_until("the queue is written", || store.health().waiting_writes == 0);
    assert!(store.export().entries == expected);
    wait_until("the ballast is back", || {
        store.health().condition == Condition::Healthy
    });
    change(&store, &mut expected, 3).unwrap();
    store.close();

    full_at_start(root, &dir, options, &mut expected);
}

fn full_at_start(root: &Path, dir: &Path, options: Options, expected: &mut BTreeMap<String, Vec<u8>>) {
    fill(root);
    let (store, loaded) = Store::open(dir, options.clone()).unwrap();
    assert_unharmed(&loaded, expected);
    commit_until(&store, expected, |store| {
        store.health().condition == Condition::ReserveSpent
    });
    store.close();
    fill(root);
    // With the ballast gone, too: either it opens, or it says why not; it is never called damaged.
    match Store::open(dir, options.clone()) {
        Ok((_store, loaded)) => assert_unharmed(&loaded, expected),
        Err(error) => assert!(matches!(error, OpenError::DiskFull { .. }), "{error:?}"),
    }
    fs::remove_file(root.join("filler")).unwrap();
    let (store, loaded) = Store::open(dir, options).unwrap();
    assert_unharmed(&loaded, expected);
    assert_eq!(loaded.set_aside_count, 0);
    change(&store, expected, 1).unwrap();
}

/// Not by `assert_eq`: what it prints would be megabytes.
fn assert_unharmed(loaded: &Loaded, expected: &BTreeMap<String, Vec<u8>>) {
    assert_eq!(
        (loaded.origin, loaded.damage.as_deref()),
        (Origin::Database, None)
    );
    assert!(&loaded.entries == expected);
}

/// A commit that allocates and releases, told apart by its number; booked as decided whatever the answer.
fn change(
    store: &Store,
    expected: &mut BTreeMap<String, Vec<u8>>,
    n: usize,
) -> Result<Generation, CommitError> {
    let (key, value) = (
        format!("record/{}", n % 200),
        vec![n.to_le_bytes()[0] ^ expected.len().to_le_bytes()[0]; 2000],
    );
    let gone = format!("record/{}", (n + 100) % 200);
    expected.insert(key.clone(), value.clone());
    expected.remove(&gone);
    commit(store, vec![put(&key, &value), remove(&gone)])
}

/// Commits ever more records until `reached` (sled reuses the space of old ones); returns what was durable just before the last commit.
fn commit_until(
    store: &Store,
    expected: &mut BTreeMap<String, Vec<u8>>,
    reached: impl Fn(&Store) -> bool,
) -> BTreeMap<String, Vec<u8>> {
    for _ in 0..20_000 {
        let before = store.export().entries;
        let (key, value) = (format!("grow/{}", expected.len()), vec![b'x'; 2000]);
        expected.insert(key.clone(), value.clone());
        let outcome = commit(store, vec![put(&key, &value)]);
        if reached(store) {
            return before;
        }
        outcome.unwrap();
    }
    panic!("never reached");
}

fn fill(root: &Path) {
    let mut file = File::options()
        .create(true)
        .append(true)
        .open(root.join("filler"))
        .unwrap();
    for size in [1 << 20, 4096, 1] {
        let block = vec![7_u8; size];
        while file.write_all(&block).is_ok() {}
    }
}
