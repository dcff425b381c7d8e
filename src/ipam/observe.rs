//! What EC2's lists say, merged into what we know. An omission is a doubt first.

use std::collections::{BTreeMap, BTreeSet};

use super::cidr::Ipv4Cidr;
use super::cloud::{Amount, CloudAttachment, CloudEni, DescribeScope};
use super::ids::{CallId, CardIndex, ClientToken, EniId, Tick};
use super::memory::{Ec2View, Seen};
use super::model::{Eni, EniKind, EniRole, EniState};
use super::outbox::Outbox;
use super::plan::{eni_limit, places_taken};
use super::pool::Pool;
use super::roles::role_of;
use super::verdict::{Act, Ec2EniWord, EniWord};
use super::witness::Ec2Says;
use super::{local, reconcile, release, six, subnets, tags};

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
        given_mark: None,
        attachment: None,
        delete_on_termination: false,
        subnet: cloud.subnet.clone(),
        subnet_cidr: cloud
            .subnet_cidr
            .or_else(|| subnets::network_of(pool, &cloud.subnet)),
        primary: cloud.primary,
        assigning: None,
        cidrs: BTreeMap::new(),
        block: None,
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
    let wanted = token.and_then(|token| pool.forget_creation(token));
    if pool.enis().contains_key(&cloud.id) {
        for cidr in cloud.cidrs() {
            reconcile::listed(pool, &cloud.id, cidr, now, out);
        }
        six::named(pool, &cloud.id, &cloud.prefixes6, now, out);
        return;
    }
    let card = match wanted {
        Some(creation) => Some(creation.card),
        None => card_with_room(pool),
    };
    let mut eni = new_eni(pool, cloud, EniRole::Secondary, EniState::Created);
    eni.card = card.unwrap_or_default();
    pool.insert_eni(eni);
    see(pool, cloud);
    pool.memory.progress(&cloud.id).can_go = release::can_go(pool, cloud);
    for cidr in cloud.cidrs() {
        release::regained(pool, cidr, now);
        reconcile::listed(pool, &cloud.id, cidr, now, out);
    }
    six::named(pool, &cloud.id, &cloud.prefixes6, now, out);
    if card.is_none() {
        out.alarm(
            "left-over",
            format!("{} is ours, attached nowhere, and finds no place", cloud.id),
        );
        super::lifecycle::doom(pool, &cloud.id, "no place is left for it");
    }
}

/// The first managed card that can carry one more ENI.
fn card_with_room(pool: &Pool) -> Option<CardIndex> {
    let limits = pool.limits()?;
    let has_room = |card: &CardIndex| places_taken(pool, *card) < eni_limit(pool, limits.enis_on(*card)).0;
    pool.managed_cards().into_iter().find(has_room)
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
    pool.memory.heard.ec2 = Some(now);
    for cloud in &enis {
        if cloud.id == pool.facts().primary_eni {
            pool.set_groups(cloud.groups.clone());
            pool.memory.tracking = cloud.tracking;
        }
        if let Some(attachment) = &cloud.attachment {
            if is_detached_since(pool, &cloud.id, asked) {
                continue;
            }
            take_attached(pool, cloud, attachment, now, out);
            release::listed(pool, cloud, &attachment.id, call, asked);
        }
    }
    // What has only moved is not missing: everything that is listed has been heard by now.
    if credible {
        for cloud in &enis {
            if !is_detached_since(pool, &cloud.id, asked) {
                omitted_cidrs(pool, cloud, asked, now, out);
                six::listed(pool, &cloud.id, &cloud.prefixes6, asked, now, out);
            }
        }
        let others: Vec<EniId> = pool
            .enis()
            .keys()
            .filter(|id| !listed.contains(*id))
            .cloned()
            .collect();
        for id in others {
            reconcile::omitted_eni(pool, &id, asked, now, out);
        }
        six::settle_doubts(pool, asked, now);
        reconcile::stray_routes(pool, now, out);
        local::compare_again(pool, now, out);
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
                        // A /80 is not asked for again before no list can be too old to show it.
                        pool.edit_eni(&id, |eni| {
                            eni.assigning = eni.assigning.filter(|amount| *amount == Amount::Block);
                        });
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

/// What EC2 does not list on an ENI that it does list.
fn omitted_cidrs(pool: &mut Pool, cloud: &CloudEni, asked: Tick, now: Tick, out: &mut Outbox) {
    let listed: BTreeSet<Ipv4Cidr> = cloud.cidrs().collect();
    let missing = |eni: &Eni| -> Vec<Ipv4Cidr> {
        let carried = eni.cidrs.keys().copied();
        carried.filter(|cidr| !listed.contains(cidr)).collect()
    };
    for cidr in pool.enis().get(&cloud.id).map(missing).unwrap_or_default() {
        reconcile::omitted(pool, &cloud.id, cidr, asked, now, out);
    }
}

fn take_attached(
    pool: &mut Pool,
    cloud: &CloudEni,
    attachment: &CloudAttachment,
    now: Tick,
    out: &mut Outbox,
) {
    let role = role_of(pool, cloud, attachment.card);
    if role != EniRole::Primary {
        pool.memory.progress(&cloud.id).unlisted_since = None;
        let (_, verdict) = reconcile::judge_eni(pool, &cloud.id, Ec2EniWord::Attached, now, out);
        if !matches!(verdict.act, Act::Adopt | Act::Keep) {
            return;
        }
    }
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
        reconcile::listed(pool, &cloud.id, cidr, now, out);
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

/// EC2's list of what carries our tag and is attached nowhere.
pub(super) fn unattached(pool: &mut Pool, enis: &[CloudEni], call: CallId, now: Tick, out: &mut Outbox) {
    let mut listed = BTreeSet::new();
    for cloud in enis.iter().filter(|eni| eni.attachment.is_none()) {
        listed.insert(cloud.id.clone());
        unattached_eni(pool, cloud, call, now, out);
    }
    forget_deleted(pool, &listed, call, now, out);
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

/// An ENI that is attached nowhere.
fn unattached_eni(pool: &mut Pool, cloud: &CloudEni, call: CallId, now: Tick, out: &mut Outbox) {
    let id = &cloud.id;
    let token = cloud.tags.get(tags::TOKEN);
    let token = token.map(|token| ClientToken(token.clone()));
    if !pool.enis().contains_key(id) {
        let known = token
            .as_ref()
            .is_some_and(|token| pool.creations().contains_key(token));
        let ours = cloud.description.starts_with(tags::DESCRIPTION_PREFIX)
            && role_of(pool, cloud, CardIndex(0)) == EniRole::Secondary;
        // Its record was lost, and somebody detached it under its sandboxes: as one that is known, it waits until they are
        // gone.
        let carries = || pool.allocations().values().any(|held| held.eni == *id);
        if !known && (!ours || carries()) {
            return;
        }
    }
    if pool
        .enis()
        .get(id)
        .is_some_and(|eni| eni.state == EniState::Detaching)
    {
        return release::unattached(pool, id);
    }
    let (words, verdict) = reconcile::judge_eni(pool, id, Ec2EniWord::Unattached, now, out);
    match verdict.act {
        Act::AskEc2 if pool.enis().get(id).is_some_and(|eni| eni.state != EniState::Lost) => {
            pool.memory.describe.insert(DescribeScope::Attached);
        }
        Act::Adopt => {
            let soon = now.after(pool.policy().describe_lag);
            pool.memory.look_by(soon);
            adopt_created(pool, token.as_ref(), cloud, now, out);
        }
        // What is released is asked for with a proof, for which EC2's word counts only if it is young enough.
        _ if words.store == EniWord::GivenUp => {
            let progress = pool.memory.progress(id);
            if progress.doomed.is_none_or(|since| since <= call) {
                progress.ec2 = if cloud.public.is_empty() {
                    Ec2Says::Unattached
                } else {
                    Ec2Says::Public
                };
                progress.unlisted_since = None;
            }
        }
        _ => {}
    }
}

/// An ENI to be discarded that EC2 does not list: a Delete whose answer was lost did its work.
fn forget_deleted(pool: &mut Pool, listed: &BTreeSet<EniId>, call: CallId, now: Tick, out: &mut Outbox) {
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
        let word = if progress.delete_sent || now.since(since) >= patience {
            Ec2EniWord::Insists
        } else {
            Ec2EniWord::Omits
        };
        let (_, verdict) = reconcile::judge_eni(pool, &id, word, now, out);
        if verdict.act == Act::Forget {
            pool.forget_eni(&id);
        }
    }
}
