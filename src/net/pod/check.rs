//! Whether a pod's interface still is what was made.

use std::fmt;
use std::os::fd::AsFd;

use super::super::layout::{DOOMED_GROUP, FROM_POD_PRIORITY, RuleLayout, TO_POD_PRIORITY, pod_gateway};
use super::super::netlink::NetError;
use super::super::netns::Netns;
use super::super::rtnl::{LinkFact, Rtnl};
use super::PodIntent;
use crate::ipam::ids::{Mac, TableId};
use crate::ipam::ip::IpFamily;

/// One way in which the kernel differs from the intent.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Difference {
    /// The object, such as `host interface enic440f455693`.
    pub object: String,
    /// What is wrong with it, in words.
    pub finding: String,
}

impl fmt::Display for Difference {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {}", self.object, self.finding)
    }
}

/// Compares the kernel to the intent; empty when all is as it should be. Changes nothing. What cannot be looked at is a
/// difference too.
pub fn check_pod(intent: &PodIntent) -> Vec<Difference> {
    let mut check = Check {
        intent,
        found: Vec::new(),
    };
    if let Err(error) = check.host() {
        check.differ("the host side", format!("cannot be looked at: {error}"));
    }
    check.pod();
    check.found
}

struct Check<'a> {
    intent: &'a PodIntent,
    found: Vec<Difference>,
}

impl Check<'_> {
    fn differ(&mut self, object: impl Into<String>, finding: impl Into<String>) {
        self.found.push(Difference {
            object: object.into(),
            finding: finding.into(),
        });
    }

    fn host(&mut self) -> Result<(), NetError> {
        let mut rtnl = Rtnl::open()?;
        let object = format!("host interface {}", self.intent.host_veth);
        let link = rtnl.link_named(&self.intent.host_veth)?;
        self.link(&object, link.as_ref(), self.intent.host_mac);
        if link.as_ref().is_some_and(|link| link.group == DOOMED_GROUP) {
            self.differ(object, "is marked for deletion");
        }
        let index = link.map(|link| link.index);
        self.host_route(&mut rtnl, index)?;
        if let (IpFamily::V6, Some(index)) = (self.intent.family(), index) {
            self.host_neighbour(&mut rtnl, index)?;
        }
        match self.intent.layout {
            RuleLayout::Shared => Ok(()),
            RuleLayout::PerPod => self.rules(&mut rtnl),
        }
    }

    fn link(&mut self, object: &str, link: Option<&LinkFact>, mac: Mac) {
        let Some(link) = link else {
            return self.differ(object, "is missing");
        };
        if link.mac != Some(mac) {
            let found = link.mac.map_or("none".to_owned(), |mac| mac.to_string());
            self.differ(object, format!("has hardware address {found}, should be {mac}"));
        }
        if link.mtu != self.intent.mtu {
            self.differ(
                object,
                format!("has MTU {}, should be {}", link.mtu, self.intent.mtu),
            );
        }
        if !link.up {
            self.differ(object, "is down");
        }
    }

    /// Asks for the kernel's decision, not for the route: that proves the rules before it as well.
    fn host_route(&mut self, rtnl: &mut Rtnl, index: Option<u32>) -> Result<(), NetError> {
        let (address, table) = (self.intent.address, self.intent.layout.pod_table());
        let object = format!("the host's route to {address}");
        match rtnl.route_to(address)? {
            Some(route) if route.dst.single() != Some(address) || route.table != table => {
                let finding = format!(
                    "is missing in table {}; {} of table {} applies",
                    table.0, route.dst, route.table.0
                );
                self.differ(object, finding);
            }
            Some(route) if index.is_some_and(|index| index != route.oif) => {
                self.differ(
                    object,
                    format!("leads to interface {}, not to the pod's", route.oif),
                );
            }
            Some(_) => {}
            None => self.differ(object, "is missing"),
        }
        Ok(())
    }

    /// Without an entry the kernel asks where the pod is, which does as well; a permanent one that is wrong stays so.
    fn host_neighbour(&mut self, rtnl: &mut Rtnl, index: u32) -> Result<(), NetError> {
        let (address, mac) = (self.intent.address, self.intent.pod_mac);
        if let Some(found) = rtnl.neighbour(address, index)?
            && found.permanent
            && found.mac != Some(mac)
        {
            let found = found.mac.map_or("nowhere".to_owned(), |mac| mac.to_string());
            let object = format!("the host's neighbour {address}");
            self.differ(object, format!("is at {found}, should be at {mac}"));
        }
        Ok(())
    }

    fn rules(&mut self, rtnl: &mut Rtnl) -> Result<(), NetError> {
        let pod = Some(self.intent.address);
        let rules = rtnl.rules(self.intent.family())?;
        let to = |table| {
            rules.iter().any(|rule| {
                rule.priority == TO_POD_PRIORITY && rule.to_host() == pod && rule.table == Some(table)
            })
        };
        if !to(TableId::MAIN) {
            self.differ(
                format!("the rule to {}", self.intent.address),
                "is missing at priority 512",
            );
        }
        let expected = (self.intent.eni_table != TableId::MAIN).then_some(self.intent.eni_table);
        let first = rules
            .iter()
            .find(|rule| rule.priority == FROM_POD_PRIORITY && rule.from_host() == pod);
        let found = first.and_then(|rule| rule.table);
        if found != expected {
            let words = |table: Option<TableId>| {
                table.map_or("no table".to_owned(), |table| format!("table {}", table.0))
            };
            let finding = format!("leads to {}, should be {}", words(found), words(expected));
            self.differ(format!("the rule from {}", self.intent.address), finding);
        }
        Ok(())
    }

    fn pod(&mut self) {
        let netns = match Netns::open(&self.intent.netns) {
            Ok(netns) => netns,
            Err(error) => return self.differ("the pod's namespace", format!("cannot be opened: {error}")),
        };
        let result = match Rtnl::open_in(netns.as_fd()) {
            Ok(mut rtnl) => self.inside(&mut rtnl).map_err(|error| error.to_string()),
            Err(error) => Err(error.to_string()),
        };
        if let Err(error) = result {
            self.differ("the pod side", format!("cannot be looked at: {error}"));
        }
    }

    fn inside(&mut self, rtnl: &mut Rtnl) -> Result<(), NetError> {
        let object = format!("pod interface {}", self.intent.ifname);
        let link = rtnl.link_named(&self.intent.ifname)?;
        self.link(&object, link.as_ref(), self.intent.pod_mac);
        let Some(link) = link else {
            return Ok(());
        };
        let (family, address) = (self.intent.family(), self.intent.address);
        let (gateway, len) = (pod_gateway(family), family.bits());
        let addresses = rtnl.addresses(family, Some(link.index))?;
        if !addresses
            .iter()
            .any(|found| found.address == address && found.len == len)
        {
            self.differ(&object, format!("lacks address {address}/{len}"));
        }
        let routes = rtnl.routes(family, Some(TableId::MAIN), Some(link.index))?;
        if !routes.iter().any(|route| route.host_on_link() == Some(gateway)) {
            self.differ(&object, format!("lacks the route to the gateway {gateway}"));
        }
        if !routes
            .iter()
            .any(|route| route.dst.prefix_len() == 0 && route.via == Some(gateway))
        {
            self.differ(&object, format!("lacks the default route via {gateway}"));
        }
        match rtnl.neighbour(gateway, link.index)? {
            Some(found) if found.permanent && found.mac == Some(self.intent.host_mac) => {}
            _ => {
                let mac = self.intent.host_mac;
                self.differ(
                    &object,
                    format!("lacks the permanent neighbour {gateway} at {mac}"),
                );
            }
        }
        Ok(())
    }
}
