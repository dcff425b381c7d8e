//! What comes from outside, read from any bytes: the bodies of the fuzz targets in `fuzz/`.
//!
//! Each takes bytes, reads them as the program would, and panics when something holds that must never hold. Under
//! `make test` they run over the inputs in `fuzz/corpus` and over mutations of them, the same ones each time; under
//! `make fuzz` libFuzzer looks for more.
#![allow(
    clippy::panic,
    clippy::missing_panics_doc,
    reason = "a panic is how a target says that it has found something"
)]

#[cfg(test)]
mod tests;

mod checkpoints;
mod kernel;
mod plugin;
mod records;

use std::collections::BTreeMap;

pub use crate::cloud::fuzz::{ec2_answers, imds_answers};
pub use crate::config::fuzz::{configuration, eni_configs, kubelet_files};
pub use checkpoints::checkpoint_files;
pub use kernel::netlink_messages;
pub use plugin::{chained_plugins, plugin_calls};
pub use records::stored_records;

use crate::rpc::frame::{self, FrameBuffer};
use crate::rpc::types::Request;

/// A target's body.
pub type Target = fn(&[u8]);

/// All of them, by the names of their corpora.
pub const TARGETS: &[(&str, Target)] = &[
    ("chained_plugins", chained_plugins),
    ("checkpoint_files", checkpoint_files),
    ("configuration", configuration),
    ("ec2_answers", ec2_answers),
    ("eni_configs", eni_configs),
    ("imds_answers", imds_answers),
    ("kubelet_files", kubelet_files),
    ("netlink_messages", netlink_messages),
    ("plugin_calls", plugin_calls),
    ("socket_frames", socket_frames),
    ("stored_records", stored_records),
];

/// Far below the socket's own limit, so that inputs can exceed it.
const FRAME_LIMIT: usize = 512;

/// Bytes from the socket, on either side of it: a request is read and written to the same request again, and no piece
/// of memory grows beyond the limit.
pub fn socket_frames(data: &[u8]) {
    let mut buffer = FrameBuffer::new(FRAME_LIMIT);
    // Arrives in pieces, whose length is a matter of the first byte.
    let piece = usize::from(data.first().copied().unwrap_or_default()).saturating_add(1);
    for part in data.chunks(piece) {
        buffer.push(part);
        loop {
            match buffer.next_frame() {
                Ok(Some(found)) => one_frame(&found),
                Ok(None) => break,
                // The connection ends here.
                Err(_) => return,
            }
        }
        assert!(
            buffer.pending() <= FRAME_LIMIT,
            "more is kept than the limit allows"
        );
    }
}

fn one_frame(found: &[u8]) {
    if let Ok(request) = frame::decode_request(found) {
        let mut again =
            frame::encode_request(&request).unwrap_or_else(|error| panic!("{request:?}: {error}"));
        assert_eq!(again.pop(), Some(0), "a frame ends with its end byte");
        let reread = frame::decode_request(&again);
        assert_eq!(reread.as_ref().ok(), Some(&request), "{reread:?}");
        // What is no answer to a request must not pass for one, nor crash who waits for it.
        drop(frame::decode_reply(&request, found));
    }
    drop(frame::decode_reply(&Request::Status, found));
    drop(frame::decode_reply(&Request::Dump, found));
}

/// `key=value` lines.
pub(crate) fn lines(data: &[u8]) -> BTreeMap<String, Vec<u8>> {
    let pair = |line: &[u8]| {
        let at = line.iter().position(|byte| *byte == b'=')?;
        let (key, value) = line.split_at_checked(at)?;
        Some((
            String::from_utf8_lossy(key).into_owned(),
            value.get(1..)?.to_vec(),
        ))
    };
    data.split(|byte| *byte == b'\n').filter_map(pair).collect()
}
