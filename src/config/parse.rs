//! Value syntaxes: Go's, because the variables were first read by a Go program.

use std::collections::BTreeMap;

use crate::ipam::cidr::Ipv4Cidr;

/// Go's `strconv.ParseBool`.
pub(super) fn boolean(text: &str) -> Option<bool> {
    match text {
        "1" | "t" | "T" | "TRUE" | "true" | "True" => Some(true),
        "0" | "f" | "F" | "FALSE" | "false" | "False" => Some(false),
        _ => None,
    }
}

/// Go's `strconv.Atoi`: decimal, an optional sign, no blanks.
pub(super) fn integer(text: &str) -> Option<i64> {
    text.parse().ok()
}

/// A decimal integer of at least `least` that fits.
pub(super) fn count(text: &str, least: u32) -> Option<u32> {
    integer(text)
        .and_then(|value| u32::try_from(value).ok())
        .filter(|value| *value >= least)
}

/// Go's `strconv.ParseInt(text, 0, 64)`: the base is in the prefix, underscores may separate digits.
pub(super) fn base_zero(text: &str) -> Option<i64> {
    let (negative, digits) = match text.strip_prefix('-') {
        Some(rest) => (true, rest),
        None => (false, text.strip_prefix('+').unwrap_or(text)),
    };
    let lower = digits.to_ascii_lowercase();
    let (radix, body) = if let Some(body) = lower.strip_prefix("0x") {
        (16, body)
    } else if let Some(body) = lower.strip_prefix("0b") {
        (2, body)
    } else if let Some(body) = lower.strip_prefix("0o") {
        (8, body)
    } else if lower.len() > 1 && lower.starts_with('0') {
        (8, lower.strip_prefix('0').unwrap_or(&lower))
    } else {
        (10, lower.as_str())
    };
    // An underscore may follow the base prefix, so only a plain decimal may not start with one.
    let body = if radix == 10 {
        body
    } else {
        body.strip_prefix('_').unwrap_or(body)
    };
    if body.starts_with(['_', '+', '-']) || body.ends_with('_') || body.contains("__") {
        return None;
    }
    let magnitude = i64::from_str_radix(&body.replace('_', ""), radix).ok()?;
    Some(if negative {
        magnitude.saturating_neg()
    } else {
        magnitude
    })
}

/// A comma-separated list of IPv4 networks: what is usable, and the entries that are not.
pub(super) fn networks(text: &str) -> (Vec<Ipv4Cidr>, Vec<String>) {
    let mut good = Vec::new();
    let mut bad = Vec::new();
    for entry in text.split(',').map(str::trim).filter(|entry| !entry.is_empty()) {
        match entry.parse() {
            Ok(network) if !good.contains(&network) => good.push(network),
            Ok(_) => {}
            Err(_) => bad.push(entry.to_owned()),
        }
    }
    (good, bad)
}

/// EC2 refuses more tags than this on one resource
/// (<https://docs.aws.amazon.com/AWSEC2/latest/UserGuide/Using_Tags.html#tag-restrictions>).
const TAG_KEY_CHARS: usize = 128;
const TAG_VALUE_CHARS: usize = 256;
/// EC2 takes 50 tags for a resource, and five are written besides: instance, creation, token, cluster and owner.
pub(super) const MOST_TAGS: usize = 45;

pub(super) fn is_tag_value(text: &str) -> bool {
    text.chars().count() <= TAG_VALUE_CHARS
}

/// A JSON object of strings: the tags that may be set, and the keys of those that may not; `None` when it is none.
pub(super) fn tags(text: &str) -> Option<(BTreeMap<String, String>, Vec<String>)> {
    let mut good: BTreeMap<String, String> = serde_json::from_str(text).ok()?;
    let bad: Vec<String> = good
        .iter()
        .filter(|(key, value)| !may_be_tagged(key, value))
        .map(|(key, _)| key.clone())
        .collect();
    for key in &bad {
        good.remove(key);
    }
    Some((good, bad))
}

fn may_be_tagged(key: &str, value: &str) -> bool {
    !key.is_empty()
        && key.chars().count() <= TAG_KEY_CHARS
        && is_tag_value(value)
        && !key.contains("k8s.amazonaws.com")
        && !key.to_ascii_lowercase().starts_with("aws:")
}

/// `key=value,key=value`, blanks around the pairs allowed, each key once.
pub(super) fn pairs(text: &str, is_value: fn(&str) -> bool) -> Option<BTreeMap<String, String>> {
    let mut pairs = BTreeMap::new();
    for pair in text.split(',').map(str::trim).filter(|pair| !pair.is_empty()) {
        let (key, value) = pair.split_once('=')?;
        let fits = is_label_key(key) && is_value(value);
        if !fits || pairs.insert(key.to_owned(), value.to_owned()).is_some() {
            return None;
        }
    }
    Some(pairs)
}

/// A label's or annotation's key: a name, with a DNS subdomain and `/` before it or without
/// (<https://kubernetes.io/docs/concepts/overview/working-with-objects/labels/#syntax-and-character-set>).
pub(super) fn is_label_key(text: &str) -> bool {
    match text.split_once('/') {
        Some((prefix, name)) => is_dns_subdomain(prefix) && is_label_name(name),
        None => is_label_name(text),
    }
}

/// A label's value: like a name, or nothing.
pub(super) fn is_label_value(text: &str) -> bool {
    text.is_empty() || is_label_name(text)
}

fn is_label_name(text: &str) -> bool {
    let ends_well = |byte: Option<&u8>| byte.is_some_and(u8::is_ascii_alphanumeric);
    let bytes = text.as_bytes();
    bytes.len() <= 63
        && ends_well(bytes.first())
        && ends_well(bytes.last())
        && bytes
            .iter()
            .all(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_' | b'.'))
}

/// RFC 1123 in lower case, which Kubernetes wants of the names of objects as well.
pub(super) fn is_dns_subdomain(text: &str) -> bool {
    let is_part = |part: &str| {
        !part.is_empty()
            && !part.starts_with('-')
            && !part.ends_with('-')
            && part
                .bytes()
                .all(|byte| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'-')
    };
    text.len() <= 253 && text.split('.').all(is_part)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn booleans_are_gos() {
        for text in ["1", "t", "T", "TRUE", "true", "True"] {
            assert_eq!(boolean(text), Some(true), "{text}");
        }
        for text in ["0", "f", "F", "FALSE", "false", "False"] {
            assert_eq!(boolean(text), Some(false), "{text}");
        }
        for text in ["", "yes", "on", "tRUE", " true", "2", "enabled"] {
            assert_eq!(boolean(text), None, "{text}");
        }
    }

    /// Conformance: ipamd 11.1, "Values".
    #[test]
    fn integers_take_a_plus_and_nothing_fancy() {
        assert_eq!(count("+3", 0), Some(3));
        assert_eq!(count("007", 0), Some(7));
        for text in [
            " 3",
            "3 ",
            "2.5",
            "0x3",
            "",
            "+",
            "1_000",
            "-1",
            "4294967296",
            "99999999999999999999",
        ] {
            assert_eq!(count(text, 0), None, "{text:?}");
        }
        assert_eq!(count("0", 1), None);
    }

    /// Conformance: dataplane 8.1, "Marks take the full Go base-0 syntax".
    #[test]
    fn marks_take_gos_base_zero_syntax() {
        for (text, value) in [
            ("0x80", 0x80),
            ("0XfF00", 0xff00),
            ("0200", 0o200),
            ("0o200", 0o200),
            ("128", 128),
            ("0b11", 3),
            ("1_000", 1000),
            ("0x_ff", 255),
            ("0_7", 7),
            ("+5", 5),
            ("-1", -1),
            ("0", 0),
            ("0x1ffffffff", 0x1_ffff_ffff),
        ] {
            assert_eq!(base_zero(text), Some(value), "{text}");
        }
        for text in [
            "",
            "x",
            "_1",
            "1_",
            "1__0",
            "0x",
            "0x+5",
            "08",
            "0b2",
            " 1",
            "--1",
            "0xffffffffffffffffff",
        ] {
            assert_eq!(base_zero(text), None, "{text}");
        }
    }

    #[test]
    fn network_lists_are_trimmed_masked_and_freed_of_noise() {
        let (good, bad) = networks(" 10.1.2.3/8,, 192.168.0.0/16 ,10.0.0.0/8,fd00::/8,10.0.0.1");
        assert_eq!(
            good,
            ["10.0.0.0/8".parse().unwrap(), "192.168.0.0/16".parse().unwrap()]
        );
        assert_eq!(bad, ["fd00::/8", "10.0.0.1"]);
    }

    #[test]
    fn tags_ec2_would_refuse_are_left_out() {
        let long = "k".repeat(129);
        let text = format!(
            r#"{{"team":"net","node.k8s.amazonaws.com/x":"1","aws:x":"1","AWS:y":"1","":"1","{long}":"1","eks:eni:owner":"me"}}"#
        );
        let (good, bad) = tags(&text).unwrap();
        assert_eq!(good.keys().collect::<Vec<_>>(), ["eks:eni:owner", "team"]);
        assert_eq!(bad.len(), 5);
        for text in ["", "[]", "{\"a\":1}", "null", "{"] {
            assert_eq!(tags(text), None, "{text}");
        }
        assert_eq!(tags("{}"), Some((BTreeMap::new(), vec![])));
    }
}
