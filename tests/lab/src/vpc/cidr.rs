//! IPv4 and IPv6 networks.

use std::fmt;
use std::net::{Ipv4Addr, Ipv6Addr};
use std::str::FromStr;

/// Why a text is not a network.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} is not a network in CIDR notation")]
pub struct ParseCidrError(pub String);

macro_rules! cidr {
    ($(#[$doc:meta])* $name:ident, $address:ty, $bits:ty, $width:literal) => {
        $(#[$doc])*
        #[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub struct $name {
            base: $address,
            len: u8,
        }

        impl $name {
            /// The network of `len` bits around `address`, host bits dropped; a longer `len` means a single address.
            pub fn new(address: $address, len: u8) -> Self {
                let len = len.min($width);
                Self { base: <$address>::from_bits(address.to_bits() & Self::mask(len)), len }
            }

            fn mask(len: u8) -> $bits {
                <$bits>::MAX.checked_shl(u32::from($width - len)).unwrap_or(0)
            }

            /// The first address.
            pub fn base(self) -> $address {
                self.base
            }

            /// The prefix length.
            pub fn prefix_len(self) -> u8 {
                self.len
            }

            /// The last address.
            pub fn last(self) -> $address {
                <$address>::from_bits(self.base.to_bits() | !Self::mask(self.len))
            }

            /// The address `n` after the first; stays inside the address family's range.
            pub fn nth(self, n: $bits) -> $address {
                <$address>::from_bits(self.base.to_bits().saturating_add(n))
            }

            /// Whether `address` lies inside.
            pub fn contains(self, address: $address) -> bool {
                address.to_bits() & Self::mask(self.len) == self.base.to_bits()
            }

            /// Whether all of `other` lies inside.
            pub fn covers(self, other: Self) -> bool {
                self.len <= other.len && self.contains(other.base)
            }

            /// Whether the two share an address.
            pub fn overlaps(self, other: Self) -> bool {
                self.covers(other) || other.covers(self)
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, "{}/{}", self.base, self.len)
            }
        }

        impl FromStr for $name {
            type Err = ParseCidrError;

            /// Host bits are refused: EC2 takes a prefix only in its canonical form.
            fn from_str(text: &str) -> Result<Self, Self::Err> {
                let error = || ParseCidrError(text.to_owned());
                let (address, len) = text.split_once('/').ok_or_else(error)?;
                let address: $address = address.parse().map_err(|_| error())?;
                let len: u8 = len.parse().map_err(|_| error())?;
                let cidr = Self::new(address, len);
                if len > $width || cidr.base != address { Err(error()) } else { Ok(cidr) }
            }
        }
    };
}

cidr!(
    /// An IPv4 network.
    Ipv4Cidr,
    Ipv4Addr,
    u32,
    32
);
cidr!(
    /// An IPv6 network.
    Ipv6Cidr,
    Ipv6Addr,
    u128,
    128
);

impl Ipv4Cidr {
    /// How many addresses it holds.
    pub fn size(self) -> u64 {
        1_u64 << (32 - self.len.min(32))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn networks_are_canonical() {
        let cidr: Ipv4Cidr = "10.0.0.16/28".parse().unwrap();
        assert_eq!((cidr.size(), cidr.last()), (16, Ipv4Addr::new(10, 0, 0, 31)));
        assert!("10.0.0.17/28".parse::<Ipv4Cidr>().is_err());
        assert!("10.0.0.0/33".parse::<Ipv4Cidr>().is_err());
        assert!(Ipv4Cidr::new(Ipv4Addr::UNSPECIFIED, 0).contains(Ipv4Addr::BROADCAST));
        let six: Ipv6Cidr = "fd00:1::/64".parse().unwrap();
        assert!(six.covers("fd00:1:0:0:5::/80".parse().unwrap()));
        assert!(!six.overlaps("fd00:2::/64".parse().unwrap()));
    }
}
