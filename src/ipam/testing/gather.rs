//! How many calls growth takes when ADDs come at once, close together or one after another; in a world with a clock:
//! EC2 answers after 100 ms, and an ENI's link appears two seconds after it was attached.

use std::collections::BTreeMap;
use std::time::Duration;

use super::growth::{policy, started};
use super::targets::{ips, prefixes};
use super::world::{Work, World};
use crate::event::Event;
use crate::ids::{Tick, WaiterId};
use crate::policy::{Policy, WarmTarget};

const CALL: Duration = Duration::from_millis(100);
const LINK: Duration = Duration::from_secs(2);
/// What the plugin and the runtime take between two sandboxes of a queue.
const NEXT: Duration = Duration::from_millis(3);

/// How pods come.
#[derive(Debug, Clone, Copy)]
enum Coming {
    /// All within this time.
    Within(u64),
    /// The next one once the one before has its address.
    InTurn,
    /// One each time.
    Every(u64),
}

/// What it took.
#[derive(Debug)]
struct Took {
    /// Until the last pod had its address.
    millis: u64,
    /// How long all pods together waited.
    waited: u64,
    /// All but the Describes.
    calls: Vec<String>,
}

struct Clock {
    world: World,
    agenda: BTreeMap<(Tick, u64), Work>,
    number: u64,
    asked: BTreeMap<WaiterId, Tick>,
    waited: u64,
}

impl Clock {
    fn new(policy: Policy) -> Self {
        let mut world = started(8, 30, policy);
        world.advance(Duration::from_mins(2));
        world.eager = false;
        world.log.clear();
        Self {
            world,
            agenda: BTreeMap::new(),
            number: 0,
            asked: BTreeMap::new(),
            waited: 0,
        }
    }

    /// What has been begun is put where it ends; the disk takes no time.
    fn begun(&mut self) {
        loop {
            for work in std::mem::take(&mut self.world.work) {
                let takes = match &work {
                    Work::Call(..) => CALL,
                    Work::Link(_) => LINK,
                    _ => Duration::ZERO,
                };
                self.number += 1;
                self.agenda
                    .insert((self.world.now.after(takes), self.number), work);
            }
            if self.world.kernel_asked {
                self.world.kernel();
            } else if !self.world.flush() {
                break;
            }
        }
        let asked: Vec<WaiterId> = self.asked.keys().copied().collect();
        for waiter in asked {
            let refusal = self.world.refused(waiter);
            assert!(refusal.is_none(), "{refusal:?}");
            if self.world.granted(waiter).is_some()
                && let Some(since) = self.asked.remove(&waiter)
            {
                self.waited += self.world.now.0 - since.0;
            }
        }
    }

    /// The next thing that happens, if it does by this time.
    fn next(&mut self, by: Tick) -> bool {
        let work = self.agenda.keys().next().copied();
        let wake = self.world.pool.memory.wake.map(|wake| wake.max(self.world.now));
        match (work, wake) {
            (Some((at, number)), _) if at <= by && wake.is_none_or(|wake| at <= wake) => {
                self.world.now = at;
                let work = self.agenda.remove(&(at, number)).unwrap();
                self.world.work.push_front(work);
                self.world.deliver(0);
            }
            (_, Some(wake)) if wake <= by => {
                self.world.now = wake;
                self.world.event(Event::Timer);
            }
            _ => return false,
        }
        self.begun();
        true
    }

    fn until(&mut self, at: Tick) {
        while self.next(at) {}
        self.world.now = at;
    }

    fn is_asking(&self) -> bool {
        let mut under_way = self.agenda.values();
        under_way.any(|work| matches!(work, Work::Call(..)))
    }

    fn serve_all(&mut self) {
        while !self.asked.is_empty() {
            assert!(self.next(Tick(u64::MAX)), "they wait for nothing");
        }
    }

    fn add(&mut self, n: u32) {
        let waiter = self.world.add(n, Duration::from_secs(50));
        self.asked.insert(waiter, self.world.now);
        self.begun();
    }

    fn come(mut self, pods: u32, coming: Coming) -> Took {
        let start = self.world.now;
        for n in 0..pods {
            match coming {
                Coming::Within(millis) => {
                    self.until(Tick(start.0 + u64::from(n) * millis / u64::from(pods)));
                }
                Coming::Every(millis) => self.until(Tick(start.0 + u64::from(n) * millis)),
                Coming::InTurn => {
                    self.serve_all();
                    self.until(self.world.now.after(NEXT));
                }
            }
            self.add(n);
        }
        self.serve_all();
        let millis = self.world.now.0 - start.0;
        // What was begun ends, and nothing is given back yet.
        self.until(self.world.now.after(Duration::from_secs(20)));
        let describes = |line: &&String| line.starts_with("Describe");
        self.world.log.retain(|line| !describes(&line));
        Took {
            millis,
            waited: self.waited,
            calls: self.world.log,
        }
    }
}

fn known(policy: Policy) -> Policy {
    Policy {
        max_pods: Some(110),
        ..policy
    }
}

/// However close together they come, as long as plugins started at once could: the calls are as if all were known from
/// the beginning. An ENI takes three.
#[test]
fn baseline_110_pods_at_once_take_no_more_calls_than_if_all_had_been_known() {
    let adaptive = Policy {
        warm: WarmTarget::Adaptive,
        ..policy(1)
    };
    // A whole spare ENI is what the default asks for.
    let rows = [
        ("WARM_ENI_TARGET=1", policy(1), 12),
        ("the same, max-pods known", known(policy(1)), 9),
        ("WARM_ENI_TARGET=0", policy(0), 9),
        ("WARM_IP 5/10", ips(5, 10), 10),
        ("the same, max-pods known", known(ips(5, 10)), 10),
        ("WARM_IP 1", ips(1, 0), 10),
        ("WARM_IP 20", ips(20, 0), 13),
        ("WARM_PREFIX 1", prefixes(WarmTarget::Prefixes(1)), 1),
        (
            "prefixes, WARM_IP 5/10",
            prefixes(WarmTarget::Ips { warm: 5, minimum: 10 }),
            1,
        ),
        // It holds as many ready as came.
        ("adaptive", adaptive, 23),
    ];
    for (name, policy, most) in rows {
        for within in [0, 5, 20, 100, 200] {
            let took = Clock::new(policy.clone()).come(110, Coming::Within(within));
            let calls = took.calls.len();
            assert!(calls <= most, "{name}, {within} ms: {calls}: {:?}", took.calls);
            let at_least = if policy.prefixes.is_some() { 100 } else { 2_200 };
            assert!(
                took.millis <= at_least + within + 20,
                "{name}, {within} ms: {}",
                took.millis
            );
        }
    }
}

/// Each pod is followed by the next within milliseconds: the five that are held ready and the one that finds none of them
/// cost a call together.
#[test]
fn baseline_110_pods_in_turn_take_fewer_calls_in_hardly_more_time() {
    let rows = [
        ("WARM_IP 5/10", ips(5, 10), 28, 9_069),
        ("WARM_IP 20", ips(20, 0), 20, 7_035),
        ("WARM_PREFIX 1", prefixes(WarmTarget::Prefixes(1)), 4, 700),
        ("WARM_ENI_TARGET=1", policy(1), 12, 4_556),
    ];
    for (name, policy, most, millis) in rows {
        let took = Clock::new(policy).come(110, Coming::InTurn);
        assert!(took.calls.len() <= most, "{name}: {:?}", took.calls);
        assert!(took.millis <= millis, "{name}: {} ms", took.millis);
    }
}

/// Pods that come one by one: one call for several, and all together wait no longer than when each shortage was answered at
/// once (the last number, measured so).
#[test]
fn pods_that_come_slowly_share_calls_and_wait_no_longer() {
    let rows = [
        (ips(5, 10), 100, 80, 56_000),
        (ips(5, 10), 200, 56, 16_700),
        (ips(5, 10), 500, 52, 0),
        (ips(20, 0), 100, 27, 1_000),
        (ips(20, 0), 200, 35, 0),
        (ips(20, 0), 500, 58, 0),
        (policy(1), 100, 12, 0),
        (prefixes(WarmTarget::Prefixes(1)), 100, 7, 0),
    ];
    for (policy, every, most, waited) in rows {
        let what = (policy.warm, policy.prefixes);
        let took = Clock::new(policy).come(110, Coming::Every(every));
        let calls = took.calls.len();
        assert!(calls <= most, "{what:?} every {every} ms: {calls}");
        assert!(
            took.waited <= waited,
            "{what:?} every {every} ms: {} ms",
            took.waited
        );
    }
}

/// Until a call for this policy is sent after `pods` ADDs at once and, if it should be, another each time.
fn asked_after(policy: Policy, pods: u32, then_every: Option<u64>) -> u64 {
    let mut clock = Clock::new(policy);
    let start = clock.world.now;
    for n in 0..pods {
        clock.add(n);
    }
    for n in pods.. {
        if clock.is_asking() {
            break;
        }
        let next = then_every.map_or(u64::MAX, |every| start.0 + u64::from(n - pods + 1) * every);
        while !clock.is_asking() && clock.next(Tick(next)) {}
        if !clock.is_asking() {
            clock.until(Tick(next));
            clock.add(n);
        }
    }
    clock.world.now.0 - start.0
}

#[test]
fn a_pod_alone_waits_20_ms_before_ec2_is_asked_a_stream_of_pods_200_and_what_is_only_held_ready_a_second() {
    assert_eq!(
        asked_after(ips(1, 0), 2, None),
        20,
        "one has the address, the other waits"
    );
    assert_eq!(asked_after(ips(1, 0), 2, Some(5)), 200, "they go on coming");
    assert_eq!(asked_after(ips(1, 0), 1, None), 20, "none is left");
    assert_eq!(asked_after(ips(10, 0), 1, None), 1_000, "nine are left");
    assert_eq!(asked_after(ips(10, 0), 1, Some(300)), 1_000, "and six at last");
    assert_eq!(asked_after(ips(10, 0), 5, None), 1_000, "half of it is left");
    assert_eq!(asked_after(ips(10, 0), 6, None), 20, "less than half");
    assert_eq!(asked_after(ips(29, 0), 1, None), 20, "an ENI takes seconds");
    assert_eq!(asked_after(policy(1), 1, None), 0, "nothing changes a whole ENI");
}

/// Nobody is refused, and the runtime is not told to look elsewhere, while EC2 is about to be asked.
#[test]
fn whoever_waits_for_others_to_come_is_served_and_the_node_says_so() {
    let mut clock = Clock::new(ips(1, 0));
    clock.add(1);
    clock.add(2);
    let status = clock.world.pool.status(clock.world.now);
    assert_eq!((status.free, status.coming, status.waiting), (0, 0, 1));
    assert!(status.serving, "{status:?}");
    clock.serve_all();
}

/// Nothing is gathered for whom nothing can come.
#[test]
fn what_cannot_come_is_refused_at_once_in_a_burst_too() {
    let mut world = started(1, 4, ips(3, 0));
    world.eager = false;
    let before = world.now;
    let waiters: Vec<_> = (0..5).map(|n| world.add(n, Duration::from_secs(50))).collect();
    assert_eq!(world.now, before);
    assert!(world.refused(waiters[4]).is_some() && world.refused(waiters[3]).is_some());
}

/// Before any ADD has come there is none to wait for.
#[test]
fn a_start_fills_the_pool_at_once() {
    let mut world = World::new(3, 10, ips(5, 10));
    world.eager = false;
    let before = world.now;
    while world.flush() || world.deliver(0) {}
    assert_eq!(
        (world.calls("Assign"), world.calls("Create")),
        (1, 1),
        "{:?}",
        world.log
    );
    assert_eq!(world.now, before);
}
