//! Growth as a pure function: how much is wanted, what is on its way, and what to ask EC2 for.
//!
//! The arithmetic is the Go daemon's (reference ipamd 3.1, 3.2, 3.5, 3.9, 3.10) with three differences that no settled
//! state shows: everything that is needed is asked for at once instead of one step every five seconds, what is on its
//! way counts, and what cools does not count as available (its fault Q1).

use std::collections::BTreeMap;
use std::time::Duration;

use serde::Serialize;

use super::budget::{Brake, Priority};
use super::census::{Census, count};
use super::cloud::{Amount, CloudFailure, FailureClass, Unit};
use super::growing::Growing;
use super::ids::{CardIndex, EniId, InstanceType, SubnetId, Tick};
use super::memory::Ec2View;
use super::obstacle::{Obstacle, Topic};
use super::places::ClosedEni;
use super::pool::Pool;
use super::six;
use super::subnets;
use super::targets::Goal;
use super::wishes::Waiting;

/// One thing to ask EC2 for.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub enum Act {
    /// More addresses for an ENI we have.
    Assign {
        /// The ENI.
        eni: EniId,
        /// How much.
        amount: Amount,
    },
    /// One more ENI, created with its addresses.
    Create {
        /// Where.
        subnet: SubnetId,
        /// The network card it is for.
        #[serde(skip_serializing_if = "CardIndex::is_first")]
        card: CardIndex,
        /// What it carries besides its own address.
        amount: Amount,
    },
    /// The subnets of this zone, before more is asked for.
    DescribeSubnets,
}

impl Act {
    /// Whether it asks for addresses for this ENI.
    pub(super) fn asks(&self, id: &EniId) -> bool {
        matches!(self, Self::Assign { eni, .. } if eni == id)
    }
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
    /// The same, where pods get IPv6 addresses and no ENI has a /80.
    NotDelegated,
    /// ENIs of the instance type carry no prefixes, and IPv6 addresses come in nothing else.
    NoPrefixes {
        /// The type.
        instance_type: InstanceType,
    },
    /// The node is cordoned: nothing is held ready.
    Cordoned,
    /// Every place for an ENI is taken, and every place on every ENI.
    EniLimit {
        /// ENIs there may be.
        enis: u32,
        /// Addresses for pods each can carry.
        slots: u32,
        /// Whether `MAX_ENI` says so rather than the instance type.
        by_setting: bool,
        /// ENIs that take or will take a place.
        taken: u32,
        /// Those of them that get no new pods.
        #[serde(skip_serializing_if = "Vec::is_empty")]
        closed: Vec<ClosedEni>,
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
    /// ENIs that are being created, attached or asked for addresses are asked for the rest when that has ended, and others
    /// take the places of those that are being given back.
    RestFollows {
        /// How many addresses will be asked for.
        addresses: u32,
    },
    /// EC2 has not yet said where new ENIs may go.
    SubnetsUnknown,
    /// No subnet of this zone is for this node's ENIs, by its tags.
    NoSubnet {
        /// The zone.
        zone: String,
    },
    /// Custom networking is on, and there is no ENIConfig for this node.
    NoEniConfig {
        /// Which was looked for and what was found, where that is known.
        why: Option<String>,
    },
    /// A subnet has less than was asked for, and is being asked for less.
    AskingForLess {
        /// What EC2 said.
        failure: CloudFailure,
    },
    /// EC2 may not be asked for it yet.
    Braked(Brake),
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
    /// Those of them that are of the kind the mode no longer asks for: they serve, but the targets do not count on them.
    pub left_over: u32,
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
    /// What EC2 does not permit although no pod depends on it.
    pub losses: Vec<Loss>,
    /// The same of each network card, where more than one is managed; all above is their sum then.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub cards: BTreeMap<CardIndex, Report>,
}

/// Something optional that is switched off for lack of permission.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Loss {
    /// What is missing.
    pub what: &'static str,
    /// What EC2 said.
    pub failure: CloudFailure,
}

/// What is missing because EC2 does not permit it.
fn losses(pool: &Pool) -> Vec<Loss> {
    let denied = |(topic, obstacle): (&Topic, &Obstacle)| {
        let what = match topic {
            Topic::Denied(kind) => kind.loss(),
            Topic::Subnets => subnets::LOSS,
            _ => return None,
        };
        let failure = obstacle.failure.clone()?;
        (failure.class == FailureClass::Denied).then_some(Loss { what, failure })
    };
    pool.memory.obstacles.iter().filter_map(denied).collect()
}

/// What to do, and why not more.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub struct Plan {
    /// In order.
    pub acts: Vec<Act>,
    /// The reasons.
    pub report: Report,
}

impl Plan {
    /// Whether EC2 is to be asked for addresses or an ENI.
    pub(super) fn grows(&self) -> bool {
        let grows = |act: &Act| !matches!(act, Act::DescribeSubnets);
        self.acts.iter().any(grows)
    }
}

/// ENIs that take a place on a card, now or soon.
pub(super) fn places_taken(pool: &Pool, card: CardIndex) -> u32 {
    let enis = pool.enis().values().filter(|eni| eni.takes_place_on(card));
    let creations = pool.creations().values().filter(|creation| creation.card == card);
    count(enis.count() + creations.count())
}

/// How many ENIs there may be on a card that can carry so many, and whether `MAX_ENI` is the smaller limit.
pub(super) fn eni_limit(pool: &Pool, by_type: u32) -> (u32, bool) {
    match pool.policy().max_enis {
        Some(max) if max >= 1 && max < by_type => (max, true),
        _ => (by_type, false),
    }
}

/// What is still missing while acts are being chosen.
pub(super) struct Need {
    pub(super) addresses: u32,
    /// How many more addresses the node has use for at all.
    room_for_pods: Option<u32>,
}

impl Need {
    pub(super) fn is_met(&self) -> bool {
        self.addresses == 0 || self.room_for_pods == Some(0)
    }

    pub(super) fn take(&mut self, amount: Amount) {
        self.addresses = self.addresses.saturating_sub(amount.addresses());
        let less = |room: u32| room.saturating_sub(amount.addresses());
        self.room_for_pods = self.room_for_pods.map(less);
    }

    /// As much as is missing and `more`, as far as the node has use for it, and at most `places` of an ENI.
    pub(super) fn of(&self, unit: Unit, places: u32, more: u32) -> Amount {
        let room = self.room_for_pods.unwrap_or(u32::MAX);
        let more = more.min(room.saturating_sub(self.addresses));
        let wanted = self.addresses.saturating_add(more);
        unit.amount(wanted.div_ceil(unit.size()).min(places))
    }
}

/// Links take a second or two to appear; one that takes longer than this is worth a word.
const LINK_NOTICE: Duration = Duration::from_secs(5);

/// ENIs of a card whose link should have appeared by now.
fn missing_links(pool: &Pool, card: CardIndex, now: Tick) -> impl Iterator<Item = Hindrance> {
    let is_here = move |id: &EniId| pool.enis().get(id).is_none_or(|eni| eni.card == card);
    let progress = pool.memory.enis.iter().filter(move |(id, _)| is_here(id));
    progress.filter_map(move |(id, progress)| {
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
    let braked = pool.memory.budget.brakes();
    let braked = braked.filter(|brake| brake.priority != Priority::Upkeep && brake.until > now);
    soonest.chain(braked.copied().map(Hindrance::Braked)).collect()
}

/// How the pool should grow now. Planning again after the acts were taken up yields no further acts.
pub fn plan(pool: &Pool, now: Tick) -> Plan {
    let mut acts = Vec::new();
    let mut reports = BTreeMap::new();
    let mut waiting = Waiting::of(pool);
    let total = waiting.total();
    for card in pool.managed_cards() {
        let here = waiting.on(card);
        let mut plan = Plan {
            acts,
            report: Report::default(),
        };
        let unmet = plan_card(pool, card, here, &mut plan, now);
        waiting.pass_on(unmet);
        acts = plan.acts;
        reports.insert(card, plan.report);
    }
    let report = Report::of_cards(reports, total);
    Plan { acts, report }
}

/// Plans for one card by its own targets and limits. What is left undone for want of places is returned: other cards may
/// have some.
fn plan_card(pool: &Pool, card: CardIndex, waiting: u32, plan: &mut Plan, now: Tick) -> u32 {
    let goal = Goal::of(pool, card);
    let census = Census::of(pool, card, goal, now);
    plan.report = Report {
        free: census.free.saturating_add(census.left_over),
        left_over: census.left_over,
        assigned: census.assigned,
        cooling: census.cooling,
        quarantined: census.quarantined,
        coming: census.coming,
        waiting,
        enis: places_taken(pool, card),
        delays: delays(pool, now),
        losses: losses(pool),
        ..Report::default()
    };
    plan.report.hindrances.extend(missing_links(pool, card, now));
    if pool.is_left_alone() {
        plan.report.hindrances.push(Hindrance::Cordoned);
    }
    let Some(limits) = pool.limits() else {
        // Nobody will tell where EC2 is not asked: that is no reason to wait.
        plan.report.hindrances.push(if pool.policy().ask_ec2 {
            Hindrance::LimitsUnknown
        } else {
            provisioning_off(pool)
        });
        return 0;
    };
    if let Some(hindrance) = six::cannot(pool).filter(|_| pool.policy().is_six()) {
        plan.report.hindrances.push(hindrance);
        return 0;
    }
    let slots = limits.secondary_per_eni();
    plan.report.warm = goal.warm(slots);
    let mut need = need(pool, goal, &census, &plan.report);
    plan.report.short = need.addresses;
    if need.addresses == 0 {
        return 0;
    }
    if let (Some(max_pods), Some(0)) = (pool.policy().max_pods, need.room_for_pods) {
        plan.report.hindrances.push(Hindrance::MaxPods { max_pods });
        return 0;
    }
    if !pool.policy().provisioning {
        plan.report.hindrances.push(provisioning_off(pool));
        return 0;
    }
    if pool.memory.ec2 == Ec2View::Asking {
        plan.report.hindrances.push(Hindrance::Starting);
        let is_asked = plan.acts.contains(&Act::DescribeSubnets);
        if subnets::is_needed_first(pool) && subnets::is_due(pool, now) && !is_asked {
            plan.acts.push(Act::DescribeSubnets);
        }
        return 0;
    }
    Growing {
        pool,
        card,
        goal,
        slots,
        need: &mut need,
        plan,
        now,
    }
    .grow(limits.enis_on(card));
    let is_full = |hindrance: &Hindrance| matches!(hindrance, Hindrance::EniLimit { .. });
    let lacks_places = plan.report.hindrances.iter().any(is_full);
    if lacks_places { need.addresses } else { 0 }
}

fn provisioning_off(pool: &Pool) -> Hindrance {
    if pool.policy().is_six() {
        Hindrance::NotDelegated
    } else {
        Hindrance::ProvisioningOff
    }
}

fn need(pool: &Pool, goal: Goal, census: &Census, report: &Report) -> Need {
    let there = census.free.saturating_add(census.coming);
    let warm = report.waiting.saturating_add(report.warm).saturating_sub(there);
    let least = goal.minimum().saturating_sub(census.total);
    let room = |max: u32| {
        let used = report.free.saturating_add(census.assigned);
        // Whoever waits is not made to wait for what rests; for pods that nobody has asked for yet it is soon enough.
        let soon = if report.waiting == 0 { census.cooling } else { 0 };
        max.saturating_sub(used.saturating_add(census.coming).saturating_add(soon))
    };
    Need {
        addresses: warm.max(least),
        room_for_pods: pool
            .policy()
            .max_pods
            .filter(|_| !pool.policy().is_six())
            .map(room),
    }
}

impl Report {
    /// Whether something stands in the way that passes by itself, soon.
    pub fn has_transient(&self) -> bool {
        self.hindrances.iter().any(|hindrance| match hindrance {
            Hindrance::Starting
            | Hindrance::LimitsUnknown
            | Hindrance::RestFollows { .. }
            | Hindrance::SubnetsUnknown
            | Hindrance::AskingForLess { .. } => true,
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
            Hindrance::Braked(_) => 3,
            Hindrance::NoLink { .. } => 4,
            Hindrance::EniLimit { .. } => 5,
            Hindrance::MaxPods { .. } => 6,
            Hindrance::AskingForLess { .. }
            | Hindrance::NoSubnet { .. }
            | Hindrance::NoEniConfig { .. }
            | Hindrance::NoPrefixes { .. } => 0,
            Hindrance::ProvisioningOff | Hindrance::NotDelegated => 9,
            Hindrance::Starting
            | Hindrance::LimitsUnknown
            | Hindrance::SubnetsUnknown
            | Hindrance::RestFollows { .. } => 10,
            Hindrance::Cordoned => 11,
        };
        self.hindrances.iter().min_by_key(weight)
    }
}
