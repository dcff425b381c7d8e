//! A pool that begins with what was taken over from the Go daemon.

use std::collections::BTreeMap;
use std::net::Ipv4Addr;
use std::time::Duration;

use super::growth::{PATIENCE, policy};
use super::world::{World, facts, key, v4, veth};
use crate::checkpoint::Entry;
use crate::effect::Change;
use crate::ids::{CardIndex, DeviceIndex};
use crate::import::{Clocks, Judged, Witnesses, changes, judge};
use crate::witness::{Doubt, ImdsEni};

const COOLDOWN: Duration = Duration::from_secs(30);

fn entry(n: u32, address: Ipv4Addr) -> Entry {
    Entry {
        key: key(n),
        namespace: "ns".to_owned(),
        name: n.to_string(),
        ipv4: Some(address),
        ipv6: None,
        given_ns: 0,
        interfaces: 1,
    }
}

/// A node whose IMDS lists the primary ENI without its secondary addresses, and whose kernel routes these addresses to
/// these sandboxes.
fn taken_over(entries: Vec<Entry>, routes: &[(Ipv4Addr, u32)]) -> (World, Vec<Judged>) {
    let mut world = World::new(1, 4, policy(1));
    world.eager = true;
    let seen = Witnesses {
        facts: facts(),
        enis: vec![ImdsEni {
            id: facts().primary_eni,
            mac: facts().primary_mac,
            device: DeviceIndex(0),
            card: CardIndex(0),
            subnet: facts().subnet,
            subnet_cidr: None,
            addresses: vec![facts().primary_address],
            prefixes: Vec::new(),
            prefixes6: Vec::new(),
        }],
        routes: routes
            .iter()
            .map(|(address, n)| ((*address).into(), veth(&key(*n))))
            .collect(),
        links: routes.iter().map(|(_, n)| veth(&key(*n))).collect(),
        tables: BTreeMap::new(),
        link_hash: |_, name, _| veth(&key(name.parse().unwrap())),
    };
    let clocks = Clocks {
        boot: world.now,
        unix_ns: 1,
    };
    let judged = judge(&[(CardIndex(0), entries)], &seen, clocks);
    world.store.clear();
    for change in changes(&judged, &seen, world.now, COOLDOWN) {
        if let Change::Put { key, value } = change {
            world.store.insert(key, value);
        }
    }
    for (address, n) in routes {
        world.routes.insert((*address).into(), key(*n));
        world.live.insert(key(*n), (*address).into());
    }
    world.crash(None, false);
    world.settle();
    (world, judged)
}

/// The addresses that EC2 has on the node's one ENI.
fn owned() -> Vec<Ipv4Addr> {
    let mut world = World::new(1, 4, policy(1));
    world.eager = true;
    world.settle();
    let all: Vec<Ipv4Addr> = world
        .pool
        .usable_addresses(world.now)
        .into_iter()
        .map(v4)
        .collect();
    assert_eq!(all.len(), 3);
    all
}

#[test]
fn ec2_says_which_eni_an_adopted_sandbox_has_its_address_on() {
    let all = owned();
    let (mut world, judged) = taken_over(vec![entry(1, all[0])], &[(all[0], 1)]);
    assert!(judged[0].is_adopted());
    let held = &world.pool.allocations()[&key(1)];
    assert_eq!((v4(held.address), &held.eni), (all[0], &facts().primary_eni));
    assert_eq!(world.pool.known(all[0]).unwrap().doubt, None, "EC2 has named it");
    for n in 2..4 {
        let waiter = world.add(n, PATIENCE);
        assert!(world.granted(waiter).is_some_and(|address| address != all[0]));
    }
    world.del(1);
    let waiter = world.add(4, Duration::from_mins(2));
    world.advance(COOLDOWN + Duration::from_secs(30));
    assert_eq!(world.granted(waiter), Some(all[0]), "after its rest");
}

#[test]
fn a_quarantine_of_the_take_over_ends_when_the_kernel_shows_nothing_of_it_any_more() {
    let all = owned();
    // The checkpoint says sandbox 1, the kernel says 2.
    let (mut world, judged) = taken_over(vec![entry(1, all[0])], &[(all[0], 2)]);
    assert!(!judged[0].is_adopted());
    let doubt = world.pool.known(all[0]).unwrap().doubt.clone();
    assert!(matches!(doubt, Some(Doubt::Imported { .. })), "{doubt:?}");
    world.advance(Duration::from_mins(10));
    let doubt = world.pool.known(all[0]).unwrap().doubt.clone();
    assert!(
        matches!(doubt, Some(Doubt::Imported { .. })),
        "it stays: {doubt:?}"
    );
    world.routes.clear();
    world.live.clear();
    world.advance(Duration::from_mins(5));
    assert_eq!(world.pool.known(all[0]).unwrap().doubt, None);
    let waiters: Vec<_> = (3..6).map(|n| world.add(n, PATIENCE)).collect();
    assert!(waiters.iter().all(|waiter| world.granted(*waiter).is_some()));
}

#[test]
fn an_imported_pod_does_not_outlive_a_boot() {
    let all = owned();
    let (mut world, _) = taken_over(
        vec![entry(1, all[0]), entry(3, all[1])],
        &[(all[0], 1), (all[1], 2)],
    );
    world.crash(Some("another-boot"), false);
    world.settle();
    assert!(world.pool.allocations().is_empty());
    world.advance(Duration::from_mins(5));
    assert_eq!(world.pool.usable_addresses(world.now).len(), 3);
}
