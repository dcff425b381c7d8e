//! Giving back: what is surplus, on which witnesses it goes, and what keeps it.

use std::collections::BTreeSet;
use std::time::Duration;

use super::growth::{PATIENCE, policy, run, sizes, started};
use super::subnets::{custom, custom_world};
use super::targets::{ips, prefixes};
use super::world::{Fault, World, attachment, key};
use crate::cidr::Ipv4Cidr;
use crate::cloud::{CloudEni, ConnectionTracking, FailureClass};
use crate::event::Event;
use crate::ids::{DeviceIndex, EniId, Mac};
use crate::model::{Eni, EniState};
use crate::policy::{Policy, WarmTarget};
use crate::tags;

/// By then whatever is surplus has rested, lasted, and gone.
const AGES: Duration = Duration::from_secs(300);

fn configure(world: &mut World, policy: Policy) {
    world.policy = policy.clone();
    world.event(Event::Reconfigured(Box::new(policy)));
    world.settle();
}

fn stop(world: &mut World, pods: std::ops::Range<u32>) {
    for n in pods {
        world.del(n);
    }
}

/// Goes on until an intent to give back is recorded, and nothing of what follows from it has happened.
fn until_intent(world: &mut World) {
    world.eager = false;
    while !world.pool.enis().values().any(is_leaving) {
        world.advance(Duration::from_millis(500));
        if !world.pool.enis().values().any(is_leaving) {
            while world.step_once() {}
        }
    }
}

fn is_leaving(eni: &Eni) -> bool {
    eni.state == EniState::Draining || eni.cidrs.values().any(|placed| placed.releasing)
}

/// Calls that change something at EC2.
fn changes(world: &World) -> Vec<&str> {
    let changing = world.log.iter().filter(|line| !line.starts_with("Describe"));
    changing.map(String::as_str).collect()
}

/// An ENI of ours that is there already.
fn attach(world: &mut World, device: u32, addresses: u8, interface_type: &str, is_tagged: bool) -> EniId {
    let last = u8::try_from(device).unwrap();
    let id = EniId(format!("eni-there-{device}"));
    let instance = (tags::INSTANCE.to_owned(), world.facts.instance.to_string());
    let eni = CloudEni {
        id: id.clone(),
        mac: Mac([2, 0, 0, 9, 0, last]),
        subnet: world.facts.subnet.clone(),
        subnet_cidr: None,
        primary: [10, 0, 200 + last, 4].into(),
        secondary: (0..addresses)
            .map(|n| [10, 0, 200 + last, 10 + n].into())
            .collect(),
        prefixes: vec![],
        prefixes6: vec![],
        public: vec![],
        tracking: ConnectionTracking::default(),
        groups: vec![],
        interface_type: interface_type.to_owned(),
        attachment: Some(attachment(&id, &world.facts.instance, DeviceIndex(device))),
        description: if is_tagged {
            format!("aws-K8S-{}", world.facts.instance)
        } else {
            String::new()
        },
        tags: Some(instance).filter(|_| is_tagged).into_iter().collect(),
    };
    world.links.insert(eni.mac);
    world.enis.insert(id.clone(), eni);
    id
}

/// A node whose ENIs carry so much already, the primary one first.
fn furnished(policy: Policy, primary: u32, others: &[u8]) -> World {
    let mut world = World::with_addresses(3, 10, policy, primary);
    for (index, addresses) in others.iter().enumerate() {
        attach(
            &mut world,
            u32::try_from(index).unwrap() + 1,
            *addresses,
            "interface",
            true,
        );
    }
    world.settle();
    world.kernel();
    world.settle();
    world
}

/// Two addresses on the primary ENI and four on another, which is no longer young; all of them are wanted.
fn six_on_two() -> World {
    let mut world = furnished(ips(6, 0), 2, &[4]);
    world.advance(Duration::from_secs(61));
    world
}

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

/// What has only just been wanted stays, and what is surplus for a moment only.
#[test]
fn an_eni_younger_than_a_minute_stays_and_so_does_a_surplus_that_does_not_last() {
    let mut world = started(
        3,
        4,
        Policy {
            cooldown: Duration::ZERO,
            ..policy(0)
        },
    );
    run(&mut world, 0..4);
    stop(&mut world, 0..4);
    world.advance(Duration::from_secs(59));
    assert_eq!(sizes(&world), [3, 3]);
    for _ in 0..10 {
        run(&mut world, 0..4);
        world.advance(Duration::from_secs(5));
        stop(&mut world, 0..4);
        world.advance(Duration::from_secs(20));
    }
    assert_eq!(sizes(&world), [3, 3]);
    assert_eq!(world.calls("Detach"), 0);
    world.advance(Duration::from_secs(35));
    assert_eq!(sizes(&world), [3]);
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
    let given: BTreeSet<_> = world.live.values().copied().map(super::world::v4).collect();
    assert!(old.is_subset(&given), "{given:?}");
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

/// Conformance 97, Q3: the prefix comes first, then the single addresses go as their pods do.
#[test]
fn ipamd_97_single_addresses_go_when_prefixes_have_come() {
    let mut world = started(3, 10, policy(1));
    run(&mut world, 0..4);
    world.advance(AGES);
    world.policy = prefixes(WarmTarget::Prefixes(1));
    world.crash(None, false);
    world.settle();
    world.advance(AGES);
    let singles: usize = world.enis.values().map(|eni| eni.secondary.len()).sum();
    let blocks: usize = world.enis.values().map(|eni| eni.prefixes.len()).sum();
    assert_eq!((singles, blocks), (4, 1), "{:?}", world.log);
    let waiter = world.add(9, PATIENCE);
    let address = world.granted(waiter).unwrap();
    assert!(
        world
            .enis
            .values()
            .any(|eni| eni.prefixes.iter().any(|prefix| prefix.contains(address)))
    );
    stop(&mut world, 0..2);
    world.advance(AGES);
    let singles: usize = world.enis.values().map(|eni| eni.secondary.len()).sum();
    assert_eq!(singles, 2);
}

/// Where every place is taken by single addresses nobody uses, they make room: else the mode would never change.
#[test]
fn ipamd_97_single_addresses_make_room_where_every_place_is_taken() {
    let mut world = started(2, 4, policy(1));
    run(&mut world, 0..2);
    assert_eq!(sizes(&world), [3, 3]);
    configure(&mut world, prefixes(WarmTarget::Prefixes(1)));
    world.advance(AGES);
    let blocks: usize = world.enis.values().map(|eni| eni.prefixes.len()).sum();
    assert_eq!(blocks, 1, "{:?}", world.log);
    assert_eq!(world.pool.allocations().len(), 2);
}

/// Conformance 98.
#[test]
fn ipamd_98_prefixes_go_when_single_addresses_have_come() {
    let mut world = started(3, 10, prefixes(WarmTarget::Prefixes(1)));
    run(&mut world, 0..1);
    assert_eq!(world.enis[&world.facts.primary_eni].prefixes.len(), 2);
    world.policy = policy(0);
    world.crash(None, false);
    world.settle();
    world.advance(AGES);
    let primary = world.facts.primary_eni.clone();
    assert_eq!(world.enis[&primary].prefixes.len(), 1, "{:?}", world.log);
    world.del(0);
    world.advance(AGES);
    assert_eq!(world.enis[&primary].prefixes.len(), 0, "{:?}", world.log);
    assert!(!world.enis[&primary].secondary.is_empty());
}

/// Reference ipamd 2.7: with custom networking nothing is left on the primary ENI once other ENIs have the target.
#[test]
fn ipamd_97_what_is_excluded_goes_when_its_pods_do() {
    let mut world = custom_world(policy(0));
    run(&mut world, 0..2);
    configure(&mut world, custom(0, &["a"], &[]));
    world.advance(AGES);
    let primary = world.facts.primary_eni.clone();
    assert_eq!(world.enis[&primary].secondary.len(), 2, "{:?}", world.log);
    stop(&mut world, 0..2);
    world.advance(AGES);
    assert_eq!(world.enis[&primary].secondary.len(), 0, "{:?}", world.log);
    world.log.clear();
    world.advance(Duration::from_secs(3600));
    assert_eq!(changes(&world), [""; 0], "and nothing comes and goes");
}

/// Q42: an ENI that somebody takes away leaves no rules.
#[test]
fn ipamd_q42_a_lost_eni_leaves_no_rules() {
    let mut world = started(3, 4, policy(1));
    run(&mut world, 0..1);
    let id = world.configured.first().cloned().unwrap();
    world.eager = false;
    world.detach_from_outside(&id);
    while world.configured.contains(&id) {
        assert!(world.step_once(), "its rules stay: {:?}", world.log);
    }
}

/// A kill before and after every single piece of work of a return; with the call happening or not; and a reboot.
#[test]
fn a_kill_at_any_instant_of_a_return_resumes() {
    for (whole, happen, boot) in [
        (false, false, None),
        (false, true, None),
        (true, false, None),
        (true, true, None),
        (false, true, Some("another")),
        (true, true, Some("another")),
        (true, false, Some("another")),
    ] {
        for instant in 0..14 {
            let mut world = six_on_two();
            configure(&mut world, ips(if whole { 1 } else { 3 }, 0));
            world.log.clear();
            until_intent(&mut world);
            for _ in 0..instant {
                world.step_once();
            }
            world.crash(boot, happen);
            world.eager = true;
            world.settle();
            run(&mut world, 0..1);
            world.advance(Duration::from_secs(1200));
            let left = if whole { 2 } else { 4 };
            let total = sizes(&world).iter().sum::<usize>();
            assert_eq!(
                total, left,
                "{whole} {happen} {boot:?} {instant}: {:?}",
                world.log
            );
            let is_attached = |eni: &CloudEni| eni.attachment.is_some();
            assert!(world.enis.values().all(is_attached), "{instant}: nothing leaks");
            let known: BTreeSet<Ipv4Cidr> = world
                .pool
                .enis()
                .values()
                .flat_map(|eni| eni.cidrs.keys().copied())
                .collect();
            let there: BTreeSet<Ipv4Cidr> = world.enis.values().flat_map(CloudEni::cidrs).collect();
            assert_eq!(known, there);
            run(&mut world, 1..6);
            assert_eq!(world.pool.allocations().len(), 6);
        }
    }
}

/// At most one step in 30 s, however the targets move.
#[test]
fn a_return_is_begun_at_most_every_30_seconds() {
    let mut world = furnished(ips(8, 0), 9, &[]);
    world.log.clear();
    for warm in (0..8).rev() {
        configure(&mut world, ips(warm, 0));
        world.advance(Duration::from_secs(10));
    }
    assert!(world.calls("Unassign") <= 2, "{:?}", world.log);
    world.advance(AGES);
    assert_eq!(sizes(&world), [1]);
}
