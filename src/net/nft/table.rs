//! Our table in the kernel: read, compared, written in one transaction.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, Ipv4Addr};

use nix::errno::Errno;
use sha1::{Digest, Sha1};

use super::diff::{Amendment, Contents, Plan, plan};
use super::encode::{self, Message, Table};
use super::facts::{self, ChainFacts, TableFacts};
use super::leftovers::{self, Leftover};
use super::model::{Chain, Datum, Element, Key, Set, Verdict};
use super::uapi::{NFNL_MSG_BATCH_BEGIN, NFNL_MSG_BATCH_END};
use crate::ipam::ip::IpFamily;
use crate::net::layout::EniMark;
use crate::net::netlink::{Batch, Family, NetError, Reply, Socket};
use crate::net::ruleset::{POD_ENI, Ruleset, RulesetError, SETS, TABLE, eni_chain_name, mark_of_chain};
use crate::net::wire::Malformed;

/// What [`Nft::apply`] had to do.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Applied {
    /// Nothing: the table was as wanted, and nothing was written.
    Unchanged,
    /// Elements and ENI chains changed; the rules stayed.
    Amended,
    /// The table was written anew.
    Replaced,
}

/// Why the table could not be read or written.
#[derive(Debug, thiserror::Error)]
pub enum NftError {
    /// The wish contradicts itself.
    #[error(transparent)]
    Ruleset(#[from] RulesetError),
    /// The kernel refused.
    #[error(transparent)]
    Kernel(#[from] NetError),
    /// A dump could not be understood.
    #[error("read nf_tables: {0}")]
    Malformed(#[from] Malformed),
    /// An address was published for an ENI whose chain is not in the table.
    #[error("publish addresses of ENI mark {}: the table has no such ENI; apply the ruleset first", .0.value())]
    UnknownEni(EniMark),
}

/// The table `aws-cni` of one family in one network namespace.
#[derive(Debug)]
pub struct Nft {
    socket: Socket,
    family: IpFamily,
}

impl Nft {
    /// The IPv4 table of the calling thread's namespace.
    ///
    /// # Errors
    /// When the kernel refuses a socket.
    pub fn open() -> Result<Self, NetError> {
        Self::of(IpFamily::V4)
    }

    /// The table of this family in the calling thread's namespace.
    ///
    /// # Errors
    /// When the kernel refuses a socket.
    pub fn of(family: IpFamily) -> Result<Self, NetError> {
        Ok(Self {
            socket: Socket::open(Family::Netfilter)?,
            family,
        })
    }

    pub(super) fn name(&self) -> Table<'static> {
        Table {
            family: self.family,
            name: TABLE,
        }
    }

    /// Makes the table what `want` says, writing only what differs. What was published stays where it leads somewhere.
    ///
    /// # Errors
    /// Nothing has changed after an error: a transaction either happens or does not.
    pub fn apply(&mut self, want: &impl Ruleset) -> Result<Applied, NftError> {
        self.apply_where(want, |_| true)
    }

    /// The same, but only if what would be done `may` be done.
    ///
    /// # Errors
    /// As [`Nft::apply`].
    pub fn apply_where(
        &mut self,
        want: &impl Ruleset,
        may: impl FnOnce(Applied) -> bool,
    ) -> Result<Applied, NftError> {
        debug_assert_eq!(want.family(), self.family);
        want.check()?;
        let table = self.name();
        let skeleton = skeleton(table, want);
        let seal = seal(table, want, &skeleton);
        let facts = self.facts()?;
        let (messages, applied) = match plan(want, &seal, facts.as_ref()) {
            Plan::Nothing => return Ok(Applied::Unchanged),
            Plan::Amend(amendment) => (amend(table, want, &amendment), Applied::Amended),
            Plan::Replace { published } => {
                let old = facts.iter().map(|_| encode::delete_table(table));
                let mut messages: Vec<Message> = old.collect();
                messages.push(encode::new_table(table, &seal));
                messages.extend(skeleton);
                messages.extend(fill(table, want, &published));
                (messages, Applied::Replaced)
            }
        };
        if !may(applied) {
            return Ok(Applied::Unchanged);
        }
        self.transact(&messages)?;
        Ok(applied)
    }

    /// Addresses of a secondary ENI are to leave by it. Also moves addresses here from another ENI.
    ///
    /// # Errors
    /// [`NftError::UnknownEni`] when [`Nft::apply`] has not been told of the ENI.
    pub fn publish(&mut self, mark: EniMark, addresses: &[Ipv4Addr]) -> Result<(), NftError> {
        let elements = addresses
            .iter()
            .map(|address| pod_element(*address, mark))
            .collect::<Vec<_>>();
        match self.transact(&encode::add_elements(self.name(), POD_ENI.name, &elements)) {
            // There already, with another verdict. Nothing has changed: the whole transaction is void.
            Err(error) if error.errno == Errno::EBUSY || error.errno == Errno::EEXIST => {
                let moved = self
                    .pods()?
                    .into_iter()
                    .filter(|(address, old)| *old != Some(mark) && addresses.contains(address));
                let moved: Vec<_> = moved.map(|(address, _)| pod_element(address, mark)).collect();
                let mut messages = encode::delete_elements(self.name(), POD_ENI.name, &moved);
                messages.extend(encode::add_elements(self.name(), POD_ENI.name, &elements));
                Ok(self.transact(&messages)?)
            }
            Err(error) if error.errno == Errno::ENOENT => Err(NftError::UnknownEni(mark)),
            result => Ok(result?),
        }
    }

    /// Addresses belong to no ENI any more. Those that never did don't matter.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub fn unpublish(&mut self, addresses: &[Ipv4Addr]) -> Result<(), NftError> {
        match self.transact(&encode::delete_elements(
            self.name(),
            POD_ENI.name,
            &unmarked(addresses),
        )) {
            Err(error) if error.errno == Errno::ENOENT => {
                let present = self.pods()?;
                let known: Vec<_> = addresses
                    .iter()
                    .copied()
                    .filter(|address| present.contains_key(address))
                    .collect();
                Ok(self.transact(&encode::delete_elements(
                    self.name(),
                    POD_ENI.name,
                    &unmarked(&known),
                ))?)
            }
            result => Ok(result?),
        }
    }

    /// Exactly these addresses are published, for recovery and repair. Returns whether anything differed.
    ///
    /// # Errors
    /// [`NftError::UnknownEni`] when [`Nft::apply`] has not been told of an ENI; nothing has changed then.
    pub fn publish_only(&mut self, wanted: &BTreeMap<Ipv4Addr, EniMark>) -> Result<bool, NftError> {
        let present = self.pods()?;
        let stays = |address: &Ipv4Addr, mark: Option<EniMark>| {
            mark.is_some_and(|mark| wanted.get(address) == Some(&mark))
        };
        let old = present.iter().filter(|(address, mark)| !stays(address, **mark));
        let new = wanted
            .iter()
            .filter(|(address, mark)| present.get(address) != Some(&Some(**mark)));
        let old: Vec<_> = old.map(|(address, _)| *address).collect();
        let new: BTreeMap<_, _> = new.collect();
        let elements: Vec<_> = new
            .iter()
            .map(|(address, mark)| pod_element(**address, **mark))
            .collect();
        let mut messages = encode::delete_elements(self.name(), POD_ENI.name, &unmarked(&old));
        messages.extend(encode::add_elements(self.name(), POD_ENI.name, &elements));
        match self.transact(&messages) {
            Err(error) if error.errno == Errno::ENOENT => {
                let known = self.facts()?.map(|facts| facts.chains).unwrap_or_default();
                let unknown = new
                    .values()
                    .find(|mark| !known.contains_key(&eni_chain_name(***mark)));
                Err(unknown.map_or(NftError::Kernel(error), |mark| NftError::UnknownEni(**mark)))
            }
            result => Ok(result.map(|()| !messages.is_empty())?),
        }
    }

    /// Which address is marked for which ENI; empty without a table. `None` for a verdict that isn't ours.
    ///
    /// # Errors
    /// When the kernel refuses or can't be understood.
    pub fn pods(&mut self) -> Result<BTreeMap<Ipv4Addr, Option<EniMark>>, NftError> {
        let elements = self.held(POD_ENI)?;
        let mark = |datum| match datum {
            Datum::Verdict(Verdict::Jump(chain)) => mark_of_chain(&chain),
            _ => None,
        };
        let pods = elements.into_iter().filter_map(|element| match element {
            Element::Entry(Key::Address(IpAddr::V4(address)), datum) => Some((address, mark(datum))),
            _ => None,
        });
        Ok(pods.collect())
    }

    /// The table as it is, `None` when there is none.
    ///
    /// # Errors
    /// When the kernel refuses or can't be understood.
    pub fn facts(&mut self) -> Result<Option<TableFacts>, NftError> {
        let mut found = None;
        for reply in self.dump(&encode::dump_tables(self.family))? {
            let (name, comment) = facts::table(&reply)?;
            if name == TABLE {
                found = Some(TableFacts {
                    comment,
                    ..TableFacts::default()
                });
            }
        }
        let Some(mut facts) = found else {
            return Ok(None);
        };
        for reply in self.dump(&encode::dump_chains(self.family))? {
            let chain = facts::chain(&reply)?;
            if chain.table == TABLE {
                facts.chains.insert(
                    chain.name,
                    ChainFacts {
                        hook: chain.hook,
                        rules: Vec::new(),
                    },
                );
            }
        }
        for reply in self.dump(&encode::dump_rules(self.name()))? {
            let rule = facts::rule(&reply)?;
            facts
                .chains
                .entry(rule.chain)
                .or_default()
                .rules
                .push(rule.comment);
        }
        for reply in self.dump(&encode::dump_sets(self.name()))? {
            let (table, set) = facts::set(&reply)?;
            if table == TABLE {
                facts.sets.insert(set);
            }
        }
        for set in SETS {
            if facts.sets.contains(set.name) {
                facts.contents.insert(set.name, self.held(set)?);
            }
        }
        Ok(Some(facts))
    }

    /// What the Go daemon left behind in `nf_tables`, iptables-nft included. Nothing is touched.
    ///
    /// # Errors
    /// When the kernel refuses or can't be understood.
    pub fn leftovers(&mut self) -> Result<Vec<Leftover>, NftError> {
        let chains = self.dump(&encode::dump_chains(self.family))?;
        let chains = chains.iter().map(facts::chain).collect::<Result<Vec<_>, _>>()?;
        let mut found = leftovers::chains(&chains);
        for table in leftovers::iptables_tables(&chains) {
            for reply in self.dump(&encode::dump_rules(Table {
                family: self.family,
                name: &table,
            }))? {
                found.extend(leftovers::rule(&table, facts::rule(&reply)?));
            }
        }
        for reply in self.dump(&encode::dump_tables(self.family))? {
            let (name, comment) = facts::table(&reply)?;
            let ours = comment.as_deref().is_some_and(is_seal);
            if name == TABLE && !ours && leftovers::is_go_table(&chains) {
                found.push(Leftover::Table);
            }
        }
        Ok(found)
    }

    /// What a set holds; nothing when it is not there.
    pub(super) fn held(&mut self, set: Set) -> Result<BTreeSet<Element>, NftError> {
        match self.dump(&encode::dump_elements(self.name(), set.name)) {
            Err(error) if error.errno == Errno::ENOENT => Ok(BTreeSet::new()),
            replies => Ok(facts::elements(self.family, set, &replies?)?),
        }
    }

    /// A number that every change of any table changes.
    pub(super) fn generation(&mut self) -> Result<u32, NftError> {
        let request = encode::get_generation();
        let reply = self.socket.get(request.kind, request.what, &request.body)?;
        let reply = reply.ok_or(Malformed {
            expected: "a generation",
            offset: 0,
        })?;
        Ok(facts::generation(&reply)?)
    }

    fn dump(&mut self, request: &Message) -> Result<Vec<Reply>, NetError> {
        self.socket
            .dump(request.kind, request.what.clone(), &request.body)
    }

    pub(super) fn transact(&mut self, messages: &[Message]) -> Result<(), NetError> {
        self.transact_at(None, messages)
    }

    /// With a generation, only if nothing has changed since: ERESTART otherwise.
    pub(super) fn transact_at(
        &mut self,
        generation: Option<u32>,
        messages: &[Message],
    ) -> Result<(), NetError> {
        if messages.is_empty() {
            return Ok(());
        }
        let mut batch = Batch::new();
        batch.push_control(
            NFNL_MSG_BATCH_BEGIN,
            "begin an nf_tables transaction",
            &encode::batch_frame(NFNL_MSG_BATCH_BEGIN, generation),
        );
        for message in messages {
            batch.push(message.kind, message.flags, message.what.clone(), &message.body);
        }
        batch.push_control(
            NFNL_MSG_BATCH_END,
            "commit an nf_tables transaction",
            &encode::batch_frame(NFNL_MSG_BATCH_END, None),
        );
        self.socket.run_all(&batch)
    }
}

/// Sets, chains and rules, in an order in which everything exists before it is referred to.
fn skeleton(table: Table<'_>, want: &impl Ruleset) -> Vec<Message> {
    let chains = want.chains();
    let sets = want
        .sets()
        .into_iter()
        .zip(1..)
        .map(|(set, id)| encode::new_set(table, set, id));
    let mut messages: Vec<Message> = sets.collect();
    messages.extend(chains.iter().map(|chain| encode::new_chain(table, chain)));
    messages.extend(chains.iter().flat_map(|chain| new_rules(table, chain)));
    messages
}

fn new_rules(table: Table<'_>, chain: &Chain) -> Vec<Message> {
    let rules = chain.rules.iter();
    rules
        .map(|rule| encode::new_rule(table, &chain.name, rule))
        .collect()
}

/// The table's comment: whose it is, and a digest of every byte of its skeleton and of what an ENI's chains look like.
fn seal(table: Table<'_>, want: &impl Ruleset, skeleton: &[Message]) -> String {
    let mut digest = Sha1::new();
    let any_eni = EniMark::new(1).map(|mark| add_eni(table, want, mark));
    for message in skeleton.iter().chain(&any_eni.unwrap_or_default()) {
        digest.update(message.kind.to_ne_bytes());
        digest.update(message.body.as_bytes());
    }
    format!("aws-cni 1 {:x}", digest.finalize())
}

/// Whether a table's comment is a seal of ours, of any version.
fn is_seal(comment: &str) -> bool {
    comment.starts_with("aws-cni ")
}

/// What a new table holds besides its skeleton.
fn fill(table: Table<'_>, want: &impl Ruleset, published: &Contents) -> Vec<Message> {
    let enis = want.eni_marks();
    let chains = enis.iter().flat_map(|mark| add_eni(table, want, *mark));
    let mut messages: Vec<Message> = chains.collect();
    for contents in [&want.contents(), published] {
        messages.extend(add_all(table, contents));
    }
    messages
}

fn add_all(table: Table<'_>, contents: &Contents) -> Vec<Message> {
    let sets = contents.iter();
    sets.flat_map(|(set, elements)| encode::add_elements(table, set, &listed(elements)))
        .collect()
}

pub(super) fn listed(elements: &BTreeSet<Element>) -> Vec<Element> {
    elements.iter().cloned().collect()
}

/// New chains first, then elements, then old chains, to which nothing refers by then. Deletions come first, since a new
/// range may overlap an old one; no packet sees the moment between.
fn amend(table: Table<'_>, want: &impl Ruleset, amendment: &Amendment) -> Vec<Message> {
    let new_enis = amendment.enis_in.iter();
    let mut messages: Vec<Message> = new_enis.flat_map(|mark| add_eni(table, want, *mark)).collect();
    for (set, elements) in &amendment.gone {
        messages.extend(encode::delete_elements(table, set, &listed(elements)));
    }
    messages.extend(add_all(table, &amendment.new));
    let gone_chains = amendment.enis_out.iter();
    let gone_chains = gone_chains.flat_map(|mark| want.eni_chains(*mark).into_iter().rev());
    messages.extend(gone_chains.map(|chain| encode::delete_chain(table, &chain.name)));
    messages
}

fn add_eni(table: Table<'_>, want: &impl Ruleset, mark: EniMark) -> Vec<Message> {
    let chains = want.eni_chains(mark);
    let new = |chain| std::iter::once(encode::new_chain(table, chain)).chain(new_rules(table, chain));
    chains.iter().flat_map(new).collect()
}

fn pod_element(address: Ipv4Addr, mark: EniMark) -> Element {
    let verdict = Verdict::Jump(eni_chain_name(mark));
    Element::Entry(Key::Address(address.into()), Datum::Verdict(verdict))
}

/// Elements to delete, for which the verdict does not matter.
fn unmarked(addresses: &[Ipv4Addr]) -> Vec<Element> {
    let addresses = addresses.iter();
    addresses
        .map(|address| Element::Entry(Key::Address((*address).into()), Datum::Nothing))
        .collect()
}
