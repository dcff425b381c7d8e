//! Fuzz targets of what AWS answers; see [`crate::fuzz`].
#![allow(
    clippy::panic,
    clippy::missing_panics_doc,
    reason = "a panic is how a target says that it has found something"
)]

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use aws_sdk_ec2::config::SharedHttpClient;
use aws_smithy_runtime_api::client::http::{
    HttpClient, HttpConnector, HttpConnectorFuture, HttpConnectorSettings, SharedHttpConnector,
};
use aws_smithy_runtime_api::client::orchestrator::{HttpRequest, HttpResponse};
use aws_smithy_runtime_api::client::runtime_components::RuntimeComponents;
use tokio::io::{AsyncReadExt, AsyncWriteExt, BufReader, join, sink};
use tokio::net::TcpListener;
use tokio::runtime::Runtime;

use super::imds_http::{MOST_BODY_BYTES, Request, exchange};
use super::settings::Ec2Settings;
use super::{Ec2, Imds, ImdsLimits};
use crate::config::AccessKey;
use crate::ipam::cloud::{Amount, CloudAnswer, CloudCall, ConnectionTracking, DescribeScope};
use crate::ipam::ids::{CardIndex, DeviceIndex};

type Answer = Arc<Mutex<(u16, Vec<u8>)>>;

/// Answers every request with the same status and body.
#[derive(Debug, Clone, Default)]
struct Canned(Answer);

impl HttpClient for Canned {
    fn http_connector(&self, _: &HttpConnectorSettings, _: &RuntimeComponents) -> SharedHttpConnector {
        SharedHttpConnector::new(self.clone())
    }
}

impl HttpConnector for Canned {
    fn call(&self, _: HttpRequest) -> HttpConnectorFuture {
        let (status, body) = self.0.lock().unwrap_or_else(PoisonError::into_inner).clone();
        let status = status.try_into().unwrap_or_else(|error| panic!("{error}"));
        HttpConnectorFuture::ready(Ok(HttpResponse::new(status, body.into())))
    }
}

fn runtime() -> Runtime {
    let mut builder = tokio::runtime::Builder::new_current_thread();
    builder
        .enable_all()
        .build()
        .unwrap_or_else(|error| panic!("{error}"))
}

struct Ec2Rig {
    runtime: Runtime,
    ec2: Ec2,
    answer: Answer,
}

impl Ec2Rig {
    fn new() -> Self {
        let (runtime, canned) = (runtime(), Canned::default());
        let settings = Ec2Settings {
            region: Some("eu-west-1".to_owned()),
            endpoint: Some("http://ec2".to_owned()),
            metadata_endpoint: None,
            profile: None,
            access_key: Some(AccessKey {
                id: "AKIAX".to_owned(),
                secret: "s".to_owned(),
                session_token: None,
            }),
            use_fips: None,
            use_dual_stack: None,
            ca_bundle: None,
            connect_timeout: Duration::from_secs(1),
            attempt_timeout: Duration::from_secs(1),
            max_attempts: 1,
        };
        let answer = Arc::clone(&canned.0);
        let ec2 = runtime.block_on(Ec2::over(settings, SharedHttpClient::new(canned)));
        Self { runtime, ec2, answer }
    }
}

thread_local! {
    static EC2: Ec2Rig = Ec2Rig::new();
    static IMDS: ImdsRig = ImdsRig::new();
}

/// What EC2 answers, by three lines: the call's number, the HTTP status, and all the rest as the body.
pub fn ec2_answers(data: &[u8]) {
    let mut parts = data.splitn(3, |byte| *byte == b'\n');
    let mut number = || {
        let text = String::from_utf8_lossy(parts.next().unwrap_or_default()).into_owned();
        text.trim().parse::<u16>().unwrap_or_default()
    };
    let (which, status) = (usize::from(number()), number());
    let body = parts.next().unwrap_or_default();
    let status = if (200..600).contains(&status) { status } else { 200 };
    let calls = calls();
    let Some(call) = calls.get(which % calls.len()) else {
        return;
    };
    EC2.with(|rig| {
        *rig.answer.lock().unwrap_or_else(PoisonError::into_inner) = (status, body.to_vec());
        match rig.runtime.block_on(rig.ec2.execute(call)) {
            Ok(answer) => judge(call, &answer, status, body),
            Err(failure) => {
                assert!(failure.message.chars().count() <= 700, "a log line without end");
                drop(super::next_step(&failure));
            }
        }
    });
}

fn judge(call: &CloudCall, answer: &CloudAnswer, status: u16, body: &[u8]) {
    assert!((200..300).contains(&status), "{status} passed for a success");
    assert!(
        body.trim_ascii_end().ends_with(b"Response>"),
        "half an answer passed for one"
    );
    let fits = match call {
        CloudCall::CreateEni { .. } => matches!(answer, CloudAnswer::Created(_)),
        CloudCall::AttachEni { .. } => matches!(answer, CloudAnswer::Attached(_)),
        CloudCall::Assign { .. } => matches!(answer, CloudAnswer::Assigned { .. }),
        CloudCall::DescribeEnis { .. } | CloudCall::DescribeLeftEnis { .. } => {
            matches!(answer, CloudAnswer::Enis(_))
        }
        CloudCall::DescribeInstances { instances } => match answer {
            CloudAnswer::Instances(living) => living.keys().all(|id| instances.contains(id)),
            _ => false,
        },
        CloudCall::DescribeSubnets { .. } => matches!(answer, CloudAnswer::Subnets(_)),
        CloudCall::DescribeInstanceType { .. } => matches!(answer, CloudAnswer::Limits(_)),
        _ => matches!(answer, CloudAnswer::Done),
    };
    assert!(fits, "{call:?} was answered by {answer:?}");
}

fn calls() -> [CloudCall; 10] {
    let amount = Amount::Prefixes(1);
    [
        CloudCall::DescribeEnis {
            instance: "i-1".into(),
            scope: DescribeScope::Attached,
        },
        CloudCall::CreateEni {
            token: "t".into(),
            subnet: "subnet-1".into(),
            groups: vec![],
            amount,
            description: String::new(),
            tags: BTreeMap::new(),
            tracking: ConnectionTracking::default(),
        },
        CloudCall::Assign {
            eni: "eni-1".into(),
            amount,
        },
        CloudCall::AttachEni {
            eni: "eni-1".into(),
            instance: "i-1".into(),
            device: DeviceIndex(1),
            card: CardIndex(0),
        },
        CloudCall::DescribeInstances {
            instances: vec!["i-1".into()],
        },
        CloudCall::DescribeSubnets {
            vpc: "vpc-1".into(),
            zone: "z".to_owned(),
        },
        CloudCall::DescribeInstanceType {
            instance_type: "m5.large".into(),
        },
        CloudCall::DescribeLeftEnis {
            vpc: "vpc-1".into(),
            cluster: None,
        },
        CloudCall::SetGroups {
            eni: "eni-1".into(),
            groups: vec!["sg-1".into()],
        },
        CloudCall::TagEni {
            eni: "eni-1".into(),
            tags: BTreeMap::new(),
        },
    ]
}

type Tree = Arc<Mutex<BTreeMap<String, Vec<u8>>>>;

struct ImdsRig {
    runtime: Runtime,
    endpoint: String,
    tree: Tree,
}

const DOCUMENT: &str =
    r#"{"instanceId":"i-1","instanceType":"m5.large","region":"r","availabilityZone":"z"}"#;
const LISTING: &str = "device-number interface-id local-ipv4s ipv4-prefix network-card security-group-ids subnet-id \
                       subnet-ipv4-cidr-block vpc-id vpc-ipv4-cidr-blocks";

/// Paths by their last part, with what a node of one ENI has there.
const VALUES: &[(&str, &str)] = &[
    ("token", "T"),
    ("document", DOCUMENT),
    ("mac", "02:00:00:00:00:01"),
    ("macs/", "02:00:00:00:00:01/"),
    ("02:00:00:00:00:01/", LISTING),
    ("interface-id", "eni-1"),
    ("device-number", "0"),
    ("network-card", "0"),
    ("subnet-id", "subnet-1"),
    ("vpc-id", "vpc-1"),
    ("subnet-ipv4-cidr-block", "10.0.0.0/24"),
    ("vpc-ipv4-cidr-blocks", "10.0.0.0/16"),
    ("local-ipv4s", "10.0.0.4"),
    ("ipv4-prefix", "10.0.0.16/28"),
    ("security-group-ids", "sg-1"),
];

impl ImdsRig {
    fn new() -> Self {
        let runtime = runtime();
        let bind = runtime.block_on(TcpListener::bind("127.0.0.1:0"));
        let listener = bind.unwrap_or_else(|error| panic!("{error}"));
        let address = listener.local_addr().unwrap_or_else(|error| panic!("{error}"));
        let tree = Tree::default();
        let served = Arc::clone(&tree);
        runtime.spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                tokio::spawn(serve(stream, Arc::clone(&served)));
            }
        });
        Self {
            runtime,
            endpoint: format!("http://{address}"),
            tree,
        }
    }
}

async fn serve(mut stream: tokio::net::TcpStream, tree: Tree) {
    let mut asked = Vec::new();
    let mut part = [0; 4096];
    while let Ok(length @ 1..) = stream.read(&mut part).await {
        asked.extend_from_slice(part.get(..length).unwrap_or_default());
        if !asked.ends_with(b"\r\n\r\n") {
            continue;
        }
        let head = String::from_utf8_lossy(&asked).into_owned();
        let path = head.split(' ').nth(1).unwrap_or_default().to_owned();
        asked.clear();
        let body = {
            let tree = tree.lock().unwrap_or_else(PoisonError::into_inner);
            let found = tree.iter().filter(|(suffix, _)| path.ends_with(suffix.as_str()));
            found
                .max_by_key(|(suffix, _)| suffix.len())
                .map(|(_, body)| body.clone())
        };
        let status = if body.is_some() { 200 } else { 404 };
        let body = body.unwrap_or_default();
        let head = format!("HTTP/1.1 {status} X\r\nContent-Length: {}\r\n\r\n", body.len());
        let answer = [head.as_bytes(), &body].concat();
        if stream.write_all(&answer).await.is_err() {
            return;
        }
    }
}

/// What IMDS answers: bytes on the wire after a `!`, else values as `path's end=value` lines, which replace those of a
/// node with one ENI (an empty one stands for 404).
pub fn imds_answers(data: &[u8]) {
    IMDS.with(|rig| {
        if let Some(bytes) = data.strip_prefix(b"!") {
            rig.runtime.block_on(on_the_wire(bytes));
            return;
        }
        let mut tree: BTreeMap<String, Vec<u8>> = VALUES
            .iter()
            .map(|(path, value)| (format!("/{path}"), value.as_bytes().to_vec()))
            .collect();
        for (path, value) in crate::fuzz::lines(data) {
            if value.is_empty() {
                tree.remove(&format!("/{path}"));
            } else {
                tree.insert(format!("/{path}"), value);
            }
        }
        *rig.tree.lock().unwrap_or_else(PoisonError::into_inner) = tree;
        let limits = ImdsLimits {
            attempts: 1,
            ..ImdsLimits::default()
        };
        let imds = Imds::new(Some(&rig.endpoint), limits).unwrap_or_else(|error| panic!("{error}"));
        match rig.runtime.block_on(imds.discover()) {
            Ok(found) => {
                let primary = found
                    .primary()
                    .unwrap_or_else(|| panic!("no primary ENI in {found:?}"));
                assert_eq!(primary.mac, found.primary_mac);
                assert_eq!(primary.device, DeviceIndex(0));
                assert!(!primary.security_groups.is_empty());
            }
            Err(error) => drop(error.to_string()),
        }
    });
}

async fn on_the_wire(bytes: &[u8]) {
    let mut stream = BufReader::new(join(bytes, sink()));
    let request = Request {
        method: "GET",
        host: "h",
        path: "/",
        header: ("a", "b"),
    };
    if let Ok(answer) = exchange(&mut stream, request).await {
        assert!(
            answer.body.len() <= MOST_BODY_BYTES,
            "{} bytes",
            answer.body.len()
        );
        assert!(answer.status >= 200);
    }
}
