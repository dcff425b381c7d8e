//! From the SDK's types, where everything is optional, to ours.

use std::collections::BTreeMap;
use std::net::Ipv4Addr;

use aws_sdk_ec2::types::{
    InstanceTypeHypervisor, InstanceTypeInfo, NetworkInfo, NetworkInterface, NetworkInterfaceAttachment,
    Subnet, Tag,
};

use crate::ipam::cidr::Ipv4Cidr;
use crate::ipam::cidr6::Ipv6Cidr;
use crate::ipam::cloud::{CloudAttachment, CloudEni, CloudSubnet, ConnectionTracking};
use crate::ipam::ids::{CardIndex, DeviceIndex};
use crate::ipam::limits::{FurtherCards, InstanceLimits};

/// An answer that lacks a part, or has one that is not what it should be.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(super) enum BadAnswer {
    #[error("EC2's answer lacks {0}")]
    Missing(&'static str),
    #[error("EC2's answer has {text:?} as {field}")]
    Invalid { field: &'static str, text: String },
    #[error("EC2 answered with more than {0} pages")]
    TooManyPages(usize),
}

fn need<T>(value: Option<T>, field: &'static str) -> Result<T, BadAnswer> {
    value.ok_or(BadAnswer::Missing(field))
}

fn parse<T: std::str::FromStr>(text: &str, field: &'static str) -> Result<T, BadAnswer> {
    text.parse().map_err(|_| BadAnswer::Invalid {
        field,
        text: text.to_owned(),
    })
}

pub(super) fn number(value: Option<i32>, field: &'static str) -> Result<u32, BadAnswer> {
    let value = need(value, field)?;
    u32::try_from(value).map_err(|_| BadAnswer::Invalid {
        field,
        text: value.to_string(),
    })
}

pub(super) fn address(text: Option<&str>, field: &'static str) -> Result<Ipv4Addr, BadAnswer> {
    parse(need(text, field)?, field)
}

/// An ENI. One without IPv4 (EFA-only, IPv6-only) has 0.0.0.0 as its primary address: it must stay visible, because
/// it takes a device index.
pub(super) fn eni(from: &NetworkInterface) -> Result<CloudEni, BadAnswer> {
    let mut secondary = Vec::new();
    let mut public = Vec::new();
    let mut primary = match from.private_ip_address() {
        Some(text) => Some(parse(text, "privateIpAddress")?),
        None => None,
    };
    for entry in from.private_ip_addresses() {
        let found = address(entry.private_ip_address(), "privateIpAddress")?;
        if entry.association().is_some() {
            public.push(found);
        }
        if entry.primary() == Some(true) {
            primary = Some(found);
        } else if primary != Some(found) {
            secondary.push(found);
        }
    }
    Ok(CloudEni {
        id: need(from.network_interface_id(), "networkInterfaceId")?.into(),
        mac: parse(need(from.mac_address(), "macAddress")?, "macAddress")?,
        subnet: need(from.subnet_id(), "subnetId")?.into(),
        subnet_cidr: None,
        primary: primary.unwrap_or(Ipv4Addr::UNSPECIFIED),
        secondary,
        prefixes: prefixes(from.ipv4_prefixes())?,
        prefixes6: prefixes6(from)?,
        public,
        tracking: tracking(from),
        groups: from
            .groups()
            .iter()
            .filter_map(|group| group.group_id().map(Into::into))
            .collect(),
        interface_type: from
            .interface_type()
            .map_or("interface", |kind| kind.as_str())
            .to_owned(),
        attachment: from.attachment().map(attachment).transpose()?,
        description: from.description().unwrap_or_default().to_owned(),
        tags: tags(from.tag_set()),
    })
}

type Ipv4Prefixes = [aws_sdk_ec2::types::Ipv4PrefixSpecification];

pub(super) fn prefixes(from: &Ipv4Prefixes) -> Result<Vec<Ipv4Cidr>, BadAnswer> {
    from.iter()
        .map(|prefix| parse(need(prefix.ipv4_prefix(), "ipv4Prefix")?, "ipv4Prefix"))
        .collect()
}

pub(super) fn prefix6(text: &str) -> Result<Ipv6Cidr, BadAnswer> {
    parse(text, "ipv6Prefix")
}

fn prefixes6(from: &NetworkInterface) -> Result<Vec<Ipv6Cidr>, BadAnswer> {
    from.ipv6_prefixes()
        .iter()
        .map(|prefix| prefix6(need(prefix.ipv6_prefix(), "ipv6Prefix")?))
        .collect()
}

fn tracking(from: &NetworkInterface) -> ConnectionTracking {
    let seconds = |value: Option<i32>| value.and_then(|value| u32::try_from(value).ok());
    from.connection_tracking_configuration()
        .map_or_else(ConnectionTracking::default, |set| ConnectionTracking {
            tcp_established: seconds(set.tcp_established_timeout()),
            udp_stream: seconds(set.udp_stream_timeout()),
            udp: seconds(set.udp_timeout()),
        })
}

pub(super) fn subnet(from: &Subnet) -> Result<CloudSubnet, BadAnswer> {
    Ok(CloudSubnet {
        id: need(from.subnet_id(), "subnetId")?.into(),
        cidr: parse(need(from.cidr_block(), "cidrBlock")?, "cidrBlock")?,
        free: number(from.available_ip_address_count(), "availableIpAddressCount")?,
        tags: tags(from.tags()),
    })
}

fn tags(from: &[Tag]) -> BTreeMap<String, String> {
    from.iter()
        .filter_map(|tag| Some((tag.key()?.to_owned(), tag.value().unwrap_or_default().to_owned())))
        .collect()
}

fn attachment(from: &NetworkInterfaceAttachment) -> Result<CloudAttachment, BadAnswer> {
    Ok(CloudAttachment {
        id: need(from.attachment_id(), "attachmentId")?.into(),
        instance: from.instance_id().map(Into::into),
        device: DeviceIndex(number(from.device_index(), "deviceIndex")?),
        card: CardIndex(number(from.network_card_index().or(Some(0)), "networkCardIndex")?),
        status: from.status().map_or("", |status| status.as_str()).to_owned(),
        delete_on_termination: from.delete_on_termination().unwrap_or_default(),
    })
}

/// What the cards besides the default one can carry.
fn further_cards(network: &NetworkInfo, default_card: i32) -> Result<FurtherCards, BadAnswer> {
    let others = network.network_cards().iter().filter_map(|card| {
        let index = card.network_card_index().unwrap_or_default();
        (index != default_card).then(|| {
            let index = CardIndex(number(Some(index), "networkCardIndex")?);
            Ok((
                index,
                number(card.maximum_network_interfaces(), "maximumNetworkInterfaces")?,
            ))
        })
    });
    Ok(FurtherCards::new(others.collect::<Result<Vec<_>, _>>()?))
}

/// The limits of the default network card; the type's own total counts all cards.
pub(super) fn limits(from: &InstanceTypeInfo) -> Result<InstanceLimits, BadAnswer> {
    let network = need(from.network_info(), "networkInfo")?;
    let default_card = network.default_network_card_index().unwrap_or_default();
    let of_card = network
        .network_cards()
        .iter()
        .find(|card| card.network_card_index().unwrap_or_default() == default_card)
        .and_then(aws_sdk_ec2::types::NetworkCardInfo::maximum_network_interfaces);
    Ok(InstanceLimits {
        enis: number(
            of_card.or(network.maximum_network_interfaces()),
            "maximumNetworkInterfaces",
        )?,
        ipv4_per_eni: number(
            network.ipv4_addresses_per_interface(),
            "ipv4AddressesPerInterface",
        )?,
        prefixes: from.bare_metal() == Some(true)
            || from.hypervisor() == Some(&InstanceTypeHypervisor::Nitro),
        further: further_cards(network, default_card)?,
    })
}

#[cfg(test)]
mod tests {
    use aws_sdk_ec2::types::{
        Ipv4PrefixSpecification, NetworkCardInfo, NetworkInfo, NetworkInterfacePrivateIpAddress,
    };

    use super::*;

    fn ip(text: &str, primary: bool) -> NetworkInterfacePrivateIpAddress {
        NetworkInterfacePrivateIpAddress::builder()
            .private_ip_address(text)
            .primary(primary)
            .build()
    }

    #[test]
    fn ipamd_95_an_eni_keeps_its_own_address_apart() {
        let from = NetworkInterface::builder()
            .network_interface_id("eni-1")
            .mac_address("02:00:00:00:00:01")
            .subnet_id("subnet-1")
            .private_ip_address("10.0.0.4")
            .private_ip_addresses(ip("10.0.0.5", false))
            .private_ip_addresses(ip("10.0.0.4", true))
            .ipv4_prefixes(
                Ipv4PrefixSpecification::builder()
                    .ipv4_prefix("10.0.0.16/28")
                    .build(),
            )
            .build();
        let eni = eni(&from).unwrap();
        assert_eq!(eni.primary.to_string(), "10.0.0.4");
        assert_eq!(eni.secondary, [Ipv4Addr::new(10, 0, 0, 5)]);
        assert_eq!(eni.prefixes, ["10.0.0.16/28".parse().unwrap()]);
        assert_eq!((eni.interface_type.as_str(), eni.attachment), ("interface", None));
    }

    #[test]
    fn an_eni_without_ipv4_stays_visible() {
        let from = NetworkInterface::builder()
            .network_interface_id("eni-1")
            .mac_address("02:00:00:00:00:01")
            .subnet_id("subnet-1")
            .interface_type("efa-only".into())
            .build();
        let eni = eni(&from).unwrap();
        assert_eq!(
            (eni.primary, eni.interface_type.as_str()),
            (Ipv4Addr::UNSPECIFIED, "efa-only")
        );
    }

    #[test]
    fn what_is_missing_or_wrong_is_named() {
        let from = NetworkInterface::builder().network_interface_id("eni-1");
        assert_eq!(
            eni(&from.clone().build()).unwrap_err(),
            BadAnswer::Missing("macAddress")
        );
        let from = from.mac_address("nonsense").build();
        assert_eq!(
            eni(&from).unwrap_err().to_string(),
            "EC2's answer has \"nonsense\" as macAddress"
        );
    }

    /// Quirk Q19: a type's total over all cards is not what one of them can carry.
    #[test]
    fn every_card_has_its_own_limit_by_ec2s_answer() {
        let card = |index, enis| {
            NetworkCardInfo::builder()
                .network_card_index(index)
                .maximum_network_interfaces(enis)
                .build()
        };
        let of = |default: i32| {
            let network = NetworkInfo::builder()
                .maximum_network_interfaces(30)
                .default_network_card_index(default)
                .network_cards(card(0, 15))
                .network_cards(card(1, 14))
                .ipv4_addresses_per_interface(50)
                .build();
            let kind = InstanceTypeInfo::builder()
                .network_info(network)
                .bare_metal(true)
                .build();
            limits(&kind).unwrap()
        };
        let expected = |enis, further| InstanceLimits {
            enis,
            ipv4_per_eni: 50,
            prefixes: true,
            further,
        };
        assert_eq!(of(0), expected(15, FurtherCards::new([(CardIndex(1), 14)])));
        assert_eq!(
            of(1),
            expected(14, FurtherCards::NONE),
            "the primary ENI's card is the first"
        );
    }
}
