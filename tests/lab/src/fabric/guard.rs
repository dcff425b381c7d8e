//! What an ENI may not send is dropped, counted and named: a wrong source address, a wrong hardware address.
//!
//! EC2 drops silently (source/destination check). Here a counter and a list of offences make wrong source routing
//! a visible failure.

use std::collections::BTreeSet;
use std::fmt::{self, Write as _};

use serde_json::Value;

use super::tool::{nft, nft_json};
use super::{Fabric, FabricError, ToolError};
use crate::netns::Netns;
use crate::vpc::cidr::{Ipv4Cidr, Ipv6Cidr};
use crate::vpc::ids::Mac;

/// Prerouting before conntrack, once for each family. `source_may` and `mac_may` hold what each ENI may send.
///
/// The drop is a rule of its own: a set that is full ends the rule that would add to it.
fn table(family: Family) -> String {
    let Words {
        ip,
        addr,
        protocol,
        exempt,
        ownerless,
    } = family.words();
    let key = format!("ifname . ether_addr . {addr} . {addr} . inet_proto");
    let log = format!("iifname . ether saddr . {ip} saddr . {ip} daddr . {protocol}");
    let set = |name: &str| format!("  set {name} {{ type {key}; flags dynamic; size 4096; counter; }}\n");
    let drop = |chain: &str, set: &str, counter: &str| {
        format!(
            "  chain {chain} {{\n    add @{set} {{ {log} }}\n    counter name {counter}\n    drop\n  }}\n"
        )
    };
    [
        format!("table {ip} vpc {{\n  counter spoofed_source {{}}\n  counter spoofed_mac {{}}\n  counter no_owner {{}}\n"),
        format!("  set source_may {{ type ifname . {addr}; flags interval; }}\n"),
        "  set mac_may { type ifname . ether_addr; }\n".to_owned(),
        ["by_source", "by_mac", "by_destination"].map(set).concat(),
        drop("drop_source", "by_source", "spoofed_source"),
        drop("drop_mac", "by_mac", "spoofed_mac"),
        drop("drop_ownerless", "by_destination", "no_owner"),
        "  chain check {\n    type filter hook prerouting priority raw; policy accept;\n".to_owned(),
        "    iifname \"eni*\" iifname . ether saddr != @mac_may goto drop_mac\n".to_owned(),
        exempt.to_owned(),
        format!("    iifname \"eni*\" iifname . {ip} saddr != @source_may goto drop_source\n"),
        format!("    {ownerless} goto drop_ownerless\n  }}\n}}\n"),
    ]
    .concat()
}

/// Of which packets.
#[derive(Debug, Clone, Copy)]
enum Family {
    V4,
    V6,
}

/// What differs between the tables.
struct Words {
    ip: &'static str,
    addr: &'static str,
    protocol: &'static str,
    /// Accepts what is on the link alone: neighbour and router discovery.
    exempt: &'static str,
    /// Matches what goes to an address of the VPC that nobody has.
    ownerless: &'static str,
}

impl Family {
    fn words(self) -> Words {
        match self {
            Self::V4 => Words {
                ip: "ip",
                addr: "ipv4_addr",
                protocol: "ip protocol",
                exempt: "",
                ownerless: "fib daddr type unicast fib daddr oif missing",
            },
            Self::V6 => Words {
                ip: "ip6",
                addr: "ipv6_addr",
                protocol: "meta l4proto",
                exempt: "    ip6 saddr { ::, fe80::/10 } accept\n    ip6 daddr { fe80::/10, ff00::/8 } accept\n",
                // A route that leads nowhere has a type of its own there.
                ownerless: "fib daddr type { unreachable, blackhole, prohibit }",
            },
        }
    }
}

/// What an ENI may send from.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Sources {
    pub(super) v4: BTreeSet<Ipv4Cidr>,
    /// `None` where the router has no IPv6.
    pub(super) v6: Option<BTreeSet<Ipv6Cidr>>,
}

impl Sources {
    /// What is here and not there.
    fn without(&self, other: &Self) -> Self {
        let other6 = other.v6.clone().unwrap_or_default();
        Self {
            v4: self.v4.difference(&other.v4).copied().collect(),
            v6: self
                .v6
                .as_ref()
                .map(|v6| v6.difference(&other6).copied().collect()),
        }
    }
}

/// Where the table keeps what it dropped.
const SETS: [(&str, Wrong); 3] = [
    ("by_source", Wrong::Source),
    ("by_mac", Wrong::Mac),
    ("by_destination", Wrong::Destination),
];

/// What was wrong with a packet.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Wrong {
    /// The ENI does not own the source address.
    Source,
    /// The ENI has another hardware address, or is not attached.
    Mac,
    /// No ENI owns the destination; nothing is wrong with sending there.
    Destination,
}

/// Packets the router dropped.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Drops {
    /// Why they were dropped.
    pub wrong: Wrong,
    /// The router's link: for an ENI `eni` and its hardware address.
    pub link: String,
    /// The hardware address they were sent from.
    pub mac: String,
    /// The source address.
    pub source: String,
    /// Where they were to go.
    pub destination: String,
    /// The protocol, by name or number.
    pub protocol: String,
    /// How many.
    pub packets: u64,
}

impl fmt::Display for Drops {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self {
            wrong,
            link,
            mac,
            source,
            destination,
            protocol,
            packets,
        } = self;
        let wrong = match wrong {
            Wrong::Source => "source address",
            Wrong::Mac => "hardware address",
            Wrong::Destination => "destination",
        };
        write!(
            f,
            "{packets} packets through {link} with a wrong {wrong}: {source} ({mac}) > {destination}, {protocol}"
        )
    }
}

/// How many packets the router dropped.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Dropped {
    /// Sent from an address the ENI does not own.
    pub spoofed_source: u64,
    /// Sent from another hardware address than the ENI's.
    pub spoofed_mac: u64,
    /// Sent to an address of the VPC that no ENI owns.
    pub no_owner: u64,
}

impl Fabric {
    /// What the router has dropped so far.
    pub fn dropped(&self) -> Result<Dropped, FabricError> {
        let mut dropped = Dropped::default();
        for table in self.tables() {
            let answer = nft_json(self.router(), &["list", "counters", "table", table, "vpc"])?;
            for counter in objects(&answer, "counter") {
                let packets = counter.get("packets").and_then(Value::as_u64).unwrap_or(0);
                match counter.get("name").and_then(Value::as_str) {
                    Some("spoofed_source") => dropped.spoofed_source += packets,
                    Some("spoofed_mac") => dropped.spoofed_mac += packets,
                    Some("no_owner") => dropped.no_owner += packets,
                    _ => {}
                }
            }
        }
        Ok(dropped)
    }

    fn tables(&self) -> &'static [&'static str] {
        match self.networks().six {
            Some(_) => &["ip", "ip6"],
            None => &["ip"],
        }
    }

    /// How many packets were dropped for their source address or hardware address.
    pub fn dropped_spoofed(&self) -> Result<u64, FabricError> {
        let dropped = self.dropped()?;
        Ok(dropped.spoofed_source.saturating_add(dropped.spoofed_mac))
    }

    /// Which packets the router has dropped. What a counter of [`Fabric::dropped`] said before is in here.
    pub fn drops(&self) -> Result<Vec<Drops>, FabricError> {
        let mut drops = Vec::new();
        for table in self.tables() {
            for (set, wrong) in SETS {
                let answer = nft_json(self.router(), &["list", "set", table, "vpc", set])?;
                let elements = objects(&answer, "set")
                    .filter_map(|set| set.get("elem").and_then(Value::as_array))
                    .flatten();
                drops.extend(elements.filter_map(|element| described(wrong, element)));
            }
        }
        Ok(drops)
    }

    /// Who sent what that was not allowed.
    pub fn offences(&self) -> Result<Vec<Drops>, FabricError> {
        let mut drops = self.drops()?;
        drops.retain(|drops| drops.wrong != Wrong::Destination);
        Ok(drops)
    }
}

fn objects<'a>(answer: &'a Value, kind: &'a str) -> impl Iterator<Item = &'a Value> {
    let all = answer.get("nftables").and_then(Value::as_array);
    all.into_iter()
        .flatten()
        .filter_map(move |object| object.get(kind))
}

fn described(wrong: Wrong, element: &Value) -> Option<Drops> {
    let element = element.get("elem")?;
    let text = |value: &Value| value.as_str().map_or_else(|| value.to_string(), str::to_owned);
    let key = element.get("val")?.get("concat")?.as_array()?;
    let [link, mac, source, destination, protocol] = key.as_slice() else {
        return None;
    };
    Some(Drops {
        wrong,
        link: text(link),
        mac: text(mac),
        source: text(source),
        destination: text(destination),
        protocol: protocol_name(text(protocol)),
        packets: element.get("counter")?.get("packets")?.as_u64()?,
    })
}

/// nft names a protocol only where there is an /etc/protocols, which a bare Debian lacks.
fn protocol_name(protocol: String) -> String {
    match protocol.as_str() {
        "1" => "icmp".into(),
        "6" => "tcp".into(),
        "17" => "udp".into(),
        "58" => "ipv6-icmp".into(),
        _ => protocol,
    }
}

pub(super) fn install(router: &Netns, six: bool) -> Result<(), ToolError> {
    let six = if six { table(Family::V6) } else { String::new() };
    nft(router, &(table(Family::V4) + &six))
}

pub(super) fn admit(router: &Netns, link: &str, mac: Mac, sources: &Sources) -> Result<(), ToolError> {
    nft(
        router,
        &(hardware("add", link, mac, sources) + &elements("add", link, sources)),
    )
}

pub(super) fn forget(router: &Netns, link: &str, mac: Mac, sources: &Sources) -> Result<(), ToolError> {
    nft(
        router,
        &(hardware("delete", link, mac, sources) + &elements("delete", link, sources)),
    )
}

pub(super) fn replace(
    router: &Netns,
    link: &str,
    before: &Sources,
    after: &Sources,
) -> Result<(), ToolError> {
    let gone = elements("delete", link, &before.without(after));
    let script = gone + &elements("add", link, &after.without(before));
    if script.is_empty() {
        return Ok(());
    }
    nft(router, &script)
}

fn hardware(verb: &str, link: &str, mac: Mac, sources: &Sources) -> String {
    let of = |table: &str| format!("{verb} element {table} vpc mac_may {{ {link} . {mac} }}\n");
    match sources.v6 {
        Some(_) => of("ip") + &of("ip6"),
        None => of("ip"),
    }
}

fn elements(verb: &str, link: &str, sources: &Sources) -> String {
    let v6 = sources.v6.iter().flatten();
    of_table(verb, "ip", link, sources.v4.iter()) + &of_table(verb, "ip6", link, v6)
}

fn of_table(verb: &str, table: &str, link: &str, sources: impl Iterator<Item = impl fmt::Display>) -> String {
    let listed = sources.fold(String::new(), |mut listed, source| {
        _ = write!(listed, "{link} . {source}, ");
        listed
    });
    if listed.is_empty() {
        return listed;
    }
    format!("{verb} element {table} vpc source_may {{ {listed}}}\n")
}
