//! Assigning and unassigning addresses and prefixes.

use std::collections::BTreeSet;
use std::fmt::Display;
use std::net::Ipv4Addr;
use std::sync::Arc;
use std::time::Instant;

use super::error::{ApiError, ApiResult};
use super::ids::{EniId, SubnetId};
use super::model::Model;
use super::requests::{Grant, Wanted};
use super::space::Want;
use super::types::Eni;

impl Model {
    /// `AssignPrivateIpAddresses` and `AssignIpv6Addresses`: all that is wanted or nothing.
    ///
    /// With `reassign`, wanted addresses that another ENI of the subnet carries as secondary ones move over.
    pub fn assign(&mut self, id: &EniId, wanted: &Wanted, reassign: bool, at: Instant) -> ApiResult<Grant> {
        let eni = Arc::clone(self.eni(id)?);
        let wanted = &without_own(&eni, wanted);
        let limit = match self.instance_type_of(&eni) {
            Some(kind) => {
                let prefixes = wanted.prefixes.len() + wanted.ipv6_prefixes.len();
                if prefixes > 0 && !kind.prefixes_supported() {
                    return Err(Self::no_prefixes(&kind.name));
                }
                kind.addresses_per_eni
            }
            None => self
                .types
                .values()
                .map(|kind| kind.addresses_per_eni)
                .max()
                .unwrap_or(u32::MAX),
        };
        Self::check_slots(eni.ipv4_slots(), eni.ipv6_slots(), wanted, limit)?;
        if reassign && let Want::Exactly(addresses) = &wanted.addresses {
            self.take_from_others(&eni, addresses, at);
        }
        let grant = self.take(&eni.subnet, wanted)?;
        let mut eni = Eni::clone(&eni);
        eni.secondary.extend(&grant.addresses);
        eni.prefixes.extend(&grant.prefixes);
        eni.ipv6.extend(&grant.ipv6);
        eni.ipv6_prefixes.extend(&grant.ipv6_prefixes);
        self.put(eni, at);
        Ok(grant)
    }

    /// `UnassignPrivateIpAddresses` and `UnassignIpv6Addresses`: all that is named or nothing.
    pub fn unassign(&mut self, id: &EniId, what: &Grant, at: Instant) -> ApiResult<()> {
        let mut eni = Eni::clone(self.eni(id)?);
        if what.addresses.contains(&eni.primary) {
            return Err(ApiError::invalid_value(format!(
                "{} is the primary address of interface {id} and cannot be unassigned",
                eni.primary
            )));
        }
        remove(&mut eni.secondary, &what.addresses, id)?;
        remove(&mut eni.prefixes, &what.prefixes, id)?;
        remove(&mut eni.ipv6, &what.ipv6, id)?;
        remove(&mut eni.ipv6_prefixes, &what.ipv6_prefixes, id)?;
        self.give_back(&eni.subnet, what);
        self.put(eni, at);
        Ok(())
    }

    fn take_from_others(&mut self, eni: &Eni, addresses: &[Ipv4Addr], at: Instant) {
        let others: Vec<Arc<Eni>> = self
            .enis
            .values()
            .filter(|other| other.id != eni.id && other.subnet == eni.subnet)
            .filter(|other| other.secondary.iter().any(|address| addresses.contains(address)))
            .cloned()
            .collect();
        for other in others {
            let mut other = Eni::clone(&other);
            let (moving, staying) = other
                .secondary
                .iter()
                .partition::<Vec<Ipv4Addr>, _>(|address| addresses.contains(address));
            other.secondary = staying;
            self.vacate(&eni.subnet, &moving);
            self.put(other, at);
        }
    }

    pub(super) fn take_primary(
        &mut self,
        subnet: &SubnetId,
        primary: Option<Ipv4Addr>,
    ) -> ApiResult<Ipv4Addr> {
        let want = primary.map_or(Want::Count(1), |address| Want::Exactly(vec![address]));
        let wanted = Wanted {
            addresses: want,
            ..Wanted::default()
        };
        self.take(subnet, &wanted)?
            .addresses
            .first()
            .copied()
            .ok_or_else(ApiError::subnet_full)
    }

    /// Takes all that is wanted out of the subnet, or nothing.
    pub(super) fn take(&mut self, subnet: &SubnetId, wanted: &Wanted) -> ApiResult<Grant> {
        let mut grant = Grant::default();
        let result = self.take_into(subnet, wanted, &mut grant);
        if let Err(error) = result {
            self.give_back(subnet, &grant);
            return Err(error);
        }
        Ok(grant)
    }

    fn take_into(&mut self, subnet: &SubnetId, wanted: &Wanted, grant: &mut Grant) -> ApiResult<()> {
        let rng = &mut self.rng;
        let space = self
            .spaces
            .get_mut(subnet)
            .ok_or_else(|| ApiError::subnet_not_found(subnet))?;
        grant.addresses = space.take_addresses(&wanted.addresses, rng)?;
        grant.prefixes = space.take_blocks(&wanted.prefixes, rng)?;
        if wanted.ipv6.is_empty() && wanted.ipv6_prefixes.is_empty() {
            return Ok(());
        }
        let space6 = self.spaces6.get_mut(subnet).ok_or_else(|| {
            ApiError::invalid_value(format!(
                "The subnet '{subnet}' does not have an IPv6 CIDR block associated"
            ))
        })?;
        grant.ipv6 = space6.take_addresses(&wanted.ipv6, rng)?;
        grant.ipv6_prefixes = space6.take_blocks(&wanted.ipv6_prefixes, rng)?;
        Ok(())
    }

    fn give_back(&mut self, subnet: &SubnetId, grant: &Grant) {
        if let Some(space) = self.spaces.get_mut(subnet) {
            space.release_addresses(&grant.addresses);
            space.release_blocks(&grant.prefixes);
        }
        if let Some(space6) = self.spaces6.get_mut(subnet) {
            space6.release_addresses(&grant.ipv6);
            space6.release_blocks(&grant.ipv6_prefixes);
        }
    }

    pub(super) fn release_all(&mut self, eni: &Eni) {
        let mut addresses = eni.secondary.clone();
        addresses.push(eni.primary);
        let grant = Grant {
            addresses,
            prefixes: eni.prefixes.clone(),
            ipv6: eni.ipv6.clone(),
            ipv6_prefixes: eni.ipv6_prefixes.clone(),
        };
        self.give_back(&eni.subnet, &grant);
    }

    pub(super) fn check_slots(ipv4: usize, ipv6: usize, wanted: &Wanted, limit: u32) -> ApiResult<()> {
        let limit = usize::try_from(limit).unwrap_or(usize::MAX);
        let ipv4 = ipv4
            .saturating_add(wanted.addresses.len())
            .saturating_add(wanted.prefixes.len());
        let ipv6 = ipv6
            .saturating_add(wanted.ipv6.len())
            .saturating_add(wanted.ipv6_prefixes.len());
        if ipv4 > limit || ipv6 > limit {
            return Err(ApiError::too_many_addresses());
        }
        Ok(())
    }

    pub(super) fn no_prefixes(instance_type: &str) -> ApiError {
        ApiError::new(
            "UnsupportedOperation",
            format!("Prefix delegation is not supported for instance type '{instance_type}'."),
        )
    }
}

/// Explicit addresses that the ENI has already are no news to EC2.
fn without_own(eni: &Eni, wanted: &Wanted) -> Wanted {
    let mut wanted = wanted.clone();
    if let Want::Exactly(list) = &mut wanted.addresses {
        list.retain(|address| !eni.secondary.contains(address));
    }
    if let Want::Exactly(list) = &mut wanted.ipv6 {
        list.retain(|address| !eni.ipv6.contains(address));
    }
    wanted
}

fn remove<T: PartialEq + Ord + Display>(list: &mut Vec<T>, what: &[T], eni: &EniId) -> ApiResult<()> {
    let missing: Vec<String> = what
        .iter()
        .filter(|item| !list.contains(item))
        .map(ToString::to_string)
        .collect();
    if !missing.is_empty() {
        return Err(ApiError::invalid_value(format!(
            "Some of [{}] are not assigned to interface {eni}",
            missing.join(", ")
        )));
    }
    let gone: BTreeSet<&T> = what.iter().collect();
    list.retain(|item| !gone.contains(item));
    Ok(())
}
