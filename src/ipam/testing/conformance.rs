//! Cases of the reference that no other scenario proves in passing, each by its number.

use std::net::Ipv4Addr;
use std::time::Duration;

use super::growth::{PATIENCE, policy, sizes, started};
use super::world::{Work, World, attachment, facts, key, veth};
use crate::cloud::{CloudCall, CloudEni, FailureClass};
use crate::event::Event;
use crate::ids::{CardIndex, DeviceIndex, EniId, Mac, Tick};
use crate::model::EniRole;
use crate::policy::Policy;
use crate::pool::Pool;
use crate::records::{Record, RecordKey};
use crate::recover::Start;
use crate::roles::role_of;
use crate::witness::KernelFacts;

/// An ENI that somebody else has attached.
pub(super) fn foreign(device: u32, tags: &[(&str, &str)], addresses: u8) -> CloudEni {
    let id = EniId(format!("eni-zz{device}"));
    let low = u8::try_from(device).unwrap();
    CloudEni {
        mac: Mac([6, 0, 0, 0, 0, low]),
        subnet: facts().subnet,
        subnet_cidr: None,
        primary: Ipv4Addr::new(10, 0, 200, low),
        secondary: (0..addresses).map(|n| Ipv4Addr::new(10, 0, 201, n)).collect(),
        prefixes: vec![],
        prefixes6: vec![],
        public: vec![],
        tracking: crate::cloud::ConnectionTracking::default(),
        groups: vec![],
        interface_type: "interface".to_owned(),
        attachment: Some(attachment(&id, &facts().instance, DeviceIndex(device))),
        description: "by hand".to_owned(),
        tags: tags
            .iter()
            .map(|(key, value)| ((*key).to_owned(), (*value).to_owned()))
            .collect(),
        id,
    }
}

pub(super) const NOT_OURS: (&str, &str) = ("node.k8s.amazonaws.com/no_manage", "true");

/// Works everything off, EC2 refusing the calls it is told to.
fn settle_refusing(world: &mut World, class: FailureClass, refused: impl Fn(&CloudCall) -> bool) {
    for _ in 0..10_000 {
        let meets = |work: Option<&Work>| matches!(work, Some(Work::Call(_, call)) if refused(call));
        if meets(world.work.front()) {
            world.faults.push_front(super::world::Fault::Refuse(class));
        }
        let delivered = world.deliver(0);
        let flushed = world.flush();
        if world.kernel_asked {
            world.kernel();
        } else if !flushed && !delivered {
            return;
        }
    }
    panic!("it never settles");
}

/// What the Go daemon does besides (tags and groups of the primary ENI, its subnet) is not built yet.
#[test]
fn ipamd_1_2_3_5_a_fresh_node_fills_its_primary_eni_in_one_call() {
    for (enis, per_eni, warm, expected) in [(3, 10, 1, 9), (3, 6, 1, 5), (8, 30, 1, 29), (3, 10, 0, 9)] {
        let world = started(enis, per_eni, policy(warm));
        let mut log = world.log.clone();
        log.sort();
        let assign = format!("Assign eni-primary {expected}");
        assert_eq!(
            log,
            [
                assign.as_str(),
                "Describe Attached",
                "Describe OursUnattached",
                "Describe Subnets"
            ]
        );
    }
}

/// The Go daemon does not start; here pods wait, and are told why when they cannot.
#[test]
fn ipamd_15_an_unknown_type_asks_once_for_its_limits_and_waits_while_ec2_fails() {
    let mut world = World::new(3, 10, policy(0));
    let start = Start {
        policy: policy(0),
        limits: None,
        facts: world.facts.clone(),
        records: std::collections::BTreeMap::new(),
        kernel: KernelFacts::default(),
        gone: std::collections::BTreeSet::new(),
    };
    world.work.clear();
    world.commits.clear();
    let (pool, effects) = Pool::recover(start, world.now);
    world.pool = pool;
    world.take(effects);
    world.outage = Some(FailureClass::Server);
    world.settle();
    let waiting = world.add(1, PATIENCE);
    world.advance(Duration::from_secs(5));
    assert!(world.granted(waiting).is_none() && world.refused(waiting).is_none());
    world.outage = None;
    world.log.clear();
    world.advance(Duration::from_secs(60));
    assert_eq!(world.calls("DescribeInstanceType"), 1, "{:?}", world.log);
    assert_eq!(sizes(&world), [9]);
    assert!(world.refused(waiting).is_some() || world.granted(waiting).is_some());
    // What was learnt is stored.
    world.log.clear();
    world.crash(None, false);
    world.settle();
    assert_eq!(world.calls("DescribeInstanceType"), 0);
}

#[test]
fn ipamd_19_22_23_tags_type_and_card_decide_who_manages_an_eni() {
    let instance = "node.k8s.amazonaws.com/instance_id";
    let ours = facts().instance.to_string();
    let no_manage = NOT_OURS.0;
    for (tags, kind, card, manage_untagged, expected) in [
        (vec![], "interface", 0, true, EniRole::Secondary),
        (vec![], "interface", 0, false, EniRole::Unmanaged),
        (
            vec![(no_manage, "true")],
            "interface",
            0,
            true,
            EniRole::Unmanaged,
        ),
        (
            vec![(no_manage, "false")],
            "interface",
            0,
            false,
            EniRole::Secondary,
        ),
        (
            vec![(no_manage, "True")],
            "interface",
            0,
            true,
            EniRole::Secondary,
        ),
        (
            vec![(instance, ours.as_str())],
            "interface",
            0,
            false,
            EniRole::Secondary,
        ),
        (
            vec![(instance, "i-other")],
            "interface",
            0,
            true,
            EniRole::Unmanaged,
        ),
        (vec![], "efa", 0, true, EniRole::Secondary),
        (vec![], "efa-only", 0, true, EniRole::Unmanaged),
        (vec![], "trunk", 0, true, EniRole::Unmanaged),
        (vec![], "interface", 1, true, EniRole::Unmanaged),
    ] {
        let policy = Policy {
            manage_untagged,
            ..policy(0)
        };
        let world = World::new(3, 4, policy);
        let mut eni = foreign(1, &tags, 0);
        eni.interface_type = kind.to_owned();
        assert_eq!(
            role_of(&world.pool, &eni, CardIndex(card)),
            expected,
            "{tags:?} {kind} {card} {manage_untagged}"
        );
        let primary = CloudEni {
            id: facts().primary_eni,
            ..eni
        };
        let role = role_of(&world.pool, &primary, CardIndex(0));
        assert_eq!(role, EniRole::Primary, "no tag takes the primary ENI away");
    }
}

#[test]
fn ipamd_21_23_places_are_counted_anew_each_time_and_other_cards_have_their_own() {
    let mut world = World::new(4, 4, policy(0));
    let unmanaged = foreign(1, &[NOT_OURS], 0);
    let mut other_card = foreign(2, &[], 0);
    other_card.attachment.as_mut().unwrap().card = CardIndex(1);
    for eni in [unmanaged, other_card] {
        world.enis.insert(eni.id.clone(), eni);
    }
    world.settle();
    for _ in 0..3 {
        world.advance(Duration::from_secs(3600));
        assert_eq!(
            crate::plan::places_taken(&world.pool, CardIndex(0)),
            2,
            "the primary and one unmanaged"
        );
    }
}

/// With devices 0 and 3 taken 1 is next. The Go daemon creates an ENI before it finds that no index is left.
#[test]
fn ipamd_37_the_lowest_free_device_index_is_used_and_without_one_nothing_leaks() {
    for (taken, chosen) in [(vec![3], vec!["1", "2"]), ((1..=99).collect(), vec![])] {
        let mut world = World::new(200, 2, policy(0));
        let before = taken.len() + 1;
        for device in taken {
            let eni = foreign(device, &[NOT_OURS], 0);
            world.enis.insert(eni.id.clone(), eni);
        }
        world.settle();
        world.add(1, PATIENCE);
        world.add(2, PATIENCE);
        world.advance(Duration::from_secs(3600));
        let attached = world.log.iter().filter(|line| line.starts_with("Attach"));
        let devices: Vec<&str> = attached.filter_map(|line| line.rsplit(' ').next()).collect();
        assert_eq!(devices, chosen);
        assert_eq!(world.enis.len(), before + chosen.len(), "{:?}", world.log);
        assert_eq!(world.calls("Create"), chosen.len());
    }
}

/// The Go daemon detaches and deletes the ENI; here its pods keep it, and the attribute is set when EC2 lets us.
#[test]
fn ipamd_39_an_eni_that_cannot_be_made_to_go_with_the_instance_serves_all_the_same() {
    let mut world = started(2, 4, policy(0));
    world.eager = false;
    let modify = |call: &CloudCall| matches!(call, CloudCall::DeleteOnTermination { .. });
    let waiters: Vec<_> = (0..6).map(|n| world.add(n, PATIENCE)).collect();
    for _ in 0..60 {
        settle_refusing(&mut world, FailureClass::Denied, modify);
        world.advance(Duration::from_secs(60));
    }
    assert!(waiters.iter().all(|waiter| world.granted(*waiter).is_some()));
    let tries = world.calls("Modify");
    assert!((2..30).contains(&tries), "{tries} tries in an hour");
    assert_eq!((sizes(&world), world.calls("Delete")), (vec![3, 3], 0));
    world.eager = true;
    world.advance(Duration::from_secs(600));
    let stays = |eni: &&CloudEni| !eni.attachment.as_ref().unwrap().delete_on_termination;
    assert_eq!(world.enis.values().filter(stays).count(), 0);
}

/// The Go daemon asks again for one at once; here only a subnet's refusal makes the question smaller.
#[test]
fn ipamd_54_an_assign_that_fails_for_other_reasons_is_asked_again_later_and_other_enis_help() {
    let mut world = World::new(3, 4, policy(0));
    world.eager = false;
    let assign = |call: &CloudCall| matches!(call, CloudCall::Assign { .. });
    settle_refusing(&mut world, FailureClass::Other, assign);
    let waiters: Vec<_> = (0..4).map(|n| world.add(n, PATIENCE)).collect();
    settle_refusing(&mut world, FailureClass::Other, assign);
    assert!(waiters.iter().all(|waiter| world.granted(*waiter).is_some()));
    assert_eq!(world.calls("Assign"), 1, "{:?}", world.log);
    assert_eq!(world.calls("Assign eni-primary 3"), 1);
}

/// The Go daemon does not start then.
#[test]
fn ipamd_85_of_two_claims_to_one_address_the_kernels_holds_and_the_other_is_dropped_loudly() {
    let mut world = started(1, 4, policy(0));
    let waiter = world.add(1, PATIENCE);
    let address = world.granted(waiter).unwrap();
    let mut claim = world.pool.allocations()[&key(1)].clone();
    claim.key = key(2);
    claim.host_veth = veth(&key(2));
    claim.since = Tick(0);
    let record = Record::Allocation(Box::new(claim));
    world.store.insert(record.key().text(), record.value());
    world.crash(None, false);
    world.settle();
    assert!(world.alarms.iter().any(|alarm| alarm.kind == "allocated-twice"));
    assert_eq!(world.pool.allocations()[&key(1)].address, address);
    assert!(!world.pool.allocations().contains_key(&key(2)));
    assert!(!world.store.contains_key(&RecordKey::Allocation(key(2)).text()));
    for n in 2..4 {
        let waiter = world.add(n, PATIENCE);
        assert!(world.granted(waiter).is_some_and(|other| other != address));
    }
}

/// The Go daemon drops it. Here the store is a witness of its own; DEL and GC release it.
#[test]
fn ipamd_86_an_allocation_without_its_link_is_kept_over_a_restart() {
    let mut world = started(1, 4, policy(0));
    let waiter = world.add(1, PATIENCE);
    let address = world.granted(waiter).unwrap();
    world.routes.clear();
    world.crash(None, false);
    world.settle();
    assert_eq!(world.pool.allocations()[&key(1)].address, address);
    world.gc(&[]);
    assert!(world.pool.allocations().is_empty());
}

/// The Go daemon finds it within a minute by IMDS; here EC2 is asked once an hour, at a start, and in doubt.
#[test]
fn ipamd_93_an_eni_attached_by_somebody_else_is_taken_up_with_its_addresses() {
    let mut world = started(3, 4, policy(0));
    let eni = foreign(2, &[], 3);
    let (id, mac, given) = (eni.id.clone(), eni.mac, eni.secondary.clone());
    world.enis.insert(id.clone(), eni);
    world.work.push_back(Work::Link(mac));
    world.settle();
    world.advance(Duration::from_secs(3700));
    assert_eq!(world.calls("Create"), 0);
    let granted: Vec<Ipv4Addr> = (0..6)
        .filter_map(|n| {
            let waiter = world.add(n, PATIENCE);
            world.granted(waiter)
        })
        .collect();
    assert_eq!(granted.len(), 6);
    assert!(given.iter().all(|address| granted.contains(address)));
}

#[test]
fn ipamd_95_the_nodes_own_address_never_enters_the_pool_whoever_lists_it() {
    let mut world = World::new(1, 4, policy(0));
    let own = world.facts.primary_address;
    let primary = world.facts.primary_eni.clone();
    world.enis.get_mut(&primary).unwrap().secondary.push(own);
    let mut snapshot = world.imds_snapshot();
    snapshot.enis[0].addresses = vec![own, own];
    world.event(Event::Imds(snapshot));
    world.settle();
    world.advance(Duration::from_secs(7200));
    assert!(!world.pool.knows(own));
}

/// Fault 4 in its general form: the Go daemon gives pods addresses of an ENI whose table was never made.
#[test]
fn ipamd_fault_4_an_eni_that_cannot_be_configured_serves_nobody_until_it_is() {
    let mut world = started(2, 4, policy(0));
    world.kernel_fails = true;
    let waiters: Vec<_> = (0..5).map(|n| world.add(n, Duration::from_secs(120))).collect();
    let served = |world: &World| waiters.iter().filter(|w| world.granted(**w).is_some()).count();
    world.advance(Duration::from_secs(60));
    assert_eq!((sizes(&world), served(&world)), (vec![3, 3], 3));
    assert!(world.alarms.iter().any(|alarm| alarm.kind == "eni-configuration"));
    world.kernel_fails = false;
    world.advance(Duration::from_secs(50));
    assert_eq!(served(&world), 5);
}

/// The Go daemon makes 12 calls every five seconds.
#[test]
fn ipamd_fault_6_a_describe_that_fails_is_asked_ever_more_seldom() {
    let mut world = started(2, 4, policy(1));
    world.eager = false;
    world.log.clear();
    world.event(Event::LinkGone {
        mac: world.facts.primary_mac,
    });
    let describe = |call: &CloudCall| matches!(call, CloudCall::DescribeEnis { .. });
    for _ in 0..3600 {
        settle_refusing(&mut world, FailureClass::Server, describe);
        world.advance(Duration::from_secs(1));
    }
    let calls = world.calls("Describe");
    assert!((2..=150).contains(&calls), "{calls} in an hour");
}
