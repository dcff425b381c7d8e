//! Networks of either family, where one thing is said of both.

use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::str::FromStr;

use serde::{Serialize, Serializer};

use super::cidr::Ipv4Cidr;
use super::cidr6::Ipv6Cidr;
use super::ids::ParseIdError;

/// Which of the two. A node's pods get addresses of one.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord)]
pub enum IpFamily {
    /// IPv4.
    #[default]
    V4,
    /// IPv6.
    V6,
}

impl IpFamily {
    /// An address's.
    pub fn of(address: IpAddr) -> Self {
        match address {
            IpAddr::V4(_) => Self::V4,
            IpAddr::V6(_) => Self::V6,
        }
    }

    /// How many bits an address has: the longest prefix.
    pub fn bits(self) -> u8 {
        match self {
            Self::V4 => 32,
            Self::V6 => 128,
        }
    }
}

/// A network of either family.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Cidr {
    /// Of IPv4.
    V4(Ipv4Cidr),
    /// Of IPv6.
    V6(Ipv6Cidr),
}

impl Cidr {
    /// The network of prefix length `len` around `address`; host bits are dropped. `None` when `len` is too long.
    pub fn new(address: IpAddr, len: u8) -> Option<Self> {
        match address {
            IpAddr::V4(address) => Ipv4Cidr::new(address, len).map(Self::V4),
            IpAddr::V6(address) => Ipv6Cidr::new(address, len).map(Self::V6),
        }
    }

    /// The network of a single address.
    pub fn host(address: IpAddr) -> Self {
        match address {
            IpAddr::V4(address) => Self::V4(Ipv4Cidr::host(address)),
            IpAddr::V6(address) => Self::V6(Ipv6Cidr::host(address)),
        }
    }

    /// `0.0.0.0/0` or `::/0`.
    pub fn everywhere(family: IpFamily) -> Self {
        match family {
            IpFamily::V4 => Self::V4(
                Ipv4Cidr::new(Ipv4Addr::UNSPECIFIED, 0).unwrap_or(Ipv4Cidr::host(Ipv4Addr::UNSPECIFIED)),
            ),
            IpFamily::V6 => Self::V6(
                Ipv6Cidr::new(Ipv6Addr::UNSPECIFIED, 0).unwrap_or(Ipv6Cidr::host(Ipv6Addr::UNSPECIFIED)),
            ),
        }
    }

    /// Its family.
    pub fn family(self) -> IpFamily {
        match self {
            Self::V4(_) => IpFamily::V4,
            Self::V6(_) => IpFamily::V6,
        }
    }

    /// The first address, all host bits zero.
    pub fn base(self) -> IpAddr {
        match self {
            Self::V4(cidr) => cidr.base().into(),
            Self::V6(cidr) => cidr.base().into(),
        }
    }

    /// The prefix length.
    pub fn prefix_len(self) -> u8 {
        match self {
            Self::V4(cidr) => cidr.prefix_len(),
            Self::V6(cidr) => cidr.prefix_len(),
        }
    }

    /// The address, if it is a single one.
    pub fn single(self) -> Option<IpAddr> {
        (self.prefix_len() == self.family().bits()).then(|| self.base())
    }

    /// Whether `address` lies inside; one of the other family never does.
    pub fn contains(self, address: IpAddr) -> bool {
        match (self, address) {
            (Self::V4(cidr), IpAddr::V4(address)) => cidr.contains(address),
            (Self::V6(cidr), IpAddr::V6(address)) => cidr.contains(address),
            _ => false,
        }
    }
}

impl From<Ipv4Cidr> for Cidr {
    fn from(cidr: Ipv4Cidr) -> Self {
        Self::V4(cidr)
    }
}

impl From<Ipv6Cidr> for Cidr {
    fn from(cidr: Ipv6Cidr) -> Self {
        Self::V6(cidr)
    }
}

impl fmt::Display for Cidr {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::V4(cidr) => cidr.fmt(f),
            Self::V6(cidr) => cidr.fmt(f),
        }
    }
}

impl FromStr for Cidr {
    type Err = ParseIdError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        if text.contains(':') {
            text.parse().map(Self::V6)
        } else {
            text.parse().map(Self::V4)
        }
    }
}

impl Serialize for Cidr {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn cidr(text: &str) -> Cidr {
        text.parse().unwrap()
    }

    #[test]
    fn both_families_answer_alike() {
        for (text, host, inside, outside) in [
            ("10.0.1.0/24", "10.0.1.5/32", "10.0.1.9", "10.0.2.9"),
            (
                "2001:db8::/64",
                "2001:db8::5/128",
                "2001:db8::9",
                "2001:db8:0:1::9",
            ),
        ] {
            let (network, host) = (cidr(text), cidr(host));
            let [inside, outside]: [IpAddr; 2] = [inside, outside].map(|text| text.parse().unwrap());
            assert_eq!(network.to_string(), text);
            assert_eq!(Cidr::new(inside, network.prefix_len()), Some(network));
            assert_eq!(Cidr::host(host.base()), host);
            assert_eq!((host.single(), network.single()), (Some(host.base()), None));
            assert!(network.contains(inside) && !network.contains(outside));
            assert_eq!(network.family(), IpFamily::of(inside));
            let everywhere = Cidr::everywhere(network.family());
            assert!(everywhere.contains(outside) && everywhere.prefix_len() == 0);
            assert_eq!(Cidr::new(inside, network.family().bits() + 1), None);
        }
        assert!(!cidr("0.0.0.0/0").contains("::1".parse().unwrap()));
        assert!(!cidr("::/0").contains("10.0.0.1".parse().unwrap()));
        assert!("10.0.0.0".parse::<Cidr>().is_err() && "::/129".parse::<Cidr>().is_err());
    }
}
