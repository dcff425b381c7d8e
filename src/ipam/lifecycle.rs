//! Carries every creation and every ENI one step further, whenever it can: create, attach, delete on termination,
//! link, configure, publish; or describe, prove, delete. Level-triggered: it looks at what is, not at what happened,
//! so a restart continues where a kill interrupted.

use super::cloud::{CloudCall, DescribeScope};
use super::effect::Effect;
use super::growth::common_tags;
use super::ids::{EniId, Tick};
use super::leaks;
use super::memory::Purpose;
use super::model::{Eni, EniRole, EniState};
use super::obstacle::{Jitter, Pace, Topic};
use super::outbox::Outbox;
use super::pool::Pool;
use super::release;
use super::witness::{Doubt, Ec2Says, LocalEvidence, Proof, Unproven};
use super::{subnets, upkeep};

/// How a deletion without proof is looked at again: EC2 is not asked for nothing.
const RECHECK: Pace = Pace::secs(30, 600);
const HUMAN: Pace = Pace::secs(60, 3600);
/// How doubts that stand are looked at again. Most are lag, and over within seconds; the others nobody waits for.
const DOUBTS: Pace = Pace::secs(2, 600);

/// A pod that is just being taken away is gone by then.
const FIRST_KERNEL_RECHECK: std::time::Duration = std::time::Duration::from_millis(50);

/// How much of the reason for giving an ENI up is kept, in characters.
pub(super) const LONGEST_REASON: usize = 200;

pub(super) fn advance(pool: &mut Pool, now: Tick, out: &mut Outbox) {
    if !pool.policy().ask_ec2 {
        return advance_without_ec2(pool, now, out);
    }
    if pool.limits().is_none()
        && pool.memory.is_clear(&Topic::Limits, now)
        && pool.may_ask(&Purpose::Limits, now)
    {
        let instance_type = pool.facts().instance_type.clone();
        out.call(
            pool,
            Purpose::Limits,
            CloudCall::DescribeInstanceType { instance_type },
            now,
        );
    }
    pool.separate_marks();
    create(pool, now, out);
    let ids: Vec<EniId> = pool.enis().keys().cloned().collect();
    for id in ids {
        let Some(eni) = pool.enis().get(&id) else { continue };
        match (eni.role, eni.state.clone()) {
            // A lost one is kept until EC2 insists, and as long as sandboxes are on it.
            (EniRole::Unmanaged, _) | (EniRole::Secondary, EniState::Lost) => {}
            (EniRole::Primary, _) => {
                upkeep::keep(pool, &id, now, out);
                release::unassign(pool, &id, now, out);
            }
            (_, EniState::Created) => attach(pool, &id, now, out),
            (_, EniState::Attaching) => reattach(pool, &id, now, out),
            (_, EniState::Attached | EniState::Ready) => {
                terminate_with_instance(pool, &id, now, out);
                configure(pool, &id, now, out);
                publish(pool, &id, now, out);
                upkeep::keep(pool, &id, now, out);
                release::unassign(pool, &id, now, out);
            }
            (_, EniState::Draining) => release::drain(pool, &id, now, out),
            (_, EniState::Detaching) => release::detach(pool, &id, now, out),
            (_, EniState::Discarding { .. }) => discard(pool, &id, now, out),
        }
    }
    recheck(pool, now, out);
    describe(pool, now, out);
    leaks::advance(pool, now, out);
}

/// Where EC2 is asked nothing, what stands is kept standing, and IMDS is asked for what others have added. What was
/// begun at EC2 stays an intent until it may be asked again.
fn advance_without_ec2(pool: &mut Pool, now: Tick, out: &mut Outbox) {
    pool.separate_marks();
    let standing = |eni: &&Eni| {
        eni.role == EniRole::Secondary && matches!(eni.state, EniState::Attached | EniState::Ready)
    };
    let ids: Vec<EniId> = pool
        .enis()
        .values()
        .filter(standing)
        .map(|eni| eni.id.clone())
        .collect();
    for id in ids {
        configure(pool, &id, now, out);
        publish(pool, &id, now, out);
    }
    recheck_kernel(pool, now, out);
    let imds_check = now.after(pool.policy().imds_check);
    if *pool.memory.next_look.get_or_insert(imds_check) <= now {
        pool.memory.next_look = Some(imds_check);
        out.now(Effect::ReadImds);
    }
}

fn create(pool: &mut Pool, now: Tick, out: &mut Outbox) {
    for creation in pool.creations().values().cloned().collect::<Vec<_>>() {
        let purpose = Purpose::Create(creation.token.clone());
        let waits = pool.memory.creations_in_doubt.contains_key(&creation.token)
            || !pool
                .memory
                .is_clear(&Topic::Creation(creation.token.clone()), now)
            || !pool.may_ask(&purpose, now);
        if !waits {
            let request = creation.call(&common_tags(pool));
            out.call(pool, purpose, request, now);
        }
    }
}

/// Chooses the device index, which is recorded with the intent, and attaches.
fn attach(pool: &mut Pool, id: &EniId, now: Tick, out: &mut Outbox) {
    if !pool.memory.is_clear(&Topic::Attach(id.clone()), now) {
        return;
    }
    let Some(eni) = pool.enis().get(id) else { return };
    let Some(device) = pool.free_device(eni.card) else {
        let why = "no device index is free";
        doom(pool, id, why);
        return discard(pool, id, now, out);
    };
    if !pool.may_ask(&Purpose::Attach(id.clone()), now) {
        return;
    }
    pool.edit_eni(id, |eni| {
        eni.device = Some(device);
        eni.state = EniState::Attaching;
    });
    send_attach(pool, id, now, out);
}

fn send_attach(pool: &mut Pool, id: &EniId, now: Tick, out: &mut Outbox) {
    let Some(eni) = pool.enis().get(id) else { return };
    let Some(device) = eni.device else { return };
    let request = CloudCall::AttachEni {
        eni: id.clone(),
        instance: pool.facts().instance.clone(),
        device,
        card: eni.card,
    };
    out.call(pool, Purpose::Attach(id.clone()), request, now);
}

/// An attach was asked for: its answer is awaited, was lost, or told to try again.
fn reattach(pool: &mut Pool, id: &EniId, now: Tick, out: &mut Outbox) {
    if pool.memory.is_asking(&Purpose::Attach(id.clone())) {
        return;
    }
    let Some(eni) = pool.enis().get(id) else { return };
    if eni.device.is_none() {
        pool.edit_eni(id, |eni| eni.state = EniState::Created);
        return attach(pool, id, now, out);
    }
    let (has_link, in_doubt) = (
        pool.memory.links.contains_key(&eni.mac),
        pool.memory.enis.get(id).is_some_and(|p| p.doubt.is_some()),
    );
    if has_link && in_doubt {
        // The answer was lost, but the kernel shows the effect; the attachment's id comes with the next Describe.
        pool.edit_eni(id, |eni| eni.state = EniState::Attached);
        pool.memory.progress(id).doubt = None;
        pool.memory.describe.insert(DescribeScope::Attached);
        return configure(pool, id, now, out);
    }
    let purpose = Purpose::Attach(id.clone());
    if !in_doubt && pool.memory.is_clear(&Topic::Attach(id.clone()), now) && pool.may_ask(&purpose, now) {
        send_attach(pool, id, now, out);
    }
}

fn terminate_with_instance(pool: &mut Pool, id: &EniId, now: Tick, out: &mut Outbox) {
    let Some(eni) = pool.enis().get(id) else { return };
    let Some(attachment) = eni.attachment.clone().filter(|_| !eni.delete_on_termination) else {
        return;
    };
    let purpose = Purpose::Termination(id.clone());
    if pool.memory.is_clear(&Topic::Termination(id.clone()), now) && pool.may_ask(&purpose, now) {
        let eni = id.clone();
        out.call(
            pool,
            purpose,
            CloudCall::DeleteOnTermination { eni, attachment },
            now,
        );
    }
}

/// Waits for the link and has it configured.
fn configure(pool: &mut Pool, id: &EniId, now: Tick, out: &mut Outbox) {
    let Some(eni) = pool.enis().get(id) else { return };
    let mac = eni.mac;
    let progress = pool.memory.progress(id);
    if progress.configured || progress.configuring {
        return;
    }
    if !pool.memory.links.contains_key(&mac) {
        return await_link(pool, id, now, out);
    }
    pool.memory.clear(&Topic::Link(id.clone()));
    let progress = pool.memory.progress(id);
    progress.link_awaited = None;
    progress.link_overdue = false;
    if !pool.memory.is_clear(&Topic::Configure(id.clone()), now) {
        return;
    }
    if !pool.give_mark(id) {
        return;
    }
    match pool.intent(id) {
        Some(intent) => {
            pool.memory.progress(id).configuring = true;
            out.now(Effect::ConfigureEni(intent));
        }
        None => ask_imds(pool, now, out),
    }
}

fn ask_imds(pool: &mut Pool, now: Tick, out: &mut Outbox) {
    if pool.memory.is_clear(&Topic::Imds, now) {
        pool.memory.obstruct(Topic::Imds, Pace::secs(2, 60), None, now);
        out.now(Effect::ReadImds);
    }
}

/// A link that does not come is looked for again and reported; the ENI stays ours.
fn await_link(pool: &mut Pool, id: &EniId, now: Tick, out: &mut Outbox) {
    let patience = pool.policy().link_patience;
    let progress = pool.memory.progress(id);
    let since = *progress.link_awaited.get_or_insert(now);
    if now < since.after(patience) || !pool.memory.is_clear(&Topic::Link(id.clone()), now) {
        return;
    }
    pool.memory.progress(id).link_overdue = true;
    let longest = patience.saturating_mul(10);
    let pace = Pace {
        first: patience,
        longest,
        jitter: Jitter::Quarter,
    };
    pool.memory.obstruct(Topic::Link(id.clone()), pace, None, now);
    read_kernel(pool, out);
    pool.memory.describe.insert(DescribeScope::Attached);
    let waited = now.since(since).as_secs();
    out.alarm(
        "link-overdue",
        format!(
            "{id} is attached, but the kernel has shown no link with its hardware address for {waited} s"
        ),
    );
}

fn publish(pool: &mut Pool, id: &EniId, now: Tick, out: &mut Outbox) {
    let Some(eni) = pool.enis().get(id) else { return };
    if eni.device.is_none() {
        return;
    }
    let mark = eni.mark();
    if !pool.memory.is_configured(id) || !pool.memory.is_clear(&Topic::Publish(id.clone()), now) {
        return;
    }
    let under_way = pool.memory.enis.get(id).map(|progress| &progress.publishing);
    let addresses: Vec<_> = eni
        .addresses()
        .filter(|(_, placed)| !placed.published && !placed.releasing)
        .filter(|(address, _)| under_way.is_none_or(|set| !set.contains(address)))
        .map(|(address, _)| address)
        .collect();
    if addresses.is_empty() {
        return;
    }
    pool.memory
        .progress(id)
        .publishing
        .extend(addresses.iter().copied());
    out.now(Effect::Publish {
        eni: id.clone(),
        mark,
        addresses,
    });
}

/// An ENI is not to be had: it is deleted again, once EC2 has confirmed in a later Describe that nobody has it.
pub(super) fn doom(pool: &mut Pool, id: &EniId, why: &str) {
    // EC2's own words may be long, and are stored.
    let why: String = why.chars().take(LONGEST_REASON).collect();
    pool.edit_eni(id, |eni| {
        eni.device = None;
        eni.given_mark = None;
        eni.state = EniState::Discarding { why };
    });
    let next = pool.memory.next_call;
    let progress = pool.memory.progress(id);
    progress.doomed = Some(next);
    progress.doubt = None;
    progress.ec2 = Ec2Says::Unasked;
}

/// Deletes an ENI that could not be attached, when it is proven that nobody uses it.
pub(super) fn discard(pool: &mut Pool, id: &EniId, now: Tick, out: &mut Outbox) {
    let purpose = Purpose::Delete(id.clone());
    if pool.memory.is_asking(&purpose) || !pool.memory.is_clear(&Topic::Delete(id.clone()), now) {
        return;
    }
    let Some(eni) = pool.enis().get(id) else { return };
    let evidence = LocalEvidence {
        // What has not been read confirms nothing.
        link: pool.memory.links.contains_key(&eni.mac) || pool.memory.heard.kernel.is_none(),
        pod_routes: pool.memory.routes_to(eni),
        allocations: pool.allocations().values().filter(|a| a.eni == *id).count(),
    };
    let says = pool.memory.enis.get(id).map_or(Ec2Says::Unasked, |p| p.ec2);
    match Proof::unused_eni(id, says, evidence) {
        Ok(_) if !pool.may_ask(&purpose, now) => {}
        Ok(proof) => {
            let progress = pool.memory.progress(id);
            progress.ec2 = Ec2Says::Unasked;
            progress.delete_sent = true;
            out.call(pool, purpose, CloudCall::DeleteEni { proof }, now);
        }
        Err(_) if says == Ec2Says::Unasked => {
            pool.memory.describe.insert(DescribeScope::OursUnattached);
        }
        Err(why) => {
            pool.memory.progress(id).ec2 = Ec2Says::Unasked;
            // A public address goes when a human takes it away.
            let pace = if why == Unproven::Public { HUMAN } else { RECHECK };
            pool.memory.obstruct(Topic::Delete(id.clone()), pace, None, now);
            out.alarm("not-deleted", format!("{id} is to be deleted, but {why}"));
        }
    }
}

/// One reading at a time, so that an answer is known to be younger than the question.
pub(super) fn read_kernel(pool: &mut Pool, out: &mut Outbox) {
    if pool.memory.kernel_read.is_none() {
        pool.memory.kernel_read = Some(std::mem::take(&mut pool.memory.unproven));
        out.now(Effect::ReadKernel);
    }
}

/// The kernel is asked about addresses it still routes, ever more seldom, and about those that have rested.
fn recheck_kernel(pool: &mut Pool, now: Tick, out: &mut Outbox) {
    let orphaned = std::mem::take(&mut pool.memory.orphaned_rules);
    if !orphaned.is_empty() {
        out.now(Effect::RemoveRules(orphaned));
    }
    let routed = pool.has_strange_routes();
    if !routed {
        pool.memory.clear(&Topic::Kernel);
    } else if pool.memory.is_clear(&Topic::Kernel, now) {
        let pace = Pace {
            first: FIRST_KERNEL_RECHECK,
            longest: pool.policy().kernel_recheck,
            jitter: Jitter::Quarter,
        };
        pool.memory.obstruct(Topic::Kernel, pace, None, now);
        read_kernel(pool, out);
    }
    let wanted = std::mem::take(&mut pool.memory.kernel_wanted);
    // Also when it is in doubt besides: what EC2 no longer lists is dropped once the kernel does not route it either.
    let rested = |address: &std::net::IpAddr| {
        let known = pool.known(*address);
        let is_over = |known: &super::model::Address| known.rests_until.is_none_or(|until| until < now);
        known.is_some_and(|known| known.holder.is_none() && is_over(known))
    };
    if wanted || pool.memory.unproven.iter().any(rested) {
        read_kernel(pool, out);
    }
}

/// Standing doubts are worth another look, ever more seldom.
fn recheck(pool: &mut Pool, now: Tick, out: &mut Outbox) {
    recheck_kernel(pool, now, out);
    subnets::confirm(pool, now, out);
    let drift_check = now.after(pool.policy().drift_check);
    if *pool.memory.next_look.get_or_insert(drift_check) <= now {
        pool.memory.next_look = Some(drift_check);
        // Its word is compared with EC2's, and takes nothing away.
        out.now(Effect::ReadImds);
        pool.memory
            .describe
            .extend([DescribeScope::Attached, DescribeScope::OursUnattached]);
        // Tags change while ENIs live (Q18).
        if subnets::is_due(pool, now) {
            subnets::ask(pool, now, out);
        }
    }
    let doubtful = pool
        .addresses()
        .iter()
        .any(|(address, known)| known.doubt == Some(Doubt::NotInEc2) && pool.placed(*address).is_some())
        || pool.enis().values().any(|eni| {
            let is_idle = || !pool.allocations().values().any(|held| held.eni == eni.id);
            (eni.state == EniState::Lost && is_idle())
                || eni.role != EniRole::Unmanaged
                    && matches!(eni.state, EniState::Attached | EniState::Ready)
                    && (pool
                        .memory
                        .enis
                        .get(&eni.id)
                        .is_some_and(|p| p.unlisted_since.is_some())
                        || (eni.role == EniRole::Secondary
                            && (eni.attachment.is_none() || eni.device.is_none())))
        });
    if !doubtful && !pool.memory.words.has_doubts() {
        pool.memory.clear(&Topic::Doubts);
    } else if pool.memory.is_clear(&Topic::Doubts, now) {
        // The first look is due after a pause, too: EC2 has only just been asked.
        if pool.memory.obstacles.contains_key(&Topic::Doubts) {
            pool.memory.describe.insert(DescribeScope::Attached);
            out.now(Effect::ReadImds);
        }
        pool.memory.obstruct(Topic::Doubts, DOUBTS, None, now);
    }
}

/// Asks what is to be asked, one question of a kind at a time.
pub(super) fn describe(pool: &mut Pool, now: Tick, out: &mut Outbox) {
    if pool.memory.enis.values().any(|progress| progress.doubt.is_some()) {
        pool.memory.describe.insert(DescribeScope::Attached);
    }
    if !pool.memory.creations_in_doubt.is_empty() {
        pool.memory.describe.insert(DescribeScope::OursUnattached);
    }
    for scope in [DescribeScope::Attached, DescribeScope::OursUnattached] {
        let purpose = Purpose::Describe(scope);
        if pool.memory.is_asking(&purpose) || !pool.memory.is_clear(&Topic::Describe(scope), now) {
            continue;
        }
        if pool.memory.describe.contains(&scope) && pool.may_ask(&purpose, now) {
            pool.memory.describe.remove(&scope);
            let instance = pool.facts().instance.clone();
            out.call(pool, purpose, CloudCall::DescribeEnis { instance, scope }, now);
        }
    }
}
