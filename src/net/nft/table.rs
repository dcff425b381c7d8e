//! Our table in the kernel: read, compared, written in one transaction.

use std::collections::BTreeMap;
use std::net::Ipv4Addr;

use nix::errno::Errno;
use sha1::{Digest, Sha1};

use super::diff::{Amendment, Plan, plan};
use super::encode::{self, Message};
use super::facts::{self, ChainFacts, TableFacts};
use super::leftovers::{self, Leftover};
use super::model::{Chain, Element, Verdict};
use super::uapi::{NFNL_MSG_BATCH_BEGIN, NFNL_MSG_BATCH_END};
use crate::net::layout::EniMark;
use crate::net::netlink::{Batch, Family, NetError, Reply, Socket};
use crate::net::ruleset::{
    ENI_ANSWER, ENI_LINK, EXEMPT, HostRuleset, POD_ENI, RulesetError, TABLE, eni_chain_name,
};
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
    /// The table was taken away.
    Removed,
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

/// The table `ip aws-cni` of one network namespace.
#[derive(Debug)]
pub struct Nft {
    socket: Socket,
}

impl Nft {
    /// The table of the calling thread's namespace.
    ///
    /// # Errors
    /// When the kernel refuses a socket.
    pub fn open() -> Result<Self, NetError> {
        Ok(Self {
            socket: Socket::open(Family::Netfilter)?,
        })
    }

    /// Makes the table what `want` says, writing only what differs. Published addresses of ENIs that stay are kept.
    ///
    /// # Errors
    /// Nothing has changed after an error: a transaction either happens or does not.
    pub fn apply(&mut self, want: &HostRuleset) -> Result<Applied, NftError> {
        self.apply_where(want, |_| true)
    }

    /// The same, but only if what would be done `may` be done.
    ///
    /// # Errors
    /// As [`Nft::apply`].
    pub fn apply_where(
        &mut self,
        want: &HostRuleset,
        may: impl FnOnce(Applied) -> bool,
    ) -> Result<Applied, NftError> {
        want.check()?;
        let skeleton = skeleton(want);
        let seal = seal(want, &skeleton);
        let facts = self.facts()?;
        let (messages, applied) = match plan(want, &seal, facts.as_ref()) {
            Plan::Nothing => return Ok(Applied::Unchanged),
            Plan::Remove => (vec![encode::delete_table(TABLE)], Applied::Removed),
            Plan::Amend(amendment) => (amend(want, &amendment), Applied::Amended),
            Plan::Replace { pods } => (
                replace(want, skeleton, &seal, &pods, facts.is_some()),
                Applied::Replaced,
            ),
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
        match self.transact(&encode::add_elements(TABLE, POD_ENI, &elements)) {
            // There already, with another verdict. Nothing has changed: the whole transaction is void.
            Err(error) if error.errno == Errno::EBUSY || error.errno == Errno::EEXIST => {
                let moved = self
                    .pods()?
                    .into_iter()
                    .filter(|(address, old)| *old != Some(mark) && addresses.contains(address));
                let moved: Vec<_> = moved.map(|(address, _)| pod_element(address, mark)).collect();
                let mut messages = encode::delete_elements(TABLE, POD_ENI, &moved);
                messages.extend(encode::add_elements(TABLE, POD_ENI, &elements));
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
        match self.transact(&encode::delete_elements(TABLE, POD_ENI, &unmarked(addresses))) {
            Err(error) if error.errno == Errno::ENOENT => {
                let present = self.pods()?;
                let known: Vec<_> = addresses
                    .iter()
                    .copied()
                    .filter(|address| present.contains_key(address))
                    .collect();
                Ok(self.transact(&encode::delete_elements(TABLE, POD_ENI, &unmarked(&known)))?)
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
        let mut messages = encode::delete_elements(TABLE, POD_ENI, &unmarked(&old));
        messages.extend(encode::add_elements(TABLE, POD_ENI, &elements));
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
        Ok(facts::pods(&self.elements(POD_ENI)?)?)
    }

    /// The table as it is, `None` when there is none.
    ///
    /// # Errors
    /// When the kernel refuses or can't be understood.
    pub fn facts(&mut self) -> Result<Option<TableFacts>, NftError> {
        let mut found = None;
        for reply in self.dump(&encode::dump_tables())? {
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
        for reply in self.dump(&encode::dump_chains())? {
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
        for reply in self.dump(&encode::dump_rules(TABLE))? {
            let rule = facts::rule(&reply)?;
            facts
                .chains
                .entry(rule.chain)
                .or_default()
                .rules
                .push(rule.comment);
        }
        for reply in self.dump(&encode::dump_sets(TABLE))? {
            let (table, set) = facts::set(&reply)?;
            if table == TABLE {
                facts.sets.insert(set);
            }
        }
        facts.exempt = facts::ranges(&self.elements(EXEMPT)?)?;
        facts.pods = self.pods()?;
        facts.links = facts::numbers(&self.elements(ENI_LINK)?)?;
        facts.answers = facts::numbers(&self.elements(ENI_ANSWER)?)?;
        Ok(Some(facts))
    }

    /// What the Go daemon left behind in `nf_tables`, iptables-nft included. Nothing is touched.
    ///
    /// # Errors
    /// When the kernel refuses or can't be understood.
    pub fn leftovers(&mut self) -> Result<Vec<Leftover>, NftError> {
        let chains = self.dump(&encode::dump_chains())?;
        let chains = chains.iter().map(facts::chain).collect::<Result<Vec<_>, _>>()?;
        let mut found = leftovers::chains(&chains);
        for table in leftovers::iptables_tables(&chains) {
            for reply in self.dump(&encode::dump_rules(&table))? {
                found.extend(leftovers::rule(&table, facts::rule(&reply)?));
            }
        }
        for reply in self.dump(&encode::dump_tables())? {
            let (name, comment) = facts::table(&reply)?;
            let ours = comment.as_deref().is_some_and(is_seal);
            if name == TABLE && !ours && leftovers::is_go_table(&chains) {
                found.push(Leftover::Table);
            }
        }
        Ok(found)
    }

    fn elements(&mut self, set: &str) -> Result<Vec<Reply>, NetError> {
        match self.dump(&encode::dump_elements(TABLE, set)) {
            Err(error) if error.errno == Errno::ENOENT => Ok(Vec::new()),
            result => result,
        }
    }

    fn dump(&mut self, request: &Message) -> Result<Vec<Reply>, NetError> {
        self.socket
            .dump(request.kind, request.what.clone(), &request.body)
    }

    fn transact(&mut self, messages: &[Message]) -> Result<(), NetError> {
        if messages.is_empty() {
            return Ok(());
        }
        let mut batch = Batch::new();
        batch.push_control(
            NFNL_MSG_BATCH_BEGIN,
            "begin an nf_tables transaction",
            &encode::batch_frame(NFNL_MSG_BATCH_BEGIN),
        );
        for message in messages {
            batch.push(message.kind, message.flags, message.what.clone(), &message.body);
        }
        batch.push_control(
            NFNL_MSG_BATCH_END,
            "commit an nf_tables transaction",
            &encode::batch_frame(NFNL_MSG_BATCH_END),
        );
        self.socket.run_all(&batch)
    }
}

/// Sets, chains and rules, in an order in which everything exists before it is referred to.
fn skeleton(want: &HostRuleset) -> Vec<Message> {
    let chains = want.chains();
    let sets = want
        .sets()
        .into_iter()
        .zip(1..)
        .map(|(set, id)| encode::new_set(TABLE, set, id));
    let mut messages: Vec<Message> = sets.collect();
    messages.extend(chains.iter().map(|chain| encode::new_chain(TABLE, chain)));
    messages.extend(chains.iter().flat_map(new_rules));
    messages
}

fn new_rules(chain: &Chain) -> Vec<Message> {
    let rules = chain.rules.iter();
    rules
        .map(|rule| encode::new_rule(TABLE, &chain.name, rule))
        .collect()
}

/// The table's comment: whose it is, and a digest of every byte of its skeleton and of what an ENI's chain looks like.
fn seal(want: &HostRuleset, skeleton: &[Message]) -> String {
    let mut digest = Sha1::new();
    let any_eni = EniMark::new(1)
        .map(|mark| add_eni(want, mark))
        .unwrap_or_default();
    for message in skeleton.iter().chain(&any_eni) {
        digest.update(message.kind.to_ne_bytes());
        digest.update(message.body.as_bytes());
    }
    format!("aws-cni 1 {:x}", digest.finalize())
}

/// Whether a table's comment is a seal of ours, of any version.
fn is_seal(comment: &str) -> bool {
    comment.starts_with("aws-cni ")
}

fn replace(
    want: &HostRuleset,
    skeleton: Vec<Message>,
    seal: &str,
    pods: &BTreeMap<Ipv4Addr, EniMark>,
    exists: bool,
) -> Vec<Message> {
    let mut messages = Vec::new();
    if exists {
        messages.push(encode::delete_table(TABLE));
    }
    messages.push(encode::new_table(TABLE, seal));
    messages.extend(skeleton);
    let enis = want.marked_enis();
    messages.extend(enis.keys().flat_map(|mark| add_eni(want, *mark)));
    let ranges: Vec<_> = want.exempt_ranges().into_iter().map(Element::Range).collect();
    messages.extend(encode::add_elements(TABLE, EXEMPT, &ranges));
    let links: Vec<_> = enis
        .iter()
        .map(|(mark, link)| link_element(want, *link, *mark))
        .collect();
    messages.extend(encode::add_elements(TABLE, ENI_LINK, &links));
    let answers: Vec<_> = want.answers().into_iter().map(answer_element).collect();
    messages.extend(encode::add_elements(TABLE, ENI_ANSWER, &answers));
    let pods: Vec<_> = pods
        .iter()
        .map(|(address, mark)| pod_element(*address, *mark))
        .collect();
    messages.extend(encode::add_elements(TABLE, POD_ENI, &pods));
    messages
}

/// New chains first, then elements, then old chains, to which nothing refers by then. Within a set deletions come
/// first, since a new range may overlap an old one; no packet sees the moment between.
fn amend(want: &HostRuleset, amendment: &Amendment) -> Vec<Message> {
    let ranges = |ranges: &[_]| ranges.iter().copied().map(Element::Range).collect::<Vec<_>>();
    let gone_links = amendment
        .links_out
        .iter()
        .map(|link| Element::Link(*link, Verdict::Return));
    let new_links = amendment
        .links_in
        .iter()
        .map(|(link, mark)| link_element(want, *link, *mark));
    let gone_answers = amendment.answers_out.iter();
    let gone_answers: Vec<_> = gone_answers
        .map(|mark| Element::Mark(*mark, Verdict::Return))
        .collect();
    let new_answers: Vec<_> = amendment.answers_in.iter().copied().map(answer_element).collect();
    let new_enis = amendment.enis_in.iter();
    let mut messages: Vec<Message> = new_enis.flat_map(|mark| add_eni(want, *mark)).collect();
    messages.extend(encode::delete_elements(
        TABLE,
        EXEMPT,
        &ranges(&amendment.exempt_out),
    ));
    messages.extend(encode::add_elements(TABLE, EXEMPT, &ranges(&amendment.exempt_in)));
    messages.extend(encode::delete_elements(
        TABLE,
        POD_ENI,
        &unmarked(&amendment.pods_out),
    ));
    messages.extend(encode::delete_elements(
        TABLE,
        ENI_LINK,
        &gone_links.collect::<Vec<_>>(),
    ));
    messages.extend(encode::add_elements(
        TABLE,
        ENI_LINK,
        &new_links.collect::<Vec<_>>(),
    ));
    messages.extend(encode::delete_elements(TABLE, ENI_ANSWER, &gone_answers));
    messages.extend(encode::add_elements(TABLE, ENI_ANSWER, &new_answers));
    let gone_chains = amendment.enis_out.iter();
    let gone_chains = gone_chains.flat_map(|mark| want.eni_chains(*mark).into_iter().rev());
    messages.extend(gone_chains.map(|chain| encode::delete_chain(TABLE, &chain.name)));
    messages
}

fn add_eni(want: &HostRuleset, mark: EniMark) -> Vec<Message> {
    let chains = want.eni_chains(mark);
    let new = |chain| std::iter::once(encode::new_chain(TABLE, chain)).chain(new_rules(chain));
    chains.iter().flat_map(new).collect()
}

fn pod_element(address: Ipv4Addr, mark: EniMark) -> Element {
    Element::Address(address, Verdict::Jump(eni_chain_name(mark)))
}

fn link_element(want: &HostRuleset, link: u32, mark: EniMark) -> Element {
    Element::Link(link, Verdict::Jump(want.link_chain_name(mark)))
}

fn answer_element((number, mark): (u32, EniMark)) -> Element {
    Element::Mark(number, Verdict::Jump(eni_chain_name(mark)))
}

/// Elements to delete, for which the verdict does not matter.
fn unmarked(addresses: &[Ipv4Addr]) -> Vec<Element> {
    addresses
        .iter()
        .map(|address| Element::Address(*address, Verdict::Return))
        .collect()
}
