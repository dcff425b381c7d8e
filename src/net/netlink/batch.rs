//! Messages that travel together.

use std::borrow::Cow;

use neli::consts::nl::NlmF;

use super::super::wire::{Body, align, array};
use super::received::MESSAGE_HEADER;

#[derive(Debug, Clone)]
pub(super) struct Entry {
    offset: usize,
    pub(super) what: Cow<'static, str>,
    pub(super) control: bool,
}

/// Messages that travel in one send, in order.
#[derive(Debug, Clone, Default)]
pub struct Batch {
    bytes: Vec<u8>,
    pub(super) entries: Vec<Entry>,
    pub(super) refused: Option<Cow<'static, str>>,
}

impl Batch {
    /// An empty batch.
    pub fn new() -> Self {
        Self::default()
    }

    /// Adds a message. `flags` are added to REQUEST (so `NlmF::CREATE | NlmF::EXCL` or empty); asking for
    /// acknowledgements is the engine's business. `what` names the message in errors.
    pub fn push(
        &mut self,
        kind: u16,
        flags: NlmF,
        what: impl Into<Cow<'static, str>>,
        body: &Body,
    ) -> &mut Self {
        self.append(kind, flags, what.into(), body, false)
    }

    /// Adds a message that only frames others (`NFNL_MSG_BATCH_BEGIN`, `…_END`): it gets no outcome of its own, and
    /// an error answered to it is the failure of the whole batch.
    pub fn push_control(&mut self, kind: u16, what: impl Into<Cow<'static, str>>, body: &Body) -> &mut Self {
        self.append(kind, NlmF::empty(), what.into(), body, true)
    }

    /// How many bytes the send takes.
    pub fn byte_len(&self) -> usize {
        self.bytes.len()
    }

    fn append(
        &mut self,
        kind: u16,
        flags: NlmF,
        what: Cow<'static, str>,
        body: &Body,
        control: bool,
    ) -> &mut Self {
        let payload = body.as_bytes();
        let len = u32::try_from(MESSAGE_HEADER.saturating_add(payload.len()));
        let (Ok(len), false) = (len, body.is_too_long()) else {
            self.refused = Some(what);
            return self;
        };
        let offset = self.bytes.len();
        self.bytes.extend_from_slice(&len.to_ne_bytes());
        self.bytes.extend_from_slice(&kind.to_ne_bytes());
        self.bytes
            .extend_from_slice(&(flags | NlmF::REQUEST).bits().to_ne_bytes());
        self.bytes.extend_from_slice(&[0; 8]); // sequence, filled in at send; port, the kernel knows it
        self.bytes.extend_from_slice(payload);
        self.bytes.resize(align(self.bytes.len()), 0);
        self.entries.push(Entry {
            offset,
            what,
            control,
        });
        self
    }

    /// The bytes with sequence numbers `first`, `first + 1`, …, and an acknowledgement asked of the last message.
    ///
    /// Errors are answered without being asked for, in order, so the last acknowledgement says that every other
    /// message without an error succeeded. Asking for all of them would overrun the receive buffer at some 250.
    pub(super) fn stamped(&self, first: u32) -> Vec<u8> {
        let mut bytes = self.bytes.clone();
        let last = self.entries.iter().rposition(|entry| !entry.control);
        for (index, entry) in self.entries.iter().enumerate() {
            let seq = first.wrapping_add(u32::try_from(index).unwrap_or(u32::MAX));
            put(&mut bytes, entry.offset.saturating_add(8), seq.to_ne_bytes());
            if Some(index) == last {
                let at = entry.offset.saturating_add(6);
                let flags = array(&bytes, at).map_or(0, u16::from_ne_bytes);
                put(&mut bytes, at, (flags | NlmF::ACK.bits()).to_ne_bytes());
            }
        }
        bytes
    }
}

fn put<const N: usize>(bytes: &mut [u8], at: usize, value: [u8; N]) {
    if let Some(slot) = bytes.get_mut(at..at.saturating_add(N)) {
        slot.copy_from_slice(&value);
    }
}

/// The batch in a few words, for errors that concern all of it.
pub(super) fn summary(batch: &Batch) -> String {
    match batch.entries.as_slice() {
        [only] => only.what.to_string(),
        [first, rest @ ..] => format!("{} and {} more", first.what, rest.len()),
        [] => "nothing".to_owned(),
    }
}
