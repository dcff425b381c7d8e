//! The EC2 and metadata clients against the lab's endpoints: the real SDK, real HTTP, AWS's rules.
//!
//! The calls that free something need a proof that only the witness module makes; `src/cloud/lab_tests.rs` has them.

use std::collections::BTreeMap;
use std::net::TcpListener;
use std::time::Duration;

use aws_cni::cloud::{Ec2, Ec2Settings, Imds, ImdsError, ImdsLimits, NodeDiscovery};
use aws_cni::config::AwsConfig;
use aws_cni::ipam::cloud::{
    Amount, CloudAnswer, CloudCall, CloudEni, CloudFailure, ConnectionTracking, DescribeScope, FailureClass,
};
use aws_cni::ipam::ids::{CardIndex, DeviceIndex};
use aws_cni_lab::calls::Service;
use aws_cni_lab::cloud::{Cloud, CloudConfig};
use aws_cni_lab::faults::{Effect, Rule};
use aws_cni_lab::http::Server;
use aws_cni_lab::vpc::{GroupId, InstanceId, Mac, NewInstance, SubnetId};

struct Lab {
    cloud: Cloud,
    subnet: SubnetId,
    group: GroupId,
    node: InstanceId,
    _servers: (Server, Server),
    ec2: Ec2,
    imds: Imds,
}

fn listen() -> (TcpListener, String) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let url = format!("http://{}", listener.local_addr().unwrap());
    (listener, url)
}

/// One node, its EC2 and its metadata service, and the product's clients of both with the node's own role.
fn lab(instance_type: &str) -> Lab {
    let cloud = Cloud::new(&CloudConfig::default()).unwrap();
    let (subnet, group) = cloud.model(|model| {
        let cidrs = ["10.0.0.0/16".parse().unwrap(), "100.64.0.0/16".parse().unwrap()];
        let vpc = model.create_vpc(&cidrs, None);
        let group = model.create_group(&vpc, "nodes").unwrap();
        let cidr = "10.0.0.0/24".parse().unwrap();
        (
            model.create_subnet(&vpc, "eu-central-1a", cidr, None).unwrap(),
            group,
        )
    });
    let node = cloud
        .run_instance(NewInstance::new(instance_type, &subnet, &group))
        .unwrap()
        .id;
    let (ec2_listener, ec2_url) = listen();
    let (imds_listener, imds_url) = listen();
    let servers = (
        cloud.serve_ec2_for(ec2_listener, Some(node.clone())).unwrap(),
        cloud.serve_imds_for(imds_listener, Some(node.clone())).unwrap(),
    );
    let config = AwsConfig {
        http_timeout: Duration::from_secs(20),
        max_attempts: 2,
        ec2_endpoint: Some(ec2_url),
        metadata_endpoint: Some(imds_url.clone()),
        ..AwsConfig::default()
    };
    let ec2 = Ec2::new(Ec2Settings::of_node(&config, Some("eu-central-1")));
    let imds = Imds::new(Some(&imds_url), ImdsLimits::default()).unwrap();
    Lab {
        cloud,
        subnet,
        group,
        node,
        _servers: servers,
        ec2,
        imds,
    }
}

impl Lab {
    fn create(&self, token: &str, secondary_addresses: u32) -> CloudCall {
        CloudCall::CreateEni {
            token: token.into(),
            subnet: self.subnet.to_string().into(),
            groups: vec![self.group.to_string().into()],
            amount: Amount::Addresses(secondary_addresses),
            description: format!("aws-K8S-{}", self.node),
            tags: BTreeMap::from([(
                "node.k8s.amazonaws.com/instance_id".to_owned(),
                self.node.to_string(),
            )]),
            tracking: ConnectionTracking::default(),
        }
    }

    fn attach(&self, eni: &CloudEni, device: u32) -> CloudCall {
        CloudCall::AttachEni {
            eni: eni.id.clone(),
            instance: self.node.to_string().into(),
            device: DeviceIndex(device),
            card: CardIndex(0),
        }
    }

    fn describe(&self, scope: DescribeScope) -> CloudCall {
        CloudCall::DescribeEnis {
            instance: self.node.to_string().into(),
            scope,
        }
    }

    async fn created(&self, token: &str, secondary_addresses: u32) -> CloudEni {
        match self.ec2.execute(&self.create(token, secondary_addresses)).await {
            Ok(CloudAnswer::Created(eni)) => eni,
            other => panic!("{other:?}"),
        }
    }

    async fn enis(&self, scope: DescribeScope) -> Vec<CloudEni> {
        match self.ec2.execute(&self.describe(scope)).await {
            Ok(CloudAnswer::Enis(enis)) => enis,
            other => panic!("{other:?}"),
        }
    }

    async fn fails(&self, call: &CloudCall) -> CloudFailure {
        self.ec2.execute(call).await.unwrap_err()
    }
}

#[tokio::test]
async fn an_eni_from_creation_to_service() {
    let lab = lab("m5.large");
    let eni = lab.created("t1", 4).await;
    assert_eq!((eni.secondary.len(), eni.attachment.is_none()), (4, true));
    assert_eq!(
        eni.tags.get("node.k8s.amazonaws.com/instance_id"),
        Some(&lab.node.to_string())
    );
    let unattached = lab.enis(DescribeScope::OursUnattached).await;
    assert_eq!(
        unattached.iter().map(|eni| &eni.id).collect::<Vec<_>>(),
        [&eni.id]
    );

    let Ok(CloudAnswer::Attached(attachment)) = lab.ec2.execute(&lab.attach(&eni, 1)).await else {
        panic!()
    };
    let call = CloudCall::DeleteOnTermination {
        eni: eni.id.clone(),
        attachment: attachment.clone(),
    };
    assert_eq!(lab.ec2.execute(&call).await, Ok(CloudAnswer::Done));
    let call = CloudCall::Assign {
        eni: eni.id.clone(),
        amount: Amount::Addresses(3),
    };
    let Ok(CloudAnswer::Assigned {
        addresses: assigned, ..
    }) = lab.ec2.execute(&call).await
    else {
        panic!()
    };
    assert_eq!(assigned.len(), 3);

    let attached = lab.enis(DescribeScope::Attached).await;
    assert_eq!(attached.len(), 2);
    let seen = attached.iter().find(|seen| seen.id == eni.id).unwrap();
    assert_eq!(
        (seen.mac, seen.primary, seen.secondary.len()),
        (eni.mac, eni.primary, 7)
    );
    let place = seen.attachment.as_ref().unwrap();
    assert_eq!(
        (&place.id, place.device, place.delete_on_termination),
        (&attachment, DeviceIndex(1), true)
    );
    assert_eq!(lab.enis(DescribeScope::OursUnattached).await, []);
}

/// The token makes a repetition harmless, also one of the SDK's own after a lost answer.
#[tokio::test]
async fn a_lost_answer_to_create_costs_no_second_eni() {
    let lab = lab("m5.large");
    lab.cloud
        .faults()
        .inject(Rule::ec2("CreateNetworkInterface", Effect::LoseAnswer).once());
    let first = lab.created("t1", 2).await;
    assert_eq!(lab.cloud.calls().count("CreateNetworkInterface"), 2);
    let again = lab.created("t1", 2).await;
    assert_eq!(first.id, again.id);
    assert_eq!(lab.enis(DescribeScope::OursUnattached).await.len(), 1);
}

/// The others are told as what they are: no answer, and the effect may have happened.
#[tokio::test]
async fn a_lost_answer_to_assign_is_not_repeated() {
    let lab = lab("m5.large");
    let eni = lab.created("t1", 0).await;
    for effect in [Effect::LoseAnswer, Effect::LoseRequest, Effect::ResetAfter] {
        lab.cloud
            .faults()
            .inject(Rule::ec2("AssignPrivateIpAddresses", effect).once());
        let call = CloudCall::Assign {
            eni: eni.id.clone(),
            amount: Amount::Addresses(1),
        };
        let failure = lab.fails(&call).await;
        assert_eq!((failure.class, failure.code), (FailureClass::NoAnswer, None));
    }
    assert_eq!(lab.cloud.calls().count("AssignPrivateIpAddresses"), 3);
    let seen = lab.enis(DescribeScope::OursUnattached).await;
    assert_eq!(seen[0].secondary.len(), 2, "the first and the third took effect");
}

#[tokio::test]
async fn ec2s_own_limits_have_their_classes() {
    let lab = lab("t3.small");
    let first = lab.created("t1", 3).await;
    let call = CloudCall::Assign {
        eni: first.id.clone(),
        amount: Amount::Addresses(50),
    };
    assert_eq!(lab.ec2.execute(&lab.attach(&first, 1)).await.map(|_| ()), Ok(()));
    let failure = lab.fails(&call).await;
    assert_eq!(failure.class, FailureClass::AddressLimit, "{failure}");
    assert!(failure.request_id.is_some(), "{failure}");

    let second = lab.created("t2", 0).await;
    assert_eq!(
        lab.fails(&lab.attach(&second, 1)).await.class,
        FailureClass::Conflict
    );
    assert_eq!(lab.ec2.execute(&lab.attach(&second, 2)).await.map(|_| ()), Ok(()));
    let third = lab.created("t3", 0).await;
    assert_eq!(
        lab.fails(&lab.attach(&third, 3)).await.class,
        FailureClass::AttachmentLimit
    );

    lab.cloud.model(|model| model.leave_free(&lab.subnet, 1)).unwrap();
    assert_eq!(
        lab.fails(&lab.create("t4", 5)).await.class,
        FailureClass::SubnetFull
    );

    let gone = CloudCall::Assign {
        eni: "eni-0123456789abcdef0".into(),
        amount: Amount::Addresses(1),
    };
    let failure = lab.fails(&gone).await;
    assert_eq!(
        (failure.class, failure.code.as_deref()),
        (FailureClass::Gone, Some("InvalidNetworkInterfaceID.NotFound"))
    );
}

#[tokio::test]
async fn injected_errors_have_their_classes() {
    let lab = lab("m5.large");
    for (code, class) in [
        ("RequestLimitExceeded", FailureClass::Throttled),
        ("InsufficientCidrBlocks", FailureClass::SubnetFull),
        ("NetworkInterfaceLimitExceeded", FailureClass::AccountLimit),
        ("UnauthorizedOperation", FailureClass::Denied),
        ("InvalidSubnetID.NotFound", FailureClass::Gone),
        ("InternalError", FailureClass::Server),
    ] {
        let rule = lab
            .cloud
            .faults()
            .inject(Rule::ec2_error("CreateNetworkInterface", code, "no"));
        let failure = lab.fails(&lab.create(code, 0)).await;
        assert_eq!(
            (failure.class, failure.code.as_deref()),
            (class, Some(code)),
            "{failure}"
        );
        lab.cloud.faults().withdraw(rule);
    }
}

#[tokio::test]
async fn limits_come_from_describe_instance_types() {
    let lab = lab("m5.large");
    let call = CloudCall::DescribeInstanceType {
        instance_type: "m5.large".into(),
    };
    let Ok(CloudAnswer::Limits(limits)) = lab.ec2.execute(&call).await else {
        panic!()
    };
    assert_eq!((limits.enis, limits.ipv4_per_eni), (3, 10));
}

async fn discover(lab: &Lab) -> NodeDiscovery {
    lab.imds
        .discover()
        .await
        .unwrap_or_else(|error| panic!("{error}"))
}

#[tokio::test]
async fn discovery_agrees_with_ec2_and_is_frugal() {
    let lab = lab("m5.large");
    let node = discover(&lab).await;
    assert!(lab.imds.requests().await <= 20, "{}", lab.imds.requests().await);
    assert_eq!(
        (node.instance.as_str(), node.instance_type.as_str()),
        (lab.node.to_string().as_str(), "m5.large")
    );
    assert_eq!(
        (node.region.as_str(), node.availability_zone.as_str()),
        ("eu-central-1", "eu-central-1a")
    );
    let described = lab.enis(DescribeScope::Attached).await;
    let primary = node.primary().unwrap();
    assert_eq!(
        (&primary.id, primary.mac, &primary.subnet),
        (&described[0].id, described[0].mac, &described[0].subnet)
    );
    assert_eq!(primary.addresses, [described[0].primary]);
    assert_eq!(primary.subnet_cidr, Some("10.0.0.0/24".parse().unwrap()));
    assert_eq!(
        primary.vpc_cidrs,
        ["10.0.0.0/16".parse().unwrap(), "100.64.0.0/16".parse().unwrap()]
    );
    assert_eq!(primary.security_groups, [lab.group.to_string().into()]);
}

#[tokio::test]
async fn discovery_sees_a_second_eni() {
    let lab = lab("m5.large");
    let eni = lab.created("t1", 2).await;
    lab.ec2.execute(&lab.attach(&eni, 1)).await.unwrap();
    // EC2's attach is asynchronous and metadata lags behind it, so the client is asked until it shows.
    let waiting = async {
        loop {
            if let Some(seen) = discover(&lab)
                .await
                .enis
                .into_iter()
                .find(|seen| seen.id == eni.id)
            {
                break seen;
            }
        }
    };
    let seen = tokio::time::timeout(Duration::from_secs(30), waiting)
        .await
        .unwrap();
    assert_eq!(
        (seen.device, seen.card, seen.addresses.len()),
        (DeviceIndex(1), CardIndex(0), 3)
    );
    assert_eq!(seen.addresses.first(), Some(&eni.primary));
}

#[tokio::test]
async fn metadata_that_lies_is_not_believed() {
    let lab = lab("m5.large");
    lab.cloud
        .faults()
        .lies(&lab.node, |lies| lies.imds_empty_macs = true);
    assert_eq!(lab.imds.discover().await.unwrap_err(), ImdsError::NoInterfaces);
    let ghost = Mac([0x0a, 0x12, 0x34, 0x56, 0x78, 0x9a]);
    lab.cloud.faults().lies(&lab.node, |lies| {
        lies.imds_empty_macs = false;
        lies.imds_ghost_macs.insert(ghost);
    });
    let node = discover(&lab).await;
    assert_eq!(node.enis.len(), 1);
    assert_eq!(node.incomplete.len(), 1);
    assert_eq!(node.incomplete[0].0.to_string(), ghost.to_string());
}

#[tokio::test]
async fn metadata_errors_name_path_and_status() {
    let lab = lab("m5.large");
    lab.cloud
        .faults()
        .inject(Rule::imds_status("meta-data/network/interfaces/macs/*/subnet-id", 500).times(1));
    discover(&lab).await;
    lab.cloud.faults().inject(Rule::imds_status(
        "meta-data/network/interfaces/macs/*/subnet-id",
        500,
    ));
    let error = lab.imds.discover().await.unwrap_err();
    assert!(
        matches!(&error, ImdsError::Status { path, status: 500 } if path.ends_with("/subnet-id")),
        "{error}"
    );
}

/// Credentials, too, come from this node's metadata: the role's, fetched with a token, once.
#[tokio::test]
async fn the_instance_role_signs() {
    let lab = lab("m5.large");
    lab.enis(DescribeScope::Attached).await;
    lab.enis(DescribeScope::Attached).await;
    let asked = lab.cloud.calls().counters(Service::Imds, 0);
    let of_role: usize = asked
        .iter()
        .filter(|(path, _)| path.contains("security-credentials"))
        .map(|(_, n)| n)
        .sum();
    assert!((1..=3).contains(&of_role), "{asked:?}");
}
