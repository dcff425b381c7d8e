//! Whole ENIs: drained, detached, and deleted once EC2 and the kernel show that.

use super::super::cidr::Ipv4Cidr;
use super::super::cloud::{CloudCall, CloudFailure, DescribeScope, FailureClass};
use super::super::effect::Effect;
use super::super::ids::{EniId, Tick};
use super::super::lifecycle::{discard, doom};
use super::super::memory::{Inquiry, Purpose};
use super::super::model::EniState;
use super::super::obstacle::{Pace, Topic};
use super::super::outbox::Outbox;
use super::super::pool::Pool;
use super::super::witness::{Ec2Says, Proof, Unproven};
use super::{await_word, contradicted, keep, listing, local_word, obstruct, unpublish};

/// How EC2 is asked whether an ENI is detached: that takes it seconds.
const DETACHED: Pace = Pace::secs(2, 60);

/// Detaches an ENI that is to go, once it is proven idle.
pub(crate) fn drain(pool: &mut Pool, id: &EniId, now: Tick, out: &mut Outbox) {
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
pub(crate) fn detach(pool: &mut Pool, id: &EniId, now: Tick, out: &mut Outbox) {
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
pub(crate) fn detached(pool: &mut Pool, id: &EniId, now: Tick) {
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

pub(crate) fn detach_failed(
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
pub(crate) fn unlisted(pool: &mut Pool, id: &EniId, now: Tick) {
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
pub(crate) fn unattached(pool: &mut Pool, id: &EniId) {
    let inquiry = &mut pool.memory.progress(id).inquiry;
    inquiry.detached = true;
    inquiry.unattached = true;
}

/// Its link is gone: EC2 need not be given more time.
pub(crate) fn link_gone(pool: &mut Pool, id: &EniId) {
    pool.memory.clear(&Topic::Detached(id.clone()));
}
