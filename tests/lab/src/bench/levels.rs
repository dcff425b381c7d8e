//! ADD and DEL of one pod while others are present.

use std::net::Ipv4Addr;
use std::time::Duration;

use nix::sys::resource::{UsageWho, getrusage};

use super::BenchError;
use super::floor::Disk;
use super::stage::{Sandbox, Stage, sandboxes};
use super::statistics::Sample;

/// The floor's pods are nobody's.
const FLOOR_ADDRESS: Ipv4Addr = Ipv4Addr::new(10, 255, 0, 1);
const FLOOR_LINK: &str = "enifloor";

/// What the daemon does after an answer is not to be in the next figure.
const PAUSE: Duration = Duration::from_millis(2);

#[derive(Debug, Default)]
pub(super) struct Level {
    pub(super) pods: usize,
    pub(super) add: Sample,
    pub(super) floor_add: Sample,
    pub(super) del: Sample,
    pub(super) floor_del: Sample,
    pub(super) sync: Sample,
    /// CPU time of a plugin's ADD, of the daemon for an ADD and its DEL, and of a floor ADD.
    pub(super) cpu: Sample,
    pub(super) daemon_cpu: Sample,
    pub(super) floor_cpu: Sample,
}

/// Measures with this many pods present besides the one that comes and goes.
pub(super) fn measure(stage: &mut Stage, pods: usize, runs: usize) -> Result<Level, BenchError> {
    stage.populate(pods)?;
    let mut level = Level {
        pods,
        ..Level::default()
    };
    let mut disk = Disk::beside(&stage.node.dirs().state)?;
    let [ours, floors] = [sandboxes("ours", 1)?, sandboxes("floor", 1)?];
    let pairs: Vec<_> = ours.iter().zip(&floors).collect();
    let node = stage.node.netns().clone();
    for _ in 0..runs {
        for (ours, floors) in &pairs {
            node.run(|| turn(stage, &mut level, &mut disk, ours, floors))??;
        }
    }
    stage.check(pods)?;
    Ok(level)
}

fn turn(
    stage: &Stage,
    level: &mut Level,
    disk: &mut Disk,
    ours: &Sandbox,
    floors: &Sandbox,
) -> Result<(), BenchError> {
    let pause = || std::thread::sleep(PAUSE);
    let daemon_before = stage.daemon_cpu()?;
    let before = children_cpu()?;
    let added = stage.add(ours)?;
    level.cpu.push(children_cpu()?.saturating_sub(before));
    level.add.push(added.took);
    pause();

    let before = children_cpu()?;
    let path = floors.netns.path();
    level
        .floor_add
        .push(stage.floor.add(&path, FLOOR_LINK, FLOOR_ADDRESS)?);
    level.floor_cpu.push(children_cpu()?.saturating_sub(before));
    pause();

    level.sync.push(disk.sync()?);
    pause();
    level.del.push(stage.del(ours, &added)?);
    pause();
    level
        .daemon_cpu
        .push(stage.daemon_cpu()?.saturating_sub(daemon_before));
    level.floor_del.push(stage.floor.del(FLOOR_LINK, FLOOR_ADDRESS)?);
    // The links of both; the daemon finds nothing left to delete, so that its 20 ms of RCU do not fall into an ADD.
    stage.floor.reap()?;
    pause();
    Ok(())
}

/// User and system time of all children that have ended.
fn children_cpu() -> Result<Duration, BenchError> {
    let usage = getrusage(UsageWho::RUSAGE_CHILDREN)
        .map_err(|errno| super::io_error("reading CPU times")(errno.into()))?;
    let span = |seconds, micros| {
        let seconds = u64::try_from(seconds).unwrap_or(0);
        Duration::from_secs(seconds) + Duration::from_micros(u64::try_from(micros).unwrap_or(0))
    };
    let (user, system) = (usage.user_time(), usage.system_time());
    Ok(span(user.tv_sec(), user.tv_usec()) + span(system.tv_sec(), system.tv_usec()))
}
