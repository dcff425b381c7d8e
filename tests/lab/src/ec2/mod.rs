//! The EC2 API in its query protocol: form-encoded requests, XML answers.

mod describe;
mod filter;
mod mutate;
mod params;
mod render;
mod xml;

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Instant;

use crate::calls::{Call, Outcome, Service};
use crate::cloud::Shared;
use crate::faults::{Effect, Outage};
use crate::http::{Admission, Handler, Reply, ReplyFuture, Request, Response};
use crate::vpc::rng::Rng;
use crate::vpc::{ApiError, ApiResult, InstanceId};

use params::Params;
pub(crate) use render::private_dns_name;
pub(crate) use xml::date;

/// The only version of the API that is spoken.
const VERSION: &str = "2016-11-15";

/// Who calls.
#[derive(Debug, Clone)]
struct Caller {
    source: IpAddr,
    instance: Option<InstanceId>,
}

/// The EC2 endpoint behind one listener.
#[derive(Debug)]
pub(crate) struct Endpoint {
    shared: Arc<Shared>,
    node: Option<InstanceId>,
}

impl Endpoint {
    pub(crate) fn new(shared: Arc<Shared>, node: Option<InstanceId>) -> Self {
        Self { shared, node }
    }

    fn caller(&self, source: IpAddr) -> Caller {
        let instance = self.shared.instance_at(source).or_else(|| self.node.clone());
        Caller { source, instance }
    }
}

impl Handler for Endpoint {
    fn admit(&self, peer: IpAddr) -> Admission {
        let caller = self.caller(peer);
        match self
            .shared
            .faults
            .outage_of(Service::Ec2, caller.instance.as_ref())
        {
            None => Admission::Serve,
            Some(Outage::Reset) => Admission::Reset,
            Some(Outage::BlackHole) => Admission::Ignore,
        }
    }

    fn handle(self: Arc<Self>, request: Request) -> ReplyFuture {
        Box::pin(async move {
            let caller = self.caller(request.peer);
            match self.admit(request.peer) {
                Admission::Serve => answer(&self.shared, caller, &request).await,
                Admission::Reset => Reply::Reset,
                Admission::Ignore => std::future::pending().await,
            }
        })
    }
}

/// How far a call came: the content of a successful answer or an error, and whether it was carried out.
struct Done {
    result: ApiResult<String>,
    carried_out: bool,
}

async fn answer(shared: &Arc<Shared>, caller: Caller, request: &Request) -> Reply {
    let at = Instant::now();
    let seq = shared.calls.next_seq();
    let request_id = request_id(shared.seed, seq);
    let mut all = params::decode(&request.query);
    all.extend(params::decode(&String::from_utf8_lossy(&request.body)));
    let action = all.get("Action").cloned().unwrap_or_default();
    let verdict = shared
        .faults
        .meet(Service::Ec2, &action, caller.instance.as_ref());
    let latency = shared.faults.timing_of(caller.instance.as_ref()).ec2;
    tokio::time::sleep(shared.faults.sample(latency) + verdict.before).await;
    let done = carry_out(shared, &caller, request, &action, &all, verdict.effect.as_ref());
    shared.followed().await;
    tokio::time::sleep(verdict.after).await;
    let (reply, outcome) = reply(&action, &request_id, done, verdict.effect);
    all.remove("Action");
    all.remove("Version");
    shared.calls.record(Call {
        seq,
        service: Service::Ec2,
        at,
        took: at.elapsed(),
        source: caller.source,
        instance: caller.instance,
        action,
        params: all,
        outcome,
        request_id,
    });
    reply
}

fn carry_out(
    shared: &Shared,
    caller: &Caller,
    request: &Request,
    action: &str,
    all: &BTreeMap<String, String>,
    effect: Option<&Effect>,
) -> Done {
    let refused = |error| Done {
        result: Err(error),
        carried_out: false,
    };
    if let Err(error) = check_credentials(request) {
        return refused(error);
    }
    let unfiltered = !all
        .keys()
        .any(|key| key.starts_with("Filter.") || key.contains("Id.") || key == "MaxResults");
    if !shared
        .faults
        .admit(action, unfiltered, caller.instance.as_ref(), Instant::now())
    {
        return refused(ApiError::new("RequestLimitExceeded", "Request limit exceeded."));
    }
    match effect {
        Some(Effect::Error {
            code,
            message,
            status,
        }) => refused(ApiError {
            code: code.clone().into(),
            message: message.clone(),
            status: *status,
        }),
        Some(Effect::LoseRequest) => refused(ApiError::new("Lost", "")),
        _ => {
            let result = call(shared, caller, action, all);
            Done {
                carried_out: result.is_ok(),
                result,
            }
        }
    }
}

/// Signatures aren't verified, but must be there: a client that forgets to sign would fail at AWS.
fn check_credentials(request: &Request) -> ApiResult<()> {
    let Some(authorization) = request.header("authorization") else {
        return Err(ApiError::new(
            "MissingAuthenticationToken",
            "Request is missing Authentication Token",
        ));
    };
    let complete = authorization.starts_with("AWS4-HMAC-SHA256 ")
        && ["Credential=", "SignedHeaders=", "Signature="]
            .iter()
            .all(|part| authorization.contains(part))
        && request.header("x-amz-date").is_some();
    if complete {
        Ok(())
    } else {
        Err(ApiError::new(
            "AuthFailure",
            "AWS was not able to validate the provided access credentials",
        ))
    }
}

fn call(shared: &Shared, caller: &Caller, action: &str, all: &BTreeMap<String, String>) -> ApiResult<String> {
    match all.get("Version").map(String::as_str) {
        Some(VERSION) => {}
        None => return Err(ApiError::missing("Version")),
        Some(other) => {
            return Err(ApiError::new(
                "NoSuchVersion",
                format!("The requested version ({other}) of service AmazonEC2 does not exist"),
            ));
        }
    }
    let params = Params::new(all.clone());
    match action {
        "AssignIpv6Addresses" => mutate::assign_ipv6_addresses(shared, params),
        "AssignPrivateIpAddresses" => mutate::assign_private_ip_addresses(shared, params),
        "AttachNetworkInterface" => mutate::attach_network_interface(shared, params),
        "CreateNetworkInterface" => mutate::create_network_interface(shared, params),
        "CreateTags" => mutate::create_tags(shared, params),
        "DeleteNetworkInterface" => mutate::delete_network_interface(shared, params),
        "DescribeInstanceTypes" => describe::instance_types(shared, params),
        "DescribeInstances" => describe::instances(shared, caller, params),
        "DescribeNetworkInterfaces" => describe::network_interfaces(shared, caller, params),
        "DescribeSecurityGroups" => describe::security_groups(shared, params),
        "DescribeSubnets" => describe::subnets(shared, params),
        "DescribeVpcs" => describe::vpcs(shared, params),
        "DetachNetworkInterface" => mutate::detach_network_interface(shared, params),
        "ModifyNetworkInterfaceAttribute" => mutate::modify_network_interface_attribute(shared, params),
        "UnassignIpv6Addresses" => mutate::unassign_ipv6_addresses(shared, params),
        "UnassignPrivateIpAddresses" => mutate::unassign_private_ip_addresses(shared, params),
        _ => Err(ApiError::new(
            "InvalidAction",
            format!("The action {action} is not valid for this web service."),
        )),
    }
}

fn reply(action: &str, request_id: &str, done: Done, effect: Option<Effect>) -> (Reply, Outcome) {
    let happened = done.carried_out;
    match effect {
        Some(Effect::LoseRequest) => (Reply::Close, Outcome::Lost { happened: false }),
        Some(Effect::LoseAnswer) => (Reply::Close, Outcome::Lost { happened }),
        Some(Effect::ResetAfter) => (Reply::Reset, Outcome::Lost { happened }),
        Some(Effect::Body { status, body }) => {
            let outcome = Outcome::Error(format!("Body{status}"));
            (xml_answer(status, request_id, body), outcome)
        }
        Some(Effect::ErrorAfter {
            code,
            message,
            status,
        }) => {
            let body = xml::failure(&code, &message, request_id);
            (xml_answer(status, request_id, body), Outcome::Error(code))
        }
        _ => match done.result {
            Ok(content) => {
                let body = xml::success(action, request_id, &content);
                (xml_answer(200, request_id, body), Outcome::Ok)
            }
            Err(error) => {
                let body = xml::failure(&error.code, &error.message, request_id);
                let outcome = Outcome::Error(error.code.into_owned());
                (xml_answer(error.status, request_id, body), outcome)
            }
        },
    }
}

fn xml_answer(status: u16, request_id: &str, body: String) -> Reply {
    let mut response = Response::new(status, "text/xml;charset=UTF-8", body);
    response.headers.push(("x-amzn-RequestId", request_id.to_owned()));
    response.headers.push(("Server", "AmazonEC2".to_owned()));
    Reply::Answer(response)
}

/// A request id of EC2's form, the same for the same seed and call.
fn request_id(seed: u64, seq: u64) -> String {
    let mut rng = Rng::new(seed ^ seq.rotate_left(32));
    let hex = format!("{:016x}{:016x}", rng.next_u64(), rng.next_u64());
    let part = |from: usize, to: usize| hex.get(from..to).unwrap_or_default();
    format!(
        "{}-{}-4{}-a{}-{}",
        part(0, 8),
        part(8, 12),
        part(13, 16),
        part(17, 20),
        part(20, 32)
    )
}
