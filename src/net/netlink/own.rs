//! The numbers of this process's sockets, those already closed included: a change that one of them made is told when
//! nobody else could say whose it was.

use std::collections::VecDeque;
use std::sync::{Mutex, PoisonError};

/// More than are opened while news of one of them is on its way.
const REMEMBERED: usize = 512;

static PORTS: Mutex<VecDeque<u32>> = Mutex::new(VecDeque::new());

pub(super) fn remember(port: u32) {
    let mut ports = PORTS.lock().unwrap_or_else(PoisonError::into_inner);
    if ports.len() >= REMEMBERED {
        ports.pop_front();
    }
    ports.push_back(port);
}

/// Whether a netlink socket of this number is, or was lately, this process's.
pub fn is_own_port(port: u32) -> bool {
    let ports = PORTS.lock().unwrap_or_else(PoisonError::into_inner);
    ports.contains(&port)
}
