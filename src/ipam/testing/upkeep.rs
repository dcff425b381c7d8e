//! Security groups and tags of ENIs that exist: followed, completed, and never a pod's trouble.

use std::collections::BTreeMap;
use std::time::Duration;

use super::conformance::foreign;
use super::growth::{PATIENCE, policy, started};
use super::subnets::custom;
use super::world::{Fault, World};
use crate::cloud::{ConnectionTracking, FailureClass};
use crate::event::Event;
use crate::ids::{CardIndex, EniId, SecurityGroupId};
use crate::policy::Policy;
use crate::tags;

fn groups(names: &[&str]) -> Vec<SecurityGroupId> {
    names.iter().map(|name| (*name).into()).collect()
}

fn primary(world: &mut World) -> &mut crate::cloud::CloudEni {
    let id = world.facts.primary_eni.clone();
    world.enis.get_mut(&id).unwrap()
}

/// A world with one ENI of ours, and that one.
fn grown(policy: Policy) -> (World, EniId) {
    let mut world = started(4, 4, policy);
    for n in 0..3 {
        world.add(n, PATIENCE);
    }
    let ours = world
        .enis
        .keys()
        .find(|id| **id != world.facts.primary_eni)
        .unwrap()
        .clone();
    (world, ours)
}

#[test]
fn ipamd_q27_groups_of_our_enis_follow_the_primary_enis_and_only_those_that_differ() {
    let (mut world, ours) = grown(policy(0));
    let strange = foreign(2, &[], 0);
    let unmanaged = foreign(3, &[("node.k8s.amazonaws.com/no_manage", "true")], 0);
    for eni in [&strange, &unmanaged] {
        world.enis.insert(eni.id.clone(), eni.clone());
    }
    world.log.clear();
    primary(&mut world).groups = groups(&["sg-2", "sg-3"]);
    world.advance(Duration::from_secs(3601));
    assert_eq!(world.enis[&ours].groups, groups(&["sg-2", "sg-3"]));
    assert_eq!(world.calls("Groups"), 1, "{:?}", world.log);
    // In another order they are the same; a start changes nothing.
    world.enis.get_mut(&ours).unwrap().groups.reverse();
    world.crash(None, false);
    world.settle();
    world.advance(Duration::from_secs(7200));
    assert_eq!(world.calls("Groups"), 1, "{:?}", world.log);
    assert_eq!(world.enis[&strange.id].groups, strange.groups, "somebody else's");
}

/// What IMDS shows is looked up at EC2, once; a list that IMDS keeps repeating is no news.
#[test]
fn groups_that_imds_shows_to_have_changed_are_looked_up_at_ec2() {
    let (mut world, ours) = grown(policy(0));
    world.log.clear();
    primary(&mut world).groups = groups(&["sg-9"]);
    world.event(Event::Groups(groups(&["sg-9"])));
    world.settle();
    assert_eq!(world.enis[&ours].groups, groups(&["sg-9"]));
    assert_eq!(
        world.log,
        ["Describe Attached".to_owned(), format!("Groups {ours}")]
    );
    for stale in [&["sg-1"][..], &["sg-1"], &[], &["sg-9"]] {
        world.event(Event::Groups(groups(stale)));
        world.settle();
    }
    assert_eq!(world.calls("Describe"), 2, "{:?}", world.log);
    assert_eq!(world.calls("Groups"), 1);
    let next = (3..7).map(|n| world.add(n, PATIENCE)).collect::<Vec<_>>();
    assert!(next.iter().all(|waiter| world.granted(*waiter).is_some()));
    assert!(world.enis.values().all(|eni| eni.groups == groups(&["sg-9"])));
}

#[test]
fn denied_groups_are_told_once_shown_and_harm_nobody() {
    let (mut world, ours) = grown(policy(0));
    primary(&mut world).groups = groups(&["sg-2"]);
    let refuse = |world: &mut World| {
        world.faults.clear();
        world.event(Event::Groups(groups(&["sg-2"])));
        while world.flush() {}
        // The Describe first.
        world.deliver(0);
        while world.flush() {}
        world.faults.push_back(Fault::Refuse(FailureClass::Denied));
        world.deliver(0);
        world.settle();
    };
    refuse(&mut world);
    assert_eq!(world.enis[&ours].groups, groups(&["sg-1"]));
    let told = |world: &World| world.alarms.iter().filter(|alarm| alarm.kind == "denied").count();
    assert_eq!(told(&world), 1);
    let status = world.pool.status(world.now);
    assert!(status.serving);
    assert!(
        status
            .reasons
            .iter()
            .any(|reason| reason.contains("security groups")),
        "{status:?}"
    );
    let calls = world.calls("Groups");
    world.advance(Duration::from_secs(3000));
    assert_eq!(world.calls("Groups"), calls, "not for an hour");
    assert!((3..5).all(|n| {
        let waiter = world.add(n, PATIENCE);
        world.granted(waiter).is_some()
    }));
    world.advance(Duration::from_secs(1800));
    assert_eq!(world.enis[&ours].groups, groups(&["sg-2"]));
    assert_eq!(told(&world), 1);
    let status = world.pool.status(world.now);
    assert!(status.reasons.is_empty(), "{status:?}");
}

#[test]
fn with_custom_networking_groups_are_the_eni_configs() {
    let mut world = World::new(4, 4, custom(0, &["a"], &["sg-pods"]));
    world
        .subnets
        .insert("a".into(), super::subnets::subnet("a", 1, 500, &[]));
    world.settle();
    let made = |world: &World| {
        let mut made = world.enis.values().filter(|eni| eni.subnet.as_str() == "a");
        made.next().unwrap().groups.clone()
    };
    assert_eq!(made(&world), groups(&["sg-pods"]));
    primary(&mut world).groups = groups(&["sg-2"]);
    world.advance(Duration::from_secs(3601));
    assert_eq!(world.calls("Groups"), 0);
    world.event(Event::Reconfigured(Box::new(custom(0, &["a"], &["sg-more"]))));
    world.settle();
    assert_eq!(made(&world), groups(&["sg-more"]));
}

/// Conformance 18 and reference ipamd 4.8; conformance 17 has it that the start fails when tags cannot be written.
#[test]
fn ipamd_17_18_missing_tags_are_written_and_a_failure_stops_nothing() {
    for refused in [None, Some(FailureClass::Other), Some(FailureClass::Denied)] {
        let policy = Policy {
            cluster_name: Some("c1".to_owned()),
            additional_tags: [("team".to_owned(), "x".to_owned())].into(),
            ..policy(0)
        };
        let mut world = World::new(4, 4, policy);
        let theirs = foreign(1, &[("team", "y"), ("cost", "7")], 0);
        let unmanaged = foreign(2, &[("node.k8s.amazonaws.com/no_manage", "true")], 0);
        for eni in [&theirs, &unmanaged] {
            world.enis.insert(eni.id.clone(), eni.clone());
        }
        if let Some(class) = refused {
            // Both Describes of ENIs and the one of subnets, then the tags.
            while world.flush() {}
            for _ in 0..3 {
                world.deliver(0);
                while world.flush() {}
            }
            let is_tag = |work: &super::world::Work| {
                matches!(
                    work,
                    super::world::Work::Call(_, crate::cloud::CloudCall::TagEni { .. })
                )
            };
            let place = world.work.iter().position(is_tag).unwrap();
            world.faults.push_back(Fault::Refuse(class));
            world.deliver(place);
        }
        world.settle();
        let waiter = world.add(1, PATIENCE);
        assert!(world.granted(waiter).is_some());
        world.advance(Duration::from_secs(7300));
        let has = |id: &EniId, key: &str| world.enis[id].tags.get(key).cloned().unwrap_or_default();
        for id in [&world.facts.primary_eni, &theirs.id] {
            assert_eq!(has(id, "team"), "x", "{refused:?}");
            assert_eq!(has(id, tags::INSTANCE), world.facts.instance.as_str());
            assert_eq!(has(id, tags::CLUSTER), "c1");
            assert_eq!(has(id, "eks:eni:owner"), "amazon-vpc-cni");
        }
        assert_eq!(has(&theirs.id, "cost"), "7");
        assert_eq!(world.enis[&unmanaged.id].tags, unmanaged.tags);
        let tagged = world.calls("Tag");
        world.crash(None, false);
        world.settle();
        assert_eq!(world.calls("Tag"), tagged, "nothing differs any more");
    }
}

#[test]
fn where_nothing_may_be_provisioned_no_group_and_no_tag_is_written() {
    let policy = Policy {
        provisioning: false,
        ..policy(0)
    };
    let mut world = World::with_addresses(3, 4, policy, 3);
    primary(&mut world).tags = BTreeMap::new();
    world.settle();
    world.advance(Duration::from_secs(7200));
    assert_eq!((world.calls("Tag"), world.calls("Groups")), (0, 0));
}

#[test]
fn ipamd_63_new_enis_get_the_connection_tracking_of_the_primary_eni() {
    for tcp in [None, Some(600)] {
        let tracking = ConnectionTracking {
            tcp_established: tcp,
            ..ConnectionTracking::default()
        };
        let mut world = World::new(3, 4, policy(1));
        primary(&mut world).tracking = tracking;
        world.settle();
        world.add(1, PATIENCE);
        assert_eq!(world.enis.len(), 2);
        assert!(world.enis.values().all(|eni| eni.tracking == tracking));
    }
}

/// Q37 and the table of 1.6.
#[test]
fn ipamd_22_q37_a_trunk_is_left_alone_and_remembered_and_an_efa_serves_but_stays() {
    let mut world = World::new(4, 4, policy(0));
    let mut trunk = foreign(1, &[], 0);
    trunk.interface_type = "trunk".to_owned();
    let mut efa = foreign(2, &[], 2);
    efa.interface_type = "efa".to_owned();
    let mut efa_only = foreign(3, &[], 0);
    efa_only.interface_type = "efa-only".to_owned();
    for eni in [&trunk, &efa, &efa_only] {
        world.enis.insert(eni.id.clone(), eni.clone());
    }
    world.settle();
    world.advance(Duration::from_secs(3601));
    world.crash(None, false);
    world.settle();
    let known = |id: &EniId| world.pool.enis()[id].clone();
    assert_eq!(known(&trunk.id).kind, crate::model::EniKind::Trunk);
    assert_eq!(known(&trunk.id).role, crate::model::EniRole::Unmanaged);
    assert_eq!(known(&efa_only.id).role, crate::model::EniRole::Unmanaged);
    assert_eq!(known(&efa.id).cidrs.len(), 2, "its addresses serve");
    assert_eq!(crate::plan::places_taken(&world.pool, CardIndex(0)), 4);
    for untouched in [&trunk, &efa_only] {
        assert_eq!(world.enis[&untouched.id], *untouched);
    }
    assert_eq!(world.enis[&efa.id].groups, efa.groups);
}
