//! Explanations, sentence by sentence.

use std::time::Duration;

use serde_json::Value;

use super::world::World;
use crate::cloud::FailureClass;
use crate::explain::{SPOKEN_OF, explain};
use crate::plan::Report;
use crate::policy::{Policy, WarmTarget};

const SOON: Duration = Duration::from_secs(30);

pub(super) fn texts(world: &World) -> String {
    let sentences = explain(&world.pool, world.now);
    let lines: Vec<&str> = sentences.iter().map(|sentence| sentence.text.as_str()).collect();
    lines.join("\n")
}

fn settled(policy: Policy) -> World {
    let mut world = World::new(3, 4, policy);
    world.eager = true;
    world.settle();
    world
}

#[test]
fn a_settled_pool_says_by_which_setting_it_has_its_size() {
    let world = settled(Policy::default());
    assert_eq!(
        texts(&world),
        "1 ENI takes a place; of 3 addresses 0 with pods, 3 free, 0 at rest and 0 in quarantine; 0 more are on the \
         way.\nWARM_ENI_TARGET=1 asks for 3 addresses free and ready, besides what pods wait for; they come as single \
         addresses.\nWhat is free and on the way covers that: nothing more is asked for."
    );
}

#[test]
fn a_minimum_and_what_rests_are_named() {
    let mut world = settled(Policy {
        warm: WarmTarget::Ips { warm: 1, minimum: 5 },
        ..Policy::default()
    });
    world.add(1, SOON);
    world.settle();
    world.del(1);
    world.settle();
    let text = texts(&world);
    for sentence in [
        "WARM_IP_TARGET=1 asks for 1 address free and ready",
        "MINIMUM_IP_TARGET=5 asks for 5 addresses in all, whoever has them.",
        "The first address at rest is free in 30 s.",
    ] {
        assert!(text.contains(sentence), "{sentence}\n{text}");
    }
}

#[test]
fn a_limit_and_a_failure_are_named_with_what_waits_for_them() {
    let mut world = settled(Policy {
        max_enis: Some(1),
        ..Policy::default()
    });
    for pod in 0..4 {
        world.add(pod, SOON);
    }
    world.settle();
    let text = texts(&world);
    assert!(
        text.contains("There is no more because: MAX_ENI allows 1 ENIs with 3 addresses for pods each."),
        "{text}"
    );
    let mut world = settled(Policy::default());
    world.outage = Some(FailureClass::Throttled);
    for pod in 0..4 {
        world.add(pod, SOON);
    }
    world.settle();
    let text = texts(&world);
    assert!(
        text.contains("There is no more because: ") && text.contains("next try in "),
        "{text}"
    );
    assert!(text.contains("1 pod waits for an address."), "{text}");
}

/// Others add to the report; nobody has to think of this module for it to be told.
#[test]
fn every_field_of_the_report_is_spoken_of_or_told_besides() {
    let Value::Object(fields) = serde_json::to_value(Report::default()).unwrap() else {
        panic!("a report is an object");
    };
    for name in SPOKEN_OF {
        assert!(fields.contains_key(name), "{name} is no field any more");
    }
}
