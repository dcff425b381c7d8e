//! ENIConfigs: in which subnets and with which security groups a node makes its ENIs (custom networking).
//!
//! They are the objects of the custom resource `eniconfigs.crd.k8s.amazonaws.com/v1alpha1`, read from files here, with
//! two fields of ours: `spec.subnets` for several subnets and `spec.zone` for the zone they are meant for.

mod choose;
mod directory;
pub(super) mod document;
pub(super) mod settings;
#[cfg(test)]
mod tests;

use std::fmt;

pub use choose::{NoEniConfig, choose, choose_named};
pub use directory::EniConfigDirectory;

use crate::ipam::ids::{SecurityGroupId, SubnetId};

/// Where ENIConfigs come from.
pub trait EniConfigSource: fmt::Debug + Send {
    /// Everything there is, read again.
    fn read(&self) -> EniConfigs;
}

/// One ENIConfig.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct EniConfig {
    /// `metadata.name`.
    pub name: String,
    /// `spec.subnet`, or `spec.subnets` in their order; never empty.
    pub subnets: Vec<SubnetId>,
    /// `spec.securityGroups`; empty means those of the primary ENI.
    pub groups: Vec<SecurityGroupId>,
    /// `spec.zone`.
    pub zone: Option<String>,
    /// File and line, for reports.
    pub origin: String,
}

/// What a source has.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct EniConfigs {
    /// What can be used; no name comes twice.
    pub configs: Vec<EniConfig>,
    /// What is wrong, all of it.
    pub problems: Vec<EniConfigProblem>,
}

impl EniConfigs {
    /// Whether an ENIConfig is missing from the list that somebody meant to be there.
    pub fn is_incomplete(&self) -> bool {
        self.problems.iter().any(|problem| problem.lost != Lost::Nothing)
    }
}

/// Something about ENIConfigs that is not as it should be.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct EniConfigProblem {
    /// File and line.
    pub origin: String,
    /// What is the matter.
    pub what: String,
    /// What cannot be used therefore.
    pub lost: Lost,
}

/// What a problem costs.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Lost {
    /// Nothing: worth knowing only.
    Nothing,
    /// The ENIConfig of this name.
    Named(String),
    /// ENIConfigs whose names cannot be told.
    Unknown,
}

impl fmt::Display for EniConfigProblem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: ", self.origin)?;
        if let Lost::Named(name) = &self.lost {
            write!(f, "ENIConfig {name:?} cannot be used: ")?;
        }
        f.write_str(&self.what)
    }
}
