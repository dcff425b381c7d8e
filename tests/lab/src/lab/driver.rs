//! Makes the kernel follow the VPC: links come and go, addresses move, as the model announces it.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::RecvTimeoutError;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use super::LabError;
use crate::cloud::Follower;
use crate::fabric::{Fabric, FabricError, NodeLink};
use crate::node::Node;
use crate::vpc::change::{AttachedEni, Owned, VpcChange};
use crate::vpc::ids::{EniId, InstanceId};

/// How often a driver with nothing to do looks whether the lab has ended.
const IDLE: Duration = Duration::from_millis(200);

/// The nodes by instance. Whoever starts an instance holds the lock until its node is in here.
#[derive(Debug, Default)]
pub(super) struct Nodes(Mutex<BTreeMap<InstanceId, Arc<Node>>>);

impl Nodes {
    pub(super) fn lock(&self) -> MutexGuard<'_, BTreeMap<InstanceId, Arc<Node>>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn get(&self, instance: &InstanceId) -> Option<Arc<Node>> {
        self.lock().get(instance).cloned()
    }
}

/// Something that is to happen to a node's link later.
#[derive(Debug)]
enum Later {
    Appear(Box<AttachedEni>),
    Rename {
        instance: InstanceId,
        eni: EniId,
        from: String,
        to: String,
    },
}

impl Later {
    fn eni(&self) -> &EniId {
        match self {
            Self::Appear(attached) => &attached.eni,
            Self::Rename { eni, .. } => eni,
        }
    }
}

/// The state of the driving thread.
#[derive(Debug)]
pub(super) struct Driver {
    fabric: Arc<Fabric>,
    nodes: Arc<Nodes>,
    changes: Follower,
    later: Vec<(Instant, Later)>,
    troubles: Arc<Mutex<Vec<String>>>,
}

impl Driver {
    pub(super) fn new(fabric: Arc<Fabric>, nodes: Arc<Nodes>, changes: Follower) -> Self {
        Self {
            fabric,
            nodes,
            changes,
            later: Vec::new(),
            troubles: Arc::default(),
        }
    }

    /// Applies what has been announced so far.
    pub(super) fn drain(&mut self) -> Result<(), LabError> {
        while let Ok(change) = self.changes.next(Duration::ZERO) {
            self.apply(change)?;
            self.changes.followed();
        }
        Ok(())
    }

    /// Goes on by itself until the handle is dropped or the model is gone.
    pub(super) fn start(mut self) -> std::io::Result<DriverHandle> {
        let stop = Arc::new(AtomicBool::new(false));
        let troubles = Arc::clone(&self.troubles);
        let stopped = Arc::clone(&stop);
        let thread = thread::Builder::new()
            .name("lab-driver".to_owned())
            .spawn(move || while !stopped.load(Ordering::Relaxed) && self.step() {})?;
        Ok(DriverHandle {
            stop,
            thread: Some(thread),
            troubles,
        })
    }

    /// Waits for the next change or the next thing due; false once the model is gone.
    fn step(&mut self) -> bool {
        let due = self.later.iter().map(|(at, _)| *at).min();
        let wait = due.map_or(IDLE, |at| at.saturating_duration_since(Instant::now()).min(IDLE));
        match self.changes.next(wait) {
            Ok(change) => {
                let done = self.apply(change);
                self.note(done);
                self.changes.followed();
            }
            Err(RecvTimeoutError::Timeout) => {}
            Err(RecvTimeoutError::Disconnected) => return false,
        }
        self.do_what_is_due();
        true
    }

    fn note(&self, done: Result<(), LabError>) {
        if let Err(error) = done {
            eprintln!("lab: {error}");
            let mut troubles = self.troubles.lock().unwrap_or_else(PoisonError::into_inner);
            troubles.push(error.to_string());
        }
    }

    fn do_what_is_due(&mut self) {
        let now = Instant::now();
        let (due, later): (Vec<_>, Vec<_>) = std::mem::take(&mut self.later)
            .into_iter()
            .partition(|(at, _)| *at <= now);
        self.later = later;
        for (_, what) in due {
            let done = match what {
                Later::Appear(eni) => self.appear(&eni),
                Later::Rename {
                    instance, from, to, ..
                } => self.rename(&instance, &from, &to),
            };
            self.note(done);
        }
    }

    fn apply(&mut self, change: VpcChange) -> Result<(), LabError> {
        match change {
            VpcChange::EniAttached(eni) => self.attached(eni),
            VpcChange::EniDetached { eni, .. } => {
                self.later.retain(|(_, what)| *what.eni() != eni);
                Ok(self.fabric.detach(&eni)?)
            }
            VpcChange::AddressesChanged {
                eni,
                owned,
                source_dest_check,
                ..
            } => self.readdress(&eni, owned, source_dest_check),
            VpcChange::VpcCidrAdded { cidr, .. } => Ok(self.fabric.add_vpc_cidr(cidr)?),
            // The links went before; namespace and processes stay for whoever still looks at them.
            VpcChange::InstanceTerminated { .. } => Ok(()),
        }
    }

    fn attached(&mut self, eni: Box<AttachedEni>) -> Result<(), LabError> {
        let Some(node) = self.nodes.get(&eni.instance) else {
            return Ok(()); // an instance of the model that has no node here
        };
        let arrival = node.options().arrival;
        if node.primary_eni() == &eni.eni || (arrival.late_by.is_zero() && !arrival.never) {
            return self.appear(&eni);
        }
        if !arrival.never {
            self.later
                .push((Instant::now() + arrival.late_by, Later::Appear(eni)));
        }
        Ok(())
    }

    fn appear(&mut self, eni: &AttachedEni) -> Result<(), LabError> {
        let Some(node) = self.nodes.get(&eni.instance) else {
            return Ok(());
        };
        let options = node.options();
        let primary = node.primary_eni() == &eni.eni;
        let names = if primary {
            &options.primary_name
        } else {
            &options.arrival.name
        };
        let name = names.of(eni.card, eni.device);
        let link = NodeLink {
            netns: node.netns(),
            name: &name,
        };
        self.fabric.attach(eni, link)?;
        if primary {
            return Ok(node.configure_primary(eni, &name)?);
        }
        if let Some((after, to)) = options.arrival.renamed {
            let rename = Later::Rename {
                instance: eni.instance.clone(),
                eni: eni.eni.clone(),
                from: name,
                to,
            };
            self.later.push((Instant::now() + after, rename));
        }
        Ok(())
    }

    fn rename(&self, instance: &InstanceId, from: &str, to: &str) -> Result<(), LabError> {
        match self.nodes.get(instance) {
            Some(node) => Ok(node.rename_link(from, to)?),
            None => Ok(()),
        }
    }

    /// A link that has not appeared yet will appear with the new addresses; one that never will has none.
    fn readdress(&mut self, eni: &EniId, owned: Owned, checked: bool) -> Result<(), LabError> {
        let waiting = self.later.iter_mut().find_map(|(_, what)| match what {
            Later::Appear(attached) if attached.eni == *eni => Some(attached),
            _ => None,
        });
        if let Some(attached) = waiting {
            attached.owned = owned;
            attached.source_dest_check = checked;
            return Ok(());
        }
        match self.fabric.change_addresses(eni, &owned, checked) {
            Err(FabricError::NotAttached(_)) => Ok(()),
            done => Ok(done?),
        }
    }
}

/// Ends the driving thread when dropped.
#[derive(Debug)]
pub(super) struct DriverHandle {
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
    troubles: Arc<Mutex<Vec<String>>>,
}

impl DriverHandle {
    pub(super) fn troubles(&self) -> Vec<String> {
        self.troubles
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .clone()
    }
}

impl Drop for DriverHandle {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            drop(thread.join());
        }
    }
}
