//! What other instances have left: who reaps it, and what is never touched.

use std::rc::Rc;
use std::time::Duration;

use super::growth::{policy, started};
use super::world::{Fault, Work, World, attachment};
use crate::cloud::{CloudCall, CloudEni, ConnectionTracking, FailureClass};
use crate::ids::{DeviceIndex, EniId, InstanceId, Mac};
use crate::policy::Policy;
use crate::{stamp, tags};

const HOUR: Duration = Duration::from_hours(1);
/// From a first look to the deletion: the lag of a Describe, and a little.
const ROUND: Duration = Duration::from_secs(3700);

fn unix(world: &World) -> u64 {
    world.facts.booted_at + world.now.0 / 1000
}

/// An ENI that instance `owner` made so many seconds ago and has not attached.
fn leave(world: &World, id: &str, owner: &str, seconds_ago: u64, edit: impl FnOnce(&mut CloudEni)) {
    let created = stamp::rfc3339(unix(world) - seconds_ago);
    let mut eni = CloudEni {
        id: id.into(),
        mac: Mac([6, 0, 0, 0, 0, 1]),
        subnet: world.facts.subnet.clone(),
        subnet_cidr: None,
        primary: "10.0.200.1".parse().unwrap(),
        secondary: vec!["10.0.200.2".parse().unwrap()],
        prefixes: vec![],
        prefixes6: vec![],
        public: vec![],
        tracking: ConnectionTracking::default(),
        groups: vec![],
        interface_type: "interface".to_owned(),
        attachment: None,
        description: format!("aws-K8S-{owner}"),
        tags: [
            (tags::INSTANCE.to_owned(), owner.to_owned()),
            (tags::CREATED_AT.to_owned(), created),
        ]
        .into(),
    };
    edit(&mut eni);
    world.neighbours.borrow_mut().enis.insert(eni.id.clone(), eni);
}

fn instance(world: &World, id: &str, lives: bool) {
    let mut neighbours = world.neighbours.borrow_mut();
    neighbours.instances.insert(id.into(), lives);
}

fn is_there(world: &World, id: &str) -> bool {
    world.neighbours.borrow().enis.contains_key(&EniId::from(id))
}

fn tag(world: &World, id: &str, key: &str) -> Option<String> {
    world.neighbours.borrow().enis[&EniId::from(id)]
        .tags
        .get(key)
        .cloned()
}

/// A node that is done with everything of its own.
fn quiet() -> World {
    let mut world = started(3, 4, policy(0));
    world.advance(Duration::from_secs(120));
    world.log.clear();
    world
}

/// What it asked about others, in order.
fn asked(world: &World) -> Vec<&str> {
    let about = |line: &&str| {
        ["Describe left", "Describe inst", "Tag", "Delete"]
            .iter()
            .any(|it| line.starts_with(it))
    };
    world.log.iter().map(String::as_str).filter(about).collect()
}

/// Conformance 114. Not as there: the owner must be gone and a second look say the same.
#[test]
fn ipamd_114_what_a_terminated_instance_left_is_deleted_after_a_second_look() {
    let mut world = quiet();
    instance(&world, "i-1", false);
    leave(&world, "eni-old", "i-1", 600, |_| ());
    world.advance(ROUND);
    assert!(!is_there(&world, "eni-old"));
    let first_round = [
        "Describe left",
        "Describe instances",
        "Tag eni-old",
        "Describe left",
        "Describe instances",
        "Delete eni-old",
    ];
    assert_eq!(asked(&world)[..6], first_round);
    let said = world
        .alarms
        .iter()
        .find(|alarm| alarm.kind == "leak-deleted")
        .unwrap();
    assert!(
        said.message.contains("eni-old") && said.message.contains("i-1"),
        "{said:?}"
    );
    // Idle, it looks once an hour.
    world.log.clear();
    world.advance(10 * HOUR);
    assert_eq!(asked(&world).len(), 10, "{:?}", asked(&world));
}

#[test]
fn ipamd_114_a_young_eni_another_description_and_no_manage_are_left_alone() {
    let mut world = quiet();
    world.policy.leak_check = Duration::from_secs(200);
    world.event(crate::event::Event::Reconfigured(Box::new(world.policy.clone())));
    instance(&world, "i-1", false);
    leave(&world, "eni-strange", "i-1", 7200, |eni| {
        "made by hand".clone_into(&mut eni.description);
    });
    leave(&world, "eni-kept", "i-1", 7200, |eni| {
        drop(eni.tags.insert(tags::NO_MANAGE.to_owned(), "true".to_owned()));
    });
    world.advance(2 * HOUR);
    leave(&world, "eni-young", "i-1", 0, |_| ());
    world.advance(Duration::from_secs(299));
    assert!(is_there(&world, "eni-young"));
    assert_eq!(
        world.calls("Delete") + world.calls("Tag") + world.calls("Describe instances"),
        0
    );
    world.advance(Duration::from_secs(600));
    assert!(!is_there(&world, "eni-young"), "it has come of age");
    assert!(is_there(&world, "eni-strange") && is_there(&world, "eni-kept"));
}

/// Q25: no legible time of creation is written anew, and only then does its age begin.
#[test]
fn ipamd_114_q25_without_a_time_of_creation_it_gets_one_and_is_looked_at_again() {
    for text in [None, Some("last Tuesday")] {
        let mut world = quiet();
        instance(&world, "i-1", false);
        leave(&world, "eni-a", "i-1", 0, |eni| {
            eni.tags.remove(tags::CREATED_AT);
            eni.tags
                .extend(text.map(|text| (tags::CREATED_AT.to_owned(), text.to_owned())));
        });
        world.advance(HOUR);
        assert!(is_there(&world, "eni-a"), "{text:?}: not deleted at once");
        let created = tag(&world, "eni-a", tags::CREATED_AT).unwrap();
        assert!(
            stamp::parse(&created).is_some_and(|at| at <= unix(&world)),
            "{created}"
        );
        assert_eq!(world.calls("Delete"), 0);
        world.advance(ROUND);
        assert!(!is_there(&world, "eni-a"), "{text:?}: {:?}", asked(&world));
    }
}

#[test]
fn a_living_or_stopped_owners_eni_is_never_touched() {
    let mut world = quiet();
    instance(&world, "i-1", true);
    leave(&world, "eni-a", "i-1", 0, |eni| {
        drop(eni.tags.remove(tags::CREATED_AT));
    });
    leave(&world, "eni-b", "i-1", 72_000, |_| ());
    world.advance(10 * HOUR);
    assert_eq!(
        world.calls("Tag") + world.calls("Delete"),
        0,
        "{:?}",
        asked(&world)
    );
    assert!(is_there(&world, "eni-a") && is_there(&world, "eni-b"));
}

#[test]
fn an_owner_ec2_does_not_know_counts_only_after_an_hour_and_only_when_it_was_asked() {
    let mut world = quiet();
    world.policy.leak_check = Duration::from_secs(200);
    world.event(crate::event::Event::Reconfigured(Box::new(world.policy.clone())));
    world.advance(HOUR);
    leave(&world, "eni-a", "i-forgotten", 0, |_| ());
    world.advance(HOUR);
    assert!(is_there(&world, "eni-a"));
    // Old enough, but the question fails.
    world.outage = Some(FailureClass::Server);
    world.outage_of = "Describe instances";
    world.advance(3 * HOUR);
    assert!(is_there(&world, "eni-a"));
    world.outage = None;
    world.advance(2 * HOUR);
    assert!(!is_there(&world, "eni-a"));
}

/// Between the two looks the owner comes back, somebody attaches the ENI, or somebody else asks to leave it alone.
#[test]
fn what_changes_between_the_looks_saves_it() {
    type Change = fn(&mut World);
    let changes: [(&str, Change); 4] = [
        ("the owner is back", |world| instance(world, "i-1", true)),
        ("it is attached", |world| {
            let id = EniId::from("eni-a");
            let to = attachment(&id, &InstanceId::from("i-2"), DeviceIndex(1));
            world
                .neighbours
                .borrow_mut()
                .enis
                .get_mut(&id)
                .unwrap()
                .attachment = Some(to);
        }),
        ("it is not to be managed", |world| {
            let mut neighbours = world.neighbours.borrow_mut();
            let eni = neighbours.enis.get_mut(&EniId::from("eni-a")).unwrap();
            eni.tags.insert(tags::NO_MANAGE.to_owned(), "true".to_owned());
        }),
        ("the tag is another's", |world| {
            let mut neighbours = world.neighbours.borrow_mut();
            let eni = neighbours.enis.get_mut(&EniId::from("eni-a")).unwrap();
            eni.tags.insert(tags::INSTANCE.to_owned(), "i-2".to_owned());
        }),
    ];
    for (what, change) in changes {
        let mut world = quiet();
        instance(&world, "i-1", false);
        instance(&world, "i-2", true);
        leave(&world, "eni-a", "i-1", 7200, |_| ());
        for _ in 0..HOUR.as_secs() {
            if world.calls("Tag") > 0 {
                break;
            }
            world.advance(Duration::from_secs(1));
        }
        assert_eq!(world.calls("Tag"), 1, "{what}: it has a lease");
        change(&mut world);
        world.advance(3 * HOUR);
        assert!(is_there(&world, "eni-a"), "{what}");
        assert_eq!(world.calls("Delete"), 0, "{what}");
    }
}

/// It is attached when the Delete is already on its way: EC2 refuses, and nothing follows from that.
#[test]
fn ec2_refuses_to_delete_what_was_attached_last() {
    let mut world = quiet();
    instance(&world, "i-1", false);
    leave(&world, "eni-a", "i-1", 7200, |_| ());
    world.eager = false;
    let is_delete = |work: &Work| matches!(work, Work::Call(_, CloudCall::DeleteEni { .. }));
    for _ in 0..10_000 {
        if world.work.iter().any(is_delete) {
            break;
        }
        while world.flush() {}
        if !world.work.iter().any(is_delete) && !world.deliver(0) {
            world.advance(Duration::from_secs(1));
        }
    }
    assert!(world.work.iter().any(is_delete), "{:?}", asked(&world));
    let id = EniId::from("eni-a");
    let to = attachment(&id, &InstanceId::from("i-2"), DeviceIndex(1));
    world
        .neighbours
        .borrow_mut()
        .enis
        .get_mut(&id)
        .unwrap()
        .attachment = Some(to);
    world.eager = true;
    world.settle();
    world.advance(3 * HOUR);
    assert!(is_there(&world, "eni-a"));
    assert_eq!(world.calls("Delete"), 1);
}

/// Q25: the Go daemon cleans up after every cluster in the VPC unless it has a name.
#[test]
fn ipamd_114_q25_never_across_clusters() {
    for (name, reaped) in [(None, "eni-nameless"), (Some("mine"), "eni-mine")] {
        let mut world = quiet();
        world.policy.cluster_name = name.map(str::to_owned);
        world.event(crate::event::Event::Reconfigured(Box::new(world.policy.clone())));
        instance(&world, "i-1", false);
        leave(&world, "eni-nameless", "i-1", 7200, |_| ());
        for cluster in ["mine", "other"] {
            let tagged =
                |eni: &mut CloudEni| drop(eni.tags.insert(tags::CLUSTER.to_owned(), cluster.to_owned()));
            leave(&world, &format!("eni-{cluster}"), "i-1", 7200, tagged);
        }
        world.advance(3 * HOUR);
        for id in ["eni-nameless", "eni-mine", "eni-other"] {
            assert_eq!(is_there(&world, id), id != reaped, "{name:?}: {id}");
        }
    }
}

#[test]
fn ipamd_114_switched_off_nothing_is_asked() {
    type Edit = fn(&mut Policy);
    let edits: [Edit; 3] = [
        |policy| policy.leak_cleanup = false,
        |policy| policy.provisioning = false,
        |policy| policy.ask_ec2 = false,
    ];
    for edit in edits {
        let mut world = quiet();
        edit(&mut world.policy);
        world.event(crate::event::Event::Reconfigured(Box::new(world.policy.clone())));
        instance(&world, "i-1", false);
        leave(&world, "eni-a", "i-1", 7200, |_| ());
        world.advance(5 * HOUR);
        assert_eq!(asked(&world), [""; 0]);
    }
}

/// Two nodes of one VPC.
fn two_nodes() -> [World; 2] {
    let first = quiet();
    let mut second = started(
        3,
        4,
        Policy {
            seed: 77,
            ..policy(0)
        },
    );
    second.facts.instance = "i-0second".into();
    second.neighbours = Rc::clone(&first.neighbours);
    second.crash(None, false);
    second.settle();
    second.log.clear();
    [first, second]
}

#[test]
fn two_nodes_reap_each_eni_once_and_mostly_leave_it_to_each_other() {
    let mut nodes = two_nodes();
    instance(&nodes[0], "i-1", false);
    for n in 0..23 {
        leave(&nodes[0], &format!("eni-{n}"), "i-1", 7200, |_| ());
    }
    for _ in 0..60 * 8 {
        for node in &mut nodes {
            node.advance(Duration::from_secs(60));
        }
    }
    let neighbours = nodes[0].neighbours.borrow();
    assert!(neighbours.enis.is_empty());
    assert_eq!(neighbours.deleted.len(), 23, "each once");
    let deletes: usize = nodes.iter().map(|node| node.calls("Delete")).sum();
    assert!(deletes <= 25, "{deletes} deletes for 23 ENIs");
    for node in &nodes {
        let id = &node.facts.instance;
        let reaped = neighbours.deleted.iter().filter(|(_, by)| by == id).count();
        assert!(reaped > 0, "{id} did its part");
        assert!(node.calls("Describe") < 60, "{}", node.calls("Describe"));
    }
}

/// Both look at the same moment, and each sees no lease: both may go on, and EC2 deletes once.
#[test]
fn a_race_of_two_nodes_for_one_eni_ends_well() {
    let [mut one, mut other] = two_nodes();
    instance(&one, "i-1", false);
    leave(&one, "eni-a", "i-1", 7200, |_| ());
    for _ in 0..3 * 3600 {
        one.advance(Duration::from_secs(1));
        other.advance(Duration::from_secs(1));
        if one.calls("Tag") + other.calls("Tag") == 1 {
            break;
        }
    }
    // The other one has read before that lease was written; its own overwrites it.
    let (late, early) = if one.calls("Tag") == 0 {
        (&one, &other)
    } else {
        (&other, &one)
    };
    let lease = format!("{} {}", late.facts.instance, stamp::rfc3339(unix(late) + 900));
    {
        let mut neighbours = one.neighbours.borrow_mut();
        let eni = neighbours.enis.get_mut(&EniId::from("eni-a")).unwrap();
        eni.tags.insert(tags::REAPER.to_owned(), lease);
    }
    let early = early.facts.instance.clone();
    let early = if one.facts.instance == early {
        &mut one
    } else {
        &mut other
    };
    early.advance(Duration::from_secs(120));
    assert_eq!(
        early.calls("Delete"),
        0,
        "the lease is another's now: it is left to him"
    );
    assert!(is_there(early, "eni-a"));
    // He never comes: the lease runs out, and anybody takes over.
    early.advance(3 * HOUR);
    assert!(!is_there(early, "eni-a"));
}

#[test]
fn a_round_takes_a_handful() {
    let mut world = quiet();
    instance(&world, "i-1", false);
    for n in 0..40 {
        leave(&world, &format!("eni-{n}"), "i-1", 7200, |_| ());
    }
    let mut last = 40;
    for _ in 0..10 {
        world.advance(HOUR);
        let left = world.neighbours.borrow().enis.len();
        assert!(left <= last && last - left <= 5, "{last} to {left}");
        last = left;
    }
    assert!(last <= 5);
}

#[test]
fn a_missing_permission_switches_it_off_for_an_hour_and_shows() {
    for action in ["Describe left", "Describe instances", "Tag", "Delete"] {
        let mut world = quiet();
        instance(&world, "i-1", false);
        leave(&world, "eni-a", "i-1", 7200, |_| ());
        world.outage = Some(FailureClass::Denied);
        world.outage_of = action;
        for _ in 0..70 {
            world.advance(Duration::from_secs(60));
        }
        assert!(world.alarms.iter().any(|alarm| alarm.kind == "leaks"), "{action}");
        let status = world.pool.status(world.now);
        assert!(
            status
                .reasons
                .iter()
                .any(|reason| reason.starts_with("ENIs that others have left are not deleted")),
            "{action}: {status:?}"
        );
        let tried = world.calls(action);
        world.advance(10 * HOUR);
        let again = world.calls(action) - tried;
        assert!((5..=10).contains(&again), "{action}: {again} times in ten hours");
        assert!(is_there(&world, "eni-a"));
        world.outage = None;
        world.advance(3 * HOUR);
        assert!(!is_there(&world, "eni-a"), "{action}: allowed again");
    }
}

/// A kill at every stage: a new round begins, the old lease is no obstacle.
#[test]
fn a_kill_anywhere_in_a_round_only_delays_it() {
    for calls in 1..6 {
        let mut world = quiet();
        instance(&world, "i-1", false);
        leave(&world, "eni-a", "i-1", 7200, |_| ());
        for _ in 0..7200 {
            if asked(&world).len() >= calls {
                break;
            }
            world.advance(Duration::from_secs(1));
        }
        world.crash(None, true);
        world.settle();
        world.advance(4 * HOUR);
        assert!(!is_there(&world, "eni-a"), "after {calls} calls");
    }
}

/// Lost answers and refusals never lead to a second deletion or to a wrong one (the model asserts that).
#[test]
fn faults_of_any_call_only_delay_it() {
    for class in super::budget::CLASSES {
        for skipped in 0..6 {
            let mut world = quiet();
            instance(&world, "i-1", false);
            leave(&world, "eni-a", "i-1", 7200, |_| ());
            for _ in 0..7200 {
                if asked(&world).len() >= skipped {
                    break;
                }
                world.advance(Duration::from_secs(1));
            }
            world.faults.push_back(Fault::Refuse(class));
            world.advance(10 * HOUR);
            assert!(
                !is_there(&world, "eni-a"),
                "{class:?} {skipped}: {:?}",
                asked(&world)
            );
        }
    }
}
