//! IPv6: one /80, asked for once, and addresses of it that nobody has had before.

use std::collections::BTreeSet;
use std::net::{IpAddr, Ipv6Addr};
use std::time::Duration;

use proptest::prelude::*;

use super::growth::{PATIENCE, held, started};
use super::subnets::subnet;
use super::world::{Fault, World, key};
use crate::cidr6::Ipv6Cidr;
use crate::cloud::{CloudEni, FailureClass};
use crate::effect::RefusalKind;
use crate::event::Event;
use crate::ids::EniId;
use crate::ip::IpFamily;
use crate::plan::Hindrance;
use crate::policy::Policy;
use crate::six::FIRST;

pub(super) fn policy() -> Policy {
    Policy {
        family: IpFamily::V6,
        cooldown: Duration::from_secs(30),
        ..Policy::default()
    }
}

pub(super) fn node() -> World {
    started(3, 10, policy())
}

/// A node whose EC2 refuses what begins so, from the start.
fn node_refused(action: &'static str, class: FailureClass) -> World {
    let mut world = World::new(3, 10, policy());
    world.outage = Some(class);
    world.outage_of = action;
    world.settle();
    world
}

pub(super) fn prefix(world: &World) -> Ipv6Cidr {
    let all: Vec<Ipv6Cidr> = world
        .enis
        .values()
        .flat_map(|eni| eni.prefixes6.clone())
        .collect();
    assert_eq!(all.len(), 1, "{all:?}");
    all[0]
}

pub(super) fn add(world: &mut World, n: u32) -> Ipv6Addr {
    let waiter = world.add(n, PATIENCE);
    let refused = world.refused(waiter).cloned();
    world
        .granted_six(waiter)
        .unwrap_or_else(|| panic!("{n} got nothing: {refused:?}"))
}

#[test]
fn ipamd_91_a_node_gets_one_80_and_a_pod_the_first_address_behind_its_base() {
    let mut world = node();
    let prefix = prefix(&world);
    assert!(prefix.is_delegated());
    assert_eq!(world.calls("Delegate"), 1);
    assert_eq!(world.pool.status(world.now).free, (1 << 48) - 129);
    // Upstream's first address is the base, which routers of the prefix answer for (RFC 4291, 2.6.1).
    assert_eq!(add(&mut world, 1), prefix.at(FIRST).unwrap());
    assert_eq!(add(&mut world, 2), prefix.at(FIRST + 1).unwrap());
    let again = world.add(1, PATIENCE);
    assert_eq!(world.granted_six(again), prefix.at(FIRST));
    assert!(world.clients[&again].grant.as_ref().unwrap().repeated);
    world.advance(Duration::from_secs(36_000));
    assert_eq!(world.calls("Delegate"), 1, "{:?}", world.log);
    assert_eq!(
        world.calls("Create") + world.calls("Assign"),
        0,
        "{:?}",
        world.log
    );
}

#[test]
fn no_address_is_given_twice_even_long_after_its_rest() {
    let mut world = node();
    let mut seen = BTreeSet::new();
    for round in 0..400 {
        assert!(seen.insert(add(&mut world, round)));
        world.del(round);
        world.advance(Duration::from_secs(40));
    }
    assert_eq!(world.calls("Delegate"), 1);
    world.kernel();
    assert!(world.pool.addresses().len() < 5, "what has rested is forgotten");
}

#[test]
fn a_burst_beyond_what_is_reserved_waits_for_the_disk_alone() {
    let mut world = node();
    world.eager = false;
    let waiters: Vec<_> = (0..1_000).map(|n| world.add(n, PATIENCE)).collect();
    world.settle();
    let given: BTreeSet<_> = waiters
        .iter()
        .filter_map(|waiter| world.granted_six(*waiter))
        .collect();
    assert_eq!(given.len(), 1_000);
    assert_eq!(world.calls("Delegate"), 1);
}

/// The reservation is on the disk before the first address of it is told: whatever a kill loses, nobody gets it again.
#[test]
fn what_a_killed_daemon_told_without_writing_it_is_not_given_again() {
    let mut world = node();
    let mut told = BTreeSet::new();
    for n in 0..30 {
        world.eager = false;
        let waiter = world.add(n, PATIENCE);
        let grant = world.clients[&waiter].grant.clone().expect("assigned at once");
        assert!(told.insert(grant.address), "{} was told before", grant.address);
        // Its plugin dies with it, and the kernel shows nothing.
        world.routes.clear();
        world.crash(None, false);
        world.eager = true;
        world.settle();
    }
    assert_eq!(world.calls("Delegate"), 1);
}

#[test]
fn nothing_is_told_beyond_what_is_reserved_on_the_disk() {
    let mut world = node();
    world.eager = false;
    for n in 0..1_000 {
        world.add(n, PATIENCE);
    }
    let grants = world.clients.values().filter_map(|client| client.grant.as_ref());
    let told: BTreeSet<IpAddr> = grants.map(|grant| grant.address).collect();
    assert!((128..1_000).contains(&told.len()), "{} were told", told.len());
    world.routes.clear();
    world.crash(None, false);
    world.eager = true;
    world.settle();
    for n in 2_000..2_600 {
        let address = IpAddr::V6(add(&mut world, n));
        assert!(!told.contains(&address), "{address} was told before");
    }
}

#[test]
fn what_the_kernel_routes_and_nobody_has_stored_is_doubted_until_it_is_gone() {
    let mut world = node();
    let prefix = prefix(&world);
    let stray = prefix.at(9).unwrap();
    world.routes.insert(stray.into(), key(77));
    world.kernel();
    assert!(world.pool.known(stray).unwrap().doubt.is_some());
    for n in 0..20 {
        assert_ne!(add(&mut world, n), stray);
    }
    // The sandbox it is wired for may ask for it.
    let claimed = world.add(77, PATIENCE);
    assert_eq!(world.granted_six(claimed), Some(stray));
    world.routes.insert(prefix.at(500).unwrap().into(), key(78));
    world.kernel();
    world.routes.remove(&prefix.at(500).unwrap().into());
    world.kernel();
    world.advance(Duration::from_mins(2));
    assert!(
        !world.pool.knows(prefix.at(500).unwrap()),
        "it rests, and is forgotten"
    );
}

/// With its records a node loses how far it had counted: the kernel's routes tell where pods are.
#[test]
fn a_node_without_its_records_goes_on_behind_its_pods() {
    let mut world = node();
    let held: Vec<_> = (0..5).map(|n| add(&mut world, n)).collect();
    world.store.clear();
    world.crash(None, false);
    world.settle();
    assert_eq!(world.calls("Delegate"), 1);
    let next = add(&mut world, 50);
    assert!(!held.contains(&next), "{next}");
    assert_eq!(add(&mut world, 3), held[3], "its link is wired");
}

#[test]
fn a_boot_ends_every_sandbox_and_another_instance_everything() {
    let mut world = node();
    let prefix_before = prefix(&world);
    let first = add(&mut world, 1);
    world.crash(Some("other-boot"), false);
    world.settle();
    assert!(world.pool.allocations().is_empty());
    assert_ne!(add(&mut world, 1), first, "it rests, and is not needed");
    assert_eq!((prefix(&world), world.calls("Delegate")), (prefix_before, 1));
    world.facts.instance = "i-0fedcba9876543210".into();
    world.routes.clear();
    world.live.clear();
    let theirs = world.enis.get_mut(&world.facts.primary_eni).unwrap();
    theirs.attachment.as_mut().unwrap().instance = Some(world.facts.instance.clone());
    theirs.prefixes6.clear();
    world.crash(None, false);
    world.settle();
    assert_eq!(world.calls("Delegate"), 2);
    assert_ne!(prefix(&world), prefix_before);
    assert!(prefix(&world).contains(add(&mut world, 2)));
}

#[test]
fn a_lost_answer_is_looked_for_and_never_asked_for_again_while_lists_may_lag() {
    for fault in [Fault::LostAfter, Fault::LostBefore] {
        let mut world = World::new(3, 10, policy());
        world.eager = false;
        while world.calls("Delegate") == 0 {
            // The next call is the one: what comes before is answered.
            let is_next = world.work.front().is_some_and(|work| {
                matches!(
                    work,
                    super::world::Work::Call(_, crate::cloud::CloudCall::Assign { .. })
                )
            });
            if is_next {
                world.faults.push_back(fault);
            }
            assert!(world.step_once());
        }
        world.eager = true;
        world.settle();
        let waiter = world.add(1, Duration::from_mins(5));
        world.advance(Duration::from_mins(2));
        assert!(world.granted_six(waiter).is_some(), "{fault:?}: {:?}", world.log);
        let asked = if fault == Fault::LostAfter { 1 } else { 2 };
        assert_eq!(world.calls("Delegate"), asked, "{fault:?}");
        assert!(world.calls("Describe") < 20, "{:?}", world.log);
    }
}

#[test]
fn a_refusal_names_what_is_missing_and_the_next_step() {
    for (class, kind) in [
        (FailureClass::SubnetFull, RefusalKind::SubnetFull),
        (FailureClass::Denied, RefusalKind::Denied),
    ] {
        let mut world = node_refused("Delegate", class);
        let waiter = world.add(1, PATIENCE);
        let refusal = world.refused(waiter).expect("told at once").clone();
        assert_eq!(refusal.kind, kind, "{refusal:?}");
        assert!(
            refusal.aws.is_some() && !refusal.next_step.is_empty(),
            "{refusal:?}"
        );
        assert_eq!(world.calls("Create"), 0, "no ENI stands in for it");
        world.outage = None;
        world.advance(Duration::from_mins(20));
        add(&mut world, 2);
    }
    let mut world = node_refused("Delegate", FailureClass::Throttled);
    let waiter = world.add(1, PATIENCE);
    assert!(world.refused(waiter).is_none(), "it passes by itself");
    world.outage = None;
    world.advance(Duration::from_secs(30));
    assert!(world.granted_six(waiter).is_some());
}

#[test]
fn ipamd_10_a_type_whose_enis_carry_no_prefixes_is_named() {
    let mut world = World::new(3, 10, policy());
    world.limits.prefixes = false;
    world.crash(None, false);
    world.settle();
    let waiter = world.add(1, PATIENCE);
    let refusal = world.refused(waiter).unwrap();
    assert_eq!(refusal.kind, RefusalKind::Exhausted);
    assert!(refusal.message.contains("test.large"), "{}", refusal.message);
}

fn overheard(world: &World) -> Event {
    Event::Imds(world.imds_snapshot())
}

#[test]
fn where_ec2_is_not_asked_what_imds_lists_is_used() {
    let mut world = World::new(
        3,
        10,
        Policy {
            ask_ec2: false,
            provisioning: false,
            ..policy()
        },
    );
    let waiter = world.add(1, PATIENCE);
    let refusal = world.refused(waiter).expect("nothing can come").clone();
    assert!(refusal.next_step.contains("/80"), "{}", refusal.next_step);
    let primary = world.facts.primary_eni.clone();
    let prefix: Ipv6Cidr = "2001:db8:0:1:aaaa::/80".parse().unwrap();
    world.enis.get_mut(&primary).unwrap().prefixes6.push(prefix);
    let event = overheard(&world);
    world.event(event);
    world.settle();
    assert_eq!(add(&mut world, 2), prefix.at(FIRST).unwrap());
    assert!(world.log.is_empty(), "{:?}", world.log);
}

#[test]
fn the_first_pod_starts_from_imds_when_ec2_cannot_be_reached() {
    let mut world = World::new(3, 10, policy());
    let primary = world.facts.primary_eni.clone();
    let prefix: Ipv6Cidr = "2001:db8:0:1:aaaa::/80".parse().unwrap();
    world.enis.get_mut(&primary).unwrap().prefixes6.push(prefix);
    world.outage = Some(FailureClass::NoAnswer);
    let event = overheard(&world);
    world.event(event);
    let waiter = world.add(1, PATIENCE);
    world.advance(Duration::from_secs(5));
    assert_eq!(world.granted_six(waiter), prefix.at(FIRST));
    world.outage = None;
    world.advance(Duration::from_mins(10));
    assert!(world.pool.enis()[&primary].block.as_ref().unwrap().verified);
    assert_eq!(world.calls("Delegate"), 0, "{:?}", world.log);
}

#[test]
fn several_80s_are_used_one_at_a_time_and_none_is_given_back() {
    let mut world = World::new(3, 10, policy());
    let primary = world.facts.primary_eni.clone();
    let all: Vec<Ipv6Cidr> = ["2001:db8:0:1:bbbb::/80", "2001:db8:0:1:aaaa::/80"]
        .map(|text| text.parse().unwrap())
        .into();
    world.enis.get_mut(&primary).unwrap().prefixes6 = all.clone();
    world.settle();
    assert!(all[1].contains(add(&mut world, 1)));
    world.advance(Duration::from_secs(7_200));
    assert_eq!(world.enis[&primary].prefixes6, all);
    assert_eq!(world.calls("Unassign") + world.calls("Delegate"), 0);
}

#[test]
fn an_80_that_ec2_omits_serves_nobody_new_and_is_replaced_once_ec2_insists() {
    let mut world = node();
    let primary = world.facts.primary_eni.clone();
    let held = add(&mut world, 1);
    let old = prefix(&world);
    world.advance(Duration::from_mins(2));
    world.faults.extend([Fault::Omit]);
    world.pool.memory.look_by(world.now);
    world.advance(Duration::from_millis(1));
    assert!(
        world.alarms.iter().any(|alarm| alarm.kind == "quarantined"),
        "{:?}",
        world.log
    );
    world.advance(Duration::from_mins(2));
    assert_eq!(prefix(&world), old, "one omission is lag");
    assert!(old.contains(add(&mut world, 2)));
    world.enis.get_mut(&primary).unwrap().prefixes6.clear();
    world.pool.memory.look_by(world.now);
    world.advance(Duration::from_millis(1));
    world.advance(Duration::from_mins(10));
    assert_eq!(world.calls("Delegate"), 2, "{:?}", world.log);
    assert_ne!(prefix(&world), old);
    assert_eq!(
        world.pool.allocations()[&key(1)].address,
        held,
        "who has one keeps it"
    );
    let other = add(&mut world, 3);
    assert!(prefix(&world).contains(other));
    world.del(1);
    world.del(2);
    world.advance(Duration::from_mins(5));
    assert!(!world.pool.knows(held));
}

/// A node whose own subnet is not for pods, beside one that is.
pub(super) fn beside_its_subnet(enis: u32) -> World {
    let mut world = World::new(enis, 10, policy());
    world.subnet_tags = [("kubernetes.io/role/cni".to_owned(), "0".to_owned())].into();
    let other = subnet("subnet-2", 2, 100, &[("kubernetes.io/role/cni", "1")]);
    world.subnets.insert(other.id.clone(), other);
    world
}

#[test]
fn ipamd_33_a_primary_eni_whose_subnet_is_not_for_pods_gets_none_and_one_eni_more_is_made() {
    let mut world = beside_its_subnet(3);
    world.settle();
    assert_eq!(
        (world.calls("Create"), world.calls("Delegate")),
        (1, 0),
        "{:?}",
        world.log
    );
    let primary = world.facts.primary_eni.clone();
    assert!(world.enis[&primary].prefixes6.is_empty());
    assert!(prefix(&world).contains(add(&mut world, 1)));
    world.advance(Duration::from_secs(7_200));
    assert_eq!(
        (world.calls("Create"), world.enis.len()),
        (1, 2),
        "{:?}",
        world.log
    );
}

#[test]
fn ipv4_pods_keep_their_addresses_when_the_family_changes_and_the_other_way_round() {
    let mut world = started(
        2,
        5,
        Policy {
            family: IpFamily::V4,
            ..policy()
        },
    );
    let old = world.add(1, PATIENCE);
    let old = world.granted(old).unwrap();
    world.policy.family = IpFamily::V6;
    world.crash(None, false);
    world.settle();
    let new = add(&mut world, 2);
    assert_eq!(world.pool.allocations()[&key(1)].address, old);
    world.del(1);
    world.advance(Duration::from_mins(2));
    let more = add(&mut world, 3);
    assert_ne!(new, more);
    world.policy.family = IpFamily::V4;
    world.crash(None, false);
    world.settle();
    assert_eq!(world.pool.allocations()[&key(2)].address, new);
    let next = world.add(4, PATIENCE);
    assert!(world.granted(next).is_some());
}

#[test]
fn explain_speaks_of_the_80_and_of_no_endless_number() {
    let mut world = node();
    add(&mut world, 1);
    let told = |world: &World| -> String {
        let all = crate::explain::explain(&world.pool, world.now);
        all.into_iter().map(|sentence| sentence.text + "\n").collect()
    };
    let text = told(&world);
    assert!(
        text.contains(&prefix(&world).to_string()) && text.contains("1 with pods"),
        "{text}"
    );
    assert!(!text.contains(&u32::MAX.to_string()), "{text}");
    let world = node_refused("Delegate", FailureClass::Denied);
    let text = told(&world);
    assert!(
        text.contains("it is missing") && text.contains("There is no more because"),
        "{text}"
    );
}

#[test]
fn ipamd_114_leaks_of_others_are_not_looked_for() {
    let mut world = node();
    world.advance(Duration::from_secs(36_000));
    assert_eq!(world.calls("Describe left"), 0);
}

#[derive(Debug, Clone)]
enum Action {
    Add(u32, u64),
    Del(u32),
    GiveUp(usize),
    Flush,
    FailFlush,
    Deliver(usize),
    Fault(Fault),
    Advance(u64),
    Crash(bool),
    Reboot,
    Imds,
    Kernel,
    Gc(Vec<u32>),
    Full(bool),
}

fn actions() -> impl Strategy<Value = Action> {
    // A list that omits what has been there for long is no lag: it has a test of its own.
    let faults = prop_oneof![
        Just(Fault::LostBefore),
        Just(Fault::LostAfter),
        Just(Fault::Old),
        prop::sample::select(super::budget::CLASSES.to_vec()).prop_map(Fault::Refuse),
    ];
    prop_oneof![
        10 => (0..14_u32, 100..40_000_u64).prop_map(|(n, patience)| Action::Add(n, patience)),
        6 => (0..14_u32).prop_map(Action::Del),
        2 => (0..1000_usize).prop_map(Action::GiveUp),
        12 => Just(Action::Flush),
        1 => Just(Action::FailFlush),
        12 => (0..4_usize).prop_map(Action::Deliver),
        2 => faults.prop_map(Action::Fault),
        6 => (0..100_000_u64).prop_map(Action::Advance),
        3 => any::<bool>().prop_map(Action::Crash),
        1 => Just(Action::Reboot),
        2 => Just(Action::Imds),
        3 => Just(Action::Kernel),
        1 => prop::collection::vec(0..14_u32, 0..14).prop_map(Action::Gc),
        1 => any::<bool>().prop_map(Action::Full),
    ]
}

fn act(world: &mut World, action: Action, boots: &mut u32) {
    match action {
        Action::Add(n, patience) => drop(world.add(n, Duration::from_millis(patience))),
        Action::Del(n) => drop(world.del(n)),
        Action::GiveUp(nth) => {
            let waiters: Vec<_> = world.clients.keys().copied().collect();
            if !waiters.is_empty() {
                world.give_up(waiters[nth % waiters.len()]);
            }
        }
        Action::Flush => drop(world.flush()),
        Action::FailFlush => world.fail_flush(),
        Action::Deliver(nth) => drop(world.deliver(nth)),
        Action::Fault(fault) => world.faults.push_back(fault),
        Action::Advance(span) => world.advance(Duration::from_millis(span)),
        Action::Crash(calls_happen) => world.crash(None, calls_happen),
        Action::Reboot => {
            *boots += 1;
            let boot = format!("boot-{boots}");
            world.crash(Some(&boot), true);
        }
        Action::Imds => {
            let event = overheard(world);
            world.event(event);
        }
        Action::Kernel => world.kernel(),
        Action::Gc(valid) => drop(world.gc(&valid)),
        Action::Full(is_full) => world.delegates = !is_full,
    }
}

/// The cloud is healthy again: everybody is answered, there is one /80, and nothing is left of what is gone.
fn converges(world: &mut World) {
    world.faults.clear();
    world.delegates = true;
    world.eager = true;
    world.settle();
    world.kernel();
    world.advance(Duration::from_secs(3_600));
    for (waiter, client) in &world.clients {
        assert!(
            client.gone || client.last.is_some(),
            "{waiter} was forgotten: {client:?}"
        );
    }
    assert_eq!(world.pool.records(), world.store);
    let held = held(world);
    assert_eq!(held.len(), held.iter().collect::<BTreeSet<_>>().len());
    let prefix = prefix(world);
    for n in 0..14 {
        world.del(n);
    }
    world.kernel();
    world.advance(Duration::from_secs(3_600));
    world.kernel();
    assert!(world.pool.addresses().is_empty(), "{:?}", world.pool.addresses());
    let enis: Vec<&CloudEni> = world.enis.values().collect();
    assert_eq!(enis.len(), 1);
    assert_eq!(world.pool.enis().keys().collect::<Vec<&EniId>>(), [&enis[0].id]);
    world.log.clear();
    world.advance(Duration::from_secs(36_000));
    assert!(
        world.log.len() <= 44,
        "idle, it looks for drift and no more: {:?}",
        world.log
    );
    assert!(prefix.contains(add(world, 99)));
    let report = &world.pool.memory.report;
    let waits = |hindrance: &Hindrance| matches!(hindrance, Hindrance::Failed { .. });
    assert!(!report.hindrances.iter().any(waits), "{report:?}");
}

proptest! {
    #![proptest_config(ProptestConfig { max_shrink_iters: 2000, failure_persistence: None, ..ProptestConfig::default() })]

    /// After every event the judge and the oracles of one address, one sandbox and of written before told are asked, and
    /// EC2 never sees a second /80 asked for.
    #[test]
    fn whatever_happens_one_80_serves_and_no_address_has_two_sandboxes(
        script in prop::collection::vec(actions(), 1..120),
        eager in any::<bool>(),
    ) {
        let mut world = World::new(3, 10, policy());
        world.eager = eager;
        let mut boots = 0;
        for action in script {
            act(&mut world, action, &mut boots);
        }
        converges(&mut world);
    }
}
