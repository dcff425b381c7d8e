//! Prefixes, groups, tags, subnets, and what others have left: what is sent, what is understood, and what is made of
//! answers that are not as they should be.

use std::collections::BTreeMap;
use std::net::Ipv4Addr;

use super::testing::{Action, Asked, ENI, failing, fault, sent, start, xml};
use super::*;
use crate::ipam::cidr::Ipv4Cidr;
use crate::ipam::cloud::{
    Amount, CloudAnswer, CloudCall, CloudSubnet, ConnectionTracking, DescribeScope, FailureClass,
};
use crate::ipam::ids::InstanceId;

fn create(amount: Amount, tracking: ConnectionTracking) -> CloudCall {
    CloudCall::CreateEni {
        token: "token-1".into(),
        subnet: "subnet-1".into(),
        groups: vec!["sg-1".into()],
        amount,
        description: "d".into(),
        tags: BTreeMap::new(),
        tracking,
    }
}

fn assign(amount: Amount) -> CloudCall {
    let eni = "eni-1".into();
    CloudCall::Assign { eni, amount }
}

fn set_groups() -> CloudCall {
    CloudCall::SetGroups {
        eni: "eni-1".into(),
        groups: vec!["sg-1".into(), "sg-2".into()],
    }
}

fn tag() -> CloudCall {
    CloudCall::TagEni {
        eni: "eni-1".into(),
        tags: [("a", "1"), ("b", "")]
            .map(|(k, v)| (k.to_owned(), v.to_owned()))
            .into(),
    }
}

fn left(cluster: Option<&str>) -> CloudCall {
    CloudCall::DescribeLeftEnis {
        vpc: "vpc-1".into(),
        cluster: cluster.map(str::to_owned),
    }
}

fn instances(ids: &[&str]) -> CloudCall {
    CloudCall::DescribeInstances {
        instances: ids.iter().map(|id| (*id).into()).collect(),
    }
}

fn subnets() -> CloudCall {
    CloudCall::DescribeSubnets {
        vpc: "vpc-1".into(),
        zone: "eu-west-1a".to_owned(),
    }
}

fn prefix(text: &str) -> Ipv4Cidr {
    text.parse().unwrap()
}

#[tokio::test]
async fn an_eni_is_created_with_prefixes_instead_of_addresses() {
    let (server, ec2) = start(|_| {
        let prefixes = "<ipv4PrefixSet><item><ipv4Prefix>10.0.1.16/28</ipv4Prefix></item></ipv4PrefixSet>";
        let body = format!("<networkInterface>{ENI}{prefixes}</networkInterface>");
        xml("CreateNetworkInterface", &body)
    })
    .await;
    let call = create(Amount::Prefixes(1), ConnectionTracking::default());
    let Ok(CloudAnswer::Created(eni)) = ec2.execute(&call).await else {
        panic!()
    };
    assert_eq!(eni.prefixes, [prefix("10.0.1.16/28")]);
    sent(&server, &["Ipv4PrefixCount=1"]);
    let body = &server.asked()[0].body;
    for absent in [
        "SecondaryPrivateIpAddressCount",
        "ConnectionTracking",
        "TagSpecification",
    ] {
        assert!(!body.contains(absent), "{body}");
    }
    // Without any, neither count is sent: 0 is not a value EC2 takes for both.
    ec2.execute(&create(Amount::Prefixes(0), ConnectionTracking::default()))
        .await
        .unwrap();
    assert!(!server.asked()[1].body.contains("PrefixCount"));
}

#[tokio::test]
async fn only_time_outs_that_are_set_are_sent() {
    let (server, ec2) = start(|_| {
        xml(
            "CreateNetworkInterface",
            &format!("<networkInterface>{ENI}</networkInterface>"),
        )
    })
    .await;
    let tracking = ConnectionTracking {
        tcp_established: Some(600),
        udp_stream: None,
        udp: Some(45),
    };
    ec2.execute(&create(Amount::Addresses(1), tracking))
        .await
        .unwrap();
    sent(
        &server,
        &[
            "ConnectionTrackingSpecification.TcpEstablishedTimeout=600",
            "ConnectionTrackingSpecification.UdpTimeout=45",
            "SecondaryPrivateIpAddressCount=1",
        ],
    );
    assert!(!server.asked()[0].body.contains("UdpStreamTimeout"));
}

/// What the primary ENI has is what the next one gets.
#[tokio::test]
async fn time_outs_public_addresses_and_prefixes_of_an_eni_are_read() {
    let (_server, ec2) = start(|_| {
        let body = "<networkInterfaceSet><item><networkInterfaceId>eni-1</networkInterfaceId>\
            <subnetId>subnet-1</subnetId><macAddress>02:00:00:00:00:0a</macAddress>\
            <connectionTrackingConfiguration><tcpEstablishedTimeout>600</tcpEstablishedTimeout>\
            <udpTimeout>-1</udpTimeout></connectionTrackingConfiguration><privateIpAddressesSet>\
            <item><privateIpAddress>10.0.0.4</privateIpAddress><primary>true</primary></item>\
            <item><privateIpAddress>10.0.0.5</privateIpAddress><primary>false</primary>\
            <association><publicIp>3.3.3.3</publicIp></association></item></privateIpAddressesSet>\
            <ipv4PrefixSet><item><ipv4Prefix>10.0.0.16/28</ipv4Prefix></item></ipv4PrefixSet></item>\
            </networkInterfaceSet>";
        xml("DescribeNetworkInterfaces", body)
    })
    .await;
    let Ok(CloudAnswer::Enis(enis)) = ec2.execute(&left(None)).await else {
        panic!()
    };
    let tracking = ConnectionTracking {
        tcp_established: Some(600),
        ..ConnectionTracking::default()
    };
    assert_eq!(enis[0].tracking, tracking);
    assert_eq!(enis[0].public, [Ipv4Addr::new(10, 0, 0, 5)]);
    assert_eq!(enis[0].prefixes, [prefix("10.0.0.16/28")]);
}

#[tokio::test]
async fn prefixes_are_assigned_and_given_back_by_themselves() {
    let (server, ec2) = start(|asked| {
        if asked.body.contains("Action=Assign") {
            let item = |text: &str| format!("<item><ipv4Prefix>{text}</ipv4Prefix></item>");
            let set = item("10.0.1.16/28") + &item("10.0.1.32/28");
            let body = format!("<return>true</return><assignedIpv4PrefixSet>{set}</assignedIpv4PrefixSet>");
            xml("AssignPrivateIpAddresses", &body)
        } else {
            xml("UnassignPrivateIpAddresses", "<return>true</return>")
        }
    })
    .await;
    let prefixes = vec![prefix("10.0.1.16/28"), prefix("10.0.1.32/28")];
    let assigned = CloudAnswer::Assigned {
        addresses: vec![],
        prefixes: prefixes.clone(),
    };
    assert_eq!(ec2.execute(&assign(Amount::Prefixes(2))).await, Ok(assigned));
    sent(&server, &["NetworkInterfaceId=eni-1", "Ipv4PrefixCount=2"]);
    assert!(!server.asked()[0].body.contains("SecondaryPrivateIpAddressCount"));

    let client = ec2.client("test").await.unwrap();
    let done = ec2::mutate::unassign_prefixes(client, &"eni-1".into(), prefixes.into_iter()).await;
    assert_eq!(done, Ok(CloudAnswer::Done));
    sent(
        &server,
        &[
            "Action=UnassignPrivateIpAddresses",
            "NetworkInterfaceId=eni-1",
            "Ipv4Prefix.1=10.0.1.16%2F28",
            "Ipv4Prefix.2=10.0.1.32%2F28",
        ],
    );
    assert!(!server.asked()[1].body.contains("PrivateIpAddress."));
}

#[tokio::test]
async fn groups_are_set_as_a_whole_and_tags_by_name() {
    let (server, ec2) = start(|asked| {
        let is_tags = asked.has("Action=CreateTags");
        let action = if is_tags {
            "CreateTags"
        } else {
            "ModifyNetworkInterfaceAttribute"
        };
        xml(action, "<return>true</return>")
    })
    .await;
    assert_eq!(ec2.execute(&set_groups()).await, Ok(CloudAnswer::Done));
    sent(
        &server,
        &[
            "Action=ModifyNetworkInterfaceAttribute",
            "NetworkInterfaceId=eni-1",
            "SecurityGroupId.1=sg-1",
            "SecurityGroupId.2=sg-2",
        ],
    );
    assert_eq!(ec2.execute(&tag()).await, Ok(CloudAnswer::Done));
    sent(
        &server,
        &[
            "Action=CreateTags",
            "ResourceId.1=eni-1",
            "Tag.1.Key=a",
            "Tag.1.Value=1",
            "Tag.2.Key=b",
            "Tag.2.Value=",
        ],
    );
}

/// A cluster's name is a name: what is wild to EC2 in a filter is escaped, or `*` would be every cluster.
#[tokio::test]
async fn what_others_left_is_asked_for_by_owner_tag_state_vpc_and_cluster() {
    let (server, ec2) = start(|_| xml("DescribeNetworkInterfaces", "<networkInterfaceSet/>")).await;
    assert_eq!(ec2.execute(&left(None)).await, Ok(CloudAnswer::Enis(vec![])));
    let filters = [
        "Filter.1.Name=tag-key",
        "Filter.1.Value.1=node.k8s.amazonaws.com%2Finstance_id",
        "Filter.2.Name=status",
        "Filter.2.Value.1=available",
        "Filter.3.Name=vpc-id",
        "Filter.3.Value.1=vpc-1",
    ];
    sent(&server, &filters);
    assert!(!server.asked()[0].body.contains("Filter.4"));
    ec2.execute(&left(Some("prod"))).await.unwrap();
    sent(&server, &filters);
    sent(
        &server,
        &[
            "Filter.4.Name=tag%3Acluster.k8s.amazonaws.com%2Fname",
            "Filter.4.Value.1=prod",
        ],
    );
    ec2.execute(&left(Some(r"p*o?\d"))).await.unwrap();
    sent(&server, &["Filter.4.Value.1=p%5C%2Ao%5C%3F%5C%5Cd"]);
}

fn reservation(instances: &[(&str, &str)]) -> String {
    let item = |(id, state): &(&str, &str)| {
        let state = if state.is_empty() {
            String::new()
        } else {
            format!("<instanceState><code>1</code><name>{state}</name></instanceState>")
        };
        format!("<item><instanceId>{id}</instanceId>{state}</item>")
    };
    let items: Vec<String> = instances.iter().map(item).collect();
    format!(
        "<item><reservationId>r-1</reservationId><instancesSet>{}</instancesSet></item>",
        items.concat()
    )
}

/// Only `terminated` is an end; a state nobody has heard of is no reason to take an ENI for left.
#[tokio::test]
async fn an_instance_lives_until_ec2_says_terminated() {
    let (server, ec2) = start(|asked| {
        let (set, next) = if asked.has("NextToken=two") {
            (reservation(&[("i-4", "terminated"), ("i-5", "hibernating")]), "")
        } else {
            let first =
                reservation(&[("i-1", "running"), ("i-2", "shutting-down")]) + &reservation(&[("i-3", "")]);
            (first, "<nextToken>two</nextToken>")
        };
        xml(
            "DescribeInstances",
            &format!("<reservationSet>{set}</reservationSet>{next}"),
        )
    })
    .await;
    let Ok(CloudAnswer::Instances(living)) = ec2
        .execute(&instances(&["i-1", "i-2", "i-3", "i-4", "i-5", "i-forgotten"]))
        .await
    else {
        panic!()
    };
    let expected: BTreeMap<InstanceId, bool> = [
        ("i-1", true),
        ("i-2", true),
        ("i-3", true),
        ("i-4", false),
        ("i-5", true),
    ]
    .map(|(id, lives)| (id.into(), lives))
    .into();
    assert_eq!(living, expected);
    sent(
        &server,
        &[
            "Filter.1.Name=instance-id",
            "Filter.1.Value.1=i-1",
            "Filter.1.Value.6=i-forgotten",
            "NextToken=two",
        ],
    );
    // By id, one that is forgotten would fail the whole call.
    assert!(!server.asked()[0].body.contains("InstanceId.1"));
}

#[tokio::test]
async fn many_instances_are_asked_about_in_calls_ec2_takes_and_none_in_no_call() {
    let (server, ec2) = start(|asked| {
        let of_second = asked.has("Filter.1.Value.1=i-200");
        let set = reservation(&[if of_second {
            ("i-201", "terminated")
        } else {
            ("i-0", "running")
        }]);
        let stranger = reservation(&[("i-stranger", "terminated")]);
        xml(
            "DescribeInstances",
            &format!("<reservationSet>{set}{stranger}</reservationSet>"),
        )
    })
    .await;
    let none = ec2.execute(&instances(&[])).await;
    assert_eq!(none, Ok(CloudAnswer::Instances(BTreeMap::new())));
    assert_eq!(
        server.asked().len(),
        0,
        "a filter without values is an error to EC2"
    );
    let ids: Vec<String> = (0..202).map(|n| format!("i-{n}")).collect();
    let ids: Vec<&str> = ids.iter().map(String::as_str).collect();
    let Ok(CloudAnswer::Instances(living)) = ec2.execute(&instances(&ids)).await else {
        panic!()
    };
    let expected: BTreeMap<InstanceId, bool> = [("i-0".into(), true), ("i-201".into(), false)].into();
    assert_eq!(living, expected, "what was not asked is no answer");
    let asked = server.asked();
    assert_eq!(asked.len(), 2);
    assert!(
        asked[0].body.contains("Filter.1.Value.200=i-199") && !asked[0].body.contains("Filter.1.Value.201")
    );
    assert!(asked[1].body.contains("Filter.1.Value.2=i-201") && !asked[1].body.contains("Filter.1.Value.3"));
}

#[tokio::test]
async fn subnets_of_the_zone_are_read_with_free_addresses_and_tags_from_all_pages() {
    let (server, ec2) = start(|asked| {
        let (item, next) = if asked.has("NextToken=two") {
            (
                "<item><subnetId>subnet-2</subnetId><cidrBlock>10.0.1.0/24</cidrBlock>\
              <availableIpAddressCount>0</availableIpAddressCount></item>",
                "",
            )
        } else {
            (
                "<item><subnetId>subnet-1</subnetId><cidrBlock>10.0.0.0/24</cidrBlock>\
              <availableIpAddressCount>200</availableIpAddressCount><tagSet><item>\
              <key>kubernetes.io/role/cni</key><value>1</value></item></tagSet></item>",
                "<nextToken>two</nextToken>",
            )
        };
        xml("DescribeSubnets", &format!("<subnetSet>{item}</subnetSet>{next}"))
    })
    .await;
    let Ok(CloudAnswer::Subnets(found)) = ec2.execute(&subnets()).await else {
        panic!()
    };
    let subnet = |id: &str, cidr: &str, free, tags| CloudSubnet {
        id: id.into(),
        cidr: prefix(cidr),
        free,
        tags,
    };
    let tags = BTreeMap::from([("kubernetes.io/role/cni".to_owned(), "1".to_owned())]);
    assert_eq!(
        found,
        [
            subnet("subnet-1", "10.0.0.0/24", 200, tags),
            subnet("subnet-2", "10.0.1.0/24", 0, BTreeMap::new())
        ]
    );
    sent(
        &server,
        &[
            "Filter.1.Name=vpc-id",
            "Filter.1.Value.1=vpc-1",
            "Filter.2.Name=availability-zone",
            "Filter.2.Value.1=eu-west-1a",
        ],
    );
}

/// A zone may have subnets without IPv4 (`ipv6Native`), which have no `cidrBlock`: none of our ENIs can be there.
#[tokio::test]
async fn subnets_without_ipv4_are_passed_over_and_hide_none_of_the_others() {
    for without in ["", "<cidrBlock/>"] {
        let native = format!(
            "<item><subnetId>subnet-6</subnetId>{without}<ipv6Native>true</ipv6Native>\
             <availableIpAddressCount>0</availableIpAddressCount><ipv6CidrBlockAssociationSet><item>\
             <ipv6CidrBlock>2001:db8:1234:1a00::/64</ipv6CidrBlock></item></ipv6CidrBlockAssociationSet>\
             <tagSet><item><key>kubernetes.io/role/cni</key><value>1</value></item></tagSet></item>"
        );
        let usual = "<item><subnetId>subnet-1</subnetId><cidrBlock>10.0.0.0/24</cidrBlock>\
                     <availableIpAddressCount>200</availableIpAddressCount></item>";
        let set = format!("<subnetSet>{native}{usual}</subnetSet>");
        let (_server, ec2) = start(move |_| xml("DescribeSubnets", &set)).await;
        let answer = ec2.execute(&subnets()).await;
        let Ok(CloudAnswer::Subnets(found)) = answer else {
            panic!("{answer:?}")
        };
        let ids: Vec<&str> = found.iter().map(|subnet| subnet.id.as_str()).collect();
        assert_eq!(ids, ["subnet-1"]);
    }
}

/// Reference ipamd 4.12, for the calls that are not in `codes_have_classes`.
#[tokio::test]
async fn each_refusal_has_its_class() {
    for (call, code, class) in [
        (
            assign(Amount::Prefixes(1)),
            "InsufficientCidrBlocks",
            FailureClass::SubnetFull,
        ),
        (
            create(Amount::Prefixes(1), ConnectionTracking::default()),
            "InsufficientCidrBlocks",
            FailureClass::SubnetFull,
        ),
        (
            assign(Amount::Prefixes(1)),
            "PrivateIpAddressLimitExceeded",
            FailureClass::AddressLimit,
        ),
        (
            assign(Amount::Prefixes(1)),
            "UnsupportedOperation",
            FailureClass::Other,
        ),
        (
            set_groups(),
            "SecurityGroupsPerInterfaceLimitExceeded",
            FailureClass::AccountLimit,
        ),
        (set_groups(), "InvalidGroup.NotFound", FailureClass::Gone),
        (
            set_groups(),
            "InvalidNetworkInterfaceID.NotFound",
            FailureClass::Gone,
        ),
        (tag(), "TagLimitExceeded", FailureClass::AccountLimit),
        (tag(), "UnauthorizedOperation", FailureClass::Denied),
        (subnets(), "UnauthorizedOperation", FailureClass::Denied),
        (instances(&["i-1"]), "FilterLimitExceeded", FailureClass::Other),
        (left(None), "RequestLimitExceeded", FailureClass::Throttled),
    ] {
        let (failure, asked) = failing(&call, move |_| fault(400, code, "no")).await;
        assert_eq!((failure.class, failure.code.as_deref()), (class, Some(code)));
        assert_eq!(failure.action, action(&call));
        assert_eq!(asked, 1, "{code}");
    }
}

/// Setting groups and tags twice is setting them once, and so is asking; giving out or back twice is not.
#[tokio::test]
async fn a_lost_answer_is_asked_for_again_only_where_twice_is_once() {
    for (call, attempts) in [
        (set_groups(), 2),
        (tag(), 2),
        (subnets(), 2),
        (instances(&["i-1"]), 2),
        (left(None), 2),
        (create(Amount::Prefixes(1), ConnectionTracking::default()), 2),
        (assign(Amount::Prefixes(1)), 1),
    ] {
        for lost in [true, false] {
            let answer = move |_: &Asked| {
                if lost {
                    Action::Close
                } else {
                    fault(503, "Unavailable", "try later")
                }
            };
            let (failure, asked) = failing(&call, answer).await;
            assert!(failure.class.leaves_doubt(), "{failure}");
            assert_eq!(asked, attempts, "{}", action(&call));
        }
    }
    let (server, ec2) = start(|_| Action::Close).await;
    let client = ec2.client("test").await.unwrap();
    let prefixes = [prefix("10.0.1.16/28")].into_iter();
    let failure = ec2::mutate::unassign_prefixes(client, &"eni-1".into(), prefixes).await;
    assert_eq!(failure.unwrap_err().class, FailureClass::NoAnswer);
    assert_eq!(server.asked().len(), 1);
}

/// A page that cannot be read is no answer, not an empty one: what is missing there would look deleted.
#[tokio::test]
async fn nothing_is_concluded_from_answers_that_are_not_as_they_should_be() {
    let eni = "<item><networkInterfaceId>eni-1</networkInterfaceId><subnetId>s</subnetId>";
    let mac = "<macAddress>02:00:00:00:00:0a</macAddress>";
    let enis = |inner: &str| format!("<networkInterfaceSet>{inner}</networkInterfaceSet>");
    for (call, body) in [
        (left(None), enis(&format!("{eni}</item>"))),
        (
            left(None),
            enis(&format!("{eni}<macAddress>x</macAddress></item>")),
        ),
        (
            left(None),
            enis(&format!(
                "{eni}{mac}<ipv4PrefixSet><item><ipv4Prefix>10.0.0.1/33</ipv4Prefix></item></ipv4PrefixSet></item>"
            )),
        ),
        (
            left(None),
            enis(&format!(
                "{eni}{mac}<ipv4PrefixSet><item/></ipv4PrefixSet></item>"
            )),
        ),
        (
            instances(&["i-1"]),
            "<reservationSet><item><instancesSet><item/></instancesSet></item></reservationSet>".to_owned(),
        ),
        (
            subnets(),
            "<subnetSet><item><subnetId>s</subnetId><cidrBlock>10.0.0.0/24</cidrBlock></item></subnetSet>"
                .to_owned(),
        ),
        (
            subnets(),
            "<subnetSet><item><subnetId>s</subnetId><cidrBlock>10.0.0.0/24</cidrBlock>\
             <availableIpAddressCount>-5</availableIpAddressCount></item></subnetSet>"
                .to_owned(),
        ),
        (
            subnets(),
            "<subnetSet><item><subnetId>s</subnetId><cidrBlock>fd00::/64</cidrBlock>\
             <availableIpAddressCount>5</availableIpAddressCount></item></subnetSet>"
                .to_owned(),
        ),
        (
            assign(Amount::Prefixes(1)),
            "<assignedIpv4PrefixSet><item><ipv4Prefix>ten</ipv4Prefix></item></assignedIpv4PrefixSet>"
                .to_owned(),
        ),
        (
            create(Amount::Prefixes(1), ConnectionTracking::default()),
            String::new(),
        ),
    ] {
        let name = action(&call);
        let (failure, _) = failing(&call, move |_| xml(name, &body)).await;
        assert_eq!(failure.class, FailureClass::NoAnswer, "{name}: {failure}");
    }
}

#[tokio::test]
async fn lists_that_never_end_are_given_up() {
    for (call, empty) in [
        (left(None), "<networkInterfaceSet/>"),
        (instances(&["i-1"]), "<reservationSet/>"),
        (subnets(), "<subnetSet/>"),
    ] {
        let name = action(&call);
        let answer = move |_: &Asked| xml(name, &format!("{empty}<nextToken>again</nextToken>"));
        let (failure, asked) = failing(&call, answer).await;
        assert!(failure.message.contains("pages"), "{failure}");
        assert_eq!(asked, 50);
    }
}

/// Half a list is no list: the second page's failure is the call's.
#[tokio::test]
async fn a_page_that_fails_fails_the_whole() {
    for call in [left(None), instances(&["i-1"]), subnets()] {
        let name = action(&call);
        let (failure, _) = failing(&call, move |asked| {
            if asked.has("NextToken=two") {
                return fault(503, "RequestLimitExceeded", "slow");
            }
            xml(name, "<nextToken>two</nextToken>")
        })
        .await;
        assert_eq!(failure.class, FailureClass::Throttled);
    }
}

#[tokio::test]
async fn the_scope_of_an_enis_owner_is_unchanged_by_what_others_left() {
    let (server, ec2) = start(|_| xml("DescribeNetworkInterfaces", "<networkInterfaceSet/>")).await;
    let call = CloudCall::DescribeEnis {
        instance: "i-*".into(),
        scope: DescribeScope::Attached,
    };
    ec2.execute(&call).await.unwrap();
    sent(
        &server,
        &[
            "Filter.1.Name=attachment.instance-id",
            "Filter.1.Value.1=i-%5C%2A",
        ],
    );
}

/// However an answer is cut short, what is missing does not look gone: a list is whole or there is none.
#[tokio::test]
async fn an_answer_that_is_cut_short_anywhere_is_no_answer() {
    let two = format!("<networkInterfaceSet><item>{ENI}</item><item>{ENI}</item></networkInterfaceSet>");
    let reservations = format!(
        "<reservationSet>{}</reservationSet>",
        reservation(&[("i-1", "running")])
    );
    for (call, body) in [(left(None), two), (instances(&["i-1"]), reservations)] {
        let name = action(&call);
        let Action::Answer(_, whole) = xml(name, &body) else {
            panic!()
        };
        let cut = std::sync::Arc::new(std::sync::atomic::AtomicUsize::new(0));
        let (length, at) = (whole.len(), std::sync::Arc::clone(&cut));
        let (_server, ec2) = start(move |_| {
            let upto = at.load(std::sync::atomic::Ordering::Relaxed);
            Action::Answer(200, whole[..upto].to_owned())
        })
        .await;
        let mut taken = Vec::new();
        for upto in 0..length {
            cut.store(upto, std::sync::atomic::Ordering::Relaxed);
            if let Ok(answer) = ec2.execute(&call).await {
                taken.push((upto, answer));
            }
        }
        assert_eq!(taken, [], "of {length}");
    }
}
