//! What an instance type can carry, read from the repository's own tables.

use std::collections::BTreeMap;

/// The table that the product compiles in, too.
const TABLE: &str = include_str!("../../../../data/instance-limits.csv");

/// Rows that replace those of the table.
const CORRECTIONS: &str = include_str!("../../../../data/instance-limits-corrections.csv");

/// A network card of an instance type.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct NetworkCard {
    /// Its index.
    pub index: u32,
    /// How many ENIs it carries.
    pub enis: u32,
}

/// An instance type as far as networking is concerned.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct InstanceType {
    /// Such as `m5.large`.
    pub name: String,
    /// IPv4 addresses and prefixes an ENI carries, its own address included; IPv6 has a budget of the same size.
    pub addresses_per_eni: u32,
    /// `nitro`, `xen` or `unknown`.
    pub hypervisor: String,
    /// Whether it is a whole machine.
    pub bare_metal: bool,
    /// Its cards, at least one.
    pub cards: Vec<NetworkCard>,
    /// Where the primary ENI sits.
    pub default_card: u32,
}

impl InstanceType {
    /// ENIs on all cards together: `MaximumNetworkInterfaces` of `DescribeInstanceTypes`.
    pub fn enis(&self) -> u32 {
        self.cards.iter().map(|card| card.enis).sum()
    }

    /// Prefixes need Nitro
    /// (<https://docs.aws.amazon.com/AWSEC2/latest/UserGuide/ec2-prefix-eni.html>, considerations).
    pub fn prefixes_supported(&self) -> bool {
        self.bare_metal || self.hypervisor == "nitro"
    }
}

/// All instance types by name.
pub fn builtin() -> BTreeMap<String, InstanceType> {
    let rows = |table: &'static str| table.lines().skip(1);
    rows(TABLE)
        .chain(rows(CORRECTIONS))
        .filter_map(parse)
        .map(|kind| (kind.name.clone(), kind))
        .collect()
}

fn parse(line: &str) -> Option<InstanceType> {
    let mut fields = line.split(',');
    let name = fields.next()?.to_owned();
    let _default_card_enis = fields.next()?;
    let addresses_per_eni = fields.next()?.parse().ok()?;
    let hypervisor = fields.next()?.to_owned();
    let bare_metal = fields.next()? == "true";
    let cards = fields.next()?.split(';').map(parse_card).collect::<Option<_>>()?;
    let default_card = fields.next()?.trim().parse().ok()?;
    Some(InstanceType {
        name,
        addresses_per_eni,
        hypervisor,
        bare_metal,
        cards,
        default_card,
    })
}

fn parse_card(text: &str) -> Option<NetworkCard> {
    let (index, enis) = text.split_once(':')?;
    Some(NetworkCard {
        index: index.parse().ok()?,
        enis: enis.parse().ok()?,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_row_is_understood() {
        let types = builtin();
        assert_eq!(types.len(), TABLE.lines().count() - 1);
        assert_eq!(
            (types["m5.large"].enis(), types["m5.large"].addresses_per_eni),
            (3, 10)
        );
        assert_eq!(types["p5.48xlarge"].enis(), 64);
        assert_eq!(types["i7ie.48xlarge"].cards.len(), 2, "corrected");
        assert!(!types["m4.4xlarge"].prefixes_supported());
        assert!(types["a1.metal"].prefixes_supported());
    }
}
