//! What works when nothing fails.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;
use std::thread;

use super::*;

#[test]
fn what_was_committed_is_there_again() {
    let place = Place::new();
    let (store, loaded) = place.open();
    assert_eq!(loaded.origin, Origin::Fresh);
    assert!(loaded.entries.is_empty() && loaded.doubts.is_empty());
    let first = commit(&store, vec![put("a", b"1"), put("b", &[0xff, 0])]).unwrap();
    let second = commit(&store, vec![put("a", b"2"), remove("b"), put("c", b"3")]).unwrap();
    assert!(loaded.generation < first && first < second);
    let expected = BTreeMap::from([("a".to_owned(), b"2".to_vec()), ("c".to_owned(), b"3".to_vec())]);
    assert_eq!(
        store.export(),
        Export {
            generation: second,
            entries: expected.clone()
        }
    );
    store.close();

    let copy = read_copy(&place.dir()).unwrap();
    assert_eq!(
        (copy.generation, &copy.entries),
        (second, &expected),
        "the copy is written at stop"
    );

    let (store, loaded) = place.open();
    assert_eq!(loaded.origin, Origin::Database);
    assert_eq!(loaded.entries, expected);
    assert!(loaded.generation > second);
    assert_eq!(loaded.set_aside_count, 0);
    assert!(commit(&store, vec![remove("a")]).unwrap() > loaded.generation);
}

#[test]
fn later_writes_of_one_commit_win() {
    let place = Place::new();
    let (store, _) = place.open();
    commit(
        &store,
        vec![
            put("k", b"1"),
            remove("k"),
            put("k", b"2"),
            put("gone", b"x"),
            remove("gone"),
        ],
    )
    .unwrap();
    store.close();
    assert_eq!(
        text_entries(&place.open().1.entries),
        BTreeMap::from([("k".to_owned(), "2".to_owned())])
    );
}

#[test]
fn a_commit_that_changes_nothing_is_answered_with_what_is_durable() {
    let place = Place::new();
    let (store, loaded) = place.open();
    assert_eq!(commit(&store, Vec::new()).unwrap(), loaded.generation);
    let written = commit(&store, vec![put("a", b"1")]).unwrap();
    assert_eq!(commit(&store, vec![remove("never there")]).unwrap(), written);
}

#[test]
fn sixty_four_threads_share_flushes_and_lose_nothing() {
    let place = Place::new();
    let (store, _) = place.open();
    let store = Arc::new(store);
    let threads: Vec<_> = (0..64)
        .map(|thread| {
            let store = Arc::clone(&store);
            thread::spawn(move || {
                let mut last = Generation(0);
                for round in 0..25 {
                    let key = format!("t{thread}/{round}");
                    let generation = commit(
                        &store,
                        vec![put(&key, key.as_bytes()), put("shared", key.as_bytes())],
                    )
                    .unwrap();
                    assert!(generation > last, "generations rise");
                    last = generation;
                }
                last
            })
        })
        .collect();
    let highest = threads
        .into_iter()
        .map(|thread| thread.join().unwrap())
        .max()
        .unwrap();
    assert_eq!(store.health().durable, highest);
    let before = store.export();
    drop(Arc::into_inner(store).unwrap());
    let (_store, loaded) = place.open();
    assert_eq!(loaded.entries.len(), 64 * 25 + 1);
    assert_eq!(loaded.entries, before.entries);
}

#[test]
fn sizes_are_bounded_and_the_largest_make_no_blob_files() {
    let place = Place::new();
    let (store, _) = place.open();
    let refused = |write| commit(&store, vec![put("innocent", b"x"), write]).unwrap_err();
    assert!(matches!(refused(put("", b"")), CommitError::ReservedKey));
    assert!(matches!(refused(put("\0head", b"")), CommitError::ReservedKey));
    assert!(matches!(
        refused(put(&"k".repeat(257), b"")),
        CommitError::KeyTooLong { bytes: 257 }
    ));
    assert!(matches!(
        refused(put("k", &[0; MAX_VALUE_BYTES + 1])),
        CommitError::ValueTooLong { .. }
    ));
    let many = vec![remove("k"); MAX_WRITES + 1];
    assert!(matches!(
        commit(&store, many),
        Err(CommitError::TooManyWrites { .. })
    ));
    assert!(
        store.export().entries.is_empty(),
        "a refused commit leaves nothing"
    );

    for round in 0..8_u32 {
        let writes = (0..200)
            .map(|n| {
                put(
                    &format!("{n:0>256}"),
                    &vec![round.to_le_bytes()[0]; MAX_VALUE_BYTES],
                )
            })
            .collect();
        commit(&store, writes).unwrap();
    }
    assert_eq!(std::fs::read_dir(place.dir().join("blobs")).unwrap().count(), 0);
    store.close();
    assert_eq!(place.open().1.entries.len(), 200);
}

#[test]
fn the_number_of_keys_is_bounded() {
    let place = Place::new();
    let (store, _) = place.open();
    for chunk in 0..4 {
        let writes = (0..MAX_ENTRIES / 4)
            .map(|n| put(&format!("{chunk}/{n}"), b""))
            .collect();
        commit(&store, writes).unwrap();
    }
    assert!(matches!(
        commit(&store, vec![put("one more", b"")]),
        Err(CommitError::TooManyEntries { .. })
    ));
    commit(&store, vec![put("0/0", b"changed")]).unwrap();
    commit(&store, vec![remove("0/0")]).unwrap();
    commit(&store, vec![put("one more", b"")]).unwrap();
}

#[test]
fn a_second_daemon_is_told_who_is_in_the_way() {
    let place = Place::new();
    let (_store, _) = place.open();
    let error = Store::open(&place.dir(), options()).unwrap_err();
    assert!(matches!(error, OpenError::Locked { .. }));
    assert!(error.to_string().contains("locked by another process"));
    assert!(place.damaged().is_empty());
}

#[test]
fn a_stranger_with_sled_alone_is_a_lock_too() {
    let place = Place::new();
    place.open().0.close();
    let stranger = raw(&place.dir());
    let error = Store::open(&place.dir(), options()).unwrap_err();
    assert!(matches!(error, OpenError::Locked { .. }));
    drop(stranger);
    assert!(place.damaged().is_empty());
}

#[test]
fn foreign_directories_are_left_alone() {
    let place = Place::new();
    let dir = place.dir();
    std::fs::create_dir(&dir).unwrap();
    std::fs::write(dir.join("precious"), b"data").unwrap();
    assert!(matches!(
        Store::open(&dir, options()).unwrap_err(),
        OpenError::Foreign { .. }
    ));
    assert_eq!(names(&dir), ["precious"]);

    // Another program's sled database is foreign, too.
    std::fs::remove_file(dir.join("precious")).unwrap();
    raw(&dir).insert(b"their", b"record").unwrap();
    let before = names(&dir);
    assert!(matches!(
        Store::open(&dir, options()).unwrap_err(),
        OpenError::Foreign { .. }
    ));
    assert_eq!(names(&dir), before);
}

#[test]
fn ipamd_85_a_future_format_is_refused_with_both_numbers() {
    let place = Place::new();
    place.open().0.close();
    let marker = place.dir().join("FORMAT");
    let text = std::fs::read_to_string(&marker).unwrap();
    std::fs::write(&marker, text.replace("format 2", "format 7")).unwrap();
    let before = names(&place.dir());
    let error = Store::open(&place.dir(), options()).unwrap_err();
    assert!(matches!(
        error,
        OpenError::FutureFormat {
            found: 7,
            supported: 2,
            ..
        }
    ));
    assert_eq!(names(&place.dir()), before);
}

#[test]
fn an_empty_directory_made_by_someone_else_is_taken() {
    let place = Place::new();
    std::fs::create_dir(place.dir()).unwrap();
    assert_eq!(place.open().1.origin, Origin::Fresh);
}

#[test]
fn the_copy_follows_when_it_is_quiet_and_after_enough_commits() {
    let place = Place::new();
    let quick = Options {
        copy_when_quiet: Duration::from_millis(20),
        ..options()
    };
    let (store, _) = Store::open(&place.dir(), quick).unwrap();
    let generation = commit(&store, vec![put("a", b"1")]).unwrap();
    wait_until("a copy after a quiet moment", || {
        store.health().copied == generation
    });
    assert_eq!(read_copy(&place.dir()).unwrap().generation, generation);
    store.close();

    let counted = Options {
        copy_when_quiet: Duration::from_hours(1),
        copy_max_age: Duration::from_hours(1),
        copy_every: 10,
        ..options()
    };
    let (store, loaded) = Store::open(&place.dir(), counted).unwrap();
    for n in 0..12_u8 {
        commit(&store, vec![put("a", &[n])]).unwrap();
    }
    wait_until("a copy after ten commits", || {
        store.health().copied > loaded.generation
    });
}

fn names(dir: &Path) -> Vec<String> {
    let mut names: Vec<_> = std::fs::read_dir(dir)
        .unwrap()
        .map(|entry| entry.unwrap().file_name().to_string_lossy().into_owned())
        .collect();
    names.sort();
    names
}
