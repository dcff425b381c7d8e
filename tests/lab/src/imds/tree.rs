//! The metadata tree of an instance.
//!
//! Paths: <https://docs.aws.amazon.com/AWSEC2/latest/UserGuide/instancedata-data-categories.html>.

use std::collections::BTreeMap;
use std::fmt::Display;
use std::net::IpAddr;
use std::time::SystemTime;

use crate::ec2::{date, private_dns_name};
use crate::faults::Lies;
use crate::vpc::journal::View;
use crate::vpc::{Eni, Instance, Model};

/// A node of the tree.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Node {
    /// A value.
    Leaf(String),
    /// A directory.
    Dir(BTreeMap<String, Node>),
    /// A directory that is listed but not there when asked for.
    Ghost,
}

impl Node {
    fn leaf(value: impl Display) -> Self {
        Self::Leaf(value.to_string())
    }

    fn lines<T: Display>(values: impl IntoIterator<Item = T>) -> Self {
        let lines: Vec<String> = values.into_iter().map(|value| value.to_string()).collect();
        Self::Leaf(lines.join("\n"))
    }

    fn dir<const N: usize>(entries: [(&str, Self); N]) -> Self {
        Self::Dir(
            entries
                .into_iter()
                .map(|(name, node)| (name.to_owned(), node))
                .collect(),
        )
    }

    /// The node under a path without leading or trailing slash.
    pub(crate) fn at(&self, path: &str) -> Option<&Self> {
        path.split('/')
            .filter(|part| !part.is_empty())
            .try_fold(self, |node, part| match node {
                Self::Dir(entries) => entries.get(part),
                Self::Leaf(_) | Self::Ghost => None,
            })
    }

    /// What a directory answers: its entries, directories with a slash.
    pub(crate) fn listing(entries: &BTreeMap<String, Self>) -> String {
        let lines: Vec<String> = entries
            .iter()
            .map(|(name, node)| match node {
                Self::Leaf(_) => name.clone(),
                Self::Dir(_) | Self::Ghost => format!("{name}/"),
            })
            .collect();
        lines.join("\n")
    }
}

/// What an instance's tree is made of.
pub(crate) struct Sources<'a> {
    pub(crate) model: &'a Model,
    pub(crate) instance: &'a Instance,
    /// The ENIs as far as they have reached IMDS.
    pub(crate) view: &'a View,
    pub(crate) lies: &'a Lies,
}

/// The tree below `/latest/`.
pub(crate) fn build(sources: &Sources<'_>) -> Node {
    let mut root = BTreeMap::from([
        ("meta-data".to_owned(), meta_data(sources)),
        ("dynamic".to_owned(), dynamic(sources)),
    ]);
    if let Some(user_data) = &sources.instance.user_data {
        root.insert("user-data".to_owned(), Node::leaf(user_data));
    }
    Node::Dir(root)
}

fn meta_data(sources: &Sources<'_>) -> Node {
    let Sources {
        model,
        instance,
        view,
        ..
    } = sources;
    let hostname = private_dns_name(model, instance.private_ip);
    let primary = view
        .get(&instance.primary_eni)
        .or_else(|| model.enis().get(&instance.primary_eni));
    let mut entries = BTreeMap::from([
        ("ami-id".to_owned(), Node::leaf("ami-0000000000000001ab")),
        ("ami-launch-index".to_owned(), Node::leaf(0)),
        ("hostname".to_owned(), Node::leaf(&hostname)),
        ("instance-action".to_owned(), Node::leaf("none")),
        ("instance-id".to_owned(), Node::leaf(&instance.id)),
        ("instance-life-cycle".to_owned(), Node::leaf("on-demand")),
        ("instance-type".to_owned(), Node::leaf(&instance.instance_type)),
        ("local-hostname".to_owned(), Node::leaf(&hostname)),
        ("local-ipv4".to_owned(), Node::leaf(instance.private_ip)),
        ("profile".to_owned(), Node::leaf("default-hvm")),
        (
            "reservation-id".to_owned(),
            Node::leaf(instance.id.0.replacen("i-", "r-", 1)),
        ),
        ("network".to_owned(), network(sources)),
        (
            "placement".to_owned(),
            Node::dir([
                ("availability-zone", Node::leaf(&instance.zone)),
                ("region", Node::leaf(&model.region)),
            ]),
        ),
        (
            "services".to_owned(),
            Node::dir([
                ("domain", Node::leaf("amazonaws.com")),
                ("partition", Node::leaf("aws")),
            ]),
        ),
    ]);
    if let Some(primary) = primary {
        entries.insert("mac".to_owned(), Node::leaf(primary.mac));
        entries.insert("security-groups".to_owned(), group_names(model, primary));
        if let Some(address) = primary.ipv6.first() {
            entries.insert("ipv6".to_owned(), Node::leaf(address));
        }
    }
    if let Some(role) = &instance.role {
        entries.insert("iam".to_owned(), iam(model, instance, role));
    }
    Node::Dir(entries)
}

fn group_names(model: &Model, eni: &Eni) -> Node {
    Node::lines(
        eni.groups
            .iter()
            .filter_map(|id| model.groups().get(id))
            .map(|group| &group.name),
    )
}

fn network(sources: &Sources<'_>) -> Node {
    let Sources {
        instance, view, lies, ..
    } = sources;
    let mut macs = BTreeMap::new();
    if !lies.imds_empty_macs {
        for eni in view.values() {
            let here = eni
                .attachment
                .as_ref()
                .is_some_and(|attachment| attachment.instance == instance.id && attachment.link);
            if here && !lies.imds_hides_enis.contains(&eni.id) {
                macs.insert(eni.mac.to_string(), interface(sources, eni));
            }
        }
        for mac in &lies.imds_ghost_macs {
            macs.insert(mac.to_string(), Node::Ghost);
        }
    }
    Node::dir([("interfaces", Node::dir([("macs", Node::Dir(macs))]))])
}

fn interface(sources: &Sources<'_>, eni: &Eni) -> Node {
    let Sources {
        model,
        instance,
        lies,
        ..
    } = sources;
    let mut entries = BTreeMap::new();
    let mut put = |name: &str, node: Node| drop(entries.insert(name.to_owned(), node));
    if let Some(attachment) = &eni.attachment {
        put("device-number", Node::leaf(attachment.device));
        let cards = model
            .types
            .get(&instance.instance_type)
            .map_or(1, |kind| kind.cards.len());
        if cards > 1 {
            put("network-card", Node::leaf(attachment.card));
        }
    }
    put("interface-id", Node::leaf(&eni.id));
    put("mac", Node::leaf(eni.mac));
    put("owner-id", Node::leaf(&model.account));
    put("security-group-ids", Node::lines(&eni.groups));
    put("security-groups", group_names(model, eni));
    put("subnet-id", Node::leaf(&eni.subnet));
    put("vpc-id", Node::leaf(&eni.vpc));
    if let Some(vpc) = model.vpcs().get(&eni.vpc) {
        if let Some(first) = vpc.cidrs.first() {
            put("vpc-ipv4-cidr-block", Node::leaf(first));
        }
        put("vpc-ipv4-cidr-blocks", Node::lines(&vpc.cidrs));
        if let Some(cidr) = vpc.ipv6_cidr {
            put("vpc-ipv6-cidr-blocks", Node::leaf(cidr));
        }
    }
    if eni.interface_type == "efa-only" {
        return Node::Dir(entries);
    }
    let mut put = |name: &str, node: Node| drop(entries.insert(name.to_owned(), node));
    put("local-hostname", Node::leaf(private_dns_name(model, eni.primary)));
    if let Some(subnet) = model.subnets().get(&eni.subnet) {
        put("subnet-ipv4-cidr-block", Node::leaf(subnet.cidr));
        if let Some(cidr) = subnet.ipv6_cidr {
            put("subnet-ipv6-cidr-blocks", Node::leaf(cidr));
        }
    }
    let addresses = shown(
        eni,
        lies,
        std::iter::once(eni.primary).chain(eni.secondary.clone()),
    );
    let ipv6 = shown(eni, lies, eni.ipv6.clone());
    let prefixes: Vec<_> = eni
        .prefixes
        .iter()
        .filter(|prefix| !lies.imds_hides_prefixes.contains(prefix))
        .collect();
    // IMDS answers 404 where there is nothing, instead of an empty list.
    if !addresses.is_empty() {
        put("local-ipv4s", Node::lines(addresses));
    }
    if !ipv6.is_empty() {
        put("ipv6s", Node::lines(ipv6));
    }
    if !prefixes.is_empty() {
        put("ipv4-prefix", Node::lines(prefixes));
    }
    if !eni.ipv6_prefixes.is_empty() {
        put("ipv6-prefix", Node::lines(&eni.ipv6_prefixes));
    }
    Node::Dir(entries)
}

/// An ENI's addresses of a family with omissions and additions.
fn shown<A: Into<IpAddr> + Copy>(eni: &Eni, lies: &Lies, own: impl IntoIterator<Item = A>) -> Vec<IpAddr> {
    let own: Vec<IpAddr> = own.into_iter().map(Into::into).collect();
    let ipv4 = own.first().is_some_and(IpAddr::is_ipv4);
    let added = lies
        .imds_adds_addresses
        .iter()
        .filter(|(id, address)| *id == eni.id && address.is_ipv4() == ipv4)
        .map(|(_, address)| *address);
    own.iter()
        .copied()
        .filter(|address| !lies.imds_hides_addresses.contains(address))
        .chain(added)
        .collect()
}

fn iam(model: &Model, instance: &Instance, role: &str) -> Node {
    let now = SystemTime::now()
        .duration_since(SystemTime::UNIX_EPOCH)
        .map_or(0, |since| since.as_secs());
    let key = instance.id.0.trim_start_matches("i-").to_uppercase();
    let credentials = serde_json::json!({
        "Code": "Success",
        "LastUpdated": date(now),
        "Type": "AWS-HMAC",
        "AccessKeyId": format!("ASIA{}", key.get(..16).unwrap_or("LABLABLABLABLABL")),
        "SecretAccessKey": format!("lab/{key}/secret/of/no/value"),
        "Token": format!("lab-session-{key}"),
        "Expiration": date(now + 6 * 3_600),
    });
    let info = serde_json::json!({
        "Code": "Success",
        "LastUpdated": date(now),
        "InstanceProfileArn": format!("arn:aws:iam::{}:instance-profile/{role}", model.account),
        "InstanceProfileId": "AIPALABLABLABLABLABLA",
    });
    Node::dir([
        ("info", Node::leaf(pretty(&info))),
        (
            "security-credentials",
            Node::dir([(role, Node::leaf(pretty(&credentials)))]),
        ),
    ])
}

fn dynamic(sources: &Sources<'_>) -> Node {
    let Sources { model, instance, .. } = sources;
    let document = serde_json::json!({
        "accountId": model.account,
        "architecture": "x86_64",
        "availabilityZone": instance.zone,
        "billingProducts": null,
        "devpayProductCodes": null,
        "marketplaceProductCodes": null,
        "imageId": "ami-0000000000000001ab",
        "instanceId": instance.id.as_str(),
        "instanceType": instance.instance_type,
        "kernelId": null,
        "pendingTime": date(instance.launched),
        "privateIp": instance.private_ip.to_string(),
        "ramdiskId": null,
        "region": model.region,
        "version": "2017-09-30",
    });
    Node::dir([(
        "instance-identity",
        Node::dir([("document", Node::leaf(pretty(&document)))]),
    )])
}

fn pretty(value: &serde_json::Value) -> String {
    serde_json::to_string_pretty(value).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_and_listings() {
        let tree = Node::dir([
            (
                "a",
                Node::dir([
                    ("leaf", Node::leaf(1)),
                    ("dir", Node::dir([])),
                    ("gone", Node::Ghost),
                ]),
            ),
            ("b", Node::leaf("x")),
        ]);
        assert_eq!(tree.at("a/leaf"), Some(&Node::leaf(1)));
        assert_eq!(tree.at("a/leaf/deeper"), None);
        assert_eq!(tree.at("a/gone/deeper"), None);
        let Some(Node::Dir(entries)) = tree.at("a") else {
            panic!()
        };
        assert_eq!(Node::listing(entries), "dir/\ngone/\nleaf");
    }
}
