//! The node itself: what must hold before the first pod, whatever ran here before.
//!
//! Everything is read, compared and written only where it differs, so that a second start changes nothing and
//! nobody who listens to netlink hears of it.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::net::Ipv4Addr;
use std::path::PathBuf;

use super::layout::{
    EXTERNAL_SERVICE_PRIORITY, EniMark, MARK_PRIORITY, POD_TABLE, RuleLayout, TO_POD_PRIORITY,
};
use super::link;
use super::netlink::NetError;
use super::nft::model::SnatPorts;
use super::nft::{Applied, Leftover, LegacyTables, Nft, NftError};
use super::op::{LinkRef, NetOp, Rule};
use super::rtnl::{LinkFact, Rtnl, RuleFact};
use super::ruleset::{HostRuleset, HostRuleset6, RulesetError};
use super::sysctl::{Missing, Setting, SysctlError};
use crate::ipam::cidr::Ipv4Cidr;
use crate::ipam::ids::{Mac, TableId};
use crate::ipam::ip::{Cidr, IpFamily};

/// What the node is to be.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HostIntent {
    /// Which addresses pods get. What the host has of the other family is not touched.
    pub family: IpFamily,
    /// The hardware address of the primary ENI, which finds its link.
    pub primary_mac: Mac,
    /// The node's primary address.
    pub node_ip: Ipv4Addr,
    /// `AWS_VPC_ENI_MTU`.
    pub eni_mtu: u32,
    /// `AWS_VPC_K8S_CNI_CONNMARK`.
    pub connmark: u32,
    /// `AWS_VPC_K8S_CNI_VETHPREFIX`.
    pub veth_prefix: String,
    /// `AWS_VPC_CNI_NODE_PORT_SUPPORT`.
    pub node_port: bool,
    /// `AWS_VPC_K8S_CNI_RANDOMIZESNAT`; `None` under `AWS_VPC_K8S_CNI_EXTERNALSNAT`.
    pub snat: Option<SnatPorts>,
    /// The VPC's networks.
    pub vpc_cidrs: BTreeSet<Ipv4Cidr>,
    /// `AWS_VPC_K8S_CNI_EXCLUDE_SNAT_CIDRS`.
    pub exclude_snat_cidrs: BTreeSet<Ipv4Cidr>,
    /// `AWS_EXTERNAL_SERVICE_CIDRS`.
    pub external_service_cidrs: BTreeSet<Ipv4Cidr>,
    /// `DISABLE_TCP_EARLY_DEMUX`.
    pub disable_tcp_early_demux: bool,
    /// The secondary ENIs that are set up: marks and link indices.
    pub enis: BTreeMap<EniMark, u32>,
    /// `RULE_LAYOUT`.
    pub layout: RuleLayout,
}

/// What [`Host::apply`] found and did.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HostReport {
    /// The primary ENI's link.
    pub primary: LinkFact,
    /// What was not as it should be, in the order it was changed; empty on every later start.
    pub changes: Vec<HostChange>,
    /// What the Go daemon left in `nf_tables` and iptables-nft. Not touched.
    pub leftovers: Vec<Leftover>,
    /// Tables of iptables-legacy, which can't be looked into by `nf_tables`.
    pub legacy: LegacyTables,
}

/// One thing that was changed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum HostChange {
    /// The primary link's MTU.
    Mtu {
        /// Before.
        from: u32,
        /// After.
        to: u32,
    },
    /// A kernel parameter.
    Sysctl {
        /// Its path below `/proc/sys`.
        key: String,
        /// What it is now.
        value: &'static str,
    },
    /// A routing rule came or went, as `ip` would write it.
    Rule(String),
    /// The nftables table.
    Table(Applied),
}

impl HostChange {
    /// What is changed, whatever it is changed to: the same words each time.
    pub fn object(&self) -> String {
        match self {
            Self::Mtu { .. } => "mtu of the primary ENI".to_owned(),
            Self::Sysctl { key, .. } => format!("sysctl {key}"),
            Self::Rule(change) => change.clone(),
            Self::Table(_) => "nftables table aws-cni".to_owned(),
        }
    }
}

impl fmt::Display for HostChange {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Mtu { from, to } => write!(f, "mtu of the primary ENI: {from} -> {to}"),
            Self::Sysctl { key, value } => write!(f, "sysctl {key} = {value}"),
            Self::Rule(change) => f.write_str(change),
            Self::Table(applied) => write!(f, "nftables table aws-cni: {applied:?}"),
        }
    }
}

/// Why the node could not be set up.
#[derive(Debug, thiserror::Error)]
pub enum HostError {
    /// The configuration contradicts itself; nothing was changed.
    #[error(transparent)]
    Ruleset(#[from] RulesetError),
    /// No link has the primary ENI's hardware address.
    #[error("no link has the primary ENI's MAC address {0}; compare `ip link` with IMDS `mac`")]
    NoPrimaryLink(Mac),
    /// rtnetlink refused.
    #[error(transparent)]
    Kernel(#[from] NetError),
    /// A kernel parameter could not be read or written.
    #[error(transparent)]
    Sysctl(#[from] SysctlError),
    /// `nf_tables` refused.
    #[error(transparent)]
    Nft(#[from] NftError),
}

/// The calling thread's network namespace, set up as a node. Stay on that thread: `/proc/sys/net` shows the namespace
/// of whoever reads it.
#[derive(Debug)]
pub struct Host {
    rtnl: Rtnl,
    table: Nft,
    table6: Nft,
}

impl Host {
    /// Sockets into the calling thread's namespace.
    ///
    /// # Errors
    /// When the kernel refuses them.
    pub fn open() -> Result<Self, NetError> {
        Ok(Self {
            rtnl: Rtnl::open()?,
            table: Nft::open()?,
            table6: Nft::of(IpFamily::V6)?,
        })
    }

    /// The nftables table, to publish addresses.
    pub fn table(&mut self) -> &mut Nft {
        &mut self.table
    }

    /// The table of the pods' family, for their hostPorts.
    pub fn table_of(&mut self, family: IpFamily) -> &mut Nft {
        match family {
            IpFamily::V4 => &mut self.table,
            IpFamily::V6 => &mut self.table6,
        }
    }

    /// Makes the node what `intent` says. On a node of IPv6 pods nothing is translated but hostPorts, and no ENI chosen.
    ///
    /// # Errors
    /// The first thing that failed; what came before it is done, and applying again goes on from there.
    pub fn apply(&mut self, intent: &HostIntent) -> Result<HostReport, HostError> {
        self.apply_where(intent, |_| true)
    }

    /// The same, but only those changes that `may` be made, asked before each.
    ///
    /// # Errors
    /// As [`Host::apply`].
    pub fn apply_where(
        &mut self,
        intent: &HostIntent,
        mut may: impl FnMut(&HostChange) -> bool,
    ) -> Result<HostReport, HostError> {
        let mut primary = link::with_mac(&mut self.rtnl, intent.primary_mac)?
            .ok_or(HostError::NoPrimaryLink(intent.primary_mac))?;
        let ruleset = (intent.family == IpFamily::V4).then(|| intent.ruleset(primary.index));
        if let Some(ruleset) = &ruleset {
            ruleset.check()?;
        }
        let mut changes = Vec::new();
        let mtu = HostChange::Mtu {
            from: primary.mtu,
            to: intent.eni_mtu,
        };
        if primary.mtu != intent.eni_mtu && may(&mtu) {
            self.rtnl
                .apply_all(&[NetOp::LinkMtu(LinkRef::Index(primary.index), intent.eni_mtu)])?;
            changes.push(mtu);
            primary.mtu = intent.eni_mtu;
        }
        for (key, value, missing) in intent.sysctls(&primary.name) {
            let setting = Setting::new(&key, value, missing);
            let change = HostChange::Sysctl { key, value };
            if !setting.stands()? && may(&change) && setting.ensure()? {
                changes.push(change);
            }
        }
        let (rules, ops): (Vec<HostChange>, Vec<NetOp>) = self
            .rule_ops(intent)?
            .into_iter()
            .map(|op| (HostChange::Rule(op.to_string()), op))
            .filter(|(change, _)| may(change))
            .unzip();
        self.rtnl.apply_all(&ops)?;
        changes.extend(rules);
        // Before the table is written, or the Go daemon's would be gone unreported.
        let leftovers = self.table.leftovers()?;
        let may_be = |applied| may(&HostChange::Table(applied));
        let applied = match &ruleset {
            Some(ruleset) => self.table.apply_where(ruleset, may_be)?,
            None => self.table6.apply_where(&intent.ruleset6(), may_be)?,
        };
        if applied != Applied::Unchanged {
            changes.push(HostChange::Table(applied));
        }
        Ok(HostReport {
            primary,
            changes,
            leftovers,
            legacy: LegacyTables::read(),
        })
    }

    fn rule_ops(&mut self, intent: &HostIntent) -> Result<Vec<NetOp>, NetError> {
        let family = intent.family;
        let facts = self.rtnl.rules(family)?;
        let mut wanted = intent.rules();
        // Pods wired before a change of layout keep their way until they are gone.
        if intent.layout == RuleLayout::PerPod && !self.rtnl.routes(family, Some(POD_TABLE), None)?.is_empty()
        {
            wanted.insert(Rule::all(family, TO_POD_PRIORITY, POD_TABLE));
        }
        Ok(rule_changes(&facts, &wanted))
    }
}

impl HostIntent {
    /// The nftables table it implies.
    pub fn ruleset(&self, primary_link: u32) -> HostRuleset {
        HostRuleset {
            connmark: self.connmark,
            veth_prefix: self.veth_prefix.clone(),
            node_ip: self.node_ip,
            exempt: self.vpc_cidrs.union(&self.exclude_snat_cidrs).copied().collect(),
            snat: self.snat,
            node_port: self.node_port,
            primary_link,
            enis: self.enis.clone(),
            layout: self.layout,
        }
    }

    fn ruleset6(&self) -> HostRuleset6 {
        HostRuleset6 {
            veth_prefix: self.veth_prefix.clone(),
        }
    }

    fn rules(&self) -> BTreeSet<Rule> {
        let (family, mark) = (self.family, self.connmark);
        let mut rules = BTreeSet::new();
        if self.layout == RuleLayout::Shared {
            rules.insert(Rule::all(family, TO_POD_PRIORITY, POD_TABLE));
        }
        if self.node_port || self.snat.is_some() {
            rules.insert(Rule::marked(family, mark, mark, MARK_PRIORITY, TableId::MAIN));
        }
        // They are networks of IPv4, and pods of IPv6 reach all there is by the primary ENI.
        if family == IpFamily::V4 {
            let external = self.external_service_cidrs.iter();
            rules.extend(external.map(|cidr| external_service((*cidr).into())));
        }
        rules
    }

    /// The files of the kernel parameters that it sets, or that change those when they are written.
    pub fn settings(&self, primary: &str) -> impl Iterator<Item = PathBuf> {
        let set = self.sysctls(primary);
        set.into_iter()
            .map(|(key, ..)| key)
            .chain(["net/ipv4/conf/all/forwarding".to_owned()])
            .map(|key| Setting::new(&key, "", Missing::Tolerated).path().to_owned())
    }

    /// The parameters, in the order in which they must be written.
    fn sysctls(&self, primary: &str) -> Vec<(String, &'static str, Missing)> {
        let early_demux = if self.disable_tcp_early_demux { "0" } else { "1" };
        let forwarding = match self.family {
            // First, because switching it resets other parameters of every link
            // (https://docs.kernel.org/networking/ip-sysctl.html, ip_forward).
            IpFamily::V4 => vec![("net/ipv4/ip_forward".into(), "1", Missing::Refused)],
            IpFamily::V6 => forwarding6(primary),
        };
        let of_both = [
            // Loose: NodePort answers and node-SNATed traffic leave by the primary ENI for sources routed elsewhere.
            (
                format!("net/ipv4/conf/{primary}/rp_filter"),
                "2",
                Missing::Refused,
            ),
            ("net/ipv4/tcp_early_demux".into(), early_demux, Missing::Tolerated),
        ];
        forwarding.into_iter().chain(of_both).collect()
    }
}

/// What the Go daemon's init container sets for IPv6 pods (reference dataplane 6.1), in an order that loses nothing:
/// a host that begins to forward forgets the default route that its router has announced, unless it was told before to
/// go on listening (`rt6_purge_dflt_routers` in net/ipv6/route.c). The last one is for links that are yet to be made,
/// pods' among them; usually the first has brought it along.
fn forwarding6(primary: &str) -> Vec<(String, &'static str, Missing)> {
    let conf = |of: &str, key: &str, value| (format!("net/ipv6/conf/{of}/{key}"), value, Missing::Refused);
    vec![
        conf("all", "disable_ipv6", "0"),
        conf(primary, "accept_ra", "2"),
        conf("all", "forwarding", "1"),
        conf("default", "disable_ipv6", "0"),
    ]
}

fn external_service(network: Cidr) -> Rule {
    Rule::to_network(network, EXTERNAL_SERVICE_PRIORITY, TableId::MAIN)
}

/// Additions first, so that there is no moment without; then what is ours by its shape but not wanted, and
/// duplicates.
fn rule_changes(facts: &[RuleFact], wanted: &BTreeSet<Rule>) -> Vec<NetOp> {
    let mut present = BTreeSet::new();
    let mut surplus = Vec::new();
    for rule in facts.iter().filter_map(ours) {
        if !wanted.contains(&rule) || !present.insert(rule.clone()) {
            surplus.push(NetOp::DelRule(rule));
        }
    }
    let missing = wanted.difference(&present).cloned().map(NetOp::AddRule);
    missing.chain(surplus).collect()
}

/// The rule, if it is one that only this set-up (or the Go daemon's) would make.
fn ours(fact: &RuleFact) -> Option<Rule> {
    let (rule, family) = (fact.rule(), fact.selector.family());
    let known = match (rule.priority, rule.fwmark, rule.selector.to()) {
        (TO_POD_PRIORITY, ..) => rule == Rule::all(family, TO_POD_PRIORITY, POD_TABLE),
        (MARK_PRIORITY, Some((bits, _)), _) => {
            rule == Rule::marked(family, bits, bits, MARK_PRIORITY, TableId::MAIN)
        }
        (EXTERNAL_SERVICE_PRIORITY, _, Some(to)) => rule == external_service(to),
        _ => false,
    };
    (known && fact.iif.is_none()).then_some(rule)
}

#[cfg(test)]
mod tests;
