//! What a notification means for us, if anything.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use nix::libc::{RTM_DELADDR, RTM_DELROUTE, RTM_DELRULE, RTM_NEWADDR, RTM_NEWROUTE, RTM_NEWRULE};

use super::super::layout::{
    DHCP, ENI_PRIMARY_PRIORITY, EXTERNAL_SERVICE_PRIORITY, FROM_POD_PRIORITY, MARK_PRIORITY, POD_TABLE,
    TO_POD_PRIORITY,
};
use super::super::netlink::Reply;
use super::super::nft::news::Heard;
use super::super::rtnl::{RuleFact, address_news, route_news, rule_news};
use super::super::wire::Malformed;
use super::Author;
use crate::ipam::ids::TableId;

/// The plugins' own doings are no news: what they take away of a pod is to go.
const PLUGIN: &str = "aws-cni";
const LOCAL_TABLE: TableId = TableId(255);

/// What may not be as it should be any more.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Sighting {
    /// Everything: news was lost, or it is time for a look.
    pub all: bool,
    /// Who changed rules, routes, addresses, settings or the table of the node itself.
    pub host: BTreeSet<Author>,
    /// Addresses whose route, or a rule for them, went, and who did it.
    pub pods: BTreeMap<IpAddr, Author>,
}

impl Sighting {
    /// A look at everything.
    pub fn everything() -> Self {
        Self {
            all: true,
            ..Self::default()
        }
    }

    /// A link was set down, or its MTU changed: its routes may have gone without a word.
    pub fn of_a_link() -> Self {
        Self {
            host: BTreeSet::from([Author::Unnamed]),
            ..Self::default()
        }
    }

    /// Takes in what another has seen.
    pub fn add(&mut self, other: Self) {
        self.all |= other.all;
        self.host.extend(other.host);
        self.pods.extend(other.pods);
    }

    /// Whether there is nothing to look at.
    pub fn is_empty(&self) -> bool {
        !self.all && self.host.is_empty() && self.pods.is_empty()
    }

    /// Takes in a notification of rtnetlink. One that cannot be read is one that was missed.
    pub(super) fn hear_route(&mut self, reply: &Reply) {
        match about(reply) {
            Ok(About::Nothing) => {}
            Ok(About::Host) => {
                let author = Author::of_port(reply.port);
                if !author.is_own() {
                    self.host.insert(author);
                }
            }
            Ok(About::Pod(address)) => {
                let author = Author::at_a_glance(reply.port);
                let is_plugin = matches!(&author, Author::Process { name, .. } if name == PLUGIN);
                if !is_plugin && !author.is_own() {
                    self.pods.insert(address, author);
                }
            }
            Err(_malformed) => self.all = true,
        }
    }

    /// Takes in a notification of `nf_tables`. The author is named at the end of each transaction, which may be read
    /// later than its beginning: `open` is the socket of one that has changed our table and is not at its end.
    pub(super) fn hear_firewall(&mut self, reply: &Reply, open: &mut Option<u32>) {
        match Heard::of(reply) {
            Ok(Heard::Nothing) => {}
            Ok(Heard::Ours) => *open = Some(reply.port),
            Ok(Heard::End(process)) => {
                if let Some(port) = open.take() {
                    let named = process.map(|(pid, name)| Author::Process { pid, name });
                    let author = named.unwrap_or_else(|| Author::of_port(port));
                    if !author.is_own() {
                        self.host.insert(author);
                    }
                }
            }
            Err(_malformed) => self.all = true,
        }
    }

    /// Takes a message in as every subscription would.
    #[cfg(any(test, feature = "fuzz"))]
    pub fn hear_anything(&mut self, reply: &Reply) {
        self.hear_route(reply);
        self.hear_firewall(reply, &mut None);
    }

    /// Kernel parameters were written; by whom the kernel does not tell.
    pub(super) fn hear_settings(&mut self) {
        self.host.insert(Author::Unnamed);
    }
}

enum About {
    Nothing,
    Host,
    Pod(IpAddr),
}

fn about(reply: &Reply) -> Result<About, Malformed> {
    Ok(match reply.kind {
        RTM_NEWRULE | RTM_DELRULE => match rule_news(reply)? {
            Some(rule) => of_rule(&rule, reply.kind == RTM_DELRULE),
            None => About::Nothing,
        },
        RTM_NEWROUTE | RTM_DELROUTE => match route_news(reply)? {
            Some(route)
                if route.dst.single().is_some() && matches!(route.table, POD_TABLE | TableId::MAIN) =>
            {
                About::Pod(route.dst.base())
            }
            // A link manager may have taken an ENI for its own.
            Some(route) if route.table == TableId::MAIN && route.protocol == DHCP => About::Host,
            Some(route) if matches!(route.table, TableId::MAIN | LOCAL_TABLE) => About::Nothing,
            Some(_) => About::Host,
            None => About::Nothing,
        },
        RTM_NEWADDR | RTM_DELADDR if address_news(reply)?.is_some() => About::Host,
        _ => About::Nothing,
    })
}

/// Rules for single pods come with every ADD of the per-pod layout, and only their going is news.
fn of_rule(rule: &RuleFact, gone: bool) -> About {
    let pod = match rule.priority {
        TO_POD_PRIORITY => rule.to_host(),
        FROM_POD_PRIORITY => rule.from_host(),
        _ => None,
    };
    match (pod, rule.priority) {
        (Some(address), _) if gone => About::Pod(address),
        (
            None,
            TO_POD_PRIORITY
            | MARK_PRIORITY
            | EXTERNAL_SERVICE_PRIORITY
            | FROM_POD_PRIORITY
            | ENI_PRIMARY_PRIORITY,
        ) => About::Host,
        _ => About::Nothing,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn told(kind: u16, name: Option<&str>) -> Reply {
        let mut body = crate::net::wire::Body::new(&[2, 0, 0, 0]);
        if let Some(name) = name {
            body.str(1, name);
        }
        Reply {
            kind: 10 << 8 | kind,
            port: u32::MAX,
            payload: body.as_bytes().to_vec(),
        }
    }

    /// The kernel tells of a table's end and of the transaction's in two messages, and a reader may come in between.
    #[test]
    fn a_transaction_is_heard_of_whole_though_it_is_read_in_two_parts() {
        let (deleted, end) = (told(2, Some("aws-cni")), told(15, None));
        let mut open = None;
        let (mut first, mut second) = (Sighting::default(), Sighting::default());
        first.hear_firewall(&deleted, &mut open);
        assert!(first.is_empty());
        second.hear_firewall(&end, &mut open);
        assert_eq!(second.host, BTreeSet::from([Author::Unknown { port: u32::MAX }]));
        let mut other = Sighting::default();
        other.hear_firewall(&told(2, Some("filter")), &mut open);
        other.hear_firewall(&end, &mut open);
        assert!(other.is_empty());
    }
}
