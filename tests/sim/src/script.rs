//! What a run is made of besides its seed: a node and a list of things that happen at given times.
//!
//! A script is a value with a text form, so that a failing run can be made smaller, printed, kept and read.

use std::collections::BTreeMap;
use std::fmt;
use std::str::FromStr;

pub use crate::action::Action;
pub use crate::words::{
    Asking, DiskTrouble, Hand, How, Left, Lie, Networking, Quirk, Role, Span, Trouble, Warm, Which,
};

pub(crate) type Words<'a> = BTreeMap<&'a str, &'a str>;

pub(crate) fn words_of(text: &str) -> Result<Words<'_>, String> {
    text.split_whitespace()
        .map(|word| {
            word.split_once('=')
                .ok_or_else(|| format!("{word:?} is not key=value"))
        })
        .collect()
}

pub(crate) fn take<T: FromStr<Err: fmt::Display>>(
    words: &mut Words<'_>,
    key: &str,
) -> Result<Option<T>, String> {
    words
        .remove(key)
        .map(|value| value.parse().map_err(|error| format!("{key}: {error}")))
        .transpose()
}

pub(crate) fn nothing_left(words: &Words<'_>) -> Result<(), String> {
    words
        .keys()
        .next()
        .map_or(Ok(()), |word| Err(format!("{word:?} is not known here")))
}

macro_rules! settings {
    ($($(#[$doc:meta])* $field:ident: $type:ty = $default:expr,)*) => {
        /// The node and its surroundings.
        #[derive(Debug, Clone, PartialEq, Eq)]
        pub struct Settings { $($(#[$doc])* pub $field: $type,)* }

        impl Default for Settings {
            fn default() -> Self {
                Self { $($field: $default,)* }
            }
        }

        impl fmt::Display for Settings {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("node")?;
                $(write!(f, concat!(" ", stringify!($field), "={}"), self.$field)?;)*
                Ok(())
            }
        }

        impl FromStr for Settings {
            type Err = String;

            fn from_str(text: &str) -> Result<Self, String> {
                let mut words = words_of(text)?;
                let mut settings = Self::default();
                $(if let Some(value) = take(&mut words, stringify!($field))? {
                    settings.$field = value;
                })*
                nothing_left(&words)?;
                Ok(settings)
            }
        }
    };
}

settings! {
    /// ENIs the instance type carries.
    enis: u32 = 3,
    /// ENIs its second network card carries, which is managed then; 0 for a type with one card.
    cards: u32 = 0,
    /// Addresses an ENI carries, its own included.
    addresses: u32 = 10,
    /// Whether its ENIs can carry prefixes.
    nitro: bool = true,
    /// Whether the instance type is in the compiled-in table.
    known: bool = true,
    /// Secondary addresses the primary ENI is launched with.
    launched: u32 = 0,
    /// Subnets in the zone.
    subnets: u32 = 1,
    /// Their prefix length.
    len: u8 = 22,
    /// The warm target.
    warm: Warm = Warm::Enis(1),
    /// `IP_COOLDOWN_PERIOD`.
    cooldown: Span = Span::secs(30),
    /// `MAX_ENI`; 0 for none.
    max_enis: u32 = 0,
    /// Kubelet's max-pods; 0 for unknown.
    max_pods: u32 = 0,
    /// Tags of the first subnet, where the primary ENI is.
    first: Role = Role::None,
    /// Tags of the other subnets.
    others: Role = Role::None,
    /// Where new ENIs go.
    networking: Networking = Networking::Own,
    /// What EC2 may be asked.
    ec2: Asking = Asking::All,
    /// Whether the primary ENI has a public address.
    public: bool = false,
    /// Whether pods get IPv6 addresses.
    six: bool = false,
    /// Whether the primary ENI is launched with a /80.
    delegated: bool = false,
    /// How long the script lasts.
    length: Span = Span(0),
}

/// A node and what happens to it.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Script {
    /// The node.
    pub settings: Settings,
    /// What happens, in the order of time.
    pub items: Vec<(Span, Action)>,
}

impl Script {
    /// When the last thing has happened and is over.
    pub fn end(&self) -> u64 {
        let last = self.items.iter().map(|(at, _)| at.0).max().unwrap_or(0);
        last.max(self.settings.length.0)
    }
}

impl fmt::Display for Script {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "{}", self.settings)?;
        for (at, action) in &self.items {
            writeln!(f, "{at} {action}")?;
        }
        Ok(())
    }
}

impl FromStr for Script {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let mut script = Self::default();
        for (number, line) in text.lines().enumerate() {
            let line = line.split('#').next().unwrap_or_default().trim();
            if line.is_empty() {
                continue;
            }
            let (first, rest) = line.split_once(' ').unwrap_or((line, ""));
            let told = |error: String| format!("line {}: {error}", number + 1);
            if first == "node" {
                script.settings = rest.parse().map_err(told)?;
            } else {
                let at = first.parse().map_err(told)?;
                script.items.push((at, rest.trim().parse().map_err(told)?));
            }
        }
        script.items.sort_by_key(|(at, _)| *at);
        Ok(script)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_script_reads_back_as_it_was_written() {
        let text =
            "node enis=4 warm=enis:2\n1h2m3s4ms pod n=7 life=2h patience=30s quirk=twice # a word\n\n0s gc\n";
        let script: Script = text.parse().unwrap();
        assert_eq!(script.items.len(), 2);
        assert_eq!(script.items[0], (Span(0), Action::Gc {}));
        assert_eq!(script.to_string().parse(), Ok(script));
    }

    #[test]
    fn what_is_not_known_is_refused_with_its_line() {
        for (text, line) in [
            ("0s fly", 1),
            ("\n0s del n=x", 2),
            ("node wings=2", 1),
            ("0s gc n=1", 1),
        ] {
            let error = text.parse::<Script>().unwrap_err();
            assert!(error.starts_with(&format!("line {line}: ")), "{error}");
        }
    }
}
