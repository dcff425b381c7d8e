//! Kills, restarts, lying witnesses, a full disk.

use std::time::Duration;

use super::world::{Fault, Work, World, but_budget, facts, key};
use crate::cloud::{CloudAnswer, CloudCall, DescribeScope, FailureClass};
use crate::effect::{RefusalKind, Reply};
use crate::event::Event;
use crate::ids::Tick;
use crate::model::EniState;
use crate::node::NodeFacts;
use crate::policy::Policy;
use crate::witness::ImdsSnapshot;

use super::growth::{PATIENCE, policy, sizes, started};

/// A kill before and after every single piece of work of a growth.
#[test]
fn a_kill_at_any_instant_of_growth_resumes() {
    for happen in [false, true] {
        for instant in 0..16 {
            let mut world = World::new(3, 4, policy(1));
            world.eager = false;
            world.add(1, PATIENCE);
            for _ in 0..instant {
                if !world.flush() {
                    world.deliver(0);
                }
            }
            world.crash(None, happen);
            world.eager = true;
            world.settle();
            for n in 1..6 {
                world.add(n, PATIENCE);
            }
            world.advance(Duration::from_secs(900));
            assert_eq!(sizes(&world), [3, 3, 3], "{happen} {instant}: {:?}", world.log);
            assert_eq!(world.enis.len(), 3, "{happen} {instant}: an ENI leaked");
            assert_eq!(world.pool.allocations().len(), 5);
            assert!(world.pool.creations().is_empty());
        }
    }
}

#[test]
fn dataplane_50_ipamd_31_a_link_that_never_comes_is_an_alarm_and_no_loss() {
    let mut world = started(3, 4, policy(0));
    world.eager = false;
    let waiters: Vec<_> = (0..4).map(|n| world.add(n, PATIENCE)).collect();
    for _ in 0..200 {
        world.flush();
        let next = world.work.iter().position(|work| !matches!(work, Work::Link(_)));
        if let Some(next) = next {
            world.deliver(next);
        }
    }
    world.advance(Duration::from_secs(61));
    assert!(world.alarms.iter().any(|alarm| alarm.kind == "link-overdue"));
    assert_eq!(world.refused(waiters[3]).unwrap().kind, RefusalKind::Deadline);
    // It comes after all.
    world.eager = true;
    world.settle();
    let late = world.add(9, PATIENCE);
    assert!(world.granted(late).is_some());
}

/// Faults 11.1.1 and 11.1.2: what IMDS omits is still there.
#[test]
fn ipamd_faults_1_2_imds_never_takes_away() {
    let mut world = started(3, 4, policy(1));
    for n in 0..5 {
        world.add(n, PATIENCE);
    }
    let before = world.pool.records();
    world.event(Event::Imds(ImdsSnapshot::default()));
    world.settle();
    let mut partly = world.imds_snapshot();
    partly.enis.remove(0);
    world.event(Event::Imds(partly));
    world.advance(Duration::from_secs(120));
    assert_eq!(world.pool.records(), before);
    assert_eq!(world.alarms, []);
}

/// Fault 11.1.3, Q20: an address one witness lacks at a restart is neither forgotten nor given to another.
#[test]
fn ipamd_87_fault_3_an_address_missing_at_restart_keeps_its_sandbox() {
    let mut world = started(1, 4, policy(1));
    let pods: Vec<_> = (0..2).map(|n| world.add(n, PATIENCE)).collect();
    let held = world.granted(pods[0]).unwrap();
    world.crash(None, false);
    world.faults.push_back(Fault::Omit);
    world.settle();
    world.advance(Duration::from_secs(600));
    assert_eq!(world.pool.allocations()[&key(0)].address, held);
    let others: Vec<_> = (2..4)
        .filter_map(|n| {
            let w = world.add(n, PATIENCE);
            world.granted(w)
        })
        .collect();
    assert!(!others.contains(&held));
}

/// Start with addresses on the ENI: EC2's word within two seconds, IMDS's when EC2 cannot be reached.
#[test]
fn start_prefers_ec2_and_can_do_without() {
    for ec2_is_up in [true, false] {
        let mut world = World::with_addresses(3, 10, policy(0), 5);
        world.eager = false;
        let mut snapshot = world.imds_snapshot();
        snapshot.enis[0].addresses.push("10.0.77.77".parse().unwrap()); // IMDS lags: EC2 no longer has it.
        world.event(Event::Imds(snapshot));
        let waiter = world.add(1, PATIENCE);
        assert!(
            world.clients[&waiter].grant.is_none(),
            "it waits for EC2's first word"
        );
        if ec2_is_up {
            world.settle();
            assert!(world.granted(waiter).is_some());
            for n in 2..9 {
                let waiter = world.add(n, PATIENCE);
                world.settle();
                assert_ne!(world.granted(waiter).unwrap().to_string(), "10.0.77.77");
            }
        } else {
            world.outage = Some(FailureClass::NoAnswer);
            world.advance(Duration::from_millis(2001));
            while world.flush() {}
            assert!(world.granted(waiter).is_some(), "EC2 had its time");
            world.settle();
            let waiter = world.add(2, PATIENCE);
            while world.flush() {}
            assert!(world.granted(waiter).is_some(), "EC2 has failed");
        }
    }
}

#[test]
fn a_restart_serves_from_the_store_alone() {
    let mut world = started(3, 4, policy(1));
    for n in 0..4 {
        world.add(n, PATIENCE);
    }
    let ready = but_budget(world.pool.records());
    world.crash(None, false);
    world.eager = false;
    world.outage = Some(FailureClass::NoAnswer);
    assert_eq!(but_budget(world.pool.records()), ready);
    let waiter = world.add(7, PATIENCE);
    while world.flush() {}
    assert!(world.granted(waiter).is_some(), "neither IMDS nor EC2 was needed");
    let repeated = world.add(2, PATIENCE);
    while world.flush() {}
    assert_eq!(
        world.granted(repeated).map(std::net::IpAddr::from),
        Some(world.live[&key(2)])
    );
}

#[test]
fn a_reboot_voids_sandboxes_and_rests_their_addresses() {
    let mut world = started(1, 3, policy(0));
    world.add(1, PATIENCE);
    world.add(2, PATIENCE);
    world.crash(Some("another-boot"), false);
    world.settle();
    assert!(world.pool.allocations().is_empty());
    let waiter = world.add(3, Duration::from_secs(40));
    assert!(world.granted(waiter).is_none());
    world.advance(Duration::from_secs(31));
    assert!(world.granted(waiter).is_some());
}

/// Q48: state baked into an image.
#[test]
fn another_instance_voids_everything() {
    let mut world = started(1, 4, policy(1));
    world.add(1, PATIENCE);
    world.routes.clear();
    world.facts.instance = "i-other".into();
    world.crash(None, false);
    world.flush();
    assert!(world.pool.allocations().is_empty() && world.pool.addresses().is_empty());
    assert_eq!(
        but_budget(world.store.clone()).len(),
        2,
        "the node and its primary ENI: {:?}",
        world.store.keys()
    );
}

#[test]
fn a_bad_record_is_a_doubt_and_the_kernel_protects_its_pod() {
    let mut world = started(1, 4, policy(1));
    let waiter = world.add(1, PATIENCE);
    let address = world.granted(waiter).unwrap();
    let text = crate::records::RecordKey::Allocation(key(1)).text();
    world
        .store
        .insert(text.clone(), b"{\"v\":1,\"body\":{\"key\"".to_vec());
    world.live.clear();
    world.crash(None, false);
    world.settle();
    assert!(world.alarms.iter().any(|alarm| alarm.kind == "bad-record"));
    assert!(world.store.contains_key(&text), "the evidence stays");
    let others: Vec<_> = (2..4)
        .filter_map(|n| {
            let w = world.add(n, PATIENCE);
            world.granted(w)
        })
        .collect();
    assert_eq!(others.len(), 2);
    assert!(!others.contains(&address), "the kernel routes {address} to a pod");
    // Its pod goes, the route too: it rests, and is free.
    world.routes.remove(&address.into());
    world.advance(Duration::from_secs(45));
    let waiter = world.add(9, PATIENCE);
    assert_eq!(world.granted(waiter), Some(address));
}

/// A crash between `assigned` and `durable` leaves a route that names an address the store does not.
#[test]
fn a_route_nobody_stored_is_quarantined() {
    let mut world = started(1, 4, policy(1));
    world.eager = false;
    let waiter = world.add(1, PATIENCE);
    let address = world.clients[&waiter].grant.as_ref().unwrap().address;
    world.crash(None, false);
    world.settle();
    let others: Vec<_> = (2..4)
        .filter_map(|n| {
            let w = world.add(n, PATIENCE);
            world.settle();
            world.granted(w)
        })
        .collect();
    assert!(others.len() == 2 && !others.iter().any(|other| address == *other));
}

/// The daemon died after it had assigned and before that was on the disk: the plugin, whose pod is wired, asks the next
/// one, and on a full node nothing else would be left for it.
#[test]
fn an_address_whose_link_is_wired_already_is_for_the_plugin_that_wired_it() {
    let mut world = started(1, 4, policy(1));
    world.eager = false;
    let waiter = world.add(1, PATIENCE);
    let address = world.clients[&waiter].grant.as_ref().unwrap().address;
    world.crash(None, false);
    world.settle();
    world.eager = true;
    let others: Vec<_> = (2..4).map(|n| world.add(n, PATIENCE)).collect();
    assert!(others.iter().all(|waiter| world.granted(*waiter).is_some()));
    let again = world.add(1, PATIENCE);
    assert_eq!(world.granted(again).map(std::net::IpAddr::from), Some(address));
    // What has been given back rests, whatever the link: the next sandbox of the same pod has the same name.
    world.del(1);
    let next = world.add(1, PATIENCE);
    assert_eq!(world.granted(next), None);
}

/// `ENABLE_IMDS_ONLY_MODE`: what IMDS lists is all there is, and what others add comes with its next look.
#[test]
fn ipamd_27_where_ec2_is_not_asked_imds_is_and_what_was_begun_at_ec2_waits() {
    let policy = Policy {
        provisioning: false,
        ask_ec2: false,
        ..policy(1)
    };
    let mut world = World::with_addresses(3, 4, policy, 1);
    let snapshot = world.imds_snapshot();
    world.event(Event::Imds(snapshot));
    let first = world.add(1, PATIENCE);
    world.settle();
    assert!(world.granted(first).is_some());
    let second = world.add(2, PATIENCE);
    world.settle();
    assert_eq!(world.refused(second).unwrap().kind, RefusalKind::Exhausted);
    let primary = world.facts.primary_eni.clone();
    let added = std::net::Ipv4Addr::new(10, 0, 9, 77);
    world.enis.get_mut(&primary).unwrap().secondary.push(added);
    assert!(!world.imds_asked, "it has only just been asked");
    world.advance(Duration::from_secs(70));
    assert!(world.imds_asked);
    let snapshot = world.imds_snapshot();
    world.event(Event::Imds(snapshot));
    let third = world.add(3, PATIENCE);
    world.settle();
    assert_eq!(world.granted(third), Some(added));
    assert!(world.log.is_empty(), "{:?}", world.log);
}

/// Stored facts are served at once; what changed since is caught up with, EC2's word before that of IMDS.
#[test]
fn what_is_stored_of_the_node_is_replaced_by_what_is_said_of_it_now() {
    let mut world = started(3, 4, policy(1));
    let said = |groups: &str, instance_type: &str| {
        Event::Facts(Box::new(NodeFacts {
            security_groups: vec![groups.into()],
            instance_type: instance_type.into(),
            ..facts()
        }))
    };
    let groups = |world: &World| world.pool.facts().security_groups.clone();
    let primary = world.facts.primary_eni.clone();
    world.enis.get_mut(&primary).unwrap().groups = vec!["sg-ec2".into()];
    world.crash(None, false);
    world.event(said("sg-imds", "m5.large"));
    assert_eq!(groups(&world), ["sg-imds".into()], "while EC2 has not spoken");
    world.settle();
    assert_eq!(groups(&world), ["sg-ec2".into()]);
    world.event(said("sg-lagging", "m5.4xlarge"));
    assert_eq!(groups(&world), ["sg-ec2".into()]);
    let limits = world.pool.limits().unwrap();
    assert_eq!(
        (limits.enis, limits.ipv4_per_eni),
        (8, 30),
        "stopped, and started as another type"
    );
    let before = world.pool.facts().clone();
    world.event(Event::Facts(Box::new(NodeFacts {
        instance: "i-other".into(),
        instance_type: "t3.small".into(),
        ..facts()
    })));
    assert_eq!(*world.pool.facts(), before);
    assert!(world.alarms.iter().any(|alarm| alarm.kind == "other-instance"));
}

/// Killed between a Create and its answer, and started with other `ADDITIONAL_ENI_TAGS`, while EC2 does not list the
/// new ENI yet: the same token cannot be used, and the ENI must not be lost.
#[test]
fn a_creation_repeated_under_other_tags_leaks_no_eni() {
    let mut world = started(3, 4, policy(0));
    world.eager = false;
    for n in 0..4 {
        world.add(n, PATIENCE);
    }
    while world.flush() {}
    let is_create = |work: &Work| matches!(work, Work::Call(_, CloudCall::CreateEni { .. }));
    let create = world.work.iter().position(is_create).unwrap();
    world.faults.push_back(Fault::LostAfter);
    world.deliver(create);
    while world.flush() {}
    let before = world.enis.len();
    world.policy.additional_tags = [("team".to_owned(), "net".to_owned())].into();
    world.retagged = true;
    world.crash(None, false);
    while world.flush() {}
    let unlisted = |work: &Work| match work {
        Work::Call(call, CloudCall::DescribeEnis { scope, .. }) => {
            (*scope == DescribeScope::OursUnattached).then_some(*call)
        }
        _ => None,
    };
    let call = world.work.iter().find_map(unlisted).unwrap();
    world.work.retain(|work| unlisted(work).is_none());
    world.event(Event::CallEnded {
        call,
        result: Ok(CloudAnswer::Enis(vec![])),
    });
    world.eager = true;
    world.advance(Duration::from_mins(5));
    assert!(
        world.log.iter().filter(|line| line.starts_with("Create")).count() > 1,
        "{:?}",
        world.log
    );
    assert!(world.pool.creations().is_empty());
    assert_eq!(world.pool.enis().len(), world.enis.len(), "no ENI is forgotten");
    assert!(
        world.enis.values().all(|eni| eni.attachment.is_some()),
        "{:?}",
        world.log
    );
    assert!(world.enis.len() >= before);
}

/// What a DEL that knew only the sandbox left: nobody reads it as a pod for ever.
#[test]
fn rules_without_a_route_to_an_address_nobody_holds_are_removed_and_the_address_is_used_again() {
    let mut world = started(1, 2, policy(0));
    let first = world.add(1, PATIENCE);
    let address = world.granted(first).unwrap();
    world.eager = false;
    world.del(1);
    while world.flush() {}
    // The kernel is read while the pod is being taken away, and again when the rules alone are left.
    world.routes.insert(address.into(), key(1));
    world.kernel();
    world.routes.remove(&address.into());
    world.bare_rules.insert(address);
    world.kernel();
    assert!(world.bare_rules.contains(&address), "one reading is not enough");
    assert!(world.pool.known(address).unwrap().doubt.is_some());
    world.eager = true;
    world.advance(Duration::from_mins(2));
    assert!(world.bare_rules.is_empty());
    let next = world.add(2, PATIENCE);
    let other = world.add(3, PATIENCE);
    world.settle();
    assert!(
        [next, other]
            .map(|waiter| world.granted(waiter))
            .contains(&Some(address))
    );
}

/// While a sandbox holds the address its rules are its own, whatever else is missing.
#[test]
fn rules_without_a_route_to_an_address_a_sandbox_holds_stay() {
    let mut world = started(1, 2, policy(0));
    let first = world.add(1, PATIENCE);
    let address = world.granted(first).unwrap();
    world.routes.remove(&address.into());
    world.bare_rules.insert(address);
    for _ in 0..4 {
        world.kernel();
        world.advance(Duration::from_mins(1));
    }
    assert!(world.bare_rules.contains(&address));
}

#[test]
fn ipamd_93_an_eni_taken_away_is_lost_loudly_and_its_sandboxes_are_kept() {
    let mut world = started(3, 4, policy(0));
    for n in 0..4 {
        world.add(n, PATIENCE);
    }
    let id = world.pool.allocations()[&key(3)].eni.clone();
    assert_ne!(id, world.facts.primary_eni);
    world.advance(Duration::from_secs(120));
    world.detach_from_outside(&id);
    world.settle();
    assert_eq!(world.pool.enis()[&id].state, EniState::Lost);
    assert!(world.alarms.iter().any(|alarm| alarm.kind == "eni-lost"));
    assert!(
        world.pool.allocations().contains_key(&key(3)),
        "nothing is freed by it"
    );
    world.live.remove(&key(3));
    world.del(3);
    world.advance(Duration::from_secs(600));
    assert!(!world.pool.enis().contains_key(&id) || world.pool.enis()[&id].state != EniState::Lost);
}

#[test]
fn ipamd_82_a_full_disk_refuses_adds_and_lets_dels_through() {
    let mut world = started(3, 4, policy(1));
    world.add(1, PATIENCE);
    world.eager = false;
    let add = world.add(2, PATIENCE);
    world.fail_flush();
    assert_eq!(world.refused(add).unwrap().kind, RefusalKind::DiskFull);
    let add = world.add(3, PATIENCE);
    assert_eq!(world.refused(add).unwrap().kind, RefusalKind::DiskFull);
    let del = world.del(1);
    world.fail_flush();
    assert_eq!(world.clients[&del].last, Some(Reply::Settled));
    assert_eq!(world.clients[&del].released.as_ref().unwrap().len(), 1);
    world.advance(Duration::from_secs(20));
    world.eager = true;
    world.settle();
    assert_eq!(world.pool.records(), world.store);
    let add = world.add(4, PATIENCE);
    assert!(world.granted(add).is_some());
}

#[test]
fn a_policy_that_forbids_provisioning_asks_for_nothing() {
    let mut world = started(
        3,
        4,
        Policy {
            provisioning: false,
            ..policy(1)
        },
    );
    let waiter = world.add(1, PATIENCE);
    assert_eq!(world.refused(waiter).unwrap().kind, RefusalKind::Exhausted);
    assert_eq!(world.calls("Assign") + world.calls("Create"), 0);
    assert!(world.now > Tick(0));
}

#[test]
fn idle_costs_four_describes_an_hour() {
    let mut world = started(3, 10, policy(1));
    world.add(1, PATIENCE);
    world.advance(Duration::from_secs(300));
    world.log.clear();
    world.advance(Duration::from_secs(86_400));
    assert_eq!(
        (world.log.len(), world.calls("Describe")),
        (96, 96),
        "{:?}",
        world.log
    );
}

/// Somebody unassigns addresses by hand: EC2's word is enough to stop handing them out, a pod keeps its own, and when
/// EC2 insists and no pod is wired to it, its place is filled again.
#[test]
fn ipamd_89_an_address_ec2_no_longer_lists_is_quarantined_and_replaced() {
    let mut world = started(1, 4, policy(1));
    let pod = world.add(0, PATIENCE);
    let held = world.granted(pod).unwrap();
    let id = world.facts.primary_eni.clone();
    let primary = world.enis.get_mut(&id).unwrap();
    let gone: Vec<_> = primary
        .secondary
        .iter()
        .copied()
        .filter(|address| *address != held)
        .collect();
    primary.secondary.clear();
    world.advance(Duration::from_secs(3600));
    assert_eq!(
        world
            .alarms
            .iter()
            .filter(|alarm| alarm.kind == "quarantined")
            .count(),
        3
    );
    assert_eq!(
        world.pool.allocations()[&key(0)].address,
        held,
        "the pod keeps what it has"
    );
    world.advance(Duration::from_secs(300));
    for n in 1..3 {
        let waiter = world.add(n, PATIENCE);
        let address = world.granted(waiter).unwrap();
        assert!(
            address != held && !gone.contains(&address),
            "{address} is no longer ours"
        );
    }
}

/// EC2 shows an ENI that belongs to another instance, a trunk, and one a human has marked: none is touched.
#[test]
fn ipamd_19_22_what_is_not_ours_takes_a_place_and_nothing_more() {
    for (tag, value, kind) in [
        ("node.k8s.amazonaws.com/instance_id", "i-another", "interface"),
        ("node.k8s.amazonaws.com/no_manage", "true", "interface"),
        ("x", "y", "trunk"),
        ("x", "y", "efa-only"),
    ] {
        let mut world = started(3, 4, policy(0));
        for n in 0..4 {
            world.add(n, PATIENCE);
        }
        let id = world.pool.allocations()[&key(3)].eni.clone();
        world.live.clear();
        world.del(3);
        let eni = world.enis.get_mut(&id).unwrap();
        eni.interface_type = kind.to_owned();
        eni.tags = [(tag.to_owned(), value.to_owned())].into();
        world.log.clear();
        world.advance(Duration::from_secs(7200));
        for n in 4..8 {
            let waiter = world.add(n, PATIENCE);
            assert!(
                world.clients[&waiter]
                    .grant
                    .as_ref()
                    .is_none_or(|grant| grant.eni != id),
                "{tag} {kind}"
            );
        }
        assert_eq!(sizes(&world), [3, 3, 3]);
        let touched = |line: &&String| line.contains(id.as_str());
        assert_eq!(world.log.iter().filter(touched).count(), 0, "{:?}", world.log);
    }
}

/// The networks of the last start would cut pods off from one that came since, until IMDS is asked again.
#[test]
fn dataplane_26_a_restart_knows_the_networks_that_came_since_the_last_one() {
    let mut world = started(1, 4, policy(1));
    let networks: Vec<crate::cidr::Ipv4Cidr> = ["10.0.0.0/16", "10.2.0.0/16"]
        .map(|cidr| cidr.parse().unwrap())
        .into();
    world.event(Event::VpcCidrs(networks.clone()));
    world.settle();
    let stored = crate::records::stored_facts(&world.store).unwrap();
    assert_eq!(stored.vpc_cidrs, networks);
    world.event(Event::VpcCidrs(networks));
    assert!(!world.flush(), "what is known is not written again");
}

/// A barrier has nothing to write: when it fails, no record is left that would show that the disk works again.
#[test]
fn a_disk_that_failed_with_nothing_left_to_write_is_tried_again() {
    let mut world = started(1, 5, policy(1));
    world.eager = false;
    world.add(1, PATIENCE);
    world.del(99);
    assert!(world.flush(), "the ADD is on the disk");
    world.fail_flush();
    let refused = world.add(2, PATIENCE);
    assert_eq!(world.refused(refused).unwrap().kind, RefusalKind::DiskFull);
    world.eager = true;
    world.settle();
    world.advance(Duration::from_secs(30));
    let waiter = world.add(3, PATIENCE);
    assert!(world.granted(waiter).is_some(), "{:?}", world.refused(waiter));
}
