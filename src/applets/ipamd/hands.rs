//! Executes effects that reach outside: EC2, IMDS, the kernel. Every outcome comes back as mail.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::sync::Arc;

use tokio::spawn;
use tokio::sync::mpsc::UnboundedSender;
use tracing::{info, warn};

use super::guardian::Listener;
use super::kernel::{Job, Kernel};
use super::mail::Mail;
use super::node;
use crate::cloud::{Ec2, Imds};
use crate::ipam::effect::{Effect, Reply};
use crate::ipam::event::Event;
use crate::ipam::ids::{Mac, WaiterId};
use crate::net::guard::Author;
use crate::net::nft::PodPorts;
use crate::net::pod::{PodRemoval, RecordedPod};

/// What the actor acts with.
#[derive(Debug)]
pub(super) struct Hands {
    ec2: Arc<Ec2>,
    imds: Arc<Imds>,
    primary: Mac,
    kernel: Kernel,
    /// As long as it is here somebody listens to the kernel.
    _listener: Option<Listener>,
    mail: UnboundedSender<Mail>,
}

impl Hands {
    /// `mail` is where outcomes go.
    pub(super) fn new(
        ec2: Ec2,
        imds: Arc<Imds>,
        primary: Mac,
        kernel: Kernel,
        listener: Option<Listener>,
        mail: UnboundedSender<Mail>,
    ) -> Self {
        Self {
            ec2: Arc::new(ec2),
            imds,
            primary,
            kernel,
            _listener: listener,
            mail,
        }
    }

    /// Begins one effect; never waits.
    pub(super) fn act(&self, effect: Effect) {
        match effect {
            Effect::Call { call, request } => {
                let (ec2, mail) = (Arc::clone(&self.ec2), self.mail.clone());
                spawn(async move {
                    let action = crate::cloud::action(&request);
                    let result = ec2.execute(&request).await;
                    match &result {
                        Ok(_) => info!(action, "EC2 answered"),
                        Err(failure) => warn!(action, aws_request_id = failure.request_id, "{failure}"),
                    }
                    // The actor is gone only when the daemon ends.
                    drop(mail.send(Event::CallEnded { call, result }.into()));
                });
            }
            Effect::ConfigureEni(intent) => self.kernel.ask(Job::Configure(intent)),
            Effect::Publish { eni, mark, addresses } => {
                self.kernel.ask(Job::Publish { eni, mark, addresses });
            }
            Effect::Unpublish { addresses, .. } => self.kernel.ask(Job::Unpublish(addresses)),
            Effect::UnconfigureEni { eni, primary, mark } => {
                self.kernel.ask(Job::Unconfigure { eni, primary, mark });
            }
            Effect::RemoveRules(addresses) => self.kernel.ask(Job::RemoveRules(addresses)),
            Effect::ReadKernel => self.kernel.ask(Job::Read),
            Effect::ReadImds => self.sweep(),
            // The actor keeps these for itself.
            Effect::Commit { .. }
            | Effect::Reply { .. }
            | Effect::WakeAt(_)
            | Effect::Alarm(_)
            | Effect::Unwire(_) => {}
        }
    }

    /// Takes away what no plugin will, and has the actor give the answer afterwards, if there is one.
    pub(super) fn unwire(&self, pods: Vec<PodRemoval>, answer: Option<(WaiterId, Reply)>) {
        self.kernel.ask(Job::Unwire { pods, answer });
    }

    /// These ports of the node lead to these pods, and no others to any.
    pub(super) fn lead_ports(&self, ports: PodPorts) {
        self.kernel.ask(Job::Ports(ports));
    }

    /// Looks at these pods in the kernel, and puts right what is missing of them.
    pub(super) fn restore(&self, pods: Vec<RecordedPod>, gone: BTreeMap<IpAddr, Author>, all: bool) {
        self.kernel.ask(Job::Restore { pods, gone, all });
    }

    fn sweep(&self) {
        let (imds, mail, primary) = (Arc::clone(&self.imds), self.mail.clone(), self.primary);
        spawn(async move {
            match imds.sweep(primary).await {
                Ok((enis, incomplete)) => {
                    for (mac, why) in incomplete {
                        warn!(%mac, "IMDS lists an ENI without describing it: {why}");
                    }
                    drop(mail.send(Event::Imds(node::snapshot(enis)).into()));
                }
                Err(error) => warn!("IMDS could not be read: {error}"),
            }
        });
    }
}
