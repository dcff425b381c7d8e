//! What the kernel says, or somebody in its place.

use crate::net::guard::Sighting;
use crate::net::netlink::read_messages;
use crate::net::nft::read_anything as read_firewall;
use crate::net::rtnl::read_anything as read_routes;

/// A receive buffer full of netlink messages: every message lies inside of it, and whatever reads one gives a fact or an
/// error. What cannot be read of a notification makes the guardian look at everything.
pub fn netlink_messages(data: &[u8]) {
    let mut sighting = Sighting::default();
    for reply in read_messages(data) {
        assert!(reply.payload.len() <= data.len(), "a message exceeds its buffer");
        read_routes(&reply);
        let is_readable = read_firewall(&reply);
        sighting.hear_anything(&reply);
        if !is_readable {
            assert!(sighting.all, "a torn notification was taken for nothing");
        }
    }
}
