//! What an ENI may not send is dropped and counted: a wrong source address, a wrong hardware address.
//!
//! EC2 drops silently (source/destination check). Here a counter and a list of offenders make wrong source routing
//! a visible failure.

use std::collections::BTreeSet;
use std::fmt::Write as _;

use serde_json::Value;

use super::tool::{nft, nft_json};
use super::{Fabric, FabricError, ToolError};
use crate::netns::Netns;
use crate::vpc::cidr::Ipv4Cidr;
use crate::vpc::ids::Mac;

/// Prerouting before conntrack. `source_may` and `mac_may` hold what each ENI may send.
const TABLE: &str = r#"
table ip vpc {
  counter spoofed_source {}
  counter spoofed_mac {}
  counter no_owner {}
  set source_may { type ifname . ipv4_addr; flags interval; }
  set mac_may { type ifname . ether_addr; }
  set offenders { type ifname . ipv4_addr; flags dynamic; size 4096; counter; }
  chain check {
    type filter hook prerouting priority raw; policy accept;
    iifname "eni*" iifname . ether saddr != @mac_may counter name spoofed_mac drop
    iifname "eni*" iifname . ip saddr != @source_may add @offenders { iifname . ip saddr } counter name spoofed_source drop
    fib daddr type unicast fib daddr oif missing counter name no_owner drop
  }
}
"#;

/// A source address that an ENI sent from without owning it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Offence {
    /// The router's link: `eni` and the ENI's hardware address.
    pub link: String,
    /// The source address.
    pub source: String,
    /// How many packets.
    pub packets: u64,
}

/// Packets the router dropped.
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

    /// Who sent from which foreign address.
    pub fn offences(&self) -> Result<Vec<Offence>, FabricError> {
        let answer = nft_json(self.router(), &["list", "set", "ip", "vpc", "offenders"])?;
        let elements = objects(&answer, "set")
            .filter_map(|set| set.get("elem").and_then(Value::as_array))
            .flatten();
        Ok(elements.filter_map(offence).collect())
    }
}

fn objects<'a>(answer: &'a Value, kind: &'a str) -> impl Iterator<Item = &'a Value> {
    let all = answer.get("nftables").and_then(Value::as_array);
    all.into_iter()
        .flatten()
        .filter_map(move |object| object.get(kind))
}

fn offence(element: &Value) -> Option<Offence> {
    let element = element.get("elem")?;
    let [link, source] = element.get("val")?.get("concat")?.as_array()?.as_slice() else {
        return None;
    };
    Some(Offence {
        link: link.as_str()?.to_owned(),
        source: source.as_str()?.to_owned(),
        packets: element.get("counter")?.get("packets")?.as_u64()?,
    })
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
