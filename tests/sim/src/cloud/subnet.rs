//! A subnet's addresses, one by one and in aligned blocks of sixteen.

use std::collections::{BTreeMap, BTreeSet};
use std::net::Ipv4Addr;

use aws_cni_ipam::cidr::Ipv4Cidr;
use aws_cni_ipam::ids::SubnetId;

use super::six::Network;
use crate::dice::Dice;

/// A subnet as EC2 keeps it.
#[derive(Debug)]
pub struct Subnet {
    /// Its id.
    pub id: SubnetId,
    /// Its network.
    pub cidr: Ipv4Cidr,
    /// Its tags.
    pub tags: BTreeMap<String, String>,
    /// Taken by anybody.
    taken: Vec<bool>,
    /// Those of them that others took and will give back.
    others: BTreeSet<usize>,
    free: usize,
    /// Its IPv6 network.
    pub six: Network,
}

const BLOCK: usize = 16;

impl Subnet {
    /// An empty subnet; the first four addresses and the last one are AWS's
    /// (<https://docs.aws.amazon.com/vpc/latest/userguide/subnet-sizing.html>).
    pub fn new(id: SubnetId, cidr: Ipv4Cidr) -> Self {
        let size = usize::try_from(1_u64 << (32 - u32::from(cidr.prefix_len()))).unwrap_or(0);
        let mut taken = vec![false; size];
        for (place, address) in taken.iter_mut().enumerate() {
            *address = place < 4 || place + 1 == size;
        }
        let free = taken.iter().filter(|taken| !**taken).count();
        Self {
            id,
            cidr,
            tags: BTreeMap::new(),
            taken,
            others: BTreeSet::new(),
            free,
            six: Network::beside(cidr.base()),
        }
    }

    /// `AvailableIpAddressCount`.
    pub fn free(&self) -> u32 {
        u32::try_from(self.free).unwrap_or(u32::MAX)
    }

    fn address(&self, place: usize) -> Ipv4Addr {
        Ipv4Addr::from_bits(self.cidr.base().to_bits() + u32::try_from(place).unwrap_or(0))
    }

    fn place(&self, address: Ipv4Addr) -> Option<usize> {
        let place = address.to_bits().checked_sub(self.cidr.base().to_bits())?;
        usize::try_from(place)
            .ok()
            .filter(|place| *place < self.taken.len())
    }

    fn set(&mut self, place: usize, to: bool) {
        if let Some(taken) = self.taken.get_mut(place)
            && *taken != to
        {
            *taken = to;
            self.free = if to { self.free - 1 } else { self.free + 1 };
        }
    }

    /// Any free address, scattered as EC2's are.
    pub fn take(&mut self, dice: &mut Dice) -> Option<Ipv4Addr> {
        if self.free == 0 {
            return None;
        }
        let size = self.taken.len();
        let start = usize::try_from(dice.below(size as u64)).unwrap_or(0);
        let place = (0..size)
            .map(|step| (start + step) % size)
            .find(|place| self.taken.get(*place) == Some(&false))?;
        self.set(place, true);
        Some(self.address(place))
    }

    /// So many free addresses, or none.
    pub fn take_many(&mut self, count: u32, dice: &mut Dice) -> Option<Vec<Ipv4Addr>> {
        if self.free() < count {
            return None;
        }
        (0..count).map(|_| self.take(dice)).collect()
    }

    /// The first free /28, as EC2 packs them.
    fn take_block(&mut self) -> Option<Ipv4Cidr> {
        let block = self
            .taken
            .chunks(BLOCK)
            .position(|block| block.len() == BLOCK && block.iter().all(|taken| !taken))?;
        for place in block * BLOCK..(block + 1) * BLOCK {
            self.set(place, true);
        }
        Ipv4Cidr::new(self.address(block * BLOCK), 28)
    }

    /// So many free /28s, or none.
    pub fn take_blocks(&mut self, count: u32) -> Option<Vec<Ipv4Cidr>> {
        let blocks: Vec<Ipv4Cidr> = (0..count).map_while(|_| self.take_block()).collect();
        if blocks.len() as u64 == u64::from(count) {
            return Some(blocks);
        }
        for block in blocks {
            self.give_block(block);
        }
        None
    }

    /// An address comes back.
    pub fn give(&mut self, address: Ipv4Addr) {
        if let Some(place) = self.place(address) {
            self.set(place, false);
        }
    }

    /// A /28 comes back.
    pub fn give_block(&mut self, block: Ipv4Cidr) {
        let base = block.base().to_bits();
        for step in 0..16 {
            self.give(Ipv4Addr::from_bits(base + step));
        }
    }

    fn others_take(&mut self, place: usize) {
        if self.taken.get(place) == Some(&false) {
            self.set(place, true);
            self.others.insert(place);
        }
    }

    /// Others take all but so many addresses.
    pub fn crowd(&mut self, left: u32, dice: &mut Dice) {
        while self.free() > left {
            match self.take(dice).and_then(|address| self.place(address)) {
                Some(place) => self.others.insert(place),
                None => return,
            };
        }
    }

    /// Others take one address of every /28.
    pub fn fragment(&mut self) {
        for place in (7..self.taken.len()).step_by(BLOCK) {
            self.others_take(place);
        }
    }

    /// Others give everything back.
    pub fn clear_others(&mut self) {
        for place in std::mem::take(&mut self.others) {
            self.set(place, false);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_fragmented_subnet_has_addresses_but_no_blocks() {
        let mut dice = Dice::new(1, "subnet");
        let mut subnet = Subnet::new("subnet-1".into(), "10.0.0.0/24".parse().unwrap());
        assert_eq!(subnet.free(), 251);
        assert_eq!(
            subnet.take_blocks(2),
            Some(vec![
                "10.0.0.16/28".parse().unwrap(),
                "10.0.0.32/28".parse().unwrap()
            ])
        );
        subnet.fragment();
        assert_eq!(subnet.take_blocks(1), None);
        assert!(subnet.take_many(206, &mut dice).is_none());
        // 251 less two blocks, and one address of each of the other 14.
        let all = subnet.take_many(205, &mut dice).unwrap();
        for address in all {
            subnet.give(address);
        }
        subnet.clear_others();
        assert_eq!(subnet.free(), 251 - 32);
        assert_eq!(subnet.take_blocks(14), None, "the first and the last are AWS's");
        assert!(subnet.take_blocks(12).is_some());
    }
}
