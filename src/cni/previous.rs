//! `prevResult`: what our ADD once answered, handed back by the runtime.
//!
//! Upstream keeps its own notes in it: every pod interface's `mac` is the route table of its ENI, and an interface that
//! never existed, `dummy<hash>`, carries the VLAN id as `mac` and the ENI's device index as `sandbox`. Releases up to
//! 1.19 left the tables out. The notes outlive upgrades in both directions, so every layout ever written is read.

use std::net::IpAddr;

use serde::Deserialize;
use serde_json::Value;

use super::version::Version;
use crate::ipam::ids::{CardIndex, DeviceIndex, TableId};

/// Why a `prevResult` can't be read; the texts are upstream's.
#[derive(Debug, thiserror::Error)]
pub enum PreviousError {
    /// Its version does not go with the configuration's.
    #[error("could not parse prevResult: result type supports [{}] but unmarshalled CNIVersion is {found:?}", supported.join(" "))]
    Version {
        /// What would have gone with it.
        supported: &'static [&'static str],
        /// What it is.
        found: String,
    },
    /// It is not shaped like a result.
    #[error("could not parse prevResult: {0}")]
    Shape(#[from] serde_json::Error),
}

/// A result of an earlier ADD.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct PreviousResult {
    /// The JSON as the runtime gave it, for plugins that pass it on.
    pub json: Value,
    /// Its interfaces.
    pub interfaces: Vec<PreviousInterface>,
    /// Its addresses.
    pub ips: Vec<PreviousIp>,
}

/// An interface of an earlier result. `mac` is often no hardware address; see the module's text.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
pub struct PreviousInterface {
    /// Its name.
    #[serde(default)]
    pub name: String,
    /// A hardware address or a note.
    #[serde(default)]
    pub mac: String,
    /// A namespace path or a note.
    #[serde(default)]
    pub sandbox: String,
}

/// An address of an earlier result.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
pub struct PreviousIp {
    /// Address and prefix length.
    pub address: String,
    /// Which interface it is on.
    #[serde(default)]
    pub interface: Option<i64>,
}

#[derive(Deserialize)]
struct Raw {
    #[serde(default, rename = "cniVersion")]
    cni_version: String,
    #[serde(default)]
    interfaces: Option<Vec<PreviousInterface>>,
    #[serde(default)]
    ips: Option<Vec<PreviousIp>>,
}

/// What upstream's notes say about a sandbox.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Notes {
    /// VLAN id of a branch ENI; 0 for ordinary pods.
    pub vlan: u32,
    /// Every address with the table of its ENI.
    pub addresses: Vec<(IpAddr, TableId)>,
}

/// Why the notes can't be used.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum NotesError {
    /// The VLAN id is no number.
    #[error("malformed vlanID in prevResult: {0}")]
    Vlan(String),
}

impl PreviousResult {
    /// Reads what a runtime hands to a configuration of this version.
    ///
    /// # Errors
    /// [`PreviousError`].
    pub fn parse(json: &Value, version: Version) -> Result<Self, PreviousError> {
        let raw: Raw = serde_json::from_value(json.clone())?;
        // `{}` is what chains hand on when nothing came before; it carries nothing that could be misread.
        let empty = json.as_object().is_some_and(serde_json::Map::is_empty);
        if !empty && !version.same_shape().contains(&raw.cni_version.as_str()) {
            return Err(PreviousError::Version {
                supported: version.same_shape(),
                found: raw.cni_version,
            });
        }
        Ok(Self {
            json: json.clone(),
            interfaces: raw.interfaces.unwrap_or_default(),
            ips: raw.ips.unwrap_or_default(),
        })
    }

    /// The notes about the sandbox whose pod interface is `ifname` and whose host interface's name ends in `hash`;
    /// `None` when there are none.
    ///
    /// # Errors
    /// [`NotesError::Vlan`].
    pub fn notes(&self, ifname: &str, hash: &str) -> Result<Option<Notes>, NotesError> {
        let marker = format!("dummy{hash}");
        let Some(marker) = self.interfaces.iter().find(|interface| interface.name == marker) else {
            return Ok(None);
        };
        let vlan = marker
            .mac
            .parse()
            .map_err(|_| NotesError::Vlan(marker.mac.clone()))?;
        Ok(Some(Notes {
            vlan,
            addresses: self.addresses(ifname, marker.sandbox.parse().ok()),
        }))
    }

    /// Upstream derives the number of pod interfaces from the length of the list, which plugins chained after it
    /// change; walking the names until one is absent is the same and can't be misled.
    fn addresses(&self, ifname: &str, device: Option<u32>) -> Vec<(IpAddr, TableId)> {
        let mut table = device.map(|device| TableId::of_eni(CardIndex(0), DeviceIndex(device)));
        let mut found = Vec::new();
        for nic in 0_u32.. {
            let name = match nic {
                0 => ifname.to_owned(),
                _ => format!("mNicIf{nic}"),
            };
            let Some(index) = self
                .interfaces
                .iter()
                .position(|interface| interface.name == name)
            else {
                break;
            };
            let mac = self.interfaces.get(index).map_or("", |interface| &interface.mac);
            match mac.parse() {
                Ok(number) => table = Some(TableId(number)),
                Err(_) if mac.is_empty() => {}
                Err(_) => return Vec::new(), // not a note of ours: nothing in here is
            }
            if let (Some(address), Some(table)) = (self.only_address_on(index), table) {
                found.push((address, main_for_zero_and_one(table)));
            }
        }
        found
    }

    fn only_address_on(&self, index: usize) -> Option<IpAddr> {
        let mut on_it = self
            .ips
            .iter()
            .filter(|ip| ip.interface.and_then(|at| usize::try_from(at).ok()) == Some(index));
        let only = on_it.next()?;
        if on_it.next().is_some() {
            return None;
        }
        let (address, _) = only.address.split_once('/')?;
        address.parse().ok()
    }
}

/// Old records say 1 for the primary ENI's table.
fn main_for_zero_and_one(table: TableId) -> TableId {
    if table.0 == 1 { TableId::MAIN } else { table }
}
