//! A pool from what is stored and what the kernel shows: a kill at any instant, a reboot, another instance.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, Ipv4Addr};

use super::cloud::{Amount, DescribeScope};
use super::effect::{Effect, EniIntent};
use super::egress::EgressSlot;
use super::ids::{BootId, CallId, CardIndex, DeviceIndex, EniId, SandboxKey, Tick};
use super::limits::{FurtherCards, InstanceLimits};
use super::local;
use super::model::{Address, Allocation, Eni, EniKind, EniRole, EniState};
use super::node::NodeFacts;
use super::outbox::Outbox;
use super::policy::Policy;
use super::pool::Pool;
use super::records::{AddressRecord, BadRecord, NodeRecord, Record, decode};
use super::release;
use super::sound::{self, Sound};
use super::step::settle;
use super::witness::{Doubt, KernelFacts};

/// Everything a start knows before anybody has been asked.
#[derive(Debug, Clone)]
pub struct Start {
    /// The operator's settings.
    pub policy: Policy,
    /// The instance type's limits, when the compiled-in table has them; else the stored ones count, else EC2 is asked.
    pub limits: Option<InstanceLimits>,
    /// The node: from IMDS, or from [`super::records::stored_facts`] when its boot id is this boot's.
    pub facts: NodeFacts,
    /// Everything stored.
    pub records: BTreeMap<String, Vec<u8>>,
    /// What the kernel has now.
    pub kernel: KernelFacts,
    /// Sandboxes among the stored ones whose network namespace is no longer where the runtime had it, and whose host side
    /// the kernel does not have.
    pub gone: BTreeSet<SandboxKey>,
}

/// What the store says about the time since it was written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Since {
    /// The same boot: everything stands.
    SameBoot,
    /// Another boot: sandboxes are gone, addresses stay.
    OtherBoot,
    /// The node's record cannot be read: the kernel tells which sandboxes live.
    UnknownBoot,
    /// Another instance: nothing stands.
    OtherInstance,
}

/// The records, sorted by kind.
#[derive(Debug, Default)]
struct Stored {
    node: Option<NodeRecord>,
    enis: Vec<Eni>,
    addresses: Vec<AddressRecord>,
    allocations: Vec<Allocation>,
    creations: Vec<super::model::Creation>,
    budget: Option<super::budget::LedgerRecord>,
    bad: Vec<BadRecord>,
}

impl Stored {
    fn read(records: &BTreeMap<String, Vec<u8>>) -> Self {
        let mut stored = Self::default();
        for (key, value) in records {
            match decode(key, value) {
                Ok(Record::Node(node)) => stored.node = Some(*node),
                Ok(Record::Eni(eni)) => stored.enis.push(*eni),
                Ok(Record::Address(address)) => stored.addresses.push(*address),
                Ok(Record::Allocation(allocation)) => stored.allocations.push(*allocation),
                Ok(Record::Creation(creation)) => stored.creations.push(*creation),
                Ok(Record::Budget(budget)) => stored.budget = Some(*budget),
                Err(bad) => stored.bad.push(bad),
            }
        }
        stored
    }

    fn since(&self, facts: &NodeFacts) -> Since {
        let same = |boot: &BootId| *boot == facts.boot;
        match &self.node {
            Some(node) if node.facts.instance != facts.instance => Since::OtherInstance,
            Some(node) if same(&node.facts.boot) => Since::SameBoot,
            Some(_) => Since::OtherBoot,
            // Our primary ENI among the records shows that they are this instance's.
            None if self.enis.iter().any(|eni| eni.id == facts.primary_eni) => Since::UnknownBoot,
            None => Since::OtherInstance,
        }
    }
}

impl Pool {
    /// The pool after a start, and what is to be done first.
    pub fn recover(start: Start, now: Tick) -> (Self, Vec<Effect>) {
        let Start {
            policy,
            limits,
            facts,
            records,
            kernel,
            gone,
        } = start;
        let stored = Stored::read(&records);
        let since = stored.since(&facts);
        let known_limits = stored
            .node
            .as_ref()
            .filter(|node| node.facts.instance_type == facts.instance_type)
            .and_then(|node| node.limits)
            // What an earlier release stored says nothing of other cards: then EC2 is asked again.
            .filter(|limits| !policy.multi_nic || limits.further != FurtherCards::NONE);
        let mut pool = Self::empty(policy, facts, limits.or(known_limits), now);
        let mut out = Outbox::default();
        for bad in &stored.bad {
            out.alarm("bad-record", bad.to_string());
        }
        if since == Since::OtherInstance {
            if !records.is_empty() {
                out.alarm(
                    "other-instance",
                    "what is stored belongs to another instance and is dropped".to_owned(),
                );
            }
        } else {
            restore(&mut pool, stored, since, (&kernel, &gone), now, &mut out);
        }
        ensure_primary(&mut pool);
        pool.separate_marks();
        local::kernel(&mut pool, kernel, now, &mut out);
        release::resume(&mut pool, now, &mut out);
        resume(&mut pool, now, &mut out);
        mark_differences(&mut pool, &records);
        pool.memory
            .describe
            .extend([DescribeScope::Attached, DescribeScope::OursUnattached]);
        settle(&mut pool, now, &mut out);
        let effects = out.seal(&mut pool, now);
        (pool, effects)
    }
}

fn restore(
    pool: &mut Pool,
    mut stored: Stored,
    since: Since,
    (kernel, gone): (&KernelFacts, &BTreeSet<SandboxKey>),
    now: Tick,
    out: &mut Outbox,
) {
    let rebooted = since != Since::SameBoot;
    pool.restore_cordon(stored.node.is_some_and(|node| node.cordoned));
    if let Some(budget) = stored.budget {
        pool.memory.budget.restore(budget, !rebooted, now);
    }
    let Sound { enis, remarks } = sound::enis(stored.enis, &stored.allocations, pool.facts(), kernel);
    for remark in remarks {
        out.alarm("bad-record", remark);
    }
    for mut eni in enis {
        if rebooted {
            unsettle(&mut eni);
        }
        pool.restore_eni(eni);
    }
    let own = pool.facts().primary_address;
    stored.addresses.retain(|record| record.address != own);
    stored.allocations.retain(|held| held.address != own);
    for record in stored.addresses {
        restore_address(pool, &record, rebooted, now);
    }
    for creation in stored.creations {
        pool.restore_creation(creation);
    }
    let routed: BTreeMap<IpAddr, &str> = kernel
        .pod_routes
        .iter()
        .map(|route| (route.address, route.device.as_str()))
        .collect();
    let (kept, doubled) = settle_claims(stored.allocations, &routed);
    let mut voided: Vec<SandboxKey> = Vec::new();
    let mut egress: BTreeSet<EgressSlot> = BTreeSet::new();
    for mut allocation in kept {
        let claimed = allocation.egress.take_if(|slot| !egress.insert(*slot));
        if claimed.is_some() {
            out.alarm(
                "allocated-twice",
                format!(
                    "the address for egress of {} is stored for another sandbox, too; that claim is dropped",
                    allocation.key
                ),
            );
        }
        let is_routed = routed.contains_key(&allocation.address);
        let lives = match since {
            // Its DEL was told that it is done while the disk failed, and the daemon died before the disk took it: the runtime
            // has removed the sandbox, and does not come back for it.
            Since::SameBoot if gone.contains(&allocation.key) && !is_routed => {
                out.alarm(
                    "left-behind",
                    format!(
                        "sandbox {} is gone, by its network namespace and by the kernel; {} is released",
                        allocation.key, allocation.address
                    ),
                );
                false
            }
            Since::SameBoot => true,
            Since::UnknownBoot => is_routed,
            Since::OtherBoot | Since::OtherInstance => false,
        };
        if !lives {
            voided.push(allocation.key.clone());
        }
        pool.restore_allocation(allocation);
    }
    for loser in doubled {
        out.alarm(
            "allocated-twice",
            format!(
                "{} is stored for {} too; that claim is dropped",
                loser.address, loser.key
            ),
        );
        pool.doubt(loser.address, Some(Doubt::AllocatedTwice));
    }
    for key in voided {
        pool.release(&key, now);
    }
}

/// After a boot nothing of the kernel stands, and addresses may have changed while the instance was stopped.
fn unsettle(eni: &mut Eni) {
    if eni.role == EniRole::Secondary && matches!(eni.state, EniState::Ready | EniState::Draining) {
        eni.state = EniState::Attached;
    }
    for placed in eni.cidrs.values_mut() {
        placed.verified = false;
        placed.published = eni.role == EniRole::Primary;
    }
    if let Some(block) = &mut eni.block {
        block.verified = false;
    }
}

fn restore_address(pool: &mut Pool, record: &AddressRecord, rebooted: bool, now: Tick) {
    let mut longest = now.after(pool.policy().cooldown);
    if pool.placed(record.address).is_none() {
        // EC2 has taken it back, and may go on listing it for so long.
        longest = longest.max(now.after(pool.policy().describe_lag));
    }
    let mut known = Address {
        // The ENI that lists it knows better than the address's own, older record.
        eni: pool
            .known(record.address)
            .map_or_else(|| record.eni.clone(), |known| known.eni.clone()),
        holder: None,
        last_used: record.last_used,
        rests_until: record.rests_until.map(|until| until.min(longest)),
        doubt: record.doubt.clone(),
    };
    if rebooted {
        // Ticks of another boot say nothing now: who was resting, rests again from the start.
        known.last_used = known.last_used.map(|_| Tick(0));
        known.rests_until = known.rests_until.map(|_| longest);
        if known.doubt.as_ref().is_some_and(Doubt::is_of_one_boot) {
            known.doubt = None;
            known.rests_until = Some(longest);
        }
    }
    pool.restore_address(record.address, known);
}

/// Of several claims to one address the one the kernel's route belongs to holds, else the oldest.
fn settle_claims(
    allocations: Vec<Allocation>,
    routed: &BTreeMap<IpAddr, &str>,
) -> (Vec<Allocation>, Vec<Allocation>) {
    let mut claims: BTreeMap<IpAddr, Vec<Allocation>> = BTreeMap::new();
    for allocation in allocations {
        claims.entry(allocation.address).or_default().push(allocation);
    }
    let (mut kept, mut doubled) = (Vec::new(), Vec::new());
    for (address, mut claimants) in claims {
        let route = routed.get(&address).copied();
        claimants.sort_by_key(|claim| (route != Some(claim.host_veth.as_str()), claim.since));
        let mut claimants = claimants.into_iter();
        kept.extend(claimants.next());
        doubled.extend(claimants);
    }
    (kept, doubled)
}

fn ensure_primary(pool: &mut Pool) {
    let facts = pool.facts().clone();
    if !pool.enis().contains_key(&facts.primary_eni) {
        pool.insert_eni(Eni {
            id: facts.primary_eni.clone(),
            mac: facts.primary_mac,
            role: EniRole::Primary,
            kind: EniKind::Interface,
            excluded: false,
            state: EniState::Ready,
            device: Some(DeviceIndex(0)),
            card: CardIndex(0),
            given_mark: None,
            attachment: None,
            delete_on_termination: true,
            subnet: facts.subnet.clone(),
            subnet_cidr: Some(facts.subnet_cidr),
            primary: facts.primary_address,
            assigning: None,
            cidrs: BTreeMap::new(),
            block: None,
        });
    }
    pool.edit_eni(&facts.primary_eni, |eni| {
        eni.mac = facts.primary_mac;
        eni.role = EniRole::Primary;
        eni.state = EniState::Ready;
    });
}

/// Takes up every intent where it was left: what has no answer is in doubt until EC2 is asked.
fn resume(pool: &mut Pool, now: Tick, out: &mut Outbox) {
    let first = CallId(1);
    let tokens: Vec<_> = pool.creations().keys().cloned().collect();
    for token in tokens {
        pool.memory.creations_in_doubt.insert(token, first);
    }
    let enis: Vec<Eni> = pool.enis().values().cloned().collect();
    for eni in enis {
        let progress = pool.memory.progress(&eni.id);
        if eni.state == EniState::Attaching || eni.assigning.is_some() {
            progress.doubt = Some(first);
        }
        if eni.assigning == Some(Amount::Block) {
            pool.memory.words.lose(&eni.id, now);
        }
        let progress = pool.memory.progress(&eni.id);
        if matches!(eni.state, EniState::Discarding { .. }) {
            progress.doomed = Some(first);
        }
        if eni.state == EniState::Attached {
            // It may have been attached just before: lists that lag behind that, and a link that is still to come, do not
            // show that it is gone.
            progress.attached_at = Some(now);
        }
        if eni.role == EniRole::Secondary && eni.state == EniState::Ready {
            stand(pool, &eni, out);
        }
    }
}

/// An ENI that stood before a restart on this boot still stands, if its link does; it is repaired all the same.
fn stand(pool: &mut Pool, eni: &Eni, out: &mut Outbox) {
    let intent: Option<EniIntent> = pool.intent(&eni.id);
    let (Some(intent), true) = (intent, pool.memory.links.contains_key(&eni.mac)) else {
        pool.edit_eni(&eni.id, |eni| {
            for placed in eni.cidrs.values_mut() {
                placed.published = false;
            }
        });
        return;
    };
    let published: Vec<Ipv4Addr> = eni
        .addresses()
        .filter(|(_, placed)| placed.published && !placed.releasing)
        .map(|(address, _)| address)
        .collect();
    let progress = pool.memory.progress(&eni.id);
    progress.configured = true;
    progress.configuring = true;
    progress.publishing.extend(published.iter().copied());
    let mark = intent.mark;
    out.now(Effect::ConfigureEni(intent));
    if !published.is_empty() {
        out.now(Effect::Publish {
            eni: eni.id.clone(),
            mark,
            addresses: published,
        });
    }
}

/// Whatever memory has otherwise than the store is written; what cannot be read is left for a human.
fn mark_differences(pool: &mut Pool, records: &BTreeMap<String, Vec<u8>>) {
    let wanted = pool.records();
    let stale = records
        .iter()
        .filter(|(key, value)| wanted.get(*key) != Some(value))
        .filter_map(|(key, value)| decode(key, value).ok().map(|record| record.key()));
    let stale: Vec<_> = stale.collect();
    let new: Vec<_> = wanted
        .iter()
        .filter(|(key, value)| records.get(*key) != Some(value))
        .filter_map(|(key, value)| decode(key, value).ok().map(|record| record.key()))
        .collect();
    pool.mark(stale.into_iter().chain(new));
}

/// What recovery found, for a log line.
pub fn summary(pool: &Pool) -> String {
    let ids: Vec<&str> = pool.enis().keys().map(EniId::as_str).collect();
    format!(
        "{} allocations and {} addresses on {}",
        pool.allocations().len(),
        pool.addresses().len(),
        ids.join(", ")
    )
}
