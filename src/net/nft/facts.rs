//! What `nf_tables` says about our table, read from its dumps.

use std::collections::{BTreeMap, BTreeSet};
use std::net::Ipv4Addr;

use super::model::{AddressRange, ChainKind, Hook, HookPoint};
#[allow(
    clippy::wildcard_imports,
    reason = "the kernel's names carry their own prefixes"
)]
use super::uapi::*;
use crate::net::layout::EniMark;
use crate::net::netlink::Reply;
use crate::net::ruleset::mark_of_chain;
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
    /// What the exemption set holds.
    pub exempt: BTreeSet<AddressRange>,
    /// Which ENI each pod address is marked for; `None` for a verdict that isn't ours.
    pub pods: BTreeMap<Ipv4Addr, Option<EniMark>>,
    /// Which ENI each link is marked for.
    pub links: BTreeMap<u32, Option<EniMark>>,
    /// Which ENI each connection mark is answered by.
    pub answers: BTreeMap<u32, Option<EniMark>>,
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

/// An element of a verdict map: its key's bytes and the chain it jumps to.
type Mapping = ([u8; 4], Option<String>);

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

/// A set's table and name.
pub fn set(reply: &Reply) -> Result<(String, String), Malformed> {
    let attrs = Attrs::after(&reply.payload, GENERIC_HEADER)?;
    Ok((text(attrs, NFTA_SET_TABLE)?, text(attrs, NFTA_SET_NAME)?))
}

/// The intervals of an address set.
pub fn ranges(replies: &[Reply]) -> Result<BTreeSet<AddressRange>, Malformed> {
    let mut edges = Vec::new();
    each_element(replies, |element| {
        let key = Ipv4Addr::from(key(element)?).to_bits();
        let flags = element
            .find(NFTA_SET_ELEM_FLAGS)
            .and_then(|a| a.be32())
            .unwrap_or(0);
        edges.push((key, flags & NFT_SET_ELEM_INTERVAL_END == 0));
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

/// The elements of an address-to-chain map.
pub fn pods(replies: &[Reply]) -> Result<BTreeMap<Ipv4Addr, Option<EniMark>>, Malformed> {
    Ok(mappings(replies)?
        .into_iter()
        .map(|(key, chain)| (Ipv4Addr::from(key), chain.as_deref().and_then(mark_of_chain)))
        .collect())
}

/// The elements of a map from a number of ours, a link's index or a mark, to a chain.
pub fn numbers(replies: &[Reply]) -> Result<BTreeMap<u32, Option<EniMark>>, Malformed> {
    Ok(mappings(replies)?
        .into_iter()
        .map(|(key, chain)| (u32::from_ne_bytes(key), chain.as_deref().and_then(mark_of_chain)))
        .collect())
}

fn mappings(replies: &[Reply]) -> Result<Vec<Mapping>, Malformed> {
    let mut found = Vec::new();
    each_element(replies, |element| {
        let verdict = nested(element, NFTA_SET_ELEM_DATA)?
            .map(|data| nested(data, NFTA_DATA_VERDICT))
            .transpose()?
            .flatten();
        let jump = |verdict: &Attrs<'_>| {
            let code = verdict.find(NFTA_VERDICT_CODE).and_then(|a| a.be32());
            code == Some(NFT_JUMP.cast_unsigned())
        };
        let chain = verdict
            .filter(jump)
            .and_then(|verdict| verdict.find(NFTA_VERDICT_CHAIN)?.str().map(str::to_owned));
        found.push((key(element)?, chain));
        Ok(())
    })?;
    Ok(found)
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

fn key(element: Attrs<'_>) -> Result<[u8; 4], Malformed> {
    nested(element, NFTA_SET_ELEM_KEY)?
        .and_then(|data| data.find(NFTA_DATA_VALUE))
        .and_then(|value| array(value.payload, 0))
        .ok_or(missing("an element key of four bytes"))
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

    use super::super::encode::{self, Message};
    use super::super::model::{Element, Verdict};
    use super::*;

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
        let messages = encode::add_elements("t", "s", &elements);
        assert_eq!(
            ranges(&messages.iter().map(reply).collect::<Vec<_>>()).unwrap(),
            wanted
        );
    }

    #[test]
    fn verdicts_that_are_not_ours_have_no_mark() {
        let address = |last| Ipv4Addr::new(10, 0, 0, last);
        let elements = [
            Element::Address(address(1), Verdict::Jump("eni-3".into())),
            Element::Address(address(2), Verdict::Goto("eni-3".into())),
            Element::Address(address(3), Verdict::Jump("elsewhere".into())),
            Element::Address(address(4), Verdict::Accept),
        ];
        let messages = encode::add_elements("t", "s", &elements);
        let found = pods(&messages.iter().map(reply).collect::<Vec<_>>()).unwrap();
        assert_eq!(
            found.into_values().collect::<Vec<_>>(),
            [EniMark::new(3), None, None, None]
        );
    }

    #[test]
    fn comments_are_read_and_noise_is_not() {
        let message = encode::new_table("t", "aws-cni 1 abc");
        assert_eq!(
            table(&reply(&message)).unwrap(),
            ("t".into(), Some("aws-cni 1 abc".into()))
        );
        let long = encode::new_table("t", &"x".repeat(400));
        assert_eq!(table(&reply(&long)).unwrap().1, Some("x".repeat(COMMENT_MAX)));
    }

    proptest! {
        #[test]
        fn hostile_dumps_never_panic(payload in proptest::collection::vec(any::<u8>(), 0..200)) {
            let reply = Reply { kind: 0, port: 0, payload };
            let _seen = (table(&reply), chain(&reply), rule(&reply), set(&reply));
            let replies = [reply];
            let _seen = (ranges(&replies), pods(&replies), numbers(&replies));
        }
    }
}
