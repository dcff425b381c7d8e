//! Which ENIs are ours to use, and for what: by tags, type and card (reference ipamd 1.6), in one place.
//!
//! The Go daemon's table with two of its faults left out: a trunk is left alone whatever tags say (Q37), and an ENI with
//! another instance's tag is foreign (Q50). Whoever is left alone still takes its place on the instance.

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

/// How an ENI is used, by its tags and type.
pub(super) fn role_of(pool: &Pool, eni: &CloudEni, card: CardIndex) -> EniRole {
    if eni.id == pool.facts().primary_eni {
        return EniRole::Primary;
    }
    let tag = |key: &str| eni.tags.get(key).map(String::as_str);
    let managed = match (tag(tags::NO_MANAGE), tag(tags::INSTANCE)) {
        (Some(no_manage), _) => no_manage != "true",
        (None, Some(instance)) => instance == pool.facts().instance.as_str(),
        (None, None) => pool.policy().manage_untagged,
    };
    let is_usable = EniKind::of(&eni.interface_type).carries_pods() && pool.may_manage(card);
    if is_usable && managed {
        EniRole::Secondary
    } else {
        EniRole::Unmanaged
    }
}
