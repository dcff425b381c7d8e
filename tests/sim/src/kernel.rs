//! The node's kernel, as far as the pool hears of it: links of ENIs, and what is wired for pods.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, Ipv4Addr};

use aws_cni_ipam::ids::{Mac, SandboxKey};
use aws_cni_ipam::witness::{KernelFacts, LinkFact, PodRoute};

/// Links, pod routes and rules.
#[derive(Debug, Default)]
pub struct Kernel {
    links: BTreeMap<Mac, LinkFact>,
    /// To whom an address is routed.
    pub routes: BTreeMap<IpAddr, SandboxKey>,
    /// Addresses that a rule names although no route leads to them.
    pub bare_rules: BTreeSet<Ipv4Addr>,
    next_index: u32,
}

/// The host side of a sandbox's veth pair.
pub fn veth(key: &SandboxKey) -> String {
    ["eni-", key.container.as_str()].concat()
}

impl Kernel {
    /// A link appears.
    pub fn link_up(&mut self, mac: Mac) -> LinkFact {
        self.next_index += 1;
        let link = LinkFact {
            mac,
            name: format!("ens{}", self.next_index + 4),
            ifindex: self.next_index + 1,
        };
        self.links.insert(mac, link.clone());
        link
    }

    /// A link is gone; whether it was there.
    pub fn link_down(&mut self, mac: Mac) -> bool {
        self.links.remove(&mac).is_some()
    }

    /// Whether there is a link with this hardware address.
    pub fn has_link(&self, mac: Mac) -> bool {
        self.links.contains_key(&mac)
    }

    /// The nth link gets another name.
    pub fn rename(&mut self, nth: u32) -> Option<LinkFact> {
        let index = usize::try_from(nth).unwrap_or(0).checked_rem(self.links.len())?;
        let link = self.links.values_mut().nth(index)?;
        link.name.push('x');
        link.name.truncate(12);
        Some(link.clone())
    }

    /// Everything that is wired for a sandbox goes.
    pub fn unwire(&mut self, key: &SandboxKey) {
        self.routes.retain(|_, holder| holder != key);
    }

    /// A reading of everything.
    pub fn facts(&self) -> KernelFacts {
        let routed = self.routes.iter().map(|(address, key)| PodRoute {
            address: *address,
            device: veth(key),
        });
        let bare = || {
            self.bare_rules
                .iter()
                .filter(|address| !self.routes.contains_key(&IpAddr::V4(**address)))
        };
        let ruled = bare().map(|address| PodRoute {
            address: (*address).into(),
            device: String::new(),
        });
        KernelFacts {
            links: self.links.values().cloned().collect(),
            pod_routes: routed.chain(ruled).collect(),
            bare_rules: bare().copied().map(IpAddr::V4).collect(),
        }
    }
}
