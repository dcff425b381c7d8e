//! The calls that change something, each with what may be repeated of it.

use std::collections::BTreeMap;
use std::net::Ipv4Addr;

use aws_config::retry::RetryConfig;
use aws_sdk_ec2::Client;
use aws_sdk_ec2::operation::create_network_interface::builders::CreateNetworkInterfaceFluentBuilder;
use aws_sdk_ec2::types::{
    ConnectionTrackingSpecificationRequest, NetworkInterfaceAttachmentChanges, ResourceType, Tag,
    TagSpecification,
};

use super::super::convert::{self, BadAnswer};
use super::super::failure::{bad_answer, failure};
use crate::ipam::cidr::Ipv4Cidr;
use crate::ipam::cidr6::Ipv6Cidr;
use crate::ipam::cloud::{Amount, CloudAnswer, CloudResult, ConnectionTracking};
use crate::ipam::ids::{AttachmentId, CardIndex, DeviceIndex, EniId, InstanceId, SecurityGroupId};

/// For calls whose repetition after a lost answer would do their work twice, or report the first one's success as an
/// error: the core decides, with a fresh look, whether to repeat them.
fn once() -> aws_sdk_ec2::config::Builder {
    aws_sdk_ec2::Config::builder().retry_config(RetryConfig::disabled())
}

fn count(value: u32) -> i32 {
    i32::try_from(value).unwrap_or(i32::MAX)
}

pub(in crate::cloud) async fn create(
    request: CreateNetworkInterfaceFluentBuilder,
    amount: Amount,
    tags: &BTreeMap<String, String>,
    tracking: ConnectionTracking,
) -> CloudResult {
    const ACTION: &str = "CreateNetworkInterface";
    let tag_specification = TagSpecification::builder()
        .resource_type(ResourceType::NetworkInterface)
        .set_tags(Some(tag_list(tags)))
        .build();
    let tracking = (tracking != ConnectionTracking::default()).then(|| {
        ConnectionTrackingSpecificationRequest::builder()
            .set_tcp_established_timeout(tracking.tcp_established.map(count))
            .set_udp_stream_timeout(tracking.udp_stream.map(count))
            .set_udp_timeout(tracking.udp.map(count))
            .build()
    });
    let wanted = |number: u32| (number > 0).then(|| count(number));
    let request = match amount {
        Amount::Addresses(number) => request.set_secondary_private_ip_address_count(wanted(number)),
        Amount::Prefixes(number) => request.set_ipv4_prefix_count(wanted(number)),
        Amount::Block => request.ipv6_prefix_count(1),
    };
    let request = request
        .set_connection_tracking_specification(tracking)
        .set_tag_specifications((!tags.is_empty()).then(|| vec![tag_specification]));
    let answer = request.send().await.map_err(|error| failure(ACTION, &error))?;
    let eni = answer
        .network_interface()
        .ok_or(BadAnswer::Missing("networkInterface"));
    let eni = eni
        .and_then(convert::eni)
        .map_err(|error| bad_answer(ACTION, &error))?;
    Ok(CloudAnswer::Created(eni))
}

pub(in crate::cloud) async fn attach(
    client: &Client,
    eni: &EniId,
    instance: &InstanceId,
    device: DeviceIndex,
    card: CardIndex,
) -> CloudResult {
    const ACTION: &str = "AttachNetworkInterface";
    let request = client
        .attach_network_interface()
        .network_interface_id(eni.as_str())
        .instance_id(instance.as_str())
        .device_index(count(device.0))
        .network_card_index(count(card.0));
    let answer = request.customize().config_override(once()).send().await;
    let answer = answer.map_err(|error| failure(ACTION, &error))?;
    let attachment = answer.attachment_id().ok_or(BadAnswer::Missing("attachmentId"));
    let attachment = attachment.map_err(|error| bad_answer(ACTION, &error))?;
    Ok(CloudAnswer::Attached(attachment.into()))
}

pub(in crate::cloud) async fn delete_on_termination(
    client: &Client,
    eni: &EniId,
    attachment: &AttachmentId,
) -> CloudResult {
    let changes = NetworkInterfaceAttachmentChanges::builder()
        .attachment_id(attachment.as_str())
        .delete_on_termination(true)
        .build();
    // Setting a value twice is setting it once, so this one may be repeated.
    let request = client
        .modify_network_interface_attribute()
        .network_interface_id(eni.as_str())
        .attachment(changes);
    let answer = request.send().await;
    answer.map_err(|error| failure("ModifyNetworkInterfaceAttribute", &error))?;
    Ok(CloudAnswer::Done)
}

pub(in crate::cloud) async fn assign(client: &Client, eni: &EniId, amount: Amount) -> CloudResult {
    const ACTION: &str = "AssignPrivateIpAddresses";
    if amount == Amount::Block {
        return delegate(client, eni).await;
    }
    let request = client
        .assign_private_ip_addresses()
        .network_interface_id(eni.as_str());
    let request = match amount {
        Amount::Addresses(number) => request.secondary_private_ip_address_count(count(number)),
        Amount::Prefixes(number) => request.ipv4_prefix_count(count(number)),
        Amount::Block => request,
    };
    let answer = request.customize().config_override(once()).send().await;
    let answer = answer.map_err(|error| failure(ACTION, &error))?;
    let addresses: Result<Vec<Ipv4Addr>, BadAnswer> = answer
        .assigned_private_ip_addresses()
        .iter()
        .map(|assigned| convert::address(assigned.private_ip_address(), "privateIpAddress"))
        .collect();
    Ok(CloudAnswer::Assigned {
        addresses: addresses.map_err(|error| bad_answer(ACTION, &error))?,
        prefixes: convert::prefixes(answer.assigned_ipv4_prefixes())
            .map_err(|error| bad_answer(ACTION, &error))?,
    })
}

/// One /80. The call has no token: it is the core that never asks twice.
async fn delegate(client: &Client, eni: &EniId) -> CloudResult {
    const ACTION: &str = "AssignIpv6Addresses";
    let request = client
        .assign_ipv6_addresses()
        .network_interface_id(eni.as_str())
        .ipv6_prefix_count(1);
    let answer = request.customize().config_override(once()).send().await;
    let answer = answer.map_err(|error| failure(ACTION, &error))?;
    let prefixes: Result<Vec<Ipv6Cidr>, BadAnswer> = answer
        .assigned_ipv6_prefixes()
        .iter()
        .map(|prefix| convert::prefix6(prefix))
        .collect();
    Ok(CloudAnswer::Delegated(
        prefixes.map_err(|error| bad_answer(ACTION, &error))?,
    ))
}

pub(in crate::cloud) async fn unassign(
    client: &Client,
    eni: &EniId,
    addresses: impl Iterator<Item = Ipv4Addr>,
) -> CloudResult {
    let request = client
        .unassign_private_ip_addresses()
        .network_interface_id(eni.as_str())
        .set_private_ip_addresses(Some(addresses.map(|address| address.to_string()).collect()));
    let answer = request.customize().config_override(once()).send().await;
    answer.map_err(|error| failure("UnassignPrivateIpAddresses", &error))?;
    Ok(CloudAnswer::Done)
}

pub(in crate::cloud) async fn unassign_prefixes(
    client: &Client,
    eni: &EniId,
    prefixes: impl Iterator<Item = Ipv4Cidr>,
) -> CloudResult {
    let request = client
        .unassign_private_ip_addresses()
        .network_interface_id(eni.as_str())
        .set_ipv4_prefixes(Some(prefixes.map(|prefix| prefix.to_string()).collect()));
    let answer = request.customize().config_override(once()).send().await;
    answer.map_err(|error| failure("UnassignPrivateIpAddresses", &error))?;
    Ok(CloudAnswer::Done)
}

/// All groups at once: doing it twice is doing it once, so it may be repeated.
pub(in crate::cloud) async fn set_groups(
    client: &Client,
    eni: &EniId,
    groups: &[SecurityGroupId],
) -> CloudResult {
    let request = client
        .modify_network_interface_attribute()
        .network_interface_id(eni.as_str())
        .set_groups(Some(groups.iter().map(ToString::to_string).collect()));
    let answer = request.send().await;
    answer.map_err(|error| failure("ModifyNetworkInterfaceAttribute", &error))?;
    Ok(CloudAnswer::Done)
}

fn tag_list(tags: &BTreeMap<String, String>) -> Vec<Tag> {
    tags.iter()
        .map(|(key, value)| Tag::builder().key(key).value(value).build())
        .collect()
}

pub(in crate::cloud) async fn tag_eni(
    client: &Client,
    eni: &EniId,
    tags: &BTreeMap<String, String>,
) -> CloudResult {
    let request = client
        .create_tags()
        .resources(eni.as_str())
        .set_tags(Some(tag_list(tags)));
    let answer = request.send().await;
    answer.map_err(|error| failure("CreateTags", &error))?;
    Ok(CloudAnswer::Done)
}

pub(in crate::cloud) async fn detach(client: &Client, attachment: &AttachmentId) -> CloudResult {
    let request = client
        .detach_network_interface()
        .attachment_id(attachment.as_str());
    let answer = request.customize().config_override(once()).send().await;
    answer.map_err(|error| failure("DetachNetworkInterface", &error))?;
    Ok(CloudAnswer::Done)
}

pub(in crate::cloud) async fn delete(client: &Client, eni: &EniId) -> CloudResult {
    let request = client
        .delete_network_interface()
        .network_interface_id(eni.as_str());
    let answer = request.customize().config_override(once()).send().await;
    answer.map_err(|error| failure("DeleteNetworkInterface", &error))?;
    Ok(CloudAnswer::Done)
}
