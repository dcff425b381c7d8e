//! One node with its daemon, and sandboxes for its pods.

use std::os::unix::net::UnixListener;
use std::path::PathBuf;
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use super::exec::{self, Ran};
use super::floor::Floor;
use super::{BenchError, BenchOptions, io_error};
use crate::lab::{Lab, LabBuilder};
use crate::netns::Netns;
use crate::node::Node;
use crate::process::Daemon;

/// Whatever takes longer is broken.
pub(super) const PATIENCE: Duration = Duration::from_mins(1);

/// A namespace that is a pod's sandbox again and again, under a new container id each time.
#[derive(Debug)]
pub(super) struct Sandbox {
    pub(super) netns: Netns,
    name: String,
}

/// An ADD that succeeded, and what its DEL needs.
#[derive(Debug)]
pub(super) struct Added {
    pub(super) took: Duration,
    container: String,
    result: Value,
}

/// A node under measurement.
#[derive(Debug)]
pub(super) struct Stage {
    pub(super) lab: Lab,
    pub(super) node: Arc<Node>,
    pub(super) floor: Floor,
    pub(super) daemon: Daemon,
    /// Pods that stay while others come and go.
    pub(super) present: Vec<(Sandbox, Added)>,
    listener: UnixListener,
    environment: Vec<(&'static str, &'static str)>,
    containers: AtomicU64,
}

impl Stage {
    /// A large node that owns 700 addresses from the start, so that every ADD finds one.
    pub(super) fn warm(options: &BenchOptions) -> Result<Self, BenchError> {
        let environment = vec![("WARM_ENI_TARGET", "15"), ("IP_COOLDOWN_PERIOD", "5")];
        let stage = Self::new(Lab::builder(), "m5.24xlarge", environment, options)?;
        stage.wait("700 addresses", |status| count(status, "free") >= 700)?;
        Ok(stage)
    }

    /// A node of this type, its daemon serving.
    pub(super) fn new(
        lab: LabBuilder,
        instance_type: &str,
        environment: Vec<(&'static str, &'static str)>,
        options: &BenchOptions,
    ) -> Result<Self, BenchError> {
        Self::prepared(lab, instance_type, environment, options, |_, _| Ok(()))
    }

    /// The same with something to be done before the daemon starts.
    pub(super) fn prepared(
        lab: LabBuilder,
        instance_type: &str,
        environment: Vec<(&'static str, &'static str)>,
        options: &BenchOptions,
        prepare: impl FnOnce(&Lab, &Node) -> Result<(), BenchError>,
    ) -> Result<Self, BenchError> {
        let lab = lab.node("bench", instance_type).build()?;
        let node = lab.node("bench")?;
        node.install(&options.binary)?;
        prepare(&lab, &node)?;
        let listener = UnixListener::bind(node.dirs().socket()).map_err(io_error("listening"))?;
        let daemon = start(&node, &listener, &environment)?;
        daemon.wait_ready(PATIENCE)?;
        Ok(Self {
            lab,
            node,
            floor: Floor(options.floor.clone()),
            daemon,
            present: Vec::new(),
            listener,
            environment,
            containers: AtomicU64::new(0),
        })
    }

    /// Kills the daemon, starts it again, and says how long the first answer took from there.
    pub(super) fn restart(&mut self) -> Result<Duration, BenchError> {
        self.daemon.kill()?;
        let started = Instant::now();
        self.daemon = start(&self.node, &self.listener, &self.environment)?;
        self.status()?;
        Ok(started.elapsed())
    }

    /// How long it takes to start something that ends at once in the way the daemon is started.
    pub(super) fn restart_of_nothing(&self, hello: &std::path::Path) -> Result<Duration, BenchError> {
        let started = Instant::now();
        self.node.start(self.node.daemon_spec(hello))?.wait(PATIENCE)?;
        Ok(started.elapsed())
    }

    pub(super) fn status(&self) -> Result<Value, BenchError> {
        Ok(self.node.call_ipamd("Status", &json!({}))?)
    }

    pub(super) fn wait(&self, what: &str, holds: impl Fn(&Value) -> bool) -> Result<Value, BenchError> {
        let started = Instant::now();
        loop {
            let status = self.status()?;
            if holds(&status) {
                return Ok(status);
            }
            if started.elapsed() > PATIENCE {
                return Err(BenchError::Wrong(format!("waited in vain for {what}: {status}")));
            }
            std::thread::sleep(Duration::from_millis(10));
        }
    }

    /// Brings the number of pods that stay to `count`.
    pub(super) fn populate(&mut self, count: usize) -> Result<(), BenchError> {
        let new = sandboxes(&format!("of-{count}"), count.saturating_sub(self.present.len()))?;
        let node = self.node.netns().clone();
        for sandbox in new {
            let added = node.run(|| self.add(&sandbox))??;
            self.present.push((sandbox, added));
        }
        self.check(self.present.len())
    }

    /// ADD; the calling thread is in the node's namespace.
    pub(super) fn add(&self, sandbox: &Sandbox) -> Result<Added, BenchError> {
        let container = format!("{:064x}", self.containers.fetch_add(1, Ordering::Relaxed));
        let Ran { took, stdout } = self.plugin("ADD", sandbox, &container, None)?;
        let result = serde_json::from_str(&stdout)
            .map_err(|error| BenchError::Wrong(format!("ADD answered {stdout:?}: {error}")))?;
        Ok(Added {
            took,
            container,
            result,
        })
    }

    /// DEL; the calling thread is in the node's namespace.
    pub(super) fn del(&self, sandbox: &Sandbox, added: &Added) -> Result<Duration, BenchError> {
        let ran = self.plugin("DEL", sandbox, &added.container, Some(&added.result))?;
        Ok(ran.took)
    }

    fn plugin(
        &self,
        verb: &str,
        sandbox: &Sandbox,
        container: &str,
        previous: Option<&Value>,
    ) -> Result<Ran, BenchError> {
        let mut configuration = json!({
            "cniVersion": "1.1.0", "name": "aws-cni", "type": "aws-cni", "mtu": "9001", "vethPrefix": "eni",
        });
        if let (Some(previous), Some(fields)) = (previous, configuration.as_object_mut()) {
            fields.insert("prevResult".to_owned(), previous.clone());
        }
        let arguments = format!(
            "IgnoreUnknown=1;K8S_POD_NAMESPACE=bench;K8S_POD_NAME={};K8S_POD_INFRA_CONTAINER_ID={container}",
            sandbox.name
        );
        let dirs = self.node.dirs();
        let mut command = Command::new(dirs.bin.join("aws-cni"));
        command
            .env_clear()
            .env("PATH", "/usr/sbin:/usr/bin:/sbin:/bin")
            .env("AWS_CNI_STATE_DIR", &dirs.state)
            .env("AWS_CNI_SOCKET", dirs.socket())
            .env("CNI_COMMAND", verb)
            .env("CNI_CONTAINERID", container)
            .env("CNI_IFNAME", "eth0")
            .env("CNI_NETNS", sandbox.netns.path())
            .env("CNI_PATH", &dirs.bin)
            .env("CNI_ARGS", arguments);
        exec::run(&mut command, &configuration.to_string())
    }

    /// The daemon counts exactly these pods.
    pub(super) fn check(&self, pods: usize) -> Result<(), BenchError> {
        let status = self.status()?;
        if count(&status, "assigned") == pods {
            return Ok(());
        }
        Err(BenchError::Wrong(format!(
            "the daemon should count {pods} pods: {status}"
        )))
    }

    /// Deletes all pods that stay.
    pub(super) fn finish(&mut self) -> Result<(), BenchError> {
        let present = std::mem::take(&mut self.present);
        let node = self.node.netns().clone();
        node.run(|| {
            present
                .iter()
                .try_for_each(|(sandbox, added)| self.del(sandbox, added).map(drop))
        })??;
        self.check(0)
    }

    /// The daemon's resident memory in KiB.
    pub(super) fn resident(&self) -> Result<usize, BenchError> {
        let path = PathBuf::from(format!("/proc/{}/status", self.daemon.pid()));
        let text = std::fs::read_to_string(path).map_err(io_error("reading the daemon's memory"))?;
        let line = text.lines().find_map(|line| line.strip_prefix("VmRSS:"));
        let number = line.and_then(|rest| rest.split_whitespace().next()?.parse().ok());
        number.ok_or_else(|| BenchError::Wrong("the daemon has no VmRSS".to_owned()))
    }

    /// The daemon's CPU time so far, all threads.
    pub(super) fn daemon_cpu(&self) -> Result<Duration, BenchError> {
        let failed = "reading the daemon's CPU time";
        let tasks =
            std::fs::read_dir(format!("/proc/{}/task", self.daemon.pid())).map_err(io_error(failed))?;
        let of_task = |path: PathBuf| -> Option<u64> {
            let text = std::fs::read_to_string(path.join("schedstat")).ok()?;
            text.split_whitespace().next()?.parse().ok()
        };
        let nanos = tasks.filter_map(|task| of_task(task.ok()?.path())).sum::<u64>();
        Ok(Duration::from_nanos(nanos))
    }
}

fn start(node: &Node, listener: &UnixListener, environment: &[(&str, &str)]) -> Result<Daemon, BenchError> {
    let listener = listener.try_clone().map_err(io_error("sharing the listener"))?;
    let spec = environment
        .iter()
        .fold(node.ipamd_spec(), |spec, (name, value)| spec.env(name, value));
    Ok(node.start(spec.listener(listener))?)
}

/// A number of the daemon's status.
pub(super) fn count(status: &Value, what: &str) -> usize {
    let number = status.get(what).and_then(Value::as_u64).unwrap_or(0);
    usize::try_from(number).unwrap_or(usize::MAX)
}

/// New namespaces for pods of these names.
pub(super) fn sandboxes(prefix: &str, count: usize) -> Result<Vec<Sandbox>, BenchError> {
    let sandbox = |index| {
        Ok(Sandbox {
            netns: Netns::new()?,
            name: format!("{prefix}-{index}"),
        })
    };
    (0..count).map(sandbox).collect()
}
