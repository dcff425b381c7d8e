//! The describes.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::sync::Arc;

use crate::cloud::Shared;
use crate::vpc::{ApiError, ApiResult, Eni, EniId, GroupId, Instance, InstanceId, Model, SubnetId, VpcId};

use super::filter::{self, Field, Page};
use super::params::Params;
use super::xml::Xml;
use super::{Caller, render};

/// The ENIs as this caller is shown them: late, and with what is withheld from it left out.
fn enis_seen_by(shared: &Shared, caller: &Caller, model: &Model, now: std::time::Instant) -> Vec<Arc<Eni>> {
    let lag = shared.faults.timing_of(caller.instance.as_ref()).describe_lag;
    let lies = shared.faults.lies_of(caller.instance.as_ref());
    shared
        .view(model, shared.faults.reached(lag, now))
        .into_values()
        .filter(|eni| !lies.ec2_hides_enis.contains(&eni.id))
        .map(|eni| {
            if lies.ec2_hides_addresses.is_empty() {
                return eni;
            }
            let mut shown = Eni::clone(&eni);
            shown
                .secondary
                .retain(|address| !lies.ec2_hides_addresses.contains(&IpAddr::V4(*address)));
            Arc::new(shown)
        })
        .collect()
}

/// Checks ids for form and existence, and returns them.
fn ids(
    texts: &[String],
    prefix: &str,
    code: &str,
    what: &str,
    exists: impl Fn(&str) -> bool,
) -> ApiResult<()> {
    for id in texts {
        let body = id.strip_prefix(prefix).unwrap_or_default();
        let hex = body
            .bytes()
            .all(|byte| byte.is_ascii_digit() || (b'a'..=b'f').contains(&byte));
        if !hex || ![8, 17].contains(&body.len()) {
            return Err(ApiError::new(
                format!("{code}.Malformed"),
                format!("Invalid id: \"{id}\" (expecting \"{prefix}...\")"),
            ));
        }
    }
    let missing: Vec<&str> = texts
        .iter()
        .map(String::as_str)
        .filter(|id| !exists(id))
        .collect();
    match missing.as_slice() {
        [] => Ok(()),
        [one] => Err(ApiError::new(
            format!("{code}.NotFound"),
            format!("The {what} ID '{one}' does not exist"),
        )),
        many => Err(ApiError::new(
            format!("{code}.NotFound"),
            format!("The {what} IDs '{}' do not exist", many.join(", ")),
        )),
    }
}

fn eni_field(model: &Model, eni: &Eni, name: &str) -> Field {
    let attachment = eni.attachment.as_ref();
    let of_attachment =
        |value: &dyn Fn(&crate::vpc::Attachment) -> String| Field::many(attachment.map(value));
    match name {
        "attachment.attachment-id" => of_attachment(&|found| found.id.to_string()),
        "attachment.instance-id" => of_attachment(&|found| found.instance.to_string()),
        "attachment.instance-owner-id" => of_attachment(&|_| model.account.clone()),
        "attachment.device-index" => of_attachment(&|found| found.device.to_string()),
        "attachment.status" => of_attachment(&|found| found.status.as_str().to_owned()),
        "attachment.delete-on-termination" => of_attachment(&|found| found.delete_on_termination.to_string()),
        "availability-zone" => Field::one(&eni.zone),
        "description" => Field::one(&eni.description),
        "group-id" => Field::many(&eni.groups),
        "interface-type" => Field::one(&eni.interface_type),
        "mac-address" => Field::one(eni.mac),
        "network-interface-id" => Field::one(&eni.id),
        "owner-id" => Field::one(&model.account),
        "private-ip-address" => Field::one(eni.primary),
        "private-dns-name" => Field::one(render::private_dns_name(model, eni.primary)),
        "addresses.private-ip-address" => Field::many(std::iter::once(&eni.primary).chain(&eni.secondary)),
        "ipv6-addresses.ipv6-address" => Field::many(&eni.ipv6),
        "requester-managed" => Field::one(false),
        "source-dest-check" => Field::one(eni.source_dest_check),
        "status" => Field::one(eni.status()),
        "subnet-id" => Field::one(&eni.subnet),
        "vpc-id" => Field::one(&eni.vpc),
        _ => Field::Unknown,
    }
}

const ENI_FILTERS: &[&str] = &[
    "attachment.attachment-id",
    "attachment.instance-id",
    "attachment.instance-owner-id",
    "attachment.device-index",
    "attachment.status",
    "attachment.delete-on-termination",
    "availability-zone",
    "description",
    "group-id",
    "interface-type",
    "mac-address",
    "network-interface-id",
    "owner-id",
    "private-ip-address",
    "private-dns-name",
    "addresses.private-ip-address",
    "ipv6-addresses.ipv6-address",
    "requester-managed",
    "source-dest-check",
    "status",
    "subnet-id",
    "vpc-id",
];

pub(super) fn network_interfaces(shared: &Shared, caller: &Caller, mut params: Params) -> ApiResult<String> {
    let wanted = params.texts("NetworkInterfaceId");
    let filters = filter::take(&mut params)?;
    let page = Page::take(&mut params, 1000, "networkInterfaceIdsSet", !wanted.is_empty())?;
    params.parsed::<bool>("IncludeManagedResources")?;
    params.finish()?;
    filter::check(&filters, |name| ENI_FILTERS.contains(&name))?;
    shared.model(|model, now| {
        let seen = enis_seen_by(shared, caller, model, now);
        let exists = |id: &str| seen.iter().any(|eni| eni.id.as_str() == id);
        ids(
            &wanted,
            EniId::PREFIX,
            "InvalidNetworkInterfaceID",
            "networkInterface",
            exists,
        )?;
        let mut found = Vec::new();
        for eni in seen {
            let named = wanted.is_empty() || wanted.contains(&eni.id.0);
            if named && filter::passes(&filters, &eni.tags, |name| eni_field(model, &eni, name))? {
                found.push(eni);
            }
        }
        let (found, next) = page.cut(found, |eni| eni.id.to_string());
        let mut xml = Xml::new();
        xml.list("networkInterfaceSet", &found, |xml, eni| {
            render::eni(xml, model, eni);
        });
        xml.some("nextToken", next);
        Ok(xml.into_string())
    })
}

fn instance_field(instance: &Instance, name: &str) -> Field {
    match name {
        "instance-id" => Field::one(&instance.id),
        "instance-type" => Field::one(&instance.instance_type),
        "instance-state-name" => Field::one(match instance.state {
            crate::vpc::InstanceState::Running => "running",
            crate::vpc::InstanceState::Terminated => "terminated",
        }),
        "availability-zone" => Field::one(&instance.zone),
        "subnet-id" => Field::one(&instance.subnet),
        "vpc-id" => Field::one(&instance.vpc),
        "private-ip-address" => Field::one(instance.private_ip),
        _ => Field::Unknown,
    }
}

const INSTANCE_FILTERS: &[&str] = &[
    "instance-id",
    "instance-type",
    "instance-state-name",
    "availability-zone",
    "subnet-id",
    "vpc-id",
    "private-ip-address",
];

pub(super) fn instances(shared: &Shared, caller: &Caller, mut params: Params) -> ApiResult<String> {
    let wanted = params.texts("InstanceId");
    let filters = filter::take(&mut params)?;
    let page = Page::take(&mut params, 1000, "instancesSet", !wanted.is_empty())?;
    params.parsed::<bool>("IncludeManagedResources")?;
    params.finish()?;
    filter::check(&filters, |name| INSTANCE_FILTERS.contains(&name))?;
    shared.model(|model, now| {
        let all = model.instances();
        let exists = |id: &str| all.contains_key(id);
        ids(
            &wanted,
            InstanceId::PREFIX,
            "InvalidInstanceID",
            "instance",
            exists,
        )?;
        let mut attached: BTreeMap<InstanceId, Vec<Arc<Eni>>> = BTreeMap::new();
        for eni in enis_seen_by(shared, caller, model, now) {
            if let Some(attachment) = &eni.attachment {
                attached
                    .entry(attachment.instance.clone())
                    .or_default()
                    .push(Arc::clone(&eni));
            }
        }
        let mut found = Vec::new();
        for instance in all.values() {
            let named = wanted.is_empty() || wanted.contains(&instance.id.0);
            if named && filter::passes(&filters, &instance.tags, |name| instance_field(instance, name))? {
                found.push(instance);
            }
        }
        let (found, next) = page.cut(found, |instance| instance.id.to_string());
        let mut xml = Xml::new();
        xml.list("reservationSet", found, |xml, instance| {
            let enis = attached.get(&instance.id).map_or(&[][..], Vec::as_slice);
            let mut enis: Vec<&Eni> = enis.iter().map(AsRef::as_ref).collect();
            enis.sort_by_key(|eni| eni.attachment.as_ref().map(|found| (found.card, found.device)));
            xml.leaf("reservationId", instance.id.0.replacen("i-", "r-", 1));
            xml.leaf("ownerId", &model.account);
            xml.node("groupSet", |_| {});
            xml.list("instancesSet", [instance], |xml, instance| {
                render::instance(xml, model, instance, &enis);
            });
        });
        xml.some("nextToken", next);
        Ok(xml.into_string())
    })
}

/// A describe of things that don't lag: ids, filters, pages, and how each is shown.
struct Plain<'a, T> {
    ids: &'a str,
    prefix: &'a str,
    code: &'a str,
    what: &'a str,
    set: &'a str,
    filters: &'a [&'a str],
    id: fn(&T) -> &str,
    tags: fn(&T) -> &crate::vpc::Tags,
    field: fn(&Model, &T, &str) -> Field,
    show: fn(&mut Xml, &Model, &T),
}

fn plain<T>(
    shared: &Shared,
    mut params: Params,
    kind: &Plain<'_, T>,
    all: impl FnOnce(&Model) -> Vec<&T>,
) -> ApiResult<String> {
    let wanted = params.texts(kind.ids);
    let filters = filter::take(&mut params)?;
    let page = Page::take(&mut params, 1000, kind.ids, !wanted.is_empty())?;
    params.finish()?;
    filter::check(&filters, |name| kind.filters.contains(&name))?;
    shared.model(|model, _| {
        let model: &Model = model;
        let all = all(model);
        let exists = |id: &str| all.iter().any(|item| (kind.id)(item) == id);
        ids(&wanted, kind.prefix, kind.code, kind.what, exists)?;
        let mut found = Vec::new();
        for item in all {
            let named = wanted.is_empty() || wanted.iter().any(|id| id == (kind.id)(item));
            let field = |name: &str| (kind.field)(model, item, name);
            if named && filter::passes(&filters, (kind.tags)(item), field)? {
                found.push(item);
            }
        }
        let (found, next) = page.cut(found, |item| (kind.id)(item).to_owned());
        let mut xml = Xml::new();
        xml.list(kind.set, found, |xml, item| (kind.show)(xml, model, item));
        xml.some("nextToken", next);
        Ok(xml.into_string())
    })
}

pub(super) fn subnets(shared: &Shared, params: Params) -> ApiResult<String> {
    let kind = Plain {
        ids: "SubnetId",
        prefix: SubnetId::PREFIX,
        code: "InvalidSubnetID",
        what: "subnet",
        set: "subnetSet",
        filters: &[
            "availability-zone",
            "cidr-block",
            "cidr",
            "owner-id",
            "state",
            "subnet-id",
            "vpc-id",
        ],
        id: |subnet: &crate::vpc::Subnet| subnet.id.as_str(),
        tags: |subnet| &subnet.tags,
        field: |model, subnet, name| match name {
            "availability-zone" => Field::one(&subnet.zone),
            "cidr-block" | "cidr" => Field::one(subnet.cidr),
            "owner-id" => Field::one(&model.account),
            "state" => Field::one("available"),
            "subnet-id" => Field::one(&subnet.id),
            "vpc-id" => Field::one(&subnet.vpc),
            _ => Field::Unknown,
        },
        show: render::subnet,
    };
    plain(shared, params, &kind, |model| model.subnets().values().collect())
}

pub(super) fn vpcs(shared: &Shared, params: Params) -> ApiResult<String> {
    let kind = Plain {
        ids: "VpcId",
        prefix: VpcId::PREFIX,
        code: "InvalidVpcID",
        what: "vpc",
        set: "vpcSet",
        filters: &[
            "cidr",
            "cidr-block-association.cidr-block",
            "is-default",
            "owner-id",
            "state",
            "vpc-id",
        ],
        id: |vpc: &crate::vpc::Vpc| vpc.id.as_str(),
        tags: |vpc| &vpc.tags,
        field: |model, vpc, name| match name {
            "cidr" => Field::many(vpc.cidrs.first()),
            "cidr-block-association.cidr-block" => Field::many(&vpc.cidrs),
            "is-default" => Field::one(false),
            "owner-id" => Field::one(&model.account),
            "state" => Field::one("available"),
            "vpc-id" => Field::one(&vpc.id),
            _ => Field::Unknown,
        },
        show: render::vpc,
    };
    plain(shared, params, &kind, |model| model.vpcs().values().collect())
}

pub(super) fn security_groups(shared: &Shared, params: Params) -> ApiResult<String> {
    let kind = Plain {
        ids: "GroupId",
        prefix: GroupId::PREFIX,
        code: "InvalidGroup",
        what: "security group",
        set: "securityGroupInfo",
        filters: &["description", "group-id", "group-name", "owner-id", "vpc-id"],
        id: |group: &crate::vpc::SecurityGroup| group.id.as_str(),
        tags: |group| &group.tags,
        field: |model, group, name| match name {
            "group-id" => Field::one(&group.id),
            "group-name" | "description" => Field::one(&group.name),
            "owner-id" => Field::one(&model.account),
            "vpc-id" => Field::one(&group.vpc),
            _ => Field::Unknown,
        },
        show: render::security_group,
    };
    plain(shared, params, &kind, |model| model.groups().values().collect())
}

pub(super) fn instance_types(shared: &Shared, mut params: Params) -> ApiResult<String> {
    let wanted = params.texts("InstanceType");
    let filters = filter::take(&mut params)?;
    let page = Page::take(&mut params, 100, "instanceTypes", !wanted.is_empty())?;
    params.parsed::<bool>("IncludeUnsupportedInRegion")?;
    params.finish()?;
    filter::check(&filters, |name| {
        ["instance-type", "hypervisor", "bare-metal"].contains(&name)
    })?;
    shared.model(|model, _| {
        let unknown: Vec<&str> = wanted
            .iter()
            .map(String::as_str)
            .filter(|name| !model.types.contains_key(*name))
            .collect();
        if !unknown.is_empty() {
            return Err(ApiError::new(
                "InvalidInstanceType",
                format!(
                    "The following supplied instance types do not exist: [{}]",
                    unknown.join(", ")
                ),
            ));
        }
        let mut found = Vec::new();
        for kind in model.types.values() {
            let named = wanted.is_empty() || wanted.contains(&kind.name);
            let field = |name: &str| match name {
                "instance-type" => Field::one(&kind.name),
                "hypervisor" => Field::one(&kind.hypervisor),
                "bare-metal" => Field::one(kind.bare_metal),
                _ => Field::Unknown,
            };
            if named && filter::passes(&filters, &crate::vpc::Tags::new(), field)? {
                found.push(kind);
            }
        }
        let page = if wanted.is_empty() && page.is_whole() {
            page.of_at_most(100)
        } else {
            page
        };
        let (found, next) = page.cut(found, |kind| kind.name.clone());
        let mut xml = Xml::new();
        xml.list("instanceTypeSet", found, render::instance_type);
        xml.some("nextToken", next);
        Ok(xml.into_string())
    })
}
