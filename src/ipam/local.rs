//! What the kernel and IMDS say, merged into what we know. IMDS only adds; neither frees anything.

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr};

use super::cidr::Ipv4Cidr;
use super::cloud::DescribeScope;
use super::ids::{DeviceIndex, EniId, Mac, Tick};
use super::memory::Ec2View;
use super::model::{Eni, EniKind, EniRole, EniState};
use super::node::NodeFacts;
use super::outbox::Outbox;
use super::pool::Pool;
use super::release;
use super::verdict::{self, Act, Ec2EniWord, Ec2Word, EniWords, ImdsWord};
use super::witness::{Doubt, ImdsEni, ImdsSnapshot, KernelFacts};
use super::{evidence, reconcile, six};

/// Everything the kernel has.
pub(super) fn kernel(pool: &mut Pool, facts: KernelFacts, now: Tick, out: &mut Outbox) {
    pool.memory.heard.kernel = Some(now);
    let before = std::mem::take(&mut pool.memory.links);
    for link in facts.links {
        pool.memory.links.insert(link.mac, link);
    }
    // What was reported while the kernel was being read is younger than what was read.
    pool.memory.kernel_read = None;
    let news = std::mem::take(&mut pool.memory.link_news);
    for mac in news {
        match before.get(&mac) {
            Some(link) => pool.memory.links.insert(mac, link.clone()),
            None => pool.memory.links.remove(&mac),
        };
    }
    for mac in before.into_keys() {
        if !pool.memory.links.contains_key(&mac) {
            link_gone(pool, mac);
        }
    }
    let routes = facts.pod_routes.into_iter();
    let routes = routes.map(|route| (route.address, route.device)).collect();
    let routed_before = std::mem::replace(&mut pool.memory.pod_routes, routes);
    // The store says that nobody holds it, the kernel by an earlier reading and this one that nobody is reached there:
    // a DEL that knew only the sandbox left it. While the doubt stands, nobody gets the address.
    let is_orphan = |address: &IpAddr| {
        pool.known(*address).is_some_and(|known| {
            known.holder.is_none()
                && matches!(&known.doubt, Some(Doubt::PodRoute { device }) if device.is_empty())
        })
    };
    pool.memory.orphaned_rules = facts.bare_rules.into_iter().filter(is_orphan).collect();
    for address in reconcile::disputed(pool, now) {
        // A checkpoint's word that nobody confirms ends with the last that the kernel shows of it.
        let was_imported = pool.known(address).is_some_and(|known| {
            known.holder.is_none() && matches!(known.doubt, Some(Doubt::Imported { .. }))
        });
        if was_imported && !pool.memory.is_routed(address) {
            pool.doubt(address, None);
            pool.rest(address, now);
        }
        // EC2's doubt has taken the place of the kernel's; whoever was routed was there until now all the same.
        let was_there = pool.known(address).is_some_and(|known| {
            known.holder.is_none() && matches!(known.doubt, Some(Doubt::NotInEc2 | Doubt::EniLost))
        });
        if was_there && routed_before.contains_key(&address) && !pool.memory.is_routed(address) {
            pool.rest(address, now);
        }
        reconcile::judge_standing(pool, address, now, out);
    }
    six::note_routes(pool, now, out);
    reconcile::stray_routes(pool, now, out);
}

/// A link has come or gone; a reading of the kernel that is under way need not know.
pub(super) fn note_news(pool: &mut Pool, mac: Mac) {
    if pool.memory.kernel_read.is_some() {
        pool.memory.link_news.insert(mac);
    }
}

/// An ENI's link is gone: pods there cannot be reached, and EC2 is asked why. Nothing is freed.
pub(super) fn link_gone(pool: &mut Pool, mac: Mac) {
    pool.memory.links.remove(&mac);
    note_news(pool, mac);
    let Some(id) = pool.eni_by_mac(mac).map(|eni| eni.id.clone()) else {
        return;
    };
    let progress = pool.memory.progress(&id);
    progress.configured = false;
    progress.configuring = false;
    progress.publishing.clear();
    // It was here: when EC2 does not list it now, that is no lag behind its attaching.
    progress.attached_at = None;
    if pool
        .enis()
        .get(&id)
        .is_some_and(|eni| eni.state == EniState::Detaching)
    {
        release::link_gone(pool, &id);
    } else {
        pool.memory.describe.insert(DescribeScope::Attached);
    }
    pool.edit_eni(&id, |eni| {
        if eni.role == EniRole::Secondary {
            for placed in eni.cidrs.values_mut() {
                placed.published = false;
            }
        }
    });
}

/// What IMDS says of the node now, where something older was stored. What cannot change on an instance that runs is not
/// looked at; of the groups EC2 itself knows better.
pub(super) fn facts(pool: &mut Pool, seen: NodeFacts, out: &mut Outbox) {
    if seen.instance != pool.facts().instance || seen.primary_eni != pool.facts().primary_eni {
        let (instance, eni) = (&seen.instance, &seen.primary_eni);
        let why = format!(
            "IMDS now speaks of {instance} and its primary ENI {eni}; not believed while the daemon runs"
        );
        return out.alarm("other-instance", why);
    }
    pool.set_instance_type(seen.instance_type);
    if pool.memory.ec2 != Ec2View::Answered {
        pool.set_groups(seen.security_groups);
    }
}

/// Everything IMDS lists, kept until EC2 has spoken or cannot.
pub(super) fn imds(pool: &mut Pool, snapshot: ImdsSnapshot, now: Tick, out: &mut Outbox) {
    for seen in &snapshot.enis {
        pool.edit_eni(&seen.id, |eni| {
            eni.subnet_cidr = eni.subnet_cidr.or(seen.subnet_cidr);
        });
    }
    six::overheard(pool, &snapshot, false, now, out);
    let seen_now = snapshot.enis.clone();
    let before = pool.memory.imds.replace(snapshot);
    pool.memory.heard.imds = Some(now);
    pool.memory.imds_pending = pool.memory.ec2 != Ec2View::Answered;
    if pool.memory.ec2 == Ec2View::Answered {
        for seen in &seen_now {
            compare(pool, seen, before.as_ref(), now, out);
        }
    }
    let secondary = |eni: &&Eni| eni.role != EniRole::Primary;
    let ids: Vec<EniId> = pool
        .enis()
        .values()
        .filter(secondary)
        .map(|eni| eni.id.clone())
        .collect();
    for id in &ids {
        let ec2 = evidence::standing_of_eni(pool, id);
        reconcile::judge_eni(pool, id, ec2, now, out);
    }
    for address in reconcile::disputed(pool, now) {
        reconcile::judge_standing(pool, address, now, out);
    }
    six::of_blocks(pool, now, out);
}

/// EC2 has been asked since the last sweep: what IMDS lists and EC2 does not is a contradiction now.
pub(super) fn compare_again(pool: &mut Pool, now: Tick, out: &mut Outbox) {
    let last = evidence::sweep(pool, now).map(|(snapshot, _)| snapshot.clone());
    for seen in last.iter().flat_map(|snapshot| &snapshot.enis) {
        let before = last.as_ref();
        compare(pool, seen, before, now, out);
    }
}

/// What IMDS lists and nobody knows: EC2 is asked about it once, when it is new.
fn compare(pool: &mut Pool, seen: &ImdsEni, before: Option<&ImdsSnapshot>, now: Tick, out: &mut Outbox) {
    let last = before
        .into_iter()
        .flat_map(|before| &before.enis)
        .find(|eni| eni.id == seen.id);
    let Some(eni) = pool.enis().get(&seen.id) else {
        let word = if last.is_none() {
            Ec2EniWord::Unasked
        } else {
            Ec2EniWord::Omits
        };
        let (_, verdict) = reconcile::judge_eni(pool, &seen.id, word, now, out);
        if verdict.act == Act::AskEc2 {
            reconcile::ask_ec2(pool);
        }
        return;
    };
    if eni.role == EniRole::Unmanaged {
        return;
    }
    // What is known, on another ENI or on none any more, is compared by what is known of it.
    let is_known = |address: Ipv4Addr| pool.knows(address);
    let is_gone = |address: Ipv4Addr| pool.memory.given_back.contains_key(&address);
    let is_news = |cidr: &Ipv4Cidr| {
        let mut addresses = cidr.addresses();
        !eni.cidrs.contains_key(cidr) && !addresses.any(|address| is_known(address) || is_gone(address))
    };
    let unknown: Vec<Ipv4Cidr> = seen.cidrs().filter(is_news).collect();
    for cidr in unknown {
        let is_new = !last.is_some_and(|last| last.cidrs().any(|listed| listed == cidr));
        let word = if is_new { Ec2Word::Unasked } else { Ec2Word::Omits };
        reconcile::judge(pool, &seen.id, cidr, word, now, out);
    }
}

/// Takes up what IMDS lists, when EC2 could not be asked.
pub(super) fn absorb_imds(pool: &mut Pool, now: Tick, out: &mut Outbox) {
    if !pool.memory.imds_pending || !pool.trusts_imds(now) {
        return;
    }
    let Some(snapshot) = pool.memory.imds.clone() else {
        return;
    };
    for seen in &snapshot.enis {
        if !pool.enis().contains_key(&seen.id) && pool.may_manage(seen.card) {
            let words = EniWords {
                imds: ImdsWord::Lists,
                ..evidence::of_eni(pool, &seen.id, Ec2EniWord::Unreachable, now)
            };
            if verdict::eni(words).act == Act::AdoptUnverified {
                insert_unverified(pool, seen);
            }
        }
        let managed = |eni: &Eni| eni.role != EniRole::Unmanaged;
        if pool.enis().get(&seen.id).is_some_and(managed) {
            for cidr in seen.cidrs() {
                reconcile::overheard(pool, &seen.id, cidr, now, out);
            }
        }
    }
    six::overheard(pool, &snapshot, true, now, out);
    pool.memory.imds_pending = false;
}

fn insert_unverified(pool: &mut Pool, seen: &ImdsEni) {
    let Some(primary) = seen.addresses.first() else {
        return;
    };
    // Device 0 of card 0 is the primary ENI, which is known from the start.
    if seen.device == DeviceIndex(0) && seen.card.is_first() {
        return;
    }
    pool.insert_eni(Eni {
        id: seen.id.clone(),
        mac: seen.mac,
        role: EniRole::Secondary,
        kind: EniKind::Interface,
        excluded: false,
        state: EniState::Attached,
        device: Some(seen.device),
        card: seen.card,
        given_mark: None,
        attachment: None,
        delete_on_termination: false,
        subnet: seen.subnet.clone(),
        subnet_cidr: seen.subnet_cidr,
        primary: *primary,
        assigning: None,
        cidrs: BTreeMap::new(),
        block: None,
    });
}
