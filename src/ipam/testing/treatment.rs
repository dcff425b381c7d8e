//! Every row of the table of failures, met by every call it speaks of.

use std::time::Duration;

use super::growth::{PATIENCE, policy, started};
use super::world::World;
use crate::cloud::FailureClass;
use crate::effect::RefusalKind;
use crate::model::EniState;
use crate::obstacle::Topic;
use crate::treatment::{Pods, Scope, TABLE, Treatment};

/// A pod waits, and every call whose line begins so fails.
fn met(row: &Treatment, action: &'static str) -> World {
    let mut world = started(3, 4, policy(0));
    world.eager = false;
    if action == "Assign" {
        // The primary ENI has lost what it had, so that it is filled first.
        world = World::new(3, 4, policy(0));
        world.outage = Some(row.class);
        world.outage_of = action;
        world.settle();
        return world;
    }
    world.outage = Some(row.class);
    world.outage_of = action;
    world.eager = true;
    for n in 0..3 {
        world.add(n, PATIENCE);
    }
    world
}

fn stands_in_the_way(world: &World, of: impl Fn(&Topic) -> bool) -> bool {
    let obstacles = &world.pool.memory.obstacles;
    obstacles.iter().any(|(topic, obstacle)| {
        let paced = obstacle.until > world.now && obstacle.failure.is_some();
        of(topic) && paced
    })
}

#[test]
fn every_class_has_one_row() {
    let classes: Vec<FailureClass> = TABLE.iter().map(|row| row.class).collect();
    assert_eq!(classes, super::budget::CLASSES);
    for row in TABLE {
        assert_eq!(row.class.treatment(), row);
    }
}

#[test]
fn ipamd_4_12_creating_fails_in_every_way() {
    for row in &TABLE {
        let world = met(row, "Create");
        let is_expected = match row.create {
            Scope::Call => stands_in_the_way(&world, |topic| matches!(topic, Topic::Creation(_))),
            // The subnet is asked for less first: one call each for half as much.
            Scope::Subnet => stands_in_the_way(&world, |topic| matches!(topic, Topic::Subnet(_))),
            Scope::NewEnisThere => stands_in_the_way(&world, |topic| matches!(topic, Topic::CreateIn(_))),
            Scope::Growth => stands_in_the_way(&world, |topic| *topic == Topic::Create),
        };
        assert!(is_expected, "{row:?}: {:?}", world.pool.memory.obstacles);
        // What was not refused for good stays an intent.
        assert_eq!(
            !world.pool.creations().is_empty(),
            row.create == Scope::Call,
            "{:?}",
            row.class
        );
    }
}

#[test]
fn ipamd_4_12_q23_attaching_fails_in_every_way() {
    for row in &TABLE {
        let mut world = met(row, "Attach");
        let alone = stands_in_the_way(&world, |topic| matches!(topic, Topic::Attach(_)));
        let growth = stands_in_the_way(&world, |topic| *topic == Topic::Create);
        let doomed = |world: &World| {
            let is_doomed = |state: &EniState| matches!(state, EniState::Discarding { .. });
            world.pool.enis().values().any(|eni| is_doomed(&eni.state)) || world.calls("Delete") > 0
        };
        assert_eq!(
            (alone, growth),
            (row.attach == Scope::Call, row.attach == Scope::Growth),
            "{row:?}"
        );
        assert_eq!(doomed(&world), row.attach == Scope::Growth, "{row:?}");
        world.advance(Duration::from_secs(7200));
        assert!(world.calls("Attach") > 1, "{row:?} is tried again");
    }
}

#[test]
fn ipamd_4_12_assigning_fails_in_every_way() {
    for row in &TABLE {
        let world = met(row, "Assign");
        let is_expected = match row.assign {
            Scope::Subnet => stands_in_the_way(&world, |topic| matches!(topic, Topic::Subnet(_))),
            Scope::Call => stands_in_the_way(&world, |topic| matches!(topic, Topic::Assign(_))),
            Scope::Growth | Scope::NewEnisThere => false,
        };
        assert!(is_expected, "{row:?}: {:?}", world.pool.memory.obstacles);
    }
}

/// The pace is kept: not earlier than the first wait, not later than the longest and its jitter.
#[test]
fn ipamd_4_12_the_next_try_comes_within_the_pace() {
    for row in &TABLE {
        let world = met(row, "Create");
        let waits = world
            .pool
            .memory
            .obstacles
            .values()
            .filter(|it| it.failure.is_some());
        for obstacle in waits {
            let wait = obstacle.until.since(world.now);
            assert!(
                wait >= row.pace.first && wait <= row.pace.first * 2,
                "{row:?}: {wait:?}"
            );
        }
    }
}

#[test]
fn ipamd_4_12_pods_the_operator_and_the_node_are_told_what_the_row_says() {
    for row in &TABLE {
        let mut world = met(row, "Create");
        let waiter = world.add(77, Duration::from_secs(2));
        let at_once = world.refused(waiter).is_some();
        assert_eq!(
            at_once,
            row.pods != Pods::Wait,
            "{row:?}: {:?}",
            world.pool.status(world.now)
        );
        let reasons = world.pool.status(world.now).reasons.join("\n");
        assert!(
            reasons.contains(&format!("{:?}", row.class)),
            "{row:?}: {reasons}"
        );
        assert!(reasons.contains("next try in"), "{row:?}: {reasons}");
        let alarms = world.alarms.iter().filter(|alarm| alarm.kind == "denied").count();
        assert_eq!(alarms > 0, row.alarms, "{row:?}");
        assert_eq!(
            world.pool.call_counters().throttled > 0,
            row.quiets_node,
            "{row:?}"
        );
        if row.pods == Pods::WaitForNextTry {
            let patient = world.add(78, Duration::from_secs(30));
            assert!(world.refused(patient).is_none(), "{row:?}");
        }
        if row.pods == Pods::Wait {
            world.advance(Duration::from_secs(3));
            assert_eq!(
                world.refused(waiter).unwrap().kind,
                RefusalKind::Deadline,
                "{row:?}"
            );
        }
    }
}
