//! Faults by rule: which call, which time, what happens to it.

use super::latency::Latency;
use crate::calls::Service;
use crate::vpc::InstanceId;

/// Whom something concerns.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Default)]
pub enum Scope {
    /// Everybody, callers of unknown origin included.
    #[default]
    All,
    /// One node.
    Instance(InstanceId),
}

impl Scope {
    /// Whether a call from `instance` is meant.
    pub fn includes(&self, instance: Option<&InstanceId>) -> bool {
        match self {
            Self::All => true,
            Self::Instance(own) => instance == Some(own),
        }
    }
}

/// What happens to a call that a rule meets.
#[derive(Debug, Clone, PartialEq)]
pub enum Effect {
    /// An error answer; nothing is done.
    Error {
        /// EC2's code; unused for IMDS.
        code: String,
        /// EC2's message; for IMDS the body.
        message: String,
        /// HTTP status.
        status: u16,
    },
    /// The call is carried out, but answered with an error.
    ErrorAfter {
        /// EC2's code; unused for IMDS.
        code: String,
        /// EC2's message; for IMDS the body.
        message: String,
        /// HTTP status.
        status: u16,
    },
    /// The call is carried out, then the connection is closed without an answer.
    LoseAnswer,
    /// The connection is closed without an answer and nothing is done.
    LoseRequest,
    /// The call is carried out, then the connection is reset.
    ResetAfter,
    /// Waits before carrying it out.
    DelayBefore(Latency),
    /// Carries it out, then waits before answering.
    DelayAfter(Latency),
    /// The call is carried out, but answered with this.
    Body {
        /// HTTP status.
        status: u16,
        /// The body instead of the real one.
        body: String,
    },
}

/// A rule.
#[derive(Debug, Clone, PartialEq)]
pub struct Rule {
    /// Which server.
    pub service: Service,
    /// Whose calls.
    pub scope: Scope,
    /// The EC2 action, or the IMDS path below `/latest/`; `*` stands for any text.
    pub pattern: String,
    /// Matching calls to let pass first.
    pub skip: u64,
    /// Calls to meet after that; `None` means all.
    pub count: Option<u64>,
    /// What happens.
    pub effect: Effect,
}

impl Rule {
    fn new(service: Service, pattern: &str, effect: Effect) -> Self {
        Self {
            service,
            scope: Scope::All,
            pattern: pattern.to_owned(),
            skip: 0,
            count: None,
            effect,
        }
    }

    /// Something happens to every call of an EC2 action.
    pub fn ec2(action: &str, effect: Effect) -> Self {
        Self::new(Service::Ec2, action, effect)
    }

    /// Every call of an EC2 action is refused with a code, with EC2's HTTP status for it.
    pub fn ec2_error(action: &str, code: &str, message: &str) -> Self {
        let error = crate::vpc::ApiError::new(code.to_owned(), message);
        let effect = Effect::Error {
            code: code.to_owned(),
            message: error.message,
            status: error.status,
        };
        Self::ec2(action, effect)
    }

    /// Something happens to every request of an IMDS path such as `meta-data/network/interfaces/macs/*/ipv4-prefix`.
    pub fn imds(path: &str, effect: Effect) -> Self {
        Self::new(Service::Imds, path, effect)
    }

    /// Every request of an IMDS path is answered with an HTTP status.
    pub fn imds_status(path: &str, status: u16) -> Self {
        let effect = Effect::Error {
            code: String::new(),
            message: String::new(),
            status,
        };
        Self::imds(path, effect)
    }

    /// Only for one node.
    #[must_use]
    pub fn on(mut self, instance: &InstanceId) -> Self {
        self.scope = Scope::Instance(instance.clone());
        self
    }

    /// Lets the first matching calls pass.
    #[must_use]
    pub fn skip(mut self, calls: u64) -> Self {
        self.skip = calls;
        self
    }

    /// Meets only so many calls.
    #[must_use]
    pub fn times(mut self, calls: u64) -> Self {
        self.count = Some(calls);
        self
    }

    /// Meets one call.
    #[must_use]
    pub fn once(self) -> Self {
        self.times(1)
    }
}

/// A part of a pattern.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Symbol {
    AnyText,
    AnyOne,
    This(char),
}

fn symbols(pattern: &str) -> Vec<Symbol> {
    let mut rest = pattern.chars();
    let mut symbols = Vec::new();
    while let Some(symbol) = rest.next() {
        symbols.push(match symbol {
            '*' => Symbol::AnyText,
            '?' => Symbol::AnyOne,
            '\\' => Symbol::This(rest.next().unwrap_or(symbol)),
            _ => Symbol::This(symbol),
        });
    }
    symbols
}

/// Whether `text` matches `pattern`, in which `*` stands for any text, `?` for any character, and a backslash takes what
/// follows it at its word, as in the filters of EC2's describes.
pub fn glob(pattern: &str, text: &str) -> bool {
    let (pattern, text): (Vec<Symbol>, Vec<char>) = (symbols(pattern), text.chars().collect());
    let mut reached = vec![false; text.len() + 1];
    if let Some(start) = reached.first_mut() {
        *start = true;
    }
    for symbol in pattern {
        let mut next = vec![false; text.len() + 1];
        let mut any_before = false;
        for (position, slot) in next.iter_mut().enumerate() {
            any_before |= reached.get(position).copied().unwrap_or(false);
            let previous = position.checked_sub(1);
            let stepped = previous.is_some_and(|at| {
                reached.get(at).copied().unwrap_or(false)
                    && (symbol == Symbol::AnyOne || text.get(at).copied().map(Symbol::This) == Some(symbol))
            });
            *slot = if symbol == Symbol::AnyText {
                any_before
            } else {
                stepped
            };
        }
        reached = next;
    }
    reached.last().copied().unwrap_or(false)
}

#[cfg(test)]
mod tests {
    use super::glob;

    #[test]
    fn globbing() {
        for (pattern, text) in [
            ("Describe*", "DescribeSubnets"),
            ("*", ""),
            ("a*b*c", "axxbyybzc"),
            ("meta-data/*/ipv4-prefix", "meta-data/network/x/ipv4-prefix"),
            ("i-?", "i-1"),
            (r"\*a\?\\", r"*a?\"),
            (r"a\", r"a\"),
        ] {
            assert!(glob(pattern, text), "{pattern} {text}");
        }
        for (pattern, text) in [
            ("Describe", "DescribeSubnets"),
            ("", "x"),
            ("a*b", "axc"),
            ("i-?", "i-12"),
            (r"\*", "x"),
            (r"a\?", "ab"),
        ] {
            assert!(!glob(pattern, text), "{pattern} {text}");
        }
    }
}
