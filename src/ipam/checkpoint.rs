//! The Go daemon's checkpoint, `ipam.json`: what it says of its pods, read and written as it does.
//!
//! Read generously (its own older files lack fields, and a file is evidence even where one entry is spoilt), written as
//! it writes: one line, the order of its fields, empty ones left out.

use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use serde::Serialize;
use serde_json::{Map, Value};

use super::ids::{CardIndex, ContainerId, IfName, NetworkName, SandboxKey};

/// The one version there has ever been.
pub const VERSION: &str = "vpc-cni-ipam/1";
/// The network name of entries that a Go daemon of before 1.7 left: it had asked the container runtime for them.
const MIGRATED: &str = "_migrated-from-cri";

/// One interface of a sandbox, as the Go daemon wrote it down.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Entry {
    /// Whose it is.
    pub key: SandboxKey,
    /// The pod's namespace; empty when it was not written down.
    pub namespace: String,
    /// The pod's name; empty when it was not written down.
    pub name: String,
    /// Its IPv4 address.
    pub ipv4: Option<Ipv4Addr>,
    /// Its IPv6 address.
    pub ipv6: Option<Ipv6Addr>,
    /// When it was given, in nanoseconds since 1970; 0 when it was not written down.
    pub given_ns: u64,
    /// How many interfaces the pod has; 0 when it was not written down.
    pub interfaces: u32,
}

impl Entry {
    /// Whether the pod was written down, so that its link is known by name.
    pub fn names_its_pod(&self) -> bool {
        !self.namespace.is_empty() && !self.name.is_empty()
    }

    /// The address the sandbox has: the Go daemon gives one of one family.
    pub fn address(&self) -> Option<IpAddr> {
        self.ipv4.map(IpAddr::V4).or(self.ipv6.map(IpAddr::V6))
    }

    /// Whether it was taken over from the container runtime: nothing but sandbox and address is known then.
    pub fn is_migrated(&self) -> bool {
        self.key.network.as_str() == MIGRATED
    }
}

impl fmt::Display for Entry {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.names_its_pod() {
            write!(f, "pod {}/{}, ", self.namespace, self.name)?;
        }
        write!(f, "sandbox {}", self.key.container)
    }
}

/// An entry that says nothing usable; the others stand.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("allocation {place}: {why}")]
pub struct BadEntry {
    /// Its place in the list, counted from 1.
    pub place: usize,
    /// What is wrong.
    pub why: String,
}

/// A file, read.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Checkpoint {
    /// What it says, in its order.
    pub entries: Vec<Entry>,
    /// What of it cannot be used.
    pub bad: Vec<BadEntry>,
}

/// Why a file says nothing at all.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum CheckpointError {
    /// There is nothing in it.
    #[error("the file is empty")]
    Empty,
    /// It ends in the middle, or is no JSON.
    #[error("{0}")]
    NotJson(String),
    /// It is no object with a version.
    #[error("it is not a checkpoint: {0}")]
    NotACheckpoint(&'static str),
    /// A version that nobody here knows.
    #[error("its version is {found:?}, this build reads {VERSION:?}")]
    Version {
        /// The version it names.
        found: String,
    },
}

/// Reads a file.
pub fn read(bytes: &[u8]) -> Result<Checkpoint, CheckpointError> {
    if bytes.iter().all(u8::is_ascii_whitespace) {
        return Err(CheckpointError::Empty);
    }
    let document: Value =
        serde_json::from_slice(bytes).map_err(|error| CheckpointError::NotJson(error.to_string()))?;
    let Value::Object(document) = document else {
        return Err(CheckpointError::NotACheckpoint("it is no JSON object"));
    };
    match document.get("version") {
        Some(Value::String(version)) if version == VERSION => {}
        Some(Value::String(version)) => {
            return Err(CheckpointError::Version {
                found: version.clone(),
            });
        }
        _ => return Err(CheckpointError::NotACheckpoint("it names no version")),
    }
    let entries = match document.get("allocations") {
        // What Go writes for a list that was never made.
        None | Some(Value::Null) => return Ok(Checkpoint::default()),
        Some(Value::Array(entries)) => entries,
        Some(_) => return Err(CheckpointError::NotACheckpoint("its allocations are no list")),
    };
    let mut read = Checkpoint::default();
    for (index, value) in entries.iter().enumerate() {
        match entry(value) {
            Ok(entry) => read.entries.push(entry),
            Err(why) => read.bad.push(BadEntry {
                place: index.saturating_add(1),
                why,
            }),
        }
    }
    Ok(read)
}

fn entry(value: &Value) -> Result<Entry, String> {
    let Value::Object(fields) = value else {
        return Err("it is no JSON object".to_owned());
    };
    let container = text(fields, "containerID")?;
    if container.is_empty() {
        return Err("it names no container".to_owned());
    }
    let none = Map::new();
    let metadata = match fields.get("metadata") {
        None | Some(Value::Null) => &none,
        Some(Value::Object(metadata)) => metadata,
        Some(_) => return Err("its metadata is no JSON object".to_owned()),
    };
    Ok(Entry {
        key: SandboxKey {
            network: NetworkName(text(fields, "networkName")?.to_owned()),
            container: ContainerId(container.to_owned()),
            ifname: IfName(text(fields, "ifName")?.to_owned()),
        },
        namespace: text(metadata, "k8sPodNamespace")?.to_owned(),
        name: text(metadata, "k8sPodName")?.to_owned(),
        ipv4: address(fields, "ipv4")?,
        ipv6: address(fields, "ipv6")?,
        given_ns: number(fields, "allocationTimestamp"),
        interfaces: u32::try_from(number(metadata, "interfacesCount")).unwrap_or(u32::MAX),
    })
}

fn text<'a>(fields: &'a Map<String, Value>, name: &str) -> Result<&'a str, String> {
    match fields.get(name) {
        None | Some(Value::Null) => Ok(""),
        Some(Value::String(text)) => Ok(text),
        Some(other) => Err(format!("its {name} is {other}, not text")),
    }
}

fn address<T: std::str::FromStr>(fields: &Map<String, Value>, name: &str) -> Result<Option<T>, String> {
    match text(fields, name)? {
        "" => Ok(None),
        text => match text.parse() {
            Ok(address) => Ok(Some(address)),
            Err(_) => Err(format!("its {name} is {text:?}, no such address")),
        },
    }
}

/// Neither a time nor a count decides anything: what is no number is none.
fn number(fields: &Map<String, Value>, name: &str) -> u64 {
    fields.get(name).and_then(Value::as_u64).unwrap_or_default()
}

#[derive(Serialize)]
struct Written {
    version: &'static str,
    allocations: Vec<WrittenEntry>,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct WrittenEntry {
    network_name: String,
    #[serde(rename = "containerID")]
    container: String,
    if_name: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    ipv4: Option<Ipv4Addr>,
    #[serde(skip_serializing_if = "Option::is_none")]
    ipv6: Option<Ipv6Addr>,
    allocation_timestamp: u64,
    metadata: WrittenMetadata,
}

#[derive(Serialize)]
struct WrittenMetadata {
    #[serde(rename = "k8sPodNamespace", skip_serializing_if = "String::is_empty")]
    namespace: String,
    #[serde(rename = "k8sPodName", skip_serializing_if = "String::is_empty")]
    name: String,
    #[serde(rename = "interfacesCount", skip_serializing_if = "is_zero")]
    interfaces: u32,
}

#[allow(clippy::trivially_copy_pass_by_ref, reason = "serde hands out references")]
fn is_zero(number: &u32) -> bool {
    *number == 0
}

/// The file that says this, as the Go daemon writes it: one line.
pub fn write(entries: &[Entry]) -> String {
    let entry = |entry: &Entry| WrittenEntry {
        network_name: entry.key.network.0.clone(),
        container: entry.key.container.0.clone(),
        if_name: entry.key.ifname.0.clone(),
        ipv4: entry.ipv4,
        ipv6: entry.ipv6,
        allocation_timestamp: entry.given_ns,
        metadata: WrittenMetadata {
            namespace: entry.namespace.clone(),
            name: entry.name.clone(),
            interfaces: entry.interfaces,
        },
    };
    let document = Written {
        version: VERSION,
        allocations: entries.iter().map(entry).collect(),
    };
    // Plain structs cannot fail to serialise.
    let mut text = serde_json::to_string(&document).unwrap_or_default();
    text.push('\n');
    text
}

/// The name of the file for a network card, given that for card 0.
pub fn file_name(of_card_0: &str, card: CardIndex) -> String {
    match card.0 {
        0 => of_card_0.to_owned(),
        card => format!(
            "{}-nic-{card}.json",
            of_card_0.strip_suffix(".json").unwrap_or(of_card_0)
        ),
    }
}

/// The card whose file this is, given the name of that for card 0; `None` for any other file.
pub fn card_of(of_card_0: &str, name: &str) -> Option<CardIndex> {
    if name == of_card_0 {
        return Some(CardIndex(0));
    }
    let base = of_card_0.strip_suffix(".json").unwrap_or(of_card_0);
    let number = name
        .strip_prefix(base)?
        .strip_prefix("-nic-")?
        .strip_suffix(".json")?;
    let card = CardIndex(number.parse().ok()?);
    (card.0 > 0 && file_name(of_card_0, card) == name).then_some(card)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn all(text: &str) -> Vec<Entry> {
        let read = read(text.as_bytes()).unwrap();
        assert_eq!(read.bad, []);
        read.entries
    }

    #[test]
    fn everything_that_may_be_missing_may_be_missing() {
        let entries = all(r#"{"version":"vpc-cni-ipam/1","later":[1],"allocations":[
                {"networkName":"aws-cni","containerID":"c1","ifName":"eth0","ipv4":"10.0.0.5","more":{},
                 "allocationTimestamp":1789000000123456789,
                 "metadata":{"k8sPodNamespace":"shop","k8sPodName":"cart","interfacesCount":1,"x":null}},
                {"networkName":"_migrated-from-cri","containerID":"c2","ifName":"unknown","ipv4":"10.0.0.6"},
                {"networkName":"aws-cni","containerID":"c3","ifName":"eth0","ipv6":"2001:db8::1","metadata":null}
            ]}"#);
        assert_eq!(entries[0].given_ns, 1_789_000_000_123_456_789);
        assert!(entries[0].names_its_pod() && !entries[0].is_migrated());
        assert_eq!(
            (entries[1].given_ns, entries[1].interfaces, entries[1].ipv4),
            (0, 0, Some(Ipv4Addr::new(10, 0, 0, 6)))
        );
        assert!(entries[1].is_migrated() && !entries[1].names_its_pod());
        assert_eq!(entries[2].ipv6, Some("2001:db8::1".parse().unwrap()));
        assert_eq!(all(r#"{"version":"vpc-cni-ipam/1","allocations":null}"#), []);
        assert_eq!(all(r#"{"version":"vpc-cni-ipam/1"}"#), []);
    }

    /// The Go daemon refuses to start with any of these; here the error says where, and the file stays.
    #[test]
    fn ipamd_85_a_file_that_says_nothing_is_refused_with_the_place() {
        for (text, error) in [
            ("", "the file is empty"),
            (" \n", "the file is empty"),
            (
                "{\"version\":\"vpc-cni-ipam/1\",\n\"allocations\":[{\"netwo",
                "EOF while parsing a string at line 2 column 22",
            ),
            ("[]", "it is not a checkpoint: it is no JSON object"),
            ("{}", "it is not a checkpoint: it names no version"),
            (
                r#"{"version":"vpc-cni-ipam/2","allocations":[]}"#,
                "its version is \"vpc-cni-ipam/2\", this build reads \"vpc-cni-ipam/1\"",
            ),
            (
                r#"{"version":"vpc-cni-ipam/1","allocations":{}}"#,
                "it is not a checkpoint: its allocations are no list",
            ),
        ] {
            assert_eq!(read(text.as_bytes()).unwrap_err().to_string(), error, "{text}");
        }
    }

    #[test]
    fn one_spoilt_entry_takes_no_other_along() {
        let read = read(
            br#"{"version":"vpc-cni-ipam/1","allocations":[
                {"containerID":"c1","ipv4":"10.0.0.5"}, 7, {"containerID":"c2","ipv4":"10.0.0.500"},
                {"ipv4":"10.0.0.6"}, {"containerID":3}, {"containerID":"c4","metadata":[]},
                {"containerID":"c5","ipv4":"10.0.0.7","allocationTimestamp":"x"}]}"#,
        )
        .unwrap();
        let kept: Vec<_> = read
            .entries
            .iter()
            .map(|entry| entry.key.container.as_str())
            .collect();
        assert_eq!(kept, ["c1", "c5"]);
        let told: Vec<String> = read.bad.iter().map(ToString::to_string).collect();
        assert_eq!(
            told,
            [
                "allocation 2: it is no JSON object",
                "allocation 3: its ipv4 is \"10.0.0.500\", no such address",
                "allocation 4: it names no container",
                "allocation 5: its containerID is 3, not text",
                "allocation 6: its metadata is no JSON object",
            ]
        );
    }

    #[test]
    fn files_of_other_cards_are_named_beside_the_first() {
        assert_eq!(file_name("ipam.json", CardIndex(0)), "ipam.json");
        assert_eq!(file_name("ipam.json", CardIndex(2)), "ipam-nic-2.json");
        assert_eq!(file_name("state", CardIndex(1)), "state-nic-1.json");
        for (name, card) in [
            ("ipam.json", Some(0)),
            ("ipam-nic-2.json", Some(2)),
            ("ipam-nic-0.json", None),
            ("ipam-nic-02.json", None),
            ("ipam.json.tmp123", None),
            ("ipam-nic-x.json", None),
        ] {
            assert_eq!(card_of("ipam.json", name), card.map(CardIndex), "{name}");
        }
    }

    fn word() -> impl Strategy<Value = String> {
        "[a-z0-9./\"\\\\ é-]{0,12}"
    }

    fn an_entry() -> impl Strategy<Value = Entry> {
        (
            (word(), "[a-z0-9]{1,16}", word()),
            (word(), word()),
            (
                any::<Option<u32>>(),
                any::<Option<u128>>(),
                any::<u64>(),
                any::<u32>(),
            ),
        )
            .prop_map(
                |((network, container, ifname), (namespace, name), (ipv4, ipv6, given_ns, interfaces))| {
                    Entry {
                        key: SandboxKey {
                            network: NetworkName(network),
                            container: ContainerId(container),
                            ifname: IfName(ifname),
                        },
                        namespace,
                        name,
                        ipv4: ipv4.map(Ipv4Addr::from),
                        ipv6: ipv6.map(Ipv6Addr::from),
                        given_ns,
                        interfaces,
                    }
                },
            )
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(256))]
        #[test]
        fn what_is_written_is_read_back(entries in proptest::collection::vec(an_entry(), 0..20)) {
            let text = write(&entries);
            let is_one_line = text.ends_with("}\n") && text.lines().count() == 1;
            prop_assert!(is_one_line);
            prop_assert_eq!(read(text.as_bytes()).unwrap(), Checkpoint { entries, bad: Vec::new() });
        }

        #[test]
        fn noise_is_an_error_and_never_a_panic(bytes: Vec<u8>, at in 0_usize..400, byte: u8) {
            drop(read(&bytes));
            let mut text = write(&[Entry {
                key: SandboxKey { network: "aws-cni".into(), container: "c".into(), ifname: "eth0".into() },
                namespace: "default".into(), name: "web".into(), ipv4: Some(Ipv4Addr::LOCALHOST), ipv6: None,
                given_ns: 1, interfaces: 1,
            }]).into_bytes();
            if let Some(place) = text.get_mut(at) {
                *place = byte;
            }
            drop(read(&text));
            text.truncate(at);
            drop(read(&text));
        }
    }
}
