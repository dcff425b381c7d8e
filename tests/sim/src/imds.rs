//! What IMDS lists of a node: late, and not always all.

use std::net::Ipv4Addr;

use aws_cni_ipam::cloud::CloudEni;
use aws_cni_ipam::ids::InstanceId;
use aws_cni_ipam::witness::{ImdsEni, ImdsSnapshot};

use crate::cloud::Account;
use crate::script::Lie;

fn listed(eni: &CloudEni, account: &Account) -> Option<ImdsEni> {
    let attachment = eni.attachment.as_ref()?;
    let subnet = account.subnets.iter().find(|subnet| subnet.id == eni.subnet);
    Some(ImdsEni {
        id: eni.id.clone(),
        mac: eni.mac,
        device: attachment.device,
        card: attachment.card,
        subnet: eni.subnet.clone(),
        subnet_cidr: subnet.map(|subnet| subnet.cidr),
        addresses: [eni.primary]
            .into_iter()
            .chain(eni.secondary.iter().copied())
            .collect(),
        prefixes6: eni.prefixes6.clone(),
        prefixes: eni.prefixes.clone(),
    })
}

/// A sweep; `None` when it fails.
pub fn sweep(account: &Account, instance: &InstanceId, lie: Option<Lie>, now: u64) -> Option<ImdsSnapshot> {
    let seen = account.seen(now.saturating_sub(IMDS_LAG));
    let mut enis: Vec<ImdsEni> = seen
        .filter(|eni| {
            let attachment = eni.attachment.as_ref();
            attachment.is_some_and(|attachment| attachment.instance.as_ref() == Some(instance))
        })
        .filter_map(|eni| listed(eni, account))
        .collect();
    match lie {
        None => {}
        Some(Lie::Fails) => return None,
        Some(Lie::OmitsAll) => enis.clear(),
        Some(Lie::OmitsEni) => {
            enis.pop();
        }
        Some(Lie::OmitsAddress) => {
            for eni in &mut enis {
                if eni.addresses.len() > 1 {
                    eni.addresses.pop();
                }
            }
        }
        Some(Lie::OmitsPrefix) => {
            for eni in &mut enis {
                eni.prefixes.pop();
                eni.prefixes6.pop();
            }
        }
        Some(Lie::Extra) => {
            // What never was is listed, too.
            if let Some(primary) = enis.iter_mut().find(|eni| eni.device.0 == 0) {
                primary.addresses.push(NOWHERE);
            }
            // What was there a while ago is still listed.
            let old: Vec<ImdsEni> = account
                .seen(now.saturating_sub(IMDS_LAG + 240_000))
                .filter(|eni| {
                    let attachment = eni.attachment.as_ref();
                    attachment.is_some_and(|attachment| attachment.instance.as_ref() == Some(instance))
                })
                .filter_map(|eni| listed(eni, account))
                .collect();
            for eni in old {
                match enis.iter_mut().find(|known| known.id == eni.id) {
                    None => enis.push(eni),
                    Some(known) => {
                        let more: Vec<_> = eni
                            .addresses
                            .into_iter()
                            .filter(|address| !known.addresses.contains(address))
                            .collect();
                        known.addresses.extend(more);
                        let known6 = &mut known.prefixes6;
                        known6.extend(eni.prefixes6);
                        known6.sort_unstable();
                        known6.dedup();
                    }
                }
            }
        }
    }
    Some(ImdsSnapshot { enis })
}

/// In none of the subnets.
const NOWHERE: Ipv4Addr = Ipv4Addr::new(10, 255, 255, 9);
/// How far IMDS is usually behind EC2.
const IMDS_LAG: u64 = 4000;
