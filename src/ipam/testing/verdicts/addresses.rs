//! Every row about an address is carried out by the pool.

use super::*;

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
