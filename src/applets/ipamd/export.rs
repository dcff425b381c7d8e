//! `ipamd export`: the checkpoint the Go daemon would read, so that it can take the node (again).

use std::collections::BTreeMap;
use std::fs::{self, File, OpenOptions};
use std::io::{self, Write as _};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Duration;

use argh::FromArgs;

use super::super::terminal;
use super::takeover;
use crate::config::Config;
use crate::ipam::checkpoint::{self, Entry};
use crate::ipam::ids::CardIndex;
use crate::ipam::import::export;
use crate::ipam::model::Allocation;
use crate::ipam::records::{Record, decode, stored_facts};
use crate::rpc::client::Client;
use crate::store::{OpenError, Store};

use super::{clock, state};

/// Write the pods down as the Go daemon does, so that it can take the node, while ipamd is stopped.
#[derive(FromArgs)]
#[argh(subcommand, name = "export")]
pub(super) struct Export {
    /// where to; without it, where the Go daemon looks for it
    #[argh(positional)]
    directory: Option<PathBuf>,
    /// print the first network card's file instead; works while ipamd runs
    #[argh(switch)]
    stdout: bool,
}

/// Runs it.
pub(super) fn run(command: &Export, config: &Config) -> ExitCode {
    let done = allocations(command, config).and_then(|held| {
        let files = export(&held, takeover::clocks());
        if command.stdout {
            return print(&files);
        }
        write_all(command, config, &files)
    });
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(why) => {
            terminal::complain(&format!("ipamd export: {why}"));
            ExitCode::FAILURE
        }
    }
}

/// From the store, or, to be printed, from the daemon that holds it.
fn allocations(command: &Export, config: &Config) -> Result<Vec<Allocation>, String> {
    match state::open_existing(&config.daemon.state_dir.join("ipam")) {
        Ok(Some((store, loaded))) => {
            Store::close(store);
            stored(&loaded.entries)
        }
        Ok(None) => Err(format!(
            "there is no database in {}",
            config.daemon.state_dir.display()
        )),
        Err(OpenError::Locked { .. }) if command.stdout => of_daemon(&config.daemon.socket),
        Err(OpenError::Locked { .. }) => Err(
            "ipamd is running and would change what is written; stop it first: systemctl stop ipamd.socket \
             ipamd.service (or print it with --stdout)"
                .to_owned(),
        ),
        Err(error) => Err(crate::causes::chain(&error)),
    }
}

/// What the Go daemon is told on another boot would be about sandboxes that are gone.
fn stored(entries: &BTreeMap<String, Vec<u8>>) -> Result<Vec<Allocation>, String> {
    let boot = clock::boot_id().map_err(|error| error.to_string())?;
    if stored_facts(entries).is_none_or(|facts| facts.boot != boot) {
        terminal::complain(
            "ipamd export: the database was written before the last boot; no sandbox of it lives",
        );
        return Ok(Vec::new());
    }
    let mut held = Vec::new();
    for (key, value) in entries {
        match decode(key, value) {
            Ok(Record::Allocation(allocation)) => held.push(*allocation),
            Ok(_) => {}
            Err(bad) => terminal::complain(&format!("ipamd export: {bad}; left out")),
        }
    }
    Ok(held)
}

fn of_daemon(socket: &Path) -> Result<Vec<Allocation>, String> {
    let dump = Client::connect(socket, Duration::from_secs(5))
        .and_then(Client::dump)
        .map_err(|error| error.to_string())?;
    let held = dump.get("allocations").cloned().unwrap_or_default();
    serde_json::from_value(held).map_err(|error| format!("the daemon's answer is not understood: {error}"))
}

fn print(files: &BTreeMap<CardIndex, Vec<Entry>>) -> Result<(), String> {
    for (card, entries) in files {
        if card.0 == 0 {
            terminal::say(checkpoint::write(entries).trim_end());
        } else {
            return Err(format!(
                "network card {} has {} pods, which only files can hold",
                card.0,
                entries.len()
            ));
        }
    }
    Ok(())
}

fn write_all(
    command: &Export,
    config: &Config,
    files: &BTreeMap<CardIndex, Vec<Entry>>,
) -> Result<(), String> {
    let usual = &config.daemon.go_checkpoint;
    let folder = command
        .directory
        .as_deref()
        .or(usual.parent())
        .unwrap_or(Path::new("/"));
    let of_card_0 = usual
        .file_name()
        .map_or("ipam.json".into(), |name| name.to_string_lossy());
    fs::create_dir_all(folder).map_err(|error| format!("cannot make {}: {error}", folder.display()))?;
    for (card, entries) in files {
        let path = folder.join(checkpoint::file_name(&of_card_0, *card));
        write(&path, &checkpoint::write(entries))
            .map_err(|error| format!("cannot write {}: {error}", path.display()))?;
        terminal::say(&format!("{} pods in {}", entries.len(), path.display()));
    }
    Ok(())
}

/// All of it or none, also over a power cut: temporary file, fsync, rename, fsync of the directory.
fn write(path: &Path, text: &str) -> io::Result<()> {
    let temporary = path.with_extension(format!("json.tmp{}", std::process::id()));
    let written = (|| {
        let mut file = OpenOptions::new()
            .write(true)
            .create_new(true)
            .mode(0o600)
            .open(&temporary)?;
        file.write_all(text.as_bytes())?;
        file.sync_all()?;
        fs::rename(&temporary, path)?;
        File::open(path.parent().unwrap_or(Path::new("/")))?.sync_all()
    })();
    if written.is_err() {
        fs::remove_file(&temporary).ok();
    }
    written
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    #[test]
    fn an_export_replaces_the_file_whole_and_is_roots_alone() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("ipam.json");
        fs::write(&path, "what was there before").unwrap();
        write(&path, "{}\n").unwrap();
        assert_eq!(fs::read_to_string(&path).unwrap(), "{}\n");
        assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
        assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 1);
        fs::remove_file(&path).unwrap();
        fs::create_dir(&path).unwrap();
        assert!(write(&path, "{}\n").is_err());
        assert_eq!(
            fs::read_dir(folder.path()).unwrap().count(),
            1,
            "nothing temporary stays"
        );
    }
}
