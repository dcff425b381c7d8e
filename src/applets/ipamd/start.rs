//! From nothing to serving, and back.

use std::collections::BTreeMap;
use std::io;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use tokio::net::UnixListener;
use tokio::sync::mpsc::{UnboundedReceiver, UnboundedSender, channel, unbounded_channel};
use tracing::{error, info, warn};

use super::actor::{self, Actor};
use super::deferred::Deferred;
use super::guardian::{self, Guardian};
use super::hands::Hands;
use super::identify::{Identity, discover, remembered};
use super::kernel::{self, Job, SetupError};
use super::mail::Mail;
use super::node::NodeError;
use super::reload::{self, Files};
use super::stop::Stop;
use super::{clock, host, left_behind, links, node, refresh, settings, state, takeover, vpc};
use crate::causes::chain;
use crate::cloud::{Ec2, Ec2Settings, Imds, ImdsError, ImdsLimits};
use crate::config::Config;
use crate::ipam::event::Event;
use crate::ipam::limits;
use crate::ipam::pool::Pool;
use crate::ipam::recover::{Start, summary};
use crate::net::facts::HostFacts;
use crate::net::inherited::{self, InheritedError};
use crate::net::netlink::NetError;
use crate::observe::{NotifyError, Systemd};
use crate::rpc::server::{self, Limits};
use crate::store::{CommitError, OpenError, Store};

/// Calls taken from the socket and not yet handled; more wait in the socket.
const CALL_QUEUE: usize = 2048;
/// Deferred DELs are left only while the daemon is away or overwhelmed; alarms are seldom held back.
const HOUSEKEEPING: Duration = Duration::from_secs(30);

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
    /// What was taken over from the Go daemon could not be stored.
    #[error("the Go daemon's pods could not be stored: {}", chain(.0))]
    TakeOver(#[from] CommitError),
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
    let (store, mut loaded) = state::of_this_instance((store, loaded), &identity.facts, &database)?;
    takeover::at_first_start(&config, &identity, &store, &mut loaded)?;
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
    let boot = facts.boot.clone();
    let ec2 = Ec2::new(Ec2Settings::of_node(
        &config.aws,
        Some(&node::region_of(&facts.zone)),
    ));
    let veth_prefix = &config.network.veth_prefix;
    let seen = HostFacts::observe(veth_prefix)?;
    let kernel_facts = kernel::facts(seen.clone(), veth_prefix);
    let mut policy = settings::policy(config, seed());
    let mut files = Files::of(config, &facts.zone);
    files.refresh(&mut policy);
    let gone = left_behind::sandboxes(&records, &seen);
    let start = Start {
        policy: policy.clone(),
        limits: limits::lookup(&facts.instance_type),
        facts,
        records,
        kernel: kernel_facts.clone(),
        gone,
    };
    let (pool, effects) = Pool::recover(start, clock::now());
    info!("found {}", summary(&pool));
    let settings = guardian::settings();
    let guardian = Guardian::new(settings.clone());
    let setup = host::setup(config, &pool, &kernel_facts, &seen);
    let kernel = kernel::start(setup, mail.clone(), guardian)?;
    let listener = guardian::listen(settings, kernel.clone());
    links::watch(config.network.veth_prefix.clone(), mail.clone(), kernel.clone())?;
    // What is remembered may be out of date, what has just been discovered is not.
    let first = identity.enis.as_ref().map_or(Duration::ZERO, |_| vpc::EVERY);
    let (pool_mail, rules) = (mail.clone(), kernel.clone());
    vpc::follow(Arc::clone(&imds), primary, first, vpc::EVERY, move |news| {
        let event = match news {
            vpc::News::Networks(cidrs) => {
                rules.ask(Job::VpcCidrs(cidrs.clone()));
                Event::VpcCidrs(cidrs)
            }
            vpc::News::Groups(groups) => Event::Groups(groups),
        };
        // The actor is gone only when the daemon ends.
        drop(pool_mail.send(event.into()));
    });
    if identity.enis.is_none() {
        refresh::once(Arc::clone(&imds), boot, mail.clone());
    }
    keep_house(&mail);
    reload::follow(files, policy, reload::EVERY, mail.clone());
    let hands = Hands::new(ec2, imds, primary, kernel, listener, mail.clone());
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

/// A number of this node's own, so that a fleet does not retry in step.
fn seed() -> u64 {
    let mut bytes = [0; 8];
    match getrandom::fill(&mut bytes) {
        Ok(()) => u64::from_ne_bytes(bytes),
        Err(_) => u64::from(std::process::id()),
    }
}

fn keep_house(mail: &UnboundedSender<Mail>) {
    let mail = mail.clone();
    tokio::spawn(async move {
        loop {
            tokio::time::sleep(HOUSEKEEPING).await;
            if mail.send(Mail::Housekeeping).is_err() {
                return;
            }
        }
    });
}
