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
use crate::net::wire::Body;

/// A verdict, as rules and verdict maps hold it.
pub(super) fn put_verdict(data: &mut Body, verdict: &Verdict) {
    let (code, chain) = match verdict {
        Verdict::Accept => (NF_ACCEPT.cast_signed(), None),
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
pub(super) fn put(list: &mut Body, expr: &Expr) {
    match expr {
        Expr::Load(load) => put_load(list, *load),
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
        Expr::Snat { to, ports } => put_snat(list, *to, *ports),
    }
}

fn put_load(list: &mut Body, load: Load) {
    match load {
        Load::MetaMark => put_meta(list, NFT_META_MARK),
        Load::IifIndex => put_meta(list, NFT_META_IIF),
        Load::IifName => put_meta(list, NFT_META_IIFNAME),
        Load::OifName => put_meta(list, NFT_META_OIFNAME),
        Load::CtMark => put_ct(list, NFT_CT_MARK),
        Load::CtDirection => put_ct(list, NFT_CT_DIRECTION),
        Load::IpSaddr => put_ipv4(list, 12),
        Load::IpDaddr => put_ipv4(list, 16),
        Load::DaddrType => put_fib(list, NFTA_FIB_F_DADDR),
        Load::DaddrTypeOnIif => put_fib(list, NFTA_FIB_F_DADDR | NFTA_FIB_F_IIF),
    }
}

fn put_meta(list: &mut Body, key: u32) {
    named(list, "meta", |data| {
        data.be32(NFTA_META_DREG, NFT_REG_1).be32(NFTA_META_KEY, key);
    });
}

fn put_ct(list: &mut Body, key: u32) {
    named(list, "ct", |data| {
        data.be32(NFTA_CT_DREG, NFT_REG_1).be32(NFTA_CT_KEY, key);
    });
}

fn put_ipv4(list: &mut Body, offset: u32) {
    named(list, "payload", |data| {
        data.be32(NFTA_PAYLOAD_DREG, NFT_REG_1)
            .be32(NFTA_PAYLOAD_BASE, NFT_PAYLOAD_NETWORK_HEADER)
            .be32(NFTA_PAYLOAD_OFFSET, offset)
            .be32(NFTA_PAYLOAD_LEN, 4);
    });
}

fn put_fib(list: &mut Body, flags: u32) {
    named(list, "fib", |data| {
        data.be32(NFTA_FIB_DREG, NFT_REG_1)
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

fn named(list: &mut Body, name: &str, fill: impl FnOnce(&mut Body)) {
    list.nest(NFTA_LIST_ELEM, |expr| {
        expr.str(NFTA_EXPR_NAME, name).nest(NFTA_EXPR_DATA, fill);
    });
}
