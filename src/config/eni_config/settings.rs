//! The settings of custom networking: where ENIConfigs are and what this node is called by.

use std::collections::BTreeMap;
use std::path::PathBuf;

use super::super::parse;
use super::super::problem::ProblemKind;
use super::super::reader::{Read, Reader, Show, absolute_path, or_refuse};
use super::super::types::EniConfigSelection;

/// Where ENIConfigs are looked for unless `AWS_CNI_ENICONFIG_DIR` says otherwise.
const DEFAULT_DIRECTORY: &str = "/etc/aws-cni/eniconfig.d";

/// Both keys' default, upstream's (reference ipamd 1.7).
const DEFAULT_KEY: &str = "k8s.amazonaws.com/eniConfig";

pub(in crate::config) fn read(r: &mut Reader<'_>, custom_networking: bool) -> EniConfigSelection {
    let selection = EniConfigSelection {
        directory: r.read(
            "AWS_CNI_ENICONFIG_DIR",
            PathBuf::from(DEFAULT_DIRECTORY),
            "an absolute path",
            absolute_path,
        ),
        labels: pairs(r, "AWS_CNI_NODE_LABELS", parse::is_label_value),
        annotations: pairs(r, "AWS_CNI_NODE_ANNOTATIONS", |_| true),
        label_key: key(r, "ENI_CONFIG_LABEL_DEF"),
        annotation_key: key(r, "ENI_CONFIG_ANNOTATION_DEF"),
    };
    if !custom_networking {
        for name in [
            "AWS_CNI_ENICONFIG_DIR",
            "AWS_CNI_NODE_LABELS",
            "AWS_CNI_NODE_ANNOTATIONS",
        ] {
            remark_without_effect(r, name);
        }
    }
    selection
}

fn remark_without_effect(r: &mut Reader<'_>, name: &'static str) {
    if let (true, Some(raw)) = (r.asks_for_something(name), r.raw(name)) {
        let remark = "has no effect without AWS_VPC_K8S_CNI_CUSTOM_NETWORK_CFG=true";
        r.warn(name, &raw, ProblemKind::Remark(remark.to_owned()));
    }
}

/// A list that is wrong somewhere may have named another subnet, so none of it is guessed at.
fn pairs(r: &mut Reader<'_>, name: &'static str, is_value: fn(&str) -> bool) -> BTreeMap<String, String> {
    let pairs = r.read(
        name,
        Pairs::default(),
        "key=value,key=value as kubelet's --node-labels takes them, each key once",
        |text| match text {
            "" => Read::Unset,
            _ => or_refuse(parse::pairs(text, is_value).map(Pairs)),
        },
    );
    pairs.0
}

#[derive(Default)]
struct Pairs(BTreeMap<String, String>);

impl Show for Pairs {
    fn show(&self) -> String {
        let pairs: Vec<String> = self
            .0
            .iter()
            .map(|(key, value)| format!("{key}={value}"))
            .collect();
        pairs.join(",")
    }
}

/// Empty is the default (reference ipamd 1.7).
fn key(r: &mut Reader<'_>, name: &'static str) -> String {
    r.read(
        name,
        DEFAULT_KEY.to_owned(),
        "a label key such as example.com/eni-config",
        |text| match text {
            "" => Read::Unset,
            _ => or_refuse(parse::is_label_key(text).then(|| text.to_owned())),
        },
    )
}
