//! Gives back what is surplus: intent, two witnesses, proof, call, and EC2's word that it is gone.
//!
//! From the intent on nobody gets what is to go. Until the call is sent it is taken back as soon as somebody wants it or
//! a witness contradicts; from then on only EC2 can tell what became of it.

use std::collections::BTreeSet;
use std::net::{IpAddr, Ipv4Addr};
use std::time::Duration;

use super::cidr::Ipv4Cidr;
use super::cloud::{CloudEni, CloudFailure, DescribeScope, FailureClass};
use super::effect::Effect;
use super::ids::{AttachmentId, CallId, EniId, Tick};
use super::lifecycle::{describe, read_kernel};
use super::memory::{Ec2View, Inquiry};
use super::model::{Eni, EniRole, EniState};
use super::obstacle::{Pace, Topic};
use super::outbox::Outbox;
use super::plan::{Plan, plan};
use super::pool::Pool;
use super::surplus::{Return, surplus};
use super::witness::{Ec2Listing, LocalWord, Unproven};
use super::{tags, verify};

mod cidrs;
mod enis;

pub(super) use cidrs::{gone, is_given_back, regained, unassign, unassign_failed, unassigned};
pub(super) use enis::{detach, detach_failed, detached, drain, link_gone, unattached, unlisted};

/// At most one step in this time, as in the Go daemon (reference ipamd 3.4).
pub(super) const STEP: Duration = Duration::from_secs(30);
/// How an ENI that a witness speaks for, or that EC2 does not take back, is tried again.
const AGAIN: Pace = Pace::secs(60, 3600);

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
    let progress = pool.memory.progress(id);
    progress.contradicted = None;
    progress.inquiry = Inquiry {
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
    pool.memory.progress(id).contradicted = Some(why);
    pool.memory.obstruct(Topic::Release(id.clone()), AGAIN, None, now);
    out.alarm("not-released", format!("{what} was to be given back, but {why}"));
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
