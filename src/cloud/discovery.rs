//! What the instance metadata service tells about this node, in as few questions as it allows.

use std::collections::BTreeSet;
use std::net::Ipv4Addr;
use std::str::FromStr;

use serde::Deserialize;

use super::imds::{Imds, excerpt};
use super::imds_error::ImdsError;
use crate::ipam::cidr::Ipv4Cidr;
use crate::ipam::cidr6::Ipv6Cidr;
use crate::ipam::ids::{
    CardIndex, DeviceIndex, EniId, InstanceId, InstanceType, Mac, SecurityGroupId, SubnetId, VpcId,
};

const DOCUMENT: &str = "/latest/dynamic/instance-identity/document";
const META: &str = "/latest/meta-data/";
const MACS: &str = "/latest/meta-data/network/interfaces/macs/";

/// This node, as its instance metadata has it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NodeDiscovery {
    /// Instance id.
    pub instance: InstanceId,
    /// Instance type.
    pub instance_type: InstanceType,
    /// Availability zone.
    pub availability_zone: String,
    /// Region.
    pub region: String,
    /// The MAC of the primary ENI.
    pub primary_mac: Mac,
    /// The ENIs, the primary among them.
    pub enis: Vec<DiscoveredEni>,
    /// ENIs that are listed but not described (yet, or any more), with what was missing.
    pub incomplete: Vec<(Mac, ImdsError)>,
}

impl NodeDiscovery {
    /// The primary ENI.
    pub fn primary(&self) -> Option<&DiscoveredEni> {
        self.enis.iter().find(|eni| eni.mac == self.primary_mac)
    }
}

/// An ENI, as instance metadata has it: never evidence that something is *not* there, because it lags behind EC2.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DiscoveredEni {
    /// Hardware address.
    pub mac: Mac,
    /// Id.
    pub id: EniId,
    /// Device index.
    pub device: DeviceIndex,
    /// Network card, 0 when not listed.
    pub card: CardIndex,
    /// Subnet.
    pub subnet: SubnetId,
    /// The subnet's IPv4 network; none on an IPv6-only subnet.
    pub subnet_cidr: Option<Ipv4Cidr>,
    /// VPC.
    pub vpc: VpcId,
    /// The VPC's IPv4 networks.
    pub vpc_cidrs: Vec<Ipv4Cidr>,
    /// IPv4 addresses, the ENI's own first; empty on an EFA-only ENI.
    pub addresses: Vec<Ipv4Addr>,
    /// Delegated /28 prefixes.
    pub prefixes: Vec<Ipv4Cidr>,
    /// Delegated /80 prefixes.
    pub prefixes6: Vec<Ipv6Cidr>,
    /// Security groups.
    pub security_groups: Vec<SecurityGroupId>,
}

/// The part of the instance identity document that is of interest.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Document {
    instance_id: String,
    instance_type: String,
    availability_zone: String,
    region: String,
}

impl Imds {
    /// Everything: 4 requests and 7 to 10 for each ENI.
    pub async fn discover(&self) -> Result<NodeDiscovery, ImdsError> {
        let document = self.document().await?;
        let path = format!("{META}mac");
        let primary_mac: Mac = parse(&path, &self.need(&path).await?, "a MAC address")?;
        let (enis, incomplete) = self.sweep(primary_mac).await?;
        Ok(NodeDiscovery {
            instance: document.instance_id.into(),
            instance_type: document.instance_type.into(),
            availability_zone: document.availability_zone,
            region: document.region,
            primary_mac,
            enis,
            incomplete,
        })
    }

    /// The ENIs: those described in full, and those that are not, which must not hide the others. Only a fault of the
    /// primary ENI fails the sweep.
    pub async fn sweep(
        &self,
        primary: Mac,
    ) -> Result<(Vec<DiscoveredEni>, Vec<(Mac, ImdsError)>), ImdsError> {
        let macs = self.macs().await?;
        if !macs.contains(&primary) {
            return Err(ImdsError::NoPrimary { mac: primary });
        }
        let mut enis = Vec::new();
        let mut incomplete = Vec::new();
        for mac in macs {
            match self.eni(mac).await {
                // What is created with the primary ENI's groups would get the VPC's default one without any.
                Ok(eni) if mac == primary && eni.security_groups.is_empty() => {
                    let path = format!("{MACS}{mac}/security-group-ids");
                    return Err(ImdsError::Missing { path });
                }
                Ok(eni) => enis.push(eni),
                Err(error) if mac == primary => return Err(error),
                Err(error @ (ImdsError::Missing { .. } | ImdsError::Invalid { .. })) => {
                    incomplete.push((mac, error));
                }
                Err(error) => return Err(error),
            }
        }
        let misplaced = |eni: &&mut DiscoveredEni| eni.mac == primary && eni.device != DeviceIndex(0);
        if let Some(eni) = enis.iter_mut().find(misplaced) {
            tracing::error!(eni = %eni.id, device = eni.device.0, "the primary ENI is listed with a device index other than 0");
            eni.device = DeviceIndex(0);
        }
        Ok((enis, incomplete))
    }

    /// The VPC's IPv4 networks, as the ENI with this MAC has them.
    pub async fn vpc_cidrs(&self, mac: Mac) -> Result<Vec<Ipv4Cidr>, ImdsError> {
        self.list(&format!("{MACS}{mac}/vpc-ipv4-cidr-blocks"), "an IPv4 network")
            .await
    }

    /// The security groups of the ENI with this MAC.
    pub async fn security_groups(&self, mac: Mac) -> Result<Vec<SecurityGroupId>, ImdsError> {
        let text = self.need(&format!("{MACS}{mac}/security-group-ids")).await?;
        Ok(words(&text).map(Into::into).collect())
    }

    async fn need(&self, path: &str) -> Result<String, ImdsError> {
        self.get(path).await?.ok_or_else(|| ImdsError::Missing {
            path: path.to_owned(),
        })
    }

    async fn document(&self) -> Result<Document, ImdsError> {
        let text = self.need(DOCUMENT).await?;
        serde_json::from_str(&text).map_err(|_| ImdsError::Invalid {
            path: DOCUMENT.to_owned(),
            text: excerpt(&text),
            expected: "an instance identity document",
        })
    }

    async fn macs(&self) -> Result<BTreeSet<Mac>, ImdsError> {
        let text = self.need(MACS).await?;
        let macs: Result<BTreeSet<Mac>, ImdsError> = words(&text)
            .map(|word| parse(MACS, without_slash(word), "a MAC address"))
            .collect();
        let macs = macs?;
        if macs.is_empty() {
            Err(ImdsError::NoInterfaces)
        } else {
            Ok(macs)
        }
    }

    async fn eni(&self, mac: Mac) -> Result<DiscoveredEni, ImdsError> {
        let directory = format!("{MACS}{mac}/");
        let listing = self.need(&directory).await?;
        let listed: BTreeSet<&str> = words(&listing).map(without_slash).collect();
        let path = |name: &str| format!("{directory}{name}");
        let id = self.id(&path("interface-id")).await?;
        let device = self.index(&path("device-number")).await?;
        let card = if listed.contains("network-card") {
            self.index(&path("network-card")).await?
        } else {
            0
        };
        let subnet = self.id(&path("subnet-id")).await?;
        let vpc = self.id(&path("vpc-id")).await?;
        let mut eni = DiscoveredEni {
            mac,
            id: id.into(),
            device: DeviceIndex(device),
            card: CardIndex(card),
            subnet: subnet.into(),
            subnet_cidr: None,
            vpc: vpc.into(),
            vpc_cidrs: Vec::new(),
            addresses: Vec::new(),
            prefixes: Vec::new(),
            prefixes6: Vec::new(),
            security_groups: Vec::new(),
        };
        if listed.contains("subnet-ipv4-cidr-block") {
            let blocks = self
                .list(&path("subnet-ipv4-cidr-block"), "an IPv4 network")
                .await?;
            eni.subnet_cidr = blocks.first().copied();
        }
        if listed.contains("vpc-ipv4-cidr-blocks") {
            eni.vpc_cidrs = self
                .list(&path("vpc-ipv4-cidr-blocks"), "an IPv4 network")
                .await?;
        }
        if listed.contains("local-ipv4s") {
            eni.addresses = self.list(&path("local-ipv4s"), "an IPv4 address").await?;
        }
        if listed.contains("ipv4-prefix") {
            eni.prefixes = self.list(&path("ipv4-prefix"), "an IPv4 network").await?;
        }
        if listed.contains("ipv6-prefix") {
            eni.prefixes6 = self.list(&path("ipv6-prefix"), "an IPv6 network").await?;
        }
        if listed.contains("security-group-ids") {
            let path = path("security-group-ids");
            let text = self.get(&path).await?.unwrap_or_default();
            eni.security_groups = words(&text).map(Into::into).collect();
        }
        Ok(eni)
    }

    async fn id(&self, path: &str) -> Result<String, ImdsError> {
        let text = self.need(path).await?;
        let id = text.trim();
        let plain = !id.is_empty()
            && id
                .bytes()
                .all(|byte| byte.is_ascii_alphanumeric() || byte == b'-');
        if plain {
            Ok(id.to_owned())
        } else {
            Err(invalid(path, &text, "an identifier"))
        }
    }

    async fn index(&self, path: &str) -> Result<u32, ImdsError> {
        parse(path, &self.need(path).await?, "a small number")
    }

    /// A value of several words; one that vanished since the directory was listed is empty.
    async fn list<T: FromStr>(&self, path: &str, expected: &'static str) -> Result<Vec<T>, ImdsError> {
        let text = self.get(path).await?.unwrap_or_default();
        words(&text).map(|word| parse(path, word, expected)).collect()
    }
}

fn words(text: &str) -> impl Iterator<Item = &str> {
    text.split_whitespace()
}

/// Directories are listed with a slash at their end, values without.
fn without_slash(word: &str) -> &str {
    word.strip_suffix('/').unwrap_or(word)
}

fn invalid(path: &str, text: &str, expected: &'static str) -> ImdsError {
    ImdsError::Invalid {
        path: path.to_owned(),
        text: excerpt(text),
        expected,
    }
}

fn parse<T: FromStr>(path: &str, text: &str, expected: &'static str) -> Result<T, ImdsError> {
    text.trim().parse().map_err(|_| invalid(path, text, expected))
}
