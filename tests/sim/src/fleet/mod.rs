//! Many nodes that share one account's EC2 limits: the real pool, and a model of upstream's decisions beside it.

pub mod chart;
pub mod limits;
pub mod measure;
pub mod member;
pub mod ours;
pub mod report;
pub mod scenario;
pub mod setting;
pub mod table;

use aws_cni_ipam::limits::{FurtherCards, InstanceLimits};
use aws_cni_ipam::obstacle::spread;

use crate::agenda::Agenda;
use crate::dice::Dice;
use crate::upstream::Agent;
use limits::{Api, Limits};
use measure::{Measure, Row};
use member::{Around, Member};
use ours::OurNode;
use scenario::Scenario;
use setting::{Setting, Side};

/// An m5.4xlarge: 8 ENIs of 30 addresses.
pub const LIMITS: InstanceLimits = InstanceLimits {
    enis: 8,
    ipv4_per_eni: 30,
    prefixes: true,
    further: FurtherCards::NONE,
};

/// Usual milliseconds, as the one-node simulator has them.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Latency {
    /// Until a call reaches EC2.
    pub request: u64,
    /// Until a Describe is answered.
    pub look: u64,
    /// Until a change is answered.
    pub change: u64,
    /// Until an attached ENI is seen.
    pub attach: u64,
}

impl Latency {
    /// EC2's.
    pub const EC2: Self = Self {
        request: 60,
        look: 80,
        change: 300,
        attach: 1500,
    };

    /// Until a call is answered.
    pub const fn answer(&self, api: Api) -> u64 {
        if api.looks() { self.look } else { self.change }
    }
}

/// Kubelet tries again after a sandbox failed.
pub const KUBELET: (u64, u64) = (13_000, 15_000);

/// One run.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Plan {
    /// Nodes.
    pub nodes: u32,
    /// What happens.
    pub scenario: Scenario,
    /// What is held ready.
    pub setting: Setting,
    /// Whose decisions.
    pub side: Side,
    /// Of everything that is rolled.
    pub seed: u64,
}

impl Plan {
    /// Runs it; `None` where upstream has no such setting.
    pub fn run(self) -> Option<Row> {
        let seed = |n: u32| spread(self.seed ^ spread(u64::from(n)));
        match self.side {
            Side::Ours => {
                // The pool of each node is verified after every event where that takes no long time.
                let is_light = self.nodes > 50;
                let node = |n| OurNode::new(n, self.setting.policy(), Latency::EC2, seed(n), is_light);
                Some(Fleet::new(self).run(node))
            }
            Side::Upstream => {
                let target = self.setting.upstream()?;
                let node = |n| Some(Agent::new(target, Latency::EC2, KUBELET, seed(n)));
                Some(Fleet::new(self).run(node))
            }
        }
    }
}

enum Next<E> {
    Start(u32),
    Pod(u32, u64),
    Of(u32, E),
}

/// After the last of the first pods runs, what follows is still counted for so long.
const AFTERMATH: u64 = 120_000;
/// No run is longer.
const LONGEST: u64 = 6 * 3_600_000;

struct Fleet<M: Member> {
    plan: Plan,
    queue: Agenda<Next<M::Event>>,
    limits: Limits,
    nodes: Vec<Option<M>>,
    measures: Vec<Measure>,
    waits: Vec<u64>,
    complete: usize,
    end: u64,
    dice: Dice,
}

impl<M: Member> Fleet<M> {
    fn new(plan: Plan) -> Self {
        let mut fleet = Self {
            plan,
            queue: Agenda::default(),
            limits: Limits::default(),
            nodes: (0..plan.nodes).map(|_| None).collect(),
            measures: (0..plan.nodes).map(|_| Measure::default()).collect(),
            waits: Vec::new(),
            complete: 0,
            end: LONGEST,
            dice: Dice::new(plan.seed, "fleet"),
        };
        for n in 0..plan.nodes {
            let at = plan.scenario.start(n, &mut fleet.dice);
            fleet.queue.at(at, Next::Start(n));
        }
        fleet
    }

    fn run(mut self, node: impl Fn(u32) -> Option<M>) -> Row {
        while let Some(next) = self.queue.next_until(self.end) {
            match next {
                Next::Start(n) => {
                    if let Some(place) = self.nodes.get_mut(n as usize) {
                        *place = node(n);
                    }
                    let (at_once, pods) = self.plan.scenario.pods(self.plan.nodes, &mut self.dice);
                    if let Some(measure) = self.measures.get_mut(n as usize) {
                        *measure = Measure::new(self.queue.now, at_once);
                    }
                    for (wait, life) in pods {
                        self.queue.after(wait, Next::Pod(n, life));
                    }
                    self.with(n, M::start);
                }
                Next::Pod(n, life) => {
                    let now = self.queue.now;
                    if let Some(measure) = self.measures.get_mut(n as usize) {
                        let pod = measure.came(now);
                        self.with(n, |node, around| node.pod(pod, life, around));
                    }
                }
                Next::Of(n, event) => self.with(n, |node, around| node.happen(event, around)),
            }
        }
        self.row()
    }

    fn with(&mut self, n: u32, what: impl FnOnce(&mut M, &mut Around<'_, M::Event>)) {
        let place = n as usize;
        let (Some(Some(node)), Some(measure)) = (self.nodes.get_mut(place), self.measures.get_mut(place))
        else {
            return;
        };
        let now = self.queue.now;
        let mut around = Around {
            now,
            limits: &mut self.limits,
            later: Vec::new(),
            running: Vec::new(),
        };
        what(node, &mut around);
        let Around { later, running, .. } = around;
        for (wait, event) in later {
            self.queue.after(wait, Next::Of(n, event));
        }
        for pod in running {
            let was_complete = measure.is_complete();
            self.waits.push(measure.runs(pod, now));
            self.complete += usize::from(!was_complete && measure.is_complete());
        }
        if self.complete == self.nodes.len() && self.end == LONGEST {
            self.end = self.plan.scenario.lasts().max(now + AFTERMATH);
        }
    }

    fn row(self) -> Row {
        let mut row = Row::new(
            self.plan,
            self.queue.now,
            &self.measures,
            self.waits,
            &self.limits,
        );
        for node in self.nodes.iter().flatten() {
            row.failed += node.failed();
            row.held += node.held();
            row.running += node.pods();
            row.violation = row.violation.or_else(|| node.violation());
        }
        row
    }
}
