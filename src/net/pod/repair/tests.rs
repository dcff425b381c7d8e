use super::super::super::link::index_of;
use super::super::super::op::LinkRef;
use super::super::super::testing::{between, fd_path, fresh_netns, in_fresh_netns};
use super::super::{PodIntent, wire_pod};
use super::*;
use crate::ipam::ip::Cidr;
use std::os::fd::OwnedFd;

const ENI: TableId = TableId(3);

/// The family of the test that the thread is in.
#[derive(Clone, Copy)]
struct Family(fn(u8) -> IpAddr);

const V4: Family = Family(|last| IpAddr::from([10, 0, 1, last]));
const V6: Family = Family(|last| IpAddr::from([0x2001, 0xdb8, 0, 0, 0, 0, 0, u16::from(last)]));

/// Runs a test in a namespace for each family.
fn in_both_families(test: impl Fn(Family) + Send + Sync) {
    for family in [V4, V6] {
        in_fresh_netns(|| test(family));
    }
}

/// A wired pod and its namespace, which lives as long as this.
struct Wired {
    pod: RecordedPod,
    _netns: OwnedFd,
}

impl Family {
    fn wired(self, name: &str, last: u8, eni_table: TableId, layout: RuleLayout) -> Wired {
        let netns = fresh_netns();
        let pod = RecordedPod {
            address: self.0(last),
            host_veth: veth::host_name("eni", "default", name, 0),
            eni_table,
            layout,
        };
        let intent = PodIntent {
            host_veth: pod.host_veth.clone(),
            ifname: "eth0".to_owned(),
            netns: fd_path(&netns),
            address: pod.address,
            mtu: 9001,
            host_mac: veth::random_mac().unwrap(),
            pod_mac: veth::random_mac().unwrap(),
            eni_table,
            layout,
        };
        wire_pod(&intent).unwrap();
        Wired { pod, _netns: netns }
    }
}

fn observe() -> HostFacts {
    HostFacts::observe("eni").unwrap()
}

fn change(ops: &[NetOp]) {
    Rtnl::open().unwrap().apply_all(ops).unwrap();
}

fn repair(pods: &[&Wired]) -> Repairs {
    let pods: Vec<_> = pods.iter().map(|wired| wired.pod.clone()).collect();
    let found = repairs(&observe(), &pods);
    for (repair, errors) in put_right(&mut Rtnl::open().unwrap(), found.repairs.clone()).unwrap() {
        assert!(errors.is_empty(), "{repair:?}: {errors:?}");
    }
    assert_eq!(
        repairs(&observe(), &pods).repairs,
        [],
        "once is enough and there is nothing to say twice"
    );
    found
}

fn route(wired: &Wired, table: TableId) -> NetOp {
    let link = index_of(Rtnl::open().unwrap(), &wired.pod.host_veth)
        .unwrap()
        .unwrap();
    NetOp::DelRoute(Route::host(wired.pod.address, link, table))
}

fn from(wired: &Wired, table: TableId) -> Rule {
    Rule::from(wired.pod.address, FROM_POD_PRIORITY, table)
}

/// A rule of old releases: to a network of the pod's family of this length.
fn narrow(wired: &Wired, len: u8) -> Rule {
    let address = wired.pod.address;
    Rule {
        selector: between(Cidr::host(address), Cidr::new(address, len).unwrap()),
        ..from(wired, ENI)
    }
}

fn sorted(facts: HostFacts) -> (Vec<RuleFact>, Vec<super::super::super::facts::PodRoute>) {
    let (mut rules, mut routes) = (facts.rules, facts.pod_routes);
    rules.sort();
    routes.sort();
    (rules, routes)
}

#[test]
fn dataplane_138_a_rule_of_the_old_layout_becomes_a_single_one() {
    in_both_families(|family| {
        let pod = family.wired("a", 5, ENI, RuleLayout::PerPod);
        let good = sorted(observe());
        change(&[
            NetOp::AddRule(narrow(&pod, 16)),
            NetOp::AddRule(narrow(&pod, 8)),
            NetOp::AddRule(from(&pod, TableId(7))),
            NetOp::DelRule(from(&pod, ENI)),
        ]);
        // The rule that was right, being the oldest, is the one that went.
        let found = repair(&[&pod]);
        assert_eq!(found.repairs.len(), 1);
        assert_eq!(sorted(observe()), good);
    });
}

#[test]
fn what_is_missing_of_a_pod_comes_back_in_the_layout_it_was_wired_by() {
    in_both_families(|family| {
        let shared = family.wired("a", 5, ENI, RuleLayout::Shared);
        let primary = family.wired("b", 6, TableId::MAIN, RuleLayout::PerPod);
        let secondary = family.wired("c", 7, ENI, RuleLayout::PerPod);
        let mut adopted = family.wired("d", 8, ENI, RuleLayout::PerPod);
        adopted.pod.layout = RuleLayout::Shared;
        let all = [&shared, &primary, &secondary, &adopted];
        assert_eq!(
            repair(&all),
            Repairs::default(),
            "nothing is done to a host in order"
        );
        let good = sorted(observe());
        let to = |wired: &Wired| Rule::to(wired.pod.address, TO_POD_PRIORITY, TableId::MAIN);
        change(&[
            route(&shared, POD_TABLE),
            route(&primary, TableId::MAIN),
            NetOp::DelRule(to(&secondary)),
            NetOp::DelRule(from(&secondary, ENI)),
            route(&adopted, TableId::MAIN),
            NetOp::DelRule(from(&adopted, ENI)),
        ]);
        let found = repair(&all);
        assert_eq!(found.repairs.len(), 4);
        assert_eq!(found.left_alone, []);
        assert_eq!(sorted(observe()), good);
    });
}

#[test]
fn a_stale_rule_does_not_lead_a_pod_of_the_shared_layout_astray() {
    in_both_families(|family| {
        let pod = family.wired("a", 5, ENI, RuleLayout::Shared);
        let good = sorted(observe());
        let to = Rule::to(pod.pod.address, TO_POD_PRIORITY, TableId::MAIN);
        change(&[NetOp::AddRule(from(&pod, TableId(9))), NetOp::AddRule(to)]);
        repair(&[&pod]);
        assert_eq!(sorted(observe()), good);
    });
}

#[test]
fn dataplane_137_a_pod_whose_link_has_another_prefix_is_repaired_too() {
    in_both_families(|family| {
        let mut pod = family.wired("a", 5, ENI, RuleLayout::Shared);
        change(&[route(&pod, POD_TABLE)]);
        pod.pod.host_veth = veth::host_name("vlan", "default", "a", 0);
        let found = repair(&[&pod]);
        assert_eq!(found.repairs.len(), 1);
        let facts = observe();
        assert_eq!(facts.pod_routes.len(), 1);
        assert_eq!(facts.pod_routes[0].address, pod.pod.address);
    });
}

#[test]
fn what_is_not_certainly_the_pods_is_left_alone() {
    in_both_families(|family| {
        let foreign = family.wired("a", 5, ENI, RuleLayout::PerPod);
        let moved = family.wired("b", 6, ENI, RuleLayout::Shared);
        let newer = family.wired("c", 7, ENI, RuleLayout::Shared);
        let doomed = family.wired("d", 8, ENI, RuleLayout::Shared);
        let gone = family.wired("e", 9, ENI, RuleLayout::Shared);
        let elsewhere = index_of(Rtnl::open().unwrap(), &newer.pod.host_veth)
            .unwrap()
            .unwrap();
        let doomed_link = LinkRef::Name(doomed.pod.host_veth.clone());
        change(&[
            NetOp::DelRule(from(&foreign, ENI)),
            NetOp::AddRule(Rule {
                fwmark: Some((1, 1)),
                ..from(&foreign, TableId(42))
            }),
            NetOp::ReplaceRoute(Route::host(moved.pod.address, elsewhere, POD_TABLE)),
            NetOp::LinkGroup(doomed_link.clone(), DOOMED_GROUP),
            NetOp::LinkDown(doomed_link),
            NetOp::DelLink(LinkRef::Name(gone.pod.host_veth.clone())),
        ]);
        // An older sandbox of the same pod: its link has the same name and carries the newer one's route.
        let mut older = family.wired("f", 10, ENI, RuleLayout::Shared);
        change(&[route(&older, POD_TABLE)]);
        older.pod.host_veth.clone_from(&newer.pod.host_veth);
        let before = sorted(observe());
        let found = repair(&[&foreign, &moved, &newer, &older, &doomed, &gone]);
        assert_eq!(found.repairs, []);
        assert_eq!(
            found.left_alone,
            [
                (foreign.pod.address, LeftAlone::ForeignRule),
                (moved.pod.address, LeftAlone::RoutedElsewhere),
                (older.pod.address, LeftAlone::LinkIsAnothers),
            ]
        );
        assert_eq!(sorted(observe()), before);
    });
}

#[test]
fn of_two_records_for_a_link_without_routes_neither_is_believed() {
    in_both_families(|family| {
        let one = family.wired("a", 5, ENI, RuleLayout::Shared);
        change(&[route(&one, POD_TABLE)]);
        let mut other = one.pod.clone();
        other.address = family.0(6);
        let found = repairs(&observe(), &[one.pod.clone(), other]);
        assert_eq!((found.repairs.len(), found.left_alone.len()), (0, 2));
    });
}

#[test]
fn rules_of_unassigned_addresses_go_and_nobody_elses() {
    in_both_families(|family| {
        let lives = family.wired("a", 5, ENI, RuleLayout::PerPod);
        let lost = family.0(6);
        let foreign = family.0(7);
        let to_lost = Rule::to(lost, TO_POD_PRIORITY, TableId::MAIN);
        let from_lost = Rule::from(lost, FROM_POD_PRIORITY, ENI);
        let kept = sorted(observe()).0.len();
        change(&[
            NetOp::AddRule(from_lost.clone()),
            NetOp::AddRule(Rule {
                table: Some(TableId(8)),
                ..from_lost
            }),
            NetOp::AddRule(to_lost),
            NetOp::AddRule(Rule::from(lost, 1600, ENI)),
            NetOp::AddRule(Rule::from(foreign, FROM_POD_PRIORITY, ENI)),
        ]);
        let unassigned = BTreeSet::from([lost, lives.pod.address]);
        let done = remove_orphaned_rules("eni", &unassigned).unwrap();
        assert_eq!(
            done.len(),
            1,
            "a routed address is a pod's, whoever says otherwise"
        );
        assert_eq!((done[0].0.address, done[0].0.ops.len()), (lost, 3));
        assert!(done[0].1.is_empty());
        assert_eq!(sorted(observe()).0.len(), kept + 2);
    });
}
