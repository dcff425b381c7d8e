//! `step`: the one function through which everything happens.

use super::effect::{Effect, Reply};
use super::event::Event;
use super::ids::{EniId, Tick};
use super::model::{AddressState, EniState};
use super::obstacle::{Pace, Topic};
use super::outbox::Outbox;
use super::pool::Pool;
use super::{adaptive, answers, groups, growth, lifecycle, local, quick, release, serve, six, subnets};

/// How the kernel's part is tried again.
const KERNEL: Pace = Pace::secs(1, 60);

impl Pool {
    /// Takes one event and says what is to be done. Total: every event is taken in every state.
    ///
    /// The effects are executed in order; see [`Effect::Commit`] for what waits for the disk.
    pub fn step(&mut self, event: Event, now: Tick) -> Vec<Effect> {
        if matches!(event, Event::Add(_)) {
            self.memory.churn.arrived(now);
            self.memory.gathering.add_came(now);
        }
        if let Some(effects) = quick::step(self, &event, now) {
            return effects;
        }
        let mut out = Outbox::default();
        let is_sweep = matches!(event, Event::Timer | Event::CallEnded { .. } | Event::Kernel(_));
        note(self, event, now, &mut out);
        settle(self, now, &mut out);
        if is_sweep {
            self.forget_rested(now);
        }
        out.seal(self, now)
    }
}

/// Takes note of what happened.
pub(super) fn note(pool: &mut Pool, event: Event, now: Tick, out: &mut Outbox) {
    match event {
        Event::Add(request) => serve::add(pool, request, now, out),
        Event::Del { waiter, key } => serve::del(pool, waiter, &key, now, out),
        Event::Gc {
            waiter,
            network,
            valid,
        } => serve::collect(pool, waiter, &network, &valid, now, out),
        Event::GiveUp { waiter } => serve::give_up(pool, waiter, now, out),
        Event::CallEnded { call, result } => answers::ended(pool, call, result, now, out),
        Event::Committed { commit } => serve::committed(pool, commit),
        Event::CommitFailed { commit, reason } => serve::commit_failed(pool, commit, reason, now, out),
        Event::LinkSeen(link) => {
            let other = |known: &super::witness::LinkFact| known.ifindex != link.ifindex;
            if pool.memory.links.get(&link.mac).is_some_and(other) {
                local::link_gone(pool, link.mac);
            }
            local::note_news(pool, link.mac);
            pool.memory.links.insert(link.mac, link);
        }
        Event::LinkGone { mac } => local::link_gone(pool, mac),
        Event::EniConfigured { eni, result } => configured(pool, &eni, result, now, out),
        Event::Published {
            eni,
            addresses,
            result,
        } => published(pool, &eni, &addresses, result, now, out),
        Event::Kernel(facts) => local::kernel(pool, facts, now, out),
        Event::Imds(snapshot) => local::imds(pool, snapshot, now, out),
        Event::Facts(facts) => local::facts(pool, *facts, out),
        Event::Groups(told) => groups::told_by_imds(pool, told),
        Event::VpcCidrs(cidrs) => pool.set_vpc_cidrs(cidrs),
        Event::Cordon { waiter, cordoned } => {
            pool.set_cordoned(cordoned);
            out.tell(waiter, Reply::Settled);
        }
        Event::Reconfigured(policy) => pool.set_policy(*policy),
        Event::Timer => pool.memory.wake = None,
    }
}

fn configured(pool: &mut Pool, id: &EniId, result: Result<(), String>, now: Tick, out: &mut Outbox) {
    // An answer nobody waits for is about a link that is gone since.
    let expected = |p: &super::memory::EniProgress| p.configuring;
    if !pool.memory.enis.get(id).is_some_and(expected) {
        return;
    }
    let progress = pool.memory.progress(id);
    progress.configuring = false;
    progress.configured = result.is_ok();
    match result {
        Ok(()) => {
            pool.memory.clear(&Topic::Configure(id.clone()));
            pool.edit_eni(id, |eni| {
                if eni.state == EniState::Attached {
                    eni.state = EniState::Ready;
                }
            });
        }
        Err(why) => {
            out.alarm("eni-configuration", format!("{id} cannot be configured: {why}"));
            pool.memory
                .obstruct(Topic::Configure(id.clone()), KERNEL, None, now);
        }
    }
}

fn published(
    pool: &mut Pool,
    id: &EniId,
    addresses: &[std::net::Ipv4Addr],
    result: Result<(), String>,
    now: Tick,
    out: &mut Outbox,
) {
    let Some(progress) = pool.memory.enis.get_mut(id) else {
        return;
    };
    let expected: Vec<_> = addresses
        .iter()
        .copied()
        .filter(|address| progress.publishing.remove(address))
        .collect();
    let stands = result.is_ok();
    pool.edit_eni(id, |eni| {
        for address in &expected {
            let cidr = eni.carries(*address).map(|(cidr, _)| cidr);
            if let Some(placed) = cidr.and_then(|cidr| eni.cidrs.get_mut(&cidr)) {
                placed.published = stands;
            }
        }
    });
    if let Err(why) = result {
        out.alarm("publish", format!("addresses of {id} cannot be published: {why}"));
        pool.memory
            .obstruct(Topic::Publish(id.clone()), KERNEL, None, now);
    } else {
        pool.memory.clear(&Topic::Publish(id.clone()));
    }
}

/// Draws every conclusion from what is now known.
pub(super) fn settle(pool: &mut Pool, now: Tick, out: &mut Outbox) {
    pool.memory.budget.begin();
    adaptive::refresh(pool, now);
    local::absorb_imds(pool, now, out);
    subnets::judge(pool, out);
    let can_write = pool.memory.store_trouble.is_none();
    release::reconsider(pool, now);
    if can_write {
        lifecycle::advance(pool, now, out);
    }
    serve::serve(pool, now, out);
    six::keep_ahead(pool, now);
    let plan = can_write.then(|| growth::grow(pool, now, out));
    if let Some(plan) = &plan {
        release::shrink(pool, plan, now, out);
    }
    serve::triage(pool, now, out);
    wake(pool, now, out);
    pool.memory.calm = plan.and_then(|plan| quick::calm(pool, &plan, now));
}

/// Asks to be woken when the next thing becomes due by itself.
fn wake(pool: &mut Pool, now: Tick, out: &mut Outbox) {
    let memory = &pool.memory;
    let waiting = !memory.waiters.is_empty();
    let deadlines = memory.waiters.values().map(|request| request.deadline);
    let obstacles = memory.obstacles.values().map(|obstacle| obstacle.until);
    let links = memory
        .enis
        .values()
        .filter_map(|progress| progress.link_awaited)
        .map(|since| since.after(pool.policy().link_patience));
    let start =
        Some(memory.started.after(pool.policy().start_patience)).filter(|_| waiting || memory.imds_pending);
    // Whoever waits gets it then, the kernel is asked about it, and it may be one too many.
    let rests = pool
        .addresses()
        .values()
        .filter_map(|known| match known.state(now) {
            AddressState::Cooling { until } => Some(Tick(until.0.saturating_add(1))),
            _ => None,
        });
    let subnets = subnets::awaited_until(pool);
    let next = deadlines
        .chain(subnets)
        .chain(obstacles)
        .chain(links)
        .chain(start)
        .chain(rests)
        .chain(memory.next_look)
        .chain(super::leaks::due(pool))
        .chain(memory.budget.brakes().map(|brake| brake.until))
        .chain(memory.shrink_due)
        .chain(memory.gathering.until(now))
        .chain(adaptive::due(pool, now))
        .filter(|due| *due > now)
        .min();
    if let Some(next) = next {
        wake_by(pool, next, now, out);
    }
}

/// Asks to be woken at this time, unless that is asked for earlier.
pub(super) fn wake_by(pool: &mut Pool, next: Tick, now: Tick, out: &mut Outbox) {
    if pool.memory.wake.is_none_or(|asked| next < asked || asked <= now) {
        pool.memory.wake = Some(next);
        out.now(Effect::WakeAt(next));
    }
}
