//! How a daemon starts and ends, and the machine with it.

use std::net::IpAddr;

use aws_cni_ipam::event::Event;
use aws_cni_ipam::ids::SandboxKey;
use aws_cni_ipam::pool::Pool;
use aws_cni_ipam::records::{RecordKey, decode, stored_facts};
use aws_cni_ipam::recover::Start;
use aws_cni_ipam::six;

use super::pods::Request;
use super::replies::Client;
use super::{Do, Happening, Node, Pod, PodState};
use crate::script::{Lie, Span};

impl Node {
    /// The daemon starts: with what it remembers of this boot, else with what IMDS tells.
    pub(super) fn start(&mut self) {
        if self.pool.is_some() || !self.is_on() {
            return;
        }
        let remembered = stored_facts(&self.disk.records).filter(|facts| facts.boot == self.facts.boot);
        let asks_imds = remembered.is_none();
        if asks_imds && self.weather.imds_lie(self.now) == Some(Lie::Fails) {
            return self.later(2000, Happening::Start);
        }
        self.tell(|| "the daemon starts".to_owned());
        let facts = remembered.unwrap_or_else(|| self.facts.clone());
        self.policy.seed = self.dice.roll();
        let start = Start {
            policy: self.policy.clone(),
            limits: self.limits,
            facts,
            records: self.disk.records.clone(),
            kernel: self.kernel.facts(),
            gone: self.lost_dels.clone(),
        };
        let routed: Vec<IpAddr> = start
            .kernel
            .pod_routes
            .iter()
            .map(|route| route.address)
            .collect();
        let (pool, effects) = Pool::recover(start, self.tick());
        let mut held = pool.allocations().values();
        // Whatever is stored is another boot's, as long as nothing that is stored names this one (design invariant 10).
        let outlives = held.find(|held| asks_imds && !routed.contains(&held.address));
        let outlives = outlives.map(|held| format!("{} holds an address over a boot", held.key));
        self.pool = Some(pool);
        self.counts.starts += 1;
        if let Some(what) = outlives {
            self.violated("outlives-boot", what);
        }
        self.execute(effects);
        self.judge();
        let life = self.life;
        if asks_imds {
            self.later(0, Happening::ImdsAsked { life });
        } else {
            self.step(Event::Facts(Box::new(self.facts.clone())));
        }
        for request in std::mem::take(&mut self.socket) {
            self.request(request);
        }
    }

    /// The daemon is to be killed before so many more effects are executed.
    pub fn kill_before(&mut self, effect: u32, down: Span) {
        self.kill = Some((effect, down.0));
        if effect == 0 {
            self.is_killed_now();
        }
    }

    /// Whether the time for that has come; then it is done.
    pub(super) fn is_killed_now(&mut self) -> bool {
        if self.pool.is_none() {
            return true;
        }
        let Some((effects, down)) = &mut self.kill else {
            return false;
        };
        if *effects > 0 {
            *effects -= 1;
            return false;
        }
        let down = *down;
        self.kill = None;
        self.die();
        self.later(down, Happening::Start);
        true
    }

    /// The daemon is gone, in the middle of whatever it did.
    pub fn die(&mut self) {
        self.tell(|| "the daemon is gone".to_owned());
        self.life += 1;
        self.counts.deaths += 1;
        self.count_brakes();
        self.pool = None;
        self.wake = None;
        self.kill = None;
        let mut dice = self.dice.clone();
        self.dice.roll();
        self.disk.crash(&mut dice, self.now);
        for key in std::mem::take(&mut self.settled_dels) {
            if self
                .disk
                .records
                .contains_key(&RecordKey::Allocation(key.clone()).text())
            {
                self.lost_dels.insert(key);
            }
        }
        for (_, client) in std::mem::take(&mut self.clients) {
            self.orphaned(client);
        }
    }

    /// The database is lost, and the daemon dies with it: a copy of what was stored then takes its place. What has been
    /// deleted since is held there; its network namespace is gone. What rests is not known.
    pub fn restore(&mut self, then: u64) {
        if self.pool.is_some() {
            self.die();
        }
        self.disk.restore(then);
        let behind = six::behind_copy(&self.disk.records);
        self.disk.records.extend(behind);
        self.truth.forget_rests();
        self.note_lost_records();
        let over = |pod: &&Pod| matches!(pod.state, PodState::Done | PodState::Away);
        let held = self.pods.values().filter(over).map(Pod::key);
        let held = held.filter(|key| !self.lost_records.contains(key));
        self.lost_dels.extend(held);
    }

    /// Notes which sandboxes the store says nothing of.
    pub fn note_lost_records(&mut self) {
        let is_stored = |key: &SandboxKey| {
            let record = RecordKey::Allocation(key.clone()).text();
            let stored = self.disk.records.get(&record);
            stored.is_some_and(|value| decode(&record, value).is_ok())
        };
        let keys = self.pods.values().map(Pod::key);
        self.lost_records = keys.filter(|key| !is_stored(key)).collect();
    }

    /// Whose records were lost, and no daemon has lived since to store what the kernel told of them: with the power the
    /// last that knew them is gone.
    fn unwitnessed(&self) -> Vec<SandboxKey> {
        let is_stored = |key: &RecordKey| {
            let text = key.text();
            let value = self.disk.records.get(&text);
            value.is_some_and(|value| decode(&text, value).is_ok())
        };
        let is_lost = |(address, key): &(&IpAddr, &SandboxKey)| {
            self.lost_records.contains(*key)
                && !is_stored(&RecordKey::Allocation((*key).clone()))
                && !is_stored(&RecordKey::Address(**address))
        };
        let lost = self.truth.everybody().filter(is_lost);
        lost.map(|(_, key)| key.clone()).collect()
    }

    /// A client whose daemon is gone: a plugin asks again, or gives up, or dies too; a DEL or a GC is asked for until it is
    /// done.
    fn orphaned(&mut self, client: Client) {
        match client {
            Client::Add(add) => match self.dice.below(4) {
                0 | 1 => self.socket.push(Request::Add {
                    pod: add.pod,
                    key: add.key,
                    deadline: add.deadline,
                    wired: add.wired,
                }),
                2 => {
                    self.kernel.unwire(&add.key);
                    self.failed(add.pod, &add.key);
                }
                _ => self.failed(add.pod, &add.key),
            },
            Client::Del { key, .. } => self.socket.push(Request::Del { key }),
            Client::Gc { .. } => self.socket.push(Request::Gc),
        }
    }

    /// Power is lost: nothing of the kernel is left, and all sandboxes are gone.
    pub fn power_cut(&mut self, down: Span) {
        self.tell(|| "power is lost".to_owned());
        self.die();
        self.boots += 1;
        self.booted_at = self.now + down.0;
        self.facts.booted_at = super::FIRST_BOOT + self.booted_at / 1000;
        self.facts.boot = format!("b007{:04}-0000", self.boots).as_str().into();
        self.kernel = crate::kernel::Kernel::default();
        self.kernel.link_up(self.facts.primary_mac);
        self.socket.clear();
        self.outgoing
            .retain(|(_, what)| !matches!(what, Happening::Wired(_) | Happening::Unwired(_)));
        for key in self.unwitnessed() {
            self.truth.vanished(&key);
        }
        let booted_at = self.booted_at;
        self.truth.everything_ended(booted_at);
        let pods: Vec<u32> = self.pods.keys().copied().collect();
        for n in pods {
            let Some(pod) = self.pods.get_mut(&n) else {
                continue;
            };
            if matches!(pod.state, PodState::Done | PodState::Away) {
                continue;
            }
            let comes_back = !matches!(pod.state, PodState::Dying | PodState::Forgotten);
            pod.state = PodState::Dying;
            let key = pod.key();
            self.later(down.0 + 8000, Happening::Runtime(n, Do::Clean(key)));
            if comes_back {
                self.later(down.0 + 9000, Happening::Runtime(n, Do::Retry));
            }
        }
        self.later(down.0 + 6000, Happening::Start);
    }
}
