//! What is put right on ENIs that serve anyway, their security groups and tags: it may fail without hurting a pod.
//!
//! What fails is tried again at its own pace. What EC2 does not permit is told once, shown by `ipamd status`, and tried
//! again with one call an hour, so that a repaired policy is noticed.

use super::cloud::{CloudCall, CloudFailure, FailureClass};
use super::ids::{EniId, Tick};
use super::memory::Purpose;
use super::model::{Eni, EniRole, EniState};
use super::obstacle::{Pace, Topic};
use super::outbox::Outbox;
use super::pool::Pool;
use super::{groups, tagging};

const DENIED: Pace = Pace::secs(3600, 3600);
/// Nobody waits for it, and what EC2 refuses as wrong stays wrong until somebody changes it.
const REFUSED: Pace = Pace::secs(60, 3600);

/// One kind of upkeep.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Upkeep {
    /// Security groups follow the primary ENI's, or the ENIConfig's.
    Groups,
    /// Tags are as configured.
    Tags,
}

impl Upkeep {
    /// What is missing while EC2 does not permit it.
    pub(super) fn loss(self) -> &'static str {
        match self {
            Self::Groups => "security groups of ENIs that exist are not followed",
            Self::Tags => "tags of ENIs that exist are not completed",
        }
    }
}

/// Puts right what is known to differ on an ENI.
pub(super) fn keep(pool: &mut Pool, id: &EniId, now: Tick, out: &mut Outbox) {
    if !pool.policy().provisioning {
        return;
    }
    let Some(eni) = pool.enis().get(id).filter(|eni| is_kept(eni)) else {
        return;
    };
    let groups = groups::due(pool, eni);
    let tags = tagging::due(pool, eni);
    let eni = || id.clone();
    if let Some(groups) = groups {
        let purpose = Purpose::Groups {
            eni: eni(),
            groups: groups.clone(),
        };
        attempt(
            pool,
            purpose,
            CloudCall::SetGroups { eni: eni(), groups },
            now,
            out,
        );
    }
    if let Some(tags) = tags {
        let purpose = Purpose::Tags {
            eni: eni(),
            tags: tags.clone(),
        };
        attempt(pool, purpose, CloudCall::TagEni { eni: eni(), tags }, now, out);
    }
}

fn attempt(pool: &mut Pool, purpose: Purpose, request: CloudCall, now: Tick, out: &mut Outbox) {
    if is_time_for(pool, &purpose, now) && pool.may_ask(&purpose, now) {
        out.call(pool, purpose, request, now);
    }
}

fn is_kept(eni: &Eni) -> bool {
    eni.role != EniRole::Unmanaged && matches!(eni.state, EniState::Attached | EniState::Ready)
}

fn kind_of(purpose: &Purpose) -> Option<(Upkeep, &EniId)> {
    match purpose {
        Purpose::Groups { eni, .. } => Some((Upkeep::Groups, eni)),
        Purpose::Tags { eni, .. } => Some((Upkeep::Tags, eni)),
        _ => None,
    }
}

/// One call of a kind for an ENI at a time; and one in all where the last ones were denied.
fn is_time_for(pool: &Pool, purpose: &Purpose, now: Tick) -> bool {
    let Some((kind, id)) = kind_of(purpose) else {
        return false;
    };
    let memory = &pool.memory;
    let denied = Topic::Denied(kind);
    let was_denied = memory.obstacles.contains_key(&denied);
    let mut under_way = memory.calls.values().filter_map(|ask| kind_of(&ask.purpose));
    let is_busy = under_way.any(|(other, eni)| other == kind && (was_denied || eni == id));
    !is_busy && memory.is_clear(&denied, now) && memory.is_clear(&Topic::Upkeep(kind, id.clone()), now)
}

/// EC2 has done it.
pub(super) fn done(pool: &mut Pool, kind: Upkeep, id: &EniId) {
    pool.memory.clear(&Topic::Denied(kind));
    pool.memory.clear(&Topic::Upkeep(kind, id.clone()));
}

/// EC2 has not done it.
pub(super) fn failed(
    pool: &mut Pool,
    kind: Upkeep,
    id: EniId,
    failure: &CloudFailure,
    now: Tick,
    out: &mut Outbox,
) {
    if failure.class == FailureClass::Denied {
        let topic = Topic::Denied(kind);
        if !pool.memory.obstacles.contains_key(&topic) {
            out.alarm("denied", format!("{}: {failure}", kind.loss()));
        }
        return pool.memory.obstruct(topic, DENIED, Some(failure.clone()), now);
    }
    let pace = if failure.class.is_transient() {
        Pace::of(failure.class)
    } else {
        REFUSED
    };
    let topic = Topic::Upkeep(kind, id);
    pool.memory.obstruct(topic, pace, Some(failure.clone()), now);
}
