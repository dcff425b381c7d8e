//! How the pool's facts are written down: an opaque text key and a JSON value with a version.
//!
//! Decoding is total: what cannot be read is a [`BadRecord`], a doubt for recovery to resolve with other witnesses.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::net::IpAddr;

use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use super::budget::LedgerRecord;
use super::ids::{ClientToken, EniId, SandboxKey, Tick};
use super::limits::InstanceLimits;
use super::model::{Allocation, Creation, Eni};
use super::node::NodeFacts;
use super::witness::Doubt;

/// The version this build writes; greater ones are refused, not guessed at.
pub const VERSION: u32 = 1;

/// What a record is about.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub enum RecordKey {
    /// The node itself.
    Node,
    /// An ENI with its addresses.
    Eni(EniId),
    /// An ENI being created.
    Creation(ClientToken),
    /// An address with a past: used before, cooling or quarantined.
    Address(IpAddr),
    /// An allocation.
    Allocation(SandboxKey),
    /// What was asked of EC2 within the last hour.
    Budget,
}

impl RecordKey {
    /// The key as the store knows it.
    pub fn text(&self) -> String {
        match self {
            Self::Node => "node".to_owned(),
            Self::Budget => "budget".to_owned(),
            Self::Eni(id) => format!("eni/{}", escaped(id.as_str())),
            Self::Creation(token) => format!("creation/{}", escaped(token.as_str())),
            Self::Address(address) => format!("address/{address}"),
            Self::Allocation(key) => format!(
                "allocation/{}/{}/{}",
                escaped(key.network.as_str()),
                escaped(key.container.as_str()),
                escaped(key.ifname.as_str())
            ),
        }
    }
}

/// `/`, `%` and everything outside printable ASCII as `%XX`, so that no two keys meet.
fn escaped(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for byte in text.bytes() {
        if byte.is_ascii_graphic() && byte != b'/' && byte != b'%' {
            out.push(char::from(byte));
        } else {
            // Writing to a String cannot fail.
            write!(out, "%{byte:02X}").unwrap_or_default();
        }
    }
    out
}

/// What is stored of the node.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct NodeRecord {
    /// The facts all other records were written under.
    pub facts: NodeFacts,
    /// The instance type's limits, so that a type EC2 had to be asked about is known at the next start.
    pub limits: Option<InstanceLimits>,
    /// Somebody has said that the node takes no new pods.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub cordoned: bool,
}

/// What is stored of an address with a past.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct AddressRecord {
    /// The address.
    pub address: IpAddr,
    /// The ENI it was on.
    pub eni: EniId,
    /// When it was last given back.
    pub last_used: Option<Tick>,
    /// The last instant of its rest.
    pub rests_until: Option<Tick>,
    /// What does not fit.
    pub doubt: Option<Doubt>,
}

/// A record, decoded.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Record {
    /// The node.
    Node(Box<NodeRecord>),
    /// An ENI.
    Eni(Box<Eni>),
    /// An ENI being created.
    Creation(Box<Creation>),
    /// An address with a past.
    Address(Box<AddressRecord>),
    /// An allocation.
    Allocation(Box<Allocation>),
    /// What was asked of EC2 within the last hour.
    Budget(Box<LedgerRecord>),
}

impl Record {
    /// The key it belongs under.
    pub fn key(&self) -> RecordKey {
        match self {
            Self::Node(_) => RecordKey::Node,
            Self::Budget(_) => RecordKey::Budget,
            Self::Eni(eni) => RecordKey::Eni(eni.id.clone()),
            Self::Creation(creation) => RecordKey::Creation(creation.token.clone()),
            Self::Address(address) => RecordKey::Address(address.address),
            Self::Allocation(allocation) => RecordKey::Allocation(allocation.key.clone()),
        }
    }

    /// The value to store.
    pub fn value(&self) -> Vec<u8> {
        match self {
            Self::Node(body) => sealed(body),
            Self::Eni(body) => sealed(body),
            Self::Creation(body) => sealed(body),
            Self::Address(body) => sealed(body),
            Self::Allocation(body) => sealed(body),
            Self::Budget(body) => sealed(body),
        }
    }
}

/// The frame around every value.
#[derive(Serialize, Deserialize)]
struct Sealed<T> {
    v: u32,
    body: T,
}

fn sealed<T: Serialize>(body: &T) -> Vec<u8> {
    // Plain structs with text keys cannot fail to serialise; an empty value would be read back as a bad record.
    serde_json::to_vec(&Sealed { v: VERSION, body }).unwrap_or_default()
}

/// A record that cannot be read.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("record {key:?} cannot be read: {why}")]
pub struct BadRecord {
    /// Its key.
    pub key: String,
    /// Why.
    pub why: String,
}

/// Reads one stored pair.
pub fn decode(key: &str, value: &[u8]) -> Result<Record, BadRecord> {
    let bad = |why: String| BadRecord {
        key: key.to_owned(),
        why,
    };
    let kind = key.split_once('/').map_or(key, |(kind, _)| kind);
    let record = match kind {
        "node" => open(value).map(|body| Record::Node(Box::new(body))),
        "budget" => open(value).map(|body| Record::Budget(Box::new(body))),
        "eni" => open(value).map(|body| Record::Eni(Box::new(body))),
        "creation" => open(value).map(|body| Record::Creation(Box::new(body))),
        "address" => open(value).map(|body| Record::Address(Box::new(body))),
        "allocation" => open(value).map(|body| Record::Allocation(Box::new(body))),
        other => Err(format!("no record is of the kind {other:?}")),
    }
    .map_err(bad)?;
    if record.key().text() == key {
        Ok(record)
    } else {
        Err(bad(format!(
            "its content belongs under {:?}",
            record.key().text()
        )))
    }
}

fn open<T: DeserializeOwned>(value: &[u8]) -> Result<T, String> {
    #[derive(Deserialize)]
    struct Version {
        v: u32,
    }
    let Version { v } = serde_json::from_slice(value).map_err(|error| error.to_string())?;
    if v != VERSION {
        return Err(format!("its version is {v}, this build reads {VERSION}"));
    }
    serde_json::from_slice::<Sealed<T>>(value)
        .map(|sealed| sealed.body)
        .map_err(|error| error.to_string())
}

/// The node facts the store was written under, for a start without IMDS; valid only when their boot id is this boot's.
pub fn stored_facts(records: &BTreeMap<String, Vec<u8>>) -> Option<NodeFacts> {
    let key = RecordKey::Node.text();
    match decode(&key, records.get(&key)?) {
        Ok(Record::Node(node)) => Some(node.facts),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use std::net::Ipv4Addr;

    use proptest::prelude::*;

    use super::*;
    use crate::cidr::Ipv4Cidr;
    use crate::ids::PodRef;
    use crate::tags;

    fn allocation(container: &str) -> Allocation {
        Allocation {
            key: SandboxKey {
                network: "aws-cni".into(),
                container: container.into(),
                ifname: "eth0".into(),
            },
            pod: PodRef::default(),
            address: Ipv4Addr::new(10, 0, 0, 9).into(),
            eni: "eni-1".into(),
            device: super::super::ids::DeviceIndex(0),
            card: super::super::ids::CardIndex(0),
            host_veth: "eni0".to_owned(),
            netns: "/run/netns/x".to_owned(),
            main: None,
            egress: None,
            ports: Vec::new(),
            since: Tick(5),
            told: None,
        }
    }

    #[test]
    fn a_future_version_and_a_foreign_key_are_doubts() {
        let record = Record::Allocation(Box::new(allocation("c1")));
        let key = record.key().text();
        assert_eq!(key, "allocation/aws-cni/c1/eth0");
        assert_eq!(decode(&key, &record.value()), Ok(record.clone()));
        assert!(decode("allocation/aws-cni/c2/eth0", &record.value()).is_err());
        assert!(decode("surprise/1", b"{}").is_err());
        let future = String::from_utf8(record.value())
            .unwrap()
            .replace("\"v\":1", "\"v\":2");
        assert!(
            decode(&key, future.as_bytes())
                .unwrap_err()
                .why
                .contains("version is 2")
        );
    }

    /// u-*.metal types carry 50 addresses an ENI, its own among them; prefixes take the same places, but an ENI that
    /// changed its mode may have lists of both.
    #[test]
    fn the_largest_eni_fits_into_a_record_of_the_store() {
        use super::super::ids::{DeviceIndex, Mark};
        use super::super::model::{EniKind, EniRole, EniState, Placed};
        let longest = |last: u8| Ipv4Addr::new(255, 255, 255, 200 + last);
        let placed = Placed {
            verified: true,
            published: true,
            releasing: true,
        };
        let eni = Eni {
            id: "eni-0123456789abcdef0".into(),
            mac: "02:ff:ff:ff:ff:ff".parse().unwrap(),
            role: EniRole::Unmanaged,
            kind: EniKind::Interface,
            excluded: false,
            state: EniState::Discarding {
                why: "\u{10FFFF}".repeat(super::super::lifecycle::LONGEST_REASON),
            },
            device: Some(DeviceIndex(u32::MAX)),
            card: crate::ids::CardIndex(u32::MAX),
            given_mark: Some(Mark(u8::MAX)),
            attachment: Some("eni-attach-0123456789abcdef0".into()),
            delete_on_termination: false,
            subnet: "subnet-0123456789abcdef0".into(),
            subnet_cidr: Some("255.255.255.255/32".parse().unwrap()),
            primary: longest(0),
            assigning: Some(crate::cloud::Amount::Prefixes(u32::MAX)),
            cidrs: (1..=49)
                .map(|last| (Ipv4Cidr::host(longest(last)), placed))
                .collect(),
            block: Some(crate::six::Block {
                prefix: "ffff:ffff:ffff:ffff:ffff::/80".parse().unwrap(),
                verified: true,
                reserved: crate::six::LAST + 1,
            }),
        };
        let record = Record::Eni(Box::new(eni));
        let value = record.value();
        // `store::MAX_VALUE_BYTES`, which this module must not know.
        assert!(value.len() <= 3 * 1024, "{} bytes", value.len());
        assert_eq!(decode(&record.key().text(), &value), Ok(record));
    }

    /// EC2 takes 50 tags of 128 and 256 characters; a creation stores only those that are its own.
    #[test]
    fn the_largest_creation_fits_into_a_record_of_the_store() {
        let creation = Creation {
            token: ClientToken("i-0123456789abcdef0-01234567-ffffffffffffffff-ffffffffffffffff".to_owned()),
            subnet: "subnet-0123456789abcdef0".into(),
            card: crate::ids::CardIndex(u32::MAX),
            // The most a quota increase allows for one ENI.
            groups: vec!["sg-0123456789abcdef0".into(); 16],
            amount: crate::cloud::Amount::Prefixes(u32::MAX),
            tracking: crate::cloud::ConnectionTracking {
                tcp_established: Some(u32::MAX),
                udp_stream: Some(u32::MAX),
                udp: Some(u32::MAX),
            },
            description: "aws-K8S-i-0123456789abcdef0".to_owned(),
            tags: [tags::INSTANCE, tags::CREATED_AT, tags::TOKEN]
                .map(|key| {
                    (
                        key.to_owned(),
                        "i-0123456789abcdef0-01234567-ffffffffffffffff-ffffffffffffffff".to_owned(),
                    )
                })
                .into(),
        };
        let record = Record::Creation(Box::new(creation));
        let value = record.value();
        assert!(value.len() <= 3 * 1024, "{} bytes", value.len());
        assert_eq!(decode(&record.key().text(), &value), Ok(record));
    }

    proptest! {
        #[test]
        fn decoding_is_total(key in ".{0,40}", value in prop::collection::vec(any::<u8>(), 0..80)) {
            prop_assert!(decode(&key, &value).is_err());
        }

        #[test]
        fn any_container_id_round_trips_and_keys_never_meet(a in ".{0,12}", b in ".{0,12}") {
            let (one, other) = (Record::Allocation(Box::new(allocation(&a))), Record::Allocation(Box::new(allocation(&b))));
            prop_assert_eq!(decode(&one.key().text(), &one.value()), Ok(one.clone()));
            prop_assert_eq!(one.key().text() == other.key().text(), a == b);
        }
    }
}
