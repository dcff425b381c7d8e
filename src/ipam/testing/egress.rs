//! Addresses for the other family: each sandbox has one of its own, as long as it has its pod address.

use std::collections::BTreeSet;
use std::time::Duration;

use super::growth::{policy, run, started};
use super::world::{World, key};
use crate::egress::EgressSlot;
use crate::policy::Policy;

fn with_egress() -> Policy {
    Policy {
        egress: true,
        ..policy(1)
    }
}

fn slot(world: &World, n: u32) -> Option<u16> {
    world.pool.allocations()[&key(n)].egress.map(u16::from)
}

#[test]
fn each_sandbox_has_its_own_and_the_one_given_back_last_comes_last() {
    let mut world = started(3, 10, with_egress());
    run(&mut world, 0..3);
    assert_eq!([0, 1, 2].map(|n| slot(&world, n)), [Some(2), Some(3), Some(4)]);
    world.del(1);
    run(&mut world, 3..5);
    assert_eq!([3, 4].map(|n| slot(&world, n)), [Some(5), Some(6)]);
}

#[test]
fn nobody_has_one_where_egress_is_off_and_those_without_stay_without() {
    let mut world = started(3, 10, policy(1));
    run(&mut world, 0..2);
    world.policy.egress = true;
    world.crash(None, true);
    run(&mut world, 2..3);
    assert_eq!([0, 1, 2].map(|n| slot(&world, n)), [None, None, Some(2)]);
}

#[test]
fn a_restart_keeps_them_and_goes_on_behind_them() {
    let mut world = started(3, 10, with_egress());
    run(&mut world, 0..3);
    world.del(0);
    world.crash(None, true);
    run(&mut world, 3..4);
    assert_eq!([1, 2, 3].map(|n| slot(&world, n)), [Some(3), Some(4), Some(5)]);
}

#[test]
fn a_round_of_all_of_them_skips_those_that_live_and_begins_again() {
    let mut world = started(3, 10, with_egress());
    world.pool.memory.last_egress = EgressSlot::new(1021);
    run(&mut world, 0..2);
    world.pool.memory.last_egress = EgressSlot::new(1021);
    run(&mut world, 2..4);
    let slots: BTreeSet<_> = (0..4).map(|n| slot(&world, n)).collect();
    assert_eq!(slots, BTreeSet::from([2, 3, 4, 1022].map(Some)));
}

/// Two records that claim one address are a contradiction that must not cost a pod its own address.
#[test]
fn a_doubled_claim_is_dropped_loudly_at_the_start() {
    let mut world = started(3, 10, with_egress());
    run(&mut world, 0..2);
    let text = |bytes: &[u8]| String::from_utf8(bytes.to_vec()).unwrap();
    for value in world.store.values_mut() {
        *value = text(value).replace("\"egress\":3", "\"egress\":2").into_bytes();
    }
    world.crash(None, true);
    world.advance(Duration::from_secs(1));
    assert_eq!([0, 1].map(|n| slot(&world, n)), [Some(2), None]);
}
