//! Several network cards: each managed by itself, and sandboxes with an interface on each.

use std::collections::BTreeMap;
use std::time::Duration;

use super::conformance::foreign;
use super::world::{World, key};
use crate::cloud::{CloudCall, CloudEni};
use crate::effect::{Effect, RefusalKind};
use crate::ids::{CardIndex, DeviceIndex, EniId, IfName, Mark, SandboxKey, TableId, WaiterId};
use crate::limits::{FurtherCards, InstanceLimits};
use crate::model::{Eni, EniRole};
use crate::policy::{Policy, WarmTarget};
use crate::pool::Pool;
use crate::recover::Start;
use crate::wishes::Wish;
use crate::witness::KernelFacts;

const SOON: Duration = Duration::from_secs(60);
const SECOND: CardIndex = CardIndex(1);

fn policy() -> Policy {
    Policy {
        warm: WarmTarget::Ips { warm: 1, minimum: 0 },
        multi_nic: true,
        ..Policy::default()
    }
}

/// ENIs of three addresses for pods: two on the first card, so many on the others.
fn stage(further: &[(u32, u32)], policy: Policy) -> World {
    let limits = InstanceLimits {
        enis: 2,
        ipv4_per_eni: 4,
        prefixes: true,
        further: FurtherCards::new(further.iter().map(|(card, enis)| (CardIndex(*card), *enis))),
    };
    World::with_limits(limits, policy, 0)
}

fn started(further: &[(u32, u32)], policy: Policy) -> World {
    let mut world = stage(further, policy);
    world.settle();
    world
}

fn companion(n: u32, nth: u32) -> SandboxKey {
    SandboxKey {
        ifname: format!("mNicIf{nth}").as_str().into(),
        ..key(n)
    }
}

fn eth0() -> IfName {
    "eth0".into()
}

/// An ordinary interface, and one on each of these cards.
fn add_on(world: &mut World, n: u32, cards: &[u32]) -> Vec<WaiterId> {
    let mut waiters = vec![world.add(n, SOON)];
    for card in cards {
        let wish = Wish::Card(CardIndex(*card));
        waiters.push(world.add_interface(companion(n, *card), wish, Some(eth0()), SOON));
    }
    waiters
}

fn enis_on(world: &World, card: CardIndex) -> Vec<&Eni> {
    let enis = world.pool.enis().values();
    enis.filter(|eni| eni.card == card).collect()
}

/// How many addresses each card's ENIs carry at EC2.
fn at_ec2(world: &World) -> BTreeMap<u32, Vec<usize>> {
    let mut found: BTreeMap<u32, Vec<usize>> = BTreeMap::new();
    for eni in world.enis.values() {
        if let Some(attachment) = &eni.attachment {
            let carried = eni.cidrs().count();
            found.entry(attachment.card.0).or_default().push(carried);
        }
    }
    found
}

fn on_card(device: u32, card: CardIndex, kind: &str) -> CloudEni {
    let mut eni = foreign(device, &[], 0);
    eni.attachment.as_mut().unwrap().card = card;
    eni.interface_type = kind.to_owned();
    eni
}

#[test]
fn ipamd_65_an_empty_card_gets_one_eni_with_one_address_and_more_there_as_pods_take_it() {
    let mut world = started(&[(1, 2)], policy());
    assert_eq!(at_ec2(&world), [(0, vec![1]), (1, vec![1])].into());
    let attached: Vec<&String> = world
        .log
        .iter()
        .filter(|line| line.starts_with("Attach"))
        .collect();
    assert_eq!(attached.len(), 1);
    assert!(attached[0].ends_with(" 1 on card 1"), "{attached:?}");
    let waiters = add_on(&mut world, 1, &[1]);
    assert!(waiters.iter().all(|waiter| world.granted(*waiter).is_some()));
    assert_eq!(at_ec2(&world), [(0, vec![2]), (1, vec![2])].into());
    assert_eq!(world.calls("Create"), 1, "{:?}", world.log);
}

/// The Go daemon gives it back and asks for it again every half a minute (its fault Q7).
#[test]
fn ipamd_66_an_idle_card_keeps_its_only_prefix() {
    let prefixes = Some(WarmTarget::Prefixes(1));
    let mut world = started(&[(1, 2)], Policy { prefixes, ..policy() });
    assert_eq!(at_ec2(&world), [(0, vec![1]), (1, vec![1])].into());
    world.log.clear();
    for _ in 0..60 {
        world.advance(Duration::from_secs(60));
    }
    let changes = |line: &&String| !line.starts_with("Describe");
    assert_eq!(world.log.iter().find(changes), None);
    assert_eq!(enis_on(&world, SECOND)[0].addresses().count(), 16);
}

#[test]
fn ipamd_23_without_the_switch_only_the_first_card_is_grown_and_others_are_left_alone() {
    let mut world = stage(
        &[(1, 2), (2, 2), (3, 2)],
        Policy {
            multi_nic: false,
            ..policy()
        },
    );
    for card in 1..=3 {
        let eni = on_card(card, CardIndex(card), "interface");
        world.enis.insert(eni.id.clone(), eni);
    }
    world.settle();
    let pods: Vec<WaiterId> = (0..6).map(|n| world.add(n, SOON)).collect();
    assert!(pods.iter().all(|waiter| world.granted(*waiter).is_some()));
    assert_eq!(at_ec2(&world)[&0], [3, 3], "the first card's own limit");
    for card in 1..=3 {
        assert_eq!(at_ec2(&world)[&card], [0]);
        let role = enis_on(&world, CardIndex(card))[0].role;
        assert_eq!(role, EniRole::Unmanaged);
    }
    let waiter = world.add_interface(companion(1, 1), Wish::Card(SECOND), Some(eth0()), SOON);
    let refusal = world.refused(waiter).expect("it is refused at once");
    assert!(refusal.message.contains("card 1"), "{}", refusal.message);
    assert!(refusal.next_step.contains("ENABLE_MULTI_NIC"));
    assert!(world.pool.status(world.now).cards.is_empty());
}

#[test]
fn ipamd_22_a_card_with_an_efa_only_eni_is_managed_when_one_of_ours_is_there_too() {
    let mut world = stage(&[(1, 3), (2, 3)], policy());
    for (device, card, kind) in [(1, 1, "efa-only"), (2, 2, "efa-only"), (3, 2, "efa")] {
        let eni = on_card(device, CardIndex(card), kind);
        world.enis.insert(eni.id.clone(), eni);
    }
    world.settle();
    assert_eq!(world.pool.managed_cards(), [CardIndex(0), CardIndex(2)].into());
    assert_eq!(at_ec2(&world)[&1], [0], "nothing is attached there");
    assert_eq!(at_ec2(&world)[&2], [0, 1], "the EFA's own places are used");
}

#[test]
fn ipamd_105_every_card_counts_its_devices_and_no_two_enis_share_table_or_mark() {
    let mut world = started(
        &[(1, 2), (2, 2)],
        Policy {
            warm: WarmTarget::Enis(1),
            ..policy()
        },
    );
    for n in 0..3 {
        let waiters = add_on(&mut world, n, &[1, 2]);
        assert!(waiters.iter().all(|waiter| world.granted(*waiter).is_some()));
    }
    let places: Vec<(u32, u32, TableId, Option<Mark>)> = world
        .pool
        .enis()
        .values()
        .map(|eni| (eni.card.0, eni.device.unwrap().0, eni.table(), eni.mark()))
        .collect();
    let mut sorted = places.clone();
    sorted.sort_by_key(|(card, device, ..)| (*card, *device));
    let expected = [
        (0, 0, 254),
        (0, 1, 2),
        (1, 1, 10_101),
        (1, 2, 10_102),
        (2, 1, 10_201),
        (2, 2, 10_202),
    ];
    let tables: Vec<(u32, u32, u32)> = sorted
        .iter()
        .map(|(card, device, table, _)| (*card, *device, table.0))
        .collect();
    assert_eq!(tables, expected);
    let mut marks: Vec<u8> = sorted.iter().filter_map(|(.., mark)| Some((*mark)?.0)).collect();
    marks.sort_unstable();
    assert_eq!(
        marks,
        [1, 124, 125, 126, 127],
        "the first card's is its device index"
    );
    let before = places;
    world.crash(None, true);
    world.settle();
    let after: Vec<(u32, u32, TableId, Option<Mark>)> = world
        .pool
        .enis()
        .values()
        .map(|eni| (eni.card.0, eni.device.unwrap().0, eni.table(), eni.mark()))
        .collect();
    assert_eq!(after, before, "a restart changes nothing in the kernel");
}

#[test]
fn an_eni_of_the_first_card_takes_its_mark_from_whoever_was_given_it() {
    let mut world = started(&[(1, 2)], policy());
    let id = enis_on(&world, SECOND)[0].id.clone();
    let other: EniId = "eni-on-first".into();
    let mut eni = world.pool.enis()[&id].clone();
    eni.id = other.clone();
    eni.card = CardIndex(0);
    eni.device = Some(DeviceIndex(99));
    eni.given_mark = None;
    eni.cidrs.clear();
    world.pool.edit_eni(&id, |eni| eni.given_mark = Some(Mark(99)));
    world.pool.insert_eni(eni);
    world.pool.separate_marks();
    let enis = world.pool.enis();
    assert_eq!((enis[&other].mark(), enis[&id].mark()), (Some(Mark(99)), None));
    assert!(!world.pool.memory.is_configured(&id), "it is made anew");
    assert!(world.pool.give_mark(&id));
    assert_eq!(world.pool.enis()[&id].mark(), Some(Mark(127)));
}

#[test]
fn ipamd_106_an_ordinary_pod_gets_the_first_cards_address_and_the_next_ones_when_that_is_exhausted() {
    let mut world = started(&[(1, 2)], policy());
    let card_of = |world: &World, n: u32| world.pool.allocations()[&key(n)].card.0;
    for n in 0..6 {
        let waiter = world.add(n, SOON);
        assert!(world.granted(waiter).is_some());
        assert_eq!(card_of(&world, n), 0, "pod {n}");
    }
    assert_eq!(at_ec2(&world)[&1], [1], "only the first one has grown");
    for n in 6..12 {
        let waiter = world.add(n, SOON);
        assert!(world.granted(waiter).is_some(), "{:?}", world.refused(waiter));
        assert_eq!(card_of(&world, n), 1, "pod {n}");
    }
    let waiter = world.add(12, SOON);
    let refusal = world.refused(waiter).expect("both cards are full");
    assert_eq!(refusal.kind, RefusalKind::Exhausted);
    world.advance(Duration::from_secs(120));
    world.del(0);
    world.advance(Duration::from_secs(40));
    let waiter = world.add(13, SOON);
    assert!(world.granted(waiter).is_some());
    assert_eq!(card_of(&world, 13), 0);
}

#[test]
fn a_burst_of_ordinary_pods_grows_the_next_card_by_what_the_first_has_no_place_for() {
    let mut world = started(&[(1, 2)], policy());
    world.eager = false;
    let waiters: Vec<WaiterId> = (0..12).map(|n| world.add(n, SOON)).collect();
    world.eager = true;
    world.settle();
    assert!(waiters.iter().all(|waiter| world.granted(*waiter).is_some()));
    assert_eq!(at_ec2(&world), [(0, vec![3, 3]), (1, vec![3, 3])].into());
}

#[test]
fn ipamd_106_a_sandbox_with_an_interface_on_each_card_gets_an_address_of_each() {
    let mut world = started(&[(1, 2), (2, 1)], policy());
    let waiters = add_on(&mut world, 1, &[1, 2]);
    assert!(waiters.iter().all(|waiter| world.granted(*waiter).is_some()));
    let held = world.pool.allocations();
    let cards: Vec<u32> = held.values().map(|held| held.card.0).collect();
    assert_eq!(cards, [0, 1, 2], "in card order");
    let mains: Vec<bool> = held.values().map(|held| held.main.is_some()).collect();
    assert_eq!(mains, [false, true, true]);
    let waiter = world.del(1);
    assert!(
        world.pool.allocations().is_empty(),
        "the runtime names only the main one"
    );
    assert_eq!(world.clients[&waiter].released.as_ref().unwrap().len(), 3);
}

#[test]
fn q16_a_companion_that_cannot_be_had_takes_back_what_came_before() {
    // One ENI with three addresses is all that the second card can carry.
    let mut world = started(&[(1, 1)], policy());
    for n in 0..3 {
        let waiters = add_on(&mut world, n, &[1]);
        assert!(waiters.iter().all(|waiter| world.granted(*waiter).is_some()));
    }
    let waiters = add_on(&mut world, 3, &[1]);
    assert!(world.granted(waiters[0]).is_some(), "told before");
    let refusal = world.refused(waiters[1]).expect("the card is full");
    assert_eq!((refusal.kind, refusal.limit), (RefusalKind::Exhausted, Some(1)));
    assert!(!world.pool.allocations().contains_key(&key(3)));
    assert_eq!(world.pool.allocations().len(), 6, "nobody else's");
    // Asked for again by another client, the main one is not the first client's alone.
    let repeated = world.add(2, SOON);
    assert!(world.granted(repeated).is_some());
    let gone = world.add_interface(companion(2, 9), Wish::Card(SECOND), Some(eth0()), SOON);
    assert!(world.refused(gone).is_some());
    assert!(
        world.pool.allocations().contains_key(&key(2)),
        "a pod that lives keeps its address"
    );
}

#[test]
fn a_companion_whose_client_leaves_takes_back_what_came_before() {
    let mut world = started(&[(1, 1)], policy());
    world.eager = false;
    let main = world.add(5, SOON);
    while world.flush() {}
    assert!(world.granted(main).is_some());
    // It is told of its address, and not yet that this is on the disk.
    let second = world.add_interface(companion(5, 1), Wish::Card(SECOND), Some(eth0()), SOON);
    world.give_up(second);
    assert!(world.pool.allocations().is_empty());
}

/// Neither the allocation nor its end is on the disk: after a kill only the kernel's route tells that it was in use.
#[test]
fn q16_what_is_taken_back_stays_in_the_kernel_until_the_disk_has_its_rest() {
    let mut world = started(&[(1, 1)], policy());
    world.eager = false;
    let main = key(6);
    world.add(6, SOON);
    let wired = |world: &World| {
        let route = world.routes.iter().find(|(_, holder)| **holder == main);
        route.map(|(address, _)| *address)
    };
    let address = wired(&world).expect("wired, and not yet on the disk");
    let gone = world.add_interface(companion(6, 9), Wish::Card(CardIndex(9)), Some(eth0()), SOON);
    assert!(world.refused(gone).is_some());
    assert!(!world.pool.allocations().contains_key(&main), "taken back");
    assert_eq!(wired(&world), Some(address), "nothing is written yet");
    world.crash(None, false);
    world.eager = true;
    world.settle();
    let next = world.add(1, SOON);
    assert!(world.granted(next).is_some_and(|other| other != address));
}

#[test]
fn a_companion_comes_only_to_a_main_interface() {
    let mut world = started(&[(1, 1)], policy());
    let waiter = world.add_interface(companion(1, 1), Wish::Card(SECOND), Some(eth0()), SOON);
    let refusal = world
        .refused(waiter)
        .expect("its sandbox is gone, or was never there");
    assert_eq!(refusal.kind, RefusalKind::Cancelled);
    assert!(world.pool.allocations().is_empty());
}

#[test]
fn gc_that_lists_the_main_interface_keeps_its_companions_and_one_that_does_not_releases_them() {
    let mut world = started(&[(1, 2)], policy());
    add_on(&mut world, 1, &[1]);
    add_on(&mut world, 2, &[1]);
    world.gc(&[1]);
    let left: Vec<SandboxKey> = world.pool.allocations().keys().cloned().collect();
    assert_eq!(left, [key(1), companion(1, 1)]);
}

#[test]
fn max_eni_holds_on_every_card() {
    let limit = Policy {
        max_enis: Some(1),
        warm: WarmTarget::Enis(2),
        ..policy()
    };
    let mut world = started(&[(1, 2)], limit);
    for n in 0..3 {
        add_on(&mut world, n, &[1]);
    }
    assert_eq!(at_ec2(&world), [(0, vec![3]), (1, vec![3])].into());
    let waiters = add_on(&mut world, 3, &[1]);
    assert!(waiters.iter().all(|waiter| world.granted(*waiter).is_none()));
}

#[test]
fn a_quiet_card_gives_back_its_own_and_not_anothers() {
    let mut world = started(&[(1, 2)], policy());
    for n in 0..6 {
        let waiters = add_on(&mut world, n, &[1]);
        assert!(waiters.iter().all(|waiter| world.granted(*waiter).is_some()));
    }
    assert_eq!(at_ec2(&world), [(0, vec![3, 3]), (1, vec![3, 3])].into());
    for n in 1..6 {
        world.del(n);
    }
    for _ in 0..30 {
        world.advance(Duration::from_secs(60));
    }
    assert_eq!(
        at_ec2(&world),
        [(0, vec![2]), (1, vec![2])].into(),
        "{:?}",
        world.log
    );
    assert_eq!(world.pool.allocations().len(), 2);
}

#[test]
fn with_the_switch_off_again_the_other_cards_enis_are_not_touched() {
    let mut world = started(&[(1, 2)], policy());
    let before = at_ec2(&world);
    world.policy.multi_nic = false;
    world.log.clear();
    world.crash(None, true);
    world.settle();
    for _ in 0..30 {
        world.advance(Duration::from_secs(60));
    }
    assert_eq!(at_ec2(&world), before);
    let changes = |line: &&String| !line.starts_with("Describe");
    assert_eq!(world.log.iter().find(changes), None);
    assert_eq!(enis_on(&world, SECOND)[0].role, EniRole::Unmanaged);
}

#[test]
fn status_and_explanation_name_the_cards_where_there_are_several() {
    let mut world = started(&[(1, 1)], policy());
    for n in 0..3 {
        add_on(&mut world, n, &[1]);
    }
    let status = world.pool.status(world.now);
    let of: Vec<(u32, u32, u32)> = status
        .cards
        .iter()
        .map(|(card, has)| (card.0, has.enis, has.assigned))
        .collect();
    assert_eq!(of, [(0, 2, 3), (1, 1, 3)]);
    assert_eq!((status.enis, status.assigned), (3, 6));
    let full = "card 1: the instance type allows 1 ENIs with 3 addresses for pods each";
    assert!(status.reasons.contains(&full.to_owned()), "{:?}", status.reasons);
    let told: Vec<String> = crate::explain::explain(&world.pool, world.now)
        .into_iter()
        .map(|sentence| sentence.text)
        .collect();
    let text = told.join("\n");
    for sentence in [
        "card 0: 2 ENIs take a place; ",
        "card 1: 1 ENI takes a place; ",
        "card 1: Every network card besides the first asks for 1 address free and ready",
        "card 1: There is no more because: the instance type allows 1 ENIs",
    ] {
        assert!(text.contains(sentence), "{sentence}\n{text}");
    }
}

/// A type newer than the table, whose limits were stored before other cards were known.
#[test]
fn stored_limits_that_say_nothing_of_other_cards_are_asked_for_again_where_these_count() {
    for (multi_nic, further, is_known) in [(false, 0, true), (true, 0, false), (true, 2, true)] {
        let world = started(
            &[(1, further)],
            Policy {
                multi_nic,
                ..policy()
            },
        );
        let start = Start {
            policy: world.policy.clone(),
            limits: None,
            facts: world.facts.clone(),
            records: world.store.clone(),
            kernel: KernelFacts::default(),
            gone: std::collections::BTreeSet::new(),
        };
        let (pool, effects) = Pool::recover(start, world.now);
        assert_eq!(pool.limits().is_some(), is_known, "{multi_nic} {further}");
        let asks = |effect: &Effect| {
            matches!(
                effect,
                Effect::Call {
                    request: CloudCall::DescribeInstanceType { .. },
                    ..
                }
            )
        };
        assert_eq!(effects.iter().any(asks), !is_known);
    }
}
