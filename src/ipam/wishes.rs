//! Which network card's address a sandbox wants, and on which card those who wait are counted.

use std::collections::{BTreeMap, BTreeSet};

use serde::{Deserialize, Serialize};

use super::ids::{CardIndex, SandboxKey};
use super::plan::{Hindrance, Report};
use super::pool::Pool;

/// Which network card's address a sandbox's interface wants.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Wish {
    /// Any card's, the first one's first (reference ipamd 106).
    #[default]
    Any,
    /// This card's: one interface of a pod that has one on each.
    Card(CardIndex),
}

impl Wish {
    /// Whether an address of this card will do.
    pub fn takes(self, card: CardIndex) -> bool {
        match self {
            Self::Any => true,
            Self::Card(wanted) => wanted == card,
        }
    }

    /// The report on what it can get.
    pub(super) fn report(self, report: &Report) -> &Report {
        match self {
            Self::Any => report,
            Self::Card(card) => report.of(card),
        }
    }
}

/// Sandboxes that wait, by what they want; each once, however many clients ask for it.
pub(super) struct Waiting {
    /// For a given card.
    given: BTreeMap<CardIndex, u32>,
    /// For any: counted on the first card, and on the next ones as far as it has no place for them.
    any: u32,
}

impl Waiting {
    pub(super) fn of(pool: &Pool) -> Self {
        let mut seen: BTreeSet<&SandboxKey> = BTreeSet::new();
        let mut waiting = Self {
            given: BTreeMap::new(),
            any: 0,
        };
        for request in pool.memory.waiters.values() {
            if seen.insert(&request.key) {
                let count = match request.wish {
                    Wish::Any => &mut waiting.any,
                    Wish::Card(card) => waiting.given.entry(card).or_default(),
                };
                *count = count.saturating_add(1);
            }
        }
        waiting
    }

    /// How many are counted on this card, when cards are asked in order.
    pub(super) fn on(&self, card: CardIndex) -> u32 {
        let given = self.given.get(&card).copied().unwrap_or_default();
        given.saturating_add(self.any)
    }

    /// All of them.
    pub(super) fn total(&self) -> u32 {
        self.given.values().copied().fold(self.any, u32::saturating_add)
    }

    /// Of those counted on a card so many find no place there: the next one is to grow for them.
    pub(super) fn pass_on(&mut self, unmet: u32) {
        self.any = self.any.min(unmet);
    }
}

impl Report {
    /// One for all cards, on which so many wait: for any card's address somebody is counted on each that is to grow for
    /// him.
    pub(super) fn of_cards(cards: BTreeMap<CardIndex, Self>, waiting: u32) -> Self {
        if cards.len() <= 1 {
            return cards.into_values().next().unwrap_or_default();
        }
        let mut all = Self::default();
        for report in cards.values() {
            all.add(report);
        }
        all.waiting = waiting;
        all.cards = cards;
        all
    }

    fn add(&mut self, of_card: &Self) {
        let sums = [
            (&mut self.free, of_card.free),
            (&mut self.left_over, of_card.left_over),
            (&mut self.assigned, of_card.assigned),
            (&mut self.cooling, of_card.cooling),
            (&mut self.quarantined, of_card.quarantined),
            (&mut self.coming, of_card.coming),
            (&mut self.warm, of_card.warm),
            (&mut self.short, of_card.short),
            (&mut self.enis, of_card.enis),
        ];
        for (sum, more) in sums {
            *sum = sum.saturating_add(more);
        }
        let new = |known: &[Hindrance], one: &Hindrance| !known.contains(one);
        let hindrances = of_card.hindrances.iter().filter(|one| new(&self.hindrances, one));
        let hindrances: Vec<Hindrance> = hindrances.cloned().collect();
        self.hindrances.extend(hindrances);
        // These are about the whole node, and the same in every card's.
        self.delays.clone_from(&of_card.delays);
        self.losses.clone_from(&of_card.losses);
    }

    /// What keeps each card from more; without its name what holds for all of them.
    pub(super) fn hindrances_by_card(&self) -> impl Iterator<Item = (Option<CardIndex>, &Hindrance)> {
        let everywhere = |one: &&Hindrance| self.cards.values().all(|card| card.hindrances.contains(*one));
        let general = self.hindrances.iter().filter(everywhere).map(|one| (None, one));
        let of_card = self.cards.iter().flat_map(move |(card, report)| {
            let own = report.hindrances.iter().filter(move |one| !everywhere(one));
            own.map(|one| (Some(*card), one))
        });
        general.chain(of_card)
    }

    /// The report of a card; where only one is managed, that is this one.
    pub fn of(&self, card: CardIndex) -> &Self {
        self.cards.get(&card).unwrap_or(self)
    }
}
