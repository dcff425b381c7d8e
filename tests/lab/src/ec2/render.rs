//! How EC2 shows things.

use std::net::Ipv4Addr;

use crate::vpc::{
    Attachment, Eni, GroupId, Instance, InstanceState, InstanceType, Model, SecurityGroup, Subnet, Tags, Vpc,
};

use super::xml::{Xml, date};

fn tags(xml: &mut Xml, tags: &Tags) {
    xml.list("tagSet", tags, |xml, (key, value)| {
        xml.leaf("key", key);
        xml.leaf("value", value);
    });
}

fn groups(xml: &mut Xml, model: &Model, groups: &[GroupId]) {
    xml.list("groupSet", groups, |xml, id| {
        xml.leaf("groupId", id);
        xml.some("groupName", model.groups().get(id).map(|group| &group.name));
    });
}

/// The name EC2 gives an address.
pub(crate) fn private_dns_name(model: &Model, address: Ipv4Addr) -> String {
    let domain = if model.region == "us-east-1" {
        "ec2.internal".to_owned()
    } else {
        format!("{}.compute.internal", model.region)
    };
    format!("ip-{}.{domain}", address.to_string().replace('.', "-"))
}

fn attachment(xml: &mut Xml, model: &Model, attachment: &Attachment, with_instance: bool) {
    xml.node("attachment", |xml| {
        xml.leaf("attachmentId", &attachment.id);
        if with_instance {
            xml.leaf("instanceId", &attachment.instance);
            xml.leaf("instanceOwnerId", &model.account);
        }
        xml.leaf("deviceIndex", attachment.device);
        xml.leaf("networkCardIndex", attachment.card);
        xml.leaf("status", attachment.status.as_str());
        xml.leaf("attachTime", date(attachment.since));
        xml.leaf("deleteOnTermination", attachment.delete_on_termination);
    });
}

fn addresses(xml: &mut Xml, model: &Model, eni: &Eni) {
    let all =
        std::iter::once((eni.primary, true)).chain(eni.secondary.iter().map(|address| (*address, false)));
    xml.list("privateIpAddressesSet", all, |xml, (address, primary)| {
        xml.leaf("privateIpAddress", address);
        xml.leaf("privateDnsName", private_dns_name(model, address));
        xml.leaf("primary", primary);
    });
    if !eni.prefixes.is_empty() {
        xml.list("ipv4PrefixSet", &eni.prefixes, |xml, prefix| {
            xml.leaf("ipv4Prefix", prefix);
        });
    }
    xml.list("ipv6AddressesSet", &eni.ipv6, |xml, address| {
        xml.leaf("ipv6Address", address);
        xml.leaf("isPrimaryIpv6", false);
    });
    if !eni.ipv6_prefixes.is_empty() {
        xml.list("ipv6PrefixSet", &eni.ipv6_prefixes, |xml, prefix| {
            xml.leaf("ipv6Prefix", prefix);
        });
    }
}

/// An EFA-only interface has no IP address; the model keeps one for it that nobody is shown.
fn has_addresses(eni: &Eni) -> bool {
    eni.interface_type != "efa-only"
}

fn eni_body(xml: &mut Xml, model: &Model, eni: &Eni) {
    xml.leaf("networkInterfaceId", &eni.id);
    xml.leaf("subnetId", &eni.subnet);
    xml.leaf("vpcId", &eni.vpc);
    xml.leaf("description", &eni.description);
    xml.leaf("ownerId", &model.account);
    xml.leaf("status", eni.status());
    xml.leaf("macAddress", eni.mac);
    if has_addresses(eni) {
        xml.leaf("privateIpAddress", eni.primary);
        xml.leaf("privateDnsName", private_dns_name(model, eni.primary));
    }
    xml.leaf("sourceDestCheck", eni.source_dest_check);
    xml.leaf("interfaceType", &eni.interface_type);
    groups(xml, model, &eni.groups);
    if has_addresses(eni) {
        addresses(xml, model, eni);
    }
    if !eni.connection_tracking.is_empty() {
        xml.node("connectionTrackingConfiguration", |xml| {
            for (name, seconds) in &eni.connection_tracking {
                xml.leaf(&super::params::lower_first(name), seconds);
            }
        });
    }
}

/// An ENI as `DescribeNetworkInterfaces` and `CreateNetworkInterface` show it.
pub(crate) fn eni(xml: &mut Xml, model: &Model, eni: &Eni) {
    eni_body(xml, model, eni);
    xml.leaf("availabilityZone", &eni.zone);
    xml.leaf("requesterManaged", false);
    xml.leaf("requesterId", "AIDALABLABLABLABLABLA");
    tags(xml, &eni.tags);
    if let Some(found) = &eni.attachment {
        attachment(xml, model, found, true);
    }
}

/// An instance as `DescribeInstances` shows it, with the ENIs the caller may see.
pub(crate) fn instance(xml: &mut Xml, model: &Model, instance: &Instance, enis: &[&Eni]) {
    let running = instance.state == InstanceState::Running;
    let primary = enis.iter().find(|eni| eni.id == instance.primary_eni);
    xml.leaf("instanceId", &instance.id);
    xml.leaf("imageId", "ami-0000000000000001ab");
    xml.node("instanceState", |xml| {
        xml.leaf("code", if running { 16 } else { 48 });
        xml.leaf("name", if running { "running" } else { "terminated" });
    });
    xml.leaf("instanceType", &instance.instance_type);
    xml.leaf("launchTime", date(instance.launched));
    xml.leaf("amiLaunchIndex", 0);
    xml.leaf("architecture", "x86_64");
    xml.node("placement", |xml| {
        xml.leaf("availabilityZone", &instance.zone);
        xml.leaf("tenancy", "default");
    });
    xml.node("monitoring", |xml| xml.leaf("state", "disabled"));
    if running {
        xml.leaf("privateDnsName", private_dns_name(model, instance.private_ip));
        xml.leaf("privateIpAddress", instance.private_ip);
        xml.leaf("subnetId", &instance.subnet);
        xml.leaf("vpcId", &instance.vpc);
    }
    xml.some(
        "hypervisor",
        model.types.get(&instance.instance_type).map(|_| "xen"),
    );
    xml.leaf("sourceDestCheck", primary.is_none_or(|eni| eni.source_dest_check));
    groups(xml, model, primary.map_or(&[], |eni| eni.groups.as_slice()));
    tags(xml, &instance.tags);
    xml.node("metadataOptions", |xml| {
        let required = instance.imds_tokens_required;
        xml.leaf("state", "applied");
        xml.leaf("httpTokens", if required { "required" } else { "optional" });
        xml.leaf("httpPutResponseHopLimit", instance.imds_hop_limit);
        xml.leaf("httpEndpoint", "enabled");
    });
    xml.list("networkInterfaceSet", enis, |xml, eni| {
        eni_body(xml, model, eni);
        if let Some(found) = &eni.attachment {
            attachment(xml, model, found, false);
        }
    });
}

/// A subnet as `DescribeSubnets` shows it.
pub(crate) fn subnet(xml: &mut Xml, model: &Model, subnet: &Subnet) {
    let free = model
        .space(&subnet.id)
        .map_or(0, crate::vpc::space::Space::free_addresses);
    xml.leaf("subnetId", &subnet.id);
    xml.leaf(
        "subnetArn",
        format!(
            "arn:aws:ec2:{}:{}:subnet/{}",
            model.region, model.account, subnet.id
        ),
    );
    xml.leaf("state", "available");
    xml.leaf("ownerId", &model.account);
    xml.leaf("vpcId", &subnet.vpc);
    xml.leaf("cidrBlock", subnet.cidr);
    xml.list("ipv6CidrBlockAssociationSet", subnet.ipv6_cidr, |xml, cidr| {
        xml.leaf("ipv6CidrBlock", cidr);
        xml.leaf("associationId", format!("subnet-cidr-assoc-{}", &subnet.id));
        xml.node("ipv6CidrBlockState", |xml| xml.leaf("state", "associated"));
    });
    xml.leaf("availableIpAddressCount", free);
    xml.leaf("availabilityZone", &subnet.zone);
    xml.leaf("defaultForAz", false);
    xml.leaf("mapPublicIpOnLaunch", false);
    xml.leaf("assignIpv6AddressOnCreation", false);
    tags(xml, &subnet.tags);
}

/// A VPC as `DescribeVpcs` shows it.
pub(crate) fn vpc(xml: &mut Xml, model: &Model, vpc: &Vpc) {
    xml.leaf("vpcId", &vpc.id);
    xml.leaf("ownerId", &model.account);
    xml.leaf("state", "available");
    xml.some("cidrBlock", vpc.cidrs.first());
    xml.list(
        "cidrBlockAssociationSet",
        vpc.cidrs.iter().enumerate(),
        |xml, (index, cidr)| {
            xml.leaf("cidrBlock", cidr);
            xml.leaf("associationId", format!("vpc-cidr-assoc-{index:017x}"));
            xml.node("cidrBlockState", |xml| xml.leaf("state", "associated"));
        },
    );
    xml.list("ipv6CidrBlockAssociationSet", vpc.ipv6_cidr, |xml, cidr| {
        xml.leaf("ipv6CidrBlock", cidr);
        xml.leaf("associationId", "vpc-cidr-assoc-0000000000000006a");
        xml.node("ipv6CidrBlockState", |xml| xml.leaf("state", "associated"));
    });
    xml.leaf("instanceTenancy", "default");
    xml.leaf("isDefault", false);
    tags(xml, &vpc.tags);
}

/// A security group as `DescribeSecurityGroups` shows it.
pub(crate) fn security_group(xml: &mut Xml, model: &Model, group: &SecurityGroup) {
    xml.leaf("groupId", &group.id);
    xml.leaf("groupName", &group.name);
    xml.leaf("groupDescription", &group.name);
    xml.leaf("ownerId", &model.account);
    xml.leaf("vpcId", &group.vpc);
    xml.node("ipPermissions", |_| {});
    xml.node("ipPermissionsEgress", |_| {});
    tags(xml, &group.tags);
}

/// An instance type as `DescribeInstanceTypes` shows it.
pub(crate) fn instance_type(xml: &mut Xml, kind: &InstanceType) {
    xml.leaf("instanceType", &kind.name);
    xml.leaf("currentGeneration", true);
    xml.leaf("bareMetal", kind.bare_metal);
    xml.some(
        "hypervisor",
        Some(&kind.hypervisor).filter(|hypervisor| *hypervisor != "unknown"),
    );
    xml.node("networkInfo", |xml| {
        xml.leaf("maximumNetworkInterfaces", kind.enis());
        xml.leaf("maximumNetworkCards", kind.cards.len());
        xml.leaf("defaultNetworkCardIndex", kind.default_card);
        xml.list("networkCards", &kind.cards, |xml, card| {
            xml.leaf("networkCardIndex", card.index);
            xml.leaf("maximumNetworkInterfaces", card.enis);
        });
        xml.leaf("ipv4AddressesPerInterface", kind.addresses_per_eni);
        xml.leaf("ipv6AddressesPerInterface", kind.addresses_per_eni);
        xml.leaf("ipv6Supported", true);
        xml.leaf(
            "enaSupport",
            if kind.hypervisor == "xen" {
                "unsupported"
            } else {
                "required"
            },
        );
        xml.leaf("efaSupported", false);
    });
}
