//! The pod's hostPorts: opened while it is wired, closed when it goes. A pod without any pays nothing.

use std::net::IpAddr;

use super::Session;
use super::add::setup_failed;
use crate::cni::error::{CniError, Code};
use crate::cni::ports::{PortError, check_family};
use crate::ipam::ip::IpFamily;
use crate::net::conntrack;
use crate::net::nft::{Nft, NftError};
use crate::net::pod::PodIntent;
use crate::net::sysctl::{Missing, Setting};

/// Before anything is asked for.
///
/// # Errors
/// Code 7, naming the field.
pub(super) fn check(session: &Session<'_>) -> Result<(), CniError> {
    session
        .conf
        .port_error
        .as_ref()
        .map_or(Ok(()), |error| Err(invalid(error)))
}

fn invalid(error: &PortError) -> CniError {
    CniError::new(Code::InvalidConfig, error.to_string())
}

/// # Errors
/// Code 7 for an address of another family than the pod's, 999 for what the kernel refused.
pub(super) fn open(session: &Session<'_>, intent: &PodIntent) -> Result<(), CniError> {
    let ports = &session.conf.host_ports;
    if ports.is_empty() {
        return Ok(());
    }
    let pod = intent.address;
    check_family(ports, pod).map_err(|error| invalid(&error))?;
    let failed = |cause: String| setup_failed(&format!("hostPorts of {pod}: {cause}"));
    if pod.is_ipv4() {
        // Or a packet from 127.0.0.1 would not leave by this link. The nftables table keeps the pod out.
        Setting::of_interface("ipv4", &intent.host_veth, "route_localnet", "1", Missing::Refused)
            .ensure()
            .map_err(|error| failed(error.to_string()))?;
    }
    table(pod)
        .and_then(|mut table| table.open_ports(pod, ports))
        .map_err(|error| failed(error.to_string()))
}

/// No port of the node leads to this address any more, and no known connection does.
///
/// # Errors
/// What the kernel refused.
pub(super) fn close(pod: IpAddr) -> Result<(), NftError> {
    table(pod)?.close_ports(&[pod])?;
    if let Err(error) = conntrack::forget(pod) {
        tracing::warn!(%pod, %error, "connections by its hostPorts stay known");
    }
    Ok(())
}

/// Without the daemon's word, what the runtime asked for tells whether there are any.
pub(super) fn close_if_asked_for(session: &Session<'_>, pod: IpAddr) {
    if session.conf.host_ports.is_empty() {
        return;
    }
    if let Err(error) = close(pod) {
        tracing::warn!(%pod, %error, "hostPorts could not be closed");
    }
}

/// A pod that is not the runtime's yet has none.
pub(super) fn undo(session: &Session<'_>, intent: &PodIntent) {
    close_if_asked_for(session, intent.address);
}

fn table(pod: IpAddr) -> Result<Nft, NftError> {
    Ok(Nft::of(IpFamily::of(pod))?)
}
