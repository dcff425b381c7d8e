//! EC2 through the AWS SDK: executes a [`CloudCall`] and reports what happened, whatever happened.

mod client;
mod describe;
pub(super) mod mutate;

use aws_sdk_ec2::Client;
use tokio::sync::OnceCell;

use super::failure::setup_failure;
use super::settings::Ec2Settings;
use crate::ipam::cloud::{Amount, CloudCall, CloudFailure, CloudResult};
use crate::ipam::witness::Proof;

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

    /// Answered by `http` instead of the network.
    #[cfg(any(test, feature = "fuzz"))]
    pub(super) async fn over(settings: Ec2Settings, http: aws_sdk_ec2::config::SharedHttpClient) -> Self {
        let client = OnceCell::new_with(Some(client::over(&settings, http).await));
        Self { settings, client }
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
                mutate::create(request, *amount, tags, *tracking).await
            }
            CloudCall::AttachEni {
                eni,
                instance,
                device,
                card,
            } => mutate::attach(client, eni, instance, *device, *card).await,
            CloudCall::DeleteOnTermination { eni, attachment } => {
                mutate::delete_on_termination(client, eni, attachment).await
            }
            CloudCall::Assign { eni, amount } => mutate::assign(client, eni, *amount).await,
            CloudCall::UnassignAddresses { eni, proofs } => {
                mutate::unassign(client, eni, proofs.iter().map(Proof::subject).copied()).await
            }
            CloudCall::UnassignPrefixes { eni, proofs } => {
                mutate::unassign_prefixes(client, eni, proofs.iter().map(Proof::subject).copied()).await
            }
            CloudCall::SetGroups { eni, groups } => mutate::set_groups(client, eni, groups).await,
            CloudCall::TagEni { eni, tags } => mutate::tag_eni(client, eni, tags).await,
            CloudCall::DescribeLeftEnis { vpc, cluster } => {
                describe::left_enis(client, vpc, cluster.as_deref()).await
            }
            CloudCall::DescribeInstances { instances } => describe::instances(client, instances).await,
            CloudCall::DescribeSubnets { vpc, zone } => describe::subnets(client, vpc, zone).await,
            CloudCall::DetachEni { proof, .. } => mutate::detach(client, proof.subject()).await,
            CloudCall::DeleteEni { proof } => mutate::delete(client, proof.subject()).await,
            CloudCall::DescribeEnis { instance, scope } => {
                describe::of_instance(client, instance, *scope).await
            }
            CloudCall::DescribeInstanceType { instance_type } => {
                describe::instance_type(client, instance_type.as_str()).await
            }
        }
    }

    pub(super) async fn client(&self, action: &'static str) -> Result<&Client, CloudFailure> {
        let built = self
            .client
            .get_or_try_init(|| client::build(&self.settings))
            .await;
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
        CloudCall::Assign {
            amount: Amount::Block,
            ..
        } => "AssignIpv6Addresses",
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
