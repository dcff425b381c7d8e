//! A small world around the pool for tests: EC2 with its faults, a kernel, a disk and sandboxes, all by hand.
//!
//! Nothing happens by itself: commits wait to be flushed, calls and kernel work to be delivered, and time to be moved.
//! After every event the judge is asked, and the oracles of design invariant 1 and 3 look at what clients were told.

use std::cell::RefCell;
use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::rc::Rc;
use std::time::Duration;

use crate::budget::Kind;
use crate::cloud::*;
use crate::effect::{Alarm, Change, Effect, Grant, Refusal, ReleasedAddress, Reply};
use crate::event::{AddRequest, Event};
use crate::ids::*;
use crate::limits::{FurtherCards, InstanceLimits};
use crate::node::NodeFacts;
use crate::policy::Policy;
use crate::pool::Pool;
use crate::records::RecordKey;
use crate::recover::Start;
use crate::verify;
use crate::wishes::Wish;
use crate::witness::{ImdsEni, ImdsSnapshot, KernelFacts, LinkFact, PodRoute};

mod sandboxes;
mod witnesses;

/// What happens to one EC2 call.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Fault {
    /// Refused with this class.
    Refuse(FailureClass),
    /// Never reached EC2.
    LostBefore,
    /// Happened, but the answer was lost.
    LostAfter,
    /// A Describe leaves out an ENI, or an address where there is one ENI only.
    Omit,
    /// A Describe that is as old as its lag may be.
    Old,
}

/// Work under way that ends with an event.
#[derive(Debug)]
pub(super) enum Work {
    Call(CallId, CloudCall),
    Link(Mac),
    Unlink(Mac),
    Configure(EniId),
    Publish(EniId, Vec<Ipv4Addr>),
}

/// The rest of the VPC.
#[derive(Debug, Default)]
pub(super) struct Neighbours {
    /// Their ENIs.
    pub(super) enis: BTreeMap<EniId, CloudEni>,
    /// The instances EC2 knows, and whether they live.
    pub(super) instances: BTreeMap<InstanceId, bool>,
    /// ENIs that were deleted, and by whom.
    pub(super) deleted: Vec<(EniId, InstanceId)>,
}

/// What a waiting client has seen.
#[derive(Debug, Default, Clone)]
pub(super) struct Client {
    pub(super) key: Option<SandboxKey>,
    pub(super) grant: Option<Grant>,
    pub(super) released: Option<Vec<ReleasedAddress>>,
    pub(super) last: Option<Reply>,
    pub(super) gone: bool,
}

#[allow(clippy::struct_excessive_bools, reason = "switches of a test world")]
pub(super) struct World {
    pub(super) now: Tick,
    pub(super) policy: Policy,
    pub(super) limits: InstanceLimits,
    pub(super) facts: NodeFacts,
    pub(super) pool: Pool,
    pub(super) store: BTreeMap<String, Vec<u8>>,
    pub(super) commits: VecDeque<(CommitId, Vec<Change>, Vec<Effect>)>,
    pub(super) work: VecDeque<Work>,
    pub(super) enis: BTreeMap<EniId, CloudEni>,
    pub(super) tokens: BTreeMap<ClientToken, EniId>,
    /// What other instances have in the same VPC; nodes of one VPC share it.
    pub(super) neighbours: Rc<RefCell<Neighbours>>,
    pub(super) subnet_free: u32,
    /// Whether it has a /80 left.
    pub(super) delegates: bool,
    /// Blocks of 16 the subnet has left; apart from `subnet_free`, as if other blocks were fragmented.
    pub(super) blocks_free: u32,
    /// The tags of the node's own subnet.
    pub(super) subnet_tags: BTreeMap<String, String>,
    /// The other subnets of its zone.
    pub(super) subnets: BTreeMap<SubnetId, CloudSubnet>,
    pub(super) next: u32,
    pub(super) faults: VecDeque<Fault>,
    pub(super) outage: Option<FailureClass>,
    /// Only calls whose line in the log begins so are concerned by it.
    pub(super) outage_of: &'static str,
    /// What EC2's lists may still say, and since when they should not.
    pub(super) old: VecDeque<(Tick, BTreeMap<EniId, CloudEni>)>,
    /// Every Unassign and Detach is refused so.
    pub(super) refuse_returns: Option<FailureClass>,
    /// What the subnet gives next.
    pub(super) returning: Vec<Ipv4Addr>,
    pub(super) log: Vec<String>,
    /// When each call was sent, by a clock that goes on over reboots.
    pub(super) sent: Vec<(Kind, u64)>,
    /// What that clock is ahead of the boot's.
    pub(super) earlier_boots: u64,
    pub(super) links: BTreeSet<Mac>,
    /// Secondary ENIs with rules in the kernel.
    pub(super) configured: BTreeSet<EniId>,
    /// What the kernel's map holds.
    pub(super) published: BTreeSet<Ipv4Addr>,
    pub(super) routes: BTreeMap<IpAddr, SandboxKey>,
    /// The configuration's tags were changed while a creation was under way.
    pub(super) retagged: bool,
    /// Addresses that a rule names without a route.
    pub(super) bare_rules: BTreeSet<Ipv4Addr>,
    /// Sandboxes whose network namespaces their runtime has removed: their DEL is settled.
    pub(super) gone: BTreeSet<SandboxKey>,
    pub(super) clients: BTreeMap<WaiterId, Client>,
    next_waiter: u64,
    pub(super) live: BTreeMap<SandboxKey, IpAddr>,
    pub(super) released: BTreeMap<IpAddr, Tick>,
    pub(super) alarms: Vec<Alarm>,
    pub(super) kernel_asked: bool,
    pub(super) imds_asked: bool,
    pub(super) kernel_fails: bool,
    /// Every quick step is held against the long way; a day of them takes its time.
    pub(super) holds_quick_to_long: bool,
    /// Flush and deliver by itself after every event.
    pub(super) eager: bool,
}

pub(super) fn attachment(id: &EniId, instance: &InstanceId, device: DeviceIndex) -> CloudAttachment {
    CloudAttachment {
        id: AttachmentId(format!("attach-{id}")),
        instance: Some(instance.clone()),
        device,
        card: CardIndex(0),
        status: "attached".to_owned(),
        delete_on_termination: device.0 == 0,
    }
}

pub(super) fn facts() -> NodeFacts {
    NodeFacts {
        instance: "i-0123456789abcdef0".into(),
        instance_type: "test.large".into(),
        zone: "eu-central-1a".to_owned(),
        vpc: "vpc-1".into(),
        vpc_cidrs: vec!["10.0.0.0/16".parse().unwrap()],
        subnet: "subnet-1".into(),
        subnet_cidr: "10.0.0.0/16".parse().unwrap(),
        primary_eni: "eni-primary".into(),
        primary_mac: Mac([2, 0, 0, 0, 0, 0]),
        primary_address: Ipv4Addr::new(10, 0, 0, 4),
        security_groups: vec!["sg-1".into()],
        boot: "b0075b00-0000".into(),
        booted_at: 1_795_248_000,
    }
}

pub(super) fn key(n: u32) -> SandboxKey {
    SandboxKey {
        network: "aws-cni".into(),
        container: format!("c{n}").as_str().into(),
        ifname: "eth0".into(),
    }
}

impl World {
    pub(super) fn new(enis: u32, ipv4_per_eni: u32, policy: Policy) -> Self {
        Self::with_addresses(enis, ipv4_per_eni, policy, 0)
    }

    /// A node whose primary ENI already carries addresses.
    pub(super) fn with_addresses(enis: u32, ipv4_per_eni: u32, policy: Policy, there: u32) -> Self {
        let limits = InstanceLimits {
            enis,
            ipv4_per_eni,
            prefixes: true,
            further: FurtherCards::NONE,
        };
        Self::with_limits(limits, policy, there)
    }

    /// The same by limits.
    pub(super) fn with_limits(limits: InstanceLimits, policy: Policy, there: u32) -> Self {
        let facts = facts();
        let primary = CloudEni {
            id: facts.primary_eni.clone(),
            mac: facts.primary_mac,
            subnet: facts.subnet.clone(),
            subnet_cidr: None,
            primary: facts.primary_address,
            secondary: (0..there).map(|n| Ipv4Addr::from_bits(0x0a00_0900 + n)).collect(),
            prefixes: vec![],
            prefixes6: vec![],
            public: vec![],
            tracking: ConnectionTracking::default(),
            groups: facts.security_groups.clone(),
            interface_type: "interface".to_owned(),
            attachment: Some(attachment(&facts.primary_eni, &facts.instance, DeviceIndex(0))),
            description: String::new(),
            tags: [(crate::tags::INSTANCE.to_owned(), facts.instance.to_string())].into(),
        };
        let start = Start {
            policy: policy.clone(),
            limits: Some(limits),
            facts: facts.clone(),
            records: BTreeMap::new(),
            kernel: KernelFacts::default(),
            gone: BTreeSet::new(),
        };
        let now = Tick(10_000);
        let (pool, effects) = Pool::recover(start, now);
        let mut world = Self {
            now,
            policy,
            limits,
            facts,
            pool,
            store: BTreeMap::new(),
            commits: VecDeque::new(),
            work: VecDeque::new(),
            enis: [(primary.id.clone(), primary)].into(),
            tokens: BTreeMap::new(),
            neighbours: Rc::default(),
            subnet_free: 60_000,
            delegates: true,
            blocks_free: 1_000,
            subnet_tags: BTreeMap::new(),
            subnets: BTreeMap::new(),
            next: 0,
            faults: VecDeque::new(),
            outage: None,
            outage_of: "",
            old: VecDeque::new(),
            refuse_returns: None,
            returning: vec![],
            log: vec![],
            sent: vec![],
            earlier_boots: 0,
            links: BTreeSet::new(),
            configured: BTreeSet::new(),
            published: BTreeSet::new(),
            routes: BTreeMap::new(),
            retagged: false,
            bare_rules: BTreeSet::new(),
            gone: BTreeSet::new(),
            clients: BTreeMap::new(),
            next_waiter: 0,
            live: BTreeMap::new(),
            released: BTreeMap::new(),
            alarms: vec![],
            kernel_asked: false,
            imds_asked: false,
            kernel_fails: false,
            holds_quick_to_long: true,
            eager: true,
        };
        world.take(effects);
        world
    }

    // ---- driving ----

    pub(super) fn event(&mut self, event: Event) {
        let long_way = (self.holds_quick_to_long && self.pool.is_calm()).then(|| {
            let mut pool = self.pool.clone();
            pool.forget_calm();
            (pool.step(event.clone(), self.now), pool)
        });
        let effects = self.pool.step(event, self.now);
        if let Some((expected, pool)) = long_way {
            assert_eq!(effects, expected, "the quick way and the long way differ");
            assert_eq!(self.pool.records(), pool.records());
        }
        self.take(effects);
        let violations = verify::pool(&self.pool, self.now);
        assert!(violations.is_empty(), "{violations:#?}");
        let violations = verify::pool_at_length(&self.pool, self.now);
        assert!(violations.is_empty(), "missed by the short way: {violations:#?}");
    }

    pub(super) fn take(&mut self, effects: Vec<Effect>) {
        let mut effects = effects.into_iter();
        while let Some(effect) = effects.next() {
            if let Effect::Commit { commit, changes } = effect {
                self.commits.push_back((commit, changes, effects.collect()));
                return;
            }
            self.perform(effect);
        }
    }

    fn perform(&mut self, effect: Effect) {
        match effect {
            Effect::Commit { .. } => panic!("a second commit in one step"),
            Effect::Reply { waiter, reply } => self.reply(waiter, reply),
            Effect::Call { call, request } => {
                self.count_call(&request);
                self.work.push_back(Work::Call(call, request));
            }
            Effect::ConfigureEni(intent) => self.work.push_back(Work::Configure(intent.eni)),
            Effect::Publish { eni, addresses, .. } => self.work.push_back(Work::Publish(eni, addresses)),
            Effect::Unpublish { addresses, .. } => {
                self.published.retain(|address| !addresses.contains(address));
            }
            Effect::UnconfigureEni { eni, .. } => {
                self.configured.remove(&eni);
            }
            Effect::Unwire(released) => {
                for held in released {
                    self.routes.retain(|_, holder| *holder != held.key);
                    self.live.remove(&held.key);
                    self.released.insert(held.address, self.now);
                }
            }
            Effect::RemoveRules(addresses) => self
                .bare_rules
                .retain(|address| !addresses.contains(&IpAddr::V4(*address))),
            Effect::ReadKernel => self.kernel_asked = true,
            Effect::ReadImds => self.imds_asked = true,
            Effect::WakeAt(at) => assert!(at > self.now, "woken at once: a busy loop"),
            Effect::Alarm(alarm) => self.alarms.push(alarm),
        }
    }

    /// One batch becomes durable; false when there was none.
    pub(super) fn flush(&mut self) -> bool {
        let Some((commit, changes, tail)) = self.commits.pop_front() else {
            return false;
        };
        self.write(changes);
        self.take(tail);
        self.event(Event::Committed { commit });
        true
    }

    fn write(&mut self, changes: Vec<Change>) {
        for change in changes {
            match change {
                Change::Put { key, value } => self.store.insert(key, value),
                Change::Remove { key } => self.store.remove(&key),
            };
        }
    }

    /// The disk is full: everything on its way to it fails, in order.
    pub(super) fn fail_flush(&mut self) {
        let last = self.commits.back().map(|(commit, ..)| *commit);
        while self
            .commits
            .front()
            .is_some_and(|(commit, ..)| Some(*commit) <= last)
        {
            self.fail_one();
        }
    }

    fn fail_one(&mut self) {
        if let Some((commit, _, _)) = self.commits.pop_front() {
            let reason = "no space left".to_owned();
            self.event(Event::CommitFailed { commit, reason });
        }
    }

    /// Ends one piece of work; false when there was none.
    pub(super) fn deliver(&mut self, nth: usize) -> bool {
        if self.work.is_empty() {
            return false;
        }
        let Some(work) = self.work.remove(nth % self.work.len()) else {
            return false;
        };
        match work {
            Work::Call(call, request) => {
                let fault = self.faults.pop_front();
                let result = self.answer(request, fault);
                self.event(Event::CallEnded { call, result });
            }
            Work::Link(mac) => {
                if self
                    .enis
                    .values()
                    .any(|eni| eni.mac == mac && eni.attachment.is_some())
                {
                    self.links.insert(mac);
                    let link = Self::link(mac);
                    self.event(Event::LinkSeen(link));
                }
            }
            Work::Unlink(mac) => {
                if self.links.remove(&mac) {
                    self.event(Event::LinkGone { mac });
                }
            }
            Work::Configure(eni) => {
                let has_link = self
                    .enis
                    .get(&eni)
                    .is_some_and(|eni| self.links.contains(&eni.mac));
                let result = if has_link && !self.kernel_fails {
                    self.configured.insert(eni.clone());
                    Ok(())
                } else {
                    Err("no such device".to_owned())
                };
                self.event(Event::EniConfigured { eni, result });
            }
            Work::Publish(eni, addresses) => {
                let result = if self.kernel_fails {
                    Err("busy".to_owned())
                } else {
                    self.published.extend(&addresses);
                    Ok(())
                };
                self.event(Event::Published {
                    eni,
                    addresses,
                    result,
                });
            }
        }
        true
    }

    /// Flushes and delivers until nothing is under way; what fails for good must not go on for ever.
    pub(super) fn settle(&mut self) {
        for _ in 0..10_000 {
            let flushed = self.flush();
            let delivered = self.deliver(0);
            if self.kernel_asked {
                self.kernel();
            } else if !flushed && !delivered && !self.gathered() {
                return;
            }
        }
        panic!(
            "it never settles; the last calls were {:?}",
            &self.log[self.log.len().saturating_sub(12)..]
        );
    }

    /// Time goes by until what is gathered is asked for; false when nothing is.
    pub(super) fn gathered(&mut self) -> bool {
        let until = self.pool.memory.gathering.until(self.now);
        if let Some(until) = until {
            self.now = until;
            self.event(Event::Timer);
        }
        until.is_some()
    }

    /// One batch becomes durable, or one piece of work ends, or the kernel answers; false when there is nothing to do.
    pub(super) fn step_once(&mut self) -> bool {
        if self.flush() || self.deliver(0) {
            return true;
        }
        let asked = self.kernel_asked;
        if asked {
            self.kernel();
        }
        asked
    }

    pub(super) fn advance(&mut self, span: Duration) {
        let target = self.now.after(span);
        // Timers are rung on time, as the daemon does.
        for _ in 0..100_000 {
            match self.pool.memory.wake.filter(|wake| *wake <= target) {
                Some(wake) => {
                    self.now = self.now.max(wake);
                    self.event(Event::Timer);
                    if self.eager {
                        self.settle();
                    }
                }
                None => break,
            }
        }
        self.now = target;
        self.event(Event::Timer);
        if self.eager {
            self.settle();
        }
    }

    /// The daemon is killed and starts again.
    pub(super) fn crash(&mut self, boot: Option<&str>, calls_happen: bool) {
        let work = std::mem::take(&mut self.work);
        for piece in work {
            match piece {
                Work::Call(_, request) if calls_happen => {
                    let _answer = self.answer(request, None);
                }
                Work::Link(mac) => self.work.push_back(Work::Link(mac)),
                Work::Unlink(mac) => self.work.push_back(Work::Unlink(mac)),
                _ => {}
            }
        }
        self.commits.clear();
        for client in self.clients.values_mut() {
            client.gone |= client.last.is_none();
        }
        if let Some(boot) = boot {
            self.facts.boot = boot.into();
            self.configured.clear();
            self.published.clear();
            self.routes.clear();
            self.live.clear();
            self.earlier_boots += self.now.0;
            self.now = Tick(5_000);
            self.released.clear();
        }
        let start = Start {
            policy: self.policy.clone(),
            limits: Some(self.limits),
            facts: self.facts.clone(),
            records: self.store.clone(),
            kernel: self.kernel_facts(),
            gone: self.gone.clone(),
        };
        let (pool, effects) = Pool::recover(start, self.now);
        self.pool = pool;
        self.take(effects);
        let violations = verify::pool(&self.pool, self.now);
        assert!(violations.is_empty(), "{violations:#?}");
    }
}

/// Records but the count of calls, which a start adds to.
pub(super) fn but_budget(mut records: BTreeMap<String, Vec<u8>>) -> BTreeMap<String, Vec<u8>> {
    records.remove(&RecordKey::Budget.text());
    records
}

pub(super) fn v4(address: IpAddr) -> Ipv4Addr {
    match address {
        IpAddr::V4(address) => address,
        IpAddr::V6(address) => panic!("{address} is no IPv4 address"),
    }
}

pub(super) fn veth(key: &SandboxKey) -> String {
    let of_companion = if key.ifname.as_str() == "eth0" {
        ""
    } else {
        key.ifname.as_str()
    };
    format!("eni{}{of_companion}", key.container)
}

pub(super) fn failure(class: FailureClass, message: &str) -> CloudFailure {
    CloudFailure {
        class,
        action: "SomeAction".to_owned(),
        code: Some(format!("{class:?}")),
        message: message.to_owned(),
        request_id: Some("req-1".to_owned()),
        retry_after: None,
    }
}
