//! What a pod is told when ENIs that get no new pods have taken the places of those that would.

use std::time::Duration;

use super::conformance::{NOT_OURS, foreign};
use super::explain::texts;
use super::growth::{PATIENCE, policy, started};
use super::subnets::{custom, custom_world, subnet};
use super::world::{World, attachment};
use crate::cloud::CloudEni;
use crate::effect::{Refusal, RefusalKind};
use crate::event::Event;
use crate::ids::{CardIndex, DeviceIndex, WaiterId};
use crate::limits::{FurtherCards, InstanceLimits};
use crate::policy::{Policy, WarmTarget};
use crate::wishes::Wish;

const ROLE: &str = "kubernetes.io/role/cni";

fn refused(world: &mut World, n: u32) -> Refusal {
    let waiter = world.add(n, PATIENCE);
    let refusal = world.refused(waiter).expect("nothing can come");
    assert_eq!(refusal.kind, RefusalKind::Exhausted);
    refusal.clone()
}

fn holds(text: &str, sentences: &[&str]) {
    for sentence in sentences {
        assert!(text.contains(sentence), "{sentence:?} is not in {text:?}");
    }
}

/// A node of two ENIs that has one besides the primary, in its own subnet, and then the subnet's tags say that it is not
/// for pods.
fn retagged(prepare: impl Fn(&mut World)) -> World {
    let mut world = started(2, 4, policy(0));
    let waiters: Vec<_> = (0..4).map(|n| world.add(n, PATIENCE)).collect();
    assert!(waiters.iter().all(|waiter| world.granted(*waiter).is_some()));
    world
        .subnets
        .insert("a".into(), subnet("a", 1, 500, &[(ROLE, "1")]));
    world.subnet_tags = subnet("own", 0, 0, &[(ROLE, "0")]).tags;
    prepare(&mut world);
    world.advance(Duration::from_secs(3601));
    world
}

fn made(world: &mut World) -> &mut CloudEni {
    let primary = world.facts.primary_eni.clone();
    let mut enis = world.enis.values_mut();
    enis.find(|eni| eni.id != primary).unwrap()
}

/// Once somebody has given it a public address, no witness lets it go, and its place is not to be had.
#[test]
fn a_pod_is_told_which_enis_get_no_pods_and_what_keeps_them() {
    let mut world = retagged(|world| {
        let eni = made(world);
        eni.public = vec![eni.primary];
    });
    for n in 0..4 {
        world.del(n);
    }
    world.advance(Duration::from_secs(600));
    let id = made(&mut world).id.clone();
    let refusal = refused(&mut world, 9);
    holds(
        &refusal.message,
        &[
            "no ENI gets pods, and there is no place for another: 0 assigned, 0 cooling, 0 quarantined, on at most 2 \
             ENIs (limit of the instance type) with 3 addresses for pods each; 2 of 2 ENIs get no pods: ",
            &format!(
                "{id} (by its tags its subnet subnet-1 is not for pods of this node; kept because a public address is \
                 associated with it)"
            ),
            "eni-primary (by its tags its subnet subnet-1 is not for pods of this node; the instance keeps its primary \
             ENI)",
        ],
    );
    holds(
        &refusal.next_step,
        &[
            &format!("take the public address off {id}, which then goes back by itself"),
            "tag subnet-1 kubernetes.io/role/cni=1, if it is for pods",
            "or use a larger instance type",
        ],
    );
    assert_eq!(refusal.limit, Some(2));
    world.eager = false;
    world.add(10, PATIENCE);
    holds(&texts(&world), &[&id.0, "a public address is associated with it"]);
    // Somebody follows the advice.
    world.eager = true;
    made(&mut world).public.clear();
    world.advance(Duration::from_secs(7200));
    let waiter = world.add(11, PATIENCE);
    assert!(world.granted(waiter).is_some(), "{:?}", world.log);
}

#[test]
fn pods_that_are_there_keep_an_eni_and_are_counted() {
    let mut world = retagged(|_| {});
    let refusal = refused(&mut world, 9);
    let id = made(&mut world).id.clone();
    holds(
        &refusal.message,
        &[
            "4 assigned",
            &format!(
                "{id} (by its tags its subnet subnet-1 is not for pods of this node; kept because 1 pod is on it)"
            ),
        ],
    );
    assert!(!refusal.next_step.contains("public"), "{}", refusal.next_step);
}

/// Settings, an ENI's tags and type, and what is told of it.
type Foreign<'a> = (Policy, &'a [(&'a str, &'a str)], &'a str, &'a str);

#[test]
fn enis_that_are_somebody_elses_are_named_with_what_makes_them_so() {
    let instance = World::new(2, 4, policy(0)).facts.instance;
    let ours = ("node.k8s.amazonaws.com/instance_id", instance.as_str());
    let theirs = ("node.k8s.amazonaws.com/instance_id", "i-another");
    let untagged = Policy {
        manage_untagged: false,
        ..policy(0)
    };
    let rows: [Foreign<'_>; 6] = [
        (
            policy(0),
            &[NOT_OURS],
            "interface",
            "it is tagged node.k8s.amazonaws.com/no_manage=true",
        ),
        (
            policy(0),
            &[theirs],
            "interface",
            "its tag node.k8s.amazonaws.com/instance_id names i-another",
        ),
        (
            untagged,
            &[],
            "interface",
            "it lacks the tag node.k8s.amazonaws.com/instance_id, and MANAGE_UNTAGGED_ENI is false",
        ),
        (
            policy(0),
            &[ours],
            "efa-only",
            "it is of the type efa-only, which carries no pods' addresses",
        ),
        (
            policy(0),
            &[ours],
            "trunk",
            "it is of the type trunk, which carries branch ENIs",
        ),
        (
            policy(0),
            &[ours],
            "quicksight",
            "it is of a type that is not for pods",
        ),
    ];
    for (policy, tags, kind, expected) in rows {
        let mut world = World::new(2, 4, policy);
        let eni = CloudEni {
            interface_type: kind.to_owned(),
            ..foreign(1, tags, 0)
        };
        world.enis.insert(eni.id.clone(), eni);
        world.settle();
        for n in 0..3 {
            world.add(n, PATIENCE);
        }
        let refusal = refused(&mut world, 3);
        holds(
            &refusal.message,
            &[
                "every address is taken: 3 assigned",
                &format!("1 of 2 ENIs gets no pods: eni-zz1 ({expected})"),
            ],
        );
        holds(&refusal.next_step, &["detach eni-zz1, if nobody needs it"]);
    }
}

#[test]
fn custom_networking_is_named_where_it_leaves_the_primary_eni_to_the_node() {
    let capped = Policy {
        max_enis: Some(1),
        ..custom(0, &["a"], &[])
    };
    let mut world = custom_world(capped);
    let refusal = refused(&mut world, 1);
    holds(
        &refusal.message,
        &[
            "on at most 1 ENIs (MAX_ENI)",
            "1 of 1 ENIs gets no pods: eni-primary (custom networking leaves the primary ENI to the node)",
        ],
    );
    holds(&refusal.next_step, &["raise MAX_ENI"]);
}

/// Without ENIs of that sort nothing is said of any.
#[test]
fn a_node_that_is_full_of_pods_says_so_in_few_words() {
    let mut world = started(2, 4, policy(0));
    for n in 0..6 {
        world.add(n, PATIENCE);
    }
    let refusal = refused(&mut world, 6);
    assert_eq!(
        refusal.message,
        "every address is taken: 6 assigned, 0 cooling, 0 quarantined, on at most 2 ENIs (limit of the instance type) \
         with 3 addresses for pods each"
    );
    assert_eq!(
        refusal.next_step,
        "run fewer pods on this node (max-pods), or use a larger instance type"
    );
}

#[test]
fn of_several_cards_each_has_its_own_places() {
    let limits = InstanceLimits {
        enis: 1,
        ipv4_per_eni: 3,
        prefixes: true,
        further: FurtherCards::new([(CardIndex(1), 2)]),
    };
    let several = Policy {
        warm: WarmTarget::Ips { warm: 1, minimum: 0 },
        multi_nic: true,
        ..Policy::default()
    };
    let mut world = World::with_limits(limits, several, 0);
    let mut eni = foreign(1, &[NOT_OURS], 0);
    let mut on_second = attachment(&eni.id, &world.facts.instance, DeviceIndex(1));
    on_second.card = CardIndex(1);
    eni.attachment = Some(on_second);
    world.enis.insert(eni.id.clone(), eni);
    world.settle();
    for n in 0..4 {
        world.add(n, PATIENCE);
    }
    let refusal = refused(&mut world, 4);
    holds(
        &refusal.message,
        &[
            "every address is taken: 4 assigned, 0 cooling, 0 quarantined",
            "on at most 1 ENIs (limit of the instance type) with 2 addresses for pods each on card 0",
            "at most 2 ENIs (limit of the instance type) with 2 addresses for pods each on card 1",
            "1 of 2 ENIs gets no pods: eni-zz1 (",
        ],
    );
    assert_eq!(refusal.limit, Some(3));
    let main = world.live.keys().next().unwrap().clone();
    let companion = crate::ids::SandboxKey {
        ifname: "mNicIf1".into(),
        ..main
    };
    let waiter = world.add_interface(companion, Wish::Card(CardIndex(1)), Some("eth0".into()), PATIENCE);
    let refusal = world.refused(waiter).unwrap();
    holds(
        &refusal.message,
        &["2 assigned", "on at most 2 ENIs", "1 of 2 ENIs gets no pods"],
    );
    assert_eq!(refusal.limit, Some(2));
}

/// An ENI in a subnet that is no longer for pods goes when its last one does, and another takes its place: an ADD that
/// comes in between waits for that.
#[test]
fn an_add_waits_for_the_place_of_an_eni_that_is_being_given_back() {
    let (mut world, waiter) = asked_while_an_eni_leaves(None);
    assert!(world.refused(waiter).is_none(), "{:?}", world.refused(waiter));
    world.eager = true;
    world.settle();
    world.advance(Duration::from_secs(20));
    assert!(
        world.granted(waiter).is_some(),
        "{:?}: {:?}",
        world.refused(waiter),
        world.log
    );
}

/// Nothing may take its place.
#[test]
fn an_add_does_not_wait_for_the_place_of_an_eni_that_is_one_too_many() {
    let (world, waiter) = asked_while_an_eni_leaves(Some(1));
    let refusal = world.refused(waiter).expect("no place comes free");
    assert_eq!((refusal.kind, refusal.limit), (RefusalKind::Exhausted, Some(1)));
}

/// By then `MAX_ENI` is this.
fn asked_while_an_eni_leaves(max_enis: Option<u32>) -> (World, WaiterId) {
    let mut world = retagged(|_| {});
    for n in 0..4 {
        world.del(n);
    }
    world.log.clear();
    let detaches = |world: &World| world.calls("Detach") > 0 && world.calls("Delete") == 0;
    for _ in 0..3600 {
        world.eager = false;
        world.advance(Duration::from_millis(500));
        while !detaches(&world) && world.step_once() {}
        if detaches(&world) {
            break;
        }
        world.eager = true;
    }
    assert!(detaches(&world), "{:?}", world.log);
    let policy = Policy {
        max_enis,
        ..world.policy.clone()
    };
    world.event(Event::Reconfigured(Box::new(policy)));
    let waiter = world.add(9, PATIENCE);
    (world, waiter)
}
