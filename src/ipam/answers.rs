//! What EC2's answers and failures mean. Each failure class has one treatment, here.

use std::net::Ipv4Addr;

use super::budget::Brake;
use super::census::count;
use super::cidr::Ipv4Cidr;
use super::cloud::{Amount, CloudAnswer, CloudFailure, CloudResult, DescribeScope, FailureClass};
use super::ids::{AttachmentId, CallId, ClientToken, EniId, Tick};
use super::leaks;
use super::lifecycle::doom;
use super::memory::{Ec2View, Purpose};
use super::model::EniState;
use super::observe;
use super::obstacle::{Pace, Topic};
use super::outbox::Outbox;
use super::pool::Pool;
use super::reconcile;
use super::release;
use super::shortage::{self, Take};
use super::treatment::Scope;
use super::upkeep::{self, Upkeep};
use super::{groups, six, subnets, tagging};

/// Attaching that fails without a known reason is given up after this many times.
const ATTACH_ATTEMPTS: u32 = 4;

pub(super) fn ended(pool: &mut Pool, call: CallId, result: CloudResult, now: Tick, out: &mut Outbox) {
    let Some(ask) = pool.memory.calls.remove(&call) else {
        return;
    };
    match &result {
        Ok(_) => pool.memory.budget.answered(now),
        Err(failure) if failure.class.treatment().quiets_node => {
            let dice = pool.memory.roll();
            pool.memory.budget.throttled(failure.retry_after, dice, now);
        }
        Err(_) => {}
    }
    match (ask.purpose, result) {
        (Purpose::Leak(leak), Ok(answer)) => leaks::answered(pool, &leak, answer, ask.since, now, out),
        (Purpose::Create(token), Ok(CloudAnswer::Created(eni))) => {
            let amount = amount(&eni.secondary, &eni.prefixes);
            let take = Take::create(amount);
            shortage::gave(pool, &eni.subnet, take, call, now);
            subnets::gave(pool, &eni.subnet, amount, true);
            pool.memory.clear(&Topic::CreateIn(eni.subnet.clone()));
            observe::adopt_created(pool, Some(&token), &eni, now, out);
        }
        (Purpose::Attach(id), Ok(CloudAnswer::Attached(attachment))) => attached(pool, &id, attachment, now),
        (Purpose::Termination(id), Ok(CloudAnswer::Done)) => {
            pool.edit_eni(&id, |eni| eni.delete_on_termination = true);
            pool.memory.clear(&Topic::Termination(id));
        }
        (Purpose::Assign { eni, .. }, Ok(CloudAnswer::Assigned { addresses, prefixes })) => {
            let amount = amount(&addresses, &prefixes);
            if let Some(subnet) = pool.enis().get(&eni).map(|eni| eni.subnet.clone()) {
                subnets::gave(pool, &subnet, amount, false);
                shortage::gave(pool, &subnet, Take::assign(amount), call, now);
            }
            let cidrs = addresses.into_iter().map(Ipv4Cidr::host).chain(prefixes);
            assigned(pool, &eni, &cidrs.collect::<Vec<_>>(), now, out);
        }
        (Purpose::Assign { eni, amount }, Ok(CloudAnswer::Delegated(prefixes))) => {
            if let Some(subnet) = pool.enis().get(&eni).map(|eni| eni.subnet.clone()) {
                shortage::gave(pool, &subnet, Take::assign(amount), call, now);
            }
            six::delegated(pool, &eni, &prefixes, now, out);
        }
        (Purpose::Delete(id), Ok(CloudAnswer::Done)) => pool.forget_eni(&id),
        (Purpose::Unassign { eni, cidrs }, Ok(CloudAnswer::Done)) => {
            release::unassigned(pool, &eni, &cidrs, now);
        }
        (Purpose::Detach(id), Ok(CloudAnswer::Done)) => release::detached(pool, &id, now),
        (Purpose::Describe(scope), Ok(CloudAnswer::Enis(enis))) => {
            pool.memory.clear(&Topic::Describe(scope));
            match scope {
                DescribeScope::Attached => observe::attached(pool, &enis, call, ask.since, now, out),
                DescribeScope::OursUnattached => observe::unattached(pool, &enis, call, now, out),
            }
        }
        (Purpose::Subnets, Ok(CloudAnswer::Subnets(listed))) => {
            subnets::listed_by_ec2(pool, listed, ask.since, now, out);
        }
        (Purpose::Groups { eni, groups }, Ok(CloudAnswer::Done)) => {
            upkeep::done(pool, Upkeep::Groups, &eni);
            groups::set(pool, &eni, groups);
        }
        (Purpose::Tags { eni, tags }, Ok(CloudAnswer::Done)) => {
            upkeep::done(pool, Upkeep::Tags, &eni);
            tagging::set(pool, &eni, tags);
        }
        (Purpose::Limits, Ok(CloudAnswer::Limits(limits))) => pool.set_limits(limits),
        (purpose, Ok(_)) => failed(pool, purpose, &misunderstood(), call, now, out),
        (purpose, Err(failure)) => failed(pool, purpose, &failure, call, now, out),
    }
}

fn misunderstood() -> CloudFailure {
    local_failure(
        FailureClass::Server,
        "the answer is not of the kind that was asked for",
    )
}

fn local_failure(class: FailureClass, message: &str) -> CloudFailure {
    CloudFailure {
        class,
        action: "an EC2 call".to_owned(),
        code: None,
        message: message.to_owned(),
        request_id: None,
        retry_after: None,
    }
}

/// A call was dropped because the commit before it failed. Treated as a lost answer: EC2 is asked before a repetition.
pub(super) fn not_sent(pool: &mut Pool, call: CallId, now: Tick, out: &mut Outbox) {
    if let Some(ask) = pool.memory.calls.remove(&call) {
        let failure = local_failure(
            FailureClass::NoAnswer,
            "not sent, because the store could not be written",
        );
        failed(pool, ask.purpose, &failure, call, now, out);
    }
}

/// A call that the budget has nothing left for: EC2 has not been asked.
pub(super) fn over_budget(
    pool: &mut Pool,
    purpose: Purpose,
    brake: Brake,
    call: CallId,
    now: Tick,
    out: &mut Outbox,
) {
    pool.memory.budget.put_off(brake, now);
    let failure = CloudFailure {
        retry_after: Some(brake.until.since(now)),
        ..local_failure(FailureClass::Throttled, &brake.to_string())
    };
    failed(pool, purpose, &failure, call, now, out);
}

/// What EC2 gave: addresses or prefixes, as it was asked.
fn amount(addresses: &[Ipv4Addr], prefixes: &[Ipv4Cidr]) -> Amount {
    if prefixes.is_empty() {
        Amount::Addresses(count(addresses.len()))
    } else {
        Amount::Prefixes(count(prefixes.len()))
    }
}

fn attached(pool: &mut Pool, id: &EniId, attachment: AttachmentId, now: Tick) {
    pool.edit_eni(id, |eni| {
        eni.attachment = Some(attachment);
        if matches!(
            eni.state,
            EniState::Created | EniState::Attaching | EniState::Discarding { .. }
        ) {
            eni.state = EniState::Attached;
        }
    });
    if pool.enis().get(id).is_some_and(|eni| eni.device.is_none()) {
        // Its device index was thought to be another's meanwhile.
        pool.memory.describe.insert(DescribeScope::Attached);
    }
    pool.memory.clear(&Topic::Attach(id.clone()));
    // Only now: an ENI that could be created but not attached is no success (Q23).
    pool.memory.clear(&Topic::Create);
    let progress = pool.memory.progress(id);
    progress.attached_at = Some(now);
    progress.born = Some(now);
    progress.attach_failures = 0;
    progress.attach_failing = None;
    progress.doubt = None;
}

fn assigned(pool: &mut Pool, id: &EniId, cidrs: &[Ipv4Cidr], now: Tick, out: &mut Outbox) {
    let before = pool.enis().get(id).map(super::model::Eni::slots_taken);
    for cidr in cidrs {
        release::regained(pool, *cidr, now);
        reconcile::listed(pool, id, *cidr, now, out);
    }
    pool.edit_eni(id, |eni| eni.assigning = None);
    if pool.enis().get(id).map(super::model::Eni::slots_taken) == before {
        // An answer that changes nothing must not be asked for again at once.
        pool.memory.obstruct(
            Topic::Assign(id.clone()),
            Pace::of(FailureClass::Other),
            None,
            now,
        );
        pool.memory.describe.insert(DescribeScope::Attached);
    } else {
        pool.memory.clear(&Topic::Assign(id.clone()));
    }
}

fn failed(
    pool: &mut Pool,
    purpose: Purpose,
    failure: &CloudFailure,
    call: CallId,
    now: Tick,
    out: &mut Outbox,
) {
    let tells_itself = matches!(
        purpose,
        Purpose::Groups { .. } | Purpose::Tags { .. } | Purpose::Subnets
    );
    if failure.class.treatment().alarms && !tells_itself {
        out.alarm("denied", failure.to_string());
    }
    match purpose {
        Purpose::Create(token) => create_failed(pool, &token, failure, now, out),
        Purpose::Attach(id) => attach_failed(pool, &id, failure, now),
        Purpose::Termination(id) => {
            if failure.class == FailureClass::Gone {
                pool.memory.describe.insert(DescribeScope::Attached);
            }
            obstruct(pool, Topic::Termination(id), failure, now);
        }
        Purpose::Assign { eni, amount } => assign_failed(pool, &eni, amount, failure, now),
        Purpose::Unassign { eni, cidrs } => release::unassign_failed(pool, &eni, &cidrs, failure, now, out),
        Purpose::Detach(id) => release::detach_failed(pool, &id, failure, now, out),
        // "No such ENI" may be said of one that is only too new: a Describe confirms it, or it is deleted again.
        Purpose::Delete(id) => obstruct(pool, Topic::Delete(id), failure, now),
        Purpose::Describe(scope) => describe_failed(pool, scope, failure, call, now),
        Purpose::Subnets => subnets::not_listed(pool, failure, now, out),
        Purpose::Groups { eni, .. } => upkeep::failed(pool, Upkeep::Groups, eni, failure, now, out),
        Purpose::Tags { eni, .. } => upkeep::failed(pool, Upkeep::Tags, eni, failure, now, out),
        Purpose::Limits => obstruct(pool, Topic::Limits, failure, now),
        Purpose::Leak(leak) => leaks::failed(pool, &leak, failure, now, out),
    }
}

fn obstruct(pool: &mut Pool, topic: Topic, failure: &CloudFailure, now: Tick) {
    pool.memory
        .obstruct(topic, Pace::of(failure.class), Some(failure.clone()), now);
}

fn create_failed(pool: &mut Pool, token: &ClientToken, failure: &CloudFailure, now: Tick, out: &mut Outbox) {
    let Some(creation) = pool.creations().get(token).cloned() else {
        return;
    };
    if failure.class.leaves_doubt() {
        let next = pool.memory.next_call;
        pool.memory.creations_in_doubt.insert(token.clone(), next);
        return obstruct(pool, Topic::Creation(token.clone()), failure, now);
    }
    let scope = failure.class.treatment().create;
    // EC2 has decided: with this token there is no ENI and will be none...
    pool.forget_creation(token);
    if failure.class == FailureClass::Conflict {
        // ...but the one that was made before with other parameters, when the configuration had other tags and the answer
        // was lost (IdempotentParameterMismatch). It carries our tags and is taken up as left over.
        pool.memory.describe.insert(DescribeScope::OursUnattached);
        let soon = now.after(pool.policy().describe_lag);
        pool.memory.look_by(soon);
    }
    if scope == Scope::Subnet {
        let take = Take::create(creation.amount);
        shortage::refused(pool, &creation.subnet, take, failure, now);
        return;
    }
    let subnet = creation.subnet;
    if !failure.class.is_transient() {
        out.alarm("create", format!("no ENI can be created in {subnet}: {failure}"));
    }
    if failure.class == FailureClass::Gone {
        subnets::doubt(pool);
    }
    let topic = if scope == Scope::Growth {
        Topic::Create
    } else {
        Topic::CreateIn(subnet)
    };
    obstruct(pool, topic, failure, now);
}

fn attach_failed(pool: &mut Pool, id: &EniId, failure: &CloudFailure, now: Tick) {
    let Some(eni) = pool.enis().get(id).filter(|eni| eni.state == EniState::Attaching) else {
        return;
    };
    let place = eni.device.map(|device| (eni.card, device));
    let progress = pool.memory.progress(id);
    if failure.class == FailureClass::Throttled {
        return obstruct(pool, Topic::Attach(id.clone()), failure, now);
    }
    progress.attach_failures = progress.attach_failures.saturating_add(1);
    let failures = progress.attach_failures;
    let since = *progress.attach_failing.get_or_insert(now);
    let may_lag = now.since(since) < pool.policy().describe_lag;
    match failure.class {
        FailureClass::NoAnswer | FailureClass::Server => {
            let next = pool.memory.next_call;
            pool.memory.progress(id).doubt = Some(next);
            obstruct(pool, Topic::Attach(id.clone()), failure, now);
        }
        // The index is taken, or an earlier attach succeeded after all: EC2 tells which, once its lists are young enough.
        FailureClass::Conflict if failures < ATTACH_ATTEMPTS || may_lag => {
            let next = pool.memory.next_call;
            pool.memory.progress(id).doubt = Some(next);
            pool.memory.devices_taken.extend(place);
            pool.edit_eni(id, |eni| eni.device = None);
            obstruct(pool, Topic::Attach(id.clone()), failure, now);
        }
        // EC2 may not know its own new ENI for a moment.
        class if class.treatment().attach == Scope::Call && failures < ATTACH_ATTEMPTS => {
            obstruct(pool, Topic::Attach(id.clone()), failure, now);
        }
        _ => {
            // Our view may be behind: somebody else's ENIs take places too.
            pool.memory.describe.insert(DescribeScope::Attached);
            doom(pool, id, &failure.to_string());
            obstruct(pool, Topic::Create, failure, now);
        }
    }
}

fn assign_failed(pool: &mut Pool, id: &EniId, amount: Amount, failure: &CloudFailure, now: Tick) {
    let topic = Topic::Assign(id.clone());
    let subnet = pool.enis().get(id).map(|eni| eni.subnet.clone());
    if failure.class.leaves_doubt() {
        // The intent stays until a Describe has shown what became of it.
        let next = pool.memory.next_call;
        pool.memory.progress(id).doubt = Some(next);
        if amount == Amount::Block {
            pool.memory.words.lose(id, now);
        }
        return obstruct(pool, topic, failure, now);
    }
    pool.edit_eni(id, |eni| eni.assigning = None);
    match (failure.class, subnet) {
        (class, Some(subnet)) if class.treatment().assign == Scope::Subnet => {
            shortage::refused(pool, &subnet, Take::assign(amount), failure, now);
        }
        (FailureClass::AddressLimit | FailureClass::Gone, _) => {
            pool.memory.describe.insert(DescribeScope::Attached);
            obstruct(pool, topic, failure, now);
        }
        _ => obstruct(pool, topic, failure, now),
    }
}

fn describe_failed(pool: &mut Pool, scope: DescribeScope, failure: &CloudFailure, call: CallId, now: Tick) {
    obstruct(pool, Topic::Describe(scope), failure, now);
    pool.memory.describe.insert(scope);
    if scope == DescribeScope::Attached {
        // What IMDS said before EC2 answered is older than that answer, and must not bring back what is gone.
        let has_answered = pool.memory.ec2 != Ec2View::Asking;
        pool.memory.ec2 = Ec2View::Failed(failure.clone());
        pool.memory.imds_pending |= !has_answered && pool.memory.imds.is_some();
    }
    if !failure.class.is_transient() {
        // EC2 will not tell: what was in doubt is tried again on its own pace, and its answer will.
        observe::resolve(pool, scope, call);
    }
}
