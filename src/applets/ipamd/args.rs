//! `ipamd`'s command line.

use std::path::PathBuf;
use std::process::ExitCode;

use argh::FromArgs;

use super::super::terminal;
use super::conflist;
use super::cordon::{self, Cordon, Uncordon};
use super::export::{self, Export};
use super::import::{self, Import};
use super::show::{self, ConfigShow, Explain, Status};
use super::start;
use crate::config::{
    self, Config, EniConfigDirectory, EniConfigSelection, EniConfigSource as _, Lost, NoEniConfig,
    choose_named, kubelet_limit,
};
use crate::observe::{self, Stdout};
use crate::store;

/// The daemon that owns this node's ENIs and addresses. Without a sub-command it serves in the foreground; it is
/// configured by its environment and /etc/aws-cni/ipamd.env.
#[derive(FromArgs)]
struct Args {
    /// print the version and exit
    #[argh(switch)]
    version: bool,
    /// try to open the database in this directory and exit (used by the daemon itself)
    #[argh(option)]
    probe_store: Option<PathBuf>,
    #[argh(subcommand)]
    command: Option<Command>,
}

#[derive(FromArgs)]
#[argh(subcommand)]
enum Command {
    Status(Status),
    Explain(Explain),
    Cordon(Cordon),
    Uncordon(Uncordon),
    Config(ConfigCommand),
    Conflist(conflist::Command),
    Import(Import),
    Export(Export),
}

/// Check the configuration, or show where each value comes from.
#[derive(FromArgs)]
#[argh(subcommand, name = "config")]
struct ConfigCommand {
    #[argh(subcommand)]
    command: ConfigAction,
}

#[derive(FromArgs)]
#[argh(subcommand)]
enum ConfigAction {
    Check(Check),
    Show(ConfigShow),
}

/// Read environment and file as the daemon would, and print what is wrong.
#[derive(FromArgs)]
#[argh(subcommand, name = "check")]
struct Check {}

/// Runs the daemon, or what its arguments ask for.
pub(in crate::applets) fn run(args: &[String]) -> ExitCode {
    let args: Args = match terminal::parse("ipamd", args) {
        Ok(args) => args,
        Err(status) => return status,
    };
    if args.version {
        terminal::say(&terminal::version_text("ipamd"));
        return ExitCode::SUCCESS;
    }
    if let Some(directory) = args.probe_store {
        return store::probe_in_this_process(&directory);
    }
    match args.command {
        Some(Command::Status(command)) => show::status(&command),
        Some(Command::Explain(command)) => show::explain(&command),
        Some(Command::Cordon(Cordon {})) => cordon::say(true),
        Some(Command::Uncordon(Uncordon {})) => cordon::say(false),
        Some(Command::Config(ConfigCommand {
            command: ConfigAction::Check(Check {}),
        })) => check(),
        Some(Command::Config(ConfigCommand {
            command: ConfigAction::Show(command),
        })) => with_config(|config| show::settings(&command, config)),
        Some(Command::Conflist(command)) => with_config(|config| conflist::run(&command, config)),
        Some(Command::Import(command)) => with_config(|config| import::run(&command, config)),
        Some(Command::Export(command)) => with_config(|config| export::run(&command, config)),
        None => serve(),
    }
}

fn with_config(run: impl FnOnce(&Config) -> ExitCode) -> ExitCode {
    match load() {
        Ok(config) => run(&config),
        Err(status) => status,
    }
}

fn load() -> Result<Config, ExitCode> {
    config::from_process().map_err(|error| {
        terminal::complain(&format!("ipamd: {error}"));
        ExitCode::from(terminal::USAGE)
    })
}

fn check() -> ExitCode {
    let config = match load() {
        Ok(config) => config,
        Err(status) => return status,
    };
    for warning in &config.warnings {
        terminal::say(&format!("warning: {warning}"));
    }
    if config.pool.max_pods.is_none() {
        for remark in kubelet_limit(&config.pool.kubelet_config).remarks {
            terminal::say(&format!("warning: kubelet's maxPods is not known from {remark}"));
        }
    }
    if config.pool.custom_networking && !check_eni_configs(&config.eni_config) {
        return ExitCode::from(terminal::USAGE);
    }
    terminal::say("the configuration is valid");
    ExitCode::SUCCESS
}

/// Says everything that is wrong with the ENIConfig files; whether all of them can be used.
fn check_eni_configs(selection: &EniConfigSelection) -> bool {
    let found = EniConfigDirectory::new(selection.directory.clone()).read();
    let (remarks, errors): (Vec<_>, Vec<_>) = found
        .problems
        .iter()
        .partition(|problem| problem.lost == Lost::Nothing);
    for remark in remarks {
        terminal::say(&format!("warning: {remark}"));
    }
    if found.configs.is_empty() && errors.is_empty() {
        let directory = selection.directory.display();
        terminal::say(&format!(
            "warning: custom networking is on, and {directory} has no ENIConfig"
        ));
    }
    let mut errors: Vec<String> = errors.into_iter().map(ToString::to_string).collect();
    // Which zone this is only IMDS knows; what a label or annotation names is known here.
    if let Err(error @ (NoEniConfig::Missing { .. } | NoEniConfig::Broken { .. })) =
        choose_named(&found, selection)
    {
        errors.push(error.to_string());
    }
    if errors.is_empty() {
        return true;
    }
    let count = errors.len();
    let problems = if count == 1 { "problem" } else { "problems" };
    terminal::complain(&format!(
        "ipamd: {count} {problems} with ENIConfigs:\n  {}",
        errors.join("\n  ")
    ));
    false
}

fn serve() -> ExitCode {
    let config = match load() {
        Ok(config) => config,
        Err(status) => return status,
    };
    if let Err(error) = observe::init("ipamd", config.log.level, &config.log.destination, Stdout::Free) {
        terminal::complain(&format!("ipamd: {error}"));
    }
    for warning in &config.warnings {
        tracing::warn!("configuration: {warning}");
    }
    match start::run(config) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            tracing::error!("cannot serve: {error}");
            ExitCode::FAILURE
        }
    }
}
