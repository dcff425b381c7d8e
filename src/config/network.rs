//! The settings of pod and host networking.

use super::parse;
use super::problem::ProblemKind;
use super::reader::{Read, Reader, Show, or_default, or_refuse};
use super::types::{NetworkConfig, RuleLayout, SnatPorts};
use crate::ipam::cidr::Ipv4Cidr;
use crate::net::layout::{ENI_MARK_MASK, MTU};
use crate::net::veth;

/// Bits other node agents are known to use: kube-proxy's masquerade and drop marks, portmap's bit 13.
const FOREIGN_MARKS: u32 = 0x4000 | 0x8000 | 0x2000;

const DEFAULT_CONNMARK: u32 = 0x80;

pub(super) fn read(r: &mut Reader<'_>) -> NetworkConfig {
    let eni_mtu = mtu(r, "AWS_VPC_ENI_MTU", *MTU.end());
    let rule_layout = r.read(
        "RULE_LAYOUT",
        RuleLayout::Shared,
        "shared or per-pod",
        |text| match text {
            "" => Read::Unset,
            "shared" => Read::Value(RuleLayout::Shared),
            "per-pod" => Read::Value(RuleLayout::PerPod),
            _ => Read::Refuse,
        },
    );
    NetworkConfig {
        external_snat: r.boolean_or_empty("AWS_VPC_K8S_CNI_EXTERNALSNAT", false),
        snat_exclude: networks(r, "AWS_VPC_K8S_CNI_EXCLUDE_SNAT_CIDRS"),
        snat_ports: snat_ports(r),
        connmark: connmark(r, rule_layout),
        node_port: r.boolean_or_empty("AWS_VPC_CNI_NODE_PORT_SUPPORT", true),
        external_services: networks(r, "AWS_EXTERNAL_SERVICE_CIDRS"),
        eni_mtu,
        pod_mtu: mtu(r, "POD_MTU", eni_mtu),
        veth_prefix: veth_prefix(r),
        rule_layout,
        disable_tcp_early_demux: r.boolean("DISABLE_TCP_EARLY_DEMUX", false),
    }
}

fn mtu(r: &mut Reader<'_>, name: &'static str, default: u32) -> u32 {
    let allowed = format!("a whole number from {} to {}", MTU.start(), MTU.end());
    r.read(name, default, &allowed, |text| {
        or_refuse(parse::count(text, 0).filter(|mtu| MTU.contains(mtu)))
    })
}

fn networks(r: &mut Reader<'_>, name: &'static str) -> Vec<Ipv4Cidr> {
    r.read(
        name,
        Vec::new(),
        "IPv4 networks such as 10.0.0.0/8, separated by commas",
        |text| {
            let (good, bad) = parse::networks(text);
            Read::Without(good, bad)
        },
    )
}

fn snat_ports(r: &mut Reader<'_>) -> SnatPorts {
    let name = "AWS_VPC_K8S_CNI_RANDOMIZESNAT";
    r.read(
        name,
        SnatPorts::FullyRandom,
        "prng, hashrandom or none",
        |text| match text {
            "" => Read::Unset,
            "prng" => Read::Value(SnatPorts::FullyRandom),
            "hashrandom" => Read::Value(SnatPorts::Random),
            "none" => Read::Value(SnatPorts::None),
            _ => Read::FallBack,
        },
    )
}

/// A mark is shown the way the kernel's tools show it.
#[derive(Clone, Copy)]
struct Mark(u32);

impl Show for Mark {
    fn show(&self) -> String {
        format!("{:#x}", self.0)
    }
}

fn connmark(r: &mut Reader<'_>, layout: RuleLayout) -> u32 {
    let name = "AWS_VPC_K8S_CNI_CONNMARK";
    let allowed = "an integer from 1 to 0xffffffff, such as 0x80";
    let Mark(mark) = r.read(name, Mark(DEFAULT_CONNMARK), allowed, |text| {
        let value = parse::base_zero(text).and_then(|value| u32::try_from(value).ok());
        or_default(value.filter(|value| *value > 0).map(Mark))
    });
    let Some(raw) = r.raw(name) else { return mark };
    if layout == RuleLayout::Shared && mark & ENI_MARK_MASK != 0 {
        let allowed = format!(
            "no bit of {ENI_MARK_MASK:#x}, where RULE_LAYOUT=shared keeps the number of the ENI; take another bit \
             or RULE_LAYOUT=per-pod"
        );
        r.refuse(name, &raw, ProblemKind::Refused { allowed });
    } else if mark & FOREIGN_MARKS != 0 {
        let remark = format!("shares bits of {FOREIGN_MARKS:#x} with kube-proxy or the portmap plugin");
        r.warn(name, &raw, ProblemKind::Remark(remark));
    }
    mark
}

fn veth_prefix(r: &mut Reader<'_>) -> String {
    let allowed = format!(
        "1 to {} letters, digits, '-' or '_', and not eth, lo or vlan",
        veth::MAX_PREFIX
    );
    r.read("AWS_VPC_K8S_CNI_VETHPREFIX", "eni".to_owned(), &allowed, |text| {
        let plain = text
            .bytes()
            .all(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_'));
        let fits = (1..=veth::MAX_PREFIX).contains(&text.len());
        or_refuse((plain && fits && !matches!(text, "eth" | "lo" | "vlan")).then(|| text.to_owned()))
    })
}

impl Show for SnatPorts {
    fn show(&self) -> String {
        match self {
            Self::FullyRandom => "prng",
            Self::Random => "hashrandom",
            Self::None => "none",
        }
        .to_owned()
    }
}

impl Show for RuleLayout {
    fn show(&self) -> String {
        match self {
            Self::Shared => "shared",
            Self::PerPod => "per-pod",
        }
        .to_owned()
    }
}
