//! EC2 that refuses, loses answers, lags or is away. Nothing leaks, nothing doubles, and pods start when they can.

use aws_cni_lab::calls::{Call, Outcome, Service};
use aws_cni_lab::faults::{Effect, Latency, Outage, Rule, Scope};
use aws_cni_lab::lab::{Lab, NodeSpec};
use aws_cni_lab::vpc::{AttachEni, CreateEni, EniId, Want, Wanted};

use crate::scene::{Scene, refused};

/// The calls that growth makes, but for Describe.
const GROWTH: [&str; 4] = [
    "AssignPrivateIpAddresses",
    "CreateNetworkInterface",
    "AttachNetworkInterface",
    "ModifyNetworkInterfaceAttribute",
];

/// A node that grows to its limit with these rules in its way, though nobody fails.
fn grows_in_spite_of(rules: &[Rule]) -> Scene {
    let mut scene = Scene::stage(Lab::builder(), "m5.large", &[]);
    let ids: Vec<_> = rules
        .iter()
        .map(|rule| scene.faults().inject(rule.clone()))
        .collect();
    scene.start();
    let pods = scene.pods("web", 12);
    scene.add(&pods, 12);
    scene.settle_at(27);
    scene.check(&pods);
    assert_eq!(scene.all_enis().len(), 3, "{:#?}", scene.all_enis());
    for (id, rule) in ids.into_iter().zip(rules) {
        assert!(scene.faults().hits(id) > 0, "{rule:?} never met a call");
    }
    scene
}

fn once(effect: &Effect, action: &str) -> Rule {
    Rule::ec2(action, effect.clone()).once()
}

#[test]
fn a_lost_answer_to_assign_doubles_nothing() {
    grows_in_spite_of(&[once(&Effect::LoseAnswer, "AssignPrivateIpAddresses")]);
}

#[test]
fn a_lost_answer_to_create_leaks_no_eni() {
    grows_in_spite_of(&[once(&Effect::LoseAnswer, "CreateNetworkInterface")]);
}

#[test]
fn a_lost_answer_to_attach_leaks_no_eni() {
    grows_in_spite_of(&[once(&Effect::LoseAnswer, "AttachNetworkInterface")]);
}

#[test]
fn a_lost_answer_to_modify_is_made_up_for() {
    grows_in_spite_of(&[once(&Effect::LoseAnswer, "ModifyNetworkInterfaceAttribute")]);
}

#[test]
fn every_second_answer_may_be_lost() {
    let rules: Vec<Rule> = GROWTH
        .iter()
        .flat_map(|action| {
            let lose = |skip| Rule::ec2(action, Effect::ResetAfter).skip(skip).once();
            [lose(0), lose(1)]
        })
        .collect();
    let mut scene = Scene::stage(Lab::builder(), "m5.large", &[]);
    for rule in rules {
        scene.faults().inject(rule);
    }
    scene.start();
    let pods = scene.pods("web", 12);
    scene.add(&pods, 12);
    scene.settle_at(27);
    scene.check(&pods);
    assert_eq!(scene.all_enis().len(), 3);
}

#[test]
fn an_error_after_the_effect_doubles_nothing() {
    let effect = Effect::ErrorAfter {
        code: "InternalError".to_owned(),
        message: "An internal error has occurred".to_owned(),
        status: 500,
    };
    let rules: Vec<Rule> = GROWTH.iter().map(|action| once(&effect, action)).collect();
    grows_in_spite_of(&rules);
}

#[test]
fn a_lost_request_is_made_again() {
    let rules: Vec<Rule> = GROWTH
        .iter()
        .map(|action| once(&Effect::LoseRequest, action))
        .collect();
    grows_in_spite_of(&rules);
}

#[test]
fn server_errors_pass() {
    let rules: Vec<Rule> = GROWTH
        .iter()
        .chain(&["DescribeNetworkInterfaces"])
        .map(|action| Rule::ec2_error(action, "ServiceUnavailable", "Service unavailable.").once())
        .collect();
    grows_in_spite_of(&rules);
}

#[test]
fn throttled_calls_are_made_later_and_nobody_fails() {
    let message = "Request limit exceeded.";
    let rules: Vec<Rule> = GROWTH
        .iter()
        .chain(&["DescribeNetworkInterfaces"])
        .map(|action| Rule::ec2_error(action, "RequestLimitExceeded", message).times(2))
        .collect();
    grows_in_spite_of(&rules);
}

#[test]
fn a_garbled_answer_is_no_answer() {
    let garbled = Effect::Body {
        status: 200,
        body: "<html>captive portal</html>".to_owned(),
    };
    let rules: Vec<Rule> = GROWTH.iter().map(|action| once(&garbled, action)).collect();
    grows_in_spite_of(&rules);
}

const FORBIDDEN: &str = "You are not authorized to perform this operation.";

#[test]
fn without_the_permission_to_create_the_refusal_names_it_and_calls_stay_few() {
    let mut scene = Scene::stage(Lab::builder(), "m5.large", &[]);
    let action = "CreateNetworkInterface";
    let rule = scene
        .faults()
        .inject(Rule::ec2_error(action, "UnauthorizedOperation", FORBIDDEN));
    scene.start();
    let pods = scene.pods("web", 9);
    scene.add(&pods, 9);
    for pod in &scene.pods("late", 4) {
        let (code, message) = refused(pod);
        assert_eq!(code, 999, "{message}");
        for part in [
            "UnauthorizedOperation",
            "allow ec2:CreateNetworkInterface",
            "request id",
        ] {
            assert!(message.contains(part), "{part:?} is missing: {message}");
        }
    }
    let calls = scene.lab.cloud().calls().of(action);
    assert!(calls.len() <= 3, "{}", calls.len());
    assert!(scene.log().contains("UnauthorizedOperation"));
    scene.faults().withdraw(rule);
    scene.restart();
    scene.settle_at(18);
}

#[test]
fn without_the_permission_to_attach_no_eni_is_left_and_no_loop_runs() {
    let mut scene = Scene::stage(Lab::builder(), "m5.large", &[]);
    let action = "AttachNetworkInterface";
    scene
        .faults()
        .inject(Rule::ec2_error(action, "UnauthorizedOperation", FORBIDDEN));
    scene.start();
    let pods = scene.pods("web", 9);
    scene.add(&pods, 9);
    let (_, message) = refused(&scene.pods("late", 1)[0]);
    assert!(
        message.contains(action) && message.contains("UnauthorizedOperation"),
        "{message}"
    );
    scene.wait_until("the ENI to be deleted again", || {
        (scene.all_enis().len() == 1).then_some(())
    });
    let calls = scene.lab.cloud().calls();
    let created = calls.of("CreateNetworkInterface").len();
    assert!(created <= 2, "{created}");
    assert_eq!(
        calls
            .of("DeleteNetworkInterface")
            .iter()
            .filter(|call| call.is_ok())
            .count(),
        created
    );
}

#[test]
fn without_the_permission_to_assign_other_enis_bring_addresses() {
    let mut scene = Scene::stage(Lab::builder(), "m5.large", &[]);
    let action = "AssignPrivateIpAddresses";
    scene
        .faults()
        .inject(Rule::ec2_error(action, "UnauthorizedOperation", FORBIDDEN));
    scene.start();
    let pods = scene.pods("web", 18);
    scene.add(&pods, 18);
    let (_, message) = refused(&scene.pods("late", 1)[0]);
    assert!(
        message.contains(action) && message.contains("UnauthorizedOperation"),
        "{message}"
    );
}

#[test]
fn ipamd_25_39_without_the_permission_to_describe_or_modify_pods_start() {
    let mut scene = Scene::stage(Lab::builder(), "m5.large", &[]);
    for action in ["DescribeNetworkInterfaces", "ModifyNetworkInterfaceAttribute"] {
        scene
            .faults()
            .inject(Rule::ec2_error(action, "UnauthorizedOperation", FORBIDDEN));
    }
    scene.start();
    let pods = scene.pods("web", 27);
    scene.add(&pods, 27);
    scene.check(&pods);
    for action in ["DescribeNetworkInterfaces", "ModifyNetworkInterfaceAttribute"] {
        let said = format!("{action} failed with UnauthorizedOperation");
        assert!(scene.log().contains(&said), "{action} is not in the log");
    }
}

/// The Go daemon describes by id: one that is gone has to be left out of the next call, and of a message that names none
/// nothing can be learnt. Here EC2 is asked by instance, so the code means no more than any other failure.
#[test]
fn ipamd_25_an_eni_that_describe_says_is_not_found_delays_nobody() {
    let action = "DescribeNetworkInterfaces";
    let named = "The networkInterface ID 'eni-0123456789abcdef0' does not exist";
    for message in [named, "The networkInterface does not exist"] {
        let mut scene = Scene::stage(Lab::builder(), "m5.large", &[]);
        let code = "InvalidNetworkInterfaceID.NotFound";
        let rule = scene
            .faults()
            .inject(Rule::ec2_error(action, code, message).times(2));
        scene.start();
        let pods = scene.pods("web", 12);
        scene.add(&pods, 12);
        scene.wait_until("EC2 to be asked again", || {
            let calls = scene.lab.cloud().calls().of(action);
            calls.iter().any(Call::is_ok).then_some(())
        });
        scene.settle_at(27);
        scene.check(&pods);
        assert_eq!(scene.faults().hits(rule), 2);
        let by_id = |call: &Call| {
            call.params
                .keys()
                .any(|name| name.starts_with("NetworkInterfaceId"))
        };
        let calls = scene.lab.cloud().calls().of(action);
        assert!(!calls.iter().any(by_id), "{calls:#?}");
        assert!(calls.len() <= 6, "{calls:#?}");
    }
}

/// Somebody attaches an ENI that is not ours.
fn attach_foreign(scene: &Scene, device: u32) -> EniId {
    let vpc = scene.lab.vpc();
    let instance = scene.node.instance().clone();
    let stages = aws_cni_lab::vpc::Stages::default();
    scene.lab.cloud().model(|model| {
        let mut request = CreateEni::plain(vpc.subnets[0].clone(), vec![vpc.group.clone()]);
        let mark = "node.k8s.amazonaws.com/no_manage".to_owned();
        request.tags.insert(mark, "true".to_owned());
        let now = std::time::Instant::now();
        let eni = model.create_eni(request, now).unwrap().id.clone();
        let request = AttachEni {
            eni: eni.clone(),
            instance,
            device,
            card: 0,
        };
        model.attach_eni(&request, stages, now).unwrap();
        eni
    })
}

#[test]
fn ipamd_38_an_eni_that_finds_no_place_is_deleted_again_and_not_tried_in_a_loop() {
    // Fault 1 and Q23 of the Go daemon: Create, Attach, Delete every five seconds.
    let scene = Scene::with_env("t3.nano", &[("WARM_ENI_TARGET", "0")]);
    scene.settle_at(1);
    let foreign = attach_foreign(&scene, 1);
    let pods = scene.pods("web", 1);
    scene.add(&pods, 1);
    let (code, message) = refused(&scene.pods("late", 1)[0]);
    assert_eq!(code, 999, "{message}");
    scene.wait_until("the ENI to be deleted again", || {
        (scene.all_enis().len() == 2).then_some(())
    });
    assert!(scene.all_enis().iter().any(|eni| eni.id == foreign));
    for pod in &scene.pods("later", 3) {
        refused(pod);
    }
    let calls = scene.lab.cloud().calls();
    assert!(calls.count("CreateNetworkInterface") <= 2);
    assert!(calls.count("AttachNetworkInterface") <= 4);
    scene.check(&pods);
}

#[test]
fn ipamd_fault_5_an_eni_said_to_be_full_is_not_asked_in_a_loop() {
    let mut scene = Scene::stage(Lab::builder(), "m5.large", &[]);
    let action = "AssignPrivateIpAddresses";
    let message = "Number of private addresses will exceed limit.";
    scene
        .faults()
        .inject(Rule::ec2_error(action, "PrivateIpAddressLimitExceeded", message));
    scene.start();
    let pods = scene.pods("web", 18);
    scene.add(&pods, 18);
    scene.settle_at(18);
    for pod in &scene.pods("late", 3) {
        refused(pod);
    }
    let calls = scene.lab.cloud().calls();
    assert_eq!(calls.count(action), 1);
    assert!(
        calls.count("DescribeNetworkInterfaces") <= 5,
        "{:?}",
        calls.counters(Service::Ec2, 0)
    );
}

#[test]
fn ipamd_57_addresses_somebody_else_assigned_are_taken_up() {
    let mut scene = Scene::stage(Lab::builder(), "m5.large", &[("WARM_ENI_TARGET", "0")]);
    let instance = scene.node.instance().clone();
    let primary = scene.node.primary_eni().clone();
    let wanted = Wanted {
        addresses: Want::Count(9),
        ..Wanted::default()
    };
    let given = scene.lab.cloud().model(|model| {
        let now = std::time::Instant::now();
        model.assign(&primary, &wanted, false, now).unwrap().addresses
    });
    // Neither IMDS nor the first Describe shows them, so the daemon asks for more than there is room for.
    let hidden = given.iter().map(|address| std::net::IpAddr::from(*address));
    scene.faults().lies(&instance, |lies| {
        lies.imds_hides_addresses.extend(hidden.clone());
        lies.ec2_hides_addresses.extend(hidden);
    });
    scene.faults().inject(Rule::ec2(
        "AssignPrivateIpAddresses",
        Effect::DelayAfter(Latency::millis(300)),
    ));
    scene.launch();
    scene.wait_until("the assignment to be refused", || {
        let calls = scene.lab.cloud().calls().of("AssignPrivateIpAddresses");
        let refused = Outcome::Error("PrivateIpAddressLimitExceeded".to_owned());
        (calls.first()?.outcome == refused).then_some(())
    });
    scene
        .faults()
        .lies(&instance, |lies| *lies = aws_cni_lab::faults::Lies::default());
    let pods = scene.pods("web", 9);
    scene.add(&pods, 9);
    scene.check(&pods);
}

/// A node whose launch template put nine addresses on the primary ENI.
fn furnished(environment: &[(&str, &str)]) -> Scene {
    Scene::stage_with(
        Lab::builder(),
        NodeSpec::new("a", "m5.large"),
        |launch| launch.wanted.addresses = Want::Count(9),
        environment,
    )
}

#[test]
fn ipamd_25_pods_start_while_ec2_is_down_if_addresses_are_there() {
    let mut scene = furnished(&[]);
    scene
        .faults()
        .outage(Service::Ec2, Scope::All, Some(Outage::Reset));
    scene.start();
    let pods = scene.pods("web", 9);
    scene.add(&pods, 9);
    scene.check(&pods);
    let given = scene.ec2_addresses();
    let confirmed = || {
        let named = |address| scene.address(address)["placed"]["verified"] == true;
        given.iter().filter(|address| named(**address)).count()
    };
    assert_eq!(confirmed(), 0, "only IMDS has named them so far");
    scene.faults().outage(Service::Ec2, Scope::All, None);
    scene.wait_until("EC2 to confirm them", || (confirmed() == 9).then_some(()));
    scene.settle_at(18);
    scene.check(&pods);
}

#[test]
fn ipamd_27_in_imds_only_mode_ec2_is_asked_nothing_at_a_start_in_service_and_at_the_next_start() {
    let mut scene = furnished(&[("ENABLE_IMDS_ONLY_MODE", "true")]);
    scene.start();
    let pods = scene.pods("web", 9);
    scene.add(&pods, 9);
    scene.check(&pods);
    let (code, message) = refused(&scene.pods("more", 1)[0]);
    assert_eq!(code, 999, "nothing is on its way: {message}");
    scene.del(&pods[..3], 3);
    scene.restart();
    scene.check(&pods[3..]);
    let asked = scene.lab.cloud().calls().counters(Service::Ec2, 0);
    assert!(asked.is_empty(), "{asked:?}");
}

#[test]
fn pods_start_while_ec2_swallows_every_call() {
    let mut scene = furnished(&[("HTTP_TIMEOUT", "10")]);
    scene
        .faults()
        .outage(Service::Ec2, Scope::All, Some(Outage::BlackHole));
    scene.start();
    let pods = scene.pods("web", 9);
    scene.add(&pods, 9);
    scene.check(&pods);
}

#[test]
fn pods_start_after_a_restart_though_neither_ec2_nor_imds_answers() {
    let mut scene = Scene::new("m5.large");
    let mut pods = scene.pods("web", 3);
    scene.add(&pods, 3);
    scene.settle_at(18);
    for service in [Service::Ec2, Service::Imds] {
        scene.faults().outage(service, Scope::All, Some(Outage::Reset));
    }
    scene.restart();
    let more = scene.pods("more", 15);
    scene.add(&more, 15);
    pods.extend(more);
    scene.check(&pods);
    let (_, message) = refused(&scene.patient_pods("late", 1, 2)[0]);
    assert!(
        message.contains("EC2") || message.contains("Describe") || message.contains("Create"),
        "{message}"
    );
    for service in [Service::Ec2, Service::Imds] {
        scene.faults().outage(service, Scope::All, None);
    }
    scene.settle_at(27);
    let late = scene.pods("last", 3);
    scene.add(&late, 3);
    pods.extend(late);
    scene.settle_at(27);
    scene.check(&pods);
}

#[test]
fn growth_goes_on_when_ec2_comes_back_and_waiting_adds_are_served() {
    let mut scene = Scene::stage(Lab::builder(), "m5.large", &[]);
    scene
        .faults()
        .outage(Service::Ec2, Scope::All, Some(Outage::Reset));
    scene.start();
    let pods = scene.patient_pods("web", 12, 60);
    std::thread::scope(|threads| {
        threads.spawn(|| scene.add(&pods, 12));
        scene.wait_for("all to wait", |status| status["waiting"] == 12);
        scene.faults().outage(Service::Ec2, Scope::All, None);
    });
    scene.settle_at(27);
    scene.check(&pods);
}

#[test]
fn describes_and_imds_that_lag_lose_and_double_nothing() {
    let mut scene = Scene::stage(Lab::builder(), "m5.large", &[]);
    scene.faults().timing(&Scope::All, |timing| {
        timing.describe_lag = Latency::secs(3);
        timing.imds_lag = Latency::secs(5);
    });
    for action in ["CreateNetworkInterface", "AssignPrivateIpAddresses"] {
        scene
            .faults()
            .inject(Rule::ec2(action, Effect::LoseAnswer).once());
    }
    scene.start();
    let mut pods = scene.patient_pods("web", 12, 60);
    scene.add(&pods, 12);
    scene.restart();
    let more = scene.patient_pods("more", 15, 60);
    scene.add(&more, 15);
    pods.extend(more);
    scene.settle_at(27);
    scene.check(&pods);
    assert_eq!(scene.all_enis().len(), 3);
}

#[test]
fn an_address_only_imds_shows_is_never_given_out() {
    let mut scene = furnished(&[("WARM_ENI_TARGET", "0"), ("MAX_ENI", "1")]);
    let instance = scene.node.instance().clone();
    let stranger = "10.0.31.250".parse().unwrap();
    let primary = scene.node.primary_eni().clone();
    scene.faults().lies(&instance, |lies| {
        lies.imds_adds_addresses.insert((primary, stranger));
    });
    scene.start();
    let pods = scene.pods("web", 9);
    scene.add(&pods, 9);
    scene.check(&pods);
    refused(&scene.patient_pods("late", 1, 2)[0]);
}
