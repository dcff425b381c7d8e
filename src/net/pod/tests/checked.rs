//! CHECK: what differs is said, nothing is changed.

use super::*;

#[test]
fn check_says_what_differs_in_words() {
    lab(RuleLayout::PerPod, 3, |mut lab| {
        let (pod, len) = (lab.intent.address, lab.family().bits());
        wire_pod(&lab.intent).unwrap();
        let index = link::index_of(&lab.host, &lab.intent.host_veth).unwrap().unwrap();
        lab.host
            .apply_all(&[
                NetOp::DelRule(Rule::to(pod, TO_POD_PRIORITY, TableId::MAIN)),
                NetOp::DelRule(Rule::from(pod, FROM_POD_PRIORITY, TableId(3))),
                NetOp::AddRule(Rule::from(pod, FROM_POD_PRIORITY, TableId(5))),
                NetOp::LinkMtu(LinkRef::Index(index), 1500),
            ])
            .unwrap();
        assert_eq!(
            words(&lab.intent),
            [
                "host interface enic440f455693 has MTU 1500, should be 9001".to_owned(),
                format!("the rule to {pod} is missing at priority 512"),
                format!("the rule from {pod} leads to table 5, should be table 3"),
            ]
        );
        let mut inside = lab.inside();
        let eth0 = link::index_of(&inside, "eth0").unwrap().unwrap();
        inside
            .apply_all(&[NetOp::DelAddress {
                address: pod,
                len,
                link: eth0,
            }])
            .unwrap();
        assert!(words(&lab.intent).contains(&format!("pod interface eth0 lacks address {pod}/{len}")));
        lab.host
            .apply_all(&[NetOp::DelLink(LinkRef::Index(index))])
            .unwrap();
        let gone = words(&lab.intent);
        assert!(
            gone.contains(&"host interface enic440f455693 is missing".to_owned()),
            "{gone:?}"
        );
        assert!(
            gone.contains(&"pod interface eth0 is missing".to_owned()),
            "{gone:?}"
        );
        lab.intent.netns = "/nowhere/ns".into();
        assert!(
            words(&lab.intent)
                .iter()
                .any(|text| text.starts_with("the pod's namespace cannot be opened: "))
        );
    });
    lab(RuleLayout::Shared, 3, |mut lab| {
        wire_pod(&lab.intent).unwrap();
        lab.host
            .apply_all(&[NetOp::DelRule(Rule::all(
                lab.intent.family(),
                TO_POD_PRIORITY,
                POD_TABLE,
            ))])
            .unwrap();
        assert_eq!(
            words(&lab.intent),
            [format!("the host's route to {} is missing", lab.intent.address)]
        );
    });
}

#[test]
fn a_check_changes_nothing() {
    lab(RuleLayout::PerPod, 3, |mut lab| {
        wire_pod(&lab.intent).unwrap();
        let before = (lab.host.links().unwrap(), lab.inside().links().unwrap());
        let traces = lab.traces();
        // Neither the link group nor that of IPv6 routes: the kernel tells of the new pair's carrier, and of the link-local
        // addresses that it gives both ends, when it gets round to it.
        let groups = [RTNLGRP_IPV4_ROUTE, RTNLGRP_IPV4_RULE, RTNLGRP_IPV6_RULE];
        let mut watch = Socket::subscribe(Family::Route, &groups).unwrap();
        check_pod(&lab.intent);
        assert_eq!(watch.drain().unwrap(), []);
        assert_eq!((lab.host.links().unwrap(), lab.inside().links().unwrap()), before);
        assert_eq!(lab.traces(), traces);
    });
}

/// A permanent entry is never asked for again: one that is wrong cuts the pod off, one that is gone costs a question.
#[test]
fn a_neighbour_of_the_host_that_is_wrong_is_told_and_one_that_is_gone_is_none() {
    lab_of(POD6, RuleLayout::Shared, 254, |mut lab| {
        let wired = wire_pod(&lab.intent).unwrap();
        lab.host
            .apply_all(&[NetOp::AddNeighbour {
                address: POD6,
                mac: Mac([2, 0, 0, 0, 0, 9]),
                link: wired.host_index,
            }])
            .unwrap();
        let pod = lab.intent.pod_mac;
        assert_eq!(
            words(&lab.intent),
            [format!(
                "the host's neighbour {POD6} is at 02:00:00:00:00:09, should be at {pod}"
            )]
        );
        if ip_json(&[
            "-6",
            "neigh",
            "del",
            &POD6.to_string(),
            "dev",
            &lab.intent.host_veth,
        ])
        .is_some()
        {
            assert_eq!(words(&lab.intent), [""; 0]);
        }
    });
}
