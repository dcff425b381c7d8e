//! Pods wired, checked and unwired in fresh namespaces; iproute2 as the independent judge.

use std::fs;
use std::net::{Ipv4Addr, Ipv6Addr};
use std::os::fd::{AsFd, OwnedFd};

use nix::libc::{RTNLGRP_IPV4_ROUTE, RTNLGRP_IPV4_RULE, RTNLGRP_IPV6_RULE};
use serde_json::Value;

use super::super::layout::{DOOMED_GROUP, FROM_POD_PRIORITY, POD_TABLE, TO_POD_PRIORITY, pod_gateway};
use super::super::link;
use super::super::netlink::{Family, Socket};
use super::super::op::{LinkRef, NetOp, Route, Rule, VethEnd};
use super::super::rtnl::Rtnl;
use super::super::testing::{between, fd_path, fresh_netns, in_fresh_netns, ip_json};
use super::super::veth;
use super::*;
use crate::ipam::ip::Cidr;

mod checked;
mod first_packet;
mod in_advance;
mod unwired;
mod wired;

const POD: IpAddr = IpAddr::V4(Ipv4Addr::new(10, 0, 1, 5));
const POD6: IpAddr = IpAddr::V6(Ipv6Addr::new(0x2001, 0xdb8, 0, 1, 0, 0, 0, 5));

struct Lab {
    netns: OwnedFd,
    host: Rtnl,
    intent: PodIntent,
}

/// For each family a host with its rule to the pod table, and one pod's namespace.
fn lab(layout: RuleLayout, table: u32, test: impl Fn(Lab) + Send + Sync) {
    for pod in [POD, POD6] {
        lab_of(pod, layout, table, &test);
    }
}

fn lab_of(pod: IpAddr, layout: RuleLayout, table: u32, test: impl FnOnce(Lab) + Send) {
    in_fresh_netns(|| {
        let netns = fresh_netns();
        let mut host = Rtnl::open().unwrap();
        host.apply_all(&[NetOp::AddRule(Rule::all(
            IpFamily::of(pod),
            TO_POD_PRIORITY,
            POD_TABLE,
        ))])
        .unwrap();
        let intent = PodIntent {
            host_veth: veth::host_name("eni", "default", "nginx", 0),
            ifname: "eth0".to_owned(),
            netns: fd_path(&netns),
            address: pod,
            mtu: 9001,
            host_mac: veth::random_mac().unwrap(),
            pod_mac: veth::random_mac().unwrap(),
            eni_table: TableId(table),
            layout,
        };
        test(Lab { netns, host, intent });
    });
}

impl Lab {
    fn removal(&self, link: LinkRemoval) -> PodRemoval {
        PodRemoval {
            host_veth: Some(self.intent.host_veth.clone()),
            address: self.intent.address,
            eni_table: Some(self.intent.eni_table),
            layout: self.intent.layout,
            link,
        }
    }

    fn inside(&self) -> Rtnl {
        Rtnl::open_in(self.netns.as_fd()).unwrap()
    }

    fn family(&self) -> IpFamily {
        self.intent.family()
    }

    fn gateway(&self) -> IpAddr {
        pod_gateway(self.family())
    }

    /// Another pod's address.
    fn another(&self, last: u8) -> IpAddr {
        match self.intent.address {
            IpAddr::V4(address) => {
                let [a, b, c, _] = address.octets();
                [a, b, c, last].into()
            }
            IpAddr::V6(address) => Ipv6Addr::from_bits((address.to_bits() & !0xff) | u128::from(last)).into(),
        }
    }

    fn routes(&mut self, table: TableId) -> Vec<crate::net::rtnl::RouteFact> {
        let family = self.family();
        let mut routes = self.host.routes(family, Some(table), None).unwrap();
        routes.retain(|route| route.host_on_link().is_some());
        routes
    }

    /// Everything a wiring may leave on the host.
    fn traces(&mut self) -> (usize, usize, usize) {
        let links = self.host.links().unwrap().len();
        let family = self.family();
        let routes = self.host.routes(family, None, None).unwrap();
        let routes = routes
            .iter()
            .filter(|route| route.host_on_link().is_some())
            .count();
        (links, routes, self.host.rules(family).unwrap().len())
    }

    fn rules_about_the_pod(&mut self) -> Vec<(u32, Option<TableId>)> {
        let pod = Some(self.intent.address);
        let rules = self.host.rules(self.family()).unwrap();
        let about = rules
            .into_iter()
            .filter(|rule| rule.from_host() == pod || rule.to_host() == pod);
        about.map(|rule| (rule.priority, rule.table)).collect()
    }
}

fn words(intent: &PodIntent) -> Vec<String> {
    check_pod(intent).iter().map(ToString::to_string).collect()
}
