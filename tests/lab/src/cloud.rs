//! The cloud as a whole: the model, its faults, its call log and its two servers.

mod wires;

use std::io;
use std::net::{IpAddr, TcpListener};
use std::sync::mpsc::Receiver;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Instant;

use tokio::sync::{Notify, oneshot};
pub(crate) use wires::{Follower, Wires};

use crate::calls::CallLog;
use crate::faults::{Faults, Preset};
use crate::http::Server;
use crate::vpc::journal::{Version, View};
use crate::vpc::{ApiResult, Instance, InstanceId, Model, NewInstance, VpcChange};

/// What a cloud starts with.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CloudConfig {
    /// Determines ids, addresses and delays.
    pub seed: u64,
    /// The region's name.
    pub region: String,
    /// The account's number.
    pub account: String,
    /// Timings and limits.
    pub preset: Preset,
}

impl Default for CloudConfig {
    fn default() -> Self {
        Self {
            seed: 1,
            region: "eu-central-1".to_owned(),
            account: "123456789012".to_owned(),
            preset: Preset::Instant,
        }
    }
}

/// What the servers share.
#[derive(Debug)]
pub(crate) struct Shared {
    model: Mutex<Model>,
    changed: Notify,
    wires: Arc<Wires>,
    pub(crate) faults: Faults,
    pub(crate) calls: CallLog,
    pub(crate) seed: u64,
}

impl Shared {
    /// Works on the model after everything due has happened.
    pub(crate) fn model<T>(&self, work: impl FnOnce(&mut Model, Instant) -> T) -> T {
        let now = Instant::now();
        let mut model = self.lock();
        model.advance(now);
        let result = work(&mut model, now);
        drop(model);
        self.changed.notify_one();
        result
    }

    /// ENIs as a reader sees them whom `visible` versions have reached, if the kernel has followed them, too.
    pub(crate) fn view(&self, model: &Model, visible: impl Fn(&Version) -> bool) -> View {
        let followed = self.wires.followed();
        model.view(|version| version.readdressed <= followed && visible(version))
    }

    /// Waits until the kernel has followed all addresses that have come or gone so far.
    pub(crate) async fn followed(&self) {
        let readdressed = self.lock().readdressed();
        self.wires.reach(readdressed).await;
    }

    fn lock(&self) -> MutexGuard<'_, Model> {
        self.model.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The node a connection comes from.
    pub(crate) fn instance_at(&self, peer: IpAddr) -> Option<InstanceId> {
        self.lock().instance_at(peer)
    }
}

/// Ends the runtime's thread when the last handle of the cloud goes.
#[derive(Debug)]
struct Runtime {
    handle: tokio::runtime::Handle,
    end: Option<oneshot::Sender<()>>,
    thread: Option<std::thread::JoinHandle<()>>,
}

impl Drop for Runtime {
    fn drop(&mut self) {
        drop(self.end.take());
        if let Some(thread) = self.thread.take() {
            // A panic in there was printed when it happened; this may itself run during one.
            drop(thread.join());
        }
    }
}

/// The cloud; clones share it, and it ends with the last of them.
#[derive(Debug, Clone)]
pub struct Cloud {
    shared: Arc<Shared>,
    runtime: Arc<Runtime>,
}

impl Cloud {
    /// An empty region with its servers' runtime.
    pub fn new(config: &CloudConfig) -> io::Result<Self> {
        let shared = Arc::new(Shared {
            model: Mutex::new(Model::new(config.seed, &config.region, &config.account)),
            changed: Notify::new(),
            wires: Arc::default(),
            faults: Faults::new(config.seed, config.preset),
            calls: CallLog::default(),
            seed: config.seed,
        });
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_io()
            .enable_time()
            .build()?;
        let handle = runtime.handle().clone();
        let (end, ended) = oneshot::channel::<()>();
        let clockwork = Arc::clone(&shared);
        let thread = std::thread::Builder::new()
            .name("lab-cloud".to_owned())
            .spawn(move || {
                runtime.spawn(keep_time(clockwork));
                // The sender is never used: its end is the signal.
                drop(runtime.block_on(ended));
            })?;
        let runtime = Arc::new(Runtime {
            handle,
            end: Some(end),
            thread: Some(thread),
        });
        Ok(Self { shared, runtime })
    }

    /// Looks at the model or changes it, as AWS's own hand or as another tenant would, and waits until the kernel of a
    /// lab has followed.
    pub fn model<T>(&self, work: impl FnOnce(&mut Model) -> T) -> T {
        self.followed(|model, _| work(model))
    }

    /// Launches an instance.
    pub fn run_instance(&self, spec: NewInstance) -> ApiResult<Instance> {
        self.followed(|model, now| model.run_instance(spec, now))
    }

    /// Terminates an instance.
    pub fn terminate_instance(&self, id: &InstanceId) -> ApiResult<()> {
        self.followed(|model, now| model.terminate_instance(id, now))
    }

    fn followed<T>(&self, work: impl FnOnce(&mut Model, Instant) -> T) -> T {
        let (result, announced) = self
            .shared
            .model(|model, now| (work(model, now), model.announced()));
        self.shared.wires.wait(announced);
        result
    }

    /// Changes the model without waiting, for who holds what the kernel needs to follow.
    pub(crate) fn model_ahead<T>(&self, work: impl FnOnce(&mut Model) -> T) -> T {
        self.shared.model(|model, _| work(model))
    }

    /// Changes that have a kernel side, beginning with the ENIs whose links exist already.
    ///
    /// They come in the order they happen. The model doesn't wait for the receiver.
    pub fn subscribe(&self) -> Receiver<VpcChange> {
        self.shared.model(|model, _| model.subscribe())
    }

    /// As [`Self::subscribe`], for the one receiver the model's readers wait for.
    pub(crate) fn follow(&self) -> Follower {
        self.shared.model(|model, _| {
            let changes = model.subscribe();
            let from_before = model.linked().count();
            Follower::new(
                changes,
                from_before,
                model.announced(),
                Arc::clone(&self.shared.wires),
            )
        })
    }

    /// The controls of what goes wrong and how long it takes.
    pub fn faults(&self) -> &Faults {
        &self.shared.faults
    }

    /// The log of all calls.
    pub fn calls(&self) -> &CallLog {
        &self.shared.calls
    }

    /// Serves the EC2 API on a listener made anywhere. A node is known by any address of its ENIs.
    pub fn serve_ec2(&self, listener: TcpListener) -> io::Result<Server> {
        self.serve_ec2_for(listener, None)
    }

    /// As [`Self::serve_ec2`], with the node that callers of unknown address belong to: inside a node's namespace
    /// a connection to a local address comes from that address itself.
    pub fn serve_ec2_for(&self, listener: TcpListener, node: Option<InstanceId>) -> io::Result<Server> {
        let handler = crate::ec2::Endpoint::new(Arc::clone(&self.shared), node);
        Server::start(&self.runtime.handle, listener, Arc::new(handler))
    }

    /// Serves IMDS on a listener made anywhere; the node is known by any address of its ENIs.
    pub fn serve_imds(&self, listener: TcpListener) -> io::Result<Server> {
        self.serve_imds_for(listener, None)
    }

    /// As [`Self::serve_imds`], with the node that callers of unknown address belong to.
    pub fn serve_imds_for(&self, listener: TcpListener, node: Option<InstanceId>) -> io::Result<Server> {
        let handler = crate::imds::Endpoint::new(Arc::clone(&self.shared), node);
        Server::start(&self.runtime.handle, listener, Arc::new(handler))
    }
}

async fn keep_time(shared: Arc<Shared>) {
    loop {
        let next = {
            let mut model = shared.lock();
            model.advance(Instant::now());
            model.next_due()
        };
        let changed = shared.changed.notified();
        match next {
            // A timeout is the news that something is due.
            Some(due) => drop(tokio::time::timeout_at(due.into(), changed).await),
            None => changed.await,
        }
    }
}
