//! hostPorts as the pool has them recorded, in the kernel.

use std::net::IpAddr;

use tracing::{info, warn};

use crate::ipam::ip::IpFamily;
use crate::ipam::model::Allocation;
use crate::ipam::pool::Pool;
use crate::net::conntrack;
use crate::net::host::Host;
use crate::net::nft::{Nft, PodPorts};
use crate::net::pod::PodRemoval;

/// Which ports lead to which pod. Of two sandboxes of one pod the newer one has them.
pub(super) fn recorded(pool: &Pool) -> PodPorts {
    let with_ports = pool.allocations().values().filter(|held| !held.ports.is_empty());
    let mut newest_first: Vec<&Allocation> = with_ports.collect();
    newest_first.sort_by_key(|held| std::cmp::Reverse(held.since));
    let mut ports = PodPorts::new();
    for held in newest_first {
        let is_taken = |port| {
            let mut newer = ports.values().flatten();
            newer.any(|other: &crate::ipam::ports::HostPort| other.overlaps(port))
        };
        let free = held
            .ports
            .iter()
            .filter(|port| !is_taken(*port))
            .copied()
            .collect();
        ports.insert(held.address, free);
    }
    ports
}

/// Exactly these ports lead to pods.
pub(super) fn put_right(host: &mut Host, family: IpFamily, wanted: &PodPorts) {
    match host.table_of(family).ports_only(wanted) {
        Ok(true) => info!(pods = wanted.len(), "hostPorts were put right"),
        Ok(false) => {}
        Err(error) => warn!("hostPorts could not be compared: {error}"),
    }
}

/// No port leads to these pods any more.
pub(super) fn close(pods: &[PodRemoval]) {
    for family in [IpFamily::V4, IpFamily::V6] {
        let pods = pods.iter().map(|pod| pod.address);
        let pods: Vec<IpAddr> = pods.filter(|pod| IpFamily::of(*pod) == family).collect();
        if pods.is_empty() {
            continue;
        }
        match Nft::of(family)
            .map_err(Into::into)
            .and_then(|mut table| table.close_ports(&pods))
        {
            Ok(false) => {}
            Ok(true) => pods.iter().for_each(|pod| forget(*pod)),
            Err(error) => warn!(?pods, "hostPorts of deleted pods stay open: {error}"),
        }
    }
}

fn forget(pod: IpAddr) {
    if let Err(error) = conntrack::forget(pod) {
        warn!(%pod, "connections by its hostPorts stay known: {error}");
    }
}
