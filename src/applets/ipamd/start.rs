//! From nothing to serving, and back.

use std::collections::BTreeMap;
use std::io;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use tokio::net::UnixListener;
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::sync::mpsc::{Receiver, UnboundedReceiver, UnboundedSender, channel, unbounded_channel};
use tokio::sync::watch;
use tracing::{error, info, warn};

use super::actor::{self, Actor, Mail};
use super::deferred::Deferred;
use super::hands::Hands;
use super::kernel::{self, Job, SetupError};
use super::node::NodeError;
use super::{clock, host, links, node, settings, state, vpc};
use crate::cloud::{DiscoveredEni, Ec2, Ec2Settings, Imds, ImdsError, ImdsLimits, NodeDiscovery};
use crate::config::Config;
use crate::ipam::event::Event;
use crate::ipam::ids::BootId;
use crate::ipam::limits;
use crate::ipam::node::NodeFacts;
use crate::ipam::pool::Pool;
use crate::ipam::records::stored_facts;
use crate::ipam::recover::Start;
use crate::net::inherited::{self, InheritedError};
use crate::net::netlink::NetError;
use crate::observe::{NotifyError, Systemd};
use crate::rpc::server::{self, Incoming, Limits};
use crate::rpc::types::{ErrorKind, Request, ServiceError};
use crate::store::{Loaded, OpenError, Store};

/// Calls taken from the socket and not yet handled; more wait in the socket.
const CALL_QUEUE: usize = 2048;
/// IMDS answers within a millisecond when it answers at all; a node that boots waits for its link.
const DISCOVERY_RETRY: Duration = Duration::from_secs(1);
/// Deferred DELs are left only while the daemon is away or overwhelmed.
const DEFERRED_REFRESH: Duration = Duration::from_secs(30);

/// Why the daemon does not serve.
#[derive(Debug, thiserror::Error)]
pub(super) enum StartError {
    /// No runtime, signal handler or thread.
    #[error("the system refuses what every process needs: {0}")]
    Process(#[source] io::Error),
    /// The socket systemd passed is not one.
    #[error(transparent)]
    Inherited(#[from] InheritedError),
    /// The socket could not be bound.
    #[error("cannot listen on {path}: {source}")]
    Listen {
        /// Where.
        path: String,
        /// Why.
        source: io::Error,
    },
    /// The store does not open.
    #[error("{}", chain(.0))]
    Store(#[from] OpenError),
    /// The IMDS endpoint's address is wrong.
    #[error(transparent)]
    Imds(#[from] ImdsError),
    /// IMDS describes no node that can be served.
    #[error(transparent)]
    Node(#[from] NodeError),
    /// The kernel cannot be read.
    #[error(transparent)]
    Kernel(#[from] NetError),
    /// The host cannot be set up.
    #[error("the host network could not be set up: {0}")]
    Host(#[from] SetupError),
    /// `NOTIFY_SOCKET` is wrong.
    #[error(transparent)]
    Notify(#[from] NotifyError),
}

/// An error with its causes, on one line.
fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(next) = cause {
        text.push_str(": ");
        text.push_str(&next.to_string());
        cause = next.source();
    }
    text
}

/// Serves until told to stop.
///
/// # Errors
/// What kept it from serving.
pub(super) fn run(config: Config) -> Result<(), StartError> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(StartError::Process)?;
    runtime.block_on(serve(config))
}

async fn serve(config: Config) -> Result<(), StartError> {
    let systemd = Systemd::from_env(&std::env::vars().collect(), std::process::id())?;
    let mut stop = Stop::watch().map_err(StartError::Process)?;
    let listener = listen(&config.daemon.socket)?;
    let (calls_in, mut calls) = channel(CALL_QUEUE);
    let server = tokio::spawn(server::serve(
        listener,
        Limits::default(),
        calls_in,
        stop.signal(),
    ));

    let boot = clock::boot_id().map_err(StartError::Process)?;
    let database = config.daemon.state_dir.join("ipam");
    let (store, loaded) = state::open(&database)?;
    state::tell(&loaded);
    let endpoint = config.aws.metadata_endpoint.as_deref();
    let imds = Arc::new(Imds::new(endpoint, ImdsLimits::default())?);
    let mut early = Vec::new();
    let identity = if let Some(facts) = remembered(&loaded, &boot) {
        Identity { facts, enis: None }
    } else {
        let Some(found) = discover(&imds, &mut calls, &mut early, &mut stop).await else {
            store.close();
            return Ok(());
        };
        Identity::found(found, boot)?
    };
    let (store, loaded) = state::of_this_instance((store, loaded), &identity.facts, &database)?;
    let records = loaded.entries;
    let (mut actor, letters) = assemble(&config, identity, records, store, imds)?;
    notified(systemd.ready("serving"));
    info!(socket = %config.daemon.socket.display(), "serving on {}", config.daemon.socket.display());
    for incoming in early {
        actor.hear(incoming);
    }
    let beat = systemd.watchdog_interval();
    let actor = actor::run(actor, calls, letters, beat, || notified(systemd.alive())).await;
    notified(systemd.stopping());
    if let Err(error) = server.await {
        error!("the socket's task failed: {error}");
    }
    // What was begun at EC2 is not waited for: it is an intent in the store, and goes on after the next start.
    actor.into_store().close();
    info!("stopped; ENIs, addresses and pods stay as they are");
    Ok(())
}

/// Which node this is, and what IMDS listed if it had to be asked.
struct Identity {
    facts: NodeFacts,
    enis: Option<Vec<DiscoveredEni>>,
}

impl Identity {
    fn found(found: NodeDiscovery, boot: BootId) -> Result<Self, NodeError> {
        Ok(Self {
            facts: node::facts(&found, boot)?,
            enis: Some(found.enis),
        })
    }
}

/// The pool from what is known, the host set up for it, and everything that feeds them started.
fn assemble(
    config: &Config,
    identity: Identity,
    records: BTreeMap<String, Vec<u8>>,
    store: Store,
    imds: Arc<Imds>,
) -> Result<(Actor, UnboundedReceiver<Mail>), StartError> {
    let (mail, letters) = unbounded_channel();
    let facts = identity.facts;
    info!(
        instance = %facts.instance,
        eni = %facts.primary_eni,
        "this is {}, a {} in {}",
        facts.instance,
        facts.instance_type,
        facts.zone
    );
    let primary = facts.primary_mac;
    let ec2 = Ec2::new(Ec2Settings::of_node(
        &config.aws,
        Some(&node::region_of(&facts.zone)),
    ));
    let kernel_facts = kernel::read(&config.network.veth_prefix)?;
    let start = Start {
        policy: settings::policy(config, seed()),
        limits: limits::lookup(&facts.instance_type),
        facts,
        records,
        kernel: kernel_facts.clone(),
    };
    let (pool, effects) = Pool::recover(start, clock::now());
    let kernel = kernel::start(host::setup(config, &pool, &kernel_facts), mail.clone())?;
    links::watch(config.network.veth_prefix.clone(), mail.clone(), kernel.clone())?;
    // What is remembered may be out of date, what has just been discovered is not.
    let first = identity.enis.as_ref().map_or(Duration::ZERO, |_| vpc::EVERY);
    let (pool_mail, rules) = (mail.clone(), kernel.clone());
    vpc::follow(Arc::clone(&imds), primary, first, vpc::EVERY, move |cidrs| {
        rules.ask(Job::VpcCidrs(cidrs.clone()));
        // The actor is gone only when the daemon ends.
        drop(pool_mail.send(Event::VpcCidrs(cidrs).into()));
    });
    refresh_deferred(&mail);
    let hands = Hands::new(ec2, imds, primary, kernel, mail.clone());
    let deferred = Deferred::new(&config.daemon.state_dir);
    let mut actor = Actor::new(pool, store, hands, mail, config.network.rule_layout, deferred);
    actor.execute(effects);
    if let Some(enis) = identity.enis {
        actor.step(Event::Imds(node::snapshot(enis)));
    }
    actor.work_off_deferred();
    Ok((actor, letters))
}

fn notified(result: Result<(), NotifyError>) {
    if let Err(error) = result {
        warn!("systemd could not be told: {error}");
    }
}

/// The socket systemd holds for us, or one of our own.
fn listen(path: &Path) -> Result<UnixListener, StartError> {
    let failed = |source| StartError::Listen {
        path: path.display().to_string(),
        source,
    };
    let Some(inherited) = inherited::listener()? else {
        return server::bind(path).map_err(failed);
    };
    let listener = std::os::unix::net::UnixListener::from(inherited);
    listener.set_nonblocking(true).map_err(failed)?;
    UnixListener::from_std(listener).map_err(failed)
}

/// The node as it was stored on this very boot, or on another boot of this very instance where the machine's DMI table
/// says so: then neither IMDS nor EC2 is needed to serve.
fn remembered(loaded: &Loaded, boot: &BootId) -> Option<NodeFacts> {
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
async fn discover(
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
                Some(incoming) = calls.recv() => early.extend(put_off(incoming, &last)),
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
                Some(incoming) = calls.recv() => early.extend(put_off(incoming, &last)),
                () = &mut pause => break,
            }
        }
    }
}

/// Answers a question about the state; gives everything else back to be handled later.
fn put_off(incoming: Incoming, why: &str) -> Option<Incoming> {
    match incoming {
        Incoming::Call(call) if matches!(call.request, Request::Status | Request::Dump) => {
            let error = ServiceError::new(ErrorKind::Starting, format!("ipamd is starting: {why}"))
                .with_next_step(
                    "check that IMDSv2 answers on this node: hop limit, firewall, instance metadata options",
                );
            // A client that left needs no answer.
            call.replies.fail(error);
            None
        }
        other => Some(other),
    }
}

/// A number of this node's own, so that a fleet does not retry in step.
fn seed() -> u64 {
    let mut bytes = [0; 8];
    match getrandom::fill(&mut bytes) {
        Ok(()) => u64::from_ne_bytes(bytes),
        Err(_) => u64::from(std::process::id()),
    }
}

fn refresh_deferred(mail: &UnboundedSender<Mail>) {
    let mail = mail.clone();
    tokio::spawn(async move {
        loop {
            tokio::time::sleep(DEFERRED_REFRESH).await;
            if mail.send(Mail::LookForDeferred).is_err() {
                return;
            }
        }
    });
}

/// SIGTERM and SIGINT, told to whoever asks.
struct Stop {
    told: watch::Receiver<bool>,
}

impl Stop {
    fn watch() -> io::Result<Self> {
        let mut terminate = signal(SignalKind::terminate())?;
        let mut interrupt = signal(SignalKind::interrupt())?;
        let (tell, told) = watch::channel(false);
        tokio::spawn(async move {
            first(&mut terminate, &mut interrupt).await;
            info!("told to stop; finishing what is in flight");
            tell.send_replace(true);
            // Kept open: a closed channel would read as a signal nobody sent.
            std::future::pending::<()>().await;
        });
        Ok(Self { told })
    }

    async fn told(&mut self) {
        if self.told.wait_for(|told| *told).await.is_err() {
            std::future::pending::<()>().await;
        }
    }

    fn signal(&self) -> impl Future<Output = ()> + Send + 'static {
        let mut told = Self {
            told: self.told.clone(),
        };
        async move { told.told().await }
    }
}

async fn first(one: &mut Signal, other: &mut Signal) {
    tokio::select! {
        _ = one.recv() => {}
        _ = other.recv() => {}
    }
}
