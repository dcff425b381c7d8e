//! The SDK as it is configured here, against a hand-written EC2: what is sent, how often, and what becomes of every
//! kind of failure.

use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use super::testing::{Action, Asked, ENI, Server, failing, fault, sent, settings, start, xml};
use super::*;
use crate::ipam::cloud::{Amount, CloudAnswer, CloudCall, ConnectionTracking, DescribeScope, FailureClass};
use crate::ipam::ids::{CardIndex, DeviceIndex};
use crate::ipam::limits::{FurtherCards, InstanceLimits};

const ATTACHMENT: &str = "<attachment><attachmentId>eni-attach-1</attachmentId><instanceId>i-1</instanceId>\
    <deviceIndex>2</deviceIndex><networkCardIndex>0</networkCardIndex><status>attached</status>\
    <deleteOnTermination>true</deleteOnTermination></attachment>";

fn create() -> CloudCall {
    CloudCall::CreateEni {
        token: "token-1".into(),
        subnet: "subnet-1".into(),
        groups: vec!["sg-1".into(), "sg-2".into()],
        amount: Amount::Addresses(9),
        description: "aws-K8S-i-1".into(),
        tags: [("a".to_owned(), "b".to_owned())].into(),
        tracking: ConnectionTracking::default(),
    }
}

fn attach() -> CloudCall {
    CloudCall::AttachEni {
        eni: "eni-1".into(),
        instance: "i-1".into(),
        device: DeviceIndex(2),
        card: CardIndex(0),
    }
}

fn describe(scope: DescribeScope) -> CloudCall {
    CloudCall::DescribeEnis {
        instance: "i-1".into(),
        scope,
    }
}

#[tokio::test]
async fn create_carries_token_tags_and_addresses_in_one_call() {
    let (server, ec2) = start(|_| {
        xml(
            "CreateNetworkInterface",
            &format!("<networkInterface>{ENI}</networkInterface>"),
        )
    })
    .await;
    let CloudAnswer::Created(eni) = ec2.execute(&create()).await.unwrap() else {
        panic!()
    };
    assert_eq!(
        (eni.id.as_str(), eni.secondary.len(), eni.tags.len()),
        ("eni-1", 1, 1)
    );
    sent(
        &server,
        &[
            "Action=CreateNetworkInterface",
            "ClientToken=token-1",
            "SubnetId=subnet-1",
            "SecurityGroupId.1=sg-1",
            "SecurityGroupId.2=sg-2",
            "SecondaryPrivateIpAddressCount=9",
            "Description=aws-K8S-i-1",
            "TagSpecification.1.ResourceType=network-interface",
            "TagSpecification.1.Tag.1.Key=a",
            "TagSpecification.1.Tag.1.Value=b",
        ],
    );
    let asked = server.asked();
    assert!(
        asked[0]
            .header("authorization")
            .unwrap()
            .contains("/eu-west-1/ec2/"),
        "{asked:?}"
    );
    let agents: String = asked[0]
        .headers
        .iter()
        .filter(|(k, _)| k.ends_with("user-agent"))
        .map(|(_, v)| v.as_str())
        .collect();
    assert!(
        agents.contains("aws-cni#0.1.0") || agents.contains("aws-cni/0.1.0"),
        "{agents}"
    );
}

#[tokio::test]
async fn attach_always_sends_the_card() {
    let (server, ec2) = start(|_| {
        xml(
            "AttachNetworkInterface",
            "<attachmentId>eni-attach-1</attachmentId>",
        )
    })
    .await;
    assert_eq!(
        ec2.execute(&attach()).await,
        Ok(CloudAnswer::Attached("eni-attach-1".into()))
    );
    sent(
        &server,
        &[
            "NetworkInterfaceId=eni-1",
            "InstanceId=i-1",
            "DeviceIndex=2",
            "NetworkCardIndex=0",
        ],
    );
}

#[tokio::test]
async fn the_calls_that_change_an_eni() {
    let (server, ec2) = start(|asked| {
        if asked.body.contains("AssignPrivate") {
            xml(
                "AssignPrivateIpAddresses",
                "<assignedPrivateIpAddressesSet><item><privateIpAddress>10.0.0.7</privateIpAddress></item>\
                 <item><privateIpAddress>10.0.0.8</privateIpAddress></item></assignedPrivateIpAddressesSet>",
            )
        } else {
            xml("ModifyNetworkInterfaceAttribute", "<return>true</return>")
        }
    })
    .await;
    let call = CloudCall::DeleteOnTermination {
        eni: "eni-1".into(),
        attachment: "eni-attach-1".into(),
    };
    assert_eq!(ec2.execute(&call).await, Ok(CloudAnswer::Done));
    sent(
        &server,
        &[
            "NetworkInterfaceId=eni-1",
            "Attachment.AttachmentId=eni-attach-1",
            "Attachment.DeleteOnTermination=true",
        ],
    );
    let call = CloudCall::Assign {
        eni: "eni-1".into(),
        amount: Amount::Addresses(2),
    };
    let expected = vec![[10, 0, 0, 7].into(), [10, 0, 0, 8].into()];
    assert_eq!(
        ec2.execute(&call).await,
        Ok(CloudAnswer::Assigned {
            addresses: expected,
            prefixes: vec![],
        })
    );
    sent(
        &server,
        &["NetworkInterfaceId=eni-1", "SecondaryPrivateIpAddressCount=2"],
    );
}

/// The freeing calls take a proof that only the witness module makes, so they are asked below that gate.
#[tokio::test]
async fn the_calls_that_free() {
    let (server, ec2) = start(|asked| {
        let action = asked
            .body
            .split('&')
            .find_map(|pair| pair.strip_prefix("Action="))
            .unwrap()
            .to_owned();
        xml(&action, "<return>true</return>")
    })
    .await;
    let client = ec2.client("test").await.unwrap();
    let addresses = [[10, 0, 0, 7].into(), [10, 0, 0, 8].into()];
    assert_eq!(
        ec2::mutate::unassign(client, &"eni-1".into(), addresses.into_iter()).await,
        Ok(CloudAnswer::Done)
    );
    sent(
        &server,
        &[
            "Action=UnassignPrivateIpAddresses",
            "PrivateIpAddress.1=10.0.0.7",
            "PrivateIpAddress.2=10.0.0.8",
        ],
    );
    assert_eq!(
        ec2::mutate::detach(client, &"eni-attach-1".into()).await,
        Ok(CloudAnswer::Done)
    );
    sent(
        &server,
        &["Action=DetachNetworkInterface", "AttachmentId=eni-attach-1"],
    );
    assert_eq!(
        ec2::mutate::delete(client, &"eni-1".into()).await,
        Ok(CloudAnswer::Done)
    );
    sent(
        &server,
        &["Action=DeleteNetworkInterface", "NetworkInterfaceId=eni-1"],
    );
}

#[tokio::test]
async fn describe_reads_all_pages() {
    let (server, ec2) = start(|asked| {
        let next = if asked.has("NextToken=two") {
            ""
        } else {
            "<nextToken>two</nextToken>"
        };
        xml(
            "DescribeNetworkInterfaces",
            &format!("<networkInterfaceSet><item>{ENI}{ATTACHMENT}</item></networkInterfaceSet>{next}"),
        )
    })
    .await;
    let CloudAnswer::Enis(enis) = ec2.execute(&describe(DescribeScope::Attached)).await.unwrap() else {
        panic!()
    };
    assert_eq!(enis.len(), 2);
    let attachment = enis[0].attachment.as_ref().unwrap();
    assert_eq!(
        (attachment.device, attachment.status.as_str()),
        (DeviceIndex(2), "attached")
    );
    assert!(attachment.delete_on_termination);
    sent(
        &server,
        &[
            "Filter.1.Name=attachment.instance-id",
            "Filter.1.Value.1=i-1",
            "NextToken=two",
        ],
    );
    assert_eq!(server.asked().len(), 2);
}

#[tokio::test]
async fn an_endless_list_is_given_up() {
    let (server, ec2) = start(|_| {
        xml(
            "DescribeNetworkInterfaces",
            "<networkInterfaceSet/><nextToken>again</nextToken>",
        )
    })
    .await;
    let failure = ec2
        .execute(&describe(DescribeScope::OursUnattached))
        .await
        .unwrap_err();
    assert!(failure.message.contains("pages"), "{failure}");
    sent(
        &server,
        &[
            "Filter.1.Name=tag%3Anode.k8s.amazonaws.com%2Finstance_id",
            "Filter.1.Value.1=i-1",
            "Filter.2.Name=status",
            "Filter.2.Value.1=available",
        ],
    );
}

#[tokio::test]
async fn instance_types_have_limits() {
    let (server, ec2) = start(|_| {
        xml(
            "DescribeInstanceTypes",
            "<instanceTypeSet><item><instanceType>m9.large</instanceType><hypervisor>nitro</hypervisor><networkInfo>\
             <maximumNetworkInterfaces>3</maximumNetworkInterfaces>\
             <ipv4AddressesPerInterface>10</ipv4AddressesPerInterface></networkInfo></item></instanceTypeSet>",
        )
    })
    .await;
    let call = CloudCall::DescribeInstanceType {
        instance_type: "m9.large".into(),
    };
    let limits = InstanceLimits {
        enis: 3,
        ipv4_per_eni: 10,
        prefixes: true,
        further: FurtherCards::NONE,
    };
    assert_eq!(ec2.execute(&call).await, Ok(CloudAnswer::Limits(limits)));
    sent(&server, &["InstanceType.1=m9.large"]);
}

/// EC2's own words survive: class, action, code, message and request id.
#[tokio::test]
async fn a_fault_keeps_code_message_and_request_id() {
    let (failure, asked) = failing(&create(), |_| {
        fault(400, "InsufficientFreeAddressesInSubnet", "no room in subnet-1")
    })
    .await;
    assert_eq!(failure.class, FailureClass::SubnetFull);
    assert_eq!(
        failure.to_string(),
        "CreateNetworkInterface failed with InsufficientFreeAddressesInSubnet: no room in subnet-1 (request id req-9)"
    );
    assert_eq!(asked, 1);
}

/// Quirk Q14, and why there are two numbers: a repeated assign would assign twice.
#[tokio::test]
async fn only_calls_that_may_be_repeated_are() {
    let assign = CloudCall::Assign {
        eni: "eni-1".into(),
        amount: Amount::Addresses(1),
    };
    for (call, attempts) in [
        (create(), 2),
        (describe(DescribeScope::Attached), 2),
        (attach(), 1),
        (assign, 1),
    ] {
        let (failure, asked) = failing(&call, |_| fault(503, "Unavailable", "try later")).await;
        assert_eq!(
            (failure.class, asked),
            (FailureClass::Server, attempts),
            "{}",
            action(&call)
        );
        let (failure, asked) = failing(&call, |_| Action::Close).await;
        assert_eq!(
            (failure.class, asked),
            (FailureClass::NoAnswer, attempts),
            "{}",
            action(&call)
        );
    }
}

#[tokio::test]
async fn throttling_says_how_long_to_wait() {
    let answer = |_: &Asked| {
        let body = "<Response><Errors><Error><Code>RequestLimitExceeded</Code><Message>slow</Message></Error></Errors>\
                    <RequestID>r</RequestID></Response>";
        let length = body.len();
        let raw = format!("HTTP/1.1 503 X\r\nRetry-After: 7\r\nContent-Length: {length}\r\n\r\n{body}");
        Action::RawAndKeep(raw.into_bytes())
    };
    // The pool keeps the distance, so the SDK repeats not even what may be repeated.
    for call in [attach(), create(), describe(DescribeScope::Attached)] {
        let (failure, asked) = failing(&call, answer).await;
        assert_eq!(
            (failure.class, failure.retry_after, asked),
            (FailureClass::Throttled, Some(Duration::from_secs(7)), 1),
            "{}",
            action(&call)
        );
    }
}

#[tokio::test]
async fn silence_is_no_answer_after_the_time_allowed() {
    let server = Server::start(|_| Action::Hang).await;
    let quick = Ec2Settings {
        attempt_timeout: Duration::from_millis(200),
        ..settings(server.url())
    };
    let failure = Ec2::new(quick).execute(&attach()).await.unwrap_err();
    assert_eq!((failure.class, failure.code), (FailureClass::NoAnswer, None));
    assert_eq!(server.asked().len(), 1);
}

#[tokio::test]
async fn nobody_listening_is_no_answer() {
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let url = format!("http://{}", listener.local_addr().unwrap());
    drop(listener);
    let failure = Ec2::new(settings(url)).execute(&attach()).await.unwrap_err();
    assert_eq!(failure.class, FailureClass::NoAnswer);
    assert!(failure.message.to_lowercase().contains("refused"), "{failure}");
    assert!(next_step(&failure).unwrap().contains("EC2 endpoint"));
}

/// After 200 the effect has happened, however strange the body.
#[tokio::test]
async fn an_unreadable_success_is_no_answer_and_an_unreadable_fault_goes_by_its_status() {
    for (status, body, class) in [
        (200, "<html>proxy</html>", FailureClass::NoAnswer),
        (200, "", FailureClass::NoAnswer),
        (200, "<AttachNetworkInterfaceResponse/>", FailureClass::NoAnswer),
        (502, "<html>bad gateway</html>", FailureClass::Server),
        (403, "forbidden", FailureClass::Denied),
        (429, "", FailureClass::Throttled),
    ] {
        let (failure, _) = failing(&attach(), move |_| Action::Answer(status, body.to_owned())).await;
        assert_eq!(failure.class, class, "{status} {body:?}: {failure}");
    }
}

#[tokio::test]
async fn the_encoded_denial_is_cut_short() {
    let long = "x".repeat(4000);
    let (failure, _) = failing(&attach(), move |_| fault(403, "UnauthorizedOperation", &long)).await;
    assert_eq!(failure.class, FailureClass::Denied);
    assert!(failure.message.chars().count() <= 601);
}

/// The credentials of the instance role come from the same metadata service as everything else.
#[tokio::test]
async fn the_instance_role_is_found_at_the_configured_metadata_endpoint() {
    let role = AtomicU32::new(0);
    let metadata = Server::start(move |asked| match (asked.method.as_str(), asked.path.trim_end_matches('/')) {
        ("PUT", _) => Action::RawAndKeep(
            b"HTTP/1.1 200 OK\r\nx-aws-ec2-metadata-token-ttl-seconds: 21600\r\nContent-Length: 1\r\n\r\nT".to_vec(),
        ),
        (_, path) if path.ends_with("/node-role") || path.ends_with("/node-role/x") => {
            role.fetch_add(1, Ordering::Relaxed);
            Action::Answer(
                200,
                r#"{"Code":"Success","LastUpdated":"2026-01-01T00:00:00Z","Type":"AWS-HMAC","AccessKeyId":"ASIAROLE",
                   "SecretAccessKey":"s","Token":"t","Expiration":"2099-01-01T00:00:00Z"}"#
                    .to_owned(),
            )
        }
        (_, path) if path.contains("security-credentials") => Action::Answer(200, "node-role".to_owned()),
        _ => Action::Answer(404, String::new()),
    })
    .await;
    let server = Server::start(|_| xml("AttachNetworkInterface", "<attachmentId>a</attachmentId>")).await;
    let settings = Ec2Settings {
        access_key: None,
        metadata_endpoint: Some(metadata.url()),
        ..settings(server.url())
    };
    Ec2::new(settings).execute(&attach()).await.unwrap();
    assert!(
        server.asked()[0]
            .header("authorization")
            .unwrap()
            .contains("ASIAROLE")
    );
}

/// Without any credentials nothing is sent, and the failure says what to do.
#[tokio::test]
async fn no_credentials_is_a_denial_with_a_next_step() {
    let metadata = Server::start(|_| Action::Answer(404, String::new())).await;
    let server = Server::start(|_| xml("AttachNetworkInterface", "<attachmentId>a</attachmentId>")).await;
    let settings = Ec2Settings {
        access_key: None,
        metadata_endpoint: Some(metadata.url()),
        ..settings(server.url())
    };
    let failure = Ec2::new(settings).execute(&attach()).await.unwrap_err();
    assert_eq!(failure.class, FailureClass::Denied, "{failure}");
    assert!(next_step(&failure).unwrap().contains("instance profile"));
    assert_eq!(server.asked().len(), 0);
}

#[tokio::test]
async fn certificates_that_are_none_are_an_error_and_no_crash() {
    let directory = tempfile::tempdir().unwrap();
    for (name, text) in [
        ("empty.pem", ""),
        ("text.pem", "hello"),
        (
            "broken.pem",
            "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n",
        ),
    ] {
        let path = directory.path().join(name);
        std::fs::write(&path, text).unwrap();
        let settings = Ec2Settings {
            ca_bundle: Some(path),
            ..settings("https://127.0.0.1:1".into())
        };
        let failure = Ec2::new(settings).execute(&attach()).await.unwrap_err();
        assert!(failure.message.contains("AWS_CA_BUNDLE"), "{failure}");
    }
    let missing = Ec2Settings {
        ca_bundle: Some("/nonexistent".into()),
        ..settings("http://127.0.0.1:1".into())
    };
    assert!(
        Ec2::new(missing)
            .execute(&attach())
            .await
            .unwrap_err()
            .message
            .contains("/nonexistent")
    );
}
