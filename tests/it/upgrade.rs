//! What a start finds of pods that were wired before it: left by an older release, by others, or by a DEL that knew
//! too little. Nothing of a pod is lost, nothing of nobody's stays.

use std::collections::BTreeSet;

use aws_cni_lab::pod::Pod;
use serde_json::Value;

use crate::pair::{device, host_veth, table};
use crate::scene::Scene;

const PER_POD: (&str, &str) = ("RULE_LAYOUT", "per-pod");
/// Two ENIs of three addresses each, all of them used: the cooldown must not keep the last test waiting.
const TWO_ENIS: [(&str, &str); 3] = [
    ("MAX_ENI", "2"),
    ("WARM_ENI_TARGET", "2"),
    ("IP_COOLDOWN_PERIOD", "0"),
];

fn scene_with_pods(per_pod: bool) -> (Scene, Vec<Pod>) {
    let mut environment = TWO_ENIS.to_vec();
    environment.extend(per_pod.then_some(PER_POD));
    let scene = Scene::with_env("t3.small", &environment);
    scene.wait_for("both ENIs", |status| status["free"] == 6);
    let pods = scene.pods("web", 6);
    scene.add(&pods, 6);
    (scene, pods)
}

/// Rules and IPv4 routes, whatever their order, without what says how the link is just now.
fn policy(scene: &Scene) -> (Vec<String>, Vec<String>) {
    let lines = |arguments: &[&str]| {
        let mut answer = scene.node.ip_json(arguments).unwrap();
        let facts = answer.as_array_mut().unwrap().iter_mut();
        let mut lines: Vec<String> = facts
            .map(|fact| {
                fact.as_object_mut().unwrap().remove("flags");
                fact.to_string()
            })
            .collect();
        lines.sort();
        lines
    };
    (
        lines(&["rule", "show"]),
        lines(&["-4", "route", "show", "table", "all"]),
    )
}

fn on_secondary(pods: &[Pod]) -> &Pod {
    pods.iter().find(|pod| device(pod) != 0).unwrap()
}

/// How often an address is named by the rules of pods.
fn named(scene: &Scene, address: &str) -> usize {
    let rules = scene.node.ip_json(&["rule", "show"]).unwrap();
    let names = |rule: &&Value| rule["src"] == address || rule["dst"] == address;
    rules.as_array().unwrap().iter().filter(names).count()
}

#[test]
fn dataplane_138_rules_of_the_old_layout_become_a_single_one_at_start() {
    let (mut scene, pods) = scene_with_pods(true);
    let good = policy(&scene);
    let pod = on_secondary(&pods);
    let (address, eni_table) = (pod.address().unwrap(), table(pod));
    let foreign = "rule add from 10.99.0.1 lookup 77 pref 1536\nrule add from 10.99.0.2 to 10.0.0.0/8 lookup 77 pref 1600\n";
    scene.kill();
    scene
        .node
        .ip(&format!(
            "rule del from {address} lookup {eni_table} pref 1536\n\
             rule add from {address} to 10.0.0.0/16 lookup {eni_table} pref 1536\n\
             rule add from {address} to 10.9.0.0/16 lookup {eni_table} pref 1536\n{foreign}"
        ))
        .unwrap();
    scene.start();
    let (mut rules, routes) = policy(&scene);
    let ours = rules.len() - 2;
    rules.retain(|rule| !rule.contains("10.99.0."));
    assert_eq!(rules.len(), ours, "what is not ours stays");
    assert_eq!((rules, routes), good);
    assert!(pods.iter().all(|pod| scene.reaches_out(pod)));
}

/// Takes away everything of a pod but its link.
fn removal(pod: &Pod, per_pod: bool) -> String {
    let address = pod.address().unwrap();
    if !per_pod {
        return format!("route del {address} table 512\n");
    }
    let shared = format!("route del {address} table main\nrule del to {address} lookup main pref 512\n");
    match device(pod) {
        0 => shared,
        _ => format!(
            "{shared}rule del from {address} lookup {} pref 1536\n",
            table(pod)
        ),
    }
}

#[test]
fn what_somebody_removed_of_recorded_pods_is_back_after_a_start() {
    for per_pod in [false, true] {
        let (mut scene, pods) = scene_with_pods(per_pod);
        let good = policy(&scene);
        scene.kill();
        let script: String = pods.iter().map(|pod| removal(pod, per_pod)).collect();
        scene.node.ip(&script).unwrap();
        assert_ne!(policy(&scene), good);
        scene.start();
        assert_eq!(policy(&scene), good, "per pod: {per_pod}\n{}", scene.log());
        scene.check(&pods);
        assert!(pods.iter().all(|pod| scene.reaches_out(pod)));
        scene.restart();
        assert!(
            !scene.log().contains("put right"),
            "nothing is done to a host in order"
        );
    }
}

#[test]
fn dataplane_137_a_pod_whose_link_has_another_prefix_is_kept() {
    let (mut scene, pods) = scene_with_pods(false);
    let pod = &pods[0];
    let (address, link) = (pod.address().unwrap(), host_veth(pod));
    let renamed = link.replace("eni", "vlan");
    scene.kill();
    scene
        .node
        .ip(&format!(
            "link set {link} down\nlink set {link} name {renamed}\nlink set {renamed} up\n"
        ))
        .unwrap();
    assert!(
        !scene.pod_routes().contains(&address),
        "the route went with the link"
    );
    scene.start();
    scene.check(&pods);
    assert_eq!(scene.allocation(address)["address"], address.to_string());
    let route = scene
        .node
        .ip_json(&["route", "show", "table", "512", &address.to_string()])
        .unwrap();
    assert_eq!(route[0]["dev"], renamed);
}

#[test]
fn rules_of_addresses_nobody_holds_are_removed_and_every_address_is_used_again() {
    let (mut scene, pods) = scene_with_pods(true);
    let addresses: BTreeSet<String> = pods
        .iter()
        .map(|pod| pod.address().unwrap().to_string())
        .collect();
    scene.del(&pods, 6);
    scene.kill();
    let leftover = |address: &String| {
        format!("rule add from {address} lookup 3 pref 1536\nrule add to {address} lookup main pref 512\n")
    };
    let script: String = addresses.iter().map(leftover).collect();
    scene.node.ip(&script).unwrap();
    scene
        .node
        .ip("rule add from 10.99.0.1 lookup 77 pref 1536\n")
        .unwrap();
    scene.start();
    scene.eventually("the rules to go", || {
        addresses.iter().all(|address| named(&scene, address) == 0)
    });
    assert_eq!(
        named(&scene, "10.99.0.1"),
        1,
        "no address of ours, no rule of ours"
    );
    let again = scene.pods("again", 6);
    scene.add(&again, 6);
    scene.check(&again);
}

#[test]
fn a_del_that_knows_only_the_sandbox_leaves_no_rule() {
    for sandbox_lives in [true, false] {
        let (mut scene, pods) = scene_with_pods(true);
        scene.without_socket_activation();
        scene.kill();
        let pod = on_secondary(&pods);
        let address = pod.address().unwrap().to_string();
        assert_eq!(named(&scene, &address), 2);
        pod.set_result(None);
        if !sandbox_lives {
            pod.lose_netns();
        }
        assert!(pod.del().unwrap().succeeded());
        if sandbox_lives {
            assert_eq!(named(&scene, &address), 0, "the sandbox tells its address");
        }
        scene.start();
        scene.eventually("the rules to go", || named(&scene, &address) == 0);
        scene.wait_for("the release", |status| status["assigned"] == 5);
    }
}
