//! What Describe shows: each thing as it was a moment ago.

use std::collections::BTreeMap;

use aws_cni_ipam::cloud::{CloudAnswer, CloudCall, CloudEni, CloudSubnet, DescribeScope, FailureClass};
use aws_cni_ipam::ids::InstanceId;
use aws_cni_ipam::tags;

use super::{Account, Lateness, Refused};

/// How long an attachment is shown as `attaching`.
const ATTACHING: u64 = 1500;

impl Account {
    pub(super) fn describe(
        &self,
        call: &CloudCall,
        now: u64,
        late: Lateness<'_>,
    ) -> Result<CloudAnswer, Refused> {
        match call {
            CloudCall::DescribeEnis { instance, scope } => {
                let tag = Some(instance.as_str());
                Ok(CloudAnswer::Enis(self.list(now, late, |eni| match scope {
                    DescribeScope::Attached => is_on(eni, instance),
                    DescribeScope::OursUnattached => {
                        eni.attachment.is_none() && eni.tags.get(tags::INSTANCE).map(String::as_str) == tag
                    }
                })))
            }
            CloudCall::DescribeLeftEnis { cluster, .. } => {
                let ours = |eni: &CloudEni| {
                    eni.attachment.is_none()
                        && eni.tags.contains_key(tags::INSTANCE)
                        && cluster
                            .as_ref()
                            .is_none_or(|cluster| eni.tags.get(tags::CLUSTER) == Some(cluster))
                };
                Ok(CloudAnswer::Enis(self.list(now, late, ours)))
            }
            CloudCall::DescribeInstances { instances } => {
                let known = |id: &InstanceId| Some((id.clone(), self.instances.get(id)?.lives));
                let known: BTreeMap<InstanceId, bool> = instances.iter().filter_map(known).collect();
                Ok(CloudAnswer::Instances(known))
            }
            CloudCall::DescribeSubnets { .. } => {
                let subnets = self.subnets.iter().map(|subnet| CloudSubnet {
                    id: subnet.id.clone(),
                    cidr: subnet.cidr,
                    free: subnet.free(),
                    tags: subnet.tags.clone(),
                });
                Ok(CloudAnswer::Subnets(subnets.collect()))
            }
            CloudCall::DescribeInstanceType { .. } => {
                let instance = self.instances.values().next();
                let limits = instance.map(|instance| CloudAnswer::Limits(instance.limits));
                limits.ok_or((FailureClass::Other, "InvalidInstanceType"))
            }
            _ => Err((FailureClass::Other, "InvalidAction")),
        }
    }

    /// Every ENI as it was at some time.
    pub fn seen(&self, time: u64) -> impl Iterator<Item = &CloudEni> {
        self.interfaces
            .values()
            .filter_map(move |interface| interface.at(time))
    }

    fn list(&self, now: u64, late: Lateness<'_>, wanted: impl Fn(&CloudEni) -> bool) -> Vec<CloudEni> {
        let mut listed = Vec::new();
        for interface in self.interfaces.values() {
            let time = now.saturating_sub(late());
            let Some(eni) = interface.at(time).filter(|eni| wanted(eni)) else {
                continue;
            };
            let mut eni = eni.clone();
            if let Some(attachment) = &mut eni.attachment
                && time >= interface.moved_at.saturating_add(ATTACHING)
            {
                "attached".clone_into(&mut attachment.status);
            }
            listed.push(eni);
        }
        listed
    }
}

fn is_on(eni: &CloudEni, instance: &InstanceId) -> bool {
    let attachment = eni.attachment.as_ref();
    attachment.is_some_and(|attachment| attachment.instance.as_ref() == Some(instance))
}
