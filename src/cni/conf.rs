//! The plugin's configuration on stdin.

use std::time::Duration;

use serde::Deserialize;
use serde_json::Value;

use super::environment::is_plain_name;
use super::error::{CniError, Code};
use super::ports::{self, PortError, PortMapping};
use super::previous::{PreviousError, PreviousResult};
use super::version::Version;
use crate::ipam::ports::HostPort;
use crate::net::layout::MTU;
use crate::net::veth;
use crate::rpc::types::Attachment;

/// Why the configuration can't be used.
#[derive(Debug, thiserror::Error)]
pub enum ConfError {
    /// A key has the wrong JSON type.
    #[error("json: {0}")]
    Type(#[from] serde_json::Error),
    /// The host interface's name would not fit.
    #[error("conf.VethPrefix can be at most {} characters long", veth::MAX_PREFIX)]
    VethPrefix,
    /// The runtime hands back a result this configuration's version can't have.
    #[error("could not parse prevResult: {0}")]
    Previous(#[from] PreviousError),
}

/// The configuration, checked.
#[derive(Debug, Clone, PartialEq)]
pub struct NetConf {
    /// The conflist's name.
    pub name: String,
    /// MTU of both ends of the pod's link.
    pub mtu: u32,
    /// Prefix of the host end's name.
    pub veth_prefix: String,
    /// Where to log; `None` is journald.
    pub log_file: Option<String>,
    /// What to log.
    pub log_level: String,
    /// How long an ADD waits for an address, when the configuration says so.
    pub add_deadline: Option<Duration>,
    /// What an earlier plugin, or our own ADD, answered.
    pub previous: Option<PreviousResult>,
    /// Ports of the node that are to lead to the pod.
    pub host_ports: Vec<HostPort>,
    /// Why there are none, though the runtime asks for some. Only an ADD fails of it.
    pub port_error: Option<PortError>,
    /// GC: what the runtime still has.
    pub valid_attachments: Option<Vec<Attachment>>,
}

#[derive(Deserialize)]
struct Raw {
    #[serde(default)]
    name: String,
    #[serde(default)]
    mtu: Option<String>,
    #[serde(default, rename = "vethPrefix")]
    veth_prefix: Option<String>,
    #[serde(default, rename = "pluginLogFile")]
    log_file: Option<String>,
    #[serde(default, rename = "pluginLogLevel")]
    log_level: Option<String>,
    #[serde(default, rename = "addDeadlineSeconds")]
    add_deadline: Option<Seconds>,
    #[serde(default, rename = "runtimeConfig")]
    runtime: Option<RuntimeConfig>,
    #[serde(default, rename = "prevResult")]
    previous: Option<Value>,
    // The specification's key, and the one that early runtimes sent.
    #[serde(default, rename = "cni.dev/valid-attachments")]
    valid_attachments: Option<Vec<RawAttachment>>,
    #[serde(default, rename = "cni.dev/attachments")]
    attachments: Option<Vec<RawAttachment>>,
}

/// What the runtime adds for the capabilities that the conflist declares.
#[derive(Default, Deserialize)]
struct RuntimeConfig {
    #[serde(default, rename = "portMappings")]
    ports: Option<Vec<PortMapping>>,
}

/// Numbers in a conflist are written with and without quotes.
#[derive(Deserialize)]
#[serde(untagged)]
enum Seconds {
    Number(f64),
    Text(String),
}

#[derive(Deserialize)]
struct RawAttachment {
    #[serde(rename = "containerID")]
    container_id: String,
    ifname: String,
}

impl NetConf {
    /// Reads and checks the configuration of a request of this version.
    ///
    /// # Errors
    /// [`ConfError`].
    pub fn parse(stdin: &[u8], version: Version) -> Result<Self, ConfError> {
        let raw: Raw = serde_json::from_slice(stdin)?;
        let veth_prefix = raw.veth_prefix.unwrap_or_else(|| "eni".to_owned());
        if veth_prefix.len() > veth::MAX_PREFIX {
            return Err(ConfError::VethPrefix);
        }
        let previous = raw
            .previous
            .map(|previous| PreviousResult::parse(&previous, version))
            .transpose()?;
        let mappings = raw.runtime.and_then(|runtime| runtime.ports).unwrap_or_default();
        let (host_ports, port_error) = match ports::checked(&mappings) {
            Ok(ports) => (ports, None),
            Err(error) => (Vec::new(), Some(error)),
        };
        let attachment = |raw: RawAttachment| Attachment {
            container_id: raw.container_id.into(),
            ifname: raw.ifname.into(),
        };
        Ok(Self {
            name: raw.name,
            mtu: mtu(raw.mtu.as_deref()),
            veth_prefix,
            log_file: raw.log_file.filter(|file| !file.is_empty()),
            log_level: raw.log_level.unwrap_or_default(),
            add_deadline: raw.add_deadline.and_then(|seconds| match seconds {
                Seconds::Number(seconds) => duration(seconds),
                Seconds::Text(text) => seconds_text(&text),
            }),
            previous,
            host_ports,
            port_error,
            valid_attachments: raw
                .valid_attachments
                .or(raw.attachments)
                .map(|list| list.into_iter().map(attachment).collect()),
        })
    }
}

/// The checks that come before everything else: valid JSON and a usable network name.
///
/// # Errors
/// Code 6 or 7.
pub fn check_name(stdin: &[u8]) -> Result<(), CniError> {
    #[derive(Deserialize)]
    struct Named {
        #[serde(default)]
        name: String,
    }
    let broken = |cause: String| {
        CniError::new(
            Code::Decoding,
            format!("error unmarshall network config: {cause}"),
        )
    };
    // serde reads a struct from an array as well, field by field; a network configuration is an object.
    if stdin.trim_ascii_start().starts_with(b"[") {
        return Err(broken("json: cannot unmarshal array into an object".to_owned()));
    }
    let named: Named = serde_json::from_slice(stdin).map_err(|error| broken(error.to_string()))?;
    if named.name.is_empty() {
        return Err(CniError::new(Code::InvalidConfig, "missing network name"));
    }
    if !is_plain_name(&named.name) {
        let error = CniError::new(Code::InvalidConfig, "invalid characters found in network name");
        return Err(error.with_details(named.name));
    }
    Ok(())
}

/// What does not parse or lies outside what a VPC carries becomes the default, as upstream does.
fn mtu(text: Option<&str>) -> u32 {
    text.and_then(|text| text.parse().ok())
        .filter(|mtu| MTU.contains(mtu))
        .unwrap_or(*MTU.end())
}

/// A span written as a number of seconds, such as `30` or `0.5`; nothing else and nothing below zero.
pub fn seconds_text(text: &str) -> Option<Duration> {
    text.trim().parse().ok().and_then(duration)
}

fn duration(seconds: f64) -> Option<Duration> {
    Duration::try_from_secs_f64(seconds)
        .ok()
        .filter(|span| !span.is_zero())
}
