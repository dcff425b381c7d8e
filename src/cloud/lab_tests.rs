//! The calls that free something, against the lab's EC2. They stand below the gate of `Proof`, which only the witness
//! module can make; the rest of the calls is in `tests/it/cloud.rs`.

use std::net::TcpListener;
use std::time::Duration;

use aws_cni_lab::cloud::{Cloud, CloudConfig};
use aws_cni_lab::vpc::NewInstance;

use super::testing::settings;
use super::*;
use crate::ipam::cloud::{Amount, CloudAnswer, CloudCall, ConnectionTracking, FailureClass};
use crate::ipam::ids::{AttachmentId, CardIndex, DeviceIndex};

#[tokio::test]
async fn an_eni_is_emptied_detached_and_deleted() {
    let cloud = Cloud::new(&CloudConfig::default()).unwrap();
    let (subnet, group) = cloud.model(|model| {
        let vpc = model.create_vpc(&["10.0.0.0/16".parse().unwrap()], None);
        let group = model.create_group(&vpc, "nodes").unwrap();
        let cidr = "10.0.0.0/24".parse().unwrap();
        (
            model.create_subnet(&vpc, "eu-central-1a", cidr, None).unwrap(),
            group,
        )
    });
    let node = cloud
        .run_instance(NewInstance::new("m5.large", &subnet, &group))
        .unwrap()
        .id;
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let endpoint = format!("http://{}", listener.local_addr().unwrap());
    let _server = cloud.serve_ec2_for(listener, Some(node.clone())).unwrap();
    let ec2 = Ec2::new(settings(endpoint));
    let create = CloudCall::CreateEni {
        token: "t".into(),
        subnet: subnet.to_string().into(),
        groups: vec![group.to_string().into()],
        amount: Amount::Addresses(3),
        description: "d".into(),
        tags: [("k".to_owned(), "v".to_owned())].into(),
        tracking: ConnectionTracking::default(),
    };
    let Ok(CloudAnswer::Created(eni)) = ec2.execute(&create).await else {
        panic!()
    };
    let instance = node.to_string().into();
    let attach = CloudCall::AttachEni {
        eni: eni.id.clone(),
        instance,
        device: DeviceIndex(1),
        card: CardIndex(0),
    };
    let Ok(CloudAnswer::Attached(attachment)) = ec2.execute(&attach).await else {
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
