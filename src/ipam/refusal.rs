//! Why an ADD gets no address, in words and numbers, and what to do about it.

use super::budget::Brake;
use super::census::count;
use super::cloud::{CloudFailure, FailureClass};
use super::effect::{Refusal, RefusalKind};
use super::event::AddRequest;
use super::ids::{CardIndex, IfName, SandboxKey, Tick};
use super::places::{self, ClosedEni};
use super::plan::{Hindrance, Report};
use super::pool::Pool;

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

/// The sandbox was deleted while its ADD waited.
pub(super) fn cancelled(key: &SandboxKey) -> Refusal {
    refusal(
        RefusalKind::Cancelled,
        format!("sandbox {key} was deleted while its ADD waited for an address"),
        "nothing: the runtime has given this sandbox up",
    )
}

/// One interface of a sandbox was asked for, and the main one is not there.
pub(super) fn without_main(request: &AddRequest) -> Refusal {
    let main = request.main.as_ref().map_or("", IfName::as_str);
    refusal(
        RefusalKind::Cancelled,
        format!(
            "{} belongs to interface {main} of its sandbox, which has no address",
            request.key
        ),
        "nothing: the runtime makes the sandbox again; its main interface is asked for first",
    )
}

/// A card's address is wanted that is not ours to give.
pub(super) fn unmanaged(card: CardIndex, pool: &Pool) -> Refusal {
    let next_step = if pool.policy().has_further_cards() {
        "use an instance type with that network card, or ask for another; one with an EFA-only interface alone is left to \
         it"
    } else {
        "set ENABLE_MULTI_NIC=true, or take the annotation k8s.amazonaws.com/nicConfig off the pod"
    };
    refusal(
        RefusalKind::Exhausted,
        format!("an address of network {card} is wanted, which is not managed on this node"),
        next_step,
    )
}

/// The store cannot be written.
pub(super) fn disk_full(reason: &str) -> Refusal {
    Refusal {
        retry_after_ms: Some(1000),
        ..refusal(
            RefusalKind::DiskFull,
            format!("the allocation could not be written to disk: {reason}"),
            "free space on the file system of the state directory, or repair it; ADD works again by itself",
        )
    }
}

/// The deadline passed while something was on its way.
pub(super) fn out_of_time(report: &Report) -> Refusal {
    // Of a /80 there is no number to tell.
    let coming = match report.coming {
        u32::MAX => "a /80 is on its way".to_owned(),
        coming => format!("{coming} are on their way"),
    };
    let mut refusal = refusal(
        RefusalKind::Deadline,
        format!(
            "no address became free in time; {coming}, {} are cooling, {} sandboxes wait",
            report.cooling, report.waiting
        ),
        "retry; if it persists, look at ipamd status for what the growth waits for",
    );
    match report.cause().or(report.delays.first()) {
        Some(Hindrance::Failed { failure, .. } | Hindrance::AskingForLess { failure }) => {
            refusal.message = format!("{}; last: {failure}", refusal.message);
            refusal.aws = Some(failure.clone());
        }
        Some(braked @ Hindrance::Braked(_)) => {
            refusal.message = format!("{}; {braked}", refusal.message);
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

fn over_budget(brake: &Brake, now: Tick) -> Refusal {
    let wait = brake.until.since(now);
    Refusal {
        retry_after_ms: u64::try_from(wait.as_millis()).ok(),
        ..refusal(
            RefusalKind::Throttled,
            format!("no address is free and {brake}; next in {} s", wait.as_secs()),
            "retry later; ipamd status names the failures that the calls were spent on",
        )
    }
}

/// There is no place for another ENI, or no /80 for this one.
fn nowhere(none: &Hindrance) -> Refusal {
    let next_step = match none {
        Hindrance::NoSubnet { .. } => {
            "tag a subnet of the zone with kubernetes.io/role/cni=1 and, where clusters share it, with the cluster's name"
        }
        Hindrance::NotDelegated => {
            "give the primary ENI a /80 (aws ec2 assign-ipv6-addresses --ipv6-prefix-count 1), or let the daemon ask for \
             one"
        }
        Hindrance::NoPrefixes { .. } => "use an instance type on the Nitro System",
        _ => "write that ENIConfig, or have the node's label name another one",
    };
    refusal(
        RefusalKind::Exhausted,
        format!("no address is free and {none}"),
        next_step,
    )
}

/// EC2 refuses, and another try will not help who waits.
fn failed(failure: &CloudFailure, until: Tick, now: Tick) -> Refusal {
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

/// Every place for an ENI is taken, on every card; a card among several is named with its own.
fn at_eni_limit(report: &Report) -> Refusal {
    let cards = report.cards.iter().map(|(card, report)| (Some(*card), report));
    let alone = report.cards.is_empty().then_some((None, report));
    let hindrances = cards.chain(alone).flat_map(|(card, report)| {
        let of_card = report.hindrances.iter();
        of_card.map(move |hindrance| (card, hindrance))
    });
    let (mut limit, mut open, mut is_by_setting) = (0_u32, 0_u32, false);
    let mut places: Vec<String> = Vec::new();
    let mut shut: Vec<&ClosedEni> = Vec::new();
    for (card, hindrance) in hindrances {
        let Hindrance::EniLimit {
            enis,
            by_setting,
            taken,
            closed,
            ..
        } = hindrance
        else {
            continue;
        };
        places.push(at_most(card, hindrance));
        limit = limit.saturating_add(*enis);
        open = open.saturating_add(taken.saturating_sub(count(closed.len())));
        is_by_setting |= by_setting;
        shut.extend(closed);
    }
    let head = if open == 0 && !shut.is_empty() {
        "no ENI gets pods, and there is no place for another"
    } else {
        "every address is taken"
    };
    let mut advice = places::advice(&shut);
    if is_by_setting {
        advice.push("raise MAX_ENI".to_owned());
    }
    advice.push("run fewer pods on this node (max-pods), or use a larger instance type".to_owned());
    let places = places.join("; and ");
    Refusal {
        limit: Some(limit),
        ..refusal(
            RefusalKind::Exhausted,
            format!(
                "{head}: {} assigned, {} cooling, {} quarantined, on {places}",
                report.assigned, report.cooling, report.quarantined
            ),
            &advice.join(", "),
        )
    }
}

/// What a card can carry, and what of it pods cannot have.
fn at_most(card: Option<CardIndex>, limit: &Hindrance) -> String {
    let Hindrance::EniLimit {
        enis,
        slots,
        by_setting,
        taken,
        closed,
    } = limit
    else {
        return limit.to_string();
    };
    let by = if *by_setting {
        "MAX_ENI"
    } else {
        "limit of the instance type"
    };
    let on = card.map(|card| format!(" on {card}")).unwrap_or_default();
    let closed = places::told(closed, *taken);
    format!("at most {enis} ENIs ({by}) with {slots} addresses for pods each{on}{closed}")
}

/// Why no address can come, in words and numbers.
pub(super) fn hopeless(report: &Report, now: Tick) -> Refusal {
    match report.cause() {
        Some(Hindrance::Failed { failure, until }) => failed(failure, *until, now),
        Some(Hindrance::Braked(brake)) => over_budget(brake, now),
        Some(Hindrance::EniLimit { .. }) => at_eni_limit(report),
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
        Some(
            none @ (Hindrance::NoSubnet { .. }
            | Hindrance::NoEniConfig { .. }
            | Hindrance::NotDelegated
            | Hindrance::NoPrefixes { .. }),
        ) => nowhere(none),
        Some(
            Hindrance::Starting
            | Hindrance::LimitsUnknown
            | Hindrance::SubnetsUnknown
            | Hindrance::RestFollows { .. }
            | Hindrance::AskingForLess { .. }
            | Hindrance::Cordoned,
        )
        | None => Refusal {
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
