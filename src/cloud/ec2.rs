//! EC2 through the AWS SDK: executes a [`CloudCall`] and reports what happened, whatever happened.

use std::collections::BTreeMap;
use std::net::Ipv4Addr;

use aws_config::default_provider::credentials::DefaultCredentialsChain;
use aws_config::provider_config::ProviderConfig;
use aws_config::retry::RetryConfig;
use aws_config::timeout::TimeoutConfig;
use aws_config::{BehaviorVersion, ConfigLoader, Region};
use aws_sdk_ec2::Client;
use aws_sdk_ec2::config::{Credentials, FrameworkMetadata, SharedHttpClient};
use aws_sdk_ec2::operation::create_network_interface::builders::CreateNetworkInterfaceFluentBuilder;
use aws_sdk_ec2::types::{
    ConnectionTrackingSpecificationRequest, Filter, InstanceStateName, NetworkInterfaceAttachmentChanges,
    Reservation, ResourceType, Tag, TagSpecification,
};
use tokio::sync::OnceCell;

use super::convert::{self, BadAnswer};
use super::failure::{bad_answer, failure, setup_failure};
use super::http::{ByScheme, CaBundleError, read_ca_bundle};
use super::retries::ThePoolPacesThrottling;
use super::settings::Ec2Settings;
use crate::ipam::cidr::Ipv4Cidr;
use crate::ipam::cloud::{
    Amount, CloudAnswer, CloudCall, CloudEni, CloudFailure, CloudResult, ConnectionTracking, DescribeScope,
};
use crate::ipam::ids::{AttachmentId, CardIndex, DeviceIndex, EniId, InstanceId, SecurityGroupId, VpcId};
use crate::ipam::tags;
use crate::ipam::witness::Proof;

/// EC2's maximum of results for a page of `DescribeNetworkInterfaces`.
const PAGE: i32 = 1000;

/// An instance carries at most a few dozen ENIs; more pages than this is an endpoint that never ends.
const MOST_PAGES: usize = 50;

/// EC2, reached when first asked.
#[derive(Debug)]
pub struct Ec2 {
    settings: Ec2Settings,
    client: OnceCell<Client>,
}

impl Ec2 {
    /// Costs nothing: the SDK, its credentials and TLS are set up by the first call.
    pub fn new(settings: Ec2Settings) -> Self {
        Self {
            settings,
            client: OnceCell::new(),
        }
    }

    /// Executes one call to its end; a failure says whether the effect may have happened.
    pub async fn execute(&self, call: &CloudCall) -> CloudResult {
        let client = self.client(action(call)).await?;
        match call {
            CloudCall::CreateEni {
                token,
                subnet,
                groups,
                amount,
                description,
                tags,
                tracking,
            } => {
                let request = client
                    .create_network_interface()
                    .client_token(token.as_str())
                    .subnet_id(subnet.as_str())
                    .set_groups(Some(groups.iter().map(ToString::to_string).collect()))
                    .description(description);
                create(request, *amount, tags, *tracking).await
            }
            CloudCall::AttachEni {
                eni,
                instance,
                device,
                card,
            } => attach(client, eni, instance, *device, *card).await,
            CloudCall::DeleteOnTermination { eni, attachment } => {
                delete_on_termination(client, eni, attachment).await
            }
            CloudCall::Assign { eni, amount } => assign(client, eni, *amount).await,
            CloudCall::UnassignAddresses { eni, proofs } => {
                unassign(client, eni, proofs.iter().map(Proof::subject).copied()).await
            }
            CloudCall::UnassignPrefixes { eni, proofs } => {
                unassign_prefixes(client, eni, proofs.iter().map(Proof::subject).copied()).await
            }
            CloudCall::SetGroups { eni, groups } => set_groups(client, eni, groups).await,
            CloudCall::TagEni { eni, tags } => tag_eni(client, eni, tags).await,
            CloudCall::DescribeLeftEnis { vpc, cluster } => left_enis(client, vpc, cluster.as_deref()).await,
            CloudCall::DescribeInstances { instances } => describe_instances(client, instances).await,
            CloudCall::DescribeSubnets { vpc, zone } => describe_subnets(client, vpc, zone).await,
            CloudCall::DetachEni { proof, .. } => detach(client, proof.subject()).await,
            CloudCall::DeleteEni { proof } => delete(client, proof.subject()).await,
            CloudCall::DescribeEnis { instance, scope } => describe_enis(client, instance, *scope).await,
            CloudCall::DescribeInstanceType { instance_type } => {
                describe_instance_type(client, instance_type.as_str()).await
            }
        }
    }

    pub(super) async fn client(&self, action: &'static str) -> Result<&Client, CloudFailure> {
        let built = self.client.get_or_try_init(|| build(&self.settings)).await;
        built.map_err(|error| setup_failure(action, &error))
    }
}

/// The name EC2 and IAM know a call by.
pub fn action(call: &CloudCall) -> &'static str {
    match call {
        CloudCall::CreateEni { .. } => "CreateNetworkInterface",
        CloudCall::AttachEni { .. } => "AttachNetworkInterface",
        CloudCall::DeleteOnTermination { .. } | CloudCall::SetGroups { .. } => {
            "ModifyNetworkInterfaceAttribute"
        }
        CloudCall::TagEni { .. } => "CreateTags",
        CloudCall::Assign { .. } => "AssignPrivateIpAddresses",
        CloudCall::UnassignAddresses { .. } | CloudCall::UnassignPrefixes { .. } => {
            "UnassignPrivateIpAddresses"
        }
        CloudCall::DetachEni { .. } => "DetachNetworkInterface",
        CloudCall::DeleteEni { .. } => "DeleteNetworkInterface",
        CloudCall::DescribeEnis { .. } | CloudCall::DescribeLeftEnis { .. } => "DescribeNetworkInterfaces",
        CloudCall::DescribeInstances { .. } => "DescribeInstances",
        CloudCall::DescribeSubnets { .. } => "DescribeSubnets",
        CloudCall::DescribeInstanceType { .. } => "DescribeInstanceTypes",
    }
}

async fn build(settings: &Ec2Settings) -> Result<Client, CaBundleError> {
    let ca_bundle = settings.ca_bundle.as_deref().map(read_ca_bundle).transpose()?;
    let http = SharedHttpClient::new(ByScheme::new(ca_bundle));
    let mut loader = aws_config::defaults(BehaviorVersion::latest())
        .http_client(http.clone())
        .retry_config(RetryConfig::standard().with_max_attempts(settings.max_attempts))
        .timeout_config(timeouts(settings));
    if let Ok(name) = FrameworkMetadata::new("aws-cni", Some(env!("CARGO_PKG_VERSION"))) {
        loader = loader.framework_metadata(name);
    }
    if let Some(region) = &settings.region {
        loader = loader.region(Region::new(region.clone()));
    }
    if let Some(endpoint) = &settings.endpoint {
        loader = loader.endpoint_url(endpoint);
    }
    if let Some(profile) = &settings.profile {
        loader = loader.profile_name(profile);
    }
    if let Some(use_fips) = settings.use_fips {
        loader = loader.use_fips(use_fips);
    }
    if let Some(use_dual_stack) = settings.use_dual_stack {
        loader = loader.use_dual_stack(use_dual_stack);
    }
    let loader = credentials(settings, http, loader).await;
    let config = aws_sdk_ec2::config::Builder::from(&loader.load().await)
        .retry_classifier(ThePoolPacesThrottling)
        .build();
    Ok(Client::from_conf(config))
}

fn timeouts(settings: &Ec2Settings) -> TimeoutConfig {
    TimeoutConfig::builder()
        .connect_timeout(settings.connect_timeout)
        .read_timeout(settings.attempt_timeout)
        .operation_attempt_timeout(settings.attempt_timeout)
        .build()
}

/// What the SDK's own chain cannot know: keys and a metadata endpoint from the configuration file.
async fn credentials(settings: &Ec2Settings, http: SharedHttpClient, loader: ConfigLoader) -> ConfigLoader {
    if let Some(key) = &settings.access_key {
        let token = key.session_token.clone();
        return loader.credentials_provider(Credentials::new(
            &key.id,
            &key.secret,
            token,
            None,
            "configuration file",
        ));
    }
    let Some(endpoint) = &settings.metadata_endpoint else {
        return loader;
    };
    let region = settings.region.clone().map(Region::new);
    let config = ProviderConfig::without_region()
        .with_region(region)
        .with_http_client(http);
    let metadata = aws_config::imds::Client::builder()
        .configure(&config)
        .endpoint(endpoint);
    let Ok(metadata) = metadata else { return loader };
    let mut chain = DefaultCredentialsChain::builder()
        .configure(config)
        .imds_client(metadata.build());
    if let Some(profile) = &settings.profile {
        chain = chain.profile_name(profile);
    }
    loader.credentials_provider(chain.build().await)
}

/// For calls whose repetition after a lost answer would do their work twice, or report the first one's success as an
/// error: the core decides, with a fresh look, whether to repeat them.
fn once() -> aws_sdk_ec2::config::Builder {
    aws_sdk_ec2::Config::builder().retry_config(RetryConfig::disabled())
}

fn count(value: u32) -> i32 {
    i32::try_from(value).unwrap_or(i32::MAX)
}

async fn create(
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

async fn attach(
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

async fn delete_on_termination(client: &Client, eni: &EniId, attachment: &AttachmentId) -> CloudResult {
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

async fn assign(client: &Client, eni: &EniId, amount: Amount) -> CloudResult {
    const ACTION: &str = "AssignPrivateIpAddresses";
    let request = client
        .assign_private_ip_addresses()
        .network_interface_id(eni.as_str());
    let request = match amount {
        Amount::Addresses(number) => request.secondary_private_ip_address_count(count(number)),
        Amount::Prefixes(number) => request.ipv4_prefix_count(count(number)),
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

pub(super) async fn unassign(
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

async fn unassign_prefixes(
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
async fn set_groups(client: &Client, eni: &EniId, groups: &[SecurityGroupId]) -> CloudResult {
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

async fn tag_eni(client: &Client, eni: &EniId, tags: &BTreeMap<String, String>) -> CloudResult {
    let request = client
        .create_tags()
        .resources(eni.as_str())
        .set_tags(Some(tag_list(tags)));
    let answer = request.send().await;
    answer.map_err(|error| failure("CreateTags", &error))?;
    Ok(CloudAnswer::Done)
}

pub(super) async fn detach(client: &Client, attachment: &AttachmentId) -> CloudResult {
    let request = client
        .detach_network_interface()
        .attachment_id(attachment.as_str());
    let answer = request.customize().config_override(once()).send().await;
    answer.map_err(|error| failure("DetachNetworkInterface", &error))?;
    Ok(CloudAnswer::Done)
}

pub(super) async fn delete(client: &Client, eni: &EniId) -> CloudResult {
    let request = client
        .delete_network_interface()
        .network_interface_id(eni.as_str());
    let answer = request.customize().config_override(once()).send().await;
    answer.map_err(|error| failure("DeleteNetworkInterface", &error))?;
    Ok(CloudAnswer::Done)
}

fn filter(name: &str, value: &str) -> Filter {
    Filter::builder().name(name).values(value).build()
}

async fn describe_enis(client: &Client, instance: &InstanceId, scope: DescribeScope) -> CloudResult {
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
async fn left_enis(client: &Client, vpc: &VpcId, cluster: Option<&str>) -> CloudResult {
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
async fn describe_instances(client: &Client, instances: &[InstanceId]) -> CloudResult {
    const ACTION: &str = "DescribeInstances";
    let ids = Filter::builder()
        .name("instance-id")
        .set_values(Some(instances.iter().map(ToString::to_string).collect()))
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
            None => return Ok(CloudAnswer::Instances(living)),
        }
    }
    Err(bad_answer(ACTION, &BadAnswer::TooManyPages(MOST_PAGES)))
}

async fn describe_subnets(client: &Client, vpc: &VpcId, zone: &str) -> CloudResult {
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
        for subnet in answer.subnets() {
            subnets.push(convert::subnet(subnet).map_err(|error| bad_answer(ACTION, &error))?);
        }
        match answer.next_token().filter(|token| !token.is_empty()) {
            Some(token) => next = Some(token.to_owned()),
            None => return Ok(CloudAnswer::Subnets(subnets)),
        }
    }
    Err(bad_answer(ACTION, &BadAnswer::TooManyPages(MOST_PAGES)))
}

async fn describe_instance_type(client: &Client, instance_type: &str) -> CloudResult {
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
