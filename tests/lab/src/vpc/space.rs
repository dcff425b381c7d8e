//! Which addresses of a subnet are free, with EC2's reserved addresses and alignment rules.

use std::collections::BTreeSet;
use std::net::{Ipv4Addr, Ipv6Addr};

use super::cidr::{Ipv4Cidr, Ipv6Cidr};
use super::error::{ApiError, ApiResult};
use super::rng::Rng;

/// Length of an IPv4 prefix delegated to an ENI.
pub const PREFIX_LEN: u8 = 28;
/// Length of an IPv6 prefix delegated to an ENI.
pub const PREFIX_LEN_V6: u8 = 80;
const BLOCK: u32 = 16;
/// The first four addresses and the last are AWS's
/// (<https://docs.aws.amazon.com/vpc/latest/userguide/subnet-sizing.html>).
const RESERVED_AT_START: u32 = 4;
const RESERVED: u64 = 5;

/// How a request asks for addresses or prefixes.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub enum Want<T> {
    /// Not at all.
    #[default]
    Nothing,
    /// So many, of EC2's choice.
    Count(u32),
    /// These.
    Exactly(Vec<T>),
}

impl<T> Want<T> {
    /// How many.
    pub fn len(&self) -> usize {
        match self {
            Self::Nothing => 0,
            Self::Count(count) => usize::try_from(*count).unwrap_or(usize::MAX),
            Self::Exactly(list) => list.len(),
        }
    }

    /// Whether nothing is asked for.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

/// The IPv4 addresses of a subnet.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Space {
    cidr: Ipv4Cidr,
    used: BTreeSet<u32>,
    blocks: BTreeSet<u32>,
}

impl Space {
    /// All free but the reserved ones.
    pub fn new(cidr: Ipv4Cidr) -> Self {
        Self {
            cidr,
            used: BTreeSet::new(),
            blocks: BTreeSet::new(),
        }
    }

    /// EC2's `AvailableIpAddressCount`.
    pub fn free_addresses(&self) -> u64 {
        let taken = self.used.len() + self.blocks.len() * 16;
        self.cidr
            .size()
            .saturating_sub(RESERVED)
            .saturating_sub(u64::try_from(taken).unwrap_or(u64::MAX))
    }

    /// How many /28 prefixes could still be delegated: wholly free, aligned blocks.
    pub fn free_blocks(&self) -> usize {
        self.block_bases()
            .filter(|base| self.block_is_free(*base))
            .count()
    }

    fn block_bases(&self) -> impl Iterator<Item = u32> + use<> {
        let first = self.cidr.base().to_bits();
        let last = self.cidr.last().to_bits();
        let count = u32::try_from(self.cidr.size() / u64::from(BLOCK)).unwrap_or(0);
        (0..count).map_while(move |n| {
            first
                .checked_add(n.checked_mul(BLOCK)?)
                .filter(|base| *base < last)
        })
    }

    fn is_reserved(&self, address: u32) -> bool {
        address < self.cidr.base().to_bits().saturating_add(RESERVED_AT_START)
            || address == self.cidr.last().to_bits()
    }

    fn is_free(&self, address: u32) -> bool {
        !self.is_reserved(address)
            && !self.used.contains(&address)
            && !self.blocks.contains(&(address & !(BLOCK - 1)))
    }

    fn block_is_free(&self, base: u32) -> bool {
        let last = base | (BLOCK - 1);
        !self.is_reserved(base)
            && !self.is_reserved(last)
            && !self.blocks.contains(&base)
            && self.used.range(base..=last).next().is_none()
    }

    /// Takes addresses, all or none.
    pub fn take_addresses(&mut self, want: &Want<Ipv4Addr>, rng: &mut Rng) -> ApiResult<Vec<Ipv4Addr>> {
        let mut taken = Vec::new();
        let result = match want {
            Want::Nothing => Ok(()),
            Want::Count(count) => (0..*count).try_for_each(|_| {
                let address = self.pick_address(rng).ok_or_else(ApiError::subnet_full)?;
                self.used.insert(address);
                taken.push(Ipv4Addr::from_bits(address));
                Ok(())
            }),
            Want::Exactly(list) => list.iter().try_for_each(|address| {
                self.take_address(*address)?;
                taken.push(*address);
                Ok(())
            }),
        };
        if let Err(error) = result {
            self.release_addresses(&taken);
            return Err(error);
        }
        Ok(taken)
    }

    fn take_address(&mut self, address: Ipv4Addr) -> ApiResult<()> {
        if !self.cidr.contains(address) {
            return Err(ApiError::invalid_value(format!(
                "Address {address} does not fall within the subnet's address range"
            )));
        }
        if self.is_reserved(address.to_bits()) {
            return Err(ApiError::invalid_value(format!(
                "Address {address} is in subnet's reserved address range"
            )));
        }
        if !self.is_free(address.to_bits()) {
            return Err(ApiError::new(
                "InvalidIPAddress.InUse",
                format!("Address {address} is in use."),
            ));
        }
        self.used.insert(address.to_bits());
        Ok(())
    }

    fn pick_address(&self, rng: &mut Rng) -> Option<u32> {
        let size = self.cidr.size();
        let start = rng.below(size);
        (0..size).find_map(|step| {
            let offset = u32::try_from((start + step) % size).ok()?;
            let address = self.cidr.nth(offset).to_bits();
            self.is_free(address).then_some(address)
        })
    }

    /// Takes /28 prefixes, all or none.
    pub fn take_blocks(&mut self, want: &Want<Ipv4Cidr>, rng: &mut Rng) -> ApiResult<Vec<Ipv4Cidr>> {
        let mut taken = Vec::new();
        let result = match want {
            Want::Nothing => Ok(()),
            Want::Count(count) => (0..*count).try_for_each(|_| {
                let base = self.pick_block(rng).ok_or_else(ApiError::no_cidr_block)?;
                self.blocks.insert(base);
                taken.push(Ipv4Cidr::new(Ipv4Addr::from_bits(base), PREFIX_LEN));
                Ok(())
            }),
            Want::Exactly(list) => list.iter().try_for_each(|block| {
                self.take_block(*block)?;
                taken.push(*block);
                Ok(())
            }),
        };
        if let Err(error) = result {
            self.release_blocks(&taken);
            return Err(error);
        }
        Ok(taken)
    }

    fn take_block(&mut self, block: Ipv4Cidr) -> ApiResult<()> {
        if block.prefix_len() != PREFIX_LEN || !self.cidr.covers(block) {
            return Err(ApiError::invalid_value(format!(
                "Prefix {block} is not a /{PREFIX_LEN} of the subnet's address range"
            )));
        }
        let base = block.base().to_bits();
        if !self.block_is_free(base) {
            return Err(ApiError::no_cidr_block());
        }
        self.blocks.insert(base);
        Ok(())
    }

    fn pick_block(&self, rng: &mut Rng) -> Option<u32> {
        let free: Vec<u32> = self
            .block_bases()
            .filter(|base| self.block_is_free(*base))
            .collect();
        let index = rng.below(u64::try_from(free.len()).ok()?);
        free.get(usize::try_from(index).ok()?).copied()
    }

    /// Gives addresses back.
    pub fn release_addresses(&mut self, addresses: &[Ipv4Addr]) {
        for address in addresses {
            self.used.remove(&address.to_bits());
        }
    }

    /// Gives prefixes back.
    pub fn release_blocks(&mut self, blocks: &[Ipv4Cidr]) {
        for block in blocks {
            self.blocks.remove(&block.base().to_bits());
        }
    }
}

/// The IPv6 addresses of a subnet: never full, only unique.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Space6 {
    cidr: Ipv6Cidr,
    used: BTreeSet<Ipv6Addr>,
    blocks: BTreeSet<Ipv6Cidr>,
}

impl Space6 {
    /// All free.
    pub fn new(cidr: Ipv6Cidr) -> Self {
        Self {
            cidr,
            used: BTreeSet::new(),
            blocks: BTreeSet::new(),
        }
    }

    fn is_free(&self, address: Ipv6Addr) -> bool {
        !self.used.contains(&address) && !self.blocks.contains(&Ipv6Cidr::new(address, PREFIX_LEN_V6))
    }

    fn block_is_free(&self, block: Ipv6Cidr) -> bool {
        !self.blocks.contains(&block)
            && self.used.range(block.base()..=block.last()).next().is_none()
            && block.base() != self.cidr.base()
    }

    fn random(&self, rng: &mut Rng) -> Ipv6Addr {
        self.cidr.nth(u128::from(rng.next_u64()))
    }

    /// Takes addresses, all or none.
    pub fn take_addresses(&mut self, want: &Want<Ipv6Addr>, rng: &mut Rng) -> ApiResult<Vec<Ipv6Addr>> {
        let mut taken: Vec<Ipv6Addr> = Vec::new();
        match want {
            Want::Nothing => {}
            Want::Count(count) => {
                let wanted = usize::try_from(*count).unwrap_or(usize::MAX);
                while taken.len() < wanted {
                    let address = self.random(rng);
                    if self.is_free(address) {
                        self.used.insert(address);
                        taken.push(address);
                    }
                }
            }
            Want::Exactly(list) => {
                for address in list {
                    if !self.cidr.contains(*address) || !self.is_free(*address) {
                        self.release_addresses(&taken);
                        return Err(ApiError::new(
                            "InvalidIPAddress.InUse",
                            format!("Address {address} is in use or not of the subnet."),
                        ));
                    }
                    self.used.insert(*address);
                    taken.push(*address);
                }
            }
        }
        Ok(taken)
    }

    /// Takes /80 prefixes, all or none.
    pub fn take_blocks(&mut self, want: &Want<Ipv6Cidr>, rng: &mut Rng) -> ApiResult<Vec<Ipv6Cidr>> {
        let mut taken: Vec<Ipv6Cidr> = Vec::new();
        match want {
            Want::Nothing => {}
            Want::Count(count) => {
                let wanted = usize::try_from(*count).unwrap_or(usize::MAX);
                while taken.len() < wanted {
                    if self.blocks.len() >= 65_000 {
                        self.release_blocks(&taken);
                        return Err(ApiError::no_cidr_block());
                    }
                    let block = Ipv6Cidr::new(self.random(rng), PREFIX_LEN_V6);
                    if self.block_is_free(block) {
                        self.blocks.insert(block);
                        taken.push(block);
                    }
                }
            }
            Want::Exactly(list) => {
                for block in list {
                    let fits = block.prefix_len() == PREFIX_LEN_V6 && self.cidr.covers(*block);
                    if !fits || !self.block_is_free(*block) {
                        self.release_blocks(&taken);
                        return Err(ApiError::no_cidr_block());
                    }
                    self.blocks.insert(*block);
                    taken.push(*block);
                }
            }
        }
        Ok(taken)
    }

    /// Gives addresses back.
    pub fn release_addresses(&mut self, addresses: &[Ipv6Addr]) {
        for address in addresses {
            self.used.remove(address);
        }
    }

    /// Gives prefixes back.
    pub fn release_blocks(&mut self, blocks: &[Ipv6Cidr]) {
        for block in blocks {
            self.blocks.remove(block);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn space(cidr: &str) -> Space {
        Space::new(cidr.parse().unwrap())
    }

    #[test]
    fn aws_keeps_five_addresses() {
        let mut space = space("10.0.0.0/28");
        let mut rng = Rng::new(1);
        assert_eq!(space.free_addresses(), 11);
        assert_eq!(space.free_blocks(), 0, "the only /28 holds reserved addresses");
        let all = space.take_addresses(&Want::Count(11), &mut rng).unwrap();
        assert!(all.iter().all(|address| (4..15).contains(&address.octets()[3])));
        let full = space.take_addresses(&Want::Count(1), &mut rng).unwrap_err();
        assert_eq!(full.code, "InsufficientFreeAddressesInSubnet");
        for reserved in [0, 3, 15] {
            let address = Ipv4Addr::new(10, 0, 0, reserved);
            assert!(
                space
                    .take_addresses(&Want::Exactly(vec![address]), &mut rng)
                    .is_err()
            );
        }
    }

    #[test]
    fn one_address_spoils_a_block() {
        let mut space = space("10.0.0.0/26");
        let mut rng = Rng::new(1);
        assert_eq!(
            space.free_blocks(),
            2,
            "first and last block hold reserved addresses"
        );
        let spoil = vec![Ipv4Addr::new(10, 0, 0, 20), Ipv4Addr::new(10, 0, 0, 40)];
        space
            .take_addresses(&Want::Exactly(spoil.clone()), &mut rng)
            .unwrap();
        assert_eq!((space.free_blocks(), space.free_addresses()), (0, 57));
        let error = space.take_blocks(&Want::Count(1), &mut rng).unwrap_err();
        assert_eq!(error.code, "InsufficientCidrBlocks");
        space.release_addresses(&spoil[..1]);
        let block = space.take_blocks(&Want::Count(1), &mut rng).unwrap();
        assert_eq!(block, vec!["10.0.0.16/28".parse().unwrap()]);
    }

    #[test]
    fn all_or_nothing() {
        let mut space = space("10.0.0.0/26");
        let mut rng = Rng::new(1);
        let before = space.clone();
        assert!(space.take_addresses(&Want::Count(60), &mut rng).is_err());
        assert!(space.take_blocks(&Want::Count(3), &mut rng).is_err());
        assert_eq!(space, before);
        space.take_blocks(&Want::Count(2), &mut rng).unwrap();
        let rest = space.take_addresses(&Want::Count(27), &mut rng).unwrap();
        assert!(rest.iter().all(|address| {
            let last = address.octets()[3];
            !(16..48).contains(&last)
        }));
        assert_eq!(space.free_addresses(), 0);
    }
}
