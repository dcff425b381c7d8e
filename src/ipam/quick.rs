//! The usual ADD and DEL, without looking through the whole pool.
//!
//! Settling draws every conclusion from everything that is known, in time proportional to the node's addresses: a
//! quarter of a millisecond with 700 of them, as long as the kernel takes for a pod. After an ADD that leaves enough
//! free addresses, and after a DEL that nobody waits for, nothing follows that did not follow before. What settling
//! found is therefore kept until anything else happens; a test holds every such step against the long way.

use std::collections::VecDeque;
use std::net::IpAddr;

use super::effect::Effect;
use super::event::{AddRequest, Event};
use super::ids::{CardIndex, CommitId, SandboxKey, Tick, WaiterId};
use super::model::{AddressState, Allocation};
use super::outbox::Outbox;
use super::plan::{Hindrance, Plan};
use super::pool::Pool;
use super::witness::LinkFact;
use super::{adaptive, serve, six, step};

/// What the last settling found.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Calm {
    /// What can be handed out, in order; looked up when the first ADD comes, since most settlings are followed by another.
    free: Option<VecDeque<IpAddr>>,
    /// When that was so. Whatever has happened since, if anything, has changed nothing about it.
    at: Tick,
    growth: Growth,
    /// From then on another address may come first: its rest is over.
    until: Option<Tick>,
}

/// What one free address less means for growth.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Growth {
    /// None is wanted until so many more are taken.
    After(u32),
    /// Nothing could be asked for, however much is wanted.
    Hindered,
}

/// What is worth keeping once everything is settled; nothing while somebody waits, calls are being sent, or the kernel
/// routes an address that its sandbox may come to claim; where several network cards are managed; or while what is missing waits for calls under way, because more
/// may be missing than they leave room for.
pub(super) fn calm(pool: &Pool, plan: &Plan, now: Tick) -> Option<Calm> {
    let waits_for_calls = |hindrance: &Hindrance| matches!(hindrance, Hindrance::RestFollows { .. });
    let is_quiet = plan.acts.is_empty()
        && plan.report.cards.is_empty()
        && pool.memory.waiters.is_empty()
        && !pool.has_strange_routes()
        && !plan.report.hindrances.iter().any(waits_for_calls);
    is_quiet.then(|| {
        let report = &plan.report;
        let counted = report.free.saturating_sub(report.left_over);
        let there = counted.saturating_add(report.coming);
        Calm {
            free: None,
            at: now,
            growth: if report.short > 0 {
                Growth::Hindered
            } else {
                Growth::After(there.saturating_sub(report.warm))
            },
            until: pool
                .addresses()
                .values()
                .filter_map(|known| match known.state(now) {
                    AddressState::Cooling { until } => Some(until),
                    _ => None,
                })
                .min(),
        }
    })
}

/// The effects of an event from which nothing follows but its answer; `None` for any other, which changes nothing but that
/// what was kept is forgotten.
pub(super) fn step(pool: &mut Pool, event: &Event, now: Tick) -> Option<Vec<Effect>> {
    if pool.memory.store_trouble.is_some() {
        return None;
    }
    if let Event::Committed { commit } = event
        && pool.memory.waiters.is_empty()
    {
        if frees_addresses(pool, *commit, now) {
            pool.memory.calm = None;
        }
        serve::committed(pool, *commit);
        return Some(Vec::new());
    }
    // Time alone leads to conclusions only when the pool has asked to be woken for them.
    if pool.memory.wake.is_some_and(|due| due <= now) {
        return None;
    }
    let mut calm = pool.memory.calm.take()?;
    let is_over = calm.until.is_some_and(|until| until < now);
    if is_over || (pool.policy().is_adaptive() && adaptive::refresh(pool, now)) {
        return None;
    }
    let mut out = Outbox::default();
    match event {
        Event::Add(request) => add(pool, &mut calm, request, now, &mut out)?,
        Event::Del { waiter, key } if is_only_rest(pool, &calm, key) => {
            del(pool, *waiter, key, now, &mut out);
        }
        // Other software's links: containers of other networks come and go, too.
        Event::LinkSeen(LinkFact { mac, .. }) | Event::LinkGone { mac }
            if pool.eni_by_mac(*mac).is_none() =>
        {
            step::note(pool, event.clone(), now, &mut out);
        }
        _ => return None,
    }
    six::keep_ahead(pool, now);
    pool.memory.calm = Some(calm);
    Some(out.seal(pool, now))
}

/// Whether addresses waited for this commit alone: one of them may come first now.
fn frees_addresses(pool: &Pool, commit: CommitId, now: Tick) -> bool {
    let is_free = |address: &IpAddr| {
        let known = pool.known(*address);
        known.is_some_and(|known| known.is_free(now))
    };
    let mut unwritten = pool.memory.unwritten.iter();
    unwritten.any(|(address, by)| *by == commit && is_free(address))
}

fn add(pool: &mut Pool, calm: &mut Calm, request: &AddRequest, now: Tick, out: &mut Outbox) -> Option<()> {
    // There is one card, nothing goes with anything, and no port can be another's.
    if !request.wish.takes(CardIndex::FIRST) || request.main.is_some() || !request.ports.is_empty() {
        return None;
    }
    let after = match calm.growth {
        Growth::After(0) => return None,
        Growth::After(spare) => Growth::After(spare.saturating_sub(1)),
        Growth::Hindered => Growth::Hindered,
    };
    // What is surplus must have been so all the time.
    if pool.memory.is_surplus || request.deadline < now || pool.allocations().contains_key(&request.key) {
        return None;
    }
    let at = calm.at;
    let free = calm.free.get_or_insert_with(|| pool.free_in_order(at).into());
    while let Some(address) = free.pop_front() {
        if pool.assign(request, address, now) {
            calm.growth = after;
            serve::assigned(pool, request.waiter, request.key.clone(), false, out);
            return Some(());
        }
    }
    None
}

/// Whether what a DEL gives back changes nothing before it has rested: its ENI stands, nothing is in doubt, and it is
/// not max-pods that keeps the pool from growing.
fn is_only_rest(pool: &Pool, calm: &Calm, key: &SandboxKey) -> bool {
    let policy = pool.policy();
    let unhindered = policy.max_pods.is_none() || calm.growth != Growth::Hindered;
    let is_sound = |held: &Allocation| {
        let known = pool.known(held.address);
        pool.is_wired(held.address) && known.is_some_and(|known| known.doubt.is_none())
    };
    !policy.cooldown.is_zero()
        && unhindered
        && !pool.has_companions(key)
        && pool.allocations().get(key).is_none_or(is_sound)
}

fn del(pool: &mut Pool, waiter: WaiterId, key: &SandboxKey, now: Tick, out: &mut Outbox) {
    let released = pool.release(key, now);
    let known = released.is_some();
    serve::released(waiter, released.into_iter().collect(), out);
    if known {
        // The kernel is asked about it then.
        let rested = now.after(pool.policy().cooldown);
        step::wake_by(pool, Tick(rested.0.saturating_add(1)), now, out);
    }
}

#[cfg(test)]
impl Pool {
    /// Makes the next step go the long way.
    pub(super) fn forget_calm(&mut self) {
        self.memory.calm = None;
    }

    /// Whether a usual ADD or DEL would be quick now.
    pub(super) fn is_calm(&self) -> bool {
        self.memory.calm.is_some()
    }
}
