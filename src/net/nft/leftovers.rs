//! What the Go daemon leaves on a node, recognised by the names and comments it is known by.

use std::collections::BTreeSet;

use super::facts::{NamedChain, RuleFacts};
use crate::net::ruleset::TABLE;

/// Something of the Go daemon's that is still there.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Leftover {
    /// Its nft table, under the name that ours has too.
    Table,
    /// One of its iptables chains.
    Chain {
        /// `nat`.
        table: String,
        /// `AWS-SNAT-CHAIN-0` and the like.
        name: String,
    },
    /// One of its iptables rules in a chain it shares with others.
    Rule {
        /// `nat` or `mangle`.
        table: String,
        /// `PREROUTING` or `POSTROUTING`.
        chain: String,
        /// The comment it is known by.
        comment: &'static str,
    },
}

const CHAIN_PREFIXES: [&str; 2] = ["AWS-SNAT-CHAIN", "AWS-CONNMARK-CHAIN"];
/// As iptables shows them; the trailing NUL keeps `AWS, CONNMARK` from matching a longer one.
const COMMENTS: [(&str, &[u8]); 4] = [
    ("AWS SNAT CHAIN", b"AWS SNAT CHAIN\0"),
    ("AWS, primary ENI", b"AWS, primary ENI\0"),
    ("AWS, outbound connections", b"AWS, outbound connections\0"),
    ("AWS, CONNMARK", b"AWS, CONNMARK\0"),
];

/// Its chains among all of the family.
pub(super) fn chains(chains: &[NamedChain]) -> Vec<Leftover> {
    chains
        .iter()
        .filter(|chain| is_go_chain(&chain.name))
        .map(|chain| Leftover::Chain {
            table: chain.table.clone(),
            name: chain.name.clone(),
        })
        .collect()
}

/// The tables in which iptables-nft would keep its rules.
pub(super) fn iptables_tables(chains: &[NamedChain]) -> BTreeSet<String> {
    chains
        .iter()
        .map(|chain| chain.table.clone())
        .filter(|table| table == "nat" || table == "mangle")
        .collect()
}

/// Whether a rule is one of its own in a shared chain. iptables-nft keeps the comment inside a match expression.
pub(super) fn rule(table: &str, rule: RuleFacts) -> Option<Leftover> {
    if is_go_chain(&rule.chain) {
        return None; // reported with its chain
    }
    let carries = |bytes: &[u8]| {
        rule.expressions
            .windows(bytes.len())
            .any(|window| window == bytes)
    };
    let (comment, _) = COMMENTS.iter().find(|(_, bytes)| carries(bytes))?;
    Some(Leftover::Rule {
        table: table.to_owned(),
        chain: rule.chain,
        comment,
    })
}

/// Whether the table of our name, when it has no seal of ours, has the chains of its own.
pub(super) fn is_go_table(chains: &[NamedChain]) -> bool {
    chains
        .iter()
        .any(|chain| chain.table == TABLE && (chain.name == "nat-prerouting" || chain.name == "snat-mark"))
}

fn is_go_chain(name: &str) -> bool {
    CHAIN_PREFIXES.iter().any(|prefix| name.starts_with(prefix))
}

/// Whether iptables-legacy has tables here, into which `nf_tables` can't look.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct LegacyTables(pub BTreeSet<String>);

impl LegacyTables {
    /// Reads `/proc/thread-self/net/ip_tables_names` of the calling thread's namespace; no file, no tables.
    pub fn read() -> Self {
        let text = std::fs::read_to_string("/proc/thread-self/net/ip_tables_names").unwrap_or_default();
        Self(text.lines().map(str::to_owned).collect())
    }
}

#[cfg(test)]
mod tests {
    use super::super::facts::HookFacts;
    use super::*;

    fn chain(table: &str, name: &str) -> NamedChain {
        NamedChain {
            table: table.into(),
            name: name.into(),
            hook: HookFacts::Regular,
        }
    }

    #[test]
    fn chains_are_known_by_name_and_retired_ones_too() {
        let all = [
            chain("nat", "PREROUTING"),
            chain("nat", "AWS-SNAT-CHAIN-0"),
            chain("nat", "AWS-CONNMARK-CHAIN-3"),
            chain("nat", "KUBE-SERVICES"),
            chain("filter", "FORWARD"),
        ];
        let names: Vec<_> = chains(&all)
            .into_iter()
            .map(|leftover| match leftover {
                Leftover::Chain { name, .. } => name,
                other => panic!("{other:?}"),
            })
            .collect();
        assert_eq!(names, ["AWS-SNAT-CHAIN-0", "AWS-CONNMARK-CHAIN-3"]);
        assert_eq!(iptables_tables(&all), ["nat".to_owned()].into());
        assert!(!is_go_table(&all));
        assert!(is_go_table(&[chain("aws-cni", "snat-mark")]));
    }

    #[test]
    fn rules_are_known_by_their_comment() {
        let with = |chain: &str, comment: &[u8]| {
            // As in an xt `comment` match: 256 bytes, the text first.
            let mut info = [0_u8; 256];
            info[..comment.len()].copy_from_slice(comment);
            let rule_facts = RuleFacts {
                chain: chain.into(),
                handle: 7,
                comment: None,
                expressions: [b"comment\0".as_slice(), &info].concat(),
            };
            rule("mangle", rule_facts)
        };
        let known = Leftover::Rule {
            table: "mangle".into(),
            chain: "PREROUTING".into(),
            comment: "AWS, primary ENI",
        };
        assert_eq!(with("PREROUTING", b"AWS, primary ENI"), Some(known));
        assert_eq!(with("PREROUTING", b"AWS, primary ENI of another kind"), None);
        assert_eq!(with("PREROUTING", b"kubernetes service portals"), None);
        assert_eq!(
            with("AWS-SNAT-CHAIN-0", b"AWS SNAT CHAIN"),
            None,
            "its chain is reported"
        );
    }
}
