//! Recorded pods against the kernel: what is missing of them, what an older release wrote otherwise, and the rules
//! that nobody's pod needs any more. The comparison is pure and looks at one observation of the host, however many
//! pods there are; only [`put_right`] talks to the kernel.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use nix::errno::Errno;

use super::super::facts::HostFacts;
use super::super::layout::{DOOMED_GROUP, FROM_POD_PRIORITY, POD_TABLE, RuleLayout, TO_POD_PRIORITY};
use super::super::netlink::NetError;
use super::super::op::{NetOp, Route, Rule};
use super::super::rtnl::{LinkFact, Rtnl, RuleFact};
use super::super::veth;
use super::wire::is_absence;
use crate::ipam::ids::TableId;

/// Operations in one request: far below what a socket's buffer takes.
const AT_ONCE: usize = 256;

/// A pod that is recorded as wired.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RecordedPod {
    /// Its address.
    pub address: IpAddr,
    /// The host's end as it was named when it was made.
    pub host_veth: String,
    /// Table of the ENI the address is on; main for the primary ENI.
    pub eni_table: TableId,
    /// How it is to be routed when nothing in the kernel shows how it was.
    pub layout: RuleLayout,
}

/// What a pod, or an address that was one's, is to get or to lose.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Repair {
    /// The address.
    pub address: IpAddr,
    /// What to do, in order.
    pub ops: Vec<NetOp>,
}

/// Why a pod is left as it is although something is missing.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum LeftAlone {
    /// The address is routed over a link that is not the pod's.
    #[error("its address is routed over another link")]
    RoutedElsewhere,
    /// Its link carries another sandbox, or more than one record names it.
    #[error("its link may be another sandbox's")]
    LinkIsAnothers,
    /// A rule of somebody else selects by the same source at the same priority.
    #[error("somebody else's rule selects by its address")]
    ForeignRule,
}

/// What the comparison came to.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Repairs {
    /// What to do; empty on a host in order.
    pub repairs: Vec<Repair>,
    /// Pods that are not touched.
    pub left_alone: Vec<(IpAddr, LeftAlone)>,
}

/// Compares `pods` with what was seen. Pods whose link is gone need nothing: their routes went with it.
pub fn repairs(seen: &HostFacts, pods: &[RecordedPod]) -> Repairs {
    let host = Seen::new(seen);
    let mut claims: BTreeMap<u32, usize> = BTreeMap::new();
    for link in pods.iter().filter_map(|pod| host.link_of(pod)) {
        *claims.entry(link.index).or_default() += 1;
    }
    let mut found = Repairs::default();
    for pod in pods {
        let Some(link) = host.link_of(pod) else { continue };
        let is_claimed_once = claims.get(&link.index) == Some(&1);
        match host.repair(pod, link.index, is_claimed_once) {
            Ok(ops) if ops.is_empty() => {}
            Ok(ops) => found.repairs.push(Repair {
                address: pod.address,
                ops,
            }),
            Err(why) => found.left_alone.push((pod.address, why)),
        }
    }
    found
}

/// The rules to remove of addresses that nobody holds: those only a rule names, without a route to any pod.
fn orphaned_rules(seen: &HostFacts, unassigned: &BTreeSet<IpAddr>) -> Vec<Repair> {
    let host = Seen::new(seen);
    let ops = |address: IpAddr| -> Vec<NetOp> {
        let mut rules = host.rules_from(address).unwrap_or_default();
        rules.extend(host.rules_to(address));
        // A deletion that names no destination takes the first rule of that source, so those that name one go first.
        rules.sort_by_key(|rule| rule.selector.to().is_none());
        rules.into_iter().map(NetOp::DelRule).collect()
    };
    unassigned
        .iter()
        .filter(|address| !host.routes.contains_key(*address))
        .map(|address| Repair {
            address: *address,
            ops: ops(*address),
        })
        .filter(|repair| !repair.ops.is_empty())
        .collect()
}

/// Looks at the calling thread's namespace and removes the [`orphaned_rules`] of `unassigned`.
///
/// # Errors
/// When the kernel could not be asked; what single removals came to is with the addresses.
pub fn remove_orphaned_rules(
    veth_prefix: &str,
    unassigned: &BTreeSet<IpAddr>,
) -> Result<Vec<(Repair, Vec<NetError>)>, NetError> {
    let repairs = orphaned_rules(&HostFacts::observe(veth_prefix)?, unassigned);
    put_right(&mut Rtnl::open()?, repairs)
}

/// Does what was found, in as few requests as there may be, and says what failed of each. What is there by now, or
/// gone by now, is no failure.
///
/// # Errors
/// When nothing could be sent or answered.
pub fn put_right(rtnl: &mut Rtnl, repairs: Vec<Repair>) -> Result<Vec<(Repair, Vec<NetError>)>, NetError> {
    let ops: Vec<NetOp> = repairs
        .iter()
        .flat_map(|repair| repair.ops.iter().cloned())
        .collect();
    let mut outcomes = Vec::with_capacity(ops.len());
    for some in ops.chunks(AT_ONCE) {
        outcomes.extend(rtnl.apply(some)?);
    }
    let mut outcomes = outcomes.into_iter();
    let mut done = Vec::with_capacity(repairs.len());
    for repair in repairs {
        let errors = outcomes
            .by_ref()
            .take(repair.ops.len())
            .filter_map(Result::err)
            .filter(|error| error.errno != Errno::EEXIST && !is_absence(error))
            .collect();
        done.push((repair, errors));
    }
    Ok(done)
}

/// One observation, by what pods are looked up by.
struct Seen<'a> {
    by_name: BTreeMap<&'a str, &'a LinkFact>,
    /// By the hash in its name; `None` where several links carry it.
    by_hash: BTreeMap<&'a str, Option<&'a LinkFact>>,
    /// Link and table of each route to a pod.
    routes: BTreeMap<IpAddr, Vec<(u32, TableId)>>,
    carried: BTreeMap<u32, BTreeSet<IpAddr>>,
    from: BTreeMap<IpAddr, Vec<&'a RuleFact>>,
    to: BTreeMap<IpAddr, Vec<&'a RuleFact>>,
}

impl<'a> Seen<'a> {
    fn new(seen: &'a HostFacts) -> Self {
        let mut index = Self {
            by_name: BTreeMap::new(),
            by_hash: BTreeMap::new(),
            routes: BTreeMap::new(),
            carried: BTreeMap::new(),
            from: BTreeMap::new(),
            to: BTreeMap::new(),
        };
        let alive =
            |link: &&LinkFact| link.kind.as_deref() == Some("veth") && link.group != DOOMED_GROUP && link.up;
        for link in seen.links.iter().filter(alive) {
            index.by_name.insert(&link.name, link);
            if let Some(hash) = hash_of(&link.name) {
                let slot = index.by_hash.entry(hash).or_insert(Some(link));
                *slot = slot.filter(|first| first.index == link.index);
            }
        }
        for route in &seen.pod_routes {
            let to = index.routes.entry(route.address).or_default();
            to.push((route.link, route.table));
            index.carried.entry(route.link).or_default().insert(route.address);
        }
        for rule in &seen.rules {
            match (rule.priority, rule.from_host(), rule.to_host()) {
                (FROM_POD_PRIORITY, Some(pod), _) => index.from.entry(pod).or_default().push(rule),
                (TO_POD_PRIORITY, None, Some(pod)) => index.to.entry(pod).or_default().push(rule),
                _ => {}
            }
        }
        index
    }

    /// The pod's link by its recorded name, else by the hash under whatever prefix: it may have been made under another.
    fn link_of(&self, pod: &RecordedPod) -> Option<&'a LinkFact> {
        let by_name = self.by_name.get(pod.host_veth.as_str()).copied();
        by_name.or_else(|| *self.by_hash.get(hash_of(&pod.host_veth)?)?)
    }

    fn repair(&self, pod: &RecordedPod, link: u32, is_claimed_once: bool) -> Result<Vec<NetOp>, LeftAlone> {
        let routes = self.routes.get(&pod.address).map_or(&[][..], Vec::as_slice);
        if routes.iter().any(|(over, _)| *over != link) {
            return Err(LeftAlone::RoutedElsewhere);
        }
        let carries_others = self
            .carried
            .get(&link)
            .is_some_and(|carried| !carried.contains(&pod.address));
        if routes.is_empty() && (carries_others || !is_claimed_once) {
            return Err(LeftAlone::LinkIsAnothers);
        }
        let layout = self.layout_of(pod, routes);
        let table = layout.pod_table();
        let mut ops = Vec::new();
        if !routes.iter().any(|(_, of)| *of == table) {
            ops.push(NetOp::AddRoute(Route::host(pod.address, link, table)));
        }
        ops.extend(self.rule_ops(pod, layout)?);
        Ok(ops)
    }

    /// How the pod was wired: pods of another layout than today's keep theirs until they go.
    fn layout_of(&self, pod: &RecordedPod, routes: &[(u32, TableId)]) -> RuleLayout {
        let has = |table: TableId| routes.iter().any(|(_, of)| *of == table);
        if has(pod.layout.pod_table()) {
            pod.layout
        } else if has(POD_TABLE) {
            RuleLayout::Shared
        } else if has(TableId::MAIN) || !self.rules_to(pod.address).is_empty() {
            RuleLayout::PerPod
        } else {
            pod.layout
        }
    }

    /// What is missing before what should not be there, so that there is no moment without; except for rules that name
    /// a destination too: while one is there, the kernel takes the one without for the same and refuses it
    /// (`fib4_rule_compare` ignores a destination that the request lacks). Of equal rules the oldest wins, so a rule into
    /// another table, or only for some destinations, may lead the pod astray.
    fn rule_ops(&self, pod: &RecordedPod, layout: RuleLayout) -> Result<Vec<NetOp>, LeftAlone> {
        let mut wanted = BTreeSet::new();
        if layout == RuleLayout::PerPod {
            wanted.insert(Rule::to(pod.address, TO_POD_PRIORITY, TableId::MAIN));
            if pod.eni_table != TableId::MAIN {
                wanted.insert(Rule::from(pod.address, FROM_POD_PRIORITY, pod.eni_table));
            }
        }
        let from = self.rules_from(pod.address).ok_or(LeftAlone::ForeignRule)?;
        let (narrow, plain): (Vec<Rule>, Vec<Rule>) =
            from.into_iter().partition(|rule| rule.selector.to().is_some());
        let mut present = BTreeSet::new();
        let mut surplus = Vec::new();
        for rule in plain.into_iter().chain(self.rules_to(pod.address)) {
            if !wanted.contains(&rule) || !present.insert(rule.clone()) {
                surplus.push(NetOp::DelRule(rule));
            }
        }
        let missing = wanted.difference(&present).cloned().map(NetOp::AddRule);
        let narrow = narrow.into_iter().map(NetOp::DelRule);
        Ok(narrow.chain(missing).chain(surplus).collect())
    }

    /// Rules for what comes from the address; `None` when one among them is not of our shape, for then a deletion
    /// could hit it.
    fn rules_from(&self, address: IpAddr) -> Option<Vec<Rule>> {
        let all = self.from.get(&address).map_or(&[][..], Vec::as_slice);
        all.iter().map(|fact| of_our_shape(fact)).collect()
    }

    /// Rules that send what goes to the address to the main table.
    fn rules_to(&self, address: IpAddr) -> Vec<Rule> {
        let ours = Rule::to(address, TO_POD_PRIORITY, TableId::MAIN);
        let all = self.to.get(&address).map_or(&[][..], Vec::as_slice);
        let rules = all.iter().filter_map(|fact| of_our_shape(fact));
        rules.filter(|rule| *rule == ours).collect()
    }
}

fn hash_of(name: &str) -> Option<&str> {
    veth::prefix_of(name).and_then(|prefix| name.strip_prefix(prefix))
}

fn of_our_shape(fact: &RuleFact) -> Option<Rule> {
    let is_plain = fact.fwmark.is_none() && fact.iif.is_none() && fact.table.is_some();
    is_plain.then(|| fact.rule())
}

#[cfg(test)]
mod tests;
