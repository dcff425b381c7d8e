//! Takes variables one by one, remembers where each came from and everything that was wrong.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::path::PathBuf;
use std::time::Duration;

use super::env_file::{self, EnvFile, FileFault};
use super::known::{self, Role};
use super::parse;
use super::problem::{Origin, Problem, ProblemKind};
use super::types::Setting;

/// What a value turned out to be.
pub(super) enum Read<T> {
    /// Usable.
    Value(T),
    /// Usable without these entries.
    Without(T, Vec<String>),
    /// Not usable; upstream goes on with its default here.
    FallBack,
    /// Not usable, and a guess would be dangerous.
    Refuse,
    /// Not there.
    Unset,
}

/// `Some` is the value, `None` falls back.
pub(super) fn or_default<T>(value: Option<T>) -> Read<T> {
    value.map_or(Read::FallBack, Read::Value)
}

/// `Some` is the value, `None` is an error.
pub(super) fn or_refuse<T>(value: Option<T>) -> Read<T> {
    value.map_or(Read::Refuse, Read::Value)
}

/// A path from the root, as a variable gives it.
pub(super) fn absolute_path(text: &str) -> Read<PathBuf> {
    if text.is_empty() {
        return Read::Unset;
    }
    or_refuse(Some(PathBuf::from(text)).filter(|path| path.is_absolute() && !text.contains('\0')))
}

/// A value as written, and where.
#[derive(Debug, Clone)]
pub(super) struct Raw {
    pub(super) text: String,
    pub(super) origin: Origin,
}

pub(super) struct Reader<'a> {
    env: &'a BTreeMap<String, String>,
    file: EnvFile,
    path: String,
    pub(super) errors: Vec<Problem>,
    pub(super) warnings: Vec<Problem>,
    pub(super) settings: Vec<Setting>,
}

impl<'a> Reader<'a> {
    pub(super) fn new(env: &'a BTreeMap<String, String>, file: Option<&str>, path: String) -> Self {
        let mut reader = Self {
            env,
            file: file.map(env_file::parse).unwrap_or_default(),
            path,
            errors: Vec::new(),
            warnings: Vec::new(),
            settings: Vec::new(),
        };
        reader.note_file_faults();
        reader.note_unknown_names();
        reader
    }

    /// The value with precedence: the environment before the file.
    pub(super) fn raw(&self, name: &str) -> Option<Raw> {
        if let Some(text) = self.env.get(name) {
            return Some(Raw {
                text: text.clone(),
                origin: Origin::Environment,
            });
        }
        self.in_file(name)
    }

    /// A value of the file that the SDK cannot see and no environment variable overrides.
    pub(super) fn only_in_file(&self, name: &str) -> Option<String> {
        let value = if self.env.contains_key(name) {
            None
        } else {
            self.in_file(name)
        };
        value.map(|raw| raw.text).filter(|text| !text.is_empty())
    }

    fn in_file(&self, name: &str) -> Option<Raw> {
        let found = self.file.values.get(name)?;
        Some(Raw {
            text: found.text.clone(),
            origin: self.origin(found.line),
        })
    }

    fn origin(&self, line: usize) -> Origin {
        Origin::File {
            path: self.path.clone(),
            line,
        }
    }

    /// Reads one variable; `allowed` says what it takes.
    pub(super) fn read<T: Show>(
        &mut self,
        name: &'static str,
        default: T,
        allowed: &str,
        parse: impl FnOnce(&str) -> Read<T>,
    ) -> T {
        let Some(raw) = self.raw(name) else {
            return self.keep(name, default, Origin::Default);
        };
        let allowed = || allowed.to_owned();
        match parse(&raw.text) {
            Read::Value(value) => self.keep(name, value, raw.origin),
            Read::Unset => self.keep(name, default, Origin::Default),
            Read::Without(value, entries) => {
                for entry in entries {
                    self.warn(
                        name,
                        &raw,
                        ProblemKind::Dropped {
                            entry,
                            allowed: allowed(),
                        },
                    );
                }
                self.keep(name, value, raw.origin)
            }
            Read::FallBack => {
                let used = default.show();
                self.warn(
                    name,
                    &raw,
                    ProblemKind::FellBack {
                        allowed: allowed(),
                        used,
                    },
                );
                self.keep(name, default, Origin::Default)
            }
            Read::Refuse => {
                self.refuse(name, &raw, ProblemKind::Refused { allowed: allowed() });
                self.keep(name, default, Origin::Default)
            }
        }
    }

    fn keep<T: Show>(&mut self, name: &'static str, value: T, origin: Origin) -> T {
        self.settings.push(Setting {
            name,
            value: value.show(),
            origin,
        });
        value
    }

    /// A boolean that falls back on anything but Go's words.
    pub(super) fn boolean(&mut self, name: &'static str, default: bool) -> bool {
        self.read(name, default, "true or false", |text| {
            or_default(parse::boolean(text))
        })
    }

    /// A boolean for which upstream takes an empty value for none.
    pub(super) fn boolean_or_empty(&mut self, name: &'static str, default: bool) -> bool {
        self.read(name, default, "true or false", |text| match text {
            "" => Read::Unset,
            _ => or_default(parse::boolean(text)),
        })
    }

    /// A whole number that falls back.
    pub(super) fn target(&mut self, name: &'static str, default: u32) -> u32 {
        self.read(name, default, "a whole number of at least 0", |text| {
            or_default(parse::count(text, 0))
        })
    }

    /// Text that is used as it stands; empty is unset.
    pub(super) fn text(&mut self, name: &'static str) -> Option<String> {
        self.read(name, None, "any text", |text| match text {
            "" => Read::Unset,
            _ => Read::Value(Some(text.to_owned())),
        })
    }

    pub(super) fn warn(&mut self, name: &str, raw: &Raw, kind: ProblemKind) {
        self.warnings.push(problem(name, raw, kind));
    }

    pub(super) fn refuse(&mut self, name: &str, raw: &Raw, kind: ProblemKind) {
        self.errors.push(problem(name, raw, kind));
    }

    fn note_file_faults(&mut self) {
        for fault in std::mem::take(&mut self.file.faults) {
            match fault {
                FileFault::NotAnAssignment { text, line } => {
                    let raw = Raw {
                        text,
                        origin: self.origin(line),
                    };
                    self.warn("", &raw, ProblemKind::NotAnAssignment);
                }
                FileFault::UnclosedQuote { name, line } => {
                    let raw = Raw {
                        text: String::new(),
                        origin: self.origin(line),
                    };
                    self.refuse(&name, &raw, ProblemKind::UnclosedQuote);
                }
            }
        }
    }

    fn note_unknown_names(&mut self) {
        let in_file = self.file.values.keys().filter(|name| known::role(name).is_none());
        let in_env = self
            .env
            .keys()
            .filter(|name| known::role(name).is_none() && known::looks_like_ours(name));
        let unknown: BTreeSet<String> = in_file.chain(in_env).cloned().collect();
        for name in unknown {
            if let Some(raw) = self.raw(&name) {
                let suggestion = known::suggestion(&name);
                // The value may be anything, a secret too.
                let raw = Raw {
                    text: String::new(),
                    ..raw
                };
                self.warn(&name, &raw, ProblemKind::Unknown { suggestion });
            }
        }
    }

    /// Whether a variable that was read has a value of its own; 0 switches off what a default of 0 leaves off.
    pub(super) fn asks_for_something(&self, name: &str) -> bool {
        self.settings
            .iter()
            .any(|setting| setting.name == name && setting.origin != Origin::Default && setting.value != "0")
    }

    /// The value that a variable which was read took effect with.
    pub(super) fn effective(&self, name: &str) -> Option<&str> {
        let found = self.settings.iter().find(|setting| setting.name == name);
        found.map(|setting| setting.value.as_str())
    }

    /// Another value has taken effect than the one read.
    pub(super) fn replace(&mut self, name: &str, value: &str, origin: &Origin) {
        for setting in self.settings.iter_mut().filter(|setting| setting.name == name) {
            value.clone_into(&mut setting.value);
            setting.origin = origin.clone();
        }
    }

    /// SDK variables of the file which the SDK will therefore not see.
    pub(super) fn note_unreachable_sdk_names(&mut self, handed_over: &[&str]) {
        let names: Vec<String> = self
            .file
            .values
            .keys()
            .filter(|name| known::role(name) == Some(Role::Sdk) && !self.env.contains_key(*name))
            .filter(|name| !handed_over.contains(&name.as_str()))
            .cloned()
            .collect();
        for name in names {
            if let Some(raw) = self.in_file(&name) {
                let raw = Raw {
                    text: String::new(),
                    ..raw
                };
                let remark = "the AWS SDK reads this variable from the process environment only; move it to \
                              Environment= or EnvironmentFile= of the unit";
                self.warn(&name, &raw, ProblemKind::Remark(remark.to_owned()));
            }
        }
    }
}

fn problem(name: &str, raw: &Raw, kind: ProblemKind) -> Problem {
    Problem {
        variable: name.to_owned(),
        value: raw.text.clone(),
        origin: raw.origin.clone(),
        kind,
    }
}

/// How an effective value is shown to people.
pub(super) trait Show {
    /// The value in the syntax of its variable.
    fn show(&self) -> String;
}

macro_rules! show_as_displayed {
    ($($kind:ty),*) => {
        $(impl Show for $kind {
            fn show(&self) -> String {
                self.to_string()
            }
        })*
    };
}
show_as_displayed!(
    bool,
    u32,
    String,
    crate::observe::LogLevel,
    crate::observe::LogDestination
);

impl Show for PathBuf {
    fn show(&self) -> String {
        self.display().to_string()
    }
}

impl Show for Duration {
    fn show(&self) -> String {
        self.as_secs().to_string()
    }
}

impl<T: Show> Show for Option<T> {
    fn show(&self) -> String {
        self.as_ref().map_or_else(String::new, Show::show)
    }
}

impl<T: fmt::Display> Show for Vec<T> {
    fn show(&self) -> String {
        self.iter().map(ToString::to_string).collect::<Vec<_>>().join(",")
    }
}

impl Show for BTreeMap<String, String> {
    fn show(&self) -> String {
        serde_json::to_string(self).unwrap_or_default()
    }
}
