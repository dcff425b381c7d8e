//! The faults that were reproduced on the Go daemon v1.23.1 (list 11.1 of the observed behaviour), one test each, named
//! after its number. Each arranges what breaks there and shows what happens here.

use std::collections::BTreeSet;
use std::net::Ipv4Addr;

use aws_cni_lab::calls::{Call, Service};
use aws_cni_lab::faults::{Effect, Latency, Rule, Scope};
use aws_cni_lab::lab::{Lab, NodeSpec};
use aws_cni_lab::pod::Pod;
use nix::sys::signal::Signal;
use serde_json::Value;

use crate::busy::{busy, detach, in_use};
use crate::scene::{PATIENCE, Scene, addresses, refused, said};

/// Calls that take something away, or make what a mistaken daemon thinks is missing.
const RASH: [&str; 6] = [
    "CreateNetworkInterface",
    "AttachNetworkInterface",
    "DetachNetworkInterface",
    "DeleteNetworkInterface",
    "AssignPrivateIpAddresses",
    "UnassignPrivateIpAddresses",
];

fn rash_calls(scene: &Scene, mark: u64) -> Vec<String> {
    let calls = RASH.iter().flat_map(|action| scene.calls_since(mark, action));
    calls.map(|call| call.action).collect()
}

/// Every allocation as it is recorded.
fn allocations(scene: &Scene) -> Value {
    scene.dump()["allocations"].clone()
}

/// Waits until a kind of contradiction has come up.
fn wait_for_drift(scene: &Scene, kind: &str) {
    scene.wait_for(kind, |status| status["drift"][kind].as_u64().unwrap_or(0) > 0);
}

/// Uses the node up: every address that is left goes to a pod, and none to two.
fn use_up(scene: &Scene, pods: &mut Vec<Pod>, left: usize) {
    let more = scene.pods("more", left);
    scene.add(&more, left);
    pods.extend(more);
    assert_eq!(addresses(pods).len(), pods.len(), "no address has two pods");
    scene.check(pods);
}

/// There: the ENI is forced out, its pods are forgotten and their addresses given out again, and an ENI is created,
/// refused and deleted every five seconds.
#[test]
fn fault_01_an_eni_in_use_that_imds_omits_for_one_sweep_is_neither_forgotten_nor_doubled() {
    let (mut scene, mut pods) = busy();
    let hidden = in_use(&scene, &pods).0;
    let before = allocations(&scene);
    scene.faults().lies(scene.node.instance(), |lies| {
        lies.imds_hides_enis.insert(hidden.id.clone());
    });
    let mark = scene.mark();
    scene.restart();
    wait_for_drift(&scene, "imds-omits-eni");
    let told = format!("{}: imds-omits-eni; EC2: attached here", hidden.id);
    scene.daemon().wait_log(&told, PATIENCE).unwrap();
    assert_eq!(allocations(&scene), before);
    use_up(&scene, &mut pods, 7);
    assert_eq!(scene.attached_enis().len(), 3);
    assert_eq!(rash_calls(&scene, mark), Vec::<String>::new());
    // It is seen again, and still nothing follows.
    scene.faults().heal();
    scene.restart();
    scene.check(&pods);
    assert_eq!(rash_calls(&scene, mark), Vec::<String>::new());
    for pod in &pods[..4] {
        assert!(scene.reaches_out(pod));
    }
}

/// There: every ENI with the primary is erased, the totals are negative, and the checkpoint is empty.
#[test]
fn fault_02_an_empty_list_of_macs_erases_nothing() {
    let (mut scene, mut pods) = busy();
    let before = allocations(&scene);
    scene
        .faults()
        .lies(scene.node.instance(), |lies| lies.imds_empty_macs = true);
    let mark = scene.mark();
    scene.restart();
    scene
        .daemon()
        .wait_log("could not be confirmed", PATIENCE)
        .unwrap();
    assert_eq!(allocations(&scene), before);
    use_up(&scene, &mut pods, 7);
    assert_eq!(rash_calls(&scene, mark), Vec::<String>::new());
    // The store has them, too, as the next start shows.
    scene.restart();
    scene.check(&pods);
    scene.faults().heal();
    scene.del(&pods, 8);
    scene.check(&[]);
}

/// There: the allocation is dropped from the file though the pod lives, and its address is given out a minute later.
#[test]
fn fault_03_an_address_that_imds_lacks_at_a_restart_keeps_its_pod() {
    let (mut scene, mut pods) = busy();
    let before = allocations(&scene);
    let hidden = [pods[0].address().unwrap(), pods[19].address().unwrap()];
    scene.kill();
    scene.faults().lies(scene.node.instance(), |lies| {
        lies.imds_hides_addresses
            .extend(hidden.map(std::net::IpAddr::from));
    });
    let mark = scene.mark();
    scene.start();
    scene.wait_for("both to be missed", |status| {
        status["drift"]["imds-omits-address"] == 2
    });
    assert_eq!(allocations(&scene), before);
    use_up(&scene, &mut pods, 7);
    assert_eq!(rash_calls(&scene, mark), Vec::<String>::new());
    scene.restart();
    scene.check(&pods);
}

/// There: with a /28 it was three pods.
#[test]
fn fault_03_a_prefix_that_imds_lacks_at_a_restart_keeps_its_pods() {
    let environment = [("ENABLE_PREFIX_DELEGATION", "true"), ("MAX_ENI", "1")];
    let mut scene = Scene::with_env("m5.large", &environment);
    let mut pods = scene.pods("web", 20);
    scene.add(&pods, 20);
    scene.settle();
    let before = allocations(&scene);
    let prefixes = scene.attached_enis()[0].prefixes.clone();
    assert!(prefixes.len() >= 2, "{prefixes:?}");
    scene.kill();
    scene.faults().lies(scene.node.instance(), |lies| {
        lies.imds_hides_prefixes.extend(prefixes);
    });
    scene.start();
    wait_for_drift(&scene, "imds-omits-prefix");
    assert_eq!(allocations(&scene), before);
    let more = scene.pods("more", 20);
    scene.add(&more, 10);
    pods.extend(more);
    assert_eq!(addresses(&pods).len(), 40, "no address has two pods");
    scene.restart();
    assert_eq!(scene.count("assigned"), 40);
}

/// There: the link stays down without its table, pods get it anyway, and it is still broken 70 s later.
#[test]
fn fault_04_subnets_that_cannot_be_described_leave_no_eni_half_wired() {
    let mut scene = Scene::stage(Lab::builder(), "m5.large", &[]);
    scene.faults().inject(Rule::ec2_error(
        "DescribeSubnets",
        "UnauthorizedOperation",
        "You are not authorized to perform this operation.",
    ));
    scene.start();
    let pods = scene.pods("web", 20);
    scene.add(&pods, 20);
    scene.settle_at(27);
    scene.check(&pods);
    for pod in &pods {
        assert!(scene.reaches_out(pod), "{}\n{}", pod.label(), scene.log());
    }
}

/// There: Assign and Describe every five seconds for ever, and nothing is ever reconciled again.
#[test]
fn fault_05_an_eni_said_to_be_full_is_not_asked_in_a_loop_and_reconciling_goes_on() {
    let mut scene = Scene::stage(Lab::builder(), "m5.large", &[]);
    let action = "AssignPrivateIpAddresses";
    let message = "Number of private addresses will exceed limit.";
    let rule = Rule::ec2_error(action, "PrivateIpAddressLimitExceeded", message);
    scene.faults().inject(rule);
    scene.start();
    let pods = scene.pods("web", 18);
    scene.add(&pods, 18);
    for pod in &scene.pods("late", 3) {
        refused(pod);
    }
    let calls = scene.lab.cloud().calls();
    assert_eq!(calls.count(action), 1);
    let described = calls.count("DescribeNetworkInterfaces");
    assert!(described <= 6, "{:?}", calls.counters(Service::Ec2, 0));
    // Somebody detaches an ENI: that is still noticed.
    let victim = in_use(&scene, &pods).0;
    detach(&scene, &victim);
    scene
        .daemon()
        .wait_log("is gone, by EC2 and by the kernel", PATIENCE)
        .unwrap();
    assert_eq!(scene.count("assigned"), 18);
}

/// There: twelve calls every five seconds for as long as it fails.
#[test]
fn fault_06_a_describe_that_fails_is_repeated_ever_more_seldom_and_costs_no_pod() {
    let (mut scene, mut pods) = busy();
    let action = "DescribeNetworkInterfaces";
    let rule = Rule::ec2_error(action, "InternalError", "An internal error has occurred");
    scene.faults().inject(rule);
    let mark = scene.mark();
    scene.restart();
    let attempts = |scene: &Scene| -> u64 {
        let dump = scene.dump();
        let obstacles = dump["obstacles"].as_array().unwrap().clone();
        let of_describe = |obstacle: &&Value| obstacle["topic"].as_str().unwrap().starts_with("Describe");
        let attempt = |obstacle: &Value| obstacle["attempt"].as_u64().unwrap();
        obstacles.iter().filter(of_describe).map(attempt).sum()
    };
    scene.wait_until("the third attempt of both questions", || {
        (attempts(&scene) >= 6).then_some(())
    });
    let made = scene.calls_since(mark, action).len() as u64;
    let known = attempts(&scene);
    // The SDK repeats what the server failed at, at most twice; an attempt may be under way for either question.
    assert!(made <= 3 * (known + 2), "{made} calls for {known} attempts");
    use_up(&scene, &mut pods, 7);
    assert_eq!(rash_calls(&scene, mark), Vec::<String>::new());
}

/// There: a node whose cards are all exhausted answers success without an address.
#[test]
fn fault_07_an_exhausted_node_with_several_cards_refuses_and_says_why() {
    let subnet = "10.0.16.0/28".parse().unwrap();
    let builder = Lab::builder().subnets(&[("eu-central-1a", subnet)]);
    let spec = NodeSpec::new("a", "c6in.32xlarge");
    let mut scene = Scene::stage_with(builder, spec, |_| {}, &[("ENABLE_MULTI_NIC", "true")]);
    scene.start();
    let mut live = Vec::new();
    let refusal = loop {
        let pod = scene.pods(&format!("web-{}", live.len()), 1).remove(0);
        let outcome = pod.add().unwrap();
        if !outcome.succeeded() {
            break outcome;
        }
        assert!(pod.address().is_some(), "{}", said(&outcome));
        live.push(pod);
        assert!(live.len() <= 10, "a /28 has no more");
    };
    assert!(refusal.error_code().is_some(), "{}", said(&refusal));
    assert!(
        said(&refusal).contains("InsufficientFreeAddressesInSubnet"),
        "{}",
        said(&refusal)
    );
    scene.check(&live);
}

/// There: after SIGTERM the informers freeze while the agent serves on, and a second signal exits at once.
#[test]
fn fault_08_after_sigterm_adds_in_flight_are_finished_and_the_next_daemon_serves_the_rest() {
    let mut scene = Scene::new("m5.large");
    scene.settle();
    scene.faults().timing(&Scope::All, |timing| {
        timing.attach_link = Latency::millis(700);
        timing.ec2 = Latency::millis(100);
    });
    let pods = scene.pods("flight", 20);
    scene.add_during(&pods, || {
        let daemon = scene.daemon();
        daemon.signal(Signal::SIGTERM).unwrap();
        daemon.wait_log("finishing what is in flight", PATIENCE).unwrap();
        daemon.signal(Signal::SIGTERM).unwrap();
    });
    let status = scene.daemon().wait(PATIENCE).unwrap();
    assert_eq!(status.code(), Some(0), "{}", scene.log());
    let detached = rash_calls(&scene, 0);
    assert!(
        !detached
            .iter()
            .any(|action| action.starts_with("De") || action.starts_with("Un"))
    );
    // Nobody serves now; the socket holds the next one's ADD until the next daemon takes it.
    let late = scene.pods("late", 1);
    std::thread::scope(|scope| {
        let add = scope.spawn(|| late[0].add().unwrap());
        scene.daemon = None;
        let spec = scene.spec();
        let daemon = scene.node.start(spec).unwrap();
        daemon.wait_ready(PATIENCE).unwrap();
        let outcome = add.join().unwrap();
        assert!(outcome.succeeded(), "{}\n{}", said(&outcome), daemon.log());
        scene.daemon = Some(daemon);
    });
    let live: Vec<Pod> = pods.into_iter().chain(late).collect();
    scene.check(&live);
}

/// There: every 65 s another random choice of addresses, those released 2.5 s ago among them.
#[test]
fn fault_09_an_unassign_that_fails_takes_nothing_that_rests_and_is_seldom_repeated() {
    let environment = [
        ("WARM_IP_TARGET", "1"),
        ("MINIMUM_IP_TARGET", "1"),
        ("MAX_ENI", "1"),
        ("IP_COOLDOWN_PERIOD", "3600"),
    ];
    let scene = Scene::with_env("m5.large", &environment);
    let action = "UnassignPrivateIpAddresses";
    let message = "You are not authorized to perform this operation.";
    let rule = scene
        .faults()
        .inject(Rule::ec2_error(action, "UnauthorizedOperation", message));
    let pods = scene.pods("web", 6);
    scene.add(&pods, 3);
    scene.settle();
    let owned = scene.ec2_addresses();
    let used = addresses(&pods);
    // Six addresses come free and rest for an hour: none of them is surplus before.
    scene.del(&pods, 3);
    let fresh = scene.pods("fresh", 1);
    scene.add(&fresh, 1);
    scene.settle();
    for call in scene.lab.cloud().calls().of(action) {
        let named = call
            .params
            .iter()
            .filter(|(name, _)| name.starts_with("PrivateIpAddress"));
        let named: BTreeSet<Ipv4Addr> = named.filter_map(|(_, value)| value.parse().ok()).collect();
        assert!(named.is_disjoint(&used), "{named:?} rest");
    }
    assert!(scene.faults().hits(rule) <= 2);
    assert!(owned.is_subset(&scene.ec2_addresses()), "nothing has gone");
    scene.check(&fresh);
}

/// There: an ENI is created without groups before they are known, and an empty list in IMDS takes the groups off every
/// ENI.
#[test]
fn fault_10_an_empty_list_of_groups_neither_creates_nor_modifies_an_eni_without_groups() {
    let mut scene = Scene::stage(Lab::builder(), "m5.large", &[("WARM_ENI_TARGET", "0")]);
    let groups = scene.attached_enis()[0].groups.clone();
    assert!(!groups.is_empty());
    let empty = Effect::Body {
        status: 200,
        body: String::new(),
    };
    let path = "meta-data/network/interfaces/macs/*/security-group-ids";
    let rule = scene.faults().inject(Rule::imds(path, empty.clone()));
    // A node that is not known yet waits for the list and makes nothing meanwhile.
    scene.launch();
    scene.daemon().wait_log("security-group-ids", PATIENCE).unwrap();
    assert_eq!(rash_calls(&scene, 0), Vec::<String>::new());
    scene.faults().withdraw(rule);
    scene.daemon().wait_ready(PATIENCE).unwrap();
    // One that is known serves, and grows with the groups it knows.
    scene.settle_at(9);
    let rule = scene.faults().inject(Rule::imds(path, empty));
    scene.restart();
    let pods = scene.pods("web", 27);
    scene.add(&pods, 27);
    scene.settle_at(27);
    scene.eventually("IMDS to be asked", || scene.faults().hits(rule) > 0);
    scene.check(&pods);
    let named = |call: &Call| {
        call.params
            .keys()
            .any(|name| name.starts_with("SecurityGroupId."))
    };
    let created = scene.lab.cloud().calls().of("CreateNetworkInterface");
    assert!(created.iter().all(named), "{created:#?}");
    for eni in scene.attached_enis() {
        assert_eq!(eni.groups, groups, "{}", eni.id);
    }
}

/// There: totals are subtracted twice when an ENI goes with pods on it, become negative, and lead to needless ENIs.
#[test]
fn fault_11_totals_are_counted_anew_when_an_eni_goes_with_its_pods() {
    let (scene, pods) = busy();
    let victim = in_use(&scene, &pods).0;
    let lost: BTreeSet<Ipv4Addr> = victim.secondary.iter().copied().collect();
    let stranded = addresses(&pods).intersection(&lost).count() as u64;
    detach(&scene, &victim);
    scene
        .daemon()
        .wait_log("is gone, by EC2 and by the kernel", PATIENCE)
        .unwrap();
    let sums = |status: &Value| {
        let count = |what: &str| status[what].as_u64().unwrap();
        count("assigned") == 20 && count("free") <= 27 && count("quarantined") <= 9
    };
    scene.wait_for("sums that fit", sums);
    scene.del(&pods, 8);
    // What was lost is replaced by one ENI, no more: EC2 has at most three attached and what was detached besides.
    scene.wait_for("the pool to be itself again", |status| {
        status["assigned"] == 0 && status["coming"] == 0 && status["waiting"] == 0
    });
    assert!(stranded > 0);
    assert!(scene.attached_enis().len() <= 3);
    assert!(scene.all_enis().len() <= 4, "{:#?}", scene.all_enis());
    let owned = scene.ec2_addresses().len() as u64;
    scene.wait_for("every address to be counted once", |status| {
        let count = |what: &str| status[what].as_u64().unwrap();
        count("free") + count("cooling") >= owned.min(18) && count("free") + count("cooling") <= 27
    });
}
