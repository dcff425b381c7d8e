//! The life of an ENI: create, attach, modify, tag, detach, delete.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Instant;

use super::error::{ApiError, ApiResult};
use super::ids::{AttachmentId, EniId, GroupId, InstanceId, VpcId};
use super::model::{Model, Step};
use super::requests::{AttachEni, CreateEni, Modify, Stages};
use super::setup::epoch_seconds;
use super::types::{AttachStatus, Attachment, Eni, Instance, InstanceState, Tags};

/// <https://docs.aws.amazon.com/AWSEC2/latest/UserGuide/Using_Tags.html#tag-restrictions>
fn check_tag_count(tags: usize) -> ApiResult<()> {
    if tags > 50 {
        return Err(ApiError::new(
            "TagLimitExceeded",
            "The maximum number of tags for a resource has been reached.",
        ));
    }
    Ok(())
}

impl Model {
    /// `CreateNetworkInterface`. The same token gives the same ENI; with other parameters it is an error.
    pub fn create_eni(&mut self, request: CreateEni, at: Instant) -> ApiResult<Arc<Eni>> {
        if let Some(token) = &request.token
            && let Some((before, created)) = self.tokens.get(token)
        {
            if *before != request {
                return Err(ApiError::new(
                    "IdempotentParameterMismatch",
                    "Arguments on this idempotent request are inconsistent with arguments used in previous request(s).",
                ));
            }
            return Ok(self
                .enis
                .get(&created.id)
                .map_or_else(|| Arc::clone(created), Arc::clone));
        }
        let subnet = self
            .subnets
            .get(&request.subnet)
            .ok_or_else(|| ApiError::subnet_not_found(&request.subnet))?
            .clone();
        let groups = self.check_groups(&request.groups, &subnet.vpc)?;
        check_tag_count(request.tags.len())?;
        if self.enis.len() >= self.quotas.enis {
            return Err(ApiError::new(
                "NetworkInterfaceLimitExceeded",
                "The maximum number of network interfaces has been reached.",
            ));
        }
        let widest = self.types.values().map(|kind| kind.addresses_per_eni).max();
        Self::check_slots(1, 0, &request.wanted, widest.unwrap_or(u32::MAX))?;
        let primary = self.take_primary(&request.subnet, request.primary)?;
        let grant = match self.take(&request.subnet, &request.wanted) {
            Ok(grant) => grant,
            Err(error) => {
                self.vacate(&request.subnet, &[primary]);
                return Err(error);
            }
        };
        let eni = Eni {
            id: EniId(self.new_id(EniId::PREFIX)),
            mac: self.new_mac(),
            subnet: subnet.id,
            vpc: subnet.vpc,
            zone: subnet.zone,
            description: request.description.clone(),
            interface_type: request.interface_type.clone(),
            groups,
            primary,
            secondary: grant.addresses,
            prefixes: grant.prefixes,
            ipv6: grant.ipv6,
            ipv6_prefixes: grant.ipv6_prefixes,
            attachment: None,
            source_dest_check: true,
            connection_tracking: request.connection_tracking.clone(),
            tags: request.tags.clone(),
        };
        let eni = self.put(eni, at);
        if let Some(token) = request.token.clone() {
            self.tokens.insert(token, (request, Arc::clone(&eni)));
        }
        Ok(eni)
    }

    fn check_groups(&self, groups: &[GroupId], vpc: &VpcId) -> ApiResult<Vec<GroupId>> {
        if groups.is_empty() {
            let default = self.groups.values().find(|group| group.vpc == *vpc);
            return Ok(default.map(|group| group.id.clone()).into_iter().collect());
        }
        if groups.len() > self.quotas.groups_per_eni {
            return Err(ApiError::new(
                "SecurityGroupsPerInterfaceLimitExceeded",
                "The maximum number of security groups per interface has been reached.",
            ));
        }
        for id in groups {
            let group = self.groups.get(id).ok_or_else(|| ApiError::group_not_found(id))?;
            if group.vpc != *vpc {
                return Err(ApiError::invalid_value(format!(
                    "You have specified two resources that belong to different networks: '{id}' is not in '{vpc}'."
                )));
            }
        }
        Ok(groups.to_vec())
    }

    /// `DeleteNetworkInterface`: only while attached nowhere.
    pub fn delete_eni(&mut self, id: &EniId, at: Instant) -> ApiResult<()> {
        let eni = Arc::clone(self.eni(id)?);
        if eni.attachment.is_some() {
            return Err(ApiError::invalid_value(format!(
                "Network interface '{id}' is currently in use."
            )));
        }
        self.release_all(&eni);
        self.forget(id, at);
        Ok(())
    }

    /// `AttachNetworkInterface`: at once `attaching`, the rest by [`Stages`].
    pub fn attach_eni(
        &mut self,
        request: &AttachEni,
        stages: Stages,
        at: Instant,
    ) -> ApiResult<AttachmentId> {
        let instance = self.running(&request.instance)?.clone();
        let mut eni = Eni::clone(self.eni(&request.eni)?);
        self.check_attach(request, &instance, &eni)?;
        let id = AttachmentId(self.new_id(AttachmentId::PREFIX));
        eni.attachment = Some(Attachment {
            id: id.clone(),
            instance: instance.id,
            device: request.device,
            card: request.card,
            status: AttachStatus::Attaching,
            link: false,
            delete_on_termination: false,
            since: epoch_seconds(),
        });
        self.put(eni, at);
        self.schedule(at + stages.link, Step::LinkUp(id.clone(), request.eni.clone()));
        self.schedule(
            at + stages.status,
            Step::SayAttached(id.clone(), request.eni.clone()),
        );
        Ok(id)
    }

    fn running(&self, id: &InstanceId) -> ApiResult<&Instance> {
        let instance = self
            .instances
            .get(id)
            .ok_or_else(|| ApiError::instance_not_found(id))?;
        if instance.state != InstanceState::Running {
            return Err(ApiError::new(
                "IncorrectState",
                format!("Instance '{id}' is not 'running' or 'stopped'."),
            ));
        }
        Ok(instance)
    }

    fn check_attach(&self, request: &AttachEni, instance: &Instance, eni: &Eni) -> ApiResult<()> {
        if eni.attachment.is_some() {
            return Err(ApiError::new(
                "InvalidNetworkInterface.InUse",
                format!("Interface: [{}] in use.", eni.id),
            ));
        }
        if eni.zone != instance.zone {
            return Err(ApiError::combination(
                "You may not attach a network interface to an instance if they are not in the same availability zone",
            ));
        }
        let kind = self
            .types
            .get(&instance.instance_type)
            .ok_or_else(|| ApiError::new("InternalError", "the lab lost an instance type"))?;
        let card = kind
            .cards
            .iter()
            .find(|card| card.index == request.card)
            .ok_or_else(|| {
                ApiError::invalid_value(format!(
                    "Network card index '{}' is not valid for instance type '{}'.",
                    request.card, kind.name
                ))
            })?;
        let taken: BTreeSet<u32> = self
            .enis
            .values()
            .filter_map(|other| other.attachment.as_ref())
            .filter(|other| other.instance == instance.id && other.card == request.card)
            .map(|other| other.device)
            .collect();
        if taken.contains(&request.device) {
            return Err(ApiError::invalid_value(format!(
                "Instance '{}' already has an interface attached at device index '{}'.",
                instance.id, request.device
            )));
        }
        let count = u32::try_from(taken.len()).unwrap_or(u32::MAX).saturating_add(1);
        if count > card.enis {
            return Err(ApiError::new(
                "AttachmentLimitExceeded",
                format!("Interface count {count} exceeds the limit for {}", kind.name),
            ));
        }
        let limit = usize::try_from(kind.addresses_per_eni).unwrap_or(usize::MAX);
        if eni.ipv4_slots() > limit || eni.ipv6_slots() > limit {
            return Err(ApiError::too_many_addresses());
        }
        let prefixes = eni.prefixes.len() + eni.ipv6_prefixes.len();
        if prefixes > 0 && !kind.prefixes_supported() {
            return Err(Self::no_prefixes(&kind.name));
        }
        Ok(())
    }

    /// `DetachNetworkInterface`: at once `detaching`, the rest by [`Stages`].
    pub fn detach_eni(&mut self, attachment: &AttachmentId, stages: Stages, at: Instant) -> ApiResult<()> {
        let mut eni = Eni::clone(self.eni_of(attachment)?);
        let Some(current) = eni.attachment.as_mut() else {
            return Ok(());
        };
        if current.device == 0 && current.card == 0 {
            return Err(ApiError::new(
                "OperationNotPermitted",
                "The network interface at device index 0 and networkCard index 0 cannot be detached.",
            ));
        }
        if current.status == AttachStatus::Detaching {
            return Ok(());
        }
        current.status = AttachStatus::Detaching;
        let id = eni.id.clone();
        self.put(eni, at);
        self.schedule(at + stages.link, Step::LinkDown(attachment.clone(), id.clone()));
        self.schedule(
            at + stages.status.max(stages.link),
            Step::SayDetached(attachment.clone(), id),
        );
        Ok(())
    }

    fn eni_of(&self, attachment: &AttachmentId) -> ApiResult<&Arc<Eni>> {
        self.enis
            .values()
            .find(|eni| {
                eni.attachment
                    .as_ref()
                    .is_some_and(|found| found.id == *attachment)
            })
            .ok_or_else(|| ApiError::attachment_not_found(attachment))
    }

    /// `ModifyNetworkInterfaceAttribute`.
    pub fn modify_eni(&mut self, id: &EniId, change: Modify, at: Instant) -> ApiResult<()> {
        let mut eni = Eni::clone(self.eni(id)?);
        match change {
            Modify::Groups(groups) => eni.groups = self.check_groups(&groups, &eni.vpc)?,
            Modify::Description(description) => eni.description = description,
            Modify::SourceDestCheck(check) => eni.source_dest_check = check,
            Modify::ConnectionTracking(timeouts) => eni.connection_tracking = timeouts,
            Modify::DeleteOnTermination { attachment, delete } => {
                let current = eni
                    .attachment
                    .as_mut()
                    .filter(|current| current.id == attachment)
                    .ok_or_else(|| ApiError::attachment_not_found(&attachment))?;
                current.delete_on_termination = delete;
            }
        }
        self.put(eni, at);
        Ok(())
    }

    /// `CreateTags`: all resources or none.
    pub fn create_tags(&mut self, resources: &[String], tags: &Tags, at: Instant) -> ApiResult<()> {
        for resource in resources {
            let present = self.tags_of(resource)?;
            let keys: BTreeSet<&String> = present.keys().chain(tags.keys()).collect();
            check_tag_count(keys.len())?;
        }
        for resource in resources {
            self.add_tags(resource, tags, at)?;
        }
        Ok(())
    }

    /// `DeleteTags` of one ENI.
    pub fn delete_eni_tags(&mut self, id: &EniId, keys: &[&str], at: Instant) -> ApiResult<()> {
        let mut eni = Eni::clone(self.eni(id)?);
        eni.tags.retain(|key, _| !keys.contains(&key.as_str()));
        self.put(eni, at);
        Ok(())
    }

    fn tags_of(&self, resource: &str) -> ApiResult<Tags> {
        let tags = if resource.starts_with(EniId::PREFIX) {
            &self.eni(&EniId::from(resource))?.tags
        } else if resource.starts_with("subnet-") {
            let found = self.subnets.get(resource);
            &found.ok_or_else(|| ApiError::subnet_not_found(resource))?.tags
        } else if resource.starts_with(VpcId::PREFIX) {
            let found = self.vpcs.get(resource);
            &found.ok_or_else(|| ApiError::vpc_not_found(resource))?.tags
        } else if resource.starts_with(GroupId::PREFIX) {
            let found = self.groups.get(resource);
            &found.ok_or_else(|| ApiError::group_not_found(resource))?.tags
        } else if resource.starts_with(InstanceId::PREFIX) {
            let found = self.instances.get(resource);
            &found.ok_or_else(|| ApiError::instance_not_found(resource))?.tags
        } else {
            return Err(ApiError::new(
                "InvalidID",
                format!("The ID '{resource}' is not valid"),
            ));
        };
        Ok(tags.clone())
    }

    fn add_tags(&mut self, resource: &str, tags: &Tags, at: Instant) -> ApiResult<()> {
        let more = || tags.iter().map(|(key, value)| (key.clone(), value.clone()));
        if resource.starts_with(EniId::PREFIX) {
            let mut eni = Eni::clone(self.eni(&EniId::from(resource))?);
            eni.tags.extend(more());
            self.put(eni, at);
        } else if let Some(subnet) = self.subnets.get_mut(resource) {
            subnet.tags.extend(more());
        } else if let Some(vpc) = self.vpcs.get_mut(resource) {
            vpc.tags.extend(more());
        } else if let Some(group) = self.groups.get_mut(resource) {
            group.tags.extend(more());
        } else if let Some(instance) = self.instances.get_mut(resource) {
            instance.tags.extend(more());
        }
        Ok(())
    }
}
