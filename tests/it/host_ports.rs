//! Ports of the node that lead to pods, without another plugin.

use std::net::{Ipv4Addr, SocketAddrV4};
use std::sync::Arc;
use std::time::Duration;

use aws_cni_lab::netns::Netns;
use aws_cni_lab::pod::Pod;
use aws_cni_lab::probe::{ECHO_PORT, Protocol, exchange};
use serde_json::{Value, json};

use crate::scene::{PATIENCE, Scene, refused};

const BOTH: [Protocol; 2] = [Protocol::Tcp, Protocol::Udp];
const NOT_REACHED: Duration = Duration::from_millis(400);

fn mappings(host_port: u16) -> Value {
    let one = |protocol| json!({"hostPort": host_port, "containerPort": ECHO_PORT, "protocol": protocol, "hostIP": ""});
    json!([one("tcp"), one("UDP")])
}

/// A pod whose runtime hands these mappings to the plugin, not added yet.
fn pod(scene: &Scene, name: &str, mappings: &Value) -> Pod {
    let mut runtime = scene.node.runtime();
    let plugin = &mut runtime.conflist.plugins[0];
    plugin["capabilities"] = json!({"portMappings": true});
    plugin["runtimeConfig"] = json!({ "portMappings": mappings });
    scene.node.pod_of(Arc::new(runtime), "default", name).unwrap()
}

fn added(scene: &Scene, name: &str, host_port: u16) -> Pod {
    let pods = [pod(scene, name, &mappings(host_port))];
    scene.add(&pods, 1);
    let [pod] = pods;
    pod.serve_echo().unwrap();
    pod
}

/// Who asks is seen by its own address, unless the pod could not answer it.
fn asserts_open(scene: &Scene, pod: &Pod, port: u16) {
    let node = scene.node.address();
    let outside = scene.lab.fabric().outside();
    let inside = pod.netns().unwrap();
    let cases: [(&Netns, Ipv4Addr, Ipv4Addr); 5] = [
        (&outside.internet.netns, node, outside.internet.address),
        (&outside.second_vpc.netns, node, outside.second_vpc.address),
        (scene.node.netns(), node, node),
        (scene.node.netns(), Ipv4Addr::LOCALHOST, node),
        (&inside, node, node),
    ];
    for (client, to, source) in cases {
        for protocol in BOTH {
            let case = format!("{protocol} {to}:{port} from {source}");
            let seen = exchange(client, protocol, SocketAddrV4::new(to, port), PATIENCE).expect(&case);
            assert_eq!(seen.ip(), source, "{case}");
        }
    }
}

fn asserts_closed(scene: &Scene, port: u16) {
    let outside = scene.lab.fabric().outside();
    for client in [&outside.internet.netns, scene.node.netns()] {
        for protocol in BOTH {
            let target = SocketAddrV4::new(scene.node.address(), port);
            let outcome = exchange(client, protocol, target, NOT_REACHED);
            assert!(outcome.is_err(), "{protocol}: {outcome:?}");
        }
    }
    let held = scene
        .node
        .nft_json(&["list", "map", "ip", "aws-cni", "host-port"])
        .unwrap();
    assert!(!held.to_string().contains("elem"), "{held}");
}

#[test]
fn a_host_port_is_the_pods_until_its_del_and_another_pod_is_told_whose_it_is() {
    let mut scene = Scene::new("t3.small");
    let first = added(&scene, "first", 8080);
    asserts_open(&scene, &first, 8080);

    let second = pod(&scene, "second", &mappings(8080));
    let (code, message) = refused(&second);
    assert_eq!(code, 999);
    assert!(
        message.contains("tcp port 8080") && message.contains("default/first"),
        "{message}"
    );

    // Over a kill, though somebody empties the maps meanwhile.
    scene.kill();
    scene
        .node
        .nft("flush map ip aws-cni host-port\nflush set ip aws-cni host-port-pod\n")
        .unwrap();
    scene.start();
    asserts_open(&scene, &first, 8080);
    assert!(refused(&second).1.contains("default/first"));

    assert!(first.del().unwrap().succeeded());
    asserts_closed(&scene, 8080);
    let second = added(&scene, "second", 8080);
    asserts_open(&scene, &second, 8080);

    // Without a daemon, and by the runtime's word alone.
    scene.kill();
    assert!(second.del().unwrap().succeeded());
    asserts_closed(&scene, 8080);
    scene.start();
    let third = added(&scene, "third", 8080);
    scene.node.runtime().gc(&[]).unwrap();
    scene.eventually("the port to be closed by the GC", || {
        let held = scene
            .node
            .nft_json(&["list", "map", "ip", "aws-cni", "host-port"])
            .unwrap();
        !held.to_string().contains("elem")
    });
    drop(third);
}

#[test]
fn host_ports_come_back_when_somebody_flushes_the_table() {
    let scene = Scene::new("t3.small");
    let pod = added(&scene, "web", 8080);
    let open = || {
        let held = scene
            .node
            .nft_json(&["list", "map", "ip", "aws-cni", "host-port"]);
        held.is_ok_and(|held| held.to_string().contains("elem"))
    };
    for offence in ["delete table ip aws-cni\n", "flush map ip aws-cni host-port\n"] {
        scene.node.nft(offence).unwrap();
        scene.eventually("the port to be open again", open);
        asserts_open(&scene, &pod, 8080);
    }
}

#[test]
fn a_mapping_that_cannot_be_had_is_refused_by_its_field_and_leaves_nothing() {
    let scene = Scene::new("t3.small");
    for (mapping, field) in [
        (
            json!({"hostPort": 0, "containerPort": 80, "protocol": "tcp"}),
            "hostPort",
        ),
        (
            json!({"hostPort": 80, "containerPort": 80, "protocol": "icmp"}),
            "protocol",
        ),
        (
            json!({"hostPort": 80, "containerPort": 80, "protocol": "tcp", "hostIP": "fd00::1"}),
            "hostIP",
        ),
    ] {
        let pod = pod(&scene, field, &json!([mapping]));
        let (code, message) = refused(&pod);
        assert_eq!(code, 7, "{message}");
        assert!(message.contains(&format!("portMappings[0].{field}")), "{message}");
        assert!(pod.del().unwrap().succeeded());
    }
    scene.wait_for("nothing to be assigned", |status| status["assigned"] == 0);
}
