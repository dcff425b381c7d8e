//! Running the plugins of a list for one verb.

use std::collections::BTreeMap;
use std::io;
use std::net::Ipv4Addr;
use std::path::PathBuf;
use std::process::{Child, Command, Output};
use std::str::FromStr;
use std::sync::mpsc::{self, RecvTimeoutError};
use std::thread;
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::{Map, Value};

use super::{Conflist, Runtime};
use crate::fabric::spawn_with_input;
use crate::netns::NetnsError;

/// Why a plugin could not even be run; a plugin that ran and failed is a [`CniOutcome`].
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum CniError {
    /// The node's namespace could not be entered.
    #[error(transparent)]
    Netns(#[from] NetnsError),
    /// A plugin of the list has no `type`.
    #[error("plugin configuration without type: {0}")]
    NoType(Value),
    /// No directory of the path has the executable.
    #[error("plugin {name} is in none of {path:?}")]
    NotFound {
        /// The plugin's type.
        name: String,
        /// Where it was looked for.
        path: Vec<PathBuf>,
    },
    /// The executable could not be run.
    #[error("running {program}: {error}", program = program.display())]
    Run {
        /// Which.
        program: PathBuf,
        /// Why not.
        error: io::Error,
    },
}

/// What a plugin answered: the last of the list, or the one that failed.
#[derive(Debug, Clone)]
pub struct CniOutcome {
    /// Which plugin.
    pub plugin: String,
    /// Its exit code; none when a signal ended it.
    pub exit_code: Option<i32>,
    /// Its standard output.
    pub stdout: String,
    /// Its standard error.
    pub stderr: String,
    /// From starting a plugin to its end, all plugins of the list together.
    pub took: Duration,
}

impl CniOutcome {
    /// Whether every plugin exited with 0.
    pub fn succeeded(&self) -> bool {
        self.exit_code == Some(0)
    }

    /// Standard output as JSON.
    pub fn result(&self) -> Option<Value> {
        serde_json::from_str(&self.stdout).ok()
    }

    /// The CNI error code on standard output, when the plugin failed as the specification wants.
    pub fn error_code(&self) -> Option<u64> {
        self.result()?.get("code")?.as_u64()
    }

    /// The first IPv4 address of the result.
    pub fn address(&self) -> Option<Ipv4Addr> {
        first_address(&self.result()?)
    }
}

pub(super) fn first_address<A: FromStr>(result: &Value) -> Option<A> {
    // Up to 0.2.0 a result had `ip4.ip`, since 0.3.0 it has `ips[].address`.
    let ips = result.get("ips").and_then(Value::as_array).into_iter().flatten();
    let new = ips.filter_map(|ip| ip.get("address")?.as_str());
    let old = result.get("ip4").and_then(|ip| ip.get("ip")?.as_str());
    new.chain(old)
        .find_map(|text| text.split('/').next()?.parse().ok())
}

impl Runtime {
    /// Runs a verb through the list, in reverse for DEL, with the parameters of a sandbox.
    pub fn run(
        &self,
        verb: &str,
        parameters: &BTreeMap<String, String>,
        cached: Option<Value>,
    ) -> Result<CniOutcome, CniError> {
        let mut took = Duration::ZERO;
        let mut previous = cached.filter(|_| verb != "ADD");
        let mut last = CniOutcome {
            plugin: String::new(),
            exit_code: Some(0),
            stdout: String::new(),
            stderr: String::new(),
            took: Duration::ZERO,
        };
        for plugin in self.order(verb) {
            let configuration = self.conflist.configuration(plugin, previous.as_ref());
            last = self.run_one(verb, plugin, parameters, &configuration.to_string())?;
            took += last.took;
            if !last.succeeded() {
                break;
            }
            if verb == "ADD" {
                previous = last.result();
            }
        }
        last.took = took;
        Ok(last)
    }

    /// Runs one plugin with exactly this standard input and these parameters: for tests of malformed input.
    pub fn run_raw(
        &self,
        plugin: &str,
        parameters: &BTreeMap<String, String>,
        input: &str,
    ) -> Result<CniOutcome, CniError> {
        let program = self.conflist.find(plugin)?;
        let mut command = Command::new(&program);
        command
            .env_clear()
            .env("PATH", std::env::var_os("PATH").unwrap_or_default())
            .envs(&self.conflist.environment)
            .envs(parameters);
        let (output, took) = self
            .node
            .run(|| run_with_input(&mut command, input, self.conflist.deadline))?
            .map_err(|error| CniError::Run { program, error })?;
        Ok(CniOutcome {
            plugin: plugin.to_owned(),
            exit_code: output.status.code(),
            stdout: String::from_utf8_lossy(&output.stdout).into_owned(),
            stderr: String::from_utf8_lossy(&output.stderr).into_owned(),
            took,
        })
    }

    /// VERSION of the first plugin.
    pub fn version(&self) -> Result<CniOutcome, CniError> {
        self.run("VERSION", &BTreeMap::new(), None)
    }

    /// STATUS of the list.
    pub fn status(&self) -> Result<CniOutcome, CniError> {
        self.run("STATUS", &BTreeMap::new(), None)
    }

    /// GC of the list: all attachments but these, each a container id and an interface name, are to go.
    pub fn gc(&self, valid: &[(&str, &str)]) -> Result<CniOutcome, CniError> {
        let attachments: Vec<Value> = valid
            .iter()
            .map(|(container, ifname)| serde_json::json!({ "containerID": container, "ifname": ifname }))
            .collect();
        let mut runtime = self.clone();
        for plugin in &mut runtime.conflist.plugins {
            if let Value::Object(fields) = plugin {
                fields.insert(
                    "cni.dev/valid-attachments".to_owned(),
                    Value::Array(attachments.clone()),
                );
            }
        }
        runtime.run("GC", &BTreeMap::new(), None)
    }

    fn order(&self, verb: &str) -> Box<dyn Iterator<Item = &Value> + '_> {
        if verb == "DEL" {
            Box::new(self.conflist.plugins.iter().rev())
        } else {
            Box::new(self.conflist.plugins.iter())
        }
    }

    fn run_one(
        &self,
        verb: &str,
        plugin: &Value,
        parameters: &BTreeMap<String, String>,
        input: &str,
    ) -> Result<CniOutcome, CniError> {
        let name = plugin
            .get("type")
            .and_then(Value::as_str)
            .ok_or_else(|| CniError::NoType(plugin.clone()))?;
        let path: Vec<_> = self
            .conflist
            .path
            .iter()
            .map(|dir| dir.display().to_string())
            .collect();
        let mut parameters = parameters.clone();
        parameters.insert("CNI_COMMAND".to_owned(), verb.to_owned());
        parameters.insert("CNI_PATH".to_owned(), path.join(":"));
        self.run_raw(name, &parameters, input)
    }
}

impl Conflist {
    fn find(&self, plugin: &str) -> Result<PathBuf, CniError> {
        let candidates = self.path.iter().map(|dir| dir.join(plugin));
        candidates
            .into_iter()
            .find(|path| path.is_file())
            .ok_or_else(|| CniError::NotFound {
                name: plugin.to_owned(),
                path: self.path.clone(),
            })
    }

    fn configuration(&self, plugin: &Value, previous: Option<&Value>) -> Value {
        let mut fields = match plugin {
            Value::Object(fields) => fields.clone(),
            _ => Map::new(),
        };
        fields.insert("name".to_owned(), self.name.clone().into());
        fields.insert("cniVersion".to_owned(), self.cni_version.clone().into());
        if let Some(previous) = previous {
            fields.insert("prevResult".to_owned(), previous.clone());
        }
        Value::Object(fields)
    }
}

/// Entering the namespace is not the plugin's time, so the clock is read in here.
fn run_with_input(command: &mut Command, input: &str, deadline: Duration) -> io::Result<(Output, Duration)> {
    let started = Instant::now();
    let child = spawn_with_input(command, input)?;
    let output = wait_or_kill(child, deadline)?;
    Ok((output, started.elapsed()))
}

/// A runtime gives up on a plugin, too; without this a plugin that hangs would hang the test.
fn wait_or_kill(child: Child, deadline: Duration) -> io::Result<Output> {
    let process = Pid::from_raw(i32::try_from(child.id()).map_err(io::Error::other)?);
    let (done, ending) = mpsc::channel::<()>();
    thread::scope(|scope| {
        let overseer = move || {
            if ending.recv_timeout(deadline) == Err(RecvTimeoutError::Timeout) {
                match kill(process, Signal::SIGKILL) {
                    Ok(()) | Err(_) => {} // it may have ended in this very moment
                }
            }
        };
        let _overseer = thread::Builder::new().spawn_scoped(scope, overseer)?;
        let output = child.wait_with_output();
        drop(done);
        output
    })
}
