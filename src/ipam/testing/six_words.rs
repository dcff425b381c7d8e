//! IPv6 where witnesses disagree, and where the store is older than the node: what the simulator has found.

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::time::Duration;

use super::six::{add, beside_its_subnet, node, policy, prefix};
use super::world::{Fault, Work, World, key};
use crate::cidr6::Ipv6Cidr;
use crate::model::EniState;
use crate::six::behind_copy;

fn look(world: &mut World) {
    world.pool.memory.look_by(world.now);
    world.advance(Duration::from_millis(1));
}

/// The store has lost a sandbox. A list of EC2 that is late must not keep it from the address its link is wired for.
#[test]
fn a_sandbox_that_is_wired_gets_its_address_back_after_ec2_has_omitted_the_80_for_a_moment() {
    let mut world = node();
    let wired = prefix(&world).at(9).unwrap();
    world.routes.insert(wired.into(), key(77));
    world.kernel();
    world.advance(Duration::from_mins(2));
    world.faults.push_back(Fault::Omit);
    look(&mut world);
    look(&mut world);
    assert_eq!(add(&mut world, 77), wired);
}

#[test]
fn a_doubt_about_an_80_ends_for_its_sandboxes_when_ec2_lists_it_again() {
    let mut world = node();
    let held = add(&mut world, 1);
    world.advance(Duration::from_mins(2));
    world.faults.push_back(Fault::Omit);
    look(&mut world);
    assert!(world.pool.known(held).unwrap().doubt.is_some());
    look(&mut world);
    assert_eq!(world.pool.known(held).unwrap().doubt, None);
}

#[test]
fn an_80_that_others_have_put_in_the_place_of_ours_is_used_and_none_is_asked_for() {
    let mut world = node();
    let held = add(&mut world, 1);
    world.advance(Duration::from_mins(2));
    let other: Ipv6Cidr = "2001:db8:0:1:ffff::/80".parse().unwrap();
    let primary = world.facts.primary_eni.clone();
    world.enis.get_mut(&primary).unwrap().prefixes6 = vec![other];
    look(&mut world);
    world.advance(Duration::from_mins(10));
    assert!(other.contains(add(&mut world, 2)));
    assert_eq!(world.pool.allocations()[&key(1)].address, IpAddr::V6(held));
    assert_eq!(world.calls("Delegate"), 1, "{:?}", world.log);
}

/// The last-good copy is some seconds old when the database and its journal are lost.
#[test]
fn what_was_told_since_a_copy_was_made_is_not_given_again_by_a_start_with_it() {
    let mut world = node();
    for n in 0..10 {
        add(&mut world, n);
    }
    let copy = world.store.clone();
    let mut told = BTreeSet::new();
    for n in 100..700 {
        assert!(told.insert(add(&mut world, n)));
        world.del(n);
    }
    let behind = behind_copy(&copy);
    assert_eq!(behind.len(), 1, "the ENI with the /80");
    world.store = copy;
    world.store.extend(behind);
    world.crash(None, false);
    world.settle();
    for n in 1_000..1_700 {
        let address = add(&mut world, n);
        assert!(!told.contains(&address), "{address} was told before");
    }
}

/// Its pods are deleted, and their plugins are slow: what the kernel routes is in use, on an ENI that is gone, too.
#[test]
fn an_eni_that_others_detached_is_not_deleted_while_the_kernel_routes_addresses_of_its_80() {
    let mut world = beside_its_subnet(2);
    world.settle();
    let address = IpAddr::V6(add(&mut world, 1));
    world.routes.insert(address, key(1));
    let id = world.pool.known(address).unwrap().eni.clone();
    assert_ne!(id, world.facts.primary_eni);
    world.advance(Duration::from_mins(2));
    world.detach_from_outside(&id);
    // Another one takes its place.
    world.advance(Duration::from_mins(2));
    world.eager = false;
    world.del(1);
    world.routes.insert(address, key(1));
    world.eager = true;
    world.settle();
    world.advance(Duration::from_mins(10));
    assert_eq!(world.calls("Delete"), 0, "{:?}", world.log);
    world.routes.remove(&address);
    world.kernel();
    world.advance(Duration::from_mins(10));
    assert_eq!(world.calls("Delete"), 1, "{:?}", world.log);
}

/// It would cost the subnet a second /80 for as long as the node lives.
#[test]
fn an_eni_that_a_killed_daemon_has_just_attached_is_not_made_again_because_a_list_is_late() {
    let mut world = beside_its_subnet(4);
    world.eager = false;
    let is_attached = |world: &World| {
        let mut stored = world.pool.enis().values();
        stored.any(|eni| eni.state == EniState::Attached)
    };
    while !is_attached(&world) {
        assert!(world.step_once());
    }
    world.flush();
    world.faults.extend([Fault::Old; 8]);
    // Its link is late, too.
    world.work.retain(|work| !matches!(work, Work::Link(_)));
    world.crash(None, false);
    for _ in 0..40 {
        world.step_once();
    }
    assert_eq!(world.calls("Create"), 1, "{:?}", world.log);
}

#[test]
fn a_deadline_tells_of_an_80_and_of_no_endless_number() {
    let mut world = World::new(3, 10, policy());
    world.eager = false;
    while world.calls("Delegate") == 0 {
        assert!(world.step_once());
    }
    let waiter = world.add(1, Duration::from_secs(1));
    world.advance(Duration::from_secs(2));
    let message = &world.refused(waiter).expect("in time").message;
    assert!(message.contains("a /80 is on its way"), "{message}");
}
