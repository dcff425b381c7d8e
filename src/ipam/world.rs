//! A small world around the pool for tests: EC2 with its faults, a kernel, a disk and sandboxes, all by hand.
//!
//! Nothing happens by itself: commits wait to be flushed, calls and kernel work to be delivered, and time to be moved.
//! After every event the judge is asked, and the oracles of design invariant 1 and 3 look at what clients were told.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::net::Ipv4Addr;
use std::time::Duration;

use super::cloud::*;
use super::effect::{Alarm, Change, Effect, Grant, Refusal, Reply};
use super::event::{AddRequest, Event};
use super::ids::*;
use super::limits::InstanceLimits;
use super::node::NodeFacts;
use super::policy::Policy;
use super::pool::Pool;
use super::recover::Start;
use super::verify;
use super::witness::{ImdsEni, ImdsSnapshot, KernelFacts, LinkFact, PodRoute};

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
}

/// Work under way that ends with an event.
#[derive(Debug)]
pub(super) enum Work {
    Call(CallId, CloudCall),
    Link(Mac),
    Configure(EniId),
    Publish(EniId, Vec<Ipv4Addr>),
}

/// What a waiting client has seen.
#[derive(Debug, Default, Clone)]
pub(super) struct Client {
    pub(super) key: Option<SandboxKey>,
    pub(super) grant: Option<Grant>,
    pub(super) last: Option<Reply>,
    pub(super) gone: bool,
}

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
    tokens: BTreeMap<ClientToken, EniId>,
    pub(super) subnet_free: u32,
    next: u32,
    pub(super) faults: VecDeque<Fault>,
    pub(super) outage: Option<FailureClass>,
    pub(super) log: Vec<String>,
    pub(super) links: BTreeSet<Mac>,
    pub(super) routes: BTreeMap<Ipv4Addr, SandboxKey>,
    pub(super) clients: BTreeMap<WaiterId, Client>,
    next_waiter: u64,
    pub(super) live: BTreeMap<SandboxKey, Ipv4Addr>,
    released: BTreeMap<Ipv4Addr, Tick>,
    pub(super) alarms: Vec<Alarm>,
    pub(super) kernel_asked: bool,
    pub(super) imds_asked: bool,
    pub(super) kernel_fails: bool,
    /// Flush and deliver by itself after every event.
    pub(super) eager: bool,
}

fn attachment(id: &EniId, instance: &InstanceId, device: DeviceIndex) -> CloudAttachment {
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
        let facts = facts();
        let limits = InstanceLimits { enis, ipv4_per_eni };
        let primary = CloudEni {
            id: facts.primary_eni.clone(),
            mac: facts.primary_mac,
            subnet: facts.subnet.clone(),
            subnet_cidr: None,
            primary: facts.primary_address,
            secondary: (0..there).map(|n| Ipv4Addr::from_bits(0x0a00_0900 + n)).collect(),
            prefixes: vec![],
            interface_type: "interface".to_owned(),
            attachment: Some(attachment(&facts.primary_eni, &facts.instance, DeviceIndex(0))),
            description: String::new(),
            tags: BTreeMap::new(),
        };
        let start = Start {
            policy: policy.clone(),
            limits: Some(limits),
            facts: facts.clone(),
            records: BTreeMap::new(),
            kernel: KernelFacts::default(),
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
            subnet_free: 60_000,
            next: 0,
            faults: VecDeque::new(),
            outage: None,
            log: vec![],
            links: BTreeSet::new(),
            routes: BTreeMap::new(),
            clients: BTreeMap::new(),
            next_waiter: 0,
            live: BTreeMap::new(),
            released: BTreeMap::new(),
            alarms: vec![],
            kernel_asked: false,
            imds_asked: false,
            kernel_fails: false,
            eager: true,
        };
        world.take(effects);
        world
    }

    // ---- driving ----

    pub(super) fn event(&mut self, event: Event) {
        let effects = self.pool.step(event, self.now);
        self.take(effects);
        let violations = verify::pool(&self.pool, self.now);
        assert!(violations.is_empty(), "{violations:#?}");
    }

    fn take(&mut self, effects: Vec<Effect>) {
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
            Effect::Call { call, request } => self.work.push_back(Work::Call(call, request)),
            Effect::ConfigureEni(intent) => self.work.push_back(Work::Configure(intent.eni)),
            Effect::Publish { eni, addresses, .. } => self.work.push_back(Work::Publish(eni, addresses)),
            Effect::Unpublish { .. } => {}
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

    pub(super) fn fail_flush(&mut self) {
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
                    let link = self.link(mac);
                    self.event(Event::LinkSeen(link));
                }
            }
            Work::Configure(eni) => {
                let has_link = self
                    .enis
                    .get(&eni)
                    .is_some_and(|eni| self.links.contains(&eni.mac));
                let result = if has_link && !self.kernel_fails {
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

    fn link(&self, mac: Mac) -> LinkFact {
        LinkFact {
            mac,
            name: format!("ens{}", mac.0[5]),
            ifindex: u32::from(mac.0[5]) + 2,
        }
    }

    pub(super) fn kernel(&mut self) {
        self.kernel_asked = false;
        let facts = self.kernel_facts();
        self.event(Event::Kernel(facts));
    }

    fn kernel_facts(&self) -> KernelFacts {
        KernelFacts {
            links: self.links.iter().map(|mac| self.link(*mac)).collect(),
            pod_routes: self
                .routes
                .iter()
                .map(|(address, key)| PodRoute {
                    address: *address,
                    device: veth(key),
                })
                .collect(),
        }
    }

    pub(super) fn imds_snapshot(&self) -> ImdsSnapshot {
        let attached = self
            .enis
            .values()
            .filter_map(|eni| Some((eni, eni.attachment.as_ref()?)));
        ImdsSnapshot {
            enis: attached
                .map(|(eni, attachment)| ImdsEni {
                    id: eni.id.clone(),
                    mac: eni.mac,
                    device: attachment.device,
                    card: attachment.card,
                    subnet: eni.subnet.clone(),
                    subnet_cidr: Some(self.facts.subnet_cidr),
                    addresses: [eni.primary]
                        .into_iter()
                        .chain(eni.secondary.iter().copied())
                        .collect(),
                    prefixes: vec![],
                })
                .collect(),
        }
    }

    /// Flushes and delivers until nothing is under way; what fails for good must not go on for ever.
    pub(super) fn settle(&mut self) {
        for _ in 0..10_000 {
            let flushed = self.flush();
            let delivered = self.deliver(0);
            if self.kernel_asked {
                self.kernel();
            } else if !flushed && !delivered {
                return;
            }
        }
        panic!(
            "it never settles; the last calls were {:?}",
            &self.log[self.log.len().saturating_sub(12)..]
        );
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
                _ => {}
            }
        }
        self.commits.clear();
        for client in self.clients.values_mut() {
            client.gone |= client.last.is_none();
        }
        if let Some(boot) = boot {
            self.facts.boot = boot.into();
            self.routes.clear();
            self.live.clear();
            self.now = Tick(5_000);
            self.released.clear();
        }
        let start = Start {
            policy: self.policy.clone(),
            limits: Some(self.limits),
            facts: self.facts.clone(),
            records: self.store.clone(),
            kernel: self.kernel_facts(),
        };
        let (pool, effects) = Pool::recover(start, self.now);
        self.pool = pool;
        self.take(effects);
        let violations = verify::pool(&self.pool, self.now);
        assert!(violations.is_empty(), "{violations:#?}");
    }

    // ---- sandboxes ----

    pub(super) fn add(&mut self, n: u32, patience: Duration) -> WaiterId {
        self.next_waiter += 1;
        let waiter = WaiterId(self.next_waiter);
        self.clients.insert(
            waiter,
            Client {
                key: Some(key(n)),
                ..Client::default()
            },
        );
        self.event(Event::Add(AddRequest {
            waiter,
            key: key(n),
            pod: PodRef::default(),
            host_veth: veth(&key(n)),
            netns: String::new(),
            deadline: self.now.after(patience),
        }));
        if self.eager {
            self.settle();
        }
        waiter
    }

    pub(super) fn del(&mut self, n: u32) -> WaiterId {
        self.next_waiter += 1;
        let waiter = WaiterId(self.next_waiter);
        self.clients.insert(waiter, Client::default());
        if let Some(address) = self.live.remove(&key(n)) {
            self.released.insert(address, self.now);
        }
        self.routes.retain(|_, holder| *holder != key(n));
        self.event(Event::Del { waiter, key: key(n) });
        if self.eager {
            self.settle();
        }
        waiter
    }

    pub(super) fn gc(&mut self, valid: &[u32]) -> WaiterId {
        self.next_waiter += 1;
        let waiter = WaiterId(self.next_waiter);
        self.clients.insert(waiter, Client::default());
        let valid = valid
            .iter()
            .map(|n| (key(*n).container, key(*n).ifname))
            .collect();
        let network = "aws-cni".into();
        self.event(Event::Gc {
            waiter,
            network,
            valid,
        });
        if self.eager {
            self.settle();
        }
        waiter
    }

    pub(super) fn give_up(&mut self, waiter: WaiterId) {
        if let Some(client) = self
            .clients
            .get_mut(&waiter)
            .filter(|client| client.last.is_none() && !client.gone)
        {
            client.gone = true;
            let (key, grant) = (client.key.clone(), client.grant.clone());
            if let (Some(key), Some(grant)) = (key, grant.filter(|grant| !grant.repeated)) {
                self.routes
                    .retain(|address, holder| (*address, &*holder) != (grant.address, &key));
            }
            self.event(Event::GiveUp { waiter });
        }
    }

    fn reply(&mut self, waiter: WaiterId, reply: Reply) {
        let client = self
            .clients
            .get_mut(&waiter)
            .expect("a reply for a client that exists");
        assert!(
            client.last.is_none(),
            "{waiter} is told {reply:?} after {:?}",
            client.last
        );
        match &reply {
            Reply::Assigned(grant) => {
                assert!(client.grant.is_none(), "assigned twice");
                let key = client.key.clone().expect("only an ADD is assigned to");
                client.grant = Some(grant.clone());
                self.judge_grant(&key, grant);
                self.routes.insert(grant.address, key);
                return;
            }
            Reply::Durable => {
                let grant = client.grant.clone().expect("durable without assigned");
                let key = client.key.clone().expect("only an ADD is durable");
                if !client.gone {
                    let stored = super::records::RecordKey::Allocation(key.clone()).text();
                    // A DEL of the same sandbox may already be on its way behind it.
                    let superseded = !self.pool.allocations().contains_key(&key);
                    assert!(
                        self.store.contains_key(&stored) || superseded,
                        "durable before it is stored"
                    );
                    if !superseded {
                        self.live.insert(key, grant.address);
                    }
                }
            }
            Reply::Refused(_) => {
                if let (Some(key), Some(grant)) = (client.key.clone(), client.grant.clone()) {
                    self.routes
                        .retain(|address, holder| (*address, &*holder) != (grant.address, &key));
                }
            }
            Reply::Released { addresses, .. } | Reply::Collected(addresses) => {
                let addresses = addresses.clone();
                for released in addresses {
                    self.live.remove(&released.key);
                    self.routes.retain(|_, holder| *holder != released.key);
                }
            }
        }
        if let Some(client) = self.clients.get_mut(&waiter) {
            client.last = Some(reply);
        }
    }

    /// Design invariant 1 as the world sees it.
    fn judge_grant(&self, key: &SandboxKey, grant: &Grant) {
        for (other, address) in &self.live {
            assert!(
                *address != grant.address || other == key,
                "{address} was given to {key} while {other} lives on it"
            );
        }
        if grant.repeated {
            return;
        }
        if let Some(holder) = self.routes.get(&grant.address) {
            assert!(
                holder == key,
                "{} was given to {key} while the kernel routes it to {holder}",
                grant.address
            );
        }
        if let Some(released) = self.released.get(&grant.address) {
            let rested = self.now.since(*released);
            assert!(
                rested > self.policy.cooldown || self.policy.cooldown.is_zero(),
                "{} was reused after {rested:?}",
                grant.address
            );
        }
        let carrier = self.enis.get(&grant.eni);
        assert!(
            carrier.is_some_and(|eni| eni.attachment.is_some()),
            "{} was given on {}, which is attached nowhere",
            grant.address,
            grant.eni
        );
    }

    pub(super) fn granted(&self, waiter: WaiterId) -> Option<Ipv4Addr> {
        let client = self.clients.get(&waiter)?;
        (client.last == Some(Reply::Durable)).then_some(client.grant.as_ref()?.address)
    }

    pub(super) fn refused(&self, waiter: WaiterId) -> Option<&Refusal> {
        match self.clients.get(&waiter)?.last.as_ref()? {
            Reply::Refused(refusal) => Some(refusal),
            _ => None,
        }
    }

    /// Calls whose action starts so.
    pub(super) fn calls(&self, action: &str) -> usize {
        self.log.iter().filter(|line| line.starts_with(action)).count()
    }

    // ---- EC2 ----

    fn answer(&mut self, request: CloudCall, fault: Option<Fault>) -> CloudResult {
        let line = match &request {
            CloudCall::CreateEni {
                secondary_addresses, ..
            } => format!("Create {secondary_addresses}"),
            CloudCall::AttachEni { eni, device, .. } => format!("Attach {eni} {}", device.0),
            CloudCall::AssignAddresses { eni, count } => format!("Assign {eni} {count}"),
            CloudCall::DeleteOnTermination { eni, .. } => format!("Modify {eni}"),
            CloudCall::DescribeEnis { scope, .. } => format!("Describe {scope:?}"),
            CloudCall::DeleteEni { proof } => format!("Delete {}", proof.subject()),
            other => format!("{other:?}"),
        };
        self.log.push(line);
        if let Some(class) = self.outage {
            return Err(failure(class, "outage"));
        }
        match fault {
            Some(Fault::Refuse(class)) => Err(failure(class, "refused")),
            Some(Fault::LostBefore) => Err(failure(FailureClass::NoAnswer, "lost on the way")),
            Some(Fault::LostAfter) => {
                let _effect = self.execute(request, false);
                Err(failure(FailureClass::NoAnswer, "lost on the way back"))
            }
            Some(Fault::Omit) => self.execute(request, true),
            None => self.execute(request, false),
        }
    }

    fn execute(&mut self, request: CloudCall, omit: bool) -> CloudResult {
        match request {
            CloudCall::CreateEni {
                token,
                secondary_addresses,
                description,
                tags,
                ..
            } => self.create(token, secondary_addresses, description, tags),
            CloudCall::AttachEni { eni, device, .. } => self.attach(&eni, device),
            CloudCall::DeleteOnTermination { eni, .. } => {
                let attachment = self.enis.get_mut(&eni).and_then(|eni| eni.attachment.as_mut());
                let attachment =
                    attachment.ok_or_else(|| failure(FailureClass::Gone, "no such attachment"))?;
                attachment.delete_on_termination = true;
                Ok(CloudAnswer::Done)
            }
            CloudCall::AssignAddresses { eni, count } => self.assign(&eni, count),
            CloudCall::DeleteEni { proof } => match self.enis.get(proof.subject()) {
                None => Err(failure(FailureClass::Gone, "no such ENI")),
                Some(eni) if eni.attachment.is_some() => panic!("an attached ENI was to be deleted"),
                Some(_) => {
                    self.subnet_free += 1;
                    self.enis.remove(proof.subject());
                    Ok(CloudAnswer::Done)
                }
            },
            CloudCall::DescribeEnis { scope, .. } => {
                let wanted = |eni: &&CloudEni| (scope == DescribeScope::Attached) == eni.attachment.is_some();
                let mut enis: Vec<CloudEni> = self.enis.values().filter(wanted).cloned().collect();
                if omit {
                    // The primary ENI sorts last here, so a fault hits another one first, else an address of it.
                    if enis.len() > 1 {
                        enis.remove(0);
                    } else if let Some(eni) = enis.first_mut() {
                        eni.secondary.pop();
                    }
                }
                Ok(CloudAnswer::Enis(enis))
            }
            other => panic!("{other:?} is not asked in this issue"),
        }
    }

    fn fresh_address(&mut self) -> Ipv4Addr {
        self.next += 1;
        Ipv4Addr::from_bits(0x0a00_1000 + self.next)
    }

    fn create(
        &mut self,
        token: ClientToken,
        count: u32,
        description: String,
        tags: BTreeMap<String, String>,
    ) -> CloudResult {
        if let Some(known) = self.tokens.get(&token).and_then(|id| self.enis.get(id)) {
            assert_eq!(known.tags, tags, "the same token with other parameters");
            return Ok(CloudAnswer::Created(known.clone()));
        }
        if self.subnet_free < count + 1 {
            return Err(failure(
                FailureClass::SubnetFull,
                "InsufficientFreeAddressesInSubnet",
            ));
        }
        self.subnet_free -= count + 1;
        self.next += 1;
        let id = EniId(format!("eni-{:04}", self.next));
        let [_, _, high, low] = self.next.to_be_bytes();
        let eni = CloudEni {
            id: id.clone(),
            mac: Mac([2, 0, 0, 0, high.wrapping_add(1), low]),
            subnet: self.facts.subnet.clone(),
            subnet_cidr: None,
            primary: self.fresh_address(),
            secondary: (0..count).map(|_| self.fresh_address()).collect(),
            prefixes: vec![],
            interface_type: "interface".to_owned(),
            attachment: None,
            description,
            tags,
        };
        self.tokens.insert(token, id.clone());
        self.enis.insert(id, eni.clone());
        Ok(CloudAnswer::Created(eni))
    }

    fn attach(&mut self, id: &EniId, device: DeviceIndex) -> CloudResult {
        let attached: Vec<DeviceIndex> = self
            .enis
            .values()
            .filter_map(|e| Some(e.attachment.as_ref()?.device))
            .collect();
        let eni = self
            .enis
            .get_mut(id)
            .ok_or_else(|| failure(FailureClass::Gone, "no such ENI"))?;
        if eni.attachment.is_some() || attached.contains(&device) {
            return Err(failure(FailureClass::Conflict, "in use"));
        }
        if attached.len() >= self.limits.enis as usize {
            return Err(failure(FailureClass::AttachmentLimit, "AttachmentLimitExceeded"));
        }
        eni.attachment = Some(attachment(id, &self.facts.instance, device));
        self.work.push_back(Work::Link(eni.mac));
        Ok(CloudAnswer::Attached(AttachmentId(format!("attach-{id}"))))
    }

    fn assign(&mut self, id: &EniId, count: u32) -> CloudResult {
        let there = self.enis.get(id).map(|eni| eni.secondary.len());
        let there = there.ok_or_else(|| failure(FailureClass::Gone, "no such ENI"))?;
        if there + count as usize >= self.limits.ipv4_per_eni as usize {
            return Err(failure(
                FailureClass::AddressLimit,
                "PrivateIpAddressLimitExceeded",
            ));
        }
        if self.subnet_free < count {
            return Err(failure(
                FailureClass::SubnetFull,
                "InsufficientFreeAddressesInSubnet",
            ));
        }
        self.subnet_free -= count;
        let new: Vec<Ipv4Addr> = (0..count).map(|_| self.fresh_address()).collect();
        if let Some(eni) = self.enis.get_mut(id) {
            eni.secondary.extend(&new);
        }
        Ok(CloudAnswer::Assigned(new))
    }

    /// Somebody else detaches an ENI.
    pub(super) fn detach_from_outside(&mut self, id: &EniId) {
        if let Some(eni) = self.enis.get_mut(id) {
            eni.attachment = None;
            let mac = eni.mac;
            if self.links.remove(&mac) {
                self.event(Event::LinkGone { mac });
            }
        }
    }
}

pub(super) fn veth(key: &SandboxKey) -> String {
    format!("eni{}", key.container)
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
