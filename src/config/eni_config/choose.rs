//! Which ENIConfig holds for this node.
//!
//! The order is upstream's (reference ipamd 1.7), with one step of ours before `default`: by zone. Users of upstream
//! name their ENIConfigs like the zones and make the zone's label the one that names the ENIConfig; here the node knows
//! its zone without the API server.

use super::{EniConfig, EniConfigs, Lost};
use crate::config::types::EniConfigSelection;
use crate::ipam::policy::EniConfigChoice;

/// Set by whoever wants a say above everything else; upstream gives it the first word.
const FIRST_LABEL: &str = "vpc.amazonaws.com/externalEniConfig";

/// What the cloud provider labels a node with its zone by
/// (<https://kubernetes.io/docs/reference/labels-annotations-taints/#topologykubernetesiozone>).
const ZONE_LABELS: [&str; 2] = [
    "topology.kubernetes.io/zone",
    "failure-domain.beta.kubernetes.io/zone",
];

const LAST: &str = "default";

/// Why no ENI can be made.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum NoEniConfig {
    /// A label, annotation or zone names one that is not there.
    #[error("there is no ENIConfig {name:?}, which {by} asks for")]
    Missing {
        /// Its name.
        name: String,
        /// What names it.
        by: String,
    },
    /// It is there and cannot be used.
    #[error("ENIConfig {name:?}, which {by} asks for, cannot be used; see what is wrong with the files")]
    Broken {
        /// Its name.
        name: String,
        /// What names it.
        by: String,
    },
    /// Several claim the zone.
    #[error("zone {zone} is claimed by ENIConfigs {names}; name one of them by a label of the node")]
    Ambiguous {
        /// The zone.
        zone: String,
        /// Who claims it.
        names: String,
    },
    /// None fits, and those that can be read may not be all.
    #[error("no ENIConfig that can be read is for zone {zone}, and not all can be read")]
    Doubtful {
        /// The zone.
        zone: String,
    },
    /// None fits.
    #[error("there is no ENIConfig for zone {zone}, and none named \"default\"")]
    None {
        /// The zone.
        zone: String,
    },
}

impl NoEniConfig {
    /// Whether this may be over when the files are right again; nothing known before is void until then.
    pub fn is_doubt(&self) -> bool {
        matches!(
            self,
            Self::Broken { .. } | Self::Doubtful { .. } | Self::Ambiguous { .. }
        )
    }
}

/// The ENIConfig that holds for a node in `zone`.
pub fn choose(
    all: &EniConfigs,
    selection: &EniConfigSelection,
    zone: &str,
) -> Result<EniConfigChoice, NoEniConfig> {
    if let Some(config) = choose_named(all, selection)? {
        return Ok(config);
    }
    let in_zone = of_zone(all, zone)?;
    if let Some(config) = in_zone {
        return Ok(chosen(config));
    }
    if ZONE_LABELS.contains(&selection.label_key.as_str()) {
        return find(all, zone, format!("label {}", selection.label_key));
    }
    // The one for the zone may be among those that cannot be read, and the wrong subnet is worse than none.
    if all.is_incomplete() {
        let zone = zone.to_owned();
        return Err(NoEniConfig::Doubtful { zone });
    }
    let last = all
        .configs
        .iter()
        .find(|config| config.name == LAST && config.zone.is_none());
    last.map(chosen).ok_or_else(|| NoEniConfig::None {
        zone: zone.to_owned(),
    })
}

/// The ENIConfig that a label or annotation names, wherever the node is; nothing when none does.
pub fn choose_named(
    all: &EniConfigs,
    selection: &EniConfigSelection,
) -> Result<Option<EniConfigChoice>, NoEniConfig> {
    named(selection).map(|(by, name)| find(all, name, by)).transpose()
}

/// What names an ENIConfig, and its name.
fn named(selection: &EniConfigSelection) -> Option<(String, &str)> {
    let label = |key: &str| Some((format!("label {key}"), selection.labels.get(key)?.as_str()));
    let annotation = |key: &str| {
        Some((
            format!("annotation {key}"),
            selection.annotations.get(key)?.as_str(),
        ))
    };
    label(FIRST_LABEL)
        .filter(|(_, name)| !name.is_empty())
        .or_else(|| annotation(&selection.annotation_key).filter(|(_, name)| !name.is_empty()))
        .or_else(|| label(&selection.label_key).filter(|(_, name)| !name.is_empty()))
}

fn find(all: &EniConfigs, name: &str, by: String) -> Result<EniConfigChoice, NoEniConfig> {
    if let Some(config) = all.configs.iter().find(|config| config.name == name) {
        return Ok(chosen(config));
    }
    let name = name.to_owned();
    let is_lost = all.problems.iter().any(|problem| match &problem.lost {
        Lost::Nothing => false,
        Lost::Named(lost) => *lost == name,
        Lost::Unknown => true,
    });
    Err(if is_lost {
        NoEniConfig::Broken { name, by }
    } else {
        NoEniConfig::Missing { name, by }
    })
}

/// The one that says it is for the zone, or the one that is called like it and says nothing else.
fn of_zone<'a>(all: &'a EniConfigs, zone: &str) -> Result<Option<&'a EniConfig>, NoEniConfig> {
    let claiming: Vec<&EniConfig> = all
        .configs
        .iter()
        .filter(|config| config.zone.as_deref() == Some(zone))
        .collect();
    match claiming.as_slice() {
        [] => Ok(all
            .configs
            .iter()
            .find(|config| config.name == zone && config.zone.is_none())),
        [config] => Ok(Some(config)),
        several => {
            let names: Vec<&str> = several.iter().map(|config| config.name.as_str()).collect();
            Err(NoEniConfig::Ambiguous {
                zone: zone.to_owned(),
                names: names.join(", "),
            })
        }
    }
}

fn chosen(config: &EniConfig) -> EniConfigChoice {
    EniConfigChoice {
        name: config.name.clone(),
        subnets: config.subnets.clone(),
        groups: config.groups.clone(),
    }
}
