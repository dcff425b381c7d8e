//! IPv6 networks in prefix notation, and the places inside one that EC2 has delegated.

use std::fmt;
use std::net::Ipv6Addr;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use super::ids::ParseIdError;

/// The length of the prefixes EC2 delegates to ENIs
/// (<https://docs.aws.amazon.com/AWSEC2/latest/UserGuide/ec2-prefix-eni.html>).
pub const DELEGATED: u8 = 80;

/// An IPv6 network: canonical base address and prefix length 0–128.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Ipv6Cidr {
    base: Ipv6Addr,
    len: u8,
}

impl Ipv6Cidr {
    /// The network of prefix length `len` around `address`; host bits are dropped. `None` when `len` > 128.
    pub fn new(address: Ipv6Addr, len: u8) -> Option<Self> {
        (len <= 128).then(|| Self {
            base: Ipv6Addr::from_bits(address.to_bits() & mask(len)),
            len,
        })
    }

    /// The network of a single address.
    pub fn host(address: Ipv6Addr) -> Self {
        Self {
            base: address,
            len: 128,
        }
    }

    /// The first address, all host bits zero.
    pub fn base(self) -> Ipv6Addr {
        self.base
    }

    /// The prefix length, 0–128.
    pub fn prefix_len(self) -> u8 {
        self.len
    }

    /// Whether `address` lies inside.
    pub fn contains(self, address: Ipv6Addr) -> bool {
        address.to_bits() & mask(self.len) == self.base.to_bits()
    }

    /// Whether it is what EC2 delegates: a /80.
    pub fn is_delegated(self) -> bool {
        self.len == DELEGATED
    }

    /// The address at this place, counted from the base; `None` beyond its end.
    pub fn at(self, place: u64) -> Option<Ipv6Addr> {
        let address = Ipv6Addr::from_bits(self.base.to_bits().checked_add(u128::from(place))?);
        self.contains(address).then_some(address)
    }

    /// At which place an address is; `None` when it is not inside, or further from the base than can be counted.
    pub fn place_of(self, address: Ipv6Addr) -> Option<u64> {
        let beyond = address.to_bits().checked_sub(self.base.to_bits())?;
        u64::try_from(beyond).ok().filter(|_| self.contains(address))
    }
}

fn mask(len: u8) -> u128 {
    u128::MAX
        .checked_shl(128_u32.saturating_sub(u32::from(len)))
        .unwrap_or(0)
}

impl fmt::Display for Ipv6Cidr {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.base, self.len)
    }
}

impl FromStr for Ipv6Cidr {
    type Err = ParseIdError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let error = || ParseIdError {
            text: text.to_owned(),
            expected: "an IPv6 network such as 2001:db8::/80",
        };
        let (address, len) = text.trim().split_once('/').ok_or_else(error)?;
        let len = len.parse().map_err(|_| error())?;
        Self::new(address.parse().map_err(|_| error())?, len).ok_or_else(error)
    }
}

impl TryFrom<String> for Ipv6Cidr {
    type Error = ParseIdError;

    fn try_from(text: String) -> Result<Self, Self::Error> {
        text.parse()
    }
}

impl From<Ipv6Cidr> for String {
    fn from(cidr: Ipv6Cidr) -> Self {
        cidr.to_string()
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn canonical_and_bounded() {
        let cidr: Ipv6Cidr = "2001:db8::5:0:0:7/80".parse().unwrap();
        assert_eq!(cidr.to_string(), "2001:db8:0:0:5::/80");
        assert!(cidr.is_delegated());
        assert_eq!(cidr.at(0), Some(cidr.base()));
        assert_eq!(
            cidr.at((1 << 48) - 1),
            Some("2001:db8::5:ffff:ffff:ffff".parse().unwrap())
        );
        assert_eq!(cidr.at(1 << 48), None);
        assert_eq!(cidr.place_of("2001:db8::6:0:0:0".parse().unwrap()), None);
        assert_eq!(cidr.place_of("2001:db8::4:ffff:ffff:ffff".parse().unwrap()), None);
        for bad in ["2001:db8::", "2001:db8::/129", "10.0.0.0/8", "/80", "2001:db8/80"] {
            assert!(bad.parse::<Ipv6Cidr>().is_err(), "{bad}");
        }
        let everything: Ipv6Cidr = "::/0".parse().unwrap();
        assert!(everything.contains(Ipv6Addr::from_bits(u128::MAX)));
        assert_eq!(everything.place_of(Ipv6Addr::from_bits(u128::MAX)), None);
        let last: Ipv6Cidr = "ffff:ffff:ffff:ffff:ffff:ffff:ffff:ffff/128".parse().unwrap();
        assert_eq!((last.at(0), last.at(1)), (Some(last.base()), None));
    }

    proptest! {
        #[test]
        fn places_and_addresses_are_the_same_thing(base in any::<u128>(), place in 0_u64..(1 << 48)) {
            let cidr = Ipv6Cidr::new(Ipv6Addr::from_bits(base), DELEGATED).unwrap();
            let address = cidr.at(place).unwrap();
            prop_assert!(cidr.contains(address));
            prop_assert_eq!(cidr.place_of(address), Some(place));
            prop_assert_eq!(cidr.to_string().parse::<Ipv6Cidr>(), Ok(cidr));
        }
    }
}
