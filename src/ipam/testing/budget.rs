//! The call budget: how often EC2 is asked when everything fails, for whom first, and what users are told.

use std::time::Duration;

use super::growth::{PATIENCE, policy, sizes, started};
use super::world::{Fault, Work, World};
use crate::budget::{Kind, Limit, Priority, Tally};
use crate::cloud::{CloudCall, DescribeScope, FailureClass};
use crate::effect::{Effect, RefusalKind};
use crate::event::Event;
use crate::ids::Tick;
use crate::memory::Purpose;
use crate::obstacle::Topic;
use crate::plan::Hindrance;
use crate::policy::Policy;

pub(super) const CLASSES: [FailureClass; 11] = [
    FailureClass::Throttled,
    FailureClass::SubnetFull,
    FailureClass::AddressLimit,
    FailureClass::AttachmentLimit,
    FailureClass::AccountLimit,
    FailureClass::Denied,
    FailureClass::Gone,
    FailureClass::Conflict,
    FailureClass::NoAnswer,
    FailureClass::Server,
    FailureClass::Other,
];

const HOUR: Duration = Duration::from_hours(1);

/// The most calls of any 60 minutes.
fn busiest_hour(world: &World) -> usize {
    let mut recent = std::collections::VecDeque::new();
    let mut most = 0;
    for (_, at) in &world.sent {
        recent.push_back(*at);
        while recent.front().is_some_and(|first| first + 3_600_000 <= *at) {
            recent.pop_front();
        }
        most = most.max(recent.len());
    }
    most
}

/// A node on which pods wait again and again, and an EC2 that refuses every call, or those of one action.
fn a_day_of(class: FailureClass, action: &'static str, kills: bool) -> (usize, usize) {
    let mut world = started(3, 4, policy(1));
    world.holds_quick_to_long = false;
    world.sent.clear();
    world.outage = Some(class);
    world.outage_of = action;
    for round in 0..24 * 6 {
        world.add(round, Duration::from_secs(50));
        world.advance(Duration::from_secs(300));
        if kills {
            world.crash(None, false);
            world.settle();
        }
        world.advance(Duration::from_secs(300));
    }
    (world.sent.len(), busiest_hour(&world))
}

fn print_days(what: &str, action: &'static str, kills: bool, most: impl Fn(FailureClass) -> usize) {
    for class in CLASSES {
        let (day, hour) = a_day_of(class, action, kills);
        println!("{what} fails with {class:?}: {day} calls a day, {hour} in the busiest hour");
        assert!(day <= most(class), "{class:?}: {day} calls");
    }
}

/// Q23: the Go daemon repeats create, attach and delete every five seconds for ever: 51,840 calls a day.
#[test]
fn ipamd_faults_q23_a_day_of_attaching_in_vain_costs_few_calls() {
    print_days("attaching", "Attach", false, |class| match class {
        FailureClass::SubnetFull => 8_000,
        FailureClass::NoAnswer | FailureClass::Server => 10_000,
        _ => 5_000,
    });
}

/// The daemon is killed every ten minutes besides, and begins with short waits each time.
#[test]
fn a_day_of_nothing_but_failures_and_kills_costs_few_calls() {
    print_days("every call", "", true, |class| match class {
        FailureClass::SubnetFull => 7_500,
        FailureClass::Throttled | FailureClass::NoAnswer | FailureClass::Server => 6_000,
        _ => 4_000,
    });
}

/// Every call of the pool's bucket is spent, but for what is reserved for pods that wait.
fn spend(world: &mut World, kind: Kind, priority: Priority) {
    let now = world.now;
    let budget = &mut world.pool.memory.budget;
    while budget.check(kind, priority, 0, now).is_ok() {
        budget.charge(kind, priority, now);
    }
}

#[test]
fn the_last_calls_are_for_pods_that_wait() {
    let mut world = World::new(3, 4, Policy::default());
    for priority in [Priority::Upkeep, Priority::Warm, Priority::Blocked] {
        let before = world.pool.budget_figures(world.now)[0].tokens;
        spend(&mut world, Kind::Changing, priority);
        let after = world.pool.budget_figures(world.now)[0].tokens;
        assert!(before > after, "{priority:?} finds {before} and leaves {after}");
    }
    assert_eq!(world.pool.budget_figures(world.now)[0].tokens, 0);
}

#[test]
fn warm_up_waits_while_pods_are_served() {
    let mut world = started(3, 4, policy(0));
    spend(&mut world, Kind::Changing, Priority::Warm);
    world.policy = policy(2);
    world.event(Event::Reconfigured(Box::new(world.policy.clone())));
    world.settle();
    let before = world.log.len();
    let status = world.pool.status(world.now);
    let reason = status
        .reasons
        .iter()
        .find(|reason| reason.contains("call budget"));
    assert!(
        reason.is_some_and(|reason| reason.ends_with("next in 2 s")),
        "{status:?}"
    );
    // Pods come for which no address is there: they are served at once all the same.
    let waiters: Vec<_> = (0..9).map(|n| world.add(n, PATIENCE)).collect();
    assert!(world.log.len() > before);
    for waiter in waiters {
        assert!(world.granted(waiter).is_some(), "{:?}", world.log);
    }
    world.advance(Duration::from_secs(60));
    assert_eq!(sizes(&world), [3, 3, 3]);
}

#[test]
fn a_pod_that_waits_for_the_budget_is_told_so() {
    let mut world = started(3, 4, policy(0));
    // More than an hour's worth, spread so that the bucket is not what refuses.
    while world
        .pool
        .memory
        .budget
        .check(Kind::Changing, Priority::Blocked, 0, world.now)
        .is_ok()
    {
        spend(&mut world, Kind::Changing, Priority::Blocked);
        world.now = world.now.after(Duration::from_secs(100));
    }
    for n in 0..3 {
        world.add(n, PATIENCE);
    }
    let hopeless = world.add(20, PATIENCE);
    let refusal = world.refused(hopeless).unwrap().clone();
    assert_eq!(refusal.kind, RefusalKind::Throttled);
    assert!(
        refusal
            .message
            .contains("the call budget of this hour is spent (600 changing calls); next in"),
        "{refusal:?}"
    );
    let until = world
        .now
        .after(Duration::from_millis(refusal.retry_after_ms.unwrap()));
    assert!(
        until > world.now.after(Duration::from_secs(600)),
        "an hour has not passed"
    );
    // It is asked for without anybody coming back, at that very time.
    let before = world.log.len();
    world.advance(until.since(world.now));
    assert!(world.log.len() > before, "nothing woke it up");
}

/// The plan's report says it, whoever asks.
#[test]
fn a_plan_that_is_braked_says_so_and_is_carried_out_when_it_may_be() {
    let mut world = started(3, 10, policy(1));
    spend(&mut world, Kind::Changing, Priority::Warm);
    for n in 0..2 {
        world.add(n, PATIENCE);
    }
    world.settle();
    let report = &world.pool.memory.report;
    let braked =
        |hindrance: &Hindrance| matches!(hindrance, Hindrance::Braked(brake) if brake.limit == Limit::Burst);
    let short = report.short > 0;
    assert_eq!(report.hindrances.iter().any(braked), short, "{report:?}");
    world.advance(Duration::from_secs(60));
    assert!(!world.pool.memory.report.hindrances.iter().any(braked));
}

/// No sequence of refusals keeps clean-up away for ever.
#[test]
fn nothing_starves_while_others_take_every_call() {
    let mut world = World::new(3, 4, Policy::default());
    let (mut asked, mut made) = (0, 0);
    for _ in 0..3 * 3600 {
        world.now = world.now.after(Duration::from_secs(1));
        spend(&mut world, Kind::Changing, Priority::Warm);
        let purpose = Purpose::Delete("eni-x".into());
        world.pool.memory.budget.begin();
        asked += 1;
        if world.pool.may_ask(&purpose, world.now) {
            world.pool.charge(&purpose, world.now).unwrap();
            made += 1;
        }
    }
    assert!((3..=18).contains(&made), "{made} of {asked}");
}

#[test]
fn throttling_of_the_account_quiets_the_node_and_pods_only_in_part() {
    let mut world = World::new(3, 4, Policy::default());
    let budget = &mut world.pool.memory.budget;
    let now = Tick(1_000_000);
    let wait = |budget: &crate::budget::Budget, priority| {
        let brake = budget.check(Kind::Describing, priority, 0, now).unwrap_err();
        assert_eq!(brake.limit, Limit::Account);
        brake.until.since(now)
    };
    budget.throttled(None, 1_500, now);
    assert_eq!(wait(budget, Priority::Upkeep), Duration::from_millis(3_500));
    assert_eq!(wait(budget, Priority::Warm), Duration::from_millis(3_500));
    assert_eq!(wait(budget, Priority::Blocked), Duration::from_millis(875));
    // Calls that were under way together are one; what EC2 asks for binds everybody.
    budget.throttled(Some(Duration::from_secs(30)), 0, now);
    for priority in [Priority::Upkeep, Priority::Warm, Priority::Blocked] {
        assert_eq!(wait(budget, priority), Duration::from_secs(30));
    }
    let later = now.after(Duration::from_secs(30));
    assert!(budget.check(Kind::Describing, Priority::Upkeep, 0, later).is_ok());
    // What is answered meanwhile takes back a step; without, the next one waits longer; once it is over and EC2 has answered, it starts anew.
    budget.throttled(None, u64::MAX, later);
    let long = budget
        .check(Kind::Changing, Priority::Warm, 0, later)
        .unwrap_err();
    assert!(long.until <= later.after(Duration::from_secs(8)));
    budget.answered(long.until);
    budget.throttled(None, 0, long.until);
    let short = budget
        .check(Kind::Changing, Priority::Warm, 0, long.until)
        .unwrap_err();
    assert_eq!(short.until, long.until.after(Duration::from_secs(2)));
}

/// `RequestLimitExceeded` on one action holds back the others: here, a describe on an attach.
#[test]
fn throttling_on_one_action_holds_warm_up_back_everywhere() {
    let mut world = started(3, 4, policy(0));
    world.eager = false;
    world.policy = policy(2);
    world.faults.push_back(Fault::Refuse(FailureClass::Throttled));
    world.event(Event::Reconfigured(Box::new(world.policy.clone())));
    while world.flush() {}
    let asked = world
        .work
        .iter()
        .filter(|work| matches!(work, Work::Call(..)))
        .count();
    assert!(asked > 0);
    while world.deliver(0) {}
    while world.flush() {}
    let status = world.pool.status(world.now);
    assert!(
        status
            .reasons
            .iter()
            .any(|reason| reason.contains("failed with Throttled") || reason.contains("slow down")),
        "{status:?}"
    );
    world.eager = true;
    world.advance(Duration::from_secs(120));
    assert_eq!(world.pool.call_counters().throttled, 1);
    assert!(world.enis.len() > 1, "it goes on by itself: {:?}", world.log);
}

/// design §3 and the baseline: what a cold node needs for 110 pods is asked at once.
#[test]
fn a_cold_burst_of_110_pods_is_not_slowed_down() {
    let mut world = started(4, 30, policy(1));
    let began = world.now;
    let waiters: Vec<_> = (0..110).map(|n| world.add(n, PATIENCE)).collect();
    assert_eq!(world.now, began, "no time has passed");
    for waiter in waiters {
        assert!(world.granted(waiter).is_some());
    }
    assert!(world.pool.call_counters().put_off.is_empty());
}

#[test]
fn the_largest_instance_grows_to_its_limit_at_once() {
    let mut world = started(15, 50, policy(0));
    world.eager = false;
    let began = world.now;
    for n in 0..15 * 49 {
        world.add(n, PATIENCE);
    }
    world.eager = true;
    world.settle();
    assert_eq!(world.now, began);
    assert_eq!(world.pool.allocations().len(), 15 * 49);
    assert!(world.pool.call_counters().put_off.is_empty());
}

/// A daemon that is killed again and again has, all lives together, the calls of one.
#[test]
fn a_crash_loop_gets_no_fresh_budget() {
    let mut world = started(3, 4, policy(1));
    world.outage = Some(FailureClass::NoAnswer);
    world.sent.clear();
    for second in 0..3600 {
        world.crash(None, false);
        world.settle();
        if second % 10 == 0 {
            world.add(second, Duration::from_secs(20));
        }
        world.advance(Duration::from_secs(1));
    }
    let describes = world
        .sent
        .iter()
        .filter(|(kind, _)| *kind == Kind::Describing)
        .count();
    println!(
        "3600 starts in an hour: {} calls, {describes} of them describes",
        world.sent.len()
    );
    assert!(describes <= 300, "{describes}");
    // And what it spends is spent by waiting pods last: they still can be served when EC2 is back.
    world.outage = None;
    world.advance(HOUR + HOUR);
    let waiter = world.add(9_999, PATIENCE);
    assert!(
        world.granted(waiter).is_some(),
        "{:?}",
        world.pool.status(world.now)
    );
}

#[test]
fn calls_are_counted_by_whom_they_are_for() {
    let mut world = started(3, 4, policy(1));
    world.add(1, PATIENCE);
    world.advance(HOUR + HOUR);
    let made = &world.pool.call_counters().made;
    let sum = made.values().fold(Tally::default(), |sum, tally| Tally {
        changing: sum.changing + tally.changing,
        describing: sum.describing + tally.describing,
    });
    let sent = |kind| u32::try_from(world.sent.iter().filter(|(other, _)| *other == kind).count()).unwrap();
    assert_eq!(sum.changing, sent(Kind::Changing));
    assert_eq!(sum.describing, sent(Kind::Describing));
    assert!(
        made.contains_key(&Priority::Upkeep) && made.contains_key(&Priority::Warm),
        "{made:?}"
    );
}

/// Who calls without having asked whether it may is refused all the same, and tries again when it may.
#[test]
fn a_call_that_nobody_asked_for_is_put_off_too() {
    let mut world = started(3, 4, policy(0));
    spend(&mut world, Kind::Describing, Priority::Blocked);
    let mut out = crate::outbox::Outbox::default();
    let scope = DescribeScope::Attached;
    let instance = world.facts.instance.clone();
    let request = CloudCall::DescribeEnis { instance, scope };
    out.call(&mut world.pool, Purpose::Describe(scope), request, world.now);
    let effects = out.seal(&mut world.pool, world.now);
    assert!(!effects.iter().any(|effect| matches!(effect, Effect::Call { .. })));
    world.take(effects);
    world.settle();
    assert!(!world.pool.memory.is_asking(&Purpose::Describe(scope)));
    let obstacle = &world.pool.memory.obstacles[&Topic::Describe(scope)];
    let failure = obstacle.failure.as_ref().unwrap();
    assert!(failure.message.starts_with("the call budget"), "{failure}");
    assert!(obstacle.until > world.now);
    assert_eq!(world.pool.call_counters().throttled, 0, "EC2 has said nothing");
    let before = world.calls("Describe Attached");
    world.event(Event::Timer);
    world.advance(Duration::from_secs(600));
    assert!(world.calls("Describe Attached") > before);
}
