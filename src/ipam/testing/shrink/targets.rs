//! What goes under which target, and what never does.

use super::*;

/// Reference ipamd 3.11, first timeline, and conformance 70.
#[test]
fn ipamd_70_enis_that_nothing_uses_leave_until_the_target_is_all_that_is_left() {
    let mut world = started(3, 10, policy(1));
    run(&mut world, 0..10);
    assert_eq!(sizes(&world), [9, 9, 9]);
    world.log.clear();
    stop(&mut world, 0..10);
    world.advance(AGES);
    assert_eq!(sizes(&world), [9]);
    assert_eq!(world.enis.len(), 1, "and they are deleted");
    assert_eq!(world.calls("Detach"), 2);
    assert_eq!(world.calls("Delete"), 2);
    assert!(world.calls("Describe") <= 5, "{:?}", world.log);
    assert!(world.configured.is_empty(), "their rules are gone");
    assert!(world.published.is_empty(), "and their addresses from the map");
    assert_eq!(world.alarms, []);
    world.log.clear();
    world.advance(Duration::from_secs(1800));
    assert_eq!(changes(&world), [""; 0], "nothing comes and goes");
    run(&mut world, 0..10);
    assert_eq!(sizes(&world), [9, 9, 9], "and it grows again");
}

/// One pod needs a warm ENI besides its own; without a target one free address is enough.
/// The addresses of pods that went rest, and do not count as free: where all that kubelet takes could have an address
/// of those there are, no ENI is attached for as long as that lasts. Somebody who waits is served all the same.
#[test]
fn ipamd_30_at_max_pods_nothing_grows_because_addresses_rest_but_for_who_waits() {
    let mut world = started(
        8,
        30,
        Policy {
            max_pods: Some(110),
            ..policy(1)
        },
    );
    run(&mut world, 0..110);
    assert_eq!(sizes(&world), [29; 4]);
    world.log.clear();
    stop(&mut world, 5..110);
    world.advance(AGES);
    assert_eq!(world.calls("Create"), 0, "{:?}", world.log);
    assert_eq!(sizes(&world), [29; 2]);

    run(&mut world, 5..110);
    world.log.clear();
    stop(&mut world, 5..110);
    run(&mut world, 200..220);
    assert!(
        world.calls("Create") > 0,
        "14 pods of 20 need not wait for that: {:?}",
        world.log
    );
}

#[test]
fn ipamd_70_what_the_target_asks_for_stays() {
    for (warm, pods, expected) in [(1, 1, 2), (1, 9, 2), (2, 1, 3), (0, 1, 1), (0, 8, 1), (0, 9, 2)] {
        let mut world = started(3, 10, policy(warm));
        run(&mut world, 0..10);
        stop(&mut world, pods..10);
        world.advance(AGES);
        assert_eq!(
            sizes(&world).len(),
            expected,
            "E={warm} with {pods} pods: {:?}",
            world.log
        );
    }
}

/// Conformance 71: an ENI with an address that rests is in use (Q2).
#[test]
fn ipamd_71_an_address_at_rest_keeps_its_eni() {
    let mut world = started(3, 10, policy(1));
    run(&mut world, 0..10);
    world.advance(AGES);
    stop(&mut world, 0..9);
    world.advance(Duration::from_secs(55));
    let held = world.pool.allocations()[&key(9)].eni.clone();
    world.del(9);
    world.advance(Duration::from_secs(29));
    assert!(world.enis.contains_key(&held));
    assert_eq!(world.pool.enis()[&held].state, EniState::Ready);
    world.advance(AGES);
    assert_eq!(sizes(&world), [9], "{:?}", world.log);
}

#[test]
fn ipamd_67_one_address_too_many_is_one_address_given_back() {
    let mut world = furnished(ips(1, 0), 2, &[2]);
    run(&mut world, 0..2);
    world.log.clear();
    world.advance(AGES);
    assert_eq!(changes(&world), ["Unassign eni-there-1 1"]);
    assert_eq!(sizes(&world), [1, 2]);
    world.advance(Duration::from_secs(1800));
    assert_eq!(changes(&world).len(), 1, "{:?}", world.log);
}

/// Conformance 73, with the one difference that an address stays free where nothing else is asked for (Q5).
#[test]
fn ipamd_73_whole_enis_go_when_the_others_have_the_targets() {
    let mut world = furnished(ips(3, 1), 2, &[2, 1]);
    run(&mut world, 0..2);
    for (targets, expected) in [
        ((3, 1), vec![1, 2, 2]),
        ((1, 5), vec![1, 2, 2]),
        ((2, 4), vec![2, 2]),
        ((0, 3), vec![1, 2]),
        ((0, 2), vec![1, 2]),
    ] {
        configure(&mut world, ips(targets.0, targets.1));
        world.advance(AGES);
        assert_eq!(sizes(&world), expected, "{targets:?}: {:?}", world.log);
    }
    assert_eq!((world.calls("Detach"), world.calls("Unassign")), (1, 1));
}

/// An ENI goes in one call where its addresses could go one by one; and one that is left without any goes, too.
#[test]
fn an_eni_goes_as_a_whole_rather_than_its_addresses_one_by_one() {
    let mut world = furnished(ips(1, 0), 9, &[9, 0]);
    run(&mut world, 0..9);
    configure(&mut world, ips(9, 0));
    world.advance(AGES);
    assert_eq!(sizes(&world), [9, 9], "the empty one is of no use");
    stop(&mut world, 1..9);
    world.advance(Duration::from_secs(31));
    configure(&mut world, ips(5, 0));
    world.log.clear();
    world.advance(AGES);
    assert_eq!(sizes(&world), [6]);
    let detach = "Detach eni-there-1";
    assert!(changes(&world).contains(&detach), "{:?}", world.log);
    assert_eq!(world.calls("Unassign"), 1, "{:?}", world.log);
}

/// Reference ipamd 3.11, second timeline.
#[test]
fn ten_pods_of_w2_m5_leave_five_addresses() {
    let mut world = started(3, 10, ips(2, 5));
    run(&mut world, 0..10);
    world.log.clear();
    stop(&mut world, 0..10);
    world.advance(AGES);
    assert_eq!(sizes(&world), [5]);
    assert_eq!(
        (world.calls("Unassign"), world.calls("Detach")),
        (1, 1),
        "{:?}",
        world.log
    );
}

/// Reference ipamd 3.11, third timeline.
#[test]
fn forty_pods_in_prefixes_leave_one_prefix() {
    let mut world = started(3, 10, prefixes(WarmTarget::Prefixes(1)));
    run(&mut world, 0..40);
    assert_eq!(
        world.enis.values().map(|eni| eni.prefixes.len()).sum::<usize>(),
        4
    );
    world.log.clear();
    stop(&mut world, 0..40);
    world.advance(AGES);
    assert_eq!(changes(&world), ["UnassignPrefixes eni-primary 3"]);
    assert_eq!(world.enis[&world.facts.primary_eni].prefixes.len(), 1);
}

#[test]
fn ipamd_74_free_prefixes_beyond_the_target_go_in_one_call() {
    let mut world = started(3, 10, prefixes(WarmTarget::Prefixes(3)));
    configure(&mut world, prefixes(WarmTarget::Prefixes(1)));
    world.log.clear();
    world.advance(AGES);
    assert_eq!(changes(&world), ["UnassignPrefixes eni-primary 2"]);
    configure(&mut world, prefixes(WarmTarget::Prefixes(2)));
    configure(&mut world, prefixes(WarmTarget::Ips { warm: 5, minimum: 0 }));
    world.log.clear();
    world.advance(AGES);
    assert_eq!(changes(&world), ["UnassignPrefixes eni-primary 1"]);
}

/// Q6: as many wholly free prefixes stay as the target says, however many addresses are free elsewhere.
#[test]
fn ipamd_74_a_prefix_in_use_is_no_warm_one() {
    let mut world = started(3, 10, prefixes(WarmTarget::Prefixes(1)));
    run(&mut world, 0..40);
    stop(&mut world, 1..40);
    world.advance(AGES);
    assert_eq!(world.enis[&world.facts.primary_eni].prefixes.len(), 2);
}

/// Conformance 75, Q5: nothing comes and goes for ever, whatever the target.
#[test]
fn ipamd_75_no_target_flaps() {
    let all = [
        policy(0),
        policy(1),
        ips(0, 0),
        ips(1, 0),
        ips(0, 1),
        ips(0, 12),
        ips(3, 2),
        prefixes(WarmTarget::Prefixes(0)),
        prefixes(WarmTarget::Prefixes(1)),
        prefixes(WarmTarget::Enis(0)),
        prefixes(WarmTarget::Ips { warm: 0, minimum: 0 }),
        prefixes(WarmTarget::Ips { warm: 1, minimum: 17 }),
        prefixes(WarmTarget::Ips { warm: 17, minimum: 1 }),
    ];
    for policy in all {
        for pods in [0, 1, 5, 9, 10, 16, 17] {
            let mut world = started(3, 10, policy.clone());
            run(&mut world, 0..22);
            stop(&mut world, pods..22);
            world.advance(AGES);
            world.log.clear();
            world.advance(Duration::from_secs(3600));
            assert_eq!(
                changes(&world),
                [""; 0],
                "{:?} {:?}, {pods} pods",
                policy.warm,
                policy.prefixes
            );
            let waiter = world.add(99, Duration::from_millis(1));
            assert!(world.granted(waiter).is_some(), "one address is ready at once");
        }
    }
}

#[test]
fn ipamd_77_the_primary_eni_never_goes() {
    for policy in [policy(0), ips(1, 0), prefixes(WarmTarget::Prefixes(0))] {
        let mut world = started(3, 10, policy);
        run(&mut world, 0..25);
        stop(&mut world, 0..25);
        world.advance(Duration::from_secs(3600));
        let ids: Vec<&EniId> = world.enis.keys().collect();
        assert_eq!(ids, [&world.facts.primary_eni]);
    }
}

/// ENIs for other purposes, and those that others have made.
#[test]
fn ipamd_73_efa_and_trunk_enis_and_those_of_others_never_go() {
    for (interface_type, is_tagged, goes) in [
        ("interface", true, true),
        ("interface", false, false),
        ("efa", true, false),
        ("trunk", true, false),
    ] {
        let mut world = World::with_addresses(3, 10, ips(1, 0), 2);
        let id = attach(&mut world, 1, 1, interface_type, is_tagged);
        world.settle();
        world.kernel();
        world.advance(Duration::from_secs(3600));
        assert_eq!(
            !world.enis.contains_key(&id),
            goes,
            "{interface_type} {is_tagged}"
        );
    }
}
