//! Ports of the node that lead to pods (`hostPort`), in tables of either family.
//!
//! The maps are filled when such a pod is wired, and by the daemon at its start; the rules are the same for none and
//! for many. What translates is right behind kube-proxy (-100), so that a Service's NodePort is stronger, and before the
//! chain that marks what leaves the VPC (-90).

use super::Ruleset;
use super::chains::{base, came_from, regular, rule};
use crate::ipam::ip::IpFamily;
use crate::net::nft::model::{
    ADDRESS_TYPE_LOCAL, Chain, ChainKind, Expr, HookPoint, KeyKind, Load, Rule, Set, SetKind, Value, Verdict,
};

/// A protocol and a port of every address of the node: the pod's address and port.
pub const HOST_PORT: Set = Set {
    name: "host-port",
    key: KeyKind::Port,
    kind: SetKind::Endpoints,
};
/// The same of one address of the node (`hostIP`).
pub const HOST_PORT_AT: Set = Set {
    name: "host-port-at",
    key: KeyKind::PortAt,
    kind: SetKind::Endpoints,
};
/// The address of every pod with such a port, twice: how a packet looks that a pod sends to itself through the node.
pub const HOST_PORT_POD: Set = Set {
    name: "host-port-pod",
    key: KeyKind::Pair,
    kind: SetKind::Members,
};

const TRANSLATE: &str = "host-ports";
const FROM_OUTSIDE: &str = "host-ports-prerouting";
const FROM_NODE: &str = "host-ports-output";
const SOURCE: &str = "host-ports-postrouting";
/// 127.0.0.0/8.
const LOOPBACK: u8 = 127;

/// The sets of both tables.
pub(super) fn sets() -> [Set; 3] {
    [HOST_PORT, HOST_PORT_AT, HOST_PORT_POD]
}

pub(super) fn chains(family: IpFamily, veth_prefix: &str) -> Vec<Chain> {
    let own = || {
        rule(
            "an address of the node",
            [
                Expr::Load(Load::DaddrType),
                Expr::Equal(Value::Number(ADDRESS_TYPE_LOCAL)),
                Expr::Verdict(Verdict::Jump(TRANSLATE.into())),
            ],
        )
    };
    vec![
        translate(),
        base(
            FROM_OUTSIDE,
            ChainKind::Nat,
            HookPoint::Prerouting,
            -95,
            vec![own()],
        ),
        base(FROM_NODE, ChainKind::Nat, HookPoint::Output, -95, vec![own()]),
        source(family, veth_prefix),
    ]
}

fn translate() -> Chain {
    let at = rule(
        "hostPort of one address",
        [
            Expr::LoadAll(&[Load::IpDaddr, Load::Protocol, Load::PortDestination]),
            Expr::DnatTo(HOST_PORT_AT.name),
        ],
    );
    let anywhere = rule(
        "hostPort",
        [
            Expr::LoadAll(&[Load::Protocol, Load::PortDestination]),
            Expr::DnatTo(HOST_PORT.name),
        ],
    );
    regular(TRANSLATE, vec![at, anywhere])
}

/// Whom the pod could not answer gets an address of the node: the pod itself, and the node's loopback. Behind kube-proxy
/// (100), before what leaves the VPC (110).
fn source(family: IpFamily, veth_prefix: &str) -> Chain {
    let mut rules = vec![rule(
        "hostPort: a pod that asks itself",
        [
            Expr::LoadAll(&[Load::IpSaddr, Load::IpDaddr]),
            Expr::InSet(HOST_PORT_POD.name),
            Expr::Masquerade,
        ],
    )];
    if family == IpFamily::V4 {
        rules.push(rule(
            "hostPort: 127.0.0.1 of the node",
            [
                Expr::Load(Load::OifName),
                Expr::Equal(Value::NamePrefix(veth_prefix.into())),
                Expr::Load(Load::IpSaddrFirst),
                Expr::Equal(Value::Byte(LOOPBACK)),
                Expr::Masquerade,
            ],
        ));
    }
    base(SOURCE, ChainKind::Nat, HookPoint::Postrouting, 105, rules)
}

/// A pod with a hostPort has `route_localnet` on its link, or 127.0.0.1 of the node could not reach it. It must not let
/// that pod reach the node's loopback, or speak in its name (CVE-2020-8558).
pub(super) fn guards(veth_prefix: &str) -> [Rule; 2] {
    let guard = |comment: &str, address: Load| {
        let [name, equal] = came_from(veth_prefix);
        rule(
            comment,
            [
                name,
                equal,
                Expr::Load(address),
                Expr::Equal(Value::Byte(LOOPBACK)),
                Expr::Verdict(Verdict::Drop),
            ],
        )
    };
    [
        guard("pods: not to the node's loopback", Load::IpDaddrFirst),
        guard("pods: not as the node's loopback", Load::IpSaddrFirst),
    ]
}

/// The table of a node whose pods have IPv6 addresses.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HostRuleset6 {
    /// How host veths are named (`AWS_VPC_K8S_CNI_VETHPREFIX`).
    pub veth_prefix: String,
}

impl Ruleset for HostRuleset6 {
    fn family(&self) -> IpFamily {
        IpFamily::V6
    }

    fn sets(&self) -> Vec<Set> {
        sets().into()
    }

    fn chains(&self) -> Vec<Chain> {
        chains(IpFamily::V6, &self.veth_prefix)
    }
}
