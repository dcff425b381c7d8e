//! Nonsense from every side: settings, standard input, the socket.

use std::fs::{self, Permissions};
use std::io::{Read, Write};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::UnixStream;
use std::process::Command;

use aws_cni_lab::varlink::CallError;
use serde_json::{Value, json};

use crate::scene::{PATIENCE, Scene, said};

/// Room for 1200 connections and everything else; a daemon that hoards frames takes many times as much.
const MEMORY_BOUND_KIB: u64 = 256 * 1024;

fn peak_memory_kib(scene: &Scene) -> u64 {
    let status = fs::read_to_string(format!("/proc/{}/status", scene.daemon().pid())).unwrap();
    let line = status
        .lines()
        .find_map(|line| line.strip_prefix("VmHWM:"))
        .unwrap();
    line.trim().trim_end_matches(" kB").parse().unwrap()
}

fn connect(scene: &Scene) -> UnixStream {
    let stream = UnixStream::connect(scene.node.dirs().socket()).unwrap();
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    stream.set_write_timeout(Some(PATIENCE)).unwrap();
    stream
}

/// What comes back when this is sent; the daemon may refuse before it has read everything.
fn reply_to(scene: &Scene, bytes: &[u8]) -> Vec<u8> {
    let mut stream = connect(scene);
    drop(stream.write_all(bytes));
    drop(stream.shutdown(std::net::Shutdown::Write));
    let mut reply = Vec::new();
    drop(stream.read_to_end(&mut reply));
    reply
}

/// It still gives out addresses, all is accounted for, and it has not grown.
fn assert_serves(scene: &Scene) {
    let pods = scene.pods("honest", 2);
    scene.add(&pods, 2);
    scene.check(&pods);
    scene.del(&pods, 2);
    scene.check(&[]);
    let memory = peak_memory_kib(scene);
    assert!(memory < MEMORY_BOUND_KIB, "{memory} KiB");
}

#[test]
fn every_wrong_setting_is_reported_at_once_and_ends_the_start_with_2() {
    let mut scene = Scene::stage(
        aws_cni_lab::lab::Lab::builder(),
        "m5.large",
        &[
            ("AWS_VPC_ENI_MTU", "jumbo"),
            ("AWS_VPC_K8S_CNI_VETHPREFIX", "much-too-long-prefix"),
            ("RULE_LAYOUT", "sideways"),
        ],
    );
    scene.launch();
    let status = scene.daemon().wait(PATIENCE).unwrap();
    assert_eq!(status.code(), Some(2), "{}", scene.log());
    for named in ["AWS_VPC_ENI_MTU", "AWS_VPC_K8S_CNI_VETHPREFIX", "RULE_LAYOUT"] {
        assert!(scene.log().contains(named), "{named}\n{}", scene.log());
    }
    for name in ["AWS_VPC_ENI_MTU", "AWS_VPC_K8S_CNI_VETHPREFIX", "RULE_LAYOUT"] {
        scene.set_env(
            name,
            match name {
                "AWS_VPC_ENI_MTU" => "9001",
                "RULE_LAYOUT" => "shared",
                _ => "eni",
            },
        );
    }
    scene.start();
    assert_serves(&scene);
}

#[test]
fn frames_of_nonsense_are_refused_and_the_daemon_serves_on() {
    let scene = Scene::new("m5.large");
    let method = |name: &str, parameters: &Value| {
        let mut frame = json!({"method": name, "parameters": parameters})
            .to_string()
            .into_bytes();
        frame.push(0);
        frame
    };
    let deep = format!("{}{}\0", "[".repeat(20_000), "]".repeat(20_000));
    let nonsense: [Vec<u8>; 9] = [
        b"\0".to_vec(),
        b"\0\0\0\0".to_vec(),
        b"GET / HTTP/1.1\r\n\r\n\0".to_vec(),
        vec![0xff; 1000].into_iter().chain([0]).collect(),
        deep.into_bytes(),
        method("local.awscni.Ipamd1.Add", &json!({"container_id": 7})),
        method("local.awscni.Ipamd99.Add", &json!({})),
        method("Nothing", &Value::Null),
        [
            method("local.awscni.Ipamd1.Status", &json!({})),
            method("local.awscni.Ipamd1.Status", &json!({})),
        ]
        .concat(),
    ];
    for bytes in nonsense {
        let reply = reply_to(&scene, &bytes);
        let text = String::from_utf8_lossy(&reply).into_owned();
        assert!(
            text.contains("\"error\""),
            "{:?} was answered {text:?}",
            String::from_utf8_lossy(&bytes[..bytes.len().min(60)])
        );
    }
    let huge = reply_to(&scene, &vec![b'x'; 4 << 20]);
    assert!(huge.is_empty() || String::from_utf8_lossy(&huge).contains("\"error\""));
    assert_eq!(
        reply_to(&scene, b""),
        b"",
        "a probe that says nothing is told nothing"
    );
    assert_serves(&scene);
}

#[test]
fn words_too_long_for_the_store_are_refused_and_do_not_pass_for_a_full_disk() {
    let scene = Scene::new("m5.large");
    let add = |container: &str, netns: &str| {
        scene.node.call_ipamd(
            "Add",
            &json!({"network": "aws-cni", "container_id": container, "ifname": "eth0", "netns": netns,
                    "host_veth": "eni0", "deadline_ms": 1000}),
        )
    };
    for (container, netns) in [
        ("c".repeat(300), "/n".to_owned()),
        ("c".to_owned(), "n".repeat(10_000)),
    ] {
        match add(&container, &netns) {
            Err(CallError::Refused { error, .. }) => assert!(error.ends_with("BadRequest"), "{error}"),
            other => panic!("{other:?}"),
        }
    }
    assert_serves(&scene);
}

#[test]
fn clients_that_stall_hold_up_nobody() {
    let scene = Scene::new("m5.large");
    let mut stalled: Vec<UnixStream> = (0..200).map(|_| connect(&scene)).collect();
    for (index, stream) in stalled.iter_mut().enumerate() {
        match index % 4 {
            0 => {}                                                   // says nothing
            1 => stream.write_all(b"{\"method\":\"local.").unwrap(),  // half a frame
            2 => stream.shutdown(std::net::Shutdown::Write).unwrap(), // half a connection
            // Asks for much and never reads it.
            _ => stream
                .write_all(b"{\"method\":\"local.awscni.Ipamd1.Dump\",\"parameters\":{}}\0")
                .unwrap(),
        }
    }
    assert_serves(&scene);
    drop(stalled);
    assert_serves(&scene);
}

#[test]
fn of_1200_connections_at_once_the_surplus_is_told_to_try_again_and_no_address_is_lost() {
    let scene = Scene::new("m5.large");
    let mut crowd: Vec<UnixStream> = (0..1200).map(|_| connect(&scene)).collect();
    let mut turned_away = 0;
    for stream in &mut crowd {
        drop(stream.write_all(b"{\"method\":\"local.awscni.Ipamd1.Status\",\"parameters\":{}}\0"));
        let mut reply = Vec::new();
        drop(stream.read_to_end(&mut reply));
        let text = String::from_utf8_lossy(&reply);
        if text.contains("\"error\"") {
            turned_away += 1;
            assert!(text.contains("TryAgain"), "{text}");
        } else {
            assert!(text.contains("serving"), "{text:?}");
        }
    }
    assert!(turned_away < 1200, "somebody was served");
    drop(crowd);
    assert_serves(&scene);
}

#[test]
fn adds_whose_clients_hang_up_leave_nothing_behind() {
    let scene = Scene::with_env("m5.large", &[("IP_COOLDOWN_PERIOD", "0")]);
    for round in 0..60 {
        let add = json!({"method": "local.awscni.Ipamd1.Add", "more": true, "parameters": {
            "network": "aws-cni", "container_id": format!("gone{round}"), "ifname": "eth0", "netns": "/n",
            "host_veth": format!("eni{round:011x}"), "deadline_ms": 20_000}});
        let mut stream = connect(&scene);
        stream.write_all(format!("{add}\0").as_bytes()).unwrap();
        if round % 2 == 0 {
            // Hang up after the first byte of the answer, with the rest unread.
            stream.read_exact(&mut [0]).unwrap();
        }
    }
    scene.wait_for("the unwanted allocations to be undone", |status| {
        status["assigned"] == 0
    });
    assert_serves(&scene);
}

#[test]
fn nobody_but_root_may_ask() {
    let scene = Scene::new("m5.large");
    // Whatever an administrator does to the socket's permissions, the peer is looked at.
    let dirs = scene.node.dirs();
    for dir in [scene.lab.dir(), dirs.root.as_path(), dirs.run.as_path()] {
        fs::set_permissions(dir, Permissions::from_mode(0o755)).unwrap();
    }
    fs::set_permissions(dirs.socket(), Permissions::from_mode(0o777)).unwrap();
    let script = "import socket, sys\n\
                  s = socket.socket(socket.AF_UNIX)\n\
                  s.settimeout(60)\n\
                  s.connect(sys.argv[1])\n\
                  s.sendall(b'{\"method\":\"local.awscni.Ipamd1.Status\",\"parameters\":{}}\\0')\n\
                  print(s.recv(65536).decode())\n";
    let ask = |uid: &str| {
        let output = Command::new("setpriv")
            .args([
                "--reuid",
                uid,
                "--regid",
                uid,
                "--clear-groups",
                "/usr/bin/python3",
                "-c",
                script,
            ])
            .arg(dirs.socket())
            .output()
            .unwrap();
        String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr)
    };
    let refused = ask("65534");
    assert!(
        refused.contains("Denied") && refused.contains("65534"),
        "{refused}"
    );
    let served = ask("0");
    assert!(served.contains("serving"), "{served}");
    assert_serves(&scene);
}

#[test]
fn a_plugin_fed_with_nonsense_answers_with_a_cni_error_and_touches_nothing() {
    let scene = Scene::new("m5.large");
    let pod = scene.node.pod("default", "victim").unwrap();
    let runtime = scene.node.runtime();
    let inputs = [
        "",
        "{",
        "null",
        "[]",
        "\"x\"",
        "{\"cniVersion\":7}",
        "{\"cniVersion\":\"9.9.9\",\"name\":\"n\"}",
        "\u{0}",
    ];
    let mut parameters = pod.parameters();
    parameters.insert("CNI_PATH".to_owned(), scene.node.dirs().bin.display().to_string());
    for verb in ["ADD", "DEL", "CHECK", "GC", "STATUS", "NONSENSE"] {
        parameters.insert("CNI_COMMAND".to_owned(), verb.to_owned());
        for input in inputs {
            let outcome = runtime.run_raw("aws-cni", &parameters, input).unwrap();
            assert_eq!(outcome.exit_code, Some(1), "{verb} {input:?}: {}", said(&outcome));
            assert!(
                outcome.error_code().is_some(),
                "{verb} {input:?}: {}",
                said(&outcome)
            );
        }
    }
    let good = json!({"cniVersion": "1.1.0", "name": "aws-cni", "type": "aws-cni"}).to_string();
    parameters.insert("CNI_COMMAND".to_owned(), "ADD".to_owned());
    for (name, value) in [
        ("CNI_IFNAME", "../../etc"),
        ("CNI_CONTAINERID", "a/b"),
        ("CNI_NETNS", "/nowhere"),
        ("CNI_ARGS", "=;="),
    ] {
        let mut parameters = parameters.clone();
        parameters.insert(name.to_owned(), value.to_owned());
        let outcome = runtime.run_raw("aws-cni", &parameters, &good).unwrap();
        assert_eq!(outcome.exit_code, Some(1), "{name}={value}: {}", said(&outcome));
        assert!(
            outcome.error_code().is_some(),
            "{name}={value}: {}",
            said(&outcome)
        );
    }
    scene.wait_for("nothing to be assigned", |status| status["assigned"] == 0);
    assert!(scene.pod_links().is_empty());
    assert_serves(&scene);
}
