//! The built plugin against a scripted daemon and the real kernel.

use std::fs::File;
use std::io::Write;
use std::net::{IpAddr, Ipv4Addr};
use std::os::fd::AsRawFd;
use std::process::{Command, Stdio};

use aws_cni::ipam::cidr::Ipv4Cidr;
use aws_cni::ipam::ids::{CardIndex, DeviceIndex, TableId};
use aws_cni::ipam::ip::{Cidr, IpFamily};
use aws_cni::net::layout::{DOOMED_GROUP, POD_TABLE, RuleLayout, TO_POD_PRIORITY};
use aws_cni::net::op::{NetOp, Rule, Selector};
use aws_cni::net::rtnl::Rtnl;
use aws_cni::rpc::types::{
    Allocation, Assigned, AwsFailure, Collected, DelReason, ErrorKind, Released, ReleasedAddress, Reply,
    Request, ServiceError, Status,
};
use aws_cni::store::pending;
use nix::sched::{CloneFlags, unshare};
use serde_json::{Value, json};

use crate::fake_daemon::{Answers, FakeDaemon};

const PLUGIN: &str = env!("CARGO_BIN_EXE_aws-cni");
const VETH: &str = "enic440f455693";
const ADDRESS: Ipv4Addr = Ipv4Addr::new(10, 0, 1, 5);

/// A node (the thread's own fresh namespace), a sandbox on it, and folders.
struct Node {
    folder: tempfile::TempDir,
    sandbox: File,
}

struct Answer {
    code: Option<i32>,
    stdout: String,
    stderr: String,
}

impl Answer {
    fn json(&self) -> Value {
        serde_json::from_str(&self.stdout).unwrap_or_else(|_| panic!("{} {}", self.stdout, self.stderr))
    }

    fn assert_silent_success(&self) {
        assert_eq!(
            (self.code, self.stdout.as_str()),
            (Some(0), ""),
            "{}",
            self.stderr
        );
    }

    fn assert_refused(&self, code: u64, text: &str) {
        assert_eq!(self.code, Some(1), "{} {}", self.stdout, self.stderr);
        let json = self.json();
        assert_eq!(json["code"], code, "{json}");
        assert!(json["msg"].as_str().unwrap().contains(text), "{json}");
    }
}

fn netns() -> File {
    File::open("/proc/thread-self/ns/net").unwrap()
}

/// Runs a test in a network namespace of its own, which vanishes with it.
fn on_a_node(test: impl FnOnce(&Node) + Send) {
    std::thread::scope(|scope| {
        let thread = scope.spawn(|| {
            let sandbox = std::thread::spawn(|| {
                unshare(CloneFlags::CLONE_NEWNET).expect("kernel tests need root");
                netns()
            })
            .join()
            .unwrap();
            unshare(CloneFlags::CLONE_NEWNET).expect("kernel tests need root");
            test(&Node {
                folder: tempfile::tempdir().unwrap(),
                sandbox,
            });
        });
        thread
            .join()
            .unwrap_or_else(|panic| std::panic::resume_unwind(panic));
    });
}

impl Node {
    fn daemon(&self, answer: impl Fn(&Request) -> Answers + Send + 'static) -> FakeDaemon {
        FakeDaemon::start(self.folder.path(), answer)
    }

    fn sandbox_path(&self) -> String {
        format!("/proc/{}/fd/{}", std::process::id(), self.sandbox.as_raw_fd())
    }

    fn call(&self, verb: &str, extra: &Value) -> Answer {
        self.call_in(verb, &self.sandbox_path(), extra)
    }

    fn call_in(&self, verb: &str, netns: &str, extra: &Value) -> Answer {
        self.run(Command::new(PLUGIN), verb, netns, extra)
    }

    /// By root without the capability that changing the network takes.
    fn call_powerless(&self, verb: &str, extra: &Value) -> Answer {
        let mut command = Command::new("setpriv");
        command.args(["--bounding-set=-net_admin", "--inh-caps=-net_admin", PLUGIN]);
        self.run(command, verb, &self.sandbox_path(), extra)
    }

    fn run(&self, mut command: Command, verb: &str, netns: &str, extra: &Value) -> Answer {
        let mut conf = json!({"cniVersion": "1.1.0", "name": "aws-cni", "type": "aws-cni", "mtu": "8000",
                              "pluginLogFile": "stderr"});
        for (key, value) in extra.as_object().unwrap() {
            conf[key] = value.clone();
        }
        let mut child = command
            .env("CNI_COMMAND", verb)
            .env("CNI_CONTAINERID", "c1")
            .env("CNI_NETNS", netns)
            .env("CNI_IFNAME", "eth0")
            .env("CNI_PATH", "/opt/cni/bin")
            .env(
                "CNI_ARGS",
                "IgnoreUnknown=1;K8S_POD_NAMESPACE=default;K8S_POD_NAME=nginx",
            )
            .env("AWS_CNI_SOCKET", self.folder.path().join("ipamd.sock"))
            .env("AWS_CNI_STATE_DIR", self.folder.path().join("state"))
            .env_remove("AWS_CNI_ADD_DEADLINE")
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        child
            .stdin
            .take()
            .unwrap()
            .write_all(conf.to_string().as_bytes())
            .ok();
        let output = child.wait_with_output().unwrap();
        Answer {
            code: output.status.code(),
            stdout: String::from_utf8(output.stdout).unwrap(),
            stderr: String::from_utf8(output.stderr).unwrap(),
        }
    }

    fn waiting_dels(&self) -> usize {
        pending::list(&self.folder.path().join("state").join(pending::DIRECTORY))
            .unwrap()
            .len()
    }
}

fn assert_kernel_is_empty() {
    let mut host = Rtnl::open().unwrap();
    // What is in this group the daemon deletes, at its next start at the latest.
    let link = host.link_named(VETH).unwrap();
    assert!(link.is_none_or(|link| link.group == DOOMED_GROUP && !link.up));
    assert!(
        host.routes(IpFamily::V4, Some(POD_TABLE), None)
            .unwrap()
            .is_empty()
    );
    let rules = host.rules(IpFamily::V4).unwrap();
    assert!(
        rules
            .iter()
            .all(|rule| rule.selector == Selector::all(IpFamily::V4)),
        "{rules:?}"
    );
}

fn allocation(layout: RuleLayout) -> Allocation {
    Allocation {
        address: IpAddr::V4(ADDRESS),
        eni_table: TableId(3),
        device: DeviceIndex(2),
        eni: "eni-1".into(),
        card: CardIndex(0),
        eni_primary: Some(Ipv4Addr::new(10, 0, 1, 20)),
        layout,
        host_veth: VETH.to_owned(),
    }
}

/// Serves everything as a healthy daemon would.
fn healthy(layout: RuleLayout) -> impl Fn(&Request) -> Answers + Send + 'static {
    move |request| match request {
        Request::Add(_) => vec![
            Ok(Reply::Assigned(Assigned {
                allocation: allocation(layout),
                repeated: false,
            })),
            Ok(Reply::Durable),
        ],
        Request::Del(_) => vec![
            Ok(Reply::Released(Released {
                addresses: vec![ReleasedAddress {
                    address: IpAddr::V4(ADDRESS),
                    eni_table: TableId(3),
                    device: DeviceIndex(2),
                    host_veth: VETH.to_owned(),
                    layout,
                    host_ports: Vec::new(),
                }],
                known: true,
            })),
            Ok(Reply::Settled),
        ],
        Request::Check(_) => vec![Ok(Reply::Checked(allocation(layout)))],
        Request::Gc(_) => vec![Ok(Reply::Collected(Collected::default()))],
        Request::Cordon(_) => vec![Ok(Reply::Settled)],
        Request::Status => vec![Ok(Reply::Status(Status {
            serving: true,
            ..Status::default()
        }))],
        Request::Dump => vec![Ok(Reply::Dump(json!({})))],
    }
}

fn refusing(error: ServiceError) -> impl Fn(&Request) -> Answers + Send + 'static {
    move |_| vec![Err(error.clone())]
}

#[test]
fn add_check_del_with_a_healthy_daemon() {
    on_a_node(|node| {
        let daemon = node.daemon(healthy(RuleLayout::Shared));
        // The daemon makes this rule when it sets the host up; CHECK asks the kernel for its decision.
        let pod_rule = NetOp::AddRule(Rule::all(IpFamily::V4, TO_POD_PRIORITY, POD_TABLE));
        Rtnl::open().unwrap().apply_all(&[pod_rule]).unwrap();
        let added = node.call("ADD", &json!({}));
        assert_eq!(added.code, Some(0), "{} {}", added.stdout, added.stderr);
        let result = added.json();
        assert_eq!(result["cniVersion"], "1.1.0");
        assert_eq!(result["interfaces"][0], json!({"name": VETH}));
        assert_eq!(result["interfaces"][1]["sandbox"], node.sandbox_path());
        assert_eq!(result["ips"], json!([{"address": "10.0.1.5/32", "interface": 1}]));

        let mut host = Rtnl::open().unwrap();
        let link = host.link_named(VETH).unwrap().unwrap();
        assert_eq!((link.mtu, link.up), (8000, true));
        assert_eq!(
            host.routes(IpFamily::V4, Some(POD_TABLE), Some(link.index))
                .unwrap()
                .len(),
            1
        );

        node.call("CHECK", &json!({"prevResult": result}))
            .assert_silent_success();
        node.call("ADD", &json!({})).json();

        node.call("DEL", &json!({"prevResult": result}))
            .assert_silent_success();
        let doomed = host.link_named(VETH).unwrap().unwrap();
        assert_eq!(doomed.group, DOOMED_GROUP);
        assert!(
            host.routes(IpFamily::V4, Some(POD_TABLE), None)
                .unwrap()
                .is_empty()
        );
        node.call("DEL", &json!({})).assert_silent_success();
        assert_eq!(daemon.methods(), ["Add", "Check", "Add", "Del", "Del"]);
        assert_eq!(node.waiting_dels(), 0);
    });
}

#[test]
fn check_names_what_differs() {
    on_a_node(|node| {
        let _daemon = node.daemon(healthy(RuleLayout::Shared));
        node.call("CHECK", &json!({})).assert_refused(999, VETH);
        let wired = node.call("ADD", &json!({})).json();
        let mut other = wired.clone();
        other["ips"][0]["address"] = "10.0.1.9/32".into();
        node.call("CHECK", &json!({"prevResult": other}))
            .assert_refused(999, "the result says 10.0.1.9");
        node.call("CHECK", &json!({"mtu": "1500"}))
            .assert_refused(999, "MTU 8000");
    });
}

#[test]
fn dataplane_71_a_refused_add_is_a_cni_error_on_stdout() {
    on_a_node(|node| {
        let error = ServiceError::new(ErrorKind::SubnetFull, "subnet-1a2b is full").with_aws(AwsFailure {
            action: "AssignPrivateIpAddresses".to_owned(),
            code: "InsufficientFreeAddressesInSubnet".to_owned(),
            request_id: "r-1".to_owned(),
        });
        let _daemon = node.daemon(refusing(error));
        let answer = node.call("ADD", &json!({}));
        answer.assert_refused(
            999,
            "add cmd: failed to assign an IP address to container: subnet-1a2b is full",
        );
        answer.assert_refused(999, "request id r-1");
        assert!(
            answer.stdout.starts_with("{\n    \"code\": 999,"),
            "{}",
            answer.stdout
        );
        assert_kernel_is_empty();
    });
}

#[test]
fn an_add_without_a_daemon_says_where_to_look_and_can_be_retried() {
    on_a_node(|node| {
        let answer = node.call("ADD", &json!({}));
        answer.assert_refused(11, "add cmd: failed to connect to backend server");
        answer.assert_refused(11, "systemctl status ipamd");
    });
}

#[test]
fn an_add_that_is_not_durable_leaves_nothing_behind() {
    for failure in [
        vec![],
        vec![Err(ServiceError::new(ErrorKind::DiskFull, "the disk is full"))],
    ] {
        on_a_node(move |node| {
            let well = healthy(RuleLayout::PerPod);
            let daemon = node.daemon(move |request| match request {
                Request::Add(_) => well(request).into_iter().take(1).chain(failure.clone()).collect(),
                _ => well(request),
            });
            node.call("ADD", &json!({})).assert_refused(11, "add cmd: ");
            assert_kernel_is_empty();
            // A daemon that went away without the second answer may have been restarted: it is asked again for a while.
            let seen = daemon.seen();
            let Some((Request::Del(del), asked)) = seen.split_last() else {
                panic!("no release at the end: {seen:?}");
            };
            assert_eq!(del.reason, DelReason::SetupNSFailed);
            assert!(!asked.is_empty() && asked.iter().all(|request| matches!(request, Request::Add(_))));
        });
    }
}

#[test]
fn dataplane_70_a_missing_namespace_releases_the_address() {
    on_a_node(|node| {
        let daemon = node.daemon(healthy(RuleLayout::Shared));
        let answer = node.call_in("ADD", "/run/netns/never-was", &json!({}));
        answer.assert_refused(999, "add command: failed to setup network: ");
        answer.assert_refused(
            999,
            "failed to Statfs \"/run/netns/never-was\": no such file or directory",
        );
        let seen = daemon.seen();
        assert!(
            matches!(&seen[..], [_, Request::Del(del)] if del.reason == DelReason::SetupNSFailed),
            "{seen:?}"
        );
        assert_kernel_is_empty();
    });
}

#[test]
fn a_release_that_finds_the_daemon_gone_is_written_down() {
    on_a_node(|node| {
        let well = healthy(RuleLayout::Shared);
        let _daemon = node.daemon(move |request| match request {
            Request::Add(_) => well(request),
            _ => vec![],
        });
        node.call_in("ADD", "/run/netns/never-was", &json!({}))
            .assert_refused(999, "setup network");
        assert_eq!(node.waiting_dels(), 1);
    });
}

#[test]
fn the_plugins_own_namespace_is_code_8_and_nothing_is_asked() {
    on_a_node(|node| {
        let daemon = node.daemon(healthy(RuleLayout::Shared));
        let own = netns();
        let own = format!("/proc/{}/fd/{}", std::process::id(), own.as_raw_fd());
        node.call_in("ADD", &own, &json!({})).assert_refused(
            8,
            "plugin's netns and netns from CNI_NETNS should not be the same",
        );
        node.call_in("CHECK", &own, &json!({})).assert_silent_success();
        assert!(daemon.seen().is_empty());
    });
}

#[test]
fn del_with_the_daemon_away_cleans_the_kernel_and_queues_the_rest() {
    for layout in [RuleLayout::Shared, RuleLayout::PerPod] {
        on_a_node(|node| {
            let daemon = node.daemon(healthy(layout));
            let result = node.call("ADD", &json!({})).json();
            drop(daemon);
            for netns in ["", "/run/netns/gone", &node.sandbox_path()] {
                node.call_in("DEL", netns, &json!({"prevResult": result}))
                    .assert_silent_success();
                assert_kernel_is_empty();
                assert_eq!(node.waiting_dels(), 1);
            }
            node.call_in("DEL", "", &json!({})).assert_silent_success();

            let _daemon = node.daemon(healthy(layout));
            node.call("ADD", &json!({})).json();
            assert_eq!(node.waiting_dels(), 0, "a sandbox that came back is not released");
        });
    }
}

/// Conformance: dataplane case 97, a record without tables.
#[test]
fn dataplane_97_del_by_a_record_of_1_19() {
    on_a_node(|node| {
        let daemon = node.daemon(healthy(RuleLayout::PerPod));
        let mut result = node.call("ADD", &json!({})).json();
        drop(daemon);
        result["interfaces"][1].as_object_mut().unwrap().remove("mac");
        node.call_in("DEL", "", &json!({"prevResult": result}))
            .assert_silent_success();
        assert_kernel_is_empty();
    });
}

#[test]
fn dataplane_59_94_del_without_a_namespace_cleans_rules_and_releases() {
    on_a_node(|node| {
        let daemon = node.daemon(healthy(RuleLayout::PerPod));
        node.call("ADD", &json!({})).json();
        let rules = Rtnl::open().unwrap().rules(IpFamily::V4).unwrap();
        assert!(
            rules
                .iter()
                .any(|rule| rule.priority == 1536 && rule.table == Some(TableId(3))),
            "case 59: {rules:?}"
        );
        node.call_in("DEL", "", &json!({})).assert_silent_success();
        let rules = Rtnl::open().unwrap().rules(IpFamily::V4).unwrap();
        assert!(
            rules
                .iter()
                .all(|rule| rule.selector == Selector::all(IpFamily::V4)),
            "{rules:?}"
        );
        assert_eq!(daemon.methods(), ["Add", "Del"]);
    });
}

/// The daemon assigned and was killed before that was on the disk: by now the address may be another sandbox's.
#[test]
fn what_a_dead_daemon_has_assigned_does_not_stay_wired() {
    on_a_node(|node| {
        let other: IpAddr = Ipv4Addr::new(10, 0, 1, 99).into();
        let answers = std::sync::Mutex::new(0);
        let daemon = node.daemon(move |request| {
            if !matches!(request, Request::Add(_)) {
                return healthy(RuleLayout::Shared)(request);
            }
            let mut asked = answers.lock().unwrap();
            *asked += 1;
            let assigned = |address| {
                Reply::Assigned(Assigned {
                    allocation: Allocation {
                        address,
                        ..allocation(RuleLayout::Shared)
                    },
                    repeated: false,
                })
            };
            match *asked {
                1 => vec![Ok(assigned(other))],
                _ => vec![Ok(assigned(IpAddr::V4(ADDRESS))), Ok(Reply::Durable)],
            }
        });
        let result = node.call("ADD", &json!({})).json();
        assert_eq!(result["ips"][0]["address"], "10.0.1.5/32");
        assert_eq!(daemon.methods(), ["Add", "Add"]);
        let routes = Rtnl::open()
            .unwrap()
            .routes(IpFamily::V4, Some(POD_TABLE), None)
            .unwrap();
        let reached: Vec<_> = routes.iter().map(|route| route.dst).collect();
        assert_eq!(reached, [Cidr::V4(Ipv4Cidr::host(ADDRESS))]);
    });
}

#[test]
fn dataplane_95_del_of_an_unknown_sandbox_is_a_success() {
    let unknown = ServiceError::new(ErrorKind::NotFound, "datastore: unknown pod");
    let nothing = vec![Ok(Reply::Released(Released::default())), Ok(Reply::Settled)];
    for answers in [nothing, vec![Err(unknown)]] {
        on_a_node(move |node| {
            let _daemon = node.daemon(move |_| answers.clone());
            node.call("DEL", &json!({})).assert_silent_success();
            assert_eq!(node.waiting_dels(), 0);
        });
    }
}

/// The Go plugin fails then; here the kernel is cleaned, and the release waits for a daemon that can do it.
#[test]
fn dataplane_101_a_daemon_that_refuses_a_release_gets_a_note() {
    for kind in [ErrorKind::Internal, ErrorKind::Denied, ErrorKind::BadRequest] {
        on_a_node(move |node| {
            let well = healthy(RuleLayout::PerPod);
            let _daemon = node.daemon(move |request| match request {
                Request::Del(_) => vec![Err(ServiceError::new(kind, "no"))],
                _ => well(request),
            });
            let result = node.call("ADD", &json!({})).json();
            node.call("DEL", &json!({"prevResult": result}))
                .assert_silent_success();
            assert_kernel_is_empty();
            assert_eq!(node.waiting_dels(), 1);
        });
    }
}

/// The Go plugin shrugs at a route that it cannot delete; here that fails, too, and the runtime's next DEL gets it.
#[test]
fn dataplane_106_a_del_that_the_kernel_refuses_fails_and_can_be_repeated() {
    for layout in [RuleLayout::Shared, RuleLayout::PerPod] {
        on_a_node(|node| {
            let _daemon = node.daemon(healthy(layout));
            let result = node.call("ADD", &json!({})).json();
            let del = json!({"prevResult": result});
            let answer = node.call_powerless("DEL", &del);
            answer.assert_refused(999, "del cmd: failed on tear down pod network: ");
            answer.assert_refused(999, "not permitted");
            node.call("DEL", &del).assert_silent_success();
            let mut host = Rtnl::open().unwrap();
            assert!(
                host.routes(IpFamily::V4, Some(POD_TABLE), None)
                    .unwrap()
                    .is_empty()
            );
            assert!(
                host.rules(IpFamily::V4)
                    .unwrap()
                    .iter()
                    .all(|rule| rule.selector.to().is_none())
            );
        });
    }
}

#[test]
fn a_late_del_leaves_the_next_sandbox_of_the_same_pod_alone() {
    on_a_node(|node| {
        let daemon = node.daemon(healthy(RuleLayout::Shared));
        let mut old = node.call("ADD", &json!({})).json();
        drop(daemon);
        old["ips"][0]["address"] = "10.0.1.77/32".into();
        node.call_in("DEL", "", &json!({"prevResult": old}))
            .assert_silent_success();
        let mut host = Rtnl::open().unwrap();
        let link = host.link_named(VETH).unwrap().unwrap();
        assert_eq!(
            host.routes(IpFamily::V4, Some(POD_TABLE), Some(link.index))
                .unwrap()
                .len(),
            1
        );
    });
}

#[test]
fn a_del_that_can_neither_ask_nor_write_is_retried() {
    on_a_node(|node| {
        std::fs::write(node.folder.path().join("state"), "in the way").unwrap();
        node.call("DEL", &json!({}))
            .assert_refused(11, "the release cannot be left in");
    });
}

#[test]
fn status_gc_and_their_failures() {
    on_a_node(|node| {
        let list = json!({"cni.dev/valid-attachments": [{"containerID": "c1", "ifname": "eth0"}]});
        node.call("STATUS", &json!({}))
            .assert_refused(50, "plugin not available: cannot connect");
        node.call("GC", &list).assert_refused(11, "nothing was collected");
        let daemon = node.daemon(healthy(RuleLayout::Shared));
        node.call("STATUS", &json!({})).assert_silent_success();
        node.call("GC", &list).assert_silent_success();
        node.call("GC", &json!({}))
            .assert_refused(7, "cni.dev/valid-attachments");
        let seen = daemon.seen();
        assert!(
            matches!(&seen[..], [Request::Status, Request::Gc(gc)] if gc.valid.len() == 1),
            "{seen:?}"
        );
    });
}

#[test]
fn dataplane_107_configuration_errors_keep_upstreams_prefixes() {
    on_a_node(|node| {
        for (verb, word) in [("ADD", "add"), ("DEL", "del")] {
            let prefix = format!("{word} cmd: error loading config from args: ");
            node.call(verb, &json!({"mtu": 9001})).assert_refused(
                999,
                &format!("{prefix}add cmd: error loading config from args: json: "),
            );
            node.call(verb, &json!({"vethPrefix": "abcde"})).assert_refused(
                999,
                &format!("{prefix}conf.VethPrefix can be at most 4 characters long"),
            );
            node.call(
                verb,
                &json!({"cniVersion": "0.4.0", "prevResult": {"cniVersion": "9.9.9"}}),
            )
            .assert_refused(
                999,
                &format!("{prefix}could not parse prevResult: could not parse prevResult: result"),
            );
        }
    });
}

#[test]
fn logs_never_reach_stdout() {
    on_a_node(|node| {
        let _daemon = node.daemon(healthy(RuleLayout::Shared));
        let answer = node.call(
            "ADD",
            &json!({"pluginLogFile": "stdout", "pluginLogLevel": "debug"}),
        );
        assert_eq!(answer.json()["cniVersion"], "1.1.0");
        let log = node.folder.path().join("plugin.log");
        node.call("DEL", &json!({"pluginLogFile": log, "pluginLogLevel": "debug"}))
            .assert_silent_success();
        assert!(std::fs::read_to_string(log).unwrap().contains("10.0.1.5"));
    });
}

#[test]
fn the_deadline_of_the_conflist_travels_with_the_request() {
    on_a_node(|node| {
        let late =
            ServiceError::new(ErrorKind::Deadline, "waited for eni-1 to attach").with_next_step("wait");
        let daemon = node.daemon(refusing(late));
        node.call("ADD", &json!({"addDeadlineSeconds": 2.5}))
            .assert_refused(11, "container: waited for eni-1 to attach (Deadline); next: wait");
        node.call("ADD", &json!({}))
            .assert_refused(11, "container: waited");
        let deadlines: Vec<u64> = daemon
            .seen()
            .iter()
            .filter_map(|request| match request {
                Request::Add(add) => Some(add.deadline_ms),
                _ => None,
            })
            .collect();
        let [short, long] = deadlines[..] else {
            panic!("two requests, not {deadlines:?}");
        };
        // What connecting took is gone from them.
        assert!(
            (1..=2500).contains(&short) && (2501..=30_000).contains(&long),
            "{deadlines:?}"
        );
    });
}
