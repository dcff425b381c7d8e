//! What the simulator found, as small as it can be told.

use std::net::Ipv4Addr;
use std::time::Duration;

use super::world::{World, v4};
use crate::cidr::Ipv4Cidr;
use crate::cloud::FailureClass;
use crate::event::Event;
use crate::ids::EniId;
use crate::model::{EniRole, EniState};
use crate::policy::{Policy, WarmTarget};
use crate::records::RecordKey;
use crate::witness::Doubt;

fn world_with_two_enis() -> (World, EniId) {
    let policy = Policy {
        warm: WarmTarget::Enis(0),
        ..Policy::default()
    };
    let mut world = World::new(3, 4, policy);
    world.settle();
    for n in 0..4 {
        world.add(n, Duration::from_secs(30));
    }
    world.settle();
    let second = world
        .pool
        .enis()
        .values()
        .find(|eni| eni.role == EniRole::Secondary);
    let second = second.unwrap().id.clone();
    (world, second)
}

/// A sweep of the start showed an ENI that was deleted since. When a Describe fails a day later, nothing but that sweep
/// speaks for it.
#[test]
fn an_old_imds_sweep_brings_nothing_back_when_ec2_falls_silent() {
    let (mut world, second) = world_with_two_enis();
    let snapshot = world.imds_snapshot();
    world.event(Event::Imds(snapshot));
    world.settle();
    for n in 0..4 {
        world.del(n);
    }
    world.detach_from_outside(&second);
    world.enis.remove(&second);
    world.advance(Duration::from_secs(7200));
    assert!(!world.pool.enis().contains_key(&second));
    world.outage = Some(FailureClass::Throttled);
    world.advance(Duration::from_secs(7200));
    assert!(
        !world.pool.enis().contains_key(&second),
        "{:?}",
        world.pool.enis()
    );
}

/// Somebody unassigned a pod's address. When the pod is gone, the kernel is asked once more, and the address is
/// forgotten; otherwise EC2 would be asked about it every ten minutes for ever.
#[test]
fn an_unassigned_address_is_forgotten_when_its_pod_is_gone() {
    let (mut world, _) = world_with_two_enis();
    let address = world.live[&super::world::key(0)];
    for eni in world.enis.values_mut() {
        eni.secondary.retain(|other| *other != address);
    }
    world.advance(Duration::from_secs(4000));
    world.del(0);
    world.advance(Duration::from_secs(1800));
    assert!(world.pool.placed(address).is_none());
    world.log.clear();
    world.advance(Duration::from_secs(7200));
    assert!(world.calls("Describe") <= 8, "idle: {:?}", world.log);
}

/// The same where nothing rests: the kernel is read at once, while the plugin is still taking the route away.
#[test]
fn an_unassigned_address_is_forgotten_though_its_route_went_after_the_reading() {
    let (mut world, _) = world_with_two_enis();
    world.policy.cooldown = Duration::ZERO;
    world.event(Event::Reconfigured(Box::new(world.policy.clone())));
    let key = super::world::key(0);
    let address = world.live[&key];
    for eni in world.enis.values_mut() {
        eni.secondary.retain(|other| *other != address);
    }
    world.advance(Duration::from_secs(4000));
    world.eager = false;
    world.del(0);
    world.routes.insert(address, key);
    while world.flush() {}
    world.kernel();
    world.routes.remove(&address);
    world.eager = true;
    world.advance(Duration::from_secs(7200));
    assert!(
        world.pool.placed(address).is_none(),
        "{:?}",
        world.pool.known(address)
    );
}

/// The first address that the next pod could have.
fn idle(world: &World) -> Ipv4Addr {
    let usable = world.pool.usable_addresses(world.now);
    v4(usable.into_iter().next().unwrap())
}

/// An address was unassigned by somebody and is the own address of the next ENI EC2 creates: no pod may get it.
#[test]
fn a_new_enis_own_address_leaves_the_pool() {
    let (mut world, _) = world_with_two_enis();
    let primary = world.facts.primary_eni.clone();
    let stolen = idle(&world);
    for eni in world.enis.values_mut() {
        eni.secondary.retain(|other| *other != stolen);
    }
    let mut eni = world.pool.enis().get(&primary).unwrap().clone();
    eni.id = "eni-new".into();
    eni.mac = "02:00:00:00:77:77".parse().unwrap();
    eni.role = EniRole::Secondary;
    eni.device = None;
    eni.cidrs.clear();
    eni.primary = stolen;
    world.pool.insert_eni(eni);
    assert!(!world.pool.usable_addresses(world.now).contains(&stolen.into()));
    assert_eq!(crate::verify::pool(&world.pool, world.now), []);
}

/// A secondary address was unassigned by somebody, and EC2 gave the /28 around it: it is carried once, by what EC2 said
/// last.
#[test]
fn a_prefix_takes_the_place_of_a_stale_address_in_it() {
    let (mut world, second) = world_with_two_enis();
    let block = Ipv4Cidr::prefix_around(idle(&world));
    let is_held = |address: Ipv4Addr| {
        let known = world.pool.known(address);
        known.is_some_and(|known| known.holder.is_some())
    };
    let held = block.addresses().any(is_held);
    let placed = crate::model::Placed {
        verified: true,
        published: true,
        releasing: false,
    };
    world.pool.place(&second, block, placed);
    assert_eq!(crate::verify::pool(&world.pool, world.now), []);
    assert_eq!(world.pool.enis()[&second].cidrs.contains_key(&block), !held);
}

/// Others have taken a block of 16 with a pod in it from the primary ENI, and EC2 has given one address of it to the next
/// ENI. Returned is that address.
fn world_with_a_taken_block() -> (World, EniId, Ipv4Addr) {
    let policy = Policy {
        prefixes: Some(WarmTarget::Prefixes(0)),
        ..Policy::default()
    };
    let mut world = World::new(3, 2, policy);
    world.blocks_free = 1;
    world.settle();
    world.add(0, Duration::from_secs(30));
    let primary = world.facts.primary_eni.clone();
    let eni = world.enis.get_mut(&primary).unwrap();
    let block = eni.prefixes.pop().unwrap();
    let held = v4(world.live[&super::world::key(0)]);
    let given = block.addresses().find(|address| *address != held).unwrap();
    world.advance(Duration::from_secs(3700));
    assert_eq!(world.pool.known(given).unwrap().doubt, Some(Doubt::NotInEc2));
    world.returning.push(given);
    world.add(1, Duration::from_secs(30));
    let carries = |eni: &crate::cloud::CloudEni| eni.secondary.contains(&given);
    let other = world.enis.values().find(|eni| carries(eni)).unwrap().id.clone();
    assert_ne!(other, primary, "{:?}", world.log);
    (world, other, given)
}

/// As long as a pod keeps what is known of the block together, the address cannot be moved; nobody gets it where it is not.
#[test]
fn what_ec2_gives_again_elsewhere_is_not_given_out_where_it_was_before() {
    let (mut world, other, given) = world_with_a_taken_block();
    let is_usable = |world: &World| world.pool.usable_addresses(world.now).contains(&given.into());
    let is_here = |world: &World| world.pool.known(given).is_some_and(|known| known.eni == other);
    assert!(!is_usable(&world) || is_here(&world), "{:?}", world.log);
    for _ in 0..20 {
        world.advance(Duration::from_secs(100));
        assert!(!is_usable(&world) || is_here(&world), "{:?}", world.log);
    }
    for n in 2..6 {
        world.add(n, Duration::from_secs(30));
    }
    let strange = world.pool.allocations().values().find(|held| {
        let there = &world.enis[&held.eni];
        held.main.is_none()
            && held.key != super::world::key(0)
            && !there.cidrs().any(|cidr| cidr.contains(v4(held.address)))
    });
    assert_eq!(strange, None);
    // With the pod the block goes, and the address is where EC2 has it.
    world.del(0);
    world.advance(Duration::from_secs(7200));
    assert!(is_here(&world), "{:?}", world.pool.known(given));
    assert_eq!(world.pool.known(given).unwrap().doubt, None);
}

/// The same, when EC2 falls silent: IMDS lists the address, but does not move it, and says nothing for where it was.
#[test]
fn imds_does_not_speak_for_an_address_where_it_lists_none() {
    let (mut world, other, given) = world_with_a_taken_block();
    assert_ne!(world.pool.known(given).unwrap().eni, other);
    world.outage = Some(FailureClass::Throttled);
    world.advance(Duration::from_secs(4000));
    let snapshot = world.imds_snapshot();
    world.event(Event::Imds(snapshot));
    world.settle();
    assert!(!world.pool.usable_addresses(world.now).contains(&given.into()));
}

/// A pod's record is lost, so that only the kernel speaks for it, and EC2 omits its address for a moment, too. It rests from
/// the end of the pod on.
#[test]
fn what_the_kernel_alone_speaks_for_rests_from_its_end_whatever_ec2_omits() {
    let (mut world, second) = world_with_two_enis();
    let on_second = |held: &&crate::model::Allocation| held.eni == second;
    let held = world.pool.allocations().values().find(on_second).unwrap().clone();
    world
        .store
        .remove(&RecordKey::Allocation(held.key.clone()).text())
        .unwrap();
    let eni = world.enis.get_mut(&second).unwrap();
    eni.secondary.retain(|other| *other != held.address);
    world.crash(None, true);
    world.settle();
    assert_eq!(
        world.pool.known(held.address).unwrap().doubt,
        Some(Doubt::NotInEc2)
    );
    world.advance(Duration::from_secs(25));
    world.routes.remove(&held.address);
    world.kernel();
    let went = world.now;
    world
        .enis
        .get_mut(&second)
        .unwrap()
        .secondary
        .push(v4(held.address));
    for _ in 0..29 {
        world.advance(Duration::from_secs(1));
        assert!(!world.pool.is_usable(held.address, world.now));
    }
    assert_eq!(world.pool.known(held.address).unwrap().last_used, Some(went));
    world.advance(Duration::from_secs(600));
    assert!(world.pool.is_usable(held.address, world.now));
}

/// A daemon died before it was told that its ENI is attached, and EC2's list lags: "in use" is all that the next one hears.
/// The ENI is given up only when no list can be too old to show it.
#[test]
fn an_eni_that_is_in_use_is_not_given_up_before_ec2_must_have_listed_it() {
    for (seconds, is_kept) in [(58, true), (600, false)] {
        let policy = Policy {
            warm: WarmTarget::Enis(0),
            ..Policy::default()
        };
        let mut world = World::new(2, 4, policy);
        world.settle();
        world.outage = Some(FailureClass::Conflict);
        world.outage_of = "Attach";
        for n in 0..4 {
            world.add(n, Duration::from_secs(30));
        }
        world.advance(Duration::from_secs(seconds));
        assert_eq!(world.calls("Create") == 1, is_kept, "{:?}", world.log);
        assert_eq!(world.calls("Delete") == 0, is_kept, "{:?}", world.log);
    }
}

/// An ENI was detached by force under its pods, and its record is lost at the same time. It is not taken up again while
/// sandboxes have addresses of it; once they are gone, it is.
#[test]
fn an_eni_that_is_found_unattached_waits_until_its_sandboxes_are_gone() {
    let (mut world, second) = world_with_two_enis();
    let on_it = |world: &World| {
        let held = world.pool.allocations().values();
        held.filter(|held| held.eni == second).count()
    };
    assert!(on_it(&world) > 0);
    // What is created in the same instant again would be the same by its token.
    world.advance(Duration::from_secs(100));
    let eni = world.enis.get_mut(&second).unwrap();
    eni.attachment = None;
    let mac = eni.mac;
    world.links.remove(&mac);
    world.store.remove(&format!("eni/{second}")).unwrap();
    world.crash(None, true);
    world.settle();
    world.advance(Duration::from_secs(4000));
    assert!(on_it(&world) > 0);
    assert!(
        !world.pool.enis().contains_key(&second),
        "{:?}",
        world.pool.enis().get(&second)
    );
    for n in 0..4 {
        world.del(n);
    }
    world.advance(Duration::from_secs(4 * 3600));
    let is_used_or_deleted = |world: &World| {
        let there = world.pool.enis().get(&second);
        there.is_none_or(|eni| eni.state == EniState::Ready)
            && there.is_some() == world.enis.contains_key(&second)
    };
    assert!(is_used_or_deleted(&world), "{:?}", world.pool.enis().get(&second));
}

/// An ENI that was detached by force finds no place any more. If somebody may be reached by a public address of it, it is
/// left to a human.
#[test]
fn an_unattached_eni_with_a_public_address_is_not_deleted() {
    for is_public in [false, true] {
        let (mut world, second) = world_with_two_enis();
        for n in 0..4 {
            world.del(n);
        }
        let eni = world.enis.get_mut(&second).unwrap();
        if is_public {
            eni.public = vec![eni.primary];
        }
        world.detach_from_outside(&second);
        world.policy.max_enis = Some(1);
        world.event(Event::Reconfigured(Box::new(world.policy.clone())));
        world.settle();
        world.advance(Duration::from_secs(12 * 3600));
        assert_eq!(world.enis.contains_key(&second), is_public);
        let refused = world.alarms.iter().filter(|alarm| alarm.kind == "not-deleted");
        assert!(refused.count() <= 20);
    }
}

/// A subnet without a block of 16 gives single addresses meanwhile. When the pods are gone, one of these is enough by the
/// target, but the prefix stays: given back, it would be the subnet's next block, and be asked for again at once.
#[test]
fn a_prefix_does_not_go_because_single_addresses_stand_in() {
    let policy = Policy {
        prefixes: Some(WarmTarget::Prefixes(0)),
        cooldown: Duration::ZERO,
        ..Policy::default()
    };
    let mut world = World::new(3, 4, policy);
    world.blocks_free = 1;
    world.settle();
    for n in 0..18 {
        world.add(n, Duration::from_secs(30));
    }
    world.settle();
    let primary = world.facts.primary_eni.clone();
    let there = |world: &World| {
        let eni = &world.enis[&primary];
        (eni.prefixes.len(), eni.secondary.len())
    };
    assert_eq!(there(&world).0, 1);
    assert!(there(&world).1 > 0);
    for n in 0..18 {
        world.del(n);
    }
    world.log.clear();
    for _ in 0..360 {
        world.advance(Duration::from_secs(5));
        assert_eq!(there(&world).0, 1, "{:?}", world.log);
    }
}

/// At the limit of ENIs a subnet is asked for a block of 16 in the place of a single address, now and then. The ENI stays
/// for it, though it carries nothing else.
#[test]
fn a_full_node_does_not_make_an_eni_anew_to_ask_for_a_block() {
    let policy = Policy {
        prefixes: Some(WarmTarget::Prefixes(2)),
        ..Policy::default()
    };
    let mut world = World::new(2, 2, policy);
    world.blocks_free = 0;
    world.settle();
    world.advance(Duration::from_hours(4));
    let carried = |world: &World| -> usize { world.enis.values().map(|eni| eni.secondary.len()).sum() };
    assert_eq!(carried(&world), 2, "{:?}", world.log);
    world.log.clear();
    world.advance(Duration::from_hours(4));
    assert_eq!(
        (world.calls("Detach"), world.calls("Create")),
        (0, 0),
        "{:?}",
        world.log
    );
    let asked = world.calls("Assign");
    assert!((1..=24).contains(&asked), "{asked}: {:?}", world.log);
    world.blocks_free = 2;
    world.advance(Duration::from_hours(2));
    let prefixes: usize = world.enis.values().map(|eni| eni.prefixes.len()).sum();
    assert_eq!(prefixes, 2, "{:?}", world.log);
}
