//! Figures, not assertions: `cargo test --release -- --ignored --nocapture store_figures`.

use std::fs::File;
use std::io::Write as _;
use std::path::Path;
use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

use super::child::command;
use super::*;

#[test]
#[ignore = "measures, asserts nothing"]
fn store_figures() {
    let place = Place::new();
    let output = command("mode=measure", &place.dir()).output().unwrap();
    println!("{}", String::from_utf8_lossy(&output.stdout));
    println!("{}", String::from_utf8_lossy(&output.stderr));
}

/// In a child, so that the resident set is the store's alone.
pub(super) fn measure(dir: &Path) {
    let bare = resident_kib();
    let (store, _) = Store::open(dir, options()).unwrap();
    let records = (0..1000)
        .map(|n| put(&format!("address/{n}"), &[b'x'; 300]))
        .collect();
    commit(&store, records).unwrap();
    println!("resident: {} KiB more with the first open", resident_kib() - bare);
    store.close();
    let start = Instant::now();
    let layout = Layout::new(dir);
    let engine = engine::Engine::open(dir, 4 << 20).unwrap();
    println!("  of an open: sled {:?}", start.elapsed());
    let start = Instant::now();
    scan::scan(&engine).unwrap();
    println!("  of an open: scan {:?}", start.elapsed());
    let start = Instant::now();
    engine.apply(std::iter::empty()).unwrap();
    println!("  of an open: first commit {:?}", start.elapsed());
    engine.close();
    let start = Instant::now();
    read_copy(layout.dir()).unwrap();
    println!("  of an open: copy {:?}", start.elapsed());
    let start = Instant::now();
    drop(crate::store::journal::read(&layout.journal()));
    println!("  of an open: journal {:?}", start.elapsed());
    let mut opens: Vec<_> = (0..30)
        .map(|_| {
            let start = Instant::now();
            let (store, loaded) = Store::open(dir, options()).unwrap();
            let took = start.elapsed();
            assert_eq!(loaded.entries.len(), 1000);
            store.close();
            took
        })
        .collect();
    report("open with 1000 records", &mut opens);
    let (store, _) = Store::open(dir, options()).unwrap();
    let store = Arc::new(store);
    println!(
        "resident: {} KiB more than before the first open",
        resident_kib() - bare
    );
    // In turn, since the disk's mood changes within seconds.
    let mut file = File::create(dir.with_extension("plain")).unwrap();
    let (mut alone, mut plain) = (Vec::new(), Vec::new());
    for n in 0..2000 {
        alone.push(timed(&store, n));
        let start = Instant::now();
        file.write_all(&[b'x'; 512]).unwrap();
        file.sync_data().unwrap();
        plain.push(start.elapsed());
    }
    report("commit, one at a time", &mut alone);
    report("append 512 bytes and fdatasync", &mut plain);
    let start = Instant::now();
    let threads: Vec<_> = (0..64)
        .map(|thread| {
            let store = Arc::clone(&store);
            thread::spawn(move || {
                (0..100)
                    .map(|n| timed(&store, thread * 100 + n))
                    .collect::<Vec<_>>()
            })
        })
        .collect();
    let mut together: Vec<_> = threads
        .into_iter()
        .flat_map(|thread| thread.join().unwrap())
        .collect();
    let rate = 6400.0 / start.elapsed().as_secs_f64();
    report("commit, 64 at a time", &mut together);
    println!("commits per second with 64 at a time: {rate:.0}");
    println!(
        "resident: {} KiB more than before the first open",
        resident_kib() - bare
    );
    drop(store);
    let start = Instant::now();
    let lock = layout.lock().unwrap();
    probe::probe(dir, &child::probe_command(), &lock).unwrap();
    println!("probe child: {:?}", start.elapsed());
}

fn timed(store: &Store, n: usize) -> Duration {
    let start = Instant::now();
    commit(store, vec![put(&format!("address/{}", n % 1000), &[b'y'; 300])]).unwrap();
    start.elapsed()
}

fn report(what: &str, times: &mut [Duration]) {
    times.sort();
    let at = |percent: usize| times[(times.len() - 1) * percent / 100];
    println!("{what}: p50 {:?} p99 {:?} max {:?}", at(50), at(99), at(100));
}

fn resident_kib() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find(|line| line.starts_with("VmRSS")).unwrap();
    line.split_whitespace().nth(1).unwrap().parse().unwrap()
}
