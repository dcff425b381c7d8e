//! Which network cards are managed, and what an ENI's place on its card means to EC2 and to the kernel.
//!
//! Every managed card is grown, counted and shrunk by itself. EC2 counts ENIs and device indexes per card
//! (<https://docs.aws.amazon.com/AWSEC2/latest/UserGuide/using-eni.html#network-cards>), so a place is a card and an
//! index on it; the kernel's marks are one number for the whole node.

use std::collections::BTreeSet;

use super::ids::{CardIndex, DeviceIndex, EniId, Mark};
use super::limits::InstanceLimits;
use super::model::{Address, Creation, Eni, EniKind, EniRole, EniState};
use super::pool::Pool;

impl Eni {
    /// The mark of its packets: its device index on the first card, where there are fewer than a hundred; what it was
    /// given on others, because card and index together do not fit into seven bits.
    pub fn mark(&self) -> Option<Mark> {
        if !self.card.is_first() {
            return self.given_mark;
        }
        let index = u8::try_from(self.device?.0).ok().map(Mark);
        index.filter(|mark| mark.is_any())
    }

    /// Whether it takes a place on this card, now or soon.
    pub fn takes_place_on(&self, card: CardIndex) -> bool {
        self.card == card && self.takes_place()
    }
}

impl Pool {
    /// Whether ENIs of this card can be ours to use.
    pub(super) fn may_manage(&self, card: CardIndex) -> bool {
        card.is_first() || self.policy().has_further_cards()
    }

    /// The managed cards in order: the first, and with `ENABLE_MULTI_NIC` all others but those that are left to EFA.
    pub fn managed_cards(&self) -> BTreeSet<CardIndex> {
        let mut cards = BTreeSet::from([CardIndex::FIRST]);
        if self.policy().has_further_cards() {
            let of_type = self.limits().into_iter().flat_map(InstanceLimits::further_cards);
            cards.extend(of_type.filter(|card| !self.is_left_to_efa(*card)));
            cards.extend(
                self.enis()
                    .values()
                    .filter(|eni| is_ours(eni))
                    .map(|eni| eni.card),
            );
        }
        cards
    }

    /// A card with an EFA-only ENI and none of ours is somebody's fabric (reference ipamd 1.6).
    fn is_left_to_efa(&self, card: CardIndex) -> bool {
        let mut here = self.enis().values().filter(|eni| eni.takes_place_on(card));
        here.any(|eni| eni.kind == EniKind::EfaOnly)
    }

    /// The card that an address counts for: its ENI's, or the first when that is not managed any more.
    pub(super) fn card_of(&self, known: &Address) -> CardIndex {
        if !self.policy().has_further_cards() {
            return CardIndex::FIRST;
        }
        let held = || Some(self.allocations().get(known.holder.as_ref()?)?.card);
        let eni = self.enis().get(&known.eni).map(|eni| eni.card);
        eni.or_else(held).unwrap_or_default()
    }

    /// The lowest free device index on a card.
    pub(super) fn free_device(&self, card: CardIndex) -> Option<DeviceIndex> {
        self.free_devices(card).next()
    }

    /// How many more ENIs find a device index on a card once those without one have theirs.
    pub(super) fn room_for_devices(&self, card: CardIndex) -> usize {
        let without = |eni: &&Eni| eni.takes_place_on(card) && eni.device.is_none();
        let here = |creation: &&Creation| creation.card == card;
        let owed =
            self.enis().values().filter(without).count() + self.creations().values().filter(here).count();
        self.free_devices(card).count().saturating_sub(owed)
    }

    /// The free device indexes on a card. EC2 takes 0 to 99; 0 is the primary ENI's on the first card, and on the others
    /// AWS counts from 1 (<https://docs.aws.amazon.com/AWSEC2/latest/UserGuide/efa-acc-inst-types.html>).
    fn free_devices(&self, card: CardIndex) -> impl Iterator<Item = DeviceIndex> {
        let here = self.enis().values().filter(move |eni| eni.takes_place_on(card));
        let refused = self.memory.devices_taken.iter();
        let refused = refused.filter(move |(other, _)| *other == card);
        let taken: BTreeSet<DeviceIndex> = here
            .filter_map(|eni| eni.device)
            .chain(refused.map(|(_, device)| *device))
            .collect();
        (1..=99)
            .map(DeviceIndex)
            .filter(move |device| !taken.contains(device))
    }

    /// Gives an ENI of a further card the highest mark that nobody has: those of the first card count from below. It is
    /// stored with the ENI, so that a restart changes nothing in the kernel. False when there is none left.
    pub(super) fn give_mark(&mut self, id: &EniId) -> bool {
        let Some(eni) = self.enis().get(id) else {
            return false;
        };
        if eni.card.is_first() || eni.given_mark.is_some() {
            return true;
        }
        let used: BTreeSet<Mark> = self.enis().values().filter_map(Eni::mark).collect();
        let free = (1..=Mark::MAX.0)
            .rev()
            .map(Mark)
            .find(|mark| !used.contains(mark));
        self.edit_eni(id, |eni| eni.given_mark = free);
        free.is_some()
    }

    /// An ENI of the first card has its mark by its place: whoever was given the same one before gets another.
    pub(super) fn separate_marks(&mut self) {
        let given = |eni: &&Eni| eni.given_mark.is_some();
        if !self.enis().values().any(|eni| given(&eni)) {
            return;
        }
        let mut seen: BTreeSet<Mark> = self
            .enis()
            .values()
            .filter(|eni| eni.card.is_first() && is_ours(eni))
            .filter_map(Eni::mark)
            .collect();
        let doubled: Vec<EniId> = self
            .enis()
            .values()
            .filter(given)
            .filter(|eni| eni.mark().is_none_or(|mark| !mark.is_any() || !seen.insert(mark)))
            .map(|eni| eni.id.clone())
            .collect();
        for id in doubled {
            self.edit_eni(&id, |eni| {
                eni.given_mark = None;
                for placed in eni.cidrs.values_mut() {
                    placed.published = false;
                }
            });
            let progress = self.memory.progress(&id);
            progress.configured = false;
            progress.configuring = false;
            progress.publishing.clear();
        }
    }
}

fn is_ours(eni: &Eni) -> bool {
    eni.role != EniRole::Unmanaged && !matches!(eni.state, EniState::Discarding { .. } | EniState::Lost)
}
