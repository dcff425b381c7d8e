//! The model as `nf_tables` messages. Numbers: `linux/netfilter/nf_tables.h` and `nf_nat.h` of the kernel's uapi.

use std::net::Ipv4Addr;

use neli::consts::nl::NlmF;

use super::expr;
use super::model::{AddressRange, Chain, ChainKind, Element, HookPoint, KeyKind, Rule, Set, SetKind};
#[allow(
    clippy::wildcard_imports,
    reason = "the kernel's names carry their own prefixes"
)]
use super::uapi::*;
use crate::net::wire::Body;

/// One message of a batch or request: type within `nf_tables`, netlink flags, body.
#[derive(Debug, Clone)]
pub struct Message {
    /// The netlink type: subsystem and `NFT_MSG_…`.
    pub kind: u16,
    /// Beyond request.
    pub flags: NlmF,
    /// What an error calls it.
    pub what: String,
    /// Family header and attributes.
    pub body: Body,
}

/// As many elements as fit in one message with room to spare: the list is one attribute of at most 64 KiB and an
/// element with a verdict takes less than 64 bytes.
const ELEMENTS_PER_MESSAGE: usize = 512;

/// A table that must not exist yet.
pub fn new_table(table: &str, comment: &str) -> Message {
    change(
        NFT_MSG_NEWTABLE,
        create_only(),
        format!("add table ip {table}"),
        |body| {
            body.str(NFTA_TABLE_NAME, table)
                .bytes(NFTA_TABLE_USERDATA, &comment_tlv(comment));
        },
    )
}

/// A table and all it holds goes.
pub fn delete_table(table: &str) -> Message {
    change(
        NFT_MSG_DELTABLE,
        NlmF::empty(),
        format!("delete table ip {table}"),
        |body| {
            body.str(NFTA_TABLE_NAME, table);
        },
    )
}

/// A chain without its rules.
pub fn new_chain(table: &str, chain: &Chain) -> Message {
    let what = format!("add chain ip {table} {}", chain.name);
    change(NFT_MSG_NEWCHAIN, create_only(), what, |body| {
        body.str(NFTA_CHAIN_TABLE, table)
            .str(NFTA_CHAIN_NAME, &chain.name);
        if let Some(hook) = chain.hook {
            body.nest(NFTA_CHAIN_HOOK, |nest| {
                nest.be32(NFTA_HOOK_HOOKNUM, hook_number(hook.point))
                    .be32(NFTA_HOOK_PRIORITY, hook.priority.cast_unsigned());
            })
            .be32(NFTA_CHAIN_POLICY, NF_ACCEPT)
            .str(NFTA_CHAIN_TYPE, kind_name(hook.kind));
        }
    })
}

/// A chain and its rules go; nothing may refer to it any more.
pub fn delete_chain(table: &str, chain: &str) -> Message {
    let what = format!("delete chain ip {table} {chain}");
    change(NFT_MSG_DELCHAIN, NlmF::empty(), what, |body| {
        body.str(NFTA_CHAIN_TABLE, table).str(NFTA_CHAIN_NAME, chain);
    })
}

/// A rule at the end of its chain.
pub fn new_rule(table: &str, chain: &str, rule: &Rule) -> Message {
    let what = format!("add rule ip {table} {chain} ({})", rule.comment);
    change(NFT_MSG_NEWRULE, NlmF::CREATE | NlmF::APPEND, what, |body| {
        body.str(NFTA_RULE_TABLE, table)
            .str(NFTA_RULE_CHAIN, chain)
            .nest(NFTA_RULE_EXPRESSIONS, |list| {
                for step in &rule.exprs {
                    expr::put(list, step);
                }
            })
            .bytes(NFTA_RULE_USERDATA, &comment_tlv(&rule.comment));
    })
}

/// An empty set or map. `id` tells sets of one transaction apart.
pub fn new_set(table: &str, set: Set, id: u32) -> Message {
    let (key_type, key_order) = match set.key {
        KeyKind::Ipv4 => (NFT_TYPE_IPADDR, BIG_ENDIAN),
        KeyKind::IfIndex => (NFT_TYPE_IFINDEX, HOST_ENDIAN),
        KeyKind::Mark => (NFT_TYPE_MARK, HOST_ENDIAN),
    };
    let flags = match set.kind {
        SetKind::Intervals => NFT_SET_INTERVAL,
        SetKind::Verdicts => NFT_SET_MAP,
    };
    let what = format!("add set ip {table} {}", set.name);
    change(NFT_MSG_NEWSET, create_only(), what, |body| {
        body.str(NFTA_SET_TABLE, table)
            .str(NFTA_SET_NAME, set.name)
            .be32(NFTA_SET_FLAGS, flags)
            .be32(NFTA_SET_KEY_TYPE, key_type)
            .be32(NFTA_SET_KEY_LEN, 4)
            .be32(NFTA_SET_ID, id);
        if set.kind == SetKind::Verdicts {
            body.be32(NFTA_SET_DATA_TYPE, NFT_DATA_VERDICT)
                .be32(NFTA_SET_DATA_LEN, 0);
        }
        // Not for the kernel: how `nft list ruleset` is to print the keys.
        body.bytes(NFTA_SET_USERDATA, &key_order_tlv(key_order));
    })
}

/// Elements come into a set; those already there with the same verdict stay.
pub fn add_elements(table: &str, set: &str, elements: &[Element]) -> Vec<Message> {
    element_messages(NFT_MSG_NEWSETELEM, "add", table, set, elements)
}

/// Elements leave a set, which must hold them all.
pub fn delete_elements(table: &str, set: &str, elements: &[Element]) -> Vec<Message> {
    element_messages(NFT_MSG_DELSETELEM, "delete", table, set, elements)
}

/// Asks for all tables of the family.
pub fn dump_tables() -> Message {
    change(NFT_MSG_GETTABLE, NlmF::empty(), "list tables ip".into(), |_| {})
}

/// Asks for all chains of the family.
pub fn dump_chains() -> Message {
    change(NFT_MSG_GETCHAIN, NlmF::empty(), "list chains ip".into(), |_| {})
}

/// Asks for the rules of a table.
pub fn dump_rules(table: &str) -> Message {
    let what = format!("list rules ip {table}");
    change(NFT_MSG_GETRULE, NlmF::empty(), what, |body| {
        body.str(NFTA_RULE_TABLE, table);
    })
}

/// Asks for the sets of a table.
pub fn dump_sets(table: &str) -> Message {
    let what = format!("list sets ip {table}");
    change(NFT_MSG_GETSET, NlmF::empty(), what, |body| {
        body.str(NFTA_SET_TABLE, table);
    })
}

/// Asks for the elements of a set.
pub fn dump_elements(table: &str, set: &str) -> Message {
    let what = format!("list set ip {table} {set}");
    change(NFT_MSG_GETSETELEM, NlmF::empty(), what, |body| {
        body.str(NFTA_SET_ELEM_LIST_TABLE, table)
            .str(NFTA_SET_ELEM_LIST_SET, set);
    })
}

/// Opens or closes a transaction.
pub fn batch_frame(kind: u16) -> Body {
    let [high, low] = NFNL_SUBSYS_NFTABLES.to_be_bytes();
    debug_assert!(kind == NFNL_MSG_BATCH_BEGIN || kind == NFNL_MSG_BATCH_END);
    Body::new(&[0, 0, high, low])
}

fn create_only() -> NlmF {
    NlmF::CREATE | NlmF::EXCL
}

fn change(kind: u16, flags: NlmF, what: String, fill: impl FnOnce(&mut Body)) -> Message {
    let mut body = Body::new(&[NFPROTO_IPV4, 0, 0, 0]);
    fill(&mut body);
    let kind = NFNL_SUBSYS_NFTABLES << 8 | kind;
    Message {
        kind,
        flags,
        what,
        body,
    }
}

fn element_messages(kind: u16, verb: &str, table: &str, set: &str, elements: &[Element]) -> Vec<Message> {
    let adding = kind == NFT_MSG_NEWSETELEM;
    let flags = if adding { NlmF::CREATE } else { NlmF::empty() };
    let one = |chunk: &[Element]| {
        let what = format!("{verb} {} elements ip {table} {set}", chunk.len());
        change(kind, flags, what, |body| {
            body.str(NFTA_SET_ELEM_LIST_TABLE, table)
                .str(NFTA_SET_ELEM_LIST_SET, set)
                .nest(NFTA_SET_ELEM_LIST_ELEMENTS, |list| {
                    for element in chunk {
                        put_element(list, element, adding);
                    }
                });
        })
    };
    elements.chunks(ELEMENTS_PER_MESSAGE).map(one).collect()
}

/// An element is deleted by its key; the verdict matters only when it comes.
fn put_element(list: &mut Body, element: &Element, adding: bool) {
    let (key, verdict) = match element {
        Element::Range(range) => return put_range(list, *range),
        Element::Address(address, verdict) => (address.octets(), verdict),
        Element::Link(number, verdict) | Element::Mark(number, verdict) => (number.to_ne_bytes(), verdict),
    };
    list.nest(NFTA_LIST_ELEM, |element| {
        put_key(element, key);
        if adding {
            element.nest(NFTA_SET_ELEM_DATA, |data| expr::put_verdict(data, verdict));
        }
    });
}

/// An interval is two elements: its first key, and the key after its last flagged as an end. One that reaches the
/// top has no end.
fn put_range(list: &mut Body, range: AddressRange) {
    list.nest(NFTA_LIST_ELEM, |element| put_key(element, range.first.octets()));
    if let Some(after) = range.last.to_bits().checked_add(1) {
        list.nest(NFTA_LIST_ELEM, |element| {
            put_key(element, Ipv4Addr::from_bits(after).octets());
            element.be32(NFTA_SET_ELEM_FLAGS, NFT_SET_ELEM_INTERVAL_END);
        });
    }
}

fn put_key(element: &mut Body, key: [u8; 4]) {
    element.nest(NFTA_SET_ELEM_KEY, |data| {
        data.bytes(NFTA_DATA_VALUE, &key);
    });
}

/// libnftables' userdata: `{type: u8, len: u8, value}`; type 0 of tables and rules is a comment with its NUL.
fn comment_tlv(comment: &str) -> Vec<u8> {
    let text = comment.get(..comment.len().min(COMMENT_MAX)).unwrap_or_default();
    let len = u8::try_from(text.len().saturating_add(1)).unwrap_or_default();
    let mut tlv = vec![UDATA_COMMENT, len];
    tlv.extend_from_slice(text.as_bytes());
    tlv.push(0);
    tlv
}

fn key_order_tlv(order: u32) -> Vec<u8> {
    let mut tlv = vec![UDATA_SET_KEY_BYTE_ORDER, 4];
    tlv.extend_from_slice(&order.to_ne_bytes());
    tlv
}

fn hook_number(point: HookPoint) -> u32 {
    match point {
        HookPoint::Prerouting => NF_INET_PRE_ROUTING,
        HookPoint::Output => NF_INET_LOCAL_OUT,
        HookPoint::Postrouting => NF_INET_POST_ROUTING,
    }
}

fn kind_name(kind: ChainKind) -> &'static str {
    match kind {
        ChainKind::Filter => "filter",
        ChainKind::Route => "route",
        ChainKind::Nat => "nat",
    }
}
