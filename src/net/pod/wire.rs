//! Making a pod's interface in three sends: the pair, the host's side, the pod's side.

use std::fmt;
use std::os::fd::{AsFd, AsRawFd};
use std::path::Path;
use std::thread::sleep;
use std::time::{Duration, Instant};

use nix::errno::Errno;

use super::super::layout::{DOOMED_GROUP, FROM_POD_PRIORITY, RuleLayout, TO_POD_PRIORITY, pod_gateway};
use super::super::link;
use super::super::netlink::{NetError, OpenInError, Outcome};
use super::super::netns::{self, Netns, NetnsError};
use super::super::op::{LinkRef, NetOp, Route, Rule, VethEnd};
use super::super::rtnl::Rtnl;
use super::super::sysctl::{self, Missing, Setting, SysctlError};
use super::{PodIntent, VethPair};
use crate::ipam::ids::TableId;
use crate::ipam::ip::IpFamily;

/// How long an address may still be routed elsewhere.
const ROUTE_PATIENCE: Duration = Duration::from_secs(2);
const ROUTE_PAUSE: Duration = Duration::from_millis(5);

/// How long the kernel's worker may take to notice a carrier; it waits its turn behind other changes.
const CARRIER_PATIENCE: Duration = Duration::from_secs(2);
const CARRIER_PAUSE: Duration = Duration::from_micros(200);

/// More stale rules than this for one address are not an accident, and not ours to count.
const MAX_STALE_RULES: u32 = 256;

/// What was made.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct WiredPod {
    /// Index of the host's end.
    pub host_index: u32,
    /// Index of the pod's end, in the pod's namespace.
    pub pod_index: u32,
}

/// Why a pod was not wired, and what could not be undone.
#[derive(Debug, thiserror::Error)]
pub struct WireError {
    /// The step that failed.
    #[source]
    pub failure: WireFailure,
    /// What undoing left behind; empty nearly always.
    pub left_behind: Vec<NetError>,
}

impl fmt::Display for WireError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.failure.fmt(f)?;
        for error in &self.left_behind {
            write!(f, "; and could not undo: {error}")?;
        }
        Ok(())
    }
}

/// The step of wiring that failed.
#[derive(Debug, thiserror::Error)]
pub enum WireFailure {
    /// The namespace cannot be opened or entered.
    #[error(transparent)]
    Netns(#[from] NetnsError),
    /// The namespace is the host's own.
    #[error("the pod's network namespace is the host's own")]
    OwnNetns,
    /// No netlink socket.
    #[error(transparent)]
    Socket(NetError),
    /// The pod has an interface of that name already.
    #[error("interface {0} is in the pod already: file exists")]
    IfnameTaken(String),
    /// Something that is no veth has the host's name.
    #[error("interface {0} exists on the host and is no veth pair of ours: file exists")]
    HostNameTaken(String),
    /// A leftover with the host's name could not be deleted.
    #[error("failed to delete the leftover host interface: {0}")]
    Leftover(#[source] NetError),
    /// The pair could not be made.
    #[error("failed to create the veth pair: {0}")]
    Veth(#[source] NetError),
    /// A setting of the host's end was refused.
    #[error(transparent)]
    Sysctl(#[from] SysctlError),
    /// The host's side failed.
    #[error("failed to set up the host side: {0}")]
    Host(#[source] NetError),
    /// The pod's side failed.
    #[error("failed to set up the pod side: {0}")]
    Pod(#[source] NetError),
}

impl From<OpenInError> for WireFailure {
    fn from(error: OpenInError) -> Self {
        match error {
            OpenInError::Netns(error) => Self::Netns(error),
            OpenInError::Socket(error) => Self::Socket(error),
        }
    }
}

/// A pod's namespace found in order, a socket on either side of it, and the veth pair between: all that can be done
/// before the address is known. It takes half of an ADD's time, which the wait for the daemon's answer hides.
#[derive(Debug)]
pub struct Sandbox {
    netns: Netns,
    host: Rtnl,
    pod: Rtnl,
    made: Option<VethPair>,
    /// The settings of the host's end of what was made stand, too.
    is_set: bool,
}

impl Sandbox {
    /// Opens the pod's namespace at `netns` and both sockets. Changes nothing.
    ///
    /// # Errors
    /// When the namespace cannot be entered or is the host's own.
    pub fn open(netns: &Path) -> Result<Self, WireFailure> {
        let (netns, home) = (Netns::open(netns)?, Netns::own()?);
        if netns.is_same(&home)? {
            return Err(WireFailure::OwnNetns);
        }
        Ok(Self {
            host: Rtnl::open().map_err(WireFailure::Socket)?,
            pod: netns::visit(&netns, &home, Rtnl::open)?.map_err(WireFailure::Socket)?,
            netns,
            made: None,
            is_set: false,
        })
    }

    /// Makes the pair already, with neither address nor route, and both ends down. Changes nothing when one of the names
    /// is taken or anything else is wrong: [`Sandbox::wire`] deals with that once it is worth it.
    pub fn make_pair(&mut self, pair: &VethPair) {
        if self.made.is_none() && self.host.apply_all(&[add_pair(pair, &self.netns)]).is_ok() {
            self.made = Some(pair.clone());
            self.is_set = sysctl::ensure_all(&host_settings(&pair.host_veth)).is_ok();
        }
    }

    /// Nothing will be wired: a pair made in advance is left to the daemon to delete together with others, or deleted if
    /// the kernel does not take that.
    pub fn give_up(mut self) {
        let Some(pair) = self.made.take() else { return };
        let link = LinkRef::Name(pair.host_veth);
        // Up for a moment: of a link that is down the kernel tells nobody that its group has changed
        // (`netdev_state_change` in net/core/dev.c), and the daemon waits for that news.
        let doom = [
            NetOp::LinkUp(link.clone()),
            NetOp::LinkGroup(link.clone(), DOOMED_GROUP),
            NetOp::LinkDown(link.clone()),
        ];
        if self.host.apply_all(&doom).is_err() {
            // It is gone, or will be with the sandbox.
            let _sandbox_takes_it = self.host.apply_all(&[NetOp::DelLink(link)]);
        }
    }

    /// Makes the pod's interface; on failure undoes what it made, newest first. A leftover host interface of that name
    /// is replaced. `intent.netns` is not looked at again: the open namespace counts.
    ///
    /// # Errors
    /// [`WireError`]; nothing of this attempt stays behind unless it says so.
    pub fn wire(self, intent: &PodIntent) -> Result<WiredPod, WireError> {
        let made = self.made.iter().map(|pair| add_pair(pair, &self.netns));
        let mut wiring = Wiring {
            intent,
            done: made.collect(),
            is_set: self.is_set,
            host: self.host,
            pod: self.pod,
        };
        wiring.run(&self.netns).map_err(|failure| WireError {
            failure,
            left_behind: wiring.undo(),
        })
    }
}

/// [`Sandbox::open`] and [`Sandbox::wire`] in one.
///
/// # Errors
/// Theirs.
pub fn wire_pod(intent: &PodIntent) -> Result<WiredPod, WireError> {
    let sandbox = Sandbox::open(&intent.netns).map_err(|failure| WireError {
        failure,
        left_behind: Vec::new(),
    })?;
    sandbox.wire(intent)
}

struct Wiring<'a> {
    intent: &'a PodIntent,
    host: Rtnl,
    pod: Rtnl,
    /// What succeeded and has to go if a later step fails, oldest first.
    done: Vec<NetOp>,
    /// The host's end has its settings.
    is_set: bool,
}

impl Wiring<'_> {
    fn run(&mut self, netns: &Netns) -> Result<WiredPod, WireFailure> {
        let add = add_pair(&self.intent.pair(), netns);
        if self.done.first() != Some(&add) {
            self.create_pair(add)?;
            self.is_set = false;
        }
        if !self.is_set {
            sysctl::ensure_all(&host_settings(&self.intent.host_veth))?;
        }
        match self.intent.family() {
            IpFamily::V4 => {
                let host_index = self.set_up_host().map_err(WireFailure::Host)?;
                Ok(WiredPod {
                    host_index,
                    pod_index: self.set_up_pod().map_err(WireFailure::Pod)?,
                })
            }
            // The pod's side first: of the pair only the end that was up first waits for the kernel to notice its carrier,
            // and meanwhile the host's is set up.
            IpFamily::V6 => {
                let on = || sysctl::ensure_all(&pod_settings(&self.intent.ifname));
                netns::visit(netns, &Netns::own()?, on)??;
                let pod_index = self.set_up_pod().map_err(WireFailure::Pod)?;
                let host_index = self.set_up_host().map_err(WireFailure::Host)?;
                self.wait_until_it_sends().map_err(WireFailure::Pod)?;
                Ok(WiredPod {
                    host_index,
                    pod_index,
                })
            }
        }
    }

    fn set_up_pod(&mut self) -> Result<u32, NetError> {
        let index = present(&self.pod, &self.intent.ifname)?;
        self.pod.apply_all(&pod_side(self.intent, index))?;
        Ok(index)
    }

    fn create_pair(&mut self, add: NetOp) -> Result<(), WireFailure> {
        let mut result = self.host.apply_all(std::slice::from_ref(&add));
        if is(&result, Errno::EEXIST) {
            self.remove_leftover()?;
            result = self.host.apply_all(std::slice::from_ref(&add));
        }
        if is(&result, Errno::EEXIST) {
            return Err(WireFailure::IfnameTaken(self.intent.ifname.clone()));
        }
        result.map_err(WireFailure::Veth)?;
        self.done.push(add);
        Ok(())
    }

    /// One of the two names is taken. A host veth of ours whose sandbox is gone, or whose peer is what stands in the
    /// way, is replaced; anything else is somebody's.
    fn remove_leftover(&mut self) -> Result<(), WireFailure> {
        let leftover = self
            .host
            .link_named(&self.intent.host_veth)
            .map_err(WireFailure::Leftover)?;
        let in_pod = link::index_of(&self.pod, &self.intent.ifname).map_err(WireFailure::Pod)?;
        match (leftover, in_pod) {
            (Some(leftover), _) if leftover.kind.as_deref() != Some("veth") => {
                Err(WireFailure::HostNameTaken(leftover.name))
            }
            (Some(leftover), Some(index)) if leftover.peer != Some(index) => {
                Err(WireFailure::IfnameTaken(self.intent.ifname.clone()))
            }
            (None, Some(_)) => Err(WireFailure::IfnameTaken(self.intent.ifname.clone())),
            (None, None) => Ok(()), // gone meanwhile: the runtime has removed its namespace
            (Some(leftover), _) => {
                let outcome = self
                    .host
                    .apply_all(&[NetOp::DelLink(LinkRef::Index(leftover.index))]);
                if is(&outcome, Errno::ENODEV) {
                    Ok(())
                } else {
                    outcome.map_err(WireFailure::Leftover)
                }
            }
        }
    }

    fn set_up_host(&mut self) -> Result<u32, NetError> {
        let index = present(&self.host, &self.intent.host_veth)?;
        let ops = host_side(self.intent, index);
        let mut outcomes = self.host.apply(&ops)?;
        self.wait_for_the_route(&ops, &mut outcomes);
        let (mut first_error, mut stale) = (None, false);
        for (op, outcome) in ops.into_iter().zip(outcomes) {
            match (op, outcome) {
                (NetOp::DelRule(_), outcome) => stale |= outcome.is_ok(),
                // An equal rule is as good as ours, and not ours to undo.
                (NetOp::AddRule(_), Err(error)) if error.errno == Errno::EEXIST => {}
                (_, Err(error)) => first_error = first_error.or(Some(error)),
                // Deleting the pair says more than setting it down, which alone would wait for RCU.
                (NetOp::LinkUp(_), Ok(())) => {}
                (op, Ok(())) => self.done.push(op),
            }
        }
        match first_error {
            Some(error) => return Err(error),
            None if stale => self.remove_more_stale_rules()?,
            None => {}
        }
        Ok(index)
    }

    /// An address that is routed already is given up within moments by a plugin that its daemon has died on; a route
    /// that stays is an error.
    fn wait_for_the_route(&mut self, ops: &[NetOp], outcomes: &mut [Outcome]) {
        let until = Instant::now() + ROUTE_PATIENCE;
        for (op, outcome) in ops.iter().zip(outcomes) {
            if !matches!(op, NetOp::AddRoute(_)) {
                continue;
            }
            while is(outcome, Errno::EEXIST) && Instant::now() < until {
                sleep(ROUTE_PAUSE);
                *outcome = self.host.apply_all(std::slice::from_ref(op));
            }
        }
    }

    /// Of a pair the end that was up first drops what it is to send until a worker of the kernel's has noticed its carrier
    /// (`net/core/link_watch.c`). Newer kernels do that at once when they are asked about the link; the others do it soon,
    /// and nothing is wrong with a pod that is told of a little before.
    fn wait_until_it_sends(&mut self) -> Result<(), NetError> {
        let until = Instant::now() + CARRIER_PATIENCE;
        loop {
            let link = self.pod.link_named(&self.intent.ifname)?;
            if link.is_some_and(|link| link.sends) || Instant::now() >= until {
                return Ok(());
            }
            sleep(CARRIER_PAUSE);
        }
    }

    /// One rule `from <pod>` of an earlier owner was found and removed; there may be more, into other tables, and of
    /// equal rules the oldest wins. All go, ours is put back.
    fn remove_more_stale_rules(&mut self) -> Result<(), NetError> {
        let stale = [NetOp::DelRule(stale_rule(self.intent))];
        for _ in 0..MAX_STALE_RULES {
            match self.host.apply_all(&stale) {
                Ok(()) => {}
                Err(error) if error.errno == Errno::ENOENT => break,
                Err(error) => return Err(error),
            }
        }
        let Some(rule) = from_rule(self.intent) else {
            return Ok(());
        };
        let add = NetOp::AddRule(rule);
        self.host.apply_all(std::slice::from_ref(&add))?;
        self.done.push(add);
        Ok(())
    }

    fn undo(&mut self) -> Vec<NetError> {
        let undo: Vec<NetOp> = self.done.iter().rev().filter_map(NetOp::inverse).collect();
        match self.host.apply(&undo) {
            Ok(outcomes) => outcomes
                .into_iter()
                .filter_map(Outcome::err)
                .filter(|error| !is_absence(error))
                .collect(),
            Err(error) => vec![error],
        }
    }
}

fn add_pair(pair: &VethPair, netns: &Netns) -> NetOp {
    NetOp::AddVeth {
        here: VethEnd {
            name: pair.host_veth.clone(),
            mac: pair.host_mac,
        },
        there: VethEnd {
            name: pair.ifname.clone(),
            mac: pair.pod_mac,
        },
        netns: netns.as_fd().as_raw_fd(),
        mtu: pair.mtu,
    }
}

fn is(result: &Outcome, errno: Errno) -> bool {
    matches!(result, Err(error) if error.errno == errno)
}

/// Whether an error only says that what should go is gone: ENODEV of links, ESRCH of routes, ENOENT of rules.
pub(super) fn is_absence(error: &NetError) -> bool {
    matches!(error.errno, Errno::ENODEV | Errno::ESRCH | Errno::ENOENT)
}

fn present(rtnl: &Rtnl, name: &str) -> Result<u32, NetError> {
    link::index_of(rtnl, name)?
        .ok_or_else(|| NetError::new(format!("get the index of link {name}"), Errno::ENODEV))
}

/// As the Go plugin sets them, before the link is up: no address or route by the pod's router advertisements.
fn host_settings(veth: &str) -> [Setting; 3] {
    let v6 = |key, value| Setting::of_interface("ipv6", veth, key, value, Missing::Tolerated);
    [
        v6("accept_ra", "0"),
        v6("accept_redirects", "1"),
        v6("forwarding", "0"),
    ]
}

fn host_side(intent: &PodIntent, index: u32) -> Vec<NetOp> {
    let route = Route::host(intent.address, index, intent.layout.pod_table());
    // Never in place of another: where two sandboxes believe in one address, the second one must notice.
    let mut ops = vec![NetOp::LinkUp(LinkRef::Index(index)), NetOp::AddRoute(route)];
    if intent.family() == IpFamily::V6 {
        ops.push(NetOp::AddNeighbour {
            address: intent.address,
            mac: intent.pod_mac,
            link: index,
        });
    }
    if intent.layout == RuleLayout::PerPod {
        ops.push(NetOp::DelRule(stale_rule(intent)));
        ops.push(NetOp::AddRule(Rule::to(
            intent.address,
            TO_POD_PRIORITY,
            TableId::MAIN,
        )));
        ops.extend(from_rule(intent).map(NetOp::AddRule));
    }
    ops
}

fn stale_rule(intent: &PodIntent) -> Rule {
    Rule::from(intent.address, FROM_POD_PRIORITY, intent.eni_table).any_table()
}

fn from_rule(intent: &PodIntent) -> Option<Rule> {
    let secondary = intent.eni_table != TableId::MAIN;
    secondary.then(|| Rule::from(intent.address, FROM_POD_PRIORITY, intent.eni_table))
}

/// A runtime may have switched IPv6 off in the sandbox: in all of it, or for what comes.
fn pod_settings(ifname: &str) -> [Setting; 2] {
    [ifname, "lo"].map(|link| Setting::of_interface("ipv6", link, "disable_ipv6", "0", Missing::Tolerated))
}

fn pod_side(intent: &PodIntent, index: u32) -> Vec<NetOp> {
    let (family, address) = (intent.family(), intent.address);
    let gateway = pod_gateway(family);
    let mut ops = vec![
        NetOp::LinkUp(LinkRef::Index(index)),
        NetOp::ReplaceRoute(Route::host(gateway, index, TableId::MAIN)),
        NetOp::AddRoute(Route::default_via(gateway, index, TableId::MAIN)),
        NetOp::AddAddress {
            address,
            len: family.bits(),
            link: index,
        },
        NetOp::AddNeighbour {
            address: gateway,
            mac: intent.host_mac,
            link: index,
        },
    ];
    if family == IpFamily::V6 {
        // An address receives by a route that the kernel leaves to a worker of its, even without duplicate address
        // detection (`addrconf_dad_completed` in net/ipv6/addrconf.c); on a busy host that was seconds. This one serves as
        // well, and goes with the link.
        ops.push(NetOp::AddRoute(Route::local(address, index)));
    }
    ops
}
