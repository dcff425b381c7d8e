//! Addresses and prefixes of ENIs that stay.

use super::super::cidr::Ipv4Cidr;
use super::super::cloud::{CloudCall, CloudFailure, DescribeScope, FailureClass};
use super::super::ids::{EniId, Tick};
use super::super::memory::{Inquiry, Purpose};
use super::super::model::EniRole;
use super::super::obstacle::Topic;
use super::super::outbox::Outbox;
use super::super::pool::Pool;
use super::super::witness::{Proof, Unproven};
use super::{await_word, contradicted, going, is_leaving, listing, local_word, obstruct, unpublish};

/// Gives the marked addresses and prefixes of an ENI back, once they are proven unused.
pub(crate) fn unassign(pool: &mut Pool, id: &EniId, now: Tick, out: &mut Outbox) {
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

/// EC2 has taken them back.
pub(crate) fn unassigned(pool: &mut Pool, id: &EniId, cidrs: &[Ipv4Cidr], now: Tick) {
    for cidr in cidrs {
        gone(pool, id, *cidr, now);
    }
    pool.memory.clear(&Topic::Shrink);
    pool.memory.clear(&Topic::Release(id.clone()));
    end(pool, id);
}

/// EC2 no longer has it on this ENI: what EC2 or IMDS list of it for a while is old.
pub(crate) fn gone(pool: &mut Pool, id: &EniId, cidr: Ipv4Cidr, now: Tick) {
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
pub(crate) fn regained(pool: &mut Pool, cidr: Ipv4Cidr, now: Tick) {
    for address in cidr.addresses() {
        if pool.memory.given_back.remove(&address).is_some() {
            pool.shorten_rest(address, now);
        }
    }
}

/// Whether EC2 has taken it back so lately that a list with it is old.
pub(crate) fn is_given_back(pool: &mut Pool, cidr: Ipv4Cidr, now: Tick) -> bool {
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
pub(crate) fn unassign_failed(
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
