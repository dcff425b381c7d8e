//! One node: the real pool with a disk, a kernel, a runtime and its plugins around it. It knows nothing of EC2 but what
//! it is answered; what it wants done outside it hands to whoever drives it.

mod life;
mod pods;
mod replies;

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, Ipv4Addr};

use aws_cni_ipam::cloud::{CloudCall, CloudResult};
use aws_cni_ipam::effect::Effect;
use aws_cni_ipam::event::Event;
use aws_cni_ipam::ids::{CallId, CommitId, EniId, Mac, SandboxKey, Tick, WaiterId};
use aws_cni_ipam::limits::InstanceLimits;
use aws_cni_ipam::node::NodeFacts;
use aws_cni_ipam::policy::Policy;
use aws_cni_ipam::pool::Pool;
use aws_cni_ipam::verify;
use aws_cni_ipam::witness::ImdsSnapshot;

use crate::count::Counts;
use crate::dice::Dice;
use crate::disk::Disk;
use crate::kernel::Kernel;
use crate::script::{DiskTrouble, Trouble};
use crate::truth::{Truth, Violation};
use crate::weather::Weather;
pub use pods::{Do, Pod, PodState};
use replies::Client;

/// Something that will happen to a node. What names a `life` is about the daemon process it was begun by.
#[allow(
    clippy::large_enum_variant,
    reason = "one at a time, moved a few times: a box would cost more than it saves"
)]
#[derive(Debug)]
pub enum Happening {
    /// The daemon starts.
    Start,
    /// The time the pool asked to be woken at.
    Wake {
        /// Of this daemon.
        life: u64,
        /// When that was to be.
        at: u64,
    },
    /// The disk is through with a batch.
    Synced {
        /// Of this daemon.
        life: u64,
        /// Which.
        commit: CommitId,
    },
    /// A call reaches EC2.
    CallArrives {
        /// Of this daemon.
        life: u64,
        /// Which.
        call: CallId,
        /// What is asked.
        request: CloudCall,
    },
    /// A call is answered.
    Answered {
        /// Of this daemon.
        life: u64,
        /// Which.
        call: CallId,
        /// How.
        result: CloudResult,
    },
    /// A link appears.
    LinkComes(Mac),
    /// A link disappears.
    LinkGoes(Mac),
    /// An ENI is configured, or not.
    Configured {
        /// By this daemon.
        life: u64,
        /// Which.
        eni: EniId,
        /// Its hardware address.
        mac: Mac,
    },
    /// Addresses are published, or not.
    Published {
        /// By this daemon.
        life: u64,
        /// On which ENI.
        eni: EniId,
        /// Which.
        addresses: Vec<Ipv4Addr>,
    },
    /// The kernel has been read.
    KernelRead {
        /// By this daemon.
        life: u64,
    },
    /// IMDS is asked for everything.
    ImdsAsked {
        /// By this daemon.
        life: u64,
    },
    /// A plugin has wired its sandbox.
    Wired(WaiterId),
    /// What is wired for these sandboxes goes.
    Unwired(Vec<SandboxKey>),
    /// The runtime does something with a pod.
    Runtime(u32, Do),
}

/// A node.
#[derive(Debug)]
pub struct Node {
    /// What is true of the machine; its boot changes.
    pub facts: NodeFacts,
    /// The operator's settings.
    pub policy: Policy,
    /// What a start is told of the limits.
    pub limits: Option<InstanceLimits>,
    /// The running daemon.
    pub pool: Option<Pool>,
    /// Its disk.
    pub disk: Disk,
    /// Its kernel.
    pub kernel: Kernel,
    /// Its pods by number.
    pub pods: BTreeMap<u32, Pod>,
    /// What is true, whatever the pool believes.
    pub truth: Truth,
    /// What goes wrong.
    pub weather: Weather,
    /// What has been counted.
    pub counts: Counts,
    /// What will happen, and in how many milliseconds: to be taken by whoever drives the node.
    pub outgoing: Vec<(u64, Happening)>,
    /// Everything that happened, in words, where somebody wants to read it.
    pub trace: Option<Vec<String>>,
    /// What was found to be wrong.
    pub violation: Option<Violation>,
    /// One of many in a fleet: its pool is not verified after every event, and its pods are tried for as long as they
    /// live, 13 to 15 s after a failure, as kubelet does.
    pub is_light: bool,
    /// Virtual milliseconds since the simulation began.
    pub now: u64,
    /// Which daemon process this is.
    pub life: u64,
    /// When the machine was last switched on.
    pub booted_at: u64,
    boots: u64,
    wake: Option<u64>,
    clients: BTreeMap<WaiterId, Client>,
    /// Requests that wait in the socket while no daemon runs.
    socket: Vec<pods::Request>,
    next_waiter: u64,
    kill: Option<(u32, u64)>,
    dice: Dice,
    /// The daemon and the version of its pool that was found to be sound.
    judged: Option<(u64, u64)>,
    events_now: (u64, u64),
    events_hour: (u64, u64),
    /// Addresses given out since the driver last looked, and on which ENI.
    pub granted: Vec<(IpAddr, EniId)>,
    /// Sandboxes whose DEL was settled in this daemon's life.
    settled_dels: BTreeSet<SandboxKey>,
    /// Those of them whose allocation was still on the disk when their daemon died.
    pub lost_dels: BTreeSet<SandboxKey>,
    /// Sandboxes whose allocation the store did not have when it was last damaged.
    pub lost_records: BTreeSet<SandboxKey>,
    /// Addresses whose rules were removed.
    pub rules_removed: BTreeSet<Ipv4Addr>,
}

/// Seconds since 1970 when a simulation begins.
pub const FIRST_BOOT: u64 = 1_795_248_000;

/// A daemon that handles more events than this without time passing is in a hot loop.
const EVENTS_AT_ONCE: u64 = 3000;
/// And so is one that handles more in an hour; the busiest scripts have some hundred pods an hour.
const EVENTS_AN_HOUR: u64 = 30_000;

/// After so many events all of the pool is judged whether it has changed or not.
const JUDGED_ANYWAY: u64 = 64;

impl Node {
    /// A node that is switched on; its daemon starts in a moment.
    pub fn new(facts: NodeFacts, policy: Policy, limits: Option<InstanceLimits>, seed: u64) -> Self {
        let mut node = Self {
            facts,
            policy,
            limits,
            pool: None,
            disk: Disk::default(),
            kernel: Kernel::default(),
            pods: BTreeMap::new(),
            truth: Truth::default(),
            weather: Weather::default(),
            counts: Counts::default(),
            outgoing: Vec::new(),
            trace: None,
            violation: None,
            is_light: false,
            now: 0,
            life: 0,
            booted_at: 0,
            boots: 1,
            wake: None,
            clients: BTreeMap::new(),
            socket: Vec::new(),
            next_waiter: 0,
            kill: None,
            dice: Dice::new(seed, "node"),
            judged: None,
            events_now: (0, 0),
            events_hour: (0, 0),
            granted: Vec::new(),
            settled_dels: BTreeSet::new(),
            lost_dels: BTreeSet::new(),
            lost_records: BTreeSet::new(),
            rules_removed: BTreeSet::new(),
        };
        node.kernel.link_up(node.facts.primary_mac);
        node.later(1, Happening::Start);
        node
    }

    /// The machine's clock.
    pub fn tick(&self) -> Tick {
        Tick(self.now.saturating_sub(self.booted_at).saturating_add(5000))
    }

    /// Seconds since 1970, by the machine's clock.
    pub fn unix(&self) -> u64 {
        self.facts.booted_at + self.tick().0 / 1000
    }

    fn later(&mut self, wait: u64, what: Happening) {
        self.outgoing.push((wait, what));
    }

    /// Writes down what happened.
    pub fn tell(&mut self, line: impl FnOnce() -> String) {
        if let Some(trace) = &mut self.trace {
            trace.push(crate::trace::line(self.now, &line()));
        }
    }

    /// An oracle has found something; the first finding counts.
    pub fn violated(&mut self, oracle: &'static str, what: String) {
        self.tell(|| format!("VIOLATION {oracle}: {what}"));
        if self.violation.is_none() {
            self.violation = Some(Violation {
                oracle,
                what,
                at: self.now,
            });
        }
    }

    /// Whether the machine is on.
    pub fn is_on(&self) -> bool {
        self.now >= self.booted_at
    }

    /// Something happens now.
    pub fn handle(&mut self, what: Happening) {
        match what {
            Happening::Start => self.start(),
            Happening::Wake { life, at } if life == self.life && self.wake == Some(at) => {
                self.wake = None;
                self.step(Event::Timer);
            }
            Happening::Synced { life, commit } if life == self.life => self.synced(commit),
            Happening::Answered { life, call, result } if life == self.life => {
                self.step(Event::CallEnded { call, result });
            }
            Happening::LinkComes(mac) if self.is_on() && !self.kernel.has_link(mac) => {
                let link = self.kernel.link_up(mac);
                self.step(Event::LinkSeen(link));
            }
            Happening::LinkGoes(mac) if self.kernel.link_down(mac) => {
                self.step(Event::LinkGone { mac });
            }
            Happening::Configured { life, eni, mac } if life == self.life => {
                let trouble = self.weather.kernel_until(Trouble::Configure, self.now);
                let result = if trouble.is_some() || !self.kernel.has_link(mac) {
                    Err("no such device".to_owned())
                } else {
                    Ok(())
                };
                self.step(Event::EniConfigured { eni, result });
            }
            Happening::Published { life, eni, addresses } if life == self.life => {
                let trouble = self.weather.kernel_until(Trouble::Publish, self.now);
                let result = trouble.map_or(Ok(()), |_| Err("device or resource busy".to_owned()));
                self.step(Event::Published {
                    eni,
                    addresses,
                    result,
                });
            }
            Happening::KernelRead { life } if life == self.life => {
                let facts = self.kernel.facts();
                self.step(Event::Kernel(facts));
            }
            Happening::Wired(waiter) => self.wired(waiter),
            Happening::Unwired(keys) => keys.iter().for_each(|key| self.kernel.unwire(key)),
            Happening::Runtime(pod, what) => self.runtime(pod, what),
            _ => {}
        }
    }

    /// IMDS has answered.
    pub fn imds(&mut self, snapshot: ImdsSnapshot) {
        self.step(Event::Imds(snapshot));
    }

    fn synced(&mut self, commit: CommitId) {
        if self.weather.has_disk(DiskTrouble::Fails, self.now) {
            for commit in self.disk.fail() {
                let reason = "no space left on device".to_owned();
                self.step(Event::CommitFailed { commit, reason });
            }
            return;
        }
        if let Some(behind) = self.disk.sync(commit, self.now) {
            let life = self.life;
            self.execute(behind);
            if life == self.life {
                self.step(Event::Committed { commit });
            }
        }
    }

    /// Lets the pool decide, does what it wants, and has it judged.
    pub fn step(&mut self, event: Event) {
        if self.trace.is_some()
            && self.pool.is_some()
            && let Some(line) = crate::trace::event(&event)
        {
            self.tell(|| line);
        }
        let now = self.tick();
        let Some(pool) = &mut self.pool else { return };
        let effects = pool.step(event, now);
        self.count_event();
        self.execute(effects);
        self.judge();
    }

    fn count_event(&mut self) {
        self.counts.events += 1;
        let (at, count) = &mut self.events_now;
        *count = if *at == self.now { *count + 1 } else { 1 };
        *at = self.now;
        let hour = self.now / 3_600_000;
        let (at, in_hour) = &mut self.events_hour;
        *in_hour = if *at == hour { *in_hour + 1 } else { 1 };
        *at = hour;
        let (at_once, in_hour) = (self.events_now.1, self.events_hour.1);
        if at_once > EVENTS_AT_ONCE || in_hour > EVENTS_AN_HOUR {
            self.violated(
                "hot-loop",
                format!("{at_once} events at one instant, {in_hour} in this hour"),
            );
        }
    }

    /// Counts which limits of the call budget this daemon met.
    pub fn count_brakes(&mut self) {
        let Some(pool) = &self.pool else { return };
        let limits: Vec<_> = pool.call_counters().put_off.keys().copied().collect();
        for limit in limits {
            self.counts.met(&format!("daemons braked by: {limit:?}"));
        }
    }

    fn judge(&mut self) {
        if self.is_light {
            return;
        }
        let now = self.tick();
        let Some(pool) = &self.pool else { return };
        // What has been judged and has not changed since is not judged again, but now and then, in case the judge relies on
        // what is no longer so.
        let judged = Some((self.life, pool.version()));
        let is_judged = self.judged == judged && !self.counts.events.is_multiple_of(JUDGED_ANYWAY);
        let broken = if is_judged {
            verify::waiting(pool, now)
        } else {
            verify::pool(pool, now)
        };
        self.judged = judged;
        if let Some(broken) = broken.into_iter().next() {
            self.violated("verify", broken.0);
        }
    }

    /// Executes effects in order; what stands behind a commit waits for it.
    fn execute(&mut self, effects: Vec<Effect>) {
        let mut effects = effects.into_iter();
        while let Some(effect) = effects.next() {
            if self.is_killed_now() {
                return;
            }
            if self.trace.is_some()
                && let Some(line) = crate::trace::effect(&effect)
            {
                self.tell(|| line);
            }
            match effect {
                Effect::Commit { commit, changes } => {
                    self.counts.commits += 1;
                    let slow = self.weather.has_disk(DiskTrouble::Slow, self.now);
                    let wait = if slow {
                        self.dice.wait(3000)
                    } else {
                        self.dice.wait(2)
                    };
                    let due = self
                        .disk
                        .push(commit, changes, effects.collect(), self.now + wait);
                    let life = self.life;
                    self.later(due.saturating_sub(self.now), Happening::Synced { life, commit });
                    return;
                }
                effect => self.perform(effect),
            }
        }
    }

    fn perform(&mut self, effect: Effect) {
        let life = self.life;
        match effect {
            // Taken by `execute`.
            Effect::Commit { .. } => self.violated("contract", "two commits in one step".to_owned()),
            Effect::Reply { waiter, reply } => self.reply(waiter, reply),
            Effect::Call { call, request } => {
                let wait = self.dice.wait(60);
                self.later(wait, Happening::CallArrives { life, call, request });
            }
            Effect::ConfigureEni(intent) => {
                let wait = self.dice.wait(10);
                let (eni, mac) = (intent.eni, intent.mac);
                self.later(wait, Happening::Configured { life, eni, mac });
            }
            Effect::Publish { eni, addresses, .. } => {
                let wait = self.dice.wait(3);
                self.later(wait, Happening::Published { life, eni, addresses });
            }
            Effect::Unpublish { .. } | Effect::UnconfigureEni { .. } => {}
            // No sandbox of this world has a second interface.
            Effect::Unwire(released) => {
                let gone = |key: &SandboxKey| released.iter().any(|held| held.key == *key);
                self.kernel.routes.retain(|_, holder| !gone(holder));
            }
            Effect::RemoveRules(addresses) => {
                for address in addresses {
                    if self.kernel.routes.contains_key(&address) {
                        let why = format!("the rule for {address} was removed under a pod");
                        self.violated("cut-off", why);
                    }
                    // This world's bare rules are of IPv4 only.
                    let IpAddr::V4(address) = address else { continue };
                    self.kernel.bare_rules.remove(&address);
                    self.rules_removed.insert(address);
                }
            }
            Effect::ReadKernel => {
                let wait = self.dice.wait(2);
                self.later(wait, Happening::KernelRead { life });
            }
            Effect::ReadImds => {
                let wait = self.dice.wait(20);
                self.later(wait, Happening::ImdsAsked { life });
            }
            Effect::WakeAt(at) => {
                let now = self.tick();
                if at <= now {
                    self.violated(
                        "hot-loop",
                        format!("it wants to be woken at {at:?}, and it is {now:?}"),
                    );
                }
                let wait = at.0.saturating_sub(now.0);
                let at = self.now + wait;
                self.wake = Some(at);
                self.later(wait, Happening::Wake { life, at });
            }
            Effect::Alarm(alarm) => {
                *self.counts.alarms.entry(alarm.kind).or_default() += 1;
            }
        }
    }
}
