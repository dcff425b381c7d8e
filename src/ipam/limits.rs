//! What an instance type can carry.

use serde::{Deserialize, Serialize};

use super::ids::InstanceType;

mod table {
    include!(concat!(env!("OUT_DIR"), "/limits_table.rs"));
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
}

impl InstanceLimits {
    /// Addresses an ENI can carry for pods: all but its own.
    pub fn secondary_per_eni(self) -> u32 {
        self.ipv4_per_eni.saturating_sub(1)
    }
}

/// The compiled-in limits of `instance_type` (`data/instance-limits.csv` and its corrections); `None` for a type newer
/// than the table.
pub fn lookup(instance_type: &InstanceType) -> Option<InstanceLimits> {
    let index = table::LIMITS
        .binary_search_by(|(name, ..)| (*name).cmp(instance_type.as_str()))
        .ok()?;
    let (_, enis, ipv4_per_eni, prefixes) = *table::LIMITS.get(index)?;
    Some(InstanceLimits {
        enis,
        ipv4_per_eni,
        prefixes,
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
        for (name, enis) in [
            ("i7ie.48xlarge", 8),
            ("i7ie.metal-48xl", 8),
            ("i8ge.48xlarge", 12),
            ("i8ge.metal-48xl", 12),
        ] {
            assert_eq!(
                lookup(&name.into()),
                Some(InstanceLimits {
                    enis,
                    ipv4_per_eni: 50,
                    prefixes: true,
                })
            );
        }
    }

    #[test]
    fn the_table_is_whole_and_sorted() {
        assert_eq!(table::LIMITS.len(), 1391);
        assert!(table::LIMITS.is_sorted_by(|a, b| a.0 < b.0));
    }
}
