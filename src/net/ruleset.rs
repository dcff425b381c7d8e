//! The node's nftables tables `ip aws-cni` and `ip6 aws-cni` as values: what they must contain, and what separates them
//! from what is there.
//!
//! Four jobs: NodePort answers leave by the ENI that the request came by, traffic that leaves the VPC gets the node's
//! address, a packet of a pod is marked with its ENI so that one routing rule per ENI (not per pod) sends it there, and
//! hostPorts lead to pods, which is all that the IPv6 table does.

use std::collections::{BTreeMap, BTreeSet};
use std::net::Ipv4Addr;

use super::layout::{ENI_MARK_MASK, EniMark, RuleLayout};
use super::nft::model::{
    AddressRange, Chain, Datum, Element, Key, KeyKind, Set, SetKind, SetName, SnatPorts, Verdict,
};
use crate::ipam::cidr::Ipv4Cidr;
use crate::ipam::ip::IpFamily;

mod chains;
mod ports;

pub use chains::{eni_chain_name, mark_of_chain};
pub use ports::{HOST_PORT, HOST_PORT_AT, HOST_PORT_POD, HostRuleset6};

/// The table's name, in family `ip`. The Go daemon uses the same one, so the two never run side by side unnoticed.
pub const TABLE: &str = "aws-cni";
/// Destinations that are reached with the pod's own address.
pub const EXEMPT: Set = Set {
    name: "exempt",
    key: KeyKind::Address,
    kind: SetKind::Intervals,
};
/// A pod address of a secondary ENI: the chain that marks for its ENI.
pub const POD_ENI: Set = Set {
    name: "pod-eni",
    key: KeyKind::Address,
    kind: SetKind::Verdicts,
};
/// The link of a secondary ENI: the chain that marks for it.
pub const ENI_LINK: Set = Set {
    name: "eni-link",
    key: KeyKind::IfIndex,
    kind: SetKind::Verdicts,
};
/// The mark of a connection that came by a secondary ENI: the chain that marks for it.
pub const ENI_ANSWER: Set = Set {
    name: "eni-answer",
    key: KeyKind::Mark,
    kind: SetKind::Verdicts,
};
/// Every set a table of ours may have.
pub const SETS: [Set; 7] = [
    EXEMPT,
    POD_ENI,
    ENI_LINK,
    ENI_ANSWER,
    HOST_PORT,
    HOST_PORT_AT,
    HOST_PORT_POD,
];

/// What a table must be.
pub trait Ruleset {
    /// Its family.
    fn family(&self) -> IpFamily;

    /// Refuses combinations that would do something else than asked.
    ///
    /// # Errors
    /// Which one.
    fn check(&self) -> Result<(), RulesetError> {
        Ok(())
    }

    /// Its sets, before any element.
    fn sets(&self) -> Vec<Set>;

    /// The chains that don't come and go with ENIs, in an order in which each is jumped to only after it exists.
    fn chains(&self) -> Vec<Chain>;

    /// The chains that come with an ENI, each jumped to only after it exists.
    fn eni_chains(&self, _mark: EniMark) -> Vec<Chain> {
        Vec::new()
    }

    /// The ENIs that have such chains.
    fn eni_marks(&self) -> BTreeSet<EniMark> {
        BTreeSet::new()
    }

    /// What the sets hold. What those hold that are missing here is published apart from the ruleset.
    fn contents(&self) -> BTreeMap<SetName, BTreeSet<Element>> {
        BTreeMap::new()
    }
}

/// Everything the table depends on.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HostRuleset {
    /// The one mark of connections that belong to the primary ENI (`AWS_VPC_K8S_CNI_CONNMARK`).
    pub connmark: u32,
    /// How host veths are named (`AWS_VPC_K8S_CNI_VETHPREFIX`).
    pub veth_prefix: String,
    /// The node's primary address, the source of what leaves the VPC.
    pub node_ip: Ipv4Addr,
    /// VPC networks and exclusions: reached with the pod's own address.
    pub exempt: BTreeSet<Ipv4Cidr>,
    /// How ports are chosen; `None` when others translate (`AWS_VPC_K8S_CNI_EXTERNALSNAT`).
    pub snat: Option<SnatPorts>,
    /// Whether NodePort answers are steered to the ENI that the request came by.
    pub node_port: bool,
    /// The index of the primary ENI's link.
    pub primary_link: u32,
    /// The secondary ENIs' marks and links; unused in the per-pod layout.
    pub enis: BTreeMap<EniMark, u32>,
    /// Whether ENIs are chosen by mark or by per-pod rules.
    pub layout: RuleLayout,
}

/// Why a [`HostRuleset`] can't be programmed.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum RulesetError {
    /// SNAT without exemptions would cut pods off from the VPC.
    #[error(
        "no VPC network is known, so every pod address would be translated; check IMDS vpc-ipv4-cidr-blocks"
    )]
    NothingExempt,
    /// A mark of zero marks nothing.
    #[error("the connection mark is zero; set AWS_VPC_K8S_CNI_CONNMARK to a value with a bit")]
    ZeroConnmark,
    /// The two marks share bits.
    #[error(
        "connection mark {connmark:#x} overlaps the ENI marks {ENI_MARK_MASK:#x}; choose AWS_VPC_K8S_CNI_CONNMARK \
         outside of them or RULE_LAYOUT=per-pod"
    )]
    MarksOverlap {
        /// The configured mark.
        connmark: u32,
    },
    /// An empty prefix would match every link.
    #[error("the veth prefix is empty, so every link would count as a pod's")]
    EmptyPrefix,
}

impl HostRuleset {
    /// Refuses combinations that would do something else than asked.
    pub fn check(&self) -> Result<(), RulesetError> {
        if self.connmark == 0 {
            return Err(RulesetError::ZeroConnmark);
        }
        if self.layout == RuleLayout::Shared && self.connmark & ENI_MARK_MASK != 0 {
            return Err(RulesetError::MarksOverlap {
                connmark: self.connmark,
            });
        }
        if self.veth_prefix.is_empty() {
            return Err(RulesetError::EmptyPrefix);
        }
        if self.snat.is_some() && self.exempt.is_empty() {
            return Err(RulesetError::NothingExempt);
        }
        Ok(())
    }

    /// Whether what was asked by a secondary ENI is answered by it. The Go daemon's layout has no rule for an ENI's
    /// mark, and like that daemon knows only the primary ENI.
    pub(crate) fn answers_by_eni(&self) -> bool {
        self.node_port && self.layout == RuleLayout::Shared
    }

    /// What the interval set must contain: the exemptions, overlapping and adjacent ones merged as the kernel's set
    /// refuses overlaps.
    pub fn exempt_ranges(&self) -> BTreeSet<AddressRange> {
        if self.snat.is_none() {
            return BTreeSet::new();
        }
        let mut ranges: Vec<AddressRange> = Vec::new();
        for cidr in &self.exempt {
            let (first, last) = (cidr.base(), cidr.broadcast());
            match ranges.last_mut() {
                Some(open) if first.to_bits() <= open.last.to_bits().saturating_add(1) => {
                    open.last = open.last.max(last);
                }
                _ => ranges.push(AddressRange { first, last }),
            }
        }
        ranges.into_iter().collect()
    }

    fn is_shared(&self) -> bool {
        self.layout == RuleLayout::Shared
    }

    /// What comes in on these links is marked for an ENI.
    fn links(&self) -> BTreeSet<Element> {
        let links = self.enis.iter();
        links
            .map(|(mark, link)| jump(*link, self.link_chain_name(*mark)))
            .collect()
    }

    /// What belongs to connections with these marks is answered by an ENI.
    fn answers(&self) -> BTreeSet<Element> {
        let marks = self.enis.keys();
        marks
            .map(|mark| jump(u32::from(mark.value()), eni_chain_name(*mark)))
            .collect()
    }
}

fn jump(number: u32, chain: String) -> Element {
    Element::Entry(Key::Number(number), Datum::Verdict(Verdict::Jump(chain)))
}

impl Ruleset for HostRuleset {
    fn family(&self) -> IpFamily {
        IpFamily::V4
    }

    fn check(&self) -> Result<(), RulesetError> {
        self.check()
    }

    fn sets(&self) -> Vec<Set> {
        let exempt = self.snat.map(|_| EXEMPT);
        let shared = self.is_shared().then_some([POD_ENI, ENI_LINK]);
        let answer = self.answers_by_eni().then_some(ENI_ANSWER);
        exempt
            .into_iter()
            .chain(shared.into_iter().flatten())
            .chain(answer)
            .chain(ports::sets())
            .collect()
    }

    fn chains(&self) -> Vec<Chain> {
        self.all_chains()
    }

    fn eni_chains(&self, mark: EniMark) -> Vec<Chain> {
        self.chains_of(mark)
    }

    fn eni_marks(&self) -> BTreeSet<EniMark> {
        self.enis.keys().filter(|_| self.is_shared()).copied().collect()
    }

    fn contents(&self) -> BTreeMap<SetName, BTreeSet<Element>> {
        let mut contents = BTreeMap::new();
        if self.snat.is_some() {
            let ranges = self.exempt_ranges().into_iter().map(Element::Range);
            contents.insert(EXEMPT.name, ranges.collect());
        }
        if self.is_shared() {
            contents.insert(ENI_LINK.name, self.links());
        }
        if self.answers_by_eni() {
            contents.insert(ENI_ANSWER.name, self.answers());
        }
        contents
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::net::nft::model::Expr;

    fn ruleset() -> HostRuleset {
        HostRuleset {
            connmark: 0x80,
            veth_prefix: "eni".into(),
            node_ip: Ipv4Addr::new(10, 0, 0, 10),
            exempt: BTreeSet::new(),
            snat: Some(SnatPorts::default()),
            node_port: true,
            primary_link: 2,
            enis: BTreeMap::new(),
            layout: RuleLayout::Shared,
        }
    }

    #[test]
    fn chain_names_stand_for_marks() {
        for value in 1..=127 {
            let mark = EniMark::new(value).unwrap();
            assert_eq!(mark_of_chain(&eni_chain_name(mark)), Some(mark));
        }
        for other in ["eni-0", "eni-128", "eni-", "eni-x", "snat-mark"] {
            assert_eq!(mark_of_chain(other), None, "{other}");
        }
    }

    /// A jump to a chain that comes later in the transaction would be refused.
    #[test]
    fn chains_exist_before_they_are_jumped_to() {
        let mut seen = BTreeSet::new();
        for chain in ruleset().chains() {
            for expr in chain.rules.iter().flat_map(|rule| &rule.exprs) {
                if let Expr::Verdict(Verdict::Jump(target)) = expr {
                    assert!(seen.contains(target), "{} jumps to {target}", chain.name);
                }
            }
            seen.insert(chain.name);
        }
    }

    proptest! {
        #[test]
        fn ranges_are_the_exemptions_and_never_touch(
            networks in proptest::collection::vec((any::<u32>(), 0_u8..=32), 1..24),
            probes in proptest::collection::vec(any::<u32>(), 0..8),
        ) {
            let exempt: BTreeSet<_> =
                networks.iter().filter_map(|(bits, len)| Ipv4Cidr::new(Ipv4Addr::from_bits(*bits), *len)).collect();
            let ranges: Vec<_> = HostRuleset { exempt: exempt.clone(), ..ruleset() }.exempt_ranges().into_iter().collect();
            for pair in ranges.windows(2) {
                prop_assert!(u64::from(pair[0].last.to_bits()) + 1 < u64::from(pair[1].first.to_bits()));
            }
            let edges = exempt.iter().flat_map(|cidr| {
                let (first, last) = (cidr.base().to_bits(), cidr.broadcast().to_bits());
                [first, last, first.wrapping_sub(1), last.wrapping_add(1)]
            });
            for bits in edges.chain(probes) {
                let address = Ipv4Addr::from_bits(bits);
                let in_ranges = ranges.iter().any(|range| range.first <= address && address <= range.last);
                prop_assert_eq!(in_ranges, exempt.iter().any(|cidr| cidr.contains(address)), "{}", address);
            }
        }
    }
}
