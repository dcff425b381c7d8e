//! What can be wrong with a setting, and how it is said.

use std::fmt;

/// Where a value came from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Origin {
    /// Nobody set it.
    Default,
    /// A variable of the process environment.
    Environment,
    /// The configuration file.
    File {
        /// Its path.
        path: String,
        /// Line, counted from 1.
        line: usize,
    },
}

impl fmt::Display for Origin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Default => f.write_str("default"),
            Self::Environment => f.write_str("environment"),
            Self::File { path, line } => write!(f, "{path}:{line}"),
        }
    }
}

/// Something about one variable that is not as it should be.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Problem {
    /// The variable.
    pub variable: String,
    /// Its value as written; empty for secrets.
    pub value: String,
    /// Where it was written.
    pub origin: Origin,
    /// What is the matter with it.
    pub kind: ProblemKind,
}

/// The kinds of [`Problem`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ProblemKind {
    /// Outside what the variable allows, and acting on a guess would be dangerous.
    Refused {
        /// What is allowed.
        allowed: String,
    },
    /// Outside what the variable allows; upstream falls back here, and so do we.
    FellBack {
        /// What is allowed.
        allowed: String,
        /// The value used instead.
        used: String,
    },
    /// One entry of a list was left out.
    Dropped {
        /// The entry.
        entry: String,
        /// What is allowed.
        allowed: String,
    },
    /// Asks for something this version cannot do, and starting without it would be dangerous.
    NotSupported {
        /// The feature.
        feature: &'static str,
    },
    /// Allowed, but without effect or with one worth knowing.
    Remark(String),
    /// No variable of this name exists.
    Unknown {
        /// A variable that does exist and looks alike.
        suggestion: Option<&'static str>,
    },
    /// A line of the file that is no assignment.
    NotAnAssignment,
    /// A quote that is never closed swallows the rest of the file.
    UnclosedQuote,
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self {
            variable,
            value,
            origin,
            kind,
        } = self;
        match kind {
            ProblemKind::NotAnAssignment => {
                return write!(f, "{origin}: {value:?} is not NAME=value; the line is ignored");
            }
            ProblemKind::UnclosedQuote => {
                return write!(
                    f,
                    "{origin}: the quote opened in the value of {variable} is never closed, so it swallows the rest \
                     of the file; close it or escape it with a backslash"
                );
            }
            _ => write!(f, "{variable}={value:?} ({origin}): ")?,
        }
        match kind {
            ProblemKind::Refused { allowed } => write!(f, "not usable; allowed: {allowed}"),
            ProblemKind::FellBack { allowed, used } => {
                write!(f, "not usable, {used} is used instead; allowed: {allowed}")
            }
            ProblemKind::Dropped { entry, allowed } => {
                write!(f, "entry {entry:?} is left out; allowed: {allowed}")
            }
            ProblemKind::NotSupported { feature } => write!(
                f,
                "{feature} is not supported by this version yet; unset {variable} or keep the Go daemon on this node"
            ),
            ProblemKind::Remark(remark) => f.write_str(remark),
            ProblemKind::Unknown {
                suggestion: Some(name),
            } => {
                write!(f, "no such setting; did you mean {name}?")
            }
            ProblemKind::Unknown { suggestion: None } => f.write_str("no such setting; it has no effect"),
            ProblemKind::NotAnAssignment | ProblemKind::UnclosedQuote => Ok(()),
        }
    }
}

/// Everything that prevents a start, at once.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ConfigErrors {
    /// What has to change; never empty.
    pub errors: Vec<Problem>,
    /// What else was noticed.
    pub warnings: Vec<Problem>,
}

impl fmt::Display for ConfigErrors {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let count = self.errors.len();
        write!(
            f,
            "{count} setting{} cannot be used:",
            if count == 1 { "" } else { "s" }
        )?;
        for error in &self.errors {
            write!(f, "\n  {error}")?;
        }
        for warning in &self.warnings {
            write!(f, "\n  warning: {warning}")?;
        }
        Ok(())
    }
}

impl std::error::Error for ConfigErrors {}
