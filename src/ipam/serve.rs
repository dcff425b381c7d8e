//! Sandboxes: ADD, DEL, GC, and who waits for what.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::net::IpAddr;

use super::census::{self, Census};
use super::claims;
use super::companions;
use super::effect::{Effect, Refusal, ReleasedAddress, Reply};
use super::event::AddRequest;
use super::ids::{CardIndex, CommitId, ContainerId, IfName, NetworkName, SandboxKey, Tick, WaiterId};
use super::memory::Final;
use super::model::{Address, AddressState, Allocation};
use super::obstacle::{Pace, Topic};
use super::outbox::Outbox;
use super::plan::{Hindrance, Report};
use super::pool::Pool;
use super::records::RecordKey;
use super::refusal;
use super::targets::Goal;
use super::wishes::Wish;

pub(super) fn add(pool: &mut Pool, request: AddRequest, now: Tick, out: &mut Outbox) {
    if let Some(reason) = &pool.memory.store_trouble {
        let refusal = refusal::disk_full(reason);
        return companions::deny(pool, &request, refusal, now, out);
    }
    if !pool.has_main(&request) {
        let refusal = refusal::without_main(&request);
        return out.refuse(request.waiter, refusal);
    }
    if let Some(refusal) = claims::refusal(pool, &request) {
        return companions::deny(pool, &request, refusal, now, out);
    }
    pool.memory.waiters.insert(request.waiter, request);
}

pub(super) fn del(pool: &mut Pool, waiter: WaiterId, key: &SandboxKey, now: Tick, out: &mut Outbox) {
    for other in pool.waiting_for(key) {
        pool.memory.waiters.remove(&other);
        out.refuse(other, refusal::cancelled(key));
    }
    let released = pool.release_all(key, now);
    self::released(waiter, released, out);
}

/// Tells what a DEL released: at once, and that it is done when that is durable.
pub(super) fn released(waiter: WaiterId, released: Vec<ReleasedAddress>, out: &mut Outbox) {
    out.now(Effect::Reply {
        waiter,
        reply: Reply::Released {
            known: !released.is_empty(),
            addresses: released,
        },
    });
    out.tell(waiter, Reply::Settled);
}

/// Releases what the runtime does not list. A sandbox whose ADD is under way is younger than the list, and stays.
pub(super) fn collect(
    pool: &mut Pool,
    waiter: WaiterId,
    network: &NetworkName,
    valid: &BTreeSet<(ContainerId, IfName)>,
    now: Tick,
    out: &mut Outbox,
) {
    let fresh: BTreeSet<&SandboxKey> = pool
        .memory
        .commits
        .values()
        .flat_map(|tail| &tail.finals)
        .filter_map(|(_, last)| match last {
            Final::Durable(key) => Some(key),
            Final::Told(_) => None,
        })
        .collect();
    let is_listed =
        |container: &ContainerId, ifname: &IfName| valid.contains(&(container.clone(), ifname.clone()));
    let lives = |held: &Allocation| {
        let container = &held.key.container;
        let with_main = held.main.as_ref().is_some_and(|main| is_listed(container, main));
        with_main || is_listed(container, &held.key.ifname)
    };
    let stale: Vec<SandboxKey> = pool
        .allocations()
        .iter()
        .filter(|(key, held)| key.network == *network && !fresh.contains(key) && !lives(held))
        .map(|(key, _)| key.clone())
        .collect();
    let released = stale.iter().filter_map(|key| pool.release(key, now)).collect();
    out.tell(waiter, Reply::Collected(released));
}

/// A client is gone: it waits no longer, and what it alone was told of is released again.
pub(super) fn give_up(pool: &mut Pool, waiter: WaiterId, now: Tick, out: &mut Outbox) {
    if let Some(request) = pool.memory.waiters.remove(&waiter) {
        return companions::roll_back(pool, &request.key, request.main.as_ref(), now, out);
    }
    let unwanted = pool
        .allocations()
        .values()
        .find(|allocation| allocation.told == Some(waiter))
        .map(|allocation| (allocation.key.clone(), allocation.main.clone()));
    if let Some((key, main)) = unwanted {
        pool.release(&key, now);
        companions::roll_back(pool, &key, main.as_ref(), now, out);
    }
}

/// Waiters in the order of their deadlines.
fn queue(pool: &Pool) -> Vec<(Tick, WaiterId)> {
    let mut queue: Vec<_> = pool
        .memory
        .waiters
        .iter()
        .map(|(waiter, request)| (request.deadline, *waiter))
        .collect();
    queue.sort_unstable();
    queue
}

/// Gives out what can be given out.
pub(super) fn serve(pool: &mut Pool, now: Tick, out: &mut Outbox) {
    if pool.memory.store_trouble.is_some() {
        return;
    }
    let queue = queue(pool);
    if queue.is_empty() {
        return;
    }
    // Once for all who wait: looking through the pool for each of them is what 440 at once cannot afford.
    let mut free = pool.free_by_card(now);
    let is_claimable = pool.has_routed();
    for (deadline, waiter) in queue {
        let Some(request) = pool.memory.waiters.get(&waiter) else {
            continue;
        };
        let repeated = pool.allocations().contains_key(&request.key);
        if !repeated && !is_claimable && free.values().all(VecDeque::is_empty) {
            continue;
        }
        let request = request.clone();
        if repeated {
            pool.share(&request.key);
        } else if deadline < now
            || !(pool.reclaim(&request, now) || assign_next(pool, &request, &mut free, now))
        {
            continue;
        }
        pool.memory.waiters.remove(&waiter);
        assigned(pool, waiter, request.key, repeated, out);
    }
}

/// Tells a waiter of the allocation it has been given: at once, and again when it is durable.
pub(super) fn assigned(pool: &Pool, waiter: WaiterId, key: SandboxKey, repeated: bool, out: &mut Outbox) {
    let Some(grant) = pool.grant(&key, repeated) else {
        return;
    };
    out.now(Effect::Reply {
        waiter,
        reply: Reply::Assigned(grant),
    });
    out.durable(waiter, key);
}

fn assign_next(
    pool: &mut Pool,
    request: &AddRequest,
    free: &mut BTreeMap<CardIndex, VecDeque<IpAddr>>,
    now: Tick,
) -> bool {
    let mut wanted = free.iter_mut().filter(|(card, _)| request.wish.takes(**card));
    let next = wanted.find_map(|(_, free)| free.pop_front());
    next.is_some_and(|address| pool.assign(request, address, now))
}

/// Tells those whose time is over, and those for whom nothing can come.
pub(super) fn triage(pool: &mut Pool, now: Tick, out: &mut Outbox) {
    if pool.memory.waiters.is_empty() {
        return;
    }
    let report = pool.memory.report.clone();
    let cards = pool.managed_cards();
    let is_known = |card: &CardIndex| {
        cards.contains(card) || (pool.policy().has_further_cards() && pool.limits().is_none())
    };
    let mut coming: BTreeMap<CardIndex, Coming> = cards
        .iter()
        .map(|card| (*card, Coming::to(pool, *card, now)))
        .collect();
    let is_looked_for = is_asking_around(pool) || is_kernel_catching_up(pool) || pool.is_gathering(now);
    let mut counted: BTreeSet<&SandboxKey> = BTreeSet::new();
    let mut refused: Vec<(AddRequest, Refusal)> = Vec::new();
    for (deadline, waiter) in queue(pool) {
        let Some(request) = pool.memory.waiters.get(&waiter) else {
            continue;
        };
        let report = request.wish.report(&report);
        let mut wanted = coming.iter_mut().filter(|(card, _)| request.wish.takes(**card));
        let refusal = match request.wish {
            Wish::Card(card) if !is_known(&card) => refusal::unmanaged(card, pool),
            _ if deadline <= now => refusal::out_of_time(report),
            _ if !counted.insert(&request.key)
                || report.has_transient()
                || is_looked_for
                || soon(report, deadline)
                || doubts_end(pool, deadline)
                || wanted.any(|(_, coming)| coming.take(deadline)) =>
            {
                continue;
            }
            _ => refusal::hopeless(report, now),
        };
        refused.push((request.clone(), refusal));
    }
    for (request, refusal) in refused {
        if pool.memory.waiters.remove(&request.waiter).is_some() {
            companions::deny(pool, &request, refusal, now, out);
        }
    }
}

/// What those who wait for an address of a card can count on.
struct Coming {
    /// When addresses at rest can be had, the first one last.
    resting: Vec<Tick>,
    /// Addresses on their way.
    arriving: u32,
}

impl Coming {
    fn to(pool: &Pool, card: CardIndex, now: Tick) -> Self {
        let is_here = |(address, known): &(&IpAddr, &Address)| {
            pool.card_of(known) == card && census::will_serve(pool, **address)
        };
        let mut resting: Vec<Tick> = pool
            .addresses()
            .iter()
            .filter(is_here)
            .filter_map(|(_, known)| match known.state(now) {
                AddressState::Cooling { until } => Some(until),
                _ => None,
            })
            .collect();
        resting.sort_unstable_by(|a, b| b.cmp(a));
        Self {
            resting,
            arriving: Census::of(pool, card, Goal::of(pool, card), now).arriving,
        }
    }

    /// One of them, if it comes in time.
    fn take(&mut self, deadline: Tick) -> bool {
        if self.resting.last().is_some_and(|until| *until < deadline) {
            self.resting.pop();
            return true;
        }
        let comes = self.arriving > 0;
        self.arriving = self.arriving.saturating_sub(1);
        comes
    }
}

/// Whether an answer is under way that may bring addresses to light.
fn is_asking_around(pool: &Pool) -> bool {
    use super::memory::Purpose;
    let describes = |purpose: &Purpose| matches!(purpose, Purpose::Describe(_));
    pool.memory.calls.values().any(|ask| describes(&ask.purpose))
}

/// Readings of the kernel by which a pod that is being taken away is gone: the last one is three seconds after the first.
const READINGS_OF_A_DEL: u32 = 6;

/// Whether the kernel is being read, or soon will be because it still routes an address that was just released.
fn is_kernel_catching_up(pool: &Pool) -> bool {
    let rereading = pool.memory.obstacles.get(&Topic::Kernel);
    pool.memory.kernel_read.is_some()
        || rereading.is_some_and(|obstacle| obstacle.attempt <= READINGS_OF_A_DEL)
}

/// Whether EC2 is asked again about quarantined addresses before this waiter's time is over.
fn doubts_end(pool: &Pool, deadline: Tick) -> bool {
    let again = pool.memory.obstacles.get(&Topic::Doubts);
    again.is_some_and(|obstacle| obstacle.until < deadline)
}

/// Whether a failure that is no refusal is tried again before this waiter's time is over.
fn soon(report: &Report, deadline: Tick) -> bool {
    report.hindrances.iter().any(|hindrance| match hindrance {
        Hindrance::Failed { failure, until } => !failure.class.is_hard() && *until < deadline,
        Hindrance::Braked(brake) => brake.until < deadline,
        _ => false,
    })
}

/// A batch is durable.
pub(super) fn committed(pool: &mut Pool, commit: CommitId) {
    pool.memory.unwritten.retain(|_, by| *by != commit);
    pool.memory.cursor.ended(commit, true);
    if pool.memory.commits.remove(&commit).is_some() && pool.memory.store_trouble.take().is_some() {
        pool.memory.clear(&Topic::Store);
    }
}

/// A batch is lost: its grants are taken back, its releases stand in memory and are written with the next batch.
pub(super) fn commit_failed(pool: &mut Pool, commit: CommitId, reason: String, now: Tick, out: &mut Outbox) {
    let Some(tail) = pool.memory.commits.remove(&commit) else {
        return;
    };
    pool.memory.unwritten.retain(|_, by| *by != commit);
    pool.memory.cursor.ended(commit, false);
    pool.mark(tail.keys);
    for (waiter, last) in tail.finals {
        match last {
            Final::Durable(key) => {
                let held = pool.allocations().get(&key);
                let own = held.filter(|held| held.told == Some(waiter));
                if let Some(main) = own.map(|held| held.main.clone()) {
                    pool.release(&key, now);
                    companions::roll_back(pool, &key, main.as_ref(), now, out);
                } else {
                    pool.mark([RecordKey::Allocation(key)]);
                }
                out.refuse(waiter, refusal::disk_full(&reason));
            }
            // The runtime does not come back after a DEL: it is told, and the release is written as soon as possible.
            Final::Told(reply) => out.now(Effect::Reply { waiter, reply }),
        }
    }
    for call in tail.calls {
        super::answers::not_sent(pool, call, now, out);
    }
    if pool.memory.store_trouble.is_none() {
        out.alarm("store", format!("the store cannot be written: {reason}"));
    }
    let waiting = std::mem::take(&mut pool.memory.waiters);
    for request in waiting.values() {
        companions::deny(pool, request, refusal::disk_full(&reason), now, out);
    }
    pool.memory.store_trouble = Some(reason);
    pool.memory.obstruct(Topic::Store, Pace::secs(1, 10), None, now);
}
