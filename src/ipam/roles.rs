//! Which ENIs are ours to use, and for what: by tags, type and card (reference ipamd 1.6), in one place.
//!
//! The Go daemon's table with two of its faults left out: a trunk is left alone whatever tags say (Q37), and an ENI with
//! another instance's tag is foreign (Q50). Whoever is left alone still takes its place on the instance.

use std::collections::BTreeMap;
use std::fmt;

use serde::Serialize;

use super::cloud::CloudEni;
use super::ids::CardIndex;
use super::model::{EniKind, EniRole};
use super::pool::Pool;
use super::tags;

impl EniKind {
    /// By EC2's `InterfaceType`; an answer without one is of an ordinary ENI.
    pub(super) fn of(interface_type: &str) -> Self {
        match interface_type {
            "" | "interface" => Self::Interface,
            "efa" => Self::Efa,
            "efa-only" => Self::EfaOnly,
            "trunk" => Self::Trunk,
            _ => Self::Other,
        }
    }

    /// Whether pods can have its addresses.
    fn carries_pods(self) -> bool {
        matches!(self, Self::Interface | Self::Efa)
    }
}

/// Why an ENI is not ours to use.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum LeftAlone {
    /// Pods cannot have addresses of its type.
    Kind(EniKind),
    /// Its network card is not managed.
    Card,
    /// Somebody keeps both daemons away from it.
    NoManage,
    /// It is another instance's.
    OfInstance(String),
    /// Nobody has tagged it, and such are not managed.
    Untagged,
    /// EC2 has not said since the start.
    Unsaid,
}

impl fmt::Display for LeftAlone {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Kind(EniKind::EfaOnly) => {
                f.write_str("it is of the type efa-only, which carries no pods' addresses")
            }
            Self::Kind(EniKind::Trunk) => f.write_str("it is of the type trunk, which carries branch ENIs"),
            Self::Kind(_) => f.write_str("it is of a type that is not for pods"),
            Self::Card => f.write_str("its network card is not managed"),
            Self::NoManage => write!(f, "it is tagged {}=true", tags::NO_MANAGE),
            Self::OfInstance(instance) => write!(f, "its tag {} names {instance}", tags::INSTANCE),
            Self::Untagged => write!(
                f,
                "it lacks the tag {}, and MANAGE_UNTAGGED_ENI is false",
                tags::INSTANCE
            ),
            Self::Unsaid => f.write_str("it is not this node's to use"),
        }
    }
}

/// Why a secondary ENI is not ours to use; none if it is.
pub(super) fn left_alone(
    pool: &Pool,
    kind: EniKind,
    carried: &BTreeMap<String, String>,
    card: CardIndex,
) -> Option<LeftAlone> {
    if !kind.carries_pods() {
        return Some(LeftAlone::Kind(kind));
    }
    if !pool.may_manage(card) {
        return Some(LeftAlone::Card);
    }
    let tag = |key: &str| carried.get(key).map(String::as_str);
    match (tag(tags::NO_MANAGE), tag(tags::INSTANCE)) {
        (Some("true"), _) => Some(LeftAlone::NoManage),
        (Some(_), _) => None,
        (None, Some(instance)) if instance == pool.facts().instance.as_str() => None,
        (None, Some(instance)) => Some(LeftAlone::OfInstance(instance.to_owned())),
        (None, None) => (!pool.policy().manage_untagged).then_some(LeftAlone::Untagged),
    }
}

/// How an ENI is used, by its tags and type.
pub(super) fn role_of(pool: &Pool, eni: &CloudEni, card: CardIndex) -> EniRole {
    if eni.id == pool.facts().primary_eni {
        return EniRole::Primary;
    }
    let kind = EniKind::of(&eni.interface_type);
    match left_alone(pool, kind, &eni.tags, card) {
        None => EniRole::Secondary,
        Some(_) => EniRole::Unmanaged,
    }
}
