//! GC: the daemon releases what the runtime no longer has.

use super::{PATIENCE, Session, failure};
use crate::cni::error::{CniError, Code};
use crate::rpc::types::Gc;

pub(super) fn run(session: &Session<'_>) -> Result<String, CniError> {
    // An absent list is not an empty one: taking it for one would release every running pod's address.
    let valid = session.conf.valid_attachments.clone().ok_or_else(|| {
        CniError::new(
            Code::InvalidConfig,
            "gc cmd: the configuration has no cni.dev/valid-attachments",
        )
    })?;
    let request = Gc {
        network: session.conf.name.as_str().into(),
        valid,
    };
    let collected = session
        .connect(PATIENCE)
        .and_then(|client| client.gc(request))
        .map_err(|error| failure::of_client("gc cmd: nothing was collected", &error))?;
    tracing::info!(released = collected.released.len(), "collected");
    Ok(String::new())
}
