//! The syntax of systemd's `EnvironmentFile=`, so that the same file serves the unit and the daemon.
//!
//! Source: systemd.exec(5), `EnvironmentFile=`. Comments start with `#` or `;`, single quotes are literal, double
//! quotes know `\"`, `\\`, `` \` `` and `\$`, a backslash before a line end joins lines, the last assignment wins.

use std::collections::BTreeMap;

/// A value and the line its assignment starts on.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct FileValue {
    pub(super) text: String,
    pub(super) line: usize,
}

/// A line that cannot be taken as it stands.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum FileFault {
    /// No `=`, or a name that no variable can have; systemd ignores such lines.
    NotAnAssignment { text: String, line: usize },
    /// The file ends inside a quote.
    UnclosedQuote { name: String, line: usize },
}

/// What a file says.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct EnvFile {
    pub(super) values: BTreeMap<String, FileValue>,
    pub(super) faults: Vec<FileFault>,
}

#[derive(Clone, Copy)]
enum State {
    LineStart,
    Comment,
    Name,
    ValueStart,
    Value,
    Escape,
    SingleQuote,
    DoubleQuote,
    DoubleQuoteEscape,
}

struct Parser {
    file: EnvFile,
    name: String,
    value: String,
    /// How much of `value` a trailing run of blanks may not take away.
    kept: usize,
    line: usize,
    started: usize,
}

/// Reads a whole file; never fails, because one bad line must not hide the others.
pub(super) fn parse(text: &str) -> EnvFile {
    let mut parser = Parser {
        file: EnvFile::default(),
        name: String::new(),
        value: String::new(),
        kept: 0,
        line: 1,
        started: 1,
    };
    let mut state = State::LineStart;
    for c in text.chars() {
        state = parser.step(state, c);
        if c == '\n' {
            parser.line = parser.line.saturating_add(1);
        }
    }
    parser.finish(state);
    parser.file
}

impl Parser {
    fn step(&mut self, state: State, c: char) -> State {
        let line_end = matches!(c, '\n' | '\r');
        match state {
            State::LineStart if c.is_ascii_whitespace() => State::LineStart,
            State::LineStart if matches!(c, '#' | ';') => State::Comment,
            State::LineStart => {
                self.started = self.line;
                self.name.push(c);
                State::Name
            }
            State::Comment if line_end => State::LineStart,
            State::Comment => State::Comment,
            State::Name if line_end => self.not_an_assignment(),
            State::Name if c == '=' => State::ValueStart,
            State::Name => {
                self.name.push(c);
                State::Name
            }
            State::ValueStart | State::Value if line_end => self.assign(),
            State::ValueStart if c == '\'' => State::SingleQuote,
            State::ValueStart if c == '"' => State::DoubleQuote,
            State::ValueStart | State::Value if c == '\\' => State::Escape,
            State::ValueStart if c.is_ascii_whitespace() => State::ValueStart,
            State::ValueStart | State::Value => self.push(c, !c.is_ascii_whitespace(), State::Value),
            State::Escape if line_end => State::Value,
            State::Escape => self.push(c, true, State::Value),
            State::SingleQuote if c == '\'' => State::ValueStart,
            State::SingleQuote => self.push(c, true, State::SingleQuote),
            State::DoubleQuote if c == '"' => State::ValueStart,
            State::DoubleQuote if c == '\\' => State::DoubleQuoteEscape,
            State::DoubleQuote => self.push(c, true, State::DoubleQuote),
            State::DoubleQuoteEscape if line_end => State::DoubleQuote,
            State::DoubleQuoteEscape => {
                if !matches!(c, '"' | '\\' | '`' | '$') {
                    self.value.push('\\');
                }
                self.push(c, true, State::DoubleQuote)
            }
        }
    }

    fn push(&mut self, c: char, keep: bool, next: State) -> State {
        self.value.push(c);
        if keep {
            self.kept = self.value.len();
        }
        next
    }

    fn assign(&mut self) -> State {
        self.value.truncate(self.kept);
        let text = std::mem::take(&mut self.value);
        self.kept = 0;
        if !is_variable_name(self.name.trim_end()) {
            self.name = format!("{}={text}", self.name);
            return self.not_an_assignment();
        }
        let name = std::mem::take(&mut self.name).trim_end().to_owned();
        self.file.values.insert(
            name,
            FileValue {
                text,
                line: self.started,
            },
        );
        State::LineStart
    }

    fn not_an_assignment(&mut self) -> State {
        let text = std::mem::take(&mut self.name);
        self.file.faults.push(FileFault::NotAnAssignment {
            text,
            line: self.started,
        });
        State::LineStart
    }

    fn finish(&mut self, state: State) {
        match state {
            State::LineStart | State::Comment => {}
            State::Name => {
                self.not_an_assignment();
            }
            State::ValueStart | State::Value | State::Escape => {
                self.assign();
            }
            State::SingleQuote | State::DoubleQuote | State::DoubleQuoteEscape => {
                let name = std::mem::take(&mut self.name).trim_end().to_owned();
                self.file.faults.push(FileFault::UnclosedQuote {
                    name,
                    line: self.started,
                });
            }
        }
    }
}

fn is_variable_name(name: &str) -> bool {
    !name.is_empty()
        && !name.starts_with(|c: char| c.is_ascii_digit())
        && name.chars().all(|c| c.is_ascii_alphanumeric() || c == '_')
}

#[cfg(test)]
mod tests {
    use super::*;

    fn value(text: &str, name: &str) -> Option<(String, usize)> {
        parse(text)
            .values
            .get(name)
            .map(|found| (found.text.clone(), found.line))
    }

    #[test]
    fn reads_what_systemd_reads() {
        for (text, expected) in [
            ("A=1", "1"),
            ("  A =1\n", "1"),
            ("A= 1 2  \n", "1 2"),
            ("A=\n", ""),
            ("A=\"\"\n", ""),
            ("A='x # y'\n", "x # y"),
            ("A=x # y\n", "x # y"),
            ("A=\"a\\\"b\\\\c\\$d\\ne\"\n", "a\"b\\c$d\\ne"),
            ("A='a\\b'\n", "a\\b"),
            ("A=a\\ b\\\n c\n", "a b c"),
            ("A=\"one\ntwo\"\n", "one\ntwo"),
            ("A=\"x  \"  \n", "x  "),
            ("A='{\"k\":\"v w\"}'\n", "{\"k\":\"v w\"}"),
            ("A='a'\"b\"c\n", "abc"),
            ("A=1\r\nB=2\r\n", "1"),
            ("A=1\nA=2\n", "2"),
            ("A=b=c\n", "b=c"),
            ("A=\u{e9}\u{1f600}\n", "\u{e9}\u{1f600}"),
        ] {
            assert_eq!(
                value(text, "A").map(|(text, _)| text).as_deref(),
                Some(expected),
                "{text:?}"
            );
            assert_eq!(parse(text).faults, [], "{text:?}");
        }
    }

    #[test]
    fn counts_lines_through_comments_and_continuations() {
        let text = "# one \\\n; two\n\nA=x\\\n  y\nB=\"p\nq\"\nC=3";
        assert_eq!(value(text, "A"), Some(("x  y".into(), 4)));
        assert_eq!(value(text, "B"), Some(("p\nq".into(), 6)));
        assert_eq!(value(text, "C"), Some(("3".into(), 8)));
    }

    #[test]
    fn names_lines_that_say_nothing() {
        let file = parse("hello\nexport A=1\n1B=2\nC=3\n");
        let lines: Vec<usize> = file
            .faults
            .iter()
            .map(|fault| match fault {
                FileFault::NotAnAssignment { line, .. } | FileFault::UnclosedQuote { line, .. } => *line,
            })
            .collect();
        assert_eq!(lines, [1, 2, 3]);
        assert_eq!(file.values.len(), 1);
    }

    #[test]
    fn an_unclosed_quote_is_a_fault_and_no_value() {
        let file = parse("A=1\nB='x\nC=3\n");
        assert_eq!(
            file.faults,
            [FileFault::UnclosedQuote {
                name: "B".into(),
                line: 2
            }]
        );
        assert!(!file.values.contains_key("C"));
    }

    proptest::proptest! {
        #[test]
        fn any_text_is_read_without_panic(text in "(?s)[A-Z=#;'\"\\\\ \n\r$x]{0,60}") {
            let file = parse(&text);
            proptest::prop_assert!(file.values.values().all(|value| value.line >= 1));
        }

        #[test]
        fn single_quoting_round_trips(text in "[^'\u{0}]{0,40}") {
            let found = value(&format!("A='{text}'\n"), "A").map(|(text, _)| text);
            proptest::prop_assert_eq!(found, Some(text));
        }
    }
}
