//! The runtime and its plugins: pods come, are asked for again, killed, deleted, forgotten and found.

use std::collections::BTreeSet;

use aws_cni_ipam::event::{AddRequest, Event};
use aws_cni_ipam::ids::{PodRef, SandboxKey, Tick, WaiterId};
use aws_cni_ipam::wishes::Wish;

use super::replies::{Add, Client};
use super::{Happening, Node};
use crate::kernel::veth;
use crate::script::{Quirk, Span};

/// A request on its way to the daemon.
#[derive(Debug)]
pub(super) enum Request {
    Add {
        pod: u32,
        key: SandboxKey,
        deadline: u64,
        wired: bool,
    },
    Del {
        key: SandboxKey,
    },
    Gc,
}

/// What the runtime does with a pod.
#[derive(Debug)]
pub enum Do {
    /// Its time is over.
    End,
    /// Its ADD is repeated.
    Again,
    /// Its plugin is killed, if it still works on this attempt.
    KillPlugin(u32),
    /// A sandbox of it is deleted.
    Clean(SandboxKey),
    /// It is tried again in a new sandbox.
    Retry,
}

/// Where a pod stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PodState {
    /// Its ADD is under way.
    Adding,
    /// It runs.
    Live,
    /// Its sandbox is being deleted.
    Dying,
    /// It ended, and nobody deleted its sandbox.
    Forgotten,
    /// Its last sandbox failed; another one comes.
    Away,
    /// It is over.
    Done,
}

/// A pod.
#[derive(Debug, Clone)]
pub struct Pod {
    /// Its number.
    pub n: u32,
    /// Which sandbox of it this is.
    pub attempt: u32,
    /// Where it stands.
    pub state: PodState,
    /// When it ends.
    pub ends_at: u64,
    patience: u64,
    life: u64,
    quirk: Quirk,
}

/// How often a sandbox is made for a pod before the script's author loses interest.
const ATTEMPTS: u32 = 6;

impl Pod {
    /// Its present sandbox.
    pub fn key(&self) -> SandboxKey {
        SandboxKey {
            network: "aws-cni".into(),
            container: format!("p{}-{}", self.n, self.attempt).into(),
            ifname: "eth0".into(),
        }
    }
}

/// The number of the pod that a sandbox is of.
fn number_of(key: &SandboxKey) -> Option<u32> {
    let (number, _) = key.container.as_str().strip_prefix('p')?.split_once('-')?;
    number.parse().ok()
}

impl Node {
    /// The pod whose present sandbox this is.
    pub(super) fn pod_of(&mut self, key: &SandboxKey) -> Option<&mut Pod> {
        let pod = self.pods.get_mut(&number_of(key)?)?;
        (pod.key() == *key).then_some(pod)
    }

    /// A pod comes.
    pub fn pod(&mut self, n: u32, life: Span, patience: Span, quirk: Quirk) {
        if self.pods.get(&n).is_some_and(|pod| pod.state != PodState::Done) {
            return;
        }
        let attempt = self.pods.get(&n).map_or(0, |pod| pod.attempt);
        let pod = Pod {
            n,
            attempt,
            state: PodState::Away,
            ends_at: self.now + life.0 + patience.0,
            patience: patience.0,
            life: life.0,
            quirk,
        };
        self.pods.insert(n, pod);
        self.counts.pods += 1;
        self.retry(n);
    }

    fn retry(&mut self, n: u32) {
        let (now, is_on) = (self.now, self.is_on());
        let Some(pod) = self.pods.get_mut(&n) else { return };
        if !matches!(pod.state, PodState::Away | PodState::Dying) {
            return;
        }
        if !is_on {
            return self.later(10_000, Happening::Runtime(n, Do::Retry));
        }
        let is_given_up = !self.is_light && pod.attempt % ATTEMPTS == ATTEMPTS - 1;
        if now >= pod.ends_at || is_given_up {
            pod.attempt += 1;
            pod.state = PodState::Done;
            return;
        }
        pod.attempt += 1;
        pod.state = PodState::Adding;
        let (key, deadline, attempt, quirk) = (pod.key(), now + pod.patience, pod.attempt, pod.quirk);
        let (patience, is_first) = (pod.patience, pod.attempt % ATTEMPTS == 1);
        self.request(Request::Add {
            pod: n,
            key,
            deadline,
            wired: false,
        });
        if is_first && quirk == Quirk::Killed {
            let wait = self.dice.below(20).pow(3).min(patience);
            self.later(wait, Happening::Runtime(n, Do::KillPlugin(attempt)));
        }
        if is_first && quirk == Quirk::Cancelled {
            let wait = self.dice.below(10).pow(3);
            self.later(wait, Happening::Runtime(n, Do::End));
        }
    }

    /// A sandbox could not be made: it is deleted and another one is tried later.
    pub(super) fn failed(&mut self, n: u32, key: &SandboxKey) {
        let Some(pod) = self.pods.get_mut(&n).filter(|pod| pod.key() == *key) else {
            return;
        };
        if pod.state != PodState::Adding {
            return;
        }
        pod.state = PodState::Away;
        let backoff = if self.is_light {
            self.dice.between(11_000, 13_000)
        } else {
            u64::from(pod.attempt % ATTEMPTS).pow(2).saturating_mul(4000)
        };
        self.later(1000, Happening::Runtime(n, Do::Clean(key.clone())));
        self.later(2000 + backoff, Happening::Runtime(n, Do::Retry));
    }

    pub(super) fn runtime(&mut self, n: u32, what: Do) {
        match what {
            Do::Retry => self.retry(n),
            Do::Clean(key) if !self.is_on() => self.later(10_000, Happening::Runtime(n, Do::Clean(key))),
            Do::Clean(key) => self.request(Request::Del { key }),
            Do::End if self.is_on() => self.end(n),
            Do::Again => {
                if let Some(pod) = self.pods.get(&n).filter(|pod| pod.state == PodState::Live) {
                    let (key, deadline) = (pod.key(), self.now + pod.patience);
                    self.request(Request::Add {
                        pod: n,
                        key,
                        deadline,
                        wired: true,
                    });
                }
            }
            Do::KillPlugin(attempt) => self.kill_plugin(n, attempt),
            Do::End => {}
        }
    }

    /// The pod's time is over, or somebody wants it gone.
    pub fn end(&mut self, n: u32) {
        let Some(pod) = self.pods.get_mut(&n) else {
            // The runtime deletes what it never made.
            let key = Pod {
                n,
                attempt: 0,
                state: PodState::Done,
                ends_at: 0,
                patience: 0,
                life: 0,
                quirk: Quirk::None,
            }
            .key();
            return self.request(Request::Del { key });
        };
        match (pod.state, pod.quirk) {
            (PodState::Live, Quirk::Forgotten) => pod.state = PodState::Forgotten,
            (PodState::Live | PodState::Adding, quirk) => {
                let was_adding = pod.state == PodState::Adding;
                pod.state = PodState::Dying;
                let key = pod.key();
                if was_adding {
                    return self.cancel(&key);
                }
                if quirk == Quirk::Twice {
                    let wait = self.dice.below(3000);
                    self.later(wait, Happening::Runtime(n, Do::Clean(key.clone())));
                }
                self.request(Request::Del { key });
            }
            (PodState::Away, _) => pod.ends_at = self.now,
            (PodState::Done, _) => {
                let key = pod.key();
                self.request(Request::Del { key });
            }
            (PodState::Dying | PodState::Forgotten, _) => {}
        }
    }

    /// An ADD is cancelled: the runtime kills its plugin and deletes the sandbox; the daemon hears of both, in any order.
    fn cancel(&mut self, key: &SandboxKey) {
        let of_it = |(waiter, client): (&WaiterId, &Client)| {
            matches!(client, Client::Add(add) if add.key == *key).then_some(*waiter)
        };
        let waiting = self.clients.iter().find_map(of_it);
        self.socket
            .retain(|request| !matches!(request, Request::Add { key: other, .. } if other == key));
        let hangs_up_first = self.dice.chance(500);
        if let Some(waiter) = waiting {
            self.clients.remove(&waiter);
            if hangs_up_first {
                self.hang_up(waiter, key);
            }
        }
        self.request(Request::Del { key: key.clone() });
        if let Some(waiter) = waiting.filter(|_| !hangs_up_first) {
            self.hang_up(waiter, key);
        }
    }

    /// The daemon hears that a client's connection ends, and takes away what it alone was told of.
    pub(super) fn hang_up(&mut self, waiter: WaiterId, key: &SandboxKey) {
        let told = |pool: &aws_cni_ipam::pool::Pool| {
            let held = pool.allocations().get(key);
            held.is_some_and(|held| held.told == Some(waiter))
        };
        let was_told = self.pool.as_ref().is_some_and(told);
        self.step(Event::GiveUp { waiter });
        let is_left = |pool: &aws_cni_ipam::pool::Pool| pool.allocations().contains_key(key);
        if was_told && !self.pool.as_ref().is_some_and(is_left) {
            self.later(2, Happening::Unwired(vec![key.clone()]));
        }
    }

    /// A pod runs: when it ends.
    pub(super) fn lives(&mut self, n: u32) {
        let Some(pod) = self.pods.get_mut(&n) else { return };
        pod.state = PodState::Live;
        let (life, quirk) = (pod.life, pod.quirk);
        pod.ends_at = self.now + life;
        self.later(life, Happening::Runtime(n, Do::End));
        if quirk == Quirk::Again {
            let wait = self.dice.below(life / 2 + 1);
            self.later(wait, Happening::Runtime(n, Do::Again));
        }
    }

    /// A request reaches the daemon, or waits in the socket for the next one.
    pub(super) fn request(&mut self, request: Request) {
        if self.pool.is_none() {
            self.socket.push(request);
            return;
        }
        self.next_waiter += 1;
        let waiter = WaiterId(self.next_waiter);
        match request {
            Request::Add {
                pod,
                key,
                deadline,
                wired,
            } => {
                if deadline <= self.now {
                    self.kernel.unwire(&key);
                    return self.failed(pod, &key);
                }
                let add = Add {
                    pod,
                    key: key.clone(),
                    deadline,
                    wired,
                    durable: false,
                    through: false,
                    grant: None,
                };
                self.clients.insert(waiter, Client::Add(add));
                self.counts.adds += 1;
                self.step(Event::Add(AddRequest {
                    waiter,
                    pod: PodRef::default(),
                    host_veth: veth(&key),
                    netns: String::new(),
                    wish: Wish::Any,
                    main: None,
                    ports: Vec::new(),
                    key,
                    deadline: Tick(self.tick().0 + (deadline - self.now)),
                }));
            }
            Request::Del { key } => {
                let client = Client::Del {
                    key: key.clone(),
                    answered: false,
                };
                self.clients.insert(waiter, client);
                // The pod itself is dead before its sandbox is deleted; its address rests from now on.
                let (now, cooldown) = (self.now, self.policy.cooldown);
                self.truth.ended(&key, now, cooldown);
                self.step(Event::Del { waiter, key });
            }
            Request::Gc => self.list(waiter),
        }
    }

    /// The runtime lists what is alive.
    pub fn gc(&mut self) {
        self.request(Request::Gc);
    }

    fn list(&mut self, waiter: WaiterId) {
        let mut valid = BTreeSet::new();
        let mut ended = Vec::new();
        for pod in self.pods.values_mut() {
            let key = pod.key();
            match pod.state {
                PodState::Adding | PodState::Live | PodState::Dying => {
                    valid.insert((key.container, key.ifname));
                }
                PodState::Forgotten => {
                    pod.state = PodState::Done;
                    ended.push(key);
                }
                PodState::Away | PodState::Done => {}
            }
        }
        let (now, cooldown) = (self.now, self.policy.cooldown);
        for key in &ended {
            self.truth.ended(key, now, cooldown);
        }
        // With its network namespace a sandbox's veth pair goes, and the route over it.
        self.later(1000, Happening::Unwired(ended));
        self.clients.insert(waiter, Client::Gc { valid: valid.clone() });
        self.step(Event::Gc {
            waiter,
            network: "aws-cni".into(),
            valid,
        });
    }

    /// A plugin is killed.
    fn kill_plugin(&mut self, n: u32, attempt: u32) {
        let of_it = |(waiter, client): (&WaiterId, &Client)| match client {
            Client::Add(add) if add.pod == n => Some((*waiter, add.key.clone())),
            _ => None,
        };
        let Some(pod) = self.pods.get(&n).filter(|pod| pod.attempt == attempt) else {
            return;
        };
        if pod.state != PodState::Adding {
            return;
        }
        let Some((waiter, key)) = self.clients.iter().find_map(of_it) else {
            return;
        };
        self.clients.remove(&waiter);
        self.hang_up(waiter, &key);
        self.failed(n, &key);
    }

    /// Waiters that nobody has answered yet.
    pub fn unanswered(&self) -> Vec<String> {
        let asked = self.clients.values().map(|client| format!("{client:?}"));
        let waiting = self.socket.iter().map(|request| format!("{request:?}"));
        asked.chain(waiting).collect()
    }
}
