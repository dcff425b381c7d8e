//! ADD: an address from the daemon, the kernel meanwhile, the answer only once the allocation is on the disk.

use std::net::IpAddr;

use super::failure::{self, NO_ADDRESS};
use super::{ANSWER_MARGIN, PATIENCE, Session, kernel};
use crate::applets::plugin;
use crate::cni::error::{CniError, Code};
use crate::cni::result::AddResult;
use crate::net::pod::{PodIntent, PodSockets, WireFailure, unwire_pod};
use crate::net::veth;
use crate::rpc::types::{Add, Allocation, DelReason};
use crate::store::pending;

pub(super) fn run(session: &Session<'_>) -> Result<String, CniError> {
    let environment = &session.call.environment;
    if !environment.allows_own_netns() && plugin::is_own_netns(&environment.netns) {
        return Err(own_netns());
    }
    forget_pending_del(session);
    let deadline = session.add_deadline();
    let sent = session
        .connect(deadline + ANSWER_MARGIN)
        .and_then(|client| client.send_add(request(session, deadline)))
        .map_err(|error| failure::of_add(&error))?;
    // Entering the sandbox takes a tenth of a millisecond, which the wait for the daemon hides; and a sandbox that is
    // gone is not worth waiting for. Hanging up undoes the request, the release says why.
    let sockets = PodSockets::open(environment.netns.as_ref()).map_err(|failure| {
        release(session);
        wiring_failed(&failure, &failure.to_string())
    })?;
    let (assigned, pending) = sent.assigned().map_err(|error| failure::of_add(&error))?;
    let allocation = assigned.allocation;
    let intent = wire(session, &allocation, sockets).inspect_err(|_| release(session))?;
    if let Err(error) = pending.durable() {
        undo(session, &intent);
        return Err(failure::of_add(&error));
    }
    tracing::info!(
        pod = %session.pod,
        container = session.call.environment.container_id,
        address = %allocation.address,
        eni = %allocation.eni,
        host_veth = session.host_veth,
        repeated = assigned.repeated,
        "pod wired"
    );
    let answer = result(session, &allocation).to_json(session.call.version);
    // Printed here and not by the caller: a runtime that is gone never learns of the pod, so it is undone as well.
    plugin::print(&answer).inspect_err(|_| undo(session, &intent))?;
    Ok(String::new())
}

fn request(session: &Session<'_>, deadline: std::time::Duration) -> Add {
    let environment = &session.call.environment;
    Add {
        network: session.conf.name.as_str().into(),
        container_id: environment.container_id.as_str().into(),
        ifname: environment.ifname.as_str().into(),
        netns: environment.netns.clone(),
        pod: session.pod.clone(),
        host_veth: session.host_veth.clone(),
        deadline_ms: u64::try_from(deadline.as_millis()).unwrap_or(u64::MAX),
    }
}

/// A DEL that still waits for the daemon must not take away what this ADD is about to get.
fn forget_pending_del(session: &Session<'_>) {
    let path = session.pending_dels().join(session.pending_del().file_name());
    if let Err(error) = pending::remove(&path) {
        tracing::warn!(path = %path.display(), %error, "an old release could not be withdrawn");
    }
}

fn wire(session: &Session<'_>, allocation: &Allocation, sockets: PodSockets) -> Result<PodIntent, CniError> {
    if allocation.address.is_unspecified() {
        return Err(CniError::new(
            Code::Internal,
            format!("{NO_ADDRESS}: the daemon's answer has no address"),
        ));
    }
    let mac =
        || veth::random_mac().map_err(|error| setup_failed(&format!("no random hardware address: {error}")));
    let intent = kernel::intent(session, allocation, mac()?, mac()?)?;
    match sockets.wire(&intent) {
        Ok(_) => Ok(intent),
        Err(error) => Err(wiring_failed(&error.failure, &error.to_string())),
    }
}

fn wiring_failed(failure: &WireFailure, text: &str) -> CniError {
    match failure {
        WireFailure::OwnNetns => own_netns(),
        WireFailure::Netns(_) => setup_failed(&format!(
            "{text}; next: none if the sandbox is gone, the runtime makes another"
        )),
        _ => setup_failed(text),
    }
}

fn setup_failed(cause: &str) -> CniError {
    CniError::new(
        Code::Internal,
        format!(
            "add command: failed to setup network: SetupPodNetwork: failed to setup veth pair: failed to setup \
             veth network: {cause}"
        ),
    )
}

fn own_netns() -> CniError {
    CniError::new(
        Code::InvalidNetns,
        "plugin's netns and netns from CNI_NETNS should not be the same",
    )
}

fn undo(session: &Session<'_>, intent: &PodIntent) {
    if let Err(error) = unwire_pod(&kernel::undoing(intent)) {
        tracing::error!(host_veth = session.host_veth, %error, "undoing left something behind");
    }
    release(session);
}

/// Gives the address back, durably one way or the other.
fn release(session: &Session<'_>) {
    let request = session.del_request(DelReason::SetupNSFailed);
    let told = session.connect(PATIENCE).and_then(|client| client.del(request));
    let Err(error) = told else { return };
    tracing::warn!(%error, "the daemon could not be told that the set-up failed");
    if let Err(error) = pending::write(&session.pending_dels(), &session.pending_del()) {
        tracing::error!(%error, "nor could it be written down");
    }
}

fn result(session: &Session<'_>, allocation: &Allocation) -> AddResult {
    let environment = &session.call.environment;
    let address: IpAddr = allocation.address;
    AddResult {
        host_veth: session.host_veth.clone(),
        hash: session.hash.clone(),
        ifname: environment.ifname.clone(),
        netns: environment.netns.clone(),
        address,
        eni_table: allocation.eni_table,
        device: allocation.device,
    }
}
