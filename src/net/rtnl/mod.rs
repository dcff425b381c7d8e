//! rtnetlink: operations to bytes, answers to facts, and a socket that speaks in both.

mod decode;
mod encode;

use std::net::IpAddr;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, RawFd};

use nix::errno::Errno;
use nix::libc::{RTM_GETADDR, RTM_GETLINK, RTM_GETNEIGH, RTM_GETROUTE, RTM_GETRULE};

pub(crate) use decode::{address_news, link_event, route_news, rule_news};

pub use decode::{AddressFact, LinkFact, NeighbourFact, RouteFact, RuleFact};

use super::netlink::{Batch, Family, NetError, OpenInError, Outcome, Reply, Socket};
use super::op::NetOp;
use super::wire::Malformed;
use crate::ipam::ids::TableId;
use crate::ipam::ip::IpFamily;

/// An rtnetlink socket of one namespace.
#[derive(Debug)]
pub struct Rtnl {
    socket: Socket,
}

impl AsFd for Rtnl {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}

impl AsRawFd for Rtnl {
    fn as_raw_fd(&self) -> RawFd {
        self.socket.as_raw_fd()
    }
}

impl Rtnl {
    /// Of the calling thread's namespace.
    ///
    /// # Errors
    /// When the kernel refuses the socket.
    pub fn open() -> Result<Self, NetError> {
        Socket::open(Family::Route).map(|socket| Self { socket })
    }

    /// Of the namespace `netns`, which the calling thread does not enter.
    ///
    /// # Errors
    /// When the namespace cannot be entered or the socket is refused.
    pub fn open_in(netns: BorrowedFd<'_>) -> Result<Self, OpenInError> {
        Socket::open_in(netns, Family::Route).map(|socket| Self { socket })
    }

    /// Sends `ops` in one go, in order. The kernel goes on after a failed one.
    ///
    /// # Errors
    /// When nothing could be sent or answered; what single operations came to is in the outcomes.
    pub fn apply(&mut self, ops: &[NetOp]) -> Result<Vec<Outcome>, NetError> {
        let mut batch = Batch::new();
        for op in ops {
            encode::push(&mut batch, op);
        }
        self.socket.run(&batch)
    }

    /// Sends `ops` in one go and returns the first failure.
    ///
    /// # Errors
    /// The first failed operation's error.
    pub fn apply_all(&mut self, ops: &[NetOp]) -> Result<(), NetError> {
        self.apply(ops)?.into_iter().collect()
    }

    /// All links.
    ///
    /// # Errors
    /// The kernel's.
    pub fn links(&mut self) -> Result<Vec<LinkFact>, NetError> {
        let what = "list links";
        let replies = self.socket.dump(RTM_GETLINK, what, &encode::get_link(None))?;
        collect(what, &replies, decode::link)
    }

    /// One link; `None` when there is none of that name.
    ///
    /// # Errors
    /// The kernel's, other than "no such device".
    pub fn link_named(&mut self, name: &str) -> Result<Option<LinkFact>, NetError> {
        let what = format!("get link {name}");
        let body = encode::get_link(Some(name));
        let reply = absent(self.socket.get(RTM_GETLINK, what.clone(), &body), Errno::ENODEV)?;
        one(&what, reply, decode::link)
    }

    /// A family's routes of `table` (all tables without one), over link `oif` (any without one).
    ///
    /// # Errors
    /// The kernel's.
    pub fn routes(
        &mut self,
        family: IpFamily,
        table: Option<TableId>,
        oif: Option<u32>,
    ) -> Result<Vec<RouteFact>, NetError> {
        let what = "list routes";
        let question = encode::list_routes(family, table, oif);
        // A table comes into being with its first route, a link may be gone meanwhile.
        let absence = [Errno::ENOENT, Errno::ENODEV];
        let replies = nothing_on(self.socket.dump(RTM_GETROUTE, what, &question), &absence)?;
        let mut routes = collect(what, &replies, decode::route)?;
        // A kernel without IPv6 answers with what it has.
        routes.retain(|route| {
            route.dst.family() == family
                && table.is_none_or(|table| route.table == table)
                && oif.is_none_or(|oif| route.oif == oif)
        });
        Ok(routes)
    }

    /// The entry by which the kernel would forward a packet to `address`, with all rules applied; `None` when it is
    /// unreachable.
    ///
    /// # Errors
    /// The kernel's, other than "unreachable".
    pub fn route_to(&mut self, address: IpAddr) -> Result<Option<RouteFact>, NetError> {
        let what = format!("route get fibmatch {address}");
        let body = encode::get_route(address);
        let reply = absent(
            self.socket.get(RTM_GETROUTE, what.clone(), &body),
            Errno::ENETUNREACH,
        )?;
        one(&what, reply, decode::route)
    }

    /// All rules of a family, in the kernel's order; none where the kernel lacks the family.
    ///
    /// # Errors
    /// The kernel's.
    pub fn rules(&mut self, family: IpFamily) -> Result<Vec<RuleFact>, NetError> {
        let what = "list rules";
        let dump = self.socket.dump(RTM_GETRULE, what, &encode::list_rules(family));
        let replies = nothing_on(dump, &[Errno::EAFNOSUPPORT, Errno::EOPNOTSUPP])?;
        let mut rules = collect(what, &replies, decode::rule)?;
        rules.retain(|rule| rule.selector.family() == family);
        Ok(rules)
    }

    /// A family's addresses of a link, or of all.
    ///
    /// # Errors
    /// The kernel's.
    pub fn addresses(&mut self, family: IpFamily, link: Option<u32>) -> Result<Vec<AddressFact>, NetError> {
        let what = "list addresses";
        let question = encode::list_addresses(family, link);
        let replies = nothing_on(self.socket.dump(RTM_GETADDR, what, &question), &[Errno::ENODEV])?;
        let mut addresses = collect(what, &replies, decode::address)?;
        addresses.retain(|address| {
            IpFamily::of(address.address) == family && link.is_none_or(|link| address.link == link)
        });
        Ok(addresses)
    }

    /// The neighbour `address` on `link`; `None` when the kernel does not know it.
    ///
    /// # Errors
    /// The kernel's, other than "not found".
    pub fn neighbour(&mut self, address: IpAddr, link: u32) -> Result<Option<NeighbourFact>, NetError> {
        let what = format!("neigh get {address} dev if{link}");
        let body = encode::get_neighbour(address, link);
        let reply = absent(self.socket.get(RTM_GETNEIGH, what.clone(), &body), Errno::ENOENT)?;
        one(&what, reply, decode::neighbour)
    }
}

/// A dump that fails in one of these ways has found nothing.
fn nothing_on(dump: Result<Vec<Reply>, NetError>, absence: &[Errno]) -> Result<Vec<Reply>, NetError> {
    match dump {
        Err(error) if absence.contains(&error.errno) => Ok(Vec::new()),
        dump => dump,
    }
}

fn absent(result: Result<Option<Reply>, NetError>, absence: Errno) -> Result<Option<Reply>, NetError> {
    match result {
        Err(error) if error.errno == absence => Ok(None),
        result => result,
    }
}

type Decode<T> = fn(&[u8]) -> Result<Option<T>, Malformed>;

fn collect<T>(what: &str, replies: &[Reply], decode: Decode<T>) -> Result<Vec<T>, NetError> {
    let read = replies
        .iter()
        .filter_map(|reply| decode(&reply.payload).transpose());
    read.collect::<Result<_, _>>()
        .map_err(|why| NetError::malformed(what, why))
}

fn one<T>(what: &str, reply: Option<Reply>, decode: Decode<T>) -> Result<Option<T>, NetError> {
    match reply {
        None => Ok(None),
        Some(reply) => decode(&reply.payload).map_err(|why| NetError::malformed(what, why)),
    }
}

/// Reads a message as everything it could be.
#[cfg(any(test, feature = "fuzz"))]
pub fn read_anything(reply: &Reply) {
    let bytes = &reply.payload[..];
    let read = [
        decode::link(bytes).is_ok(),
        decode::route(bytes).is_ok(),
        decode::rule(bytes).is_ok(),
        decode::address(bytes).is_ok(),
        decode::neighbour(bytes).is_ok(),
        link_event(reply).is_ok(),
    ];
    std::hint::black_box(read);
}

#[cfg(test)]
mod tests;
