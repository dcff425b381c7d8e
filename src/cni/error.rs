//! What a plugin answers when it can't.

use serde::Serialize;
use serde_json::ser::{PrettyFormatter, Serializer};

/// Error codes of the specification, and 999 for upstream's own.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Code {
    /// The version asked for is not spoken.
    IncompatibleVersion,
    /// The runtime asks about a sandbox that is not known.
    UnknownContainer,
    /// A variable is missing or wrong.
    InvalidEnvironment,
    /// Reading or writing failed.
    Io,
    /// The input is not the JSON it should be.
    Decoding,
    /// The configuration is wrong.
    InvalidConfig,
    /// The sandbox's namespace is the plugin's own.
    InvalidNetns,
    /// The same call can succeed a little later.
    TryAgainLater,
    /// STATUS: no new pod can be served.
    NotAvailable,
    /// STATUS: no new pod can be served, and existing ones are affected.
    LimitedConnectivity,
    /// Everything else.
    Internal,
}

impl Code {
    /// The number on the wire.
    pub fn number(self) -> u32 {
        match self {
            Self::IncompatibleVersion => 1,
            Self::UnknownContainer => 3,
            Self::InvalidEnvironment => 4,
            Self::Io => 5,
            Self::Decoding => 6,
            Self::InvalidConfig => 7,
            Self::InvalidNetns => 8,
            Self::TryAgainLater => 11,
            Self::NotAvailable => 50,
            Self::LimitedConnectivity => 51,
            Self::Internal => 999,
        }
    }
}

/// A failure as the runtime reads it.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{message}")]
pub struct CniError {
    /// Its kind.
    pub code: Code,
    /// One sentence or more.
    pub message: String,
    /// More about it; empty when there is no more.
    pub details: String,
}

#[derive(Serialize)]
struct Wire<'a> {
    code: u32,
    msg: &'a str,
    #[serde(skip_serializing_if = "str::is_empty")]
    details: &'a str,
}

impl CniError {
    /// A failure without details.
    pub fn new(code: Code, message: impl Into<String>) -> Self {
        Self {
            code,
            message: message.into(),
            details: String::new(),
        }
    }

    /// The same failure with details.
    #[must_use]
    pub fn with_details(mut self, details: impl Into<String>) -> Self {
        self.details = details.into();
        self
    }

    /// The JSON the runtime expects on stdout, with upstream's keys.
    pub fn to_json(&self) -> String {
        pretty(&Wire {
            code: self.code.number(),
            msg: &self.message,
            details: &self.details,
        })
    }
}

/// JSON with upstream's four spaces and no final newline.
pub fn pretty(value: &impl Serialize) -> String {
    let mut bytes = Vec::new();
    let mut serializer = Serializer::with_formatter(&mut bytes, PrettyFormatter::with_indent(b"    "));
    match value.serialize(&mut serializer) {
        Ok(()) => String::from_utf8(bytes).unwrap_or_default(),
        Err(_) => String::new(),
    }
}
