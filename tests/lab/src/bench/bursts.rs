//! Many pods at once on a node that has addresses for all of them.

use std::net::Ipv4Addr;
use std::sync::Barrier;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use super::floor::Floor;
use super::stage::{Added, Sandbox, Stage, sandboxes};
use super::statistics::Sample;
use super::{BenchError, BenchOptions};

/// Pods in a burst.
pub(super) const SIZE: usize = 110;
/// Links are deleted 50 ms after a DEL, and two hundred of them take a while.
const REAPED: Duration = Duration::from_millis(150);

#[derive(Debug)]
pub(super) struct Burst {
    pub(super) at_once: usize,
    pub(super) add: Sample,
    pub(super) floor_add: Sample,
    pub(super) del: Sample,
}

pub(super) fn measure(stage: &mut Stage, options: &BenchOptions) -> Result<Vec<Burst>, BenchError> {
    let ours = sandboxes("burst", SIZE)?;
    let floors = sandboxes("floor", SIZE)?;
    let mut bursts = [8, SIZE].map(|at_once| Burst {
        at_once,
        add: Sample::default(),
        floor_add: Sample::default(),
        del: Sample::default(),
    });
    let node = stage.node.netns().clone();
    for _ in 0..options.bursts {
        for burst in &mut bursts {
            node.run(|| round(stage, burst, &ours, &floors))??;
        }
    }
    stage.check(0)?;
    Ok(bursts.into())
}

fn round(stage: &Stage, burst: &mut Burst, ours: &[Sandbox], floors: &[Sandbox]) -> Result<(), BenchError> {
    let (took, added) = together(ours, burst.at_once, |_, sandbox| stage.add(sandbox))?;
    burst.add.push(took);
    let pods: Vec<(&Sandbox, Added)> = ours.iter().zip(added).collect();
    let (took, _) = together(&pods, burst.at_once, |_, (sandbox, added)| {
        stage.del(sandbox, added)
    })?;
    burst.del.push(took);
    stage.floor.reap()?;
    std::thread::sleep(REAPED);

    let (took, _) = together(floors, burst.at_once, |index, sandbox| {
        let path = sandbox.netns.path();
        stage.floor.add(&path, &link(index), address(index))
    })?;
    burst.floor_add.push(took);
    clean(&stage.floor, floors.len())?;
    std::thread::sleep(REAPED);
    Ok(())
}

fn clean(floor: &Floor, count: usize) -> Result<(), BenchError> {
    for index in 0..count {
        floor.del(&link(index), address(index))?;
    }
    floor.reap().map(drop)
}

fn link(index: usize) -> String {
    format!("enifl{index}")
}

fn address(index: usize) -> Ipv4Addr {
    let last = u8::try_from(index).unwrap_or(u8::MAX);
    Ipv4Addr::new(10, 255, 1, last)
}

/// Works on all items, so many at a time, and says how long that took from the moment all threads stood ready. Threads
/// inherit the caller's namespace.
pub(super) fn together<I: Sync, T: Send>(
    items: &[I],
    at_once: usize,
    work: impl Fn(usize, &I) -> Result<T, BenchError> + Sync,
) -> Result<(Duration, Vec<T>), BenchError> {
    let next = AtomicUsize::new(0);
    let start = Barrier::new(at_once + 1);
    let worker = || {
        let mut done = Vec::new();
        start.wait();
        loop {
            let index = next.fetch_add(1, Ordering::Relaxed);
            let Some(item) = items.get(index) else { return done };
            done.push((index, work(index, item)));
        }
    };
    let (took, mut done) = std::thread::scope(|scope| {
        let running: Vec<_> = (0..at_once).map(|_| scope.spawn(worker)).collect();
        start.wait();
        let started = Instant::now();
        let done: Vec<_> = running
            .into_iter()
            .flat_map(|worker| {
                worker
                    .join()
                    .unwrap_or_else(|panic| std::panic::resume_unwind(panic))
            })
            .collect();
        (started.elapsed(), done)
    });
    done.sort_by_key(|(index, _)| *index);
    let done: Result<Vec<T>, _> = done.into_iter().map(|(_, result)| result).collect();
    Ok((took, done?))
}
