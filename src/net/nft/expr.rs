//! Rules as the kernel's expressions: each is a name and the attributes of that expression.
//!
//! Attributes are big-endian; what goes into the register is in the order the kernel keeps the thing: addresses
//! big-endian; marks, link indices and address types in host order.

use std::net::Ipv4Addr;

use super::model::{Expr, Load, SnatPorts, Value, Verdict};
#[allow(
    clippy::wildcard_imports,
    reason = "the kernel's names carry their own prefixes"
)]
use super::uapi::*;
use crate::ipam::ip::IpFamily;
use crate::net::wire::Body;

/// A verdict, as rules and verdict maps hold it.
pub(super) fn put_verdict(data: &mut Body, verdict: &Verdict) {
    let (code, chain) = match verdict {
        Verdict::Accept => (NF_ACCEPT.cast_signed(), None),
        Verdict::Drop => (NF_DROP.cast_signed(), None),
        Verdict::Return => (NFT_RETURN, None),
        Verdict::Jump(chain) => (NFT_JUMP, Some(chain)),
        Verdict::Goto(chain) => (NFT_GOTO, Some(chain)),
    };
    data.nest(NFTA_DATA_VERDICT, |nest| {
        nest.be32(NFTA_VERDICT_CODE, code.cast_unsigned());
        if let Some(chain) = chain {
            nest.str(NFTA_VERDICT_CHAIN, chain);
        }
    });
}

/// One step of a rule at the end of its list.
pub(super) fn put(list: &mut Body, family: IpFamily, expr: &Expr) {
    match expr {
        Expr::Load(load) => put_load(list, family, *load, NFT_REG_1),
        Expr::LoadAll(loads) => put_loads(list, family, loads),
        Expr::Equal(value) => put_compare(list, NFT_CMP_EQ, value),
        Expr::Differs(value) => put_compare(list, NFT_CMP_NEQ, value),
        Expr::Bits { keep, flip } => put_bits(list, *keep, *flip),
        Expr::StoreMetaMark => named(list, "meta", |data| {
            data.be32(NFTA_META_KEY, NFT_META_MARK)
                .be32(NFTA_META_SREG, NFT_REG_1);
        }),
        Expr::StoreCtMark => named(list, "ct", |data| {
            data.be32(NFTA_CT_KEY, NFT_CT_MARK).be32(NFTA_CT_SREG, NFT_REG_1);
        }),
        Expr::InSet(set) => put_lookup(list, set, |_| {}),
        Expr::NotInSet(set) => put_lookup(list, set, |data| {
            data.be32(NFTA_LOOKUP_FLAGS, NFT_LOOKUP_F_INV);
        }),
        Expr::Dispatch(map) => put_lookup(list, map, |data| {
            data.be32(NFTA_LOOKUP_DREG, NFT_REG_VERDICT);
        }),
        Expr::Count => named(list, "counter", |_| {}),
        Expr::Verdict(verdict) => named(list, "immediate", |data| {
            data.be32(NFTA_IMMEDIATE_DREG, NFT_REG_VERDICT)
                .nest(NFTA_IMMEDIATE_DATA, |nest| put_verdict(nest, verdict));
        }),
        Expr::DnatTo(map) => put_dnat(list, family, map),
        Expr::Masquerade => named(list, "masq", |_| {}),
        Expr::Snat { to, ports } => put_snat(list, *to, *ports),
    }
}

/// One behind the other, each in as many registers of four bytes as it needs.
fn put_loads(list: &mut Body, family: IpFamily, loads: &[Load]) {
    let mut register = NFT_REG32_00;
    for load in loads {
        put_load(list, family, *load, register);
        register = register.saturating_add(match load {
            Load::IpSaddr | Load::IpDaddr => address_len(family) / 4,
            _ => 1,
        });
    }
}

fn put_load(list: &mut Body, family: IpFamily, load: Load, register: u32) {
    let (saddr, daddr) = match family {
        IpFamily::V4 => (12, 16),
        IpFamily::V6 => (8, 24),
    };
    let address = address_len(family);
    let network = |list: &mut Body, offset, len| {
        put_payload(list, NFT_PAYLOAD_NETWORK_HEADER, (offset, len), register);
    };
    let meta = |list: &mut Body, key| {
        named(list, "meta", |data| {
            data.be32(NFTA_META_DREG, register).be32(NFTA_META_KEY, key);
        });
    };
    match load {
        Load::MetaMark => meta(list, NFT_META_MARK),
        Load::IifIndex => meta(list, NFT_META_IIF),
        Load::IifName => meta(list, NFT_META_IIFNAME),
        Load::OifName => meta(list, NFT_META_OIFNAME),
        Load::Protocol => meta(list, NFT_META_L4PROTO),
        Load::CtMark => put_ct(list, NFT_CT_MARK, register),
        Load::CtDirection => put_ct(list, NFT_CT_DIRECTION, register),
        Load::IpSaddr => network(list, saddr, address),
        Load::IpDaddr => network(list, daddr, address),
        Load::IpSaddrFirst => network(list, saddr, 1),
        Load::IpDaddrFirst => network(list, daddr, 1),
        Load::PortDestination => put_payload(list, NFT_PAYLOAD_TRANSPORT_HEADER, (2, 2), register),
        Load::DaddrType => put_fib(list, NFTA_FIB_F_DADDR, register),
        Load::DaddrTypeOnIif => put_fib(list, NFTA_FIB_F_DADDR | NFTA_FIB_F_IIF, register),
    }
}

fn address_len(family: IpFamily) -> u32 {
    match family {
        IpFamily::V4 => 4,
        IpFamily::V6 => 16,
    }
}

fn put_ct(list: &mut Body, key: u32, register: u32) {
    named(list, "ct", |data| {
        data.be32(NFTA_CT_DREG, register).be32(NFTA_CT_KEY, key);
    });
}

fn put_payload(list: &mut Body, base: u32, (offset, len): (u32, u32), register: u32) {
    named(list, "payload", |data| {
        data.be32(NFTA_PAYLOAD_DREG, register)
            .be32(NFTA_PAYLOAD_BASE, base)
            .be32(NFTA_PAYLOAD_OFFSET, offset)
            .be32(NFTA_PAYLOAD_LEN, len);
    });
}

fn put_fib(list: &mut Body, flags: u32, register: u32) {
    named(list, "fib", |data| {
        data.be32(NFTA_FIB_DREG, register)
            .be32(NFTA_FIB_RESULT, NFT_FIB_RESULT_ADDRTYPE)
            .be32(NFTA_FIB_FLAGS, flags);
    });
}

fn put_compare(list: &mut Body, op: u32, value: &Value) {
    let number;
    let bytes: &[u8] = match value {
        Value::Number(host_order) => {
            number = host_order.to_ne_bytes();
            &number
        }
        Value::Byte(byte) => std::slice::from_ref(byte),
        // Compared up to its length, without a NUL: that is what makes it a prefix.
        Value::NamePrefix(prefix) => prefix.as_bytes(),
    };
    named(list, "cmp", |data| {
        data.be32(NFTA_CMP_SREG, NFT_REG_1)
            .be32(NFTA_CMP_OP, op)
            .nest(NFTA_CMP_DATA, |nest| {
                nest.bytes(NFTA_DATA_VALUE, bytes);
            });
    });
}

fn put_bits(list: &mut Body, keep: u32, flip: u32) {
    named(list, "bitwise", |data| {
        data.be32(NFTA_BITWISE_SREG, NFT_REG_1)
            .be32(NFTA_BITWISE_DREG, NFT_REG_1)
            .be32(NFTA_BITWISE_LEN, 4)
            .nest(NFTA_BITWISE_MASK, |nest| {
                nest.bytes(NFTA_DATA_VALUE, &keep.to_ne_bytes());
            })
            .nest(NFTA_BITWISE_XOR, |nest| {
                nest.bytes(NFTA_DATA_VALUE, &flip.to_ne_bytes());
            });
    });
}

fn put_lookup(list: &mut Body, set: &str, more: impl FnOnce(&mut Body)) {
    named(list, "lookup", |data| {
        data.str(NFTA_LOOKUP_SET, set).be32(NFTA_LOOKUP_SREG, NFT_REG_1);
        more(data);
    });
}

fn put_snat(list: &mut Body, to: Ipv4Addr, ports: SnatPorts) {
    named(list, "immediate", |data| {
        data.be32(NFTA_IMMEDIATE_DREG, NFT_REG_1)
            .nest(NFTA_IMMEDIATE_DATA, |nest| {
                nest.bytes(NFTA_DATA_VALUE, &to.octets());
            });
    });
    named(list, "nat", |data| {
        data.be32(NFTA_NAT_TYPE, NFT_NAT_SNAT)
            .be32(NFTA_NAT_FAMILY, u32::from(NFPROTO_IPV4))
            .be32(NFTA_NAT_REG_ADDR_MIN, NFT_REG_1);
        match ports {
            SnatPorts::None => {}
            SnatPorts::Random => {
                data.be32(NFTA_NAT_FLAGS, NF_NAT_RANGE_PROTO_RANDOM);
            }
            SnatPorts::FullyRandom => {
                data.be32(NFTA_NAT_FLAGS, NF_NAT_RANGE_PROTO_RANDOM_FULLY);
            }
        }
    });
}

/// The map's value is an address and, in the register behind it, a port.
fn put_dnat(list: &mut Body, family: IpFamily, map: &str) {
    let (number, words) = match family {
        IpFamily::V4 => (NFPROTO_IPV4, 1),
        IpFamily::V6 => (NFPROTO_IPV6, 4),
    };
    put_lookup(list, map, |data| {
        data.be32(NFTA_LOOKUP_DREG, NFT_REG_1);
    });
    named(list, "nat", |data| {
        data.be32(NFTA_NAT_TYPE, NFT_NAT_DNAT)
            .be32(NFTA_NAT_FAMILY, u32::from(number))
            .be32(NFTA_NAT_REG_ADDR_MIN, NFT_REG_1)
            .be32(NFTA_NAT_REG_PROTO_MIN, NFT_REG32_00 + words);
    });
}

fn named(list: &mut Body, name: &str, fill: impl FnOnce(&mut Body)) {
    list.nest(NFTA_LIST_ELEM, |expr| {
        expr.str(NFTA_EXPR_NAME, name).nest(NFTA_EXPR_DATA, fill);
    });
}
