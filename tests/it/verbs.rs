//! Every verb with the real daemon and the real kernel: what it leaves, what it says.

use std::collections::BTreeMap;
use std::sync::Arc;

use aws_cni_lab::node::Node;
use aws_cni_lab::pod::{CniOutcome, Pod};
use serde_json::{Value, json};

use crate::pair::{
    assert_no_pod_left, assert_reach, assert_unreachable, device, eventually, host_veth, sources, targets,
};
use crate::scene::{Scene, said};

const LAYOUTS: [&str; 2] = ["shared", "per-pod"];

fn scene(layout: &str) -> Scene {
    Scene::with_env("t3.small", &[("RULE_LAYOUT", layout)])
}

/// Four pods: some on the primary ENI, some on another.
fn pods_on_both_enis(scene: &Scene) -> Vec<Pod> {
    let pods = scene.pods("web", 4);
    scene.add(&pods, 4);
    for pod in &pods {
        pod.serve_echo().unwrap();
    }
    pods
}

fn refused(outcome: &CniOutcome, code: u64, text: &str) {
    assert_eq!(outcome.exit_code, Some(1), "{}", said(outcome));
    assert_eq!(outcome.error_code(), Some(code), "{}", said(outcome));
    let answer = outcome.result().unwrap();
    assert!(answer["msg"].as_str().unwrap().contains(text), "{answer:#}");
}

fn succeeded_silently(outcome: &CniOutcome) {
    assert!(outcome.succeeded(), "{}", said(outcome));
    assert_eq!(outcome.stdout, "");
}

/// Nothing is allocated and nothing is in the kernel.
fn assert_nothing_left(scene: &Scene) {
    assert_eq!(scene.count("assigned"), 0, "{:#}", scene.status());
    assert_no_pod_left(&scene.node);
}

#[test]
fn after_del_no_packet_reaches_or_leaves_the_pod_though_its_namespace_lives() {
    for layout in LAYOUTS {
        let scene = scene(layout);
        let pods = pods_on_both_enis(&scene);
        assert_reach(&[scene.node.source()], &targets(&pods), |_| scene.node.address());
        let addresses: Vec<_> = pods.iter().map(|pod| pod.address().unwrap()).collect();
        scene.del(&pods, 4);
        for address in addresses.into_iter().take(2) {
            assert_unreachable(scene.node.netns(), address);
        }
        assert_unreachable(&pods[0].netns().unwrap(), scene.node.address());
        assert_nothing_left(&scene);
        let inside = pods[0].ip_json(&["link", "show"]).unwrap();
        assert_eq!(inside.as_array().unwrap().len(), 1, "only lo is left: {inside:#}");
    }
}

#[test]
fn del_converges_without_namespace_record_or_both_and_twice_is_the_same_as_once() {
    for layout in LAYOUTS {
        let scene = scene(layout);
        let pods = pods_on_both_enis(&scene);
        pods[1].lose_netns();
        pods[2].set_result(None);
        pods[3].set_result(None);
        pods[3].lose_netns();
        let records: Vec<_> = pods.iter().map(Pod::result).collect();
        for _ in 0..2 {
            for (pod, record) in pods.iter().zip(&records) {
                pod.set_result(record.clone());
                succeeded_silently(&pod.del().unwrap());
            }
        }
        assert_nothing_left(&scene);
    }
}

#[test]
fn dataplane_94_del_without_a_namespace_in_its_environment_cleans_everything() {
    for layout in LAYOUTS {
        let scene = scene(layout);
        let pods = pods_on_both_enis(&scene);
        for pod in &pods {
            let mut parameters = pod.parameters();
            parameters.remove("CNI_NETNS");
            let outcome = scene
                .node
                .runtime()
                .run("DEL", &parameters, pod.result())
                .unwrap();
            succeeded_silently(&outcome);
        }
        assert_nothing_left(&scene);
    }
}

/// Whoever looks for the daemon finds nothing while this runs.
fn without_socket(node: &Node, work: impl FnOnce()) {
    let socket = node.dirs().socket();
    let aside = socket.with_extension("aside");
    std::fs::rename(&socket, &aside).unwrap();
    work();
    std::fs::rename(&aside, &socket).unwrap();
}

#[test]
fn baseline_fault_2_a_del_while_the_daemon_is_away_is_finished_by_it_even_without_a_record() {
    for layout in LAYOUTS {
        let mut scene = scene(layout);
        let pods = pods_on_both_enis(&scene);
        let gone: Vec<_> = pods.iter().map(|pod| pod.address().unwrap()).collect();
        scene.kill();
        without_socket(&scene.node, || {
            pods[0].set_result(None);
            pods[1].set_result(None);
            pods[1].lose_netns();
            for pod in &pods {
                succeeded_silently(&pod.del().unwrap());
            }
        });
        scene.start();
        scene.wait_for("the deferred DELs", |status| status["assigned"] == 0);
        assert_nothing_left(&scene);
        assert_unreachable(scene.node.netns(), gone[0]);
        let waiting = scene.node.dirs().state.join("pending-del");
        eventually("the notes to go", || {
            std::fs::read_dir(&waiting).unwrap().count() == 0
        });
    }
}

#[test]
fn gc_removes_what_the_runtime_no_longer_lists_from_daemon_and_kernel() {
    for layout in LAYOUTS {
        let scene = scene(layout);
        let pods = pods_on_both_enis(&scene);
        let gone: Vec<_> = pods[1..].iter().map(|pod| pod.address().unwrap()).collect();
        let kept = &pods[0];
        let valid = [(kept.identity().container.as_str(), "eth0")];
        succeeded_silently(&scene.node.runtime().gc(&valid).unwrap());
        assert_eq!(scene.count("assigned"), 1);
        assert_unreachable(scene.node.netns(), gone[0]);
        eventually("the links of the others to go", || {
            let links = scene.node.links().unwrap();
            links.iter().filter(|link| link.name.starts_with("eni")).count() == 1
        });
        let left = scene.node.pod_objects().unwrap();
        for address in gone {
            assert!(
                !left
                    .iter()
                    .any(|object| object.contains(&format!("\"{address}\""))),
                "{left:#?}"
            );
        }
        assert_reach(&[scene.node.source()], &targets([kept]), |_| scene.node.address());
        succeeded_silently(&kept.check().unwrap());
        succeeded_silently(&scene.node.runtime().gc(&valid).unwrap());
        succeeded_silently(&scene.node.runtime().gc(&[]).unwrap());
        assert_nothing_left(&scene);
    }
}

#[test]
fn check_names_what_somebody_else_has_removed() {
    for layout in LAYOUTS {
        let scene = scene(layout);
        let pods = pods_on_both_enis(&scene);
        let pod = pods.iter().find(|pod| device(pod) != 0).unwrap();
        let address = pod.address().unwrap();
        let (table, veth) = (if layout == "shared" { "512" } else { "main" }, host_veth(pod));
        succeeded_silently(&pod.check().unwrap());

        // What the host lacks the daemon puts back, unless somebody is faster.
        let route = format!("{address} dev {veth} scope link table {table}");
        let lacks = |missing: &str, remove: &str| {
            let is_named = || {
                scene.on_node(remove);
                pod.check().unwrap().stdout.contains(missing)
            };
            scene.eventually(&format!("{missing} to be missed"), is_named);
            scene.eventually(&format!("{missing} to be back"), || {
                pod.check().unwrap().succeeded()
            });
        };
        lacks(
            &format!("the host's route to {address}"),
            &format!("ip route del {route} || true"),
        );

        let neighbours = pod.ip_json(&["neigh", "show"]).unwrap();
        let mac = neighbours[0]["lladdr"].as_str().unwrap();
        pod.ip("neigh del 169.254.1.1 dev eth0\n").unwrap();
        refused(&pod.check().unwrap(), 999, "169.254.1.1");
        pod.ip(&format!(
            "neigh add 169.254.1.1 lladdr {mac} dev eth0 nud permanent\n"
        ))
        .unwrap();
        succeeded_silently(&pod.check().unwrap());

        if layout == "per-pod" {
            lacks(
                &format!("the rule from {address}"),
                &format!("ip rule del from {address} pref 1536 || true"),
            );
        }
        // With its only address a link loses its routes and neighbours, too.
        pod.ip(&format!("addr del {address}/32 dev eth0\n")).unwrap();
        refused(&pod.check().unwrap(), 999, &address.to_string());
        pod.ip("link del eth0\n").unwrap();
        refused(&pod.check().unwrap(), 999, "is missing");
        succeeded_silently(&pod.del().unwrap());
        refused(&pod.check().unwrap(), 3, "no address is allocated");
    }
}

#[test]
fn status_tells_a_full_node_from_one_that_can_serve() {
    let scene = Scene::with_env("t3.small", &[("MAX_ENI", "1"), ("IP_COOLDOWN_PERIOD", "1")]);
    let status = || scene.node.runtime().status().unwrap();
    eventually("the first addresses", || status().succeeded());
    let pods = scene.pods("web", 3);
    scene.add(&pods, 3);
    refused(&status(), 50, "MAX_ENI allows 1");
    let one_more = &scene.pods("too-many", 1)[0];
    refused(&one_more.add().unwrap(), 999, "on at most 1 ENIs (MAX_ENI)");
    scene.del(&pods[..1], 1);
    eventually("an address to come free", || status().succeeded());
    without_socket(&scene.node, || {
        refused(&status(), 50, "plugin not available: cannot connect");
    });
}

fn of_version(node: &Node, version: &str) -> Pod {
    let mut runtime = node.runtime();
    version.clone_into(&mut runtime.conflist.cni_version);
    node.pod_of(Arc::new(runtime), "default", &version.replace('.', "-"))
        .unwrap()
}

#[test]
fn dataplane_89_every_version_gets_the_shape_it_asks_for_from_add_to_del() {
    let scene = scene("shared");
    for version in ["0.3.0", "0.3.1", "0.4.0", "1.0.0", "1.1.0"] {
        let pod = of_version(&scene.node, version);
        let outcome = pod.add().unwrap();
        assert!(outcome.succeeded(), "{version}: {}", said(&outcome));
        let result = outcome.result().unwrap();
        assert_eq!(result["cniVersion"], version);
        let old = version.starts_with("0.");
        assert_eq!(
            result["ips"][0].get("version"),
            old.then(|| json!("4")).as_ref(),
            "{version}"
        );
        assert_eq!(result.get("dns"), old.then(|| json!({})).as_ref(), "{version}");
        assert_eq!(result["ips"][0]["interface"], 1);
        assert_eq!(result["ips"][0].get("gateway"), None);
        let interfaces = result["interfaces"].as_array().unwrap();
        assert_eq!(interfaces.len(), 3);
        assert_eq!(interfaces[0]["name"], host_veth(&pod));
        assert_eq!(interfaces[1]["name"], "eth0");
        assert!(interfaces[2]["name"].as_str().unwrap().starts_with("dummy"));
        let checked = pod.check().unwrap();
        if matches!(version, "0.3.0" | "0.3.1") {
            refused(&checked, 1, "config version does not allow CHECK");
        } else {
            succeeded_silently(&checked);
        }
        assert_reach(&sources([&pod]), &[scene.lab.second_vpc()], |_| {
            pod.address().unwrap()
        });
        succeeded_silently(&pod.del().unwrap());
    }
    assert_nothing_left(&scene);
}

#[test]
fn dataplane_91_verbs_that_a_version_does_not_have_are_refused() {
    let scene = scene("shared");
    let mut runtime = scene.node.runtime();
    "0.4.0".clone_into(&mut runtime.conflist.cni_version);
    refused(
        &runtime.status().unwrap(),
        1,
        "config version does not allow STATUS",
    );
    refused(&runtime.gc(&[]).unwrap(), 1, "config version does not allow GC");
    let answer = scene.node.runtime().version().unwrap().result().unwrap();
    assert_eq!(answer["supportedVersions"].as_array().unwrap().len(), 7);
}

#[test]
fn dataplane_70_an_add_into_a_namespace_that_is_gone_leaves_nothing() {
    for layout in LAYOUTS {
        let scene = scene(layout);
        let pods = scene.pods("web", 4);
        for pod in &pods {
            pod.lose_netns();
            refused(&pod.add().unwrap(), 999, "add command: failed to setup network");
        }
        scene.wait_for("their addresses to be back", |status| status["assigned"] == 0);
        assert_nothing_left(&scene);
    }
}

#[test]
fn an_add_whose_interface_name_is_taken_leaves_nothing_but_what_was_there() {
    for layout in LAYOUTS {
        let scene = scene(layout);
        let pods = scene.pods("web", 4);
        for pod in &pods {
            pod.ip("link add eth0 type veth peer name other\n").unwrap();
            refused(&pod.add().unwrap(), 999, "interface eth0 is in the pod already");
            let links = pod.ip_json(&["link", "show", "eth0"]).unwrap();
            assert_eq!(links[0]["link"], "other");
        }
        scene.wait_for("their addresses to be back", |status| status["assigned"] == 0);
        assert_nothing_left(&scene);
        pods[0].ip("link del eth0\n").unwrap();
        scene.add(&pods[..1], 1);
        scene.check(&pods[..1]);
    }
}

#[test]
fn a_repeated_add_of_a_wired_sandbox_answers_the_same_address() {
    let scene = scene("shared");
    let pods = scene.pods("web", 1);
    scene.add(&pods, 1);
    let before = pods[0].address();
    scene.add(&pods, 1);
    assert_eq!(pods[0].address(), before);
    scene.check(&pods);
    assert_reach(&sources(&pods), &[scene.lab.second_vpc()], |_| before.unwrap());
}

#[test]
fn dataplane_73_unknown_arguments_need_leave() {
    let scene = scene("shared");
    let pod = &scene.pods("web", 1)[0];
    let runtime = scene.node.runtime();
    let with = |arguments: &str| -> BTreeMap<String, String> {
        let mut parameters = pod.parameters();
        parameters.insert("CNI_ARGS".to_owned(), arguments.to_owned());
        parameters
    };
    let outcome = runtime
        .run("ADD", &with("K8S_POD_NAME=web;COLOUR=red"), None)
        .unwrap();
    refused(&outcome, 999, "add cmd: failed to load k8s config from arg");
    assert_eq!(scene.count("assigned"), 0);
    let outcome = runtime
        .run("ADD", &with("IgnoreUnknown=1;K8S_POD_NAME=web;COLOUR=red"), None)
        .unwrap();
    assert!(outcome.succeeded(), "{}", said(&outcome));
}

#[test]
fn dataplane_69_a_long_prefix_is_refused_before_anything_happens() {
    let scene = scene("shared");
    let mut runtime = scene.node.runtime();
    runtime.conflist.plugins[0]["vethPrefix"] = Value::from("abcde");
    let pod = scene.node.pod_of(runtime.into(), "default", "web").unwrap();
    refused(&pod.add().unwrap(), 999, "at most 4 characters");
    assert_nothing_left(&scene);
}
