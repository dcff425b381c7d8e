//! Witnesses that disagree, over time: what is told, what is counted, and that no live pod pays for it.

use std::time::Duration;

use super::growth::{PATIENCE, policy, sizes, started};
use super::world::{World, key, v4};
use crate::event::Event;
use crate::witness::ImdsSnapshot;

pub(super) fn told(world: &World, kind: &str) -> Vec<String> {
    let alarms = world.alarms.iter().filter(|alarm| alarm.kind == kind);
    alarms.map(|alarm| alarm.message.clone()).collect()
}

pub(super) fn counted(world: &World, kind: &str) -> u64 {
    world.pool.status(world.now).drift.get(kind).copied().unwrap_or(0)
}

#[test]
fn what_imds_omits_for_longer_than_it_lags_is_told_once_with_both_words_and_costs_nothing() {
    let mut world = started(3, 4, policy(1));
    for n in 0..5 {
        world.add(n, PATIENCE);
    }
    world.advance(Duration::from_secs(90));
    let before = world.pool.records();
    world.log.clear();
    for _ in 0..3 {
        let mut snapshot = world.imds_snapshot();
        let lost = snapshot.enis.remove(0);
        assert_ne!(lost.id, world.facts.primary_eni);
        let primary = snapshot.enis.last_mut().unwrap();
        assert_eq!(primary.id, world.facts.primary_eni);
        primary.addresses.pop();
        world.event(Event::Imds(snapshot));
        world.settle();
    }
    assert_eq!(world.pool.records(), before);
    assert!(world.log.is_empty(), "EC2 need not be asked: {:?}", world.log);
    assert_eq!(counted(&world, "imds-omits-eni"), 1);
    assert_eq!(counted(&world, "imds-omits-address"), 1);
    let told = told(&world, "drift");
    assert_eq!(told.len(), 2, "{told:?}");
    assert!(
        told.iter()
            .all(|line| line.contains("EC2") && line.contains("IMDS omits it (0 s ago)")),
        "{told:?}"
    );
    let snapshot = world.imds_snapshot();
    world.event(Event::Imds(snapshot));
    let now = &world.pool.dump(world.now)["drift"]["now"];
    assert_eq!(now.as_array().unwrap().len(), 0, "{now:#}");
}

#[test]
fn a_sweep_without_the_primary_eni_omits_nothing() {
    let mut world = started(3, 4, policy(1));
    world.add(1, PATIENCE);
    world.advance(Duration::from_secs(90));
    world.event(Event::Imds(ImdsSnapshot::default()));
    assert!(world.pool.status(world.now).drift.is_empty());
    assert_eq!(world.alarms, []);
}

#[test]
fn what_only_imds_lists_is_asked_about_once_and_then_told() {
    let mut world = started(1, 4, policy(0));
    world.advance(Duration::from_secs(90));
    world.log.clear();
    let stale = "10.0.77.77".parse().unwrap();
    for _ in 0..3 {
        let mut snapshot = world.imds_snapshot();
        snapshot.enis[0].addresses.push(stale);
        world.event(Event::Imds(snapshot));
        world.settle();
    }
    assert_eq!(world.log, ["Describe Attached"]);
    assert!(!world.pool.knows(stale));
    assert_eq!(counted(&world, "imds-extra-address"), 1);
}

/// EC2 omits the address of a pod that was added after the kernel had last been read: its place in the kernel's map must
/// not be taken away on that old reading.
#[test]
fn a_pod_younger_than_the_kernels_last_word_keeps_its_way_back_whatever_ec2_omits() {
    let mut world = started(2, 4, policy(0));
    for n in 0..5 {
        world.add(n, PATIENCE);
    }
    let young = world.pool.allocations()[&key(4)].clone();
    assert_ne!(young.eni, world.facts.primary_eni);
    world.pool.memory.pod_routes.clear();
    world.pool.memory.heard.kernel = Some(young.since);
    let eni = world.enis.get_mut(&young.eni).unwrap();
    eni.secondary.retain(|address| *address != young.address);
    world.advance(Duration::from_secs(7200));
    let (_, placed) = world.pool.placed(young.address).expect("its place is not filled");
    assert!(placed.published);
    assert_eq!(world.pool.allocations()[&key(4)].address, young.address);
    assert!(!told(&world, "quarantined").is_empty());
}

#[test]
fn an_address_that_moves_between_our_enis_is_taken_along_when_nobody_has_it_and_left_when_somebody_has() {
    let mut world = started(2, 4, policy(0));
    for n in 0..4 {
        world.add(n, PATIENCE);
    }
    assert_eq!(sizes(&world), [3, 3]);
    let held = world.pool.allocations()[&key(3)].clone();
    let (other, primary) = (held.eni.clone(), world.facts.primary_eni.clone());
    let free = world.enis[&other]
        .secondary
        .iter()
        .copied()
        .find(|address| *address != held.address);
    let free = free.unwrap();
    let moved = [v4(held.address), free];
    world
        .enis
        .get_mut(&other)
        .unwrap()
        .secondary
        .retain(|address| !moved.contains(address));
    world.enis.get_mut(&primary).unwrap().secondary.extend(moved);
    world.advance(Duration::from_secs(3700));
    assert_eq!(world.pool.known(free).unwrap().eni, primary);
    assert_eq!(world.pool.known(free).unwrap().doubt, None);
    assert_eq!(world.pool.allocations()[&key(3)].address, held.address);
    assert!(world.pool.addresses()[&held.address].doubt.is_some());
    assert!(counted(&world, "ec2-moved-address") >= 1);
}
