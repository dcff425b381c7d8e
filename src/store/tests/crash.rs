//! kill -9 at any instant: everything acknowledged is there, nothing half, generations rise.

use std::collections::BTreeMap;
use std::io::{BufRead, BufReader, Write as _};
use std::path::Path;
use std::sync::Arc;
use std::thread;
use std::time::Duration;

use super::child::command;
use super::*;

const ROUNDS: u32 = 60;
const WRITERS: u32 = 6;
const SEED: u64 = 0x9e37_79b9_7f4a_7c15;

#[test]
fn kill_at_any_instant_loses_nothing_acknowledged() {
    let place = Place::new();
    live_and_die(&place, SEED, ROUNDS, |_| false);
    assert!(place.damaged().is_empty());
}

/// `make crash`: as many kills as `AWS_CNI_KILLS` says, 10,000 unless told, each database through 250 of them, and the
/// same for every tenth with sled or the copy destroyed besides.
#[test]
#[ignore = "an hour; make crash runs it"]
fn ten_thousand_kills_lose_nothing_acknowledged() {
    const OF_ONE_DATABASE: u32 = 250;
    let kills: u32 = std::env::var("AWS_CNI_KILLS").map_or(10_000, |text| text.parse().unwrap());
    let begun = std::time::Instant::now();
    let (mut kept, mut done, mut databases) = (0, 0, 0_u64);
    while done < kills {
        let rounds = OF_ONE_DATABASE.min(kills - done);
        let place = Place::new();
        databases += 1;
        let seed = SEED.wrapping_mul(2 * databases + 1);
        if databases.is_multiple_of(10) {
            let mut rng = Dice(seed);
            kept += live_and_die(&place, seed, rounds, |dir| spoil(&mut rng, dir));
        } else {
            kept += live_and_die(&place, seed, rounds, |_| false);
            assert!(place.damaged().is_empty());
        }
        done += rounds;
        println!(
            "{done} kills on {databases} databases, {kept} commits acknowledged, none missing, {} s",
            begun.elapsed().as_secs()
        );
    }
}

/// What the kill left is made worse before the next opening: sled's files or the copies are taken away or spoilt.
#[test]
fn kill_at_any_instant_and_the_loss_of_sled_or_of_the_copy_loses_nothing_acknowledged() {
    let place = Place::new();
    let mut rng = Dice(0x2545_f491_4f6c_dd1d);
    live_and_die(&place, SEED, ROUNDS, |dir| spoil(&mut rng, dir));
    assert!(!place.damaged().is_empty());
}

/// Takes away or spoils sled's files or the copies, two times of three.
fn spoil(rng: &mut Dice, dir: &Path) -> bool {
    if !dir.join("db").exists() {
        return false;
    }
    match rng.below(3) {
        0 => drop(journal::destroy_sled(dir, rng.below(6))),
        1 => journal::destroy_copy(dir),
        _ => return false,
    }
    true
}

/// How many commits were acknowledged.
fn live_and_die(place: &Place, seed: u64, rounds: u32, mut worsen: impl FnMut(&Path) -> bool) -> u32 {
    let mut rng = Dice(seed);
    let mut acknowledged: BTreeMap<u32, u64> = BTreeMap::new();
    let mut highest = Generation(0);
    let mut kept = 0;
    for round in 0..rounds {
        // Any instant means also while it opens.
        let told = if rng.below(2) == 0 {
            write_and_die(
                &place.dir(),
                From::Start,
                Duration::from_micros(rng.below(150_000)),
            )
        } else {
            write_and_die(
                &place.dir(),
                From::FirstAnswer,
                Duration::from_micros(rng.below(60_000)),
            )
        };
        for (writer, count, generation) in told {
            acknowledged.insert(writer, count);
            highest = highest.max(generation);
            kept += 1;
        }
        // Every third time the next child takes over the killed one's files directly.
        if round % 3 != 0 {
            let worse = worsen(&place.dir());
            highest = verify(place, &mut acknowledged, highest, worse);
        }
    }
    verify(place, &mut acknowledged, highest, false);
    assert!(kept > rounds, "the writers did write: {kept}");
    kept
}

#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum From {
    Start,
    FirstAnswer,
}

/// A child that writes and is killed so long `after` that; what it acknowledged.
pub(super) fn write_and_die(dir: &Path, from: From, after: Duration) -> Vec<(u32, u64, Generation)> {
    let mut child = command("mode=write", dir).spawn().unwrap();
    let output = BufReader::new(child.stdout.take().unwrap());
    let (tell, told) = mpsc::channel();
    let reader = thread::spawn(move || {
        // Others print here, too, and the last line may be cut.
        let acknowledged = output.lines().map_while(Result::ok).filter_map(|line| {
            let parsed = parse(&line);
            if parsed.is_some() {
                tell.send(()).ok();
            }
            parsed
        });
        acknowledged.collect::<Vec<_>>()
    });
    if from == From::FirstAnswer {
        told.recv().expect("it acknowledges something");
    }
    thread::sleep(after);
    child.kill().unwrap();
    child.wait().unwrap();
    reader.join().unwrap()
}

pub(super) fn parse(line: &str) -> Option<(u32, u64, Generation)> {
    let mut words = line.strip_prefix("ack ")?.strip_suffix(" .")?.split(' ');
    Some((
        words.next()?.parse().ok()?,
        words.next()?.parse().ok()?,
        Generation(words.next()?.parse().ok()?),
    ))
}

fn verify(
    place: &Place,
    acknowledged: &mut BTreeMap<u32, u64>,
    highest: Generation,
    worse: bool,
) -> Generation {
    if worse {
        // sled may panic of it, which takes a start, as it would take the daemon's.
        journal::start_once(&place.dir());
    }
    let (store, loaded) = place.open();
    assert!(
        loaded.doubts.is_empty() && (worse || loaded.damage.is_none()),
        "{:?}",
        loaded.damage
    );
    assert!(
        loaded.generation > highest,
        "{} after {highest}",
        loaded.generation
    );
    for (writer, count) in acknowledged {
        let found = count_of(&loaded.entries, "left", *writer);
        assert!(
            // One step of each child since the last look may have been durable and not yet told.
            (*count..=*count + 2).contains(&found),
            "writer {writer}: acknowledged {count}, found {found}"
        );
        // Read back once, it must stay, too.
        *count = found;
    }
    for writer in 0..WRITERS {
        let found = count_of(&loaded.entries, "left", writer);
        assert_eq!(
            found,
            count_of(&loaded.entries, "right", writer),
            "commits are atomic"
        );
        let steps: Vec<_> = loaded
            .entries
            .keys()
            .filter(|key| key.starts_with(&format!("step/{writer}/")))
            .collect();
        match found {
            0 => assert!(steps.is_empty()),
            found => assert_eq!(steps, [&format!("step/{writer}/{found}")]),
        }
    }
    store.close();
    loaded.generation
}

pub(super) fn count_of(entries: &BTreeMap<String, Vec<u8>>, side: &str, writer: u32) -> u64 {
    entries
        .get(&format!("{side}/{writer}"))
        .map_or(0, |value| String::from_utf8_lossy(value).trim().parse().unwrap())
}

/// The child: counts up, one commit per step, tells what was acknowledged.
pub(super) fn write_for_ever(dir: &Path) {
    // So that sled, the copy and the journal's start are written all the time.
    let often = Options {
        copy_every: 50,
        copy_when_quiet: Duration::from_millis(3),
        copy_max_age: Duration::from_millis(20),
        ..options()
    };
    let (store, loaded) = Store::open(dir, often).unwrap();
    let store = Arc::new(store);
    let writers: Vec<_> = (0..WRITERS)
        .map(|writer| {
            let store = Arc::clone(&store);
            let mut count = count_of(&loaded.entries, "left", writer);
            thread::spawn(move || {
                loop {
                    count += 1;
                    // Padding, so that the log turns over and its segments are reused.
                    let text = format!("{count:<600}");
                    let generation = commit(
                        &store,
                        vec![
                            put(&format!("left/{writer}"), text.as_bytes()),
                            put(&format!("right/{writer}"), text.as_bytes()),
                            put(&format!("step/{writer}/{count}"), b"x"),
                            remove(&format!("step/{writer}/{}", count - 1)),
                        ],
                    )
                    .unwrap();
                    let line = format!("\nack {writer} {count} {generation} .\n");
                    std::io::stdout().write_all(line.as_bytes()).unwrap();
                }
            })
        })
        .collect();
    let ends = writers
        .into_iter()
        .map(|writer| writer.join().is_err())
        .collect::<Vec<_>>();
    panic!("they write for ever: {ends:?}");
}
