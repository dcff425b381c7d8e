//! Taking the node over from the Go daemon: its checkpoint's files, the witnesses beside them, and the store.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime, UNIX_EPOCH};
use std::{fs, io};

use tracing::{error, info, warn};

use super::identify::Identity;
use super::{clock, node, state};
use crate::cloud::DiscoveredEni;
use crate::config::Config;
use crate::ipam::checkpoint::{self, BadEntry, CheckpointError, Entry};
use crate::ipam::effect::Change;
use crate::ipam::ids::{CardIndex, TableId};
use crate::ipam::import::{Clocks, Judged, Verdict, Witnesses, changes, judge};
use crate::ipam::node::NodeFacts;
use crate::net::facts::{HostFacts, is_pod_link};
use crate::net::layout::{DOOMED_GROUP, FROM_POD_PRIORITY};
use crate::net::netlink::NetError;
use crate::net::veth;
use crate::store::{CommitError, Loaded, MAX_KEY_BYTES, MAX_VALUE_BYTES, Origin, Store, Write};

/// A checkpoint of a node with the most pods there can be is a third of a megabyte.
const MOST_BYTES: u64 = 64 << 20;

/// Why a file is not taken over. The file stays as it is.
#[derive(Debug, thiserror::Error)]
pub(super) enum FileError {
    /// It cannot be read.
    #[error("cannot read {path}: {source}")]
    Read {
        /// Which.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// It is no file of that size.
    #[error("{path} has {bytes} bytes; no checkpoint has more than {MOST_BYTES}")]
    TooLong {
        /// Which.
        path: PathBuf,
        /// Its length.
        bytes: u64,
    },
    /// It says nothing that can be understood.
    #[error("{path}: {source}; the file was not changed")]
    Content {
        /// Which.
        path: PathBuf,
        /// What and where.
        source: CheckpointError,
    },
}

/// A file, read.
pub(super) struct Found {
    pub(super) path: PathBuf,
    pub(super) card: CardIndex,
    pub(super) entries: Vec<Entry>,
    pub(super) bad: Vec<BadEntry>,
}

impl Found {
    /// Reads one file of a card.
    pub(super) fn read(path: &Path, card: CardIndex) -> Result<Self, FileError> {
        let failed = |source| FileError::Read {
            path: path.to_owned(),
            source,
        };
        let bytes = fs::metadata(path).map_err(failed)?.len();
        if bytes > MOST_BYTES {
            return Err(FileError::TooLong {
                path: path.to_owned(),
                bytes,
            });
        }
        let text = fs::read(path).map_err(failed)?;
        let read = checkpoint::read(&text).map_err(|source| FileError::Content {
            path: path.to_owned(),
            source,
        })?;
        Ok(Self {
            path: path.to_owned(),
            card,
            entries: read.entries,
            bad: read.bad,
        })
    }

    /// What is wrong inside, with the file's name.
    pub(super) fn remarks(&self) -> impl Iterator<Item = String> {
        self.bad
            .iter()
            .map(|bad| format!("{}: {bad}; left out", self.path.display()))
    }
}

/// The files of a checkpoint that are there, by card.
pub(super) fn files(of_card_0: &Path) -> BTreeMap<CardIndex, PathBuf> {
    let (Some(folder), Some(name)) = (of_card_0.parent(), of_card_0.file_name()) else {
        return BTreeMap::new();
    };
    let name = name.to_string_lossy();
    let there = fs::read_dir(folder).into_iter().flatten().flatten();
    there
        .filter_map(|entry| {
            let card = checkpoint::card_of(&name, &entry.file_name().to_string_lossy())?;
            Some((card, entry.path()))
        })
        .collect()
}

/// What kernel and IMDS show beside the checkpoint.
pub(super) fn witnesses(
    facts: NodeFacts,
    enis: Vec<DiscoveredEni>,
    veth_prefix: &str,
) -> Result<Witnesses, NetError> {
    let seen = HostFacts::observe(veth_prefix)?;
    let links: BTreeSet<String> = seen
        .links
        .iter()
        // One that a DEL of ours has set aside is nobody's any more.
        .filter(|link| is_pod_link(link, veth_prefix) && link.up && link.group != DOOMED_GROUP)
        .map(|link| link.name.clone())
        .collect();
    let tables = seen.rules.iter().filter_map(|rule| {
        let from = rule.from_host()?;
        (rule.priority == FROM_POD_PRIORITY).then_some((from, rule.table?))
    });
    Ok(Witnesses {
        facts,
        enis: node::snapshot(enis).enis,
        tables: tables.collect::<BTreeMap<_, TableId>>(),
        routes: seen
            .pod_routes
            .into_iter()
            .filter_map(|route| Some((route.address, route.link_name?)))
            .collect(),
        links,
        link_hash: |namespace, name, interface| veth::host_name("", namespace, name, interface),
    })
}

/// Now, by both clocks.
pub(super) fn clocks() -> Clocks {
    let unix = SystemTime::now().duration_since(UNIX_EPOCH);
    Clocks {
        boot: clock::now(),
        unix_ns: unix.map_or(0, |since| u64::try_from(since.as_nanos()).unwrap_or(u64::MAX)),
    }
}

/// Judges what the files say.
pub(super) fn weigh(found: &[Found], seen: &Witnesses) -> Vec<Judged> {
    let files: Vec<(CardIndex, Vec<Entry>)> = found
        .iter()
        .map(|file| (file.card, file.entries.clone()))
        .collect();
    judge(&files, seen, clocks())
}

/// What is to be written, and what is too long for any record: no runtime makes such names.
pub(super) fn writes(judged: &[Judged], seen: &Witnesses, cooldown: Duration) -> (Vec<Write>, Vec<String>) {
    let mut writes = Vec::new();
    let mut too_long = Vec::new();
    for change in changes(judged, seen, clock::now(), cooldown) {
        let (key, write) = match change {
            Change::Put { key, value } if value.len() > MAX_VALUE_BYTES => {
                too_long.push(key);
                continue;
            }
            Change::Put { key, value } => (key.clone(), Write::Put { key, value }),
            Change::Remove { key } => (key.clone(), Write::Remove { key }),
        };
        if key.len() > MAX_KEY_BYTES {
            too_long.push(key);
        } else {
            writes.push(write);
        }
    }
    (writes, too_long)
}

/// At its very first start on a node the daemon takes over what the Go daemon left, if any of its pods live. A file that
/// cannot be read does not keep it from serving: the kernel's routes keep their addresses from being given out.
///
/// # Errors
/// When what was decided could not be stored.
pub(super) fn at_first_start(
    config: &Config,
    identity: &Identity,
    store: &Store,
    loaded: &mut Loaded,
) -> Result<(), CommitError> {
    let is_first = loaded.entries.is_empty() && loaded.origin == Origin::Fresh && loaded.set_aside_count == 0;
    let Some(enis) = identity.enis.clone().filter(|_| is_first) else {
        return Ok(());
    };
    let files = files(&config.daemon.go_checkpoint);
    if files.is_empty() {
        return Ok(());
    }
    if !config.daemon.import {
        info!("the Go daemon's checkpoint is left alone, as AWS_CNI_IMPORT says");
        return Ok(());
    }
    let mut found = Vec::new();
    for (card, path) in files {
        match Found::read(&path, card) {
            Ok(file) => found.push(file),
            Err(why) => error!(
                kind = "import",
                "the Go daemon's checkpoint is not taken over: {why}"
            ),
        }
    }
    for remark in found.iter().flat_map(Found::remarks) {
        error!(kind = "import", "{remark}");
    }
    let seen = match witnesses(identity.facts.clone(), enis, &config.network.veth_prefix) {
        Ok(seen) => seen,
        Err(why) => {
            error!(
                kind = "import",
                "the Go daemon's checkpoint is not taken over, for the kernel cannot be read: {why}"
            );
            return Ok(());
        }
    };
    let judged = weigh(&found, &seen);
    let adopted = judged.iter().filter(|judged| judged.is_adopted()).count();
    if adopted == 0 {
        info!(
            entries = judged.len(),
            "of the Go daemon's checkpoint nothing lives on this node"
        );
        return Ok(());
    }
    judged.iter().for_each(tell);
    let (writes, too_long) = writes(&judged, &seen, config.pool.cooldown);
    for key in too_long {
        error!(kind = "import", "{key:.300} is too long to be stored; left out");
    }
    state::write(store, writes.clone())?;
    for write in writes {
        if let Write::Put { key, value } = write {
            loaded.entries.insert(key, value);
        }
    }
    info!(adopted, "took {adopted} pods over from the Go daemon");
    Ok(())
}

fn tell(judged: &Judged) {
    match &judged.verdict {
        Verdict::Adopted(_) => info!("{judged}"),
        Verdict::AdoptedUnplaced(_) | Verdict::Left(_) => warn!("{judged}"),
        Verdict::Quarantined { .. } => error!(kind = "import", "{judged}"),
    }
}

#[cfg(test)]
mod tests;
