//! The calls that only ask, page by page.

use std::collections::BTreeMap;

use aws_sdk_ec2::Client;
use aws_sdk_ec2::types::{Filter, InstanceStateName, Reservation, Subnet};

use super::super::convert::{self, BadAnswer};
use super::super::failure::{bad_answer, failure};
use crate::ipam::cloud::{CloudAnswer, CloudEni, CloudFailure, CloudResult, DescribeScope};
use crate::ipam::ids::{InstanceId, VpcId};
use crate::ipam::tags;

/// EC2's maximum of results for a page of `DescribeNetworkInterfaces`.
const PAGE: i32 = 1000;

/// An instance carries at most a few dozen ENIs; more pages than this is an endpoint that never ends.
const MOST_PAGES: usize = 50;

/// EC2 takes no more values in one call
/// (<https://docs.aws.amazon.com/AWSEC2/latest/APIReference/errors-overview.html>, `FilterLimitExceeded`).
const MOST_FILTER_VALUES: usize = 200;

fn filter(name: &str, value: &str) -> Filter {
    Filter::builder().name(name).values(literally(value)).build()
}

/// `*` and `?` in a filter's value are wild to EC2 unless a backslash stands before them: a cluster called `*` is not
/// every cluster
/// (<https://docs.aws.amazon.com/AWSEC2/latest/UserGuide/Using_Filtering.html#Filtering_Resources_CLI>).
fn literally(value: &str) -> String {
    value.chars().fold(String::new(), |mut text, symbol| {
        if matches!(symbol, '*' | '?' | '\\') {
            text.push('\\');
        }
        text.push(symbol);
        text
    })
}

pub(super) async fn of_instance(client: &Client, instance: &InstanceId, scope: DescribeScope) -> CloudResult {
    let filters = match scope {
        DescribeScope::Attached => vec![filter("attachment.instance-id", instance.as_str())],
        DescribeScope::OursUnattached => {
            vec![
                filter(&format!("tag:{}", tags::INSTANCE), instance.as_str()),
                filter("status", "available"),
            ]
        }
    };
    enis(client, filters).await
}

/// What any instance's daemon has made and nobody has attached (reference ipamd 4.10).
pub(super) async fn left_enis(client: &Client, vpc: &VpcId, cluster: Option<&str>) -> CloudResult {
    let mut filters = vec![
        filter("tag-key", tags::INSTANCE),
        filter("status", "available"),
        filter("vpc-id", vpc.as_str()),
    ];
    filters.extend(cluster.map(|name| filter(&format!("tag:{}", tags::CLUSTER), name)));
    enis(client, filters).await
}

async fn enis(client: &Client, filters: Vec<Filter>) -> CloudResult {
    const ACTION: &str = "DescribeNetworkInterfaces";
    let request = client
        .describe_network_interfaces()
        .set_filters(Some(filters))
        .max_results(PAGE);
    let mut enis: Vec<CloudEni> = Vec::new();
    let mut next = None;
    for _ in 0..MOST_PAGES {
        let answer = request.clone().set_next_token(next).send().await;
        let answer = answer.map_err(|error| failure(ACTION, &error))?;
        for interface in answer.network_interfaces() {
            enis.push(convert::eni(interface).map_err(|error| bad_answer(ACTION, &error))?);
        }
        match answer.next_token().filter(|token| !token.is_empty()) {
            Some(token) => next = Some(token.to_owned()),
            None => return Ok(CloudAnswer::Enis(enis)),
        }
    }
    Err(bad_answer(ACTION, &BadAnswer::TooManyPages(MOST_PAGES)))
}

/// By filter, because an id EC2 has forgotten would fail the whole call.
pub(super) async fn instances(client: &Client, instances: &[InstanceId]) -> CloudResult {
    let mut living = BTreeMap::new();
    for some in instances.chunks(MOST_FILTER_VALUES) {
        living.append(&mut living_of(client, some).await?);
    }
    // What was not asked is no answer, whoever gives it.
    living.retain(|id, _| instances.contains(id));
    Ok(CloudAnswer::Instances(living))
}

async fn living_of(
    client: &Client,
    instances: &[InstanceId],
) -> Result<BTreeMap<InstanceId, bool>, CloudFailure> {
    const ACTION: &str = "DescribeInstances";
    let ids = instances.iter().map(|id| literally(id.as_str())).collect();
    let ids = Filter::builder()
        .name("instance-id")
        .set_values(Some(ids))
        .build();
    let mut living = BTreeMap::new();
    let mut next = None;
    for _ in 0..MOST_PAGES {
        let request = client.describe_instances().filters(ids.clone()).max_results(PAGE);
        let answer = request.set_next_token(next).send().await;
        let answer = answer.map_err(|error| failure(ACTION, &error))?;
        for instance in answer.reservations().iter().flat_map(Reservation::instances) {
            let ended =
                instance.state().and_then(|state| state.name()) == Some(&InstanceStateName::Terminated);
            let id = instance.instance_id().ok_or(BadAnswer::Missing("instanceId"));
            let id = id.map_err(|error| bad_answer(ACTION, &error))?;
            living.insert(id.into(), !ended);
        }
        match answer.next_token().filter(|token| !token.is_empty()) {
            Some(token) => next = Some(token.to_owned()),
            None => return Ok(living),
        }
    }
    Err(bad_answer(ACTION, &BadAnswer::TooManyPages(MOST_PAGES)))
}

pub(super) async fn subnets(client: &Client, vpc: &VpcId, zone: &str) -> CloudResult {
    const ACTION: &str = "DescribeSubnets";
    let mut subnets = Vec::new();
    let mut next = None;
    for _ in 0..MOST_PAGES {
        let request = client
            .describe_subnets()
            .filters(filter("vpc-id", vpc.as_str()))
            .filters(filter("availability-zone", zone))
            .max_results(PAGE);
        let answer = request.set_next_token(next).send().await;
        let answer = answer.map_err(|error| failure(ACTION, &error))?;
        // An IPv6-only subnet takes none of our ENIs, and must not hide the others.
        let has_ipv4 = |subnet: &&Subnet| subnet.cidr_block().is_some_and(|block| !block.is_empty());
        for subnet in answer.subnets().iter().filter(has_ipv4) {
            subnets.push(convert::subnet(subnet).map_err(|error| bad_answer(ACTION, &error))?);
        }
        match answer.next_token().filter(|token| !token.is_empty()) {
            Some(token) => next = Some(token.to_owned()),
            None => return Ok(CloudAnswer::Subnets(subnets)),
        }
    }
    Err(bad_answer(ACTION, &BadAnswer::TooManyPages(MOST_PAGES)))
}

pub(super) async fn instance_type(client: &Client, instance_type: &str) -> CloudResult {
    const ACTION: &str = "DescribeInstanceTypes";
    let answer = client
        .describe_instance_types()
        .instance_types(instance_type.into())
        .send()
        .await;
    let answer = answer.map_err(|error| failure(ACTION, &error))?;
    let info = answer
        .instance_types()
        .first()
        .ok_or(BadAnswer::Missing("the instance type"));
    let limits = info
        .and_then(convert::limits)
        .map_err(|error| bad_answer(ACTION, &error))?;
    Ok(CloudAnswer::Limits(limits))
}
