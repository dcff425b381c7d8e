//! A node of the lab with our daemon on it: where the integration tests play.

use std::collections::BTreeSet;
use std::net::{IpAddr, Ipv4Addr};
use std::os::unix::net::UnixListener;
use std::path::Path;
use std::process::{Command, Output};
use std::sync::Arc;
use std::time::{Duration, Instant};

use aws_cni_lab::calls::{Call, Service};
use aws_cni_lab::faults::Faults;
use aws_cni_lab::lab::{Customize, Lab, LabBuilder, NodeSpec};
use aws_cni_lab::node::Node;
use aws_cni_lab::pod::{CniOutcome, Pod, side_by_side};
use aws_cni_lab::probe::{Protocol, exchange};
use aws_cni_lab::process::{Daemon, DaemonSpec};
use aws_cni_lab::vpc::Eni;
use serde_json::{Value, json};

/// Nothing here takes this long unless it is broken; a test machine may be slow.
pub const PATIENCE: Duration = Duration::from_mins(1);

/// One node, its daemon and the listening socket, which is the node's as systemd would hold it.
pub struct Scene {
    pub lab: Lab,
    pub node: Arc<Node>,
    pub daemon: Option<Daemon>,
    environment: Vec<(String, String)>,
    listener: Option<UnixListener>,
    /// Runs the daemon instead of its own file: a shell script that ends in `exec "$@"`.
    wrapper: Option<String>,
}

impl Scene {
    /// A node of this type in a lab without delays, its daemon serving.
    pub fn new(instance_type: &str) -> Self {
        let mut scene = Self::stage(Lab::builder(), instance_type, &[]);
        scene.start();
        scene
    }

    /// The same with settings of the daemon.
    pub fn with_env(instance_type: &str, environment: &[(&str, &str)]) -> Self {
        let mut scene = Self::stage(Lab::builder(), instance_type, environment);
        scene.start();
        scene
    }

    /// Everything but the daemon, so that faults can be arranged first.
    pub fn stage(builder: LabBuilder, instance_type: &str, environment: &[(&str, &str)]) -> Self {
        Self::stage_with(builder, NodeSpec::new("a", instance_type), |_| {}, environment)
    }

    /// The same with everything about the node to be chosen but its name.
    pub fn stage_with(
        builder: LabBuilder,
        spec: NodeSpec,
        launch: Customize,
        environment: &[(&str, &str)],
    ) -> Self {
        let lab = builder.node_with(spec, launch).build().unwrap();
        let node = lab.node("a").unwrap();
        node.install(Path::new(env!("CARGO_BIN_EXE_aws-cni"))).unwrap();
        let listener = UnixListener::bind(node.dirs().socket()).unwrap();
        let owned = |(name, value): &(&str, &str)| ((*name).to_owned(), (*value).to_owned());
        Self {
            lab,
            node,
            daemon: None,
            environment: environment.iter().map(owned).collect(),
            listener: Some(listener),
            wrapper: None,
        }
    }

    /// From now on nobody holds the socket while the daemon is away: it makes its own.
    pub fn without_socket_activation(&mut self) {
        self.listener = None;
    }

    /// From its next start the daemon runs in a mount namespace of its own, after this shell script.
    pub fn prepare_mounts(&mut self, script: &str) {
        self.wrapper = Some(script.to_owned());
    }

    /// The daemon's program and environment on this node.
    pub fn spec(&self) -> DaemonSpec {
        let spec = match &self.wrapper {
            None => self.node.ipamd_spec(),
            Some(script) => self
                .node
                .daemon_spec("unshare")
                .arg("--mount")
                .arg("sh")
                .arg("-ec")
                .arg(format!("{script}\nexec \"$@\""))
                .arg("sh")
                .arg(self.node.dirs().bin.join("ipamd")),
        };
        let spec = self
            .environment
            .iter()
            .fold(spec, |spec, (name, value)| spec.env(name, value));
        match &self.listener {
            Some(listener) => spec.listener(listener.try_clone().unwrap()),
            None => spec,
        }
    }

    /// `ipamd` with these arguments, on the node and with the daemon's environment.
    pub fn ipamd(&self, arguments: &[&str]) -> Output {
        let spec = self.spec();
        let mut command = Command::new(self.node.dirs().bin.join("ipamd"));
        command.args(arguments).env_clear().envs(spec.environment());
        let run = move || command.output().unwrap();
        self.node.netns().run(run).unwrap()
    }

    /// Another value for a setting, from the next start on.
    pub fn set_env(&mut self, name: &str, value: &str) {
        self.environment.retain(|(known, _)| known != name);
        self.environment.push((name.to_owned(), value.to_owned()));
    }

    /// Starts the daemon and waits for `READY=1`.
    pub fn start(&mut self) {
        self.launch();
        if let Err(error) = self.daemon().wait_ready(PATIENCE) {
            panic!("not ready: {error}\n{}", self.daemon().log());
        }
    }

    /// Starts the daemon and waits for nothing.
    pub fn launch(&mut self) {
        // The last one goes first: its end removes the notification socket, which has the same name.
        self.daemon = None;
        self.daemon = Some(self.node.start(self.spec()).unwrap());
    }

    /// The daemon, which must have been started.
    pub fn daemon(&self) -> &Daemon {
        self.daemon.as_ref().unwrap()
    }

    /// `kill -9`; the socket stays.
    pub fn kill(&mut self) {
        self.daemon.take().unwrap().kill().unwrap();
    }

    /// `kill -9` and start again.
    pub fn restart(&mut self) {
        self.kill();
        self.start();
    }

    /// This many new pods, not added yet.
    pub fn pods(&self, prefix: &str, count: usize) -> Vec<Pod> {
        let pod = |index| self.node.pod("default", &format!("{prefix}-{index}")).unwrap();
        (0..count).map(pod).collect()
    }

    /// ADDs them, this many at a time; every one must succeed.
    pub fn add(&self, pods: &[Pod], at_once: usize) {
        let outcomes = side_by_side(pods, at_once, |pod| pod.add().unwrap());
        for (pod, outcome) in pods.iter().zip(&outcomes) {
            assert!(
                outcome.succeeded(),
                "ADD of {}: {}\n{}",
                pod.label(),
                said(outcome),
                self.log()
            );
        }
    }

    /// ADDs them all at once, does something once each has been accepted, and waits; every one must succeed.
    pub fn add_during(&self, pods: &[Pod], meanwhile: impl FnOnce()) {
        let accepted = |status: &Value| ["waiting", "assigned"].map(|what| status[what].as_u64().unwrap());
        std::thread::scope(|scope| {
            let adds: Vec<_> = pods
                .iter()
                .map(|pod| scope.spawn(|| pod.add().unwrap()))
                .collect();
            self.wait_for("every ADD to be accepted", |status| {
                accepted(status).iter().sum::<u64>() == pods.len() as u64
            });
            meanwhile();
            for add in adds {
                let outcome = add.join().unwrap();
                assert!(outcome.succeeded(), "{}\n{}", said(&outcome), self.log());
            }
        });
    }

    /// New pods whose ADDs wait this many seconds, not added yet.
    pub fn patient_pods(&self, prefix: &str, count: usize, seconds: u64) -> Vec<Pod> {
        let mut runtime = self.node.runtime();
        runtime.conflist = runtime.conflist.env("AWS_CNI_ADD_DEADLINE", seconds.to_string());
        let runtime = Arc::new(runtime);
        let pod = |index| {
            let name = format!("{prefix}-{index}");
            self.node.pod_of(Arc::clone(&runtime), "default", &name).unwrap()
        };
        (0..count).map(pod).collect()
    }

    /// Whether the pod exchanges a message with a host of the VPC's second network, which sees the pod's own address:
    /// the VPC drops what leaves by the wrong ENI.
    pub fn reaches_out(&self, pod: &Pod) -> bool {
        let target = self.lab.second_vpc().address;
        let seen = exchange(&pod.netns().unwrap(), Protocol::Udp, target, PATIENCE);
        seen.is_ok_and(|seen| Some(seen.ip()) == pod.ip_address())
    }

    /// DELs them, this many at a time; every one must succeed.
    pub fn del(&self, pods: &[Pod], at_once: usize) {
        let outcomes = side_by_side(pods, at_once, |pod| pod.del().unwrap());
        for (pod, outcome) in pods.iter().zip(&outcomes) {
            assert!(
                outcome.succeeded(),
                "DEL of {}: {}\n{}",
                pod.label(),
                said(outcome),
                self.log()
            );
        }
    }

    /// What the daemon answers to `Status`.
    pub fn status(&self) -> Value {
        self.node.call_ipamd("Status", &json!({})).unwrap()
    }

    /// One number of [`Scene::status`].
    pub fn count(&self, what: &str) -> u64 {
        self.status()[what].as_u64().unwrap()
    }

    /// What the daemon answers to `Dump`.
    pub fn dump(&self) -> Value {
        self.node.call_ipamd("Dump", &json!({})).unwrap()
    }

    /// Waits until nothing is on its way and nobody waits.
    pub fn settle(&self) -> Value {
        self.wait_for("growth to end", |status| {
            status["coming"] == 0 && status["waiting"] == 0
        })
    }

    /// Waits until the daemon's status fulfils a condition.
    pub fn wait_for(&self, what: &str, condition: impl Fn(&Value) -> bool) -> Value {
        let start = Instant::now();
        loop {
            let status = self.status();
            if condition(&status) {
                return status;
            }
            assert!(
                start.elapsed() < PATIENCE,
                "waited in vain for {what}: {status:#}\n{}",
                self.log()
            );
            std::thread::sleep(Duration::from_millis(20));
        }
    }

    /// What the daemon has logged.
    pub fn log(&self) -> String {
        self.daemon.as_ref().map(Daemon::log).unwrap_or_default()
    }

    /// Addresses for pods that EC2 has on this instance's ENIs, those of prefixes included.
    pub fn ec2_addresses(&self) -> BTreeSet<Ipv4Addr> {
        let instance = self.node.instance().clone();
        self.lab.cloud().model(|model| {
            let mine = model
                .enis()
                .values()
                .filter(|eni| eni.attachment.as_ref().is_some_and(|at| at.instance == instance));
            let of_prefixes = |eni: &Eni| -> Vec<Ipv4Addr> {
                let blocks = eni.prefixes.iter();
                blocks
                    .flat_map(|block| (0..16).map(|nth| block.nth(nth)))
                    .collect()
            };
            mine.flat_map(|eni| [eni.secondary.clone(), of_prefixes(eni)].concat())
                .collect()
        })
    }

    /// Addresses that the node's kernel routes to pods.
    pub fn pod_routes(&self) -> BTreeSet<Ipv4Addr> {
        let routes = self.node.ip_json(&["route", "show", "table", "all"]).unwrap();
        let ours = |route: &&Value| route["table"] == "512";
        let routes = routes.as_array().unwrap().iter().filter(ours);
        routes
            .map(|route| route["dst"].as_str().unwrap().parse().unwrap())
            .collect()
    }

    /// Runs a shell script in the node's network namespace and returns what it prints.
    pub fn on_node(&self, script: &str) -> String {
        let run = || Command::new("sh").args(["-c", script]).output().unwrap();
        let output = self.node.netns().run(run).unwrap();
        let complaint = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "{script}: {complaint}");
        String::from_utf8(output.stdout).unwrap()
    }

    /// Waits until something holds; for what no event tells of.
    pub fn eventually(&self, what: &str, holds: impl Fn() -> bool) {
        let start = Instant::now();
        while !holds() {
            assert!(
                start.elapsed() < PATIENCE,
                "waited in vain for {what}\n{}",
                self.log()
            );
            std::thread::sleep(Duration::from_millis(20));
        }
    }

    /// What can be made to go wrong.
    pub fn faults(&self) -> &Faults {
        self.lab.cloud().faults()
    }

    /// The ENIs EC2 has attached to this instance, by device index.
    pub fn attached_enis(&self) -> Vec<Eni> {
        let mut enis: Vec<Eni> = self.all_enis();
        enis.retain(|eni| eni.attachment.is_some());
        enis.sort_by_key(|eni| eni.attachment.as_ref().map(|at| at.device));
        enis
    }

    /// Every ENI EC2 has; the lab has but one instance.
    pub fn all_enis(&self) -> Vec<Eni> {
        let clones =
            |enis: &aws_cni_lab::vpc::journal::View| enis.values().map(|eni| Eni::clone(eni)).collect();
        self.lab.cloud().model(|model| clones(model.enis()))
    }

    /// A point in the call log.
    pub fn mark(&self) -> u64 {
        self.lab.cloud().calls().mark()
    }

    /// EC2 calls of an action since a mark, refused and lost ones included.
    pub fn calls_since(&self, mark: u64, action: &str) -> Vec<Call> {
        let mut calls = self.lab.cloud().calls().since(mark);
        calls.retain(|call| call.service == Service::Ec2 && call.action == action);
        calls
    }

    /// Waits until every ENI is attached, wired and goes with the instance, this many addresses are there in all, and
    /// nothing is on its way.
    pub fn settle_at(&self, total: u64) -> Value {
        self.wait_until(&format!("{total} addresses and nothing under way"), || {
            let status = self.status();
            let sum: u64 = ["free", "assigned", "cooling"]
                .iter()
                .map(|what| status[*what].as_u64().unwrap())
                .sum();
            let tidy = |eni: &Eni| eni.attachment.as_ref().is_some_and(|at| at.delete_on_termination);
            (sum == total
                && status["coming"] == 0
                && status["waiting"] == 0
                && self.all_enis().iter().all(tidy))
            .then_some(status)
        })
    }

    /// Waits until something is there.
    pub fn wait_until<T>(&self, what: &str, mut look: impl FnMut() -> Option<T>) -> T {
        let start = Instant::now();
        loop {
            if let Some(found) = look() {
                return found;
            }
            assert!(
                start.elapsed() < PATIENCE,
                "waited in vain for {what}: {:#}\n{}",
                self.dump(),
                self.log()
            );
            std::thread::sleep(Duration::from_millis(20));
        }
    }

    /// No ENI that the daemon made is left over: each is attached to this instance, and there are no more than may be.
    pub fn check_enis(&self, at_most: usize) {
        self.eventually("every ENI to be attached", || {
            self.lab.cloud().model(|model| {
                let attached = |eni: &Arc<Eni>| eni.attachment.is_some();
                model.enis().values().all(attached) && model.enis().values().count() <= at_most
            })
        });
    }

    /// Waits until a node without pods shows none: kernel, daemon and EC2 agree.
    pub fn check_empty(&self, at_most_enis: usize) {
        self.eventually("the kernel to be clean", || {
            self.pod_routes().is_empty() && self.pod_links().is_empty()
        });
        self.check(&[]);
        self.check_enis(at_most_enis);
    }

    /// Names of the pods' links on the node.
    pub fn pod_links(&self) -> Vec<String> {
        let names = self.node.links().unwrap().into_iter().map(|link| link.name);
        names.filter(|name| name.starts_with("eni")).collect()
    }

    /// What the daemon records of an allocation.
    pub fn allocation(&self, address: Ipv4Addr) -> Value {
        let dump = self.dump();
        let all = dump["allocations"].as_array().unwrap();
        let held = all.iter().find(|held| held["address"] == address.to_string());
        held.unwrap_or_else(|| panic!("nobody has {address}: {dump:#}"))
            .clone()
    }

    /// What the daemon records of an address.
    pub fn address(&self, address: impl Into<IpAddr>) -> Value {
        let address = address.into();
        let dump = self.dump();
        let all = dump["addresses"].as_array().unwrap();
        let known = all.iter().find(|known| known["address"] == address.to_string());
        known
            .unwrap_or_else(|| panic!("{address} is not known: {dump:#}"))
            .clone()
    }

    /// The invariants that hold at any moment for these live pods: different addresses, all of them EC2's, and the
    /// daemon counts exactly them.
    pub fn check(&self, live: &[Pod]) {
        let addresses: Vec<Ipv4Addr> = live.iter().filter_map(Pod::address).collect();
        let different: BTreeSet<Ipv4Addr> = addresses.iter().copied().collect();
        assert_eq!(addresses.len(), live.len(), "every live pod has an address");
        assert_eq!(
            different.len(),
            addresses.len(),
            "no address has two pods: {addresses:?}"
        );
        let owned = self.ec2_addresses();
        let foreign: Vec<_> = different.difference(&owned).collect();
        assert!(foreign.is_empty(), "EC2 does not know {foreign:?}");
        assert_eq!(self.count("assigned"), live.len() as u64, "{:#}", self.status());
    }
}

/// What the pods have.
pub fn addresses(pods: &[Pod]) -> BTreeSet<Ipv4Addr> {
    pods.iter().filter_map(Pod::address).collect()
}

/// What a plugin said, for failure messages.
pub fn said(outcome: &CniOutcome) -> String {
    format!("{}{}", outcome.stdout, outcome.stderr)
}

/// What a refused ADD says; it must be refused.
pub fn refused(pod: &Pod) -> (u64, String) {
    let outcome = pod.add().unwrap();
    assert!(!outcome.succeeded(), "ADD of {}: {}", pod.label(), said(&outcome));
    let error = outcome.result().unwrap();
    (
        outcome.error_code().unwrap(),
        error["msg"].as_str().unwrap().to_owned(),
    )
}

/// Names of the links in a pod's namespace.
pub fn links_in(pod: &Pod) -> Vec<String> {
    let read = || std::fs::read_to_string("/proc/thread-self/net/dev").unwrap();
    let table = pod.netns().unwrap().run(read).unwrap();
    let names = table.lines().skip(2).filter_map(|line| line.split(':').next());
    names.map(|name| name.trim().to_owned()).collect()
}
