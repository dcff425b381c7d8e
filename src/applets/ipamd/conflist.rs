//! `ipamd conflist`: the file that makes the container runtime call us.

use std::fs;
use std::io;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use argh::FromArgs;
use serde_json::Value;

use super::super::terminal;
use crate::cni::conflist::{ChainError, Chained, Conflist, FILE};
use crate::config::{Config, Origin};
use crate::observe::LogDestination;

/// Print the CNI configuration that the settings mean, or write it where the container runtime looks.
#[derive(FromArgs)]
#[argh(subcommand, name = "conflist")]
pub(super) struct Command {
    /// write 10-aws.conflist into this directory (/etc/cni/net.d) instead of printing it
    #[argh(option)]
    into: Option<PathBuf>,
    /// where the runtime finds plugins; those that are chained must be there (default: /opt/cni/bin)
    #[argh(option, default = "PathBuf::from(\"/opt/cni/bin\")")]
    plugins: PathBuf,
}

/// Why there is no conflist.
#[derive(Debug, thiserror::Error)]
enum ConflistError {
    #[error("{path}: {source}")]
    Read { path: String, source: io::Error },
    #[error("{path} is not JSON: {source}")]
    Json { path: String, source: serde_json::Error },
    #[error("{path} {source}")]
    Chain { path: String, source: ChainError },
    #[error("the conflist: {0}")]
    List(#[from] ChainError),
    #[error(
        "the plugin {kind} is not in {directory}, so every pod would fail; install it or leave it out of {chain}"
    )]
    Missing {
        kind: String,
        directory: String,
        chain: String,
    },
    #[error("{path} could not be written: {source}")]
    Write { path: String, source: io::Error },
}

/// Runs the command.
pub(super) fn run(command: &Command, config: &Config) -> ExitCode {
    match make(command, config) {
        Ok(text) => {
            terminal::say(text.trim_end());
            ExitCode::SUCCESS
        }
        Err(error) => {
            terminal::complain(&format!("ipamd: {error}"));
            ExitCode::FAILURE
        }
    }
}

fn make(command: &Command, config: &Config) -> Result<String, ConflistError> {
    let conflist = conflist(config)?;
    for plugin in &conflist.chained {
        if !command.plugins.join(plugin.kind()).is_file() {
            return Err(ConflistError::Missing {
                kind: plugin.kind().to_owned(),
                directory: command.plugins.display().to_string(),
                chain: config.conflist.chain_dir.display().to_string(),
            });
        }
    }
    let text = conflist.render();
    let Some(directory) = &command.into else {
        return Ok(text);
    };
    let path = directory.join(FILE);
    let written = write(&path, &text).map_err(|source| ConflistError::Write {
        path: path.display().to_string(),
        source,
    })?;
    let what = if written { "written" } else { "unchanged" };
    Ok(format!("{}: {what}", path.display()))
}

fn conflist(config: &Config) -> Result<Conflist, ConflistError> {
    let mut chained = Vec::new();
    if config.conflist.bandwidth {
        chained.push(Chained::bandwidth());
    }
    chained.extend(chain(&config.conflist.chain_dir)?);
    let given = |name: &str| {
        let mut settings = config.settings.iter();
        settings.any(|setting| setting.name == name && setting.origin != Origin::Default)
    };
    let conflist = Conflist {
        veth_prefix: config.network.veth_prefix.clone(),
        mtu: config.network.pod_mtu,
        log_file: match &config.log.plugin_destination {
            LogDestination::Auto => None,
            LogDestination::File(path) => Some(path.display().to_string()),
            LogDestination::Stderr | LogDestination::Stdout => Some("stderr".to_owned()),
        },
        log_level: config.log.plugin_level.to_string(),
        add_deadline: given("AWS_CNI_ADD_DEADLINE").then_some(config.daemon.add_deadline),
        chained,
    };
    conflist.check()?;
    Ok(conflist)
}

/// The plugins of a directory, a file each, by the files' names; none where there is no directory.
fn chain(directory: &Path) -> Result<Vec<Chained>, ConflistError> {
    let read = |path: &Path, source| ConflistError::Read {
        path: path.display().to_string(),
        source,
    };
    let entries = match fs::read_dir(directory) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        entries => entries.map_err(|error| read(directory, error))?,
    };
    let mut files: Vec<PathBuf> = entries
        .map(|entry| entry.map(|entry| entry.path()))
        .collect::<Result<_, _>>()
        .map_err(|error| read(directory, error))?;
    files.retain(|path| path.extension().is_some_and(|extension| extension == "json"));
    files.sort();
    files.iter().map(|path| plugin(path, read)).collect()
}

fn plugin(path: &Path, read: impl Fn(&Path, io::Error) -> ConflistError) -> Result<Chained, ConflistError> {
    let text = fs::read(path).map_err(|error| read(path, error))?;
    let shown = || path.display().to_string();
    let conf: Value = serde_json::from_slice(&text).map_err(|source| ConflistError::Json {
        path: shown(),
        source,
    })?;
    Chained::new(conf).map_err(|source| ConflistError::Chain {
        path: shown(),
        source,
    })
}

/// By a file beside it that is renamed over it: containerd notices that, and never reads half a file. What is equal is
/// left alone, because it reads everything again at each change. Returns whether it was written.
fn write(path: &Path, text: &str) -> io::Result<bool> {
    if fs::read_to_string(path).is_ok_and(|there| there == text) {
        return Ok(false);
    }
    let beside = path.with_extension("conflist.tmp");
    fs::write(&beside, text)?;
    fs::set_permissions(&beside, fs::Permissions::from_mode(0o644))?;
    fs::rename(&beside, path)?;
    Ok(true)
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;

    fn config_of(environment: &[(&str, &str)]) -> Config {
        let environment: BTreeMap<String, String> = environment
            .iter()
            .map(|(name, value)| ((*name).to_owned(), (*value).to_owned()))
            .collect();
        Config::load(&environment, None).unwrap()
    }

    fn command(into: Option<&Path>, plugins: &Path) -> Command {
        Command {
            into: into.map(Path::to_owned),
            plugins: plugins.to_owned(),
        }
    }

    #[test]
    fn dataplane_121_it_appears_whole_with_mode_0644_and_is_written_only_when_it_differs() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join(FILE);
        let config = config_of(&[
            ("POD_MTU", "8000"),
            ("AWS_CNI_CONFLIST_CHAIN_DIR", "/nonexistent"),
        ]);
        let command = command(Some(directory.path()), Path::new("/nonexistent"));
        assert!(make(&command, &config).unwrap().ends_with("written"));
        assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o644);
        let list: Value = serde_json::from_str(&fs::read_to_string(&path).unwrap()).unwrap();
        assert_eq!(list["plugins"][0]["mtu"], "8000");
        assert!(make(&command, &config).unwrap().ends_with("unchanged"));
        assert_eq!(fs::read_dir(directory.path()).unwrap().count(), 1);
    }

    #[test]
    fn chained_plugins_come_by_their_files_names_and_must_be_installed() {
        let directory = tempfile::tempdir().unwrap();
        let (chain, plugins) = (directory.path().join("chain"), directory.path().join("bin"));
        fs::create_dir(&chain).unwrap();
        fs::create_dir(&plugins).unwrap();
        fs::write(
            chain.join("20-tuning.json"),
            r#"{"type":"tuning","sysctl":{"a":"1"}}"#,
        )
        .unwrap();
        fs::write(chain.join("10-portmap.json"), r#"{"type":"portmap"}"#).unwrap();
        fs::write(chain.join("README"), "no plugin").unwrap();
        let config = config_of(&[
            ("AWS_CNI_CONFLIST_CHAIN_DIR", &chain.display().to_string()),
            ("ENABLE_BANDWIDTH_PLUGIN", "true"),
        ]);
        let missing = make(&command(None, &plugins), &config).unwrap_err().to_string();
        assert!(missing.contains("the plugin bandwidth is not in"), "{missing}");
        for plugin in ["bandwidth", "portmap", "tuning"] {
            fs::write(plugins.join(plugin), "").unwrap();
        }
        let list: Value = serde_json::from_str(&make(&command(None, &plugins), &config).unwrap()).unwrap();
        let kinds: Vec<&str> = list["plugins"]
            .as_array()
            .unwrap()
            .iter()
            .map(|plugin| plugin["type"].as_str().unwrap())
            .collect();
        assert_eq!(kinds, ["aws-cni", "bandwidth", "portmap", "tuning"]);
        fs::write(chain.join("30-broken.json"), "{").unwrap();
        let broken = make(&command(None, &plugins), &config).unwrap_err().to_string();
        assert!(broken.contains("30-broken.json is not JSON"), "{broken}");
    }
}
