//! The one place where the plugin's words become the kernel's: intents and removals for [`crate::net::pod`].

use std::net::IpAddr;
use std::os::fd::AsFd;

use super::Session;
use crate::applets::plugin;
use crate::ipam::ids::{Mac, TableId};
use crate::ipam::ip::IpFamily;
use crate::net::layout::{POD_TABLE, RuleLayout};
use crate::net::netlink::NetError;
use crate::net::netns::Netns;
use crate::net::op::{LinkRef, NetOp};
use crate::net::pod::{LinkRemoval, PodIntent, PodRemoval, UnwireError, VethPair, unwire_pod};
use crate::net::rtnl::Rtnl;
use crate::rpc::types::{Allocation, ReleasedAddress};

/// The veth pair of this call, whatever the address.
pub(super) fn pair(session: &Session<'_>, host_mac: Mac, pod_mac: Mac) -> VethPair {
    VethPair {
        host_veth: session.host_veth.clone(),
        ifname: session.call.environment.ifname.clone(),
        mtu: session.conf.mtu,
        host_mac,
        pod_mac,
    }
}

/// The pod interface that an allocation means for this call.
pub(super) fn intent(session: &Session<'_>, allocation: &Allocation, pair: VethPair) -> PodIntent {
    PodIntent {
        host_veth: pair.host_veth,
        ifname: pair.ifname,
        netns: session.call.environment.netns.clone().into(),
        address: allocation.address,
        mtu: pair.mtu,
        host_mac: pair.host_mac,
        pod_mac: pair.pod_mac,
        eni_table: allocation.eni_table,
        layout: allocation.layout,
    }
}

/// Whether the pod as it was wired is what this allocation means, too.
pub(super) fn is_for(intent: &PodIntent, allocation: &Allocation) -> bool {
    intent.address == allocation.address
        && intent.eni_table == allocation.eni_table
        && intent.layout == allocation.layout
}

/// What undoes [`intent`] while the pod is not the runtime's yet.
pub(super) fn undoing(intent: &PodIntent) -> PodRemoval {
    PodRemoval {
        host_veth: Some(intent.host_veth.clone()),
        address: intent.address,
        eni_table: Some(intent.eni_table),
        layout: intent.layout,
        link: LinkRemoval::Delete,
    }
}

/// Takes away what the daemon has just released; it deletes the link itself, together with others.
///
/// # Errors
/// What the kernel refused.
pub(super) fn unwire_released(released: &ReleasedAddress) -> Result<(), UnwireError> {
    let removal = PodRemoval {
        host_veth: Some(released.host_veth.clone()).filter(|name| !name.is_empty()),
        address: released.address,
        eni_table: Some(released.eni_table),
        layout: released.layout,
        link: LinkRemoval::Doom,
    };
    unwire_pod(&removal).map(|_| ())
}

/// Takes away what only the runtime's record tells of. The record does not say how the pod was routed, so the kernel
/// is asked; an interface that meanwhile carries another pod's route is left alone.
pub(super) fn unwire_recorded(host_veth: &str, address: IpAddr, table: Option<TableId>) {
    let layout = match layout_found(host_veth, address) {
        Ok(Some(layout)) => layout,
        Ok(None) => {
            tracing::info!(%address, host_veth, "the interface belongs to a newer sandbox");
            return;
        }
        Err(error) => {
            tracing::warn!(%address, host_veth, %error, "the kernel could not be asked");
            return;
        }
    };
    let removal = PodRemoval {
        host_veth: Some(host_veth.to_owned()),
        address,
        eni_table: table,
        layout,
        link: LinkRemoval::Delete,
    };
    match unwire_pod(&removal) {
        Ok(unwired) => tracing::info!(%address, host_veth, ?unwired, "cleaned by the runtime's record"),
        Err(error) => tracing::warn!(%address, host_veth, %error, "cleaning left something behind"),
    }
}

/// Takes away the interface that the sandbox itself still has, as every plugin may on DEL: it is this attachment's. Its
/// host end and that one's routes go with it.
pub(super) fn unwire_sandbox(session: &Session<'_>) {
    let environment = &session.call.environment;
    if environment.netns.is_empty() || plugin::is_own_netns(&environment.netns) {
        return;
    }
    let opened = Netns::open(environment.netns.as_ref())
        .ok()
        .and_then(|netns| Rtnl::open_in(netns.as_fd()).ok());
    // A sandbox that is gone has taken its interface along.
    let Some(mut rtnl) = opened else { return };
    let Ok(Some(link)) = rtnl.link_named(&environment.ifname) else {
        return;
    };
    let of = |family| rtnl.addresses(family, Some(link.index)).unwrap_or_default();
    let addresses = [IpFamily::V4, IpFamily::V6].map(of);
    for fact in addresses
        .iter()
        .flatten()
        .filter(|fact| !is_link_local(fact.address))
    {
        // Nobody says which ENI the address is on; of the rules that select by it, all are this sandbox's.
        unwire_recorded(&session.host_veth, fact.address, None);
    }
    // The kernel refuses when it has gone with its host end, which is as well.
    match rtnl.apply_all(&[NetOp::DelLink(LinkRef::Index(link.index))]) {
        Ok(()) => tracing::info!(
            ifname = environment.ifname,
            "the sandbox's interface was taken away"
        ),
        Err(error) => tracing::debug!(%error, "the sandbox's interface is gone"),
    }
}

/// `None` when the interface carries routes, but not this address's.
fn layout_found(host_veth: &str, address: IpAddr) -> Result<Option<RuleLayout>, NetError> {
    let mut rtnl = Rtnl::open()?;
    let Some(link) = rtnl.link_named(host_veth)? else {
        // Routes went with the link; only the rules of the per-pod layout can be left.
        return Ok(Some(RuleLayout::PerPod));
    };
    let routes = rtnl.routes(IpFamily::of(address), None, Some(link.index))?;
    let mut to_pods = routes
        .iter()
        .filter(|route| route.host_on_link().is_some())
        .peekable();
    let is_empty = to_pods.peek().is_none();
    let of_address = to_pods.find(|route| route.host_on_link() == Some(address));
    Ok(match of_address {
        Some(route) if route.table == POD_TABLE => Some(RuleLayout::Shared),
        Some(_) => Some(RuleLayout::PerPod),
        None if is_empty => Some(RuleLayout::PerPod),
        None => None,
    })
}

/// The kernel gives every link of IPv6 an address of its own.
fn is_link_local(address: IpAddr) -> bool {
    matches!(address, IpAddr::V6(address) if address.is_unicast_link_local())
}
