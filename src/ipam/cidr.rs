//! IPv4 networks in prefix notation.

use std::fmt;
use std::net::Ipv4Addr;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use super::ids::ParseIdError;

/// An IPv4 network: canonical base address and prefix length 0–32.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Ipv4Cidr {
    base: Ipv4Addr,
    len: u8,
}

impl Ipv4Cidr {
    /// The network of prefix length `len` around `address`; host bits are dropped. `None` when `len` > 32.
    pub fn new(address: Ipv4Addr, len: u8) -> Option<Self> {
        (len <= 32).then(|| Self {
            base: Ipv4Addr::from_bits(address.to_bits() & mask(len)),
            len,
        })
    }

    /// The network of a single address.
    pub fn host(address: Ipv4Addr) -> Self {
        Self {
            base: address,
            len: 32,
        }
    }

    /// The /28 block around an address: what EC2 delegates to an ENI as a prefix.
    pub fn prefix_around(address: Ipv4Addr) -> Self {
        Self {
            base: Ipv4Addr::from_bits(address.to_bits() & mask(28)),
            len: 28,
        }
    }

    /// Whether it is a single address.
    pub fn is_host(self) -> bool {
        self.len == 32
    }

    /// Every address inside, in order. Meant for what an ENI carries: a /8 has sixteen million.
    pub fn addresses(self) -> impl Iterator<Item = Ipv4Addr> {
        (self.base.to_bits()..=self.broadcast().to_bits()).map(Ipv4Addr::from_bits)
    }

    /// The first address, all host bits zero.
    pub fn base(self) -> Ipv4Addr {
        self.base
    }

    /// The prefix length, 0–32.
    pub fn prefix_len(self) -> u8 {
        self.len
    }

    /// The address with all host bits set.
    pub fn broadcast(self) -> Ipv4Addr {
        Ipv4Addr::from_bits(self.base.to_bits() | !mask(self.len))
    }

    /// A subnet's VPC router: the base plus one
    /// (<https://docs.aws.amazon.com/vpc/latest/userguide/subnet-sizing.html>).
    pub fn vpc_gateway(self) -> Ipv4Addr {
        Ipv4Addr::from_bits(self.base.to_bits().saturating_add(1))
    }

    /// Whether `address` lies inside.
    pub fn contains(self, address: Ipv4Addr) -> bool {
        address.to_bits() & mask(self.len) == self.base.to_bits()
    }
}

fn mask(len: u8) -> u32 {
    u32::MAX
        .checked_shl(32_u32.saturating_sub(u32::from(len)))
        .unwrap_or(0)
}

impl fmt::Display for Ipv4Cidr {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.base, self.len)
    }
}

impl FromStr for Ipv4Cidr {
    type Err = ParseIdError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let error = || ParseIdError {
            text: text.to_owned(),
            expected: "an IPv4 network such as 10.0.0.0/16",
        };
        let (address, len) = text.trim().split_once('/').ok_or_else(error)?;
        let len = len.parse().map_err(|_| error())?;
        Self::new(address.parse().map_err(|_| error())?, len).ok_or_else(error)
    }
}

impl TryFrom<String> for Ipv4Cidr {
    type Error = ParseIdError;

    fn try_from(text: String) -> Result<Self, Self::Error> {
        text.parse()
    }
}

impl From<Ipv4Cidr> for String {
    fn from(cidr: Ipv4Cidr) -> Self {
        cidr.to_string()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn canonical_and_bounded() {
        let cidr: Ipv4Cidr = "10.0.1.77/24".parse().unwrap();
        assert_eq!(cidr.to_string(), "10.0.1.0/24");
        assert_eq!(cidr.vpc_gateway(), Ipv4Addr::new(10, 0, 1, 1));
        assert_eq!(cidr.broadcast(), Ipv4Addr::new(10, 0, 1, 255));
        assert!(cidr.contains(Ipv4Addr::new(10, 0, 1, 200)));
        assert!(!cidr.contains(Ipv4Addr::new(10, 0, 2, 0)));
        for bad in ["10.0.0.0", "10.0.0.0/33", "10.0.0/8", "/8", "::/0"] {
            assert!(bad.parse::<Ipv4Cidr>().is_err(), "{bad}");
        }
        assert!(
            "0.0.0.0/0"
                .parse::<Ipv4Cidr>()
                .unwrap()
                .contains(Ipv4Addr::new(8, 8, 8, 8))
        );
    }
}
