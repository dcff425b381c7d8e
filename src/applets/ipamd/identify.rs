//! Finding out which node this is, and what is asked meanwhile.

use std::time::Duration;

use tokio::sync::mpsc::Receiver;
use tracing::error;

use super::node::NodeError;
use super::stop::Stop;
use super::{clock, node};
use crate::cloud::{DiscoveredEni, Imds, NodeDiscovery};
use crate::ipam::ids::BootId;
use crate::ipam::node::NodeFacts;
use crate::ipam::records::stored_facts;
use crate::rpc::server::Incoming;
use crate::rpc::types::{ErrorKind, Request, ServiceError};
use crate::store::Loaded;

/// IMDS answers within a millisecond when it answers at all; a node that boots waits for its link.
const DISCOVERY_RETRY: Duration = Duration::from_secs(1);

/// Which node this is, and what IMDS listed if it had to be asked.
pub(super) struct Identity {
    /// The node.
    pub(super) facts: NodeFacts,
    /// What IMDS listed on the way.
    pub(super) enis: Option<Vec<DiscoveredEni>>,
}

impl Identity {
    /// From IMDS's answers.
    pub(super) fn found(found: NodeDiscovery, boot: BootId) -> Result<Self, NodeError> {
        Ok(Self {
            facts: node::facts(&found, boot)?,
            enis: Some(found.enis),
        })
    }
}

/// The node as it was stored on this very boot, or on another boot of this very instance where the machine's DMI table
/// says so: then neither IMDS nor EC2 is needed to serve.
pub(super) fn remembered(loaded: &Loaded, boot: &BootId) -> Option<NodeFacts> {
    let stored = stored_facts(&loaded.entries)?;
    let same_instance = || clock::dmi_instance_id().as_ref() == Some(&stored.instance);
    if stored.boot != *boot && !same_instance() {
        return None;
    }
    Some(NodeFacts {
        boot: boot.clone(),
        booted_at: clock::booted_at().ok()?,
        ..stored
    })
}

/// Asks IMDS until it answers. Meanwhile STATUS is told so, and everything else waits. `None` when told to stop.
pub(super) async fn discover(
    imds: &Imds,
    calls: &mut Receiver<Incoming>,
    early: &mut Vec<Incoming>,
    stop: &mut Stop,
) -> Option<NodeDiscovery> {
    let mut last = "IMDS has not answered yet".to_owned();
    loop {
        let attempt = imds.discover();
        tokio::pin!(attempt);
        let failed = loop {
            tokio::select! {
                biased;
                () = stop.told() => return None,
                Some(incoming) = calls.recv() => put_off(incoming, early, &last),
                found = &mut attempt => match found {
                    Ok(found) => return Some(found),
                    Err(error) => break error,
                },
            }
        };
        last = failed.to_string();
        error!("cannot find out which node this is: {failed}");
        let pause = tokio::time::sleep(DISCOVERY_RETRY);
        tokio::pin!(pause);
        loop {
            tokio::select! {
                biased;
                () = stop.told() => return None,
                Some(incoming) = calls.recv() => put_off(incoming, early, &last),
                () = &mut pause => break,
            }
        }
    }
}

/// Answers a question about the state; keeps everything else to be handled later, for as long as somebody waits for it.
fn put_off(incoming: Incoming, early: &mut Vec<Incoming>, why: &str) {
    match incoming {
        Incoming::Call(call) if matches!(call.request, Request::Status | Request::Dump) => {
            let error = ServiceError::new(ErrorKind::Starting, format!("ipamd is starting: {why}"))
                .with_next_step(
                    "check that IMDSv2 answers on this node: hop limit, firewall, instance metadata options",
                );
            // A client that left needs no answer.
            call.replies.fail(error);
        }
        // Runtimes retry for as long as IMDS is away; nothing may pile up here for them.
        Incoming::HungUp { id } => {
            early.retain(|kept| !matches!(kept, Incoming::Call(call) if call.id == id));
        }
        call @ Incoming::Call(_) => early.push(call),
    }
}

#[cfg(test)]
mod tests {
    use tokio::sync::mpsc::channel;

    use super::*;
    use crate::rpc::client::Client;
    use crate::rpc::server::{self, Limits};
    use crate::rpc::types::{Add, Status};

    #[tokio::test]
    async fn what_nobody_waits_for_any_more_does_not_pile_up() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("ipamd.sock");
        let (calls, mut incoming) = channel(8);
        let listener = server::bind(&path).unwrap();
        tokio::spawn(server::serve(
            listener,
            Limits::default(),
            calls,
            std::future::pending(),
        ));
        let patience = Duration::from_secs(30);
        let connect = {
            let path = path.clone();
            move || Client::connect(&path, patience).unwrap()
        };
        let add = Add {
            network: "aws-cni".into(),
            container_id: "c".into(),
            ifname: "eth0".into(),
            netns: "/run/netns/x".to_owned(),
            pod: crate::ipam::ids::PodRef::default(),
            host_veth: "eni1".to_owned(),
            deadline_ms: 30_000,
            card: None,
            main: None,
            host_ports: Vec::new(),
        };
        let plugin = tokio::task::spawn_blocking({
            let connect = connect.clone();
            move || connect().send_add(add).unwrap()
        });
        let mut early = Vec::new();
        put_off(incoming.recv().await.unwrap(), &mut early, "IMDS is away");
        assert_eq!(early.len(), 1);

        let status = tokio::task::spawn_blocking(move || connect().status());
        put_off(incoming.recv().await.unwrap(), &mut early, "IMDS is away");
        let refusal: Result<Status, _> = status.await.unwrap();
        assert!(refusal.unwrap_err().to_string().contains("IMDS is away"));
        assert_eq!(early.len(), 1);

        drop(plugin.await.unwrap());
        put_off(incoming.recv().await.unwrap(), &mut early, "IMDS is away");
        assert_eq!(early.len(), 0);
    }
}
