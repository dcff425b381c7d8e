//! What a DEL takes away, and what it leaves to new owners.

use super::*;

#[test]
fn unwiring_stops_traffic_and_dooms_the_link() {
    for layout in [RuleLayout::Shared, RuleLayout::PerPod] {
        lab(layout, 3, |mut lab| {
            let before = lab.traces();
            let wired = wire_pod(&lab.intent).unwrap();
            let first = unwire_pod(&lab.removal(LinkRemoval::Doom)).unwrap();
            assert_eq!((first.route_removed, first.link), (true, LinkFate::Doomed));
            assert_eq!(lab.host.route_to(lab.intent.address).unwrap(), None);
            assert!(lab.rules_about_the_pod().is_empty());
            let doomed = lab.host.link_named(&lab.intent.host_veth).unwrap().unwrap();
            assert_eq!((doomed.group, doomed.up), (DOOMED_GROUP, false));
            assert!(
                words(&lab.intent)
                    .iter()
                    .any(|text| text.ends_with("is marked for deletion"))
            );
            // Twice is the same as once, and a name doomed meanwhile can be wired again.
            let second = unwire_pod(&lab.removal(LinkRemoval::Doom)).unwrap();
            assert_eq!((second.route_removed, second.link), (false, LinkFate::Doomed));
            let again = wire_pod(&lab.intent).unwrap();
            assert_ne!(again.host_index, wired.host_index);
            assert!(!link::reap_doomed(&mut lab.host).unwrap());
            assert_eq!(words(&lab.intent), [""; 0]);
            unwire_pod(&lab.removal(LinkRemoval::Doom)).unwrap();
            assert!(link::reap_doomed(&mut lab.host).unwrap());
            assert_eq!(lab.traces(), before);
            let third = unwire_pod(&lab.removal(LinkRemoval::Delete)).unwrap();
            assert_eq!((third.route_removed, third.link), (false, LinkFate::Absent));
        });
    }
}

/// Conformance: dataplane cases 93 and 94 (several rules of old releases; no namespace needed).
#[test]
fn dataplane_93_94_all_rules_go_without_the_namespace() {
    lab(RuleLayout::PerPod, 3, |mut lab| {
        wire_pod(&lab.intent).unwrap();
        let pod = lab.intent.address;
        for len in [16, 24] {
            let rule = Rule {
                selector: between(Cidr::host(pod), Cidr::new(pod, len).unwrap()),
                ..Rule::from(pod, FROM_POD_PRIORITY, TableId(3))
            };
            lab.host.apply_all(&[NetOp::AddRule(rule)]).unwrap();
        }
        let elsewhere = NetOp::AddRule(Rule::from(pod, FROM_POD_PRIORITY, TableId(8)));
        lab.host.apply_all(&[elsewhere]).unwrap();
        let unwired = unwire_pod(&lab.removal(LinkRemoval::Delete)).unwrap();
        assert_eq!((unwired.route_removed, unwired.link), (true, LinkFate::Deleted));
        assert_eq!(
            lab.rules_about_the_pod(),
            [(1536, Some(TableId(8)))],
            "another table's rule stays"
        );
        let mut unknown = lab.removal(LinkRemoval::Delete);
        unknown.eni_table = None;
        unknown.host_veth = None;
        unwire_pod(&unknown).unwrap();
        assert!(lab.rules_about_the_pod().is_empty());
    });
}

#[test]
fn without_a_name_the_route_still_goes() {
    lab(RuleLayout::Shared, 3, |mut lab| {
        wire_pod(&lab.intent).unwrap();
        let mut removal = lab.removal(LinkRemoval::Doom);
        removal.host_veth = None;
        let unwired = unwire_pod(&removal).unwrap();
        assert_eq!((unwired.route_removed, unwired.link), (true, LinkFate::Absent));
        assert_eq!(lab.host.route_to(lab.intent.address).unwrap(), None);
    });
}

#[test]
fn a_link_without_the_route_may_be_the_next_sandboxs_and_stays() {
    for layout in [RuleLayout::Shared, RuleLayout::PerPod] {
        lab(layout, 3, |mut lab| {
            wire_pod(&lab.intent).unwrap();
            let address = lab.intent.address;
            let mut removal = lab.removal(LinkRemoval::DoomIfRouted);
            removal.address = lab.another(77);
            assert_eq!(unwire_pod(&removal).unwrap().link, LinkFate::OfAnotherSandbox);
            let index = lab.host.link_named(&lab.intent.host_veth).unwrap().unwrap().index;
            let route = Route::host(address, index, layout.pod_table());
            lab.host.apply_all(&[NetOp::DelRoute(route.clone())]).unwrap();
            removal.address = address;
            assert_eq!(unwire_pod(&removal).unwrap().link, LinkFate::OfAnotherSandbox);
            lab.host.apply_all(&[NetOp::AddRoute(route)]).unwrap();
            assert_eq!(unwire_pod(&removal).unwrap().link, LinkFate::Doomed);
        });
    }
}

/// The runtime repeats DEL for a dead sandbox long after the pod was given a new one of the same name, or after its
/// address went to another pod.
#[test]
fn a_late_del_leaves_new_owners_alone() {
    for layout in [RuleLayout::Shared, RuleLayout::PerPod] {
        lab(layout, 3, |mut lab| {
            let mut stale = lab.removal(LinkRemoval::Delete);
            stale.address = lab.another(200);
            wire_pod(&lab.intent).unwrap();
            let unwired = unwire_pod(&stale).unwrap();
            assert_eq!(
                (unwired.route_removed, unwired.link),
                (false, LinkFate::OfAnotherSandbox)
            );
            assert_eq!(words(&lab.intent), [""; 0]);

            let mut gone = lab.removal(LinkRemoval::Delete);
            gone.host_veth = Some(veth::host_name("eni", "default", "gone", 0));
            let unwired = unwire_pod(&gone).unwrap();
            assert_eq!((unwired.route_removed, unwired.link), (false, LinkFate::Absent));
            assert_eq!(words(&lab.intent), [""; 0]);
            assert!(!lab.traces().0.eq(&1));
        });
    }
}
