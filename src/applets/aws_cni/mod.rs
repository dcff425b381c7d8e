//! The `aws-cni` plugin: asks the daemon for an address and wires the pod.

mod add;
mod check;
mod del;
mod failure;
mod gc;
mod host_ports;
mod kernel;
mod status;

use std::path::PathBuf;
use std::process::ExitCode;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use super::{paths, plugin};
use crate::cni::args;
use crate::cni::conf::{ConfError, NetConf, seconds_text};
use crate::cni::environment::Verb;
use crate::cni::error::{CniError, Code};
use crate::cni::request::Call;
use crate::config::DEFAULT_ADD_DEADLINE;
use crate::ipam::ids::PodRef;
use crate::net::veth;
use crate::rpc::client::{Client, ClientError};
use crate::rpc::retry::Retry;
use crate::rpc::types::{Check, Del, DelReason, Released};
use crate::store::pending::{self, PendingDel};

/// How long the plugin waits beyond the deadline it announces, so that the daemon's reason arrives first.
const ANSWER_MARGIN: Duration = Duration::from_secs(1);

/// How long everything but an ADD waits; a DEL is then queued on disk instead.
const PATIENCE: Duration = Duration::from_secs(10);

/// How long an ADD waits while nobody listens: a restart without socket activation takes a fraction of it.
const ADD_ABSENCE: Duration = Duration::from_secs(5);

/// How long a release waits while nobody listens; it can be left on disk as well.
const DEL_ABSENCE: Duration = Duration::from_millis(500);

pub(super) fn run(args: &[String]) -> ExitCode {
    plugin::run("aws-cni", "AWS CNI", args, serve)
}

fn serve(call: &Call) -> Result<String, CniError> {
    let outcome = Session::open(call).and_then(|session| match call.verb {
        Verb::Add => add::run(&session),
        Verb::Del => del::run(&session),
        Verb::Check => check::run(&session),
        Verb::Status => status::run(&session),
        Verb::Gc => gc::run(&session),
    });
    let environment = &call.environment;
    match &outcome {
        Ok(_) => tracing::debug!(
            verb = environment.command,
            container = environment.container_id,
            "done"
        ),
        Err(error) => tracing::error!(
            verb = environment.command,
            container = environment.container_id,
            cni_code = error.code.number(),
            "{error}"
        ),
    }
    outcome
}

/// One call with everything that was read for it.
#[derive(Debug)]
struct Session<'a> {
    call: &'a Call,
    conf: NetConf,
    pod: PodRef,
    /// The host end's name and the hash in it.
    host_veth: String,
    hash: String,
    socket: PathBuf,
    state_dir: PathBuf,
}

impl<'a> Session<'a> {
    fn open(call: &'a Call) -> Result<Self, CniError> {
        let conf = load_conf(call)?;
        plugin::start_log("aws-cni", conf.log_file.as_deref(), &conf.log_level);
        let pod = args::parse(&call.environment.args).map_err(|error| bad_args(call.verb, &error))?;
        let (namespace, name) = identity(&pod, &call.environment.container_id);
        Ok(Self {
            host_veth: veth::host_name(&conf.veth_prefix, namespace, name, 0),
            hash: veth::host_name("", namespace, name, 0),
            socket: paths::socket(),
            state_dir: paths::state_dir(),
            call,
            conf,
            pod,
        })
    }

    fn connect(&self, patience: Duration) -> Result<Client, ClientError> {
        Client::connect(&self.socket, patience)
    }

    /// Asks the daemon to release what this sandbox holds; `while_pending` is done while that is being written, for
    /// each attempt that gets so far.
    fn release(
        &self,
        reason: DelReason,
        mut while_pending: impl FnMut(&Released),
    ) -> Result<(), ClientError> {
        Retry::new(PATIENCE, DEL_ABSENCE).ask(|patience| {
            let (released, pending) = self.connect(patience)?.del(self.del_request(reason))?;
            while_pending(&released);
            pending.settled()
        })
    }

    fn del_request(&self, reason: DelReason) -> Del {
        Del {
            network: self.conf.name.as_str().into(),
            container_id: self.call.environment.container_id.as_str().into(),
            ifname: self.call.environment.ifname.as_str().into(),
            pod: self.pod.clone(),
            reason,
        }
    }

    /// Where DELs are left for a daemon that is away.
    fn pending_dels(&self) -> PathBuf {
        self.state_dir.join(pending::DIRECTORY)
    }

    /// What is left there of this sandbox.
    fn pending_del(&self) -> PendingDel {
        let environment = &self.call.environment;
        PendingDel {
            pod_namespace: self.pod.namespace.clone(),
            pod_name: self.pod.name.clone(),
            host_veth: Some(self.host_veth.clone()),
            at_unix: SystemTime::now()
                .duration_since(UNIX_EPOCH)
                .map_or(0, |since| since.as_secs()),
            ..PendingDel::new(&self.conf.name, &environment.container_id, &environment.ifname)
        }
    }

    fn check_request(&self) -> Check {
        Check {
            network: self.conf.name.as_str().into(),
            container_id: self.call.environment.container_id.as_str().into(),
            ifname: self.call.environment.ifname.as_str().into(),
        }
    }

    /// The environment is for one host or one test; the conflist for all.
    fn add_deadline(&self) -> Duration {
        std::env::var("AWS_CNI_ADD_DEADLINE")
            .ok()
            .and_then(|text| seconds_text(&text))
            .or(self.conf.add_deadline)
            .unwrap_or(DEFAULT_ADD_DEADLINE)
    }
}

/// What the host end is named after. Without a Kubernetes pod upstream hashes two empty names, so that a second such
/// sandbox takes the first one's interface away; the sandbox's own id keeps them apart.
fn identity<'a>(pod: &'a PodRef, container_id: &'a str) -> (&'a str, &'a str) {
    if pod.namespace.is_empty() && pod.name.is_empty() {
        return ("", container_id);
    }
    (&pod.namespace, &pod.name)
}

fn load_conf(call: &Call) -> Result<NetConf, CniError> {
    NetConf::parse(&call.stdin, call.version).map_err(|error| {
        let prefix = "cmd: error loading config from args";
        // Upstream's loader says its own prefix first when a key has the wrong type.
        let loader = match &error {
            ConfError::Type(_) => "add cmd: error loading config from args: ",
            ConfError::VethPrefix | ConfError::Previous(_) => "",
        };
        let verb = verb_word(call.verb);
        CniError::new(Code::Internal, format!("{verb} {prefix}: {loader}{error}"))
    })
}

fn bad_args(verb: Verb, error: &args::ArgsError) -> CniError {
    let arg = if verb == Verb::Add { "arg" } else { "args" };
    let verb = verb_word(verb);
    CniError::new(
        Code::Internal,
        format!("{verb} cmd: failed to load k8s config from {arg}: {error}"),
    )
}

fn verb_word(verb: Verb) -> &'static str {
    match verb {
        Verb::Add => "add",
        Verb::Del => "del",
        Verb::Check => "check",
        Verb::Status => "status",
        Verb::Gc => "gc",
    }
}
