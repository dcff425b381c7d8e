//! The world's EC2: limits, idempotency tokens, and whatever fault the next call is to meet.

use std::collections::BTreeMap;
use std::net::Ipv4Addr;

use crate::cidr::Ipv4Cidr;
use crate::cidr6::Ipv6Cidr;
use crate::cloud::*;
use crate::event::Event;
use crate::ids::*;
use crate::tags;

use super::world::{Fault, Work, World, attachment, failure};

/// Addresses, prefixes and /80s.
type Portion = (Vec<Ipv4Addr>, Vec<Ipv4Cidr>, Vec<Ipv6Cidr>);

impl World {
    pub(super) fn answer(&mut self, request: CloudCall, fault: Option<Fault>) -> CloudResult {
        let line = match &request {
            CloudCall::CreateEni { amount, .. } => format!("Create {}", amount.places()),
            CloudCall::AttachEni {
                eni, device, card, ..
            } if !card.is_first() => format!("Attach {eni} {} on {card}", device.0),
            CloudCall::AttachEni { eni, device, .. } => format!("Attach {eni} {}", device.0),
            CloudCall::Assign {
                eni,
                amount: Amount::Block,
            } => format!("Delegate {eni}"),
            CloudCall::Assign { eni, amount } => format!("Assign {eni} {}", amount.places()),
            CloudCall::DeleteOnTermination { eni, .. } => format!("Modify {eni}"),
            CloudCall::DescribeEnis { scope, .. } => format!("Describe {scope:?}"),
            CloudCall::DeleteEni { proof } => format!("Delete {}", proof.subject()),
            CloudCall::DescribeSubnets { .. } => "Describe Subnets".to_owned(),
            CloudCall::SetGroups { eni, .. } => format!("Groups {eni}"),
            CloudCall::DescribeLeftEnis { .. } => "Describe left".to_owned(),
            CloudCall::DescribeInstances { .. } => "Describe instances".to_owned(),
            CloudCall::TagEni { eni, .. } => format!("Tag {eni}"),
            CloudCall::UnassignAddresses { eni, proofs } => format!("Unassign {eni} {}", proofs.len()),
            CloudCall::UnassignPrefixes { eni, proofs } => format!("UnassignPrefixes {eni} {}", proofs.len()),
            CloudCall::DetachEni { eni, .. } => format!("Detach {eni}"),
            CloudCall::DescribeInstanceType { .. } => "DescribeInstanceType".to_owned(),
        };
        let is_concerned = line.starts_with(self.outage_of);
        self.log.push(line);
        if let Some(class) = self.outage.filter(|_| is_concerned) {
            return Err(failure(class, "outage"));
        }
        let is_return = matches!(
            request,
            CloudCall::UnassignAddresses { .. }
                | CloudCall::UnassignPrefixes { .. }
                | CloudCall::DetachEni { .. }
        );
        if let Some(class) = self.refuse_returns.filter(|_| is_return) {
            return Err(failure(class, "refused"));
        }
        match fault {
            Some(Fault::Refuse(class)) => Err(failure(class, "refused")),
            Some(Fault::LostBefore) => Err(failure(FailureClass::NoAnswer, "lost on the way")),
            Some(Fault::LostAfter) => {
                let _effect = self.execute(request, false);
                Err(failure(FailureClass::NoAnswer, "lost on the way back"))
            }
            Some(Fault::Omit) => self.execute(request, true),
            Some(Fault::Old) => self.lag(request),
            None => self.execute(request, false),
        }
    }

    /// Answers a Describe as it would have been answered up to half the lag ago.
    fn lag(&mut self, request: CloudCall) -> CloudResult {
        let lag = self.policy.describe_lag / 2;
        let now = self.now;
        self.old.retain(|(until, _)| until.after(lag) > now);
        let known = self.old.front().map(|(_, enis)| enis.clone());
        match (&request, known) {
            (CloudCall::DescribeEnis { .. }, Some(enis)) => {
                let present = std::mem::replace(&mut self.enis, enis);
                let answer = self.execute(request, false);
                self.enis = present;
                answer
            }
            _ => self.execute(request, false),
        }
    }

    fn execute(&mut self, request: CloudCall, omit: bool) -> CloudResult {
        if !matches!(request, CloudCall::DescribeEnis { .. }) {
            self.old.push_back((self.now, self.enis.clone()));
            self.old.truncate(200);
        }
        match request {
            CloudCall::CreateEni {
                token,
                subnet,
                groups,
                amount,
                description,
                tags,
                tracking,
            } => self.create(token, (subnet, groups, tracking), amount, description, tags),
            CloudCall::AttachEni {
                eni, device, card, ..
            } => self.attach(&eni, (card, device)),
            CloudCall::DeleteOnTermination { eni, .. } => {
                let attachment = self.enis.get_mut(&eni).and_then(|eni| eni.attachment.as_mut());
                let attachment =
                    attachment.ok_or_else(|| failure(FailureClass::Gone, "no such attachment"))?;
                attachment.delete_on_termination = true;
                Ok(CloudAnswer::Done)
            }
            CloudCall::Assign { eni, amount } => self.assign(&eni, amount),
            CloudCall::DeleteEni { proof } if self.neighbours.borrow().enis.contains_key(proof.subject()) => {
                self.delete_left(proof.subject())
            }
            CloudCall::TagEni { eni, tags } if self.neighbours.borrow().enis.contains_key(&eni) => {
                self.tag_left(&eni, tags)
            }
            CloudCall::DescribeLeftEnis { vpc, cluster } => {
                Ok(CloudAnswer::Enis(self.describe_left(&vpc, cluster.as_deref())))
            }
            CloudCall::DescribeInstances { instances } => {
                let mut known = self.neighbours.borrow().instances.clone();
                known.retain(|id, _| instances.contains(id));
                Ok(CloudAnswer::Instances(known))
            }
            CloudCall::DeleteEni { proof } => match self.enis.get(proof.subject()) {
                None => Err(failure(FailureClass::Gone, "no such ENI")),
                Some(eni) if eni.attachment.is_some() => panic!("an attached ENI was to be deleted"),
                Some(eni) => {
                    let subnet = eni.subnet.clone();
                    *self.free_in(&subnet)? += 1;
                    self.enis.remove(proof.subject());
                    Ok(CloudAnswer::Done)
                }
            },
            CloudCall::DescribeEnis { scope, .. } => {
                let wanted = |eni: &&CloudEni| (scope == DescribeScope::Attached) == eni.attachment.is_some();
                let mut enis: Vec<CloudEni> = self.enis.values().filter(wanted).cloned().collect();
                if omit {
                    // The primary ENI sorts last here, so a fault hits another one first, else an address of it.
                    if enis.len() > 1 {
                        enis.remove(0);
                    } else if let Some(eni) = enis.first_mut() {
                        eni.secondary.pop();
                        eni.prefixes6.pop();
                    }
                }
                Ok(CloudAnswer::Enis(enis))
            }
            CloudCall::SetGroups { eni, groups } => {
                assert!(!groups.is_empty(), "no group means the VPC's default group");
                assert_ne!(eni, self.facts.primary_eni, "the primary ENI's are the user's");
                let eni = self.enis.get_mut(&eni);
                eni.ok_or_else(|| failure(FailureClass::Gone, "no such ENI"))?
                    .groups = groups;
                Ok(CloudAnswer::Done)
            }
            CloudCall::TagEni { eni, tags } => {
                assert!(!tags.is_empty(), "a call for nothing");
                let eni = self.enis.get_mut(&eni);
                let eni = eni.ok_or_else(|| failure(FailureClass::Gone, "no such ENI"))?;
                eni.tags.extend(tags);
                Ok(CloudAnswer::Done)
            }
            CloudCall::DescribeSubnets { .. } => {
                let own = CloudSubnet {
                    id: self.facts.subnet.clone(),
                    cidr: self.facts.subnet_cidr,
                    free: self.subnet_free,
                    tags: self.subnet_tags.clone(),
                };
                let own = (!omit).then_some(own);
                let all = own.into_iter().chain(self.subnets.values().cloned());
                Ok(CloudAnswer::Subnets(all.collect()))
            }
            CloudCall::DescribeInstanceType { .. } => Ok(CloudAnswer::Limits(self.limits)),
            CloudCall::UnassignAddresses { eni, proofs } => self.unassign(
                &eni,
                &proofs.iter().map(|proof| *proof.subject()).collect::<Vec<_>>(),
            ),
            CloudCall::UnassignPrefixes { eni, proofs } => self.unassign_prefixes(
                &eni,
                &proofs.iter().map(|proof| *proof.subject()).collect::<Vec<_>>(),
            ),
            CloudCall::DetachEni { proof, .. } => self.detach(proof.subject()),
        }
    }

    /// Reference ipamd 4.10: by owner tag, state, VPC and, when there is one, the cluster's name.
    fn describe_left(&self, vpc: &VpcId, cluster: Option<&str>) -> Vec<CloudEni> {
        assert_eq!(*vpc, self.facts.vpc);
        let of_cluster = |eni: &&CloudEni| {
            cluster.is_none_or(|name| eni.tags.get(tags::CLUSTER).is_some_and(|value| value == name))
        };
        let neighbours = self.neighbours.borrow();
        let all = self.enis.values().chain(neighbours.enis.values());
        let left = all
            .filter(|eni| eni.attachment.is_none() && eni.tags.contains_key(tags::INSTANCE))
            .filter(of_cluster);
        left.cloned().collect()
    }

    fn tag_left(&self, id: &EniId, tags: BTreeMap<String, String>) -> CloudResult {
        let mut neighbours = self.neighbours.borrow_mut();
        let eni = neighbours.enis.get_mut(id);
        let eni = eni.ok_or_else(|| failure(FailureClass::Gone, "no such ENI"))?;
        eni.tags.extend(tags);
        Ok(CloudAnswer::Done)
    }

    /// EC2's own last word: what is attached is not deleted. Whose owner lives must not even be asked for.
    fn delete_left(&self, id: &EniId) -> CloudResult {
        let mut neighbours = self.neighbours.borrow_mut();
        let owner = neighbours
            .enis
            .get(id)
            .and_then(|eni| eni.tags.get(tags::INSTANCE));
        let owner = owner.map(|owner| InstanceId::from(owner.as_str())).unwrap();
        assert!(
            neighbours.instances.get(&owner) != Some(&true),
            "{owner} lives, {id} is its"
        );
        if neighbours
            .enis
            .get(id)
            .is_some_and(|eni| eni.attachment.is_some())
        {
            return Err(failure(
                FailureClass::Conflict,
                "InvalidParameterValue: currently in use",
            ));
        }
        neighbours.enis.remove(id);
        neighbours.deleted.push((id.clone(), self.facts.instance.clone()));
        Ok(CloudAnswer::Done)
    }

    fn fresh_prefix(&mut self) -> Ipv6Cidr {
        self.next += 1;
        format!("2001:db8:0:1:{:x}::/80", self.next).parse().unwrap()
    }

    fn fresh_address(&mut self) -> Ipv4Addr {
        if let Some(address) = self.returning.pop() {
            return address;
        }
        self.next += 1;
        Ipv4Addr::from_bits(0x0a00_1000 + self.next)
    }

    fn create(
        &mut self,
        token: ClientToken,
        (subnet, groups, tracking): (SubnetId, Vec<SecurityGroupId>, ConnectionTracking),
        amount: Amount,
        description: String,
        tags: BTreeMap<String, String>,
    ) -> CloudResult {
        if let Some(known) = self.tokens.get(&token).and_then(|id| self.enis.get(id)) {
            if known.tags != tags {
                assert!(self.retagged, "the same token with other parameters");
                return Err(failure(FailureClass::Conflict, "IdempotentParameterMismatch"));
            }
            return Ok(CloudAnswer::Created(known.clone()));
        }
        self.take_from(&subnet, 1)?;
        let portion = self.portion(&subnet, amount);
        if portion.is_err() {
            *self.free_in(&subnet)? += 1;
        }
        let (secondary, prefixes, prefixes6) = portion?;
        self.next += 1;
        let id = EniId(format!("eni-{:04}", self.next));
        let [_, _, high, low] = self.next.to_be_bytes();
        let eni = CloudEni {
            id: id.clone(),
            mac: Mac([2, 0, 0, 0, high.wrapping_add(1), low]),
            subnet,
            subnet_cidr: None,
            primary: self.fresh_address(),
            secondary,
            prefixes,
            prefixes6,
            public: vec![],
            tracking,
            groups,
            interface_type: "interface".to_owned(),
            attachment: None,
            description,
            tags,
        };
        self.tokens.insert(token, id.clone());
        self.enis.insert(id, eni.clone());
        Ok(CloudAnswer::Created(eni))
    }

    /// What a subnet has left.
    pub(super) fn free_in(&mut self, subnet: &SubnetId) -> Result<&mut u32, CloudFailure> {
        if *subnet == self.facts.subnet {
            return Ok(&mut self.subnet_free);
        }
        let other = self.subnets.get_mut(subnet).map(|subnet| &mut subnet.free);
        other.ok_or_else(|| failure(FailureClass::Gone, "InvalidSubnetID.NotFound"))
    }

    fn take_from(&mut self, subnet: &SubnetId, count: u32) -> Result<(), CloudFailure> {
        let free = self.free_in(subnet)?;
        let left = free.checked_sub(count);
        *free = left.ok_or_else(|| CloudFailure {
            code: Some("InsufficientFreeAddressesInSubnet".to_owned()),
            ..failure(FailureClass::SubnetFull, "no free address")
        })?;
        Ok(())
    }

    fn attach(&mut self, id: &EniId, (card, device): (CardIndex, DeviceIndex)) -> CloudResult {
        let attached: Vec<DeviceIndex> = self
            .enis
            .values()
            .filter_map(|e| e.attachment.as_ref())
            .filter(|attachment| attachment.card == card)
            .map(|attachment| attachment.device)
            .collect();
        let eni = self
            .enis
            .get_mut(id)
            .ok_or_else(|| failure(FailureClass::Gone, "no such ENI"))?;
        if eni.attachment.is_some() || attached.contains(&device) {
            return Err(failure(FailureClass::Conflict, "in use"));
        }
        if attached.len() >= self.limits.enis_on(card) as usize {
            return Err(failure(FailureClass::AttachmentLimit, "AttachmentLimitExceeded"));
        }
        eni.attachment = Some(CloudAttachment {
            card,
            ..attachment(id, &self.facts.instance, device)
        });
        self.work.push_back(Work::Link(eni.mac));
        Ok(CloudAnswer::Attached(AttachmentId(format!("attach-{id}"))))
    }

    /// Addresses or prefixes from the subnet, all or none.
    fn portion(&mut self, subnet: &SubnetId, amount: Amount) -> Result<Portion, CloudFailure> {
        match amount {
            Amount::Block if self.delegates => Ok((vec![], vec![], vec![self.fresh_prefix()])),
            Amount::Block => Err(CloudFailure {
                code: Some("InsufficientCidrBlocks".to_owned()),
                ..failure(FailureClass::SubnetFull, "no free /80")
            }),
            Amount::Addresses(count) => {
                self.take_from(subnet, count)?;
                Ok(((0..count).map(|_| self.fresh_address()).collect(), vec![], vec![]))
            }
            Amount::Prefixes(count) => {
                let is_own = *subnet == self.facts.subnet;
                let (left, size) = if is_own {
                    (&mut self.blocks_free, 1)
                } else {
                    (self.free_in(subnet)?, 16)
                };
                *left = left.checked_sub(count * size).ok_or_else(|| CloudFailure {
                    code: Some("InsufficientCidrBlocks".to_owned()),
                    ..failure(FailureClass::SubnetFull, "no free block")
                })?;
                Ok((vec![], (0..count).map(|_| self.fresh_block()).collect(), vec![]))
            }
        }
    }

    fn fresh_block(&mut self) -> Ipv4Cidr {
        self.next += 1;
        Ipv4Cidr::prefix_around(Ipv4Addr::from_bits(0x0a01_0000 + self.next * 16))
    }

    fn assign(&mut self, id: &EniId, amount: Amount) -> CloudResult {
        let there = self
            .enis
            .get(id)
            .map(|eni| (eni.cidrs().count(), eni.subnet.clone()));
        let (there, subnet) = there.ok_or_else(|| failure(FailureClass::Gone, "no such ENI"))?;
        let is_block = amount == Amount::Block;
        assert!(
            !is_block || self.enis[id].prefixes6.is_empty(),
            "a second /80 is asked for"
        );
        if !is_block && there + amount.places() as usize >= self.limits.ipv4_per_eni as usize {
            return Err(failure(
                FailureClass::AddressLimit,
                "PrivateIpAddressLimitExceeded",
            ));
        }
        let (addresses, prefixes, prefixes6) = self.portion(&subnet, amount)?;
        if let Some(eni) = self.enis.get_mut(id) {
            eni.secondary.extend(&addresses);
            eni.prefixes.extend(&prefixes);
            eni.prefixes6.extend(&prefixes6);
        }
        if is_block {
            return Ok(CloudAnswer::Delegated(prefixes6));
        }
        Ok(CloudAnswer::Assigned { addresses, prefixes })
    }

    fn unassign(&mut self, id: &EniId, addresses: &[Ipv4Addr]) -> CloudResult {
        self.judge_unused(addresses);
        let eni = self.enis.get_mut(id);
        let eni = eni.ok_or_else(|| failure(FailureClass::Gone, "no such ENI"))?;
        if !addresses.iter().all(|address| eni.secondary.contains(address)) {
            return Err(failure(FailureClass::Other, "not assigned"));
        }
        eni.secondary.retain(|address| !addresses.contains(address));
        self.subnet_free += u32::try_from(addresses.len()).unwrap_or_default();
        Ok(CloudAnswer::Done)
    }

    fn unassign_prefixes(&mut self, id: &EniId, prefixes: &[Ipv4Cidr]) -> CloudResult {
        let addresses: Vec<Ipv4Addr> = prefixes.iter().flat_map(|prefix| prefix.addresses()).collect();
        self.judge_unused(&addresses);
        let eni = self.enis.get_mut(id);
        let eni = eni.ok_or_else(|| failure(FailureClass::Gone, "no such ENI"))?;
        if !prefixes.iter().all(|prefix| eni.prefixes.contains(prefix)) {
            return Err(failure(FailureClass::Other, "not assigned"));
        }
        eni.prefixes.retain(|prefix| !prefixes.contains(prefix));
        self.blocks_free += u32::try_from(prefixes.len()).unwrap_or_default();
        Ok(CloudAnswer::Done)
    }

    fn detach(&mut self, attachment: &AttachmentId) -> CloudResult {
        let here = |eni: &&mut CloudEni| {
            eni.attachment
                .as_ref()
                .is_some_and(|known| known.id == *attachment)
        };
        let eni = self.enis.values_mut().find(here);
        let eni = eni.ok_or_else(|| failure(FailureClass::Gone, "no such attachment"))?;
        eni.attachment = None;
        let mac = eni.mac;
        let addresses: Vec<Ipv4Addr> = eni.cidrs().flat_map(Ipv4Cidr::addresses).collect();
        self.judge_unused(&addresses);
        self.work.push_back(Work::Unlink(mac));
        Ok(CloudAnswer::Done)
    }

    /// Somebody else detaches an ENI.
    pub(super) fn detach_from_outside(&mut self, id: &EniId) {
        if let Some(eni) = self.enis.get_mut(id) {
            eni.attachment = None;
            let mac = eni.mac;
            if self.links.remove(&mac) {
                self.event(Event::LinkGone { mac });
            }
        }
    }
}
