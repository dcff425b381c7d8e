//! The model as `nf_tables` messages. Numbers: `linux/netfilter/nf_tables.h` and `nf_nat.h` of the kernel's uapi.

use std::fmt;
use std::net::{IpAddr, Ipv4Addr};

use neli::consts::nl::NlmF;

use super::expr;
use super::model::{
    AddressRange, Chain, ChainKind, Datum, Element, HookPoint, Key, KeyKind, Rule, Set, SetKind,
};
#[allow(
    clippy::wildcard_imports,
    reason = "the kernel's names carry their own prefixes"
)]
use super::uapi::*;
use crate::ipam::ip::IpFamily;
use crate::net::wire::Body;

/// Which table is meant.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Table<'a> {
    /// Its family.
    pub family: IpFamily,
    /// Its name.
    pub name: &'a str,
}

impl fmt::Display for Table<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {}", family_name(self.family), self.name)
    }
}

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
pub fn new_table(table: Table<'_>, comment: &str) -> Message {
    change(
        table.family,
        NFT_MSG_NEWTABLE,
        create_only(),
        format!("add table {table}"),
        |body| {
            body.str(NFTA_TABLE_NAME, table.name)
                .bytes(NFTA_TABLE_USERDATA, &comment_tlv(comment));
        },
    )
}

/// A table and all it holds goes.
pub fn delete_table(table: Table<'_>) -> Message {
    change(
        table.family,
        NFT_MSG_DELTABLE,
        NlmF::empty(),
        format!("delete table {table}"),
        |body| {
            body.str(NFTA_TABLE_NAME, table.name);
        },
    )
}

/// A chain without its rules.
pub fn new_chain(table: Table<'_>, chain: &Chain) -> Message {
    let what = format!("add chain {table} {}", chain.name);
    change(table.family, NFT_MSG_NEWCHAIN, create_only(), what, |body| {
        body.str(NFTA_CHAIN_TABLE, table.name)
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
pub fn delete_chain(table: Table<'_>, chain: &str) -> Message {
    let what = format!("delete chain {table} {chain}");
    change(table.family, NFT_MSG_DELCHAIN, NlmF::empty(), what, |body| {
        body.str(NFTA_CHAIN_TABLE, table.name).str(NFTA_CHAIN_NAME, chain);
    })
}

/// A rule at the end of its chain.
pub fn new_rule(table: Table<'_>, chain: &str, rule: &Rule) -> Message {
    let what = format!("add rule {table} {chain} ({})", rule.comment);
    change(
        table.family,
        NFT_MSG_NEWRULE,
        NlmF::CREATE | NlmF::APPEND,
        what,
        |body| {
            body.str(NFTA_RULE_TABLE, table.name)
                .str(NFTA_RULE_CHAIN, chain)
                .nest(NFTA_RULE_EXPRESSIONS, |list| {
                    for step in &rule.exprs {
                        expr::put(list, table.family, step);
                    }
                })
                .bytes(NFTA_RULE_USERDATA, &comment_tlv(&rule.comment));
        },
    )
}

/// An empty set or map. `id` tells sets of one transaction apart.
pub fn new_set(table: Table<'_>, set: Set, id: u32) -> Message {
    let (key_type, key_len) = key_type(table.family, set.key);
    let key_order = match set.key {
        KeyKind::IfIndex | KeyKind::Mark => HOST_ENDIAN,
        KeyKind::Address | KeyKind::Port | KeyKind::PortAt | KeyKind::Pair => BIG_ENDIAN,
    };
    let flags = match set.kind {
        SetKind::Intervals => NFT_SET_INTERVAL,
        SetKind::Verdicts | SetKind::Endpoints => NFT_SET_MAP,
        SetKind::Members => 0,
    };
    let what = format!("add set {table} {}", set.name);
    change(table.family, NFT_MSG_NEWSET, create_only(), what, |body| {
        body.str(NFTA_SET_TABLE, table.name)
            .str(NFTA_SET_NAME, set.name)
            .be32(NFTA_SET_FLAGS, flags)
            .be32(NFTA_SET_KEY_TYPE, key_type)
            .be32(NFTA_SET_KEY_LEN, key_len)
            .be32(NFTA_SET_ID, id);
        let data = match set.kind {
            SetKind::Intervals | SetKind::Members => None,
            SetKind::Verdicts => Some((NFT_DATA_VERDICT, 0)),
            SetKind::Endpoints => Some(endpoint_type(table.family)),
        };
        if let Some((kind, len)) = data {
            body.be32(NFTA_SET_DATA_TYPE, kind).be32(NFTA_SET_DATA_LEN, len);
        }
        // Not for the kernel: how `nft list ruleset` is to print the keys.
        body.bytes(NFTA_SET_USERDATA, &key_order_tlv(key_order));
    })
}

/// A key's type, which is for `nft list ruleset`, and its length. One of several parts has six bits of type and four
/// bytes, or a multiple of them, for each part.
fn key_type(family: IpFamily, kind: KeyKind) -> (u32, u32) {
    let (address, len) = address_type(family);
    let port = NFT_TYPE_INET_PROTOCOL << 6 | NFT_TYPE_INET_SERVICE;
    match kind {
        KeyKind::Address => (address, len),
        KeyKind::IfIndex => (NFT_TYPE_IFINDEX, 4),
        KeyKind::Mark => (NFT_TYPE_MARK, 4),
        KeyKind::Port => (port, 8),
        KeyKind::PortAt => (address << 12 | port, len + 8),
        KeyKind::Pair => (address << 6 | address, len + len),
    }
}

fn endpoint_type(family: IpFamily) -> (u32, u32) {
    let (address, len) = address_type(family);
    (address << 6 | NFT_TYPE_INET_SERVICE, len + 4)
}

fn address_type(family: IpFamily) -> (u32, u32) {
    match family {
        IpFamily::V4 => (NFT_TYPE_IPADDR, 4),
        IpFamily::V6 => (NFT_TYPE_IP6ADDR, 16),
    }
}

/// Elements come into a set; those already there with the same verdict stay.
pub fn add_elements(table: Table<'_>, set: &str, elements: &[Element]) -> Vec<Message> {
    element_messages(NFT_MSG_NEWSETELEM, "add", table, set, elements)
}

/// Elements leave a set, which must hold them all.
pub fn delete_elements(table: Table<'_>, set: &str, elements: &[Element]) -> Vec<Message> {
    element_messages(NFT_MSG_DELSETELEM, "delete", table, set, elements)
}

/// Asks for all tables of the family.
pub fn dump_tables(family: IpFamily) -> Message {
    let what = format!("list tables {}", family_name(family));
    change(family, NFT_MSG_GETTABLE, NlmF::empty(), what, |_| {})
}

/// Asks for all chains of the family.
pub fn dump_chains(family: IpFamily) -> Message {
    let what = format!("list chains {}", family_name(family));
    change(family, NFT_MSG_GETCHAIN, NlmF::empty(), what, |_| {})
}

/// Asks for the rules of a table.
pub fn dump_rules(table: Table<'_>) -> Message {
    let what = format!("list rules {table}");
    change(table.family, NFT_MSG_GETRULE, NlmF::empty(), what, |body| {
        body.str(NFTA_RULE_TABLE, table.name);
    })
}

/// Asks for the sets of a table.
pub fn dump_sets(table: Table<'_>) -> Message {
    let what = format!("list sets {table}");
    change(table.family, NFT_MSG_GETSET, NlmF::empty(), what, |body| {
        body.str(NFTA_SET_TABLE, table.name);
    })
}

/// Asks for the elements of a set.
pub fn dump_elements(table: Table<'_>, set: &str) -> Message {
    let what = format!("list set {table} {set}");
    change(table.family, NFT_MSG_GETSETELEM, NlmF::empty(), what, |body| {
        body.str(NFTA_SET_ELEM_LIST_TABLE, table.name)
            .str(NFTA_SET_ELEM_LIST_SET, set);
    })
}

/// Opens or closes a transaction.
///
/// With a generation, the kernel refuses it when anything has changed since.
pub fn batch_frame(kind: u16, generation: Option<u32>) -> Body {
    let [high, low] = NFNL_SUBSYS_NFTABLES.to_be_bytes();
    debug_assert!(kind == NFNL_MSG_BATCH_BEGIN || kind == NFNL_MSG_BATCH_END);
    let mut body = Body::new(&[0, 0, high, low]);
    if let Some(generation) = generation {
        body.be32(NFNL_BATCH_GENID, generation);
    }
    body
}

/// Asks for the generation, which every change of any table changes.
pub fn get_generation() -> Message {
    let what = "read the generation of nf_tables".to_owned();
    change(IpFamily::V4, NFT_MSG_GETGEN, NlmF::empty(), what, |_| {})
}

fn family_name(family: IpFamily) -> &'static str {
    match family {
        IpFamily::V4 => "ip",
        IpFamily::V6 => "ip6",
    }
}

fn create_only() -> NlmF {
    NlmF::CREATE | NlmF::EXCL
}

fn change(family: IpFamily, kind: u16, flags: NlmF, what: String, fill: impl FnOnce(&mut Body)) -> Message {
    let number = match family {
        IpFamily::V4 => NFPROTO_IPV4,
        IpFamily::V6 => NFPROTO_IPV6,
    };
    let mut body = Body::new(&[number, 0, 0, 0]);
    fill(&mut body);
    let kind = NFNL_SUBSYS_NFTABLES << 8 | kind;
    Message {
        kind,
        flags,
        what,
        body,
    }
}

fn element_messages(
    kind: u16,
    verb: &str,
    table: Table<'_>,
    set: &str,
    elements: &[Element],
) -> Vec<Message> {
    let adding = kind == NFT_MSG_NEWSETELEM;
    let flags = if adding { NlmF::CREATE } else { NlmF::empty() };
    let one = |chunk: &[Element]| {
        let what = format!("{verb} {} elements {table} {set}", chunk.len());
        change(table.family, kind, flags, what, |body| {
            body.str(NFTA_SET_ELEM_LIST_TABLE, table.name)
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

/// An element is deleted by its key; what is found under it matters only when it comes.
fn put_element(list: &mut Body, element: &Element, adding: bool) {
    let (key, datum) = match element {
        Element::Range(range) => return put_range(list, *range),
        Element::Entry(key, datum) => (key, datum),
    };
    list.nest(NFTA_LIST_ELEM, |element| {
        put_key(element, &key_bytes(key));
        match datum {
            Datum::Verdict(verdict) if adding => {
                element.nest(NFTA_SET_ELEM_DATA, |data| expr::put_verdict(data, verdict));
            }
            Datum::Endpoint(address, port) if adding => {
                element.nest(NFTA_SET_ELEM_DATA, |data| {
                    let mut value = octets(*address);
                    value.extend(padded(&port.to_be_bytes()));
                    data.bytes(NFTA_DATA_VALUE, &value);
                });
            }
            _ => {}
        }
    });
}

/// Every part of a key fills up a multiple of four bytes.
fn key_bytes(key: &Key) -> Vec<u8> {
    let port = |protocol: u8, number: u16| [padded(&[protocol]), padded(&number.to_be_bytes())].concat();
    match key {
        Key::Address(address) => octets(*address),
        Key::Number(number) => number.to_ne_bytes().to_vec(),
        Key::Port(protocol, number) => port(*protocol, *number),
        Key::PortAt(address, protocol, number) => [octets(*address), port(*protocol, *number)].concat(),
        Key::Pair(one, other) => [octets(*one), octets(*other)].concat(),
    }
}

fn octets(address: IpAddr) -> Vec<u8> {
    match address {
        IpAddr::V4(address) => address.octets().to_vec(),
        IpAddr::V6(address) => address.octets().to_vec(),
    }
}

fn padded(bytes: &[u8]) -> Vec<u8> {
    let mut padded = bytes.to_vec();
    padded.resize(4, 0);
    padded
}

/// An interval is two elements: its first key, and the key after its last flagged as an end. One that reaches the
/// top has no end.
fn put_range(list: &mut Body, range: AddressRange) {
    list.nest(NFTA_LIST_ELEM, |element| put_key(element, &range.first.octets()));
    if let Some(after) = range.last.to_bits().checked_add(1) {
        list.nest(NFTA_LIST_ELEM, |element| {
            put_key(element, &Ipv4Addr::from_bits(after).octets());
            element.be32(NFTA_SET_ELEM_FLAGS, NFT_SET_ELEM_INTERVAL_END);
        });
    }
}

fn put_key(element: &mut Body, key: &[u8]) {
    element.nest(NFTA_SET_ELEM_KEY, |data| {
        data.bytes(NFTA_DATA_VALUE, key);
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
