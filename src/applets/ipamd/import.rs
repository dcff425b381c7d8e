//! `ipamd import`: what the Go daemon left becomes ours, while neither daemon runs.

use std::fmt::Display;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use argh::FromArgs;

use super::super::terminal;
use super::identify::Identity;
use super::takeover::{self, Found};
use super::{clock, state};
use crate::cloud::{Imds, ImdsLimits};
use crate::config::Config;
use crate::ipam::checkpoint;
use crate::ipam::ids::CardIndex;
use crate::ipam::import::{Judged, Witnesses};
use crate::ipam::node::NodeFacts;
use crate::ipam::records::stored_facts;
use crate::store::{OpenError, Store, set_aside};

/// Take the Go daemon's pods over from its checkpoint, while ipamd is stopped. A first start does this by itself.
#[derive(FromArgs)]
#[argh(subcommand, name = "import")]
pub(super) struct Import {
    /// its files; without any, those where the Go daemon keeps them
    #[argh(positional)]
    files: Vec<PathBuf>,
    /// say what would become of each entry, and change nothing
    #[argh(switch)]
    dry_run: bool,
    /// set a database that knows pods already, or is of another boot or instance, aside first
    #[argh(switch)]
    replace: bool,
}

/// Runs it.
pub(super) fn run(command: &Import, config: &Config) -> ExitCode {
    match import(command, config) {
        Ok(()) => ExitCode::SUCCESS,
        Err(why) => {
            terminal::complain(&format!("ipamd import: {why}"));
            ExitCode::FAILURE
        }
    }
}

fn text(error: impl Display) -> String {
    error.to_string()
}

fn import(command: &Import, config: &Config) -> Result<(), String> {
    let found = read(&command.files, &config.daemon.go_checkpoint)?;
    for remark in found.iter().flat_map(Found::remarks) {
        terminal::complain(&format!("ipamd import: {remark}"));
    }
    let seen = look(config)?;
    let judged = takeover::weigh(&found, &seen);
    for judged in &judged {
        terminal::say(&judged.to_string());
    }
    let adopted = judged.iter().filter(|judged| judged.is_adopted()).count();
    let summary = format!("{adopted} of {} entries", judged.len());
    if command.dry_run {
        terminal::say(&format!("{summary} would be adopted; nothing was changed"));
        return Ok(());
    }
    store(command, config, &judged, &seen)?;
    terminal::say(&format!("{summary} adopted; ipamd can be started"));
    Ok(())
}

fn read(named: &[PathBuf], usual: &Path) -> Result<Vec<Found>, String> {
    let files: Vec<(CardIndex, PathBuf)> = if named.is_empty() {
        takeover::files(usual).into_iter().collect()
    } else {
        named.iter().map(|path| (card_of(path), path.clone())).collect()
    };
    if files.is_empty() {
        return Err(format!(
            "{} is not there; name the file, or set AWS_VPC_K8S_CNI_BACKING_STORE",
            usual.display()
        ));
    }
    files
        .iter()
        .map(|(card, path)| Found::read(path, *card).map_err(text))
        .collect()
}

/// By its name, whatever the first card's file is called.
fn card_of(path: &Path) -> CardIndex {
    let name = path
        .file_name()
        .map(|name| name.to_string_lossy().into_owned())
        .unwrap_or_default();
    let base = name.rsplit_once("-nic-").map(|(base, _)| format!("{base}.json"));
    base.and_then(|base| checkpoint::card_of(&base, &name))
        .unwrap_or(CardIndex(0))
}

/// This node, by IMDS and the kernel.
fn look(config: &Config) -> Result<Witnesses, String> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(text)?;
    let boot = clock::boot_id().map_err(text)?;
    let found = runtime.block_on(async {
        let imds = Imds::new(config.aws.metadata_endpoint.as_deref(), ImdsLimits::default()).map_err(text)?;
        imds.discover()
            .await
            .map_err(|error| format!("IMDS does not say which node this is: {error}"))
    })?;
    let Identity { facts, enis } = Identity::found(found, boot).map_err(text)?;
    let enis = enis.unwrap_or_default();
    takeover::witnesses(facts, enis, &config.network.veth_prefix)
        .map_err(|error| format!("the kernel cannot be read: {error}"))
}

fn store(command: &Import, config: &Config, judged: &[Judged], seen: &Witnesses) -> Result<(), String> {
    let folder = config.daemon.state_dir.join("ipam");
    let open = || {
        state::open(&folder).map_err(|error| match error {
            OpenError::Locked { .. } => {
                "ipamd is running; stop it first: systemctl stop ipamd.socket ipamd.service".to_owned()
            }
            other => crate::causes::chain(&other),
        })
    };
    let (mut store, mut loaded) = open()?;
    if let Some(why) = objection(&loaded.entries, &seen.facts) {
        if !command.replace {
            store.close();
            return Err(format!("{why}; --replace sets that database aside first"));
        }
        store.close();
        let aside = set_aside(&folder).map_err(text)?;
        terminal::say(&format!("the old database is at {}", aside.display()));
        (store, loaded) = open()?;
    }
    drop(loaded);
    let (writes, too_long) = takeover::writes(judged, seen, config.pool.cooldown);
    for key in too_long {
        terminal::complain(&format!("ipamd import: {key:.300} is too long to be stored"));
    }
    let written = state::write(&store, writes).map_err(|error| crate::causes::chain(&error));
    Store::close(store);
    written
}

/// Why entries cannot simply be added to what is stored.
fn objection(entries: &std::collections::BTreeMap<String, Vec<u8>>, facts: &NodeFacts) -> Option<String> {
    let held = entries
        .keys()
        .filter(|key| key.starts_with("allocation/"))
        .count();
    if held > 0 {
        return Some(format!("the database knows {held} pods already"));
    }
    let stored = stored_facts(entries)?;
    if stored.instance != facts.instance {
        return Some(format!("the database was made on {}", stored.instance));
    }
    (stored.boot != facts.boot).then(|| "the database was written before the last boot".to_owned())
}
