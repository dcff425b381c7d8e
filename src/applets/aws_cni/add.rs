//! ADD: an address from the daemon, the kernel meanwhile, the answer only once the allocation is on the disk.

use std::net::IpAddr;
use std::time::Duration;

use super::failure::{self, NO_ADDRESS};
use super::{ADD_ABSENCE, ANSWER_MARGIN, Session, kernel};
use crate::applets::plugin;
use crate::cni::error::{CniError, Code};
use crate::cni::result::AddResult;
use crate::net::pod::{PodIntent, PodSockets, WireFailure, unwire_pod};
use crate::net::veth;
use crate::rpc::client::ClientError;
use crate::rpc::retry::Retry;
use crate::rpc::types::{Add, Allocation, Assigned, DelReason};
use crate::store::pending;

pub(super) fn run(session: &Session<'_>) -> Result<String, CniError> {
    let environment = &session.call.environment;
    if !environment.allows_own_netns() && plugin::is_own_netns(&environment.netns) {
        return Err(own_netns());
    }
    forget_pending_del(session);
    let (intent, assigned) = obtain(session)?;
    let allocation = assigned.allocation;
    // The daemon's line about this allocation says the same; a second one would cost every ADD a tenth of a millisecond.
    tracing::debug!(
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

/// Why one attempt did not end with a pod.
enum Failure {
    /// The daemon gave no (whole) answer, or refused.
    Client(ClientError),
    /// The pod could not be wired; nothing of it is left in the kernel.
    Wiring(CniError),
}

impl From<ClientError> for Failure {
    fn from(error: ClientError) -> Self {
        Self::Client(error)
    }
}

/// A wired pod whose allocation is on the disk. What a daemon that ends leaves unanswered is asked of the next one;
/// that one knows the address if it was durable, and gives another one if not.
fn obtain(session: &Session<'_>) -> Result<(PodIntent, Assigned), CniError> {
    let deadline = session.add_deadline();
    let mut retry = Retry::new(deadline + ANSWER_MARGIN, ADD_ABSENCE);
    let mut wired = None;
    loop {
        match attempt(session, retry.remaining(), &mut wired) {
            Ok(obtained) => return Ok(obtained),
            Err(Failure::Client(error)) if retry.again(&error) => {}
            Err(failure) => {
                let used = wired.is_some() || retry.was_lost();
                if let Some(intent) = wired {
                    unwire(session, &intent);
                }
                return Err(match failure {
                    Failure::Wiring(error) => {
                        release(session);
                        error
                    }
                    Failure::Client(error) => {
                        if used {
                            release(session);
                        }
                        failure::of_add(&error)
                    }
                });
            }
        }
    }
}

/// Asks once and wires what is answered, unless an earlier attempt has done so already.
fn attempt(
    session: &Session<'_>,
    patience: Duration,
    wired: &mut Option<PodIntent>,
) -> Result<(PodIntent, Assigned), Failure> {
    let deadline = patience.saturating_sub(ANSWER_MARGIN);
    let sent = session.connect(patience)?.send_add(request(session, deadline))?;
    // Entering the sandbox takes a tenth of a millisecond, which the wait for the daemon hides; and a sandbox that is
    // gone is not worth waiting for. Hanging up undoes the request, the release says why.
    let sockets = open_sandbox(session)?;
    let (assigned, pending) = sent.assigned()?;
    let allocation = &assigned.allocation;
    if let Some(earlier) = wired.take_if(|earlier| !kernel::is_for(earlier, allocation)) {
        tracing::info!(address = %earlier.address, "the restarted daemon gave another address");
        unwire(session, &earlier);
    }
    let intent = match wired {
        Some(earlier) => earlier.clone(),
        None => wired
            .insert(wire(session, allocation, sockets).map_err(Failure::Wiring)?)
            .clone(),
    };
    pending.durable()?;
    Ok((intent, assigned))
}

fn open_sandbox(session: &Session<'_>) -> Result<PodSockets, Failure> {
    PodSockets::open(session.call.environment.netns.as_ref())
        .map_err(|failure| Failure::Wiring(wiring_failed(&failure, &failure.to_string())))
}

fn request(session: &Session<'_>, deadline: Duration) -> Add {
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
    unwire(session, intent);
    release(session);
}

fn unwire(session: &Session<'_>, intent: &PodIntent) {
    if let Err(error) = unwire_pod(&kernel::undoing(intent)) {
        tracing::error!(host_veth = session.host_veth, %error, "undoing left something behind");
    }
}

/// Gives the address back, durably one way or the other.
fn release(session: &Session<'_>) {
    let Err(error) = session.release(DelReason::SetupNSFailed, |_| {}) else {
        return;
    };
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
