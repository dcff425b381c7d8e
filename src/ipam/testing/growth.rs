//! Growth, service and EC2's refusals: tables and cases of the reference, by number.

use std::net::IpAddr;
use std::time::Duration;

use super::world::{Fault, Work, World, key, v4};
use crate::cloud::FailureClass;
use crate::effect::{RefusalKind, Reply};
use crate::event::Event;
use crate::policy::{Policy, WarmTarget};
use crate::witness::ImdsSnapshot;

pub(super) const PATIENCE: Duration = Duration::from_secs(30);

pub(super) fn policy(warm_enis: u32) -> Policy {
    Policy {
        warm: WarmTarget::Enis(warm_enis),
        ..Policy::default()
    }
}

/// A started world in which nothing is under way.
pub(super) fn started(enis: u32, per_eni: u32, policy: Policy) -> World {
    let mut world = World::new(enis, per_eni, policy);
    world.settle();
    world
}

/// What sandboxes hold.
pub(super) fn held(world: &World) -> Vec<IpAddr> {
    let held = world.pool.allocations().values();
    held.map(|held| held.address).collect()
}

/// Pods come, one after the other, and each gets its address.
pub(super) fn run(world: &mut World, pods: std::ops::Range<u32>) {
    for n in pods {
        let waiter = world.add(n, PATIENCE);
        assert!(
            world.granted(waiter).is_some(),
            "pod {n}: {:?}",
            world.refused(waiter)
        );
    }
}

pub(super) fn sizes(world: &World) -> Vec<usize> {
    let attached = world.enis.values().filter(|eni| eni.attachment.is_some());
    let mut sizes: Vec<usize> = attached.map(|eni| eni.secondary.len()).collect();
    sizes.sort_unstable();
    sizes
}

/// Reference ipamd 3.9 (every row that `WARM_ENI_TARGET`, `MAX_ENI` and max-pods govern), and conformance 1–5, 30, 47.
#[test]
fn ipamd_30_47_worked_table_of_warm_eni_target() {
    struct Row(
        &'static str,
        u32,
        u32,
        u32,
        Option<u32>,
        Option<u32>,
        &'static [(u32, usize)],
    );
    let rows = [
        Row("t3.small E=1", 3, 4, 1, None, None, &[(0, 1), (5, 3), (9, 3)]),
        Row("p3dn E=1", 15, 50, 1, None, None, &[(0, 1), (3, 2), (95, 3)]),
        Row(
            "m5.large E=1",
            3,
            10,
            1,
            None,
            None,
            &[(0, 1), (1, 2), (9, 2), (10, 3), (18, 3), (27, 3)],
        ),
        Row(
            "m5.large E=0",
            3,
            10,
            0,
            None,
            None,
            &[(0, 1), (1, 1), (9, 2), (10, 2)],
        ),
        Row("m5.large E=2", 3, 10, 2, None, None, &[(0, 2), (1, 3), (10, 3)]),
        Row(
            "m5.large E=3 MAX_ENI=2",
            3,
            10,
            3,
            Some(2),
            None,
            &[(0, 2), (9, 2)],
        ),
        Row("m5.large MAX_ENI=0", 3, 10, 3, Some(0), None, &[(0, 3)]),
        Row("m5.large MAX_ENI=99", 3, 10, 3, Some(99), None, &[(0, 3)]),
        Row("m5.large maxPods=5", 3, 10, 1, None, Some(5), &[(0, 1), (1, 1)]),
        Row(
            "t3.medium E=1",
            3,
            6,
            1,
            None,
            None,
            &[(0, 1), (1, 2), (5, 2), (6, 3)],
        ),
        Row(
            "m4.4xlarge E=1",
            8,
            30,
            1,
            None,
            None,
            &[(0, 1), (1, 2), (29, 2), (30, 3), (58, 3), (59, 4)],
        ),
    ];
    for Row(name, enis, per_eni, warm, max_enis, max_pods, steps) in rows {
        let mut world = started(
            enis,
            per_eni,
            Policy {
                max_enis,
                max_pods,
                ..policy(warm)
            },
        );
        let mut pods = 0;
        for (until, expected) in steps {
            while pods < *until {
                let waiter = world.add(pods, PATIENCE);
                assert!(world.granted(waiter).is_some(), "{name}: pod {pods}");
                pods += 1;
            }
            let slots = per_eni as usize - 1;
            assert_eq!(sizes(&world), vec![slots; *expected], "{name} with {pods} pods");
        }
    }
}

/// `baseline`: at most 10 calls to grow to 110 pods, no ADD failing, all ENIs side by side.
#[test]
fn growth_to_110_pods_at_once_takes_ten_calls() {
    let mut world = started(
        8,
        30,
        Policy {
            max_pods: Some(110),
            ..policy(1)
        },
    );
    world.eager = false;
    let waiters: Vec<_> = (0..110).map(|n| world.add(n, PATIENCE)).collect();
    world.eager = true;
    while world.flush() {}
    let creating = world
        .work
        .iter()
        .filter(|work| matches!(work, Work::Call(..)))
        .count();
    assert_eq!(creating, 3, "three ENIs are created side by side");
    world.settle();
    assert!(waiters.iter().all(|waiter| world.granted(*waiter).is_some()));
    let mut addresses: Vec<_> = waiters
        .iter()
        .filter_map(|waiter| world.granted(*waiter))
        .collect();
    addresses.sort_unstable();
    addresses.dedup();
    assert_eq!(addresses.len(), 110);
    let growing: Vec<_> = world
        .log
        .iter()
        .filter(|line| !line.starts_with("Describe"))
        .collect();
    assert!(growing.len() <= 10, "{growing:?}");
}

/// 440 at once on top of 250: those that fit are served in one go, the others are told the limit at once.
#[test]
fn ipamd_103_a_burst_beyond_the_limit_names_the_limit() {
    let mut world = started(3, 10, policy(1));
    let waiters: Vec<_> = (0..40).map(|n| world.add(n, PATIENCE)).collect();
    let served = waiters
        .iter()
        .filter(|waiter| world.granted(**waiter).is_some())
        .count();
    assert_eq!(served, 27);
    let refusal = world.refused(waiters[39]).unwrap();
    assert_eq!((refusal.kind, refusal.limit), (RefusalKind::Exhausted, Some(3)));
    assert!(refusal.message.contains("27 assigned"), "{}", refusal.message);
}

/// Conformance 79, 81: a repeated ADD gets the same; DEL is idempotent; cooldown is honoured, least recently used first.
#[test]
fn ipamd_79_81_83_110_sandboxes_come_and_go() {
    let mut world = started(1, 4, policy(0));
    let first = world.add(1, PATIENCE);
    let again = world.add(1, PATIENCE);
    assert_eq!(world.granted(first), world.granted(again));
    assert!(world.clients[&again].grant.as_ref().unwrap().repeated);
    let second = world.add(2, PATIENCE);
    let third = world.add(3, PATIENCE);
    let del = world.del(1);
    assert_eq!(world.clients[&del].last, Some(Reply::Settled));
    assert_eq!(world.clients[&del].released.as_ref().unwrap().len(), 1);
    let del = world.del(1);
    assert_eq!(world.clients[&del].last, Some(Reply::Settled));
    assert!(world.clients[&del].released.as_ref().unwrap().is_empty());
    // Everything is taken or cools: the next waits for the rest to end, and gets the one released first.
    world.advance(Duration::from_secs(1));
    world.del(2);
    let waiting = world.add(4, Duration::from_secs(40));
    assert!(world.granted(waiting).is_none() && world.refused(waiting).is_none());
    world.advance(Duration::from_millis(29_000));
    assert!(
        world.granted(waiting).is_none(),
        "still cooling, boundary included"
    );
    world.advance(Duration::from_millis(1));
    assert_eq!(
        world.granted(waiting),
        world.clients[&first]
            .grant
            .as_ref()
            .map(|grant| v4(grant.address))
    );
    assert!(world.granted(second).is_some() && world.granted(third).is_some());
    // One whose patience ends before the rest does is told at once.
    let hasty = world.add(5, Duration::from_millis(10));
    assert_eq!(world.refused(hasty).unwrap().kind, RefusalKind::Exhausted);
}

#[test]
fn ipamd_81_cooldown_of_zero_reuses_at_once() {
    let mut world = started(
        1,
        2,
        Policy {
            cooldown: Duration::ZERO,
            ..policy(0)
        },
    );
    let first = world.add(1, PATIENCE);
    world.del(1);
    let second = world.add(2, PATIENCE);
    assert!(world.granted(first).is_some());
    assert_eq!(world.granted(first), world.granted(second));
}

/// The daemon releases first and the plugin takes the pod out of the kernel then: meanwhile the kernel still routes the
/// address. An ADD waits for that, but not for a route that stays.
#[test]
fn ipamd_81_an_address_whose_pod_is_just_being_taken_away_is_waited_for() {
    for stays in [false, true] {
        let policy = Policy {
            cooldown: Duration::ZERO,
            ..policy(0)
        };
        let mut world = started(1, 2, policy);
        let first = world.add(1, PATIENCE);
        let address = world.granted(first).unwrap();
        world.eager = false;
        world.del(1);
        while world.flush() {}
        world.routes.insert(address.into(), key(1));
        world.settle();
        let next = world.add(2, PATIENCE);
        world.settle();
        assert!(world.granted(next).is_none() && world.refused(next).is_none());
        world.eager = true;
        world.advance(Duration::from_millis(100));
        if stays {
            world.advance(Duration::from_secs(10));
            assert_eq!(world.refused(next).unwrap().kind, RefusalKind::Exhausted);
        } else {
            world.routes.remove(&address.into());
            world.advance(Duration::from_millis(500));
            assert_eq!(world.granted(next), Some(address));
        }
    }
}

/// What the kernel has routed for long, or what other pods did before, does not make a pod that goes now seem to stay.
#[test]
fn a_pod_being_taken_away_is_waited_for_whatever_the_kernel_routed_before() {
    let policy = Policy {
        cooldown: Duration::ZERO,
        ..policy(0)
    };
    let mut world = started(1, 3, policy);
    let [stuck, going] = [1, 2].map(|n| world.add(n, PATIENCE));
    let [stuck, going] = [stuck, going].map(|waiter| world.granted(waiter).unwrap());
    let release = |world: &mut World, n: u32, address: std::net::Ipv4Addr| {
        world.eager = false;
        world.del(n);
        while world.flush() {}
        world.routes.insert(address.into(), key(n));
        world.eager = true;
        world.settle();
    };
    release(&mut world, 1, stuck);
    world.advance(Duration::from_mins(2));
    release(&mut world, 2, going);
    let next = world.add(3, PATIENCE);
    assert!(world.granted(next).is_none() && world.refused(next).is_none());
    world.routes.remove(&going.into());
    world.advance(Duration::from_millis(500));
    assert_eq!(world.granted(next), Some(going));
}

/// Fault 1 of `baseline`: a restart must not forget who rests.
#[test]
fn baseline_fault_1_cooldown_survives_a_kill() {
    let mut world = started(1, 2, policy(0));
    let first = world.add(1, PATIENCE);
    world.del(1);
    world.crash(None, false);
    world.settle();
    let next = world.add(2, Duration::from_secs(31));
    assert!(world.granted(next).is_none());
    world.advance(Duration::from_secs(31));
    assert!(world.granted(first).is_some() && world.granted(next).is_some());
}

#[test]
fn a_waiting_add_is_cancelled_by_its_del_and_leaves_with_its_client() {
    let mut world = started(1, 2, policy(0));
    world.add(1, PATIENCE);
    world.del(1);
    let waiting = world.add(2, Duration::from_secs(40));
    world.del(2);
    assert_eq!(world.refused(waiting).unwrap().kind, RefusalKind::Cancelled);
    let waiting = world.add(3, Duration::from_secs(40));
    world.give_up(waiting);
    world.advance(Duration::from_secs(60));
    assert!(world.clients[&waiting].last.is_none());
    assert!(world.pool.allocations().is_empty());
    // A client that vanishes between its two frames gives its address back.
    world.eager = false;
    let vanished = world.add(4, PATIENCE);
    assert!(world.clients[&vanished].grant.is_some());
    world.give_up(vanished);
    assert!(world.pool.allocations().is_empty());
}

#[test]
fn gc_releases_what_is_not_listed() {
    let mut world = started(3, 4, policy(1));
    for n in 0..4 {
        world.add(n, PATIENCE);
    }
    let gc = world.gc(&[1, 3]);
    assert!(matches!(&world.clients[&gc].last, Some(Reply::Collected(released)) if released.len() == 2));
    let kept: Vec<_> = world.pool.allocations().keys().cloned().collect();
    assert_eq!(kept, [key(1), key(3)]);
}

/// Q23, fault 11.1.1: no create, attach, delete every five seconds; and the ENI that found no place is deleted.
#[test]
fn ipamd_38_attachment_limit_backs_off_and_deletes_with_proof() {
    let mut world = started(3, 4, policy(0));
    world.limits.enis = 1; // EC2 allows fewer than the table says.
    for n in 0..3 {
        world.add(n, PATIENCE);
    }
    world.advance(Duration::from_secs(3600));
    let attempts = world.calls("Attach");
    assert!((2..=9).contains(&attempts), "{attempts} attempts in an hour");
    assert_eq!(world.calls("Create"), world.calls("Delete"));
    assert_eq!(world.enis.len(), 1, "nothing leaks");
    let refused = world.add(9, PATIENCE);
    let refusal = world.refused(refused).unwrap();
    assert_eq!(refusal.kind, RefusalKind::Exhausted);
    assert_eq!(refusal.aws.as_ref().unwrap().class, FailureClass::AttachmentLimit);
}

/// Fault 11.1.5: `PrivateIpAddressLimitExceeded` is answered by one Describe, and never loops.
#[test]
fn ipamd_fault_5_address_limit_adopts_and_never_loops() {
    let mut world = started(1, 10, policy(1));
    let hidden: Vec<_> = world.enis[&world.facts.primary_eni].secondary.clone();
    assert_eq!(hidden.len(), 9);
    world.limits.ipv4_per_eni = 5; // EC2 allows fewer than the table says.
    let id = world.facts.primary_eni.clone();
    world.enis.get_mut(&id).unwrap().secondary.truncate(4);
    world.event(Event::Imds(ImdsSnapshot::default()));
    world.log.clear();
    // The pool learns that five are gone, asks for them, and is told the limit.
    world
        .pool
        .memory
        .describe
        .insert(crate::cloud::DescribeScope::Attached);
    world.advance(Duration::from_secs(3600));
    assert!(world.log.len() < 60, "{:?}", world.log);
    assert!(world.calls("Assign") < 10);
    let waiter = world.add(1, PATIENCE);
    assert!(world.granted(waiter).is_some());
}

/// A creation that EC2 refused for being one too many is not on its way: the ENI there is, whose calls are counted apart,
/// is asked again as soon as it may be, and then nothing has to be created.
#[test]
fn pods_do_not_wait_for_a_throttled_creation_while_an_eni_has_room() {
    let mut wanted = policy(0);
    wanted.warm = WarmTarget::Ips { warm: 1, minimum: 1 };
    let mut world = started(3, 10, wanted);
    world.log.clear();
    for _ in 0..2 {
        world.faults.push_back(Fault::Refuse(FailureClass::Throttled));
    }
    let waiters: Vec<_> = (0..5).map(|n| world.add(n, PATIENCE)).collect();
    world.advance(Duration::from_secs(20));
    assert!(waiters.iter().all(|waiter| world.granted(*waiter).is_some()));
    assert_eq!(
        (world.calls("Assign"), world.calls("Create")),
        (2, 1),
        "{:?}",
        world.log
    );
}

/// What is on its way and was throttled is no hindrance, but whoever asks or is refused is told.
#[test]
fn a_throttled_step_is_told_by_status_and_by_a_refusal_for_lack_of_time() {
    for steps_before in [0, 1] {
        let mut world = started(3, 4, policy(0));
        world.eager = false;
        for n in 0..3 {
            world.add(n, PATIENCE);
        }
        let hasty = world.add(3, Duration::from_millis(500));
        let patient = world.add(4, PATIENCE);
        for _ in 0..steps_before {
            while world.flush() {}
            world.deliver(0);
        }
        world.faults.push_back(Fault::Refuse(FailureClass::Throttled));
        while world.flush() {}
        world.deliver(0);
        let status = world.pool.status(world.now);
        // A creation that was throttled is asked for anew; an attachment goes on.
        assert!(
            status.serving && (status.coming > 0) == (steps_before == 1),
            "{status:?}"
        );
        assert_eq!(status.reasons.len(), 1, "{status:?}");
        assert!(status.reasons[0].contains("next try in 1 s"), "{status:?}");
        world.eager = true;
        world.advance(Duration::from_millis(500));
        let refusal = world.refused(hasty).unwrap();
        assert_eq!(refusal.kind, RefusalKind::Deadline);
        assert_eq!(refusal.aws.as_ref().unwrap().class, FailureClass::Throttled);
        world.advance(Duration::from_secs(5));
        assert!(world.granted(patient).is_some());
        let status = world.pool.status(world.now);
        assert!(status.reasons.is_empty(), "{status:?}");
    }
}

#[test]
fn ipamd_54_55_a_full_subnet_gives_what_it_has_and_then_says_so() {
    let mut world = started(3, 10, policy(0));
    world.subnet_free = 4;
    for n in 0..9 {
        world.add(n, PATIENCE);
    }
    // 4 left: an ENI of its own and up to 3 addresses.
    let waiters: Vec<_> = (10..14).map(|n| world.add(n, PATIENCE)).collect();
    let served = waiters
        .iter()
        .filter(|waiter| world.granted(**waiter).is_some())
        .count();
    assert!(served >= 2, "{served} of 3 addresses were found: {:?}", world.log);
    let refusal = world.refused(waiters[3]).unwrap();
    assert_eq!(refusal.kind, RefusalKind::SubnetFull);
    assert_eq!(refusal.aws.as_ref().unwrap().request_id.as_deref(), Some("req-1"));
    assert!(refusal.retry_after_ms.unwrap() > 5_000);
    let asked = world.log.len();
    world.advance(Duration::from_secs(5));
    assert_eq!(world.log.len(), asked, "nothing is asked during the back-off");
    world.subnet_free = 1000;
    world.advance(Duration::from_secs(120));
    let waiter = world.add(20, PATIENCE);
    assert!(world.granted(waiter).is_some());
}

/// A node that wants several ENIs asks a subnet that had nothing by one call after every wait, not by one for each ENI.
#[test]
fn a_subnet_that_had_nothing_is_asked_again_by_one_call() {
    let mut world = started(8, 30, policy(2));
    for n in 0..29 {
        world.add(n, PATIENCE);
    }
    world.subnet_free = 0;
    for n in 29..60 {
        world.add(n, PATIENCE);
    }
    world.advance(Duration::from_mins(10));
    world.log.clear();
    world.advance(Duration::from_hours(1));
    let asked = world.calls("Create") + world.calls("Assign");
    assert!((15..=60).contains(&asked), "{asked}: {:?}", world.log);
    world.subnet_free = 1000;
    world.advance(Duration::from_mins(10));
    assert_eq!(world.pool.status(world.now).waiting, 0);
    assert!(world.pool.status(world.now).free >= 29, "{:?}", world.log);
}

/// Whatever a subnet has left: it is all taken, and one round of asking costs no more than halving does.
#[test]
fn ipamd_54_55_a_round_of_asking_a_full_subnet_is_short_and_leaves_nothing() {
    const HALVINGS_OF_30: usize = 5;
    const SIDE_BY_SIDE: usize = 3; // ENIs of 29 for what 110 lack
    for (left, at_once) in (0..60).flat_map(|left| [(left, false), (left, true)]) {
        let mut world = started(8, 30, policy(0));
        world.subnet_free = left;
        world.log.clear();
        world.eager = !at_once;
        let waiters: Vec<_> = (0..110).map(|n| world.add(n, PATIENCE)).collect();
        world.eager = true;
        world.settle();
        let served = |world: &World| {
            let granted = waiters.iter().filter(|waiter| world.granted(**waiter).is_some());
            granted.count()
        };
        let (created, assigned) = (world.calls("Create"), world.calls("Assign"));
        // The first refusal begins the round; an ENI's own address is nobody's.
        let before = left as usize / 30 + usize::from(at_once) * SIDE_BY_SIDE;
        assert!(
            created + assigned <= before + HALVINGS_OF_30 + 2,
            "{left}: {:?}",
            world.log
        );
        assert!(world.subnet_free <= 1, "{left}: {} left", world.subnet_free);
        assert_eq!(
            served(&world),
            29 + (left - world.subnet_free) as usize - (world.enis.len() - 1)
        );
        let refusals = waiters.iter().filter_map(|waiter| world.refused(*waiter));
        let full = refusals.filter(|refusal| refusal.kind == RefusalKind::SubnetFull);
        assert_eq!(served(&world) + full.count(), 110);
    }
}

/// Three calls go out side by side, the last is refused, and the answers come in any order: what the others took before
/// the refusal is not counted against what is left.
#[test]
fn ipamd_54_a_refusal_that_overtakes_the_other_answers_ends_no_round() {
    const ORDERS: [[usize; 3]; 6] = [[0, 1, 2], [0, 2, 1], [1, 0, 2], [1, 2, 0], [2, 0, 1], [2, 1, 0]];
    for order in ORDERS {
        // Nine on the primary ENI, two ENIs with nine more each, and of the six that then are left five for a fourth.
        let mut world = started(4, 10, policy(0));
        world.subnet_free = 26;
        world.eager = false;
        let waiters: Vec<_> = (0..32).map(|n| world.add(n, PATIENCE)).collect();
        while world.flush() {}
        let calls: Vec<_> = world.work.drain(..).collect();
        let mut answers = Vec::new();
        for work in calls {
            match work {
                Work::Call(call, request) => answers.push((call, world.answer(request, None))),
                other => world.work.push_back(other),
            }
        }
        assert_eq!(answers.len(), 3, "{:?}", world.log);
        for nth in order {
            let (call, result) = answers[nth].clone();
            world.event(Event::CallEnded { call, result });
        }
        world.eager = true;
        world.settle();
        let served = waiters.iter().filter(|waiter| world.granted(**waiter).is_some());
        assert_eq!(served.count(), 32, "{order:?}: {:?}", world.log);
    }
}

/// Twice in a row is a longer wait; with something in between it is not.
#[test]
fn ipamd_55_a_subnet_that_gave_something_is_asked_again_soon() {
    let mut world = started(3, 10, policy(0));
    world.subnet_free = 0;
    let waits = |world: &mut World| {
        let waiter = world.add(100, PATIENCE);
        world.refused(waiter).unwrap().retry_after_ms.unwrap() / 1000
    };
    for n in 0..9 {
        world.add(n, PATIENCE);
    }
    let attempt = |world: &World| {
        let topic = crate::obstacle::Topic::Subnet(world.facts.subnet.clone());
        world.pool.memory.obstacles[&topic].attempt
    };
    assert!((9..=20).contains(&waits(&mut world)));
    world.advance(Duration::from_secs(20));
    assert!((9..=40).contains(&waits(&mut world)), "still full");
    assert_eq!(attempt(&world), 2);
    world.subnet_free = 3;
    world.advance(Duration::from_secs(40));
    for n in 10..12 {
        world.add(n, PATIENCE);
    }
    assert_eq!(world.subnet_free, 0);
    assert!((9..=20).contains(&waits(&mut world)), "it gave something");
    assert_eq!(attempt(&world), 1);
}

#[test]
fn lost_answers_cost_nothing_but_time() {
    for fault in [Fault::LostBefore, Fault::LostAfter] {
        for skipped in 0..5 {
            let mut world = started(3, 4, policy(1));
            world.eager = false;
            let waiter = world.add(1, PATIENCE);
            let full: Vec<_> = (2..=4).map(|n| world.add(n, PATIENCE)).collect();
            for _ in 0..skipped {
                while world.flush() {}
                world.deliver(0);
            }
            world.faults.push_back(fault);
            world.eager = true;
            world.settle();
            world.advance(Duration::from_secs(300));
            for waiter in full.iter().chain([&waiter]) {
                assert!(
                    world.granted(*waiter).is_some(),
                    "{fault:?} {skipped}: {:?}",
                    world.log
                );
            }
            assert_eq!(sizes(&world), [3, 3, 3], "{fault:?} {skipped}: {:?}", world.log);
            assert_eq!(world.enis.len(), 3, "nothing leaks");
            let bad = |eni: &&crate::cloud::CloudEni| !eni.attachment.as_ref().unwrap().delete_on_termination;
            assert_eq!(world.enis.values().filter(bad).count(), 0, "{fault:?} {skipped}");
        }
    }
}
