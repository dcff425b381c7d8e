//! EC2 and IMDS as nodes and pods reach them: by routing, with IMDS's hop limit.
#![allow(
    clippy::unwrap_used,
    clippy::indexing_slicing,
    clippy::panic,
    reason = "a test may fail"
)]

mod common;

use std::io::{self, Read, Write};
use std::net::{SocketAddr, SocketAddrV4, TcpStream};
use std::time::Duration;

use aws_cni_lab::fabric::IMDS;
use aws_cni_lab::lab::{Lab, NodeSpec};
use aws_cni_lab::netns::Netns;
use aws_cni_lab::vpc::NewInstance;
use common::{SOON, install_script_plugin};

const BRIEF: Duration = Duration::from_millis(500);
const TOKEN: &str =
    "PUT /latest/api/token HTTP/1.1\r\nHost: imds\r\nX-aws-ec2-metadata-token-ttl-seconds: 60\r\n";

/// The answer's status line and body; the request lacks only the last lines of its head.
fn ask(netns: &Netns, server: SocketAddrV4, head: &str, within: Duration) -> io::Result<(String, String)> {
    let exchange = || {
        let mut stream = TcpStream::connect_timeout(&SocketAddr::V4(server), within)?;
        stream.set_read_timeout(Some(within))?;
        stream.write_all(format!("{head}Connection: close\r\n\r\n").as_bytes())?;
        let mut answer = String::new();
        stream.read_to_string(&mut answer)?;
        let (head, body) = answer.split_once("\r\n\r\n").unwrap_or((&answer, ""));
        Ok((
            head.lines().next().unwrap_or_default().to_owned(),
            body.to_owned(),
        ))
    };
    netns.run(exchange).unwrap()
}

fn imds(netns: &Netns, path: &str) -> String {
    let (status, token) = ask(netns, IMDS, TOKEN, SOON).unwrap();
    assert!(status.contains("200"), "{status}");
    let get = format!("GET /latest/{path} HTTP/1.1\r\nHost: imds\r\nX-aws-ec2-metadata-token: {token}\r\n");
    let (status, body) = ask(netns, IMDS, &get, SOON).unwrap();
    assert!(status.contains("200"), "{path}: {status}");
    body
}

#[test]
fn each_node_sees_itself_in_imds() {
    let lab = Lab::builder()
        .node("a", "t3.medium")
        .node("b", "m5.large")
        .build()
        .unwrap();
    for node in lab.nodes() {
        assert_eq!(
            imds(node.netns(), "meta-data/instance-id"),
            node.instance().to_string()
        );
        assert_eq!(
            imds(node.netns(), "meta-data/local-ipv4"),
            node.address().to_string()
        );
        let mac = imds(node.netns(), "meta-data/mac");
        assert_eq!(node.links().unwrap()[0].mac, mac);
    }
}

#[test]
fn ec2_is_reached_from_a_node() {
    let lab = Lab::builder().node("a", "t3.medium").build().unwrap();
    let request = "GET /?Action=DescribeInstances&Version=2016-11-15 HTTP/1.1\r\nHost: ec2\r\n";
    let node = lab.node("a").unwrap();
    let (status, body) = ask(node.netns(), lab.fabric().ec2_endpoint(), request, SOON).unwrap();
    assert!(status.starts_with("HTTP/1.1"), "{status}");
    assert!(body.contains("<RequestI"), "{body}");
}

/// A pod is one forward further than its node, so an answer with TTL 1 dies on the node.
#[test]
fn the_hop_limit_decides_whether_pods_get_tokens() {
    let launch: fn(&mut NewInstance) = |launch| launch.imds_hop_limit = 2;
    let lab = Lab::builder()
        .node("one", "m5.large")
        .node_with(NodeSpec::new("two", "m5.large"), launch)
        .build()
        .unwrap();
    for (name, reachable) in [("one", false), ("two", true)] {
        let node = lab.node(name).unwrap();
        install_script_plugin(&lab, &node, 1);
        let pod = node.pod("demo", "web").unwrap();
        let added = pod.add().unwrap();
        assert!(added.succeeded(), "{}", added.stderr);
        let answer = ask(
            &pod.netns().unwrap(),
            IMDS,
            TOKEN,
            if reachable { SOON } else { BRIEF },
        );
        match answer {
            Ok((status, _)) => assert!(reachable && status.contains("200"), "{name}: {status}"),
            Err(error) => assert!(!reachable, "{name}: {error}"),
        }
        assert!(ask(node.netns(), IMDS, TOKEN, SOON).is_ok());
    }
}
