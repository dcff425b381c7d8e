//! Taking a node over from the Go daemon: which of its allocations live, and what becomes of the rest.
//!
//! The checkpoint is one witness, the kernel another, IMDS a third. A sandbox is taken over when the kernel shows it. What
//! does not fit is kept in doubt, so that nobody gets the address; what nobody shows rests once and is free. The file
//! itself is never changed: whoever finds a mistake here finds the evidence, too.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::net::IpAddr;
use std::time::Duration;

use super::checkpoint::Entry;
use super::effect::Change;
use super::ids::{CardIndex, DeviceIndex, EniId, IfName, PodRef, SandboxKey, TableId, Tick};
use super::model::Allocation;
use super::node::NodeFacts;
use super::records::{AddressRecord, NodeRecord, Record, RecordKey};
use super::witness::{Doubt, ImdsEni};

#[cfg(test)]
mod tests;

/// The other witnesses.
#[derive(Debug, Clone)]
pub struct Witnesses {
    /// The node.
    pub facts: NodeFacts,
    /// Its ENIs, as IMDS lists them.
    pub enis: Vec<ImdsEni>,
    /// Pod routes: address to the name of the host's end.
    pub routes: BTreeMap<IpAddr, String>,
    /// Names of the links that look like a pod's.
    pub links: BTreeSet<String>,
    /// What the rules say by which table packets of a pod leave.
    pub tables: BTreeMap<IpAddr, TableId>,
    /// The digits that end the name of a pod's link, from namespace, name and number of the interface.
    pub link_hash: fn(&str, &str, u32) -> String,
}

/// The time, by both clocks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Clocks {
    /// Since the machine booted.
    pub boot: Tick,
    /// Nanoseconds since 1970.
    pub unix_ns: u64,
}

impl Clocks {
    /// When it was that the other clock showed this.
    pub fn tick_of(self, unix_ns: u64) -> Tick {
        let ago = self.unix_ns.saturating_sub(unix_ns) / 1_000_000;
        Tick(self.boot.0.saturating_sub(ago))
    }

    /// The other way round.
    pub fn unix_ns_of(self, tick: Tick) -> u64 {
        let ago = self.boot.0.saturating_sub(tick.0).saturating_mul(1_000_000);
        self.unix_ns.saturating_sub(ago)
    }
}

/// What an entry comes to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Verdict {
    /// Its sandbox lives and keeps its address.
    Adopted(Box<Allocation>),
    /// It lives, but its address is on no ENI that is known here: kept, and given to nobody else, until EC2 says which.
    AdoptedUnplaced(Box<Allocation>),
    /// Something does not fit: nobody gets the address.
    Quarantined {
        /// The address.
        address: IpAddr,
        /// What is in doubt.
        doubt: Doubt,
    },
    /// Nothing is kept of it but a rest for its address.
    Left(Left),
}

/// Why nothing is kept of an entry.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Left {
    /// The kernel shows neither its link nor a route to its address.
    Gone,
    /// Its pod's link leads to another address: a newer sandbox has it.
    Superseded,
    /// It names no address.
    NoAddress,
    /// The address is an ENI's own.
    EnisOwn,
    /// The same entry stands there twice.
    Repeated,
}

impl fmt::Display for Left {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Gone => "the kernel shows neither its link nor a route to its address",
            Self::Superseded => "its pod's link leads to another address: a newer sandbox has it",
            Self::NoAddress => "it has no address",
            Self::EnisOwn => "the address is an ENI's own and never a pod's",
            Self::Repeated => "it stands there twice",
        })
    }
}

/// An entry, its file's card and what it comes to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Judged {
    /// What stood there.
    pub entry: Entry,
    /// In which card's file.
    pub card: CardIndex,
    /// What becomes of it.
    pub verdict: Verdict,
}

impl Judged {
    /// Whether the sandbox is taken over.
    pub fn is_adopted(&self) -> bool {
        matches!(self.verdict, Verdict::Adopted(_) | Verdict::AdoptedUnplaced(_))
    }
}

impl fmt::Display for Judged {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let Some(address) = self.entry.address() {
            write!(f, "{address} of ")?;
        }
        write!(f, "{}: ", self.entry)?;
        match &self.verdict {
            Verdict::Adopted(allocation) => write!(f, "adopted, on {}", allocation.eni),
            Verdict::AdoptedUnplaced(_) => f.write_str(
                "adopted, though no ENI that IMDS lists has the address; nobody else gets it until EC2 says which",
            ),
            Verdict::Quarantined { doubt, .. } => write!(f, "quarantined: {doubt}"),
            Verdict::Left(why) => write!(f, "not taken over: {why}"),
        }
    }
}

/// Judges every entry of every card's file, in order.
pub fn judge(files: &[(CardIndex, Vec<Entry>)], seen: &Witnesses, clocks: Clocks) -> Vec<Judged> {
    let mut judge = Judge {
        seen,
        clocks,
        carried: seen.routes.values().map(String::as_str).collect(),
        held: BTreeMap::new(),
        cards: BTreeMap::new(),
        holders: BTreeMap::new(),
    };
    let mut entries: Vec<(usize, CardIndex, &Entry)> = files
        .iter()
        .flat_map(|(card, entries)| entries.iter().map(move |entry| (*card, entry)))
        .enumerate()
        .map(|(place, (card, entry))| (place, card, entry))
        .collect();
    // Of several claims the kernel's own comes first, then the first card's, then the order of the files.
    entries.sort_by_key(|(place, card, entry)| (!judge.is_routed_to(entry), card.0, *place));
    let mut judged: Vec<(usize, Judged)> = entries
        .into_iter()
        .map(|(place, card, entry)| {
            let verdict = judge.entry(card, entry);
            let entry = entry.clone();
            (place, Judged { entry, card, verdict })
        })
        .collect();
    judged.sort_by_key(|(place, _)| *place);
    judged.into_iter().map(|(_, judged)| judged).collect()
}

/// Where the kernel shows an entry's sandbox.
enum Trace {
    /// Its address is routed over this link.
    Routed(String),
    /// Its link is there and leads nowhere.
    LinkAlone(String),
    /// Nothing tells how its link would be called, and its address is not routed.
    Unverifiable,
    /// Its address is routed over a link of somebody else.
    Elsewhere(String),
    /// Not at all.
    None(Left),
}

struct Judge<'a> {
    seen: &'a Witnesses,
    clocks: Clocks,
    carried: BTreeSet<&'a str>,
    held: BTreeMap<SandboxKey, IpAddr>,
    /// In which card's file an interface was found.
    cards: BTreeMap<SandboxKey, CardIndex>,
    holders: BTreeMap<IpAddr, SandboxKey>,
}

impl Judge<'_> {
    fn entry(&mut self, card: CardIndex, entry: &Entry) -> Verdict {
        let Some(address) = entry.address() else {
            return Verdict::Left(Left::NoAddress);
        };
        let is_own = |eni: &ImdsEni| {
            eni.addresses
                .first()
                .is_some_and(|own| IpAddr::V4(*own) == address)
        };
        if address == IpAddr::V4(self.seen.facts.primary_address) || self.seen.enis.iter().any(is_own) {
            return Verdict::Left(Left::EnisOwn);
        }
        let host_veth = match self.trace(entry, address) {
            Trace::Routed(link) | Trace::LinkAlone(link) => link,
            Trace::Unverifiable => String::new(),
            Trace::Elsewhere(link) => {
                let why =
                    format!("the Go daemon's checkpoint gives it to {entry}, the kernel routes it to {link}");
                return Self::in_doubt(address, why);
            }
            Trace::None(why) => return Verdict::Left(why),
        };
        let key = self.interface(card, entry, &host_veth);
        if self.held.get(&key) == Some(&address) {
            return Verdict::Left(Left::Repeated);
        }
        if let Some(other) = self.holders.get(&address) {
            let why = format!(
                "the Go daemon's checkpoint gives it to {entry}, too, besides sandbox {}",
                other.container
            );
            return Self::in_doubt(address, why);
        }
        if self.held.contains_key(&key) {
            let why = format!("the Go daemon's checkpoint gives it to {entry} as another of its addresses");
            return Self::in_doubt(address, why);
        }
        self.held.insert(key.clone(), address);
        self.cards.insert(key.clone(), card);
        self.holders.insert(address, entry.key.clone());
        self.adopt(entry, key, address, host_veth)
    }

    /// The Go daemon files all interfaces of a sandbox under its main one's name, each in its card's file, and numbers them
    /// and their links; in the sandbox they are called so (reference dataplane 0.5).
    fn interface(&self, card: CardIndex, entry: &Entry, link: &str) -> SandboxKey {
        let number = self.number_of(entry, link).unwrap_or_default();
        let is_other_card = self.cards.get(&entry.key).is_none_or(|main| *main != card);
        if number == 0 || !is_other_card {
            return entry.key.clone();
        }
        SandboxKey {
            ifname: IfName(format!("mNicIf{number}")),
            ..entry.key.clone()
        }
    }

    fn in_doubt(address: IpAddr, why: String) -> Verdict {
        Verdict::Quarantined {
            address,
            doubt: Doubt::Imported { why },
        }
    }

    fn adopt(&self, entry: &Entry, key: SandboxKey, address: IpAddr, host_veth: String) -> Verdict {
        let home = home(&self.seen.enis, address);
        let (eni, device, card) = home.map_or_else(
            || self.supposed_home(address),
            |eni| (eni.id.clone(), eni.device, eni.card),
        );
        let main = (key != entry.key).then(|| entry.key.ifname.clone());
        let allocation = Box::new(Allocation {
            key,
            pod: PodRef {
                namespace: entry.namespace.clone(),
                name: entry.name.clone(),
                uid: String::new(),
            },
            address,
            eni,
            device,
            card,
            host_veth,
            netns: String::new(),
            main,
            egress: None,
            ports: Vec::new(),
            since: self.clocks.tick_of(entry.given_ns),
            told: None,
        });
        if home.is_some() {
            Verdict::Adopted(allocation)
        } else {
            Verdict::AdoptedUnplaced(allocation)
        }
    }

    /// The ENI whose table the pod's packets leave by: the main one's without a rule. Its id may be known to nobody here.
    fn supposed_home(&self, address: IpAddr) -> (EniId, DeviceIndex, CardIndex) {
        let Some(table) = self.seen.tables.get(&address).copied() else {
            return (self.seen.facts.primary_eni.clone(), DeviceIndex(0), CardIndex(0));
        };
        let of_table = |eni: &&ImdsEni| TableId::of_eni(eni.card, eni.device) == table;
        if let Some(eni) = self.seen.enis.iter().find(of_table) {
            return (eni.id.clone(), eni.device, eni.card);
        }
        let (card, device) = place_of(table);
        (EniId(format!("unknown-of-table-{}", table.0)), device, card)
    }

    fn trace(&self, entry: &Entry, address: IpAddr) -> Trace {
        // Only a rule names it, without a route: the link is gone, or was never there.
        let device = self.seen.routes.get(&address).filter(|link| !link.is_empty());
        if let Some(device) = device {
            return if !entry.names_its_pod() || self.is_link_of(entry, device) {
                Trace::Routed(device.clone())
            } else {
                Trace::Elsewhere(device.clone())
            };
        }
        if !entry.names_its_pod() {
            return Trace::Unverifiable;
        }
        match self.seen.links.iter().find(|link| self.is_link_of(entry, link)) {
            Some(link) if self.carried.contains(link.as_str()) => Trace::None(Left::Superseded),
            Some(link) => Trace::LinkAlone(link.clone()),
            None => Trace::None(Left::Gone),
        }
    }

    /// The Go daemon looks at the end of the name alone, since the prefix may have been another.
    fn is_link_of(&self, entry: &Entry, link: &str) -> bool {
        self.number_of(entry, link).is_some()
    }

    /// Which of its pod's interfaces a link belongs to.
    fn number_of(&self, entry: &Entry, link: &str) -> Option<u32> {
        let hash = |interface| (self.seen.link_hash)(&entry.namespace, &entry.name, interface);
        let mut numbers = 0..entry.interfaces.clamp(1, MOST_INTERFACES);
        numbers.find(|interface| link.ends_with(&hash(*interface)))
    }

    fn is_routed_to(&self, entry: &Entry) -> bool {
        let device = entry.address().and_then(|address| self.seen.routes.get(&address));
        device.is_some_and(|device| entry.names_its_pod() && self.is_link_of(entry, device))
    }
}

/// The ENI that IMDS lists the address on, by itself or in a prefix.
fn home(enis: &[ImdsEni], address: IpAddr) -> Option<&ImdsEni> {
    enis.iter().find(|eni| match address {
        IpAddr::V4(address) => {
            eni.addresses.contains(&address) || eni.prefixes.iter().any(|prefix| prefix.contains(address))
        }
        IpAddr::V6(address) => eni.prefixes6.iter().any(|prefix| prefix.contains(address)),
    })
}

/// Far more network cards than any instance has; a number in a file is not to be believed beyond that.
const MOST_INTERFACES: u32 = 32;

/// Card and device index of an ENI's table: [`TableId::of_eni`] the other way round.
fn place_of(table: TableId) -> (CardIndex, DeviceIndex) {
    match table.0 {
        10_000.. => {
            let rest = table.0.saturating_sub(10_000);
            (CardIndex(rest / 100), DeviceIndex(rest % 100))
        }
        number => (CardIndex(0), DeviceIndex(number.saturating_sub(1))),
    }
}

/// What has to be stored for these verdicts, the node's own record included.
pub fn changes(judged: &[Judged], seen: &Witnesses, now: Tick, cooldown: Duration) -> Vec<Change> {
    let mut records: BTreeMap<String, Option<Record>> = BTreeMap::new();
    let mut put = |record: Record| records.insert(record.key().text(), Some(record));
    let address_record = |address: IpAddr, eni: EniId| AddressRecord {
        address,
        eni,
        last_used: None,
        rests_until: None,
        doubt: None,
    };
    let eni_of = |address: IpAddr| {
        home(&seen.enis, address).map_or_else(|| seen.facts.primary_eni.clone(), |eni| eni.id.clone())
    };
    put(Record::Node(Box::new(NodeRecord {
        facts: seen.facts.clone(),
        limits: None,
        cordoned: false,
    })));
    // From the weakest to the strongest word on an address: a later one replaces an earlier one.
    for judged in judged {
        if let (Verdict::Left(Left::Gone | Left::Superseded), Some(address)) =
            (&judged.verdict, judged.entry.address())
        {
            put(Record::Address(Box::new(AddressRecord {
                last_used: Some(now),
                rests_until: (!cooldown.is_zero()).then(|| now.after(cooldown)),
                ..address_record(address, eni_of(address))
            })));
        }
    }
    let mut held = Vec::new();
    for judged in judged {
        if let Verdict::Adopted(allocation) | Verdict::AdoptedUnplaced(allocation) = &judged.verdict {
            let record = Record::Allocation(allocation.clone());
            held.push((allocation.address, record));
        }
        if let Verdict::AdoptedUnplaced(allocation) = &judged.verdict {
            let why = format!(
                "the Go daemon's checkpoint gives it to {}, and no ENI that IMDS lists has it",
                judged.entry
            );
            put(Record::Address(Box::new(AddressRecord {
                doubt: Some(Doubt::Imported { why }),
                ..address_record(allocation.address, allocation.eni.clone())
            })));
        }
    }
    for judged in judged {
        if let Verdict::Quarantined { address, doubt } = &judged.verdict {
            put(Record::Address(Box::new(AddressRecord {
                doubt: Some(doubt.clone()),
                ..address_record(*address, eni_of(*address))
            })));
        }
    }
    for (address, record) in held {
        // What an earlier start without the file thought of it.
        records.entry(RecordKey::Address(address).text()).or_insert(None);
        records.insert(record.key().text(), Some(record));
    }
    let change = |(key, record): (String, Option<Record>)| match record {
        Some(record) => Change::Put {
            value: record.value(),
            key,
        },
        None => Change::Remove { key },
    };
    records.into_iter().map(change).collect()
}

/// The name that a sandbox's interfaces are filed under.
fn main_key(held: &Allocation) -> SandboxKey {
    SandboxKey {
        ifname: held.main.as_ref().unwrap_or(&held.key.ifname).clone(),
        ..held.key.clone()
    }
}

/// What the Go daemon would have to read to take these pods over: a file for each network card that has any, always one
/// for the first. It deletes as many interfaces as an entry says its sandbox has.
pub fn export(allocations: &[Allocation], clocks: Clocks) -> BTreeMap<CardIndex, Vec<Entry>> {
    let mut files = BTreeMap::from([(CardIndex(0), Vec::new())]);
    let mut interfaces: BTreeMap<SandboxKey, u32> = BTreeMap::new();
    for held in allocations {
        let count = interfaces.entry(main_key(held)).or_default();
        *count = count.saturating_add(1);
    }
    for held in allocations {
        let key = main_key(held);
        let file: &mut Vec<Entry> = files.entry(held.card).or_default();
        file.push(Entry {
            interfaces: interfaces.get(&key).copied().unwrap_or(1),
            key,
            namespace: held.pod.namespace.clone(),
            name: held.pod.name.clone(),
            ipv4: match held.address {
                IpAddr::V4(address) => Some(address),
                IpAddr::V6(_) => None,
            },
            ipv6: match held.address {
                IpAddr::V4(_) => None,
                IpAddr::V6(address) => Some(address),
            },
            given_ns: clocks.unix_ns_of(held.since),
        });
    }
    files
}
