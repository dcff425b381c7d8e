//! One log event as values, and as a line of text that nobody can forge a second line into.

use std::fmt;
use std::time::{Duration, SystemTime};

use tracing::Level;
use tracing::field::{Field, Visit};

use crate::ipam::stamp::rfc3339;

/// Names and values in order of appearance; a name set again moves to its newest value.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Fields(pub(super) Vec<(&'static str, String)>);

impl Fields {
    pub(super) fn set(&mut self, name: &'static str, value: String) {
        match self.0.iter_mut().find(|(known, _)| *known == name) {
            Some((_, old)) => *old = value,
            None => self.0.push((name, value)),
        }
    }

    pub(super) fn take(&mut self, name: &str) -> Option<String> {
        let index = self.0.iter().position(|(known, _)| *known == name)?;
        Some(self.0.remove(index).1)
    }
}

impl Visit for Fields {
    fn record_debug(&mut self, field: &Field, value: &dyn fmt::Debug) {
        self.set(field.name(), format!("{value:?}"));
    }

    fn record_str(&mut self, field: &Field, value: &str) {
        self.set(field.name(), value.to_owned());
    }
}

/// An event with the fields of the spans around it.
#[derive(Debug, Clone)]
pub(super) struct Record {
    pub(super) level: Level,
    pub(super) message: String,
    pub(super) fields: Fields,
}

impl Record {
    /// The message and its fields, without line breaks or control characters.
    pub(super) fn text(&self) -> String {
        let mut text = escape(&self.message);
        for (name, value) in &self.fields.0 {
            text.push(' ');
            text.push_str(name);
            if is_plain(value) {
                text.push('=');
                text.push_str(value);
            } else {
                text.push_str("=\"");
                text.push_str(&escape(value).replace('"', "\\\""));
                text.push('"');
            }
        }
        text
    }

    /// A whole line with time and level.
    pub(super) fn line(&self, now: SystemTime, colours: bool) -> String {
        let (on, off) = match (colours, self.level) {
            (true, Level::ERROR) => ("\x1b[31m", "\x1b[0m"),
            (true, Level::WARN) => ("\x1b[33m", "\x1b[0m"),
            (true, Level::DEBUG | Level::TRACE) => ("\x1b[2m", "\x1b[0m"),
            _ => ("", ""),
        };
        format!("{} {on}{:<5}{off} {}\n", timestamp(now), self.level, self.text())
    }
}

fn is_plain(value: &str) -> bool {
    !value.is_empty()
        && value
            .chars()
            .all(|c| !c.is_whitespace() && !is_unsafe(c) && !matches!(c, '"' | '=' | '\\'))
}

/// Control characters end lines or drive terminals; the separators and direction marks do so in some viewers.
fn is_unsafe(c: char) -> bool {
    c.is_control() || matches!(c, '\u{2028}' | '\u{2029}' | '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}')
}

fn escape(text: &str) -> String {
    let mut escaped = String::with_capacity(text.len());
    for c in text.chars() {
        if is_unsafe(c) {
            escaped.extend(c.escape_default());
        } else {
            escaped.push(c);
        }
    }
    escaped
}

/// RFC 3339 in UTC with milliseconds.
pub(super) fn timestamp(now: SystemTime) -> String {
    let since_epoch = now
        .duration_since(SystemTime::UNIX_EPOCH)
        .unwrap_or(Duration::ZERO);
    let second = rfc3339(since_epoch.as_secs());
    let millis = since_epoch.subsec_millis();
    format!("{}.{millis:03}Z", second.trim_end_matches('Z'))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn record(message: &str, fields: &[(&'static str, &str)]) -> Record {
        let fields = fields
            .iter()
            .map(|(name, value)| (*name, (*value).to_owned()))
            .collect();
        Record {
            level: Level::INFO,
            message: message.to_owned(),
            fields: Fields(fields),
        }
    }

    #[test]
    fn fields_follow_the_message() {
        let text = record(
            "assigned",
            &[("pod", "a/b"), ("reason", "two words"), ("empty", "")],
        )
        .text();
        assert_eq!(text, "assigned pod=a/b reason=\"two words\" empty=\"\"");
    }

    #[test]
    fn nobody_forges_a_line_or_a_field() {
        let text = record(
            "x\n2026 ERROR forged",
            &[("pod", "a b=c \"d\"\r\n\u{1b}[2J\u{202e}")],
        )
        .text();
        assert!(!text.contains(['\n', '\r', '\u{1b}', '\u{202e}']), "{text:?}");
        assert_eq!(
            text,
            "x\\n2026 ERROR forged pod=\"a b=c \\\"d\\\"\\r\\n\\u{1b}[2J\\u{202e}\""
        );
    }

    #[test]
    fn times_are_rfc_3339() {
        for (seconds, expected) in [
            (0, "1970-01-01T00:00:00.007Z"),
            (951_782_399, "2000-02-28T23:59:59.007Z"),
            (951_782_400, "2000-02-29T00:00:00.007Z"),
            (1_709_251_199, "2024-02-29T23:59:59.007Z"),
            (4_102_444_800, "2100-01-01T00:00:00.007Z"),
        ] {
            let time = SystemTime::UNIX_EPOCH + Duration::from_secs(seconds) + Duration::from_millis(7);
            assert_eq!(timestamp(time), expected);
        }
    }

    #[test]
    fn colours_only_when_asked_for() {
        let mut record = record("m", &[]);
        record.level = Level::ERROR;
        assert_eq!(
            record.line(SystemTime::UNIX_EPOCH, false),
            "1970-01-01T00:00:00.000Z ERROR m\n"
        );
        assert!(
            record
                .line(SystemTime::UNIX_EPOCH, true)
                .contains("\u{1b}[31mERROR\u{1b}[0m")
        );
    }

    proptest::proptest! {
        #[test]
        fn every_record_is_one_line(message in ".{0,40}", value in "(?s).{0,40}") {
            let line = record(&message, &[("f", &value)]).line(SystemTime::UNIX_EPOCH, false);
            proptest::prop_assert_eq!(line.chars().filter(|c| is_unsafe(*c)).count(), 1);
            proptest::prop_assert!(line.ends_with('\n'));
        }
    }
}
