//! Calls against the lab's EC2, which holds AWS's rules: those that free something, which stand below the gate of
//! `Proof` that only the witness module can make, and those about prefixes, groups, tags, subnets and what others left.
//! The rest of the calls is in `tests/it/cloud.rs`.

use std::collections::BTreeMap;
use std::net::{Ipv4Addr, TcpListener};
use std::time::{Duration, Instant};

use aws_cni_lab::cloud::{Cloud, CloudConfig};
use aws_cni_lab::faults::{Effect, Rule};
use aws_cni_lab::http::Server;
use aws_cni_lab::vpc::{self, GroupId, InstanceId, NewInstance, SubnetId, VpcId};

use super::testing::settings;
use super::*;
use crate::ipam::cloud::{
    Amount, CloudAnswer, CloudCall, CloudEni, CloudSubnet, ConnectionTracking, FailureClass,
};
use crate::ipam::ids::{AttachmentId, CardIndex, DeviceIndex};
use crate::ipam::tags;

const ZONE: &str = "eu-central-1a";

/// One node and its EC2.
struct Lab {
    cloud: Cloud,
    vpc: VpcId,
    subnet: SubnetId,
    group: GroupId,
    node: InstanceId,
    ec2: Ec2,
    _server: Server,
}

fn lab(instance_type: &str, cidr: &str) -> Lab {
    let cloud = Cloud::new(&CloudConfig::default()).unwrap();
    let (vpc, subnet, group) = cloud.model(|model| {
        let vpc = model.create_vpc(&["10.0.0.0/16".parse().unwrap()], None);
        let group = model.create_group(&vpc, "nodes").unwrap();
        let subnet = model.create_subnet(&vpc, ZONE, cidr.parse().unwrap(), None);
        (vpc, subnet.unwrap(), group)
    });
    let node = cloud
        .run_instance(NewInstance::new(instance_type, &subnet, &group))
        .unwrap()
        .id;
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let endpoint = format!("http://{}", listener.local_addr().unwrap());
    let server = cloud.serve_ec2_for(listener, Some(node.clone())).unwrap();
    Lab {
        cloud,
        vpc,
        subnet,
        group,
        node,
        ec2: Ec2::new(settings(endpoint)),
        _server: server,
    }
}

impl Lab {
    fn create(&self, token: &str, amount: Amount, tags: &[(&str, &str)]) -> CloudCall {
        CloudCall::CreateEni {
            token: token.into(),
            subnet: self.subnet.to_string().into(),
            groups: vec![self.group.to_string().into()],
            amount,
            description: "d".into(),
            tags: text(tags),
            tracking: ConnectionTracking::default(),
        }
    }

    async fn created(&self, token: &str, amount: Amount, tags: &[(&str, &str)]) -> CloudEni {
        match self.ec2.execute(&self.create(token, amount, tags)).await {
            Ok(CloudAnswer::Created(eni)) => eni,
            other => panic!("{other:?}"),
        }
    }

    fn attach(&self, eni: &CloudEni) -> CloudCall {
        CloudCall::AttachEni {
            eni: eni.id.clone(),
            instance: self.node.to_string().into(),
            device: DeviceIndex(1),
            card: CardIndex(0),
        }
    }

    fn shown(&self, eni: &CloudEni) -> vpc::Eni {
        self.cloud.model(|model| {
            let mut all = model.enis().values();
            let found = all.find(|other| other.id.to_string() == eni.id.to_string());
            vpc::Eni::clone(found.unwrap())
        })
    }

    async fn class(&self, call: &CloudCall) -> (FailureClass, String) {
        let failure = self.ec2.execute(call).await.unwrap_err();
        assert!(failure.request_id.is_some(), "{failure}");
        (failure.class, failure.code.unwrap_or_default())
    }
}

fn text(pairs: &[(&str, &str)]) -> BTreeMap<String, String> {
    let pair = |(key, value): &(&str, &str)| ((*key).to_owned(), (*value).to_owned());
    pairs.iter().map(pair).collect()
}

#[tokio::test]
async fn an_eni_is_emptied_detached_and_deleted() {
    let lab = lab("m5.large", "10.0.0.0/24");
    let ec2 = &lab.ec2;
    let eni = lab.created("t", Amount::Addresses(3), &[("k", "v")]).await;
    let Ok(CloudAnswer::Attached(attachment)) = ec2.execute(&lab.attach(&eni)).await else {
        panic!()
    };

    let client = ec2.client("test").await.unwrap();
    assert_eq!(
        ec2::mutate::unassign(client, &eni.id, eni.secondary.iter().copied()).await,
        Ok(CloudAnswer::Done)
    );
    let repeated = ec2::mutate::unassign(client, &eni.id, eni.secondary.iter().copied())
        .await
        .unwrap_err();
    assert_eq!(repeated.class, FailureClass::Conflict, "{repeated}");
    let early = ec2::mutate::delete(client, &eni.id).await.unwrap_err();
    assert_eq!(early.class, FailureClass::Conflict, "{early}");
    assert_eq!(
        ec2::mutate::detach(client, &attachment).await,
        Ok(CloudAnswer::Done)
    );
    let again = ec2::mutate::detach(client, &AttachmentId::from("eni-attach-0123456789abcdef0"))
        .await
        .unwrap_err();
    assert_eq!(again.class, FailureClass::Gone, "{again}");
    // Detaching is asynchronous: until it is through, deleting is a conflict.
    let deleting = async {
        while let Err(failure) = ec2::mutate::delete(client, &eni.id).await {
            assert_eq!(failure.class, FailureClass::Conflict, "{failure}");
        }
    };
    tokio::time::timeout(Duration::from_secs(30), deleting)
        .await
        .unwrap();
    assert_eq!(
        ec2::mutate::delete(client, &eni.id).await.unwrap_err().class,
        FailureClass::Gone
    );
}

fn assign(eni: &CloudEni, amount: Amount) -> CloudCall {
    CloudCall::Assign {
        eni: eni.id.clone(),
        amount,
    }
}

#[tokio::test]
async fn prefixes_come_with_an_eni_or_later_and_go_alone() {
    let lab = lab("m5.large", "10.0.0.0/24");
    let eni = lab.created("t", Amount::Prefixes(2), &[]).await;
    assert_eq!((eni.prefixes.len(), eni.secondary.len()), (2, 0));
    lab.ec2.execute(&lab.attach(&eni)).await.unwrap();
    let Ok(CloudAnswer::Assigned { addresses, prefixes }) =
        lab.ec2.execute(&assign(&eni, Amount::Prefixes(1))).await
    else {
        panic!()
    };
    assert_eq!((addresses.len(), prefixes.len()), (0, 1));
    // Prefixes and addresses share the places of the type: 10 on an m5.large, the ENI's own address among them.
    lab.ec2
        .execute(&assign(&eni, Amount::Addresses(6)))
        .await
        .unwrap();
    for amount in [Amount::Prefixes(1), Amount::Addresses(1)] {
        let refused = lab.class(&assign(&eni, amount)).await;
        assert_eq!(
            refused,
            (FailureClass::AddressLimit, "PrivateIpAddressLimitExceeded".into())
        );
    }

    let client = lab.ec2.client("test").await.unwrap();
    let given = || eni.prefixes.iter().copied();
    let done = ec2::mutate::unassign_prefixes(client, &eni.id, given()).await;
    assert_eq!(done, Ok(CloudAnswer::Done));
    let left = lab.shown(&eni);
    assert_eq!((left.prefixes.len(), left.secondary.len()), (1, 6));
    let again = ec2::mutate::unassign_prefixes(client, &eni.id, given())
        .await
        .unwrap_err();
    assert_eq!(again.class, FailureClass::Conflict, "{again}");
}

/// The answer is lost and the prefix gone: nothing is repeated, and a second try is a conflict, not a disaster.
#[tokio::test]
async fn a_lost_answer_to_giving_prefixes_back_is_no_answer() {
    let lab = lab("m5.large", "10.0.0.0/24");
    let eni = lab.created("t", Amount::Prefixes(1), &[]).await;
    let silence = Rule::ec2("UnassignPrivateIpAddresses", Effect::LoseAnswer).once();
    lab.cloud.faults().inject(silence);
    let client = lab.ec2.client("test").await.unwrap();
    let lost = ec2::mutate::unassign_prefixes(client, &eni.id, eni.prefixes.iter().copied()).await;
    assert_eq!(lost.unwrap_err().class, FailureClass::NoAnswer);
    assert_eq!(lab.cloud.calls().count("UnassignPrivateIpAddresses"), 1);
    assert_eq!(lab.shown(&eni).prefixes.len(), 0);
}

/// One address in every block: room for 200 addresses and for no prefix.
#[tokio::test]
async fn a_fragmented_subnet_has_addresses_and_no_prefix() {
    let lab = lab("m5.large", "10.0.0.0/24");
    let eni = lab.created("t", Amount::Addresses(0), &[]).await;
    let one_in_each = (0..16).map(|block| Ipv4Addr::new(10, 0, 0, block * 16 + 7));
    let taken = lab.cloud.model(|model| {
        let free: Vec<Ipv4Addr> = one_in_each.filter(|at| *at != eni.primary).collect();
        model.occupy(&lab.subnet, free)
    });
    taken.unwrap();
    let full = (FailureClass::SubnetFull, "InsufficientCidrBlocks".to_owned());
    assert_eq!(lab.class(&assign(&eni, Amount::Prefixes(1))).await, full);
    assert_eq!(lab.class(&lab.create("u", Amount::Prefixes(1), &[])).await, full);
    lab.ec2
        .execute(&assign(&eni, Amount::Addresses(9)))
        .await
        .unwrap();
}

#[tokio::test]
async fn a_type_that_is_not_nitro_takes_no_prefix() {
    let lab = lab("m4.large", "10.0.0.0/24");
    let refused = (FailureClass::Other, "UnsupportedOperation".to_owned());
    let eni = lab.created("t", Amount::Prefixes(1), &[]).await;
    assert_eq!(
        lab.class(&lab.attach(&eni)).await,
        refused,
        "unattached, EC2 cannot know"
    );
    let plain = lab.created("u", Amount::Addresses(1), &[]).await;
    lab.ec2.execute(&lab.attach(&plain)).await.unwrap();
    assert_eq!(lab.class(&assign(&plain, Amount::Prefixes(1))).await, refused);
}

#[tokio::test]
async fn groups_are_replaced_within_ec2s_limits() {
    let lab = lab("m5.large", "10.0.0.0/24");
    let eni = lab.created("t", Amount::Addresses(0), &[]).await;
    let groups: Vec<GroupId> = (0..6)
        .map(|n| {
            lab.cloud
                .model(|model| model.create_group(&lab.vpc, &format!("g{n}")))
                .unwrap()
        })
        .collect();
    let set = |groups: &[GroupId]| CloudCall::SetGroups {
        eni: eni.id.clone(),
        groups: groups.iter().map(|group| group.to_string().into()).collect(),
    };
    // Setting is repeated by the SDK when its answer is lost: twice is once.
    lab.cloud
        .faults()
        .inject(Rule::ec2("ModifyNetworkInterfaceAttribute", Effect::LoseAnswer).once());
    assert_eq!(lab.ec2.execute(&set(&groups[..2])).await, Ok(CloudAnswer::Done));
    assert_eq!(lab.cloud.calls().count("ModifyNetworkInterfaceAttribute"), 2);
    assert_eq!(lab.shown(&eni).groups, groups[..2]);
    let (class, code) = lab.class(&set(&groups)).await;
    assert_eq!(class, FailureClass::AccountLimit, "{code}");
    let strange = [GroupId("sg-0123456789abcdef0".to_owned())];
    assert_eq!(lab.class(&set(&strange)).await.0, FailureClass::Gone);
    assert_eq!(lab.class(&set(&[])).await.0, FailureClass::Other);
    assert_eq!(
        lab.shown(&eni).groups,
        groups[..2],
        "what is refused changes nothing"
    );
}

#[tokio::test]
async fn tags_are_added_up_to_fifty() {
    let lab = lab("m5.large", "10.0.0.0/24");
    let eni = lab
        .created("t", Amount::Addresses(0), &[("a", "1"), ("b", "1")])
        .await;
    let tag = |tags: BTreeMap<String, String>| CloudCall::TagEni {
        eni: eni.id.clone(),
        tags,
    };
    let done = lab.ec2.execute(&tag(text(&[("b", "2"), ("c", "")]))).await;
    assert_eq!(done, Ok(CloudAnswer::Done));
    assert_eq!(lab.shown(&eni).tags, text(&[("a", "1"), ("b", "2"), ("c", "")]));
    let many = |count| (0..count).map(|n| (format!("k{n}"), String::new())).collect();
    let limit = (FailureClass::AccountLimit, "TagLimitExceeded".to_owned());
    assert_eq!(lab.class(&tag(many(48))).await, limit);
    lab.ec2.execute(&tag(many(47))).await.unwrap();
    let gone = CloudCall::TagEni {
        eni: "eni-0123456789abcdef0".into(),
        tags: many(1),
    };
    assert_eq!(lab.class(&gone).await.0, FailureClass::Gone);
}

#[tokio::test]
async fn time_outs_of_connections_go_onto_a_new_eni_and_come_back() {
    let lab = lab("m5.large", "10.0.0.0/24");
    let set = ConnectionTracking {
        tcp_established: Some(3600),
        udp_stream: Some(120),
        udp: None,
    };
    let with = |seconds: ConnectionTracking, token: &str| match lab.create(token, Amount::Addresses(1), &[]) {
        CloudCall::CreateEni {
            token,
            subnet,
            groups,
            amount,
            description,
            tags,
            ..
        } => CloudCall::CreateEni {
            token,
            subnet,
            groups,
            amount,
            description,
            tags,
            tracking: seconds,
        },
        other => other,
    };
    let Ok(CloudAnswer::Created(eni)) = lab.ec2.execute(&with(set, "t")).await else {
        panic!()
    };
    assert_eq!(eni.tracking, set);
    let wrong = ConnectionTracking {
        udp: Some(5),
        ..ConnectionTracking::default()
    };
    assert_eq!(lab.class(&with(wrong, "u")).await.0, FailureClass::Other);
}

/// What a reaper sees: ENIs of whoever, available, in this VPC, of this cluster; and who of the owners lives.
#[tokio::test]
async fn what_others_left_and_whether_they_live() {
    let lab = lab("m5.large", "10.0.0.0/24");
    let other = lab
        .cloud
        .run_instance(NewInstance::new("m5.large", &lab.subnet, &lab.group));
    let other = other.unwrap().id;
    let owner = (tags::INSTANCE, other.as_str());
    let plain = lab.created("a", Amount::Addresses(0), &[owner]).await;
    let ours = lab
        .created("b", Amount::Addresses(0), &[owner, (tags::CLUSTER, "prod")])
        .await;
    let theirs = lab
        .created("c", Amount::Addresses(0), &[owner, (tags::CLUSTER, "test")])
        .await;
    lab.created("d", Amount::Addresses(0), &[(tags::CLUSTER, "prod")])
        .await;
    let used = lab.created("e", Amount::Addresses(0), &[owner]).await;
    lab.ec2.execute(&lab.attach(&used)).await.unwrap();
    let left = async |cluster: Option<&str>| {
        let call = CloudCall::DescribeLeftEnis {
            vpc: lab.vpc.to_string().into(),
            cluster: cluster.map(str::to_owned),
        };
        match lab.ec2.execute(&call).await {
            Ok(CloudAnswer::Enis(enis)) => enis.into_iter().map(|eni| eni.id).collect::<Vec<_>>(),
            other => panic!("{other:?}"),
        }
    };
    let mut all = vec![plain.id.clone(), ours.id.clone(), theirs.id.clone()];
    all.sort();
    assert_eq!(left(None).await, all);
    assert_eq!(left(Some("prod")).await, [ours.id]);
    assert_eq!(left(Some("*")).await, [], "a name is no pattern");

    let living = async || {
        let ask = [&lab.node, &other].map(|id| id.to_string().into());
        let call = CloudCall::DescribeInstances {
            instances: ask.to_vec(),
        };
        match lab.ec2.execute(&call).await {
            Ok(CloudAnswer::Instances(living)) => living.into_values().collect::<Vec<bool>>(),
            other => panic!("{other:?}"),
        }
    };
    assert_eq!(living().await, [true, true]);
    lab.cloud
        .model(|model| model.terminate_instance(&other, Instant::now()))
        .unwrap();
    let mut after = living().await;
    after.sort_unstable();
    assert_eq!(after, [false, true]);
    lab.cloud.model(|model| model.forget_instance(&other)).unwrap();
    assert_eq!(
        living().await,
        [true],
        "EC2 says nothing of an instance it has forgotten"
    );
}

#[tokio::test]
async fn more_instances_than_one_call_takes_are_asked_about() {
    let lab = lab("m5.large", "10.0.0.0/24");
    let strangers = (0..450).map(|n| format!("i-{n:017x}").as_str().into());
    let mut instances: Vec<crate::ipam::ids::InstanceId> = strangers.collect();
    instances.push(lab.node.to_string().into());
    let call = CloudCall::DescribeInstances { instances };
    let living = BTreeMap::from([(lab.node.to_string().into(), true)]);
    assert_eq!(lab.ec2.execute(&call).await, Ok(CloudAnswer::Instances(living)));
    assert_eq!(lab.cloud.calls().count("DescribeInstances"), 3);
}

#[tokio::test]
async fn subnets_of_the_zone_with_their_free_addresses() {
    let lab = lab("m5.large", "10.0.0.0/24");
    let pods = lab.cloud.model(|model| {
        let more = |model: &mut vpc::Model, zone: &str, cidr: &str| {
            model
                .create_subnet(&lab.vpc, zone, cidr.parse().unwrap(), None)
                .unwrap()
        };
        more(model, "eu-central-1b", "10.0.1.0/24");
        let stranger = model.create_vpc(&["10.0.0.0/16".parse().unwrap()], None);
        model
            .create_subnet(&stranger, ZONE, "10.0.2.0/24".parse().unwrap(), None)
            .unwrap();
        more(model, ZONE, "10.0.2.0/24")
    });
    let role = text(&[("kubernetes.io/role/cni", "1")]);
    lab.cloud
        .model(|model| model.create_tags(&[pods.to_string()], &role, Instant::now()))
        .unwrap();
    lab.created("t", Amount::Prefixes(1), &[]).await;
    let call = CloudCall::DescribeSubnets {
        vpc: lab.vpc.to_string().into(),
        zone: ZONE.to_owned(),
    };
    let Ok(CloudAnswer::Subnets(mut found)) = lab.ec2.execute(&call).await else {
        panic!()
    };
    found.sort_by_key(|subnet| subnet.cidr);
    let subnet = |id: &SubnetId, cidr: &str, free, tags| CloudSubnet {
        id: id.to_string().into(),
        cidr: cidr.parse().unwrap(),
        free,
        tags,
    };
    // 256 less AWS's five, the node's own address, and the new ENI's with a block of 16.
    assert_eq!(
        found,
        [
            subnet(&lab.subnet, "10.0.0.0/24", 256 - 5 - 1 - 17, BTreeMap::new()),
            subnet(&pods, "10.0.2.0/24", 251, role),
        ]
    );
}
