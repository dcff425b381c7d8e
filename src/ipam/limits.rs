//! What an instance type can carry.

use serde::{Deserialize, Serialize};

use super::ids::{CardIndex, InstanceType};

mod table {
    /// Type, ENIs on the first card, IPv4 addresses an ENI, prefixes, and the ENIs of other cards.
    type Row = (&'static str, u32, u32, bool, &'static [(u32, u32)]);

    include!(concat!(env!("OUT_DIR"), "/limits_table.rs"));
}

/// The most network cards any type has is 32 (`p5.48xlarge`); what EC2 may list beyond that is left alone.
const MOST_CARDS: usize = 32;

/// How many ENIs the cards beyond the default one can carry, by card index; 0 where there is no such card.
///
/// Of a fixed size, so that limits stay a plain value.
#[derive(Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(into = "Vec<u8>", from = "Vec<u8>")]
pub struct FurtherCards([u8; MOST_CARDS]);

impl FurtherCards {
    /// None: the instance has one card.
    pub const NONE: Self = Self([0; MOST_CARDS]);

    /// Of a list of cards and the ENIs each carries.
    pub fn new(cards: impl IntoIterator<Item = (CardIndex, u32)>) -> Self {
        let mut all = Self::NONE;
        for (card, enis) in cards {
            let place = usize::try_from(card.0).ok().and_then(|at| all.0.get_mut(at));
            if let (Some(place), false) = (place, card.is_first()) {
                *place = u8::try_from(enis).unwrap_or(u8::MAX);
            }
        }
        all
    }

    fn enis(self, card: CardIndex) -> u32 {
        let at = usize::try_from(card.0).ok();
        at.and_then(|at| self.0.get(at))
            .map_or(0, |enis| u32::from(*enis))
    }

    fn are_none(&self) -> bool {
        *self == Self::NONE
    }

    fn cards(self) -> impl Iterator<Item = CardIndex> {
        let all = (0_u32..).map(CardIndex).zip(self.0);
        all.filter(|(_, enis)| *enis > 0).map(|(card, _)| card)
    }
}

impl Default for FurtherCards {
    fn default() -> Self {
        Self::NONE
    }
}

impl std::fmt::Debug for FurtherCards {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let entries = self.cards().map(|card| (card.0, self.enis(card)));
        f.debug_map().entries(entries).finish()
    }
}

impl From<FurtherCards> for Vec<u8> {
    fn from(cards: FurtherCards) -> Self {
        let used = cards
            .0
            .iter()
            .rposition(|enis| *enis > 0)
            .map_or(0, |last| last + 1);
        cards.0.into_iter().take(used).collect()
    }
}

impl From<Vec<u8>> for FurtherCards {
    fn from(enis: Vec<u8>) -> Self {
        Self::new((0..).map(CardIndex).zip(enis.into_iter().map(u32::from)))
    }
}

/// ENI and address limits of an instance type (EC2 `DescribeInstanceTypes`, `NetworkInfo`).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct InstanceLimits {
    /// ENIs the default network card can carry, the primary included.
    pub enis: u32,
    /// IPv4 addresses an ENI can carry, its own included.
    pub ipv4_per_eni: u32,
    /// Whether its ENIs can carry /28 prefixes: Nitro and bare metal can
    /// (<https://docs.aws.amazon.com/AWSEC2/latest/UserGuide/ec2-prefix-eni.html>).
    #[serde(default)]
    pub prefixes: bool,
    /// What its other network cards can carry.
    #[serde(default, skip_serializing_if = "FurtherCards::are_none")]
    pub further: FurtherCards,
}

impl InstanceLimits {
    /// Addresses an ENI can carry for pods: all but its own.
    pub fn secondary_per_eni(self) -> u32 {
        self.ipv4_per_eni.saturating_sub(1)
    }

    /// ENIs a network card can carry, on the first one the primary included; 0 where there is no such card.
    pub fn enis_on(self, card: CardIndex) -> u32 {
        if card.is_first() {
            self.enis
        } else {
            self.further.enis(card)
        }
    }

    /// The network cards there are besides the first.
    pub fn further_cards(self) -> impl Iterator<Item = CardIndex> {
        self.further.cards()
    }
}

/// The compiled-in limits of `instance_type` (`data/instance-limits.csv` and its corrections); `None` for a type newer
/// than the table.
pub fn lookup(instance_type: &InstanceType) -> Option<InstanceLimits> {
    let index = table::LIMITS
        .binary_search_by(|(name, ..)| (*name).cmp(instance_type.as_str()))
        .ok()?;
    let (_, enis, ipv4_per_eni, prefixes, cards) = *table::LIMITS.get(index)?;
    Some(InstanceLimits {
        enis,
        ipv4_per_eni,
        prefixes,
        further: FurtherCards::new(cards.iter().map(|(card, enis)| (CardIndex(*card), *enis))),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Spot checks of the reference, ipamd §10.
    #[test]
    fn known_types() {
        let limits = |name: &str| lookup(&name.into()).map(|limits| (limits.enis, limits.ipv4_per_eni));
        assert_eq!(limits("t3.medium"), Some((3, 6)));
        assert_eq!(limits("m5.large"), Some((3, 10)));
        assert_eq!(limits("m4.4xlarge"), Some((8, 30)));
        assert_eq!(limits("p3dn.24xlarge"), Some((15, 50)));
        assert_eq!(limits("p5.48xlarge"), Some((2, 50)));
        assert_eq!(limits("z9.metal"), None);
        assert_eq!(limits(""), None);
        let prefixes = |name: &str| lookup(&name.into()).map(|limits| limits.prefixes);
        assert_eq!(prefixes("m5.large"), Some(true));
        assert_eq!(prefixes("m5.metal"), Some(true), "ipamd 9: bare metal");
        assert_eq!(prefixes("m4.4xlarge"), Some(false), "ipamd 10: Xen");
    }

    /// The table is older than these types' second card: what EC2 lets card 0 carry is what counts.
    #[test]
    fn types_whose_second_card_the_table_does_not_know_are_corrected() {
        for (name, enis, further) in [
            ("i7ie.48xlarge", 8, 7),
            ("i7ie.metal-48xl", 8, 7),
            ("i8ge.48xlarge", 12, 12),
            ("i8ge.metal-48xl", 12, 12),
        ] {
            assert_eq!(
                lookup(&name.into()),
                Some(InstanceLimits {
                    enis,
                    ipv4_per_eni: 50,
                    prefixes: true,
                    further: FurtherCards::new([(CardIndex(1), further)]),
                })
            );
        }
    }

    /// Quirk Q19: each card has a limit of its own. Spot checks of the reference, ipamd 9.
    #[test]
    fn every_card_has_its_own_limit() {
        let cards = |name: &str| {
            let limits = lookup(&name.into()).unwrap();
            let further = limits.further_cards();
            further
                .map(|card| (card.0, limits.enis_on(card)))
                .collect::<Vec<_>>()
        };
        assert_eq!(cards("m5.large"), []);
        assert_eq!(cards("p4d.24xlarge"), [(1, 15), (2, 15), (3, 15)]);
        assert_eq!(cards("hpc6id.32xlarge"), [(1, 1)]);
        let p5 = cards("p5.48xlarge");
        assert_eq!(
            (p5.len(), p5.first(), p5.last()),
            (31, Some(&(1, 2)), Some(&(31, 2)))
        );
        let p5 = lookup(&"p5.48xlarge".into()).unwrap();
        assert_eq!((p5.enis_on(CardIndex(0)), p5.enis_on(CardIndex(32))), (2, 0));
        let several = table::LIMITS.iter().filter(|(.., cards)| !cards.is_empty());
        assert_eq!(
            several.count(),
            71,
            "67 of the table, and four corrections that give one a second card"
        );
    }

    #[test]
    fn limits_are_stored_as_ever_where_there_is_one_card_and_read_without_the_others() {
        let one = lookup(&"m5.large".into()).unwrap();
        let text = serde_json::to_string(&one).unwrap();
        assert_eq!(text, r#"{"enis":3,"ipv4_per_eni":10,"prefixes":true}"#);
        assert_eq!(serde_json::from_str::<InstanceLimits>(&text).unwrap(), one);
        let four = lookup(&"p4d.24xlarge".into()).unwrap();
        let text = serde_json::to_string(&four).unwrap();
        assert_eq!(
            text,
            r#"{"enis":15,"ipv4_per_eni":50,"prefixes":true,"further":[0,15,15,15]}"#
        );
        assert_eq!(serde_json::from_str::<InstanceLimits>(&text).unwrap(), four);
    }

    #[test]
    fn the_table_is_whole_and_sorted() {
        assert_eq!(table::LIMITS.len(), 1391);
        assert!(table::LIMITS.is_sorted_by(|a, b| a.0 < b.0));
    }
}
