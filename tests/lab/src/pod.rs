//! Pods: a network namespace with an identity, and the runtime's side of CNI.
//!
//! A plugin is called as a runtime calls it (CNI spec 1.1, section 2 and 3): one process for each plugin of the list,
//! parameters in the environment, configuration on standard input, the result of the one before handed to the next,
//! from inside the node's namespace.

mod invoke;

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::net::{IpAddr, Ipv4Addr};
use std::path::PathBuf;
use std::sync::{Arc, Barrier, Mutex, PoisonError};
use std::thread;
use std::time::Duration;

use serde_json::Value;

pub use invoke::{CniError, CniOutcome};

use crate::fabric::{ToolError, ip_batch, ip_json};
use crate::netns::{Netns, NetnsError};
use crate::probe::{ECHO_PORT, EchoServer, Source, Target};

/// A network configuration list and how its plugins are found and run.
#[derive(Debug, Clone)]
pub struct Conflist {
    /// The list's name.
    pub name: String,
    /// The version asked for.
    pub cni_version: String,
    /// The configuration of each plugin, in order; `type` names the executable.
    pub plugins: Vec<Value>,
    /// Where executables are looked for, in order.
    pub path: Vec<PathBuf>,
    /// Variables the plugins get besides those of CNI.
    pub environment: BTreeMap<OsString, OsString>,
    /// After how long a plugin is killed.
    pub deadline: Duration,
}

impl Conflist {
    /// The list the lab's nodes use: `aws-cni` alone, in version 1.1.0.
    pub fn aws_cni(path: PathBuf) -> Self {
        Self {
            name: "aws-cni".to_owned(),
            cni_version: "1.1.0".to_owned(),
            plugins: vec![serde_json::json!({ "type": "aws-cni", "mtu": "9001", "vethPrefix": "eni" })],
            path: vec![path],
            environment: BTreeMap::new(),
            deadline: Duration::from_mins(2),
        }
    }

    /// Sets a variable for every plugin.
    #[must_use]
    pub fn env(mut self, name: impl Into<OsString>, value: impl Into<OsString>) -> Self {
        self.environment.insert(name.into(), value.into());
        self
    }
}

/// A container runtime's view of one node: where plugins run and by which list.
#[derive(Debug, Clone)]
pub struct Runtime {
    /// The node's namespace.
    pub node: Netns,
    /// The list.
    pub conflist: Conflist,
}

/// Who a pod is.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct PodIdentity {
    /// Kubernetes namespace.
    pub namespace: String,
    /// Pod name.
    pub name: String,
    /// Pod UID.
    pub uid: String,
    /// Sandbox id.
    pub container: String,
}

impl PodIdentity {
    /// A pod whose UID and sandbox id follow from its name and the number of its sandbox.
    pub fn new(namespace: &str, name: &str, sandbox: u64) -> Self {
        let tail = format!("{namespace}-{name}").bytes().fold(sandbox, |hash, byte| {
            // FNV-1a; any spread will do.
            (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3)
        });
        Self {
            namespace: namespace.to_owned(),
            name: name.to_owned(),
            uid: format!("00000000-0000-4000-8000-{:012x}", tail & 0xffff_ffff_ffff),
            container: format!("{tail:016x}{sandbox:048x}"),
        }
    }
}

/// A pod's sandbox.
#[derive(Debug)]
pub struct Pod {
    identity: PodIdentity,
    ifname: String,
    runtime: Arc<Runtime>,
    netns: Mutex<Option<Netns>>,
    netns_path: PathBuf,
    result: Mutex<Option<Value>>,
    echo: Mutex<Option<EchoServer>>,
}

impl Pod {
    /// Makes the sandbox; no plugin runs yet.
    pub fn new(runtime: Arc<Runtime>, identity: PodIdentity) -> Result<Self, NetnsError> {
        let netns = Netns::new()?;
        Ok(Self {
            identity,
            ifname: "eth0".to_owned(),
            runtime,
            netns_path: netns.path(),
            netns: Mutex::new(Some(netns)),
            result: Mutex::default(),
            echo: Mutex::default(),
        })
    }

    /// Who it is.
    pub fn identity(&self) -> &PodIdentity {
        &self.identity
    }

    /// `namespace/name`.
    pub fn label(&self) -> String {
        format!("{}/{}", self.identity.namespace, self.identity.name)
    }

    /// Its namespace, unless it was lost.
    pub fn netns(&self) -> Option<Netns> {
        lock(&self.netns).clone()
    }

    /// What `ip -json …` says in the pod; nothing when its namespace was lost.
    pub fn ip_json(&self, arguments: &[&str]) -> Result<Value, ToolError> {
        self.netns()
            .map_or(Ok(Value::Null), |netns| ip_json(&netns, arguments))
    }

    /// Runs a script of `ip` commands in the pod, stopping at the first that fails.
    pub fn ip(&self, script: &str) -> Result<(), ToolError> {
        self.netns().map_or(Ok(()), |netns| ip_batch(&netns, script))
    }

    /// Runs ADD through the whole list and keeps the result. It stops at the first plugin that fails.
    pub fn add(&self) -> Result<CniOutcome, CniError> {
        let outcome = self.cni("ADD")?;
        if outcome.succeeded() {
            *lock(&self.result) = outcome.result();
        }
        Ok(outcome)
    }

    /// Runs DEL through the whole list, last plugin first; on success the kept result is forgotten.
    pub fn del(&self) -> Result<CniOutcome, CniError> {
        let outcome = self.cni("DEL")?;
        if outcome.succeeded() {
            *lock(&self.result) = None;
        }
        Ok(outcome)
    }

    /// Runs CHECK through the whole list.
    pub fn check(&self) -> Result<CniOutcome, CniError> {
        self.cni("CHECK")
    }

    /// Runs any verb through the list as it would be for this pod, and keeps nothing.
    pub fn cni(&self, verb: &str) -> Result<CniOutcome, CniError> {
        self.runtime
            .run(verb, &self.parameters(), lock(&self.result).clone())
    }

    /// The CNI variables of this pod; `CNI_COMMAND` and `CNI_PATH` are added for each call.
    pub fn parameters(&self) -> BTreeMap<String, String> {
        let id = &self.identity;
        let arguments = format!(
            "IgnoreUnknown=1;K8S_POD_NAMESPACE={};K8S_POD_NAME={};K8S_POD_INFRA_CONTAINER_ID={};K8S_POD_UID={}",
            id.namespace, id.name, id.container, id.uid
        );
        let mut parameters = BTreeMap::from([
            ("CNI_CONTAINERID".to_owned(), id.container.clone()),
            ("CNI_IFNAME".to_owned(), self.ifname.clone()),
            ("CNI_ARGS".to_owned(), arguments),
        ]);
        if self.netns_path != PathBuf::new() {
            parameters.insert("CNI_NETNS".to_owned(), self.netns_path.display().to_string());
        }
        parameters
    }

    /// The result of the last ADD, as a runtime caches it.
    pub fn result(&self) -> Option<Value> {
        lock(&self.result).clone()
    }

    /// Replaces the cached result, as a runtime that lost or garbled its cache would.
    pub fn set_result(&self, result: Option<Value>) {
        *lock(&self.result) = result;
    }

    /// The IPv4 address of the last ADD's result.
    pub fn address(&self) -> Option<Ipv4Addr> {
        invoke::first_address(lock(&self.result).as_ref()?)
    }

    /// The address of the last ADD's result, of whatever family.
    pub fn ip_address(&self) -> Option<IpAddr> {
        invoke::first_address(lock(&self.result).as_ref()?)
    }

    /// Ends the namespace, as when the sandbox's processes died before DEL. Its path leads nowhere afterwards.
    pub fn lose_netns(&self) {
        drop(lock(&self.echo).take());
        drop(lock(&self.netns).take());
    }

    /// Starts the pod's echo server on [`ECHO_PORT`].
    pub fn serve_echo(&self) -> Result<(), crate::probe::EchoError> {
        if let Some(netns) = self.netns() {
            *lock(&self.echo) = Some(EchoServer::start(&netns, ECHO_PORT)?);
        }
        Ok(())
    }

    /// The pod as a starting point of exchanges.
    pub fn source(&self) -> Option<Source> {
        Some(Source {
            name: self.label(),
            netns: self.netns()?,
        })
    }

    /// The pod's echo server as a target of exchanges.
    pub fn target(&self) -> Option<Target> {
        Some(Target {
            name: self.label(),
            address: (self.ip_address()?, ECHO_PORT).into(),
        })
    }
}

/// Runs `work` for every item, at most `at_once` side by side, and returns the answers in the order of the items.
///
/// All of the first `at_once` start together, so that a burst is one.
///
/// # Panics
/// Hands on a panic of `work`.
pub fn side_by_side<I: Sync, T: Send>(items: &[I], at_once: usize, work: impl Fn(&I) -> T + Sync) -> Vec<T> {
    let next = std::sync::atomic::AtomicUsize::new(0);
    let workers = at_once.clamp(1, items.len().max(1));
    let start = Barrier::new(workers);
    let run = || {
        let mut done = Vec::new();
        start.wait();
        loop {
            let index = next.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
            let Some(item) = items.get(index) else { return done };
            done.push((index, work(item)));
        }
    };
    let mut answers: Vec<(usize, T)> = thread::scope(|scope| {
        let running: Vec<_> = (0..workers).map(|_| scope.spawn(run)).collect();
        running
            .into_iter()
            .flat_map(|worker| {
                worker
                    .join()
                    .unwrap_or_else(|panic| std::panic::resume_unwind(panic))
            })
            .collect()
    });
    answers.sort_by_key(|(index, _)| *index);
    answers.into_iter().map(|(_, answer)| answer).collect()
}

fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
