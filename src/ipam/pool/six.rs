//! Addresses that are not listed before somebody has them: those of a /80.

use std::net::IpAddr;

use super::Pool;
use crate::ids::EniId;
use crate::model::Address;
use crate::records::RecordKey;
use crate::witness::Doubt;

impl Pool {
    /// An address is on this ENI, wherever it was before. It keeps its past, and its holder the claim.
    pub(crate) fn move_to(&mut self, id: &EniId, address: impl Into<IpAddr>) {
        let address = address.into();
        let known = self.addresses.entry(address);
        let known = known.or_insert_with(|| Address::unused(id.clone()));
        if known.eni != *id {
            known.eni = id.clone();
            self.dirty.insert(RecordKey::Address(address));
        }
    }

    /// An address of an ENI's /80 is being given: the next is behind it.
    pub(super) fn count_given(&mut self, id: &EniId, address: IpAddr) {
        let IpAddr::V6(address) = address else { return };
        let block = self.enis.get(id).and_then(|eni| eni.block.as_ref());
        let Some((prefix, place)) = block.and_then(|block| Some((block.prefix, block.place_of(address)?)))
        else {
            return;
        };
        self.memory.cursor.pass(prefix, place);
        self.move_to(id, address);
    }

    /// Whether nothing but a rest keeps an address that nobody holds known. Of a /80 nothing is listed that nobody has, and
    /// what the kernel has still to be asked about is remembered.
    pub(super) fn is_left(&self, address: IpAddr, known: &Address) -> bool {
        let is_placed = self.placed(address).is_some();
        if address.is_ipv6() && is_placed {
            return known.doubt.is_none() && !self.memory.is_unproven(address);
        }
        !matches!(known.doubt, Some(Doubt::PodRoute { .. } | Doubt::Imported { .. })) && !is_placed
    }
}
