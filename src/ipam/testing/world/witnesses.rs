//! What the world's kernel and IMDS say.

use super::*;

impl World {
    pub(super) fn link(mac: Mac) -> LinkFact {
        LinkFact {
            mac,
            name: format!("ens{}", mac.0[5]),
            ifindex: u32::from(mac.0[5]) + 2,
        }
    }

    pub(crate) fn kernel(&mut self) {
        self.kernel_asked = false;
        let facts = self.kernel_facts();
        self.event(Event::Kernel(facts));
    }

    pub(super) fn kernel_facts(&self) -> KernelFacts {
        KernelFacts {
            links: self.links.iter().map(|mac| Self::link(*mac)).collect(),
            pod_routes: self
                .routes
                .iter()
                .map(|(address, key)| PodRoute {
                    address: *address,
                    device: veth(key),
                })
                .chain(self.bare_rules.iter().map(|address| PodRoute {
                    address: (*address).into(),
                    device: String::new(),
                }))
                .collect(),
            bare_rules: self.bare_rules.iter().copied().map(IpAddr::V4).collect(),
        }
    }

    pub(crate) fn imds_snapshot(&self) -> ImdsSnapshot {
        let attached = self
            .enis
            .values()
            .filter_map(|eni| Some((eni, eni.attachment.as_ref()?)));
        ImdsSnapshot {
            enis: attached
                .map(|(eni, attachment)| ImdsEni {
                    id: eni.id.clone(),
                    mac: eni.mac,
                    device: attachment.device,
                    card: attachment.card,
                    subnet: eni.subnet.clone(),
                    subnet_cidr: Some(self.facts.subnet_cidr),
                    addresses: [eni.primary]
                        .into_iter()
                        .chain(eni.secondary.iter().copied())
                        .collect(),
                    prefixes: eni.prefixes.clone(),
                    prefixes6: eni.prefixes6.clone(),
                })
                .collect(),
        }
    }
}
