//! Ports of the node that lead to a pod (`hostPort` in a pod's `ports`).

use std::fmt;
use std::net::IpAddr;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

/// What an allocation's ports take together in its record, as text, at most: the store holds 3 KiB a record, and all
/// else in one takes less than half of that.
pub const MOST_TEXT: usize = 1536;

/// A protocol with ports.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Transport {
    /// TCP.
    Tcp,
    /// UDP.
    Udp,
    /// SCTP.
    Sctp,
}

impl Transport {
    /// Every one.
    pub const ALL: [Self; 3] = [Self::Tcp, Self::Udp, Self::Sctp];

    /// Its number in IP headers (IANA's protocol numbers).
    pub fn number(self) -> u8 {
        match self {
            Self::Tcp => 6,
            Self::Udp => 17,
            Self::Sctp => 132,
        }
    }

    /// Its name, in lower case.
    pub fn name(self) -> &'static str {
        match self {
            Self::Tcp => "tcp",
            Self::Udp => "udp",
            Self::Sctp => "sctp",
        }
    }

    /// The one of this name, in any case.
    pub fn named(name: &str) -> Option<Self> {
        Self::ALL
            .into_iter()
            .find(|known| known.name().eq_ignore_ascii_case(name))
    }
}

impl fmt::Display for Transport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// A port of the node that leads to a port of a pod. Written as `tcp:8080:80` or `tcp:8080:80:10.0.0.1`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct HostPort {
    /// The protocol.
    pub transport: Transport,
    /// The node's port.
    pub host_port: u16,
    /// The pod's port.
    pub container_port: u16,
    /// The only address of the node on which it does; every one when it is not said.
    pub host_ip: Option<IpAddr>,
}

impl HostPort {
    /// Whether a packet could be meant for either.
    pub fn overlaps(&self, other: &Self) -> bool {
        let anywhere = self.host_ip.is_none() || other.host_ip.is_none();
        self.transport == other.transport
            && self.host_port == other.host_port
            && (anywhere || self.host_ip == other.host_ip)
    }

    /// The node's side of it, for people: `tcp port 8080`.
    pub fn place(&self) -> String {
        match self.host_ip {
            None => format!("{} port {}", self.transport, self.host_port),
            Some(ip) => format!("{} port {} of {ip}", self.transport, self.host_port),
        }
    }
}

impl fmt::Display for HostPort {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}:{}", self.transport, self.host_port, self.container_port)?;
        self.host_ip.map_or(Ok(()), |ip| write!(f, ":{ip}"))
    }
}

/// A text that is no [`HostPort`].
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} is not protocol:hostPort:containerPort[:hostIP]")]
pub struct NoHostPort(String);

impl FromStr for HostPort {
    type Err = NoHostPort;

    fn from_str(text: &str) -> Result<Self, NoHostPort> {
        let mut parts = text.splitn(4, ':');
        let mut next = || parts.next().ok_or_else(|| NoHostPort(text.to_owned()));
        let bad = || NoHostPort(text.to_owned());
        let port = |part: &str| match part.parse() {
            Ok(0) | Err(_) => Err(bad()),
            Ok(port) => Ok(port),
        };
        Ok(Self {
            transport: Transport::named(next()?).ok_or_else(bad)?,
            host_port: port(next()?)?,
            container_port: port(next()?)?,
            host_ip: parts.next().map(str::parse).transpose().map_err(|_| bad())?,
        })
    }
}

impl TryFrom<String> for HostPort {
    type Error = NoHostPort;

    fn try_from(text: String) -> Result<Self, NoHostPort> {
        text.parse()
    }
}

impl From<HostPort> for String {
    fn from(port: HostPort) -> Self {
        port.to_string()
    }
}

/// Whether they fit into a record.
pub fn fit(ports: &[HostPort]) -> bool {
    // A JSON text adds two quotes and a comma.
    ports.iter().map(|port| port.to_string().len() + 3).sum::<usize>() <= MOST_TEXT
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn port(text: &str) -> HostPort {
        text.parse().unwrap()
    }

    #[test]
    fn ports_of_one_address_overlap_those_of_all() {
        let [all, one, other] = ["tcp:80:1", "tcp:80:2:10.0.0.1", "TCP:80:3:10.0.0.2"].map(port);
        assert!(all.overlaps(&one) && one.overlaps(&all) && all.overlaps(&all));
        assert!(!one.overlaps(&other));
        assert!(!all.overlaps(&port("udp:80:1")) && !all.overlaps(&port("tcp:81:1")));
        assert!(!port("udp:53:53:::1").overlaps(&port("udp:53:53:fd00::1")));
    }

    #[test]
    fn what_is_no_port_is_refused() {
        for text in [
            "",
            "tcp",
            "tcp:1",
            "icmp:1:1",
            "tcp:0:1",
            "tcp:1:0",
            "tcp:65536:1",
            "tcp:1:1:",
            "tcp:1:1:x",
        ] {
            assert!(text.parse::<HostPort>().is_err(), "{text}");
        }
    }

    proptest! {
        #[test]
        fn what_is_written_is_read(
            kind in 0_usize..3, host_port in 1_u16.., container_port in 1_u16..,
            host_ip in proptest::option::of(any::<IpAddr>()),
        ) {
            let port = HostPort { transport: Transport::ALL[kind], host_port, container_port, host_ip };
            prop_assert_eq!(port.to_string().parse(), Ok(port));
        }
    }
}
