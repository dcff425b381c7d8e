//! Flipped bytes, cut files, lost files: opening never fails for it and never loses what the copy has.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use super::child::command;
use super::*;

const RECORDS: usize = 40;

pub(super) fn filled(place: &Place) -> BTreeMap<String, Vec<u8>> {
    let (store, _) = place.open();
    for round in 0..3 {
        for n in 0..RECORDS {
            commit(
                &store,
                vec![put(&format!("record/{n:03}"), format!("{round}-{n}").as_bytes())],
            )
            .unwrap();
        }
    }
    let entries = store.export().entries;
    store.close();
    entries
}

#[test]
fn a_flipped_bit_in_any_record_is_a_doubt_with_the_copy_beside_it() {
    let place = Place::new();
    let expected = filled(&place);
    for (n, (key, value)) in expected.iter().enumerate() {
        let (good, bad) = {
            let db = raw(&place.dir());
            let good = db.get(key).unwrap().unwrap().to_vec();
            let mut bad = good.clone();
            let at = n % bad.len();
            bad[at] ^= 1 << (n % 8);
            db.insert(key, bad.clone()).unwrap();
            (good, bad)
        };
        assert_ne!(good, bad);
        let (store, loaded) = place.open();
        assert_eq!(loaded.origin, Origin::Database);
        assert_eq!(
            loaded.doubts,
            [Doubt {
                key: key.clone(),
                reason: DoubtReason::Checksum,
                raw: bad,
                in_copy: Some(value.clone()),
            }]
        );
        assert_eq!(loaded.entries.len(), RECORDS - 1);
        // A commit to the key ends the doubt.
        commit(&store, vec![put(key, value)]).unwrap();
        store.close();
    }
    let (_store, loaded) = place.open();
    assert!(loaded.doubts.is_empty());
    assert_eq!(loaded.entries, expected);
    assert!(place.damaged().is_empty());
}

#[test]
fn a_removed_doubt_is_gone() {
    let place = Place::new();
    filled(&place);
    raw(&place.dir()).insert("record/000", b"x").unwrap();
    let (store, loaded) = place.open();
    assert_eq!(loaded.doubts[0].reason, DoubtReason::TooShort);
    commit(&store, vec![remove("record/000")]).unwrap();
    store.close();
    let (_store, loaded) = place.open();
    assert!(loaded.doubts.is_empty());
    assert_eq!(loaded.entries.len(), RECORDS - 1);
}

#[test]
fn records_that_vanished_are_doubts_known_from_the_copy() {
    let place = Place::new();
    let expected = filled(&place);
    raw(&place.dir()).remove("record/007").unwrap();
    let (_store, loaded) = place.open();
    assert_eq!(loaded.origin, Origin::Database);
    assert_eq!(
        loaded.doubts,
        [Doubt {
            key: "record/007".into(),
            reason: DoubtReason::Missing,
            raw: Vec::new(),
            in_copy: expected.get("record/007").cloned(),
        }]
    );
}

#[test]
fn a_record_from_the_future_is_a_doubt() {
    let place = Place::new();
    filled(&place);
    let record = record::encode("record/001", Generation(1 << 40), b"later");
    raw(&place.dir()).insert("record/001", record).unwrap();
    let (_store, loaded) = place.open();
    assert_eq!(
        loaded.doubts[0].reason,
        DoubtReason::FromTheFuture(Generation(1 << 40))
    );
    assert!(
        loaded.generation > Generation(1 << 40),
        "generations rise above what was seen"
    );
}

/// A page that sled read from a stale place: every record in it is sound.
#[test]
fn a_sound_record_that_is_not_the_copys_is_damage() {
    let place = Place::new();
    let expected = filled(&place);
    let stale = record::encode("record/001", Generation(3), b"0-1");
    raw(&place.dir()).insert("record/001", stale).unwrap();
    assert_recovered(&place, &expected);
}

#[test]
fn an_illegible_majority_is_damage() {
    let place = Place::new();
    let expected = filled(&place);
    {
        let db = raw(&place.dir());
        for key in expected.keys().take(RECORDS / 2 + 2) {
            db.insert(key, b"noise that is no record").unwrap();
        }
    }
    assert_recovered(&place, &expected);
}

#[test]
fn a_database_older_than_its_copy_is_damage() {
    let place = Place::new();
    filled(&place);
    let old = place.root.path().join("old");
    copy_files(&place.dir(), &old);
    let (store, _) = place.open();
    commit(&store, vec![put("late", b"x")]).unwrap();
    let expected = store.export().entries;
    store.close();
    let newest = fs::read(place.dir().join("last-good.json")).unwrap();
    fs::remove_dir_all(place.dir()).unwrap();
    copy_files(&old, &place.dir());
    fs::write(place.dir().join("last-good.json"), newest).unwrap();
    assert_recovered(&place, &expected);
}

/// sled opens an empty file as a new database without a word, as after a power cut without our fdatasync.
#[test]
fn an_emptied_database_is_damage() {
    let place = Place::new();
    let expected = filled(&place);
    fs::write(place.dir().join("db"), b"").unwrap();
    for snapshot in sled_files(&place.dir(), "snap.") {
        fs::remove_file(snapshot).unwrap();
    }
    assert_recovered(&place, &expected);
}

#[test]
fn without_a_copy_the_damaged_database_is_kept_and_a_fresh_one_serves() {
    let place = Place::new();
    filled(&place);
    fs::write(place.dir().join("db"), vec![0x5a; 600_000]).unwrap();
    fs::remove_file(place.dir().join("last-good.json")).unwrap();
    fs::remove_file(place.dir().join("last-good.prev.json")).unwrap();
    fs::write(place.dir().join("opening"), b"").unwrap();
    let (store, loaded) = place.open();
    assert_eq!(loaded.origin, Origin::Fresh);
    assert!(loaded.damage.is_some());
    assert_eq!(loaded.set_aside_count, 1);
    commit(&store, vec![put("a", b"1")]).unwrap();
}

/// Conformance of sled 0.34.7, not of ours: the day it stops refusing, `remove_unfinished_snapshots` can go.
#[test]
fn an_unfinished_snapshot_costs_nothing() {
    let place = Place::new();
    let expected = filled(&place);
    let unfinished = place.dir().join("snap.FFFFFFFFFFFFFFF0.generating");
    fs::write(&unfinished, b"cut").unwrap();
    assert!(sled::Config::new().path(place.dir()).open().is_err());
    let (_store, loaded) = place.open();
    assert_eq!(
        (loaded.origin, loaded.entries, loaded.damage),
        (Origin::Database, expected, None)
    );
    assert!(!unfinished.exists());
}

/// sled can replay its log without a snapshot, but not soundly: once the log has turned over, it takes the whole of
/// it for torn. So a database with a damaged snapshot is not tried again.
#[test]
fn a_damaged_snapshot_costs_the_database_and_no_record() {
    let place = Place::new();
    filled(&place);
    // More than the copy knows.
    let (store, _) = place.open();
    commit(&store, vec![put("late", b"x")]).unwrap();
    let expected = store.export().entries;
    let killed = Place::new();
    copy_files(&place.dir(), &killed.dir());
    for path in sled_files(&killed.dir(), "snap.") {
        let mut bytes = fs::read(&path).unwrap();
        bytes[5] ^= 1;
        fs::write(&path, bytes).unwrap();
    }
    assert_recovered(&killed, &expected);
}

#[test]
fn a_lost_format_marker_is_replaced_when_the_copy_proves_whose_it_is() {
    let place = Place::new();
    let expected = filled(&place);
    fs::write(place.dir().join("FORMAT"), b"\xff\xfe").unwrap();
    let (_store, loaded) = place.open();
    assert_eq!((loaded.origin, loaded.entries), (Origin::Database, expected));
}

#[test]
fn probes_that_die_or_hang_are_answers() {
    let place = Place::new();
    let expected = filled(&place);
    for mode in ["mode=abort", "mode=hang"] {
        fs::write(place.dir().join("opening"), b"").unwrap();
        let mut probe = child::probe_command();
        *probe.arguments.last_mut().unwrap() = mode.into();
        probe.deadline = Duration::from_millis(300);
        let options = Options {
            probe: Some(probe),
            ..options()
        };
        let (_store, loaded) = Store::open(&place.dir(), options).unwrap();
        assert_eq!(
            (loaded.origin, loaded.entries),
            (Origin::LastGoodCopy, expected.clone()),
            "{mode}"
        );
    }
    assert_eq!(place.damaged().len(), 2);
}

#[test]
fn a_lock_held_for_a_moment_is_no_damage() {
    let place = Place::new();
    let expected = filled(&place);
    let stranger = raw(&place.dir());
    let let_go = std::thread::spawn(move || {
        std::thread::sleep(Duration::from_millis(50));
        drop(stranger);
    });
    let engine = engine::Engine::open(&place.dir(), 4 << 20).unwrap();
    let_go.join().unwrap();
    assert_eq!(scan::scan(&engine).unwrap().entries, expected);
    engine.close();
}

/// A daemon killed while its probe runs leaves an orphan that opens the database when nobody expects it.
#[test]
fn an_orphaned_probe_keeps_its_successor_waiting() {
    let place = Place::new();
    let expected = filled(&place);
    let lock = fs::File::options()
        .write(true)
        .open(place.root.path().join("ipam.lock"))
        .unwrap();
    lock.lock().unwrap();
    // As the probe gets it; closed, not unlocked, as by a kill.
    let mut orphan = command("mode=hang", &place.dir())
        .stdin(lock.try_clone().unwrap())
        .spawn()
        .unwrap();
    drop(lock);
    let error = Store::open(&place.dir(), options()).unwrap_err();
    assert!(matches!(error, OpenError::Locked { .. }));
    orphan.kill().unwrap();
    orphan.wait().unwrap();
    let (_store, loaded) = place.open();
    assert_eq!((loaded.entries, loaded.damage), (expected, None));
}

#[test]
fn a_panic_inside_sled_moves_the_records_to_a_new_database() {
    let place = Place::new();
    let expected = filled(&place);
    let output = command("mode=panic", &place.dir()).output().unwrap();
    assert!(!output.status.success());
    let (store, loaded) = place.open();
    assert_eq!((loaded.origin, loaded.entries), (Origin::Database, expected));
    assert_eq!(loaded.set_aside.as_ref(), place.damaged().last());
    assert_eq!(loaded.damage.as_deref(), Some("sled panicked while it was open"));
    store.close();
    assert_eq!(place.open().1.damage, None, "once is enough");
}

/// The child of the test above: dies of a panic on the thread that runs sled.
pub(super) fn panic_while_committing(dir: &Path) {
    let (store, _) = Store::open(dir, options()).unwrap();
    store.commit(
        vec![put("record/000", b"2-0")],
        Box::new(|_| panic!("for the test")),
    );
    wait_until("the note", || dir.join("panicked").exists());
    std::process::abort();
}

#[test]
fn an_interrupted_exchange_is_finished() {
    let place = Place::new();
    let expected = filled(&place);
    // Killed between the two renames.
    let new = place.root.path().join("ipam.new");
    fs::rename(place.dir(), &new).unwrap();
    let (store, loaded) = place.open();
    assert_eq!((loaded.origin, &loaded.entries), (Origin::Database, &expected));
    store.close();
    // Killed before the first, and while building.
    copy_files(&place.dir(), &new);
    copy_files(&place.dir(), &place.root.path().join("ipam.building"));
    let (store, loaded) = place.open();
    assert_eq!((loaded.origin, &loaded.entries), (Origin::Database, &expected));
    store.close();
    assert!(!new.exists());
    assert!(place.damaged().is_empty());
}

/// A daemon is started on the damaged files until it serves: it may die once, in sled, and must then serve with
/// everything the copy has.
#[test]
fn flipped_and_cut_files_cost_at_most_one_start() {
    let mut rng = Dice(0x9e37_79b9_7f4a_7c15);
    let original = Place::new();
    let expected = filled(&original);
    let mut rebuilt = 0;
    for round in 0..44 {
        let place = Place::new();
        copy_files(&original.dir(), &place.dir());
        let what = harm(&place.dir(), round, &mut rng);
        let first = command("mode=open", &place.dir())
            .stderr(std::process::Stdio::null())
            .status()
            .unwrap();
        if !first.success() {
            assert!(
                place.dir().join("opening").exists(),
                "{what}: the note of the failed start"
            );
        }
        let (store, loaded) = place.open();
        assert_eq!(loaded.entries, expected, "{what}: {:?}", loaded.damage);
        commit(&store, vec![put("still", b"works")]).unwrap();
        store.close();
        rebuilt += place.damaged().len();
    }
    assert!(rebuilt > 5, "the harm was real: {rebuilt}");
}

/// The child of the test above.
pub(super) fn open_once(dir: &Path) {
    Store::open(dir, options()).unwrap().0.close();
}

fn harm(dir: &Path, round: usize, rng: &mut Dice) -> String {
    let db = dir.join("db");
    let mut bytes = fs::read(&db).unwrap();
    let used = bytes.iter().rposition(|byte| *byte != 0).unwrap_or(0) + 1;
    let at = usize::try_from(rng.below(used as u64)).unwrap();
    match round % 11 {
        // Twenty and more random flips in the database file, a few in its companions, cuts, losses.
        0..=5 => {
            bytes[at] ^= 1 << rng.below(8);
            fs::write(&db, bytes).unwrap();
            format!("db flipped at {at}")
        }
        6 => {
            bytes.truncate(at);
            fs::write(&db, bytes).unwrap();
            format!("db cut to {at}")
        }
        7 => {
            let end = (at + 4096).min(bytes.len());
            bytes[at..end].fill(0xa5);
            fs::write(&db, bytes).unwrap();
            format!("db overwritten from {at}")
        }
        8 => harm_companion(dir, "snap.", at),
        9 => harm_companion(dir, "conf", at),
        _ => {
            fs::remove_file(&db).unwrap();
            "db removed".into()
        }
    }
}

fn harm_companion(dir: &Path, prefix: &str, at: usize) -> String {
    let Some(path) = sled_files(dir, prefix).pop() else {
        return format!("no {prefix}");
    };
    let mut bytes = fs::read(&path).unwrap();
    let at = at % bytes.len();
    bytes[at] ^= 0x10;
    fs::write(&path, bytes).unwrap();
    format!("{} flipped at {at}", path.display())
}

fn assert_recovered(place: &Place, expected: &BTreeMap<String, Vec<u8>>) {
    let before = read_copy(&place.dir()).unwrap().generation;
    let (store, loaded) = place.open();
    assert_eq!((loaded.origin, &loaded.entries), (Origin::LastGoodCopy, expected));
    assert!(loaded.damage.is_some());
    assert!(
        loaded.generation.0 > before.0 + (1 << 31),
        "beyond anything that was lost"
    );
    assert_eq!(loaded.set_aside.as_ref(), place.damaged().last());
    assert_eq!(loaded.set_aside_count, 1);
    store.close();
    let (_store, loaded) = place.open();
    assert_eq!((loaded.origin, &loaded.entries), (Origin::Database, expected));
    assert_eq!((loaded.set_aside, loaded.set_aside_count), (None, 1));
}

pub(super) fn sled_files(dir: &Path, prefix: &str) -> Vec<PathBuf> {
    fs::read_dir(dir)
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .filter(|path| path.file_name().unwrap().to_string_lossy().starts_with(prefix))
        .collect()
}

pub(super) fn copy_files(from: &Path, to: &Path) {
    fs::create_dir_all(to).unwrap();
    for entry in fs::read_dir(from).unwrap() {
        let path = entry.unwrap().path();
        let target = to.join(path.file_name().unwrap());
        if path.is_dir() {
            copy_files(&path, &target);
        } else {
            fs::copy(&path, target).unwrap();
        }
    }
}
