//! What the Go daemon leaves on a node, recognised by the names and comments it is known by.

use std::collections::BTreeSet;

use super::facts::{NamedChain, RuleFacts, TableFacts};
use super::table::is_seal;

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
pub(super) fn tables_with_rules(chains: &[NamedChain]) -> BTreeSet<String> {
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

/// Whether the table of our name is its own.
pub(super) fn table(facts: &TableFacts) -> Option<Leftover> {
    let ours = facts.comment.as_deref().is_some_and(is_seal);
    let known = facts.chains.contains_key("nat-prerouting") || facts.chains.contains_key("snat-mark");
    (!ours && known).then_some(Leftover::Table)
}

fn is_go_chain(name: &str) -> bool {
    CHAIN_PREFIXES.iter().any(|prefix| name.starts_with(prefix))
}

/// Whether iptables-legacy has tables here, into which nf_tables can't look.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct LegacyTables(pub BTreeSet<String>);

impl LegacyTables {
    /// Reads `/proc/thread-self/net/ip_tables_names` of the calling thread's namespace; no file, no tables.
    pub fn read() -> Self {
        let text = std::fs::read_to_string("/proc/thread-self/net/ip_tables_names").unwrap_or_default();
        Self(text.lines().map(str::to_owned).collect())
    }
}
