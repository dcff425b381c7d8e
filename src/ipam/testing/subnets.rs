//! Several subnets: where ENIs go, what is passed over, and what becomes of ENIs whose subnet is not for us.

use std::collections::BTreeSet;
use std::time::Duration;

use super::growth::{PATIENCE, policy, sizes, started};
use super::world::{Fault, Work, World, key};
use crate::cloud::{CloudSubnet, FailureClass};
use crate::effect::RefusalKind;
use crate::event::Event;
use crate::ids::SubnetId;
use crate::policy::{EniConfigChoice, Policy};

const ROLE: &str = "kubernetes.io/role/cni";

/// Another subnet of the zone, its network 10.<number>.0.0/16.
pub(super) fn subnet(name: &str, number: u8, free: u32, tags: &[(&str, &str)]) -> CloudSubnet {
    CloudSubnet {
        id: name.into(),
        cidr: format!("10.{number}.0.0/16").parse().unwrap(),
        free,
        tags: tags
            .iter()
            .map(|(key, value)| ((*key).to_owned(), (*value).to_owned()))
            .collect(),
    }
}

fn with_subnets(mut world: World, subnets: impl IntoIterator<Item = CloudSubnet>) -> World {
    for subnet in subnets {
        world.subnets.insert(subnet.id.clone(), subnet);
    }
    world
}

/// The subnets of the ENIs that were made, in the order in which they were.
fn used(world: &World) -> Vec<String> {
    let made = world
        .enis
        .values()
        .filter(|eni| eni.id != world.facts.primary_eni);
    made.map(|eni| eni.subnet.to_string()).collect()
}

fn add_all(world: &mut World, pods: std::ops::Range<u32>) -> usize {
    let waiters: Vec<_> = pods.map(|n| world.add(n, PATIENCE)).collect();
    waiters
        .iter()
        .filter(|waiter| world.granted(**waiter).is_some())
        .count()
}

/// The order is told by which of them gets the ENI when those before it are full.
fn order(own: &[(&str, &str)], b: &[(&str, &str)]) -> Vec<SubnetId> {
    let named = Policy {
        cluster_name: Some("c1".to_owned()),
        ..policy(0)
    };
    let world = World::new(8, 2, named);
    let others = [subnet("a", 1, 50, &[(ROLE, "1")]), subnet("b", 2, 90, b)];
    let mut world = with_subnets(world, others);
    world.subnet_free = 70;
    world.subnet_tags = subnet("own", 0, 0, own).tags;
    world.settle();
    world.pool.forget_calm();
    let candidates = crate::subnets::candidates(&world.pool).unwrap_or_default();
    candidates.into_iter().map(|candidate| candidate.id).collect()
}

#[test]
fn ipamd_58_the_order_is_by_free_addresses_among_those_that_tags_allow() {
    let own = SubnetId::from("subnet-1");
    let (a, b) = (SubnetId::from("a"), SubnetId::from("b"));
    let theirs = [(ROLE, "1"), ("cni.networking.k8s.aws/cluster/c2", "")];
    assert_eq!(order(&[], &[(ROLE, "1")]), [b.clone(), own.clone(), a.clone()]);
    assert_eq!(order(&[(ROLE, "0")], &[(ROLE, "1")]), [b, a.clone()]);
    assert_eq!(order(&[], &theirs), [own, a]);
}

#[test]
fn ipamd_59_without_a_subnet_for_us_no_eni_is_made_and_pods_are_told() {
    let mut world = World::new(3, 4, policy(1));
    world.subnet_tags = subnet("own", 0, 0, &[(ROLE, "0")]).tags;
    world.settle();
    assert_eq!((world.calls("Create"), world.calls("Assign")), (0, 0));
    let waiter = world.add(1, PATIENCE);
    let refusal = world.refused(waiter).unwrap();
    assert_eq!(refusal.kind, RefusalKind::Exhausted);
    assert!(
        refusal.message.contains("no subnet in eu-central-1a"),
        "{}",
        refusal.message
    );
    assert!(refusal.next_step.contains("kubernetes.io/role/cni=1"));
    // Tags change: the next look finds the other subnet.
    world
        .subnets
        .insert("a".into(), subnet("a", 1, 50, &[(ROLE, "1")]));
    world.advance(Duration::from_secs(3601));
    assert_eq!(add_all(&mut world, 2..4), 2);
    assert!(
        used(&world).iter().all(|subnet| subnet == "a"),
        "{:?}",
        used(&world)
    );
}

/// Conformance 59 has it that nothing is created then; Q9 calls that a fault.
#[test]
fn ipamd_59_a_denied_describe_costs_nothing_but_the_other_subnets() {
    let mut world = World::new(3, 4, policy(0));
    world
        .subnets
        .insert("a".into(), subnet("a", 1, 90_000, &[(ROLE, "1")]));
    question_first(&mut world);
    world.faults.push_back(Fault::Refuse(FailureClass::Denied));
    world.settle();
    assert_eq!(add_all(&mut world, 0..3), 3);
    // It may be asked again now, and refuses again.
    world.faults.push_back(Fault::Refuse(FailureClass::Denied));
    world.advance(Duration::from_secs(60));
    let asked = world.calls("Describe Subnets");
    let waiter = world.add(4, PATIENCE);
    assert!(world.granted(waiter).is_some(), "{:?}", world.log);
    assert!(world.calls("Describe Subnets") <= asked + 1);
}

fn is_describe_subnets(work: &Work) -> bool {
    matches!(
        work,
        Work::Call(_, crate::cloud::CloudCall::DescribeSubnets { .. })
    )
}

/// Has the question for subnets answered next.
fn question_first(world: &mut World) {
    while world.flush() {}
    let place = world.work.iter().position(is_describe_subnets).unwrap();
    world.work.swap(0, place);
}

/// Does all the work there is but answer the question for subnets.
fn settle_but_subnets(world: &mut World) {
    for _ in 0..10_000 {
        let next = world.work.iter().position(|work| !is_describe_subnets(work));
        let delivered = next.is_some_and(|next| world.deliver(next));
        let flushed = world.flush();
        if world.kernel_asked {
            world.kernel();
        } else if !flushed && !delivered {
            return;
        }
    }
    panic!("it never settles");
}

#[test]
fn ipamd_q9_an_answer_that_does_not_come_holds_growth_up_for_a_moment_only() {
    let mut world = World::new(3, 4, policy(0));
    world.eager = false;
    settle_but_subnets(&mut world);
    assert_eq!(
        world.calls("Assign"),
        0,
        "a fresh node's subnet may not be for pods"
    );
    let waiter = world.add(1, PATIENCE);
    world.advance(Duration::from_secs(2));
    settle_but_subnets(&mut world);
    assert!(world.granted(waiter).is_some());
}

/// What an old answer says is good enough for a pod; for what is only held ready, a new one is asked for.
#[test]
fn a_pod_does_not_wait_for_a_second_answer() {
    let mut world = started(3, 4, policy(0));
    assert_eq!(add_all(&mut world, 0..3), 3);
    world.advance(Duration::from_secs(600));
    world.log.clear();
    world.eager = false;
    let waiters: Vec<_> = (3..7).map(|n| world.add(n, PATIENCE)).collect();
    settle_but_subnets(&mut world);
    for waiter in waiters {
        assert!(world.granted(waiter).is_some(), "{:?}", world.log);
    }
    assert_eq!(world.calls("Describe"), 0);
    assert!(world.work.iter().any(is_describe_subnets), "asked, not answered");
}

#[test]
fn ipamd_q30_a_full_subnet_is_passed_over_and_the_next_one_serves() {
    let world = World::new(8, 30, policy(0));
    let mut world = with_subnets(world, [subnet("a", 1, 400, &[(ROLE, "1")])]);
    world.subnet_free = 500;
    world.settle();
    // EC2's number is out of date: others have taken all of it.
    world.subnet_free = 0;
    assert_eq!(add_all(&mut world, 0..110), 110, "{:?}", world.log);
    assert_eq!(used(&world), ["a", "a", "a"]);
    assert_eq!(sizes(&world), [29, 29, 29, 29]);
    assert!(world.calls("Create") <= 3 + 2, "{:?}", world.log);
    assert_eq!(world.calls("Describe Subnets"), 1);
}

/// What a growth round takes is subtracted from what EC2 said: ENIs side by side do not all go to one small subnet.
#[test]
fn enis_side_by_side_go_where_most_is_left() {
    let world = World::new(8, 30, policy(0));
    let others = [
        subnet("a", 1, 50, &[(ROLE, "1")]),
        subnet("b", 2, 45, &[(ROLE, "1")]),
        subnet("c", 3, 40, &[(ROLE, "1")]),
    ];
    let mut world = with_subnets(world, others);
    world.subnet_free = 29;
    world.eager = false;
    let waiters: Vec<_> = (0..110).map(|n| world.add(n, PATIENCE)).collect();
    world.eager = true;
    world.settle();
    assert!(waiters.iter().all(|waiter| world.granted(*waiter).is_some()));
    let different: BTreeSet<String> = used(&world).into_iter().collect();
    assert_eq!(different.len(), 3, "{different:?}");
    assert_eq!(world.calls("Create"), 3, "none was refused: {:?}", world.log);
}

#[test]
fn a_subnet_that_is_gone_is_passed_over_and_asked_about() {
    let world = World::new(4, 4, policy(0));
    let mut world = with_subnets(world, [subnet("a", 1, 90_000, &[(ROLE, "1")])]);
    world.settle();
    world.subnets.clear();
    assert_eq!(add_all(&mut world, 0..4), 4, "{:?}", world.log);
    assert_eq!(used(&world), ["subnet-1"]);
    assert_eq!(world.calls("Describe Subnets"), 2);
}

/// Reference ipamd 1.6 and Q18: pods stay, nobody new comes, and a tag that goes brings the ENI back.
#[test]
fn ipamd_q18_an_eni_in_an_excluded_subnet_keeps_its_pods_and_gets_no_others() {
    let world = World::new(3, 4, policy(0));
    let mut world = with_subnets(world, [subnet("a", 1, 500, &[(ROLE, "1")])]);
    world.settle();
    let before: Vec<_> = (0..2).map(|n| world.add(n, PATIENCE)).collect();
    world.subnet_tags = subnet("own", 0, 0, &[(ROLE, "0")]).tags;
    world.advance(Duration::from_secs(3601));
    let primary = world.facts.primary_eni.clone();
    assert!(world.pool.enis()[&primary].excluded);
    assert!(world.alarms.iter().any(|alarm| alarm.kind == "eni-excluded"));
    assert_eq!(
        world.pool.free_in_order(world.now).len(),
        3,
        "another ENI has come instead"
    );
    let next = world.add(2, PATIENCE);
    let granted = world.clients[&next].grant.clone().unwrap();
    assert_ne!(granted.eni, primary);
    // A pod that is there gets its own again, a restart forgets nothing, and its end gives nobody its address.
    let again = world.add(0, PATIENCE);
    assert_eq!(world.granted(again), world.granted(before[0]));
    world.crash(None, false);
    world.settle();
    assert!(world.pool.enis()[&primary].excluded);
    world.del(0);
    world.advance(Duration::from_secs(300));
    assert_eq!(
        world.enis[&primary].secondary.len(),
        1,
        "it is emptied: {:?}",
        world.log
    );
    assert!(world.pool.allocations().contains_key(&key(1)));
    // The tag goes: it is used again.
    world.subnet_tags.clear();
    world.advance(Duration::from_secs(3601));
    assert!(!world.pool.enis()[&primary].excluded);
    assert_eq!(add_all(&mut world, 3..9), 6);
    assert!(world.enis[&primary].secondary.len() > 1);
}

/// A start finds ENIs excluded in the node's own subnet, and EC2 does not say whether that is still so: no ENI is made there
/// meanwhile. Then the tag is gone, and what is there serves.
#[test]
fn ipamd_q18_no_eni_is_made_in_a_subnet_that_was_excluded_before_the_start() {
    for class in [
        FailureClass::Throttled,
        FailureClass::Server,
        FailureClass::Denied,
    ] {
        let mut world = World::new(3, 4, policy(0));
        world.settle();
        world.subnet_tags = subnet("own", 0, 0, &[(ROLE, "0")]).tags;
        world.advance(Duration::from_secs(3601));
        let primary = world.facts.primary_eni.clone();
        assert!(world.pool.enis()[&primary].excluded);
        world.outage = Some(class);
        world.outage_of = "Describe Subnets";
        world.crash(None, false);
        world.settle();
        let waiter = world.add(1, PATIENCE);
        world.advance(Duration::from_secs(5));
        assert_eq!(world.calls("Create"), 0, "{class:?}: {:?}", world.log);
        // Whoever is not told at all takes what there is (Q9).
        let is_served = world.granted(waiter).is_some();
        assert_eq!(is_served, class == FailureClass::Denied, "{class:?}");
        world.subnet_tags.clear();
        world.outage = None;
        world.advance(Duration::from_secs(120));
        assert!(!world.pool.enis()[&primary].excluded);
        assert_eq!(add_all(&mut world, 2..3), 1);
        assert_eq!(world.calls("Create"), 0, "{class:?}: {:?}", world.log);
    }
}

/// Somebody has taken all addresses off an ENI that gets no new pods: it is surplus for two reasons, and goes once.
#[test]
fn ipamd_q18_an_excluded_eni_without_any_address_is_given_back_once() {
    let world = World::new(3, 4, policy(1));
    let mut world = with_subnets(world, [subnet("a", 1, 50_000, &[(ROLE, "1")])]);
    world.subnet_free = 40;
    world.settle();
    assert_eq!(add_all(&mut world, 0..3), 3);
    let tags = subnet("a", 1, 0, &[(ROLE, "0")]).tags;
    for subnet in world.subnets.values_mut() {
        subnet.tags.clone_from(&tags);
    }
    let primary = world.facts.primary_eni.clone();
    for eni in world.enis.values_mut().filter(|eni| eni.id != primary) {
        eni.secondary.clear();
    }
    world.alarms.clear();
    world.advance(Duration::from_secs(3601));
    world.advance(Duration::from_secs(1200));
    let refused: Vec<_> = world
        .alarms
        .iter()
        .filter(|alarm| alarm.kind == "bad-plan")
        .collect();
    assert!(refused.is_empty(), "{refused:?}");
    assert!(!used(&world).contains(&"a".to_owned()), "{:?}", world.log);
}

/// What is not the primary ENI goes as a whole with its last pod, and nothing flaps.
#[test]
fn ipamd_q18_an_excluded_eni_is_given_back_when_its_last_pod_has_gone() {
    let world = World::new(3, 4, policy(1));
    let mut world = with_subnets(world, [subnet("a", 1, 50_000, &[(ROLE, "1")])]);
    world.subnet_free = 40;
    world.settle();
    assert_eq!(add_all(&mut world, 0..4), 4);
    assert_eq!(used(&world), ["a", "a"]);
    let tags = subnet("a", 1, 0, &[(ROLE, "0")]).tags;
    world
        .subnets
        .values_mut()
        .for_each(|subnet| subnet.tags.clone_from(&tags));
    world.advance(Duration::from_secs(3601));
    world.advance(Duration::from_secs(300));
    assert_eq!(
        used(&world),
        ["a", "subnet-1"],
        "the empty one made place: {:?}",
        world.log
    );
    assert_eq!(world.live.len(), 4);
    for n in 0..4 {
        world.del(n);
    }
    world.advance(Duration::from_secs(300));
    assert!(
        used(&world).iter().all(|subnet| subnet == "subnet-1"),
        "{:?}",
        used(&world)
    );
    world.log.clear();
    world.advance(Duration::from_secs(7200));
    assert_eq!(world.log.len(), world.calls("Describe"), "{:?}", world.log);
}

/// Custom networking switched on: what is free on the primary ENI goes back.
#[test]
fn ipamd_q39_what_is_free_on_the_primary_eni_is_given_back() {
    let mut world = custom_world(policy(0));
    assert_eq!(add_all(&mut world, 0..2), 2);
    world.event(Event::Reconfigured(Box::new(custom(0, &["a"], &[]))));
    world.settle();
    world.advance(Duration::from_secs(300));
    let primary = world.facts.primary_eni.clone();
    assert_eq!(world.enis[&primary].secondary.len(), 2, "{:?}", world.log);
    world.del(0);
    world.del(1);
    world.advance(Duration::from_secs(300));
    assert_eq!(sizes(&world), [0, 9]);
}

#[test]
fn an_answer_without_the_nodes_own_subnet_is_not_believed() {
    let mut world = World::new(3, 4, policy(0));
    question_first(&mut world);
    world.faults.push_back(Fault::Omit);
    world.settle();
    assert_eq!(add_all(&mut world, 0..4), 4);
    assert!(
        world
            .alarms
            .iter()
            .any(|alarm| alarm.kind == "incredible-describe")
    );
}

#[test]
fn ipamd_27_without_discovery_nobody_is_asked_and_no_tag_counts() {
    let mut world = World::new(
        3,
        4,
        Policy {
            subnet_discovery: false,
            ..policy(0)
        },
    );
    world.subnet_tags = subnet("own", 0, 0, &[(ROLE, "0")]).tags;
    world.settle();
    assert_eq!(add_all(&mut world, 0..4), 4);
    world.advance(Duration::from_secs(36_000));
    assert_eq!(world.calls("Describe Subnets"), 0);
}

// ---- custom networking ----

pub(super) fn custom(warm: u32, subnets: &[&str], groups: &[&str]) -> Policy {
    Policy {
        custom_networking: true,
        eni_config: Some(EniConfigChoice {
            name: "zone-a".to_owned(),
            subnets: subnets.iter().map(|id| (*id).into()).collect(),
            groups: groups.iter().map(|id| (*id).into()).collect(),
        }),
        ..policy(warm)
    }
}

pub(super) fn custom_world(policy: Policy) -> World {
    let world = World::new(3, 10, policy);
    let mut world = with_subnets(world, [subnet("a", 1, 500, &[]), subnet("b", 2, 900, &[])]);
    world.settle();
    world
}

/// Reference ipamd 3.9, custom networking on an m5.large with E=1, and conformance 62.
#[test]
fn ipamd_62_row_3_9_custom_networking_leaves_the_primary_eni_alone() {
    let mut world = custom_world(custom(1, &["a"], &["sg-pods"]));
    for (pods, expected) in [(0, vec![0, 9]), (1, vec![0, 9, 9]), (10, vec![0, 9, 9])] {
        let there = u32::try_from(world.live.len()).unwrap();
        assert_eq!(add_all(&mut world, there..pods), (pods - there) as usize);
        assert_eq!(sizes(&world), expected, "{pods} pods");
    }
    for eni in world
        .enis
        .values()
        .filter(|eni| eni.id != world.facts.primary_eni)
    {
        assert_eq!(
            (eni.subnet.as_str(), &*eni.groups),
            ("a", &["sg-pods".into()][..])
        );
    }
    assert_eq!(world.calls("Describe Subnets"), 1, "for its network alone");
    world.advance(Duration::from_secs(86_400));
    assert_eq!(world.calls("Describe Subnets"), 1, "there is but one to choose");
}

#[test]
fn ipamd_62_an_empty_list_of_groups_means_the_primary_enis() {
    let world = custom_world(custom(0, &["a"], &[]));
    let made = world
        .enis
        .values()
        .find(|eni| eni.subnet.as_str() == "a")
        .unwrap();
    assert_eq!(made.groups, world.facts.security_groups);
}

/// The Go daemon does not start; here pods are told which ENIConfig is missing.
#[test]
fn ipamd_62_without_an_eni_config_nothing_is_made_and_pods_are_told() {
    for (why, expected) in [
        (None, "no ENIConfig holds"),
        (
            Some("there is no ENIConfig zone-a"),
            "there is no ENIConfig zone-a",
        ),
    ] {
        let policy = Policy {
            eni_config: None,
            eni_config_missing: why.map(str::to_owned),
            ..custom(0, &[], &[])
        };
        let mut world = custom_world(policy);
        assert_eq!((world.calls("Create"), world.calls("Assign")), (0, 0));
        let waiter = world.add(1, PATIENCE);
        let refusal = world.refused(waiter).unwrap();
        assert!(refusal.message.contains(expected), "{}", refusal.message);
        // It comes later: no restart is needed.
        world.event(Event::Reconfigured(Box::new(custom(0, &["b"], &[]))));
        world.settle();
        assert_eq!(add_all(&mut world, 2..3), 1);
        assert_eq!(used(&world), ["b"]);
    }
}

#[test]
fn of_several_subnets_of_an_eni_config_the_one_with_most_left_is_used_or_the_first() {
    let world = custom_world(custom(0, &["a", "b", "elsewhere"], &[]));
    assert_eq!(used(&world), ["b"]);
    let unasked = Policy {
        subnet_discovery: false,
        ..custom(0, &["a", "b"], &[])
    };
    assert_eq!(used(&custom_world(unasked)), ["a"]);
    let mut denied = World::new(3, 10, custom(0, &["a", "b"], &[]));
    denied.subnets = custom_world(policy(0)).subnets;
    denied.eager = false;
    settle_but_subnets(&mut denied);
    denied.faults.push_back(Fault::Refuse(FailureClass::Denied));
    denied.settle();
    assert_eq!(used(&denied), ["a"]);
}

/// Q39 and the table of 1.6: what the primary ENI and ENIs elsewhere carry stays as long as pods are there.
#[test]
fn ipamd_q39_custom_networking_switched_on_keeps_pods_and_moves_new_ones() {
    let mut world = custom_world(policy(0));
    assert_eq!(add_all(&mut world, 0..10), 10);
    assert_eq!(used(&world), ["subnet-1"]);
    world.event(Event::Reconfigured(Box::new(custom(0, &["a"], &[]))));
    world.settle();
    assert_eq!(used(&world), ["subnet-1", "a"]);
    let next = world.add(10, PATIENCE);
    let granted = world.clients[&next].grant.clone().unwrap();
    assert_eq!(world.enis[&granted.eni].subnet.as_str(), "a");
    assert_eq!(world.live.len(), 11, "nobody lost anything");
    // And off again, over a restart: the primary ENI serves once more.
    world.policy = policy(0);
    world.crash(None, false);
    world.settle();
    world.advance(Duration::from_secs(1));
    assert_eq!(add_all(&mut world, 11..12), 1);
    assert!(world.pool.enis().values().all(|eni| !eni.excluded));
}

/// Q5, issue 1451: the Go daemon makes and frees an ENI every 70 s.
#[test]
fn ipamd_q5_custom_networking_without_a_warm_eni_does_not_flap() {
    let mut world = custom_world(custom(0, &["a"], &[]));
    assert_eq!(sizes(&world), [0, 9]);
    world.log.clear();
    world.advance(Duration::from_secs(7_200));
    assert_eq!(world.log.len(), world.calls("Describe"), "{:?}", world.log);
    assert_eq!(sizes(&world), [0, 9]);
}
