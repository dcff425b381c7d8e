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
use crate::vpc::cidr::Ipv4Cidr;
use crate::vpc::ids::Mac;

/// Prerouting before conntrack. `source_may` and `mac_may` hold what each ENI may send.
///
/// The drop is a rule of its own: a set that is full ends the rule that would add to it.
const TABLE: &str = r#"
table ip vpc {
  counter spoofed_source {}
  counter spoofed_mac {}
  counter no_owner {}
  set source_may { type ifname . ipv4_addr; flags interval; }
  set mac_may { type ifname . ether_addr; }
  set by_source { type ifname . ether_addr . ipv4_addr . ipv4_addr . inet_proto; flags dynamic; size 4096; counter; }
  set by_mac { type ifname . ether_addr . ipv4_addr . ipv4_addr . inet_proto; flags dynamic; size 4096; counter; }
  set by_destination { type ifname . ether_addr . ipv4_addr . ipv4_addr . inet_proto; flags dynamic; size 4096; counter; }
  chain drop_source {
    add @by_source { iifname . ether saddr . ip saddr . ip daddr . ip protocol }
    counter name spoofed_source
    drop
  }
  chain drop_mac {
    add @by_mac { iifname . ether saddr . ip saddr . ip daddr . ip protocol }
    counter name spoofed_mac
    drop
  }
  chain drop_ownerless {
    add @by_destination { iifname . ether saddr . ip saddr . ip daddr . ip protocol }
    counter name no_owner
    drop
  }
  chain check {
    type filter hook prerouting priority raw; policy accept;
    iifname "eni*" iifname . ether saddr != @mac_may goto drop_mac
    iifname "eni*" iifname . ip saddr != @source_may goto drop_source
    fib daddr type unicast fib daddr oif missing goto drop_ownerless
  }
}
"#;

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
        let answer = nft_json(self.router(), &["list", "counters", "table", "ip", "vpc"])?;
        let mut dropped = Dropped::default();
        for counter in objects(&answer, "counter") {
            let packets = counter.get("packets").and_then(Value::as_u64).unwrap_or(0);
            match counter.get("name").and_then(Value::as_str) {
                Some("spoofed_source") => dropped.spoofed_source = packets,
                Some("spoofed_mac") => dropped.spoofed_mac = packets,
                Some("no_owner") => dropped.no_owner = packets,
                _ => {}
            }
        }
        Ok(dropped)
    }

    /// How many packets were dropped for their source address or hardware address.
    pub fn dropped_spoofed(&self) -> Result<u64, FabricError> {
        let dropped = self.dropped()?;
        Ok(dropped.spoofed_source.saturating_add(dropped.spoofed_mac))
    }

    /// Which packets the router has dropped. What a counter of [`Fabric::dropped`] said before is in here.
    pub fn drops(&self) -> Result<Vec<Drops>, FabricError> {
        let mut drops = Vec::new();
        for (set, wrong) in SETS {
            let answer = nft_json(self.router(), &["list", "set", "ip", "vpc", set])?;
            let elements = objects(&answer, "set")
                .filter_map(|set| set.get("elem").and_then(Value::as_array))
                .flatten();
            drops.extend(elements.filter_map(|element| described(wrong, element)));
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
        _ => protocol,
    }
}

pub(super) fn install(router: &Netns) -> Result<(), ToolError> {
    nft(router, TABLE)
}

pub(super) fn admit(
    router: &Netns,
    link: &str,
    mac: Mac,
    sources: &BTreeSet<Ipv4Cidr>,
) -> Result<(), ToolError> {
    let mac = format!("add element ip vpc mac_may {{ {link} . {mac} }}\n");
    nft(router, &(mac + &elements("add", link, sources)))
}

pub(super) fn forget(
    router: &Netns,
    link: &str,
    mac: Mac,
    sources: &BTreeSet<Ipv4Cidr>,
) -> Result<(), ToolError> {
    let mac = format!("delete element ip vpc mac_may {{ {link} . {mac} }}\n");
    nft(router, &(mac + &elements("delete", link, sources)))
}

pub(super) fn replace(
    router: &Netns,
    link: &str,
    gone: &BTreeSet<Ipv4Cidr>,
    added: &BTreeSet<Ipv4Cidr>,
) -> Result<(), ToolError> {
    let script = elements("delete", link, gone) + &elements("add", link, added);
    if script.is_empty() {
        return Ok(());
    }
    nft(router, &script)
}

fn elements(verb: &str, link: &str, sources: &BTreeSet<Ipv4Cidr>) -> String {
    if sources.is_empty() {
        return String::new();
    }
    let mut script = format!("{verb} element ip vpc source_may {{ ");
    for source in sources {
        _ = write!(script, "{link} . {source}, ");
    }
    script + "}\n"
}
