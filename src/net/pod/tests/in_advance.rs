//! Pairs made before the address is known.

use super::*;

#[test]
fn a_pair_made_before_the_address_is_known_becomes_the_pods() {
    lab(RuleLayout::Shared, 3, |mut lab| {
        let mut sandbox = Sandbox::open(&lab.intent.netns).unwrap();
        sandbox.make_pair(&lab.intent.pair());
        let early = lab.host.link_named(&lab.intent.host_veth).unwrap().unwrap();
        assert!(!early.up);
        let wired = sandbox.wire(&lab.intent).unwrap();
        assert_eq!(wired.host_index, early.index, "the same pair");
        assert_eq!(words(&lab.intent), [""; 0]);
    });
}

#[test]
fn a_pair_that_no_address_comes_for_is_left_to_the_daemon() {
    lab(RuleLayout::Shared, 3, |mut lab| {
        let mut sandbox = Sandbox::open(&lab.intent.netns).unwrap();
        sandbox.make_pair(&lab.intent.pair());
        sandbox.give_up();
        let left = lab.host.link_named(&lab.intent.host_veth).unwrap().unwrap();
        assert_eq!((left.group, left.up), (DOOMED_GROUP, false));
        // The next attempt does not wait for that.
        wire_pod(&lab.intent).unwrap();
        assert_eq!(words(&lab.intent), [""; 0]);
    });
}

/// Until an address is there nothing that exists is touched: the ADD may be refused, and what exists may be in use.
#[test]
fn a_pair_in_use_is_replaced_only_once_there_is_an_address() {
    lab(RuleLayout::Shared, 3, |mut lab| {
        let before = wire_pod(&lab.intent).unwrap();
        let again = PodIntent {
            host_mac: veth::random_mac().unwrap(),
            pod_mac: veth::random_mac().unwrap(),
            ..lab.intent.clone()
        };
        let mut sandbox = Sandbox::open(&again.netns).unwrap();
        sandbox.make_pair(&again.pair());
        sandbox.give_up();
        assert_eq!(words(&lab.intent), [""; 0], "as it was");
        let mut sandbox = Sandbox::open(&again.netns).unwrap();
        sandbox.make_pair(&again.pair());
        let wired = sandbox.wire(&again).unwrap();
        assert_ne!(before.host_index, wired.host_index);
        lab.intent = again;
        assert_eq!(words(&lab.intent), [""; 0]);
    });
}

/// What failed on the way is undone, the pair made in advance included.
#[test]
fn a_pair_made_in_advance_goes_when_the_rest_fails() {
    lab(RuleLayout::Shared, 3, |mut lab| {
        let before = lab.traces();
        let mut sandbox = Sandbox::open(&lab.intent.netns).unwrap();
        sandbox.make_pair(&lab.intent.pair());
        // An address twice is refused.
        let pod = lab.inside().link_named("eth0").unwrap().unwrap();
        let taken = NetOp::AddAddress {
            address: lab.intent.address,
            len: lab.family().bits(),
            link: pod.index,
        };
        lab.inside().apply_all(&[taken]).unwrap();
        let error = sandbox.wire(&lab.intent).unwrap_err();
        assert!(matches!(error.failure, WireFailure::Pod(_)), "{error}");
        assert_eq!(lab.traces(), before);
    });
}
