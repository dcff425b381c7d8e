//! What the Go daemon left: its `ipam.json`, beside a kernel that shows some of what it says.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, Ipv4Addr};
use std::time::Duration;

use super::records::node;
use crate::ipam::checkpoint::{self, Entry};
use crate::ipam::effect::Change;
use crate::ipam::ids::{CardIndex, DeviceIndex, Mac, SandboxKey, TableId, Tick};
use crate::ipam::import::{self, Clocks, Judged, Verdict, Witnesses};
use crate::ipam::limits;
use crate::ipam::model::Allocation;
use crate::ipam::policy::Policy;
use crate::ipam::pool::Pool;
use crate::ipam::recover::Start;
use crate::ipam::verify;
use crate::ipam::witness::{ImdsEni, KernelFacts};

const NOW: Clocks = Clocks {
    boot: Tick(1_000_000),
    unix_ns: 1_795_241_204_000_000_000,
};
const COOLDOWN: Duration = Duration::from_secs(30);
const SHORT: usize = 200;

/// `ipam.json` of card 0 and, after a line `--`, of card 1. Lines before the first `{` say what the kernel shows:
/// `ADDRESS NAME` a route to an address over a pod's link, ` NAME` a link alone, `ADDRESS TABLE` a rule.
///
/// What is read is written to the same again. No address is given to two sandboxes or while it is an ENI's own, no
/// sandbox gets two, and a daemon that starts from what is stored has exactly those pods, in a pool that breaks no
/// invariant. What goes back to the Go daemon then says the same of them.
pub fn checkpoint_files(data: &[u8]) {
    let start = data.iter().position(|byte| *byte == b'{').unwrap_or(0);
    let (shown, files) = data.split_at_checked(start).unwrap_or_default();
    let seen = witnesses(&String::from_utf8_lossy(shown));
    let mut cards = Vec::new();
    for (card, file) in (0..2).zip(parts(files)) {
        if let Ok(read) = checkpoint::read(file) {
            assert_same_again(&read.entries);
            cards.push((CardIndex(card), read.entries));
        }
    }
    let judged = import::judge(&cards, &seen, NOW);
    assert_eq!(
        judged.len(),
        cards.iter().map(|(_, entries)| entries.len()).sum::<usize>()
    );
    for judged in &judged {
        drop(judged.to_string());
    }
    let adopted = adopted(&judged, &seen);
    start_from(&judged, &seen, &adopted);
    let held: Vec<Allocation> = adopted.into_values().collect();
    for entries in import::export(&held, NOW).values() {
        assert_same_again(entries);
    }
}

/// At the line `--`; without it there is one part.
fn parts(files: &[u8]) -> impl Iterator<Item = &[u8]> {
    let mark = b"\n--\n";
    let at = files.windows(mark.len()).position(|window| window == mark);
    let (first, rest) = files.split_at(at.unwrap_or(files.len()));
    std::iter::once(first).chain(at.map(|_| rest.get(mark.len()..).unwrap_or_default()))
}

fn assert_same_again(entries: &[Entry]) {
    let text = checkpoint::write(entries);
    let again = checkpoint::read(text.as_bytes()).unwrap_or_else(|error| panic!("{text}: {error}"));
    assert_eq!(again.bad, [], "{text}");
    assert_eq!(again.entries, entries, "{text}");
}

/// The sandboxes that are taken over.
fn adopted(judged: &[Judged], seen: &Witnesses) -> BTreeMap<SandboxKey, Allocation> {
    let mut adopted = BTreeMap::new();
    let mut addresses = BTreeSet::new();
    for judged in judged {
        let (Verdict::Adopted(held) | Verdict::AdoptedUnplaced(held)) = &judged.verdict else {
            continue;
        };
        let is_own = |eni: &ImdsEni| {
            eni.addresses
                .first()
                .is_some_and(|own| IpAddr::V4(*own) == held.address)
        };
        assert!(!seen.enis.iter().any(is_own), "{judged}: it is an ENI's own");
        assert!(addresses.insert(held.address), "{judged}: somebody has it");
        let before = adopted.insert(held.key.clone(), Allocation::clone(held));
        assert!(before.is_none(), "{judged}: it has {before:?}");
    }
    adopted
}

/// A daemon starts from what the import has stored, of which records longer than the store takes are left out.
fn start_from(judged: &[Judged], seen: &Witnesses, adopted: &BTreeMap<SandboxKey, Allocation>) {
    let mut records = BTreeMap::new();
    for change in import::changes(judged, seen, NOW.boot, COOLDOWN) {
        match change {
            Change::Put { key, value } => drop(records.insert(key, value)),
            Change::Remove { key } => drop(records.remove(&key)),
        }
    }
    let start = Start {
        policy: Policy::default(),
        limits: limits::lookup(&seen.facts.instance_type),
        facts: seen.facts.clone(),
        records,
        gone: BTreeSet::new(),
        kernel: KernelFacts::default(),
    };
    let (pool, _effects) = Pool::recover(start, NOW.boot);
    let violations = verify::pool(&pool, NOW.boot);
    assert!(violations.is_empty(), "{violations:?}");
    let held: BTreeMap<_, _> = pool
        .allocations()
        .iter()
        .map(|(key, held)| (key, held.address))
        .collect();
    let expected: BTreeMap<_, _> = adopted.iter().map(|(key, held)| (key, held.address)).collect();
    assert_eq!(held, expected);
}

/// Two ENIs, and what the input's lines show.
fn witnesses(shown: &str) -> Witnesses {
    let facts = node();
    let eni = |device: u8, prefixes: Vec<_>| ImdsEni {
        id: format!("eni-{}", u32::from(device).saturating_add(1))
            .as_str()
            .into(),
        mac: Mac([2, 0, 0, 0, 0, device.saturating_add(1)]),
        device: DeviceIndex(device.into()),
        card: CardIndex(0),
        subnet: "subnet-1".into(),
        subnet_cidr: Some(facts.subnet_cidr),
        addresses: (0..6)
            .map(|nth| Ipv4Addr::new(10, 0, device, 4_u8.saturating_add(nth)))
            .collect(),
        prefixes,
        prefixes6: Vec::new(),
    };
    let block = "10.0.2.0/28".parse().ok();
    let mut seen = Witnesses {
        enis: vec![eni(0, Vec::new()), eni(1, block.into_iter().collect())],
        facts,
        routes: BTreeMap::new(),
        links: BTreeSet::new(),
        tables: BTreeMap::new(),
        link_hash,
    };
    for line in shown.lines() {
        let (address, name) = line.split_once(' ').unwrap_or((line, ""));
        match (address.parse::<IpAddr>(), name.parse()) {
            (Ok(address), Ok(table)) => drop(seen.tables.insert(address, TableId(table))),
            (Ok(address), _) => {
                seen.links.insert(name.to_owned());
                seen.routes.insert(address, name.to_owned());
            }
            _ => drop(seen.links.insert(name.to_owned())),
        }
    }
    seen
}

/// Stands in for SHA-1, which no mutation would ever meet: the name of the pod, and which of its interfaces.
fn link_hash(_namespace: &str, name: &str, interface: u32) -> String {
    let short: String = name.chars().take(SHORT).collect();
    match interface {
        0 => short,
        nth => format!("{short}.{nth}"),
    }
}
