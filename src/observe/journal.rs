//! journald's native protocol (<https://systemd.io/JOURNAL_NATIVE_PROTOCOL/>).
//!
//! Our own few lines because sending must never wait: a journald that hangs would otherwise stop the daemon, and with
//! it every pod start. What does not fit into the socket is counted and reported with the next line that does.

use std::io;
use std::os::unix::net::UnixDatagram;
use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};

use tracing::Level;

use super::record::Record;

/// journald's socket.
pub(super) const SOCKET: &str = "/run/systemd/journal/socket";

/// Prefix of our own fields.
const PREFIX: &str = "AWS_CNI_";

/// Longer values are cut: a datagram must fit the socket buffer (212992 bytes by default).
const MOST_VALUE_BYTES: usize = 16 * 1024;

/// journald refuses longer names.
const MOST_NAME_BYTES: usize = 64;

/// A connection to journald.
#[derive(Debug)]
pub(super) struct Journal {
    socket: UnixDatagram,
    identifier: String,
    dropped: AtomicU64,
}

impl Journal {
    pub(super) fn connect(path: &Path, identifier: &str) -> io::Result<Self> {
        let socket = UnixDatagram::unbound()?;
        socket.connect(path)?;
        socket.set_nonblocking(true)?;
        Ok(Self {
            socket,
            identifier: identifier.to_owned(),
            dropped: AtomicU64::new(0),
        })
    }

    pub(super) fn write(&self, record: &Record) {
        let dropped = self.dropped.swap(0, Ordering::Relaxed);
        if self.socket.send(&self.datagram(record, dropped)).is_err() {
            self.dropped
                .fetch_add(dropped.saturating_add(1), Ordering::Relaxed);
        }
    }

    fn datagram(&self, record: &Record, dropped: u64) -> Vec<u8> {
        let mut datagram = Vec::with_capacity(512);
        put(&mut datagram, "MESSAGE", &record.text());
        put(&mut datagram, "PRIORITY", priority(record.level));
        put(&mut datagram, "SYSLOG_IDENTIFIER", &self.identifier);
        for (name, value) in &record.fields.0 {
            put(&mut datagram, &field_name(name), value);
        }
        if dropped > 0 {
            put(&mut datagram, "AWS_CNI_DROPPED_LINES", &dropped.to_string());
        }
        datagram
    }
}

/// syslog(3) severities.
fn priority(level: Level) -> &'static str {
    match level {
        Level::ERROR => "3",
        Level::WARN => "4",
        Level::INFO => "6",
        _ => "7",
    }
}

/// journald's names are upper-case letters, digits and underscores.
fn field_name(name: &str) -> String {
    let plain = name.bytes().map(|byte| match byte.to_ascii_uppercase() {
        byte if byte.is_ascii_alphanumeric() => char::from(byte),
        _ => '_',
    });
    PREFIX.chars().chain(plain).take(MOST_NAME_BYTES).collect()
}

/// The binary form: name, line feed, length, value, line feed. No value can break out of it.
fn put(datagram: &mut Vec<u8>, name: &str, value: &str) {
    let mut end = value.len().min(MOST_VALUE_BYTES);
    while !value.is_char_boundary(end) {
        end = end.saturating_sub(1);
    }
    let value = value.get(..end).unwrap_or_default();
    datagram.extend_from_slice(name.as_bytes());
    datagram.push(b'\n');
    datagram.extend_from_slice(&u64::try_from(value.len()).unwrap_or_default().to_le_bytes());
    datagram.extend_from_slice(value.as_bytes());
    datagram.push(b'\n');
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::observe::record::Fields;

    /// Reads a datagram the way journald does.
    fn parse(mut bytes: &[u8]) -> Vec<(String, String)> {
        let mut fields = Vec::new();
        while !bytes.is_empty() {
            let end = bytes.iter().position(|byte| *byte == b'\n').unwrap();
            let name = String::from_utf8(bytes[..end].to_vec()).unwrap();
            let length =
                usize::try_from(u64::from_le_bytes(bytes[end + 1..end + 9].try_into().unwrap())).unwrap();
            let value = String::from_utf8(bytes[end + 9..end + 9 + length].to_vec()).unwrap();
            assert_eq!(bytes[end + 9 + length], b'\n');
            bytes = &bytes[end + 10 + length..];
            fields.push((name, value));
        }
        fields
    }

    fn record(message: &str, value: &str) -> Record {
        let fields = Fields(vec![
            ("pod", value.to_owned()),
            ("aws.request-id", "r".to_owned()),
        ]);
        Record {
            level: Level::WARN,
            message: message.to_owned(),
            fields,
        }
    }

    fn receive(socket: &UnixDatagram) -> Vec<(String, String)> {
        let mut buffer = vec![0; 256 * 1024];
        let length = socket.recv(&mut buffer).unwrap();
        parse(&buffer[..length])
    }

    #[test]
    fn fields_arrive_whole_and_unforged() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("socket");
        let server = UnixDatagram::bind(&path).unwrap();
        let journal = Journal::connect(&path, "ipamd").unwrap();
        journal.write(&record("moved", "a\nPRIORITY=0\n"));
        let own = |name: &str, value: &str| (name.to_owned(), value.to_owned());
        assert_eq!(
            receive(&server),
            [
                own("MESSAGE", "moved pod=\"a\\nPRIORITY=0\\n\" aws.request-id=r"),
                own("PRIORITY", "4"),
                own("SYSLOG_IDENTIFIER", "ipamd"),
                own("AWS_CNI_POD", "a\nPRIORITY=0\n"),
                own("AWS_CNI_AWS_REQUEST_ID", "r"),
            ]
        );
    }

    #[test]
    fn long_values_are_cut_at_a_character() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("socket");
        let server = UnixDatagram::bind(&path).unwrap();
        let journal = Journal::connect(&path, "ipamd").unwrap();
        journal.write(&record("x", &"é".repeat(MOST_VALUE_BYTES)));
        assert_eq!(receive(&server)[3].1.len(), MOST_VALUE_BYTES);
    }

    #[test]
    fn a_journal_that_does_not_read_holds_nobody_up_and_losses_are_counted() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("socket");
        let server = UnixDatagram::bind(&path).unwrap();
        let journal = Journal::connect(&path, "ipamd").unwrap();
        let mut sent = 0_u64;
        while journal.dropped.load(Ordering::Relaxed) == 0 {
            journal.write(&record("x", "y"));
            sent += 1;
            assert!(sent < 100_000, "the socket never filled");
        }
        journal.write(&record("x", "y"));
        while journal.dropped.load(Ordering::Relaxed) > 0 {
            receive(&server);
            journal.write(&record("last", "y"));
        }
        server.set_nonblocking(true).unwrap();
        let mut buffer = vec![0; 4096];
        let mut last = Vec::new();
        while let Ok(length) = server.recv(&mut buffer) {
            last = parse(&buffer[..length]);
        }
        assert_eq!(
            last.last().unwrap(),
            &("AWS_CNI_DROPPED_LINES".to_owned(), "2".to_owned())
        );
    }

    #[test]
    fn no_journal_is_an_error_at_once() {
        assert!(Journal::connect(Path::new("/nonexistent/socket"), "x").is_err());
    }
}
