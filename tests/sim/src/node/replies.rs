//! What clients are told, held against what is true.

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::time::Duration;

use aws_cni_ipam::effect::{Grant, Refusal, RefusalKind, ReleasedAddress, Reply};
use aws_cni_ipam::ids::{ContainerId, IfName, SandboxKey, Tick, WaiterId};
use aws_cni_ipam::model::EniState;
use aws_cni_ipam::pool::Pool;
use aws_cni_ipam::records::RecordKey;

use super::{Happening, Node, PodState};

/// An ADD that waits for its answers.
#[derive(Debug)]
pub(super) struct Add {
    pub(super) pod: u32,
    pub(super) key: SandboxKey,
    pub(super) deadline: u64,
    pub(super) wired: bool,
    pub(super) durable: bool,
    /// It has wired what this daemon granted.
    pub(super) through: bool,
    pub(super) grant: Option<Grant>,
}

/// Whoever waits for an answer.
#[derive(Debug)]
pub(super) enum Client {
    Add(Add),
    Del { key: SandboxKey, answered: bool },
    Gc { valid: BTreeSet<(ContainerId, IfName)> },
}

impl Node {
    pub(super) fn reply(&mut self, waiter: WaiterId, reply: Reply) {
        let Some(client) = self.clients.get_mut(&waiter) else {
            // A client that hung up, or one that has its answer.
            return;
        };
        match (client, reply) {
            (Client::Add(add), Reply::Assigned(grant)) => {
                let twice = add.grant.replace(grant.clone()).is_some();
                let (key, wired) = (add.key.clone(), add.wired);
                if twice {
                    self.violated("answers", format!("{key} was assigned to twice"));
                }
                self.granted(&key, &grant, wired);
                let wait = self.dice.wait(2);
                self.later(wait, Happening::Wired(waiter));
            }
            (Client::Add(add), Reply::Durable) => {
                add.durable = true;
                let (key, grant) = (add.key.clone(), add.grant.clone());
                self.durable(&key, grant);
                self.finish(waiter);
            }
            (Client::Add(_), Reply::Refused(refusal)) => self.refused(waiter, &refusal),
            (Client::Del { key, answered }, Reply::Released { addresses, .. }) => {
                let twice = std::mem::replace(answered, true);
                let key = key.clone();
                if twice {
                    self.violated("answers", format!("{key} was released twice"));
                }
                self.released(&key, &addresses);
                // Now and then a plugin is slow, or dies and leaves it to the end of the network namespace.
                let usual = if self.dice.chance(100) { 1500 } else { 2 };
                let wait = self.dice.wait(usual);
                self.later(wait, Happening::Unwired(vec![key]));
            }
            (Client::Del { key, answered: true }, Reply::Settled) => {
                let key = key.clone();
                self.clients.remove(&waiter);
                self.counts.dels += 1;
                self.settled_dels.insert(key.clone());
                let dying = self.pod_of(&key).filter(|pod| pod.state == PodState::Dying);
                if let Some(pod) = dying {
                    pod.state = PodState::Done;
                }
            }
            (Client::Gc { valid }, Reply::Collected(addresses)) => {
                let valid = std::mem::take(valid);
                self.clients.remove(&waiter);
                self.collected(&valid, &addresses);
            }
            (client, reply) => {
                let what = format!("{client:?} was told {reply:?}");
                self.violated("answers", what);
            }
        }
    }

    /// Design invariant 1, as the world sees it, and the rest before reuse.
    fn granted(&mut self, key: &SandboxKey, grant: &Grant, was_wired: bool) {
        let address = grant.address;
        if let Some(other) = self.truth.holder_but(address, key) {
            let what = format!("{address} was given to {key} while {other} lives on it");
            self.violated("one-address-one-sandbox", what);
        }
        if let Some(routed) = self.kernel.routes.get(&address).filter(|routed| *routed != key) {
            let what = format!("{address} was given to {key} while the kernel routes it to {routed}");
            self.violated("one-address-one-sandbox", what);
        }
        let own = self.truth.address_of(key).filter(|own| *own != address);
        if let Some(own) = own.filter(|own| !self.has_lost(key, *own)) {
            let what = format!("{key} lives on {own} and was now given {address}");
            self.violated("one-address-one-sandbox", what);
        }
        if grant.repeated || was_wired {
            return;
        }
        let mac = self
            .pool
            .as_ref()
            .and_then(|pool| Some(pool.enis().get(&grant.eni)?.mac));
        if !mac.is_some_and(|mac| self.kernel.has_link(mac)) {
            let what = format!("{address} was given to {key} on {}, which has no link", grant.eni);
            self.violated("unreachable", what);
        }
        if self.policy.custom_networking && grant.eni == self.facts.primary_eni {
            let what = format!("{address} of the primary ENI was given to {key} in custom networking");
            self.violated("wrong-eni", what);
        }
        if let Some(rested) = self.truth.rest_cut_short(address, self.now, self.policy.cooldown) {
            let what = format!("{address} was given to {key} after a rest of {rested} ms");
            self.violated("cooldown", what);
        }
        if let Some(last) = self.truth.counts_on(address, self.now) {
            let what = format!("{address} was given to {key} after {last} of the same /80");
            self.violated("given-again", what);
        }
        self.granted.push((address, grant.eni.clone()));
    }

    /// Nobody knows any more that it lives, and its address is not the node's any more either, as far as that is known.
    fn has_lost(&self, key: &SandboxKey, own: IpAddr) -> bool {
        let IpAddr::V6(own) = own else { return false };
        let has = |pool: &Pool| {
            let enis = pool.enis().values().filter(|eni| eni.state == EniState::Ready);
            let mut blocks = enis.filter_map(|eni| eni.block.as_ref());
            blocks.any(|block| block.place_of(own).is_some())
        };
        self.lost_records.contains(key) && !self.pool.as_ref().is_some_and(has)
    }

    /// Design invariant 3.
    fn durable(&mut self, key: &SandboxKey, grant: Option<Grant>) {
        let Some(grant) = grant else {
            return self.violated("answers", format!("{key} is durable before it is assigned"));
        };
        let superseded = self
            .pool
            .as_ref()
            .is_some_and(|pool| !pool.allocations().contains_key(key));
        let stored = self.disk.records.get(&RecordKey::Allocation(key.clone()).text());
        let named = grant.address.to_string();
        let is_stored = stored.is_some_and(|value| {
            value
                .windows(named.len())
                .any(|window| window == named.as_bytes())
        });
        if !is_stored && !superseded {
            let what = format!("{key} was told that {named} is durable, but it is not stored");
            self.violated("written-before-told", what);
        }
    }

    /// A plugin is through with wiring.
    pub(super) fn wired(&mut self, waiter: WaiterId) {
        let Some(Client::Add(add)) = self.clients.get_mut(&waiter) else {
            return;
        };
        let Some(grant) = &add.grant else { return };
        let (key, address) = (add.key.clone(), grant.address);
        // A repeated ADD that waited for a daemon together with its sandbox's DEL finds no network namespace any more.
        let is_over = |pod: &mut super::Pod| matches!(pod.state, PodState::Dying | PodState::Done);
        if self.pod_of(&key).is_some_and(is_over) {
            self.clients.remove(&waiter);
            return self.hang_up(waiter, &key);
        }
        let Some(Client::Add(add)) = self.clients.get_mut(&waiter) else {
            return;
        };
        add.wired = true;
        add.through = true;
        self.kernel.routes.insert(address, key);
        self.finish(waiter);
    }

    /// The result is told once the sandbox is wired and its address durable.
    fn finish(&mut self, waiter: WaiterId) {
        let Some(Client::Add(add)) = self.clients.get(&waiter) else {
            return;
        };
        let (Some(grant), true, true) = (&add.grant, add.durable, add.wired) else {
            return;
        };
        let (n, key, address) = (add.pod, add.key.clone(), grant.address);
        let is_wired = self.kernel.routes.get(&address) == Some(&key);
        if !is_wired && !add.through {
            // `wired` of an earlier life; this grant's own wiring follows.
            return;
        }
        self.clients.remove(&waiter);
        let current = self
            .pods
            .get(&n)
            .filter(|pod| pod.key() == key)
            .map(|pod| pod.state);
        // If its DEL came in between, the runtime has no use for the result.
        if current == Some(PodState::Adding) {
            self.counts.granted += 1;
            self.truth.lives(key, address);
            self.lives(n);
        }
    }

    fn refused(&mut self, waiter: WaiterId, refusal: &Refusal) {
        let Some(Client::Add(add)) = self.clients.remove(&waiter) else {
            return;
        };
        *self
            .counts
            .refused
            .entry(format!("{:?}", refusal.kind))
            .or_default() += 1;
        let early = self.now < add.deadline;
        if early && add.grant.is_none() {
            self.refused_early(&add.key, add.deadline, refusal);
        }
        if refusal.kind == RefusalKind::Deadline && early {
            self.violated(
                "deadline",
                format!("{} was told of its deadline too early", add.key),
            );
        }
        if self.truth.address_of(&add.key).is_some() {
            // A repeated ADD was refused; the pod lives on.
            return;
        }
        self.kernel.unwire(&add.key);
        self.failed(add.pod, &add.key);
    }

    /// What is on its way must be waited for: by what the pool itself knows when nothing at all goes wrong.
    fn refused_early(&mut self, key: &SandboxKey, deadline: u64, refusal: &Refusal) {
        let hopeless = matches!(
            refusal.kind,
            RefusalKind::Exhausted | RefusalKind::SubnetFull | RefusalKind::TryAgain
        );
        if !hopeless || self.weather.clears_at + 120_000 > self.now {
            return;
        }
        let wait = deadline - self.now;
        let (now, tick) = (self.now, self.tick());
        let waiting = self
            .clients
            .values()
            .filter(|client| matches!(client, Client::Add(add) if add.grant.is_none()))
            .count();
        let Some(pool) = &self.pool else { return };
        let status = pool.status(tick);
        let resting = self.truth.resting(now, deadline.saturating_sub(1000));
        // What rests on an ENI that gets no new pods is not coming; nor is what the kernel has routed since, for which the
        // rest has begun again.
        let rested = tick.after(Duration::from_millis(wait.saturating_sub(1000)));
        let is_for_pods = |address: &&IpAddr| {
            let known = pool.known(**address);
            let eni = known.and_then(|known| pool.enis().get(&known.eni));
            let is_in_time = |until: Tick| until < rested;
            eni.is_some_and(|eni| !eni.excluded)
                && pool.is_wired(**address)
                && known.is_some_and(|known| {
                    // What is in doubt besides comes when that is over, whenever that may be.
                    known.doubt.is_none() && known.rests_until.is_none_or(is_in_time)
                })
        };
        let wired = resting.iter().filter(is_for_pods).count();
        if wait > 60_000 && u64::from(status.coming) > waiting as u64 || wired > waiting + 1 {
            let what = format!(
                "{key} was refused ({}) {wait} ms before its deadline while {} addresses are coming and {wired} rest until then, for {waiting} who wait",
                refusal.message, status.coming
            );
            self.violated("refused-what-is-coming", what);
        }
    }

    fn released(&mut self, key: &SandboxKey, addresses: &[ReleasedAddress]) {
        if let Some(other) = addresses.iter().find(|released| released.key != *key) {
            let what = format!("DEL of {key} released {} of {}", other.address, other.key);
            self.violated("foreign-release", what);
        }
    }

    fn collected(&mut self, valid: &BTreeSet<(ContainerId, IfName)>, addresses: &[ReleasedAddress]) {
        let is_valid = |released: &&ReleasedAddress| {
            valid.contains(&(released.key.container.clone(), released.key.ifname.clone()))
        };
        if let Some(released) = addresses.iter().find(is_valid) {
            let what = format!(
                "GC collected {} of {}, which is alive",
                released.address, released.key
            );
            self.violated("foreign-release", what);
        }
        let keys = addresses.iter().map(|released| released.key.clone()).collect();
        self.later(2, Happening::Unwired(keys));
    }
}
