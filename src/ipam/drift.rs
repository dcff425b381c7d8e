//! Witnesses that contradict each other: which do now and since when, and how often each kind has come up.

use std::collections::{BTreeMap, BTreeSet};
use std::net::Ipv6Addr;

use serde_json::{Value, json};

use super::cidr::Ipv4Cidr;
use super::cidr6::Ipv6Cidr;
use super::ids::{EniId, Tick};
use super::verdict::Drift;

/// What witnesses contradict each other over.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Subject {
    Eni(EniId),
    Cidr(Ipv4Cidr),
    /// An ENI's /80.
    Block(Ipv6Cidr),
    /// An address of one.
    Address(Ipv6Addr),
}

impl std::fmt::Display for Subject {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Eni(id) => write!(f, "{id}"),
            Self::Cidr(cidr) if cidr.is_host() => write!(f, "{}", cidr.base()),
            Self::Cidr(cidr) => write!(f, "{cidr}"),
            Self::Block(prefix) => write!(f, "{prefix}"),
            Self::Address(address) => write!(f, "{address}"),
        }
    }
}

/// Counted once when it comes up, not each time it is looked at. As many entries at most as there are ENIs, addresses
/// and what IMDS and the kernel list besides.
#[derive(Debug, Clone, Default)]
pub(super) struct Drifts {
    open: BTreeMap<(Subject, Drift), Tick>,
    counted: BTreeMap<Drift, u64>,
}

impl Drifts {
    /// Everything that is contradictory about a subject now; returns what is new.
    pub(super) fn note(
        &mut self,
        subject: &Subject,
        found: impl Iterator<Item = Drift>,
        now: Tick,
    ) -> Vec<Drift> {
        let found: BTreeSet<Drift> = found.collect();
        if self.open.is_empty() && found.is_empty() {
            // As nearly always: every address is looked at each time the kernel is read.
            return Vec::new();
        }
        for kind in Drift::ALL {
            if !found.contains(kind) {
                self.open.remove(&(subject.clone(), *kind));
            }
        }
        let is_new = |kind: &Drift| {
            let known = self.open.insert((subject.clone(), *kind), now);
            if let Some(since) = known {
                self.open.insert((subject.clone(), *kind), since);
            }
            known.is_none()
        };
        let new: Vec<Drift> = found.into_iter().filter(is_new).collect();
        for kind in &new {
            let count = self.counted.entry(*kind).or_default();
            *count = count.saturating_add(1);
        }
        new
    }

    /// Whether anybody contradicts anybody over an address or prefix, by the last look.
    pub(super) fn is_open(&self, cidr: Ipv4Cidr) -> bool {
        if self.open.is_empty() {
            return false;
        }
        let first = Drift::ALL.iter().min().copied();
        let from = first.map(|kind| (Subject::Cidr(cidr), kind));
        let next = from.and_then(|from| self.open.range(from..).next());
        next.is_some_and(|((subject, _), _)| *subject == Subject::Cidr(cidr))
    }

    /// Over what witnesses contradict each other now, once for each kind.
    pub(super) fn subjects(&self) -> impl Iterator<Item = Subject> {
        self.open.keys().map(|(subject, _)| subject.clone())
    }

    /// How often each kind has come up since the start.
    pub(super) fn counted(&self) -> BTreeMap<&'static str, u64> {
        let named = |(kind, count): (&Drift, &u64)| (kind.text(), *count);
        self.counted.iter().map(named).collect()
    }

    /// For people.
    pub(super) fn dump(&self, now: Tick) -> Value {
        let entry = |((subject, kind), since): (&(Subject, Drift), &Tick)| json!({"of": subject.to_string(), "kind": kind.text(), "for_s": now.since(*since).as_secs()});
        json!({"counted": self.counted(), "now": self.open.iter().map(entry).collect::<Vec<_>>()})
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_contradiction_is_counted_when_it_comes_up_and_again_when_it_comes_back() {
        let mut drifts = Drifts::default();
        let subject = Subject::Eni("eni-1".into());
        let mut note = |found: &[Drift]| drifts.note(&subject, found.iter().copied(), Tick(1));
        assert_eq!(note(&[Drift::ImdsOmitsEni]), [Drift::ImdsOmitsEni]);
        assert_eq!(note(&[Drift::ImdsOmitsEni]), []);
        assert_eq!(note(&[]), []);
        assert_eq!(note(&[Drift::ImdsOmitsEni]), [Drift::ImdsOmitsEni]);
        assert_eq!(drifts.counted()["imds-omits-eni"], 2);
    }
}
