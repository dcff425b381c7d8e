//! Its process: one thread through its steps, and pods that are refused what is not there yet.

use std::collections::{BTreeMap, VecDeque};

use super::Happening;
use super::plan::{self, Otherwise, Step, Then};
use super::store::{Store, Target};
use crate::dice::Dice;
use crate::fleet::limits::Api;
use crate::fleet::member::{Around, Member};
use crate::fleet::{LIMITS, Latency};

/// Attempts of the SDK for one call, the first included (AWS SDK for Go v2, `aws/retry`: standard mode).
const SDK_ATTEMPTS: u32 = 3;
/// What is lowered once is not lowered again before this (repo: `pkg/ipamd/ipamd.go`, `decreaseIPPoolInterval`).
const SHRINK_EVERY: u64 = 30_000;
/// What an ADD takes that finds an address (measured: 10 to 15 ms).
const WIRING: u64 = 11;

/// One node's agent, and its kubelet.
#[derive(Debug)]
pub struct Agent {
    /// What it has.
    pub store: Store,
    latency: Latency,
    /// Kubelet tries again after a failed sandbox in this range of milliseconds.
    backoff: (u64, u64),
    steps: VecDeque<Step>,
    attempt: u32,
    crashes: u32,
    serves: bool,
    shrunk_at: u64,
    imds_shows_at: u64,
    waiting: Vec<u32>,
    lives: BTreeMap<u32, u64>,
    failed: u64,
    dice: Dice,
}

type Outside<'a> = Around<'a, Happening>;

impl Agent {
    /// An agent that is not started yet.
    pub fn new(target: Target, latency: Latency, backoff: (u64, u64), seed: u64) -> Self {
        Self {
            store: Store::new(target, LIMITS.enis, LIMITS.secondary_per_eni()),
            latency,
            backoff,
            steps: VecDeque::new(),
            attempt: 0,
            crashes: 0,
            serves: false,
            shrunk_at: 0,
            imds_shows_at: 0,
            waiting: Vec::new(),
            lives: BTreeMap::new(),
            failed: 0,
            dice: Dice::new(seed, "upstream"),
        }
    }

    /// What a start fills the primary ENI with.
    fn first(&self) -> u32 {
        match self.store.target {
            Target::Enis(_) => LIMITS.secondary_per_eni(),
            Target::Ips { warm, minimum } => warm.max(minimum),
            Target::Prefixes(warm) => warm.max(1),
        }
    }

    /// Does the step that is due.
    fn go_on(&mut self, around: &mut Outside<'_>) {
        let Some(step) = self.steps.front().copied() else {
            self.steps.extend(plan::tick());
            return around.later(0, Happening::GoOn);
        };
        match step {
            Step::Call { .. } => {
                let wait = self.dice.wait(self.latency.request);
                return around.later(wait, Happening::Arrives);
            }
            Step::AwaitImds(tries) if around.now < self.imds_shows_at && tries < 11 => {
                // 100 ms, doubling to a minute, and up to 15 % more.
                let wait = (100_u64 << tries.min(10)).min(60_000);
                let wait = wait + self.dice.below(wait * 15 / 100 + 1);
                if let Some(step) = self.steps.front_mut() {
                    *step = Step::AwaitImds(tries + 1);
                }
                return around.later(wait, Happening::GoOn);
            }
            Step::Sleep(wait) => {
                self.steps.pop_front();
                return around.later(wait, Happening::GoOn);
            }
            Step::AwaitImds(_) => {
                self.steps.pop_front();
            }
            Step::Adopt(entries) => {
                self.steps.pop_front();
                self.store.adopt(entries, around.now);
            }
            Step::Serve => {
                self.steps.pop_front();
                self.serves = true;
                for pod in std::mem::take(&mut self.waiting) {
                    let wait = self.dice.below(200);
                    around.later(wait, Happening::Try(pod));
                }
            }
            Step::Manage => {
                self.steps.pop_front();
                self.manage(around.now);
            }
        }
        around.later(0, Happening::GoOn);
    }

    /// One step of growth or of shrinking, and at most one ENI less.
    fn manage(&mut self, now: u64) {
        let mut steps = Vec::new();
        if self.store.is_low() {
            if let Some((eni, entries)) = self.store.room_on() {
                steps.push(plan::assign(eni, entries, false));
            } else if let Some(entries) = self.store.new_eni() {
                steps.extend(plan::new_eni(entries));
            }
        } else if self.shrunk_at + SHRINK_EVERY < now {
            let given = self.store.surplus();
            if !given.is_empty() {
                self.shrunk_at = now;
            }
            steps.extend(given.iter().map(|_| plan::unassign()));
        }
        if self.store.deletable(now) {
            steps.extend(plan::free());
        }
        self.prepend(steps);
    }

    fn prepend(&mut self, steps: Vec<Step>) {
        for step in steps.into_iter().rev() {
            self.steps.push_front(step);
        }
    }

    fn answered(&mut self, done: bool, around: &mut Outside<'_>) {
        let Some(Step::Call {
            api,
            tries,
            wait,
            then,
            otherwise,
        }) = self.steps.front().copied()
        else {
            return;
        };
        if done {
            self.attempt = 0;
            self.steps.pop_front();
            self.done(then, around);
            return self.go_on(around);
        }
        self.attempt += 1;
        if self.attempt < SDK_ATTEMPTS {
            // Anything up to 1 s, then 2 s (AWS SDK for Go v2, `aws/retry/jitter_backoff.go`).
            let longest = 1000_u64 << (self.attempt - 1);
            let wait = self.dice.below(longest);
            return around.later(wait, Happening::GoOn);
        }
        self.attempt = 0;
        self.steps.pop_front();
        if tries > 1 {
            self.steps.push_front(Step::Call {
                api,
                tries: tries - 1,
                wait: wait * 2,
                then,
                otherwise,
            });
            return around.later(wait, Happening::GoOn);
        }
        self.gave_up(then, otherwise, around);
    }

    fn done(&mut self, then: Then, around: &Outside<'_>) {
        match then {
            Then::GoOn => {}
            Then::Assigned(eni, entries) => {
                if let Some(eni) = self.store.enis.get_mut(eni) {
                    eni.entries += entries;
                }
            }
            Then::Attaching => self.imds_shows_at = around.now + self.dice.wait(self.latency.attach),
        }
    }

    fn gave_up(&mut self, then: Then, otherwise: Otherwise, around: &mut Outside<'_>) {
        match (otherwise, then) {
            (Otherwise::GoOn, _) => {}
            (Otherwise::AskForOne(at_start), Then::Assigned(eni, entries)) if entries > 1 => {
                self.steps.push_front(plan::assign(eni, 1, at_start));
            }
            (Otherwise::Crash | Otherwise::AskForOne(true), _) => {
                // Kubelet starts it again: 10 s, doubling to 5 minutes.
                let wait = (10_000_u64 << self.crashes.min(5)).min(300_000);
                self.crashes += 1;
                self.steps = plan::start(self.first());
                return around.later(wait, Happening::GoOn);
            }
            (Otherwise::Leave | Otherwise::AskForOne(false), _) => self.leave(),
            (Otherwise::DeleteNew, _) => {
                self.leave();
                self.steps.push_front(plan::delete());
            }
            (Otherwise::FreeNew, _) => {
                self.leave();
                self.prepend(plan::free().to_vec());
            }
        }
        around.later(0, Happening::GoOn);
    }

    /// The rest of the tick's work is left; the second half of the tick is not.
    fn leave(&mut self) {
        self.steps.clear();
        self.steps.push_back(Step::Sleep(2500));
    }

    /// An ADD: an address is there, or it fails.
    fn try_pod(&mut self, pod: u32, around: &mut Outside<'_>) {
        if !self.serves {
            // No sandbox is made before the network is ready.
            return self.waiting.push(pod);
        }
        if self.store.take(around.now).is_some() {
            return around.later(WIRING, Happening::Runs(pod));
        }
        self.failed += 1;
        let wait = self.dice.between(self.backoff.0, self.backoff.1);
        around.later(wait, Happening::Try(pod));
    }

    fn arrives(&mut self, around: &mut Outside<'_>) {
        if let Some(Step::Call { api, .. }) = self.steps.front() {
            let done = around.limits.take(*api, around.now);
            let wait = self.dice.wait(self.latency.answer(*api));
            around.later(wait, Happening::Answered { done });
        }
    }
}

impl Member for Agent {
    type Event = Happening;

    fn start(&mut self, around: &mut Outside<'_>) {
        self.steps = plan::start(self.first());
        // "Within 5 min"; it runs beside the loop.
        let leaks = self.dice.below(300_000);
        around.later(leaks, Happening::Leaks);
        around.later(0, Happening::GoOn);
    }

    fn pod(&mut self, pod: u32, life: u64, around: &mut Outside<'_>) {
        self.lives.insert(pod, life);
        self.try_pod(pod, around);
    }

    fn happen(&mut self, event: Happening, around: &mut Outside<'_>) {
        match event {
            Happening::GoOn => self.go_on(around),
            Happening::Arrives => self.arrives(around),
            Happening::Answered { done } => self.answered(done, around),
            Happening::Leaks => {
                around.limits.take(Api::Enis, around.now);
                around.later(3_600_000, Happening::Leaks);
            }
            Happening::Try(pod) => self.try_pod(pod, around),
            Happening::Runs(pod) => {
                around.running.push(pod);
                if let Some(life) = self.lives.remove(&pod) {
                    around.later(life, Happening::Ends(pod));
                }
            }
            Happening::Ends(_) => self.store.give(around.now),
        }
    }

    fn held(&self) -> u64 {
        u64::from(self.store.total())
    }

    fn pods(&self) -> u64 {
        u64::from(self.store.assigned())
    }

    fn failed(&self) -> u64 {
        self.failed
    }

    fn violation(&self) -> Option<String> {
        None
    }
}
