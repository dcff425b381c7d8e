//! `aws-cni-support`: what the daemon knows, or what is left when it is away.

use std::path::Path;
use std::process::ExitCode;
use std::time::Duration;

use argh::FromArgs;
use serde_json::{Value, json};

use super::paths;
use super::terminal::{USAGE, complain, parse, say, version_text};
use crate::rpc::client::{Client, ClientError};
use crate::rpc::types::Status;
use crate::store::pending;

/// Shows the state of this node's address daemon, or what is left on disk when it is away.
#[derive(FromArgs)]
struct Arguments {
    /// print JSON
    #[argh(switch)]
    json: bool,
    /// print the version
    #[argh(switch)]
    version: bool,
    /// what to do; nothing shows the state
    #[argh(positional)]
    action: Option<String>,
}

const PATIENCE: Duration = Duration::from_secs(5);

pub(super) fn run(args: &[String]) -> ExitCode {
    let arguments: Arguments = match parse("aws-cni-support", args) {
        Ok(arguments) => arguments,
        Err(status) => return status,
    };
    if arguments.version {
        say(&version_text("aws-cni-support"));
        return ExitCode::SUCCESS;
    }
    if let Some(action) = &arguments.action {
        complain(&refusal(action));
        return ExitCode::from(USAGE);
    }
    match ask(&paths::socket()) {
        Ok((status, dump)) => {
            say(&if arguments.json {
                pretty(&json!({ "status": status, "state": dump }))
            } else {
                describe(&status, &dump)
            });
            ExitCode::SUCCESS
        }
        Err(error) => {
            let left = Left::find(&paths::socket(), &paths::state_dir(), &error);
            say(&if arguments.json {
                pretty(&left.json())
            } else {
                left.text()
            });
            ExitCode::FAILURE
        }
    }
}

fn refusal(action: &str) -> String {
    match action {
        "bundle" | "diagnose" => format!(
            "aws-cni-support: this release cannot {action} yet; without an action it shows the daemon's state, \
             `journalctl -u ipamd -t aws-cni` has the logs"
        ),
        _ => format!("aws-cni-support: unknown action {action:?}; see --help"),
    }
}

fn ask(socket: &Path) -> Result<(Status, Value), ClientError> {
    let status = Client::connect(socket, PATIENCE)?.status()?;
    let dump = Client::connect(socket, PATIENCE)?.dump()?;
    Ok((status, dump))
}

fn pretty(value: &Value) -> String {
    crate::cni::error::pretty(value)
}

fn describe(status: &Status, dump: &Value) -> String {
    let mut lines = vec![
        format!(
            "ipamd {}: {}",
            status.version,
            if status.serving { "serving" } else { "NOT serving" }
        ),
        format!(
            "addresses: {} free, {} assigned, {} cooling, {} quarantined, {} on their way; {} ENIs; {} pods waiting",
            status.free,
            status.assigned,
            status.cooling,
            status.quarantined,
            status.coming,
            status.enis,
            status.waiting
        ),
    ];
    lines.extend(status.reasons.iter().map(|reason| format!("  - {reason}")));
    lines.push("state:".to_owned());
    lines.push(pretty(dump));
    lines.join("\n")
}

/// What can be found without a daemon.
struct Left {
    problem: String,
    socket: String,
    socket_exists: bool,
    pending: Vec<String>,
    copies: Vec<String>,
}

impl Left {
    fn find(socket: &Path, state_dir: &Path, error: &ClientError) -> Self {
        let pending = match pending::list(&state_dir.join(pending::DIRECTORY)) {
            Ok(found) => found.iter().map(describe_pending).collect(),
            Err(error) => vec![error.to_string()],
        };
        Self {
            problem: error.to_string(),
            socket: socket.display().to_string(),
            socket_exists: socket.exists(),
            pending,
            copies: copies(state_dir),
        }
    }

    fn json(&self) -> Value {
        json!({
            "problem": self.problem,
            "socket": self.socket,
            "socketExists": self.socket_exists,
            "pendingDeletes": self.pending,
            "lastGoodCopies": self.copies,
        })
    }

    fn text(&self) -> String {
        let list = |title: &str, items: &[String]| {
            let items: Vec<String> = items.iter().map(|item| format!("\n  {item}")).collect();
            let items = if items.is_empty() {
                " none".to_owned()
            } else {
                items.concat()
            };
            format!("{title}:{items}")
        };
        let presence = if self.socket_exists {
            "exists, but nobody answers there"
        } else {
            "is missing"
        };
        [
            format!("ipamd does not answer: {}", self.problem),
            format!("socket {} {presence}", self.socket),
            list("deletes that wait for it", &self.pending),
            list("last good copies of its state", &self.copies),
            "next: systemctl status ipamd; journalctl -u ipamd".to_owned(),
        ]
        .join("\n")
    }
}

fn describe_pending(pending: &pending::Listed) -> String {
    let path = pending.path.display();
    match &pending.content {
        Ok(del) => format!(
            "{path}: pod {}/{} sandbox {}",
            del.pod_namespace, del.pod_name, del.container_id
        ),
        Err(error) => format!("{path}: {error}"),
    }
}

/// The store keeps its copies beside its database, one folder down.
fn copies(state_dir: &Path) -> Vec<String> {
    ["last-good.json", "last-good.prev"]
        .iter()
        .flat_map(|name| [state_dir.join(name), state_dir.join("ipam").join(name)])
        .filter(|path| path.exists())
        .map(|path| path.display().to_string())
        .collect()
}
