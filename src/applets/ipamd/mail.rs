//! The letters that reach the actor.

use std::collections::BTreeMap;
use std::net::IpAddr;

use crate::ipam::effect::{Effect, Reply};
use crate::ipam::event::Event;
use crate::ipam::ids::{CommitId, WaiterId};
use crate::net::guard::Author;
use crate::rpc::types::Guarded;

/// What reaches the actor from its own side.
///
/// The channel of these has no bound of its own, because none of them may be lost and none of the senders (the store's
/// and the kernel's threads among them) may wait for the actor. What bounds it is what can be under way: the pool has
/// one call at a time for an ENI or a creation, the store takes [`crate::store::MAX_QUEUED`] changes, the kernel answers
/// what it was asked, and links are as many as the node has. The actor itself never waits.
#[derive(Debug)]
pub(super) enum Mail {
    /// Something happened.
    Event(Box<Event>),
    /// A commit ended; these effects stood behind it.
    Committed {
        /// Which.
        commit: CommitId,
        /// What to do now, when it is durable.
        behind: Vec<Effect>,
        /// Why it is not durable.
        failure: Option<String>,
    },
    /// What was released is out of the kernel; now it can be answered.
    Unwired {
        /// Who asked.
        waiter: WaiterId,
        /// The answer.
        reply: Reply,
    },
    /// Something of pods went from the kernel. Those that live are to be put right.
    Disturbed {
        /// Whose, and who did it.
        gone: BTreeMap<IpAddr, Author>,
        /// Whether other pods may miss something as well: news was lost, or it is time for a look.
        all: bool,
    },
    /// Something of the node itself was changed, perhaps what leads its ports to pods.
    TableTouched,
    /// What the guardian has come to.
    Guarded(Guarded),
    /// Time for what no event tells of: DELs that plugins left behind, alarms that were held back.
    Housekeeping,
}

impl From<Event> for Mail {
    fn from(event: Event) -> Self {
        Self::Event(Box::new(event))
    }
}
