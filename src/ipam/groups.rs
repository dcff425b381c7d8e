//! Security groups: new ENIs get the primary ENI's, and those that were made follow when these change.
//!
//! Each ENI's groups come with EC2's list of what is attached, so only what differs is written (Q27): never the primary
//! ENI's, never those of an ENI that somebody else made, and never an empty list, which would mean the VPC's default group.

use super::ids::{EniId, SecurityGroupId};
use super::model::{Eni, EniRole};
use super::pool::Pool;

/// The groups that ENIs shall have.
pub(super) fn wanted(pool: &Pool) -> &[SecurityGroupId] {
    let policy = pool.policy();
    let choice = policy.eni_config.as_ref().filter(|_| policy.custom_networking);
    let own = choice
        .map(|choice| &choice.groups)
        .filter(|groups| !groups.is_empty());
    own.unwrap_or(&pool.facts().security_groups)
}

/// What an ENI's groups are to be set to, when they are known to be others.
pub(super) fn due(pool: &Pool, eni: &Eni) -> Option<Vec<SecurityGroupId>> {
    let wanted = wanted(pool);
    let has = &pool.memory.enis.get(&eni.id)?.seen.as_ref()?;
    let is_ours = eni.role == EniRole::Secondary && has.made_by_us;
    // With custom networking an ENI elsewhere is only emptied, and without an ENIConfig nothing is known.
    let is_known = !pool.policy().custom_networking || (pool.policy().eni_config.is_some() && !eni.excluded);
    let differs = || has.groups != wanted && sorted(&has.groups) != sorted(wanted);
    let is_due = is_ours && is_known && !wanted.is_empty() && !has.groups.is_empty() && differs();
    is_due.then(|| wanted.to_vec())
}

/// In EC2's lists the order means nothing.
fn sorted(groups: &[SecurityGroupId]) -> Vec<&SecurityGroupId> {
    let mut sorted: Vec<_> = groups.iter().collect();
    sorted.sort_unstable();
    sorted.dedup();
    sorted
}

/// EC2 has set them.
pub(super) fn set(pool: &mut Pool, id: &EniId, groups: Vec<SecurityGroupId>) {
    if let Some(seen) = &mut pool.memory.progress(id).seen {
        seen.groups = groups;
    }
}

/// IMDS's word on the primary ENI's groups. EC2 itself tells what they are, once IMDS has shown that they changed: a
/// list that IMDS repeats, older than EC2's, is no news.
pub(super) fn told_by_imds(pool: &mut Pool, mut groups: Vec<SecurityGroupId>) {
    groups.sort_unstable();
    let last = pool.memory.imds_groups.replace(groups.clone());
    if groups.is_empty()
        || sorted(&groups) == sorted(&pool.facts().security_groups)
        || last == Some(groups.clone())
    {
        return;
    }
    if pool.memory.ec2 == super::memory::Ec2View::Answered {
        pool.memory.describe.insert(super::cloud::DescribeScope::Attached);
    } else {
        pool.set_groups(groups);
    }
}
