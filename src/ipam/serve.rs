//! Sandboxes: ADD, DEL, GC, and who waits for what.

use std::collections::BTreeSet;
use std::net::Ipv4Addr;

use super::cloud::FailureClass;
use super::effect::{Effect, Refusal, RefusalKind, Reply};
use super::event::AddRequest;
use super::ids::{CommitId, ContainerId, IfName, NetworkName, SandboxKey, Tick, WaiterId};
use super::memory::Final;
use super::model::AddressState;
use super::obstacle::{Pace, Topic};
use super::outbox::Outbox;
use super::plan::{Hindrance, Report, census};
use super::pool::Pool;
use super::records::RecordKey;

pub(super) fn add(pool: &mut Pool, request: AddRequest, out: &mut Outbox) {
    if let Some(reason) = &pool.memory.store_trouble {
        out.refuse(request.waiter, disk_full(reason));
        return;
    }
    pool.memory.waiters.insert(request.waiter, request);
}

pub(super) fn del(pool: &mut Pool, waiter: WaiterId, key: &SandboxKey, now: Tick, out: &mut Outbox) {
    let cancelled: Vec<WaiterId> = waiting_for(pool, key);
    for other in cancelled {
        pool.memory.waiters.remove(&other);
        out.refuse(
            other,
            refusal(
                RefusalKind::Cancelled,
                format!("sandbox {key} was deleted while its ADD waited for an address"),
                "nothing: the runtime has given this sandbox up",
            ),
        );
    }
    let released = pool.release(key, now);
    out.tell(
        waiter,
        Reply::Released {
            known: released.is_some(),
            addresses: released.into_iter().collect(),
        },
    );
}

fn waiting_for(pool: &Pool, key: &SandboxKey) -> Vec<WaiterId> {
    let waiters = pool.memory.waiters.iter();
    waiters
        .filter(|(_, request)| request.key == *key)
        .map(|(waiter, _)| *waiter)
        .collect()
}

/// Releases what the runtime does not list. A sandbox whose ADD is under way is younger than the list, and stays.
pub(super) fn collect(
    pool: &mut Pool,
    waiter: WaiterId,
    network: &NetworkName,
    valid: &BTreeSet<(ContainerId, IfName)>,
    now: Tick,
    out: &mut Outbox,
) {
    let fresh: BTreeSet<&SandboxKey> = pool
        .memory
        .commits
        .values()
        .flat_map(|tail| &tail.finals)
        .filter_map(|(_, last)| match last {
            Final::Durable(key) => Some(key),
            Final::Told(_) => None,
        })
        .collect();
    let stale: Vec<SandboxKey> = pool
        .allocations()
        .keys()
        .filter(|key| key.network == *network && !fresh.contains(key))
        .filter(|key| !valid.contains(&(key.container.clone(), key.ifname.clone())))
        .cloned()
        .collect();
    let released = stale.iter().filter_map(|key| pool.release(key, now)).collect();
    out.tell(waiter, Reply::Collected(released));
}

/// A client is gone: it waits no longer, and what it alone was told of is released again.
pub(super) fn give_up(pool: &mut Pool, waiter: WaiterId, now: Tick) {
    if pool.memory.waiters.remove(&waiter).is_some() {
        return;
    }
    let unwanted = pool
        .allocations()
        .values()
        .find(|allocation| allocation.told == Some(waiter))
        .map(|allocation| allocation.key.clone());
    if let Some(key) = unwanted {
        pool.release(&key, now);
    }
}

/// Waiters in the order of their deadlines.
fn queue(pool: &Pool) -> Vec<(Tick, WaiterId)> {
    let mut queue: Vec<_> = pool
        .memory
        .waiters
        .iter()
        .map(|(waiter, request)| (request.deadline, *waiter))
        .collect();
    queue.sort_unstable();
    queue
}

/// Gives out what can be given out.
pub(super) fn serve(pool: &mut Pool, now: Tick, out: &mut Outbox) {
    if pool.memory.store_trouble.is_some() {
        return;
    }
    let queue = queue(pool);
    if queue.is_empty() {
        return;
    }
    // Once for all who wait: looking through the pool for each of them is what 440 at once cannot afford.
    let mut free = pool.free_in_order(now).into_iter();
    for (deadline, waiter) in queue {
        let Some(request) = pool.memory.waiters.get(&waiter).cloned() else {
            continue;
        };
        let repeated = pool.allocations().contains_key(&request.key);
        if repeated {
            pool.share(&request.key);
        } else if deadline < now || !assign_next(pool, &request, &mut free, now) {
            continue;
        }
        let Some(grant) = pool.grant(&request.key, repeated) else {
            continue;
        };
        pool.memory.waiters.remove(&waiter);
        out.now(Effect::Reply {
            waiter,
            reply: Reply::Assigned(grant),
        });
        out.durable(waiter, request.key);
    }
}

fn assign_next(
    pool: &mut Pool,
    request: &AddRequest,
    free: &mut impl Iterator<Item = Ipv4Addr>,
    now: Tick,
) -> bool {
    free.next()
        .is_some_and(|address| pool.assign(request, address, now))
}

/// Tells those whose time is over, and those for whom nothing can come.
pub(super) fn triage(pool: &mut Pool, now: Tick, out: &mut Outbox) {
    if pool.memory.waiters.is_empty() {
        return;
    }
    let report = pool.memory.report.clone();
    let mut resting: Vec<Tick> = pool
        .addresses()
        .iter()
        .filter(|(address, _)| pool.is_wired(**address))
        .filter_map(|(_, known)| match known.state(now) {
            AddressState::Cooling { until } => Some(until),
            _ => None,
        })
        .collect();
    resting.sort_unstable_by(|a, b| b.cmp(a));
    let mut coming = census(pool, now).coming;
    let patient = report.has_transient() || is_asking_around(pool) || is_kernel_catching_up(pool);
    let mut counted: BTreeSet<SandboxKey> = BTreeSet::new();
    for (deadline, waiter) in queue(pool) {
        let Some(key) = pool
            .memory
            .waiters
            .get(&waiter)
            .map(|request| request.key.clone())
        else {
            continue;
        };
        let refusal = if deadline <= now {
            out_of_time(&report)
        } else if !counted.insert(key) || patient || soon(&report, deadline) || doubts_end(pool, deadline) {
            continue;
        } else if resting.last().is_some_and(|until| *until < deadline) {
            resting.pop();
            continue;
        } else if coming > 0 {
            coming -= 1;
            continue;
        } else {
            hopeless(&report, now)
        };
        pool.memory.waiters.remove(&waiter);
        out.refuse(waiter, refusal);
    }
}

/// Whether an answer is under way that may bring addresses to light.
fn is_asking_around(pool: &Pool) -> bool {
    use super::memory::Purpose;
    let describes = |purpose: &Purpose| matches!(purpose, Purpose::Describe(_));
    pool.memory.calls.values().any(|ask| describes(&ask.purpose))
}

/// Readings of the kernel by which a pod that is being taken away is gone: the last one is three seconds after the first.
const READINGS_OF_A_DEL: u32 = 6;

/// Whether the kernel is being read, or soon will be because it still routes an address that was just released.
fn is_kernel_catching_up(pool: &Pool) -> bool {
    let rereading = pool.memory.obstacles.get(&Topic::Kernel);
    pool.memory.kernel_read.is_some()
        || rereading.is_some_and(|obstacle| obstacle.attempt <= READINGS_OF_A_DEL)
}

/// Whether EC2 is asked again about quarantined addresses before this waiter's time is over.
fn doubts_end(pool: &Pool, deadline: Tick) -> bool {
    let again = pool.memory.obstacles.get(&Topic::Doubts);
    again.is_some_and(|obstacle| obstacle.until < deadline)
}

/// Whether a failure that is no refusal is tried again before this waiter's time is over.
fn soon(report: &Report, deadline: Tick) -> bool {
    report.hindrances.iter().any(|hindrance| {
        matches!(hindrance, Hindrance::Failed { failure, until }
            if !failure.class.is_hard() && *until < deadline)
    })
}

/// A batch is durable.
pub(super) fn committed(pool: &mut Pool, commit: CommitId) {
    pool.memory.unwritten.retain(|_, by| *by != commit);
    if pool.memory.commits.remove(&commit).is_some() && pool.memory.store_trouble.take().is_some() {
        pool.memory.clear(&Topic::Store);
    }
}

/// A batch is lost: its grants are taken back, its releases stand in memory and are written with the next batch.
pub(super) fn commit_failed(pool: &mut Pool, commit: CommitId, reason: String, now: Tick, out: &mut Outbox) {
    let Some(tail) = pool.memory.commits.remove(&commit) else {
        return;
    };
    pool.memory.unwritten.retain(|_, by| *by != commit);
    pool.mark(tail.keys);
    for (waiter, last) in tail.finals {
        match last {
            Final::Durable(key) => {
                let own = |told: Option<WaiterId>| told == Some(waiter);
                if pool
                    .allocations()
                    .get(&key)
                    .is_some_and(|allocation| own(allocation.told))
                {
                    pool.release(&key, now);
                } else {
                    pool.mark([RecordKey::Allocation(key)]);
                }
                out.refuse(waiter, disk_full(&reason));
            }
            // The runtime does not come back after a DEL: it is told, and the release is written as soon as possible.
            Final::Told(reply) => out.now(Effect::Reply { waiter, reply }),
        }
    }
    for call in tail.calls {
        super::answers::not_sent(pool, call, now, out);
    }
    if pool.memory.store_trouble.is_none() {
        out.alarm("store", format!("the store cannot be written: {reason}"));
    }
    let waiting: Vec<WaiterId> = pool.memory.waiters.keys().copied().collect();
    for waiter in waiting {
        pool.memory.waiters.remove(&waiter);
        out.refuse(waiter, disk_full(&reason));
    }
    pool.memory.store_trouble = Some(reason);
    pool.memory.obstruct(Topic::Store, Pace::secs(1, 10), None, now);
}

fn refusal(kind: RefusalKind, message: String, next_step: &str) -> Refusal {
    Refusal {
        kind,
        message,
        next_step: next_step.to_owned(),
        aws: None,
        limit: None,
        retry_after_ms: None,
    }
}

fn disk_full(reason: &str) -> Refusal {
    Refusal {
        retry_after_ms: Some(1000),
        ..refusal(
            RefusalKind::DiskFull,
            format!("the allocation could not be written to disk: {reason}"),
            "free space on the file system of the state directory, or repair it; ADD works again by itself",
        )
    }
}

fn out_of_time(report: &Report) -> Refusal {
    let mut refusal = refusal(
        RefusalKind::Deadline,
        format!(
            "no address became free in time; {} are on their way, {} are cooling, {} sandboxes wait",
            report.coming, report.cooling, report.waiting
        ),
        "retry; if it persists, look at ipamd status for what the growth waits for",
    );
    match report.cause() {
        Some(Hindrance::Failed { failure, .. }) => {
            refusal.message = format!("{}; last: {failure}", refusal.message);
            refusal.aws = Some(failure.clone());
        }
        Some(missing @ Hindrance::NoLink { .. }) => {
            refusal.message = format!("{}; {missing}", refusal.message);
            NO_LINK.clone_into(&mut refusal.next_step);
        }
        _ => {}
    }
    refusal
}

const NO_LINK: &str = "look for the ENI in the kernel's log (dmesg) and at what else manages links on this node; \
                       retry, it is taken up when it appears";

/// Why no address can come, in words and numbers.
fn hopeless(report: &Report, now: Tick) -> Refusal {
    match report.cause() {
        Some(Hindrance::Failed { failure, until }) => {
            let (kind, next_step) = match failure.class {
                FailureClass::SubnetFull => (
                    RefusalKind::SubnetFull,
                    "free addresses in the subnet, or give the node another one",
                ),
                FailureClass::Denied => (RefusalKind::Denied, "allow the action in the node's IAM role"),
                FailureClass::AccountLimit => (
                    RefusalKind::Exhausted,
                    "raise the account's quota, or delete unused network interfaces",
                ),
                FailureClass::AttachmentLimit => (
                    RefusalKind::Exhausted,
                    "detach network interfaces that are not ours, or use a larger instance type",
                ),
                FailureClass::Throttled => (RefusalKind::Throttled, "retry later"),
                _ => (
                    RefusalKind::TryAgain,
                    "retry later; the message names EC2's reason",
                ),
            };
            let wait = until.since(now);
            Refusal {
                aws: Some(failure.clone()),
                retry_after_ms: u64::try_from(wait.as_millis()).ok(),
                ..refusal(
                    kind,
                    format!(
                        "no address is free and {failure}; next try in {} s",
                        wait.as_secs()
                    ),
                    next_step,
                )
            }
        }
        Some(Hindrance::EniLimit {
            enis,
            slots,
            by_setting,
        }) => Refusal {
            limit: Some(*enis),
            ..refusal(
                RefusalKind::Exhausted,
                format!(
                    "every address is taken: {} assigned, {} cooling, {} quarantined, on at most {enis} ENIs ({}) with {slots} addresses for pods each",
                    report.assigned,
                    report.cooling,
                    report.quarantined,
                    if *by_setting {
                        "MAX_ENI"
                    } else {
                        "limit of the instance type"
                    },
                ),
                "run fewer pods on this node (max-pods), or use a larger instance type",
            )
        },
        Some(Hindrance::MaxPods { max_pods }) => Refusal {
            limit: Some(*max_pods),
            ..refusal(
                RefusalKind::Exhausted,
                format!("all {max_pods} addresses that max-pods allows are in use"),
                "find sandboxes without pods with ipamd status, or raise max-pods",
            )
        },
        Some(missing @ Hindrance::NoLink { .. }) => Refusal {
            retry_after_ms: Some(1000),
            ..refusal(
                RefusalKind::TryAgain,
                format!("no address is free and {missing}"),
                NO_LINK,
            )
        },
        Some(Hindrance::ProvisioningOff) => refusal(
            RefusalKind::Exhausted,
            "every address is taken and provisioning is switched off".to_owned(),
            "attach addresses to the node, or unset DISABLE_NETWORK_RESOURCE_PROVISIONING",
        ),
        Some(Hindrance::Starting | Hindrance::LimitsUnknown) | None => Refusal {
            retry_after_ms: Some(1000),
            ..refusal(
                RefusalKind::TryAgain,
                format!(
                    "no address is free: {} assigned, {} cooling, {} quarantined",
                    report.assigned, report.cooling, report.quarantined
                ),
                "retry",
            )
        },
    }
}
