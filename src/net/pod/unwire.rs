//! Taking a pod's interface away: route and rules first, so that nothing reaches the pod, the link last.
//!
//! Deleting a veth waits 15–25 ms for RCU, one by one; the daemon deletes doomed ones together
//! ([`super::super::link::reap_doomed`]). Nothing here needs the pod's namespace, which may be long gone.

use std::fmt;
use std::net::IpAddr;

use nix::errno::Errno;

use super::super::layout::{DOOMED_GROUP, FROM_POD_PRIORITY, RuleLayout, TO_POD_PRIORITY};
use super::super::link;
use super::super::netlink::NetError;
use super::super::op::{LinkRef, NetOp, Route, Rule};
use super::super::rtnl::Rtnl;
use super::wire::is_absence;
use crate::ipam::ids::TableId;
use crate::ipam::ip::IpFamily;

/// More rules than this for one address are not an accident.
const MAX_RULES: u32 = 256;

/// What to do with the host's end.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LinkRemoval {
    /// Set it down and put it into the group the daemon deletes in batches.
    Doom,
    /// The same, but only when the address's route led over it. Somebody who cleans up after a sandbox may be overtaken by
    /// the next sandbox of the same pod, whose link has the same name and for a moment no route yet.
    DoomIfRouted,
    /// Delete it here and now, when there is no daemon to do it.
    Delete,
}

/// What is to go.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PodRemoval {
    /// The host's end, if its name is known.
    pub host_veth: Option<String>,
    /// The pod's address.
    pub address: IpAddr,
    /// Table of the ENI; `None` when unknown, then rules into any table go.
    pub eni_table: Option<TableId>,
    /// How the pod was routed.
    pub layout: RuleLayout,
    /// What to do with the link.
    pub link: LinkRemoval,
}

/// What became of the host's end.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LinkFate {
    /// Its name was not known or there was none.
    Absent,
    /// It waits for [`super::super::link::reap_doomed`].
    Doomed,
    /// It is deleted.
    Deleted,
    /// It carries the route of another address, or may be about to: a newer sandbox of the same pod has it, and it was
    /// left alone.
    OfAnotherSandbox,
}

/// What was done.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Unwired {
    /// Whether the pod's route was still there.
    pub route_removed: bool,
    /// What became of the link.
    pub link: LinkFate,
}

/// Everything that failed; the rest was done nevertheless.
#[derive(Debug, thiserror::Error)]
pub struct UnwireError(pub Vec<NetError>);

impl fmt::Display for UnwireError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (index, error) in self.0.iter().enumerate() {
            let separator = if index == 0 { "" } else { "; " };
            write!(f, "{separator}{error}")?;
        }
        Ok(())
    }
}

/// Takes the pod's interface away. Absence is success, twice is the same as once, and what belongs to a newer owner
/// of the address or of the name is left alone.
///
/// # Errors
/// What failed, after everything was tried.
pub fn unwire_pod(removal: &PodRemoval) -> Result<Unwired, UnwireError> {
    let host = Rtnl::open().map_err(|error| UnwireError(vec![error]))?;
    let mut unwiring = Unwiring {
        removal,
        host,
        errors: Vec::new(),
    };
    let unwired = unwiring.run();
    if unwiring.errors.is_empty() {
        return Ok(unwired);
    }
    Err(UnwireError(unwiring.errors))
}

struct Unwiring<'a> {
    removal: &'a PodRemoval,
    host: Rtnl,
    errors: Vec<NetError>,
}

impl Unwiring<'_> {
    fn run(&mut self) -> Unwired {
        let index = self.removal.host_veth.as_deref().and_then(|name| {
            let index = link::index_of(&self.host, name);
            self.note(index).flatten()
        });
        let mut route_removed = self.remove_route(index, self.removal.layout);
        if self.removal.layout == RuleLayout::PerPod && (route_removed || !self.address_has_new_owner(index))
        {
            self.remove_rules();
        }
        // A pod wired by the Go daemon, or before the layout was changed, is routed by rules of its own.
        if self.removal.layout == RuleLayout::Shared
            && !route_removed
            && self.remove_route(index, RuleLayout::PerPod)
        {
            route_removed = true;
            self.remove_rules();
        }
        let link = match index {
            None => LinkFate::Absent,
            Some(index) if !route_removed && self.may_be_anothers(index) => LinkFate::OfAnotherSandbox,
            Some(index) => self.remove_link(index),
        };
        Unwired { route_removed, link }
    }

    /// With a name, only the route over that link goes: if the link is gone its route went with it, and a route to the
    /// address over another link is a new owner's.
    fn remove_route(&mut self, index: Option<u32>, layout: RuleLayout) -> bool {
        let oif = match (&self.removal.host_veth, index) {
            (Some(_), None) => return false,
            (_, index) => index.unwrap_or(0),
        };
        let route = Route::host(self.removal.address, oif, layout.pod_table());
        self.remove(NetOp::DelRoute(route))
    }

    fn address_has_new_owner(&mut self, index: Option<u32>) -> bool {
        let address = self.removal.address;
        let found = self.host.route_to(address);
        self.note(found).flatten().is_some_and(|route| {
            route.dst.single() == Some(address)
                && route.table == self.removal.layout.pod_table()
                && Some(route.oif) != index
        })
    }

    fn may_be_anothers(&mut self, index: u32) -> bool {
        self.removal.link == LinkRemoval::DoomIfRouted || self.carries_another_address(index)
    }

    fn carries_another_address(&mut self, index: u32) -> bool {
        let family = IpFamily::of(self.removal.address);
        let table = self.removal.layout.pod_table();
        let routes = self.host.routes(family, Some(table), Some(index));
        // The kernel itself routes fe80::/64 over every link.
        self.note(routes)
            .is_some_and(|routes| routes.iter().any(|route| route.host_on_link().is_some()))
    }

    fn remove_rules(&mut self) {
        let address = self.removal.address;
        self.remove(NetOp::DelRule(Rule::to(address, TO_POD_PRIORITY, TableId::MAIN)));
        if self.removal.eni_table == Some(TableId::MAIN) {
            return; // pods of the primary ENI have no such rule
        }
        let from = Rule {
            table: self.removal.eni_table,
            ..Rule::from(address, FROM_POD_PRIORITY, TableId::MAIN)
        };
        // Old releases of the Go plugin left several.
        for _ in 0..MAX_RULES {
            if !self.remove(NetOp::DelRule(from.clone())) {
                break;
            }
        }
    }

    fn remove_link(&mut self, index: u32) -> LinkFate {
        let link = LinkRef::Index(index);
        let there = match self.removal.link {
            // Group first: whatever happens next, the daemon will find it. Down as well, so that a sandbox that lives on
            // cannot send from an address that is no longer its own; that costs a tenth of a millisecond.
            LinkRemoval::Doom | LinkRemoval::DoomIfRouted => self.remove_all(&[
                NetOp::LinkGroup(link.clone(), DOOMED_GROUP),
                NetOp::LinkDown(link),
            ]),
            LinkRemoval::Delete => self.remove(NetOp::DelLink(link)),
        };
        match self.removal.link {
            _ if !there => LinkFate::Absent,
            LinkRemoval::Doom | LinkRemoval::DoomIfRouted => LinkFate::Doomed,
            LinkRemoval::Delete => LinkFate::Deleted,
        }
    }

    /// Applies `op`; absence is no error. Returns whether it was there.
    fn remove(&mut self, op: NetOp) -> bool {
        self.remove_all(&[op])
    }

    /// Applies all in one send; returns whether all were there.
    fn remove_all(&mut self, ops: &[NetOp]) -> bool {
        let outcomes = self.host.apply(ops).unwrap_or_else(|error| vec![Err(error)]);
        let done = outcomes.iter().all(Result::is_ok);
        let failures = outcomes.into_iter().filter_map(Result::err);
        self.errors.extend(failures.filter(|error| !is_absence(error)));
        done
    }

    fn note<T>(&mut self, result: Result<T, NetError>) -> Option<T> {
        result
            .map_err(|error| {
                // A link that vanished while it was asked about is as absent as one that was never there.
                if error.errno != Errno::ENODEV {
                    self.errors.push(error);
                }
            })
            .ok()
    }
}
