//! Pods wired, checked and unwired in fresh namespaces; iproute2 as the independent judge.

use std::fs;
use std::os::fd::{AsFd, OwnedFd};

use nix::libc::{RTNLGRP_IPV4_ROUTE, RTNLGRP_IPV4_RULE};
use serde_json::Value;

use super::super::layout::{DOOMED_GROUP, FROM_POD_PRIORITY, POD_GATEWAY, POD_TABLE, TO_POD_PRIORITY};
use super::super::link;
use super::super::netlink::{Family, Socket};
use super::super::op::{LinkRef, NetOp, Route, Rule, VethEnd};
use super::super::rtnl::Rtnl;
use super::super::testing::{fd_path, fresh_netns, in_fresh_netns, ip_json};
use super::super::veth;
use super::*;
use crate::ipam::cidr::Ipv4Cidr;

mod checked;
mod in_advance;
mod unwired;
mod wired;

const POD: Ipv4Addr = Ipv4Addr::new(10, 0, 1, 5);

struct Lab {
    netns: OwnedFd,
    host: Rtnl,
    intent: PodIntent,
}

/// A host with its rule to the pod table, and one pod's namespace.
fn lab(layout: RuleLayout, table: u32, test: impl FnOnce(Lab) + Send) {
    in_fresh_netns(|| {
        let netns = fresh_netns();
        let mut host = Rtnl::open().unwrap();
        host.apply_all(&[NetOp::AddRule(Rule::all(TO_POD_PRIORITY, POD_TABLE))])
            .unwrap();
        let intent = PodIntent {
            host_veth: veth::host_name("eni", "default", "nginx", 0),
            ifname: "eth0".to_owned(),
            netns: fd_path(&netns),
            address: POD,
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

    /// Everything a wiring may leave on the host.
    fn traces(&mut self) -> (usize, usize, usize) {
        let links = self.host.links().unwrap().len();
        let routes = self
            .host
            .routes(None, None)
            .unwrap()
            .iter()
            .filter(|route| route.kind == 1)
            .count();
        (links, routes, self.host.rules().unwrap().len())
    }

    fn rules_about_the_pod(&mut self) -> Vec<(u32, Option<TableId>)> {
        let pod = Some(Ipv4Cidr::host(POD));
        let rules = self.host.rules().unwrap();
        let about = rules
            .into_iter()
            .filter(|rule| rule.from == pod || rule.to == pod);
        about.map(|rule| (rule.priority, rule.table)).collect()
    }
}

fn words(intent: &PodIntent) -> Vec<String> {
    check_pod(intent).iter().map(ToString::to_string).collect()
}
