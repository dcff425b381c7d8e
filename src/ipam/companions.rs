//! A sandbox with several interfaces: one main interface, which the runtime knows, and companions, which it does not.
//!
//! Each is an allocation of its own. What the runtime says of the main one holds for all; and an ADD that gets one of
//! them not gets none, unless a client that asked before has been told of what there is.

use super::effect::{Refusal, ReleasedAddress};
use super::event::AddRequest;
use super::ids::{IfName, SandboxKey, Tick, WaiterId};
use super::model::Allocation;
use super::outbox::Outbox;
use super::pool::Pool;
use super::refusal;

/// The key of the interface that this one belongs to: its own, when it is the main one.
fn main_key(key: &SandboxKey, main: Option<&IfName>) -> SandboxKey {
    SandboxKey {
        ifname: main.unwrap_or(&key.ifname).clone(),
        ..key.clone()
    }
}

impl Pool {
    /// The interface itself and what goes with it, as far as they hold anything.
    fn interfaces<'a>(&'a self, key: &'a SandboxKey) -> impl Iterator<Item = &'a Allocation> {
        let first = SandboxKey {
            ifname: "".into(),
            ..key.clone()
        };
        let of_sandbox = |held: &&Allocation| held.key.container == key.container;
        let held = self.allocations().range(first..).map(|(_, held)| held);
        held.take_while(|held| held.key.network == key.network)
            .take_while(of_sandbox)
            .filter(|held| held.key == *key || held.main.as_ref() == Some(&key.ifname))
    }

    /// Whether anything goes with this interface.
    pub(super) fn has_companions(&self, key: &SandboxKey) -> bool {
        self.interfaces(key).any(|held| held.key != *key)
    }

    /// Releases an interface and what goes with it.
    pub(super) fn release_all(&mut self, key: &SandboxKey, now: Tick) -> Vec<ReleasedAddress> {
        let mut keys: Vec<SandboxKey> = self.interfaces(key).map(|held| held.key.clone()).collect();
        keys.sort_by_key(|held| held != key);
        keys.iter().filter_map(|key| self.release(key, now)).collect()
    }

    /// Who waits for this interface or for one that goes with it.
    pub(super) fn waiting_for(&self, key: &SandboxKey) -> Vec<WaiterId> {
        let waiters = self.memory.waiters.iter();
        let concerns = |request: &AddRequest| main_key(&request.key, request.main.as_ref()) == *key;
        waiters
            .filter(|(_, request)| request.key == *key || concerns(request))
            .map(|(waiter, _)| *waiter)
            .collect()
    }

    /// Whether the interface that this one belongs to is there, or is being asked for.
    pub(super) fn has_main(&self, request: &AddRequest) -> bool {
        let main = main_key(&request.key, request.main.as_ref());
        let waits = || self.memory.waiters.values().any(|other| other.key == main);
        request.main.is_none() || self.allocations().contains_key(&main) || waits()
    }
}

/// Refuses an ADD, and takes back what its sandbox has got by the same attempt.
pub(super) fn deny(pool: &mut Pool, request: &AddRequest, refusal: Refusal, now: Tick, out: &mut Outbox) {
    out.refuse(request.waiter, refusal);
    roll_back(pool, &request.key, request.main.as_ref(), now, out);
}

/// An interface of a sandbox is not to be had: the others go, too, unless more than one client has been told of them. Their
/// addresses are taken out of the kernel here, since their own clients are gone.
pub(super) fn roll_back(
    pool: &mut Pool,
    key: &SandboxKey,
    main: Option<&IfName>,
    now: Tick,
    out: &mut Outbox,
) {
    let main = main_key(key, main);
    let fresh = pool.interfaces(&main).filter(|held| held.told.is_some());
    let fresh: Vec<SandboxKey> = fresh
        .map(|held| held.key.clone())
        .filter(|held| held != key)
        .collect();
    let released: Vec<ReleasedAddress> = fresh.iter().filter_map(|key| pool.release(key, now)).collect();
    out.unwire(released);
    let others: Vec<AddRequest> = pool
        .waiting_for(&main)
        .iter()
        .filter_map(|waiter| pool.memory.waiters.get(waiter))
        .filter(|request| request.key != *key && !pool.has_main(request))
        .cloned()
        .collect();
    for request in others {
        pool.memory.waiters.remove(&request.waiter);
        out.refuse(request.waiter, refusal::without_main(&request));
    }
}
