//! Where new ENIs go, and which ENIs get no new pods: the subnets' tags (reference ipamd 4.3) or the ENIConfig.
//!
//! EC2 is asked once for a round of growth, not for each ENI, and with each look for drift, since tags change while ENIs
//! live (Q18). Nobody depends on its answer (Q9): until the first one, and where it is refused, there is the node's own
//! subnet.

use std::cmp::Reverse;
use std::collections::BTreeMap;
use std::time::Duration;

use super::cidr::Ipv4Cidr;
use super::cloud::{Amount, CloudCall, CloudFailure, CloudSubnet, FailureClass};
use super::ids::{EniId, SubnetId, Tick};
use super::memory::Purpose;
use super::model::{Eni, EniRole};
use super::obstacle::{Pace, Topic};
use super::outbox::Outbox;
use super::plan::{Act, Hindrance};
use super::policy::EniConfigChoice;
use super::pool::Pool;
use super::tags;

/// What is missing while EC2 does not tell.
pub(super) const LOSS: &str = "new ENIs go to the node's own subnet, whatever tags say";
/// A growth round is over by then, and others have taken addresses meanwhile.
const FRESH: Duration = Duration::from_mins(5);

/// Whatever is the matter: growth goes on without.
const AGAIN: Pace = Pace::secs(60, 3600);

/// What is known of the subnets of this zone.
#[derive(Debug, Clone, Default)]
pub(super) struct SubnetView {
    /// What EC2 last said, less what this node took since.
    listed: Option<Vec<CloudSubnet>>,
    /// When it was asked that, unless it has proven wrong since.
    asked: Option<Tick>,
    /// The last answer was a failure, and whether it will pass by itself.
    failed: Option<Transient>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Transient(bool);

/// What a subnet is to us.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Verdict {
    /// New ENIs may go there.
    Usable,
    /// None go there; those that are there serve.
    Unused,
    /// None go there, and those that are there are emptied.
    Excluded,
}

/// The table of reference ipamd 4.3.
fn verdict(tags: &BTreeMap<String, String>, is_own: bool, cluster: Option<&str>) -> Verdict {
    match tags.get(tags::SUBNET_ROLE).map(String::as_str) {
        Some("0") => Verdict::Excluded,
        None | Some("") if is_own => Verdict::Usable,
        None | Some("") => Verdict::Unused,
        Some(_) if is_of(tags, cluster) => Verdict::Usable,
        Some(_) => Verdict::Excluded,
    }
}

/// Whether a subnet that is for pods is for this cluster's: no cluster is named, or ours is, or we have no name.
fn is_of(tags: &BTreeMap<String, String>, cluster: Option<&str>) -> bool {
    let mut clusters = tags
        .keys()
        .filter_map(|key| key.strip_prefix(tags::SUBNET_CLUSTER))
        .peekable();
    clusters.peek().is_none() || cluster.is_none_or(|ours| clusters.any(|named| named == ours))
}

/// A subnet where a new ENI may go.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Candidate {
    pub(super) id: SubnetId,
    /// Addresses that nobody has, where EC2 has told.
    pub(super) free: Option<u32>,
}

impl Candidate {
    fn unknown(id: &SubnetId) -> Self {
        Self {
            id: id.clone(),
            free: None,
        }
    }

    fn listed(subnet: &CloudSubnet) -> Self {
        Self {
            id: subnet.id.clone(),
            free: Some(subnet.free),
        }
    }
}

/// Where new ENIs may go, best first; never empty.
pub(super) fn candidates(pool: &Pool) -> Result<Vec<Candidate>, Box<Hindrance>> {
    let policy = pool.policy();
    let listed = listed(pool);
    let mut candidates = if policy.custom_networking {
        let choice = policy.eni_config.as_ref();
        let why = policy.eni_config_missing.clone();
        of_eni_config(choice, listed).ok_or_else(|| Box::new(Hindrance::NoEniConfig { why }))?
    } else {
        of_tags(pool, listed)?
    };
    candidates.sort_by_key(|candidate| Reverse(candidate.free));
    Ok(candidates)
}

fn of_tags(pool: &Pool, listed: Option<&[CloudSubnet]>) -> Result<Vec<Candidate>, Box<Hindrance>> {
    let Some(listed) = listed else {
        let own = &pool.facts().subnet;
        // By what EC2 said before this start it is not for pods; that holds until it says otherwise, or refuses to say.
        if pool.enis().values().any(|eni| eni.excluded && eni.subnet == *own) {
            return Err(Box::new(Hindrance::SubnetsUnknown));
        }
        return Ok(vec![Candidate::unknown(own)]);
    };
    let usable = |subnet: &&CloudSubnet| judged(pool, subnet) == Verdict::Usable;
    let usable: Vec<Candidate> = listed.iter().filter(usable).map(Candidate::listed).collect();
    if usable.is_empty() {
        let zone = pool.facts().zone.clone();
        return Err(Box::new(Hindrance::NoSubnet { zone }));
    }
    Ok(usable)
}

/// The operator's word goes before tags. A subnet that EC2 does not list is in another zone: an ENI there could not be
/// attached; where it lists none of them, it is tried.
fn of_eni_config(choice: Option<&EniConfigChoice>, listed: Option<&[CloudSubnet]>) -> Option<Vec<Candidate>> {
    let choice = choice.filter(|choice| !choice.subnets.is_empty())?;
    let find = |id: &SubnetId| listed?.iter().find(|subnet| subnet.id == *id);
    let found: Vec<Candidate> = choice
        .subnets
        .iter()
        .filter_map(find)
        .map(Candidate::listed)
        .collect();
    if found.is_empty() {
        return Some(choice.subnets.iter().map(Candidate::unknown).collect());
    }
    Some(found)
}

fn listed(pool: &Pool) -> Option<&[CloudSubnet]> {
    let is_asked = pool.policy().subnet_discovery;
    pool.memory.subnets.listed.as_deref().filter(|_| is_asked)
}

fn judged(pool: &Pool, subnet: &CloudSubnet) -> Verdict {
    let is_own = subnet.id == pool.facts().subnet;
    verdict(&subnet.tags, is_own, pool.policy().cluster_name.as_deref())
}

/// A subnet's network, where EC2 or IMDS has told.
pub(super) fn network_of(pool: &Pool, id: &SubnetId) -> Option<Ipv4Cidr> {
    let facts = pool.facts();
    if *id == facts.subnet {
        return Some(facts.subnet_cidr);
    }
    let mut neighbours = pool.enis().values().filter(|eni| eni.subnet == *id);
    let mut listed = pool.memory.subnets.listed.iter().flatten();
    let by_list = listed.find(|subnet| subnet.id == *id).map(|subnet| subnet.cidr);
    by_list.or_else(|| neighbours.find_map(|eni| eni.subnet_cidr))
}

// ---- which ENIs get no new pods ----

/// Judges every ENI of ours by what is known now. What is not known stays as it was.
pub(super) fn judge(pool: &mut Pool, out: &mut Outbox) {
    let news = |eni: &Eni| {
        let excluded = is_excluded(pool, eni)?;
        (excluded != eni.excluded).then(|| (eni.id.clone(), excluded))
    };
    let news: Vec<(EniId, bool)> = pool.enis().values().filter_map(news).collect();
    for (id, excluded) in news {
        pool.edit_eni(&id, |eni| eni.excluded = excluded);
        if let (Some(eni), true) = (pool.enis().get(&id), excluded) {
            let subnet = &eni.subnet;
            let why = format!(
                "{id} gets no new pods: by its tags or the ENIConfig, {subnet} is not for pods of this node"
            );
            out.alarm("eni-excluded", why);
        }
    }
}

fn is_excluded(pool: &Pool, eni: &Eni) -> Option<bool> {
    let policy = pool.policy();
    if eni.role == EniRole::Unmanaged {
        return Some(false);
    }
    if policy.custom_networking {
        let choice = policy.eni_config.as_ref();
        let subnets = choice.map(|choice| &choice.subnets).filter(|all| !all.is_empty());
        let is_elsewhere = subnets.map(|subnets| !subnets.contains(&eni.subnet));
        return if eni.role == EniRole::Primary {
            Some(true)
        } else {
            is_elsewhere
        };
    }
    if !policy.subnet_discovery {
        return Some(false);
    }
    match (listed(pool), pool.memory.subnets.failed) {
        (Some(listed), _) => {
            let subnet = listed.iter().find(|subnet| subnet.id == eni.subnet);
            Some(subnet.is_some_and(|subnet| judged(pool, subnet) == Verdict::Excluded))
        }
        // EC2 will not tell: then nothing speaks against it (Q9).
        (None, Some(Transient(false))) => Some(false),
        (None, _) => None,
    }
}

// ---- asking ----

/// Whether there is something to ask: the tags; or which of an ENIConfig's subnets has most free addresses, and its
/// network, which IMDS tells only after the ENI is attached.
fn asks(pool: &Pool) -> bool {
    let policy = pool.policy();
    let is_new = |id: &SubnetId| network_of(pool, id).is_none();
    let is_choice = |choice: &EniConfigChoice| choice.subnets.len() > 1 || choice.subnets.iter().any(is_new);
    let matters = !policy.custom_networking || policy.eni_config.as_ref().is_some_and(is_choice);
    policy.subnet_discovery && policy.ask_ec2 && matters
}

/// Whether EC2 is to be asked: not for what it said a moment ago.
pub(super) fn is_due(pool: &Pool, now: Tick) -> bool {
    asks(pool)
        && pool
            .memory
            .subnets
            .asked
            .is_none_or(|asked| now.since(asked) >= FRESH)
        && !pool.memory.is_asking(&Purpose::Subnets)
        && pool.memory.is_clear(&Topic::Subnets, now)
}

/// Until when an answer that is under way is waited for.
pub(super) fn awaited_until(pool: &Pool) -> Option<Tick> {
    let mut asks = pool.memory.calls.values();
    let ask = asks.find(|ask| ask.purpose == Purpose::Subnets)?;
    Some(ask.since.after(pool.policy().start_patience))
}

pub(super) fn is_awaited(pool: &Pool, now: Tick) -> bool {
    awaited_until(pool).is_some_and(|until| now < until)
}

/// Whether nothing is to be had of the ENIs there are before EC2 has been asked for the first time: a fresh node's primary
/// ENI may be in a subnet that is not for pods, and ENIs that were may no longer be.
pub(super) fn is_needed_first(pool: &Pool) -> bool {
    let is_suspect = || pool.addresses().is_empty() || has_excluded(pool);
    asks(pool) && !is_known(pool) && !pool.policy().custom_networking && is_suspect()
}

fn has_excluded(pool: &Pool) -> bool {
    pool.enis().values().any(|eni| eni.excluded)
}

/// Asks at a start where ENIs were excluded: what is free on those is surplus, if that is still so, and if it is not, they
/// serve. Where the answer fails to come, it is asked again.
pub(super) fn confirm(pool: &mut Pool, now: Tick, out: &mut Outbox) {
    let is_told =
        pool.memory.subnets.listed.is_some() || pool.memory.subnets.failed == Some(Transient(false));
    if has_excluded(pool) && !is_told && !pool.policy().custom_networking && is_due(pool, now) {
        ask(pool, now, out);
    }
}

/// Whether EC2 has ever told.
pub(super) fn is_known(pool: &Pool) -> bool {
    pool.memory.subnets.listed.is_some() || pool.memory.subnets.failed.is_some()
}

pub(super) fn ask(pool: &mut Pool, now: Tick, out: &mut Outbox) {
    let facts = pool.facts();
    let (vpc, zone) = (facts.vpc.clone(), facts.zone.clone());
    out.call(
        pool,
        Purpose::Subnets,
        CloudCall::DescribeSubnets { vpc, zone },
        now,
    );
}

/// EC2's list. One without the subnet this node is in is not believed.
pub(super) fn listed_by_ec2(
    pool: &mut Pool,
    subnets: Vec<CloudSubnet>,
    asked: Tick,
    now: Tick,
    out: &mut Outbox,
) {
    let own = &pool.facts().subnet;
    if !subnets.iter().any(|subnet| subnet.id == *own) {
        let text = format!(
            "EC2's list of {} subnets lacks {own}, where this node is; it is not believed",
            subnets.len()
        );
        out.alarm("incredible-describe", text);
        pool.memory.subnets.failed = Some(Transient(true));
        return pool.memory.obstruct(Topic::Subnets, AGAIN, None, now);
    }
    let networks: BTreeMap<SubnetId, Ipv4Cidr> = subnets.iter().map(|s| (s.id.clone(), s.cidr)).collect();
    pool.memory.clear(&Topic::Subnets);
    pool.memory.subnets = SubnetView {
        listed: Some(subnets),
        asked: Some(asked),
        failed: None,
    };
    let ids: Vec<EniId> = pool.enis().keys().cloned().collect();
    for id in ids {
        pool.edit_eni(&id, |eni| {
            eni.subnet_cidr = eni.subnet_cidr.or_else(|| networks.get(&eni.subnet).copied());
        });
    }
}

pub(super) fn not_listed(pool: &mut Pool, failure: &CloudFailure, now: Tick, out: &mut Outbox) {
    if failure.class == FailureClass::Denied && pool.memory.subnets.failed != Some(Transient(false)) {
        out.alarm("denied", format!("{LOSS}: {failure}"));
    }
    pool.memory.subnets.failed = Some(Transient(failure.class.is_transient()));
    pool.memory
        .obstruct(Topic::Subnets, AGAIN, Some(failure.clone()), now);
}

/// A subnet is gone, or what is known of it is wrong: the next growth asks again.
pub(super) fn doubt(pool: &mut Pool) {
    pool.memory.subnets.asked = None;
}

// ---- how many addresses a subnet has left ----

/// Addresses that an amount takes from its subnet, a new ENI's own included.
fn taken(amount: Amount, creates: bool) -> u32 {
    let of_ipv4 = if amount == Amount::Block {
        0
    } else {
        amount.addresses()
    };
    of_ipv4.saturating_add(u32::from(creates))
}

/// Free addresses of all subnets that ENIs may go to, as far as EC2 has told.
pub(super) fn free_of_all(pool: &Pool) -> Option<u32> {
    let listed = pool.memory.subnets.listed.as_deref();
    let mut usable = listed?
        .iter()
        .filter(|subnet| judged(pool, subnet) == Verdict::Usable);
    let first = usable.next()?.free;
    Some(usable.fold(first, |free, subnet| free.saturating_add(subnet.free)))
}

/// A subnet gave this much.
pub(super) fn gave(pool: &mut Pool, id: &SubnetId, amount: Amount, creates: bool) {
    let listed = pool.memory.subnets.listed.as_mut();
    let mut subnets = listed.into_iter().flatten();
    if let Some(subnet) = subnets.find(|subnet| subnet.id == *id) {
        subnet.free = subnet.free.saturating_sub(taken(amount, creates));
    }
}

/// What a subnet will have left once all that is under way and planned has come.
pub(super) fn left(pool: &Pool, planned: &[Act], candidate: &Candidate) -> Option<u32> {
    let id = &candidate.id;
    let here = |eni: &EniId| pool.enis().get(eni).is_some_and(|eni| eni.subnet == *id);
    let creating = pool
        .creations()
        .values()
        .filter(|creation| creation.subnet == *id)
        .map(|creation| taken(creation.amount, true));
    let assigning = pool
        .enis()
        .values()
        .filter(|eni| eni.subnet == *id)
        .filter_map(|eni| Some(taken(eni.assigning?, false)));
    let planned = planned.iter().map(|act| match act {
        Act::Create { subnet, amount, .. } if subnet == id => taken(*amount, true),
        Act::Assign { eni, amount } if here(eni) => taken(*amount, false),
        _ => 0,
    });
    let under_way: u32 = creating.chain(assigning).chain(planned).sum();
    Some(candidate.free?.saturating_sub(under_way))
}

#[cfg(test)]
mod tests {
    use super::*;

    const ROLE: &str = tags::SUBNET_ROLE;
    const OURS: &str = "cni.networking.k8s.aws/cluster/c1";
    const THEIRS: &str = "cni.networking.k8s.aws/cluster/c2";

    fn tagged(tags: &[(&str, &str)]) -> BTreeMap<String, String> {
        let owned = tags
            .iter()
            .map(|(key, value)| ((*key).to_owned(), (*value).to_owned()));
        owned.collect()
    }

    /// Reference ipamd 4.3, every row.
    #[test]
    fn ipamd_58_tags_say_which_subnets_are_for_us() {
        use Verdict::{Excluded, Unused, Usable};
        for (tags, own, other) in [
            (vec![(ROLE, "0")], Excluded, Excluded),
            (vec![(ROLE, "0"), (OURS, "")], Excluded, Excluded),
            (vec![], Usable, Unused),
            (vec![(ROLE, "")], Usable, Unused),
            (vec![(THEIRS, "shared")], Usable, Unused),
            (vec![(ROLE, ""), (THEIRS, "")], Usable, Unused),
            (vec![(ROLE, "1")], Usable, Usable),
            (vec![(ROLE, "true")], Usable, Usable),
            (vec![(ROLE, "1"), (OURS, "0")], Usable, Usable),
            (vec![(ROLE, "1"), (OURS, ""), (THEIRS, "")], Usable, Usable),
            (vec![(ROLE, "1"), (THEIRS, "")], Excluded, Excluded),
            (vec![(ROLE, "1"), ("Name", "nodes")], Usable, Usable),
        ] {
            let tags = tagged(&tags);
            assert_eq!(verdict(&tags, true, Some("c1")), own, "{tags:?}");
            assert_eq!(verdict(&tags, false, Some("c1")), other, "{tags:?}");
        }
        let theirs = tagged(&[(ROLE, "1"), (THEIRS, "")]);
        assert_eq!(
            verdict(&theirs, false, None),
            Usable,
            "without a name every cluster's"
        );
    }
}
