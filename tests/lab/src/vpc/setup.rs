//! What an operator creates before any node runs: VPCs, subnets, groups and instances.

use std::net::Ipv4Addr;
use std::time::{Instant, SystemTime, UNIX_EPOCH};

use super::change::VpcChange;
use super::cidr::{Ipv4Cidr, Ipv6Cidr};
use super::error::{ApiError, ApiResult};
use super::ids::{AttachmentId, EniId, GroupId, InstanceId, SubnetId, VpcId};
use super::model::Model;
use super::requests::{CreateEni, NewInstance};
use super::space::{Space, Space6, Want};
use super::types::{
    AttachStatus, Attachment, Eni, Instance, InstanceState, SecurityGroup, Subnet, Tags, Vpc,
};

/// The wall clock, for the dates EC2 shows; nothing is decided on it.
pub(super) fn epoch_seconds() -> u64 {
    SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .map_or(0, |since| since.as_secs())
}

impl Model {
    /// A VPC with its networks, the first being the primary one.
    pub fn create_vpc(&mut self, cidrs: &[Ipv4Cidr], ipv6_cidr: Option<Ipv6Cidr>) -> VpcId {
        let id = VpcId(self.new_id(VpcId::PREFIX));
        let vpc = Vpc {
            id: id.clone(),
            cidrs: cidrs.to_vec(),
            ipv6_cidr,
            tags: Tags::new(),
        };
        self.vpcs.insert(id.clone(), vpc);
        id
    }

    /// `AssociateVpcCidrBlock`.
    pub fn add_vpc_cidr(&mut self, vpc: &VpcId, cidr: Ipv4Cidr) -> ApiResult<()> {
        let found = self
            .vpcs
            .get_mut(vpc)
            .ok_or_else(|| ApiError::vpc_not_found(vpc))?;
        found.cidrs.push(cidr);
        self.announce(&VpcChange::VpcCidrAdded {
            vpc: vpc.clone(),
            cidr,
        });
        Ok(())
    }

    /// A subnet, which must lie in one of its VPC's networks and overlap no other subnet.
    pub fn create_subnet(
        &mut self,
        vpc: &VpcId,
        zone: &str,
        cidr: Ipv4Cidr,
        ipv6_cidr: Option<Ipv6Cidr>,
    ) -> ApiResult<SubnetId> {
        let parent = self.vpcs.get(vpc).ok_or_else(|| ApiError::vpc_not_found(vpc))?;
        if !parent.cidrs.iter().any(|network| network.covers(cidr)) {
            return Err(ApiError::new(
                "InvalidSubnet.Range",
                format!("The CIDR '{cidr}' is invalid."),
            ));
        }
        let clashes = |subnet: &Subnet| subnet.vpc == *vpc && subnet.cidr.overlaps(cidr);
        if self.subnets.values().any(clashes) {
            return Err(ApiError::new(
                "InvalidSubnet.Conflict",
                format!("The CIDR '{cidr}' conflicts with another subnet"),
            ));
        }
        let id = SubnetId(self.new_id(SubnetId::PREFIX));
        self.spaces.insert(id.clone(), Space::new(cidr));
        if let Some(ipv6_cidr) = ipv6_cidr {
            self.spaces6.insert(id.clone(), Space6::new(ipv6_cidr));
        }
        let subnet = Subnet {
            id: id.clone(),
            vpc: vpc.clone(),
            zone: zone.to_owned(),
            cidr,
            ipv6_cidr,
            tags: Tags::new(),
        };
        self.subnets.insert(id.clone(), subnet);
        Ok(id)
    }

    /// A security group.
    pub fn create_group(&mut self, vpc: &VpcId, name: &str) -> ApiResult<GroupId> {
        if !self.vpcs.contains_key(vpc) {
            return Err(ApiError::vpc_not_found(vpc));
        }
        let id = GroupId(self.new_id(GroupId::PREFIX));
        let group = SecurityGroup {
            id: id.clone(),
            name: name.to_owned(),
            vpc: vpc.clone(),
            tags: Tags::new(),
        };
        self.groups.insert(id.clone(), group);
        Ok(id)
    }

    /// An instance with its primary ENI, attached and linked at once.
    pub fn run_instance(&mut self, spec: NewInstance, at: Instant) -> ApiResult<Instance> {
        let kind = self.types.get(&spec.instance_type).cloned().ok_or_else(|| {
            ApiError::invalid_value(format!(
                "The following supplied instance types do not exist: [{}]",
                spec.instance_type
            ))
        })?;
        let limit = usize::try_from(kind.addresses_per_eni).unwrap_or(usize::MAX);
        if 1 + spec.wanted.addresses.len() + spec.wanted.prefixes.len() > limit {
            return Err(ApiError::too_many_addresses());
        }
        let eni = self.create_eni(
            CreateEni {
                primary: spec.private_ip,
                wanted: spec.wanted,
                ..CreateEni::plain(spec.subnet, spec.groups)
            },
            at,
        )?;
        let id = InstanceId(self.new_id(InstanceId::PREFIX));
        let instance = Instance {
            id: id.clone(),
            instance_type: spec.instance_type,
            subnet: eni.subnet.clone(),
            vpc: eni.vpc.clone(),
            zone: eni.zone.clone(),
            primary_eni: eni.id.clone(),
            private_ip: eni.primary,
            state: InstanceState::Running,
            role: spec.role,
            imds_hop_limit: spec.imds_hop_limit,
            imds_tokens_required: spec.imds_tokens_required,
            user_data: spec.user_data,
            launched: epoch_seconds(),
            tags: spec.tags,
        };
        self.instances.insert(id.clone(), instance.clone());
        let attachment = Attachment {
            id: AttachmentId(self.new_id(AttachmentId::PREFIX)),
            instance: id,
            device: 0,
            card: kind.default_card,
            status: AttachStatus::Attached,
            link: true,
            delete_on_termination: true,
            since: epoch_seconds(),
        };
        let eni = Eni {
            attachment: Some(attachment),
            ..Eni::clone(&eni)
        };
        self.put(eni, at);
        Ok(instance)
    }

    /// `TerminateInstances`: ENIs marked so go with it, the others become available.
    pub fn terminate_instance(&mut self, id: &InstanceId, at: Instant) -> ApiResult<()> {
        let instance = self
            .instances
            .get_mut(id)
            .ok_or_else(|| ApiError::instance_not_found(id))?;
        instance.state = InstanceState::Terminated;
        let attached: Vec<(EniId, bool)> = self
            .enis
            .values()
            .filter_map(|eni| {
                let attachment = eni.attachment.as_ref().filter(|found| found.instance == *id)?;
                Some((eni.id.clone(), attachment.delete_on_termination))
            })
            .collect();
        for (eni, delete) in attached {
            let detached = Eni {
                attachment: None,
                ..Eni::clone(self.eni(&eni)?)
            };
            self.put(detached, at);
            if delete {
                self.delete_eni(&eni, at)?;
            }
        }
        self.announce(&VpcChange::InstanceTerminated { instance: id.clone() });
        Ok(())
    }

    /// What EC2 does about an hour after the end of an instance: it knows the id no more.
    pub fn forget_instance(&mut self, id: &InstanceId) -> ApiResult<()> {
        match self.instances.get(id).map(|instance| instance.state) {
            None => Err(ApiError::instance_not_found(id)),
            Some(InstanceState::Running) => Err(ApiError::new(
                "IncorrectInstanceState",
                format!("The instance '{id}' is not in a state from which it can be forgotten"),
            )),
            Some(InstanceState::Terminated) => {
                self.instances.remove(id);
                Ok(())
            }
        }
    }

    /// Takes addresses out of a subnet as if somebody else's ENIs held them, all or none.
    pub fn occupy(&mut self, subnet: &SubnetId, addresses: Vec<Ipv4Addr>) -> ApiResult<()> {
        let space = self
            .spaces
            .get_mut(subnet)
            .ok_or_else(|| ApiError::subnet_not_found(subnet))?;
        space
            .take_addresses(&Want::Exactly(addresses), &mut self.rng)
            .map(drop)
    }

    /// Occupies a subnet until only `free` addresses are left.
    pub fn leave_free(&mut self, subnet: &SubnetId, free: u64) -> ApiResult<Vec<Ipv4Addr>> {
        let space = self
            .spaces
            .get_mut(subnet)
            .ok_or_else(|| ApiError::subnet_not_found(subnet))?;
        let surplus = space.free_addresses().saturating_sub(free);
        let count = u32::try_from(surplus).unwrap_or(u32::MAX);
        space.take_addresses(&Want::Count(count), &mut self.rng)
    }

    /// Gives back what [`Self::occupy`] or [`Self::leave_free`] took.
    pub fn vacate(&mut self, subnet: &SubnetId, addresses: &[Ipv4Addr]) {
        if let Some(space) = self.spaces.get_mut(subnet) {
            space.release_addresses(addresses);
        }
    }
}
