//! The instance metadata client against a service that behaves, and against ones that do not.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use super::testing::{Action, Asked, Server, ok};
use super::*;
use crate::ipam::ids::{CardIndex, DeviceIndex, Mac};

const QUICK: ImdsLimits = ImdsLimits {
    connect: Duration::from_secs(5),
    answer: Duration::from_millis(200),
    attempts: 3,
    pause: Duration::from_millis(1),
};

const PATIENT: ImdsLimits = ImdsLimits {
    answer: Duration::from_secs(20),
    ..QUICK
};

const PRIMARY: &str = "02:00:00:00:00:01";
const SECOND: &str = "02:00:00:00:00:02";

const DOCUMENT: &str = r#"{"accountId":"1","instanceId":"i-0123","instanceType":"m5.large","region":"eu-west-1",
    "availabilityZone":"eu-west-1a","devpayProductCodes":null}"#;

fn tree() -> BTreeMap<String, String> {
    let mut tree = BTreeMap::new();
    let mut put = |path: &str, text: &str| tree.insert(format!("/latest/{path}"), text.to_owned());
    put("dynamic/instance-identity/document", DOCUMENT);
    put("meta-data/mac", PRIMARY);
    put(
        "meta-data/network/interfaces/macs/",
        &format!("{PRIMARY}/\n{SECOND}/"),
    );
    for (mac, device, list) in [
        (
            PRIMARY,
            "0",
            "device-number\ninterface-id\nlocal-ipv4s\nsecurity-group-ids\nsecurity-groups\nsubnet-id\n\
                        subnet-ipv4-cidr-block\nvpc-id\nvpc-ipv4-cidr-block\nvpc-ipv4-cidr-blocks",
        ),
        (
            SECOND,
            "1\n",
            "device-number\ninterface-id\nipv4-associations/\nipv4-prefix\nlocal-ipv4s\nnetwork-card\n\
                         security-group-ids\nsubnet-id\nsubnet-ipv4-cidr-block\nvpc-id\nvpc-ipv4-cidr-blocks",
        ),
    ] {
        let mut put =
            |name: &str, text: &str| put(&format!("meta-data/network/interfaces/macs/{mac}/{name}"), text);
        put("", list);
        put("device-number", device);
        put("interface-id", if mac == PRIMARY { "eni-1" } else { "eni-2" });
        put(
            "local-ipv4s",
            if mac == PRIMARY {
                "10.0.0.4"
            } else {
                "10.0.1.4\n10.0.1.5"
            },
        );
        put("security-group-ids", "sg-1\nsg-2");
        put("subnet-id", "subnet-1");
        put("subnet-ipv4-cidr-block", "10.0.0.0/24");
        put("vpc-id", "vpc-1");
        put("vpc-ipv4-cidr-blocks", "10.0.0.0/16\n100.64.0.0/16");
    }
    put(
        &format!("meta-data/network/interfaces/macs/{SECOND}/network-card"),
        "1",
    );
    put(
        &format!("meta-data/network/interfaces/macs/{SECOND}/ipv4-prefix"),
        "10.0.1.16/28",
    );
    tree
}

/// The service's rules: a token first, then values by path.
fn behave(tree: &BTreeMap<String, String>, asked: &Asked) -> Action {
    match (asked.method.as_str(), asked.path.as_str()) {
        ("PUT", "/latest/api/token") => match asked.header("x-aws-ec2-metadata-token-ttl-seconds") {
            Some("21600") => ok("TOKEN=="),
            _ => Action::Answer(400, String::new()),
        },
        ("GET", path) if asked.header("x-aws-ec2-metadata-token") == Some("TOKEN==") => tree
            .get(path)
            .map_or(Action::Answer(404, "not here".into()), |text| ok(text)),
        _ => Action::Answer(401, String::new()),
    }
}

async fn start(edit: impl FnOnce(&mut BTreeMap<String, String>)) -> (Server, Imds) {
    let mut tree = tree();
    edit(&mut tree);
    let server = Server::start(move |asked| behave(&tree, asked)).await;
    let imds = Imds::new(Some(&server.url()), PATIENT).unwrap();
    (server, imds)
}

/// A service that gives a token and does this with everything else.
async fn behind_a_token(answer: impl Fn(&Asked) -> Action + Send + Sync + 'static) -> Server {
    Server::start(move |asked| match asked.method.as_str() {
        "PUT" => ok("T"),
        _ => answer(asked),
    })
    .await
}

/// What becomes of a request to this service, which must fail.
async fn failing(server: &Server, limits: ImdsLimits) -> ImdsError {
    let imds = Imds::new(Some(&server.url()), limits).unwrap();
    imds.get("/x").await.unwrap_err()
}

fn mac_path(mac: &str, name: &str) -> String {
    format!("/latest/meta-data/network/interfaces/macs/{mac}/{name}")
}

#[tokio::test]
async fn discovery_reads_the_node_in_few_requests() {
    let (server, imds) = start(|tree| {
        let macs = tree
            .get_mut("/latest/meta-data/network/interfaces/macs/")
            .unwrap();
        *macs = format!("{PRIMARY}/");
    })
    .await;
    let node = imds.discover().await.unwrap();
    assert_eq!(imds.requests().await, 13);
    assert_eq!(server.asked().len(), 13);
    assert_eq!(
        (node.instance.as_str(), node.instance_type.as_str()),
        ("i-0123", "m5.large")
    );
    assert_eq!(
        (node.region.as_str(), node.availability_zone.as_str()),
        ("eu-west-1", "eu-west-1a")
    );
    let primary = node.primary().unwrap();
    assert_eq!(
        (primary.id.as_str(), primary.device, primary.card),
        ("eni-1", DeviceIndex(0), CardIndex(0))
    );
    assert_eq!(
        primary.addresses,
        ["10.0.0.4".parse::<std::net::Ipv4Addr>().unwrap()]
    );
    assert_eq!(primary.subnet_cidr, Some("10.0.0.0/24".parse().unwrap()));
    assert_eq!(
        primary.vpc_cidrs,
        ["10.0.0.0/16".parse().unwrap(), "100.64.0.0/16".parse().unwrap()]
    );
    assert_eq!(primary.security_groups, ["sg-1".into(), "sg-2".into()]);
    assert_eq!(primary.prefixes, []);
}

#[tokio::test]
async fn discovery_reads_secondary_enis_with_cards_and_prefixes() {
    let (_server, imds) = start(|_| {}).await;
    let node = imds.discover().await.unwrap();
    assert_eq!(node.enis.len(), 2);
    let second = node.enis.iter().find(|eni| eni.mac != node.primary_mac).unwrap();
    assert_eq!((second.device, second.card), (DeviceIndex(1), CardIndex(1)));
    assert_eq!(second.addresses.len(), 2);
    assert_eq!(second.prefixes, ["10.0.1.16/28".parse().unwrap()]);
    assert_eq!(node.incomplete, []);
}

/// One connection and one token serve all requests.
#[tokio::test]
async fn one_token_is_asked_for() {
    let (server, imds) = start(|_| {}).await;
    imds.discover().await.unwrap();
    imds.discover().await.unwrap();
    assert_eq!(
        server
            .asked()
            .iter()
            .filter(|asked| asked.method == "PUT")
            .count(),
        1
    );
}

#[tokio::test]
async fn absent_values_are_none_and_mandatory_ones_are_named() {
    let (_server, imds) = start(|tree| {
        tree.remove(&mac_path(PRIMARY, "subnet-id"));
    })
    .await;
    assert_eq!(imds.get("/latest/meta-data/nothing").await, Ok(None));
    let path = mac_path(PRIMARY, "subnet-id");
    assert_eq!(imds.discover().await.unwrap_err(), ImdsError::Missing { path });
}

/// Quirk Q28: an ENI that vanishes while it is read must not hide the others.
#[tokio::test]
async fn a_half_described_secondary_eni_is_set_aside() {
    let (_server, imds) = start(|tree| {
        tree.remove(&mac_path(SECOND, "interface-id"));
    })
    .await;
    let node = imds.discover().await.unwrap();
    assert_eq!(node.enis.len(), 1);
    let mac: Mac = SECOND.parse().unwrap();
    let path = mac_path(SECOND, "interface-id");
    assert_eq!(node.incomplete, [(mac, ImdsError::Missing { path })]);
}

/// Fault 2 of ipamd 11.1: an empty list of ENIs is a lie.
#[tokio::test]
async fn ipamd_94_fault_2_an_empty_list_of_enis_is_not_believed() {
    for (macs, error) in [
        ("", ImdsError::NoInterfaces),
        (" \n", ImdsError::NoInterfaces),
        (
            SECOND,
            ImdsError::NoPrimary {
                mac: PRIMARY.parse().unwrap(),
            },
        ),
    ] {
        let (_server, imds) = start(|tree| {
            tree.insert("/latest/meta-data/network/interfaces/macs/".into(), macs.into());
        })
        .await;
        assert_eq!(imds.discover().await.unwrap_err(), error);
    }
}

/// Fault 10 of ipamd 11.1: every ENI has a security group, so a list of none is a lie, and would be copied to new ENIs.
#[tokio::test]
async fn ipamd_fault_10_a_primary_eni_without_groups_is_not_believed() {
    let path = mac_path(PRIMARY, "security-group-ids");
    let (_server, imds) = start(|tree| {
        tree.insert(path.clone(), "\n".into());
    })
    .await;
    assert_eq!(imds.discover().await.unwrap_err(), ImdsError::Missing { path });
}

#[tokio::test]
async fn hostile_values_name_their_path() {
    for (path, text) in [
        (mac_path(PRIMARY, "local-ipv4s"), "10.0.0.4\n<html>"),
        (mac_path(PRIMARY, "device-number"), "-1"),
        (mac_path(PRIMARY, "interface-id"), "eni-1\nX: y"),
        (mac_path(PRIMARY, "subnet-ipv4-cidr-block"), "10.0.0.0/99"),
        ("/latest/meta-data/mac".into(), "nonsense"),
        ("/latest/meta-data/network/interfaces/macs/".into(), "../../x"),
        ("/latest/dynamic/instance-identity/document".into(), "{}"),
        ("/latest/dynamic/instance-identity/document".into(), "\u{0}\u{1}"),
    ] {
        let (_server, imds) = start(|tree| {
            tree.insert(path.clone(), text.to_owned());
        })
        .await;
        match imds.discover().await.unwrap_err() {
            ImdsError::Invalid {
                path: named,
                text: shown,
                ..
            } => {
                assert_eq!(named, path);
                assert!(!shown.is_empty() && shown.chars().count() <= 80);
            }
            other => panic!("{path}: {other}"),
        }
    }
}

#[tokio::test]
async fn a_primary_eni_is_device_zero_whatever_is_said() {
    let (_server, imds) = start(|tree| {
        tree.insert(mac_path(PRIMARY, "device-number"), "3".into());
    })
    .await;
    assert_eq!(
        imds.discover().await.unwrap().primary().unwrap().device,
        DeviceIndex(0)
    );
}

#[tokio::test]
async fn a_forgotten_token_is_replaced() {
    let issued = AtomicU32::new(0);
    let server = Server::start(move |asked| match asked.method.as_str() {
        "PUT" => ok(&format!("T{}", issued.fetch_add(1, Ordering::Relaxed))),
        _ if asked.header("x-aws-ec2-metadata-token") == Some("T1") => ok("value"),
        _ => Action::Answer(401, String::new()),
    })
    .await;
    let imds = Imds::new(Some(&server.url()), PATIENT).unwrap();
    assert_eq!(imds.get("/x").await, Ok(Some("value".into())));
    assert_eq!(imds.requests().await, 4);
}

#[tokio::test]
async fn refusals_say_what_to_do() {
    for (method, status, hint) in [
        ("PUT", 403, "enable it"),
        ("PUT", 404, "enable it"),
        ("GET", 403, "enable it"),
    ] {
        let server = Server::start(move |asked| {
            if asked.method == method {
                Action::Answer(status, String::new())
            } else {
                ok("T")
            }
        })
        .await;
        let error = failing(&server, PATIENT).await;
        assert!(matches!(error, ImdsError::Refused { .. }), "{error:?}");
        assert!(error.to_string().contains(hint), "{error}");
    }
}

#[tokio::test]
async fn server_errors_are_retried_and_then_reported() {
    let count = AtomicU32::new(0);
    let server = behind_a_token(move |asked| {
        if asked.path == "/flaky" && count.fetch_add(1, Ordering::Relaxed) == 2 {
            ok("fine")
        } else {
            Action::Answer(503, String::new())
        }
    })
    .await;
    let imds = Imds::new(Some(&server.url()), PATIENT).unwrap();
    assert_eq!(imds.get("/flaky").await, Ok(Some("fine".into())));
    assert_eq!(
        imds.get("/down").await,
        Err(ImdsError::Status {
            path: "/down".into(),
            status: 503
        })
    );
}

#[tokio::test]
async fn a_silent_service_is_given_up_with_the_hop_limit_in_mind() {
    let server = Server::start(|_| Action::Hang).await;
    let error = failing(&server, QUICK).await;
    assert!(matches!(error, ImdsError::NoToken { .. }), "{error:?}");
    assert!(error.to_string().contains("HttpPutResponseHopLimit"), "{error}");
    assert_eq!(server.asked().len(), 3);
}

#[tokio::test]
async fn nobody_there_names_the_address() {
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    drop(listener);
    let error = Imds::new(Some(&format!("http://{address}/")), QUICK)
        .unwrap()
        .get("/x")
        .await
        .unwrap_err();
    assert!(
        matches!(&error, ImdsError::Connect { endpoint, .. } if *endpoint == address.to_string()),
        "{error:?}"
    );
}

#[tokio::test]
async fn a_connection_closed_while_idle_is_opened_again_at_once() {
    let server = Server::start(|asked| {
        let body = if asked.method == "PUT" { "T" } else { "v" };
        Action::AnswerAndClose(200, body.into())
    })
    .await;
    let limits = ImdsLimits {
        attempts: 1,
        ..PATIENT
    };
    let imds = Imds::new(Some(&server.url()), limits).unwrap();
    for _ in 0..3 {
        assert_eq!(imds.get("/x").await, Ok(Some("v".into())));
    }
}

#[tokio::test]
async fn answers_in_every_framing_are_read() {
    for raw in [
        "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nval\r\n2;x=y\r\nue\r\n0\r\nT: 1\r\n\r\n",
        "HTTP/1.0 200 OK\r\n\r\nvalue",
        "HTTP/1.1 200 OK\nContent-Length: 5\n\nvalue",
        "HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 200\r\ncontent-length: 5\r\nConnection: close\r\n\r\nvalue",
    ] {
        let server = behind_a_token(move |_| Action::Raw(raw.as_bytes().to_vec())).await;
        let imds = Imds::new(Some(&server.url()), PATIENT).unwrap();
        assert_eq!(imds.get("/x").await, Ok(Some("value".into())), "{raw:?}");
    }
}

#[tokio::test]
async fn what_is_not_http_or_too_large_is_refused_without_reading_on() {
    let large = format!("HTTP/1.1 200 OK\r\nX: {}", "x".repeat(100_000));
    let endless = format!("HTTP/1.1 200 OK\r\n\r\n{}", "x".repeat(100_000));
    for raw in [
        "SSH-2.0-OpenSSH_9.2\r\n",
        "HTTP/1.1 abc\r\n\r\n",
        "HTTP/1.1 200 OK\r\nContent-Length: 9999999999\r\n\r\n",
        "HTTP/1.1 200 OK\r\nContent-Length: minus one\r\n\r\n",
        "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nfffffffffffff\r\n",
        "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n",
        "HTTP/1.1 200 OK\r\nnonsense\r\n\r\n",
        &large,
        &endless,
    ] {
        let bytes = raw.as_bytes().to_vec();
        let server = behind_a_token(move |_| Action::RawAndKeep(bytes.clone())).await;
        let limits = ImdsLimits {
            answer: Duration::from_millis(500),
            ..QUICK
        };
        let error = failing(&server, limits).await;
        assert!(
            matches!(error, ImdsError::Protocol { .. }) || raw == endless,
            "{error:?}"
        );
    }
}

#[tokio::test]
async fn an_answer_cut_short_is_no_answer() {
    let raw = b"HTTP/1.1 200 OK\r\nContent-Length: 50\r\n\r\nhalf".to_vec();
    let server = behind_a_token(move |_| Action::Raw(raw.clone())).await;
    let error = failing(&server, PATIENT).await;
    assert!(matches!(error, ImdsError::NoAnswer { .. }), "{error:?}");
}

/// A token goes into a header: one with a line break would be a second header.
#[tokio::test]
async fn a_token_that_is_none_is_refused() {
    for token in ["", "a b", "a\r\nX: y"] {
        let server = Server::start(move |_| ok(token)).await;
        let error = failing(&server, PATIENT).await;
        assert!(matches!(error, ImdsError::Invalid { .. }), "{error:?}");
    }
}

#[test]
fn endpoints() {
    for (endpoint, good) in [
        (None, true),
        (Some("http://169.254.169.254"), true),
        (Some("http://[fd00:ec2::254]"), true),
        (Some("http://127.0.0.1:1338/"), true),
        (Some("https://127.0.0.1"), false),
        (Some("http://"), false),
        (Some("http://a/b"), false),
        (Some("http://a\r\nX: y"), false),
        (Some("169.254.169.254"), false),
    ] {
        assert_eq!(Imds::new(endpoint, QUICK).is_ok(), good, "{endpoint:?}");
    }
}
