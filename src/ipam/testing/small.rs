//! Small things that were wrong, each with the case that showed it.

use std::time::Duration;

use super::explain::texts;
use super::growth::{PATIENCE, policy, sizes, started};
use super::targets::ips;
use super::world::{Fault, World, key};
use crate::cloud::FailureClass;
use crate::effect::RefusalKind;
use crate::event::Event;
use crate::policy::Policy;

const LONG: Duration = Duration::from_secs(900);

fn run(world: &mut World, pods: std::ops::Range<u32>) {
    for n in pods {
        let waiter = world.add(n, PATIENCE);
        assert!(
            world.granted(waiter).is_some(),
            "pod {n}: {:?}",
            world.refused(waiter)
        );
    }
}

// ---- a throttled account ----

#[test]
fn a_throttled_assign_leads_to_no_eni_for_what_is_only_held_ready() {
    let mut world = started(3, 10, ips(1, 0));
    world.outage = Some(FailureClass::Throttled);
    world.outage_of = "Assign";
    run(&mut world, 0..1);
    world.advance(Duration::from_secs(30));
    assert!(world.calls("Assign") > 1);
    assert_eq!(world.calls("Create"), 0, "{:?}", world.log);
    // A pod that waits is served by whatever EC2 gives.
    let waiter = world.add(1, Duration::from_secs(100));
    world.advance(Duration::from_secs(60));
    assert_eq!(world.calls("Create"), 1, "{:?}", world.log);
    assert!(world.granted(waiter).is_some(), "{:?}", world.refused(waiter));
}

