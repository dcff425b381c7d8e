//! What separates the table that is from the table that should be.

use std::collections::{BTreeMap, BTreeSet};
use std::net::Ipv4Addr;

use super::facts::{ChainFacts, HookFacts, TableFacts};
use super::model::{AddressRange, Chain};
use crate::net::layout::EniMark;
use crate::net::ruleset::{HostRuleset, eni_chain, mark_of_chain};

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
    let wanted = want.chains();
    let sets: BTreeSet<String> = want.sets().iter().map(|set| set.name.to_owned()).collect();
    facts.comment.as_deref() == Some(seal)
        && facts.sets == sets
        && wanted.iter().all(|chain| {
            facts
                .chains
                .get(&chain.name)
                .is_some_and(|found| is(found, chain))
        })
        && facts
            .chains
            .iter()
            .filter(|(name, _)| wanted.iter().all(|chain| chain.name != **name))
            .all(|(name, found)| mark_of_chain(name).is_some_and(|mark| is(found, &eni_chain(mark))))
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
    let present: BTreeSet<EniMark> = facts
        .chains
        .keys()
        .filter_map(|name| mark_of_chain(name))
        .collect();
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
        links_out: facts
            .links
            .iter()
            .filter(|(link, mark)| wanted_links.get(link) != mark.as_ref())
            .map(|(link, _)| *link)
            .collect(),
        links_in: wanted_links
            .iter()
            .filter(|(link, mark)| facts.links.get(link) != Some(&Some(**mark)))
            .map(|(link, mark)| (*link, *mark))
            .collect(),
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
