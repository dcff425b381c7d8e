//! The variables a runtime sets.

use super::error::{CniError, Code};
use crate::net::veth;

/// What the runtime wants done.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verb {
    /// Give the sandbox an interface.
    Add,
    /// Take it away.
    Del,
    /// Is it as it should be?
    Check,
    /// Can ADDs be served?
    Status,
    /// Release what is not listed.
    Gc,
}

/// The variables, as given.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Environment {
    /// `CNI_COMMAND`
    pub command: String,
    /// `CNI_CONTAINERID`
    pub container_id: String,
    /// `CNI_NETNS`
    pub netns: String,
    /// `CNI_IFNAME`
    pub ifname: String,
    /// `CNI_ARGS`
    pub args: String,
    /// `CNI_PATH`
    pub path: String,
    /// `CNI_NETNS_OVERRIDE`
    pub netns_override: String,
}

impl Environment {
    /// Reads the variables through `get`, which answers an empty text for an absent one.
    pub fn read(get: impl Fn(&str) -> String) -> Self {
        Self {
            command: get("CNI_COMMAND"),
            container_id: get("CNI_CONTAINERID"),
            netns: get("CNI_NETNS"),
            ifname: get("CNI_IFNAME"),
            args: get("CNI_ARGS"),
            path: get("CNI_PATH"),
            netns_override: get("CNI_NETNS_OVERRIDE"),
        }
    }

    /// The verb; `None` is VERSION's and an unknown one's.
    pub fn verb(&self) -> Option<Verb> {
        match self.command.as_str() {
            "ADD" => Some(Verb::Add),
            "DEL" => Some(Verb::Del),
            "CHECK" => Some(Verb::Check),
            "STATUS" => Some(Verb::Status),
            "GC" => Some(Verb::Gc),
            _ => None,
        }
    }

    /// Whether the sandbox may be the plugin's own namespace.
    pub fn allows_own_netns(&self) -> bool {
        self.netns_override == "1" || self.netns_override.eq_ignore_ascii_case("true")
    }

    /// Whether every variable that the verb needs is there; all missing ones are named at once.
    ///
    /// # Errors
    /// Code 4.
    pub fn check_required(&self) -> Result<(), CniError> {
        let sandbox = matches!(self.verb(), Some(Verb::Add | Verb::Del | Verb::Check));
        let netns = matches!(self.verb(), Some(Verb::Add | Verb::Check));
        let required = [
            ("CNI_COMMAND", &self.command, true),
            ("CNI_CONTAINERID", &self.container_id, sandbox),
            ("CNI_NETNS", &self.netns, netns),
            ("CNI_IFNAME", &self.ifname, sandbox),
            ("CNI_PATH", &self.path, self.verb().is_some()),
        ];
        let missing: Vec<&str> = required
            .into_iter()
            .filter(|(_, value, required)| *required && value.is_empty())
            .map(|(name, ..)| name)
            .collect();
        if missing.is_empty() {
            return Ok(());
        }
        let missing = missing.join(",");
        Err(invalid(format!("required env variables [{missing}] missing")))
    }

    /// Whether container id and interface name are well formed, where the verb has them.
    ///
    /// # Errors
    /// Code 4.
    pub fn check_names(&self) -> Result<(), CniError> {
        if !matches!(self.verb(), Some(Verb::Add | Verb::Del | Verb::Check)) {
            return Ok(());
        }
        if !is_plain_name(&self.container_id) {
            return Err(invalid("invalid characters in containerID").with_details(&self.container_id));
        }
        check_ifname(&self.ifname)
    }
}

fn check_ifname(ifname: &str) -> Result<(), CniError> {
    if ifname.len() > veth::MAX_NAME {
        return Err(invalid("interface name is too long").with_details(format!(
            "interface name should be less than {} characters",
            veth::MAX_NAME + 1
        )));
    }
    if ifname == "." || ifname == ".." {
        return Err(invalid("interface name is . or .."));
    }
    if ifname.contains(|c: char| c == '/' || c == ':' || c.is_whitespace()) {
        return Err(invalid("interface name contains / or : or whitespace characters"));
    }
    Ok(())
}

/// The specification's form of container ids and network names: an alphanumeric, then also `_`, `.` and `-`.
pub(super) fn is_plain_name(text: &str) -> bool {
    text.starts_with(|c: char| c.is_ascii_alphanumeric())
        && text
            .chars()
            .all(|c| c.is_ascii_alphanumeric() || matches!(c, '_' | '.' | '-'))
}

fn invalid(message: impl Into<String>) -> CniError {
    CniError::new(Code::InvalidEnvironment, message)
}
