//! CHECK: what differs is said, nothing is changed.

use super::*;

#[test]
fn check_says_what_differs_in_words() {
    lab(RuleLayout::PerPod, 3, |mut lab| {
        wire_pod(&lab.intent).unwrap();
        let index = link::index_of(&lab.host, &lab.intent.host_veth).unwrap().unwrap();
        lab.host
            .apply_all(&[
                NetOp::DelRule(Rule::to(POD, TO_POD_PRIORITY, TableId::MAIN)),
                NetOp::DelRule(Rule::from(POD, FROM_POD_PRIORITY, TableId(3))),
                NetOp::AddRule(Rule::from(POD, FROM_POD_PRIORITY, TableId(5))),
                NetOp::LinkMtu(LinkRef::Index(index), 1500),
            ])
            .unwrap();
        assert_eq!(
            words(&lab.intent),
            [
                "host interface enic440f455693 has MTU 1500, should be 9001",
                "the rule to 10.0.1.5 is missing at priority 512",
                "the rule from 10.0.1.5 leads to table 5, should be table 3",
            ]
        );
        let mut inside = lab.inside();
        let eth0 = link::index_of(&inside, "eth0").unwrap().unwrap();
        inside
            .apply_all(&[NetOp::DelAddress {
                address: POD,
                len: 32,
                link: eth0,
            }])
            .unwrap();
        assert!(words(&lab.intent).contains(&"pod interface eth0 lacks address 10.0.1.5/32".to_owned()));
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
            .apply_all(&[NetOp::DelRule(Rule::all(TO_POD_PRIORITY, POD_TABLE))])
            .unwrap();
        assert_eq!(words(&lab.intent), ["the host's route to 10.0.1.5 is missing"]);
    });
}

#[test]
fn a_check_changes_nothing() {
    lab(RuleLayout::PerPod, 3, |mut lab| {
        wire_pod(&lab.intent).unwrap();
        let before = (lab.host.links().unwrap(), lab.inside().links().unwrap());
        // Not the link group: the kernel tells of the new pair's carrier when it gets round to it.
        let mut watch = Socket::subscribe(Family::Route, &[RTNLGRP_IPV4_ROUTE, RTNLGRP_IPV4_RULE]).unwrap();
        check_pod(&lab.intent);
        assert_eq!(watch.drain().unwrap(), []);
        assert_eq!((lab.host.links().unwrap(), lab.inside().links().unwrap()), before);
    });
}
