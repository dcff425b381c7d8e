//! The judge's short way finds what its long one finds, whatever is wrong.

use std::net::{IpAddr, Ipv4Addr};
use std::time::Duration;

use super::world::{World, key};
use crate::cidr::Ipv4Cidr;
use crate::model::{Address, Allocation, Eni, EniState, Placed};
use crate::policy::{Policy, WarmTarget};
use crate::pool::Pool;
use crate::verify;

type Wrong = (&'static str, fn(&mut Pool));

fn held(pool: &Pool) -> Allocation {
    pool.allocations().values().next().unwrap().clone()
}

fn idle(pool: &Pool) -> (Ipv4Addr, Address) {
    let mut idle = pool
        .addresses()
        .iter()
        .filter(|(_, known)| known.holder.is_none());
    let (address, known) = idle.next().unwrap();
    let IpAddr::V4(address) = *address else {
        panic!("{address}")
    };
    (address, known.clone())
}

fn eni_of(pool: &Pool, address: impl Into<IpAddr>) -> Eni {
    pool.placed(address).unwrap().0.clone()
}

const PLACED: Placed = Placed {
    verified: true,
    published: true,
    releasing: false,
};

const WRONG: &[Wrong] = &[
    ("two sandboxes on one address", |pool| {
        let mut other = held(pool);
        other.key = key(99);
        pool.restore_allocation(other);
    }),
    ("an address names a sandbox that has another", |pool| {
        let (address, mut known) = idle(pool);
        known.holder = Some(held(pool).key);
        pool.restore_address(address.into(), known);
    }),
    ("an address does not name its sandbox", |pool| {
        let held = held(pool);
        pool.restore_address(held.address, Address::unused(held.eni));
    }),
    (
        "an allocation moved, and its old address still names it",
        |pool| {
            let mut moved = held(pool);
            moved.address = idle(pool).0.into();
            pool.restore_allocation(moved);
        },
    ),
    ("an address names another ENI", |pool| {
        let (address, _) = idle(pool);
        pool.restore_address(address.into(), Address::unused("eni-other".into()));
    }),
    ("two ENIs carry one address", |pool| {
        let (address, _) = idle(pool);
        let mut other = eni_of(pool, address);
        other.id = "eni-other".into();
        other.primary = Ipv4Addr::new(10, 9, 9, 9);
        pool.restore_eni(other);
    }),
    ("an ENI carries an address twice", |pool| {
        let (address, _) = idle(pool);
        let mut eni = eni_of(pool, address);
        eni.cidrs.insert(Ipv4Cidr::prefix_around(address), PLACED);
        pool.restore_eni(eni);
    }),
    ("an ENI's own address is for pods", |pool| {
        let (address, _) = idle(pool);
        let mut eni = eni_of(pool, address);
        eni.primary = address;
        pool.restore_eni(eni);
    }),
    ("the node's own address is in the pool", |pool| {
        let own = pool.facts().primary_address;
        let eni = pool.facts().primary_eni.clone();
        pool.restore_address(own.into(), Address::unused(eni));
    }),
    ("what is given back is held", |pool| {
        let held = held(pool);
        let mut eni = eni_of(pool, held.address);
        for placed in eni.cidrs.values_mut() {
            placed.releasing = true;
        }
        pool.restore_eni(eni);
    }),
    ("an ENI that goes carries a sandbox", |pool| {
        let mut eni = eni_of(pool, held(pool).address);
        eni.state = EniState::Detaching;
        pool.restore_eni(eni);
    }),
];

#[test]
fn the_judges_short_way_misses_nothing() {
    let policy = Policy {
        warm: WarmTarget::Enis(1),
        ..Policy::default()
    };
    let mut world = World::new(3, 4, policy);
    world.settle();
    for n in 0..2 {
        world.add(n, Duration::from_secs(30));
    }
    world.settle();
    assert_eq!(verify::pool(&world.pool, world.now), []);
    for (what, spoil) in WRONG {
        let mut pool = world.pool.clone();
        let version = pool.version();
        spoil(&mut pool);
        assert_ne!(verify::pool_at_length(&pool, world.now), [], "{what}");
        assert_ne!(verify::pool(&pool, world.now), [], "{what}");
        assert_ne!(verify::holdings(&pool), [], "{what}");
        assert_ne!(pool.version(), version, "{what}");
    }
}
