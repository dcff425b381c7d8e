//! A node of ours in a fleet: the node of the one-node simulator with an account of its own, whose calls pass the shared
//! buckets first. What nodes share of an account besides them (subnets that fill, quotas) is not modelled here.

use std::collections::BTreeSet;
use std::net::Ipv4Addr;

use aws_cni_ipam::cidr::Ipv4Cidr;
use aws_cni_ipam::cloud::{CloudCall, CloudResult, FailureClass};
use aws_cni_ipam::ids::{InstanceId, Mac};
use aws_cni_ipam::node::NodeFacts;
use aws_cni_ipam::policy::Policy;

use super::limits::Api;
use super::member::{Around, Member};
use super::{LIMITS, Latency};
use crate::cloud::subnet::Subnet;
use crate::cloud::{Account, Consequence, kind_of, refusal};
use crate::dice::Dice;
use crate::imds;
use crate::node::{Happening, Node, PodState};
use crate::script::{Quirk, Span};

/// How long a plugin waits for its answer; the runtime gives it two minutes.
const PATIENCE: Span = Span::secs(110);

/// One node.
#[derive(Debug)]
pub struct OurNode {
    node: Node,
    account: Account,
    instance: InstanceId,
    latency: Latency,
    dice: Dice,
    late: Dice,
    told: BTreeSet<u32>,
    granted: u64,
}

impl OurNode {
    /// The nth node of a fleet; light ones are not verified after every event.
    pub fn new(n: u32, policy: Policy, latency: Latency, seed: u64, is_light: bool) -> Option<Self> {
        let instance: InstanceId = format!("i-{n:017x}").as_str().into();
        let cidr = Ipv4Cidr::new(Ipv4Addr::new(10, 0, 0, 0), 23)?;
        let subnet = Subnet::new("subnet-1".into(), cidr);
        let mut account = Account::new(seed, vec![subnet]);
        let primary = account.launch(&instance, LIMITS, &"subnet-1".into(), 0, 0)?;
        let facts = NodeFacts {
            instance: instance.clone(),
            instance_type: "sim.4xlarge".into(),
            zone: "eu-central-1a".to_owned(),
            vpc: "vpc-1".into(),
            vpc_cidrs: Ipv4Cidr::new(Ipv4Addr::new(10, 0, 0, 0), 8).into_iter().collect(),
            subnet: "subnet-1".into(),
            subnet_cidr: cidr,
            primary_eni: primary.id.clone(),
            primary_mac: primary.mac,
            primary_address: primary.primary,
            security_groups: vec!["sg-1".into()],
            boot: "b0070000-0000".into(),
            booted_at: 1_795_248_000,
        };
        let mut node = Node::new(facts, policy, Some(LIMITS), seed);
        node.is_light = is_light;
        Some(Self {
            node,
            account,
            instance,
            latency,
            dice: Dice::new(seed, "wire"),
            late: Dice::new(seed, "describe"),
            told: BTreeSet::new(),
            granted: 0,
        })
    }

    fn call(&mut self, request: &CloudCall, around: &mut Around<'_, Happening>) -> CloudResult {
        let now = around.now;
        if !around.limits.take(Api::of(request), now) {
            let which = kind_of(request);
            return Err(refusal(which, FailureClass::Throttled, "RequestLimitExceeded"));
        }
        let (weather, late) = (&self.node.weather, &mut self.late);
        self.account
            .call(request, now, &mut || weather.lateness(now, late))
    }

    fn is_attached(&self, mac: Mac) -> bool {
        self.account.attached(&self.instance).any(|eni| eni.mac == mac)
    }

    /// Takes over what the node and EC2 want to happen.
    fn collect(&mut self, around: &mut Around<'_, Happening>) {
        around.later.append(&mut self.node.outgoing);
        for consequence in std::mem::take(&mut self.account.consequences) {
            match consequence {
                Consequence::LinkComes(_, mac) => {
                    let wait = self.dice.wait(self.latency.attach);
                    around.later(wait, Happening::LinkComes(mac));
                }
                Consequence::LinkGoes(_, mac) => around.later(120, Happening::LinkGoes(mac)),
            }
        }
        self.node.granted.clear();
        if self.node.counts.granted != self.granted {
            self.granted = self.node.counts.granted;
            let live = self.node.pods.values().filter(|pod| pod.state == PodState::Live);
            let new = live.map(|pod| pod.n).filter(|n| !self.told.contains(n));
            around.running.extend(new);
            self.told.extend(&around.running);
        }
    }
}

impl Member for OurNode {
    type Event = Happening;

    fn start(&mut self, around: &mut Around<'_, Happening>) {
        self.node.booted_at = around.now;
        self.node.now = around.now;
        self.collect(around);
    }

    fn pod(&mut self, pod: u32, life: u64, around: &mut Around<'_, Happening>) {
        self.node.now = around.now;
        self.node.pod(pod, Span(life), PATIENCE, Quirk::None);
        self.collect(around);
    }

    fn happen(&mut self, event: Happening, around: &mut Around<'_, Happening>) {
        self.node.now = around.now;
        match event {
            Happening::CallArrives { life, call, request } => {
                let wait = self.dice.wait(self.latency.answer(Api::of(&request)));
                let result = self.call(&request, around);
                around.later(wait, Happening::Answered { life, call, result });
            }
            Happening::ImdsAsked { life } if life == self.node.life => {
                if let Some(snapshot) = imds::sweep(&self.account, &self.instance, None, around.now) {
                    self.node.imds(snapshot);
                }
            }
            Happening::LinkComes(mac) if !self.is_attached(mac) => {}
            Happening::LinkGoes(mac) if self.is_attached(mac) => {}
            other => self.node.handle(other),
        }
        self.collect(around);
    }

    fn held(&self) -> u64 {
        let of = |eni: &aws_cni_ipam::cloud::CloudEni| eni.secondary.len() + 16 * eni.prefixes.len();
        self.account.attached(&self.instance).map(of).sum::<usize>() as u64
    }

    fn pods(&self) -> u64 {
        let live = |pod: &&crate::node::Pod| pod.state == PodState::Live;
        self.node.pods.values().filter(live).count() as u64
    }

    fn failed(&self) -> u64 {
        self.node.counts.refused.values().sum()
    }

    fn violation(&self) -> Option<String> {
        self.node.violation.as_ref().map(ToString::to_string)
    }
}
