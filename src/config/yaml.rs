//! YAML as far as Kubernetes' files need it: maps, lists and scalars, read into a small tree with line numbers.
//!
//! Aliases and tags are refused: nobody needs them in these files, and an alias of aliases is how a few lines become
//! gigabytes. Depth and size have limits; a key that comes twice is an error, as nobody knows which one was meant.

use std::collections::BTreeSet;

use saphyr_parser::{Event, Parser, ScalarStyle};

/// Managed fields in what `kubectl get -o yaml` prints nest about ten deep.
const DEEPEST: usize = 64;
/// Nodes of one file; a list of a thousand ENIConfigs as `kubectl` prints them has fewer.
const MOST_NODES: usize = 100_000;

/// A value and the line it starts on, counted from 1.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Node {
    pub(super) line: usize,
    pub(super) value: Value,
}

/// What a [`Node`] is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Value {
    /// Text as written, and whether it stands without quotes, so that it may be a number, a boolean or nothing.
    Scalar { text: String, plain: bool },
    /// A list.
    List(Vec<Node>),
    /// A map in the order of the file, without duplicates.
    Map(Vec<(String, Node)>),
}

/// Why a text is no YAML, or none that is taken.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("line {line}: {why}")]
pub(super) struct Fault {
    pub(super) line: usize,
    pub(super) why: String,
}

impl Node {
    /// The value of a key, when this is a map that has it.
    pub(super) fn get(&self, key: &str) -> Option<&Self> {
        match &self.value {
            Value::Map(entries) => entries.iter().find(|(name, _)| name == key).map(|(_, node)| node),
            _ => None,
        }
    }

    /// Text: quoted, or a plain scalar that cannot be taken for something else.
    pub(super) fn text(&self) -> Option<&str> {
        match &self.value {
            Value::Scalar { text, plain } if !plain || !is_other_than_text(text) => Some(text),
            _ => None,
        }
    }

    pub(super) fn is_map(&self) -> bool {
        matches!(&self.value, Value::Map(_))
    }

    /// Nothing: `null`, `~` or no value at all.
    pub(super) fn is_null(&self) -> bool {
        matches!(&self.value, Value::Scalar { text, plain: true } if is_null(text))
    }

    /// A decimal whole number without quotes.
    pub(super) fn number(&self) -> Option<u32> {
        match &self.value {
            Value::Scalar { text, plain: true } if text.bytes().all(|byte| byte.is_ascii_digit()) => {
                text.parse().ok()
            }
            _ => None,
        }
    }

    /// What it is, for messages.
    pub(super) fn kind(&self) -> &'static str {
        match &self.value {
            Value::Map(_) => "a map",
            Value::List(_) => "a list",
            Value::Scalar { .. } if self.is_null() => "nothing",
            Value::Scalar { .. } if self.text().is_none() => "a number or boolean",
            Value::Scalar { .. } => "text",
        }
    }
}

fn is_null(text: &str) -> bool {
    matches!(text, "" | "~" | "null" | "Null" | "NULL")
}

/// Whether YAML's core schema, or that of YAML 1.1 which Kubernetes reads, takes plain text for something else.
fn is_other_than_text(text: &str) -> bool {
    let lower = text.to_ascii_lowercase();
    is_null(text)
        || matches!(
            lower.as_str(),
            "true" | "false" | "yes" | "no" | "on" | "off" | "y" | "n"
        )
        || text.parse::<f64>().is_ok()
        || lower
            .strip_prefix("0x")
            .is_some_and(|hex| u64::from_str_radix(hex, 16).is_ok())
        || lower
            .strip_prefix("0o")
            .is_some_and(|octal| u64::from_str_radix(octal, 8).is_ok())
}

/// All documents of a text; empty ones are left out.
pub(super) fn documents(text: &str) -> Result<Vec<Node>, Fault> {
    // JSON allows tabs between tokens where YAML does not; within a JSON string there can be none.
    let is_json = text.trim_start().starts_with(['{', '[']);
    let untabbed = is_json.then(|| text.replace('\t', " "));
    let mut parser = Parser::new_from_str(untabbed.as_deref().unwrap_or(text));
    let mut builder = Builder::default();
    while let Some(event) = parser.next_event() {
        let (event, span) = event.map_err(|error| Fault {
            line: error.marker().line(),
            why: error.info().to_owned(),
        })?;
        builder.take(event, span.start.line())?;
    }
    builder.documents.retain(|document| !document.is_null());
    Ok(builder.documents)
}

/// What is open around the next event, outermost first.
#[derive(Default)]
struct Builder {
    documents: Vec<Node>,
    open: Vec<Open>,
    nodes: usize,
}

struct Open {
    line: usize,
    content: Content,
}

enum Content {
    List(Vec<Node>),
    Map {
        entries: Vec<(String, Node)>,
        names: BTreeSet<String>,
        key: Option<String>,
    },
}

impl Builder {
    fn take(&mut self, event: Event<'_>, line: usize) -> Result<(), Fault> {
        let fault = |why: &str| {
            Err(Fault {
                line,
                why: why.to_owned(),
            })
        };
        match event {
            Event::Alias(_) => fault("aliases (*name) are not taken; write the value out"),
            Event::Scalar(_, _, _, Some(_))
            | Event::SequenceStart(_, Some(_))
            | Event::MappingStart(_, Some(_)) => fault("tags (!name) are not taken"),
            Event::Scalar(text, style, _, None) => {
                let plain = style == ScalarStyle::Plain;
                let text = text.into_owned();
                self.add(line, Value::Scalar { text, plain })
            }
            Event::SequenceStart(..) => self.enter(line, Content::List(Vec::new())),
            Event::MappingStart(..) => self.enter(
                line,
                Content::Map {
                    entries: Vec::new(),
                    names: BTreeSet::new(),
                    key: None,
                },
            ),
            Event::SequenceEnd | Event::MappingEnd => match self.open.pop() {
                Some(Open { line, content }) => self.add(line, content.closed()),
                None => Ok(()),
            },
            Event::Nothing
            | Event::StreamStart
            | Event::StreamEnd
            | Event::DocumentStart(_)
            | Event::DocumentEnd => Ok(()),
        }
    }

    fn enter(&mut self, line: usize, content: Content) -> Result<(), Fault> {
        let at_key = matches!(
            self.open.last().map(|open| &open.content),
            Some(Content::Map { key: None, .. })
        );
        let why = if at_key {
            "a key must be text".to_owned()
        } else if self.open.len() >= DEEPEST {
            format!("nested deeper than {DEEPEST}")
        } else {
            self.open.push(Open { line, content });
            return Ok(());
        };
        Err(Fault { line, why })
    }

    fn add(&mut self, line: usize, value: Value) -> Result<(), Fault> {
        self.nodes = self.nodes.saturating_add(1);
        if self.nodes > MOST_NODES {
            let why = format!("more than {MOST_NODES} values");
            return Err(Fault { line, why });
        }
        let Some(Open { content, .. }) = self.open.last_mut() else {
            self.documents.push(Node { line, value });
            return Ok(());
        };
        match (content, value) {
            (Content::List(items), value) => items.push(Node { line, value }),
            (Content::Map { entries, names, key }, value) => match (key.take(), value) {
                (Some(name), value) => entries.push((name, Node { line, value })),
                (None, Value::Scalar { text, .. }) => {
                    if !names.insert(text.clone()) {
                        let why = format!("{text:?} comes a second time");
                        return Err(Fault { line, why });
                    }
                    *key = Some(text);
                }
                (None, _) => {
                    let why = "a key must be text".to_owned();
                    return Err(Fault { line, why });
                }
            },
        }
        Ok(())
    }
}

impl Content {
    fn closed(self) -> Value {
        match self {
            Self::List(items) => Value::List(items),
            Self::Map { entries, .. } => Value::Map(entries),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn one(text: &str) -> Node {
        let mut documents = documents(text).unwrap();
        assert_eq!(documents.len(), 1, "{text:?}");
        documents.remove(0)
    }

    #[test]
    fn maps_lists_and_text_have_lines() {
        let node = one("# x\na: one\nb:\n  - two\n  - \"3\"\n");
        assert_eq!(node.get("a").unwrap().text(), Some("one"));
        let Value::List(items) = &node.get("b").unwrap().value else {
            panic!()
        };
        assert_eq!((items[1].line, items[1].text()), (5, Some("3")));
        assert_eq!(node.get("c"), None);
        assert_eq!(items[0].get("a"), None);
    }

    #[test]
    fn json_is_yaml_tabs_included() {
        let node = one("{\n\t\"a\":\t\"x\",\n\t\"b\": [\n\t\t1\n\t]\n}");
        assert_eq!(node.get("a").unwrap().text(), Some("x"));
        assert_eq!(node.get("b").unwrap().line, 3);
    }

    /// Kubernetes reads YAML 1.1, where more words are booleans than today.
    #[test]
    fn plain_words_that_are_something_else_are_no_text() {
        for plain in [
            "1", "-1", "1.5", "1e3", "0x10", "0o7", "true", "No", "on", "null", "~", ".5", "y",
        ] {
            assert_eq!(
                one(&format!("a: {plain}")).get("a").unwrap().text(),
                None,
                "{plain}"
            );
            let quoted = one(&format!("a: '{plain}'"));
            assert_eq!(quoted.get("a").unwrap().text(), Some(plain));
        }
        for plain in ["sg-1", "eu-west-1a", "subnet-0abc", "1a2b", "0xyz", "a b"] {
            assert_eq!(one(&format!("a: {plain}")).get("a").unwrap().text(), Some(plain));
        }
        assert_eq!(one("a: 58").get("a").unwrap().number(), Some(58));
        for other in ["'58'", "-1", "5.8", "4294967296", "[1]", "", "x"] {
            assert_eq!(
                one(&format!("a: {other}")).get("a").unwrap().number(),
                None,
                "{other}"
            );
        }
    }

    #[test]
    fn documents_are_separated_and_empty_ones_left_out() {
        assert_eq!(documents("").unwrap(), []);
        assert_eq!(documents("# nothing\n---\n---\n...\n").unwrap(), []);
        assert_eq!(documents("a: 1\n---\nb: 2\n---\n# end\n").unwrap().len(), 2);
    }

    #[test]
    fn what_is_not_taken_is_named_with_its_line() {
        let bomb = "a: &a [x,x]\nb: &b [*a,*a]\nc: [*b,*b]\n";
        let deep = format!("a:\n{}", "- ".repeat(200));
        let deep_flow = "[".repeat(100_000);
        let wide = format!("a: [{}]", "x,".repeat(MOST_NODES));
        for (text, line, why) in [
            (bomb, 2, "aliases"),
            ("a: 1\nb: !!str 2\n", 2, "tags"),
            ("a: 1\na: 2\n", 2, "\"a\" comes a second time"),
            ("{a: 1, \"a\": 2}", 1, "a second time"),
            ("[a]: 1\n", 1, "a key must be text"),
            ("? {a: 1}\n: 1\n", 1, "a key must be text"),
            (&deep, 2, "nested deeper"),
            (&deep_flow, 1, "recursion limit"),
            (&wide, 1, "more than 100000"),
            ("a: 1\n b: 2\n", 2, ""),
            ("a: \"x\n", 1, "quoted scalar"),
            ("a: \0", 1, ""),
            ("\t- a\n\t- b", 1, ""),
        ] {
            let fault = documents(text).unwrap_err();
            assert!(fault.why.contains(why), "{fault}");
            assert_eq!(fault.line, line, "{fault}");
        }
    }

    proptest::proptest! {
        #[test]
        fn any_text_is_read_without_panic(text in "(?s)[a-c:\\-#&*!|>'\"%@`{}\\[\\],?~ \n\t.0]{0,80}") {
            let again = documents(&text);
            proptest::prop_assert_eq!(documents(&text), again);
        }
    }
}
