//! ENIs as veth ends with a given hardware address; iproute2 as the independent judge.

use std::os::fd::{AsRawFd, OwnedFd};

use nix::libc::{RTNLGRP_IPV4_IFADDR, RTNLGRP_IPV4_ROUTE, RTNLGRP_IPV4_RULE};

use super::super::netlink::{Family, Socket};
use super::super::op::VethEnd;
use super::super::testing::{fresh_netns, in_fresh_netns, inet_of};
use super::*;

const PRIMARY: Ipv4Addr = Ipv4Addr::new(10, 0, 1, 20);

fn intent() -> EniIntent {
    EniIntent {
        mac: Mac([2, 0, 0, 0, 1, 1]),
        primary: PRIMARY,
        subnet: "10.0.1.0/24".parse().unwrap(),
        table: TableId(3),
        mtu: 9001,
        mark: EniMark::new(2),
    }
}

/// A host with one more link, attached to nothing in particular.
fn host(test: impl FnOnce(&mut Rtnl, u32) + Send) {
    in_fresh_netns(|| {
        let vpc: OwnedFd = fresh_netns();
        let end = |name: &str, mac| VethEnd {
            name: name.to_owned(),
            mac: Mac([2, 0, 0, 0, mac, 1]),
        };
        let mut rtnl = Rtnl::open().unwrap();
        let add = NetOp::AddVeth {
            here: end("ens6", 1),
            there: end("router", 2),
            netns: vpc.as_raw_fd(),
            mtu: 1500,
        };
        rtnl.apply_all(&[add]).unwrap();
        let index = link::index_of(&rtnl, "ens6").unwrap().unwrap();
        test(&mut rtnl, index);
    });
}

/// Runs again and listens: no address, route or rule may move. Link notifications come late and unasked for (carrier),
/// so of the link only what would be sent is looked at.
fn assert_settled(rtnl: &mut Rtnl, intent: &EniIntent) {
    let groups = [RTNLGRP_IPV4_IFADDR, RTNLGRP_IPV4_ROUTE, RTNLGRP_IPV4_RULE];
    let mut monitor = Socket::subscribe(Family::Route, &groups).unwrap();
    let link = rtnl.link_named("ens6").unwrap().unwrap();
    assert_eq!(link_changes(intent, &link), []);
    configure_eni(intent).unwrap();
    assert_eq!(monitor.drain().unwrap(), []);
    assert_eq!(rtnl.link_named("ens6").unwrap().unwrap(), link);
}

/// Conformance: dataplane case 49.
#[test]
fn dataplane_49_an_eni_gets_its_table_and_rules() {
    host(|rtnl, index| {
        let eni = configure_eni(&intent()).unwrap();
        assert_eq!((eni.ifindex, eni.name.as_str()), (index, "ens6"));
        let link = rtnl.link_named("ens6").unwrap().unwrap();
        assert_eq!((link.mtu, link.up), (9001, true));
        let gateway = Ipv4Addr::new(10, 0, 1, 1);
        let table: Vec<_> = rtnl.routes(IpFamily::V4, Some(TableId(3)), None).unwrap();
        let shape: Vec<_> = table
            .iter()
            .map(|route| (route.dst.to_string(), route.via, route.scope))
            .collect();
        assert_eq!(
            shape,
            [
                ("0.0.0.0/0".to_owned(), Some(gateway.into()), 0),
                ("10.0.1.1/32".to_owned(), None, 253)
            ]
        );
        assert!(
            rtnl.routes(IpFamily::V4, Some(TableId::MAIN), Some(index))
                .unwrap()
                .is_empty()
        );
        let rules = rtnl.rules(IpFamily::V4).unwrap();
        let rule = |priority| rules.iter().find(|rule| rule.priority == priority).unwrap();
        assert_eq!(
            (rule(32_765).from_host(), rule(32_765).table),
            (Some(PRIMARY.into()), Some(TableId(3)))
        );
        assert_eq!(
            (rule(1536).fwmark, rule(1536).table),
            (Some((2, 0x7f)), Some(TableId(3)))
        );
        let setting = std::fs::read_to_string("/proc/sys/net/ipv4/conf/ens6/src_valid_mark").unwrap();
        assert_eq!(setting.trim(), "1");
        if let Some(inet) = inet_of("ens6") {
            assert_eq!(inet, (Some("10.0.1.20".into()), Some("10.0.1.255".into())));
        }
    });
}

/// Conformance: dataplane case 58.
#[test]
fn dataplane_58_a_second_run_changes_nothing() {
    host(|rtnl, _| {
        configure_eni(&intent()).unwrap();
        assert_settled(rtnl, &intent());
    });
}

#[test]
fn the_go_daemons_work_is_taken_over_without_a_ripple() {
    host(|rtnl, index| {
        let gateway = Ipv4Addr::new(10, 0, 1, 1);
        rtnl.apply_all(&[
            NetOp::LinkMtu(LinkRef::Index(index), 9001),
            NetOp::LinkUp(LinkRef::Index(index)),
            NetOp::AddAddress {
                address: PRIMARY.into(),
                len: 24,
                link: index,
            },
            NetOp::ReplaceRoute(Route::host(gateway, index, TableId(3))),
            NetOp::ReplaceRoute(Route::default_via(gateway, index, TableId(3))),
            NetOp::DelRoute(Route::as_seen(
                "10.0.1.0/24".parse().unwrap(),
                None,
                0,
                TableId::MAIN,
                Some(PRIMARY.into()),
            )),
            NetOp::AddRule(Rule::from(PRIMARY, ENI_PRIMARY_PRIORITY, TableId(3))),
        ])
        .unwrap();
        assert_settled(
            rtnl,
            &EniIntent {
                mark: None,
                ..intent()
            },
        );
    });
}

/// Conformance: dataplane case 51, and quirk 5: also when removing the wrong address takes ours with it.
#[test]
fn dataplane_51_only_wrong_addresses_go() {
    for wrong in [
        (Ipv4Addr::new(10, 0, 1, 99), 24),
        (Ipv4Addr::new(172, 16, 0, 9), 16),
        (PRIMARY, 16),
    ] {
        host(|rtnl, index| {
            let address = |(address, len): (Ipv4Addr, u8)| NetOp::AddAddress {
                address: address.into(),
                len,
                link: index,
            };
            let link_local = (Ipv4Addr::new(169, 254, 7, 7), 16);
            rtnl.apply_all(&[address(wrong), address(link_local)]).unwrap();
            configure_eni(&intent()).unwrap();
            let found: Vec<_> = rtnl
                .addresses(IpFamily::V4, Some(index))
                .unwrap()
                .into_iter()
                .map(|fact| (fact.address, fact.len))
                .collect();
            assert_eq!(found.len(), 2, "{found:?}");
            assert!(
                found.contains(&(PRIMARY.into(), 24)) && found.contains(&(link_local.0.into(), 16)),
                "{found:?}"
            );
            assert_eq!(
                rtnl.routes(IpFamily::V4, Some(TableId(3)), None).unwrap().len(),
                2
            );
            let main = rtnl
                .routes(IpFamily::V4, Some(TableId::MAIN), Some(index))
                .unwrap();
            assert!(
                main.iter()
                    .all(|route| route.prefsrc == Some(link_local.0.into())),
                "{main:?}"
            );
            assert_settled(rtnl, &intent());
        });
    }
}

/// Quirk 5: a link that loses its only address loses every route over it, whoever made them.
#[test]
fn dataplane_quirk_5_the_link_is_never_without_an_address() {
    host(|rtnl, index| {
        let others = Route::link("198.51.100.0/24".parse::<Ipv4Cidr>().unwrap(), index, TableId(77));
        rtnl.apply_all(&[
            NetOp::AddAddress {
                address: Ipv4Addr::new(172, 16, 0, 9).into(),
                len: 16,
                link: index,
            },
            NetOp::LinkUp(LinkRef::Index(index)),
            NetOp::AddRoute(others),
        ])
        .unwrap();
        configure_eni(&intent()).unwrap();
        assert_eq!(rtnl.addresses(IpFamily::V4, Some(index)).unwrap().len(), 1);
        assert_eq!(
            rtnl.routes(IpFamily::V4, Some(TableId(77)), None).unwrap().len(),
            1
        );
    });
}

#[test]
fn rules_of_an_earlier_eni_go() {
    host(|rtnl, _| {
        rtnl.apply_all(&[
            NetOp::AddRule(Rule::from(PRIMARY, ENI_PRIMARY_PRIORITY, TableId(9))),
            NetOp::AddRule(Rule::marked(
                IpFamily::V4,
                2,
                ENI_MARK_MASK,
                FROM_POD_PRIORITY,
                TableId(9),
            )),
            NetOp::AddRule(Rule::marked(
                IpFamily::V4,
                4,
                ENI_MARK_MASK,
                FROM_POD_PRIORITY,
                TableId(9),
            )),
        ])
        .unwrap();
        configure_eni(&intent()).unwrap();
        let tables: Vec<_> = rtnl
            .rules(IpFamily::V4)
            .unwrap()
            .into_iter()
            .filter(|rule| rule.fwmark.is_some() || rule.selector.from().is_some())
            .map(|rule| {
                (
                    rule.priority,
                    rule.fwmark.map(|(mark, _)| mark),
                    rule.table.unwrap().0,
                )
            })
            .collect();
        assert_eq!(
            tables,
            [(1536, Some(4), 9), (1536, Some(2), 3), (32_765, None, 3)]
        );
    });
}

/// Conformance: dataplane case 53.
#[test]
fn dataplane_53_the_amis_rule_is_reused() {
    host(|rtnl, _| {
        let ami = Rule::from(PRIMARY, 10_101, TableId(10_101));
        rtnl.apply_all(&[NetOp::AddRule(ami)]).unwrap();
        let table = TableId(10_101);
        configure_eni(&EniIntent { table, ..intent() }).unwrap();
        assert!(
            rtnl.rules(IpFamily::V4)
                .unwrap()
                .iter()
                .all(|rule| rule.priority != ENI_PRIMARY_PRIORITY)
        );
        assert_eq!(
            rtnl.routes(IpFamily::V4, Some(TableId(10_101)), None)
                .unwrap()
                .len(),
            2
        );
    });
}

/// Conformance: dataplane case 57.
#[test]
fn dataplane_57_a_freed_eni_leaves_no_rules() {
    host(|rtnl, _| {
        configure_eni(&intent()).unwrap();
        let other = Rule::from(Ipv4Addr::new(10, 0, 1, 21), 1536, TableId(3));
        let ami = Rule::from(PRIMARY, 10_101, TableId(10_101));
        rtnl.apply_all(&[NetOp::AddRule(other), NetOp::AddRule(ami)])
            .unwrap();
        deconfigure_eni_rules(PRIMARY, EniMark::new(2)).unwrap();
        let left: Vec<_> = rtnl
            .rules(IpFamily::V4)
            .unwrap()
            .into_iter()
            .map(|rule| rule.priority)
            .collect();
        assert_eq!(left, [0, 1536, 32_766, 32_767]);
        deconfigure_eni_rules(PRIMARY, EniMark::new(2)).unwrap();
    });
}

/// A kill between an ENI's leaving and its rules' leaves them: a start knows which marks still lead anywhere.
#[test]
fn rules_of_marks_that_lead_nowhere_go_and_no_others() {
    host(|rtnl, _| {
        configure_eni(&intent()).unwrap();
        rtnl.apply_all(&[
            NetOp::AddRule(Rule::marked(
                IpFamily::V4,
                4,
                ENI_MARK_MASK,
                FROM_POD_PRIORITY,
                TableId(5),
            )),
            NetOp::AddRule(Rule::marked(IpFamily::V4, 0x80, 0x80, 1024, TableId::MAIN)),
        ])
        .unwrap();
        let marks = |rtnl: &mut Rtnl| -> Vec<u32> {
            let rules = rtnl.rules(IpFamily::V4).unwrap().into_iter();
            rules.filter_map(|rule| Some(rule.fwmark?.0)).collect()
        };
        keep_mark_rules(&EniMark::new(2).into_iter().collect()).unwrap();
        assert_eq!(marks(rtnl), [0x80, 2]);
        keep_mark_rules(&BTreeSet::new()).unwrap();
        assert_eq!(marks(rtnl), [0x80]);
    });
}

#[test]
fn what_cannot_be_is_refused() {
    host(|_, _| {
        let main = EniIntent {
            table: TableId::MAIN,
            ..intent()
        };
        assert!(matches!(configure_eni(&main), Err(EniError::MainTable(_))));
        let late = EniIntent {
            mac: Mac([2, 9, 9, 9, 9, 9]),
            ..intent()
        };
        let error = configure_eni(&late).unwrap_err();
        assert_eq!(
            error.to_string(),
            "no network interface has hardware address 02:09:09:09:09:09"
        );
    });
}
