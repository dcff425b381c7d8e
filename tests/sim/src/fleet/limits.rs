//! EC2's request token buckets of one account in one region, which all nodes share
//! (<https://docs.aws.amazon.com/ec2/latest/devguide/ec2-api-throttling.html>).

use std::collections::BTreeMap;

use aws_cni_ipam::cloud::CloudCall;

/// An API action, as far as it has a bucket of its own.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Api {
    /// `CreateNetworkInterface`.
    Create,
    /// `DeleteNetworkInterface`.
    Delete,
    /// `AttachNetworkInterface`.
    Attach,
    /// `DetachNetworkInterface`.
    Detach,
    /// `ModifyNetworkInterfaceAttribute`.
    Modify,
    /// `CreateTags`.
    Tag,
    /// `AssignPrivateIpAddresses`.
    Assign,
    /// `UnassignPrivateIpAddresses`.
    Unassign,
    /// `DescribeNetworkInterfaces` with filters and pages.
    Enis,
    /// `DescribeNetworkInterfaces` by ids alone.
    EnisById,
    /// `DescribeInstances` with filters and pages.
    Instances,
    /// `DescribeInstances` by ids alone.
    InstancesById,
    /// `DescribeSubnets`.
    Subnets,
    /// `DescribeInstanceTypes`.
    Types,
}

impl Api {
    /// Capacity and tokens a second. Attach and Detach are not listed, so they are in the general class of mutating
    /// actions; a Describe with neither filter nor page has the smaller bucket.
    const fn published(self) -> (u64, u64) {
        match self {
            Self::Attach | Self::Detach => (50, 5),
            Self::Tag => (100, 10),
            Self::Enis | Self::Instances | Self::Subnets | Self::Types => (100, 20),
            Self::EnisById | Self::InstancesById => (50, 10),
            Self::Create | Self::Delete | Self::Modify | Self::Assign | Self::Unassign => (100, 5),
        }
    }

    /// Whether it only looks.
    pub const fn looks(self) -> bool {
        matches!(
            self,
            Self::Enis | Self::EnisById | Self::Instances | Self::InstancesById | Self::Subnets | Self::Types
        )
    }

    /// The action of one of our calls; our Describes have filters and pages.
    pub const fn of(call: &CloudCall) -> Self {
        match call {
            CloudCall::CreateEni { .. } => Self::Create,
            CloudCall::AttachEni { .. } => Self::Attach,
            CloudCall::DeleteOnTermination { .. } | CloudCall::SetGroups { .. } => Self::Modify,
            CloudCall::TagEni { .. } => Self::Tag,
            CloudCall::Assign { .. } => Self::Assign,
            CloudCall::UnassignAddresses { .. } | CloudCall::UnassignPrefixes { .. } => Self::Unassign,
            CloudCall::DetachEni { .. } => Self::Detach,
            CloudCall::DeleteEni { .. } => Self::Delete,
            CloudCall::DescribeEnis { .. } | CloudCall::DescribeLeftEnis { .. } => Self::Enis,
            CloudCall::DescribeInstances { .. } => Self::Instances,
            CloudCall::DescribeSubnets { .. } => Self::Subnets,
            CloudCall::DescribeInstanceType { .. } => Self::Types,
        }
    }
}

/// What reached one action.
#[derive(Debug, Clone, Copy, Default)]
pub struct Traffic {
    /// Calls.
    pub calls: u64,
    /// Those of them that were refused.
    pub throttled: u64,
    thousandths: u64,
    filled_at: u64,
}

/// The account's buckets, and what was taken from them.
#[derive(Debug, Default)]
pub struct Limits {
    traffic: BTreeMap<Api, Traffic>,
}

impl Limits {
    /// Takes a token, if there is one.
    pub fn take(&mut self, api: Api, now: u64) -> bool {
        let (capacity, a_second) = api.published();
        let full = capacity * 1000;
        let traffic = self.traffic.entry(api).or_insert(Traffic {
            thousandths: full,
            filled_at: now,
            ..Traffic::default()
        });
        // One token a second is one thousandth of a token a millisecond.
        let gained = now.saturating_sub(traffic.filled_at).saturating_mul(a_second);
        traffic.thousandths = traffic.thousandths.saturating_add(gained).min(full);
        traffic.filled_at = now;
        traffic.calls += 1;
        let left = traffic.thousandths.checked_sub(1000);
        traffic.thousandths = left.unwrap_or(traffic.thousandths);
        traffic.throttled += u64::from(left.is_none());
        left.is_some()
    }

    /// What reached each action.
    pub const fn traffic(&self) -> &BTreeMap<Api, Traffic> {
        &self.traffic
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_thousand_creations_take_the_published_three_minutes() {
        let mut limits = Limits::default();
        let granted = |limits: &mut Limits, now| (0..1000).filter(|_| limits.take(Api::Create, now)).count();
        assert_eq!(granted(&mut limits, 0), 100);
        assert_eq!(
            (1..=180).map(|s| granted(&mut limits, s * 1000)).sum::<usize>(),
            900
        );
        assert!(limits.take(Api::Attach, 0));
    }
}
