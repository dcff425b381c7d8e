//! DEL: always converges. It needs neither namespace nor record nor daemon; twice is the same as once.

use std::net::IpAddr;

use super::{Session, host_ports, kernel};
use crate::cni::error::{CniError, Code};
use crate::cni::previous::Notes;
use crate::rpc::client::ClientError;
use crate::rpc::types::{DelReason, ErrorKind, Released};
use crate::store::pending;

pub(super) fn run(session: &Session<'_>) -> Result<String, CniError> {
    let notes = notes(session)?;
    // Taken away while the release is being written: until that is durable nobody else gets the address.
    let mut taken_away = None;
    let outcome = session.release(DelReason::PodDeleted, |released| {
        // Asked again after a restart, the daemon may say so again, or know nothing of it any more.
        if taken_away.is_some() {
            return;
        }
        if released.known {
            taken_away = Some(take_away(released));
        } else {
            // Already released: what a crash between release and cleaning left is cleaned by the record.
            clean_by_record(session, notes.as_ref());
        }
    });
    if let Err(error) = outcome {
        without_daemon(session, notes.as_ref(), &error)?;
    }
    taken_away.unwrap_or(Ok(()))?;
    Ok(String::new())
}

fn notes(session: &Session<'_>) -> Result<Option<Notes>, CniError> {
    let Some(previous) = &session.conf.previous else {
        return Ok(None);
    };
    previous
        .notes(&session.call.environment.ifname, &session.hash)
        .map_err(|error| {
            CniError::new(
                Code::Internal,
                format!("del cmd: failed to delete with prevResult: {error}"),
            )
        })
}

fn take_away(released: &Released) -> Result<(), CniError> {
    let mut refused = Vec::new();
    for address in &released.addresses {
        tracing::debug!(address = %address.address, host_veth = address.host_veth, "released");
        if !address.host_ports.is_empty()
            && let Err(error) = host_ports::close(address.address)
        {
            refused.push(error.to_string());
        }
        if let Err(error) = kernel::unwire_released(address) {
            refused.push(error.to_string());
        }
    }
    if refused.is_empty() {
        return Ok(());
    }
    Err(CniError::new(
        Code::Internal,
        format!(
            "del cmd: failed on tear down pod network: TeardownPodNetwork: unable to teardown IP based container \
             routes and rules: {}",
            refused.join("; ")
        ),
    ))
}

/// Without a record, which a runtime has only of an ADD that succeeded, the sandbox itself is looked at.
fn clean_by_record(session: &Session<'_>, notes: Option<&Notes>) {
    let Some(notes) = notes else {
        kernel::unwire_sandbox(session);
        return;
    };
    if notes.vlan != 0 {
        tracing::warn!(
            vlan = notes.vlan,
            "this sandbox used a branch ENI, which this build does not take away; its VLAN link stays"
        );
    }
    for (address, table) in &notes.addresses {
        host_ports::close_if_asked_for(session, *address);
        kernel::unwire_recorded(&session.host_veth, *address, Some(*table));
    }
}

fn addresses(notes: &Notes) -> Vec<IpAddr> {
    notes.addresses.iter().map(|(address, _)| *address).collect()
}

/// Nobody to ask, or nobody who could answer: the kernel now, the release once the daemon is back.
fn without_daemon(session: &Session<'_>, notes: Option<&Notes>, error: &ClientError) -> Result<(), CniError> {
    let unknown = error
        .service()
        .is_some_and(|error| error.kind == ErrorKind::NotFound);
    if unknown {
        return Ok(());
    }
    tracing::warn!(%error, "the daemon is away; cleaning the kernel and leaving it a note");
    clean_by_record(session, notes);
    let mut note = session.pending_del();
    note.addresses = notes.map(addresses).unwrap_or_default();
    pending::write(&session.pending_dels(), &note).map_err(|io| {
        CniError::new(
            Code::TryAgainLater,
            format!(
                "del cmd: {error}, and the release cannot be left in {}: {io}; next: see `systemctl status ipamd`",
                session.pending_dels().display()
            ),
        )
    })?;
    Ok(())
}
