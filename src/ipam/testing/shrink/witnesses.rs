//! What EC2, the kernel and pods have to say when something is to go.

use super::*;

/// Conformance 69: IMDS and EC2's lists lag behind what was given back.
#[test]
fn ipamd_69_what_was_given_back_is_not_taken_up_again_from_an_old_list() {
    for restarts in [false, true] {
        let mut world = furnished(ips(1, 0), 2, &[2]);
        run(&mut world, 0..2);
        let id = EniId::from("eni-there-1");
        let old = world.enis[&id].secondary.clone();
        while world.calls("Unassign") == 0 {
            world.advance(Duration::from_secs(1));
        }
        let is_left = |world: &World| {
            let known = world.pool.enis()[&id].cidrs.keys().map(|cidr| cidr.base());
            known.collect::<BTreeSet<_>>() == world.enis[&id].secondary.iter().copied().collect()
        };
        assert!(is_left(&world));
        let now = std::mem::replace(&mut world.enis.get_mut(&id).unwrap().secondary, old);
        if restarts {
            world.crash(None, false);
        }
        let snapshot = world.imds_snapshot();
        world.event(Event::Imds(snapshot));
        world
            .pool
            .memory
            .describe
            .insert(crate::cloud::DescribeScope::Attached);
        world.advance(Duration::from_secs(50));
        world.enis.get_mut(&id).unwrap().secondary = now;
        assert!(is_left(&world), "restarts: {restarts}");
        world.advance(AGES);
        assert!(is_left(&world));
        assert_eq!(world.alarms, []);
    }
}

/// EC2 gives again what it has just taken: nobody has to wait for a list's lag then.
#[test]
fn what_ec2_gives_again_itself_serves_at_once() {
    let mut world = furnished(ips(1, 0), 2, &[2]);
    run(&mut world, 0..2);
    let id = EniId::from("eni-there-1");
    let old: BTreeSet<_> = world.enis[&id].secondary.iter().copied().collect();
    while world.calls("Unassign") == 0 {
        world.advance(Duration::from_secs(1));
    }
    let left: BTreeSet<_> = world.enis[&id].secondary.iter().copied().collect();
    world.returning = old.difference(&left).copied().collect();
    run(&mut world, 2..4);
    let given: BTreeSet<_> = world
        .live
        .values()
        .copied()
        .map(super::super::world::v4)
        .collect();
    assert!(old.is_subset(&given), "{given:?}");
}

/// Conformance 78 and fault 9: what EC2 does not take back serves on, and is not tried again and again.
#[test]
fn ipamd_78_fault_9_a_refused_return_serves_on_and_is_seldom_repeated() {
    for class in [
        FailureClass::Denied,
        FailureClass::Throttled,
        FailureClass::Other,
        FailureClass::Gone,
    ] {
        for whole in [false, true] {
            let mut world = six_on_two();
            configure(&mut world, ips(if whole { 1 } else { 3 }, 0));
            world.refuse_returns = Some(class);
            world.log.clear();
            world.advance(Duration::from_secs(7200));
            let asked = world.calls("Unassign") + world.calls("Detach");
            assert!(
                (2..=16).contains(&asked),
                "{class:?} {whole}: {asked} in two hours"
            );
            let kinds: BTreeSet<&str> = changes(&world).into_iter().collect();
            assert!(kinds.len() <= 2, "always the same: {kinds:?}");
            assert!(!world.alarms.is_empty(), "{class:?}");
            run(&mut world, 0..5);
            world.refuse_returns = None;
            stop(&mut world, 0..5);
            world.advance(Duration::from_secs(7200));
            assert!(
                sizes(&world).iter().sum::<usize>() <= 3,
                "{class:?} {whole}: {:?}",
                world.log
            );
        }
    }
}

/// Whatever becomes of the call whose answer is lost, EC2's word settles it: nothing is used that may be gone.
#[test]
fn a_lost_answer_of_a_return_is_settled_by_ec2s_word() {
    for fault in [Fault::LostBefore, Fault::LostAfter] {
        for whole in [false, true] {
            for skipped in 0..4 {
                let mut world = six_on_two();
                world.alarms.clear();
                configure(&mut world, ips(if whole { 1 } else { 3 }, 0));
                world.log.clear();
                until_intent(&mut world);
                for _ in 0..skipped {
                    world.step_once();
                }
                world.faults.push_back(fault);
                world.eager = true;
                world.settle();
                run(&mut world, 0..4);
                world.advance(Duration::from_secs(60));
                stop(&mut world, 1..4);
                world.advance(Duration::from_secs(7200));
                let left = if whole { 2 } else { 4 };
                assert_eq!(
                    sizes(&world).iter().sum::<usize>(),
                    left,
                    "{fault:?} {whole} {skipped}: {:?}",
                    world.log
                );
                assert!(
                    world.alarms.iter().all(|alarm| alarm.kind == "not-released"),
                    "{:?}",
                    world.alarms
                );
            }
        }
    }
}

/// A pod that comes before the call is sent has what was to go.
#[test]
fn pods_that_return_take_back_what_was_to_go() {
    for whole in [false, true] {
        let mut world = six_on_two();
        configure(&mut world, ips(if whole { 1 } else { 3 }, 0));
        world.log.clear();
        until_intent(&mut world);
        // The intent is durable, and EC2 is being asked.
        let waiters: Vec<_> = (0..6).map(|n| world.add(n, PATIENCE)).collect();
        while world.flush() {}
        assert!(
            waiters.iter().all(|waiter| world.granted(*waiter).is_some()),
            "{whole}"
        );
        world.eager = true;
        world.settle();
        assert_eq!(
            (world.calls("Unassign"), world.calls("Detach")),
            (0, 0),
            "{:?}",
            world.log
        );
        assert_eq!(world.alarms, []);
    }
}

/// What the store does not know of: a public address, a pod's route, a rule, an address somebody added.
#[test]
fn a_witness_that_contradicts_keeps_it() {
    type Contradiction = fn(&mut World, &EniId);
    let contradictions: [(&str, Contradiction); 5] = [
        ("a public address on one of them", |world, id| {
            let eni = world.enis.get_mut(id).unwrap();
            eni.public = vec![*eni.secondary.last().unwrap()];
        }),
        ("a route to a pod", |world, id| {
            let address = *world.enis[id].secondary.last().unwrap();
            world.routes.insert(address.into(), key(77));
        }),
        ("a rule that names it", |world, id| {
            let address = *world.enis[id].secondary.last().unwrap();
            world.bare_rules.insert(address);
        }),
        ("an address added meanwhile", |world, id| {
            let more = "10.0.77.77".parse().unwrap();
            world.enis.get_mut(id).unwrap().secondary.push(more);
        }),
        ("a public address of the ENI itself", |world, id| {
            let eni = world.enis.get_mut(id).unwrap();
            eni.public = vec![eni.primary];
        }),
    ];
    for (what, contradict) in contradictions {
        let mut world = six_on_two();
        let id = EniId::from("eni-there-1");
        configure(&mut world, ips(1, 0));
        world.log.clear();
        until_intent(&mut world);
        contradict(&mut world, &id);
        world.eager = true;
        world.settle();
        assert_eq!(world.calls("Detach"), 0, "{what}");
        assert_eq!(world.pool.enis()[&id].state, EniState::Ready, "{what}");
        assert!(
            world.alarms.iter().any(|alarm| alarm.kind == "not-released"),
            "{what}: {:?}",
            world.alarms
        );
    }
}

/// Q47, and where there is nobody to ask.
#[test]
fn ipamd_q47_nothing_goes_where_provisioning_is_off_or_ec2_is_not_to_be_asked() {
    for (provisioning, ask_ec2) in [(false, true), (true, false), (false, false)] {
        let mut world = six_on_two();
        configure(
            &mut world,
            Policy {
                provisioning,
                ask_ec2,
                ..ips(1, 0)
            },
        );
        world.log.clear();
        world.advance(Duration::from_secs(3600));
        assert_eq!(changes(&world), [""; 0]);
    }
}
