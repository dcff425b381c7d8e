//! Several subnets, custom networking, security groups and tags of ENIs, with the real daemon and a VPC that holds EC2's
//! limits.

use std::collections::BTreeSet;
use std::time::Instant;

use aws_cni_lab::faults::{Effect, Rule};
use aws_cni_lab::lab::{Lab, LabBuilder};
use aws_cni_lab::pod::Pod;
use aws_cni_lab::vpc::{Eni, GroupId, Ipv4Cidr, Modify, SubnetId, Tags};

use crate::pair::{assert_reach, own, sources, targets};
use crate::scene::{Scene, refused};

const ROLE: &str = "kubernetes.io/role/cni";

/// Three subnets, all in the node's zone but the last.
fn builder() -> LabBuilder {
    let subnet = |third| Ipv4Cidr::new([10, 0, third, 0].into(), 24);
    Lab::builder().subnets(&[
        ("eu-central-1a", subnet(16)),
        ("eu-central-1a", subnet(32)),
        ("eu-central-1a", subnet(48)),
        ("eu-central-1b", subnet(64)),
    ])
}

fn stage(instance_type: &str, environment: &[(&str, &str)]) -> Scene {
    Scene::stage(builder(), instance_type, environment)
}

fn subnet(scene: &Scene, nth: usize) -> SubnetId {
    scene.lab.vpc().subnets[nth].clone()
}

fn tag(scene: &Scene, nth: usize, role: &str) {
    let tags = Tags::from([(ROLE.to_owned(), role.to_owned())]);
    let resource = [subnet(scene, nth).to_string()];
    let tagged = |model: &mut aws_cni_lab::vpc::Model| model.create_tags(&resource, &tags, Instant::now());
    scene.lab.cloud().model(tagged).unwrap();
}

fn leave_free(scene: &Scene, nth: usize, free: u64) {
    let id = subnet(scene, nth);
    scene
        .lab
        .cloud()
        .model(|model| model.leave_free(&id, free))
        .unwrap();
}

/// The ENIs that the daemon has made.
fn made(scene: &Scene) -> Vec<Eni> {
    scene.attached_enis().into_iter().skip(1).collect()
}

fn subnets_of(enis: &[Eni]) -> BTreeSet<SubnetId> {
    enis.iter().map(|eni| eni.subnet.clone()).collect()
}

fn serve_echo(pods: &[Pod]) {
    for pod in pods {
        pod.serve_echo().unwrap();
    }
}

/// Pods reach each other, the node, the VPC's other network under their own address, and the internet under the node's.
fn everything_is_reached(scene: &Scene, pods: &[Pod]) {
    assert_reach(&sources(pods), &targets(pods), own(pods));
    assert_reach(
        &sources(pods),
        &[scene.node.target(), scene.lab.second_vpc()],
        own(pods),
    );
    assert_reach(&[scene.node.source()], &targets(pods), |_| scene.node.address());
    assert_reach(&sources(pods), &[scene.lab.internet()], |_| scene.node.address());
    assert_eq!(scene.lab.fabric().dropped_spoofed().unwrap(), 0);
}

#[test]
fn ipamd_q30_when_the_first_subnet_is_full_enis_go_to_the_next_and_its_pods_reach_everything() {
    let mut scene = stage("t3.small", &[("WARM_ENI_TARGET", "0")]);
    tag(&scene, 1, "1");
    tag(&scene, 3, "1");
    // The primary ENI's three, and one more, are all that the node's own subnet has.
    leave_free(&scene, 0, 4);
    scene.start();
    let pods = scene.pods("web", 9);
    scene.add(&pods, 9);
    scene.settle_at(9);
    assert_eq!(subnets_of(&made(&scene)), [subnet(&scene, 1)].into());
    serve_echo(&pods);
    everything_is_reached(&scene, &pods);
    scene.restart();
    scene.check(&pods);
    everything_is_reached(&scene, &pods);
    scene.del(&pods, 9);
    scene.check_empty(3);
}

/// Conformance 58: most free first, whatever the node's own has; a subnet without a tag, and another zone's, never.
#[test]
fn ipamd_58_the_subnet_with_most_free_addresses_is_used_first() {
    let mut scene = stage("t3.small", &[]);
    tag(&scene, 1, "1");
    tag(&scene, 3, "1");
    leave_free(&scene, 0, 60);
    scene.start();
    let pods = scene.pods("web", 4);
    scene.add(&pods, 4);
    scene.settle_at(9);
    assert_eq!(subnets_of(&made(&scene)), [subnet(&scene, 1)].into());
    assert_eq!(scene.calls_since(0, "DescribeSubnets").len(), 1);
    scene.check(&pods);
}

#[test]
fn ipamd_59_an_excluded_subnet_of_its_own_leaves_the_primary_eni_to_the_node() {
    let mut scene = stage("t3.small", &[("WARM_ENI_TARGET", "0")]);
    tag(&scene, 0, "0");
    tag(&scene, 2, "1");
    scene.start();
    let pods = scene.pods("web", 6);
    scene.add(&pods, 6);
    scene.check(&pods);
    let enis = scene.attached_enis();
    assert!(enis[0].secondary.is_empty(), "{:?}", enis[0]);
    assert_eq!(subnets_of(&made(&scene)), [subnet(&scene, 2)].into());
    serve_echo(&pods);
    everything_is_reached(&scene, &pods);
    let (_, message) = refused(&scene.pods("more", 1)[0]);
    assert!(message.contains("every address is taken"), "{message}");
}

#[test]
fn ipamd_59_without_any_subnet_for_it_a_pod_is_told_why() {
    let mut scene = stage("t3.small", &[]);
    tag(&scene, 0, "0");
    scene.start();
    let (_, message) = refused(&scene.pods("web", 1)[0]);
    assert!(message.contains("no subnet in eu-central-1a"), "{message}");
    assert_eq!(scene.all_enis().len(), 1);
}

/// Conformance 59 has it that nothing is made then; Q9 calls that a fault, and 11.1.4 shows what it costs.
#[test]
fn ipamd_59_q9_fault_4_a_denied_describe_subnets_fails_no_pod() {
    let mut scene = stage("t3.small", &[]);
    tag(&scene, 1, "1");
    leave_free(&scene, 0, 60);
    let denied = Effect::Error {
        code: "UnauthorizedOperation".to_owned(),
        message: "You are not authorized to perform this operation.".to_owned(),
        status: 403,
    };
    let rule = scene.faults().inject(Rule::ec2("DescribeSubnets", denied));
    scene.start();
    let pods = scene.pods("web", 9);
    scene.add(&pods, 9);
    let status = scene.settle_at(9);
    scene.check(&pods);
    assert_eq!(subnets_of(&made(&scene)), [subnet(&scene, 0)].into());
    assert!(scene.faults().hits(rule) > 0);
    let reasons = status["reasons"].to_string();
    assert!(reasons.contains("DescribeSubnets"), "{status:#}");
}

// ---- groups and tags ----

fn new_group(scene: &Scene) -> GroupId {
    let vpc = scene.lab.vpc().vpc.clone();
    scene
        .lab
        .cloud()
        .model(|model| model.create_group(&vpc, "more"))
        .unwrap()
}

fn set_groups_of_primary(scene: &Scene, groups: Vec<GroupId>) {
    let primary = scene.attached_enis()[0].id.clone();
    let change = |model: &mut aws_cni_lab::vpc::Model| {
        model.modify_eni(&primary, Modify::Groups(groups), Instant::now())
    };
    scene.lab.cloud().model(change).unwrap();
}

#[test]
fn ipamd_q27_enis_get_the_groups_that_the_primary_eni_gets() {
    let mut scene = Scene::new("t3.small");
    let pods = scene.pods("web", 4);
    scene.add(&pods, 4);
    scene.settle_at(9);
    let group = new_group(&scene);
    let mark = scene.mark();
    set_groups_of_primary(&scene, vec![group.clone()]);
    scene.restart();
    scene.eventually("groups to follow", || {
        scene
            .attached_enis()
            .iter()
            .all(|eni| eni.groups == [group.clone()])
    });
    scene.check(&pods);
    let changes = |scene: &Scene| scene.calls_since(mark, "ModifyNetworkInterfaceAttribute").len();
    // A call is listed when it is answered, a moment after its effect.
    scene.eventually("one call for each ENI of ours", || changes(&scene) == 2);
    scene.restart();
    let more = scene.pods("more", 5);
    scene.add(&more, 5);
    assert_eq!(changes(&scene), 2, "nothing differs any more");
}

#[test]
fn denied_groups_and_tags_cost_no_pod_and_are_shown() {
    let mut scene = Scene::new("t3.small");
    let pods = scene.pods("web", 4);
    scene.add(&pods, 4);
    scene.settle_at(9);
    let denied = |action| {
        let effect = Effect::Error {
            code: "UnauthorizedOperation".to_owned(),
            message: "You are not authorized to perform this operation.".to_owned(),
            status: 403,
        };
        Rule::ec2(action, effect)
    };
    for action in ["ModifyNetworkInterfaceAttribute", "CreateTags"] {
        scene.faults().inject(denied(action));
    }
    set_groups_of_primary(&scene, vec![new_group(&scene)]);
    scene.set_env("ADDITIONAL_ENI_TAGS", r#"{"team": "x"}"#);
    let mark = scene.mark();
    scene.restart();
    let status = scene.wait_for("both to be shown", |status| {
        let reasons = status["reasons"].to_string();
        reasons.contains("security groups") && reasons.contains("tags")
    });
    assert_eq!(status["serving"], true);
    let more = scene.pods("more", 5);
    scene.add(&more, 5);
    assert!(scene.calls_since(mark, "CreateTags").len() <= 3);
}

#[test]
fn ipamd_18_tags_are_completed_on_every_eni_of_ours_the_primary_one_too() {
    let mut scene = Scene::new("t3.small");
    let pods = scene.pods("web", 4);
    scene.add(&pods, 4);
    scene.settle_at(9);
    scene.set_env(
        "ADDITIONAL_ENI_TAGS",
        r#"{"team": "x", "a.k8s.amazonaws.com": "y"}"#,
    );
    scene.set_env("CLUSTER_NAME", "prod");
    scene.restart();
    let instance = scene.node.instance().to_string();
    let wanted = [
        ("team", "x"),
        ("cluster.k8s.amazonaws.com/name", "prod"),
        ("eks:eni:owner", "amazon-vpc-cni"),
        ("node.k8s.amazonaws.com/instance_id", &instance),
    ];
    scene.eventually("tags to be completed", || {
        let has = |eni: &Eni| {
            let mut wanted = wanted.iter();
            wanted.all(|(key, value)| eni.tags.get(*key).is_some_and(|tag| tag == value))
        };
        scene.attached_enis().iter().all(has)
    });
    for eni in scene.attached_enis() {
        assert!(!eni.tags.contains_key("a.k8s.amazonaws.com"));
    }
    let mark = scene.mark();
    scene.restart();
    let more = scene.pods("more", 5);
    scene.add(&more, 5);
    assert_eq!(scene.calls_since(mark, "CreateTags").len(), 0);
}

// ---- custom networking ----

const CUSTOM: (&str, &str) = ("AWS_VPC_K8S_CNI_CUSTOM_NETWORK_CFG", "true");

/// A node whose ENIConfig `default` names these subnets, in that order, and a group of its own; and that group.
fn custom(instance_type: &str, environment: &[(&str, &str)], subnets: &[usize]) -> (Scene, GroupId) {
    let mut scene = stage(instance_type, &[&[CUSTOM], environment].concat());
    let group = new_group(&scene);
    let names: Vec<String> = subnets
        .iter()
        .map(|nth| subnet(&scene, *nth).to_string())
        .collect();
    let folder = scene.lab.dir().join("eniconfig.d");
    std::fs::create_dir_all(&folder).unwrap();
    let text = format!(
        "apiVersion: crd.k8s.amazonaws.com/v1alpha1\nkind: ENIConfig\nmetadata:\n  name: default\n\
         spec:\n  subnets: [{}]\n  securityGroups:\n    - {group}\n",
        names.join(", ")
    );
    std::fs::write(folder.join("default.yaml"), text).unwrap();
    scene.set_env("AWS_CNI_ENICONFIG_DIR", folder.to_str().unwrap());
    (scene, group)
}

/// Reference ipamd 3.9, custom networking on an m5.large with E=1, and conformance 62.
#[test]
fn ipamd_62_row_3_9_custom_networking_keeps_pods_off_the_primary_eni() {
    let (mut scene, group) = custom("m5.large", &[], &[2]);
    scene.start();
    scene.settle_at(9);
    assert_eq!(scene.attached_enis().len(), 2);
    let mut pods = scene.pods("web", 1);
    scene.add(&pods, 1);
    scene.settle_at(18);
    let more = scene.pods("more", 9);
    scene.add(&more, 9);
    scene.settle_at(18);
    pods.extend(more);
    scene.check(&pods);
    let enis = scene.attached_enis();
    let sizes: Vec<usize> = enis.iter().map(|eni| eni.secondary.len()).collect();
    assert_eq!(sizes, [0, 9, 9]);
    for eni in &made(&scene) {
        assert_eq!(
            (&eni.subnet, &*eni.groups),
            (&subnet(&scene, 2), &[group.clone()][..])
        );
    }
    serve_echo(&pods[..4]);
    everything_is_reached(&scene, &pods[..4]);
}

#[test]
fn custom_networking_with_two_subnets_uses_the_one_with_more_left_and_then_the_other() {
    let (mut scene, _) = custom("t3.small", &[("WARM_ENI_TARGET", "0")], &[1, 2]);
    leave_free(&scene, 1, 4);
    leave_free(&scene, 2, 5);
    scene.start();
    scene.settle_at(3);
    assert_eq!(subnets_of(&made(&scene)), [subnet(&scene, 2)].into());
    let pods = scene.pods("web", 6);
    scene.add(&pods, 6);
    scene.check(&pods);
    assert_eq!(
        subnets_of(&made(&scene)),
        [subnet(&scene, 1), subnet(&scene, 2)].into()
    );
    serve_echo(&pods);
    everything_is_reached(&scene, &pods);
}

#[test]
fn ipamd_62_without_its_eni_config_a_pod_is_told_and_served_as_soon_as_it_is_there() {
    let (mut scene, _) = custom("t3.small", &[], &[1]);
    let folder = scene.lab.dir().join("eniconfig.d");
    std::fs::rename(folder.join("default.yaml"), scene.lab.dir().join("later")).unwrap();
    scene.start();
    let (_, message) = refused(&scene.pods("web", 1)[0]);
    assert!(message.contains("ENIConfig"), "{message}");
    assert_eq!(scene.all_enis().len(), 1);
    std::fs::rename(scene.lab.dir().join("later"), folder.join("default.yaml")).unwrap();
    scene.settle_at(3);
    let pods = scene.pods("late", 2);
    scene.add(&pods, 2);
    scene.check(&pods);
}

/// Q39: what is on the primary ENI stays as long as its pods do.
#[test]
fn ipamd_q39_custom_networking_switched_on_keeps_the_pods_there_are() {
    let (mut scene, _) = custom("t3.small", &[("WARM_ENI_TARGET", "0")], &[1]);
    scene.set_env(CUSTOM.0, "false");
    scene.start();
    let old = scene.pods("old", 2);
    scene.add(&old, 2);
    scene.set_env(CUSTOM.0, "true");
    scene.restart();
    let new = scene.pods("new", 3);
    scene.add(&new, 3);
    let pods: Vec<Pod> = old.into_iter().chain(new).collect();
    scene.check(&pods);
    let on = |pod: &Pod| crate::pair::device(pod);
    let devices: Vec<u32> = pods.iter().map(on).collect();
    assert_eq!(devices, [0, 0, 1, 1, 1]);
    serve_echo(&pods);
    everything_is_reached(&scene, &pods);
}
