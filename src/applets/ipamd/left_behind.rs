//! Stored sandboxes that are gone: a DEL that was told as done while the disk failed, and a daemon that was killed before
//! the disk took it, leave them.
//!
//! The runtime removes a sandbox's network namespace from the file system once its DEL has succeeded, and the kernel the
//! veth pair with the namespace. Whoever still wires a sandbox has the namespace, and whoever lives in it the pair. The
//! pool asks the kernel's routes besides.

use std::collections::{BTreeMap, BTreeSet};
use std::io::ErrorKind;
use std::path::Path;

use crate::ipam::ids::SandboxKey;
use crate::ipam::records::{Record, decode};
use crate::net::facts::HostFacts;
use crate::net::layout::DOOMED_GROUP;

/// Those of the records whose namespace is not where the runtime had it, and whose host side is not among the links.
pub(super) fn sandboxes(records: &BTreeMap<String, Vec<u8>>, seen: &HostFacts) -> BTreeSet<SandboxKey> {
    // A DEL has put the links it is done with into a group of their own.
    let links = seen.links.iter().filter(|link| link.group != DOOMED_GROUP);
    let links: BTreeSet<&str> = links.map(|link| link.name.as_str()).collect();
    let gone = |(key, value): (&String, &Vec<u8>)| match decode(key, value) {
        Ok(Record::Allocation(held)) => {
            let is_named = !held.host_veth.is_empty() && !held.netns.is_empty();
            let is_gone = !links.contains(held.host_veth.as_str()) && is_absent(Path::new(&held.netns));
            (is_named && is_gone).then_some(held.key)
        }
        _ => None,
    };
    records.iter().filter_map(gone).collect()
}

/// Whether there is nothing at the path, where something would be seen: its directory, or `/proc` itself, is there. What
/// cannot be looked at is no evidence.
fn is_absent(path: &Path) -> bool {
    let is_missing =
        |path: &Path| matches!(path.symlink_metadata(), Err(error) if error.kind() == ErrorKind::NotFound);
    let proc = Path::new("/proc");
    let place = if path.starts_with(proc) {
        Path::new("/proc/self/ns/net")
    } else {
        path.parent().unwrap_or(path)
    };
    path.is_absolute() && is_missing(path) && place.symlink_metadata().is_ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_namespace_is_absent_only_where_it_would_be_seen() {
        let place = tempfile::tempdir().unwrap();
        let there = place.path().join("there");
        std::fs::write(&there, "").unwrap();
        assert!(!is_absent(&there));
        assert!(is_absent(&place.path().join("gone")));
        assert!(!is_absent(&place.path().join("no/such/place")));
        assert!(!is_absent(&there.join("not-a-directory")));
        assert!(!is_absent(Path::new("")));
        assert!(!is_absent(Path::new("relative")));
        assert!(!is_absent(
            &Path::new("/proc")
                .join(std::process::id().to_string())
                .join("ns/net")
        ));
        // The largest process id there can be, and one more.
        assert!(is_absent(Path::new("/proc/4194305/ns/net")));
    }
}
