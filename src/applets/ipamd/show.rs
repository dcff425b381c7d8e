//! What a human asks the running daemon: how it is, and why.

use std::fmt::Write as _;
use std::process::ExitCode;
use std::time::Duration;

use argh::FromArgs;
use serde_json::{Value, json};

use super::super::{paths, terminal};
use crate::config::{self, Config, Setting};
use crate::rpc::client::{Client, ClientError};
use crate::rpc::types::Status as Answer;

/// Print the state of the running daemon.
#[derive(FromArgs)]
#[argh(subcommand, name = "status")]
pub(super) struct Status {
    /// everything the daemon knows, as JSON
    #[argh(switch)]
    json: bool,
}

/// Say why the pool is as large as it is: by which target and limit, what waits for what, and what would happen next.
#[derive(FromArgs)]
#[argh(subcommand, name = "explain")]
pub(super) struct Explain {
    /// the same as JSON, with the report it is made from
    #[argh(switch)]
    json: bool,
}

/// Print every setting as it took effect, and where it comes from.
#[derive(FromArgs)]
#[argh(subcommand, name = "show")]
pub(super) struct ConfigShow {
    /// as JSON
    #[argh(switch)]
    json: bool,
    /// leave out what is at its default
    #[argh(switch)]
    changed: bool,
}

const PATIENCE: Duration = Duration::from_secs(5);

/// `ipamd status`.
pub(super) fn status(command: &Status) -> ExitCode {
    let text = ask(|client| {
        if command.json {
            Ok(format!("{:#}", client.dump()?))
        } else {
            Ok(render(&client.status()?))
        }
    });
    tell(text)
}

/// `ipamd explain`.
pub(super) fn explain(command: &Explain) -> ExitCode {
    let text = ask(|client| {
        let dump = client.dump()?;
        let part = |name: &str| dump.get(name).cloned().unwrap_or_default();
        Ok(if command.json {
            format!(
                "{:#}",
                json!({ "explanation": part("explanation"), "plan": part("plan") })
            )
        } else {
            sentences(&part("explanation"))
        })
    });
    tell(text)
}

/// `ipamd config show`.
pub(super) fn settings(command: &ConfigShow, config: &Config) -> ExitCode {
    let is_wanted =
        |setting: &&Setting| !command.changed || !matches!(setting.origin, config::Origin::Default);
    let wanted = config.settings.iter().filter(is_wanted);
    if command.json {
        let all = wanted.map(|setting| {
            let origin = setting.origin.to_string();
            json!({ "name": setting.name, "value": setting.value, "origin": origin })
        });
        terminal::say(&format!("{:#}", Value::Array(all.collect())));
    } else {
        for setting in wanted {
            terminal::say(&format!(
                "{}={}  # {}",
                setting.name, setting.value, setting.origin
            ));
        }
    }
    ExitCode::SUCCESS
}

/// The daemon's own configuration says where it listens; one that cannot be read does not keep anybody from asking.
pub(super) fn ask(
    question: impl FnOnce(Client) -> Result<String, ClientError>,
) -> Result<String, ClientError> {
    let socket = config::from_process().map_or_else(|_| paths::socket(), |config| config.daemon.socket);
    Client::connect(&socket, PATIENCE).and_then(question)
}

pub(super) fn tell(text: Result<String, ClientError>) -> ExitCode {
    match text {
        Ok(text) => {
            terminal::say(&text);
            ExitCode::SUCCESS
        }
        Err(error) => {
            terminal::complain(&format!("ipamd: {error}"));
            ExitCode::FAILURE
        }
    }
}

fn sentences(explanation: &Value) -> String {
    let text = |sentence: &Value| sentence.get("text")?.as_str().map(str::to_owned);
    let all = explanation.as_array().into_iter().flatten();
    all.filter_map(text).collect::<Vec<_>>().join("\n")
}

fn render(status: &Answer) -> String {
    let mut text = format!(
        "serving:      {}\n\
         ENIs:         {}\n\
         addresses:    {} free, {} assigned, {} cooling, {} quarantined, {} coming\n\
         ADDs waiting: {}\n\
         version:      {}",
        if status.serving { "yes" } else { "no" },
        status.enis,
        status.free,
        status.assigned,
        status.cooling,
        status.quarantined,
        status.coming,
        status.waiting,
        status.version
    );
    for (card, has) in &status.cards {
        // Writing to a String cannot fail.
        write!(
            text,
            "\n{card}:       {} ENIs; {} free, {} assigned, {} cooling, {} quarantined, {} coming",
            has.enis, has.free, has.assigned, has.cooling, has.quarantined, has.coming
        )
        .unwrap_or_default();
    }
    if let Some(last) = &status.guarded.last {
        // Writing to a String cannot fail.
        write!(
            text,
            "\nput right:    {} things that others had changed, the last: {last}",
            status.guarded.repairs
        )
        .unwrap_or_default();
    }
    for reason in &status.reasons {
        // Writing to a String cannot fail.
        write!(text, "\nnote:         {reason}").unwrap_or_default();
    }
    text
}
