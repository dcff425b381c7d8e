//! Small things that were wrong, each with the case that showed it.

use std::time::Duration;

use super::explain::texts;
use super::growth::{policy, run, sizes, started};
use super::targets::ips;
use super::world::{Fault, World, key};
use crate::cloud::FailureClass;
use crate::effect::RefusalKind;
use crate::event::Event;
use crate::policy::{Policy, WarmTarget};

const LONG: Duration = Duration::from_secs(900);

// ---- a DEL that the disk never took ----

#[test]
fn ipamd_82_a_del_settled_while_the_disk_failed_is_found_again_after_a_kill() {
    let mut world = started(1, 4, policy(0));
    run(&mut world, 0..3);
    world.eager = false;
    world.del(0);
    world.fail_flush();
    world.crash(None, false);
    assert!(
        !world.pool.allocations().contains_key(&key(0)),
        "its sandbox is gone"
    );
    assert!(world.pool.allocations().contains_key(&key(1)));
    assert!(world.alarms.iter().any(|alarm| alarm.kind == "left-behind"));
    world.eager = true;
    world.settle();
    // It rests, and is had again then; the oracle looks at the rest.
    let waiter = world.add(9, Duration::from_secs(60));
    world.advance(Duration::from_secs(40));
    assert!(world.granted(waiter).is_some(), "{:?}", world.refused(waiter));
}

/// Each witness alone takes nothing away: a plugin that is still wiring has no route yet, a route outlives a namespace's name.
#[test]
fn a_sandbox_keeps_its_address_while_one_witness_speaks_for_it() {
    for (is_gone, is_routed) in [(true, true), (false, false), (false, true)] {
        let mut world = started(1, 4, policy(0));
        run(&mut world, 0..1);
        let address = world.live[&key(0)];
        if is_gone {
            world.gone.insert(key(0));
        }
        if !is_routed {
            world.routes.remove(&address);
        }
        world.crash(None, false);
        assert!(
            world.pool.allocations().contains_key(&key(0)),
            "{is_gone} {is_routed}"
        );
    }
}

// ---- a throttled account ----

#[test]
fn a_throttled_assign_leads_to_no_eni_for_what_is_only_held_ready() {
    let mut world = started(3, 10, ips(1, 0));
    world.outage = Some(FailureClass::Throttled);
    world.outage_of = "Assign";
    run(&mut world, 0..1);
    world.advance(Duration::from_secs(30));
    assert!(world.calls("Assign") > 1);
    assert_eq!(world.calls("Create"), 0, "{:?}", world.log);
    // A pod that waits is served by whatever EC2 gives.
    let waiter = world.add(1, Duration::from_secs(100));
    world.advance(Duration::from_secs(60));
    assert_eq!(world.calls("Create"), 1, "{:?}", world.log);
    assert!(world.granted(waiter).is_some(), "{:?}", world.refused(waiter));
}

// ---- what EC2 has denied ----

/// The daemon starts while EC2 does not answer, and IMDS lists what was given back, or what EC2's last list lacked.
#[test]
fn what_ec2_has_denied_is_not_given_out_on_imdss_word() {
    let mut world = started(1, 10, ips(8, 0));
    let before = world.imds_snapshot();
    let listed = before.enis[0].addresses.len();
    world.policy = ips(2, 0);
    let policy = world.policy.clone();
    world.event(Event::Reconfigured(Box::new(policy)));
    world.advance(LONG);
    assert_eq!((listed, sizes(&world)), (9, vec![2]));
    world.crash(None, false);
    world.eager = false;
    world.outage = Some(FailureClass::NoAnswer);
    world.event(Event::Imds(before));
    world.advance(Duration::from_secs(3));
    // The oracle looks whether EC2 has what each is given.
    let waiters: Vec<_> = (0..4).map(|n| world.add(n, Duration::from_secs(5))).collect();
    while world.flush() {}
    let served = waiters.iter().filter(|waiter| world.granted(**waiter).is_some());
    assert_eq!(served.count(), 2, "what EC2 has confirmed serves");
}

/// An answer that was lost is not a denial: then IMDS is the only one who knows.
#[test]
fn what_was_asked_for_and_never_answered_is_taken_on_imdss_word() {
    let mut world = started(1, 10, ips(1, 0));
    run(&mut world, 0..1);
    assert_eq!(world.calls("Assign"), 2);
    world.eager = false;
    world.faults.push_back(Fault::LostAfter);
    let waiting: Vec<_> = (1..4).map(|n| world.add(n, Duration::from_secs(100))).collect();
    while world.flush() || world.deliver(0) || world.gathered() {
        if world.calls("Assign") > 2 {
            world.outage = Some(FailureClass::NoAnswer);
        }
    }
    assert_eq!(world.calls("Assign"), 3, "{:?}", world.log);
    assert!(waiting.iter().any(|waiter| world.granted(*waiter).is_none()));
    world.crash(None, false);
    let there = world.imds_snapshot();
    world.event(Event::Imds(there));
    world.advance(Duration::from_secs(3));
    let again = world.add(2, Duration::from_secs(5));
    while world.flush() {}
    assert!(world.granted(again).is_some(), "{:?}", world.pool.dump(world.now));
}

// ---- surplus, told ----

#[test]
fn what_is_beyond_the_target_is_told_with_when_it_goes_and_what_keeps_it() {
    let mut world = started(3, 10, ips(2, 0));
    run(&mut world, 0..6);
    for n in 0..5 {
        world.del(n);
    }
    world.advance(Duration::from_secs(31));
    let text = texts(&world);
    assert!(text.contains("5 addresses are free beyond that."), "{text}");
    assert!(
        text.contains("In 30 s 5 addresses of eni-primary go back to EC2, unless pods come for it."),
        "{text}"
    );
    world.advance(Duration::from_secs(10));
    assert!(texts(&world).contains("In 20 s 5 addresses"), "{}", texts(&world));
    world.cordon(true);
    assert!(!texts(&world).contains("beyond that"), "{}", texts(&world));
    world.cordon(false);
    world.refuse_returns = Some(FailureClass::Denied);
    world.advance(Duration::from_secs(40));
    let text = texts(&world);
    assert!(
        text.contains("go back to EC2 once it may: EC2 did not take something back; next try in "),
        "{text}"
    );
    world.refuse_returns = None;
    world.advance(LONG);
    assert!(!texts(&world).contains("beyond that"), "{}", texts(&world));
}

#[test]
fn free_addresses_of_enis_with_pods_are_told_to_stay() {
    let mut world = started(3, 10, policy(1));
    run(&mut world, 0..2);
    let text = texts(&world);
    assert!(text.contains("7 addresses are free beyond that."), "{text}");
    assert!(text.contains("They stay: ENIs are given back whole"), "{text}");
}

// ---- the age of an ENI ----

/// The only pod goes after a long time, and the daemon is killed before its address has rested.
fn restart_at_its_end(world: &mut World) {
    world.advance(LONG);
    world.del(0);
    world.advance(Duration::from_secs(25));
    world.crash(None, false);
    world.settle();
    world.advance(Duration::from_secs(45));
}

#[test]
fn an_eni_is_as_old_after_a_restart_as_it_was_before() {
    let mut world = started(3, 10, policy(1));
    run(&mut world, 0..1);
    restart_at_its_end(&mut world);
    assert_eq!(
        world.calls("Detach"),
        1,
        "rest and patience, and no second minute: {:?}",
        world.log
    );
    // A tag that says nonsense makes no ENI old.
    for tag in ["2999-01-01T00:00:00Z", "yesterday"] {
        let mut world = started(3, 10, policy(1));
        run(&mut world, 0..1);
        for eni in world.enis.values_mut() {
            eni.tags
                .insert(crate::tags::CREATED_AT.to_owned(), tag.to_owned());
        }
        restart_at_its_end(&mut world);
        assert_eq!(world.calls("Detach"), 0, "{tag}: {:?}", world.log);
        world.advance(LONG);
        assert_eq!(world.calls("Detach"), 1, "{tag}");
    }
}

// ---- who waits for what rests ----

/// After a boot every address rests on ENIs that are not wired yet.
#[test]
fn a_pod_waits_for_an_address_that_rests_on_an_eni_not_yet_wired() {
    let mut world = started(2, 4, policy(0));
    run(&mut world, 0..6);
    world.crash(Some("b0075b01-1"), false);
    world.settle();
    let secondary = world.links.iter().next().copied().unwrap();
    // Its link is seen late.
    world.links.remove(&secondary);
    world.event(Event::LinkGone { mac: secondary });
    let waiters: Vec<_> = (10..16).map(|n| world.add(n, Duration::from_secs(100))).collect();
    for waiter in &waiters {
        assert_eq!(
            world.refused(*waiter),
            None,
            "it rests for 30 s, and they wait for 100"
        );
    }
    world.work.push_back(super::world::Work::Link(secondary));
    world.settle();
    world.advance(Duration::from_secs(60));
    for waiter in waiters {
        assert!(world.granted(waiter).is_some(), "{:?}", world.refused(waiter));
    }
}

#[test]
fn what_rests_where_no_new_pod_goes_is_not_counted_as_coming_to_any() {
    let policy = Policy {
        max_enis: Some(1),
        custom_networking: false,
        ..policy(1)
    };
    let mut world = started(1, 4, policy);
    run(&mut world, 0..3);
    for n in 0..2 {
        world.del(n);
    }
    world
        .subnet_tags
        .insert("kubernetes.io/role/cni".to_owned(), "0".to_owned());
    world.advance(Duration::from_secs(1));
    let primary = world.facts.primary_eni.clone();
    world.pool.edit_eni(&primary, |eni| eni.excluded = true);
    let report = crate::plan::plan(&world.pool, world.now).report;
    assert_eq!(report.cooling, 0);
    let refusal = crate::refusal::hopeless(&report, world.now);
    assert_eq!(refusal.kind, RefusalKind::Exhausted);
    assert!(
        refusal.message.contains("1 assigned, 0 cooling"),
        "{}",
        refusal.message
    );
}

// ---- an adaptive pool's steps ----

/// Pods that come and go one by one: an address for each, and back again, would be two calls a pod.
#[test]
fn an_adaptive_pool_takes_steps_and_gives_back_only_what_is_twice_too_much() {
    let adaptive = Policy {
        warm: WarmTarget::Adaptive,
        ..Policy::default()
    };
    let mut world = started(3, 30, adaptive);
    assert_eq!(sizes(&world), [20], "ten to hold ready, and as many again");
    let before = world.calls("Assign") + world.calls("Unassign");
    for n in 0..10 {
        run(&mut world, n..n + 1);
        world.advance(Duration::from_secs(20));
    }
    assert_eq!(
        world.calls("Assign") + world.calls("Unassign"),
        before,
        "{:?}",
        world.log
    );
    // A node that has become quiet gives back, down to twice of the little that it keeps.
    for n in 0..10 {
        world.del(n);
    }
    world.advance(Duration::from_secs(7200));
    let left = sizes(&world)[0];
    assert!((2..=4).contains(&left), "{left}");
    // Never more than the node has use for.
    let mut world = started(
        3,
        30,
        Policy {
            warm: WarmTarget::Adaptive,
            max_pods: Some(12),
            ..Policy::default()
        },
    );
    assert_eq!(sizes(&world), [12]);
    run(&mut world, 0..12);
    assert_eq!(sizes(&world), [12]);
}
