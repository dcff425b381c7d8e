//! The calls that change something.

use std::collections::BTreeMap;
use std::net::{Ipv4Addr, Ipv6Addr};
use std::ops::RangeInclusive;

use crate::cloud::Shared;
use crate::vpc::{
    ApiError, ApiResult, AttachEni, AttachmentId, CreateEni, EniId, Grant, GroupId, InstanceId, Ipv4Cidr,
    Ipv6Cidr, Modify, SubnetId, Want, Wanted,
};

use super::params::Params;
use super::render;
use super::xml::Xml;

const INTERFACE_TYPES: &[&str] = &["interface", "trunk", "branch", "efa", "efa-only"];
/// Time-outs in seconds, the least and the most
/// (<https://docs.aws.amazon.com/AWSEC2/latest/APIReference/API_ConnectionTrackingSpecificationRequest.html>).
const TRACKING: &[(&str, RangeInclusive<u32>)] = &[
    ("TcpEstablishedTimeout", 60..=432_000),
    ("UdpStreamTimeout", 60..=180),
    ("UdpTimeout", 30..=60),
];

/// What most mutating calls answer.
fn done() -> String {
    "<return>true</return>".to_owned()
}

fn id(params: &mut Params, name: &str, prefix: &str, code: &'static str) -> ApiResult<String> {
    let id = params.required(name)?;
    let body = id.strip_prefix(prefix).unwrap_or_default();
    if ![8, 17].contains(&body.len()) || !body.bytes().all(|byte| byte.is_ascii_hexdigit()) {
        return Err(ApiError::malformed(code, id, prefix));
    }
    Ok(id)
}

fn eni_id(params: &mut Params) -> ApiResult<EniId> {
    id(
        params,
        "NetworkInterfaceId",
        EniId::PREFIX,
        "InvalidNetworkInterfaceID.Malformed",
    )
    .map(EniId)
}

fn want<T>(count: Option<u32>, exactly: Vec<T>, names: &str) -> ApiResult<Want<T>> {
    match (count, exactly.is_empty()) {
        (None | Some(0), true) => Ok(Want::Nothing),
        (Some(count), true) => Ok(Want::Count(count)),
        (None, false) => Ok(Want::Exactly(exactly)),
        (Some(_), false) => Err(ApiError::combination(format!(
            "The parameters {names} cannot be used together"
        ))),
    }
}

fn one_kind(wanted: &Wanted) -> ApiResult<()> {
    let both = |addresses: bool, prefixes: bool| addresses && prefixes;
    if both(!wanted.addresses.is_empty(), !wanted.prefixes.is_empty())
        || both(!wanted.ipv6.is_empty(), !wanted.ipv6_prefixes.is_empty())
    {
        return Err(ApiError::combination(
            "Addresses and prefixes cannot be specified in the same request",
        ));
    }
    Ok(())
}

fn tracking(params: &mut Params) -> ApiResult<BTreeMap<String, u32>> {
    let mut timeouts = BTreeMap::new();
    for (name, allowed) in TRACKING {
        if let Some(seconds) = params.parsed(&format!("ConnectionTrackingSpecification.{name}"))? {
            if !allowed.contains(&seconds) {
                return Err(ApiError::invalid_value(format!(
                    "Value ({seconds}) for parameter {name} is invalid. It must be from {} to {}.",
                    allowed.start(),
                    allowed.end()
                )));
            }
            timeouts.insert((*name).to_owned(), seconds);
        }
    }
    Ok(timeouts)
}

/// `PrivateIpAddress` and `PrivateIpAddresses.N`: the own address and explicit secondary ones.
fn explicit_addresses(params: &mut Params) -> ApiResult<(Option<Ipv4Addr>, Vec<Ipv4Addr>)> {
    let mut primary: Option<Ipv4Addr> = params.parsed("PrivateIpAddress")?;
    let mut secondary = Vec::new();
    for index in params.indices("PrivateIpAddresses") {
        let address = params.required_parsed(&format!("PrivateIpAddresses.{index}.PrivateIpAddress"))?;
        let is_primary = params.parsed(&format!("PrivateIpAddresses.{index}.Primary"))?;
        if is_primary == Some(true) {
            if primary.is_some_and(|known| known != address) {
                return Err(ApiError::combination("Only one primary address can be specified"));
            }
            primary = Some(address);
        } else {
            secondary.push(address);
        }
    }
    Ok((primary, secondary))
}

pub(super) fn create_network_interface(shared: &Shared, mut params: Params) -> ApiResult<String> {
    let subnet = id(
        &mut params,
        "SubnetId",
        SubnetId::PREFIX,
        "InvalidSubnetID.Malformed",
    )?;
    let (primary, secondary) = explicit_addresses(&mut params)?;
    let wanted = Wanted {
        addresses: want(
            params.parsed("SecondaryPrivateIpAddressCount")?,
            secondary,
            "secondaryPrivateIpAddressCount and privateIpAddresses",
        )?,
        prefixes: want(
            params.parsed("Ipv4PrefixCount")?,
            params.members("Ipv4Prefix", "Ipv4Prefix")?,
            "ipv4PrefixCount and ipv4Prefix",
        )?,
        ipv6: want(
            params.parsed("Ipv6AddressCount")?,
            params.members("Ipv6Addresses", "Ipv6Address")?,
            "ipv6AddressCount and ipv6Addresses",
        )?,
        ipv6_prefixes: want(
            params.parsed("Ipv6PrefixCount")?,
            params.members("Ipv6Prefix", "Ipv6Prefix")?,
            "ipv6PrefixCount and ipv6Prefix",
        )?,
    };
    one_kind(&wanted)?;
    let interface_type = params
        .text("InterfaceType")
        .unwrap_or_else(|| "interface".to_owned());
    if !INTERFACE_TYPES.contains(&interface_type.as_str()) {
        return Err(ApiError::invalid_value(format!(
            "Value ({interface_type}) for parameter interfaceType is invalid."
        )));
    }
    let request = CreateEni {
        subnet: SubnetId(subnet),
        description: params.text("Description").unwrap_or_default(),
        groups: params.texts("SecurityGroupId").into_iter().map(GroupId).collect(),
        primary,
        wanted,
        interface_type,
        connection_tracking: tracking(&mut params)?,
        tags: params.tag_specification("network-interface")?,
        token: params.text("ClientToken"),
    };
    params.finish()?;
    if request.token.as_ref().is_some_and(|token| token.len() > 64) {
        return Err(ApiError::invalid_value(
            "The client token may have at most 64 characters.",
        ));
    }
    shared.model(|model, now| {
        let token = request.token.clone();
        let eni = model.create_eni(request, now)?;
        let mut xml = Xml::new();
        xml.node("networkInterface", |xml| render::eni(xml, model, &eni));
        xml.some("clientToken", token);
        Ok(xml.into_string())
    })
}

pub(super) fn delete_network_interface(shared: &Shared, mut params: Params) -> ApiResult<String> {
    let eni = eni_id(&mut params)?;
    params.finish()?;
    shared.model(|model, now| model.delete_eni(&eni, now))?;
    Ok(done())
}

pub(super) fn attach_network_interface(shared: &Shared, mut params: Params) -> ApiResult<String> {
    let request = AttachEni {
        eni: eni_id(&mut params)?,
        instance: InstanceId(id(
            &mut params,
            "InstanceId",
            InstanceId::PREFIX,
            "InvalidInstanceID.Malformed",
        )?),
        device: params.required_parsed("DeviceIndex")?,
        card: params.parsed("NetworkCardIndex")?.unwrap_or(0),
    };
    params.finish()?;
    let stages = shared.faults.attach_stages(&request.instance);
    let attachment = shared.model(|model, now| model.attach_eni(&request, stages, now))?;
    let mut xml = Xml::new();
    xml.leaf("attachmentId", attachment);
    xml.leaf("networkCardIndex", request.card);
    Ok(xml.into_string())
}

pub(super) fn detach_network_interface(shared: &Shared, mut params: Params) -> ApiResult<String> {
    let attachment = AttachmentId(id(
        &mut params,
        "AttachmentId",
        AttachmentId::PREFIX,
        "InvalidAttachmentID.Malformed",
    )?);
    params.parsed::<bool>("Force")?;
    params.finish()?;
    shared.model(|model, now| {
        let instance = model
            .enis()
            .values()
            .filter_map(|eni| eni.attachment.as_ref())
            .find(|found| found.id == attachment)
            .map(|found| found.instance.clone());
        let stages = shared.faults.detach_stages(instance.as_ref());
        model.detach_eni(&attachment, stages, now)
    })?;
    Ok(done())
}

/// Exactly one attribute a call: EC2 documents the others as excluded.
fn attribute(params: &mut Params) -> ApiResult<Modify> {
    let mut changes = Vec::new();
    let groups: Vec<GroupId> = params.texts("SecurityGroupId").into_iter().map(GroupId).collect();
    if !groups.is_empty() {
        changes.push(Modify::Groups(groups));
    }
    changes.extend(params.text("Description.Value").map(Modify::Description));
    changes.extend(
        params
            .parsed("SourceDestCheck.Value")?
            .map(Modify::SourceDestCheck),
    );
    let timeouts = tracking(params)?;
    if !timeouts.is_empty() {
        changes.push(Modify::ConnectionTracking(timeouts));
    }
    let attachment = params.text("Attachment.AttachmentId");
    let delete = params.parsed("Attachment.DeleteOnTermination")?;
    match (attachment, delete) {
        (Some(attachment), Some(delete)) => changes.push(Modify::DeleteOnTermination {
            attachment: AttachmentId(attachment),
            delete,
        }),
        (None, None) => {}
        (None, Some(_)) => return Err(ApiError::missing("attachmentId")),
        (Some(_), None) => return Err(ApiError::missing("deleteOnTermination")),
    }
    match (changes.pop(), changes.is_empty()) {
        (Some(change), true) => Ok(change),
        (None, _) => Err(ApiError::combination("No attributes specified.")),
        (Some(_), false) => Err(ApiError::combination(
            "Fields for multiple attribute types specified",
        )),
    }
}

pub(super) fn modify_network_interface_attribute(shared: &Shared, mut params: Params) -> ApiResult<String> {
    let eni = eni_id(&mut params)?;
    let change = attribute(&mut params)?;
    params.finish()?;
    shared.model(|model, now| model.modify_eni(&eni, change, now))?;
    Ok(done())
}

pub(super) fn assign_private_ip_addresses(shared: &Shared, mut params: Params) -> ApiResult<String> {
    let eni = eni_id(&mut params)?;
    let wanted = Wanted {
        addresses: want(
            params.parsed("SecondaryPrivateIpAddressCount")?,
            params.all_parsed::<Ipv4Addr>("PrivateIpAddress")?,
            "secondaryPrivateIpAddressCount and privateIpAddress",
        )?,
        prefixes: want(
            params.parsed("Ipv4PrefixCount")?,
            params.all_parsed::<Ipv4Cidr>("Ipv4Prefix")?,
            "ipv4PrefixCount and ipv4Prefix",
        )?,
        ..Wanted::default()
    };
    let reassign = params.parsed("AllowReassignment")?.unwrap_or(false);
    params.finish()?;
    one_kind(&wanted)?;
    if wanted == Wanted::default() {
        return Err(ApiError::combination(
            "Either addresses, prefixes or a count of them must be specified",
        ));
    }
    let grant = shared.model(|model, now| model.assign(&eni, &wanted, reassign, now))?;
    let mut xml = Xml::new();
    xml.leaf("return", true);
    xml.leaf("networkInterfaceId", eni);
    xml.list(
        "assignedPrivateIpAddressesSet",
        grant.addresses,
        |xml, address| {
            xml.leaf("privateIpAddress", address);
        },
    );
    xml.list("assignedIpv4PrefixSet", grant.prefixes, |xml, prefix| {
        xml.leaf("ipv4Prefix", prefix);
    });
    Ok(xml.into_string())
}

pub(super) fn assign_ipv6_addresses(shared: &Shared, mut params: Params) -> ApiResult<String> {
    let eni = eni_id(&mut params)?;
    let wanted = Wanted {
        ipv6: want(
            params.parsed("Ipv6AddressCount")?,
            params.all_parsed::<Ipv6Addr>("Ipv6Addresses")?,
            "ipv6AddressCount and ipv6Addresses",
        )?,
        ipv6_prefixes: want(
            params.parsed("Ipv6PrefixCount")?,
            params.all_parsed::<Ipv6Cidr>("Ipv6Prefix")?,
            "ipv6PrefixCount and ipv6Prefix",
        )?,
        ..Wanted::default()
    };
    params.finish()?;
    one_kind(&wanted)?;
    if wanted == Wanted::default() {
        return Err(ApiError::combination(
            "Either addresses, prefixes or a count of them must be specified",
        ));
    }
    let grant = shared.model(|model, now| model.assign(&eni, &wanted, false, now))?;
    let mut xml = Xml::new();
    xml.leaf("networkInterfaceId", eni);
    xml.texts("assignedIpv6Addresses", grant.ipv6);
    xml.texts("assignedIpv6PrefixSet", grant.ipv6_prefixes);
    Ok(xml.into_string())
}

pub(super) fn unassign_private_ip_addresses(shared: &Shared, mut params: Params) -> ApiResult<String> {
    let eni = eni_id(&mut params)?;
    let what = Grant {
        addresses: params.all_parsed("PrivateIpAddress")?,
        prefixes: params.all_parsed("Ipv4Prefix")?,
        ..Grant::default()
    };
    params.finish()?;
    if what == Grant::default() {
        return Err(ApiError::missing("privateIpAddress"));
    }
    if !what.addresses.is_empty() && !what.prefixes.is_empty() {
        return Err(ApiError::combination(
            "Addresses and prefixes cannot be specified in the same request",
        ));
    }
    shared.model(|model, now| model.unassign(&eni, &what, now))?;
    Ok(done())
}

pub(super) fn unassign_ipv6_addresses(shared: &Shared, mut params: Params) -> ApiResult<String> {
    let eni = eni_id(&mut params)?;
    let what = Grant {
        ipv6: params.all_parsed("Ipv6Addresses")?,
        ipv6_prefixes: params.all_parsed("Ipv6Prefix")?,
        ..Grant::default()
    };
    params.finish()?;
    if what == Grant::default() {
        return Err(ApiError::missing("ipv6Addresses"));
    }
    shared.model(|model, now| model.unassign(&eni, &what, now))?;
    let mut xml = Xml::new();
    xml.leaf("networkInterfaceId", eni);
    xml.texts("unassignedIpv6Addresses", what.ipv6);
    xml.texts("unassignedIpv6PrefixSet", what.ipv6_prefixes);
    Ok(xml.into_string())
}

pub(super) fn create_tags(shared: &Shared, mut params: Params) -> ApiResult<String> {
    let resources = params.texts("ResourceId");
    let tags = params.tags("Tag")?;
    params.finish()?;
    if resources.is_empty() {
        return Err(ApiError::missing("resourceIdSet"));
    }
    if tags.is_empty() {
        return Err(ApiError::missing("tagSet"));
    }
    shared.model(|model, now| model.create_tags(&resources, &tags, now))?;
    Ok(done())
}
