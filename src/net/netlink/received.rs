//! One message as it was received, and what an error message says.

use neli::consts::nl::{NlmF, Nlmsg};
use nix::errno::Errno;

use super::error::NetError;
use super::{Outcome, Reply};
use crate::net::wire::{Attrs, align, array};

pub(super) const MESSAGE_HEADER: usize = 16;
const NLMSGERR_ATTR_MSG: u16 = 1;

/// A message in the receive buffer.
#[derive(Debug, Clone, Copy)]
pub(super) struct Received<'a> {
    pub(super) kind: u16,
    pub(super) flags: u16,
    pub(super) seq: u32,
    pub(super) port: u32,
    pub(super) payload: &'a [u8],
}

impl<'a> Received<'a> {
    pub(super) fn split(bytes: &'a [u8]) -> Option<(Self, &'a [u8])> {
        let len = usize::try_from(array(bytes, 0).map(u32::from_ne_bytes)?).ok()?;
        let message = Self {
            kind: array(bytes, 4).map(u16::from_ne_bytes)?,
            flags: array(bytes, 6).map(u16::from_ne_bytes)?,
            seq: array(bytes, 8).map(u32::from_ne_bytes)?,
            port: array(bytes, 12).map(u32::from_ne_bytes)?,
            payload: bytes.get(MESSAGE_HEADER..len)?,
        };
        Some((message, bytes.get(align(len)..).unwrap_or_default()))
    }

    pub(super) fn to_reply(self) -> Reply {
        Reply {
            kind: self.kind,
            port: self.port,
            payload: self.payload.to_vec(),
        }
    }

    /// Reads `NLMSG_ERROR` and `NLMSG_DONE`: both start with an error number, zero or negative.
    pub(super) fn verdict(self, what: &str) -> Outcome {
        let Some(code) = array(self.payload, 0).map(i32::from_ne_bytes) else {
            // A DONE without a number ended well on kernels before 2.6.
            return Ok(());
        };
        if code == 0 {
            return Ok(());
        }
        Err(NetError {
            op: what.to_owned(),
            errno: Errno::from_raw(code.wrapping_neg()),
            ext_ack: self.ext_ack(),
        })
    }

    /// The extended acknowledgement follows the number and, unless capped, an echo of the whole request.
    fn ext_ack(self) -> Option<String> {
        if self.flags & NlmF::ACK_TLVS.bits() == 0 {
            return None;
        }
        let skip = if self.kind == u16::from(Nlmsg::Done) {
            4
        } else if self.flags & NlmF::CAPPED.bits() != 0 {
            4 + MESSAGE_HEADER
        } else {
            let echoed = usize::try_from(array(self.payload, 4).map(u32::from_ne_bytes)?).ok()?;
            align(echoed.checked_add(4)?)
        };
        let text = Attrs::parse(self.payload.get(skip..)?)
            .ok()?
            .find(NLMSGERR_ATTR_MSG)?
            .str()?;
        Some(text.to_owned())
    }
}
