//! The kernel as judge: what it makes of our messages, and what our rules make of packets.

mod host_ports;
mod neighbours;
mod node_ports;
mod packets;
mod table;

use std::net::Ipv4Addr;

use super::testbed::nft;

fn addresses(from: u8, count: u8) -> Vec<Ipv4Addr> {
    (0..count).map(|n| Ipv4Addr::new(10, 0, 2, from + n)).collect()
}

fn with_foreign_table() {
    nft("table ip other { set s { type ipv4_addr; elements = { 1.2.3.4 } }
         chain c { type filter hook prerouting priority -300; counter comment \"theirs\"
}
}");
}
