//! Cordoned nodes: what is there stays, nothing is added to it, and no pod is refused for it.

use std::time::Duration;

use super::growth::{policy, run, sizes, started};
use super::targets::{ips, prefixes};
use super::world::World;
use crate::effect::Reply;
use crate::event::Event;
use crate::explain::explain;
use crate::ids::WaiterId;
use crate::model::{Eni, EniState};
use crate::policy::{Policy, WarmTarget};

impl World {
    pub(super) fn cordon(&mut self, cordoned: bool) {
        let waiter = WaiterId(1_000_000 + u64::from(self.next));
        self.next += 1;
        self.clients.insert(waiter, super::world::Client::default());
        self.clients.entry(waiter).or_default().released = Some(vec![]);
        self.event(Event::Cordon { waiter, cordoned });
        if self.eager {
            self.settle();
            assert_eq!(self.clients[&waiter].last, Some(Reply::Settled));
        }
    }
}

fn changes(world: &World) -> usize {
    world
        .log
        .iter()
        .filter(|line| !line.starts_with("Describe"))
        .count()
}

/// Longer than anything needs to be given back.
const LONG: Duration = Duration::from_secs(900);

/// Reference ipamd 3.5 and 3.8: upstream neither grows nor shrinks there; ours serves whoever comes all the same (Q39).
#[test]
fn ipamd_q39_a_cordoned_node_neither_grows_nor_shrinks_and_refuses_no_pod() {
    let mut world = started(3, 10, policy(1));
    run(&mut world, 0..4);
    assert_eq!(sizes(&world), [9, 9]);
    world.cordon(true);
    let before = changes(&world);
    run(&mut world, 4..18);
    world.advance(LONG);
    assert_eq!(changes(&world), before, "{:?}", world.log);
    // No address is left: the next two pods get one each, and no more.
    run(&mut world, 18..20);
    assert_eq!(sizes(&world), [2, 9, 9], "{:?}", world.log);
    let before = changes(&world);
    for n in 0..20 {
        world.del(n);
    }
    world.advance(LONG);
    assert_eq!(changes(&world), before, "{:?}", world.log);
    world.cordon(false);
    world.advance(LONG);
    assert_eq!(sizes(&world), [9], "it is managed again");
}

#[test]
fn a_cordoned_node_that_starts_empty_serves_its_first_pod() {
    for policy in [
        policy(1),
        ips(5, 10),
        prefixes(WarmTarget::Prefixes(1)),
        prefixes(WarmTarget::Ips { warm: 1, minimum: 5 }),
    ] {
        let mut world = World::new(3, 10, policy.clone());
        world.cordon(true);
        world.advance(LONG);
        assert_eq!(changes(&world), 0, "{policy:?}: {:?}", world.log);
        run(&mut world, 0..1);
        let prefix = policy.prefixes.is_some();
        let primary = world.facts.primary_eni.clone();
        let carried = &world.enis[&primary];
        let expected = if prefix { (0, 1) } else { (1, 0) };
        assert_eq!(
            (carried.secondary.len(), carried.prefixes.len()),
            expected,
            "{policy:?}"
        );
    }
}

#[test]
fn a_cordon_survives_restarts_and_reboots() {
    let mut world = started(3, 10, policy(1));
    world.cordon(true);
    world.crash(None, false);
    world.settle();
    assert!(world.pool.is_cordoned());
    world.crash(Some("b0075b01-0000"), false);
    world.settle();
    assert!(world.pool.is_cordoned());
    assert!(world.pool.status(world.now).cordoned);
    let before = changes(&world);
    run(&mut world, 0..9);
    assert_eq!(changes(&world), before);
    world.cordon(false);
    world.crash(None, false);
    world.settle();
    assert!(!world.pool.is_cordoned());
    assert_eq!(sizes(&world), [9, 9]);
}

#[test]
fn the_switch_manages_cordoned_nodes_like_others() {
    let mut world = started(
        3,
        10,
        Policy {
            manage_when_cordoned: true,
            ..policy(1)
        },
    );
    world.cordon(true);
    run(&mut world, 0..1);
    assert_eq!(sizes(&world), [9, 9]);
    world.del(0);
    world.advance(LONG);
    assert_eq!(sizes(&world), [9]);
}

#[test]
fn what_is_to_go_and_has_not_been_asked_for_stays_when_the_node_is_cordoned() {
    let mut world = started(3, 10, policy(1));
    run(&mut world, 0..1);
    world.del(0);
    world.eager = false;
    let is_leaving = |eni: &Eni| eni.state == EniState::Draining;
    while !world.pool.enis().values().any(is_leaving) {
        world.advance(Duration::from_millis(500));
        if !world.pool.enis().values().any(is_leaving) {
            while world.step_once() {}
        }
    }
    world.cordon(true);
    world.eager = true;
    world.settle();
    world.advance(LONG);
    assert_eq!(sizes(&world), [9, 9], "{:?}", world.log);
    assert!(!world.pool.enis().values().any(is_leaving));
}

#[test]
fn status_and_explanation_say_that_the_node_is_cordoned() {
    let mut world = started(3, 10, policy(1));
    run(&mut world, 0..1);
    world.cordon(true);
    let status = world.pool.status(world.now);
    assert!(status.serving && status.cordoned);
    assert!(
        status.reasons.iter().any(|reason| reason.contains("cordoned")),
        "{:?}",
        status.reasons
    );
    let sentences = explain(&world.pool, world.now);
    assert!(
        sentences
            .iter()
            .any(|sentence| sentence.text.contains("the node is cordoned")),
        "{sentences:#?}"
    );
}
