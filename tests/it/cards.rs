//! Instances with several network cards.

use std::collections::BTreeMap;
use std::io::{Read, Write};
use std::os::unix::net::UnixStream;

use aws_cni_lab::pod::Pod;
use aws_cni_lab::vpc::EniId;
use serde_json::{Value, json};

use crate::busy::attach_at;
use crate::scene::{PATIENCE, Scene};

/// Two cards with two ENIs of 50 addresses each.
const TWO_CARDS: &str = "hpc7a.12xlarge";

fn scene(more: &[(&str, &str)]) -> Scene {
    let mut environment = vec![("ENABLE_MULTI_NIC", "true"), ("WARM_IP_TARGET", "2")];
    environment.extend(more);
    Scene::with_env(TWO_CARDS, &environment)
}

/// Waits until every card is at rest with this many ENIs and free addresses.
fn settled(scene: &Scene, expected: [(u64, u64); 2]) -> Value {
    scene.wait_for("both cards to be served", |status| {
        let has = |card: &str, (enis, free): (u64, u64)| {
            let card = &status["cards"][card];
            card["enis"] == enis && card["free"] == free && card["coming"] == 0
        };
        has("0", expected[0]) && has("1", expected[1])
    })
}

/// Card and device index of every ENI that EC2 has attached, with the addresses it carries for pods.
fn places(scene: &Scene) -> BTreeMap<(u32, u32), usize> {
    let enis = scene.attached_enis();
    enis.iter()
        .filter_map(|eni| {
            let at = eni.attachment.as_ref()?;
            Some(((at.card, at.device), eni.secondary.len()))
        })
        .collect()
}

/// The node's rules that lead to a table.
fn rules_of(scene: &Scene, table: &str) -> Vec<Value> {
    let rules = scene.node.ip_json(&["rule", "show"]).unwrap();
    let there = |rule: &&Value| rule["table"] == table;
    rules.as_array().unwrap().iter().filter(there).cloned().collect()
}

/// Calls the daemon as a plugin does, which waits for the second answer.
fn ask(scene: &Scene, method: &str, parameters: &Value) -> Vec<Value> {
    let mut stream = UnixStream::connect(scene.node.dirs().socket()).unwrap();
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    let method = format!("local.awscni.Ipamd1.{method}");
    let request = json!({"method": method, "more": true, "parameters": parameters});
    stream.write_all(format!("{request}\0").as_bytes()).unwrap();
    let mut text = String::new();
    let mut byte = [0];
    let mut frames = Vec::new();
    while let Ok(1) = stream.read(&mut byte) {
        if byte[0] != 0 {
            text.push(char::from(byte[0]));
            continue;
        }
        let frame: Value = serde_json::from_str(&text).unwrap();
        let continues = frame["continues"] == true;
        frames.push(frame);
        text.clear();
        if !continues {
            break;
        }
    }
    frames
}

fn add(scene: &Scene, ifname: &str, more: &Value) -> Vec<Value> {
    let mut request = json!({"network": "aws-cni", "container_id": "c1", "ifname": ifname, "netns": "/n",
        "host_veth": format!("eni{ifname}"), "deadline_ms": 20_000});
    let fields = request.as_object_mut().unwrap();
    fields.extend(more.as_object().unwrap().clone());
    ask(scene, "Add", &request)
}

fn attach_from_outside(scene: &Scene, card: u32, device: u32) -> EniId {
    attach_at(scene, (card, device), |_| {})
}

#[test]
fn ipamd_65_a_type_with_two_cards_grows_on_both_and_a_restart_changes_nothing() {
    let mut scene = scene(&[]);
    settled(&scene, [(1, 2), (1, 1)]);
    assert_eq!(places(&scene), [((0, 0), 2), ((1, 1), 1)].into());
    let before = rules_of(&scene, "10101");
    let marks: Vec<&Value> = before.iter().filter_map(|rule| rule.get("fwmark")).collect();
    assert_eq!((before.len(), marks), (2, vec![&json!("0x7f")]), "{before:?}");
    let mark = scene.mark();
    scene.restart();
    settled(&scene, [(1, 2), (1, 1)]);
    assert_eq!(rules_of(&scene, "10101"), before);
    for action in [
        "CreateNetworkInterface",
        "AssignPrivateIpAddresses",
        "AttachNetworkInterface",
    ] {
        assert!(scene.calls_since(mark, action).is_empty(), "{action}");
    }
}

#[test]
fn ipamd_106_a_sandbox_gets_an_address_of_each_card_over_the_socket_and_gives_both_back_at_once() {
    let scene = scene(&[]);
    settled(&scene, [(1, 2), (1, 1)]);
    let refused = add(&scene, "mNicIf1", &json!({"card": 1, "main": "eth0"}));
    assert!(
        refused[0]["error"].is_string(),
        "its main interface is not there: {refused:?}"
    );
    let first = add(&scene, "eth0", &json!({}));
    let second = add(&scene, "mNicIf1", &json!({"card": 1, "main": "eth0"}));
    assert_eq!((first.len(), second.len()), (2, 2), "{first:?} {second:?}");
    let got = &second[0]["parameters"];
    assert_eq!((&got["card"], &got["eni_table"]), (&json!(1), &json!(10_101)));
    assert_eq!(first[0]["parameters"]["eni_table"], json!(254));
    let status = settled(&scene, [(1, 2), (1, 1)]);
    assert_eq!(status["cards"]["1"]["assigned"], 1);
    assert_eq!(
        places(&scene)[&(1, 1)],
        2,
        "one more was asked for on the same ENI"
    );
    let unmanaged = add(&scene, "mNicIf2", &json!({"card": 2, "main": "eth0"}));
    assert!(unmanaged[0]["error"].is_string(), "{unmanaged:?}");
    // Refused, it took back what the same attempt had got.
    scene.wait_for("everything to be taken back", |status| status["assigned"] == 0);
    let again = json!({"network": "aws-cni", "container_id": "c1", "ifname": "eth0"});
    let nothing = ask(&scene, "Del", &again);
    assert_eq!(nothing[0]["parameters"]["known"], false);
    scene.wait_for("both to have rested", |status| {
        status["cooling"] == 0 || status["free"].as_u64() >= Some(3)
    });
    add(&scene, "eth0", &json!({}));
    add(&scene, "mNicIf1", &json!({"card": 1, "main": "eth0"}));
    let released = ask(&scene, "Del", &again);
    let addresses = released[0]["parameters"]["addresses"].as_array().unwrap();
    assert_eq!(addresses.len(), 2, "{released:?}");
    assert_eq!(scene.count("assigned"), 0);
}

/// The VPC drops what leaves by the wrong ENI, so the second card's table and mark are right.
#[test]
fn ipamd_106_ordinary_pods_get_the_second_cards_addresses_when_the_first_has_none_and_reach_out() {
    let mut scene = scene(&[("MAX_ENI", "1")]);
    settled(&scene, [(1, 2), (1, 1)]);
    let pods = scene.pods("web", 52);
    scene.add(&pods, 10);
    scene.check(&pods);
    let there = |pod: &&Pod| {
        let held = scene.allocation(pod.address().unwrap());
        held["card"] == 1
    };
    let on_second: Vec<&Pod> = pods.iter().filter(there).collect();
    assert!(on_second.len() >= 3, "the first card has 49 addresses");
    let on_first = pods.iter().find(|pod| !there(pod)).unwrap();
    assert!(scene.reaches_out(on_first) && scene.reaches_out(on_second[0]));
    // With the switch off again the second card's ENI is nobody's here, but its pods live.
    scene.set_env("ENABLE_MULTI_NIC", "false");
    for _ in 0..2 {
        scene.restart();
        scene.wait_until("the second card to be left alone", || {
            let enis = scene.dump()["enis"].as_array().cloned().unwrap();
            let mut there = enis.iter().filter(|eni| eni["card"] == 1);
            there.all(|eni| eni["role"] == "unmanaged").then_some(())
        });
        assert!(scene.reaches_out(on_second[0]), "{}", scene.log());
    }
    scene.del(&pods, 10);
    scene.check(&[]);
}

#[test]
fn ipamd_23_without_the_switch_the_other_cards_are_not_touched() {
    let scene = Scene::with_env(TWO_CARDS, &[("WARM_IP_TARGET", "2")]);
    scene.settle();
    let theirs = attach_from_outside(&scene, 1, 1);
    let mark = scene.mark();
    let pods = scene.pods("web", 5);
    scene.add(&pods, 5);
    let status = scene.settle();
    assert!(status["cards"].is_null(), "{status:#}");
    scene.check(&pods);
    let their_place = (1, 1);
    assert_eq!(places(&scene)[&their_place], 0);
    let calls = scene.lab.cloud().calls().since(mark);
    let about_it = |call: &aws_cni_lab::calls::Call| {
        !call.action.starts_with("Describe") && format!("{call:?}").contains(&theirs.to_string())
    };
    assert!(!calls.iter().any(about_it), "{calls:#?}");
    assert!(rules_of(&scene, "10101").is_empty());
}
