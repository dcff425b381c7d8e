//! Keeps what is ours in the kernel: whatever somebody takes away is put back at once, and who did it is said.
//!
//! A thread listens to the kernel and tells the one that writes it ([`super::kernel`]), which compares with what it
//! wants. Two managers that want different things would do so for ever, so each thing is put back only so often
//! ([`Limiter`]); then one alarm names it, and it is left alone for a while.

use std::collections::{BTreeMap, BTreeSet};
use std::io::{self, PipeReader, PipeWriter};
use std::net::IpAddr;
use std::os::fd::AsFd;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use tracing::{error, warn};

use super::kernel::{Job, Kernel};
use crate::ipam::ids::EniId;
use crate::net::eni::EniIntent;
use crate::net::guard::{Author, Limiter, SettingsWatch, Sighting, Verdict, Watch, Woken};
use crate::net::host::HostIntent;
use crate::net::netlink::NetError;
use crate::net::pod::Repairs;

/// What one command takes away comes in many pieces; so long is waited for the rest.
const GATHER: Duration = Duration::from_millis(5);
/// A look without news, for what no news tells of.
const SWEEP: Duration = Duration::from_secs(30);
/// After the kernel could not be listened to.
const LISTEN_AGAIN: Duration = Duration::from_secs(1);

/// The listening thread; it ends when this is dropped.
#[derive(Debug)]
pub(super) struct Listener {
    _stop: PipeWriter,
}

/// Listens in the calling thread's namespace and tells `kernel`. Where that is refused, what others change is put right at
/// the next start only.
pub(super) fn listen(settings: Option<Arc<SettingsWatch>>, kernel: Kernel) -> Option<Listener> {
    let begin = || -> io::Result<Listener> {
        let watch = Watch::open(settings).map_err(io::Error::other)?;
        let (stopped, stop) = io::pipe()?;
        std::thread::Builder::new()
            .name("guardian".into())
            .spawn(move || run(watch, &stopped, &kernel))?;
        Ok(Listener { _stop: stop })
    };
    begin()
        .inspect_err(|error| {
            error!("what others change in the kernel is not put right before the next start: {error}");
        })
        .ok()
}

/// A watch of kernel parameters, none yet. Without it they are looked at only now and then.
pub(super) fn settings() -> Option<Arc<SettingsWatch>> {
    SettingsWatch::open()
        .inspect_err(|error| {
            warn!(
                "kernel parameters are looked at every {} s only: {error}",
                SWEEP.as_secs()
            );
        })
        .ok()
        .map(Arc::new)
}

fn run(mut watch: Watch, stopped: &PipeReader, kernel: &Kernel) {
    let mut sweep_at = Instant::now() + SWEEP;
    loop {
        let mut sighting = Sighting::default();
        match watch.wait(
            stopped.as_fd(),
            sweep_at.saturating_duration_since(Instant::now()),
        ) {
            Ok(Woken::Stopped) => return,
            Ok(Woken::Silence) => sighting = Sighting::everything(),
            Ok(Woken::News) => {
                if let Err(error) = gather(&mut watch, &mut sighting) {
                    warn!("changes to the kernel cannot be listened to: {error}");
                    std::thread::sleep(LISTEN_AGAIN);
                    sighting = Sighting::everything();
                }
            }
            Err(errno) => {
                return error!("changes to the kernel are no longer put right: {errno}");
            }
        }
        if Instant::now() >= sweep_at || sighting.all {
            sweep_at = Instant::now() + SWEEP;
            sighting.all = true;
        }
        if !sighting.is_empty() {
            kernel.ask(Job::Guard(sighting));
        }
    }
}

/// The first read is at once, while whoever did it may still be there to be named.
fn gather(watch: &mut Watch, sighting: &mut Sighting) -> Result<(), NetError> {
    watch.read(sighting)?;
    std::thread::sleep(GATHER);
    watch.read(sighting)
}

/// What the thread that writes the kernel needs to put things right.
#[derive(Debug)]
pub(super) struct Guardian {
    limiter: Limiter,
    since: Instant,
    settings: Option<Arc<SettingsWatch>>,
    /// The ENIs that were configured, as they should be.
    pub(super) enis: BTreeMap<EniId, EniIntent>,
    /// Pods that missed something at the last look without news of it: they may be in the middle of being wired.
    suspects: BTreeSet<IpAddr>,
}

impl Guardian {
    /// Of nothing yet.
    pub(super) fn new(settings: Option<Arc<SettingsWatch>>) -> Self {
        Self {
            limiter: Limiter::default(),
            since: Instant::now(),
            settings,
            enis: BTreeMap::new(),
            suspects: BTreeSet::new(),
        }
    }

    /// Whether `thing`, which is not as it should be, is to be put right. A dispute is told once.
    pub(super) fn may(&mut self, thing: &str, by: &str) -> bool {
        match self.limiter.judge(thing, self.since.elapsed()) {
            Verdict::Repair => true,
            Verdict::Leave => false,
            Verdict::Dispute(pause) => {
                error!(
                    thing,
                    by,
                    "{thing} is changed again and again by {by}; left as it is for {} s; next: make whoever it is leave \
                     it alone (docs/troubleshoot.md)",
                    pause.as_secs()
                );
                false
            }
        }
    }

    /// What is left alone at the moment.
    pub(super) fn disputed(&self) -> Vec<String> {
        let disputed = self.limiter.disputed(self.since.elapsed());
        disputed.map(str::to_owned).collect()
    }

    /// Listens to the kernel parameters of this node as it is now.
    pub(super) fn watch_settings(&self, intent: &HostIntent, primary: &str, enis: &BTreeMap<EniId, String>) {
        let Some(watch) = &self.settings else { return };
        let mut paths: BTreeSet<PathBuf> = intent.settings(primary).collect();
        for (eni, link) in enis {
            let settings = self.enis.get(eni).map(|eni| eni.settings(link));
            let settings = settings.into_iter().flatten();
            paths.extend(settings.map(|setting| setting.path().to_owned()));
        }
        if let Err(error) = watch.watch_only(&paths) {
            warn!("some kernel parameters cannot be watched, and are looked at only now and then: {error}");
        }
    }

    /// Leaves of what was found only what may be put right now. Without news of the pod it takes a second look: a pod
    /// that is being wired has its link a moment before its route.
    pub(super) fn ripe(&mut self, mut found: Repairs, pods: &BTreeMap<IpAddr, Author>, all: bool) -> Repairs {
        let missing: BTreeSet<IpAddr> = found.repairs.iter().map(|repair| repair.address).collect();
        let suspects = if all {
            std::mem::replace(&mut self.suspects, missing)
        } else {
            BTreeSet::new()
        };
        found.repairs.retain(|repair| {
            let author = pods.get(&repair.address);
            let is_sure = author.is_some() || suspects.contains(&repair.address);
            let by = author.map_or_else(|| "somebody".to_owned(), ToString::to_string);
            is_sure && self.may(&format!("the pod with {}", repair.address), &by)
        });
        // What cannot be helped was told at the start.
        found.left_alone.clear();
        found
    }
}

/// Names whoever was seen at the same moment.
pub(super) fn authors(sighting: &Sighting) -> String {
    let names: Vec<String> = sighting.host.iter().map(ToString::to_string).collect();
    if names.is_empty() {
        "somebody".to_owned()
    } else {
        names.join(" or ")
    }
}
