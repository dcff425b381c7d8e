//! The chains of the table, rule by rule.

use super::{ENI_ANSWER, ENI_LINK, EXEMPT, HostRuleset, POD_ENI, Ruleset as _, ports};
use crate::net::layout::{ENI_MARK_MASK, EniMark, RuleLayout};
use crate::net::nft::model::{
    ADDRESS_TYPE_LOCAL, Chain, ChainKind, DIRECTION_ORIGINAL, DIRECTION_REPLY, Expr, Hook, HookPoint, Load,
    Rule, SnatPorts, Value, Verdict,
};

/// Links of pods with security groups of their own, which never share the node's address.
const BRANCH_LINKS: &str = "vlan";
const MANGLE_PREROUTING: &str = "mangle-prerouting";
const MANGLE_OUTPUT: &str = "mangle-output";
const RESTORE: &str = "connmark-restore";
const NAT_PREROUTING: &str = "nat-prerouting";
const SNAT_MARK: &str = "snat-mark";
const NAT_POSTROUTING: &str = "nat-postrouting";

impl HostRuleset {
    /// The chains that don't come and go with ENIs, in an order in which each is jumped to only after it exists.
    pub(super) fn all_chains(&self) -> Vec<Chain> {
        let mut chains = Vec::new();
        let restores = self.node_port || self.snat.is_some();
        if restores {
            chains.push(self.restore_chain());
        }
        chains.push(self.mangle_prerouting());
        if self.answers_by_eni() {
            chains.push(mangle_output());
        }
        if let Some(ports) = self.snat {
            chains.push(self.snat_mark());
            chains.push(self.nat_prerouting());
            chains.push(self.nat_postrouting(ports));
        }
        chains.extend(ports::chains(self.family(), &self.veth_prefix));
        chains
    }

    fn mangle_prerouting(&self) -> Chain {
        let mut rules: Vec<Rule> = ports::guards(&self.veth_prefix).into();
        let shared = self.layout == RuleLayout::Shared;
        if shared {
            rules.push(rule(
                "what comes in on an ENI is answered by it",
                [Expr::Load(Load::IifIndex), Expr::Dispatch(ENI_LINK.name)],
            ));
        }
        if self.node_port {
            rules.push(rule(
                "NodePort: remember that it came by the primary ENI",
                [
                    Expr::Load(Load::IifIndex),
                    Expr::Equal(Value::Number(self.primary_link)),
                    Expr::Load(Load::CtDirection),
                    Expr::Equal(Value::Byte(DIRECTION_ORIGINAL)),
                    Expr::Load(Load::DaddrTypeOnIif),
                    Expr::Equal(Value::Number(ADDRESS_TYPE_LOCAL)),
                    Expr::Load(Load::CtMark),
                    set_bits(self.connmark),
                    Expr::StoreCtMark,
                ],
            ));
        }
        if self.node_port || self.snat.is_some() {
            rules.push(Self::restore_from(
                &self.veth_prefix,
                "pods: connections of the primary ENI",
            ));
        }
        if self.node_port {
            rules.push(Self::restore_from(
                BRANCH_LINKS,
                "branch ENI pods: connections of the primary ENI",
            ));
        }
        if shared {
            let [name, equal] = came_from(&self.veth_prefix);
            rules.push(rule(
                "pods: the ENI that owns the address",
                [
                    name,
                    equal,
                    Expr::Load(Load::IpSaddr),
                    Expr::Dispatch(POD_ENI.name),
                ],
            ));
        }
        if self.answers_by_eni() {
            // Last, as it is stronger than the owner of the address, and for every link: when the service's endpoint is
            // on another node, the answer comes in on an ENI.
            rules.push(answer());
        }
        // -150, as iptables' mangle: after conntrack (-200), before DNAT (-100) and the routing decision.
        base(
            MANGLE_PREROUTING,
            ChainKind::Filter,
            HookPoint::Prerouting,
            -150,
            rules,
        )
    }

    fn restore_from(prefix: &str, comment: &str) -> Rule {
        let [name, equal] = came_from(prefix);
        rule(
            comment,
            [name, equal, Expr::Verdict(Verdict::Jump(RESTORE.into()))],
        )
    }

    /// Copies the connection's bit to the packet and touches no other: other bits of the mark belong to others
    /// (kube-proxy, Calico; <https://github.com/aws/amazon-vpc-cni-k8s/issues/3872>). Two rules, because combining
    /// two registers needs a newer kernel than 6.1.
    fn restore_chain(&self) -> Chain {
        let clear = rule(
            "clear our bit",
            [
                Expr::Load(Load::MetaMark),
                Expr::Bits {
                    keep: !self.connmark,
                    flip: 0,
                },
                Expr::StoreMetaMark,
            ],
        );
        let set = rule(
            "set it when the connection has it",
            [
                Expr::Load(Load::CtMark),
                Expr::Bits {
                    keep: self.connmark,
                    flip: 0,
                },
                Expr::Equal(Value::Number(self.connmark)),
                Expr::Load(Load::MetaMark),
                set_bits(self.connmark),
                Expr::StoreMetaMark,
            ],
        );
        regular(RESTORE, vec![clear, set])
    }

    fn nat_prerouting(&self) -> Chain {
        let [name, equal] = came_from(&self.veth_prefix);
        let rules = vec![
            rule(
                "the node itself",
                [
                    Expr::Load(Load::DaddrType),
                    Expr::Equal(Value::Number(ADDRESS_TYPE_LOCAL)),
                    Expr::Verdict(Verdict::Return),
                ],
            ),
            rule(
                "pods: does the connection leave the VPC?",
                [
                    name,
                    equal,
                    Expr::Count,
                    Expr::Verdict(Verdict::Jump(SNAT_MARK.into())),
                ],
            ),
        ];
        // After the DNAT of services (-100). The kernel skips later nat chains once one has translated, so service
        // traffic is never marked; users rely on that.
        base(NAT_PREROUTING, ChainKind::Nat, HookPoint::Prerouting, -90, rules)
    }

    fn snat_mark(&self) -> Chain {
        let rules = vec![
            rule(
                "stays in the VPC",
                [
                    Expr::Load(Load::IpDaddr),
                    Expr::InSet(EXEMPT.name),
                    Expr::Count,
                    Expr::Verdict(Verdict::Return),
                ],
            ),
            rule(
                "leaves by the primary ENI",
                [
                    Expr::Count,
                    Expr::Load(Load::CtMark),
                    set_bits(self.connmark),
                    Expr::StoreCtMark,
                    Expr::Load(Load::MetaMark),
                    set_bits(self.connmark),
                    Expr::StoreMetaMark,
                ],
            ),
        ];
        regular(SNAT_MARK, rules)
    }

    fn nat_postrouting(&self, ports: SnatPorts) -> Chain {
        let snat = rule(
            "leaves the VPC: the node's address",
            [
                Expr::Load(Load::OifName),
                Expr::Differs(Value::NamePrefix(BRANCH_LINKS.into())),
                Expr::Load(Load::IpDaddr),
                Expr::NotInSet(EXEMPT.name),
                Expr::Load(Load::DaddrType),
                Expr::Differs(Value::Number(ADDRESS_TYPE_LOCAL)),
                Expr::Count,
                Expr::Snat {
                    to: self.node_ip,
                    ports,
                },
            ],
        );
        // Behind srcnat (100), where kube-proxy and portmap masquerade. At equal priority the chain registered last
        // would run first, so a restart of either daemon would decide who translates.
        base(
            NAT_POSTROUTING,
            ChainKind::Nat,
            HookPoint::Postrouting,
            110,
            vec![snat],
        )
    }

    /// The chains that come with an ENI, each jumped to only after it exists.
    pub(super) fn chains_of(&self, mark: EniMark) -> Vec<Chain> {
        let mut chains = vec![eni_chain(mark)];
        if self.answers_by_eni() {
            chains.push(link_chain(mark));
        }
        chains
    }

    /// Where what comes in on an ENI's link goes.
    pub(super) fn link_chain_name(&self, mark: EniMark) -> String {
        if self.answers_by_eni() {
            link_chain_name(mark)
        } else {
            eni_chain_name(mark)
        }
    }
}

/// What comes in on an ENI's link. A connection to an address of the node's own, a NodePort's for instance, remembers
/// the ENI in our bits of its mark; only what opens it or follows that way, so that what the node itself has opened
/// from the ENI's address is left alone.
fn link_chain(mark: EniMark) -> Chain {
    let marks = rule(
        "answered by the same ENI",
        [Expr::Verdict(Verdict::Jump(eni_chain_name(mark)))],
    );
    let remembers = rule(
        "NodePort: remember that it came by this ENI",
        [
            Expr::Load(Load::CtDirection),
            Expr::Equal(Value::Byte(DIRECTION_ORIGINAL)),
            Expr::Load(Load::DaddrType),
            Expr::Equal(Value::Number(ADDRESS_TYPE_LOCAL)),
            Expr::Load(Load::CtMark),
            number_of(mark),
            Expr::StoreCtMark,
        ],
    );
    regular(&link_chain_name(mark), vec![marks, remembers])
}

/// A packet that goes back to whoever came by a secondary ENI, whatever ENI the address behind the service belongs to.
fn answer() -> Rule {
    rule(
        "NodePort: answers leave by the ENI of the request",
        [
            Expr::Load(Load::CtDirection),
            Expr::Equal(Value::Byte(DIRECTION_REPLY)),
            Expr::Load(Load::CtMark),
            Expr::Bits {
                keep: ENI_MARK_MASK,
                flip: 0,
            },
            Expr::Dispatch(ENI_ANSWER.name),
        ],
    )
}

/// The same where the service is a process of the node itself, listening on another of its addresses: the kernel has
/// already chosen a way for that address, and chooses again because the mark has changed.
fn mangle_output() -> Chain {
    base(
        MANGLE_OUTPUT,
        ChainKind::Route,
        HookPoint::Output,
        -150,
        vec![answer()],
    )
}

/// The chain that marks a packet for an ENI.
fn eni_chain(mark: EniMark) -> Chain {
    regular(
        &eni_chain_name(mark),
        vec![rule(
            "the ENI of this number",
            [Expr::Load(Load::MetaMark), number_of(mark), Expr::StoreMetaMark],
        )],
    )
}

/// Our bits of a mark become the ENI's, others stay.
fn number_of(mark: EniMark) -> Expr {
    Expr::Bits {
        keep: !ENI_MARK_MASK,
        flip: u32::from(mark.value()),
    }
}

/// Its name.
pub fn eni_chain_name(mark: EniMark) -> String {
    format!("eni-{}", mark.value())
}

fn link_chain_name(mark: EniMark) -> String {
    format!("link-{}", mark.value())
}

/// The ENI that a chain name stands for.
pub fn mark_of_chain(name: &str) -> Option<EniMark> {
    let number = name.strip_prefix("eni-").or_else(|| name.strip_prefix("link-"))?;
    EniMark::new(number.parse().ok()?)
}

pub(super) fn base(name: &str, kind: ChainKind, point: HookPoint, priority: i32, rules: Vec<Rule>) -> Chain {
    Chain {
        name: name.into(),
        hook: Some(Hook {
            kind,
            point,
            priority,
        }),
        rules,
    }
}

pub(super) fn regular(name: &str, rules: Vec<Rule>) -> Chain {
    Chain {
        name: name.into(),
        hook: None,
        rules,
    }
}

pub(super) fn rule<const N: usize>(comment: &str, exprs: [Expr; N]) -> Rule {
    Rule {
        comment: comment.into(),
        exprs: exprs.into(),
    }
}

pub(super) fn came_from(prefix: &str) -> [Expr; 2] {
    [
        Expr::Load(Load::IifName),
        Expr::Equal(Value::NamePrefix(prefix.into())),
    ]
}

fn set_bits(bits: u32) -> Expr {
    Expr::Bits {
        keep: !bits,
        flip: bits,
    }
}
