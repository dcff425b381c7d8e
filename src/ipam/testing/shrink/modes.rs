//! Prefixes and single addresses: what the mode no longer asks for goes.

use super::*;

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
