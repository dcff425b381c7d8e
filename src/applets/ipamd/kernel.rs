//! The kernel's part of the daemon: one thread that does what is asked, one thing after the other.
//!
//! A thread of its own because netlink and `/proc/sys` are synchronous, and one because two writers of the nftables
//! table would meet half-way.

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::net::{IpAddr, Ipv4Addr};
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::time::{Duration, Instant};

use tokio::sync::mpsc::UnboundedSender;
use tracing::{debug, error, info, warn};

use super::guardian::{Guardian, authors};
use super::mail::Mail;
use super::ports;
use crate::ipam::cidr::Ipv4Cidr;
use crate::ipam::effect::{EniIntent, Reply};
use crate::ipam::event::Event;
use crate::ipam::ids::{EniId, Mac, Mark, WaiterId};
use crate::ipam::witness::{KernelFacts, LinkFact, PodRoute};
use crate::net::eni::{
    EniIntent as LinkIntent, configure_eni, configure_where, deconfigure_eni_rules, keep_mark_rules,
};
use crate::net::facts::{HostFacts, is_pod_link};
use crate::net::guard::{Author, Sighting};
use crate::net::host::{Host, HostError, HostIntent};
use crate::net::layout::{EniMark, RuleLayout};
use crate::net::link::reap_doomed;
use crate::net::netlink::NetError;
use crate::net::nft::PodPorts;
use crate::net::pod::{
    PodRemoval, RecordedPod, Repair, Repairs, put_right, remove_orphaned_rules, repairs, unwire_pod,
};
use crate::net::rtnl::Rtnl;
use crate::rpc::types::Guarded;

/// A burst of DELs is reaped together: deleting one link alone waits as long for RCU as deleting a hundred.
const REAP_AFTER: Duration = Duration::from_millis(50);

/// A dump that many changes interrupt succeeds when it is repeated.
const READ_AGAIN: Duration = Duration::from_millis(100);

/// What the thread can be asked.
#[derive(Debug)]
pub(super) enum Job {
    /// Make an ENI's link, table and rules so.
    Configure(EniIntent),
    /// Add addresses to the map of the way back.
    Publish {
        eni: EniId,
        mark: Option<Mark>,
        addresses: Vec<Ipv4Addr>,
    },
    /// Take addresses out of it.
    Unpublish(Vec<Ipv4Addr>),
    /// Remove the rules about a secondary ENI that is detached.
    Unconfigure {
        /// Which.
        eni: EniId,
        /// Its own address.
        primary: Ipv4Addr,
        /// Its mark, unless another may have it by now.
        mark: Option<Mark>,
    },
    /// Tell what is there.
    Read,
    /// Delete the links of deleted pods, soon.
    Reap,
    /// Take these pods' routes, rules and links away, then send the answer that waits for it.
    Unwire {
        /// Which.
        pods: Vec<PodRemoval>,
        /// Who asked, and what to say.
        answer: Option<(WaiterId, Reply)>,
    },
    /// Remove the rules for pods that name these addresses, which nobody holds and to which no route leads.
    RemoveRules(BTreeSet<IpAddr>),
    /// The VPC's networks as they are now, changed or not.
    VpcCidrs(Vec<Ipv4Cidr>),
    /// Somebody may have changed what is ours: put it right.
    Guard(Sighting),
    /// A link with this hardware address came, was renamed, set up or down, or has another MTU.
    GuardLink(Mac),
    /// These ports of the node lead to these pods, and no others to any.
    Ports(PodPorts),
    /// These pods live and should be as recorded; something of those named went.
    Restore {
        /// The pods to look at.
        pods: Vec<RecordedPod>,
        /// Whose routes or rules went, and who did it.
        gone: BTreeMap<IpAddr, Author>,
        /// Whether they are all there are.
        all: bool,
    },
}

/// The thread, to talk to. It ends when this is dropped.
#[derive(Debug, Clone)]
pub(super) struct Kernel {
    jobs: Sender<Job>,
}

impl Kernel {
    /// Asks for something; the answer, if there is one, comes as mail.
    pub(super) fn ask(&self, job: Job) {
        if self.jobs.send(job).is_err() {
            error!("the kernel thread is gone");
        }
    }
}

/// What the kernel says now.
fn read(veth_prefix: &str) -> Result<KernelFacts, NetError> {
    Ok(facts(HostFacts::observe(veth_prefix)?, veth_prefix))
}

/// What was seen, as the pool takes it.
pub(super) fn facts(seen: HostFacts, veth_prefix: &str) -> KernelFacts {
    let addresses = seen.pod_addresses();
    let mut devices: BTreeMap<IpAddr, String> = BTreeMap::new();
    for route in seen.pod_routes {
        devices.insert(route.address, route.link_name.unwrap_or_default());
    }
    KernelFacts {
        bare_rules: addresses
            .iter()
            .filter(|address| !devices.contains_key(*address))
            .copied()
            .collect(),
        links: seen
            .links
            .into_iter()
            .filter(|link| !is_pod_link(link, veth_prefix))
            .filter_map(|link| {
                Some(LinkFact {
                    mac: link.mac?,
                    name: link.name,
                    ifindex: link.index,
                })
            })
            .collect(),
        pod_routes: addresses
            .into_iter()
            .map(|address| PodRoute {
                address,
                device: devices.remove(&address).unwrap_or_default(),
            })
            .collect(),
    }
}

/// Everything the thread starts with.
#[derive(Debug)]
pub(super) struct Setup {
    /// How the host shall be, with the ENIs that stand already.
    pub(super) intent: HostIntent,
    /// Which address leaves by which secondary ENI.
    pub(super) published: BTreeMap<Ipv4Addr, EniMark>,
    /// Which ports of the node lead to which pod.
    pub(super) ports: PodPorts,
    /// What is missing of recorded pods, or stands there as an older release wrote it.
    pub(super) repairs: Repairs,
}

/// Why the host is not set up.
#[derive(Debug, thiserror::Error)]
pub(super) enum SetupError {
    /// The kernel refused, or the configuration contradicts itself.
    #[error(transparent)]
    Host(#[from] HostError),
    /// No thread could be started.
    #[error("no thread could be started: {0}")]
    Thread(#[from] io::Error),
}

/// Sets the host up and starts the thread.
///
/// # Errors
/// What kept the host from being set up; nothing can be served then.
pub(super) fn start(
    setup: Setup,
    mail: UnboundedSender<Mail>,
    guardian: Guardian,
) -> Result<Kernel, SetupError> {
    let (jobs, queue) = channel();
    let (ready, is_ready) = channel();
    std::thread::Builder::new().name("kernel".into()).spawn(move || {
        match Worker::open(setup, mail, guardian) {
            Ok(worker) => {
                drop(ready.send(Ok(())));
                worker.run(&queue);
            }
            Err(error) => drop(ready.send(Err(error))),
        }
    })?;
    // The thread answers before it does anything else; it cannot go without an answer.
    is_ready.recv().unwrap_or(Ok(()))?;
    Ok(Kernel { jobs })
}

struct Worker {
    host: Host,
    intent: HostIntent,
    /// Whether the VPC's networks of the intent are in the kernel.
    is_applied: bool,
    /// Which address leaves by which secondary ENI.
    published: BTreeMap<Ipv4Addr, EniMark>,
    guardian: Guardian,
    guarded: Guarded,
    /// The primary ENI's link, and those of the ENIs that were configured.
    primary: String,
    links: BTreeMap<EniId, String>,
    reap_at: Option<Instant>,
    /// What was heard, and when it is looked at; when it was the last time; so often in a row it could not be put right.
    heard: Sighting,
    guard_at: Option<Instant>,
    guarded_at: Option<Instant>,
    failures: u32,
    mail: UnboundedSender<Mail>,
}

impl Worker {
    fn open(setup: Setup, mail: UnboundedSender<Mail>, guardian: Guardian) -> Result<Self, HostError> {
        let mut host = Host::open()?;
        let report = host.apply(&setup.intent)?;
        for change in &report.changes {
            info!("host: {change}");
        }
        for leftover in &report.leftovers {
            warn!(?leftover, "left behind by another daemon; not touched");
        }
        if setup.intent.layout == RuleLayout::Shared {
            // A kill may have come between an ENI's leaving and its rules'; one that is only late makes them again.
            if let Err(error) = keep_mark_rules(&setup.intent.enis.keys().copied().collect()) {
                warn!("rules of ENIs that are gone stay in the kernel: {error}");
            }
            match host.table().publish_only(&setup.published) {
                Ok(true) => info!(
                    addresses = setup.published.len(),
                    "published addresses were put right"
                ),
                Ok(false) => {}
                Err(error) => warn!("published addresses could not be compared: {error}"),
            }
        }
        // Before anything is served, because a DEL that is served in between would be undone here. It costs nothing on
        // a host in order: what is missing was found in what the start had to look at anyway.
        put_pods_right(setup.repairs);
        ports::put_right(&mut host, setup.intent.family, &setup.ports);
        let worker = Self {
            host,
            intent: setup.intent,
            is_applied: true,
            published: setup.published,
            guardian,
            guarded: Guarded::default(),
            primary: report.primary.name,
            links: BTreeMap::new(),
            reap_at: None,
            heard: Sighting::default(),
            guard_at: None,
            guarded_at: None,
            failures: 0,
            mail,
        };
        worker.watch_settings();
        Ok(worker)
    }

    fn run(mut self, queue: &Receiver<Job>) {
        self.reap_at = Some(Instant::now());
        loop {
            let job = match self.reap_at.into_iter().chain(self.guard_at).min() {
                None => queue.recv().map_err(|_| RecvTimeoutError::Disconnected),
                Some(at) => queue.recv_timeout(at.saturating_duration_since(Instant::now())),
            };
            match job {
                Ok(job) => self.work(job),
                Err(RecvTimeoutError::Timeout) => self.due(),
                Err(RecvTimeoutError::Disconnected) => break,
            }
        }
        reap();
    }

    /// Does what its time has come for.
    fn due(&mut self) {
        let is_due = |at: &mut Instant| *at <= Instant::now();
        if self.reap_at.take_if(is_due).is_some() {
            reap();
        }
        if self.guard_at.take_if(is_due).is_some() {
            self.guard();
        }
    }

    fn work(&mut self, job: Job) {
        match job {
            Job::Configure(eni) => {
                let result = self.configure(&eni);
                self.tell(Event::EniConfigured { eni: eni.eni, result });
            }
            Job::Publish { eni, mark, addresses } => {
                let result = self.publish(mark, &addresses);
                self.tell(Event::Published {
                    eni,
                    addresses,
                    result,
                });
            }
            Job::Unpublish(addresses) => {
                self.published.retain(|address, _| !addresses.contains(address));
                if let Err(error) = self.host.table().unpublish(&addresses) {
                    warn!("addresses could not be taken out of the table: {error}");
                }
            }
            Job::Unconfigure { eni, primary, mark } => self.unconfigure(&eni, primary, mark),
            Job::Read => self.read(),
            Job::RemoveRules(addresses) => remove_rules(&self.intent.veth_prefix, &addresses),
            Job::Guard(sighting) => self.hear(sighting),
            Job::GuardLink(mac) => {
                if self.is_enis(mac) {
                    self.hear(Sighting::of_a_link());
                }
            }
            Job::Restore { pods, gone, all } => self.restore(&pods, &gone, all),
            Job::Ports(wanted) => ports::put_right(&mut self.host, self.intent.family, &wanted),
            Job::VpcCidrs(cidrs) => self.follow_vpc(cidrs.into_iter().collect()),
            Job::Unwire { pods, answer } => {
                unwire(&pods);
                if let Some((waiter, reply)) = answer {
                    // The actor is gone only when the daemon ends.
                    drop(self.mail.send(Mail::Unwired { waiter, reply }));
                }
            }
            Job::Reap => {
                self.reap_at.get_or_insert_with(|| Instant::now() + REAP_AFTER);
            }
        }
    }

    fn tell(&self, event: Event) {
        // The actor is gone only when the daemon ends.
        drop(self.mail.send(event.into()));
    }

    /// The pool waits for the answer, so there is one in the end.
    fn read(&self) {
        loop {
            match read(&self.intent.veth_prefix) {
                Ok(facts) => return self.tell(Event::Kernel(facts)),
                Err(error) => warn!("the kernel could not be read: {error}"),
            }
            std::thread::sleep(READ_AGAIN);
        }
    }

    fn configure(&mut self, eni: &EniIntent) -> Result<(), String> {
        let mark = self.mark(eni.mark);
        let intent = LinkIntent {
            mac: eni.mac,
            primary: eni.primary,
            subnet: eni.subnet_cidr,
            table: eni.table,
            mtu: self.intent.eni_mtu,
            mark,
        };
        let link = configure_eni(&intent).map_err(|error| error.to_string())?;
        info!(eni = %eni.eni, link = link.name, table = eni.table.0, "ENI configured");
        self.guardian.enis.insert(eni.eni.clone(), intent);
        self.links.insert(eni.eni.clone(), link.name);
        self.watch_settings();
        if let Some(mark) = mark {
            self.intent.enis.insert(mark, link.ifindex);
            let applied = self.host.apply(&self.intent).map_err(|error| error.to_string())?;
            debug!(changes = applied.changes.len(), "host set-up follows the ENI");
        }
        Ok(())
    }

    /// What is left over leads nowhere: it may not keep the pool from going on.
    fn unconfigure(&mut self, eni: &EniId, primary: Ipv4Addr, mark: Option<Mark>) {
        let mark = self.mark(mark);
        self.guardian.enis.remove(eni);
        self.links.remove(eni);
        if let Err(error) = deconfigure_eni_rules(primary, mark) {
            warn!(%eni, "rules of a detached ENI stay in the kernel: {error}");
        }
        if let Some(mark) = mark.filter(|mark| self.intent.enis.remove(mark).is_some()) {
            self.published.retain(|_, of| *of != mark);
            match self.host.apply(&self.intent) {
                Ok(_) => info!(%eni, "the host no longer knows the ENI"),
                Err(error) => warn!(%eni, "the host still knows a detached ENI: {error}"),
            }
        }
    }

    fn publish(&mut self, mark: Option<Mark>, addresses: &[Ipv4Addr]) -> Result<(), String> {
        let Some(mark) = self.mark(mark) else {
            return Ok(());
        };
        self.host
            .table()
            .publish(mark, addresses)
            .map_err(|error| error.to_string())?;
        self.published
            .extend(addresses.iter().map(|address| (*address, mark)));
        Ok(())
    }

    fn mark(&self, mark: Option<Mark>) -> Option<EniMark> {
        in_layout(self.intent.layout, mark)
    }

    /// What could not be applied is tried again with the next news, though it is no news.
    fn follow_vpc(&mut self, cidrs: BTreeSet<Ipv4Cidr>) {
        if self.intent.vpc_cidrs == cidrs && self.is_applied {
            return;
        }
        self.intent.vpc_cidrs = cidrs;
        let applied = self.host.apply(&self.intent);
        self.is_applied = applied.is_ok();
        match applied {
            Ok(report) => report.changes.iter().for_each(|change| info!("host: {change}")),
            Err(error) => error!("the host could not be brought up to date: {error}"),
        }
    }
}

/// An ENI's mark; none where rules are per pod.
pub(super) fn in_layout(layout: RuleLayout, mark: Option<Mark>) -> Option<EniMark> {
    match layout {
        RuleLayout::Shared => EniMark::new(mark?.0),
        RuleLayout::PerPod => None,
    }
}

/// The links go into the doomed group and are deleted together as soon as the watch tells of them.
fn unwire(pods: &[PodRemoval]) {
    ports::close(pods);
    for pod in pods {
        match unwire_pod(pod) {
            Ok(unwired) => info!(address = %pod.address, ?unwired, "taken out of the kernel"),
            Err(error) => {
                warn!(address = %pod.address, "something of a deleted pod stays in the kernel: {error}");
            }
        }
    }
}

/// A pod that cannot be repaired is no reason not to serve the others.
fn put_pods_right(found: Repairs) {
    for (address, why) in found.left_alone {
        warn!(%address, "something of the pod with {address} is missing in the kernel, but {why}; not touched");
    }
    if !found.repairs.is_empty() {
        tell_repairs(Rtnl::open().and_then(|mut rtnl| put_right(&mut rtnl, found.repairs)));
    }
}

mod guarding;

fn remove_rules(veth_prefix: &str, addresses: &BTreeSet<IpAddr>) {
    tell_repairs(remove_orphaned_rules(veth_prefix, addresses));
}

fn tell_repairs(done: Result<Vec<(Repair, Vec<NetError>)>, NetError>) {
    let done = match done {
        Ok(done) => done,
        Err(error) => return warn!("routes and rules of pods could not be put right: {error}"),
    };
    for (Repair { address, ops }, errors) in done {
        let ops: Vec<String> = ops.iter().map(ToString::to_string).collect();
        info!(%address, "put right for {address}: {}", ops.join("; "));
        for error in errors {
            warn!(%address, "something of {address} could not be put right: {error}");
        }
    }
}

fn reap() {
    match Rtnl::open().and_then(|mut rtnl| reap_doomed(&mut rtnl)) {
        Ok(true) => debug!("deleted the links of deleted pods"),
        Ok(false) => {}
        Err(error) => warn!("the links of deleted pods could not be deleted: {error}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ipam::ip::IpFamily;
    use crate::net::nft::model::SnatPorts;
    use crate::net::nft::testbed::{NODE_IP, on_bare_node, run};

    fn setup() -> Setup {
        let link = Rtnl::open().unwrap().link_named("eth0").unwrap().unwrap();
        let intent = HostIntent {
            family: IpFamily::V4,
            primary_mac: link.mac.unwrap(),
            node_ip: NODE_IP,
            eni_mtu: 9001,
            connmark: 0x80,
            veth_prefix: "eni".to_owned(),
            node_port: true,
            snat: Some(SnatPorts::default()),
            vpc_cidrs: ["10.0.0.0/16".parse().unwrap()].into(),
            exclude_snat_cidrs: BTreeSet::new(),
            external_service_cidrs: BTreeSet::new(),
            disable_tcp_early_demux: false,
            enis: BTreeMap::new(),
            layout: RuleLayout::Shared,
        };
        Setup {
            intent,
            published: BTreeMap::new(),
            ports: PodPorts::new(),
            repairs: Repairs::default(),
        }
    }

    /// Dataplane quirk 19, ipamd Q26: the Go daemon remembers networks it could not apply, and never tries again.
    #[test]
    fn dataplane_26_networks_that_could_not_be_applied_are_tried_again() {
        on_bare_node(|_| {
            let (mail, _letters) = tokio::sync::mpsc::unbounded_channel();
            let mut worker = Worker::open(setup(), mail, Guardian::new(None)).unwrap();
            let second: Vec<Ipv4Cidr> = ["10.0.0.0/16", "10.9.0.0/16"]
                .map(|cidr| cidr.parse().unwrap())
                .into();
            let listed = || run("nft list table ip aws-cni").contains("10.9.0.0/16");
            // A link in disguise is not found by its hardware address.
            let (real, disguise) = (worker.intent.primary_mac, "02:00:00:00:00:99");
            run(&format!("ip link set eth0 address {disguise}"));
            worker.work(Job::VpcCidrs(second.clone()));
            assert!(!listed());
            run(&format!("ip link set eth0 address {real}"));
            worker.work(Job::VpcCidrs(second.clone()));
            assert!(listed());
            // Nothing is looked at while nothing changes: what somebody else removes is the start's business.
            run("nft delete table ip aws-cni");
            worker.work(Job::VpcCidrs(second));
            assert_eq!(run("nft list ruleset"), "");
        });
    }
}
