//! Carries out what [`super::verdict`] says of addresses, prefixes and ENIs, and tells where witnesses disagree. Nothing
//! is decided here.

use std::net::{IpAddr, Ipv4Addr};

use super::cidr::Ipv4Cidr;
use super::cloud::DescribeScope;
use super::drift::Subject;
use super::effect::Effect;
use super::evidence;
use super::ids::{EniId, Tick};
use super::memory::Ec2View;
use super::model::{Address, EniRole, EniState, Placed};
use super::obstacle::Topic;
use super::outbox::Outbox;
use super::pool::Pool;
use super::release;
use super::six;
use super::verdict::{
    self, Act, AddressWords, Drift, Ec2EniWord, Ec2Word, EniWords, ImdsWord, StoreWord, Verdict, Why,
};
use super::witness::Doubt;

/// EC2 lists a secondary address or a prefix on an ENI of ours.
pub(super) fn listed(pool: &mut Pool, id: &EniId, cidr: Ipv4Cidr, now: Tick, out: &mut Outbox) {
    for address in cidr.addresses() {
        pool.confirm_imported(id, address);
    }
    let word = if cidr.addresses().any(|address| is_elsewhere(pool, id, address)) {
        Ec2Word::Elsewhere
    } else {
        Ec2Word::Lists
    };
    pool.memory.unlisted.remove(&cidr);
    if is_old_news(pool, id, cidr, now) {
        return;
    }
    let may_be_ours = |eni: &super::model::Eni| {
        let own = pool.facts().primary_address;
        eni.role != EniRole::Unmanaged && !cidr.contains(eni.primary) && !cidr.contains(own)
    };
    if pool.enis().get(id).is_some_and(may_be_ours) {
        judge(pool, id, cidr, word, now, out);
    }
}

/// Whether an address is thought to be on another ENI.
fn is_elsewhere(pool: &Pool, id: &EniId, address: Ipv4Addr) -> bool {
    pool.known(address).is_some_and(|known| known.eni != *id)
}

/// It has been given back so lately that a list with it is old.
fn is_old_news(pool: &mut Pool, id: &EniId, cidr: Ipv4Cidr, now: Tick) -> bool {
    let is_new = |eni: &super::model::Eni| !eni.cidrs.contains_key(&cidr);
    pool.enis().get(id).is_some_and(is_new) && release::is_given_back(pool, cidr, now)
}

/// A witness has spoken of a secondary address or prefix: what becomes of it.
pub(super) fn judge(pool: &mut Pool, id: &EniId, cidr: Ipv4Cidr, ec2: Ec2Word, now: Tick, out: &mut Outbox) {
    let words = evidence::of_cidr(pool, id, cidr, ec2, now);
    carry_out(pool, id, cidr, words, now, out);
}

fn carry_out(pool: &mut Pool, id: &EniId, cidr: Ipv4Cidr, words: AddressWords, now: Tick, out: &mut Outbox) {
    let verdict = verdict::address(words);
    match verdict.act {
        Act::Publish | Act::Adopt | Act::Release => place(pool, id, cidr, true, now),
        Act::AdoptUnverified => place(pool, id, cidr, false, now),
        Act::AskEc2 => ask_ec2(pool),
        Act::AskKernel => pool.memory.kernel_wanted = true,
        Act::Keep | Act::Vacate | Act::Forget => {}
    }
    let words_there = on_what_stayed(pool, id, cidr, words);
    let judged = verdict::address(words_there);
    for address in cidr.addresses() {
        judge_doubt(pool, address.into(), words_there, judged, now, out);
    }
    if matches!(verdict.act, Act::Vacate | Act::Forget) {
        pool.displace(id, cidr);
        pool.memory.unlisted.remove(&cidr);
        out.now(Effect::Unpublish {
            eni: id.clone(),
            addresses: cidr.addresses().collect(),
        });
    }
    note_drift(pool, id, cidr, words, now, out);
}

/// What EC2 has elsewhere is not moved there as long as somebody holds a part of what it would be taken out of. Where it is
/// known EC2 does not have it all the same, and nobody gets it there.
fn on_what_stayed(pool: &Pool, id: &EniId, cidr: Ipv4Cidr, words: AddressWords) -> AddressWords {
    let stayed = cidr.addresses().any(|address| is_elsewhere(pool, id, address));
    match words.ec2 {
        Ec2Word::Elsewhere if stayed => AddressWords {
            ec2: Ec2Word::Omits,
            ..words
        },
        _ => words,
    }
}

/// IMDS lists it, and EC2 cannot be asked. What EC2 did not name when it last spoke of this ENI it has denied, be it by a
/// list or by taking it back, unless it has been asked for more since; what is stored of the ENI is that list.
pub(super) fn overheard(pool: &mut Pool, id: &EniId, cidr: Ipv4Cidr, now: Tick, out: &mut Outbox) {
    let is_known = pool
        .enis()
        .get(id)
        .is_some_and(|eni| eni.cidrs.contains_key(&cidr));
    let mut words = AddressWords {
        imds: ImdsWord::Lists,
        ..evidence::of_cidr(pool, id, cidr, Ec2Word::Unreachable, now)
    };
    if words.store == StoreWord::Unknown && evidence::has_denied_strangers(pool, id) {
        words.ec2 = Ec2Word::Omits;
    }
    // What it says of another place speaks for none where it does not list it.
    if !is_known && !cidr.addresses().any(|address| is_elsewhere(pool, id, address)) {
        carry_out(pool, id, cidr, words, now, out);
    }
}

/// The addresses of which [`judge_standing`] has anything to say: the kernel is read for every pod that goes, and nearly
/// always nobody contradicts anybody.
pub(super) fn disputed(pool: &Pool, now: Tick) -> Vec<IpAddr> {
    let is_disputed = |(address, known): &(&IpAddr, &Address)| match address {
        IpAddr::V4(address) => !is_undisputed(pool, *address, known, now),
        IpAddr::V6(_) => true,
    };
    let disputed = pool.addresses().iter().filter(is_disputed);
    let disputed = disputed.map(|(address, _)| *address).collect::<Vec<_>>();
    #[cfg(test)]
    nothing_is_said_of_the_others(pool, &disputed, now);
    disputed
}

/// Holds the short way against the long one.
#[cfg(test)]
fn nothing_is_said_of_the_others(pool: &Pool, disputed: &[IpAddr], now: Tick) {
    let (mut judged, mut out) = (pool.clone(), Outbox::default());
    for address in pool.addresses().keys() {
        if !disputed.contains(address) {
            judge_standing(&mut judged, *address, now, &mut out);
        }
    }
    let all = |pool: &Pool| {
        format!(
            "{:?}",
            (pool.version(), &pool.memory.drifts, &pool.memory.obstacles)
        )
    };
    assert_eq!(format!("{out:?}"), format!("{:?}", Outbox::default()));
    assert_eq!(all(&judged), all(pool));
}

/// Whether nothing is doubted or contradicted about an address, nor was.
fn is_undisputed(pool: &Pool, address: Ipv4Addr, known: &Address, now: Tick) -> bool {
    let placed = pool.placed_as(address, known);
    let host = Ipv4Cidr::host(address);
    let cidr = placed.map_or(host, |(_, cidr, _)| cidr);
    if known.doubt.is_some() || pool.memory.drifts.is_open(host) || pool.memory.drifts.is_open(cidr) {
        return false;
    }
    let ec2 = evidence::standing_of(pool, known, placed, now);
    let words = evidence::of_placed(pool, address, known, placed, ec2, now);
    let is_agreed = |words| verdict::address_drifts(words).next().is_none();
    if verdict::address(words).doubt.is_some() {
        return false;
    }
    if cidr == host {
        return is_agreed(words);
    }
    let of_member = AddressWords {
        imds: ImdsWord::Silent,
        ec2: Ec2Word::Lists,
        ..words
    };
    let whole = || evidence::of_cidr(pool, &known.eni, cidr, ec2, now);
    is_agreed(of_member) && (address != cidr.base() || is_agreed(whole()))
}

/// IMDS has been heard, or the kernel: it may contradict the others, or stop doing so.
pub(super) fn judge_standing(pool: &mut Pool, address: IpAddr, now: Tick, out: &mut Outbox) {
    let address = match address {
        IpAddr::V4(address) => address,
        IpAddr::V6(address) => return six::judge_standing(pool, address, now, out),
    };
    let Some(id) = pool.known(address).map(|known| known.eni.clone()) else {
        return;
    };
    let ec2 = evidence::standing(pool, address, now);
    let host = Ipv4Cidr::host(address);
    let cidr = pool.placed(address).and_then(|(eni, _)| eni.carries(address));
    let cidr = cidr.map_or(host, |(cidr, _)| cidr);
    let mut words = evidence::of_member(pool, &id, cidr, address, ec2, now);
    let verdict = verdict::address(words);
    judge_doubt(pool, address.into(), words, verdict, now, out);
    if cidr == host {
        return note_drift(pool, &id, host, words, now, out);
    }
    // EC2 and IMDS speak of the prefix as a whole, the kernel of each address.
    words.imds = ImdsWord::Silent;
    words.ec2 = Ec2Word::Lists;
    note_drift(pool, &id, host, words, now, out);
    if address == cidr.base() {
        let whole = evidence::of_cidr(pool, &id, cidr, ec2, now);
        note_drift(pool, &id, cidr, whole, now, out);
    }
}

/// Sets or lifts the doubt about one address. EC2's and IMDS's words are those on the prefix it is part of.
pub(super) fn judge_doubt(
    pool: &mut Pool,
    address: IpAddr,
    whole: AddressWords,
    verdict: Verdict,
    now: Tick,
    out: &mut Outbox,
) {
    let Some(known) = pool.known(address) else {
        return;
    };
    let (kernel, store) = evidence::of_address(pool, address, now);
    let words = AddressWords {
        kernel,
        store,
        ..whole
    };
    let of_whole = verdict.doubt.filter(|why| *why == Why::NotInEc2);
    let wanted = verdict::address(words).doubt.or(of_whole);
    let was_routed = matches!(known.doubt, Some(Doubt::PodRoute { .. }));
    let doubt = match (&known.doubt, wanted) {
        // Only a reboot settles who of two has it; and that the ENI is lost says more than that EC2 lacks it.
        (Some(Doubt::AllocatedTwice | Doubt::Imported { .. }), _)
        | (Some(Doubt::EniLost), Some(Why::NotInEc2 | Why::EniLost)) => {
            return;
        }
        (_, None) => None,
        (_, Some(Why::PodRoute)) => Some(Doubt::PodRoute {
            device: pool.memory.pod_routes.get(&address).cloned().unwrap_or_default(),
        }),
        (_, Some(Why::NotInEc2)) => Some(Doubt::NotInEc2),
        (_, Some(Why::EniLost)) => Some(Doubt::EniLost),
    };
    let is_routed = matches!(doubt, Some(Doubt::PodRoute { .. }));
    let is_news = known.doubt.is_none() && verdict::address_drifts(words).any(Drift::is_alarming);
    if let Some(why) = doubt.as_ref().filter(|_| is_news) {
        let said = evidence::tell_cidr(pool, words, now);
        let held = known.holder.as_ref();
        let holder = held.map_or(String::new(), |key| format!(", held by sandbox {key}"));
        let on = &known.eni;
        out.alarm("quarantined", format!("{address} on {on}{holder}: {why}; {said}"));
    }
    if is_routed && !was_routed {
        // Looked at again soon, however long another address has been routed.
        pool.memory.clear(&Topic::Kernel);
    }
    pool.doubt(address, doubt);
    if was_routed && !is_routed {
        pool.rest(address, now);
    }
}

/// Puts on its ENI what a witness has named.
fn place(pool: &mut Pool, id: &EniId, cidr: Ipv4Cidr, verified: bool, now: Tick) {
    if is_old_news(pool, id, cidr, now) {
        return;
    }
    let Some(eni) = pool.enis().get(id) else { return };
    let known = eni.cidrs.get(&cidr).copied();
    // IMDS adds knowledge; it does not move what is known elsewhere.
    if !verified && cidr.addresses().any(|address| is_elsewhere(pool, id, address)) {
        return;
    }
    let placed = Placed {
        verified: verified || known.is_some_and(|known| known.verified),
        published: eni.role == EniRole::Primary || known.is_some_and(|known| known.published),
        releasing: known.is_some_and(|known| known.releasing),
    };
    pool.place(id, cidr, placed);
    if known.is_none() {
        pool.memory.fresh.insert(cidr, now);
    }
}

/// EC2 is asked again, unless its first answer is still to come.
pub(super) fn ask_ec2(pool: &mut Pool) {
    if pool.memory.ec2 == Ec2View::Answered {
        pool.memory.describe.insert(DescribeScope::Attached);
    }
}

/// What EC2 does not list on an ENI that it does list.
pub(super) fn omitted(pool: &mut Pool, id: &EniId, cidr: Ipv4Cidr, asked: Tick, now: Tick, out: &mut Outbox) {
    let placed = pool.enis().get(id).and_then(|eni| eni.cidrs.get(&cidr).copied());
    let lag = pool.policy().describe_lag;
    let named = pool.memory.fresh.get(&cidr);
    // EC2 itself named it since, or only just before, it was asked.
    let is_releasing = placed.is_some_and(|placed| placed.releasing);
    if !is_releasing
        && placed.is_some_and(|placed| placed.verified)
        && named.is_some_and(|since| since.after(lag) > asked)
    {
        return;
    }
    if is_releasing {
        let words = evidence::of_cidr(pool, id, cidr, Ec2Word::Omits, now);
        if verdict::address(words).act == Act::Forget {
            return release::gone(pool, id, cidr, now);
        }
    }
    let since = *pool.memory.unlisted.entry(cidr).or_insert(now);
    let word = if now.since(since) >= lag {
        Ec2Word::Insists
    } else {
        Ec2Word::Omits
    };
    judge(pool, id, cidr, word, now, out);
}

/// An ENI of which EC2 has been heard: the words, and what is to become of it. Contradictions are told.
pub(super) fn judge_eni(
    pool: &mut Pool,
    id: &EniId,
    ec2: Ec2EniWord,
    now: Tick,
    out: &mut Outbox,
) -> (EniWords, Verdict) {
    let words = evidence::of_eni(pool, id, ec2, now);
    let subject = Subject::Eni(id.clone());
    let new = pool.memory.drifts.note(&subject, verdict::eni_drifts(words), now);
    for kind in new.into_iter().filter(|kind| kind.is_alarming()) {
        let said = evidence::tell_eni(pool, words, now);
        out.alarm("drift", format!("{id}: {kind}; {said}"));
    }
    (words, verdict::eni(words))
}

/// An ENI EC2 does not list as attached to us.
pub(super) fn omitted_eni(pool: &mut Pool, id: &EniId, asked: Tick, now: Tick, out: &mut Outbox) {
    match pool.enis().get(id).map(|eni| eni.state.clone()) {
        Some(EniState::Detaching) => return release::unlisted(pool, id, now),
        Some(EniState::Draining) => release::keep(pool, id),
        _ => {}
    }
    let lag = pool.policy().describe_lag;
    let progress = pool.memory.progress(id);
    if progress.attached_at.is_some_and(|since| since.after(lag) > asked) {
        return;
    }
    let known = pool.enis().get(id).map(|eni| (eni.role, eni.state.clone()));
    let is_expected = match known {
        None | Some((EniRole::Primary, _)) => return,
        Some((EniRole::Unmanaged, _)) => true,
        Some((_, state)) => matches!(state, EniState::Attached | EniState::Ready | EniState::Lost),
    };
    if !is_expected {
        return;
    }
    let progress = pool.memory.progress(id);
    let since = *progress.unlisted_since.get_or_insert(now);
    let word = if now.since(since) >= lag {
        Ec2EniWord::Insists
    } else {
        Ec2EniWord::Omits
    };
    let (words, verdict) = judge_eni(pool, id, word, now, out);
    let is_new = since == now;
    match (verdict.act, verdict.doubt) {
        (Act::Forget, _) => {
            let was_ours = pool
                .enis()
                .get(id)
                .is_some_and(|eni| eni.role == EniRole::Secondary);
            lose(pool, id, words, now, out);
            pool.forget_eni(id);
            if was_ours {
                // If it still exists, attached nowhere, it is taken up as left over.
                pool.memory.describe.insert(DescribeScope::OursUnattached);
            }
        }
        (_, Some(Why::EniLost)) => lose(pool, id, words, now, out),
        (_, Some(_)) => contradict(pool, id, words, is_new, now, out),
        (_, None) => {}
    }
}

/// EC2 does not list an ENI whose link is there: its pods are left alone, and nobody new gets an address of it.
fn contradict(pool: &mut Pool, id: &EniId, words: EniWords, is_new: bool, now: Tick, out: &mut Outbox) {
    if is_new {
        let said = evidence::tell_eni(pool, words, now);
        out.alarm(
            "eni-unlisted",
            format!("EC2 does not list {id} as attached, but its link is there; {said}"),
        );
    }
    let carried = |eni: &super::model::Eni| eni.cidrs.keys().copied().collect::<Vec<_>>();
    for cidr in pool.enis().get(id).map(carried).unwrap_or_default() {
        judge(pool, id, cidr, Ec2Word::Omits, now, out);
    }
}

/// An ENI is gone by EC2 and by the kernel: nobody can be reached there.
fn lose(pool: &mut Pool, id: &EniId, words: EniWords, now: Tick, out: &mut Outbox) {
    let Some(eni) = pool.enis().get(id) else { return };
    if eni.role != EniRole::Secondary || eni.state == EniState::Lost {
        return;
    }
    let (primary, mark) = (eni.primary, eni.mark());
    let addresses: Vec<Ipv4Addr> = eni.addresses().map(|(address, _)| address).collect();
    let progress = pool.memory.progress(id);
    progress.configured = false;
    progress.publishing.clear();
    let said = evidence::tell_eni(pool, words, now);
    out.alarm(
        "eni-lost",
        format!("{id} is gone, by EC2 and by the kernel; {said}"),
    );
    for address in &addresses {
        pool.doubt(*address, Some(Doubt::EniLost));
    }
    pool.edit_eni(id, |eni| {
        eni.state = EniState::Lost;
        for placed in eni.cidrs.values_mut() {
            placed.published = false;
        }
    });
    out.now(Effect::Unpublish {
        eni: id.clone(),
        addresses,
    });
    out.now(Effect::UnconfigureEni {
        eni: id.clone(),
        primary,
        mark,
    });
}

fn note_drift(pool: &mut Pool, id: &EniId, cidr: Ipv4Cidr, words: AddressWords, now: Tick, out: &mut Outbox) {
    let of_prefix = |kind| match kind {
        Drift::ImdsOmitsAddress if !cidr.is_host() => Drift::ImdsOmitsPrefix,
        Drift::ImdsExtraAddress if !cidr.is_host() => Drift::ImdsExtraPrefix,
        other => other,
    };
    let of_its_addresses = |kind: &Drift| matches!(kind, Drift::KernelExtraRoute | Drift::KernelOmitsRoute);
    let found = verdict::address_drifts(words)
        .filter(|kind| cidr.is_host() || !of_its_addresses(kind))
        .map(of_prefix);
    let contradiction = Contradiction {
        on: id.clone(),
        subject: Subject::Cidr(cidr),
        is_quarantined: pool.knows(cidr.base()),
        words,
    };
    note(pool, &contradiction, found, now, out);
}

/// What an address, a prefix or a /80 is, and what is said of it.
pub(super) struct Contradiction {
    pub(super) on: EniId,
    pub(super) subject: Subject,
    /// It is known, so that what EC2 lacks or the kernel has of it is in quarantine, which has an alarm of its own.
    pub(super) is_quarantined: bool,
    pub(super) words: AddressWords,
}

/// Counts what is contradictory about it, and tells what nobody has told yet.
pub(super) fn note(
    pool: &mut Pool,
    about: &Contradiction,
    found: impl Iterator<Item = Drift>,
    now: Tick,
    out: &mut Outbox,
) {
    let Contradiction {
        on,
        subject,
        is_quarantined,
        words,
    } = about;
    let is_told = |kind: &Drift| {
        let quarantines = matches!(
            kind,
            Drift::Ec2OmitsAddress | Drift::Ec2MovedAddress | Drift::KernelExtraRoute
        );
        quarantines && *is_quarantined
    };
    let new = pool.memory.drifts.note(subject, found, now);
    for kind in new
        .into_iter()
        .filter(|kind| kind.is_alarming() && !is_told(kind))
    {
        let said = evidence::tell_cidr(pool, *words, now);
        out.alarm("drift", format!("{subject} on {on}: {kind}; {said}"));
    }
}

/// The kernel routes addresses that are on no ENI of ours, as far as EC2 has told.
pub(super) fn stray_routes(pool: &mut Pool, now: Tick, out: &mut Outbox) {
    if pool.memory.ec2 != Ec2View::Answered {
        return;
    }
    let unknown = |address: &Ipv4Addr| !pool.knows(*address);
    let stray: Vec<Ipv4Addr> = pool.memory.ipv4_routes().filter(unknown).collect();
    let primary = pool.facts().primary_eni.clone();
    for address in stray {
        let words = evidence::of_cidr(pool, &primary, Ipv4Cidr::host(address), Ec2Word::Omits, now);
        note_drift(pool, &primary, Ipv4Cidr::host(address), words, now, out);
    }
}
