//! A fresh node meets 110 pods at once, and its daemon is restarted under them.

use std::time::Duration;

use super::bursts::{SIZE, together};
use super::stage::{Stage, count, sandboxes};
use super::statistics::Sample;
use super::{BenchError, BenchOptions};
use crate::calls::Service;
use crate::faults::{Latency, Outage, Scope};
use crate::lab::Lab;

/// As the Go daemon's figures were taken.
const EC2_CALL: Latency = Latency::millis(100);
const ATTACH: Latency = Latency::secs(2);

const RESTARTS: usize = 7;

#[derive(Debug)]
pub(super) struct Growth {
    /// From the first ADD to the last answer.
    pub(super) cold: Duration,
    pub(super) failed: usize,
    /// EC2 and IMDS calls from the first start to `READY=1` and the pool at rest, and from there to 110 pods and at rest.
    pub(super) calls_at_start: (usize, usize),
    pub(super) calls: (usize, usize),
    pub(super) by_action: String,
    /// KiB, idle and with all pods.
    pub(super) resident: (usize, usize),
    /// To the first answer: everything reachable; EC2 and IMDS black holes; and starting something empty the same way.
    pub(super) restart: Sample,
    pub(super) restart_alone: Sample,
    pub(super) restart_of_nothing: Sample,
}

pub(super) fn measure(options: &BenchOptions) -> Result<Growth, BenchError> {
    let mut stage = Stage::new(Lab::builder(), "m5.4xlarge", Vec::new(), options)?;
    let cloud = stage.lab.cloud().clone();
    cloud.faults().timing(&Scope::All, |timing| {
        timing.ec2 = EC2_CALL;
        timing.attach_link = ATTACH;
        timing.attach_status = Latency::Zero;
    });
    let counted = |service, mark| {
        let counters = cloud.calls().counters(service, mark);
        counters.values().sum::<usize>()
    };
    let both = |mark| (counted(Service::Ec2, mark), counted(Service::Imds, mark));
    at_rest(&stage)?;
    let (calls_at_start, mark) = (both(0), cloud.calls().mark());
    let idle = stage.resident()?;

    let pods = sandboxes("cold", SIZE)?;
    let node = stage.node.netns().clone();
    let (cold, added) = node.run(|| together(&pods, SIZE, |_, sandbox| Ok(stage.add(sandbox))))??;
    let failed = added.iter().filter(|added| added.is_err()).count();
    for error in added.iter().filter_map(|added| added.as_ref().err()) {
        eprintln!("cold burst: {error}");
    }
    at_rest(&stage)?;
    stage.check(SIZE - failed)?;
    let resident = (idle, stage.resident()?);
    let calls = both(mark);
    let by_action = format!("{:?}", cloud.calls().counters(Service::Ec2, mark));

    let mut growth = Growth {
        cold,
        failed,
        calls_at_start,
        calls,
        by_action,
        resident,
        restart: Sample::default(),
        restart_alone: Sample::default(),
        restart_of_nothing: Sample::default(),
    };
    for _ in 0..RESTARTS {
        growth
            .restart_of_nothing
            .push(stage.restart_of_nothing(&options.hello)?);
        growth.restart.push(stage.restart()?);
        away(&cloud, Some(Outage::BlackHole));
        growth.restart_alone.push(stage.restart()?);
        away(&cloud, None);
    }
    stage.check(SIZE - failed)?;
    Ok(growth)
}

fn away(cloud: &crate::cloud::Cloud, outage: Option<Outage>) {
    for service in [Service::Ec2, Service::Imds] {
        cloud.faults().outage(service, Scope::All, outage);
    }
}

/// Nothing is on its way and nobody waits, twice with a while in between.
fn at_rest(stage: &Stage) -> Result<(), BenchError> {
    for _ in 0..2 {
        stage.wait("the pool to rest", |status| {
            count(status, "coming") == 0 && count(status, "waiting") == 0
        })?;
        std::thread::sleep(Duration::from_millis(500));
    }
    Ok(())
}
