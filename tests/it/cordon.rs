//! A node that takes no new pods.

use crate::scene::Scene;

fn said(scene: &Scene, arguments: &[&str]) -> String {
    let output = scene.ipamd(arguments);
    assert!(output.status.success(), "{output:?}");
    String::from_utf8(output.stdout).unwrap()
}

fn changes(scene: &Scene) -> usize {
    let ec2 = scene
        .lab
        .cloud()
        .calls()
        .counters(aws_cni_lab::calls::Service::Ec2, 0);
    let changing = ec2.iter().filter(|(action, _)| !action.starts_with("Describe"));
    changing.map(|(_, count)| count).sum()
}

/// Reference ipamd 3.5 and Q39, through the socket, over a restart.
#[test]
fn a_cordoned_node_holds_nothing_more_ready_over_restarts_and_serves_who_comes() {
    let mut scene = Scene::with_env("m5.large", &[("WARM_ENI_TARGET", "1"), ("MAX_ENI", "2")]);
    scene.settle_at(9);
    said(&scene, &["cordon"]);
    scene.restart();
    assert_eq!(scene.dump()["status"]["cordoned"], true);
    let text = said(&scene, &["status"]);
    assert!(text.contains("the node is cordoned"), "{text}");
    let text = said(&scene, &["explain"]);
    assert!(
        text.contains("There is no more because: the node is cordoned"),
        "{text}"
    );
    scene.settle();
    let before = changes(&scene);
    let pods = scene.pods("web", 10);
    scene.add(&pods[..9], 9);
    scene.settle();
    assert_eq!(
        changes(&scene),
        before,
        "nine addresses were there, and no more is held ready"
    );
    scene.add(&pods[9..], 1);
    scene.settle_at(10);
    scene.check(&pods);
    said(&scene, &["uncordon"]);
    scene.settle_at(18);
    assert_eq!(scene.dump()["status"]["cordoned"], false);
}
