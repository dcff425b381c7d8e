//! The kernel's testimony: what is there, whoever remembers having made it.
//!
//! After a crash the store may lack what the plugin had wired already; an address that a route, link or rule names is
//! in use until something better is known.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use serde::Serialize;

use super::layout::{FROM_POD_PRIORITY, POD_TABLE, TO_POD_PRIORITY};
use super::netlink::NetError;
use super::rtnl::{LinkFact, RouteFact, Rtnl, RuleFact};
use super::veth;
use crate::ipam::ids::TableId;
use crate::ipam::ip::IpFamily;

/// A route to one pod, with what the kernel knows of it; the pool is told address and device alone
/// ([`crate::ipam::witness::PodRoute`]).
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize)]
pub struct PodRoute {
    /// The pod's address.
    pub address: IpAddr,
    /// Index of the host's end.
    pub link: u32,
    /// Name of the host's end, if the link is there.
    pub link_name: Option<String>,
    /// The table it is in: tells which layout the pod was wired by.
    pub table: TableId,
}

/// What the host's namespace says about pods and ENIs.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct HostFacts {
    /// All links.
    pub links: Vec<LinkFact>,
    /// Routes to pods, of both layouts and families.
    pub pod_routes: Vec<PodRoute>,
    /// All rules, IPv4 first, each family's in the kernel's order.
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
        let families = [IpFamily::V4, IpFamily::V6];
        // Routes first: a link made after them is noticed without its route, not the other way round.
        let mut routes = Vec::new();
        for family in families {
            for table in [POD_TABLE, TableId::MAIN] {
                routes.extend(rtnl.routes(family, Some(table), None)?);
            }
        }
        let links = rtnl.links()?;
        let mut rules = Vec::new();
        for family in families {
            rules.extend(rtnl.rules(family)?);
        }
        let names: BTreeMap<u32, &LinkFact> = links.iter().map(|link| (link.index, link)).collect();
        let pod_routes = routes
            .iter()
            .filter_map(|route| pod_route(route, names.get(&route.oif).copied(), veth_prefix))
            .collect();
        Ok(Self {
            links,
            pod_routes,
            rules,
        })
    }

    /// Every address that a pod's route or rule names.
    pub fn pod_addresses(&self) -> BTreeSet<IpAddr> {
        let by_rule = self
            .rules
            .iter()
            .filter(|rule| matches!(rule.priority, TO_POD_PRIORITY | FROM_POD_PRIORITY))
            .flat_map(|rule| [rule.from_host(), rule.to_host()])
            .flatten();
        self.pod_routes
            .iter()
            .map(|route| route.address)
            .chain(by_rule)
            .collect()
    }
}

fn pod_route(route: &RouteFact, link: Option<&LinkFact>, prefix: &str) -> Option<PodRoute> {
    let address = route.host_on_link()?;
    let of_a_pod = route.table == POD_TABLE || link.is_some_and(|link| is_pod_link(link, prefix));
    of_a_pod.then(|| PodRoute {
        address,
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

    fn ip(text: &str) -> IpAddr {
        text.parse().unwrap()
    }

    #[test]
    fn both_layouts_and_bare_rules_testify_in_both_families() {
        in_fresh_netns(|| {
            let pods = [
                ("eni", "a", RuleLayout::Shared, "10.0.1.5"),
                ("eni", "b", RuleLayout::PerPod, "10.0.1.6"),
                ("vlan", "c", RuleLayout::PerPod, "10.0.1.7"),
                ("eni", "d", RuleLayout::Shared, "2001:db8::5"),
                ("eni", "e", RuleLayout::PerPod, "2001:db8::6"),
            ]
            .map(|(prefix, name, layout, address)| (prefix, name, layout, ip(address)));
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
            let (lost, lost6) = (ip("10.0.1.8"), ip("2001:db8::8"));
            let primary = ip("10.0.2.1");
            Rtnl::open()
                .unwrap()
                .apply_all(&[
                    NetOp::AddRule(Rule::from(lost, 1536, TableId(3))),
                    NetOp::AddRule(Rule::to(lost6, 512, TableId::MAIN)),
                    NetOp::AddRule(Rule::from(primary, 32_765, TableId(3))),
                ])
                .unwrap();
            let facts = HostFacts::observe("eni").unwrap();
            let tables: Vec<_> = facts
                .pod_routes
                .iter()
                .map(|route| (route.address, route.table.0))
                .collect();
            let expected = [0, 1, 2, 3, 4].map(|n| (pods[n].3, [512, 254, 254, 512, 254][n]));
            assert_eq!(tables, expected);
            assert_eq!(
                facts.pod_routes[0].link_name.as_deref(),
                Some(&*veth::host_name("eni", "default", "a", 0))
            );
            let named: Vec<_> = facts.pod_addresses().into_iter().collect();
            assert_eq!(
                named,
                [pods[0].3, pods[1].3, pods[2].3, lost, pods[3].3, pods[4].3, lost6],
                "an ENI's own address is no pod's"
            );
            let told = serde_json::to_string(&facts).unwrap();
            assert!(told.contains("\"10.0.1.5\"") && told.contains("\"to\":\"2001:db8::8/128\""));
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
