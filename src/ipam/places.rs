//! ENIs that take a place on their card and get no new pods: which they are, why, and what keeps each. An EC2 limit counts
//! them like all others, so whoever finds no address is to know of them.

use std::fmt;

use serde::Serialize;

use super::census::count;
use super::cloud::CloudFailure;
use super::ids::{CardIndex, EniId, SubnetId, Tick};
use super::memory::EniProgress;
use super::model::{AddressState, Eni, EniRole, EniState};
use super::obstacle::Topic;
use super::pool::Pool;
use super::roles::left_alone;
use super::tags;
use super::witness::Unproven;

pub use super::roles::LeftAlone;

/// An ENI that takes a place and gets no new pods.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct ClosedEni {
    /// The ENI.
    pub eni: EniId,
    /// Why it gets none.
    pub why: Closed,
    /// What keeps it on its place, where it is ours.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub kept: Option<Kept>,
}

/// Why an ENI gets no new pods.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Closed {
    /// It is not ours to use.
    LeftAlone(LeftAlone),
    /// Custom networking leaves the primary ENI to the node.
    Primary,
    /// Custom networking is on, and it is in a subnet that is not the ENIConfig's.
    NotOfEniConfig(SubnetId),
    /// The tags of its subnet say so.
    NotForPods(SubnetId),
    /// It is on its way back to EC2.
    Leaving,
}

/// What keeps an ENI of ours that gets no new pods.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Kept {
    /// The instance lives with its primary ENI.
    Primary,
    /// Sandboxes are on it.
    Pods(u32),
    /// It could not be found again once it is detached, or somebody else has made it.
    NotOurs,
    /// It was to go, and this is what a witness said.
    Witness(Unproven),
    /// It was to go, and EC2 refused.
    Refused(CloudFailure),
    /// So many of its addresses are at rest or in doubt.
    Addresses(u32),
    /// Nothing that is known: it is to go.
    Nothing,
}

/// Those of a card, by their ids.
pub(super) fn closed(pool: &Pool, card: CardIndex, now: Tick) -> Vec<ClosedEni> {
    let here = pool.enis().values().filter(|eni| eni.takes_place_on(card));
    let closed = here.filter_map(|eni| {
        Some(ClosedEni {
            eni: eni.id.clone(),
            why: why(pool, eni)?,
            kept: kept(pool, eni, now),
        })
    });
    closed.collect()
}

fn why(pool: &Pool, eni: &Eni) -> Option<Closed> {
    if eni.role == EniRole::Unmanaged {
        let seen = progress(pool, eni).and_then(|progress| progress.seen.as_ref());
        let why = seen.and_then(|seen| left_alone(pool, eni.kind, &seen.tags, eni.card));
        return Some(Closed::LeftAlone(why.unwrap_or(LeftAlone::Unsaid)));
    }
    if matches!(eni.state, EniState::Draining | EniState::Detaching) {
        return Some(Closed::Leaving);
    }
    let subnet = || eni.subnet.clone();
    eni.excluded
        .then(|| match (pool.policy().custom_networking, eni.role) {
            (true, EniRole::Primary) => Closed::Primary,
            (true, _) => Closed::NotOfEniConfig(subnet()),
            (false, _) => Closed::NotForPods(subnet()),
        })
}

fn progress<'a>(pool: &'a Pool, eni: &Eni) -> Option<&'a EniProgress> {
    pool.memory.enis.get(&eni.id)
}

/// By the conditions under which [`super::surplus`] would give it back.
fn kept(pool: &Pool, eni: &Eni, now: Tick) -> Option<Kept> {
    match (eni.role, &eni.state) {
        (EniRole::Unmanaged, _) | (_, EniState::Draining | EniState::Detaching) => return None,
        (EniRole::Primary, _) => return Some(Kept::Primary),
        (EniRole::Secondary, _) => {}
    }
    let mut pods = pool.allocations().values().map(|held| &held.eni);
    let pods = count(pods.by_ref().filter(|id| **id == eni.id).count());
    if pods > 0 {
        return Some(Kept::Pods(pods));
    }
    let progress = progress(pool, eni);
    if progress.is_some_and(|progress| progress.seen.is_some() && !progress.can_go) {
        return Some(Kept::NotOurs);
    }
    if let Some(why) = progress.and_then(|progress| progress.contradicted) {
        return Some(Kept::Witness(why));
    }
    let obstacle = pool.memory.obstacle(&Topic::Release(eni.id.clone()), now);
    if let Some(failure) = obstacle.and_then(|obstacle| obstacle.failure.clone()) {
        return Some(Kept::Refused(failure));
    }
    let known = eni.addresses().filter_map(|(address, _)| pool.known(address));
    let busy = count(
        known
            .filter(|known| known.state(now) != AddressState::Free)
            .count(),
    );
    Some(if busy > 0 {
        Kept::Addresses(busy)
    } else {
        Kept::Nothing
    })
}

impl fmt::Display for Closed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::LeftAlone(why) => write!(f, "{why}"),
            Self::Primary => f.write_str("custom networking leaves the primary ENI to the node"),
            Self::NotOfEniConfig(subnet) => write!(f, "its subnet {subnet} is not one of the ENIConfig's"),
            Self::NotForPods(subnet) => {
                write!(f, "by its tags its subnet {subnet} is not for pods of this node")
            }
            Self::Leaving => f.write_str("it is being given back"),
        }
    }
}

impl fmt::Display for Kept {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Primary => f.write_str("the instance keeps its primary ENI"),
            Self::Pods(1) => f.write_str("kept because 1 pod is on it"),
            Self::Pods(pods) => write!(f, "kept because {pods} pods are on it"),
            Self::NotOurs => f.write_str("kept because neither daemon has made it for this instance"),
            Self::Witness(why) => write!(f, "kept because {why}"),
            Self::Refused(failure) => write!(f, "EC2 did not take it back: {failure}"),
            Self::Addresses(1) => f.write_str("kept because 1 of its addresses is at rest or in doubt"),
            Self::Addresses(busy) => {
                write!(f, "kept because {busy} of its addresses are at rest or in doubt")
            }
            Self::Nothing => {
                f.write_str("it goes back as soon as EC2 and the kernel confirm that nobody uses it")
            }
        }
    }
}

impl fmt::Display for ClosedEni {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { eni, why, kept } = self;
        match kept.as_ref().filter(|_| *why != Closed::Primary) {
            Some(kept) => write!(f, "{eni} ({why}; {kept})"),
            None => write!(f, "{eni} ({why})"),
        }
    }
}

impl ClosedEni {
    /// What somebody can do to have its place, or its addresses, for pods.
    fn advice(&self) -> Option<String> {
        let Self { eni, why, kept } = self;
        match (why, kept) {
            (_, Some(Kept::Witness(Unproven::Public))) => Some(format!(
                "take the public address off {eni}, which then goes back by itself"
            )),
            (Closed::LeftAlone(_), _) | (_, Some(Kept::NotOurs | Kept::Refused(_))) => {
                Some(format!("detach {eni}, if nobody needs it"))
            }
            (Closed::NotForPods(subnet), _) => {
                Some(format!("tag {subnet} {}=1, if it is for pods", tags::SUBNET_ROLE))
            }
            (Closed::Primary | Closed::NotOfEniConfig(_) | Closed::Leaving, _) => None,
        }
    }
}

/// How many of those that take a place get no pods, and which; nothing where all do.
pub(super) fn told(closed: &[ClosedEni], taken: u32) -> String {
    if closed.is_empty() {
        return String::new();
    }
    let get = if closed.len() == 1 { "gets" } else { "get" };
    let each: Vec<String> = closed.iter().map(ClosedEni::to_string).collect();
    format!(
        "; {} of {taken} ENIs {get} no pods: {}",
        closed.len(),
        each.join(", ")
    )
}

/// What can be done about them, each thing once.
pub(super) fn advice(closed: &[&ClosedEni]) -> Vec<String> {
    let mut all: Vec<String> = Vec::new();
    for advice in closed.iter().filter_map(|eni| eni.advice()) {
        if !all.contains(&advice) {
            all.push(advice);
        }
    }
    all
}
