//! Giving back: what is surplus, on which witnesses it goes, and what keeps it.

use std::collections::BTreeSet;
use std::time::Duration;

use super::growth::{PATIENCE, policy, run, sizes, started};
use super::subnets::{custom, custom_world};
use super::targets::{ips, prefixes};
use super::world::{Fault, World, attachment, key};
use crate::cidr::Ipv4Cidr;
use crate::cloud::{CloudEni, ConnectionTracking, FailureClass};
use crate::event::Event;
use crate::ids::{DeviceIndex, EniId, Mac};
use crate::model::{Eni, EniState};
use crate::policy::{Policy, WarmTarget};
use crate::tags;

mod modes;
mod targets;
mod witnesses;

/// By then whatever is surplus has rested, lasted, and gone.
const AGES: Duration = Duration::from_secs(300);

fn configure(world: &mut World, policy: Policy) {
    world.policy = policy.clone();
    world.event(Event::Reconfigured(Box::new(policy)));
    world.settle();
}

fn stop(world: &mut World, pods: std::ops::Range<u32>) {
    for n in pods {
        world.del(n);
    }
}

/// Goes on until an intent to give back is recorded, and nothing of what follows from it has happened.
fn until_intent(world: &mut World) {
    world.eager = false;
    while !world.pool.enis().values().any(is_leaving) {
        world.advance(Duration::from_millis(500));
        if !world.pool.enis().values().any(is_leaving) {
            while world.step_once() {}
        }
    }
}

fn is_leaving(eni: &Eni) -> bool {
    eni.state == EniState::Draining || eni.cidrs.values().any(|placed| placed.releasing)
}

/// Calls that change something at EC2.
fn changes(world: &World) -> Vec<&str> {
    let changing = world.log.iter().filter(|line| !line.starts_with("Describe"));
    changing.map(String::as_str).collect()
}

/// An ENI of ours that is there already.
fn attach(world: &mut World, device: u32, addresses: u8, interface_type: &str, is_tagged: bool) -> EniId {
    let last = u8::try_from(device).unwrap();
    let id = EniId(format!("eni-there-{device}"));
    let instance = (tags::INSTANCE.to_owned(), world.facts.instance.to_string());
    let eni = CloudEni {
        id: id.clone(),
        mac: Mac([2, 0, 0, 9, 0, last]),
        subnet: world.facts.subnet.clone(),
        subnet_cidr: None,
        primary: [10, 0, 200 + last, 4].into(),
        secondary: (0..addresses)
            .map(|n| [10, 0, 200 + last, 10 + n].into())
            .collect(),
        prefixes: vec![],
        prefixes6: vec![],
        public: vec![],
        tracking: ConnectionTracking::default(),
        groups: vec![],
        interface_type: interface_type.to_owned(),
        attachment: Some(attachment(&id, &world.facts.instance, DeviceIndex(device))),
        description: if is_tagged {
            format!("aws-K8S-{}", world.facts.instance)
        } else {
            String::new()
        },
        tags: Some(instance).filter(|_| is_tagged).into_iter().collect(),
    };
    world.links.insert(eni.mac);
    world.enis.insert(id.clone(), eni);
    id
}

/// A node whose ENIs carry so much already, the primary one first.
fn furnished(policy: Policy, primary: u32, others: &[u8]) -> World {
    let mut world = World::with_addresses(3, 10, policy, primary);
    for (index, addresses) in others.iter().enumerate() {
        attach(
            &mut world,
            u32::try_from(index).unwrap() + 1,
            *addresses,
            "interface",
            true,
        );
    }
    world.settle();
    world.kernel();
    world.settle();
    world
}

/// Two addresses on the primary ENI and four on another, which is no longer young; all of them are wanted.
fn six_on_two() -> World {
    let mut world = furnished(ips(6, 0), 2, &[4]);
    world.advance(Duration::from_secs(61));
    world
}

/// What has only just been wanted stays, and what is surplus for a moment only.
#[test]
fn an_eni_younger_than_a_minute_stays_and_so_does_a_surplus_that_does_not_last() {
    let mut world = started(
        3,
        4,
        Policy {
            cooldown: Duration::ZERO,
            ..policy(0)
        },
    );
    run(&mut world, 0..4);
    stop(&mut world, 0..4);
    world.advance(Duration::from_secs(59));
    assert_eq!(sizes(&world), [3, 3]);
    for _ in 0..10 {
        run(&mut world, 0..4);
        world.advance(Duration::from_secs(5));
        stop(&mut world, 0..4);
        world.advance(Duration::from_secs(20));
    }
    assert_eq!(sizes(&world), [3, 3]);
    assert_eq!(world.calls("Detach"), 0);
    world.advance(Duration::from_secs(35));
    assert_eq!(sizes(&world), [3]);
}

/// Q42: an ENI that somebody takes away leaves no rules.
#[test]
fn ipamd_q42_a_lost_eni_leaves_no_rules() {
    let mut world = started(3, 4, policy(1));
    run(&mut world, 0..1);
    let id = world.configured.first().cloned().unwrap();
    world.eager = false;
    world.detach_from_outside(&id);
    while world.configured.contains(&id) {
        assert!(world.step_once(), "its rules stay: {:?}", world.log);
    }
}

/// A kill before and after every single piece of work of a return; with the call happening or not; and a reboot.
#[test]
fn a_kill_at_any_instant_of_a_return_resumes() {
    for (whole, happen, boot) in [
        (false, false, None),
        (false, true, None),
        (true, false, None),
        (true, true, None),
        (false, true, Some("another")),
        (true, true, Some("another")),
        (true, false, Some("another")),
    ] {
        for instant in 0..14 {
            let mut world = six_on_two();
            configure(&mut world, ips(if whole { 1 } else { 3 }, 0));
            world.log.clear();
            until_intent(&mut world);
            for _ in 0..instant {
                world.step_once();
            }
            world.crash(boot, happen);
            world.eager = true;
            world.settle();
            run(&mut world, 0..1);
            world.advance(Duration::from_secs(1200));
            let left = if whole { 2 } else { 4 };
            let total = sizes(&world).iter().sum::<usize>();
            assert_eq!(
                total, left,
                "{whole} {happen} {boot:?} {instant}: {:?}",
                world.log
            );
            let is_attached = |eni: &CloudEni| eni.attachment.is_some();
            assert!(world.enis.values().all(is_attached), "{instant}: nothing leaks");
            let known: BTreeSet<Ipv4Cidr> = world
                .pool
                .enis()
                .values()
                .flat_map(|eni| eni.cidrs.keys().copied())
                .collect();
            let there: BTreeSet<Ipv4Cidr> = world.enis.values().flat_map(CloudEni::cidrs).collect();
            assert_eq!(known, there);
            run(&mut world, 1..6);
            assert_eq!(world.pool.allocations().len(), 6);
        }
    }
}

/// At most one step in 30 s, however the targets move.
#[test]
fn a_return_is_begun_at_most_every_30_seconds() {
    let mut world = furnished(ips(8, 0), 9, &[]);
    world.log.clear();
    for warm in (0..8).rev() {
        configure(&mut world, ips(warm, 0));
        world.advance(Duration::from_secs(10));
    }
    assert!(world.calls("Unassign") <= 2, "{:?}", world.log);
    world.advance(AGES);
    assert_eq!(sizes(&world), [1]);
}
