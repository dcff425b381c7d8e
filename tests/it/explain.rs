//! What a human can ask the daemon: why the pool has its size, and where each setting comes from.

use std::fs;

use aws_cni_lab::lab::Lab;
use serde_json::Value;

use crate::scene::Scene;

fn said(scene: &Scene, arguments: &[&str]) -> String {
    let output = scene.ipamd(arguments);
    assert!(output.status.success(), "{output:?}");
    String::from_utf8(output.stdout).unwrap()
}

#[test]
fn explain_says_by_which_target_and_limit_the_pool_has_its_size() {
    let scene = Scene::with_env("m5.large", &[("MAX_ENI", "1")]);
    let pods = scene.pods("web", 9);
    scene.add(&pods, 9);
    scene.settle();
    let text = said(&scene, &["explain"]);
    for sentence in [
        "1 ENI takes a place; of 9 addresses 9 with pods, 0 free, 0 at rest and 0 in quarantine; 0 more are on the way.",
        "WARM_ENI_TARGET=1 asks for 9 addresses free and ready, besides what pods wait for; they come as single addresses.",
        "9 addresses are short.",
        "There is no more because: MAX_ENI allows 1 ENIs with 9 addresses for pods each.",
    ] {
        assert!(text.lines().any(|line| line == sentence), "{sentence}\n{text}");
    }
    let json: Value = serde_json::from_str(&said(&scene, &["explain", "--json"])).unwrap();
    assert_eq!(json["plan"]["report"]["assigned"], 9);
    let first = &json["explanation"][0];
    assert_eq!(first["about"], "now");
    assert_eq!(text.lines().next(), first["text"].as_str());
    scene.del(&pods[..1], 1);
    let text = said(&scene, &["explain"]);
    assert!(text.contains("The first address at rest is free in "), "{text}");
}

#[test]
fn status_is_short_for_people_and_whole_for_programs() {
    let scene = Scene::with_env("m5.large", &[("MAX_ENI", "1")]);
    scene.settle_at(9);
    let text = said(&scene, &["status"]);
    let words: Vec<&str> = text.lines().map(|line| line.split(':').next().unwrap()).collect();
    let expected = ["serving", "ENIs", "addresses", "ADDs waiting", "version"];
    assert_eq!(words, expected, "{text}");
    assert!(text.contains("9 free, 0 assigned, 0 cooling"), "{text}");
    let json: Value = serde_json::from_str(&said(&scene, &["status", "--json"])).unwrap();
    assert_eq!(json["addresses"].as_array().unwrap().len(), 9);
    assert!(json["explanation"].is_array());
}

#[test]
fn config_show_tells_where_every_value_comes_from() {
    let mut scene = Scene::stage(Lab::builder(), "m5.large", &[("MAX_ENI", "3")]);
    let file = scene.node.dirs().root.join("ipamd.env");
    fs::write(&file, "# ours\nWARM_ENI_TARGET=2\nMAX_ENI=7\n").unwrap();
    scene.set_env("AWS_CNI_CONFIG", file.to_str().unwrap());
    let text = said(&scene, &["config", "show"]);
    let line = |name: &str| {
        let of = |line: &&str| line.starts_with(&format!("{name}="));
        text.lines().find(of).unwrap_or_else(|| panic!("{name}: {text}"))
    };
    assert_eq!(
        line("WARM_ENI_TARGET"),
        format!("WARM_ENI_TARGET=2  # {}:2", file.display())
    );
    assert_eq!(line("MAX_ENI"), "MAX_ENI=3  # environment");
    assert_eq!(line("IP_COOLDOWN_PERIOD"), "IP_COOLDOWN_PERIOD=30  # default");
    let changed = said(&scene, &["config", "show", "--changed"]);
    assert!(changed.contains("MAX_ENI") && !changed.contains("IP_COOLDOWN_PERIOD"));
    let json: Value = serde_json::from_str(&said(&scene, &["config", "show", "--json"])).unwrap();
    let all = json.as_array().unwrap();
    assert!(all.len() > 40, "{}", all.len());
    let max = all.iter().find(|setting| setting["name"] == "MAX_ENI").unwrap();
    assert_eq!(
        (&max["value"], &max["origin"]),
        (&"3".into(), &"environment".into())
    );
}
