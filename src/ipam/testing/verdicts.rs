//! Every row of the two tables of [`crate::verdict`]: what no row may say, and that the pool does what each one says.

use std::net::Ipv4Addr;
use std::time::Duration;

use super::conformance::{NOT_OURS, foreign};
use super::growth::{PATIENCE, policy};
use super::world::{Work, World, failure, key};
use crate::cidr::Ipv4Cidr;
use crate::cloud::{Amount, CloudCall, CloudEni, DescribeScope, FailureClass};
use crate::event::Event;
use crate::evidence;
use crate::ids::{EniId, Tick};
use crate::lifecycle::doom;
use crate::memory::Ec2View;
use crate::model::EniState;
use crate::policy::Policy;
use crate::verdict::*;
use crate::witness::{Doubt, Ec2Says, ImdsSnapshot, LocalEvidence, Proof};

pub(super) fn address_rows() -> impl Iterator<Item = AddressWords> {
    let stores = |ec2, imds, kernel| {
        let row = move |store: &StoreWord| AddressWords {
            ec2,
            imds,
            kernel,
            store: *store,
        };
        StoreWord::ALL.iter().map(row)
    };
    let kernels = move |ec2, imds| {
        KernelWord::ALL
            .iter()
            .flat_map(move |kernel| stores(ec2, imds, *kernel))
    };
    let imds = move |ec2| ImdsWord::ALL.iter().flat_map(move |imds| kernels(ec2, *imds));
    Ec2Word::ALL.iter().flat_map(move |ec2| imds(*ec2))
}

pub(super) fn eni_rows() -> impl Iterator<Item = EniWords> {
    let stores = |ec2, imds, kernel| {
        let row = move |store: &EniWord| EniWords {
            ec2,
            imds,
            kernel,
            store: *store,
        };
        EniWord::ALL.iter().map(row)
    };
    let kernels = move |ec2, imds| {
        LinkWord::ALL
            .iter()
            .flat_map(move |kernel| stores(ec2, imds, *kernel))
    };
    let imds = move |ec2| ImdsWord::ALL.iter().flat_map(move |imds| kernels(ec2, *imds));
    Ec2EniWord::ALL.iter().flat_map(move |ec2| imds(*ec2))
}

const AWAY: [Act; 3] = [Act::Release, Act::Forget, Act::Vacate];

#[test]
fn there_are_324_rows_each() {
    assert_eq!((address_rows().count(), eni_rows().count()), (324, 324));
}

#[test]
fn what_kernel_or_store_says_is_used_is_never_released_nor_forgotten() {
    for words in address_rows() {
        let act = address(words).act;
        if words.kernel == KernelWord::Routed {
            assert!(!AWAY.contains(&act), "{words:?} {act}");
        }
        if words.store == StoreWord::Held {
            assert!(![Act::Release, Act::Forget].contains(&act), "{words:?} {act}");
        }
        // Only a proof may lead there, and only from what was given up before.
        if act == Act::Release {
            assert_eq!(
                (words.ec2, words.kernel, words.store),
                (Ec2Word::Lists, KernelWord::Unrouted, StoreWord::GivenUp)
            );
        }
    }
    for words in eni_rows() {
        let act = eni(words).act;
        if words.kernel != LinkWord::Absent || words.store == EniWord::Carries {
            assert!(!AWAY.contains(&act), "{words:?} {act}");
        }
    }
}

#[test]
fn imds_alone_only_adds_or_asks() {
    let allowed = [Act::Keep, Act::AdoptUnverified, Act::AskEc2];
    for words in address_rows() {
        let unheard = matches!(words.ec2, Ec2Word::Unasked | Ec2Word::Unreachable);
        if unheard {
            assert!(allowed.contains(&address(words).act), "{words:?}");
        }
        // Its omission changes nothing that its silence would not.
        let silent = AddressWords {
            imds: ImdsWord::Silent,
            ..words
        };
        if words.imds == ImdsWord::Omits {
            assert_eq!(address(words), address(silent), "{words:?}");
        }
    }
    for words in eni_rows() {
        let unheard = matches!(words.ec2, Ec2EniWord::Unasked | Ec2EniWord::Unreachable);
        if unheard {
            assert!(allowed.contains(&eni(words).act), "{words:?}");
        }
        let silent = EniWords {
            imds: ImdsWord::Silent,
            ..words
        };
        if words.imds == ImdsWord::Omits {
            assert_eq!(eni(words), eni(silent), "{words:?}");
        }
    }
}

#[test]
fn what_ec2_omits_once_is_never_freed() {
    for words in address_rows().filter(|words| words.ec2 == Ec2Word::Omits) {
        // What was to be given back is away by our own doing.
        let act = address(words).act;
        assert!(
            !AWAY.contains(&act) || words.store == StoreWord::GivenUp,
            "{words:?}"
        );
    }
    for words in eni_rows().filter(|words| words.ec2 == Ec2EniWord::Omits) {
        // Of somebody else's ENI only its place is known, and the kernel confirms that it is free.
        let act = eni(words).act;
        assert!(
            !AWAY.contains(&act) || words.store == EniWord::Foreign,
            "{words:?}"
        );
    }
}

#[test]
fn contradictions_are_quarantined_or_kept_and_told() {
    for words in address_rows() {
        let verdict = address(words);
        let known = !matches!(words.store, StoreWord::Unknown | StoreWord::AskedFor);
        let used = words.kernel == KernelWord::Routed || words.store == StoreWord::Held;
        let told = address_drifts(words).any(Drift::is_alarming);
        let missing = matches!(words.ec2, Ec2Word::Omits | Ec2Word::Insists);
        if known && used && (missing || words.ec2 == Ec2Word::Elsewhere) {
            assert!(verdict.doubt.is_some(), "{words:?} {verdict:?}");
        }
        let stray = words.kernel == KernelWord::Routed && words.store != StoreWord::Held;
        if known && stray {
            assert!(verdict.doubt.is_some(), "{words:?} {verdict:?}");
        }
        let imds_differs = match words.imds {
            ImdsWord::Lists => missing,
            ImdsWord::Omits => words.ec2 == Ec2Word::Lists && known,
            ImdsWord::Silent => false,
        };
        let kernel_differs = words.kernel == KernelWord::Unrouted && words.store == StoreWord::Held;
        if imds_differs || kernel_differs {
            assert!(told, "{words:?}");
        }
        if imds_differs && missing && words.store != StoreWord::GivenUp {
            assert!(!AWAY.contains(&verdict.act), "{words:?} {verdict:?}");
        }
    }
    for words in eni_rows() {
        let missing = matches!(words.ec2, Ec2EniWord::Omits | Ec2EniWord::Insists);
        let ours = matches!(words.store, EniWord::Carries | EniWord::Idle);
        if missing && ours {
            let verdict = eni(words);
            assert!(eni_drifts(words).any(Drift::is_alarming), "{words:?}");
            assert!(verdict.doubt.is_some() || verdict.act == Act::Forget, "{words:?}");
        }
    }
}

/// Adopting gives nobody an address that somebody may be using.
#[test]
fn nothing_is_adopted_without_doubt_while_the_kernel_routes_it() {
    for words in address_rows() {
        let verdict = address(words);
        let adopted = matches!(verdict.act, Act::Adopt | Act::AdoptUnverified);
        if adopted && words.kernel == KernelWord::Routed {
            assert_eq!(verdict.doubt, Some(Why::PodRoute), "{words:?}");
        }
    }
}

/// The table says "release" exactly where the module of proofs makes one.
#[test]
fn an_eni_is_released_exactly_where_there_is_a_proof() {
    for words in eni_rows().filter(|words| words.store == EniWord::GivenUp) {
        let says = match words.ec2 {
            Ec2EniWord::Attached => Ec2Says::Attached,
            Ec2EniWord::Unattached => Ec2Says::Unattached,
            Ec2EniWord::Omits | Ec2EniWord::Insists => Ec2Says::Missing,
            Ec2EniWord::Unasked | Ec2EniWord::Unreachable => Ec2Says::Unasked,
        };
        let local = LocalEvidence {
            link: words.kernel != LinkWord::Absent,
            pod_routes: 0,
            allocations: 0,
        };
        let proof = Proof::unused_eni(&EniId::from("eni-1"), says, local);
        assert_eq!(proof.is_ok(), eni(words).act == Act::Release, "{words:?}");
    }
}

const LAG: Duration = Duration::from_secs(61);

/// Nothing rests out during a test, and nothing is fetched in advance.
fn unhurried() -> Policy {
    Policy {
        cooldown: Duration::from_secs(100_000),
        ..policy(0)
    }
}

fn other_eni() -> CloudEni {
    foreign(2, &[], 0)
}

/// A primary ENI with three addresses, a second ENI, everything settled and long past.
fn quiet() -> World {
    let mut world = World::with_addresses(3, 4, unhurried(), 3);
    let other = other_eni();
    world.links.insert(other.mac);
    world.enis.insert(other.id.clone(), other);
    world.settle();
    world.kernel();
    world.advance(LAG);
    world
}

/// Sends EC2 the question, whatever else is under way, and delivers the answer.
fn describe(world: &mut World, scope: DescribeScope) {
    world.pool.memory.obstacles.clear();
    world.pool.memory.describe.insert(scope);
    world.event(Event::Timer);
    while world.flush() {}
    let asks = |work: &Work| matches!(work, Work::Call(_, CloudCall::DescribeEnis { scope: asked, .. }) if *asked == scope);
    let ask = world.work.iter().position(asks).expect("EC2 is asked");
    world.deliver(ask);
}

fn is_asking_ec2(world: &World) -> bool {
    let asks = |work: &Work| matches!(work, Work::Call(_, CloudCall::DescribeEnis { .. }));
    let waiting = |tail: &crate::effect::Effect| {
        matches!(
            tail,
            crate::effect::Effect::Call {
                request: CloudCall::DescribeEnis { .. },
                ..
            }
        )
    };
    world.work.iter().any(asks)
        || !world.pool.memory.describe.is_empty()
        || world.commits.iter().any(|(_, _, tail)| tail.iter().any(waiting))
}

/// Makes EC2 silent: not asked since the daemon started, or not to be reached.
fn silence(world: &mut World, is_reachable: bool) {
    world.work.clear();
    world.pool.memory.calls.clear();
    world.pool.memory.describe.clear();
    world.pool.memory.started = world.now;
    world.pool.memory.ec2 = if is_reachable {
        Ec2View::Asking
    } else {
        Ec2View::Failed(failure(FailureClass::NoAnswer, "outage"))
    };
}

/// Why a row cannot come about, if so.
fn unreachable_address(words: AddressWords) -> Option<&'static str> {
    let stranger = matches!(words.store, StoreWord::Unknown | StoreWord::AskedFor);
    if words.store == StoreWord::GivenUp {
        return Some("what is given back has tests of its own");
    }
    if stranger && words.imds == ImdsWord::Omits {
        return Some("IMDS can only omit what is known");
    }
    if stranger && words.ec2 == Ec2Word::Elsewhere {
        return Some("what is unknown is nowhere else");
    }
    let nobody_asks =
        !matches!(words.ec2, Ec2Word::Lists | Ec2Word::Elsewhere) && words.imds != ImdsWord::Lists;
    (stranger && nobody_asks && words.kernel != KernelWord::Routed).then_some("nobody speaks of it")
}

struct Arranged {
    world: World,
    id: EniId,
    address: Ipv4Addr,
}

/// Brings everything but EC2's word about.
fn arrange(words: AddressWords) -> Arranged {
    let mut world = quiet();
    let id = world.facts.primary_eni.clone();
    let address = match words.store {
        StoreWord::Held | StoreWord::Resting => {
            let waiter = world.add(1, PATIENCE);
            world.granted(waiter).unwrap()
        }
        StoreWord::Free | StoreWord::GivenUp => Ipv4Addr::new(10, 0, 9, 2),
        StoreWord::Unknown | StoreWord::AskedFor => Ipv4Addr::new(10, 0, 55, 5),
    };
    world.advance(LAG);
    if words.store == StoreWord::Resting {
        world.del(1);
    }
    if words.store == StoreWord::AskedFor {
        let asked = Some(Amount::Addresses(1));
        world.pool.edit_eni(&id, |eni| eni.assigning = asked);
    }
    world.eager = false;
    if words.kernel == KernelWord::Routed {
        world.routes.insert(address.into(), key(1));
    } else {
        world.routes.remove(&address.into());
    }
    world.kernel();
    world.pool.memory.unproven.clear();
    if words.kernel == KernelWord::Unread {
        world.pool.memory.heard.kernel = None;
    }
    world.pool.memory.fresh.clear();
    world.alarms.clear();
    Arranged { world, id, address }
}

fn sweep(world: &mut World, id: &EniId, address: Ipv4Addr, said: ImdsWord) {
    let mut snapshot = world.imds_snapshot();
    for seen in &mut snapshot.enis {
        seen.addresses.retain(|listed| *listed != address);
        if seen.id == *id && said == ImdsWord::Lists {
            seen.addresses.push(address);
        }
    }
    if said != ImdsWord::Silent {
        world.event(Event::Imds(snapshot));
    }
}

/// EC2 speaks, or does not.
fn speak(arranged: &mut Arranged, words: AddressWords) {
    let Arranged { world, id, address } = arranged;
    let cidr = Ipv4Cidr::host(*address);
    let list = |world: &mut World, id: &EniId, listed: bool| {
        let eni = world.enis.get_mut(id).unwrap();
        eni.secondary.retain(|known| known != address);
        if listed {
            eni.secondary.push(*address);
        }
    };
    if matches!(words.ec2, Ec2Word::Unasked | Ec2Word::Unreachable) {
        silence(world, words.ec2 == Ec2Word::Unasked);
        world.pool.edit_eni(id, |eni| {
            // What EC2 has listed before it has an earlier word on.
            eni.attachment = None;
            if let Some(placed) = eni.cidrs.get_mut(&cidr) {
                placed.verified = false;
            }
        });
        sweep(world, id, *address, words.imds);
        if words.kernel == KernelWord::Unread {
            return world.event(Event::Timer);
        }
        return world.kernel();
    }
    sweep(world, id, *address, words.imds);
    list(world, id, words.ec2 == Ec2Word::Lists);
    list(world, &other_eni().id, words.ec2 == Ec2Word::Elsewhere);
    if words.ec2 == Ec2Word::Insists {
        let long_ago = Tick(world.now.0 - 60_000);
        world.pool.memory.unlisted.insert(cidr, long_ago);
    }
    let said = evidence::of_cidr(&world.pool, id, cidr, words.ec2, world.now);
    assert_eq!(said, words, "the row is not what was brought about");
    describe(world, DescribeScope::Attached);
}

fn carried(world: &World, id: &EniId, address: Ipv4Addr) -> Option<bool> {
    let placed = world.pool.enis()[id].cidrs.get(&Ipv4Cidr::host(address));
    placed.map(|placed| placed.verified)
}

#[test]
fn every_row_about_an_address_is_carried_out_by_the_pool() {
    let mut driven = 0;
    for words in address_rows().filter(|words| unreachable_address(*words).is_none()) {
        let mut arranged = arrange(words);
        let before = carried(&arranged.world, &arranged.id, arranged.address).is_some();
        speak(&mut arranged, words);
        let Arranged {
            world,
            id,
            address: x,
        } = arranged;
        let verdict = address(words);
        let known = world.pool.known(x);
        let doubt = known
            .and_then(|known| known.doubt.as_ref())
            .map(|doubt| match doubt {
                Doubt::PodRoute { .. } => Why::PodRoute,
                Doubt::NotInEc2 => Why::NotInEc2,
                Doubt::EniLost => Why::EniLost,
                Doubt::AllocatedTwice | Doubt::Imported { .. } => panic!("{words:?}"),
            });
        let now_carried = carried(&world, &id, x);
        match verdict.act {
            Act::Keep => assert_eq!(now_carried.is_some(), before, "{words:?}"),
            Act::Publish | Act::Release => assert_eq!(now_carried, Some(true), "{words:?}"),
            Act::Adopt => {
                let there = if words.ec2 == Ec2Word::Elsewhere {
                    other_eni().id
                } else {
                    id.clone()
                };
                assert_eq!(carried(&world, &there, x), Some(true), "{words:?}");
                assert!(there == id || now_carried.is_none(), "{words:?}");
            }
            Act::AdoptUnverified => assert_eq!(now_carried, Some(false), "{words:?}"),
            Act::AskEc2 => assert!(is_asking_ec2(&world) || world.pool.memory.ec2 == Ec2View::Asking),
            Act::AskKernel => assert!(world.kernel_asked, "{words:?}"),
            Act::Vacate => assert!(now_carried.is_none() && known.is_some(), "{words:?}"),
            Act::Forget => assert!(known.is_none(), "{words:?} {known:?}"),
        }
        if known.is_some() {
            assert_eq!(doubt, verdict.doubt, "{words:?}");
        }
        if words.store == StoreWord::Held {
            assert_eq!(world.pool.allocations()[&key(1)].address, x, "{words:?}");
        }
        let is_news = address_drifts(words).any(Drift::is_alarming);
        if is_news && !matches!(words.ec2, Ec2Word::Unasked | Ec2Word::Unreachable) {
            assert!(!world.pool.status(world.now).drift.is_empty(), "{words:?}");
        }
        let changes = ["Unassign", "Detach", "Delete"].map(|action| world.calls(action));
        assert_eq!(changes, [0; 3], "{words:?}");
        driven += 1;
    }
    assert!(driven > 170, "{driven} rows can come about");
}

fn unreachable_eni(words: EniWords) -> Option<&'static str> {
    if words.store == EniWord::Unknown && words.kernel != LinkWord::Unread {
        return Some("a link whose ENI is not known says nothing");
    }
    let named = matches!(words.ec2, Ec2EniWord::Attached | Ec2EniWord::Unattached);
    let spoken_of = named || words.imds == ImdsWord::Lists;
    (words.store == EniWord::Unknown && !spoken_of).then_some("nobody speaks of it")
}

fn secondary(store: EniWord) -> CloudEni {
    let instance = super::world::facts().instance.to_string();
    let mine = ("node.k8s.amazonaws.com/instance_id", instance.as_str());
    let tags = if store == EniWord::Foreign {
        [NOT_OURS]
    } else {
        [mine]
    };
    let mut eni = foreign(1, &tags, 3);
    eni.description = "aws-K8S-i-0123456789abcdef0".to_owned();
    eni
}

/// Brings everything but EC2's word about.
fn arrange_eni(words: EniWords) -> (World, CloudEni) {
    let mut world = World::new(3, 4, unhurried());
    world.subnet_free = 0;
    let eni = secondary(words.store);
    let known = words.store != EniWord::Unknown;
    if known {
        world.links.insert(eni.mac);
        world.enis.insert(eni.id.clone(), eni.clone());
    }
    world.settle();
    world.kernel();
    world.settle();
    if words.store == EniWord::Carries {
        let waiter = world.add(1, PATIENCE);
        assert!(world.granted(waiter).is_some());
    }
    world.advance(LAG);
    world.eager = false;
    if words.kernel == LinkWord::Absent {
        world.links.remove(&eni.mac);
        world.pool.memory.links.remove(&eni.mac);
    }
    match words.store {
        EniWord::Coming => world
            .pool
            .edit_eni(&eni.id, |eni| eni.state = EniState::Attaching),
        EniWord::GivenUp => doom(&mut world.pool, &eni.id, "a test"),
        _ => {}
    }
    world
        .pool
        .memory
        .enis
        .entry(eni.id.clone())
        .or_default()
        .attached_at = None;
    if words.kernel == LinkWord::Unread {
        world.pool.memory.heard.kernel = None;
    }
    world.pool.memory.fresh.clear();
    (world, eni)
}

fn sweep_eni(world: &mut World, eni: &CloudEni, said: ImdsWord) {
    if said == ImdsWord::Silent {
        return;
    }
    world.enis.entry(eni.id.clone()).or_insert_with(|| eni.clone());
    let mut snapshot: ImdsSnapshot = world.imds_snapshot();
    if said == ImdsWord::Omits {
        snapshot.enis.retain(|seen| seen.id != eni.id);
    }
    world.event(Event::Imds(snapshot));
}

fn speak_of_eni(world: &mut World, eni: &CloudEni, words: EniWords) {
    let id = &eni.id;
    let scope = match (words.ec2, words.store) {
        (Ec2EniWord::Unattached, _) | (_, EniWord::GivenUp) => DescribeScope::OursUnattached,
        _ => DescribeScope::Attached,
    };
    match words.ec2 {
        Ec2EniWord::Unasked | Ec2EniWord::Unreachable => {
            silence(world, words.ec2 == Ec2EniWord::Unasked);
            if words.ec2 == Ec2EniWord::Unasked {
                world.pool.memory.ec2 = Ec2View::Answered;
            }
            sweep_eni(world, eni, words.imds);
            if words.kernel == LinkWord::Absent && words.ec2 == Ec2EniWord::Unasked {
                world.event(Event::LinkGone { mac: eni.mac });
            }
            return world.event(Event::Timer);
        }
        _ => sweep_eni(world, eni, words.imds),
    }
    world.enis.remove(id);
    match words.ec2 {
        Ec2EniWord::Attached => {
            world.enis.insert(id.clone(), eni.clone());
        }
        Ec2EniWord::Unattached => {
            let left = CloudEni {
                attachment: None,
                ..eni.clone()
            };
            world.enis.insert(id.clone(), left);
        }
        Ec2EniWord::Insists => {
            let long_ago = Tick(world.now.0 - 60_000);
            let progress = world.pool.memory.progress(id);
            progress.unlisted_since = Some(long_ago);
            progress.delete_sent = true;
        }
        _ => {}
    }
    let said = evidence::of_eni(&world.pool, id, words.ec2, world.now);
    assert_eq!(said, words, "the row is not what was brought about");
    let attached = if words.ec2 == Ec2EniWord::Attached {
        DescribeScope::Attached
    } else {
        scope
    };
    while world.flush() {}
    world.work.clear();
    world.pool.memory.calls.clear();
    describe(world, attached);
}

#[test]
fn every_row_about_an_eni_is_carried_out_by_the_pool() {
    let mut driven = 0;
    for words in eni_rows().filter(|words| unreachable_eni(*words).is_none()) {
        let (mut world, cloud) = arrange_eni(words);
        let id = cloud.id.clone();
        let before = world.pool.enis().get(&id).map(|eni| eni.state.clone());
        speak_of_eni(&mut world, &cloud, words);
        while world.flush() {}
        let verdict = eni(words);
        let after = world.pool.enis().get(&id);
        let state = after.map(|eni| eni.state.clone());
        let doubts = || world.pool.addresses().values().filter(|known| known.eni == id);
        match (verdict.act, verdict.doubt) {
            (Act::Keep, None) => assert_eq!(state, before, "{words:?}"),
            (Act::Keep, Some(Why::NotInEc2)) => {
                assert_eq!(state, before, "{words:?}");
                assert!(
                    doubts().all(|known| known.doubt == Some(Doubt::NotInEc2)),
                    "{words:?}"
                );
            }
            (Act::Keep, Some(_)) => {
                assert_eq!(state, Some(EniState::Lost), "{words:?}");
                assert!(
                    doubts().all(|known| known.doubt == Some(Doubt::EniLost)),
                    "{words:?}"
                );
            }
            (Act::Adopt, _) if words.ec2 == Ec2EniWord::Unattached => assert!(after.is_some(), "{words:?}"),
            (Act::Adopt, _) => {
                let here = matches!(state, Some(EniState::Attached | EniState::Ready));
                assert!(here, "{words:?} {state:?}");
            }
            (Act::AdoptUnverified, _) => {
                let placed = after.unwrap().cidrs.values();
                assert!(
                    placed.len() == 3 && placed.clone().all(|placed| !placed.verified),
                    "{words:?}"
                );
            }
            (Act::AskEc2, _) => {
                assert_eq!(state, before, "{words:?}");
                assert!(is_asking_ec2(&world), "{words:?}");
            }
            (Act::Forget, _) => assert_eq!(state, None, "{words:?}"),
            (Act::Release, _) => {}
            other => panic!("{words:?}: no row says {other:?}"),
        }
        let deletes = |work: &Work| matches!(work, Work::Call(_, CloudCall::DeleteEni { .. }));
        let is_deleting = world.work.iter().any(deletes);
        assert_eq!(is_deleting, verdict.act == Act::Release, "{words:?}");
        if words.store == EniWord::Carries {
            assert_eq!(world.pool.allocations()[&key(1)].eni, id, "{words:?}");
        }
        let heard = !matches!(words.ec2, Ec2EniWord::Unasked | Ec2EniWord::Unreachable);
        if heard && eni_drifts(words).next().is_some() {
            assert!(!world.pool.status(world.now).drift.is_empty(), "{words:?}");
        }
        driven += 1;
    }
    assert!(driven > 250, "{driven} rows can come about");
}
