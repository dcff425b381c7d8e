//! What EC2's lists say, merged into what we know. An omission is a doubt first.

use std::collections::{BTreeMap, BTreeSet};
use std::net::Ipv4Addr;

use super::cidr::Ipv4Cidr;
use super::cloud::{CloudAttachment, CloudEni, DescribeScope};
use super::effect::Effect;
use super::ids::{CallId, CardIndex, ClientToken, EniId, Tick};
use super::memory::{Ec2View, Seen};
use super::model::{Eni, EniKind, EniRole, EniState, Placed};
use super::obstacle::Topic;
use super::outbox::Outbox;
use super::plan::{eni_limit, places_taken};
use super::pool::Pool;
use super::roles::role_of;
use super::witness::{Doubt, Ec2Says};
use super::{release, subnets, tags};

/// EC2 itself names a secondary address or a prefix of an ENI of ours.
pub(super) fn name(pool: &mut Pool, id: &EniId, cidr: Ipv4Cidr, now: Tick) {
    for address in cidr.addresses() {
        pool.confirm_imported(id, address);
    }
    place(pool, id, cidr, true, now);
    pool.memory.unlisted.remove(&cidr);
    let gone = |doubt: &Option<Doubt>| matches!(doubt, Some(Doubt::NotInEc2 | Doubt::EniLost));
    for address in cidr.addresses() {
        let on_it = pool
            .addresses()
            .get(&address)
            .is_some_and(|known| known.eni == *id && gone(&known.doubt));
        if on_it {
            pool.doubt(address, None);
            suspect_route(pool, address);
        }
    }
}

pub(super) fn place(pool: &mut Pool, id: &EniId, cidr: Ipv4Cidr, verified: bool, now: Tick) {
    let is_new = |eni: &Eni| !eni.cidrs.contains_key(&cidr);
    if pool.enis().get(id).is_some_and(is_new) && release::is_given_back(pool, cidr, now) {
        return;
    }
    let Some(eni) = pool.enis().get(id) else { return };
    let known = eni.cidrs.get(&cidr).copied();
    let is_elsewhere = |address: Ipv4Addr| {
        let known = pool.addresses().get(&address);
        known.is_some_and(|known| known.eni != *id)
    };
    // IMDS adds knowledge; it does not move what is known elsewhere.
    if !verified && cidr.addresses().any(is_elsewhere) {
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
        for address in cidr.addresses() {
            suspect_route(pool, address);
        }
    }
}

/// The kernel routes an address nobody holds: somebody may be using it.
pub(super) fn suspect_route(pool: &mut Pool, address: Ipv4Addr) {
    let idle = |known: &super::model::Address| known.holder.is_none() && known.doubt.is_none();
    if let Some(device) = pool.memory.pod_routes.get(&address).cloned()
        && pool.addresses().get(&address).is_some_and(idle)
    {
        pool.doubt(address, Some(Doubt::PodRoute { device }));
        // Looked at again soon, however long another address has been routed.
        pool.memory.clear(&Topic::Kernel);
    }
}

fn new_eni(pool: &Pool, cloud: &CloudEni, role: EniRole, state: EniState) -> Eni {
    Eni {
        id: cloud.id.clone(),
        mac: cloud.mac,
        role,
        kind: EniKind::of(&cloud.interface_type),
        excluded: false,
        state,
        device: None,
        card: CardIndex(0),
        attachment: None,
        delete_on_termination: false,
        subnet: cloud.subnet.clone(),
        subnet_cidr: cloud
            .subnet_cidr
            .or_else(|| subnets::network_of(pool, &cloud.subnet)),
        primary: cloud.primary,
        assigning: None,
        cidrs: BTreeMap::new(),
    }
}

/// Remembers what is followed up later: groups and tags.
fn see(pool: &mut Pool, cloud: &CloudEni) {
    pool.memory.progress(&cloud.id).seen = Some(Seen {
        made_by_us: cloud.description.starts_with(tags::DESCRIPTION_PREFIX),
        groups: cloud.groups.clone(),
        tags: cloud.tags.clone(),
    });
}

/// EC2 has created an ENI for us, or lists one that is attached nowhere.
pub(super) fn adopt_created(
    pool: &mut Pool,
    token: Option<&ClientToken>,
    cloud: &CloudEni,
    now: Tick,
    out: &mut Outbox,
) {
    let wanted = token.is_some_and(|token| pool.forget_creation(token).is_some());
    if pool.enis().contains_key(&cloud.id) {
        for cidr in cloud.cidrs() {
            name(pool, &cloud.id, cidr, now);
        }
        return;
    }
    let limit = pool.limits().map_or(0, |limits| eni_limit(pool, limits.enis).0);
    let has_room = wanted || places_taken(pool) < limit;
    let state = EniState::Created;
    pool.insert_eni(new_eni(pool, cloud, EniRole::Secondary, state));
    see(pool, cloud);
    pool.memory.progress(&cloud.id).can_go = release::can_go(pool, cloud);
    for cidr in cloud.cidrs() {
        release::regained(pool, cidr, now);
        name(pool, &cloud.id, cidr, now);
    }
    if !has_room {
        out.alarm(
            "left-over",
            format!("{} is ours, attached nowhere, and finds no place", cloud.id),
        );
        super::lifecycle::doom(pool, &cloud.id, "no place is left for it");
    }
}

/// EC2's list of what is attached to this instance.
pub(super) fn attached(
    pool: &mut Pool,
    enis: &[CloudEni],
    call: CallId,
    asked: Tick,
    now: Tick,
    out: &mut Outbox,
) {
    pool.memory.ec2 = Ec2View::Answered;
    pool.memory.imds_pending = false;
    pool.memory.devices_taken.clear();
    let here = |eni: &&CloudEni| {
        eni.attachment.as_ref().is_some_and(|attachment| {
            let ours = attachment
                .instance
                .as_ref()
                .is_none_or(|id| *id == pool.facts().instance);
            ours && !attachment.status.starts_with("detach")
        })
    };
    let enis: Vec<&CloudEni> = enis.iter().filter(here).collect();
    let listed: BTreeSet<EniId> = enis.iter().map(|eni| eni.id.clone()).collect();
    let credible = listed.contains(&pool.facts().primary_eni);
    for cloud in enis {
        if cloud.id == pool.facts().primary_eni {
            pool.set_groups(cloud.groups.clone());
            pool.memory.tracking = cloud.tracking;
        }
        if let Some(attachment) = &cloud.attachment {
            if is_detached_since(pool, &cloud.id, asked) {
                continue;
            }
            take_attached(pool, cloud, attachment, now);
            release::listed(pool, cloud, &attachment.id, call, asked);
            if credible {
                doubt_unlisted(pool, cloud, asked, now, out);
            }
        }
    }
    if credible {
        let others: Vec<EniId> = pool
            .enis()
            .keys()
            .filter(|id| !listed.contains(*id))
            .cloned()
            .collect();
        for id in others {
            doubt_eni(pool, &id, asked, now, out);
        }
    } else {
        out.alarm(
            "incredible-describe",
            format!(
                "EC2's list of {} attached ENIs lacks the primary one; what it omits is not believed",
                listed.len()
            ),
        );
    }
    let lag = pool.policy().describe_lag;
    pool.memory.fresh.retain(|_, since| since.after(lag) > asked);
    pool.memory.given_back.retain(|_, since| since.after(lag) > now);
    let settles = |doubt: Option<CallId>| doubt.is_some_and(|since| since <= call);
    if pool.memory.enis.values().any(|progress| settles(progress.doubt)) {
        pool.memory.look_by(now.after(lag));
    }
    resolve(pool, DescribeScope::Attached, call);
}

/// An answer has come, or will not: what waited for it goes on.
pub(super) fn resolve(pool: &mut Pool, scope: DescribeScope, call: CallId) {
    match scope {
        DescribeScope::Attached => {
            let ids: Vec<EniId> = pool.enis().keys().cloned().collect();
            for id in ids {
                let progress = pool.memory.progress(&id);
                if progress.doubt.is_some_and(|since| since <= call) {
                    progress.doubt = None;
                    if !pool.memory.is_assigning(&id) {
                        pool.edit_eni(&id, |eni| eni.assigning = None);
                    }
                }
            }
        }
        DescribeScope::OursUnattached => {
            pool.memory.creations_in_doubt.retain(|_, since| *since > call);
        }
    }
}

/// Whether we detached it so lately that a list with it is old.
fn is_detached_since(pool: &Pool, id: &EniId, asked: Tick) -> bool {
    let detached_at = pool.memory.enis.get(id).and_then(|progress| progress.detached_at);
    let lag = pool.policy().describe_lag;
    detached_at.is_some_and(|since| since.after(lag) > asked)
}

fn take_attached(pool: &mut Pool, cloud: &CloudEni, attachment: &CloudAttachment, now: Tick) {
    let role = role_of(pool, cloud, attachment.card);
    let ready = role == EniRole::Primary;
    if !pool.enis().contains_key(&cloud.id) {
        let state = if ready {
            EniState::Ready
        } else {
            EniState::Attached
        };
        pool.insert_eni(new_eni(pool, cloud, role, state));
        pool.memory.progress(&cloud.id).born = Some(now);
    }
    pool.edit_eni(&cloud.id, |eni| {
        eni.role = role;
        eni.kind = EniKind::of(&cloud.interface_type);
        eni.device = Some(attachment.device);
        eni.card = attachment.card;
        eni.attachment = Some(attachment.id.clone());
        eni.delete_on_termination = attachment.delete_on_termination;
        eni.mac = cloud.mac;
        eni.primary = cloud.primary;
        eni.subnet = cloud.subnet.clone();
        eni.subnet_cidr = cloud.subnet_cidr.or(eni.subnet_cidr);
        let is_leaving = matches!(eni.state, EniState::Draining | EniState::Detaching);
        if eni.state != EniState::Ready && !is_leaving {
            eni.state = EniState::Attached;
        }
    });
    pool.memory.progress(&cloud.id).unlisted_since = None;
    see(pool, cloud);
    yield_device(pool, cloud, attachment);
    if role == EniRole::Unmanaged {
        release::keep(pool, &cloud.id);
        let carried: Vec<Ipv4Cidr> = pool
            .enis()
            .get(&cloud.id)
            .map(|eni| eni.cidrs.keys().copied().collect())
            .unwrap_or_default();
        for cidr in carried {
            pool.displace(&cloud.id, cidr);
        }
        return;
    }
    for cidr in cloud.cidrs() {
        name(pool, &cloud.id, cidr, now);
    }
}

/// EC2 says who has a device index: whoever else we thought has it, or is to get it, has not.
fn yield_device(pool: &mut Pool, cloud: &CloudEni, attachment: &CloudAttachment) {
    let others: Vec<EniId> = pool
        .enis()
        .values()
        .filter(|eni| {
            eni.id != cloud.id && eni.card == attachment.card && eni.device == Some(attachment.device)
        })
        .map(|eni| eni.id.clone())
        .collect();
    for id in others {
        pool.memory.progress(&id).configured = false;
        pool.memory.progress(&id).configuring = false;
        pool.edit_eni(&id, |eni| eni.device = None);
    }
}

/// What EC2 does not list on an ENI that it does list.
fn doubt_unlisted(pool: &mut Pool, cloud: &CloudEni, asked: Tick, now: Tick, out: &mut Outbox) {
    let Some(eni) = pool.enis().get(&cloud.id) else {
        return;
    };
    let listed: BTreeSet<Ipv4Cidr> = cloud.cidrs().collect();
    let missing: Vec<(Ipv4Cidr, bool)> = eni
        .cidrs
        .iter()
        .filter(|(cidr, _)| !listed.contains(*cidr))
        .map(|(cidr, placed)| (*cidr, placed.verified))
        .collect();
    for (cidr, verified) in missing {
        if is_releasing(pool, &cloud.id, cidr) {
            release::gone(pool, &cloud.id, cidr, now);
            continue;
        }
        let lag = pool.policy().describe_lag;
        let fresh = pool.memory.fresh.get(&cidr);
        if verified && fresh.is_some_and(|since| since.after(lag) > asked) {
            continue;
        }
        for address in cidr.addresses() {
            suspect(pool, address, Doubt::NotInEc2, out);
        }
        let since = *pool.memory.unlisted.entry(cidr).or_insert(now);
        let is_routed = |address: Ipv4Addr| pool.memory.pod_routes.contains_key(&address);
        // Not only lag: EC2 has been without it for long, and no pod is wired to it.
        if now.since(since) >= lag && !cidr.addresses().any(is_routed) {
            pool.displace(&cloud.id, cidr);
            pool.memory.unlisted.remove(&cidr);
            out.now(Effect::Unpublish {
                eni: cloud.id.clone(),
                addresses: cidr.addresses().collect(),
            });
        }
    }
}

fn is_releasing(pool: &Pool, id: &EniId, cidr: Ipv4Cidr) -> bool {
    let placed = pool.enis().get(id).and_then(|eni| eni.cidrs.get(&cidr));
    placed.is_some_and(|placed| placed.releasing)
}

/// Sets a doubt where there is none yet, and raises the alarm when a sandbox is concerned.
fn suspect(pool: &mut Pool, address: Ipv4Addr, why: Doubt, out: &mut Outbox) {
    let Some(known) = pool.addresses().get(&address) else {
        return;
    };
    if known.doubt.is_some() {
        return;
    }
    let holder = known
        .holder
        .as_ref()
        .map(|key| format!(", held by sandbox {key}"))
        .unwrap_or_default();
    out.alarm(
        "quarantined",
        format!("{address} on {}{holder}: {why}", known.eni),
    );
    pool.doubt(address, Some(why));
}

/// An ENI EC2 does not list as attached to us.
fn doubt_eni(pool: &mut Pool, id: &EniId, asked: Tick, now: Tick, out: &mut Outbox) {
    let state = pool.enis().get(id).map(|eni| eni.state.clone());
    match state {
        Some(EniState::Detaching) => return release::unlisted(pool, id, now),
        Some(EniState::Draining) => release::keep(pool, id),
        _ => {}
    }
    let Some(eni) = pool.enis().get(id) else { return };
    match (eni.role, &eni.state) {
        (EniRole::Unmanaged, _) => return pool.forget_eni(id),
        (EniRole::Secondary, EniState::Attached | EniState::Ready) => {}
        _ => return,
    }
    let lag = pool.policy().describe_lag;
    let has_link = pool.memory.links.contains_key(&eni.mac);
    let (primary, device) = (eni.primary, eni.device);
    let addresses: Vec<Ipv4Addr> = eni.addresses().map(|(address, _)| address).collect();
    let progress = pool.memory.progress(id);
    if progress.attached_at.is_some_and(|since| since.after(lag) > asked) {
        return;
    }
    let first = progress.unlisted_since.is_none();
    progress.unlisted_since.get_or_insert(now);
    if has_link {
        if first {
            out.alarm(
                "eni-unlisted",
                format!("EC2 does not list {id} as attached, but its link is there"),
            );
        }
        for address in addresses {
            suspect(pool, address, Doubt::NotInEc2, out);
        }
        return;
    }
    progress.configured = false;
    progress.publishing.clear();
    out.alarm("eni-lost", format!("{id} is gone, by EC2 and by the kernel"));
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
        device,
    });
}

/// EC2's list of what carries our tag and is attached nowhere.
pub(super) fn unattached(pool: &mut Pool, enis: &[CloudEni], call: CallId, now: Tick, out: &mut Outbox) {
    let mut listed = BTreeSet::new();
    for cloud in enis.iter().filter(|eni| eni.attachment.is_none()) {
        listed.insert(cloud.id.clone());
        match pool.enis().get(&cloud.id).map(|eni| eni.state.clone()) {
            Some(EniState::Discarding { .. }) => {
                let progress = pool.memory.progress(&cloud.id);
                if progress.doomed.is_none_or(|since| since <= call) {
                    progress.ec2 = Ec2Says::Unattached;
                    progress.unlisted_since = None;
                }
            }
            Some(EniState::Detaching) => release::unattached(pool, &cloud.id),
            Some(EniState::Attached | EniState::Ready | EniState::Draining) => {
                pool.memory.describe.insert(DescribeScope::Attached);
            }
            Some(EniState::Created | EniState::Attaching | EniState::Lost) => {}
            None => {
                let token = cloud
                    .tags
                    .get(tags::TOKEN)
                    .map(|token| ClientToken(token.clone()));
                let known = token
                    .as_ref()
                    .is_some_and(|token| pool.creations().contains_key(token));
                let ours = cloud.description.starts_with(tags::DESCRIPTION_PREFIX)
                    && role_of(pool, cloud, CardIndex(0)) == EniRole::Secondary;
                if known || ours {
                    let soon = now.after(pool.policy().describe_lag);
                    pool.memory.look_by(soon);
                    adopt_created(pool, token.as_ref(), cloud, now, out);
                }
            }
        }
    }
    forget_deleted(pool, &listed, call, now);
    if pool
        .memory
        .creations_in_doubt
        .values()
        .any(|since| *since <= call)
    {
        let soon = now.after(pool.policy().describe_lag);
        pool.memory.look_by(soon);
    }
    resolve(pool, DescribeScope::OursUnattached, call);
}

/// An ENI to be discarded that EC2 does not list: a Delete whose answer was lost did its work.
fn forget_deleted(pool: &mut Pool, listed: &BTreeSet<EniId>, call: CallId, now: Tick) {
    let doomed: Vec<EniId> = pool
        .enis()
        .values()
        .filter(|eni| matches!(eni.state, EniState::Discarding { .. }) && !listed.contains(&eni.id))
        .map(|eni| eni.id.clone())
        .collect();
    let patience = pool.policy().describe_lag.saturating_mul(10);
    for id in doomed {
        let progress = pool.memory.progress(&id);
        if progress.doomed.is_some_and(|since| since > call) {
            continue;
        }
        progress.ec2 = Ec2Says::Missing;
        let since = *progress.unlisted_since.get_or_insert(now);
        if progress.delete_sent || now.since(since) >= patience {
            pool.forget_eni(&id);
        }
    }
}
