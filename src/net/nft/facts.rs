//! What `nf_tables` says about our table, read from its dumps.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use super::model::{
    AddressRange, ChainKind, Datum, Element, Hook, HookPoint, Key, KeyKind, Set, SetKind, SetName, Verdict,
};
#[allow(
    clippy::wildcard_imports,
    reason = "the kernel's names carry their own prefixes"
)]
use super::uapi::*;
use crate::ipam::ip::IpFamily;
use crate::net::netlink::Reply;
use crate::net::wire::{Attr, Attrs, Malformed, array};

const GENERIC_HEADER: usize = 4;

/// A table as it is.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct TableFacts {
    /// The comment in its userdata.
    pub comment: Option<String>,
    /// Its chains.
    pub chains: BTreeMap<String, ChainFacts>,
    /// The names of its sets.
    pub sets: BTreeSet<String>,
    /// What those of ours hold.
    pub contents: BTreeMap<SetName, BTreeSet<Element>>,
}

/// A chain as it is.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct ChainFacts {
    /// Where it is hooked.
    pub hook: HookFacts,
    /// The comments of its rules, in order; a rule without one isn't ours.
    pub rules: Vec<Option<String>>,
}

/// Where a chain is hooked.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum HookFacts {
    /// Nowhere.
    #[default]
    Regular,
    /// At a hook that we use, with policy accept.
    Base(Hook),
    /// Elsewhere or otherwise.
    Other,
}

/// A chain of the family, of any table.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NamedChain {
    /// Its table.
    pub table: String,
    /// Its name.
    pub name: String,
    /// Where it is hooked.
    pub hook: HookFacts,
}

/// A rule of one table.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RuleFacts {
    /// Its chain.
    pub chain: String,
    /// How to name it in a deletion.
    pub handle: u64,
    /// The comment in its userdata.
    pub comment: Option<String>,
    /// Its expressions, encoded: where iptables-nft keeps its comments.
    pub expressions: Vec<u8>,
}

/// A table's name and comment.
pub fn table(reply: &Reply) -> Result<(String, Option<String>), Malformed> {
    let attrs = Attrs::after(&reply.payload, GENERIC_HEADER)?;
    Ok((text(attrs, NFTA_TABLE_NAME)?, comment(attrs, NFTA_TABLE_USERDATA)))
}

/// A chain's table, name and hook.
pub fn chain(reply: &Reply) -> Result<NamedChain, Malformed> {
    let attrs = Attrs::after(&reply.payload, GENERIC_HEADER)?;
    Ok(NamedChain {
        table: text(attrs, NFTA_CHAIN_TABLE)?,
        name: text(attrs, NFTA_CHAIN_NAME)?,
        hook: hook(attrs)?,
    })
}

/// A rule.
pub fn rule(reply: &Reply) -> Result<RuleFacts, Malformed> {
    let attrs = Attrs::after(&reply.payload, GENERIC_HEADER)?;
    Ok(RuleFacts {
        chain: text(attrs, NFTA_RULE_CHAIN)?,
        handle: attrs
            .find(NFTA_RULE_HANDLE)
            .and_then(|a| a.be64())
            .ok_or(missing("a rule handle"))?,
        comment: comment(attrs, NFTA_RULE_USERDATA),
        expressions: attrs
            .find(NFTA_RULE_EXPRESSIONS)
            .map(|a| a.payload.to_vec())
            .unwrap_or_default(),
    })
}

/// The generation.
pub fn generation(reply: &Reply) -> Result<u32, Malformed> {
    let attrs = Attrs::after(&reply.payload, GENERIC_HEADER)?;
    let number = attrs.find(NFTA_GEN_ID).and_then(|attr| attr.be32());
    number.ok_or(missing("a generation"))
}

/// A set's table and name.
pub fn set(reply: &Reply) -> Result<(String, String), Malformed> {
    let attrs = Attrs::after(&reply.payload, GENERIC_HEADER)?;
    Ok((text(attrs, NFTA_SET_TABLE)?, text(attrs, NFTA_SET_NAME)?))
}

/// What a set or map holds.
pub fn elements(family: IpFamily, set: Set, replies: &[Reply]) -> Result<BTreeSet<Element>, Malformed> {
    if set.kind == SetKind::Intervals {
        return Ok(ranges(replies)?.into_iter().map(Element::Range).collect());
    }
    let mut found = BTreeSet::new();
    each_element(replies, |element| {
        let bytes = key(element)?;
        let key = read_key(family, set.key, bytes).ok_or(missing("an element key of its set's type"))?;
        found.insert(Element::Entry(key, datum(family, set.kind, element)?));
        Ok(())
    })?;
    Ok(found)
}

/// The intervals of an address set.
fn ranges(replies: &[Reply]) -> Result<BTreeSet<AddressRange>, Malformed> {
    let mut edges = Vec::new();
    each_element(replies, |element| {
        let first: [u8; 4] = array(key(element)?, 0).ok_or(missing("an element key of four bytes"))?;
        let flags = element
            .find(NFTA_SET_ELEM_FLAGS)
            .and_then(|a| a.be32())
            .unwrap_or(0);
        edges.push((u32::from_be_bytes(first), flags & NFT_SET_ELEM_INTERVAL_END == 0));
        Ok(())
    })?;
    // Ends before starts, so that adjacent ranges stay two.
    edges.sort_unstable();
    let mut ranges = BTreeSet::new();
    let mut open = None;
    for (address, starts) in edges {
        if starts {
            open = Some(address);
        } else if let Some(first) = open.take() {
            ranges.insert(range(first, address.saturating_sub(1)));
        }
    }
    ranges.extend(open.map(|first| range(first, u32::MAX)));
    Ok(ranges)
}

fn read_key(family: IpFamily, kind: KeyKind, bytes: &[u8]) -> Option<Key> {
    let len = address_len(family);
    let port = |at: usize| Some((*bytes.get(at)?, port_at(bytes, at.saturating_add(4))?));
    Some(match kind {
        KeyKind::Address => Key::Address(address_at(family, bytes, 0)?),
        KeyKind::IfIndex | KeyKind::Mark => Key::Number(u32::from_ne_bytes(array(bytes, 0)?)),
        KeyKind::Port => {
            let (protocol, number) = port(0)?;
            Key::Port(protocol, number)
        }
        KeyKind::PortAt => {
            let (protocol, number) = port(len)?;
            Key::PortAt(address_at(family, bytes, 0)?, protocol, number)
        }
        KeyKind::Pair => Key::Pair(address_at(family, bytes, 0)?, address_at(family, bytes, len)?),
    })
}

fn datum(family: IpFamily, kind: SetKind, element: Attrs<'_>) -> Result<Datum, Malformed> {
    let Some(data) = nested(element, NFTA_SET_ELEM_DATA)? else {
        return Ok(Datum::Nothing);
    };
    let known = match kind {
        SetKind::Verdicts => nested(data, NFTA_DATA_VERDICT)?
            .and_then(jump)
            .map(Datum::Verdict),
        SetKind::Endpoints => data
            .find(NFTA_DATA_VALUE)
            .and_then(|value| endpoint(family, value.payload)),
        SetKind::Intervals | SetKind::Members => None,
    };
    Ok(known.unwrap_or(Datum::Foreign))
}

fn jump(verdict: Attrs<'_>) -> Option<Verdict> {
    let code = verdict.find(NFTA_VERDICT_CODE)?.be32()?;
    let chain = verdict.find(NFTA_VERDICT_CHAIN)?.str()?;
    (code == NFT_JUMP.cast_unsigned()).then(|| Verdict::Jump(chain.to_owned()))
}

fn endpoint(family: IpFamily, bytes: &[u8]) -> Option<Datum> {
    let address = address_at(family, bytes, 0)?;
    Some(Datum::Endpoint(address, port_at(bytes, address_len(family))?))
}

fn address_len(family: IpFamily) -> usize {
    match family {
        IpFamily::V4 => 4,
        IpFamily::V6 => 16,
    }
}

fn address_at(family: IpFamily, bytes: &[u8], at: usize) -> Option<IpAddr> {
    Some(match family {
        IpFamily::V4 => Ipv4Addr::from(array::<4>(bytes, at)?).into(),
        IpFamily::V6 => Ipv6Addr::from(array::<16>(bytes, at)?).into(),
    })
}

fn port_at(bytes: &[u8], at: usize) -> Option<u16> {
    array(bytes, at).map(u16::from_be_bytes)
}

fn each_element(
    replies: &[Reply],
    mut each: impl FnMut(Attrs<'_>) -> Result<(), Malformed>,
) -> Result<(), Malformed> {
    for reply in replies {
        let attrs = Attrs::after(&reply.payload, GENERIC_HEADER)?;
        let Some(list) = nested(attrs, NFTA_SET_ELEM_LIST_ELEMENTS)? else {
            continue;
        };
        for element in list {
            each(element.nested()?)?;
        }
    }
    Ok(())
}

fn hook(attrs: Attrs<'_>) -> Result<HookFacts, Malformed> {
    let Some(nest) = nested(attrs, NFTA_CHAIN_HOOK)? else {
        return Ok(HookFacts::Regular);
    };
    let number = |attrs: Attrs<'_>, kind| attrs.find(kind).and_then(|attr: Attr<'_>| attr.be32());
    let kind = match attrs.find(NFTA_CHAIN_TYPE).and_then(|a| a.str()) {
        Some("filter") => Some(ChainKind::Filter),
        Some("route") => Some(ChainKind::Route),
        Some("nat") => Some(ChainKind::Nat),
        _ => None,
    };
    let point = match number(nest, NFTA_HOOK_HOOKNUM) {
        Some(NF_INET_PRE_ROUTING) => Some(HookPoint::Prerouting),
        Some(NF_INET_LOCAL_OUT) => Some(HookPoint::Output),
        Some(NF_INET_POST_ROUTING) => Some(HookPoint::Postrouting),
        _ => None,
    };
    let priority = number(nest, NFTA_HOOK_PRIORITY).map(u32::cast_signed);
    let accepts = number(attrs, NFTA_CHAIN_POLICY) == Some(NF_ACCEPT);
    Ok(match (kind, point, priority, accepts) {
        (Some(kind), Some(point), Some(priority), true) => HookFacts::Base(Hook {
            kind,
            point,
            priority,
        }),
        _ => HookFacts::Other,
    })
}

fn key(element: Attrs<'_>) -> Result<&[u8], Malformed> {
    nested(element, NFTA_SET_ELEM_KEY)?
        .and_then(|data| data.find(NFTA_DATA_VALUE))
        .map(|value| value.payload)
        .ok_or(missing("an element key"))
}

fn nested(attrs: Attrs<'_>, kind: u16) -> Result<Option<Attrs<'_>>, Malformed> {
    attrs.find(kind).map(|attr| attr.nested()).transpose()
}

fn text(attrs: Attrs<'_>, kind: u16) -> Result<String, Malformed> {
    attrs
        .find(kind)
        .and_then(|attr| attr.str())
        .map(str::to_owned)
        .ok_or(missing("a name"))
}

fn comment(attrs: Attrs<'_>, kind: u16) -> Option<String> {
    let userdata = attrs.find(kind)?.payload;
    let [UDATA_COMMENT, len] = array(userdata, 0)? else {
        return None;
    };
    let value = userdata.get(2..)?.get(..usize::from(len))?;
    std::str::from_utf8(value.strip_suffix(b"\0")?)
        .ok()
        .map(str::to_owned)
}

fn range(first: u32, last: u32) -> AddressRange {
    AddressRange {
        first: Ipv4Addr::from_bits(first),
        last: Ipv4Addr::from_bits(last),
    }
}

fn missing(expected: &'static str) -> Malformed {
    Malformed { expected, offset: 0 }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::super::encode::{self, Message, Table};
    use super::*;

    const V4: IpFamily = IpFamily::V4;
    const T: Table<'_> = Table {
        family: V4,
        name: "t",
    };

    fn reply(message: &Message) -> Reply {
        Reply {
            port: 0,
            kind: message.kind,
            payload: message.body.as_bytes().to_vec(),
        }
    }

    #[test]
    fn intervals_that_touch_or_reach_the_ends_stay_apart() {
        let wanted: BTreeSet<_> = [(0, 9), (10, 19), (30, 30), (0xffff_0000, u32::MAX)]
            .map(|(first, last)| range(first, last))
            .into();
        let elements: Vec<_> = wanted.iter().copied().map(Element::Range).collect();
        let messages = encode::add_elements(T, "s", &elements);
        assert_eq!(
            ranges(&messages.iter().map(reply).collect::<Vec<_>>()).unwrap(),
            wanted
        );
    }

    #[test]
    fn verdicts_that_are_not_ours_are_foreign() {
        let set = Set {
            name: "s",
            key: KeyKind::Mark,
            kind: SetKind::Verdicts,
        };
        let verdicts = [
            Verdict::Jump("eni-3".into()),
            Verdict::Goto("eni-3".into()),
            Verdict::Accept,
        ];
        let elements: Vec<_> = (0..)
            .zip(verdicts.clone())
            .map(|(number, verdict)| Element::Entry(Key::Number(number), Datum::Verdict(verdict)))
            .collect();
        let messages = encode::add_elements(T, "s", &elements);
        let found = super::elements(V4, set, &messages.iter().map(reply).collect::<Vec<_>>()).unwrap();
        let wanted = [
            Datum::Verdict(verdicts[0].clone()),
            Datum::Foreign,
            Datum::Foreign,
        ];
        let wanted = (0..)
            .zip(wanted)
            .map(|(number, datum)| Element::Entry(Key::Number(number), datum));
        assert_eq!(found, wanted.collect());
    }

    #[test]
    fn keys_of_several_parts_are_read_as_they_were_written() {
        let v4 = IpAddr::from([10, 0, 0, 1]);
        let v6: IpAddr = "2600::1".parse().unwrap();
        for (family, address) in [(IpFamily::V4, v4), (IpFamily::V6, v6)] {
            let table = Table { family, name: "t" };
            let endpoint = || Datum::Endpoint(address, 80);
            for (key, kind, entry) in [
                (
                    KeyKind::Port,
                    SetKind::Endpoints,
                    Element::Entry(Key::Port(6, 8080), endpoint()),
                ),
                (
                    KeyKind::PortAt,
                    SetKind::Endpoints,
                    Element::Entry(Key::PortAt(address, 132, 9), endpoint()),
                ),
                (
                    KeyKind::Pair,
                    SetKind::Members,
                    Element::Entry(Key::Pair(address, address), Datum::Nothing),
                ),
            ] {
                let messages = encode::add_elements(table, "s", std::slice::from_ref(&entry));
                let replies: Vec<_> = messages.iter().map(reply).collect();
                let set = Set { name: "s", key, kind };
                assert_eq!(elements(family, set, &replies).unwrap(), [entry].into());
            }
        }
    }

    #[test]
    fn comments_are_read_and_noise_is_not() {
        let message = encode::new_table(T, "aws-cni 1 abc");
        assert_eq!(
            table(&reply(&message)).unwrap(),
            ("t".into(), Some("aws-cni 1 abc".into()))
        );
        let long = encode::new_table(T, &"x".repeat(400));
        assert_eq!(table(&reply(&long)).unwrap().1, Some("x".repeat(COMMENT_MAX)));
    }

    proptest! {
        #[test]
        fn hostile_dumps_never_panic(payload in proptest::collection::vec(any::<u8>(), 0..200)) {
            let reply = Reply { kind: 0, port: 0, payload };
            let _seen = (table(&reply), chain(&reply), rule(&reply), set(&reply));
            let replies = [reply];
            for key in [KeyKind::Address, KeyKind::Mark, KeyKind::Port, KeyKind::PortAt, KeyKind::Pair] {
                for kind in [SetKind::Intervals, SetKind::Verdicts, SetKind::Members, SetKind::Endpoints] {
                    let set = Set { name: "s", key, kind };
                    let _seen = elements(V4, set, &replies);
                }
            }
        }
    }
}
