//! How soon an address is used again although the daemon is killed all the time: never before it has rested.
//!
//! The Go daemon forgets at its restart which addresses rest: after `kill -9` it gave them out again after 0.8 to 1.4 s.

use std::collections::{BTreeMap, BTreeSet};
use std::net::Ipv4Addr;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, RwLock};
use std::time::{Duration, Instant};

use crate::crash::{Dice, StopAtEnd};
use crate::scene::{PATIENCE, Scene, said};

/// As many as the ENI has addresses, so that every address at rest is waited for.
const WORKERS: u64 = 9;
/// What an ADD may wait for: an address at rest, and a daemon that starts.
const WAIT: Duration = PATIENCE;

/// A DEL as the runtime sees it.
#[derive(Clone, Copy)]
struct Gone {
    began: Instant,
    ended: Instant,
}

/// An address that was used again.
#[derive(Clone, Copy)]
struct Reuse {
    times: usize,
    /// From a DEL's end to the end of the next ADD.
    after_end: Duration,
    /// And from its beginning.
    after_begin: Duration,
}

#[derive(Default)]
struct Books {
    live: BTreeSet<Ipv4Addr>,
    gone: BTreeMap<Ipv4Addr, Gone>,
    reused: BTreeMap<Ipv4Addr, Reuse>,
}

impl Books {
    fn added(&mut self, address: Ipv4Addr) {
        assert!(self.live.insert(address), "{address} has a pod");
        let Some(gone) = self.gone.remove(&address) else {
            return;
        };
        let (after_end, after_begin) = (gone.ended.elapsed(), gone.began.elapsed());
        let reuse = self.reused.entry(address).or_insert(Reuse {
            times: 0,
            after_end,
            after_begin,
        });
        reuse.times += 1;
        reuse.after_end = reuse.after_end.min(after_end);
        reuse.after_begin = reuse.after_begin.min(after_begin);
    }
}

/// One pod after the other, each for a moment.
fn work(scene: &RwLock<Scene>, books: &Mutex<Books>, worker: u64, stop: &AtomicBool) {
    let mut dice = Dice(0x9e37_79b9 + worker);
    for round in 0.. {
        if stop.load(Ordering::Relaxed) {
            return;
        }
        let name = format!("{worker}-{round}");
        let pod = scene
            .read()
            .unwrap()
            .patient_pods(&name, 1, WAIT.as_secs())
            .remove(0);
        let outcome = pod.add().unwrap();
        if !outcome.succeeded() {
            // A daemon that dies under it eight times is given up (decision 8); the runtime tries again later.
            assert_eq!(
                outcome.error_code(),
                Some(11),
                "ADD of {name}: {}",
                said(&outcome)
            );
            let outcome = pod.del().unwrap();
            assert!(outcome.succeeded(), "DEL of {name}: {}", said(&outcome));
            continue;
        }
        let address = pod.address().unwrap();
        books.lock().unwrap().added(address);
        std::thread::sleep(Duration::from_millis(dice.below(100)));
        let began = Instant::now();
        // Before the DEL, in which another may get it.
        books.lock().unwrap().live.remove(&address);
        let outcome = pod.del().unwrap();
        assert!(outcome.succeeded(), "DEL of {name}: {}", said(&outcome));
        let ended = Instant::now();
        let mut books = books.lock().unwrap();
        assert!(
            !books.live.contains(&address),
            "{address} had another pod before its DEL had ended"
        );
        books.gone.insert(address, Gone { began, ended });
    }
}

/// Kills the daemon so often, with up to `between` from one kill to the next. What was used again, by address.
#[allow(clippy::print_stdout, reason = "`make reuse` is run for what it prints")]
fn reuses(kills: usize, cooldown: Duration, between: Duration) -> BTreeMap<Ipv4Addr, Reuse> {
    let seconds = cooldown.as_secs().to_string();
    let settings = [("MAX_ENI", "1"), ("IP_COOLDOWN_PERIOD", seconds.as_str())];
    let scene = RwLock::new(Scene::with_env("m5.large", &settings));
    let books = Mutex::new(Books::default());
    let stop = AtomicBool::new(false);
    std::thread::scope(|scope| {
        for worker in 0..WORKERS {
            let (scene, books, stop) = (&scene, &books, &stop);
            scope.spawn(move || work(scene, books, worker, stop));
        }
        let _stop = StopAtEnd(&stop);
        let mut dice = Dice(0x5eed);
        let most = u64::try_from(between.as_micros()).unwrap();
        for _ in 0..kills {
            std::thread::sleep(Duration::from_micros(dice.below(most)));
            scene.write().unwrap().kill();
            std::thread::sleep(Duration::from_millis(dice.below(50)));
            scene.write().unwrap().start();
        }
        // What was killed last rests and is used again, too.
        std::thread::sleep(cooldown);
    });
    scene.into_inner().unwrap().check_empty(1);
    let reused = books.into_inner().unwrap().reused;
    assert!(
        !reused.is_empty(),
        "addresses were used again, or this shows nothing"
    );
    for (address, reuse) in &reused {
        println!(
            "{address}: used again {} times, {:.3} s after a DEL's end at the soonest, {:.3} s after its beginning",
            reuse.times,
            reuse.after_end.as_secs_f64(),
            reuse.after_begin.as_secs_f64(),
        );
    }
    let times: usize = reused.values().map(|reuse| reuse.times).sum();
    let soonest = |of: fn(&Reuse) -> Duration| reused.values().map(of).min().unwrap_or_default();
    let (after_end, after_begin) = (
        soonest(|reuse| reuse.after_end),
        soonest(|reuse| reuse.after_begin),
    );
    println!(
        "{kills} kills, {times} reuses: the shortest {:.3} s after a DEL's end, {:.3} s after its beginning; cooldown {} s",
        after_end.as_secs_f64(),
        after_begin.as_secs_f64(),
        cooldown.as_secs()
    );
    // An address rests from the moment that its release is recorded, which is inside of its DEL.
    assert!(
        after_begin >= cooldown,
        "{after_begin:?} is less than {cooldown:?}"
    );
    reused
}

#[test]
fn baseline_fault_1_killed_10_times_the_daemon_uses_no_address_before_it_has_rested() {
    let reused = reuses(10, Duration::from_secs(2), Duration::from_millis(700));
    assert!(reused.values().all(|reuse| reuse.times > 0));
}

/// `make reuse`: the real cooldown, a hundred kills, eight minutes.
#[test]
#[ignore = "takes eight minutes: make reuse"]
fn killed_100_times_the_daemon_uses_no_address_before_30_seconds() {
    reuses(100, Duration::from_secs(30), Duration::from_secs(8));
}
