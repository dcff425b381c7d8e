//! Events and effects in words, for people who read what happened.

use aws_cni_ipam::cloud::{Amount, CloudAnswer, CloudCall, CloudEni};
use aws_cni_ipam::effect::{Effect, Reply};
use aws_cni_ipam::event::Event;

/// A line with its time.
pub fn line(now: u64, what: &str) -> String {
    let (seconds, ms) = (now / 1000, now % 1000);
    let (days, hours, minutes) = (seconds / 86_400, seconds / 3600 % 24, seconds / 60 % 60);
    format!(
        "{days}d {hours:02}:{minutes:02}:{:02}.{ms:03}  {what}",
        seconds % 60
    )
}

fn count(n: usize, what: &str) -> String {
    let end = match what.chars().last() {
        _ if n == 1 => "",
        Some('s' | 'x') => "es",
        _ => "s",
    };
    format!("{n} {what}{end}")
}

fn list(enis: &[CloudEni]) -> String {
    let each: Vec<String> = enis
        .iter()
        .map(|eni| format!("{} ({})", eni.id, eni.secondary.len() + eni.prefixes.len() * 16))
        .collect();
    if each.is_empty() {
        "none".to_owned()
    } else {
        each.join(", ")
    }
}

fn answer(answer: &CloudAnswer) -> String {
    match answer {
        CloudAnswer::Created(eni) => format!("created {}", list(std::slice::from_ref(eni))),
        CloudAnswer::Attached(_) => "attached".to_owned(),
        CloudAnswer::Assigned { addresses, prefixes } => {
            format!(
                "assigned {} and {}",
                count(addresses.len(), "address"),
                count(prefixes.len(), "prefix")
            )
        }
        CloudAnswer::Delegated(prefixes) => format!("delegated {}", count(prefixes.len(), "/80")),
        CloudAnswer::Enis(enis) => format!("ENIs: {}", list(enis)),
        CloudAnswer::Subnets(subnets) => {
            let each: Vec<String> = subnets
                .iter()
                .map(|subnet| format!("{} ({} free)", subnet.id, subnet.free))
                .collect();
            format!("subnets: {}", each.join(", "))
        }
        CloudAnswer::Instances(instances) => format!("instances: {instances:?}"),
        CloudAnswer::Limits(limits) => format!("{limits:?}"),
        CloudAnswer::Done => "done".to_owned(),
    }
}

/// What the pool hears; `None` for what says nothing by itself.
pub fn event(event: &Event) -> Option<String> {
    Some(match event {
        Event::Add(request) => format!("ADD {} ({})", request.key.container, request.waiter),
        Event::Del { waiter, key } => format!("DEL {} ({waiter})", key.container),
        Event::Gc { waiter, valid, .. } => format!("GC of all but {} ({waiter})", valid.len()),
        Event::GiveUp { waiter } => format!("the client of {waiter} is gone"),
        Event::CallEnded {
            call,
            result: Ok(said),
        } => format!("EC2 answers {call}: {}", answer(said)),
        Event::CallEnded {
            call,
            result: Err(failure),
        } => format!("EC2 answers {call}: {failure}"),
        Event::CommitFailed { reason, .. } => format!("the disk fails: {reason}"),
        Event::LinkSeen(link) => format!("link {} ({}) appears", link.name, link.mac),
        Event::LinkGone { mac } => format!("link {mac} is gone"),
        Event::EniConfigured { eni, result } => match result {
            Ok(()) => format!("{eni} is configured"),
            Err(why) => format!("{eni} is not configured: {why}"),
        },
        Event::Published {
            eni,
            addresses,
            result,
        } => match result {
            Ok(()) => format!("{} of {eni} published", count(addresses.len(), "address")),
            Err(why) => format!("{eni} is not published: {why}"),
        },
        Event::Kernel(facts) => {
            format!(
                "the kernel has {} and {}",
                count(facts.links.len(), "link"),
                count(facts.pod_routes.len(), "pod route")
            )
        }
        Event::Imds(snapshot) => {
            let addresses: usize = snapshot.enis.iter().map(|eni| eni.addresses.len()).sum();
            format!(
                "IMDS lists {} with {addresses} addresses",
                count(snapshot.enis.len(), "ENI")
            )
        }
        Event::VpcCidrs(cidrs) => format!("the VPC has {}", count(cidrs.len(), "network")),
        Event::Reconfigured(_) => "the configuration was read again".to_owned(),
        _ => return None,
    })
}

fn amount(amount: Amount) -> String {
    match amount {
        Amount::Addresses(n) => count(usize::try_from(n).unwrap_or(0), "address"),
        Amount::Prefixes(n) => count(usize::try_from(n).unwrap_or(0), "prefix"),
        Amount::Block => "a /80".to_owned(),
    }
}

fn call(call: &CloudCall) -> String {
    match call {
        CloudCall::CreateEni {
            subnet, amount: of, ..
        } => format!("create an ENI in {subnet} with {}", amount(*of)),
        CloudCall::AttachEni { eni, device, .. } => format!("attach {eni} as device {}", device.0),
        CloudCall::DeleteOnTermination { eni, .. } => format!("let {eni} be deleted with the instance"),
        CloudCall::SetGroups { eni, .. } => format!("set the groups of {eni}"),
        CloudCall::TagEni { eni, .. } => format!("tag {eni}"),
        CloudCall::Assign { eni, amount: of } => format!("assign {} to {eni}", amount(*of)),
        CloudCall::UnassignAddresses { eni, proofs } => {
            format!("unassign {} from {eni}", count(proofs.len(), "address"))
        }
        CloudCall::UnassignPrefixes { eni, proofs } => {
            format!("unassign {} from {eni}", count(proofs.len(), "prefix"))
        }
        CloudCall::DetachEni { eni, .. } => format!("detach {eni}"),
        CloudCall::DeleteEni { proof } => format!("delete {}", proof.subject()),
        CloudCall::DescribeEnis { scope, .. } => format!("describe ENIs, {scope:?}"),
        CloudCall::DescribeLeftEnis { .. } => "describe left ENIs".to_owned(),
        CloudCall::DescribeInstances { instances } => {
            format!("describe {}", count(instances.len(), "instance"))
        }
        CloudCall::DescribeSubnets { .. } => "describe subnets".to_owned(),
        CloudCall::DescribeInstanceType { .. } => "describe the instance type".to_owned(),
    }
}

/// What the pool wants done; `None` for what is only bookkeeping.
pub fn effect(effect: &Effect) -> Option<String> {
    Some(match effect {
        Effect::Reply { waiter, reply } => match reply {
            Reply::Assigned(grant) => format!("-> {waiter}: {} on {}", grant.address, grant.eni),
            Reply::Durable => format!("-> {waiter}: durable"),
            Reply::Refused(refusal) => {
                format!("-> {waiter}: refused, {:?}: {}", refusal.kind, refusal.message)
            }
            Reply::Released { addresses, .. } => {
                format!("-> {waiter}: {} released", count(addresses.len(), "address"))
            }
            Reply::Settled => format!("-> {waiter}: settled"),
            Reply::Collected(addresses) => {
                format!("-> {waiter}: {} collected", count(addresses.len(), "address"))
            }
        },
        Effect::Call {
            call: number,
            request,
        } => format!("-> EC2 {number}: {}", call(request)),
        Effect::ConfigureEni(intent) => {
            format!("-> kernel: configure {} in table {}", intent.eni, intent.table.0)
        }
        Effect::Publish { eni, addresses, .. } => format!(
            "-> kernel: publish {} of {eni}",
            count(addresses.len(), "address")
        ),
        Effect::Unpublish { eni, addresses } => format!(
            "-> kernel: unpublish {} of {eni}",
            count(addresses.len(), "address")
        ),
        Effect::Unwire(released) => format!("-> kernel: take {} away", count(released.len(), "pod")),
        Effect::RemoveRules(addresses) => format!(
            "-> kernel: remove the rules of {}",
            count(addresses.len(), "address")
        ),
        Effect::ReadImds => "-> IMDS: sweep".to_owned(),
        Effect::Alarm(alarm) => format!("-> alarm {}: {}", alarm.kind, alarm.message),
        _ => return None,
    })
}
