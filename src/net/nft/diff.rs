//! What separates the table that is from the table that should be.

use std::collections::{BTreeMap, BTreeSet};
use std::net::Ipv4Addr;

use super::facts::{ChainFacts, HookFacts, TableFacts};
use super::model::{AddressRange, Chain};
use crate::net::layout::EniMark;
use crate::net::ruleset::{HostRuleset, mark_of_chain};

/// What to do about the table.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Plan {
    /// It is as it should be.
    Nothing,
    /// It should not be there.
    Remove,
    /// It is missing, foreign, old or meddled with: write it anew, with these pod addresses carried over.
    Replace {
        /// Addresses whose ENI is still wanted.
        pods: BTreeMap<Ipv4Addr, EniMark>,
    },
    /// Its chains stand; only set contents and ENIs differ.
    Amend(Amendment),
}

/// Changes that leave every packet in flight with either the old or the new answer.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Amendment {
    /// Exemptions that are no more.
    pub exempt_out: Vec<AddressRange>,
    /// Exemptions that are new.
    pub exempt_in: Vec<AddressRange>,
    /// Addresses marked for an ENI that is no more, or for none of ours.
    pub pods_out: Vec<Ipv4Addr>,
    /// Links of such ENIs.
    pub links_out: Vec<u32>,
    /// Links that are new or belong to another ENI now.
    pub links_in: Vec<(u32, EniMark)>,
    /// Connection marks that no ENI answers any more.
    pub answers_out: Vec<u32>,
    /// Connection marks that an ENI answers now.
    pub answers_in: Vec<(u32, EniMark)>,
    /// ENIs that are no more.
    pub enis_out: Vec<EniMark>,
    /// ENIs that are new.
    pub enis_in: Vec<EniMark>,
}

/// Compares. `seal` is the comment that a table with the wanted chains carries.
pub fn plan(want: &HostRuleset, seal: &str, facts: Option<&TableFacts>) -> Plan {
    match (facts, want.is_needed()) {
        (None, false) => Plan::Nothing,
        (Some(_), false) => Plan::Remove,
        (None, true) => Plan::Replace {
            pods: BTreeMap::new(),
        },
        (Some(facts), true) if !stands(want, seal, facts) => Plan::Replace {
            pods: carried(want, facts),
        },
        (Some(facts), true) => amendment(want, facts),
    }
}

/// Whether chains, rules and sets are those wanted. The seal vouches for what rules say; the dump is compared too,
/// because a rule added or removed by hand leaves the seal as it was.
fn stands(want: &HostRuleset, seal: &str, facts: &TableFacts) -> bool {
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

fn carried(want: &HostRuleset, facts: &TableFacts) -> BTreeMap<Ipv4Addr, EniMark> {
    let enis = want.marked_enis();
    facts
        .pods
        .iter()
        .filter_map(|(address, mark)| Some((*address, mark.filter(|mark| enis.contains_key(mark))?)))
        .collect()
}

fn amendment(want: &HostRuleset, facts: &TableFacts) -> Plan {
    let enis = want.marked_enis();
    let wanted_exempt = want.exempt_ranges();
    let wanted_links: BTreeMap<u32, EniMark> = enis.iter().map(|(mark, link)| (*link, *mark)).collect();
    let wanted_answers = want.answers();
    let present = present_enis(facts);
    let stays = |mark: &Option<EniMark>| mark.is_some_and(|mark| enis.contains_key(&mark));
    let amendment = Amendment {
        exempt_out: facts.exempt.difference(&wanted_exempt).copied().collect(),
        exempt_in: wanted_exempt.difference(&facts.exempt).copied().collect(),
        pods_out: facts
            .pods
            .iter()
            .filter(|(_, mark)| !stays(mark))
            .map(|(address, _)| *address)
            .collect(),
        links_out: surplus(&facts.links, &wanted_links),
        links_in: missing(&facts.links, &wanted_links),
        answers_out: surplus(&facts.answers, &wanted_answers),
        answers_in: missing(&facts.answers, &wanted_answers),
        enis_out: present
            .iter()
            .filter(|mark| !enis.contains_key(mark))
            .copied()
            .collect(),
        enis_in: enis
            .keys()
            .filter(|mark| !present.contains(mark))
            .copied()
            .collect(),
    };
    if amendment == Amendment::default() {
        Plan::Nothing
    } else {
        Plan::Amend(amendment)
    }
}

fn surplus(found: &BTreeMap<u32, Option<EniMark>>, wanted: &BTreeMap<u32, EniMark>) -> Vec<u32> {
    let stays = |key, mark: &Option<EniMark>| mark.is_some_and(|mark| wanted.get(key) == Some(&mark));
    let elsewhere = found.iter().filter(|(key, mark)| !stays(key, mark));
    elsewhere.map(|(key, _)| *key).collect()
}

fn missing(found: &BTreeMap<u32, Option<EniMark>>, wanted: &BTreeMap<u32, EniMark>) -> Vec<(u32, EniMark)> {
    let absent = wanted
        .iter()
        .filter(|(key, mark)| found.get(key) != Some(&Some(**mark)));
    absent.map(|(key, mark)| (*key, *mark)).collect()
}
