//! The model itself: what exists, and what will happen when.
//!
//! Every operation takes the time it happens at; nothing here reads a clock. Operations are all-or-nothing.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, Sender, channel};
use std::time::Instant;

use super::change::{AttachedEni, VpcChange};
use super::error::{ApiError, ApiResult};
use super::ids::{AttachmentId, EniId, GroupId, InstanceId, Mac, SubnetId, VpcId};
use super::instance_types::{self, InstanceType};
use super::journal::{Journal, Version, View};
use super::rng::Rng;
use super::space::{Space, Space6};
use super::types::{AttachStatus, Eni, Instance, SecurityGroup, Subnet, Vpc};

/// Limits of the account, adjustable like EC2's quotas.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Quotas {
    /// Network interfaces in the region.
    pub enis: usize,
    /// Security groups on an ENI.
    pub groups_per_eni: usize,
}

impl Default for Quotas {
    /// <https://docs.aws.amazon.com/vpc/latest/userguide/amazon-vpc-limits.html>
    fn default() -> Self {
        Self {
            enis: 5000,
            groups_per_eni: 5,
        }
    }
}

/// What the model does by itself when its time has come.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Step {
    LinkUp(AttachmentId, EniId),
    SayAttached(AttachmentId, EniId),
    LinkDown(AttachmentId, EniId),
    SayDetached(AttachmentId, EniId),
}

/// All there is.
#[derive(Debug)]
pub struct Model {
    /// The region's name.
    pub region: String,
    /// The account's number.
    pub account: String,
    /// Limits of the account.
    pub quotas: Quotas,
    /// Instance types by name.
    pub types: BTreeMap<String, InstanceType>,
    pub(super) rng: Rng,
    pub(super) vpcs: BTreeMap<VpcId, Vpc>,
    pub(super) subnets: BTreeMap<SubnetId, Subnet>,
    pub(super) spaces: BTreeMap<SubnetId, Space>,
    pub(super) spaces6: BTreeMap<SubnetId, Space6>,
    pub(super) groups: BTreeMap<GroupId, SecurityGroup>,
    pub(super) instances: BTreeMap<InstanceId, Instance>,
    pub(super) enis: BTreeMap<EniId, Arc<Eni>>,
    pub(super) tokens: BTreeMap<String, (super::requests::CreateEni, Arc<Eni>)>,
    journal: Journal,
    pending: BTreeMap<(Instant, u64), Step>,
    step_seq: u64,
    subscribers: Vec<Sender<VpcChange>>,
    announced: u64,
    readdressed: u64,
}

impl Model {
    /// An empty region. The same seed gives the same ids and addresses for the same calls.
    pub fn new(seed: u64, region: &str, account: &str) -> Self {
        Self {
            region: region.to_owned(),
            account: account.to_owned(),
            quotas: Quotas::default(),
            types: instance_types::builtin(),
            rng: Rng::new(seed),
            vpcs: BTreeMap::new(),
            subnets: BTreeMap::new(),
            spaces: BTreeMap::new(),
            spaces6: BTreeMap::new(),
            groups: BTreeMap::new(),
            instances: BTreeMap::new(),
            enis: BTreeMap::new(),
            tokens: BTreeMap::new(),
            journal: Journal::default(),
            pending: BTreeMap::new(),
            step_seq: 0,
            subscribers: Vec::new(),
            announced: 0,
            readdressed: 0,
        }
    }

    /// Changes from now on, preceded by the ENIs whose links exist already.
    pub fn subscribe(&mut self) -> Receiver<VpcChange> {
        let (sender, receiver) = channel();
        for attached in self.linked() {
            // The receiver lives until this function returns.
            drop(sender.send(VpcChange::EniAttached(Box::new(attached))));
        }
        self.subscribers.push(sender);
        receiver
    }

    /// The ENIs whose links exist.
    pub fn linked(&self) -> impl Iterator<Item = AttachedEni> {
        self.enis.values().filter_map(|eni| self.attached(eni))
    }

    /// How many changes with a kernel side there have been.
    pub fn announced(&self) -> u64 {
        self.announced
    }

    /// How many there had been when last an attached ENI got or lost an address, that one included.
    pub fn readdressed(&self) -> u64 {
        self.readdressed
    }

    pub(super) fn announce(&mut self, change: &VpcChange) {
        self.announced += 1;
        self.subscribers
            .retain(|subscriber| subscriber.send(change.clone()).is_ok());
    }

    fn attached(&self, eni: &Eni) -> Option<AttachedEni> {
        let attachment = eni.attachment.as_ref().filter(|attachment| attachment.link)?;
        let subnet = self.subnets.get(&eni.subnet)?;
        Some(AttachedEni {
            instance: attachment.instance.clone(),
            eni: eni.id.clone(),
            attachment: attachment.id.clone(),
            mac: eni.mac,
            device: attachment.device,
            card: attachment.card,
            subnet: eni.subnet.clone(),
            vpc: eni.vpc.clone(),
            subnet_cidr: subnet.cidr,
            subnet_ipv6_cidr: subnet.ipv6_cidr,
            owned: eni.owned(),
            source_dest_check: eni.source_dest_check,
        })
    }

    /// Makes `eni` the truth from `at` on and tells the fabric what it must know.
    pub(super) fn put(&mut self, eni: Eni, at: Instant) -> Arc<Eni> {
        let eni = Arc::new(eni);
        let before = self.enis.insert(eni.id.clone(), Arc::clone(&eni));
        let had_link = before.as_deref().and_then(|before| self.attached(before));
        match (had_link, self.attached(&eni)) {
            (None, Some(attached)) => self.announce(&VpcChange::EniAttached(Box::new(attached))),
            (Some(attached), None) => self.announce(&VpcChange::EniDetached {
                instance: attached.instance,
                eni: attached.eni,
                mac: attached.mac,
            }),
            (Some(old), Some(new))
                if old.owned != new.owned || old.source_dest_check != new.source_dest_check =>
            {
                self.announce(&VpcChange::AddressesChanged {
                    instance: new.instance,
                    eni: new.eni,
                    owned: new.owned,
                    source_dest_check: new.source_dest_check,
                });
                self.readdressed = self.announced;
            }
            _ => {}
        }
        let own = Some(Arc::clone(&eni));
        self.journal.record(&eni.id, own, at, self.readdressed);
        eni
    }

    pub(super) fn forget(&mut self, id: &EniId, at: Instant) {
        self.enis.remove(id);
        self.journal.record(id, None, at, self.readdressed);
    }

    pub(super) fn schedule(&mut self, at: Instant, step: Step) {
        self.step_seq += 1;
        self.pending.insert((at, self.step_seq), step);
    }

    /// When something happens next without being asked for.
    pub fn next_due(&self) -> Option<Instant> {
        self.pending.keys().next().map(|(at, _)| *at)
    }

    /// Lets happen what was due until `now`, each at its own time.
    pub fn advance(&mut self, now: Instant) {
        while let Some(entry) = self.pending.first_entry().filter(|entry| entry.key().0 <= now) {
            let ((at, _), step) = entry.remove_entry();
            self.take_step(&step, at);
        }
    }

    fn take_step(&mut self, step: &Step, at: Instant) {
        let (Step::LinkUp(attachment, eni)
        | Step::SayAttached(attachment, eni)
        | Step::LinkDown(attachment, eni)
        | Step::SayDetached(attachment, eni)) = step;
        let Some(eni) = self.enis.get(eni) else { return };
        let mut eni = Eni::clone(eni);
        let Some(current) = eni
            .attachment
            .as_mut()
            .filter(|current| current.id == *attachment)
        else {
            return;
        };
        let attaching = current.status == AttachStatus::Attaching;
        match step {
            Step::LinkUp(..) if current.status != AttachStatus::Detaching => current.link = true,
            Step::SayAttached(..) if attaching => current.status = AttachStatus::Attached,
            Step::LinkDown(..) => current.link = false,
            Step::SayDetached(..) => eni.attachment = None,
            Step::LinkUp(..) | Step::SayAttached(..) => return,
        }
        self.put(eni, at);
    }

    /// All ENIs as they are.
    pub fn enis(&self) -> &View {
        &self.enis
    }

    /// All ENIs as a reader sees them to whom `visible` says which versions have reached it.
    pub fn view(&self, visible: impl Fn(&Version) -> bool) -> View {
        self.journal.view(visible)
    }

    /// VPCs by id.
    pub fn vpcs(&self) -> &BTreeMap<VpcId, Vpc> {
        &self.vpcs
    }

    /// Subnets by id.
    pub fn subnets(&self) -> &BTreeMap<SubnetId, Subnet> {
        &self.subnets
    }

    /// Security groups by id.
    pub fn groups(&self) -> &BTreeMap<GroupId, SecurityGroup> {
        &self.groups
    }

    /// Instances by id, the terminated ones included.
    pub fn instances(&self) -> &BTreeMap<InstanceId, Instance> {
        &self.instances
    }

    /// The free space of a subnet.
    pub fn space(&self, subnet: &SubnetId) -> Option<&Space> {
        self.spaces.get(subnet)
    }

    /// The instance an address belongs to, through any ENI whose link exists.
    pub fn instance_at(&self, address: std::net::IpAddr) -> Option<InstanceId> {
        self.enis.values().find_map(|eni| {
            let attachment = eni.attachment.as_ref().filter(|attachment| attachment.link)?;
            let owns = match address {
                std::net::IpAddr::V4(v4) => {
                    eni.primary == v4
                        || eni.secondary.contains(&v4)
                        || eni.prefixes.iter().any(|prefix| prefix.contains(v4))
                }
                std::net::IpAddr::V6(v6) => {
                    eni.ipv6.contains(&v6) || eni.ipv6_prefixes.iter().any(|prefix| prefix.contains(v6))
                }
            };
            owns.then(|| attachment.instance.clone())
        })
    }

    pub(super) fn eni(&self, id: &EniId) -> ApiResult<&Arc<Eni>> {
        self.enis
            .get(id)
            .ok_or_else(|| ApiError::eni_not_found(id.as_str()))
    }

    pub(super) fn instance_type_of(&self, eni: &Eni) -> Option<&InstanceType> {
        let instance = self.instances.get(&eni.attachment.as_ref()?.instance)?;
        self.types.get(&instance.instance_type)
    }

    pub(super) fn new_id(&mut self, prefix: &str) -> String {
        format!("{prefix}0{:016x}", self.rng.next_u64())
    }

    pub(super) fn new_mac(&mut self) -> Mac {
        let [_, _, octets @ ..] = self.rng.next_u64().to_be_bytes();
        let mut mac = Mac(octets);
        mac.0[0] = 0x0a;
        mac
    }
}
