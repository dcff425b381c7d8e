//! The link of an attached ENI: a veth pair between router and node, and the routes to what the ENI owns.

use std::collections::BTreeSet;
use std::fmt::Write as _;
use std::net::{Ipv4Addr, Ipv6Addr};

use super::guard::Sources;
use super::tool::ip_batch;
use super::{ENI_MTU, Fabric, FabricError, guard};
use crate::netns::{Netns, NetnsError};
use crate::vpc::change::{AttachedEni, Owned};
use crate::vpc::cidr::{Ipv4Cidr, Ipv6Cidr};
use crate::vpc::ids::{EniId, Mac};

/// The VPC's router as an ENI sees it by IPv6.
const ROUTER6: Ipv6Addr = Ipv6Addr::new(0xfe80, 0xec2, 0, 0, 0, 0, 0, 1);

/// The ENI as the router sees it by IPv6: on its link there is nobody else, so any address will do.
const ENI6: Ipv6Addr = Ipv6Addr::new(0xfe80, 0, 0, 0, 0, 0, 0, 0xe);

/// How the link of an ENI is called in its node.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum LinkName {
    /// `eth0`, `eth1`, … by device index.
    Eth,
    /// `ens5`, `ens6`, … by device index, as on Nitro instances.
    Ens,
    /// This name.
    Fixed(String),
}

impl LinkName {
    /// The name for a device index; further network cards count on from 100 for each card.
    pub fn of(&self, card: u32, device: u32) -> String {
        let position = card.saturating_mul(100).saturating_add(device);
        match self {
            Self::Eth => format!("eth{position}"),
            Self::Ens => format!("ens{}", position.saturating_add(5)),
            Self::Fixed(name) => name.clone(),
        }
    }
}

/// The node's end of a link that is to appear.
#[derive(Debug, Clone, Copy)]
pub struct NodeLink<'a> {
    /// The node's namespace.
    pub netns: &'a Netns,
    /// The link's name there.
    pub name: &'a str,
}

/// What the router keeps of an attached ENI.
#[derive(Debug, Clone)]
pub(super) struct RouterLink {
    name: String,
    mac: Mac,
    owned: Owned,
    checked: bool,
    six: bool,
}

impl Fabric {
    /// Makes the ENI's link appear in the node, down and unconfigured, and routes what the ENI owns to it.
    ///
    /// It appears last: a daemon that waits for it may use it at once.
    pub fn attach(&self, eni: &AttachedEni, node: NodeLink<'_>) -> Result<(), FabricError> {
        let mut links = self.links();
        let link = RouterLink {
            name: router_link_name(eni.mac),
            mac: eni.mac,
            owned: eni.owned.clone(),
            checked: eni.source_dest_check,
            six: self.networks().six.is_some(),
        };
        if let Err(error) = self.plug_in(&link, eni, node) {
            // Half a link would be in the way of the next attempt; what was not made can't be removed either.
            drop(self.pull_out(&link));
            return Err(error);
        }
        links.insert(eni.eni.clone(), link);
        Ok(())
    }

    fn plug_in(&self, link: &RouterLink, eni: &AttachedEni, node: NodeLink<'_>) -> Result<(), FabricError> {
        ip_batch(self.router(), &prepare_script(link, eni))?;
        answer_arp_for_everything(self.router(), &link.name)?;
        guard::admit(self.router(), &link.name, eni.mac, &sources(link))?;
        Ok(ip_batch(self.router(), &appear_script(link, node))?)
    }

    fn pull_out(&self, link: &RouterLink) -> Result<(), FabricError> {
        ip_batch(self.router(), &format!("link delete {}\n", link.name))?;
        // Not before, or what the ENI sent last would count as sent from a foreign hardware address.
        Ok(guard::forget(
            self.router(),
            &link.name,
            link.mac,
            &sources(link),
        )?)
    }

    /// Removes the ENI's link from router and node; one that is not there is no error.
    pub fn detach(&self, eni: &EniId) -> Result<(), FabricError> {
        let mut links = self.links();
        links.remove(eni).map_or(Ok(()), |link| self.pull_out(&link))
    }

    /// Routes to the ENI what it owns now, and lets it send from that only.
    pub fn change_addresses(&self, eni: &EniId, owned: &Owned, checked: bool) -> Result<(), FabricError> {
        let mut links = self.links();
        let link = links
            .get_mut(eni)
            .ok_or_else(|| FabricError::NotAttached(eni.clone()))?;
        let next = RouterLink {
            name: link.name.clone(),
            mac: link.mac,
            owned: owned.clone(),
            checked,
            six: link.six,
        };
        let (before, after) = (routed(link), routed(&next));
        let mut script = String::new();
        for (gone, _) in before.difference(&after) {
            _ = writeln!(script, "route delete {gone} dev {}", link.name);
        }
        script += &routes_script(&next, after.difference(&before).cloned());
        ip_batch(self.router(), &script)?;
        guard::replace(self.router(), &link.name, &sources(link), &sources(&next))?;
        *link = next;
        Ok(())
    }

    /// Routes another VPC network nowhere until an ENI owns addresses of it.
    pub fn add_vpc_cidr(&self, cidr: Ipv4Cidr) -> Result<(), FabricError> {
        Ok(ip_batch(
            self.router(),
            &format!("route replace blackhole {cidr} metric 4096\n"),
        )?)
    }
}

/// `eni` and the hardware address: 15 characters, the most a link name may have.
fn router_link_name(mac: Mac) -> String {
    link_name("eni", mac)
}

fn link_name(prefix: &str, mac: Mac) -> String {
    mac.0.iter().fold(prefix.to_owned(), |mut name, byte| {
        _ = write!(name, "{byte:02x}");
        name
    })
}

/// For whatever it can route to, and at once: the kernel would wait up to 0.8 s (`proxy_delay`, arp(7)).
fn answer_arp_for_everything(router: &Netns, link: &str) -> Result<(), NetnsError> {
    router.sysctl(&[
        (&format!("net/ipv4/neigh/{link}/proxy_delay"), "0"),
        (&format!("net/ipv4/conf/{link}/proxy_arp"), "1"),
    ])
}

/// What the node's end is called while it is still the router's.
fn unplugged(mac: Mac) -> String {
    link_name("new", mac)
}

fn appear_script(link: &RouterLink, node: NodeLink<'_>) -> String {
    let (end, path) = (unplugged(link.mac), node.netns.path());
    format!("link set {end} netns {} name {}\n", path.display(), node.name)
}

/// The ENI's hardware address is known to the VPC and never asked for, so its neighbour entry is permanent.
fn prepare_script(link: &RouterLink, eni: &AttachedEni) -> String {
    let (router_end, mac, primary) = (&link.name, eni.mac, eni.owned.primary);
    let mut script = format!(
        "link add {router_end} mtu {ENI_MTU} type veth peer name {} address {mac} mtu {ENI_MTU}\n\
         link set {router_end} up\n\
         addr replace {}/32 dev lo\n\
         neigh replace {primary} lladdr {mac} dev {router_end} nud permanent\n\
         route replace {primary}/32 dev {router_end} scope link\n",
        unplugged(mac),
        eni.subnet_cidr.nth(1),
    );
    if link.six {
        _ = writeln!(
            script,
            "addr add {ROUTER6}/64 dev {router_end} nodad\n\
             neigh replace {ENI6} lladdr {mac} dev {router_end} nud permanent"
        );
    }
    script += &routes_script(link, routed(link).into_iter());
    script
}

/// Everything but the primary address is routed by way of it, so that one neighbour entry serves all.
fn routes_script(link: &RouterLink, added: impl Iterator<Item = (String, String)>) -> String {
    added.fold(String::new(), |mut script, (destination, via)| {
        _ = writeln!(
            script,
            "route replace {destination} via {via} dev {} onlink",
            link.name
        );
        script
    })
}

/// Destinations, and by way of which address of the ENI.
fn routed(link: &RouterLink) -> BTreeSet<(String, String)> {
    let primary = link.owned.primary.to_string();
    let v4 = destinations(&link.owned).into_iter();
    let v4 = v4.map(|destination| (destination.to_string(), primary.clone()));
    let v6 = destinations6(&link.owned).into_iter().filter(|_| link.six);
    v4.chain(v6.map(|destination| (destination.to_string(), ENI6.to_string())))
        .collect()
}

fn destinations(owned: &Owned) -> BTreeSet<Ipv4Cidr> {
    let addresses = owned.secondary.iter().map(|address| Ipv4Cidr::new(*address, 32));
    addresses.chain(owned.prefixes.iter().copied()).collect()
}

fn destinations6(owned: &Owned) -> BTreeSet<Ipv6Cidr> {
    let addresses = owned.ipv6.iter().map(|address| Ipv6Cidr::new(*address, 128));
    addresses.chain(owned.ipv6_prefixes.iter().copied()).collect()
}

/// What the guard compares with; an ENI without source check may send from anywhere, written as one range.
fn sources(link: &RouterLink) -> Sources {
    let mut v4 = destinations(&link.owned);
    v4.insert(Ipv4Cidr::new(link.owned.primary, 32));
    let mut v6 = destinations6(&link.owned);
    if !link.checked {
        v4 = [Ipv4Cidr::new(Ipv4Addr::UNSPECIFIED, 0)].into();
        v6 = [Ipv6Cidr::new(Ipv6Addr::UNSPECIFIED, 0)].into();
    }
    Sources {
        v4,
        v6: link.six.then_some(v6),
    }
}
