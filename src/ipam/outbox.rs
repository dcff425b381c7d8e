//! Collects one step's effects and puts them into the order the contract wants: what may happen at once, the commit,
//! and behind it what has to wait until the change is durable.

use super::answers;
use super::cloud::CloudCall;
use super::effect::{Alarm, Effect, Refusal, ReleasedAddress, Reply};
use super::ids::{CallId, CommitId, SandboxKey, Tick, WaiterId};
use super::memory::{Ask, Final, Purpose, Tail};
use super::obstacle::Topic;
use super::pool::Pool;
use super::records::RecordKey;
use super::six;

/// The effects of a step in the making.
#[derive(Debug, Default)]
pub(super) struct Outbox {
    at_once: Vec<Effect>,
    calls: Vec<(CallId, CloudCall)>,
    finals: Vec<(WaiterId, Final)>,
    unwired: Vec<ReleasedAddress>,
    /// Something here must not happen before everything that was handed over earlier is durable.
    is_behind_all: bool,
}

impl Outbox {
    /// Something that need not wait for the disk: the kernel, timers, alarms, `Assigned`, `Refused`.
    pub(super) fn now(&mut self, effect: Effect) {
        self.at_once.push(effect);
    }

    pub(super) fn alarm(&mut self, kind: &'static str, message: String) {
        self.now(Effect::Alarm(Alarm { kind, message }));
    }

    pub(super) fn refuse(&mut self, waiter: WaiterId, refusal: Refusal) {
        self.now(Effect::Reply {
            waiter,
            reply: Reply::Refused(refusal),
        });
    }

    /// Takes what was released out of the kernel, once it is known on the disk to rest: until then the kernel's route is the
    /// only thing that a kill would leave of it. With nothing written it is left to the runtime's DEL.
    pub(super) fn unwire(&mut self, released: Vec<ReleasedAddress>) {
        self.unwired.extend(released);
    }

    /// `Durable`, once it is.
    pub(super) fn durable(&mut self, waiter: WaiterId, key: SandboxKey) {
        self.finals.push((waiter, Final::Durable(key)));
    }

    /// A reply that reports a change.
    pub(super) fn tell(&mut self, waiter: WaiterId, reply: Reply) {
        self.finals.push((waiter, Final::Told(reply)));
    }

    /// An EC2 call: its intent is durable first. Whoever has not asked [`Pool::may_ask`] before may learn here that the
    /// budget has none left for it: then it fails as a throttled call does.
    pub(super) fn call(&mut self, pool: &mut Pool, purpose: Purpose, request: CloudCall, now: Tick) {
        let call = pool.memory.next_call;
        pool.memory.next_call = CallId(call.0.saturating_add(1));
        match pool.charge(&purpose, now) {
            Ok(()) => {
                pool.memory.calls.insert(call, Ask { purpose, since: now });
                self.calls.push((call, request));
            }
            Err(brake) => answers::over_budget(pool, purpose, brake, call, now, self),
        }
    }

    /// The same for a call whose intent an earlier commit may still carry.
    pub(super) fn call_behind_all(
        &mut self,
        pool: &mut Pool,
        purpose: Purpose,
        request: CloudCall,
        now: Tick,
    ) {
        self.is_behind_all = true;
        self.call(pool, purpose, request, now);
    }

    /// The step's effects in order.
    pub(super) fn seal(self, pool: &mut Pool, now: Tick) -> Vec<Effect> {
        let mut effects = self.at_once;
        let told = !self.finals.is_empty();
        // What an earlier commit still carries must be durable before a reply can rest on it: then even an empty
        // commit is a barrier. While the store fails, only DEL and GC and the time for another try cause a write.
        let due = if pool.memory.store_trouble.is_some() {
            let is_tried = pool.memory.commits.is_empty() && pool.memory.is_clear(&Topic::Store, now);
            if is_tried && !pool.is_dirty() {
                // What failed was a barrier: without something to write nobody would learn that the disk works again.
                pool.mark([RecordKey::Node]);
            }
            told || is_tried
        } else {
            pool.is_dirty() || ((told || self.is_behind_all) && !pool.memory.commits.is_empty())
        };
        let counts = !due && pool.memory.store_trouble.is_none() && pool.memory.budget.needs_commit();
        if (due || counts) && pool.memory.budget.write(counts) {
            pool.mark([RecordKey::Budget]);
        }
        if due || counts {
            let commit = pool.memory.next_commit;
            pool.memory.next_commit = CommitId(commit.0.saturating_add(1));
            let (keys, changes) = pool.take_changes();
            let addresses = keys.iter().filter_map(|key| match key {
                RecordKey::Address(address) => Some((*address, commit)),
                _ => None,
            });
            pool.memory.unwritten.extend(addresses);
            six::settles(pool, commit, &keys);
            let tail = Tail {
                keys,
                calls: self.calls.iter().map(|(call, _)| *call).collect(),
                finals: self.finals.clone(),
            };
            pool.memory.commits.insert(commit, tail);
            effects.push(Effect::Commit { commit, changes });
            if !self.unwired.is_empty() {
                effects.push(Effect::Unwire(self.unwired));
            }
        }
        effects.extend(
            self.calls
                .into_iter()
                .map(|(call, request)| Effect::Call { call, request }),
        );
        effects.extend(self.finals.into_iter().map(|(waiter, last)| Effect::Reply {
            waiter,
            reply: match last {
                Final::Durable(_) => Reply::Durable,
                Final::Told(reply) => reply,
            },
        }));
        effects
    }
}
