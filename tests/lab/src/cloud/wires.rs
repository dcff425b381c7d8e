//! Nobody is told of an address before the kernel has followed.
//!
//! EC2 delivers to an address by the time it answers that the address was assigned. The lab's router is programmed
//! by a thread that runs `ip` and `nft`, for which a busy machine may take a second. So whoever changes addresses
//! waits for that thread, and whoever looks is shown only what it has done. Links tell of themselves: they appear
//! when the router is ready for them.

use std::sync::mpsc::{Receiver, RecvTimeoutError};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::sync::Notify;

use crate::vpc::VpcChange;

/// How many of the model's announcements the kernel has followed; all of them while nobody makes it follow.
#[derive(Debug)]
pub(crate) struct Wires {
    followed: Mutex<u64>,
    changed: Condvar,
    changed_async: Notify,
}

impl Default for Wires {
    fn default() -> Self {
        Self {
            followed: Mutex::new(u64::MAX),
            changed: Condvar::new(),
            changed_async: Notify::new(),
        }
    }
}

impl Wires {
    /// How many announcements have been followed.
    pub(crate) fn followed(&self) -> u64 {
        *self.lock()
    }

    /// Waits until this many have been followed, or nobody follows any more.
    pub(crate) fn wait(&self, announced: u64) {
        let behind = |followed: &mut u64| *followed < announced;
        drop(self.changed.wait_while(self.lock(), behind));
    }

    /// The same without holding up a thread.
    pub(crate) async fn reach(&self, announced: u64) {
        loop {
            let mut changed = Box::pin(self.changed_async.notified());
            changed.as_mut().enable(); // from here on no change is missed
            if self.followed() >= announced {
                return;
            }
            changed.await;
        }
    }

    fn set(&self, followed: impl FnOnce(u64) -> u64) {
        let mut now = self.lock();
        *now = followed(*now);
        drop(now);
        self.changed.notify_all();
        self.changed_async.notify_waiters();
    }

    fn lock(&self) -> MutexGuard<'_, u64> {
        self.followed.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Changes for the one who makes the kernel follow them; once it is dropped nobody waits for it.
#[derive(Debug)]
pub(crate) struct Follower {
    changes: Receiver<VpcChange>,
    /// Changes to come that were there before anybody followed; they are not counted.
    from_before: usize,
    wires: Arc<Wires>,
}

impl Follower {
    /// Begins with `from_before` changes that describe how things are after `announced` announcements.
    pub(super) fn new(
        changes: Receiver<VpcChange>,
        from_before: usize,
        announced: u64,
        wires: Arc<Wires>,
    ) -> Self {
        wires.set(|_| announced);
        Self {
            changes,
            from_before,
            wires,
        }
    }

    /// The next change, if there is one within this time.
    pub(crate) fn next(&self, within: Duration) -> Result<VpcChange, RecvTimeoutError> {
        self.changes.recv_timeout(within)
    }

    /// The kernel has followed the last change, or refused to.
    pub(crate) fn followed(&mut self) {
        match self.from_before.checked_sub(1) {
            Some(left) => self.from_before = left,
            None => self.wires.set(|followed| followed.saturating_add(1)),
        }
    }
}

impl Drop for Follower {
    fn drop(&mut self) {
        self.wires.set(|_| u64::MAX);
    }
}

#[cfg(test)]
mod tests {
    use std::net::Ipv4Addr;
    use std::sync::mpsc::channel;
    use std::time::Instant;

    use super::*;
    use crate::cloud::{Cloud, CloudConfig};
    use crate::vpc::{EniId, Ipv4Cidr, Model, NewInstance, Want, Wanted};

    const SOON: Duration = Duration::from_mins(1);

    /// A cloud with one instance, and its primary ENI.
    fn cloud() -> (Cloud, EniId) {
        let cloud = Cloud::new(&CloudConfig::default()).unwrap();
        let launch = cloud.model(|model| {
            let net = Ipv4Cidr::new(Ipv4Addr::new(10, 0, 0, 0), 16);
            let vpc = model.create_vpc(&[net], None);
            let group = model.create_group(&vpc, "nodes").unwrap();
            let subnet = model.create_subnet(&vpc, "eu-central-1a", net, None).unwrap();
            NewInstance::new("m5.large", &subnet, &group)
        });
        let primary = cloud.run_instance(launch).unwrap().primary_eni;
        (cloud, primary)
    }

    fn assign_one(model: &mut Model, eni: &EniId) {
        let wanted = Wanted {
            addresses: Want::Count(1),
            ..Wanted::default()
        };
        model.assign(eni, &wanted, false, Instant::now()).unwrap();
    }

    fn shown(cloud: &Cloud, eni: &EniId) -> usize {
        let shared = &cloud.shared;
        shared.model(|model, _| shared.view(model, |_| true)[eni].secondary.len())
    }

    #[test]
    fn an_address_is_shown_once_the_kernel_has_followed() {
        let (cloud, eni) = cloud();
        let mut follower = cloud.follow();
        assert!(matches!(follower.next(SOON), Ok(VpcChange::EniAttached(_))));
        follower.followed();
        cloud.model_ahead(|model| assign_one(model, &eni));
        assert!(matches!(
            follower.next(SOON),
            Ok(VpcChange::AddressesChanged { .. })
        ));
        assert_eq!(shown(&cloud, &eni), 0);
        follower.followed();
        assert_eq!(shown(&cloud, &eni), 1);
    }

    #[test]
    fn who_changes_something_waits_for_the_kernel_as_long_as_it_follows() {
        let (cloud, eni) = cloud();
        let mut follower = cloud.follow();
        assert!(follower.next(SOON).is_ok());
        follower.followed();
        std::thread::scope(|scope| {
            let (done, finished) = channel();
            scope.spawn(|| {
                let done = done;
                for _ in 0..2 {
                    cloud.model(|model| assign_one(model, &eni));
                    done.send(()).unwrap();
                }
            });
            assert!(follower.next(SOON).is_ok());
            assert!(finished.try_recv().is_err());
            follower.followed();
            finished.recv_timeout(SOON).unwrap();
            assert!(follower.next(SOON).is_ok());
            assert!(finished.try_recv().is_err());
            drop(follower);
            finished.recv_timeout(SOON).unwrap();
        });
    }
}
