//! Growth as a pure function: how much is wanted, what is on its way, and what to ask EC2 for.
//!
//! The arithmetic is the Go daemon's for `WARM_ENI_TARGET` (reference ipamd 3.2, 3.5, 3.9) with three differences that
//! no settled state shows: everything that is needed is asked for at once instead of one step every five seconds,
//! what is on its way counts, and what cools does not count as available (its fault Q1).

use std::collections::{BTreeMap, BTreeSet};
use std::net::Ipv4Addr;
use std::time::Duration;

use serde::Serialize;

use super::cloud::{CloudFailure, FailureClass};
use super::ids::{EniId, SubnetId, Tick};
use super::memory::Ec2View;
use super::model::{AddressState, Eni, EniRole, EniState};
use super::obstacle::Topic;
use super::policy::WarmTarget;
use super::pool::Pool;
use super::shortage::{self, Take};

/// One thing to ask EC2 for.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub enum Act {
    /// More addresses for an ENI we have.
    Assign {
        /// The ENI.
        eni: EniId,
        /// How many.
        count: u32,
    },
    /// One more ENI, created with its addresses.
    Create {
        /// Where.
        subnet: SubnetId,
        /// How many addresses besides its own.
        addresses: u32,
    },
}

/// Why the plan does not do more.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub enum Hindrance {
    /// EC2 has not yet said what is attached.
    Starting,
    /// The instance type's limits are not known yet.
    LimitsUnknown,
    /// `DISABLE_NETWORK_RESOURCE_PROVISIONING` is set.
    ProvisioningOff,
    /// Every place for an ENI is taken, and every place on every ENI.
    EniLimit {
        /// ENIs there may be.
        enis: u32,
        /// Addresses for pods each can carry.
        slots: u32,
        /// Whether `MAX_ENI` says so rather than the instance type.
        by_setting: bool,
    },
    /// As many addresses are there as the node may have pods.
    MaxPods {
        /// Kubelet's limit.
        max_pods: u32,
    },
    /// An ENI is attached, but the kernel shows no link with its hardware address.
    NoLink {
        /// The ENI.
        eni: EniId,
        /// For how long.
        seconds: u64,
    },
    /// A subnet has less than was asked for, and is being asked for less.
    AskingForLess {
        /// What EC2 said.
        failure: CloudFailure,
    },
    /// EC2 refused; not again before its time.
    Failed {
        /// What EC2 said.
        failure: CloudFailure,
        /// When it is tried again.
        until: Tick,
    },
}

/// What the plan saw: the numbers behind it and what keeps it from more.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub struct Report {
    /// Addresses a sandbox could have now.
    pub free: u32,
    /// Addresses sandboxes have.
    pub assigned: u32,
    /// Addresses at rest.
    pub cooling: u32,
    /// Addresses nobody may have until doubts are resolved.
    pub quarantined: u32,
    /// Addresses on their way: asked for, or on ENIs not yet wired.
    pub coming: u32,
    /// Sandboxes waiting.
    pub waiting: u32,
    /// Free addresses the warm target asks for.
    pub warm: u32,
    /// How many addresses were short before this plan's acts.
    pub short: u32,
    /// ENIs that take or will take a place.
    pub enis: u32,
    /// Why it does not do more.
    pub hindrances: Vec<Hindrance>,
    /// Why what is on its way takes longer: for each action the failure that is made good first.
    pub delays: Vec<Hindrance>,
}

/// What to do, and why not more.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub struct Plan {
    /// In order.
    pub acts: Vec<Act>,
    /// The reasons.
    pub report: Report,
}

/// Counts of what there is.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct Census {
    pub(super) free: u32,
    pub(super) assigned: u32,
    pub(super) cooling: u32,
    pub(super) quarantined: u32,
    pub(super) coming: u32,
}

fn count(n: usize) -> u32 {
    u32::try_from(n).unwrap_or(u32::MAX)
}

/// Whether an ENI that is not wired yet can still be expected to be, soon.
fn is_underway(pool: &Pool, eni: &Eni) -> bool {
    let in_time = |eni: &Eni| {
        pool.memory
            .enis
            .get(&eni.id)
            .is_none_or(|progress| !progress.link_overdue)
    };
    match (eni.role, &eni.state) {
        (EniRole::Unmanaged, _) | (_, EniState::Discarding { .. } | EniState::Lost) => false,
        (EniRole::Primary, _) => true,
        (EniRole::Secondary, _) => in_time(eni),
    }
}

/// Counts every address by where it stands and how soon it can be had.
pub(super) fn census(pool: &Pool, now: Tick) -> Census {
    let mut census = Census {
        free: count(pool.count_usable(now)),
        ..Census::default()
    };
    for known in pool.addresses().values() {
        match known.state(now) {
            AddressState::Assigned(_) => census.assigned += 1,
            AddressState::Quarantined(_) => census.quarantined += 1,
            AddressState::Cooling { .. } => census.cooling += 1,
            AddressState::Free => {}
        }
    }
    let is_free = |address: &Ipv4Addr| {
        pool.addresses()
            .get(address)
            .is_some_and(|known| known.is_free(now))
    };
    let idle: usize = pool
        .enis()
        .values()
        .filter(|eni| is_underway(pool, eni))
        .map(|eni| eni.addresses.keys().filter(|address| is_free(address)).count())
        .sum();
    census.coming = count(idle).saturating_sub(census.free);
    let asked = pool
        .enis()
        .values()
        .filter_map(|eni| Some(eni.assigning?.addresses()))
        .sum::<u32>();
    let created = pool
        .creations()
        .values()
        .map(|creation| creation.amount.addresses())
        .sum::<u32>();
    census.coming = census.coming.saturating_add(asked).saturating_add(created);
    census
}

/// ENIs that take a place on the default card, now or soon.
pub(super) fn places_taken(pool: &Pool) -> u32 {
    count(pool.enis().values().filter(|eni| eni.takes_place()).count() + pool.creations().len())
}

/// How many ENIs there may be, and whether `MAX_ENI` is the smaller limit.
pub(super) fn eni_limit(pool: &Pool, by_type: u32) -> (u32, bool) {
    match pool.policy().max_enis {
        Some(max) if max >= 1 && max < by_type => (max, true),
        _ => (by_type, false),
    }
}

/// Free addresses the targets ask for, given how many an ENI carries.
fn warm_target(target: WarmTarget, slots: u32) -> u32 {
    match target {
        // Zero still means "not quite empty" (reference ipamd 3.2: low when nothing is available).
        WarmTarget::Enis(enis) => slots.saturating_mul(enis).max(1),
    }
}

/// What is still missing while acts are being chosen.
struct Need {
    addresses: u32,
    /// How many more addresses the node has use for at all.
    room_for_pods: Option<u32>,
}

impl Need {
    fn is_met(&self) -> bool {
        self.addresses == 0 || self.room_for_pods == Some(0)
    }

    fn take(&mut self, addresses: u32) {
        self.addresses = self.addresses.saturating_sub(addresses);
        self.room_for_pods = self.room_for_pods.map(|room| room.saturating_sub(addresses));
    }
}

/// Links take a second or two to appear; one that takes longer than this is worth a word.
const LINK_NOTICE: Duration = Duration::from_secs(5);

/// ENIs whose link should have appeared by now.
fn missing_links(pool: &Pool, now: Tick) -> impl Iterator<Item = Hindrance> {
    pool.memory.enis.iter().filter_map(move |(id, progress)| {
        let waited = now.since(progress.link_awaited?);
        (waited >= LINK_NOTICE).then(|| Hindrance::NoLink {
            eni: id.clone(),
            seconds: waited.as_secs(),
        })
    })
}

/// Steps on the way to addresses that failed and are tried again by themselves, the soonest of each action.
fn delays(pool: &Pool, now: Tick) -> Vec<Hindrance> {
    let mut soonest: BTreeMap<&str, (Tick, &CloudFailure)> = BTreeMap::new();
    for (topic, obstacle) in &pool.memory.obstacles {
        let is_step = matches!(topic, Topic::Creation(_) | Topic::Attach(_));
        let Some(failure) = obstacle.failure.as_ref().filter(|_| is_step) else {
            continue;
        };
        if obstacle.until > now {
            let known = soonest
                .entry(&failure.action)
                .or_insert((obstacle.until, failure));
            if obstacle.until < known.0 {
                *known = (obstacle.until, failure);
            }
        }
    }
    let soonest = soonest.into_values().map(|(until, failure)| Hindrance::Failed {
        failure: failure.clone(),
        until,
    });
    soonest.collect()
}

/// How the pool should grow now. Planning again after the acts were taken up yields no further acts.
pub fn plan(pool: &Pool, now: Tick) -> Plan {
    let census = census(pool, now);
    let waiting: BTreeSet<_> = pool.memory.waiters.values().map(|request| &request.key).collect();
    let mut plan = Plan {
        acts: Vec::new(),
        report: Report {
            free: census.free,
            assigned: census.assigned,
            cooling: census.cooling,
            quarantined: census.quarantined,
            coming: census.coming,
            waiting: count(waiting.len()),
            enis: places_taken(pool),
            delays: delays(pool, now),
            ..Report::default()
        },
    };
    plan.report.hindrances.extend(missing_links(pool, now));
    let Some(limits) = pool.limits() else {
        // Nobody will tell where EC2 is not asked: that is no reason to wait.
        plan.report.hindrances.push(if pool.policy().ask_ec2 {
            Hindrance::LimitsUnknown
        } else {
            Hindrance::ProvisioningOff
        });
        return plan;
    };
    let slots = limits.secondary_per_eni();
    plan.report.warm = warm_target(pool.policy().warm, slots);
    let wanted = plan.report.waiting.saturating_add(plan.report.warm);
    let mut need = Need {
        addresses: wanted.saturating_sub(census.free.saturating_add(census.coming)),
        room_for_pods: pool.policy().max_pods.map(|max| {
            max.saturating_sub(
                census
                    .free
                    .saturating_add(census.assigned)
                    .saturating_add(census.coming),
            )
        }),
    };
    plan.report.short = need.addresses;
    if need.addresses == 0 {
        return plan;
    }
    if let (Some(max_pods), Some(0)) = (pool.policy().max_pods, need.room_for_pods) {
        plan.report.hindrances.push(Hindrance::MaxPods { max_pods });
        return plan;
    }
    if !pool.policy().provisioning {
        plan.report.hindrances.push(Hindrance::ProvisioningOff);
        return plan;
    }
    if pool.memory.ec2 == Ec2View::Asking {
        plan.report.hindrances.push(Hindrance::Starting);
        return plan;
    }
    fill(pool, slots, &mut need, &mut plan, now);
    widen(pool, limits.enis, slots, &mut need, &mut plan, now);
    plan
}

/// Whether a subnet that refused is being asked for less, and has to answer first.
fn is_short(plan: &mut Plan, pool: &Pool, subnet: &SubnetId, now: Tick) -> bool {
    let Some(failure) = shortage::waits(pool, &plan.acts, subnet, now) else {
        return false;
    };
    let failure = failure.clone();
    let hindrance = Hindrance::AskingForLess { failure };
    if !plan.report.hindrances.contains(&hindrance) {
        plan.report.hindrances.push(hindrance);
    }
    true
}

fn hinder(plan: &mut Plan, pool: &Pool, topic: &Topic, now: Tick) -> bool {
    let Some(obstacle) = pool.memory.obstacle(topic, now) else {
        return false;
    };
    if let Some(failure) = &obstacle.failure {
        plan.report.hindrances.push(Hindrance::Failed {
            failure: failure.clone(),
            until: obstacle.until,
        });
    }
    true
}

/// First the free places of the ENIs there are: one call for each, for all of them.
fn fill(pool: &Pool, slots: u32, need: &mut Need, plan: &mut Plan, now: Tick) {
    let mut enis: Vec<&Eni> = pool
        .enis()
        .values()
        .filter(|eni| eni.role != EniRole::Unmanaged && is_underway(pool, eni))
        .filter(|eni| !matches!(eni.state, EniState::Created | EniState::Attaching))
        .collect();
    enis.sort_by_key(|eni| eni.device);
    for eni in enis {
        let free = slots.saturating_sub(eni.slots_taken());
        if need.is_met() || free == 0 || eni.assigning.is_some() || pool.memory.is_assigning(&eni.id) {
            continue;
        }
        if hinder(plan, pool, &Topic::Assign(eni.id.clone()), now)
            || hinder(plan, pool, &Topic::Subnet(eni.subnet.clone()), now)
            || is_short(plan, pool, &eni.subnet, now)
        {
            continue;
        }
        let (Take::Assign(count) | Take::Create(count)) =
            shortage::modest(pool, &eni.subnet, Take::Assign(free), now);
        need.take(count);
        plan.acts.push(Act::Assign {
            eni: eni.id.clone(),
            count,
        });
    }
}

/// Then as many more ENIs as are needed, side by side, each created full.
fn widen(pool: &Pool, by_type: u32, slots: u32, need: &mut Need, plan: &mut Plan, now: Tick) {
    if need.is_met() || slots == 0 {
        return;
    }
    let (limit, by_setting) = eni_limit(pool, by_type);
    let devices = count(pool.room_for_devices());
    let mut room = limit.saturating_sub(places_taken(pool)).min(devices);
    if room == 0 {
        plan.report.hindrances.push(Hindrance::EniLimit {
            enis: limit,
            slots,
            by_setting,
        });
        return;
    }
    let subnet = pool.facts().subnet.clone();
    if hinder(plan, pool, &Topic::Create, now) || hinder(plan, pool, &Topic::Subnet(subnet.clone()), now) {
        return;
    }
    while !need.is_met() && room > 0 {
        if is_short(plan, pool, &subnet, now) {
            return;
        }
        let (Take::Assign(addresses) | Take::Create(addresses)) =
            shortage::modest(pool, &subnet, Take::Create(slots), now);
        need.take(addresses);
        room = room.saturating_sub(1);
        plan.acts.push(Act::Create {
            subnet: subnet.clone(),
            addresses,
        });
    }
    if !need.is_met() {
        plan.report.hindrances.push(Hindrance::EniLimit {
            enis: limit,
            slots,
            by_setting,
        });
    }
}

impl Report {
    /// Whether something stands in the way that passes by itself, soon.
    pub fn has_transient(&self) -> bool {
        self.hindrances.iter().any(|hindrance| match hindrance {
            Hindrance::Starting | Hindrance::LimitsUnknown | Hindrance::AskingForLess { .. } => true,
            Hindrance::Failed { failure, .. } => failure.class.is_transient(),
            _ => false,
        })
    }

    /// The most telling reason why there is no more: what a user can do something about comes first.
    pub fn cause(&self) -> Option<&Hindrance> {
        let weight = |hindrance: &&Hindrance| match hindrance {
            Hindrance::Failed { failure, .. } => match failure.class {
                FailureClass::SubnetFull => 0,
                FailureClass::Denied => 1,
                FailureClass::AccountLimit => 2,
                FailureClass::AttachmentLimit => 3,
                FailureClass::Throttled => 7,
                _ => 8,
            },
            Hindrance::NoLink { .. } => 4,
            Hindrance::EniLimit { .. } => 5,
            Hindrance::MaxPods { .. } => 6,
            Hindrance::AskingForLess { .. } => 0,
            Hindrance::ProvisioningOff => 9,
            Hindrance::Starting | Hindrance::LimitsUnknown => 10,
        };
        self.hindrances.iter().min_by_key(weight)
    }
}
