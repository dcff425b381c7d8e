//! Gives back what is surplus: intent, two witnesses, proof, call, and EC2's word that it is gone.
//!
//! From the intent on nobody gets what is to go. Until the call is sent it is taken back as soon as somebody wants it or
//! a witness contradicts; from then on only EC2 can tell what became of it.

use std::collections::BTreeSet;
use std::net::{IpAddr, Ipv4Addr};
use std::time::Duration;

use super::cidr::Ipv4Cidr;
use super::cloud::{CloudCall, CloudEni, CloudFailure, DescribeScope, FailureClass};
use super::effect::Effect;
use super::ids::{AttachmentId, CallId, EniId, Tick};
use super::lifecycle::{describe, discard, doom, read_kernel};
use super::memory::{Ec2View, Inquiry, Purpose};
use super::model::{Eni, EniRole, EniState};
use super::obstacle::{Pace, Topic};
use super::outbox::Outbox;
use super::plan::{Plan, plan};
use super::pool::Pool;
use super::surplus::{Return, surplus};
use super::witness::{Ec2Listing, Ec2Says, LocalWord, Proof, Unproven};
use super::{tags, verify};

/// At most one step in this time, as in the Go daemon (reference ipamd 3.4).
pub(super) const STEP: Duration = Duration::from_secs(30);
/// How an ENI that a witness speaks for, or that EC2 does not take back, is tried again.
const AGAIN: Pace = Pace::secs(60, 3600);
/// How EC2 is asked whether an ENI is detached: that takes it seconds.
const DETACHED: Pace = Pace::secs(2, 60);

// ---- beginning and taking back ----

/// Begins to give back what has been surplus for long enough, when nothing else is going on.
pub(super) fn shrink(pool: &mut Pool, plan: &Plan, now: Tick, out: &mut Outbox) {
    pool.memory.shrink_due = None;
    let found = if !pool.policy().is_six() && may_shrink(pool, plan, now) {
        surplus(pool, &plan.report, now)
    } else {
        super::surplus::Surplus::default()
    };
    pool.memory.shrink_due = found.next;
    pool.memory.is_surplus = found.is_held_up || !found.returns.is_empty();
    if found.returns.is_empty() {
        pool.memory.surplus_since = None;
        return;
    }
    pool.memory.surplus_since.get_or_insert(now);
    let due = due(pool, now);
    if now < due {
        pool.memory.shrink_due = Some(found.next.map_or(due, |next| next.min(due)));
        return;
    }
    let violations = verify::returns(pool, &found.returns, now);
    pool.memory.last_shrink = Some(now);
    pool.memory.surplus_since = None;
    if !violations.is_empty() {
        pool.memory.obstruct(Topic::Shrink, AGAIN, None, now);
        for violation in violations {
            out.alarm("bad-plan", format!("nothing was given back: {violation}"));
        }
        return;
    }
    pool.memory.short_at_shrink = plan.report.short;
    for what in found.returns {
        begin(pool, what);
    }
    read_kernel(pool, out);
    describe(pool, now, out);
}

/// When what is surplus now may go: it must have been so for a while, and the last step must be some time ago.
pub(super) fn due(pool: &Pool, now: Tick) -> Tick {
    let since = pool.memory.surplus_since.unwrap_or(now);
    let after_last = pool.memory.last_shrink.map(|last| last.after(STEP));
    since
        .after(pool.policy().shrink_patience)
        .max(after_last.unwrap_or(since))
}

fn may_shrink(pool: &Pool, plan: &Plan, now: Tick) -> bool {
    holds(pool, plan, now).is_none()
}

/// Why nothing is given back now, however much there is.
pub(super) fn holds(pool: &Pool, plan: &Plan, now: Tick) -> Option<Hold> {
    let policy = pool.policy();
    let is_changing = |eni: &Eni| {
        eni.assigning.is_some()
            || (eni.role == EniRole::Secondary
                && matches!(eni.state, EniState::Created | EniState::Attaching))
    };
    if !policy.provisioning || !policy.ask_ec2 {
        Some(Hold::ProvisioningOff)
    } else if pool.is_left_alone() {
        Some(Hold::Cordoned)
    } else if pool.memory.ec2 != Ec2View::Answered {
        Some(Hold::NotHeard)
    } else if let Some(obstacle) = pool.memory.obstacle(&Topic::Shrink, now) {
        Some(Hold::Refused(obstacle.until))
    } else if let Some(brake) = pool.memory.budget.brakes().find(|brake| brake.until > now) {
        Some(Hold::Braked(brake.until))
    } else if pool.enis().values().any(is_leaving) {
        Some(Hold::UnderWay)
    } else if !plan.acts.is_empty()
        || !pool.memory.waiters.is_empty()
        || !pool.creations().is_empty()
        || pool.enis().values().any(is_changing)
    {
        Some(Hold::Growing)
    } else {
        None
    }
}

/// What keeps everything from being given back.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Hold {
    /// EC2 is not to be asked.
    ProvisioningOff,
    /// The node is cordoned.
    Cordoned,
    /// EC2 has not said what is attached, or does not answer.
    NotHeard,
    /// EC2 did not take something back; until then nothing is tried.
    Refused(Tick),
    /// The call budget has none left for it until then.
    Braked(Tick),
    /// Something is being given back.
    UnderWay,
    /// More is being asked for, or pods wait.
    Growing,
}

/// Whether it, or something on it, is on its way back to EC2.
fn is_leaving(eni: &Eni) -> bool {
    matches!(eni.state, EniState::Draining | EniState::Detaching)
        || eni.cidrs.values().any(|placed| placed.releasing)
}

/// Records the intent and asks the witnesses.
fn begin(pool: &mut Pool, what: Return) {
    let id = match what {
        Return::Eni(id) => {
            pool.edit_eni(&id, |eni| eni.state = EniState::Draining);
            id
        }
        Return::Cidrs { eni: id, cidrs } => {
            pool.edit_eni(&id, |eni| {
                for (cidr, placed) in &mut eni.cidrs {
                    placed.releasing |= cidrs.contains(cidr);
                }
            });
            id
        }
    };
    inquire(pool, &id);
}

/// Only what EC2 and the kernel say from now on counts.
fn inquire(pool: &mut Pool, id: &EniId) {
    let Some(eni) = pool.enis().get(id) else { return };
    let about = going(eni);
    let addresses: Vec<IpAddr> = about
        .iter()
        .flat_map(|cidr| cidr.addresses())
        .map(IpAddr::V4)
        .collect();
    let next = pool.memory.next_call;
    pool.memory.progress(id).inquiry = Inquiry {
        since: Some(next),
        about,
        ..Inquiry::default()
    };
    pool.memory.unproven.extend(addresses);
    pool.memory.describe.insert(DescribeScope::Attached);
}

/// What of it is to go: all, or what is marked.
fn going(eni: &Eni) -> BTreeSet<Ipv4Cidr> {
    let whole = matches!(eni.state, EniState::Draining | EniState::Detaching);
    let goes = eni.cidrs.iter().filter(|(_, placed)| whole || placed.releasing);
    goes.map(|(cidr, _)| *cidr).collect()
}

/// Takes back what no call has been sent for, when somebody needs it, EC2 may not be asked, or it is to keep it.
pub(super) fn reconsider(pool: &mut Pool, now: Tick) {
    let unsent: Vec<EniId> = pool
        .enis()
        .values()
        .filter(|eni| is_leaving(eni) && eni.state != EniState::Detaching && !is_sent(pool, &eni.id))
        .map(|eni| eni.id.clone())
        .collect();
    if unsent.is_empty() {
        return;
    }
    let policy = pool.policy();
    let is_allowed = policy.provisioning
        && policy.ask_ec2
        && pool.memory.ec2 == Ec2View::Answered
        && !pool.is_left_alone();
    let is_needed = plan(pool, now).report.short > pool.memory.short_at_shrink;
    if !is_allowed || is_needed {
        for id in unsent {
            keep(pool, &id);
        }
    }
}

fn is_sent(pool: &Pool, id: &EniId) -> bool {
    let sent = |progress: &super::memory::EniProgress| progress.inquiry.sent.is_some();
    pool.memory.enis.get(id).is_some_and(sent)
}

/// It stays, with all that is on it.
pub(super) fn keep(pool: &mut Pool, id: &EniId) {
    let progress = pool.memory.progress(id);
    progress.inquiry = Inquiry::default();
    let state = if progress.configured {
        EniState::Ready
    } else {
        EniState::Attached
    };
    pool.memory.clear(&Topic::Detached(id.clone()));
    pool.edit_eni(id, |eni| {
        if matches!(eni.state, EniState::Draining | EniState::Detaching) {
            eni.state = state;
        }
        for placed in eni.cidrs.values_mut() {
            placed.releasing = false;
        }
    });
}

/// A witness contradicts: it stays, and is left alone for a while.
fn contradicted(pool: &mut Pool, id: &EniId, what: &str, why: Unproven, now: Tick, out: &mut Outbox) {
    keep(pool, id);
    pool.memory.obstruct(Topic::Release(id.clone()), AGAIN, None, now);
    out.alarm("not-released", format!("{what} was to be given back, but {why}"));
}

// ---- addresses and prefixes ----

/// Gives the marked addresses and prefixes of an ENI back, once they are proven unused.
pub(super) fn unassign(pool: &mut Pool, id: &EniId, now: Tick, out: &mut Outbox) {
    let Some(eni) = pool.enis().get(id) else { return };
    let leaving: Vec<Ipv4Cidr> = going(eni).into_iter().collect();
    let secondary = eni.role == EniRole::Secondary;
    if leaving.is_empty() {
        return;
    }
    let Some(listing) = listing(pool, id) else { return };
    let (mut addresses, mut prefixes) = (Vec::new(), Vec::new());
    for cidr in &leaving {
        let local = |address| local_word(pool, address, now);
        let proof = if cidr.is_host() {
            Proof::unused_address(cidr.base(), Some(&listing), local(cidr.base()))
                .map(|proof| addresses.push(proof))
        } else {
            Proof::unused_prefix(*cidr, Some(&listing), local).map(|proof| prefixes.push(proof))
        };
        match proof {
            Ok(()) => {}
            Err(Unproven::Unasked) => return,
            Err(why) => return contradicted(pool, id, &format!("{cidr} on {id}"), why, now, out),
        }
    }
    let purpose = |cidrs: Vec<Ipv4Cidr>| Purpose::Unassign {
        eni: id.clone(),
        cidrs,
    };
    let (hosts, blocks): (Vec<_>, Vec<_>) = leaving.iter().partition(|cidr| cidr.is_host());
    if !pool.may_ask(&purpose(leaving.clone()), now) {
        return;
    }
    pool.memory.progress(id).inquiry.sent = Some(now);
    if secondary {
        unpublish(pool, id, &leaving, out);
    }
    let eni = || id.clone();
    if !addresses.is_empty() {
        let (eni, proofs) = (eni(), addresses);
        let request = CloudCall::UnassignAddresses { eni, proofs };
        out.call_behind_all(pool, purpose(hosts), request, now);
    }
    if !prefixes.is_empty() {
        let (eni, proofs) = (eni(), prefixes);
        let request = CloudCall::UnassignPrefixes { eni, proofs };
        out.call_behind_all(pool, purpose(blocks), request, now);
    }
}

/// What EC2 has said since, as long as nothing has been sent.
fn listing(pool: &Pool, id: &EniId) -> Option<Ec2Listing> {
    let inquiry = &pool.memory.enis.get(id)?.inquiry;
    inquiry.listing.clone().filter(|_| inquiry.sent.is_none())
}

fn local_word(pool: &Pool, address: Ipv4Addr, now: Tick) -> LocalWord {
    let known = pool.known(address);
    LocalWord {
        asked: !pool.memory.is_unproven(address),
        routed: pool.memory.is_routed(address),
        held: pool.allocations().values().any(|held| held.address == address)
            || known.is_some_and(|known| known.holder.is_some()),
        resting: known.is_some_and(|known| known.rests_until.is_some_and(|until| until >= now)),
        doubted: known.is_none_or(|known| known.doubt.is_some()),
    }
}

/// Takes them out of the kernel's map, whatever is still on its way into it.
fn unpublish(pool: &mut Pool, id: &EniId, cidrs: &[Ipv4Cidr], out: &mut Outbox) {
    let addresses: Vec<Ipv4Addr> = cidrs.iter().flat_map(|cidr| cidr.addresses()).collect();
    let progress = pool.memory.progress(id);
    for address in &addresses {
        progress.publishing.remove(address);
    }
    pool.edit_eni(id, |eni| {
        for cidr in cidrs {
            if let Some(placed) = eni.cidrs.get_mut(cidr) {
                placed.published = false;
            }
        }
    });
    if !addresses.is_empty() {
        out.now(Effect::Unpublish {
            eni: id.clone(),
            addresses,
        });
    }
}

/// EC2 has taken them back.
pub(super) fn unassigned(pool: &mut Pool, id: &EniId, cidrs: &[Ipv4Cidr], now: Tick) {
    for cidr in cidrs {
        gone(pool, id, *cidr, now);
    }
    pool.memory.clear(&Topic::Shrink);
    pool.memory.clear(&Topic::Release(id.clone()));
    end(pool, id);
}

/// EC2 no longer has it on this ENI: what EC2 or IMDS list of it for a while is old.
pub(super) fn gone(pool: &mut Pool, id: &EniId, cidr: Ipv4Cidr, now: Tick) {
    let lag = pool.policy().describe_lag;
    for address in cidr.addresses() {
        pool.memory.given_back.insert(address, now);
    }
    pool.memory.fresh.remove(&cidr);
    pool.memory.unlisted.remove(&cidr);
    pool.give_back(id, cidr, now.after(lag));
    end(pool, id);
}

/// With nothing left to go, nothing is asked any more.
fn end(pool: &mut Pool, id: &EniId) {
    let is_over = pool.enis().get(id).is_none_or(|eni| !is_leaving(eni));
    if is_over && !pool.memory.is_releasing(id) {
        pool.memory.progress(id).inquiry = Inquiry::default();
    }
}

/// EC2 itself has just given what was given back before.
pub(super) fn regained(pool: &mut Pool, cidr: Ipv4Cidr, now: Tick) {
    for address in cidr.addresses() {
        if pool.memory.given_back.remove(&address).is_some() {
            pool.shorten_rest(address, now);
        }
    }
}

/// Whether EC2 has taken it back so lately that a list with it is old.
pub(super) fn is_given_back(pool: &mut Pool, cidr: Ipv4Cidr, now: Tick) -> bool {
    let lag = pool.policy().describe_lag;
    let latest = cidr
        .addresses()
        .filter_map(|address| pool.memory.given_back.get(&address))
        .max();
    let Some(until) = latest.map(|since| since.after(lag)).filter(|until| *until > now) else {
        return false;
    };
    pool.memory.look_by(until);
    true
}

/// EC2 has not taken them back, or has not said so.
pub(super) fn unassign_failed(
    pool: &mut Pool,
    id: &EniId,
    cidrs: &[Ipv4Cidr],
    failure: &CloudFailure,
    now: Tick,
    out: &mut Outbox,
) {
    obstruct(pool, id, failure, now);
    if failure.class.leaves_doubt() {
        return await_word(pool, id, now);
    }
    out.alarm(
        "not-released",
        format!("what is not needed on {id} cannot be given back: {failure}"),
    );
    // Whoever is refused for himself knows that nothing has happened; otherwise our view is behind, and nobody gets it
    // before EC2 has named it again.
    let is_there = matches!(failure.class, FailureClass::Throttled | FailureClass::Denied);
    pool.edit_eni(id, |eni| {
        for cidr in cidrs {
            if let Some(placed) = eni.cidrs.get_mut(cidr) {
                placed.releasing = false;
                placed.verified &= is_there;
            }
        }
    });
    if !is_there {
        pool.memory.describe.insert(DescribeScope::Attached);
    }
    end(pool, id);
}

/// What EC2 refuses everywhere is asked for nowhere; what it refuses here, not here.
fn obstruct(pool: &mut Pool, id: &EniId, failure: &CloudFailure, now: Tick) {
    let topic = match failure.class {
        FailureClass::Throttled | FailureClass::Denied | FailureClass::NoAnswer | FailureClass::Server => {
            Topic::Shrink
        }
        _ => Topic::Release(id.clone()),
    };
    pool.memory.obstruct(topic, AGAIN, Some(failure.clone()), now);
}

/// Only a Describe tells what became of the call: at once that it was done, after the lag that it was not.
fn await_word(pool: &mut Pool, id: &EniId, now: Tick) {
    let lag = pool.policy().describe_lag;
    let next = pool.memory.next_call;
    let inquiry = &mut pool.memory.progress(id).inquiry;
    inquiry.sent = Some(now);
    inquiry.since = Some(next);
    inquiry.listing = None;
    pool.memory.describe.insert(DescribeScope::Attached);
    pool.memory.look_by(now.after(lag));
}

// ---- whole ENIs ----

/// Detaches an ENI that is to go, once it is proven idle.
pub(super) fn drain(pool: &mut Pool, id: &EniId, now: Tick, out: &mut Outbox) {
    let Some(listing) = listing(pool, id) else { return };
    let Some(eni) = pool.enis().get(id) else { return };
    let carries: Vec<Ipv4Cidr> = eni.cidrs.keys().copied().collect();
    let asked = pool
        .memory
        .enis
        .get(id)
        .map(|progress| progress.inquiry.about.clone());
    let about = asked.unwrap_or_default();
    match Proof::idle_eni(eni.primary, &about, Some(&listing), |address| {
        local_word(pool, address, now)
    }) {
        Ok(proof) => {
            if !pool.may_ask(&Purpose::Detach(id.clone()), now) {
                return;
            }
            pool.edit_eni(id, |eni| eni.state = EniState::Detaching);
            pool.memory.progress(id).inquiry.sent = Some(now);
            unpublish(pool, id, &carries, out);
            let eni = id.clone();
            let request = CloudCall::DetachEni { eni, proof };
            out.call_behind_all(pool, Purpose::Detach(id.clone()), request, now);
        }
        Err(Unproven::Unasked) => {}
        Err(why) => contradicted(pool, id, id.as_str(), why, now, out),
    }
}

/// Waits until EC2 and the kernel both show that an ENI is detached, and has it deleted then.
pub(super) fn detach(pool: &mut Pool, id: &EniId, now: Tick, out: &mut Outbox) {
    let Some(eni) = pool.enis().get(id) else { return };
    let (primary, mark) = (eni.primary, eni.mark());
    let has_link = pool.memory.links.contains_key(&eni.mac);
    let inquiry = &pool.memory.progress(id).inquiry;
    if !inquiry.detached {
        return;
    }
    if !inquiry.unattached {
        let topic = Topic::Detached(id.clone());
        if pool.memory.is_clear(&topic, now) {
            pool.memory.obstruct(topic, DETACHED, None, now);
            pool.memory.describe.insert(DescribeScope::OursUnattached);
        }
        return;
    }
    if has_link {
        return;
    }
    out.now(Effect::UnconfigureEni {
        eni: id.clone(),
        primary,
        mark,
    });
    pool.memory.clear(&Topic::Detached(id.clone()));
    pool.memory.clear(&Topic::Shrink);
    doom(pool, id, "it is no longer needed");
    let progress = pool.memory.progress(id);
    progress.configured = false;
    progress.inquiry = Inquiry::default();
    progress.detached_at = Some(now);
    // It was given up before it was detached, so this is younger.
    progress.ec2 = Ec2Says::Unattached;
    discard(pool, id, now, out);
}

/// EC2 has taken the order to detach; it takes effect within seconds.
pub(super) fn detached(pool: &mut Pool, id: &EniId, now: Tick) {
    if is_detaching(pool, id) {
        pool.memory.progress(id).inquiry.detached = true;
        pool.memory
            .obstruct(Topic::Detached(id.clone()), DETACHED, None, now);
    }
}

fn is_detaching(pool: &Pool, id: &EniId) -> bool {
    let state = pool.enis().get(id).map(|eni| &eni.state);
    state == Some(&EniState::Detaching)
}

pub(super) fn detach_failed(
    pool: &mut Pool,
    id: &EniId,
    failure: &CloudFailure,
    now: Tick,
    out: &mut Outbox,
) {
    if !is_detaching(pool, id) {
        return;
    }
    obstruct(pool, id, failure, now);
    match failure.class {
        // It may be detached, or on its way: by this call or by somebody else's.
        FailureClass::NoAnswer | FailureClass::Server | FailureClass::Gone | FailureClass::Conflict => {
            await_word(pool, id, now);
        }
        _ => {
            out.alarm("not-released", format!("{id} cannot be detached: {failure}"));
            keep(pool, id);
        }
    }
}

/// EC2 does not list it as attached any more.
pub(super) fn unlisted(pool: &mut Pool, id: &EniId, now: Tick) {
    let is_asked = pool.memory.is_asking(&Purpose::Detach(id.clone()));
    let is_known = pool
        .memory
        .enis
        .get(id)
        .is_some_and(|progress| progress.inquiry.detached);
    if !is_asked && !is_known {
        detached(pool, id, now);
    }
}

/// EC2 lists it as attached nowhere.
pub(super) fn unattached(pool: &mut Pool, id: &EniId) {
    let inquiry = &mut pool.memory.progress(id).inquiry;
    inquiry.detached = true;
    inquiry.unattached = true;
}

/// Its link is gone: EC2 need not be given more time.
pub(super) fn link_gone(pool: &mut Pool, id: &EniId) {
    pool.memory.clear(&Topic::Detached(id.clone()));
}

// ---- witnesses ----

/// Whether it is a plain interface that either daemon has made, with our tag: another could not be found again once it is
/// detached. The tag alone does not tell, since every managed ENI gets it.
pub(super) fn can_go(pool: &Pool, cloud: &CloudEni) -> bool {
    let is_plain = matches!(cloud.interface_type.as_str(), "" | "interface");
    let instance = cloud.tags.get(tags::INSTANCE).map(String::as_str);
    let is_made_by_us = cloud.description.starts_with(tags::DESCRIPTION_PREFIX);
    is_plain && is_made_by_us && instance == Some(pool.facts().instance.as_str())
}

/// EC2 lists an ENI as attached here, by a Describe that was asked at that time.
pub(super) fn listed(
    pool: &mut Pool,
    cloud: &CloudEni,
    attachment: &AttachmentId,
    call: CallId,
    asked: Tick,
) {
    let can_go = can_go(pool, cloud);
    let lag = pool.policy().describe_lag;
    let in_flight = pool.memory.is_releasing(&cloud.id);
    let progress = pool.memory.progress(&cloud.id);
    progress.can_go = can_go;
    let inquiry = &mut progress.inquiry;
    if inquiry.since.is_none_or(|since| since > call) {
        return;
    }
    inquiry.listing = Some(Ec2Listing {
        attachment: attachment.clone(),
        cidrs: cloud.cidrs().collect(),
        public: cloud.public.iter().copied().collect(),
        can_go,
    });
    let never_happened = inquiry.sent.is_some_and(|sent| sent.after(lag) <= asked);
    if never_happened && !in_flight {
        keep(pool, &cloud.id);
    }
}

/// After a start: what was only intended stays; what may have been asked for is for EC2 to tell.
pub(super) fn resume(pool: &mut Pool, now: Tick, out: &mut Outbox) {
    let enis: Vec<Eni> = pool.enis().values().cloned().collect();
    for eni in enis {
        match eni.state {
            EniState::Draining => pool.edit_eni(&eni.id, |eni| eni.state = EniState::Ready),
            // Its rules may have been left; its place is another's by now.
            EniState::Discarding { .. } => out.now(Effect::UnconfigureEni {
                eni: eni.id.clone(),
                primary: eni.primary,
                mark: None,
            }),
            _ if is_leaving(&eni) => await_word(pool, &eni.id, now),
            _ => {}
        }
    }
    let unplaced: Vec<Ipv4Addr> = pool
        .addresses()
        .iter()
        .filter(|(address, known)| known.rests_until.is_some() && pool.placed(**address).is_none())
        .filter_map(|(address, _)| match address {
            IpAddr::V4(address) => Some(*address),
            IpAddr::V6(_) => None,
        })
        .collect();
    for address in unplaced {
        pool.memory.given_back.insert(address, now);
        let lag = pool.policy().describe_lag;
        pool.memory.look_by(now.after(lag));
    }
}
