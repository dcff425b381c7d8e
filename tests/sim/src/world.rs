//! Drives one node and its account through a script, in virtual time.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::net::{IpAddr, Ipv4Addr};
use std::time::Duration;

use aws_cni_ipam::cidr::Ipv4Cidr;
use aws_cni_ipam::cloud::{Amount, CloudAnswer, CloudCall, CloudFailure, CloudResult, FailureClass};
use aws_cni_ipam::event::Event;
use aws_cni_ipam::ids::{CardIndex, EniId, InstanceId};
use aws_cni_ipam::ip::IpFamily;
use aws_cni_ipam::limits::{FurtherCards, InstanceLimits};
use aws_cni_ipam::node::NodeFacts;
use aws_cni_ipam::policy::Policy;

use crate::acting::{CLUSTER, role_tags, set_networking};
use crate::agenda::Agenda;
use crate::cloud::subnet::Subnet;
use crate::cloud::{Account, Consequence, kind_of, refusal};
use crate::count::Counts;
use crate::dice::Dice;
use crate::imds;
use crate::node::{FIRST_BOOT, Happening, Node};
use crate::script::{Action, Asking, Hand, Lie, Networking, Role, Script, Settings, Trouble, Warm, Which};
use crate::truth::Violation;
use crate::weather::Fate;

/// What a run came to.
#[derive(Debug)]
pub struct Outcome {
    /// Numbers.
    pub counts: Counts,
    /// The first broken promise.
    pub violation: Option<Violation>,
    /// What happened, when that was asked for.
    pub trace: Vec<String>,
}

/// What is driven.
#[derive(Debug)]
#[allow(clippy::large_enum_variant, reason = "most of them are of the largest kind")]
pub(crate) enum Next {
    Node(Happening),
    Script(Action),
    /// Others give back a subnet's addresses, and its IPv6 network.
    Emptied(usize),
    EveryHour,
    /// The daemon sees the primary ENI's security groups at IMDS.
    GroupsSeen,
}

/// One node, its account, and what comes.
#[derive(Debug)]
pub struct World {
    pub(crate) queue: Agenda<Next>,
    pub(crate) account: Account,
    pub(crate) node: Node,
    pub(crate) dice: Dice,
    late: Dice,
    /// When calls were made, for the last hour.
    recent_calls: [VecDeque<u64>; 2],
    /// ENIs and addresses somebody else has changed, and when.
    pub(crate) meddled: BTreeMap<IpAddr, u64>,
    pub(crate) meddled_enis: BTreeMap<EniId, u64>,
    /// ENIs that EC2 has shown as attached nowhere since they were attached last.
    pub(crate) shown_unattached: BTreeSet<EniId>,
    /// When it last changed what EC2 may be asked.
    pub(crate) asking_since: Option<u64>,
    /// Until when what is true of /80s is not what the core can know.
    pub(crate) blocks_doubtful_until: u64,
    settings: Settings,
}

/// EC2 calls a node may make in any hour, whatever happens to it: those that change something and those that look, as
/// the core promises. What was asked for in one hour may reach EC2 in the next.
pub const CALLS_AN_HOUR: (usize, usize) = (600 + SLACK, 300 + SLACK);
const SLACK: usize = 5;

const HOUR: u64 = 3_600_000;

/// A policy as the settings want it.
pub fn policy(settings: &Settings) -> Policy {
    let some = |n: u32| (n > 0).then_some(n);
    let mut policy = Policy {
        max_enis: some(settings.max_enis),
        multi_nic: settings.cards > 0,
        max_pods: some(settings.max_pods),
        cooldown: Duration::from_millis(settings.cooldown.0),
        cluster_name: Some(CLUSTER.to_owned()),
        ..Policy::default()
    };
    if settings.six {
        policy.family = IpFamily::V6;
    }
    settings.warm.set(&mut policy);
    settings.ec2.set(&mut policy);
    let subnets = usize::try_from(settings.subnets).unwrap_or(1);
    set_networking(&mut policy, settings.networking, 0, subnets);
    policy
}

pub(crate) fn instance() -> InstanceId {
    "i-0123456789abcdef0".into()
}

impl World {
    /// A node switched on, with nothing else to come.
    pub fn new(settings: &Settings, seed: u64) -> Self {
        let subnets = (0..settings.subnets.max(1)).filter_map(|n| {
            let base = Ipv4Addr::from_bits(0x0a00_0000 + (n << 16));
            let cidr = Ipv4Cidr::new(base, settings.len.clamp(20, 28))?;
            let mut subnet = Subnet::new(format!("subnet-{}", n + 1).into(), cidr);
            subnet.tags = role_tags(if n == 0 { settings.first } else { settings.others });
            Some(subnet)
        });
        let mut account = Account::new(seed, subnets.collect());
        let limits = InstanceLimits {
            enis: settings.enis,
            ipv4_per_eni: settings.addresses,
            prefixes: settings.nitro,
            further: FurtherCards::new([(CardIndex(1), settings.cards)]),
        };
        let subnet = "subnet-1".into();
        let primary = account.launch(&instance(), limits, &subnet, settings.launched, 0);
        if settings.delegated {
            account.outside(&instance(), Hand::GiveBlock, 0, 0, &|_| false);
        }
        if let Some(primary) = primary.as_ref().filter(|_| settings.public) {
            account.associate(&primary.id, primary.primary, 0);
        }
        let subnet_cidr = account.subnets.first().map(|subnet| subnet.cidr);
        let nowhere = Ipv4Cidr::host(Ipv4Addr::UNSPECIFIED);
        let facts = NodeFacts {
            instance: instance(),
            instance_type: "sim.large".into(),
            zone: "eu-central-1a".to_owned(),
            vpc: "vpc-1".into(),
            vpc_cidrs: Ipv4Cidr::new(Ipv4Addr::new(10, 0, 0, 0), 8).into_iter().collect(),
            subnet,
            subnet_cidr: subnet_cidr.unwrap_or(nowhere),
            primary_eni: primary
                .as_ref()
                .map_or_else(|| "eni-".into(), |eni| eni.id.clone()),
            primary_mac: primary
                .as_ref()
                .map_or(aws_cni_ipam::ids::Mac([0; 6]), |eni| eni.mac),
            primary_address: primary.map_or(Ipv4Addr::UNSPECIFIED, |eni| eni.primary),
            security_groups: vec!["sg-1".into()],
            boot: "b0070000-0000".into(),
            booted_at: FIRST_BOOT,
        };
        let known = Some(limits).filter(|_| settings.known);
        let node = Node::new(facts, policy(settings), known, seed);
        let mut world = Self {
            queue: Agenda::default(),
            account,
            node,
            dice: Dice::new(seed, "wire"),
            late: Dice::new(seed, "describe"),
            recent_calls: [VecDeque::new(), VecDeque::new()],
            meddled: BTreeMap::new(),
            meddled_enis: BTreeMap::new(),
            shown_unattached: BTreeSet::new(),
            asking_since: None,
            blocks_doubtful_until: 0,
            settings: settings.clone(),
        };
        world.queue.after(HOUR, Next::EveryHour);
        world.collect();
        world
    }

    /// Virtual milliseconds since the beginning.
    pub fn now(&self) -> u64 {
        self.queue.now
    }

    /// Arranges a script's items.
    pub fn arrange(&mut self, script: &Script) {
        for (at, action) in &script.items {
            self.queue.at(at.0, Next::Script(action.clone()));
        }
    }

    /// Lets time pass, as long as nothing is found to be wrong.
    pub fn run_until(&mut self, end: u64) {
        while self.node.violation.is_none() {
            let Some(next) = self.queue.next_until(end) else {
                self.node.now = self.queue.now;
                return;
            };
            self.node.now = self.queue.now;
            match next {
                Next::Node(happening) => self.happen(happening),
                Next::Script(action) => self.act(&action),
                Next::Emptied(subnet) => {
                    if let Some(subnet) = self.account.subnets.get_mut(subnet) {
                        subnet.clear_others();
                        subnet.six.is_associated = true;
                    }
                }
                Next::EveryHour => self.every_hour(),
                Next::GroupsSeen => self.groups_seen(),
            }
            self.collect();
        }
    }

    /// Takes over what the node and EC2 want to happen.
    pub(crate) fn collect(&mut self) {
        for (wait, what) in std::mem::take(&mut self.node.outgoing) {
            self.queue.after(wait, Next::Node(what));
        }
        for consequence in std::mem::take(&mut self.account.consequences) {
            self.follow(&consequence);
        }
        for (address, eni) in std::mem::take(&mut self.node.granted) {
            self.judge_grant(address, &eni);
        }
    }

    fn follow(&mut self, consequence: &Consequence) {
        let now = self.queue.now;
        match *consequence {
            Consequence::LinkComes(_, mac) => {
                let late = self.node.weather.kernel_until(Trouble::LateLinks, now);
                let never = self.node.weather.kernel_until(Trouble::NoLinks, now);
                let usual = if late.is_some() { 30_000 } else { 1500 };
                let wait = self.dice.wait(usual).min(150_000);
                let at = never.unwrap_or(now) + wait;
                self.queue.at(at, Next::Node(Happening::LinkComes(mac)));
            }
            Consequence::LinkGoes(_, mac) => {
                self.queue.after(120, Next::Node(Happening::LinkGoes(mac)));
            }
        }
    }

    fn happen(&mut self, happening: Happening) {
        match happening {
            Happening::CallArrives { life, call, request } => {
                let (result, wait) = self.call(life, &request);
                if let Some(result) = result {
                    let answered = Happening::Answered { life, call, result };
                    self.queue.after(wait, Next::Node(answered));
                }
            }
            Happening::ImdsAsked { life } if life == self.node.life => {
                let (now, lie) = (self.queue.now, self.node.weather.imds_lie(self.queue.now));
                if let Some(snapshot) = imds::sweep(&self.account, &instance(), lie, now) {
                    self.node.imds(snapshot);
                }
            }
            // What was attached when the link was on its way may be attached no more, and the other way round.
            Happening::LinkComes(mac) => {
                let there = self.account.attached(&instance()).any(|eni| eni.mac == mac);
                if there {
                    self.node.handle(Happening::LinkComes(mac));
                }
            }
            Happening::LinkGoes(mac) => {
                let there = self.account.attached(&instance()).any(|eni| eni.mac == mac);
                if !there {
                    self.node.handle(Happening::LinkGoes(mac));
                }
            }
            other => self.node.handle(other),
        }
    }

    /// A call reaches EC2, or does not: what is answered, and after how long.
    fn call(&mut self, life: u64, request: &CloudCall) -> (Option<CloudResult>, u64) {
        let which = kind_of(request);
        // A process that died may have sent it or not.
        if life != self.node.life && self.dice.chance(500) {
            return (None, 0);
        }
        self.budget(which);
        self.judge_call(request);
        self.count_features(request);
        let now = self.queue.now;
        let wait = self.dice.wait(if which == Which::Describe { 80 } else { 300 });
        let lost = || {
            Err(CloudFailure {
                class: FailureClass::NoAnswer,
                action: which.to_string(),
                code: None,
                message: "timed out".to_owned(),
                request_id: None,
                retry_after: None,
            })
        };
        match self.node.weather.fate(which, now) {
            Fate::Refused(class) => (Some(Err(refusal(which, class, &format!("{class:?}")))), wait),
            Fate::LostBefore => (Some(lost()), 10_000),
            Fate::LostAfter => {
                drop(self.execute(request));
                (Some(lost()), 10_000)
            }
            Fate::Slow => (Some(self.execute(request)), 25_000 + wait),
            Fate::Fair => (Some(self.execute(request)), wait),
        }
    }

    fn execute(&mut self, request: &CloudCall) -> CloudResult {
        let now = self.queue.now;
        let (weather, late) = (&self.node.weather, &mut self.late);
        let mut lateness = || weather.lateness(now, late);
        let result = self.account.call(request, now, &mut lateness);
        // Two Describes may cross, and the later one be of an earlier moment: only an attach makes the word void.
        if let CloudCall::AttachEni { eni, .. } = request {
            self.shown_unattached.remove(eni);
            // It has been away, and with it how far its /80 was counted.
            for block in self.blocks_of(eni) {
                self.node.truth.uncount(block);
            }
        }
        if let Ok(CloudAnswer::Enis(enis)) = &result {
            let unattached = enis.iter().filter(|eni| eni.attachment.is_none());
            self.shown_unattached.extend(unattached.map(|eni| eni.id.clone()));
        }
        match (result, self.node.weather.describe_lie(now)) {
            (Ok(CloudAnswer::Enis(mut enis)), Some(lie)) => {
                let primary = &self.node.facts.primary_eni;
                match lie {
                    Lie::OmitsEni => {
                        if let Some(place) = enis.iter().rposition(|eni| eni.id != *primary) {
                            enis.remove(place);
                        }
                    }
                    Lie::OmitsAddress => {
                        if let Some(eni) = enis.iter_mut().rfind(|eni| !eni.secondary.is_empty()) {
                            eni.secondary.remove(0);
                        }
                    }
                    Lie::OmitsPrefix => {
                        if let Some(eni) = enis.iter_mut().rfind(|eni| !eni.prefixes.is_empty()) {
                            eni.prefixes.remove(0);
                        }
                        if let Some(eni) = enis.iter_mut().rfind(|eni| !eni.prefixes6.is_empty()) {
                            eni.prefixes6.remove(0);
                        }
                    }
                    Lie::OmitsAll => enis.clear(),
                    Lie::Extra | Lie::Fails => {}
                }
                Ok(CloudAnswer::Enis(enis))
            }
            (result, _) => result,
        }
    }

    /// Counts a call against what a node may make in an hour.
    fn budget(&mut self, which: Which) {
        let now = self.queue.now;
        *self.node.counts.calls.entry(which).or_default() += 1;
        let [changing, looking] = &mut self.recent_calls;
        let (recent, most) = if which == Which::Describe {
            (looking, CALLS_AN_HOUR.1)
        } else {
            (changing, CALLS_AN_HOUR.0)
        };
        recent.push_back(now);
        while recent.front().is_some_and(|at| at + HOUR < now) {
            recent.pop_front();
        }
        let count = recent.len();
        if count > most {
            let what = format!("{count} EC2 calls in an hour, the last one of kind {which}");
            self.node.violated("call-budget", what);
        }
    }

    fn groups_seen(&mut self) {
        let primary = self.account.eni(&self.node.facts.primary_eni);
        if let Some(groups) = primary.map(|eni| eni.groups.clone()) {
            self.node.facts.security_groups.clone_from(&groups);
            self.node.step(Event::Groups(groups));
        }
    }

    /// What kind of run this is.
    fn count_settings(&mut self) {
        let settings = self.settings.clone();
        let kind = match settings.warm {
            Warm::Enis(_) => "runs with: WARM_ENI_TARGET",
            Warm::Ips(_, 0) => "runs with: WARM_IP_TARGET",
            Warm::Ips(..) => "runs with: MINIMUM_IP_TARGET",
            Warm::Prefixes(_) => "runs with: prefixes, WARM_PREFIX_TARGET",
            Warm::PrefixIps(_, 0) => "runs with: prefixes, WARM_IP_TARGET",
            Warm::PrefixIps(..) => "runs with: prefixes, MINIMUM_IP_TARGET",
            Warm::Adaptive => "runs with: adaptive pool",
            Warm::PrefixAdaptive => "runs with: prefixes, adaptive pool",
        };
        let counts = &mut self.node.counts;
        counts.met(kind);
        let also = [
            (settings.subnets > 1, "runs with: several subnets"),
            (
                settings.first != Role::None || settings.others != Role::None,
                "runs with: tagged subnets",
            ),
            (
                settings.networking != Networking::Own,
                "runs with: custom networking",
            ),
            (settings.max_enis > 0, "runs with: MAX_ENI"),
            (settings.cards > 0, "runs with: two network cards"),
            (settings.max_pods > 0, "runs with: max-pods known"),
            (!settings.known, "runs with: unknown instance type"),
            (settings.cooldown.0 == 0, "runs with: no cooldown"),
            (settings.ec2 == Asking::Looks, "runs with: provisioning off"),
            (settings.ec2 == Asking::Nothing, "runs with: IMDS only"),
            (settings.public, "runs with: public address"),
            (settings.six, "runs with: IPv6"),
            (settings.delegated, "runs with: a /80 from the launch on"),
        ];
        for (_, feature) in also.iter().filter(|(met, _)| *met) {
            counts.met(feature);
        }
    }

    fn count_features(&mut self, request: &CloudCall) {
        let own = &self.node.facts.subnet;
        let feature = match request {
            CloudCall::CreateEni { subnet, .. } if subnet != own => "calls: ENI created in another subnet",
            CloudCall::CreateEni {
                amount: Amount::Prefixes(_),
                ..
            } => "calls: ENI created with prefixes",
            CloudCall::CreateEni {
                amount: Amount::Block,
                ..
            } => "calls: ENI created with a /80",
            CloudCall::CreateEni { .. } => "calls: ENI created with addresses",
            CloudCall::Assign {
                amount: Amount::Prefixes(_),
                ..
            } => "calls: prefixes assigned",
            CloudCall::Assign {
                amount: Amount::Block,
                ..
            } => "calls: /80 asked for",
            CloudCall::Assign { .. } => "calls: addresses assigned",
            CloudCall::UnassignAddresses { .. } => "calls: addresses given back",
            CloudCall::UnassignPrefixes { .. } => "calls: prefixes given back",
            CloudCall::DetachEni { .. } => "calls: ENI given back",
            CloudCall::SetGroups { .. } => "calls: security groups followed",
            CloudCall::DeleteEni { proof } => {
                let left = self
                    .account
                    .interfaces
                    .get(proof.subject())
                    .and_then(|it| it.left);
                if left.is_some() {
                    "calls: ENI of another deleted"
                } else {
                    "calls: ENI of its own deleted"
                }
            }
            CloudCall::DescribeLeftEnis { .. } => "calls: looks for what others left",
            _ => return,
        };
        self.node.counts.met(feature);
    }

    fn every_hour(&mut self) {
        let now = self.queue.now;
        self.account.forget_deleted(now);
        self.queue.after(HOUR, Next::EveryHour);
    }

    pub(crate) fn was_meddled(&self, address: IpAddr, eni: &EniId) -> bool {
        // The next look for drift, at the latest an hour after, shows it.
        let recent = |at: &u64| at + 2 * HOUR > self.queue.now;
        self.meddled.get(&address).is_some_and(recent) || self.meddled_enis.get(eni).is_some_and(recent)
    }

    /// Everything that goes wrong is over.
    pub(crate) fn heal(&mut self) {
        let now = self.queue.now;
        self.node.weather.clear(now);
        for subnet in &mut self.account.subnets {
            subnet.clear_others();
            subnet.six.is_associated = true;
        }
        self.heal_configuration();
        self.node.tell(|| "everything is well again".to_owned());
        self.collect();
    }

    /// Somebody has put right where ENIs may go.
    fn heal_configuration(&mut self) {
        let settings = self.settings.clone();
        for (n, subnet) in self.account.subnets.iter_mut().enumerate() {
            subnet.tags = role_tags(if n == 0 { settings.first } else { settings.others });
        }
        let mut policy = self.node.policy.clone();
        set_networking(&mut policy, settings.networking, 0, self.account.subnets.len());
        if policy.custom_networking || settings.first != Role::None {
            // The primary ENI does not count: there must be another one.
            policy.max_enis = None;
        }
        settings.ec2.set(&mut policy);
        if policy != self.node.policy {
            self.node.policy = policy.clone();
            self.node.step(Event::Reconfigured(Box::new(policy)));
        }
    }

    /// EC2 calls of the last so many milliseconds.
    pub(crate) fn calls_since(&self, since: u64) -> usize {
        let recent = self.recent_calls.iter().flatten();
        recent.filter(|at| **at >= since).count()
    }
}

/// Runs a script from the beginning to the end, and then sees to it that everything is as it should be.
pub fn run(script: &Script, seed: u64, trace: bool) -> Outcome {
    let mut world = World::new(&script.settings, seed);
    world.node.trace = trace.then(Vec::new);
    world.count_settings();
    world.arrange(script);
    world.run_until(script.end());
    world.converge();
    world.node.count_brakes();
    let mut counts = std::mem::take(&mut world.node.counts);
    counts.runs = 1;
    counts.simulated = world.queue.now;
    if let Some(violation) = &world.node.violation {
        *counts.violations.entry(violation.oracle).or_default() += 1;
    }
    Outcome {
        counts,
        violation: world.node.violation.take(),
        trace: world.node.trace.take().unwrap_or_default(),
    }
}
