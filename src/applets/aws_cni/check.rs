//! CHECK: is the pod's interface what the daemon's record says?

use super::{PATIENCE, Session, failure, kernel};
use crate::applets::plugin;
use crate::cni::error::{CniError, Code};
use crate::ipam::ids::Mac;
use crate::net::netns::Netns;
use crate::net::pod::check_pod;
use crate::net::rtnl::Rtnl;
use crate::rpc::types::Allocation;
use std::os::fd::AsFd;

pub(super) fn run(session: &Session<'_>) -> Result<String, CniError> {
    // Nothing of ours is ever in the plugin's own namespace, and upstream answers success there.
    if plugin::is_own_netns(&session.call.environment.netns) {
        return Ok(String::new());
    }
    let allocation = session
        .connect(PATIENCE)
        .and_then(|client| client.check(session.check_request()))
        .map_err(|error| failure::of_client("check cmd: the daemon has no answer", &error))?;
    let mut findings = compare_record(session, &allocation);
    let (host_mac, pod_mac) = macs(session);
    let intent = kernel::intent(session, &allocation, kernel::pair(session, host_mac, pod_mac));
    findings.extend(check_pod(&intent).iter().map(ToString::to_string));
    if findings.is_empty() {
        return Ok(String::new());
    }
    let findings = findings.join("; ");
    Err(CniError::new(
        Code::Internal,
        format!("check cmd: {findings}; next: delete the pod, its replacement is wired afresh"),
    ))
}

/// The runtime's record names the address that the pod believes in.
fn compare_record(session: &Session<'_>, allocation: &Allocation) -> Vec<String> {
    let notes = session
        .conf
        .previous
        .as_ref()
        .and_then(|previous| {
            previous
                .notes(&session.call.environment.ifname, &session.hash)
                .ok()
        })
        .flatten();
    let Some(notes) = notes else { return Vec::new() };
    notes
        .addresses
        .iter()
        .take(1)
        .filter(|(address, _)| *address != allocation.address)
        .map(|(address, _)| format!("the result says {address}, the daemon {}", allocation.address))
        .collect()
}

/// The hardware addresses are random and nobody's record: what counts is that the pod's neighbour is the host end.
fn macs(session: &Session<'_>) -> (Mac, Mac) {
    let nobody = Mac([0; 6]);
    let host = Rtnl::open()
        .ok()
        .and_then(|mut rtnl| rtnl.link_named(&session.host_veth).ok().flatten());
    let environment = &session.call.environment;
    let pod = Netns::open(environment.netns.as_ref())
        .ok()
        .and_then(|netns| Rtnl::open_in(netns.as_fd()).ok())
        .and_then(|mut rtnl| rtnl.link_named(&environment.ifname).ok().flatten());
    let mac = |link: Option<crate::net::rtnl::LinkFact>| link.and_then(|link| link.mac).unwrap_or(nobody);
    (mac(host), mac(pod))
}
