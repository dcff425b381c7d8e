//! A secondary ENI on the host: its link, address, table and rules.
//!
//! Reads first and sends only what differs. In particular a correct address is never touched: when the only address
//! of a link goes, the kernel flushes every route over it, in every table, and its pods are cut off.
//!
//! Secondary ENIs have IPv4 only: a node of an IPv6 cluster has one /80 on its primary ENI.

use std::collections::BTreeSet;
use std::net::{IpAddr, Ipv4Addr};

use nix::errno::Errno;

use super::layout::{DHCP, ENI_MARK_MASK, ENI_PRIMARY_PRIORITY, EniMark, FROM_POD_PRIORITY};
use super::link;
use super::netlink::{NetError, Outcome};
use super::op::{LinkRef, NetOp, Route, Rule};
use super::rtnl::{AddressFact, LinkFact, RouteFact, Rtnl, RuleFact};
use super::sysctl::{Missing, Setting, SysctlError};
use crate::ipam::cidr::Ipv4Cidr;
use crate::ipam::ids::{Mac, TableId};
use crate::ipam::ip::{Cidr, IpFamily};

/// Removing a wrong address may take ours with it once, and putting it back needs another look.
const ADDRESS_ROUNDS: u32 = 3;

/// How a secondary ENI should be, in the kernel's terms. The pool's [`crate::ipam::effect::EniIntent`] says which ENI it
/// is to EC2 and knows neither MTU nor mark, which are the host's affair.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct EniIntent {
    /// Its hardware address: links are named late and renamed.
    pub mac: Mac,
    /// Its primary address.
    pub primary: Ipv4Addr,
    /// Its subnet.
    pub subnet: Ipv4Cidr,
    /// Its route table.
    pub table: TableId,
    /// Its MTU.
    pub mtu: u32,
    /// Its mark, in the shared layout.
    pub mark: Option<EniMark>,
}

/// A link that is as it should be.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ConfiguredEni {
    /// Its index.
    pub ifindex: u32,
    /// Its name at the moment.
    pub name: String,
    /// What was not as it should be; empty when everything was.
    pub changes: Vec<String>,
}

/// Why an ENI could not be configured.
#[derive(Debug, thiserror::Error)]
pub enum EniError {
    /// The primary ENI's table must never be written like this.
    #[error("ENI {0} has no table of its own: the primary ENI is not configured by us")]
    MainTable(Mac),
    /// The link has not appeared yet, or is gone.
    #[error("no network interface has hardware address {0}")]
    LinkMissing(Mac),
    /// The kernel refused a change.
    #[error("failed to configure ENI {mac}: {error}")]
    Kernel {
        /// Which ENI.
        mac: Mac,
        /// What was refused.
        #[source]
        error: NetError,
    },
    /// A setting was refused.
    #[error(transparent)]
    Sysctl(#[from] SysctlError),
}

/// Brings a secondary ENI to its intent. Run again, it changes nothing.
///
/// # Errors
/// [`EniError`]; run again to finish.
pub fn configure_eni(intent: &EniIntent) -> Result<ConfiguredEni, EniError> {
    configure_where(intent, |_| true)
}

/// The same, but only those changes that `may` be made, asked before each.
///
/// # Errors
/// As [`configure_eni`].
pub fn configure_where(
    intent: &EniIntent,
    mut may: impl FnMut(&str) -> bool,
) -> Result<ConfiguredEni, EniError> {
    if intent.table == TableId::MAIN || intent.table.0 == 0 {
        return Err(EniError::MainTable(intent.mac));
    }
    let kernel = |error| EniError::Kernel {
        mac: intent.mac,
        error,
    };
    let mut rtnl = Rtnl::open().map_err(kernel)?;
    let link = link::with_mac(&mut rtnl, intent.mac).map_err(kernel)?;
    let link = link.ok_or(EniError::LinkMissing(intent.mac))?;
    let mut changes = Vec::new();
    for setting in intent.settings(&link.name) {
        if !setting.stands()? && may(&object_of(&setting)) && setting.ensure()? {
            changes.push(object_of(&setting));
        }
    }
    let mut make = |rtnl: &mut Rtnl, mut ops: Vec<NetOp>| {
        ops.retain(|op| may(&op.to_string()));
        changes.extend(ops.iter().map(ToString::to_string));
        rtnl.apply(&ops)
    };
    let mut configure = || {
        all(make(&mut rtnl, link_changes(intent, &link))?)?;
        settle_addresses(&mut rtnl, intent, link.index, &mut make)?;
        let mut routes = rtnl.routes(IpFamily::V4, Some(intent.table), None)?;
        routes.extend(rtnl.routes(IpFamily::V4, Some(TableId::MAIN), Some(link.index))?);
        all(make(&mut rtnl, route_changes(intent, link.index, &routes))?)?;
        let rules = rtnl.rules(IpFamily::V4)?;
        all(make(&mut rtnl, rule_changes(intent, &rules))?)
    };
    configure().map_err(kernel)?;
    Ok(ConfiguredEni {
        ifindex: link.index,
        name: link.name,
        changes,
    })
}

/// Removes every rule about a freed ENI: all from its primary address, whatever their table, and those of its mark.
/// Its routes went with the link.
///
/// # Errors
/// The kernel's.
pub fn deconfigure_eni_rules(primary: Ipv4Addr, mark: Option<EniMark>) -> Result<(), NetError> {
    let mut rtnl = Rtnl::open()?;
    let ops: Vec<NetOp> = rtnl
        .rules(IpFamily::V4)?
        .into_iter()
        .filter(|rule| {
            rule.from_host() == Some(primary.into()) || mark.is_some_and(|mark| is_mark_rule(rule, mark))
        })
        .map(|rule| NetOp::DelRule(rule.rule()))
        .collect();
    all_or_gone(rtnl.apply(&ops)?)
}

/// Removes the rules of all marks but these: their ENIs are gone.
///
/// # Errors
/// The kernel's.
pub fn keep_mark_rules(marks: &BTreeSet<EniMark>) -> Result<(), NetError> {
    let mut rtnl = Rtnl::open()?;
    let is_any = |rule: &RuleFact| {
        let mask = rule.fwmark.map(|(_, mask)| mask);
        rule.priority == FROM_POD_PRIORITY && mask == Some(ENI_MARK_MASK)
    };
    let ops: Vec<NetOp> = rtnl
        .rules(IpFamily::V4)?
        .into_iter()
        .filter(|rule| is_any(rule) && !marks.iter().any(|mark| is_mark_rule(rule, *mark)))
        .map(|rule| NetOp::DelRule(rule.rule()))
        .collect();
    all_or_gone(rtnl.apply(&ops)?)
}

fn link_changes(intent: &EniIntent, link: &LinkFact) -> Vec<NetOp> {
    let target = || LinkRef::Index(link.index);
    let mtu = (link.mtu != intent.mtu).then(|| NetOp::LinkMtu(target(), intent.mtu));
    let up = (!link.up).then(|| NetOp::LinkUp(target()));
    mtu.into_iter().chain(up).collect()
}

/// Adds the right address before wrong ones go, so that the link is never without one. If the wrong one was first in
/// the same subnet, ours is its secondary and may go with it; then the next round puts it back, before any route.
fn settle_addresses(
    rtnl: &mut Rtnl,
    intent: &EniIntent,
    link: u32,
    make: &mut impl FnMut(&mut Rtnl, Vec<NetOp>) -> Result<Vec<Outcome>, NetError>,
) -> Result<(), NetError> {
    for _ in 0..ADDRESS_ROUNDS {
        let changes = address_changes(intent, link, &rtnl.addresses(IpFamily::V4, Some(link))?);
        if changes.is_empty() {
            return Ok(());
        }
        all_or_gone(make(rtnl, changes)?)?;
    }
    Ok(())
}

fn all(outcomes: Vec<Outcome>) -> Result<(), NetError> {
    outcomes.into_iter().collect()
}

fn object_of(setting: &Setting) -> String {
    format!("sysctl {}", setting.path().display())
}

impl EniIntent {
    /// The kernel parameters of its link.
    pub fn settings(&self, link: &str) -> Vec<Setting> {
        // Replies carry the mark before the reverse path is checked; without this setting the check ignores it and a
        // strict rp_filter drops them (Documentation/networking/ip-sysctl.rst).
        let valid_mark = || Setting::of_interface("ipv4", link, "src_valid_mark", "1", Missing::Refused);
        self.mark.is_some().then(valid_mark).into_iter().collect()
    }
}

fn address_changes(intent: &EniIntent, link: u32, found: &[AddressFact]) -> Vec<NetOp> {
    let len = intent.subnet.prefix_len();
    let primary = IpAddr::V4(intent.primary);
    let right = |fact: &AddressFact| fact.address == primary && fact.len == len;
    let is_link_local = |fact: &AddressFact| match fact.address {
        IpAddr::V4(address) => address.is_link_local(),
        IpAddr::V6(address) => address.is_unicast_link_local(),
    };
    let add = (!found.iter().any(right)).then_some(NetOp::AddAddress {
        address: primary,
        len,
        link,
    });
    let wrong = found.iter().filter(|fact| !right(fact) && !is_link_local(fact));
    let remove = wrong.map(|fact| NetOp::DelAddress {
        address: fact.address,
        len: fact.len,
        link,
    });
    add.into_iter().chain(remove).collect()
}

/// The first failure that is more than "what should go is gone".
fn all_or_gone(outcomes: Vec<Outcome>) -> Result<(), NetError> {
    let gone = |error: &NetError| matches!(error.errno, Errno::EADDRNOTAVAIL | Errno::ENOENT);
    outcomes
        .into_iter()
        .filter(|outcome| !outcome.as_ref().is_err_and(gone))
        .collect()
}

fn route_changes(intent: &EniIntent, link: u32, found: &[RouteFact]) -> Vec<NetOp> {
    let gateway = intent.subnet.vpc_gateway();
    let wanted = [
        Route::host(gateway, link, intent.table),
        Route::default_via(gateway, link, intent.table),
    ];
    let there = |route: &Route| {
        found.iter().any(|fact| {
            (fact.dst, fact.via, fact.oif, fact.table, fact.kind)
                == (route.dst(), route.via(), route.oif(), route.table(), 1)
        })
    };
    let missing: Vec<Route> = wanted.into_iter().filter(|route| !there(route)).collect();
    let subnet = found.iter().filter(|fact| {
        (fact.dst, fact.via, fact.oif, fact.table) == (Cidr::V4(intent.subnet), None, link, TableId::MAIN)
            && fact.prefsrc == Some(intent.primary.into())
    });
    // A link manager that takes the ENI for its own gives the node a second default route.
    let leased = found
        .iter()
        .filter(|fact| (fact.oif, fact.table, fact.protocol) == (link, TableId::MAIN, DHCP));
    // The kernel's own subnet route would send the node's traffic to the subnet out of this ENI.
    let unwanted = subnet.chain(leased).map(|fact| NetOp::DelRoute(fact.route()));
    missing
        .into_iter()
        .map(NetOp::ReplaceRoute)
        .chain(unwanted)
        .collect()
}

fn rule_changes(intent: &EniIntent, found: &[RuleFact]) -> Vec<NetOp> {
    let from = Some(IpAddr::V4(intent.primary));
    let table = Some(intent.table);
    let mut changes = Vec::new();
    // Any priority will do: the AMI's scripts may have made the rule, and a second one says nothing new.
    if !found
        .iter()
        .any(|rule| rule.from_host() == from && rule.table == table)
    {
        changes.push(NetOp::AddRule(Rule::from(
            intent.primary,
            ENI_PRIMARY_PRIORITY,
            intent.table,
        )));
    }
    let marked = |rule: &RuleFact| intent.mark.is_some_and(|mark| is_mark_rule(rule, mark));
    if let Some(mark) = intent.mark
        && !found.iter().any(|rule| marked(rule) && rule.table == table)
    {
        let value = u32::from(mark.value());
        changes.push(NetOp::AddRule(Rule::marked(
            IpFamily::V4,
            value,
            ENI_MARK_MASK,
            FROM_POD_PRIORITY,
            intent.table,
        )));
    }
    // Rules of an earlier ENI with this address or mark: they are older, and the older wins.
    let ours = |rule: &&RuleFact| {
        (rule.from_host() == from && rule.priority == ENI_PRIMARY_PRIORITY) || marked(rule)
    };
    let stale = found.iter().filter(ours).filter(|rule| rule.table != table);
    changes.extend(stale.map(|rule| NetOp::DelRule(rule.rule())));
    changes
}

fn is_mark_rule(rule: &RuleFact, mark: EniMark) -> bool {
    rule.priority == FROM_POD_PRIORITY && rule.fwmark == Some((u32::from(mark.value()), ENI_MARK_MASK))
}

#[cfg(test)]
mod tests;
