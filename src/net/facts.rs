//! The kernel's testimony: what is there, whoever remembers having made it.
//!
//! After a crash the store may lack what the plugin had wired already; an address that a route, link or rule names is
//! in use until something better is known.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{Ipv4Addr, Ipv6Addr};

use serde::Serialize;

use super::layout::{FROM_POD_PRIORITY, POD_TABLE, TO_POD_PRIORITY};
use super::netlink::NetError;
use super::rtnl::{LinkFact, RouteFact, Rtnl, RuleFact};
use super::veth;
use crate::ipam::ids::TableId;

const SCOPE_LINK: u8 = 253;

/// A route to one pod, with what the kernel knows of it; the pool is told address and device alone
/// ([`crate::ipam::witness::PodRoute`]).
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize)]
pub struct PodRoute {
    /// The pod's address.
    pub address: Ipv4Addr,
    /// Index of the host's end.
    pub link: u32,
    /// Name of the host's end, if the link is there.
    pub link_name: Option<String>,
    /// The table it is in: tells which layout the pod was wired by.
    pub table: TableId,
}

/// A route to one IPv6 pod: in the main table, over a link that looks like a pod's.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize)]
pub struct PodRoute6 {
    /// The pod's address.
    pub address: Ipv6Addr,
    /// Index of the host's end.
    pub link: u32,
    /// Name of the host's end.
    pub link_name: Option<String>,
}

/// What the host's namespace says about pods and ENIs.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct HostFacts {
    /// All links.
    pub links: Vec<LinkFact>,
    /// Routes to pods, of both layouts.
    pub pod_routes: Vec<PodRoute>,
    /// Routes to IPv6 pods.
    pub pod_routes6: Vec<PodRoute6>,
    /// All IPv4 rules, in the kernel's order.
    pub rules: Vec<RuleFact>,
}

impl HostFacts {
    /// Looks at the calling thread's namespace. `veth_prefix` is the configured one; interfaces that look like a pod's
    /// under another prefix count as well, since a witness too many harms nobody.
    ///
    /// # Errors
    /// The kernel's.
    pub fn observe(veth_prefix: &str) -> Result<Self, NetError> {
        let mut rtnl = Rtnl::open()?;
        // Routes first: a link made after them is noticed without its route, not the other way round.
        let mut routes = rtnl.routes(Some(POD_TABLE), None)?;
        routes.extend(rtnl.routes(Some(TableId::MAIN), None)?);
        let routes6 = rtnl.host_routes6()?;
        let links = rtnl.links()?;
        let rules = rtnl.rules()?;
        let names: BTreeMap<u32, &LinkFact> = links.iter().map(|link| (link.index, link)).collect();
        let pod_routes = routes
            .iter()
            .filter_map(|route| pod_route(route, names.get(&route.oif).copied(), veth_prefix))
            .collect();
        let pod_routes6 = routes6
            .iter()
            .filter_map(|route| {
                let link = names.get(&route.oif)?;
                is_pod_link(link, veth_prefix).then(|| PodRoute6 {
                    address: route.address,
                    link: route.oif,
                    link_name: Some(link.name.clone()),
                })
            })
            .collect();
        Ok(Self {
            links,
            pod_routes,
            pod_routes6,
            rules,
        })
    }

    /// Every address that a pod's route or rule names.
    pub fn pod_addresses(&self) -> BTreeSet<Ipv4Addr> {
        let single = |cidr: crate::ipam::cidr::Ipv4Cidr| (cidr.prefix_len() == 32).then(|| cidr.base());
        let by_rule = self
            .rules
            .iter()
            .filter(|rule| matches!(rule.priority, TO_POD_PRIORITY | FROM_POD_PRIORITY))
            .flat_map(|rule| [rule.from, rule.to])
            .flatten()
            .filter_map(single);
        self.pod_routes
            .iter()
            .map(|route| route.address)
            .chain(by_rule)
            .collect()
    }
}

fn pod_route(route: &RouteFact, link: Option<&LinkFact>, prefix: &str) -> Option<PodRoute> {
    let to_one = route.dst.prefix_len() == 32 && route.via.is_none();
    let of_a_pod = match route.table {
        POD_TABLE => true,
        _ => route.scope == SCOPE_LINK && link.is_some_and(|link| is_pod_link(link, prefix)),
    };
    (to_one && of_a_pod).then(|| PodRoute {
        address: route.dst.base(),
        link: route.oif,
        link_name: link.map(|link| link.name.clone()),
        table: route.table,
    })
}

/// Whether a link looks like the host's end of a pod: a veth named by the configured prefix or by a hash.
pub fn is_pod_link(link: &LinkFact, prefix: &str) -> bool {
    let prefixed = !prefix.is_empty() && link.name.starts_with(prefix);
    link.kind.as_deref() == Some("veth") && (prefixed || veth::prefix_of(&link.name).is_some())
}

#[cfg(test)]
mod tests {
    use super::super::layout::RuleLayout;
    use super::super::op::{NetOp, Rule};
    use super::super::pod::{PodIntent, wire_pod};
    use super::super::testing::{fd_path, fresh_netns, in_fresh_netns};
    use super::*;

    #[test]
    fn both_layouts_and_bare_rules_testify() {
        in_fresh_netns(|| {
            let pods = [
                ("eni", "a", RuleLayout::Shared, Ipv4Addr::new(10, 0, 1, 5)),
                ("eni", "b", RuleLayout::PerPod, Ipv4Addr::new(10, 0, 1, 6)),
                ("vlan", "c", RuleLayout::PerPod, Ipv4Addr::new(10, 0, 1, 7)),
            ];
            let sandboxes: Vec<_> = pods.iter().map(|_| fresh_netns()).collect();
            for ((prefix, name, layout, address), netns) in pods.into_iter().zip(&sandboxes) {
                let intent = PodIntent {
                    host_veth: veth::host_name(prefix, "default", name, 0),
                    ifname: "eth0".to_owned(),
                    netns: fd_path(netns),
                    address,
                    mtu: 9001,
                    host_mac: veth::random_mac().unwrap(),
                    pod_mac: veth::random_mac().unwrap(),
                    eni_table: TableId(3),
                    layout,
                };
                wire_pod(&intent).unwrap();
            }
            let lost = Ipv4Addr::new(10, 0, 1, 8);
            let primary = Ipv4Addr::new(10, 0, 2, 1);
            Rtnl::open()
                .unwrap()
                .apply_all(&[
                    NetOp::AddRule(Rule::from(lost, 1536, TableId(3))),
                    NetOp::AddRule(Rule::from(primary, 32_765, TableId(3))),
                ])
                .unwrap();
            let facts = HostFacts::observe("eni").unwrap();
            let tables: Vec<_> = facts
                .pod_routes
                .iter()
                .map(|route| (route.address, route.table.0))
                .collect();
            assert_eq!(tables, [(pods[0].3, 512), (pods[1].3, 254), (pods[2].3, 254)]);
            assert_eq!(
                facts.pod_routes[0].link_name.as_deref(),
                Some(&*veth::host_name("eni", "default", "a", 0))
            );
            let named: Vec<_> = facts.pod_addresses().into_iter().collect();
            assert_eq!(
                named,
                [pods[0].3, pods[1].3, pods[2].3, lost],
                "an ENI's own address is no pod's"
            );
            assert!(serde_json::to_string(&facts).unwrap().contains("\"10.0.1.5\""));
        });
    }

    #[test]
    fn an_empty_host_says_nothing() {
        in_fresh_netns(|| {
            let facts = HostFacts::observe("eni").unwrap();
            assert!(facts.pod_routes.is_empty() && facts.pod_addresses().is_empty());
            assert_eq!(facts.links.len(), 1);
        });
    }
}
