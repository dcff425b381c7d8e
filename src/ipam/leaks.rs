//! ENIs that other instances have left behind, deleted by any living node.
//!
//! Detaching and deleting are two calls: an instance that ends between them leaves an ENI that takes addresses and keeps
//! security groups and VPCs from being deleted, for ever. Once an hour every node looks for such ENIs, asks whether their
//! owners live, puts a lease on a handful, looks again when EC2 can no longer be behind, and deletes what it then has a
//! [`Proof`] for. Nothing of a round survives a restart; a new one begins.

use std::collections::{BTreeMap, BTreeSet};

use super::budget::Kind;
use super::cloud::{CloudAnswer, CloudCall, CloudEni, CloudFailure, FailureClass};
use super::ids::{EniId, InstanceId, Tick};
use super::memory::Purpose;
use super::obstacle::{Pace, Topic};
use super::outbox::Outbox;
use super::pool::Pool;
use super::witness::{LeftEvidence, LocalEvidence, Look, OwnerSays, Proof, Reaper, Spared, Unproven};
use super::{stamp, tags};

/// How many ENIs one round takes on: the rest is for other nodes, and for the next one.
const HANDFUL: usize = 5;
/// How a round that failed is tried again; an action that is denied switches the rest of the round off.
const FAILED: Pace = Pace::secs(300, 3600).jittered();
const DENIED: Pace = Pace::secs(3600, 3600);

/// A call of a round.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum LeakCall {
    List,
    Owners,
    Tag(EniId),
    Delete(EniId),
}

impl LeakCall {
    pub(super) fn kind(&self) -> Kind {
        match self {
            Self::List | Self::Owners => Kind::Describing,
            Self::Tag(_) | Self::Delete(_) => Kind::Changing,
        }
    }
}

#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
enum Stage {
    /// Until the next round.
    #[default]
    Resting,
    Listing,
    AskingForOwners,
    /// Leases and times of creation are written.
    Tagging,
    /// Until EC2 can no longer be behind.
    Waiting(Tick),
    Deleting,
}

#[derive(Debug, Clone)]
struct Suspect {
    owner: InstanceId,
    /// As the last look showed it.
    eni: CloudEni,
    first: Look,
    second: Option<Look>,
    is_tagged: bool,
}

impl Suspect {
    fn look(&mut self) -> &mut Look {
        self.second.as_mut().unwrap_or(&mut self.first)
    }
}

/// A round, as far as it is.
#[derive(Debug, Clone, Default)]
pub(super) struct Leaks {
    /// When the next round begins.
    next: Option<Tick>,
    stage: Stage,
    suspects: BTreeMap<EniId, Suspect>,
}

fn is_on(pool: &Pool) -> bool {
    let policy = pool.policy();
    // The published policy of IPv6 nodes does not permit it, and upstream does not look there either.
    policy.leak_cleanup && policy.provisioning && policy.ask_ec2 && !policy.is_six()
}

fn reaper(pool: &Pool, now: Tick) -> Reaper<'_> {
    Reaper {
        instance: &pool.facts().instance,
        cluster: pool.policy().cluster_name.as_deref(),
        unix: pool.facts().booted_at.saturating_add(now.0 / 1000),
    }
}

/// When something is to be done here without anybody else's doing.
pub(super) fn due(pool: &Pool) -> Option<Tick> {
    let leaks = &pool.memory.leaks;
    match leaks.stage {
        _ if !is_on(pool) => None,
        Stage::Resting => leaks.next,
        Stage::Waiting(until) => Some(until),
        _ => None,
    }
}

/// The round goes as far as it can.
pub(super) fn advance(pool: &mut Pool, now: Tick, out: &mut Outbox) {
    if !is_on(pool) {
        pool.memory.leaks = Leaks::default();
        return;
    }
    if pool.memory.leaks.next.is_none() {
        // Nodes that start together do not look together.
        let hour = u64::try_from(pool.policy().leak_check.as_millis()).unwrap_or(u64::MAX);
        let offset = pool.memory.roll().checked_rem(hour).unwrap_or(0);
        pool.memory.leaks.next = Some(Tick(now.0.saturating_add(offset).saturating_add(1)));
    }
    if !pool.memory.is_clear(&Topic::Leaks, now) {
        return;
    }
    if matches!(pool.memory.leaks.stage, Stage::Resting if pool.memory.leaks.next <= Some(now)) {
        pool.memory.leaks.stage = Stage::Listing;
    }
    if matches!(pool.memory.leaks.stage, Stage::Waiting(until) if until <= now) {
        pool.memory.leaks.stage = Stage::Listing;
    }
    match pool.memory.leaks.stage {
        Stage::Resting | Stage::Waiting(_) => {}
        Stage::Listing => {
            let request = CloudCall::DescribeLeftEnis {
                vpc: pool.facts().vpc.clone(),
                cluster: pool.policy().cluster_name.clone(),
            };
            ask(pool, LeakCall::List, request, now, out);
        }
        Stage::AskingForOwners => {
            let suspects = pool.memory.leaks.suspects.values();
            let owners: BTreeSet<InstanceId> = suspects.map(|suspect| suspect.owner.clone()).collect();
            let instances = owners.into_iter().collect();
            ask(
                pool,
                LeakCall::Owners,
                CloudCall::DescribeInstances { instances },
                now,
                out,
            );
        }
        Stage::Tagging => tag_next(pool, now, out),
        Stage::Deleting => delete_next(pool, now, out),
    }
}

fn ask(pool: &mut Pool, call: LeakCall, request: CloudCall, now: Tick, out: &mut Outbox) {
    let purpose = Purpose::Leak(call);
    if pool.may_ask(&purpose, now) {
        out.call(pool, purpose, request, now);
    }
}

/// The round is over; the next one begins an hour after this one did.
fn rest(pool: &mut Pool, now: Tick) {
    let began = pool.memory.leaks.next.unwrap_or(now);
    let interval = pool.policy().leak_check;
    pool.memory.leaks = Leaks {
        next: Some(began.after(interval).max(Tick(now.0.saturating_add(1)))),
        ..Leaks::default()
    };
}

/// Goes on with those who are left.
fn go_on(pool: &mut Pool, stage: Stage, now: Tick) {
    if pool.memory.leaks.suspects.is_empty() {
        rest(pool, now);
    } else {
        pool.memory.leaks.stage = stage;
    }
}

/// EC2 has answered.
pub(super) fn answered(
    pool: &mut Pool,
    call: &LeakCall,
    answer: CloudAnswer,
    asked: Tick,
    now: Tick,
    out: &mut Outbox,
) {
    pool.memory.clear(&Topic::Leaks);
    match (call, answer) {
        (LeakCall::List, CloudAnswer::Enis(enis)) => {
            let is_first = pool.memory.leaks.suspects.is_empty();
            if is_first {
                pick(pool, enis, asked, now);
            } else {
                look_again(pool, enis, asked, now);
            }
            go_on(pool, Stage::AskingForOwners, now);
        }
        (LeakCall::Owners, CloudAnswer::Instances(known)) => judge_owners(pool, &known, now),
        (LeakCall::Tag(eni), _) => {
            if let Some(suspect) = pool.memory.leaks.suspects.get_mut(eni) {
                suspect.is_tagged = true;
            }
        }
        (LeakCall::Delete(eni), _) => {
            if let Some(suspect) = pool.memory.leaks.suspects.remove(eni) {
                out.alarm(
                    "leak-deleted",
                    format!(
                        "{eni}, left behind by {}, which is gone, was deleted",
                        suspect.owner
                    ),
                );
            }
        }
        _ => rest(pool, now),
    }
}

/// A call failed: what concerns one ENI drops that ENI, everything else ends the round.
pub(super) fn failed(pool: &mut Pool, call: &LeakCall, failure: &CloudFailure, now: Tick, out: &mut Outbox) {
    let is_about_it = matches!(failure.class, FailureClass::Gone | FailureClass::Conflict);
    if let (LeakCall::Tag(eni) | LeakCall::Delete(eni), true) = (call, is_about_it) {
        // Another node was faster, or somebody uses it after all: EC2 has the last word.
        pool.memory.leaks.suspects.remove(eni);
        return;
    }
    let is_denied = failure.class == FailureClass::Denied;
    if is_denied {
        out.alarm(
            "leaks",
            format!("ENIs that others have left are not deleted: {failure}"),
        );
    }
    let pace = if is_denied { DENIED } else { FAILED };
    pool.memory
        .obstruct(Topic::Leaks, pace, Some(failure.clone()), now);
    let again = pool.memory.obstacle(&Topic::Leaks, now);
    pool.memory.leaks = Leaks {
        next: again.map(|obstacle| obstacle.until),
        ..Leaks::default()
    };
}

/// The first look: a handful of those that may be looked at, whatever their age, beginning anywhere so that not every
/// node begins with the same.
fn pick(pool: &mut Pool, enis: Vec<CloudEni>, asked: Tick, now: Tick) {
    let reaper = reaper(pool, now);
    let mut suspects: Vec<Suspect> = enis
        .into_iter()
        .filter(|eni| !pool.enis().contains_key(&eni.id))
        .filter(|eni| reaper.age(eni) != Err(Spared::Young))
        .filter_map(|eni| {
            Some(Suspect {
                owner: reaper.owner_of(&eni).ok()?,
                eni,
                first: Look {
                    asked,
                    owner: OwnerSays::Unasked,
                },
                second: None,
                is_tagged: false,
            })
        })
        .collect();
    let count = u64::try_from(suspects.len()).unwrap_or(u64::MAX);
    let begin = pool.memory.roll().checked_rem(count).unwrap_or(0);
    suspects.rotate_left(usize::try_from(begin).unwrap_or(0));
    let picked = suspects.into_iter().take(HANDFUL);
    pool.memory.leaks.suspects = picked.map(|suspect| (suspect.eni.id.clone(), suspect)).collect();
}

/// The second look: those that are still listed, with our lease on them.
fn look_again(pool: &mut Pool, enis: Vec<CloudEni>, asked: Tick, now: Tick) {
    let mut suspects = std::mem::take(&mut pool.memory.leaks.suspects);
    let reaper = reaper(pool, now);
    let mut left = BTreeMap::new();
    for eni in enis {
        let Some(mut suspect) = suspects.remove(&eni.id) else {
            continue;
        };
        let holder = reaper.lease(&eni).map(|(holder, _)| holder);
        let is_same = reaper.owner_of(&eni).is_ok_and(|owner| owner == suspect.owner);
        if is_same && holder.as_ref() == Some(reaper.instance) {
            suspect.eni = eni;
            suspect.second = Some(Look {
                asked,
                owner: OwnerSays::Unasked,
            });
            left.insert(suspect.eni.id.clone(), suspect);
        }
    }
    pool.memory.leaks.suspects = left;
}

/// Whoever lives keeps what is his.
fn judge_owners(pool: &mut Pool, known: &BTreeMap<InstanceId, bool>, now: Tick) {
    let mut suspects = std::mem::take(&mut pool.memory.leaks.suspects);
    let reaper = reaper(pool, now);
    let mut is_second = false;
    suspects.retain(|_, suspect| {
        let says = match known.get(&suspect.owner) {
            Some(true) => OwnerSays::Lives,
            Some(false) => OwnerSays::Terminated,
            None => OwnerSays::Unknown,
        };
        is_second |= suspect.second.is_some();
        suspect.look().owner = says;
        // One without an age gets one now, and is looked at again when it has come to that age.
        let age = reaper.age(&suspect.eni);
        says != OwnerSays::Lives && age.map_or(true, |age| reaper.is_gone(says, age))
    });
    pool.memory.leaks.suspects = suspects;
    let stage = if is_second {
        Stage::Deleting
    } else {
        Stage::Tagging
    };
    go_on(pool, stage, now);
}

/// One after the other gets our lease, or the time of its creation if it says nothing legible of that (Q25).
fn tag_next(pool: &mut Pool, now: Tick, out: &mut Outbox) {
    let reaper = reaper(pool, now);
    let is_ageless = |suspect: &Suspect| reaper.age(&suspect.eni) == Err(Spared::Ageless);
    let suspects = &pool.memory.leaks.suspects;
    if let Some(suspect) = suspects.values().find(|suspect| !suspect.is_tagged) {
        let (key, value) = if is_ageless(suspect) {
            (tags::CREATED_AT, stamp::rfc3339(reaper.unix))
        } else {
            (tags::REAPER, reaper.new_lease())
        };
        let eni = suspect.eni.id.clone();
        let request = CloudCall::TagEni {
            eni: eni.clone(),
            tags: BTreeMap::from([(key.to_owned(), value)]),
        };
        return ask(pool, LeakCall::Tag(eni), request, now, out);
    }
    let ageless = suspects.values().filter(|suspect| is_ageless(suspect));
    let ageless: BTreeSet<EniId> = ageless.map(|suspect| suspect.eni.id.clone()).collect();
    let lag = pool.policy().describe_lag;
    let suspects = &mut pool.memory.leaks.suspects;
    suspects.retain(|id, _| !ageless.contains(id));
    go_on(pool, Stage::Waiting(now.after(lag)), now);
}

/// One after the other is deleted, if everything still speaks for it.
fn delete_next(pool: &mut Pool, now: Tick, out: &mut Outbox) {
    while let Some((id, suspect)) = pool.memory.leaks.suspects.first_key_value() {
        let id = id.clone();
        match prove(pool, suspect, now) {
            Ok(proof) => {
                return ask(
                    pool,
                    LeakCall::Delete(id),
                    CloudCall::DeleteEni { proof },
                    now,
                    out,
                );
            }
            Err(why) => {
                out.alarm(
                    "not-deleted",
                    format!("{id}, which another instance has left: {why}"),
                );
                pool.memory.leaks.suspects.remove(&id);
            }
        }
    }
    rest(pool, now);
}

fn prove(pool: &Pool, suspect: &Suspect, now: Tick) -> Result<Proof<EniId>, Unproven> {
    let eni = &suspect.eni;
    let addresses: BTreeSet<_> = eni.cidrs().flat_map(super::cidr::Ipv4Cidr::addresses).collect();
    let routed = addresses
        .iter()
        .filter(|address| pool.memory.is_routed(**address));
    let is_on = |address: std::net::IpAddr| matches!(address, std::net::IpAddr::V4(address) if addresses.contains(&address));
    let is_ours = |held: &&super::model::Allocation| held.eni == eni.id || is_on(held.address);
    Proof::left_eni(LeftEvidence {
        reaper: reaper(pool, now),
        eni,
        first: suspect.first,
        second: suspect.second.ok_or(Unproven::SecondLook)?,
        local: LocalEvidence {
            link: pool.memory.links.contains_key(&eni.mac),
            pod_routes: routed.count(),
            allocations: pool.allocations().values().filter(is_ours).count(),
        },
        lag: pool.policy().describe_lag,
    })
}
