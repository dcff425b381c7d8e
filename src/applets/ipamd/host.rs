//! The host as the pool and the configuration want it.

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr};

use super::kernel::{Setup, in_layout};
use super::{ports, settings};
use crate::config::Config;
use crate::ipam::model::{Allocation, Eni, EniRole, EniState};
use crate::ipam::pool::Pool;
use crate::ipam::witness::KernelFacts;
use crate::net::facts::HostFacts;
use crate::net::host::HostIntent;
use crate::net::layout::{EniMark, RuleLayout};
use crate::net::pod::{RecordedPod, repairs};

/// What the kernel thread starts with: ENIs that stood before a restart keep standing.
pub(super) fn setup(config: &Config, pool: &Pool, kernel: &KernelFacts, seen: &HostFacts) -> Setup {
    let network = &config.network;
    let facts = pool.facts();
    let (enis, published) = standing(config, pool, kernel);
    Setup {
        intent: HostIntent {
            family: settings::family(config),
            primary_mac: facts.primary_mac,
            node_ip: facts.primary_address,
            eni_mtu: network.eni_mtu,
            connmark: network.connmark,
            veth_prefix: network.veth_prefix.clone(),
            node_port: network.node_port,
            snat: (!network.external_snat).then_some(network.snat_ports),
            vpc_cidrs: facts.vpc_cidrs.iter().copied().collect(),
            exclude_snat_cidrs: network.snat_exclude.iter().copied().collect(),
            external_service_cidrs: network.external_services.iter().copied().collect(),
            disable_tcp_early_demux: network.disable_tcp_early_demux,
            enis,
            layout: network.rule_layout,
        },
        published,
        ports: ports::recorded(pool),
        repairs: repairs(seen, &recorded(pool, network.rule_layout)),
    }
}

/// The pods that hold an address, as they were wired.
pub(super) fn recorded(pool: &Pool, layout: RuleLayout) -> Vec<RecordedPod> {
    let pod = |held: &Allocation| RecordedPod {
        address: held.address,
        host_veth: held.host_veth.clone(),
        eni_table: held.table(),
        layout,
    };
    pool.allocations().values().map(pod).collect()
}

type Standing = (BTreeMap<EniMark, u32>, BTreeMap<Ipv4Addr, EniMark>);

/// Secondary ENIs whose link is there, and the addresses that leave by them. One that has come to be somebody else's, by
/// its tags or its card, keeps the pods that were on it: their addresses leave by it as before.
fn standing(config: &Config, pool: &Pool, kernel: &KernelFacts) -> Standing {
    let mut enis = BTreeMap::new();
    let mut published = BTreeMap::new();
    for eni in pool.enis().values() {
        let addresses: Vec<Ipv4Addr> = match (eni.role, &eni.state) {
            (EniRole::Secondary, EniState::Ready) => staying(eni).collect(),
            (EniRole::Unmanaged, _) => held_on(pool, eni).collect(),
            (EniRole::Primary | EniRole::Secondary, _) => continue,
        };
        if eni.role == EniRole::Unmanaged && addresses.is_empty() {
            continue;
        }
        let link = kernel.links.iter().find(|link| link.mac == eni.mac);
        let mark = in_layout(config.network.rule_layout, eni.mark());
        if let (Some(link), Some(mark)) = (link, mark) {
            enis.insert(mark, link.ifindex);
            published.extend(addresses.into_iter().map(|address| (address, mark)));
        }
    }
    (enis, published)
}

fn staying(eni: &Eni) -> impl Iterator<Item = Ipv4Addr> {
    let staying = eni.addresses().filter(|(_, placed)| !placed.releasing);
    staying.map(|(address, _)| address)
}

fn held_on(pool: &Pool, eni: &Eni) -> impl Iterator<Item = Ipv4Addr> {
    let held = pool.allocations().values().filter(|held| held.eni == eni.id);
    held.filter_map(|held| match held.address {
        IpAddr::V4(address) => Some(address),
        IpAddr::V6(_) => None,
    })
}
