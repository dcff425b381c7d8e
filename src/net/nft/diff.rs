//! What separates the table that is from the table that should be.

use std::collections::{BTreeMap, BTreeSet};

use super::facts::{ChainFacts, HookFacts, TableFacts};
use super::model::{Chain, Datum, Element, SetName, Verdict};
use crate::net::layout::EniMark;
use crate::net::ruleset::{Ruleset, mark_of_chain};

/// Elements by the set they are in.
pub type Contents = BTreeMap<SetName, BTreeSet<Element>>;

/// What to do about the table.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Plan {
    /// It is as it should be.
    Nothing,
    /// It is missing, foreign, old or meddled with: write it anew, with what was published carried over.
    Replace {
        /// What still leads somewhere.
        published: Contents,
    },
    /// Its chains stand; only set contents and ENIs differ.
    Amend(Amendment),
}

/// Changes that leave every packet in flight with either the old or the new answer.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Amendment {
    /// Elements that are no more, or lead elsewhere.
    pub gone: Contents,
    /// Elements that are new.
    pub new: Contents,
    /// ENIs that are no more.
    pub enis_out: Vec<EniMark>,
    /// ENIs that are new.
    pub enis_in: Vec<EniMark>,
}

/// Compares. `seal` is the comment that a table with the wanted chains carries.
pub fn plan(want: &impl Ruleset, seal: &str, facts: Option<&TableFacts>) -> Plan {
    match facts {
        None => Plan::Replace {
            published: Contents::new(),
        },
        Some(facts) if !stands(want, seal, facts) => Plan::Replace {
            published: published(want, facts).0,
        },
        Some(facts) => amendment(want, facts),
    }
}

/// Whether chains, rules and sets are those wanted. The seal vouches for what rules say; the dump is compared too,
/// because a rule added or removed by hand leaves the seal as it was.
fn stands(want: &impl Ruleset, seal: &str, facts: &TableFacts) -> bool {
    let present = present_enis(facts);
    let mut wanted = want.chains();
    wanted.extend(present.into_iter().flat_map(|mark| want.eni_chains(mark)));
    let sets: BTreeSet<String> = want.sets().iter().map(|set| set.name.to_owned()).collect();
    facts.comment.as_deref() == Some(seal)
        && facts.sets == sets
        && facts.chains.len() == wanted.len()
        && wanted.iter().all(|chain| {
            let found = facts.chains.get(&chain.name);
            found.is_some_and(|found| is(found, chain))
        })
}

/// ENIs of which there is a chain.
fn present_enis(facts: &TableFacts) -> BTreeSet<EniMark> {
    let names = facts.chains.keys();
    names.filter_map(|name| mark_of_chain(name)).collect()
}

fn is(found: &ChainFacts, wanted: &Chain) -> bool {
    let hook = wanted.hook.map_or(HookFacts::Regular, HookFacts::Base);
    let comments = wanted.rules.iter().map(|rule| Some(rule.comment.as_str()));
    found.hook == hook && found.rules.iter().map(Option::as_deref).eq(comments)
}

/// What is in the sets whose contents do not follow from the ruleset: what may stay there, and what may not.
fn published(want: &impl Ruleset, facts: &TableFacts) -> (Contents, Contents) {
    let ours = want.contents();
    let enis = want.eni_marks();
    let chains = enis.iter().flat_map(|mark| want.eni_chains(*mark));
    let chains: BTreeSet<String> = chains.map(|chain| chain.name).collect();
    let leads = |element: &Element| match element {
        Element::Range(_) | Element::Entry(_, Datum::Nothing | Datum::Endpoint(..)) => true,
        Element::Entry(_, Datum::Verdict(Verdict::Jump(chain))) => chains.contains(chain),
        Element::Entry(_, Datum::Verdict(_) | Datum::Foreign) => false,
    };
    let mut split = (Contents::new(), Contents::new());
    for set in want.sets().iter().filter(|set| !ours.contains_key(set.name)) {
        let Some(found) = facts.contents.get(set.name) else {
            continue;
        };
        let (stays, goes) = found.iter().cloned().partition(leads);
        keep(&mut split.0, set.name, stays);
        keep(&mut split.1, set.name, goes);
    }
    split
}

fn keep(contents: &mut Contents, set: SetName, elements: BTreeSet<Element>) {
    if !elements.is_empty() {
        contents.insert(set, elements);
    }
}

fn amendment(want: &impl Ruleset, facts: &TableFacts) -> Plan {
    let (_, mut gone) = published(want, facts);
    let mut new = Contents::new();
    for (set, wanted) in want.contents() {
        let (gone_here, new_here) = difference(facts.contents.get(set), &wanted);
        keep(&mut gone, set, gone_here);
        keep(&mut new, set, new_here);
    }
    let (enis, present) = (want.eni_marks(), present_enis(facts));
    let amendment = Amendment {
        gone,
        new,
        enis_out: present.difference(&enis).copied().collect(),
        enis_in: enis.difference(&present).copied().collect(),
    };
    if amendment == Amendment::default() {
        Plan::Nothing
    } else {
        Plan::Amend(amendment)
    }
}

/// What has to go and what has to come, so that a set holds what is wanted.
pub fn difference(
    found: Option<&BTreeSet<Element>>,
    wanted: &BTreeSet<Element>,
) -> (BTreeSet<Element>, BTreeSet<Element>) {
    let nothing = BTreeSet::new();
    let found = found.unwrap_or(&nothing);
    (
        found.difference(wanted).cloned().collect(),
        wanted.difference(found).cloned().collect(),
    )
}
