//! The link of an attached ENI: a veth pair between router and node, and the routes to what the ENI owns.

use std::collections::BTreeSet;
use std::fmt::Write as _;
use std::net::Ipv4Addr;

use super::tool::ip_batch;
use super::{ENI_MTU, Fabric, FabricError, guard};
use crate::netns::{Netns, NetnsError};
use crate::vpc::change::{AttachedEni, Owned};
use crate::vpc::cidr::Ipv4Cidr;
use crate::vpc::ids::{EniId, Mac};

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
        };
        let (before, after) = (destinations(&link.owned), destinations(&next.owned));
        let mut script = String::new();
        for gone in before.difference(&after) {
            _ = writeln!(script, "route delete {gone} dev {}", link.name);
        }
        script += &routes_script(&next, after.difference(&before).copied());
        ip_batch(self.router(), &script)?;
        let (before, after) = (sources(link), sources(&next));
        guard::replace(
            self.router(),
            &link.name,
            &before.difference(&after).copied().collect(),
            &after.difference(&before).copied().collect(),
        )?;
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
    script += &routes_script(link, destinations(&link.owned).into_iter());
    script
}

/// Everything but the primary address is routed by way of it, so that one neighbour entry serves all.
fn routes_script(link: &RouterLink, added: impl Iterator<Item = Ipv4Cidr>) -> String {
    added.fold(String::new(), |mut script, destination| {
        _ = writeln!(
            script,
            "route replace {destination} via {} dev {} onlink",
            link.owned.primary, link.name
        );
        script
    })
}

fn destinations(owned: &Owned) -> BTreeSet<Ipv4Cidr> {
    let addresses = owned.secondary.iter().map(|address| Ipv4Cidr::new(*address, 32));
    addresses.chain(owned.prefixes.iter().copied()).collect()
}

/// What the guard compares with; an ENI without source check may send from anywhere, written as one range.
fn sources(link: &RouterLink) -> BTreeSet<Ipv4Cidr> {
    if !link.checked {
        return [Ipv4Cidr::new(Ipv4Addr::UNSPECIFIED, 0)].into();
    }
    let mut sources = destinations(&link.owned);
    sources.insert(Ipv4Cidr::new(link.owned.primary, 32));
    sources
}
