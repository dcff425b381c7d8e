//! Random interleavings of everything that can happen, judged after every event.

use std::collections::BTreeSet;
use std::time::Duration;

use proptest::prelude::*;

use super::subnets::subnet;
use super::world::{Fault, Work, World, but_budget};
use crate::cidr::Ipv4Cidr;
use crate::cloud::FailureClass;
use crate::event::Event;
use crate::ids::{CallId, CardIndex, CommitId, EniId, Mac, SandboxKey, SecurityGroupId, Tick, WaiterId};
use crate::limits::{FurtherCards, InstanceLimits};
use crate::policy::{Policy, WarmTarget};
use crate::pool::Pool;
use crate::recover::Start;
use crate::verify;
use crate::wishes::Wish;
use crate::witness::{ImdsSnapshot, KernelFacts, LinkFact};

#[derive(Debug, Clone)]
enum Action {
    Add(u32, u64),
    /// The same sandbox's second interface, on the second card.
    AddCompanion(u32, u64),
    Del(u32),
    Gc(Vec<u32>),
    GiveUp(usize),
    Flush,
    FailFlush,
    Deliver(usize),
    Fault(Fault),
    KernelFails(bool),
    Advance(u64),
    Crash {
        calls_happen: bool,
    },
    Reboot,
    Imds(usize),
    Kernel,
    Detach(usize),
    /// Somebody tags a subnet so (0 is the node's own), or fills it.
    Tag(usize, Option<&'static str>),
    Fill(usize, u32),
    /// Somebody changes the primary ENI's groups.
    Groups(u8),
    Retarget(WarmTarget, Option<WarmTarget>),
    Associate(usize),
    Cordon(bool),
    Noise(u64),
}

fn classes() -> impl Strategy<Value = FailureClass> {
    prop::sample::select(super::budget::CLASSES.to_vec())
}

fn actions() -> impl Strategy<Value = Action> {
    prop_oneof![
        8 => (0..14_u32, 100..40_000_u64).prop_map(|(n, patience)| Action::Add(n, patience)),
        3 => (0..14_u32, 100..40_000_u64).prop_map(|(n, patience)| Action::AddCompanion(n, patience)),
        6 => (0..14_u32).prop_map(Action::Del),
        1 => prop::collection::vec(0..14_u32, 0..14).prop_map(Action::Gc),
        2 => any::<prop::sample::Index>().prop_map(|n| Action::GiveUp(n.index(1000))),
        10 => Just(Action::Flush),
        1 => Just(Action::FailFlush),
        14 => (0..8_usize).prop_map(Action::Deliver),
        2 => classes().prop_map(|class| Action::Fault(Fault::Refuse(class))),
        2 => prop::sample::select(vec![Fault::LostBefore, Fault::LostAfter, Fault::Omit, Fault::Old]).prop_map(Action::Fault),
        1 => any::<bool>().prop_map(Action::KernelFails),
        5 => prop_oneof![1..500_u64, 1_000..40_000_u64, 60_000..400_000_u64].prop_map(Action::Advance),
        2 => any::<bool>().prop_map(|calls_happen| Action::Crash { calls_happen }),
        1 => Just(Action::Reboot),
        1 => (0..5_usize).prop_map(Action::Imds),
        2 => Just(Action::Kernel),
        1 => (0..4_usize).prop_map(Action::Detach),
        1 => (0..3_usize, prop::sample::select(vec![None, Some("0"), Some("1")])).prop_map(|(n, role)| Action::Tag(n, role)),
        1 => (0..3_usize, 0..12_u32).prop_map(|(n, free)| Action::Fill(n, free)),
        1 => (0..3_u8).prop_map(Action::Groups),
        2 => targets().prop_map(|(warm, prefixes)| Action::Retarget(warm, prefixes)),
        1 => (0..4_usize).prop_map(Action::Associate),
        1 => any::<bool>().prop_map(Action::Cordon),
        1 => any::<u64>().prop_map(Action::Noise),
    ]
}

/// Events no healthy daemon sends: they must be taken all the same.
fn noise(world: &mut World, n: u64) {
    let (eni, mac) = (EniId(format!("eni-{n}")), Mac([9; 6]));
    world.event(match n % 8 {
        0 => Event::Committed { commit: CommitId(n) },
        1 => Event::CallEnded {
            call: CallId(n),
            result: Ok(crate::cloud::CloudAnswer::Done),
        },
        2 => Event::LinkGone { mac },
        3 => Event::LinkSeen(LinkFact {
            mac,
            name: "docker0".into(),
            ifindex: 4_000,
        }),
        4 => Event::EniConfigured { eni, result: Ok(()) },
        5 => Event::Published {
            eni,
            addresses: vec![],
            result: Err(String::new()),
        },
        6 => Event::GiveUp {
            waiter: WaiterId(n | 1 << 40),
        },
        _ => Event::Timer,
    });
}

fn tag(world: &mut World, nth: usize, role: Option<&str>) {
    let tags = match nth.checked_sub(1) {
        None => Some(&mut world.subnet_tags),
        Some(nth) => world.subnets.values_mut().nth(nth).map(|subnet| &mut subnet.tags),
    };
    let role = role.map(|role| ("kubernetes.io/role/cni".to_owned(), role.to_owned()));
    if let Some(tags) = tags {
        *tags = role.into_iter().collect();
    }
}

fn fill(world: &mut World, nth: usize, free: u32) {
    match nth.checked_sub(1) {
        None => world.subnet_free = free,
        Some(nth) => {
            if let Some(subnet) = world.subnets.values_mut().nth(nth) {
                subnet.free = free;
            }
        }
    }
}

fn change_groups(world: &mut World, n: u8) {
    let groups: Vec<SecurityGroupId> = vec![format!("sg-{n}").as_str().into()];
    let primary = world.facts.primary_eni.clone();
    if let Some(primary) = world.enis.get_mut(&primary) {
        primary.groups.clone_from(&groups);
    }
    world.facts.security_groups.clone_from(&groups);
    world.event(Event::Groups(groups));
}

fn perform(world: &mut World, action: Action, boots: &mut u32) {
    match action {
        Action::Add(n, patience) => {
            world.add(n, Duration::from_millis(patience));
        }
        Action::AddCompanion(n, patience) => {
            let key = SandboxKey {
                ifname: "mNicIf1".into(),
                ..super::world::key(n)
            };
            let wish = Wish::Card(CardIndex(1));
            world.add_interface(key, wish, Some("eth0".into()), Duration::from_millis(patience));
        }
        Action::Del(n) => {
            world.del(n);
        }
        Action::Gc(valid) => {
            // The runtime's list is true: it lists at least what lives.
            let mut valid = valid;
            valid.extend((0..14).filter(|n| world.live.contains_key(&super::world::key(*n))));
            world.gc(&valid);
        }
        Action::GiveUp(nth) => {
            let waiting: Vec<WaiterId> = world
                .clients
                .iter()
                .filter(|(_, client)| client.key.is_some() && client.last.is_none() && !client.gone)
                .map(|(waiter, _)| *waiter)
                .collect();
            if let Some(waiter) = waiting.get(nth % waiting.len().max(1)) {
                world.give_up(*waiter);
            }
        }
        Action::Flush => {
            world.flush();
        }
        Action::FailFlush => world.fail_flush(),
        Action::Deliver(nth) => {
            world.deliver(nth);
        }
        Action::Fault(fault) => world.faults.push_back(fault),
        Action::KernelFails(fails) => world.kernel_fails = fails,
        Action::Advance(ms) => world.advance(Duration::from_millis(ms)),
        Action::Crash { calls_happen } => world.crash(None, calls_happen),
        Action::Reboot => {
            *boots += 1;
            world.crash(Some(&format!("b00{boots}")), true);
        }
        Action::Imds(omitted) => {
            let mut snapshot = world.imds_snapshot();
            if omitted < snapshot.enis.len() {
                snapshot.enis.remove(omitted);
            } else if omitted == 4 {
                snapshot = ImdsSnapshot::default();
            }
            world.event(Event::Imds(snapshot));
        }
        Action::Kernel => world.kernel(),
        Action::Detach(nth) => {
            let secondary = |id: &&EniId| **id != world.facts.primary_eni;
            let ids: Vec<EniId> = world.enis.keys().filter(secondary).cloned().collect();
            // Only idle ENIs: a detached one takes its pods' life with it, which the oracles would have to follow.
            if let Some(id) = ids.get(nth)
                && !world
                    .pool
                    .allocations()
                    .values()
                    .any(|allocation| allocation.eni == *id)
                && world.commits.is_empty()
            {
                world.detach_from_outside(id);
            }
        }
        Action::Tag(nth, role) => tag(world, nth, role),
        Action::Fill(nth, free) => fill(world, nth, free),
        Action::Groups(n) => change_groups(world, n),
        Action::Retarget(warm, prefixes) => {
            world.policy.warm = warm;
            world.policy.prefixes = prefixes;
            let policy = world.policy.clone();
            world.event(Event::Reconfigured(Box::new(policy)));
        }
        Action::Associate(nth) => {
            // One at a time, and with an address that pods may get.
            let nth = nth % world.enis.len();
            for (index, eni) in world.enis.values_mut().enumerate() {
                let address = eni.cidrs().map(Ipv4Cidr::base).next();
                eni.public = address.filter(|_| index == nth).into_iter().collect();
            }
        }
        Action::Cordon(cordoned) => world.cordon(cordoned),
        Action::Noise(n) => noise(world, n),
    }
}

/// Up to two more subnets; by their tags one is for pods at first.
fn with_subnets(mut world: World, more: u8) -> World {
    for number in 1..=more {
        let name = format!("subnet-{}", number + 1);
        let role = ("kubernetes.io/role/cni", if number == 1 { "1" } else { "" });
        let subnet = subnet(&name, number, 10 * u32::from(number), &[role]);
        world.subnets.insert(subnet.id.clone(), subnet);
    }
    world
}

/// Three ENIs on the first card, and so many on a second.
fn with_second_card(enis: u32, policy: Policy) -> World {
    let limits = InstanceLimits {
        enis: 3,
        ipv4_per_eni: 4,
        prefixes: true,
        further: FurtherCards::new([(CardIndex(1), enis)]),
    };
    World::with_limits(limits, policy, 0)
}

/// What is stored is what is known, and starting from it gives the same pool.
fn replay(world: &World) {
    assert_eq!(world.pool.records(), world.store);
    let kernel = KernelFacts {
        links: world.pool.memory.links.values().cloned().collect(),
        pod_routes: world
            .pool
            .memory
            .pod_routes
            .iter()
            .map(|(address, device)| crate::witness::PodRoute {
                address: *address,
                device: device.clone(),
            })
            .collect(),
        bare_rules: vec![],
    };
    let start = Start {
        policy: world.policy.clone(),
        limits: Some(world.limits),
        facts: world.facts.clone(),
        records: world.store.clone(),
        kernel,
        gone: BTreeSet::new(),
    };
    let (pool, _) = Pool::recover(start, world.now);
    assert_eq!(but_budget(pool.records()), but_budget(world.store.clone()));
    assert_eq!(pool.addresses(), world.pool.addresses());
    assert_eq!(verify::pool(&pool, world.now), []);
}

/// The cloud is healthy again: everybody is answered, and everything is as it should be.
fn converges(world: &mut World) {
    world.faults.clear();
    world.blocks_free = 1_000;
    world.enis.values_mut().for_each(|eni| eni.public.clear());
    world.kernel_fails = false;
    world.subnet_tags.clear();
    world.subnet_free = 10_000;
    // A card whose only ENI is in a subnet without a block asks for one now and then, for ever.
    world.subnets.values_mut().for_each(|subnet| subnet.free = 10_000);
    world.eager = true;
    world.settle();
    world.kernel();
    for _ in 0..40 {
        world.advance(Duration::from_secs(300));
    }
    for (waiter, client) in &world.clients {
        assert!(
            client.gone || client.last.is_some(),
            "{waiter} was forgotten: {client:?}"
        );
    }
    replay(world);
    for n in 0..14 {
        world.del(n);
    }
    world.kernel();
    for _ in 0..40 {
        world.advance(Duration::from_secs(300));
    }
    assert!(world.pool.allocations().is_empty());
    assert!(world.pool.creations().is_empty(), "{:?}", world.pool.creations());
    for known in world.pool.addresses().values() {
        assert_eq!(known.doubt, None);
    }
    let groups = &world.enis[&world.facts.primary_eni].groups;
    for eni in world.enis.values() {
        assert_eq!(eni.groups, *groups, "{}", eni.id);
    }
    let theirs: Vec<&EniId> = world.enis.keys().collect();
    let ours: Vec<&EniId> = world.pool.enis().keys().collect();
    assert_eq!(
        ours, theirs,
        "EC2 and the pool know the same ENIs: {:?}",
        world.log
    );
    for eni in world.enis.values() {
        let known: BTreeSet<_> = world.pool.enis()[&eni.id].cidrs.keys().copied().collect();
        assert_eq!(known, eni.cidrs().collect(), "{}", eni.id);
    }
    world.log.clear();
    world.advance(Duration::from_secs(36_000));
    assert!(
        world.log.len() <= 44 && world.calls("Describe") == world.log.len(),
        "idle, it looks for drift and no more: {:?}",
        world.log
    );
    let waiter = world.add(99, Duration::from_secs(60));
    assert!(
        world.granted(waiter).is_some(),
        "a healthy node serves: {:?}",
        world.pool.status(world.now)
    );
    replay(world);
}

/// `PROPTEST_CASES` sets how many.
fn cases() -> ProptestConfig {
    ProptestConfig {
        max_shrink_iters: 4000,
        failure_persistence: None,
        ..ProptestConfig::default()
    }
}

/// Every kind of target, of single addresses and in prefixes.
fn targets() -> impl Strategy<Value = (WarmTarget, Option<WarmTarget>)> {
    let ips = (0..4_u32, 0..8_u32).prop_map(|(warm, minimum)| WarmTarget::Ips { warm, minimum });
    let prefixes = prop_oneof![(0..3_u32).prop_map(WarmTarget::Prefixes), ips.clone(),];
    prop_oneof![
        2 => (0..3_u32).prop_map(|enis| (WarmTarget::Enis(enis), None)),
        1 => ips.prop_map(|ips| (ips, None)),
        1 => Just((WarmTarget::Adaptive, None)),
        1 => Just((WarmTarget::Adaptive, Some(WarmTarget::Adaptive))),
        1 => prefixes.prop_map(|prefixes| (WarmTarget::Enis(1), Some(prefixes))),
    ]
}

proptest! {
    #![proptest_config(cases())]

    #[test]
    fn any_interleaving_keeps_every_invariant(
        seed in any::<u64>(),
        targets in targets(),
        cooldown in prop::sample::select(vec![0_u64, 5, 30]),
        blocks in prop::sample::select(vec![0_u32, 1, 2, 1000]),
        more_subnets in 0..3_u8,
        second_card in 0..3_u32,
        script in prop::collection::vec(actions(), 1..120),
    ) {
        let policy = Policy {
            warm: targets.0,
            prefixes: targets.1,
            cooldown: Duration::from_secs(cooldown),
            multi_nic: second_card > 0,
            seed,
            ..Policy::default()
        };
        let mut world = with_subnets(with_second_card(second_card, policy), more_subnets);
        world.eager = false;
        world.blocks_free = blocks;
        let mut boots = 0;
        for action in script {
            perform(&mut world, action, &mut boots);
            if world.commits.is_empty() && world.pool.memory.store_trouble.is_none() && !world.pool.is_dirty() {
                prop_assert_eq!(world.pool.records(), world.store.clone());
            }
        }
        converges(&mut world);
    }

    #[test]
    fn the_same_events_give_the_same_effects(seed in any::<u64>(), script in prop::collection::vec(actions(), 1..60)) {
        let run = || {
            let mut world = with_subnets(World::new(3, 4, Policy { seed, ..Policy::default() }), 2);
            world.eager = false;
            let mut boots = 0;
            for action in script.clone() {
                perform(&mut world, action, &mut boots);
            }
            let work: Vec<String> = world.work.iter().map(|work: &Work| format!("{work:?}")).collect();
            (world.log, work, world.store, world.pool.dump(Tick(0)))
        };
        prop_assert_eq!(run(), run());
    }
}
