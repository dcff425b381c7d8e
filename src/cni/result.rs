//! What a successful ADD answers, in the shape of each version.

use std::net::IpAddr;

use serde::Serialize;

use super::error::pretty;
use super::version::Version;
use crate::ipam::ids::{DeviceIndex, TableId};

/// One wired sandbox, from which every version's result follows.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AddResult {
    /// The host end's name.
    pub host_veth: String,
    /// The hash in that name.
    pub hash: String,
    /// The pod's interface.
    pub ifname: String,
    /// The pod's namespace path.
    pub netns: String,
    /// The pod's address.
    pub address: IpAddr,
    /// The table of its ENI.
    pub eni_table: TableId,
    /// The ENI's device index.
    pub device: DeviceIndex,
}

// Three shapes, because key order is part of what tools compare: upstream's library prints keys as declared up to
// 0.4.0 and sorted from 1.0.0 on.

#[derive(Serialize)]
struct Oldest<'a> {
    #[serde(rename = "cniVersion")]
    cni_version: &'a str,
    #[serde(skip_serializing_if = "Option::is_none")]
    ip4: Option<OldestIp>,
    #[serde(skip_serializing_if = "Option::is_none")]
    ip6: Option<OldestIp>,
    dns: Empty,
}

#[derive(Serialize)]
struct OldestIp {
    ip: String,
}

#[derive(Serialize)]
struct Empty {}

#[derive(Serialize)]
struct Declared<'a> {
    #[serde(rename = "cniVersion")]
    cni_version: &'a str,
    interfaces: [DeclaredInterface<'a>; 3],
    ips: [DeclaredIp; 1],
    dns: Empty,
}

#[derive(Serialize)]
struct DeclaredInterface<'a> {
    name: &'a str,
    #[serde(skip_serializing_if = "str::is_empty")]
    mac: &'a str,
    #[serde(skip_serializing_if = "str::is_empty")]
    sandbox: &'a str,
}

#[derive(Serialize)]
struct DeclaredIp {
    version: &'static str,
    interface: u32,
    address: String,
}

#[derive(Serialize)]
struct Sorted<'a> {
    #[serde(rename = "cniVersion")]
    cni_version: &'a str,
    interfaces: [SortedInterface<'a>; 3],
    ips: [SortedIp; 1],
}

#[derive(Serialize)]
struct SortedInterface<'a> {
    #[serde(skip_serializing_if = "str::is_empty")]
    mac: &'a str,
    name: &'a str,
    #[serde(skip_serializing_if = "str::is_empty")]
    sandbox: &'a str,
}

#[derive(Serialize)]
struct SortedIp {
    address: String,
    interface: u32,
}

/// The pod's own interface is the second of the list.
const POD_INTERFACE: u32 = 1;

impl AddResult {
    /// The JSON for a configuration of this version.
    pub fn to_json(&self, version: Version) -> String {
        let cni_version = version.text();
        let address = match self.address {
            IpAddr::V4(address) => format!("{address}/32"),
            IpAddr::V6(address) => format!("{address}/128"),
        };
        match version {
            Version::V0_1_0 | Version::V0_2_0 => self.oldest(cni_version, address),
            Version::V0_3_0 | Version::V0_3_1 | Version::V0_4_0 => self.declared(cni_version, address),
            Version::V1_0_0 | Version::V1_1_0 => self.sorted(cni_version, address),
        }
    }

    fn oldest(&self, cni_version: &str, ip: String) -> String {
        let ip = Some(OldestIp { ip });
        let (ip4, ip6) = if self.address.is_ipv4() {
            (ip, None)
        } else {
            (None, ip)
        };
        pretty(&Oldest {
            cni_version,
            ip4,
            ip6,
            dns: Empty {},
        })
    }

    fn declared(&self, cni_version: &str, address: String) -> String {
        let interfaces = self.interfaces();
        pretty(&Declared {
            cni_version,
            interfaces: interfaces
                .each_ref()
                .map(|[name, mac, sandbox]| DeclaredInterface { name, mac, sandbox }),
            ips: [DeclaredIp {
                version: if self.address.is_ipv4() { "4" } else { "6" },
                interface: POD_INTERFACE,
                address,
            }],
            dns: Empty {},
        })
    }

    fn sorted(&self, cni_version: &str, address: String) -> String {
        let interfaces = self.interfaces();
        pretty(&Sorted {
            cni_version,
            interfaces: interfaces.each_ref().map(|[name, mac, sandbox]| SortedInterface {
                mac,
                name,
                sandbox,
            }),
            ips: [SortedIp {
                address,
                interface: POD_INTERFACE,
            }],
        })
    }

    /// Name, mac and sandbox of host end, pod end and upstream's interface of notes ([`super::previous`]).
    fn interfaces(&self) -> [[String; 3]; 3] {
        [
            [self.host_veth.clone(), String::new(), String::new()],
            [
                self.ifname.clone(),
                self.eni_table.0.to_string(),
                self.netns.clone(),
            ],
            [
                format!("dummy{}", self.hash),
                "0".to_owned(),
                self.device.0.to_string(),
            ],
        ]
    }
}
