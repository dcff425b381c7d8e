//! Witnesses that contradict each other over a /80 or an address of it: counted and told as they are for IPv4.

use std::net::Ipv6Addr;
use std::time::Duration;

use super::drift::{counted, told};
use super::six::{add, node, prefix};
use super::world::{Fault, World, key};
use crate::event::Event;

fn open(world: &World) -> usize {
    let drift = &world.pool.dump(world.now)["drift"]["now"];
    drift.as_array().unwrap().len()
}

/// A node with a pod that has been there for longer than any reading may lag.
fn with_pod() -> (World, Ipv6Addr) {
    let mut world = node();
    let address = add(&mut world, 1);
    world.advance(Duration::from_secs(90));
    world.alarms.clear();
    (world, address)
}

#[test]
fn a_route_that_the_kernel_lacks_is_counted_and_told_once_with_every_word() {
    let (mut world, address) = with_pod();
    assert_eq!(open(&world), 0);
    world.routes.remove(&address.into());
    for _ in 0..3 {
        world.kernel();
    }
    assert_eq!(counted(&world, "kernel-omits-route"), 1);
    let lines = told(&world, "drift");
    assert_eq!(lines.len(), 1, "{lines:?}");
    for word in [
        &address.to_string(),
        "on eni-primary: kernel-omits-route",
        "EC2 lists it",
        "kernel: unrouted (0 s ago)",
        "store: held",
    ] {
        assert!(lines[0].contains(word), "{word:?} is not in {:?}", lines[0]);
    }
    world.routes.insert(address.into(), key(1));
    world.kernel();
    assert_eq!(open(&world), 0);
    world.routes.remove(&address.into());
    world.kernel();
    assert_eq!(counted(&world, "kernel-omits-route"), 2);
    // With the pod goes the contradiction.
    world.del(1);
    world.advance(Duration::from_secs(120));
    world.kernel();
    assert!(!world.pool.knows(address));
    assert_eq!(open(&world), 0);
}

#[test]
fn a_route_that_nobody_has_stored_is_counted_once_and_told_by_its_quarantine() {
    let (mut world, _) = with_pod();
    let stranger = prefix(&world).at(500).unwrap();
    world.routes.insert(stranger.into(), key(78));
    for _ in 0..3 {
        world.kernel();
    }
    assert_eq!(counted(&world, "kernel-extra-route"), 1);
    assert_eq!(told(&world, "drift"), [""; 0]);
    let lines = told(&world, "quarantined");
    assert_eq!(lines.len(), 1, "{lines:?}");
    assert!(lines[0].contains("kernel: routed"), "{lines:?}");
    world.routes.remove(&stranger.into());
    world.kernel();
    world.advance(Duration::from_secs(120));
    assert_eq!(open(&world), 0);
}

#[test]
fn a_route_outside_the_80_is_counted_and_told_as_drift() {
    let (mut world, _) = with_pod();
    let stray: Ipv6Addr = "2001:db8:ffff::7".parse().unwrap();
    world.routes.insert(stray.into(), key(79));
    for _ in 0..3 {
        world.kernel();
    }
    assert_eq!(counted(&world, "kernel-extra-route"), 1);
    let lines = told(&world, "drift");
    assert_eq!(lines.len(), 1, "{lines:?}");
    assert!(lines[0].starts_with("2001:db8:ffff::7 "), "{lines:?}");
    assert!(!world.pool.knows(stray));
    world.routes.remove(&stray.into());
    world.kernel();
    assert_eq!(open(&world), 0);
}

#[test]
fn an_80_that_ec2_or_imds_omits_is_counted_as_a_whole_and_not_for_each_address() {
    let (mut world, _) = with_pod();
    for n in 2..5 {
        add(&mut world, n);
    }
    world.advance(Duration::from_secs(90));
    world.alarms.clear();
    for _ in 0..3 {
        let mut snapshot = world.imds_snapshot();
        snapshot.enis[0].prefixes6.clear();
        world.event(Event::Imds(snapshot));
        world.settle();
    }
    assert_eq!(counted(&world, "imds-omits-prefix"), 1);
    let lines = told(&world, "drift");
    assert_eq!(lines.len(), 1, "{lines:?}");
    let whole = prefix(&world).to_string();
    for word in [&whole, "EC2 lists it", "IMDS omits it (0 s ago)"] {
        assert!(lines[0].contains(word), "{word:?} is not in {:?}", lines[0]);
    }
    world.faults.extend([Fault::Omit]);
    world.pool.memory.look_by(world.now);
    world.advance(Duration::from_millis(1));
    assert_eq!(counted(&world, "ec2-omits-address"), 1);
    let snapshot = world.imds_snapshot();
    world.event(Event::Imds(snapshot));
    world.advance(Duration::from_mins(2));
    let snapshot = world.imds_snapshot();
    world.event(Event::Imds(snapshot));
    assert_eq!(open(&world), 0, "{:#}", world.pool.dump(world.now)["drift"]);
}
