//! A model of EC2: what an account has, what its calls do, and what its Describe shows, late.

pub mod bucket;
mod change;
mod describe;
mod outside;
pub mod six;
pub mod subnet;

use std::collections::{BTreeMap, VecDeque};
use std::net::Ipv4Addr;

use aws_cni_ipam::cidr::Ipv4Cidr;
use aws_cni_ipam::cidr6::Ipv6Cidr;
use aws_cni_ipam::cloud::{
    Amount, CloudAnswer, CloudAttachment, CloudCall, CloudEni, CloudFailure, CloudResult, FailureClass,
};
use aws_cni_ipam::ids::{
    AttachmentId, CardIndex, ClientToken, DeviceIndex, EniId, InstanceId, Mac, SecurityGroupId, SubnetId,
};
use aws_cni_ipam::limits::InstanceLimits;

use crate::dice::Dice;
use crate::script::Which;
use bucket::Buckets;
use subnet::Subnet;

/// How long Describe may go on showing what was: history is kept that long.
const MEMORY: u64 = 600_000;

/// `true` keeps us away from an ENI.
pub const NO_MANAGE: &str = "node.k8s.amazonaws.com/no_manage";

/// What an ENI is and was.
#[derive(Debug, Default)]
pub struct Interface {
    /// What it is; `None` when it is deleted.
    pub is: Option<CloudEni>,
    /// Since when it is attached or not.
    pub moved_at: u64,
    /// Whether it is somebody else's: nothing of ours may change it.
    pub foreign: bool,
    /// Whether it may be used, but is not ours to detach or delete.
    pub kept: bool,
    /// When a public address was last associated.
    pub public_since: u64,
    /// Whether another instance has left it, and since when any node may delete it, if ever.
    pub left: Option<Option<u64>>,
    /// What it was, and until when.
    was: VecDeque<(u64, Option<CloudEni>)>,
}

impl Interface {
    /// What it was at some time.
    fn at(&self, time: u64) -> Option<&CloudEni> {
        let past = self.was.iter().find(|(until, _)| *until > time);
        past.map_or(&self.is, |(_, state)| state).as_ref()
    }
}

/// An instance as EC2 knows it.
#[derive(Debug)]
pub struct Instance {
    /// Its limits.
    pub limits: InstanceLimits,
    /// Whether it runs.
    pub lives: bool,
    /// Its primary ENI.
    pub primary: EniId,
}

/// What follows at an instance from a change at EC2.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Consequence {
    /// A link will appear.
    LinkComes(InstanceId, Mac),
    /// A link disappears.
    LinkGoes(InstanceId, Mac),
}

#[derive(Debug)]
struct Known {
    fingerprint: String,
    answer: CloudEni,
}

/// Everything of one account in one region.
#[derive(Debug)]
pub struct Account {
    /// Its ENIs, deleted ones included as long as Describe may show them.
    pub interfaces: BTreeMap<EniId, Interface>,
    /// Its subnets.
    pub subnets: Vec<Subnet>,
    /// Its instances.
    pub instances: BTreeMap<InstanceId, Instance>,
    /// What happens at instances, to be taken by whoever drives them.
    pub consequences: Vec<Consequence>,
    /// Calls that reached it.
    pub calls: BTreeMap<Which, u64>,
    tokens: BTreeMap<ClientToken, Known>,
    buckets: Buckets,
    dice: Dice,
    made: u32,
    /// The /80 that others have taken from an ENI last.
    taken_block: Option<(EniId, Ipv6Cidr)>,
}

/// Which kind a call is of.
pub fn kind_of(call: &CloudCall) -> Which {
    match call {
        CloudCall::CreateEni { .. } => Which::Create,
        CloudCall::AttachEni { .. } => Which::Attach,
        CloudCall::DeleteOnTermination { .. } | CloudCall::SetGroups { .. } => Which::Modify,
        CloudCall::TagEni { .. } => Which::Tag,
        CloudCall::Assign { .. } => Which::Assign,
        CloudCall::UnassignAddresses { .. } | CloudCall::UnassignPrefixes { .. } => Which::Unassign,
        CloudCall::DetachEni { .. } => Which::Detach,
        CloudCall::DeleteEni { .. } => Which::Delete,
        CloudCall::DescribeEnis { .. }
        | CloudCall::DescribeLeftEnis { .. }
        | CloudCall::DescribeInstances { .. }
        | CloudCall::DescribeSubnets { .. }
        | CloudCall::DescribeInstanceType { .. } => Which::Describe,
    }
}

/// A refusal of EC2.
pub fn refusal(which: Which, class: FailureClass, code: &str) -> CloudFailure {
    CloudFailure {
        class,
        action: which.to_string(),
        code: Some(code.to_owned()),
        message: code.to_owned(),
        request_id: None,
        retry_after: None,
    }
}

type Refused = (FailureClass, &'static str);
const NO_ENI: Refused = (FailureClass::Gone, "InvalidNetworkInterfaceID.NotFound");
const IN_USE: Refused = (FailureClass::Conflict, "InvalidNetworkInterface.InUse");

/// Describe is late by this much for one thing: drawn for each, so that an answer need not be of one moment.
pub type Lateness<'a> = &'a mut dyn FnMut() -> u64;

impl Account {
    /// An account with nothing but subnets.
    pub fn new(seed: u64, subnets: Vec<Subnet>) -> Self {
        Self {
            interfaces: BTreeMap::new(),
            subnets,
            instances: BTreeMap::new(),
            consequences: Vec::new(),
            calls: BTreeMap::new(),
            tokens: BTreeMap::new(),
            buckets: Buckets::default(),
            dice: Dice::new(seed, "ec2"),
            made: 0,
            taken_block: None,
        }
    }

    /// Launches an instance with a primary ENI in a subnet.
    pub fn launch(
        &mut self,
        instance: &InstanceId,
        limits: InstanceLimits,
        subnet: &SubnetId,
        secondary: u32,
        now: u64,
    ) -> Option<CloudEni> {
        let mut eni = self.make(subnet, Amount::Addresses(secondary)).ok()?;
        eni.attachment = Some(CloudAttachment {
            id: AttachmentId(format!("eni-attach-{}", eni.id)),
            instance: Some(instance.clone()),
            device: DeviceIndex(0),
            card: CardIndex(0),
            status: "attached".to_owned(),
            delete_on_termination: true,
        });
        eni.groups = vec!["sg-1".into()];
        let known = Instance {
            limits,
            lives: true,
            primary: eni.id.clone(),
        };
        self.instances.insert(instance.clone(), known);
        self.insert(eni.clone(), false, now);
        Some(eni)
    }

    fn insert(&mut self, eni: CloudEni, foreign: bool, now: u64) {
        let interface = Interface {
            is: Some(eni.clone()),
            moved_at: now,
            foreign,
            kept: false,
            public_since: 0,
            left: None,
            was: [(now, None)].into(),
        };
        self.interfaces.insert(eni.id, interface);
    }

    /// The ENI as it is.
    pub fn eni(&self, id: &EniId) -> Option<&CloudEni> {
        self.interfaces.get(id)?.is.as_ref()
    }

    /// ENIs attached to an instance as it is.
    pub fn attached<'a>(&'a self, instance: &'a InstanceId) -> impl Iterator<Item = &'a CloudEni> {
        let here = move |eni: &&CloudEni| {
            eni.attachment
                .as_ref()
                .is_some_and(|attachment| attachment.instance.as_ref() == Some(instance))
        };
        self.interfaces
            .values()
            .filter_map(|interface| interface.is.as_ref())
            .filter(here)
    }

    /// An address of an ENI gets a public one.
    pub fn associate(&mut self, id: &EniId, address: Ipv4Addr, now: u64) {
        self.change(id, now, |eni| {
            if let Some(eni) = eni.as_mut().filter(|eni| !eni.public.contains(&address)) {
                eni.public.push(address);
            }
        });
        if let Some(interface) = self.interfaces.get_mut(id) {
            interface.public_since = now;
        }
    }

    fn change(&mut self, id: &EniId, now: u64, change: impl FnOnce(&mut Option<CloudEni>)) {
        let Some(interface) = self.interfaces.get_mut(id) else {
            return;
        };
        let before = interface.is.clone();
        change(&mut interface.is);
        let attachment = |eni: &Option<CloudEni>| eni.as_ref().and_then(|eni| eni.attachment.clone());
        if attachment(&before) != attachment(&interface.is) {
            interface.moved_at = now;
        }
        interface.was.push_back((now, before));
        while interface
            .was
            .front()
            .is_some_and(|(until, _)| until + MEMORY < now)
        {
            interface.was.pop_front();
        }
    }

    /// Forgets deleted ENIs that no Describe shows any more.
    pub fn forget_deleted(&mut self, now: u64) {
        self.interfaces.retain(|_, interface| {
            let recent = |(until, _): &(u64, Option<CloudEni>)| until + MEMORY >= now;
            interface.is.is_some() || interface.was.back().is_some_and(recent)
        });
    }

    /// What a call does and answers. Whether it is throttled is the caller's to ask first.
    pub fn call(&mut self, call: &CloudCall, now: u64, late: Lateness<'_>) -> CloudResult {
        let which = kind_of(call);
        *self.calls.entry(which).or_default() += 1;
        if !self.buckets.take(which, now) {
            return Err(refusal(which, FailureClass::Throttled, "RequestLimitExceeded"));
        }
        self.execute(call, now, late)
            .map_err(|(class, code)| refusal(which, class, code))
    }

    fn execute(&mut self, call: &CloudCall, now: u64, late: Lateness<'_>) -> Result<CloudAnswer, Refused> {
        match call {
            CloudCall::CreateEni { .. } => self.create(call, now),
            CloudCall::AttachEni {
                eni,
                instance,
                device,
                card,
            } => self.attach(eni, instance, *device, *card, now),
            CloudCall::DeleteOnTermination { eni, attachment } => {
                self.settled(eni, attachment)?;
                self.change(eni, now, |eni| {
                    if let Some(attachment) = eni.as_mut().and_then(|eni| eni.attachment.as_mut()) {
                        attachment.delete_on_termination = true;
                    }
                });
                Ok(CloudAnswer::Done)
            }
            CloudCall::SetGroups { eni, groups } => {
                self.eni(eni).ok_or(NO_ENI)?;
                self.change(eni, now, |eni| {
                    if let Some(eni) = eni {
                        eni.groups.clone_from(groups);
                    }
                });
                Ok(CloudAnswer::Done)
            }
            CloudCall::TagEni { eni, tags } => {
                self.eni(eni).ok_or(NO_ENI)?;
                self.change(eni, now, |eni| {
                    if let Some(eni) = eni {
                        eni.tags.extend(tags.clone());
                    }
                });
                Ok(CloudAnswer::Done)
            }
            CloudCall::Assign { eni, amount } => self.assign(eni, *amount, now),
            CloudCall::UnassignAddresses { eni, proofs } => {
                let addresses: Vec<Ipv4Addr> = proofs.iter().map(|proof| *proof.subject()).collect();
                self.unassign(eni, &addresses, &[], now)
            }
            CloudCall::UnassignPrefixes { eni, proofs } => {
                let prefixes: Vec<Ipv4Cidr> = proofs.iter().map(|proof| *proof.subject()).collect();
                self.unassign(eni, &[], &prefixes, now)
            }
            CloudCall::DetachEni { proof, .. } => {
                let here = |eni: &&CloudEni| {
                    eni.attachment
                        .as_ref()
                        .is_some_and(|is| is.id == *proof.subject())
                };
                let current = self
                    .interfaces
                    .values()
                    .filter_map(|interface| interface.is.as_ref());
                let eni = current.clone().find(here).map(|eni| eni.id.clone());
                let eni = eni.ok_or((FailureClass::Gone, "InvalidAttachmentID.NotFound"))?;
                self.detach(&eni, now);
                Ok(CloudAnswer::Done)
            }
            CloudCall::DeleteEni { proof } => {
                let eni = self.eni(proof.subject()).ok_or(NO_ENI)?;
                if eni.attachment.is_some() {
                    return Err(IN_USE);
                }
                self.delete(proof.subject(), now);
                Ok(CloudAnswer::Done)
            }
            describe => self.describe(describe, now, late),
        }
    }

    fn settled(&self, eni: &EniId, attachment: &AttachmentId) -> Result<(), Refused> {
        let is = self.eni(eni).ok_or(NO_ENI)?.attachment.as_ref();
        match is {
            Some(is) if is.id == *attachment => Ok(()),
            _ => Err((FailureClass::Gone, "InvalidAttachmentID.NotFound")),
        }
    }

    /// Changes the security groups of an ENI.
    pub fn set_groups(&mut self, id: &EniId, groups: Vec<SecurityGroupId>, now: u64) {
        self.change(id, now, |eni| {
            if let Some(eni) = eni {
                eni.groups = groups;
            }
        });
    }
}
