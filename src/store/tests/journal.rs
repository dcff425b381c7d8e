//! The journal: what was acknowledged is there again whatever becomes of sled, or of the copy.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

use super::damage::{copy_files, filled, sled_files};
use super::*;
use crate::store::journal::{Journal, read};

/// A database whose sled and whose copy get nothing by themselves: the journal alone has what is committed.
fn slow() -> Options {
    Options {
        copy_every: u64::MAX,
        copy_when_quiet: Duration::from_hours(1),
        copy_max_age: Duration::from_hours(1),
        ..options()
    }
}

/// What a kill leaves after `work` on a database with history, and what was acknowledged.
fn killed_after(work: impl FnOnce(&Store)) -> (Place, BTreeMap<String, Vec<u8>>) {
    let place = Place::new();
    filled(&place);
    let (store, _) = Store::open(&place.dir(), slow()).unwrap();
    work(&store);
    let killed = Place::new();
    copy_files(&place.dir(), &killed.dir());
    (killed, store.export().entries)
}

fn work(store: &Store) {
    for n in 0..60_u8 {
        let key = format!("record/{:03}", n % 45);
        commit(
            store,
            vec![put(&key, &[b'n', n]), remove(&format!("record/{:03}", n / 2))],
        )
        .unwrap();
    }
}

pub(super) fn destroy_sled(dir: &Path, how: u64) -> &'static str {
    let db = dir.join("db");
    let bytes = fs::read(&db).unwrap();
    match how % 6 {
        0 => {
            fs::write(&db, b"").unwrap();
            "emptied"
        }
        1 => {
            fs::remove_file(&db).unwrap();
            "deleted"
        }
        2 => {
            fs::write(&db, &bytes[..end_of(&bytes) / 3]).unwrap();
            "cut"
        }
        3 => {
            fs::write(&db, vec![0x5a; bytes.len()]).unwrap();
            "garbage"
        }
        4 => {
            for path in sled_files(dir, "snap.") {
                fs::remove_file(path).unwrap();
            }
            fs::write(&db, b"").unwrap();
            "emptied, without its snapshot"
        }
        _ => {
            for path in sled_files(dir, "snap.").into_iter().chain([dir.join("conf"), db]) {
                drop(fs::remove_file(path));
            }
            "gone altogether"
        }
    }
}

pub(super) fn destroy_copy(dir: &Path) {
    for name in ["last-good.json", "last-good.prev.json"] {
        drop(fs::remove_file(dir.join(name)));
    }
}

/// As the daemon's first start on this: sled may panic.
pub(super) fn start_once(dir: &Path) {
    let mut start = child::command("mode=open", dir);
    start.stderr(std::process::Stdio::null()).status().unwrap();
}

#[test]
fn everything_acknowledged_survives_the_loss_of_sled() {
    for how in 0..6 {
        let (place, expected) = killed_after(work);
        let what = destroy_sled(&place.dir(), how);
        start_once(&place.dir());
        let (store, loaded) = place.open();
        assert_eq!(loaded.entries, expected, "{what}");
        assert_eq!(loaded.set_aside_count, 1, "{what}");
        commit(&store, vec![put("still", b"works")]).unwrap();
        store.close();
        assert_eq!(place.open().1.entries.len(), expected.len() + 1, "{what}");
    }
}

#[test]
fn everything_acknowledged_survives_the_loss_of_the_copy() {
    let (place, expected) = killed_after(work);
    destroy_copy(&place.dir());
    let (store, loaded) = place.open();
    assert_eq!(
        (loaded.origin, loaded.entries, loaded.damage),
        (Origin::Database, expected.clone(), None)
    );
    drop(store);
    // The copy was made anew before the journal was touched.
    destroy_sled(&place.dir(), 0);
    assert_eq!(place.open().1.entries, expected);
}

/// Killed again and again while it opens, at every state that lies on the disk in between, losing one side each time.
#[test]
fn losing_sled_and_the_copy_in_turn_loses_nothing() {
    let mut rng = Dice(0x2545_f491_4f6c_dd1d);
    let (mut place, mut expected) = killed_after(work);
    for round in 0..30_u64 {
        match rng.below(4) {
            0 => drop(destroy_sled(&place.dir(), rng.below(2))),
            1 => destroy_copy(&place.dir()),
            _ => {}
        }
        let (store, loaded) = Store::open(&place.dir(), slow()).unwrap();
        assert_eq!(loaded.entries, expected, "round {round}: {:?}", loaded.damage);
        for n in (0_u8..4).take(usize::try_from(rng.below(4)).unwrap()) {
            commit(&store, vec![put(&format!("round/{}", round % 7), &[b'0', n])]).unwrap();
        }
        expected = store.export().entries;
        let next = Place::new();
        copy_files(&place.dir(), &next.dir());
        place = next;
    }
}

fn end_of(bytes: &[u8]) -> usize {
    bytes
        .iter()
        .rposition(|byte| *byte != 0)
        .map_or(0, |last| last + 1)
}

/// A cut that nobody was told about: the last group is not there, and nothing is called damaged.
#[test]
fn a_torn_last_group_ends_the_replay_silently() {
    let mut before = BTreeMap::new();
    let mut begins = 0;
    let (place, after) = {
        let place = Place::new();
        let (store, _) = Store::open(&place.dir(), slow()).unwrap();
        work(&store);
        before = store.export().entries.into_iter().chain(before).collect();
        begins += end_of(&fs::read(place.dir().join("journal")).unwrap());
        commit(&store, vec![put("last", &[b'l'; 90]), remove("record/040")]).unwrap();
        let killed = Place::new();
        copy_files(&place.dir(), &killed.dir());
        (killed, store.export().entries)
    };
    let whole = fs::read(place.dir().join("journal")).unwrap();
    let end = end_of(&whole);
    for cut in (begins.next_multiple_of(8)..=end).step_by(7).chain([end]) {
        let torn = Place::new();
        copy_files(&place.dir(), &torn.dir());
        let mut bytes = whole.clone();
        bytes[cut..].fill(0);
        fs::write(torn.dir().join("journal"), bytes).unwrap();
        let (_store, loaded) = torn.open();
        let expected = if cut == end { &after } else { &before };
        assert_eq!(
            (&loaded.entries, loaded.damage),
            (expected, None),
            "cut at {cut} of {end}"
        );
    }
}

#[test]
fn a_group_that_is_damaged_before_sound_ones_is_reported_and_the_sound_ones_are_taken() {
    let (place, expected) = killed_after(|store| {
        commit(store, vec![put("one", b"1")]).unwrap();
        commit(store, vec![put("two", b"a-value-to-find")]).unwrap();
        commit(store, vec![put("three", b"3")]).unwrap();
    });
    let path = place.dir().join("journal");
    let mut bytes = fs::read(&path).unwrap();
    let at = bytes
        .windows(15)
        .position(|window| window == b"a-value-to-find")
        .unwrap();
    bytes[at] ^= 1;
    fs::write(&path, bytes).unwrap();
    let (_store, loaded) = place.open();
    let mut sound = expected;
    sound.remove("two");
    assert_eq!((loaded.origin, loaded.entries), (Origin::Database, sound));
    assert_eq!(
        loaded.damage.as_deref(),
        Some("commits are missing from its journal")
    );
    assert!(loaded.set_aside.is_some(), "kept for whoever can make more of it");
}

#[test]
fn a_journal_that_is_missing_or_cut_is_reported() {
    for cut in [None, Some(0), Some(5000)] {
        let place = Place::new();
        let expected = filled(&place);
        let path = place.dir().join("journal");
        match cut {
            None => fs::remove_file(&path).unwrap(),
            Some(length) => fs::File::options()
                .write(true)
                .open(&path)
                .unwrap()
                .set_len(length)
                .unwrap(),
        }
        let (store, loaded) = place.open();
        assert_eq!(loaded.entries, expected);
        assert!(loaded.damage.unwrap().contains("journal"), "{cut:?}");
        store.close();
        assert_eq!(place.open().1.damage, None, "once is enough");
    }
}

#[test]
fn a_journal_of_an_earlier_round_changes_nothing() {
    let place = Place::new();
    filled(&place);
    let early = fs::read(place.dir().join("journal")).unwrap();
    assert!(end_of(&early) > 1000, "its groups are still there");
    let (store, _) = place.open();
    commit(&store, vec![put("record/000", b"newer"), remove("record/001")]).unwrap();
    let expected = store.export().entries;
    store.close();
    fs::write(place.dir().join("journal"), early).unwrap();
    let (_store, loaded) = place.open();
    assert_eq!((loaded.entries, loaded.damage), (expected, None));
}

#[test]
fn a_full_journal_gives_way_to_sled_and_the_copy() {
    let mut rng = Dice(0x9e37_79b9_7f4a_7c15);
    let (place, expected) = killed_after(|store| {
        for n in 0..700_usize {
            let value =
                vec![b'a' + n.to_le_bytes()[0] % 26; 2000 + usize::try_from(rng.below(1000)).unwrap()];
            commit(store, vec![put(&format!("record/{:03}", n % 90), &value)]).unwrap();
        }
        assert!(
            store.health().copied > Generation(200),
            "its first groups gave way"
        );
    });
    destroy_sled(&place.dir(), 0);
    assert!(place.open().1.entries == expected);
}

#[test]
fn a_commit_larger_than_the_journal_is_as_safe() {
    let (place, expected) = killed_after(|store| {
        let large = |value: u8| {
            (0..400)
                .map(|n| put(&format!("large/{n}"), &[value; MAX_VALUE_BYTES]))
                .collect()
        };
        commit(store, vec![put("small", b"1")]).unwrap();
        commit(store, large(b'x')).unwrap();
        commit(store, vec![put("small", b"2")]).unwrap();
    });
    destroy_sled(&place.dir(), 0);
    assert!(place.open().1.entries == expected);
}

#[test]
fn a_database_without_a_journal_gets_one() {
    let place = Place::new();
    let expected = filled(&place);
    let marker = place.dir().join("FORMAT");
    let text = fs::read_to_string(&marker).unwrap();
    fs::write(&marker, text.replace("format 2", "format 1")).unwrap();
    fs::remove_file(place.dir().join("journal")).unwrap();
    let (_store, loaded) = place.open();
    assert_eq!(
        (loaded.origin, loaded.entries, loaded.damage),
        (Origin::Database, expected, None)
    );
    assert_eq!(fs::read_to_string(&marker).unwrap(), text);
}

/// sled and the copy get what the journal has when it is quiet, without being asked.
#[test]
fn sled_and_the_copy_follow_when_it_is_quiet() {
    let place = Place::new();
    let quick = Options {
        copy_when_quiet: Duration::from_millis(20),
        ..options()
    };
    let (store, _) = Store::open(&place.dir(), quick).unwrap();
    let generation = commit(&store, vec![put("a", b"1")]).unwrap();
    wait_until("a copy", || store.health().copied == generation);
    let look = Place::new();
    wait_until("sled to follow", || {
        drop(fs::remove_dir_all(look.dir()));
        copy_files(&place.dir(), &look.dir());
        for name in ["journal", "last-good.json"] {
            fs::remove_file(look.dir().join(name)).unwrap();
        }
        let sled = raw(&look.dir());
        sled.contains_key("a").unwrap()
    });
}

#[test]
fn a_journal_that_fails_is_never_trusted_again() {
    let place = Place::new();
    fs::create_dir(place.dir()).unwrap();
    let path = place.dir().join("journal");
    let mut journal = Journal::create(&path, Generation(7)).unwrap();
    let one = || [("key", Some(b"value".as_slice()))].into_iter();
    assert!(journal.append(Generation(8), 1, one()));
    journal.fail_for_the_test();
    assert!(!journal.append(Generation(9), 1, one()));
    assert!(
        !journal.append(Generation(10), 1, one()),
        "not even when it works again"
    );
    journal.begin(Generation(10)).unwrap();
    assert!(journal.append(Generation(11), 1, one()), "a new file");
    let mut seen = Vec::new();
    read(&path).bring_forward(Generation(0), |generation, _, _| seen.push(generation));
    assert_eq!(seen, [Generation(11)]);
}

/// Every state that lies on the disk between the steps of a checkpoint: sled has followed or not, the copy has or not.
#[test]
fn killed_between_the_steps_of_a_checkpoint_everything_is_there() {
    let place = Place::new();
    filled(&place);
    let (store, _) = Store::open(&place.dir(), slow()).unwrap();
    work(&store);
    let before = Place::new();
    copy_files(&place.dir(), &before.dir());
    let expected = store.export().entries;
    store.close();
    for (sled_followed, copy_followed) in [(false, false), (false, true), (true, false), (true, true)] {
        let from = |followed| if followed { place.dir() } else { before.dir() };
        let mixed = Place::new();
        copy_files(&from(sled_followed), &mixed.dir());
        for name in ["last-good.json", "last-good.prev.json", "journal"] {
            fs::copy(from(copy_followed).join(name), mixed.dir().join(name)).unwrap();
        }
        // Twice: the first opening is killed when it has begun to serve.
        let (store, loaded) = Store::open(&mixed.dir(), slow()).unwrap();
        assert_eq!(
            (loaded.origin, &loaded.entries, loaded.damage),
            (Origin::Database, &expected, None)
        );
        let again = Place::new();
        copy_files(&mixed.dir(), &again.dir());
        drop(store);
        destroy_sled(&again.dir(), 0);
        assert_eq!(again.open().1.entries, expected);
    }
}
