//! Cases of the reference about prefix mode and about switching it on and off, each by its number.

use std::collections::BTreeSet;
use std::net::Ipv4Addr;
use std::time::Duration;

use super::growth::{PATIENCE, policy, started};
use super::world::{World, key, v4};
use crate::cidr::Ipv4Cidr;
use crate::event::Event;
use crate::limits::lookup;
use crate::policy::{Policy, WarmTarget};

fn in_prefixes(warm: WarmTarget) -> Policy {
    Policy {
        warm,
        prefixes: Some(WarmTarget::Prefixes(1)),
        ..Policy::default()
    }
}

fn carried(world: &World) -> BTreeSet<Ipv4Cidr> {
    let enis = world.pool.enis().values();
    enis.flat_map(|eni| eni.cidrs.keys().copied()).collect()
}

fn is_single(world: &World, address: Ipv4Addr) -> bool {
    carried(world).contains(&Ipv4Cidr::host(address))
}

#[test]
fn ipamd_9_prefixes_come_with_nitro_and_bare_metal_only() {
    for (name, expected) in [("a1.metal", true), ("m5.large", true), ("m4.4xlarge", false)] {
        let limits = lookup(&name.into()).unwrap();
        assert_eq!(limits.prefixes, expected, "{name}");
    }
}

#[test]
fn ipamd_53_a_target_of_enis_means_nothing_in_prefix_mode() {
    for warm in [0, 1, 5] {
        let mut world = started(3, 10, in_prefixes(WarmTarget::Enis(warm)));
        for n in 0..20 {
            world.add(n, PATIENCE);
        }
        assert_eq!(
            (carried(&world).len(), world.enis.len()),
            (3, 1),
            "WARM_ENI_TARGET={warm}"
        );
    }
}

/// Pods keep their single addresses; whoever comes gets one of a prefix. (What is left over is given back elsewhere.)
#[test]
fn ipamd_97_prefix_mode_switched_on_leaves_running_pods_their_addresses() {
    let mut world = started(3, 10, policy(0));
    let pods: Vec<_> = (0..4).map(|n| world.add(n, PATIENCE)).collect();
    let before: Vec<_> = pods
        .iter()
        .map(|waiter| world.granted(*waiter).unwrap())
        .collect();
    world.policy = in_prefixes(WarmTarget::Enis(0));
    world.crash(None, false);
    world.settle();
    world.kernel();
    world.advance(Duration::from_secs(120));
    let late = world.add(10, PATIENCE);
    let address = world.granted(late).unwrap();
    assert!(!is_single(&world, address), "{address} of {:?}", carried(&world));
    for (n, address) in (0..).zip(before) {
        assert_eq!(world.pool.allocations()[&key(n)].address, address);
        assert!(is_single(&world, address));
    }
}

/// The prefix stays as long as its pods; whoever comes gets a single address.
#[test]
fn ipamd_98_prefix_mode_switched_off_leaves_running_pods_their_addresses() {
    let mut world = started(3, 10, in_prefixes(WarmTarget::Enis(0)));
    let pod = world.add(0, PATIENCE);
    let address = world.granted(pod).unwrap();
    assert!(!is_single(&world, address));
    world.policy = policy(0);
    world.crash(None, false);
    world.settle();
    world.kernel();
    world.advance(Duration::from_secs(120));
    assert_eq!(world.pool.allocations()[&key(0)].address, address);
    let late: Vec<_> = (1..12).map(|n| world.add(n, PATIENCE)).collect();
    let given: BTreeSet<_> = late.iter().filter_map(|waiter| world.granted(*waiter)).collect();
    assert_eq!(given.len(), 11, "nobody fails");
    assert!(!given.contains(&address));
}

/// Fault 11.1.3 with a prefix: three pods of it were doubled.
#[test]
fn ipamd_87_fault_3_a_prefix_that_imds_lacks_at_a_restart_keeps_its_pods() {
    let mut world = started(2, 4, in_prefixes(WarmTarget::Enis(0)));
    let pods: Vec<_> = (0..5).map(|n| world.add(n, PATIENCE)).collect();
    let held: BTreeSet<_> = pods
        .iter()
        .map(|waiter| world.granted(*waiter).unwrap())
        .collect();
    world.crash(None, false);
    let mut snapshot = world.imds_snapshot();
    for eni in &mut snapshot.enis {
        eni.prefixes.clear();
    }
    world.event(Event::Imds(snapshot.clone()));
    world.settle();
    world.advance(Duration::from_secs(120));
    world.event(Event::Imds(snapshot));
    let drift = world.pool.status(world.now).drift;
    let prefixes = carried(&world).iter().filter(|cidr| !cidr.is_host()).count() as u64;
    assert_eq!(drift.get("imds-omits-prefix"), Some(&prefixes), "{drift:?}");
    assert_eq!(drift.get("imds-omits-address"), None, "{drift:?}");
    for n in 0..5 {
        assert!(held.contains(&v4(world.pool.allocations()[&key(n)].address)));
    }
    let more: Vec<_> = (5..30).map(|n| world.add(n, PATIENCE)).collect();
    let others: BTreeSet<_> = more.iter().filter_map(|waiter| world.granted(*waiter)).collect();
    assert_eq!(others.len(), 25);
    assert!(others.is_disjoint(&held));
}

/// EC2 omits a prefix in which a pod lives: all of it is quarantined, and none of it is given up.
#[test]
fn a_prefix_that_ec2_omits_is_quarantined_as_a_whole_while_a_pod_lives_in_it() {
    let mut world = started(2, 4, in_prefixes(WarmTarget::Enis(0)));
    let pod = world.add(0, PATIENCE);
    let held = world.granted(pod).unwrap();
    let prefix = Ipv4Cidr::prefix_around(held);
    for eni in world.enis.values_mut() {
        eni.prefixes.retain(|known| *known != prefix);
    }
    world.advance(Duration::from_secs(7200));
    assert!(carried(&world).contains(&prefix), "its place is not filled");
    for address in prefix.addresses() {
        assert!(world.pool.known(address).unwrap().doubt.is_some(), "{address}");
    }
    let late = world.add(1, PATIENCE);
    let other = world.granted(late).unwrap();
    assert!(!prefix.contains(other), "{other}");
    // The pod goes: EC2, kernel and store agree now.
    world.del(0);
    world.kernel();
    world.advance(Duration::from_secs(7200));
    assert!(!carried(&world).contains(&prefix));
}
