//! The table: ours, the floor, the ratio, the Go daemon's figure of another run, and what we owe.

use super::bursts::Burst;
use super::growth::Growth;
use super::levels::Level;
use super::reference as go;
use super::statistics::Sample;
use super::versions::Versions;

/// `ok`, or what it falls short of.
fn owed(figure: f64, bound: f64) -> String {
    if figure <= bound {
        format!("ok (owed {bound})")
    } else {
        format!("SHORT (owed {bound})")
    }
}

fn small(number: usize) -> f64 {
    u32::try_from(number).map_or(f64::INFINITY, f64::from)
}

pub(super) fn versions(versions: &Versions) {
    let (ours, hello) = (versions.plugin.p50(), versions.hello.p50());
    println!("Exec to exit, p50");
    println!(
        "  VERSION {ours:.3} ms, static hello {hello:.3} ms, ratio {:.2}: {}; Go: {} against {}\n",
        ours / hello,
        owed(ours / hello, go::OWED_VERSION),
        go::GO_VERSION.0,
        go::GO_VERSION.1,
    );
}

pub(super) fn growth(growth: &Growth) {
    let cold = growth.cold.as_secs_f64();
    println!("Cold burst of 110 on a fresh node, default targets, attaching takes 2 s");
    println!(
        "  last pod after {cold:.2} s, {} ADDs failed: {}; Go: {} s with retries, {} failed at first",
        growth.failed,
        owed(cold + small(growth.failed) * 1000.0, go::OWED_COLD),
        go::GO_COLD.0,
        go::GO_COLD.1,
    );
    calls("at start", growth.calls_at_start, None, go::GO_START_CALLS);
    let owed_calls = Some(go::OWED_GROWTH_CALLS);
    calls("to grow to 110", growth.calls, owed_calls, go::GO_GROWTH_CALLS);
    println!("  EC2 by action: {}", growth.by_action);
    println!("Restart with 110 pods until the first answer, p50 (harness: start of an empty program)");
    let nothing = growth.restart_of_nothing.p50();
    let line = |what: &str, ours: f64, theirs: f64| {
        println!(
            "  {what}: {ours:.1} ms, of which {nothing:.1} are the harness's: {}; Go: {theirs} s",
            owed(ours - nothing, go::OWED_RESTART)
        );
    };
    line("all reachable", growth.restart.p50(), go::GO_RESTART.0);
    line("EC2 and IMDS away", growth.restart_alone.p50(), go::GO_RESTART.1);
    let mib = |kib: usize| small(kib) / 1024.0;
    let (idle, full) = (mib(growth.resident.0), mib(growth.resident.1));
    println!("Resident memory of the daemon");
    println!(
        "  idle {idle:.1} MiB, with 110 pods {full:.1} MiB: {}; Go: {} and {} MB",
        owed(full, go::OWED_RESIDENT),
        go::GO_RESIDENT.0,
        go::GO_RESIDENT.1
    );
    println!();
}

fn calls(when: &str, ours: (usize, usize), owes: Option<(usize, usize)>, theirs: (usize, usize)) {
    let verdict = |ours, owes| owed(small(ours), small(owes));
    let judged = owes.map_or_else(String::new, |owes| {
        format!(
            ": EC2 {}, IMDS {}",
            verdict(ours.0, owes.0),
            verdict(ours.1, owes.1)
        )
    });
    println!(
        "  calls {when}: {} EC2, {} IMDS{judged}; Go: {} and {}",
        ours.0, ours.1, theirs.0, theirs.1
    );
}

pub(super) fn memory_of_warm_node(kib: usize) {
    let mib = small(kib) / 1024.0;
    println!(
        "\nResident memory after all bursts, pool of 700 addresses: {mib:.1} MiB: {}; Go: {} MB",
        owed(mib, go::OWED_RESIDENT),
        go::GO_RESIDENT.2
    );
}

pub(super) fn bursts(bursts: &[Burst]) {
    println!("Warm bursts of 110, p50 of the whole burst");
    let theirs = [
        (go::GO_BURSTS.0, go::GO_BURST_FLOORS.0),
        (go::GO_BURSTS.1, go::GO_BURST_FLOORS.1),
    ];
    for (burst, (go_burst, go_floor)) in bursts.iter().zip(theirs) {
        let (ours, floor) = (burst.add.p50(), burst.floor_add.p50());
        println!(
            "  {:>3} at a time: ADD {ours:.0} ms, floor {floor:.0} ms, ratio {:.2}: {}; DEL {:.0} ms; Go: {go_burst} against {go_floor}",
            burst.at_once,
            ours / floor,
            owed(ours, go::OWED_BURST),
            burst.del.p50(),
        );
    }
    println!();
}

pub(super) fn level_head() {
    println!("One pod while others are present, ms (sync: append and fdatasync on the store's disk)");
    println!(
        "{:>4} | {:>11} {:>11} {:>11} | {:>9} {:>9} {:>7} | {:>11} {:>9} | {:>6} {:>6} {:>6} | owed",
        "pods",
        "ADD p50/p99",
        "floor",
        "sync",
        "ADD/floor",
        "/(fl+sy)",
        "xGo",
        "DEL p50/p99",
        "floor DEL",
        "CPU",
        "floor",
        "daemon"
    );
}

pub(super) fn level(level: &Level) {
    let (add, floor, sync, del) = (
        level.add.p50(),
        level.floor_add.p50(),
        level.sync.p50(),
        level.del.p50(),
    );
    let reference = go::GO_LEVELS.iter().find(|known| known.pods == level.pods);
    // Both in floors of their own run, for the machines differ.
    let faster = reference.map_or(f64::NAN, |known| known.add.0 / known.floor_add / (add / floor));
    let pair = |sample: &Sample| format!("{:.2}/{:.2}", sample.p50(), sample.p99());
    println!(
        "{:>4} | {:>11} {:>11} {:>11} | {:>9.2} {:>9.2} {faster:>6.1}x | {:>11} {:>9.2} | {:>6.2} {:>6.2} {:>6.2} | ADD {}, faster {}, DEL {}",
        level.pods,
        pair(&level.add),
        pair(&level.floor_add),
        pair(&level.sync),
        add / floor,
        add / (floor + sync),
        pair(&level.del),
        level.floor_del.p50(),
        level.cpu.p50(),
        level.floor_cpu.p50(),
        level.daemon_cpu.p50(),
        owed(add / (floor + sync), go::OWED_ADD),
        if faster >= go::OWED_FASTER { "ok" } else { "SHORT" },
        owed(del, go::OWED_DEL),
    );
    if let Some(known) = reference {
        let cpu = known.cpu.map_or_else(String::new, |cpu| format!(", CPU {cpu}"));
        println!(
            "     | Go: ADD {}/{}, its floor {}, ratio {:.1}; DEL {}{cpu}",
            known.add.0,
            known.add.1,
            known.floor_add,
            known.add.0 / known.floor_add,
            known.del
        );
    }
}
