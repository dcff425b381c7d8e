//! What a notification of `nf_tables` is about.

use super::uapi::NFNL_SUBSYS_NFTABLES;
use crate::net::netlink::Reply;
use crate::net::ruleset::TABLE;
use crate::net::wire::{Attrs, Malformed};

/// `nfgenmsg`.
const GENERIC_HEADER: usize = 4;
/// Of every message about a table or a part of one, the table's name (`linux/netfilter/nf_tables.h`: `NFTA_TABLE_NAME`,
/// `NFTA_CHAIN_TABLE`, `NFTA_RULE_TABLE`, …).
const TABLE_NAME: u16 = 1;
const NFT_MSG_NEWGEN: u16 = 15;
const NFTA_GEN_PROC_PID: u16 = 2;
const NFTA_GEN_PROC_NAME: u16 = 3;

/// What a notification is about.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Heard {
    /// Something that is not ours.
    Nothing,
    /// Our table, or a part of it.
    Ours,
    /// The end of a transaction, and the process (its thread's id, and name) that made it.
    End(Option<(u32, String)>),
}

impl Heard {
    /// Reads a notification.
    ///
    /// # Errors
    /// When it is torn.
    pub(crate) fn of(reply: &Reply) -> Result<Self, Malformed> {
        if reply.kind >> 8 != NFNL_SUBSYS_NFTABLES {
            return Ok(Self::Nothing);
        }
        let attrs = Attrs::after(&reply.payload, GENERIC_HEADER)?;
        if reply.kind & 0xff == NFT_MSG_NEWGEN {
            let pid = attrs.find(NFTA_GEN_PROC_PID).and_then(|attr| attr.be32());
            let name = attrs.find(NFTA_GEN_PROC_NAME).and_then(|attr| attr.str());
            return Ok(Self::End(pid.zip(name.map(str::to_owned))));
        }
        let table = attrs.find(TABLE_NAME).and_then(|attr| attr.str());
        Ok(if table == Some(TABLE) {
            Self::Ours
        } else {
            Self::Nothing
        })
    }
}
