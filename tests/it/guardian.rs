//! What others take out of the kernel, or change, comes back by itself; whoever did it is named; a fight ends.

use std::process::Command;
use std::time::Duration;

use aws_cni_lab::pod::Pod;

use crate::scene::Scene;

/// A node with pods on the primary and on a secondary ENI, all of which reach the VPC.
fn busy_node(environment: &[(&str, &str)]) -> (Scene, Vec<Pod>) {
    let mut settings = vec![("WARM_ENI_TARGET", "0"), ("MAX_ENI", "2")];
    settings.extend_from_slice(environment);
    let mut scene = Scene::with_env("m5.large", &settings);
    scene.start();
    let pods = scene.pods("web", 12);
    scene.add(&pods, 12);
    scene.settle();
    all_reach_out(&scene, &pods);
    (scene, pods)
}

fn all_reach_out(scene: &Scene, pods: &[Pod]) {
    for pod in pods {
        assert!(scene.reaches_out(pod), "{} {:?}", pod.label(), pod.address());
    }
}

/// Everything of the node's network that is ours, and that says the same whenever nothing is missing.
fn picture(scene: &Scene) -> String {
    let look = [
        "ip rule",
        "ip route show table 512",
        "ip route show table 2",
        "ip -4 -o addr show eth1",
        "nft -s list table ip aws-cni",
        "sysctl net.ipv4.ip_forward net.ipv4.conf.eth0.rp_filter net.ipv4.conf.eth1.src_valid_mark",
        "ip -o link show eth0 | grep -o 'mtu [0-9]*'",
        "ip -o link show eth1 | grep -o 'mtu [0-9]*'",
    ];
    scene.on_node(&look.join("; "))
}

/// `offence` is made good: everything is as before, every pod reaches out.
fn is_made_good(scene: &Scene, pods: &[Pod], offence: &str) {
    let before = picture(scene);
    let repairs = |status: &serde_json::Value| status["guarded"]["repairs"].as_u64().unwrap();
    let earlier = repairs(&scene.status());
    scene.on_node(&format!("set -e; {offence}"));
    // An offence that does nothing proves nothing.
    scene.wait_for(&format!("{offence:?} to be noticed"), |status| {
        repairs(status) > earlier
    });
    scene.eventually(&format!("{offence:?} to be made good"), || {
        picture(scene) == before
    });
    all_reach_out(scene, pods);
}

#[test]
fn what_others_take_away_comes_back() {
    let (scene, pods) = busy_node(&[]);
    let offences = [
        "nft flush ruleset",
        "nft delete table ip aws-cni",
        "nft flush chain ip aws-cni mangle-prerouting",
        "nft flush map ip aws-cni pod-eni",
        "ip rule del pref 512",
        "ip rule del pref 1024; ip rule del pref 1536; ip rule del pref 32765",
        "ip route flush table 512",
        "ip route flush table 2",
        "ip addr flush dev eth1",
        "ip link set eth1 down",
        "ip link set eth1 mtu 1500; ip link set eth0 mtu 1400",
        "sysctl -qw net.ipv4.ip_forward=0",
        "sysctl -qw net.ipv4.conf.eth0.rp_filter=1",
        "sysctl -qw net.ipv4.conf.eth1.src_valid_mark=0",
    ];
    for offence in offences {
        is_made_good(&scene, &pods, offence);
    }
    assert!(scene.count("assigned") == 12);
}

/// `ip rule flush` takes the kernel's own rules for `main` and `default` along, which are not ours to restore.
#[test]
fn all_rules_flushed_at_once_come_back() {
    let (scene, pods) = busy_node(&[]);
    let kernels = "ip rule add pref 32766 lookup main; ip rule add pref 32767 lookup default";
    is_made_good(&scene, &pods, &format!("ip rule flush; {kernels}"));
}

#[test]
fn in_the_per_pod_layout_rules_of_pods_come_back() {
    let (scene, pods) = busy_node(&[("RULE_LAYOUT", "per-pod")]);
    let pod = pods.iter().find(|pod| on_secondary(&scene, pod)).unwrap();
    let address = pod.address().unwrap();
    let rules = |scene: &Scene| scene.on_node(&format!("ip rule | grep -w {address} | sort"));
    let before = rules(&scene);
    assert_eq!(before.lines().count(), 2, "{before}");
    scene.on_node(&format!(
        "ip rule del from {address} pref 1536; ip rule del to {address} pref 512"
    ));
    scene.eventually("the pod's rules to be back", || rules(&scene) == before);
    scene.on_node(&format!("ip route del {address}/32"));
    scene.eventually("the pod's route to be back", || scene.reaches_out(pod));
}

fn on_secondary(scene: &Scene, pod: &Pod) -> bool {
    let address = pod.address().unwrap();
    let mut enis = scene.attached_enis().into_iter().skip(1);
    enis.any(|eni| eni.secondary.contains(&address))
}

#[test]
fn a_deleted_pod_stays_deleted() {
    let (scene, pods) = busy_node(&[]);
    scene.del(&pods[..6], 6);
    is_made_good(&scene, &pods[6..], "ip route flush table 512");
    assert_eq!(scene.pod_routes().len(), 6);
    scene.check(&pods[6..]);
}

#[test]
fn whoever_did_it_is_named_in_the_log_and_in_the_status() {
    let (scene, _pods) = busy_node(&[]);
    scene.on_node("nft delete table ip aws-cni");
    let status = scene.wait_for("the repair to be told", |status| {
        status["guarded"]["last"]
            .as_str()
            .is_some_and(|last| last.contains("nft"))
    });
    assert!(status["guarded"]["repairs"].as_u64().unwrap() >= 1);
    assert!(
        scene.log().contains("put right after nft (process "),
        "{}",
        scene.log()
    );
}

/// Two managers that want different things would go on for ever.
#[test]
fn a_fight_ends_in_one_alarm() {
    let (scene, pods) = busy_node(&[]);
    let mut rounds = 0;
    let alarmed = || scene.log().contains("is changed again and again by");
    while !alarmed() {
        rounds += 1;
        assert!(rounds < 200, "the guardian goes on repairing");
        scene.on_node("ip rule del pref 1024 2>/dev/null || true");
        std::thread::sleep(Duration::from_millis(20));
    }
    let status = scene.wait_for("the dispute to be told", |status| {
        !status["guarded"]["disputed"].as_array().is_none_or(Vec::is_empty)
    });
    assert!(
        status["reasons"].to_string().contains("fwmark 0x80/0x80"),
        "{status:#}"
    );
    assert_eq!(status["serving"], true);
    // What is not in dispute is put right as before.
    let pods_in_table = |scene: &Scene| scene.on_node("ip route show table 512");
    let before = pods_in_table(&scene);
    scene.on_node("ip route flush table 512");
    scene.eventually("the routes to be back", || pods_in_table(&scene) == before);
    assert_eq!(scene.log().matches("is changed again and again by").count(), 1);
    scene.check(&pods);
}

#[test]
fn iptables_flushed_changes_nothing_of_ours() {
    let (scene, pods) = busy_node(&[]);
    let before = picture(&scene);
    if Command::new("iptables-nft").arg("--version").output().is_err() {
        return eprintln!("skipped: iptables is not installed");
    }
    scene.on_node("iptables-nft -F; iptables-nft -t nat -F; iptables-nft -t mangle -F; iptables-nft -X");
    assert_eq!(picture(&scene), before);
    all_reach_out(&scene, &pods);
}

/// A link manager that takes a new ENI for its own gives it another address and the node a second default route.
#[test]
fn dhcp_on_an_eni_is_undone() {
    let (scene, pods) = busy_node(&[]);
    let eth1 = scene.on_node("ip -4 -o addr show eth1 | awk '{print $4}'");
    let gateway = scene.on_node("ip route show table 2 | awk '/^default/{print $3}'");
    is_made_good(
        &scene,
        &pods,
        &format!(
            "ip addr add 192.0.2.77/24 dev eth1; ip route add default via {} dev eth1 onlink proto dhcp src {} metric 50",
            gateway.trim(),
            eth1.trim().split('/').next().unwrap()
        ),
    );
    let defaults = scene.on_node("ip route show default");
    scene.eventually("the second default route to go", || {
        !scene.on_node("ip route show default").contains("eth1")
    });
    assert!(defaults.contains("eth0"), "{defaults}");
}

#[test]
fn a_renamed_link_is_guarded_under_its_new_name() {
    let (scene, pods) = busy_node(&[]);
    scene.on_node("ip link set eth1 down; ip link set eth1 name lan7; ip link set lan7 up");
    let valid_mark = || scene.on_node("sysctl -n net.ipv4.conf.lan7.src_valid_mark; ip route show table 2");
    scene.eventually("the ENI to be put right", || {
        let now = valid_mark();
        now.starts_with('1') && now.contains("default")
    });
    all_reach_out(&scene, &pods);
    scene.on_node("sysctl -qw net.ipv4.conf.lan7.src_valid_mark=0");
    scene.eventually("the parameter to be back", || valid_mark().starts_with('1'));
}
