//! The IPv6 side of EC2: the /64 of a subnet, the /80s delegated of it, and what others do to them.

use std::collections::BTreeSet;
use std::net::{Ipv4Addr, Ipv6Addr};

use aws_cni_ipam::cidr6::{DELEGATED, Ipv6Cidr};
use aws_cni_ipam::cloud::{Amount, FailureClass};
use aws_cni_ipam::ids::{EniId, InstanceId};

use super::{Account, Refused};
use crate::dice::Dice;
use crate::script::Hand;

/// A subnet's /64, of which /80s are delegated anywhere.
#[derive(Debug)]
pub struct Network {
    base: Ipv6Addr,
    taken: BTreeSet<u16>,
    /// While nobody has associated it, nothing is delegated; what has been stays.
    pub is_associated: bool,
}

const NO_NETWORK: Refused = (FailureClass::Other, "InvalidParameterValue");
const FULL: Refused = (FailureClass::SubnetFull, "InsufficientCidrBlocks");

impl Network {
    /// The /64 of the subnet whose IPv4 network begins there.
    pub fn beside(base: Ipv4Addr) -> Self {
        let [_, number, ..] = base.octets();
        Self {
            base: Ipv6Addr::new(0x2001, 0xdb8, 0, u16::from(number), 0, 0, 0, 0),
            taken: BTreeSet::new(),
            is_associated: true,
        }
    }

    fn block(&self, number: u16) -> Option<Ipv6Cidr> {
        Ipv6Cidr::new(
            Ipv6Addr::from_bits(self.base.to_bits() | u128::from(number) << 48),
            DELEGATED,
        )
    }

    /// A /80 that nobody has.
    pub(super) fn take(&mut self, dice: &mut Dice) -> Result<Ipv6Cidr, Refused> {
        if !self.is_associated {
            return Err(NO_NETWORK);
        }
        let start = u16::try_from(dice.below(1 << 16)).unwrap_or(0);
        let mut numbers = (0..=u16::MAX).map(|step| start.wrapping_add(step));
        let number = numbers.find(|number| !self.taken.contains(number));
        let block = number.and_then(|number| self.block(number)).ok_or(FULL)?;
        self.taken.extend(number);
        Ok(block)
    }

    /// A /80 comes back.
    pub(super) fn give(&mut self, block: Ipv6Cidr) {
        let of = |number: &u16| self.block(*number) == Some(block);
        if let Some(number) = self.taken.iter().copied().find(of) {
            self.taken.remove(&number);
        }
    }
}

impl Account {
    /// The /80s of an instance's ENIs.
    pub fn blocks<'a>(&'a self, instance: &'a InstanceId) -> impl Iterator<Item = (&'a EniId, Ipv6Cidr)> {
        let of = |eni: &'a aws_cni_ipam::cloud::CloudEni| eni.prefixes6.iter().map(|block| (&eni.id, *block));
        self.attached(instance).flat_map(of)
    }

    /// Somebody delegates a /80 by hand, takes one away whoever has addresses of it, or puts back what was taken last.
    pub(super) fn outside_six(&mut self, instance: &InstanceId, hand: Hand, choice: u32, now: u64) {
        let Some(primary) = self.instances.get(instance).map(|known| known.primary.clone()) else {
            return;
        };
        match hand {
            Hand::TakeBlock => {
                let blocks: Vec<(EniId, Ipv6Cidr)> = self
                    .blocks(instance)
                    .map(|(eni, block)| (eni.clone(), block))
                    .collect();
                let index = usize::try_from(choice).unwrap_or(0).checked_rem(blocks.len());
                if let Some((eni, block)) = index.and_then(|index| blocks.get(index)) {
                    self.change(eni, now, |eni| {
                        if let Some(eni) = eni {
                            eni.prefixes6.retain(|known| known != block);
                        }
                    });
                    self.taken_block = Some((eni.clone(), *block));
                }
            }
            Hand::ReturnBlock => {
                if let Some((eni, block)) = self.taken_block.take() {
                    self.change(&eni, now, |eni| {
                        if let Some(eni) = eni {
                            eni.prefixes6.push(block);
                        }
                    });
                }
            }
            _ => drop(self.assign(&primary, Amount::Block, now)),
        }
    }
}
