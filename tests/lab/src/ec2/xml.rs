//! Writing EC2's XML.

use std::fmt::Display;

/// XML under construction.
#[derive(Debug, Default)]
pub(crate) struct Xml(String);

impl Xml {
    pub(crate) fn new() -> Self {
        Self::default()
    }

    pub(crate) fn into_string(self) -> String {
        self.0
    }

    /// An element with text.
    pub(crate) fn leaf(&mut self, name: &str, value: impl Display) {
        let text = escape(&value.to_string());
        self.open(name);
        self.0.push_str(&text);
        self.close(name);
    }

    /// An element with text, if there is any.
    pub(crate) fn some(&mut self, name: &str, value: Option<impl Display>) {
        if let Some(value) = value {
            self.leaf(name, value);
        }
    }

    /// An element with elements inside.
    pub(crate) fn node(&mut self, name: &str, inside: impl FnOnce(&mut Self)) {
        self.open(name);
        inside(self);
        self.close(name);
    }

    fn open(&mut self, name: &str) {
        self.0.extend(["<", name, ">"]);
    }

    fn close(&mut self, name: &str) {
        self.0.extend(["</", name, ">"]);
    }

    /// A list of `item` elements.
    pub(crate) fn list<T>(
        &mut self,
        name: &str,
        items: impl IntoIterator<Item = T>,
        each: impl Fn(&mut Self, T),
    ) {
        self.node(name, |xml| {
            for item in items {
                xml.node("item", |xml| each(xml, item));
            }
        });
    }

    /// A list of `item` elements with nothing but text.
    pub(crate) fn texts(&mut self, name: &str, items: impl IntoIterator<Item = impl Display>) {
        self.node(name, |xml| {
            for item in items {
                xml.leaf("item", item);
            }
        });
    }
}

fn escape(text: &str) -> String {
    let mut escaped = String::with_capacity(text.len());
    for symbol in text.chars() {
        match symbol {
            '&' => escaped.push_str("&amp;"),
            '<' => escaped.push_str("&lt;"),
            '>' => escaped.push_str("&gt;"),
            '"' => escaped.push_str("&quot;"),
            other => escaped.push(other),
        }
    }
    escaped
}

/// A successful answer around its content.
pub(crate) fn success(action: &str, request_id: &str, content: &str) -> String {
    format!(
        "<?xml version=\"1.0\" encoding=\"UTF-8\"?>\n<{action}Response \
         xmlns=\"http://ec2.amazonaws.com/doc/2016-11-15/\"><requestId>{request_id}</requestId>{content}\
         </{action}Response>"
    )
}

/// An error answer.
pub(crate) fn failure(code: &str, message: &str, request_id: &str) -> String {
    format!(
        "<?xml version=\"1.0\" encoding=\"UTF-8\"?>\n<Response><Errors><Error><Code>{}</Code><Message>{}</Message>\
         </Error></Errors><RequestID>{request_id}</RequestID></Response>",
        escape(code),
        escape(message)
    )
}

/// Seconds since the epoch as EC2 writes dates.
pub(crate) fn date(epoch_seconds: u64) -> String {
    let (days, second) = (epoch_seconds / 86_400, epoch_seconds % 86_400);
    // Civil date from days since 1970-01-01, after Howard Hinnant, chrono-Compatible Low-Level Date Algorithms.
    let shifted = days + 719_468;
    let (era, day_of_era) = (shifted / 146_097, shifted % 146_097);
    let year_of_era = (day_of_era - day_of_era / 1_460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let month_from_march = (5 * day_of_year + 2) / 153;
    let day = day_of_year - (153 * month_from_march + 2) / 5 + 1;
    let month = if month_from_march < 10 {
        month_from_march + 3
    } else {
        month_from_march - 9
    };
    let year = year_of_era + era * 400 + u64::from(month <= 2);
    let (hour, minute, second) = (second / 3_600, second % 3_600 / 60, second % 60);
    format!("{year:04}-{month:02}-{day:02}T{hour:02}:{minute:02}:{second:02}.000Z")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn dates() {
        assert_eq!(date(0), "1970-01-01T00:00:00.000Z");
        assert_eq!(date(951_827_696), "2000-02-29T12:34:56.000Z");
        assert_eq!(date(1_798_761_599), "2026-12-31T23:59:59.000Z");
    }

    #[test]
    fn text_is_escaped() {
        let mut xml = Xml::new();
        xml.node("a", |xml| xml.leaf("b", "<&\">"));
        assert_eq!(xml.into_string(), "<a><b>&lt;&amp;&quot;&gt;</b></a>");
    }
}
