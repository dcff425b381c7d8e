//! Records that contradict each other, and what a boot voids.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, Ipv4Addr};
use std::time::Duration;

use proptest::prelude::*;

use super::growth::{PATIENCE, policy, started};
use super::world::{facts, key, veth};
use crate::cidr::Ipv4Cidr;
use crate::cloud::Amount;
use crate::ids::{BootId, CardIndex, DeviceIndex, EniId, Mac, PodRef, Tick};
use crate::limits::InstanceLimits;
use crate::model::{Allocation, Eni, EniKind, EniRole, EniState, Placed};
use crate::policy::Policy;
use crate::pool::Pool;
use crate::records::{AddressRecord, NodeRecord, Record};
use crate::recover::Start;
use crate::verify;
use crate::witness::{Doubt, KernelFacts, LinkFact, PodRoute};

fn id(n: u8) -> EniId {
    match n {
        0 => facts().primary_eni,
        n => EniId(format!("eni-{n}")),
    }
}

fn address(n: u8) -> Ipv4Addr {
    Ipv4Addr::new(10, 0, 0, n)
}

fn pods(n: u8) -> IpAddr {
    address(n).into()
}

fn eni(n: u8, mac: u8, role: EniRole) -> Eni {
    Eni {
        id: id(n),
        mac: Mac([2, 0, 0, 0, 0, mac]),
        role,
        kind: EniKind::Interface,
        excluded: false,
        state: EniState::Ready,
        device: Some(DeviceIndex(u32::from(n))),
        card: CardIndex(0),
        given_mark: None,
        attachment: Some(format!("attach-{n}").as_str().into()),
        delete_on_termination: true,
        subnet: facts().subnet,
        subnet_cidr: Some(facts().subnet_cidr),
        primary: address(100 + n),
        assigning: None,
        cidrs: BTreeMap::new(),
        block: None,
    }
}

fn held(n: u32, on: u8, at: u8) -> Allocation {
    Allocation {
        key: key(n),
        pod: PodRef::default(),
        address: pods(at),
        eni: id(on),
        device: DeviceIndex(u32::from(on)),
        card: CardIndex(0),
        host_veth: veth(&key(n)),
        netns: "/run/netns/x".to_owned(),
        main: None,
        egress: None,
        ports: Vec::new(),
        since: Tick(u64::from(n)),
        told: None,
    }
}

fn placed(n: u8) -> Placed {
    Placed {
        verified: n & 1 > 0,
        published: n & 2 > 0,
        releasing: n & 4 > 0,
    }
}

fn recovered(records: &[Record], routes: &[(u8, u32)], boot: &str) -> (Pool, usize) {
    let kernel = KernelFacts {
        links: (1..4)
            .map(|n| LinkFact {
                mac: Mac([2, 0, 0, 0, 0, n]),
                name: format!("ens{n}"),
                ifindex: u32::from(n),
            })
            .collect(),
        pod_routes: routes
            .iter()
            .map(|(at, n)| PodRoute {
                address: pods(*at),
                device: veth(&key(*n)),
            })
            .collect(),
        bare_rules: vec![],
    };
    let mut facts = facts();
    facts.boot = boot.into();
    let start = Start {
        policy: Policy::default(),
        limits: Some(InstanceLimits {
            enis: 4,
            ipv4_per_eni: 10,
            prefixes: true,
            further: crate::limits::FurtherCards::default(),
        }),
        facts,
        records: records
            .iter()
            .map(|record| (record.key().text(), record.value()))
            .collect(),
        kernel,
        gone: BTreeSet::new(),
    };
    let now = Tick(50_000);
    let (pool, effects) = Pool::recover(start, now);
    assert_eq!(verify::pool(&pool, now), []);
    let alarms = effects
        .iter()
        .filter(|effect| matches!(effect, crate::effect::Effect::Alarm(alarm) if alarm.kind == "bad-record"));
    (pool.clone(), alarms.count())
}

fn node() -> Record {
    Record::Node(Box::new(NodeRecord {
        facts: facts(),
        limits: None,
        cordoned: false,
    }))
}

fn as_is() -> BootId {
    facts().boot
}

/// Found by fuzzing: the store's checksums do not tell a defect's records from others.
#[test]
fn of_two_enis_with_one_hardware_address_the_one_with_pods_stays() {
    let mut bare = eni(1, 7, EniRole::Secondary);
    bare.cidrs.insert(Ipv4Cidr::host(address(21)), placed(3));
    let mut rich = eni(2, 7, EniRole::Secondary);
    rich.cidrs.insert(Ipv4Cidr::host(address(22)), placed(3));
    let records = vec![
        node(),
        Record::Eni(Box::new(bare)),
        Record::Eni(Box::new(rich)),
        Record::Allocation(Box::new(held(1, 2, 22))),
        Record::Allocation(Box::new(held(2, 1, 21))),
    ];
    let (pool, alarms) = recovered(&records, &[(22, 1)], as_is().as_str());
    assert!(pool.enis().contains_key(&id(2)) && !pool.enis().contains_key(&id(1)));
    assert_eq!(alarms, 1);
    assert_eq!(pool.allocations().len(), 2, "no live pod is lost");
    assert_eq!(pool.placed(pods(21)), None, "nobody else gets it");
}

#[test]
fn a_second_primary_eni_is_none() {
    let mut with_pod = eni(2, 2, EniRole::Primary);
    with_pod.cidrs.insert(Ipv4Cidr::host(address(22)), placed(3));
    let records = vec![
        node(),
        Record::Eni(Box::new(eni(0, 0, EniRole::Primary))),
        Record::Eni(Box::new(eni(1, 1, EniRole::Primary))),
        Record::Eni(Box::new(with_pod)),
        Record::Allocation(Box::new(held(1, 2, 22))),
    ];
    let (pool, alarms) = recovered(&records, &[(22, 1)], as_is().as_str());
    let roles: Vec<_> = pool
        .enis()
        .values()
        .map(|eni| (eni.id.clone(), eni.role))
        .collect();
    assert_eq!(roles, [(id(2), EniRole::Secondary), (id(0), EniRole::Primary)]);
    assert_eq!(alarms, 2);
    assert_eq!(pool.allocations().len(), 1);
}

/// A healthy store has none of these, so that nothing is told at a usual start.
#[test]
fn what_a_healthy_daemon_writes_is_taken_as_it_is() {
    let mut world = started(3, 4, policy(1));
    for n in 0..7 {
        world.add(n, PATIENCE);
    }
    for n in 0..3 {
        world.del(n);
    }
    world.crash(None, false);
    assert_eq!(world.alarms, []);
}

fn enis() -> impl Strategy<Value = Eni> {
    let roles = prop::sample::select(vec![EniRole::Primary, EniRole::Secondary, EniRole::Unmanaged]);
    let states = prop::sample::select(vec![
        EniState::Created,
        EniState::Attaching,
        EniState::Attached,
        EniState::Ready,
        EniState::Draining,
        EniState::Detaching,
        EniState::Discarding { why: String::new() },
        EniState::Lost,
    ]);
    let cidrs = prop::collection::btree_map((0..30_u8, any::<bool>()), 0..8_u8, 0..4);
    let places = (0..2_u32, prop::option::of(0..4_u32), any::<bool>(), any::<bool>());
    (0..4_u8, 0..4_u8, roles, states, cidrs, places, 0..30_u8).prop_map(
        |(n, mac, role, state, cidrs, (card, device, is_attached, is_asked), own)| {
            let base = eni(n, mac, role);
            let of = |((at, is_host), how): ((u8, bool), u8)| {
                let host = Ipv4Cidr::host(address(at));
                let cidr = if is_host {
                    host
                } else {
                    Ipv4Cidr::prefix_around(address(at))
                };
                (cidr, placed(how))
            };
            Eni {
                state,
                card: CardIndex(card),
                device: device.map(DeviceIndex),
                attachment: base.attachment.clone().filter(|_| is_attached),
                primary: address(own),
                assigning: is_asked.then_some(Amount::Addresses(2)),
                cidrs: cidrs.into_iter().map(of).collect(),
                ..base
            }
        },
    )
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

    /// Whatever the records say, the pool is sound, and a pod the kernel routes keeps its address.
    #[test]
    fn any_records_make_a_sound_pool(
        enis in prop::collection::vec(enis(), 0..5),
        allocations in prop::collection::vec((0..5_u32, 0..4_u8, 0..30_u8), 0..6),
        addresses in prop::collection::vec((0..30_u8, 0..4_u8, prop::option::of(0..100_000_u64), 0..3_u8), 0..6),
        is_same_boot in any::<bool>(),
        has_node in any::<bool>(),
    ) {
        let mut records: Vec<Record> = has_node.then(node).into_iter().collect();
        records.extend(enis.into_iter().map(|eni| Record::Eni(Box::new(eni))));
        let allocations: Vec<Allocation> = allocations.into_iter().map(|(n, on, at)| held(n, on, at)).collect();
        records.extend(allocations.iter().cloned().map(|held| Record::Allocation(Box::new(held))));
        records.extend(addresses.into_iter().map(|(at, on, rests, doubt)| {
            Record::Address(Box::new(AddressRecord {
                address: pods(at),
                eni: id(on),
                last_used: rests.map(Tick),
                rests_until: rests.map(Tick),
                doubt: [None, Some(Doubt::NotInEc2), Some(Doubt::AllocatedTwice)][usize::from(doubt)].clone(),
            }))
        }));
        let routes: Vec<(u8, u32)> = allocations.iter().take(2).map(|held| {
            let n = held.since.0;
            (match held.address { IpAddr::V4(at) => at.octets()[3], IpAddr::V6(_) => 0 }, u32::try_from(n).unwrap())
        }).collect();
        let boot = if is_same_boot { as_is() } else { "b0075b01-1".into() };
        let (pool, _) = recovered(&records, if is_same_boot { &routes } else { &[] }, boot.as_str());
        let stored: BTreeMap<_, _> = records.iter().filter_map(|record| match record {
            Record::Allocation(held) => Some((held.key.clone(), held.address)),
            _ => None,
        }).collect();
        if has_node && is_same_boot {
            for (at, n) in &routes {
                let claims = stored.values().filter(|other| **other == pods(*at)).count();
                let is_stored = stored.get(&key(*n)) == Some(&pods(*at));
                if is_stored && claims == 1 && address(*at) != facts().primary_address {
                    prop_assert_eq!(pool.allocations().get(&key(*n)).map(|held| held.address), Some(pods(*at)));
                }
            }
        }
    }
}

/// Design invariant 10. What another boot said of the kernel, of time and of sandboxes says nothing now; addresses stay,
/// but may have been taken back while the instance was stopped.
#[test]
fn a_boot_voids_sandboxes_links_rests_and_ec2s_word_and_keeps_addresses() {
    let mut secondary = eni(1, 1, EniRole::Secondary);
    for n in 21..24 {
        secondary.cidrs.insert(Ipv4Cidr::host(address(n)), placed(3));
    }
    let rests = |at: u8, until: u64| {
        Record::Address(Box::new(AddressRecord {
            address: pods(at),
            eni: id(1),
            last_used: Some(Tick(until)),
            rests_until: Some(Tick(until)),
            doubt: None,
        }))
    };
    let records = vec![
        node(),
        Record::Eni(Box::new(secondary)),
        Record::Allocation(Box::new(held(1, 1, 21))),
        // By this boot's clock its rest was over long ago, and by it the other's never ends.
        rests(22, 10),
        rests(23, u64::MAX / 2),
    ];
    let now = Tick(50_000);
    let cooled = now.after(Duration::from_secs(30));
    for (boot, is_same) in [(as_is().as_str(), true), ("b0075b01-1", false)] {
        let routes: &[(u8, u32)] = if is_same { &[(21, 1)] } else { &[] };
        let (pool, _) = recovered(&records, routes, boot);
        let eni = &pool.enis()[&id(1)];
        let (_, word) = eni.carries(address(23)).unwrap();
        assert_eq!(pool.allocations().len(), usize::from(is_same));
        assert_eq!(
            eni.state == EniState::Ready,
            is_same,
            "its link has to be configured anew"
        );
        assert_eq!(word.verified, is_same, "it may have been taken back");
        assert_eq!(word.published, is_same, "the kernel's map is empty");
        assert_eq!(pool.memory.is_configured(&id(1)), is_same);
        let rests = |at: u8| pool.addresses()[&pods(at)].rests_until;
        let used = |at: u8| pool.addresses()[&pods(at)].last_used;
        assert_eq!(rests(22), Some(if is_same { Tick(10) } else { cooled }));
        assert_eq!(rests(23), Some(cooled));
        assert_eq!(used(23), Some(if is_same { Tick(u64::MAX / 2) } else { Tick(0) }));
    }
}

/// The same as pods would meet it: an address that EC2 took while the instance was off, and rules that are gone.
#[test]
fn after_a_boot_nobody_gets_what_the_kernel_or_ec2_no_longer_has() {
    let mut world = started(3, 4, policy(1));
    for n in 0..4 {
        world.add(n, PATIENCE);
    }
    let secondary = world
        .enis
        .keys()
        .find(|id| **id != world.facts.primary_eni)
        .cloned()
        .unwrap();
    world.eager = false;
    while world.step_once() {}
    world.enis.get_mut(&secondary).unwrap().secondary.clear();
    world.crash(Some("b0075b01-1"), false);
    // The oracles look at what each is given: EC2 has it, and the kernel's map holds it.
    for n in 10..20 {
        world.add(n, Duration::from_secs(600));
        while world.flush() {}
    }
    world.eager = true;
    world.settle();
    world.advance(Duration::from_secs(400));
    assert_eq!(
        world.pool.allocations().len(),
        9,
        "{:?}",
        world.pool.status(world.now)
    );
}
