//! The calls that change something: what they need, what they do, and how EC2 refuses them.

use std::collections::BTreeMap;
use std::net::Ipv4Addr;

use aws_cni_ipam::cidr::Ipv4Cidr;
use aws_cni_ipam::cidr6::Ipv6Cidr;
use aws_cni_ipam::cloud::{
    Amount, CloudAnswer, CloudAttachment, CloudCall, CloudEni, ConnectionTracking, FailureClass,
};
use aws_cni_ipam::ids::{AttachmentId, CardIndex, DeviceIndex, EniId, InstanceId, Mac, SubnetId};

use super::subnet::Subnet;
use super::{Account, Consequence, IN_USE, Known, NO_ENI, Refused};
use crate::dice::Dice;

impl Account {
    /// A new ENI that nobody has yet.
    pub(super) fn make(&mut self, subnet: &SubnetId, amount: Amount) -> Result<CloudEni, Refused> {
        let place = self.subnets.iter_mut().find(|known| known.id == *subnet);
        let place = place.ok_or((FailureClass::Other, "InvalidSubnetID.NotFound"))?;
        let full = (FailureClass::SubnetFull, "InsufficientFreeAddressesInSubnet");
        let primary = place.take(&mut self.dice).ok_or(full)?;
        let taken = take_places(place, amount, &mut self.dice);
        let (secondary, prefixes, prefixes6) = match taken {
            Ok(taken) => taken,
            Err(refused) => {
                place.give(primary);
                return Err(refused);
            }
        };
        self.made += 1;
        let [_, a, b, c] = self.made.to_be_bytes();
        Ok(CloudEni {
            id: EniId(format!("eni-{:05}", self.made)),
            mac: Mac([2, 0, 0, a, b, c]),
            subnet: subnet.clone(),
            subnet_cidr: None,
            primary,
            secondary,
            prefixes,
            prefixes6,
            public: Vec::new(),
            tracking: ConnectionTracking::default(),
            groups: Vec::new(),
            interface_type: "interface".to_owned(),
            attachment: None,
            description: String::new(),
            tags: BTreeMap::new(),
        })
    }

    pub(super) fn create(&mut self, call: &CloudCall, now: u64) -> Result<CloudAnswer, Refused> {
        let CloudCall::CreateEni {
            token,
            subnet,
            groups,
            amount,
            description,
            tags,
            tracking,
        } = call
        else {
            return Err((FailureClass::Other, "InvalidAction"));
        };
        let fingerprint = format!("{subnet} {groups:?} {amount:?} {description} {tags:?} {tracking:?}");
        if let Some(known) = self.tokens.get(token) {
            if known.fingerprint != fingerprint {
                return Err((FailureClass::Conflict, "IdempotentParameterMismatch"));
            }
            let now = self.eni(&known.answer.id).unwrap_or(&known.answer);
            return Ok(CloudAnswer::Created(now.clone()));
        }
        let mut eni = self.make(subnet, *amount)?;
        eni.description.clone_from(description);
        eni.tags.clone_from(tags);
        eni.groups.clone_from(groups);
        eni.tracking = *tracking;
        self.insert(eni.clone(), false, now);
        let known = Known {
            fingerprint,
            answer: eni.clone(),
        };
        self.tokens.insert(token.clone(), known);
        Ok(CloudAnswer::Created(eni))
    }

    pub(super) fn attach(
        &mut self,
        id: &EniId,
        instance: &InstanceId,
        device: DeviceIndex,
        card: CardIndex,
        now: u64,
    ) -> Result<CloudAnswer, Refused> {
        let eni = self.eni(id).ok_or(NO_ENI)?;
        let mac = eni.mac;
        if eni.attachment.is_some() {
            return Err(IN_USE);
        }
        let known = self.instances.get(instance);
        let limits = known
            .ok_or((FailureClass::Other, "InvalidInstanceID.NotFound"))?
            .limits;
        let taken: Vec<(CardIndex, DeviceIndex)> = self
            .attached(instance)
            .filter_map(|eni| eni.attachment.as_ref())
            .map(|attachment| (attachment.card, attachment.device))
            .collect();
        if taken.contains(&(card, device)) {
            return Err((FailureClass::Conflict, "InvalidParameterValue"));
        }
        let here = taken.iter().filter(|(other, _)| *other == card).count();
        if here as u64 >= u64::from(limits.enis_on(card)) {
            return Err((FailureClass::AttachmentLimit, "AttachmentLimitExceeded"));
        }
        let attachment = AttachmentId(format!("eni-attach-{id}-{now}"));
        let attached = CloudAttachment {
            id: attachment.clone(),
            instance: Some(instance.clone()),
            device,
            card,
            status: "attaching".to_owned(),
            delete_on_termination: false,
        };
        self.change(id, now, |eni| {
            if let Some(eni) = eni {
                eni.attachment = Some(attached);
            }
        });
        self.consequences
            .push(Consequence::LinkComes(instance.clone(), mac));
        Ok(CloudAnswer::Attached(attachment))
    }

    /// The attachment ends. EC2 shows `detaching` for a moment; what cannot be seen of it is left out here.
    pub fn detach(&mut self, id: &EniId, now: u64) {
        let Some(eni) = self.eni(id) else { return };
        let (mac, attachment) = (eni.mac, eni.attachment.clone());
        if let Some(instance) = attachment.and_then(|attachment| attachment.instance) {
            self.consequences.push(Consequence::LinkGoes(instance, mac));
        }
        self.change(id, now, |eni| {
            if let Some(eni) = eni {
                eni.attachment = None;
            }
        });
    }

    /// An ENI attached nowhere is deleted, and its addresses are free again.
    pub fn delete(&mut self, id: &EniId, now: u64) {
        let Some(eni) = self.eni(id).cloned() else { return };
        self.change(id, now, |eni| *eni = None);
        if let Some(subnet) = self.subnets.iter_mut().find(|subnet| subnet.id == eni.subnet) {
            subnet.give(eni.primary);
            eni.secondary.iter().for_each(|address| subnet.give(*address));
            eni.prefixes.iter().for_each(|prefix| subnet.give_block(*prefix));
            eni.prefixes6.iter().for_each(|block| subnet.six.give(*block));
        }
    }

    pub(super) fn assign(&mut self, id: &EniId, amount: Amount, now: u64) -> Result<CloudAnswer, Refused> {
        let eni = self.eni(id).ok_or(NO_ENI)?;
        let there = match amount {
            Amount::Block => eni.prefixes6.len(),
            Amount::Addresses(_) | Amount::Prefixes(_) => 1 + eni.secondary.len() + eni.prefixes.len(),
        };
        let holder = eni
            .attachment
            .as_ref()
            .and_then(|attachment| attachment.instance.as_ref());
        let most = holder
            .and_then(|instance| self.instances.get(instance))
            .map_or(50, |instance| instance.limits.ipv4_per_eni);
        if there as u64 + u64::from(amount.places()) > u64::from(most) {
            return Err((FailureClass::AddressLimit, "PrivateIpAddressLimitExceeded"));
        }
        let subnet = eni.subnet.clone();
        let place = self.subnets.iter_mut().find(|known| known.id == subnet);
        let place = place.ok_or((FailureClass::Other, "InvalidSubnetID.NotFound"))?;
        let (addresses, prefixes, blocks) = take_places(place, amount, &mut self.dice)?;
        self.change(id, now, |eni| {
            if let Some(eni) = eni {
                eni.secondary.extend(&addresses);
                eni.prefixes.extend(&prefixes);
                eni.prefixes6.extend(&blocks);
            }
        });
        Ok(match amount {
            Amount::Block => CloudAnswer::Delegated(blocks),
            Amount::Addresses(_) | Amount::Prefixes(_) => CloudAnswer::Assigned { addresses, prefixes },
        })
    }

    /// Addresses and prefixes are taken from an ENI; all must be there.
    pub fn unassign(
        &mut self,
        id: &EniId,
        addresses: &[Ipv4Addr],
        prefixes: &[Ipv4Cidr],
        now: u64,
    ) -> Result<CloudAnswer, Refused> {
        let eni = self.eni(id).ok_or(NO_ENI)?;
        let there = addresses.iter().all(|address| eni.secondary.contains(address))
            && prefixes.iter().all(|prefix| eni.prefixes.contains(prefix));
        if !there {
            return Err((FailureClass::Other, "InvalidParameterValue"));
        }
        let subnet = eni.subnet.clone();
        self.change(id, now, |eni| {
            if let Some(eni) = eni {
                eni.secondary.retain(|address| !addresses.contains(address));
                eni.prefixes.retain(|prefix| !prefixes.contains(prefix));
                let is_gone = |address: &Ipv4Addr| prefixes.iter().any(|prefix| prefix.contains(*address));
                eni.public
                    .retain(|address| !addresses.contains(address) && !is_gone(address));
            }
        });
        if let Some(subnet) = self.subnets.iter_mut().find(|known| known.id == subnet) {
            for address in addresses {
                subnet.give(*address);
            }
            for prefix in prefixes {
                subnet.give_block(*prefix);
            }
        }
        Ok(CloudAnswer::Done)
    }
}

type Places = (Vec<Ipv4Addr>, Vec<Ipv4Cidr>, Vec<Ipv6Cidr>);

fn take_places(subnet: &mut Subnet, amount: Amount, dice: &mut Dice) -> Result<Places, Refused> {
    match amount {
        Amount::Block => Ok((Vec::new(), Vec::new(), vec![subnet.six.take(dice)?])),
        Amount::Addresses(count) => {
            let addresses = subnet.take_many(count, dice);
            let full = (FailureClass::SubnetFull, "InsufficientFreeAddressesInSubnet");
            Ok((addresses.ok_or(full)?, Vec::new(), Vec::new()))
        }
        Amount::Prefixes(count) => {
            let prefixes = subnet.take_blocks(count);
            let full = (FailureClass::SubnetFull, "InsufficientCidrBlocks");
            Ok((Vec::new(), prefixes.ok_or(full)?, Vec::new()))
        }
    }
}
