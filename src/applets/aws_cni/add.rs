//! ADD: an address from the daemon, the kernel meanwhile, the answer only once the allocation is on the disk.

use std::net::IpAddr;
use std::time::Duration;

use super::failure::{self, NO_ADDRESS};
use super::{ADD_ABSENCE, ANSWER_MARGIN, Session, host_ports, kernel};
use crate::applets::plugin;
use crate::cni::error::{CniError, Code};
use crate::cni::result::AddResult;
use crate::net::pod::{PodIntent, Sandbox, VethPair, WireFailure, unwire_pod};
use crate::net::veth;
use crate::rpc::client::{ClientError, Connection};
use crate::rpc::retry::Retry;
use crate::rpc::types::{Add, Allocation, Assigned, DelReason};
use crate::store::pending;

pub(super) fn run(session: &Session<'_>) -> Result<String, CniError> {
    let environment = &session.call.environment;
    if !environment.allows_own_netns() && plugin::is_own_netns(&environment.netns) {
        return Err(own_netns());
    }
    host_ports::check(session)?;
    forget_pending_del(session);
    let Obtained {
        intent,
        assigned,
        connection,
    } = obtain(session)?;
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
    drop(connection);
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

/// A wired pod whose allocation is on the disk.
struct Obtained {
    intent: PodIntent,
    assigned: Assigned,
    connection: Connection,
}

/// What the attempts have made so far.
#[derive(Default)]
struct Progress {
    /// The open sandbox, until it is wired.
    sandbox: Option<(Sandbox, VethPair)>,
    wired: Option<PodIntent>,
}

/// What a daemon that ends leaves unanswered is asked of the next one; that one knows the address if it was durable, and
/// gives another one if not.
fn obtain(session: &Session<'_>) -> Result<Obtained, CniError> {
    let deadline = session.add_deadline();
    let mut retry = Retry::new(deadline + ANSWER_MARGIN, ADD_ABSENCE);
    let mut progress = Progress::default();
    loop {
        match attempt(session, retry.remaining(), &mut progress) {
            Ok(obtained) => return Ok(obtained),
            Err(Failure::Client(error)) if retry.again(&error) => {}
            Err(failure) => {
                let used = progress.wired.is_some() || retry.was_lost();
                progress.undo(session);
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
fn attempt(session: &Session<'_>, patience: Duration, progress: &mut Progress) -> Result<Obtained, Failure> {
    let deadline = patience.saturating_sub(ANSWER_MARGIN);
    let sent = session.connect(patience)?.send_add(request(session, deadline))?;
    if progress.wired.is_none() && progress.sandbox.is_none() {
        progress.sandbox = Some(open_sandbox(session)?);
    }
    // An answer that came so soon may be a refusal, for which no pair need be made.
    if let Some((sandbox, pair)) = &mut progress.sandbox
        && !sent.is_answered()
    {
        sandbox.make_pair(pair);
    }
    let (assigned, pending) = sent.assigned()?;
    // What a daemon that is gone has assigned is not to be wired, and what could not be wired then is no wonder.
    if pending.is_lost() {
        return Err(ClientError::Closed.into());
    }
    let wired = progress.wire(session, &assigned.allocation);
    if wired.is_err() && pending.is_lost() {
        return Err(ClientError::Closed.into());
    }
    let intent = wired?;
    // At each attempt: a daemon that was started in between knew nothing of them, and has closed them.
    host_ports::open(session, &intent).map_err(Failure::Wiring)?;
    let connection = pending.durable()?;
    Ok(Obtained {
        intent,
        assigned,
        connection,
    })
}

/// A sandbox that is gone is not worth waiting for: hanging up undoes the request, the release says why.
fn open_sandbox(session: &Session<'_>) -> Result<(Sandbox, VethPair), Failure> {
    let sandbox = Sandbox::open(session.call.environment.netns.as_ref())
        .map_err(|failure| Failure::Wiring(wiring_failed(&failure, &failure.to_string())))?;
    let mac = || {
        veth::random_mac()
            .map_err(|error| Failure::Wiring(setup_failed(&format!("no random hardware address: {error}"))))
    };
    Ok((sandbox, kernel::pair(session, mac()?, mac()?)))
}

impl Progress {
    fn wire(&mut self, session: &Session<'_>, allocation: &Allocation) -> Result<PodIntent, Failure> {
        if let Some(earlier) = self.wired.take_if(|earlier| !kernel::is_for(earlier, allocation)) {
            tracing::info!(address = %earlier.address, "the restarted daemon gave another address");
            unwire(session, &earlier);
        }
        if let Some(earlier) = &self.wired {
            return Ok(earlier.clone());
        }
        let (sandbox, pair) = match self.sandbox.take() {
            Some(open) => open,
            None => open_sandbox(session)?,
        };
        let intent = wire(session, allocation, sandbox, pair).map_err(Failure::Wiring)?;
        Ok(self.wired.insert(intent).clone())
    }

    fn undo(self, session: &Session<'_>) {
        if let Some(intent) = self.wired {
            unwire(session, &intent);
        }
        if let Some((sandbox, _)) = self.sandbox {
            sandbox.give_up();
        }
    }
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
        card: None,
        main: None,
        host_ports: session.conf.host_ports.clone(),
    }
}

/// A DEL that still waits for the daemon must not take away what this ADD is about to get.
fn forget_pending_del(session: &Session<'_>) {
    let path = session.pending_dels().join(session.pending_del().file_name());
    if let Err(error) = pending::remove(&path) {
        tracing::warn!(path = %path.display(), %error, "an old release could not be withdrawn");
    }
}

fn wire(
    session: &Session<'_>,
    allocation: &Allocation,
    sandbox: Sandbox,
    pair: VethPair,
) -> Result<PodIntent, CniError> {
    if allocation.address.is_unspecified() {
        sandbox.give_up();
        return Err(CniError::new(
            Code::Internal,
            format!("{NO_ADDRESS}: the daemon's answer has no address"),
        ));
    }
    let intent = kernel::intent(session, allocation, pair);
    match sandbox.wire(&intent) {
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

pub(super) fn setup_failed(cause: &str) -> CniError {
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
    host_ports::undo(session, intent);
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
