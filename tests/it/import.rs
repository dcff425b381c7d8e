//! A node of the Go daemon changes hands: its pods keep what they have, nobody gets it twice, and it goes back again.

use std::collections::BTreeSet;
use std::fs;
use std::net::Ipv4Addr;
use std::path::PathBuf;

use aws_cni_lab::lab::Lab;
use aws_cni_lab::pod::Pod;
use serde_json::{Value, json};

use crate::pair::{device, host_veth, table};
use crate::scene::Scene;

/// Two ENIs of three addresses each.
const TWO_ENIS: [(&str, &str); 4] = [
    ("MAX_ENI", "2"),
    ("WARM_ENI_TARGET", "2"),
    ("IP_COOLDOWN_PERIOD", "1"),
    ("RULE_LAYOUT", "per-pod"),
];

/// A node as the Go daemon leaves it: pods wired in its layout, its checkpoint, and no database of ours.
struct GoNode {
    scene: Scene,
    pods: Vec<Pod>,
}

impl GoNode {
    fn new(pods: usize) -> Self {
        let mut scene = Scene::stage(Lab::builder(), "t3.small", &TWO_ENIS);
        let folder = scene.node.dirs().root.join("aws-node");
        fs::create_dir(&folder).unwrap();
        scene.set_env(
            "AWS_VPC_K8S_CNI_BACKING_STORE",
            folder.join("ipam.json").to_str().unwrap(),
        );
        scene.start();
        scene.wait_for("both ENIs", |status| status["free"] == 6);
        let pods = scene.pods("web", pods);
        scene.add(&pods, 3);
        scene.kill();
        fs::remove_dir_all(scene.node.dirs().state.join("ipam")).unwrap();
        scene.set_env("RULE_LAYOUT", "shared");
        for pod in &pods {
            pod.set_result(Some(result_of_the_go_plugin(pod)));
        }
        Self { scene, pods }
    }

    fn file(&self) -> PathBuf {
        self.scene.node.dirs().root.join("aws-node/ipam.json")
    }

    fn write(&self, text: &str) {
        fs::write(self.file(), text).unwrap();
    }

    fn write_pods(&self) -> String {
        let text = checkpoint(&self.pods);
        self.write(&text);
        text
    }
}

/// What the Go plugin printed at the ADD: the table and the device index stand where they do not belong.
fn result_of_the_go_plugin(pod: &Pod) -> Value {
    let veth = host_veth(pod);
    json!({
        "cniVersion": "1.0.0",
        "interfaces": [
            {"name": veth},
            {"mac": table(pod).to_string(), "name": "eth0", "sandbox": pod.netns().unwrap().path()},
            {"mac": device(pod).to_string(), "name": veth.replace("eni", "dummy"), "sandbox": "0"}
        ],
        "ips": [{"address": format!("{}/32", pod.address().unwrap()), "interface": 1}]
    })
}

fn entry(pod: &Pod) -> Value {
    let identity = pod.identity();
    json!({
        "networkName": "aws-cni", "containerID": identity.container, "ifName": "eth0",
        "ipv4": pod.address().unwrap(), "allocationTimestamp": 1_600_000_000_000_000_000_u64,
        "metadata": {"k8sPodNamespace": identity.namespace, "k8sPodName": identity.name, "interfacesCount": 1}
    })
}

fn checkpoint(pods: &[Pod]) -> String {
    let entries: Vec<Value> = pods.iter().map(entry).collect();
    format!(
        "{}\n",
        json!({"version": "vpc-cni-ipam/1", "allocations": entries})
    )
}

fn addresses(pods: &[Pod]) -> BTreeSet<Ipv4Addr> {
    pods.iter().map(|pod| pod.address().unwrap()).collect()
}

/// Sandbox and address of every entry.
fn said(text: &str) -> BTreeSet<(String, String)> {
    let document: Value = serde_json::from_str(text).unwrap();
    assert_eq!(document["version"], "vpc-cni-ipam/1");
    let word = |value: &Value| value.as_str().unwrap().to_owned();
    let all = document["allocations"].as_array().unwrap().iter();
    all.map(|entry| (word(&entry["containerID"]), word(&entry["ipv4"])))
        .collect()
}

fn rules_naming(scene: &Scene, address: Ipv4Addr) -> usize {
    let rules = scene.node.ip_json(&["rule", "show"]).unwrap();
    let address = address.to_string();
    let names = |rule: &&Value| rule["src"] == *address || rule["dst"] == *address;
    rules.as_array().unwrap().iter().filter(names).count()
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

#[test]
fn the_go_daemons_pods_are_adopted_at_the_first_start_and_can_be_given_back() {
    let mut node = GoNode::new(4);
    let file = node.write_pods();
    node.scene.start();
    let scene = &node.scene;
    scene.check(&node.pods);
    for pod in &node.pods {
        assert!(scene.reaches_out(pod), "{}", scene.log());
        let address = pod.address().unwrap();
        assert_eq!(scene.allocation(address)["host_veth"], host_veth(pod));
        assert!(
            rules_naming(scene, address) > 0,
            "it keeps the rules it was wired by"
        );
    }
    assert_eq!(fs::read_to_string(node.file()).unwrap(), file);

    let more = scene.pods("more", 2);
    scene.add(&more, 2);
    assert!(addresses(&more).is_disjoint(&addresses(&node.pods)));

    let (gone, stay) = node.pods.split_at(2);
    let freed = addresses(gone);
    scene.del(gone, 2);
    for address in &freed {
        assert_eq!(rules_naming(scene, *address), 0, "{}", scene.log());
    }
    scene.wait_for("their rest to end", |status| status["free"] == 2);
    let again = scene.pods("again", 2);
    scene.add(&again, 2);
    assert_eq!(addresses(&again), freed, "every address is used again");

    let refused = node.scene.ipamd(&["export"]);
    assert!(text(&refused.stderr).contains("ipamd is running"), "{refused:?}");
    let printed = node.scene.ipamd(&["export", "--stdout"]);
    node.scene.kill();
    let exported = node.scene.ipamd(&["export"]);
    assert!(exported.status.success(), "{exported:?}");
    let live: Vec<&Pod> = stay.iter().chain(&more).chain(&again).collect();
    let expected: BTreeSet<(String, String)> = live
        .iter()
        .map(|pod| {
            (
                pod.identity().container.clone(),
                pod.address().unwrap().to_string(),
            )
        })
        .collect();
    let written = fs::read_to_string(node.file()).unwrap();
    assert_eq!(said(&written), expected);
    assert_eq!(said(&text(&printed.stdout)), expected);
    assert_eq!(written.lines().count(), 1);

    // And over once more, from what was given back.
    let imported = node.scene.ipamd(&["import"]);
    assert!(
        text(&imported.stderr).contains("knows 6 pods already"),
        "{imported:?}"
    );
    let imported = node.scene.ipamd(&["import", "--replace"]);
    assert!(
        text(&imported.stdout).contains("6 of 6 entries adopted"),
        "{imported:?}"
    );
    node.scene.start();
    assert_eq!(node.scene.count("assigned"), 6);
    assert!(live.iter().all(|pod| node.scene.reaches_out(pod)));
}

/// The Go daemon drops the allocation, rewrites its file, and gives the address out again a minute later.
#[test]
fn ipamd_87_fault_3_an_address_that_imds_lacks_at_the_take_over_stays_its_pods() {
    let mut node = GoNode::new(6);
    node.write_pods();
    let instance = node.scene.node.instance().clone();
    let hidden: BTreeSet<_> = node
        .pods
        .iter()
        .map(|pod| pod.address().unwrap().into())
        .collect();
    node.scene
        .faults()
        .lies(&instance, |lies| lies.imds_hides_addresses = hidden);
    node.scene.start();
    assert!(
        node.scene
            .log()
            .contains("no ENI that IMDS lists has the address"),
        "{}",
        node.scene.log()
    );
    node.scene.check(&node.pods);
    // EC2 says which ENI each is on, and then nothing is in doubt any more.
    node.scene.wait_until("EC2's word", || {
        let doubtful = |pod: &Pod| !node.scene.address(pod.address().unwrap())["doubt"].is_null();
        (!node.pods.iter().any(doubtful)).then_some(())
    });
    node.scene.del(&node.pods, 6);
    node.scene
        .wait_for("every address to be free", |status| status["free"] == 6);
}

#[test]
fn ipamd_85_a_broken_checkpoint_keeps_nobody_from_serving_and_no_address_is_given_twice() {
    for spoilt in [
        "",
        "{\"version\":\"vpc-cni-ipam/1\",\"allocations\":[{\"netwo",
        "{\"version\":\"vpc-cni-ipam/2\",\"allocations\":[]}",
    ] {
        let mut node = GoNode::new(4);
        node.write(spoilt);
        node.scene.start();
        let log = node.scene.log();
        assert!(
            log.contains("not taken over") && log.contains("the file was not changed"),
            "{log}"
        );
        assert_eq!(fs::read_to_string(node.file()).unwrap(), spoilt);
        let status = node.scene.wait_for("the others", |status| status["free"] == 2);
        assert_eq!(status["quarantined"], 4, "{status:#}");
        let more = node.scene.pods("more", 2);
        node.scene.add(&more, 2);
        assert!(addresses(&more).is_disjoint(&addresses(&node.pods)));
    }
}

#[test]
fn the_first_start_leaves_the_checkpoint_alone_when_told_so_and_the_command_takes_it() {
    let mut node = GoNode::new(3);
    let file = node.write_pods();
    node.scene.set_env("AWS_CNI_IMPORT", "false");
    node.scene.start();
    assert_eq!(node.scene.count("assigned"), 0);
    let running = node.scene.ipamd(&["import"]);
    assert!(text(&running.stderr).contains("ipamd is running"), "{running:?}");
    node.scene.kill();
    let dry = node.scene.ipamd(&["import", "--dry-run"]);
    assert!(
        text(&dry.stdout).contains("3 of 3 entries would be adopted; nothing was changed"),
        "{dry:?}"
    );
    let elsewhere = node.scene.node.dirs().root.join("saved.json");
    fs::rename(node.file(), &elsewhere).unwrap();
    assert!(!node.scene.ipamd(&["import"]).status.success());
    let imported = node.scene.ipamd(&["import", elsewhere.to_str().unwrap()]);
    assert!(imported.status.success(), "{imported:?}");
    assert_eq!(fs::read_to_string(elsewhere).unwrap(), file);
    node.scene.start();
    node.scene.check(&node.pods);
    node.scene.del(&node.pods, 3);
    node.scene
        .wait_for("every address to be free", |status| status["free"] == 6);
}

/// A file of another node, or of before a reboot: none of its sandboxes is here.
#[test]
fn a_checkpoint_of_which_nothing_lives_is_not_taken_over() {
    let mut node = GoNode::new(2);
    node.write_pods();
    node.scene.start();
    node.scene.del(&node.pods, 2);
    node.scene.kill();
    fs::remove_dir_all(node.scene.node.dirs().state.join("ipam")).unwrap();
    node.scene.start();
    assert_eq!(node.scene.count("assigned"), 0);
    assert!(
        node.scene.log().contains("nothing lives on this node"),
        "{}",
        node.scene.log()
    );
    node.scene
        .wait_for("every address to be free", |status| status["free"] == 6);
}
