//! How EC2 is reached, as plain values.

use std::path::PathBuf;
use std::time::Duration;

use crate::config::{AccessKey, AwsConfig};

/// What [`super::Ec2`] needs to know; whatever is `None` the SDK finds out by its own rules (environment, profile,
/// instance metadata).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Ec2Settings {
    /// Region to sign for and to derive the endpoint from.
    pub region: Option<String>,
    /// Endpoint instead of the region's.
    pub endpoint: Option<String>,
    /// Where the credentials of the instance role are fetched, instead of 169.254.169.254.
    pub metadata_endpoint: Option<String>,
    /// Profile of the shared configuration.
    pub profile: Option<String>,
    /// Credentials instead of the chain's.
    pub access_key: Option<AccessKey>,
    /// FIPS endpoint.
    pub use_fips: Option<bool>,
    /// Dual-stack endpoint.
    pub use_dual_stack: Option<bool>,
    /// PEM file with the certificates to trust instead of the system's.
    pub ca_bundle: Option<PathBuf>,
    /// Limit of setting up a connection.
    pub connect_timeout: Duration,
    /// Limit of one attempt, from connecting to the last byte.
    pub attempt_timeout: Duration,
    /// Attempts of calls that may be repeated without harm; all others get one.
    pub max_attempts: u32,
}

impl Ec2Settings {
    /// The settings of a node. The region the instance metadata reports has precedence over `AWS_REGION`, as
    /// upstream has it: an instance's ENIs live in its own region and nowhere else.
    pub fn of_node(config: &AwsConfig, discovered_region: Option<&str>) -> Self {
        Self {
            region: discovered_region
                .map(str::to_owned)
                .or_else(|| config.region.clone()),
            endpoint: config.ec2_endpoint.clone(),
            metadata_endpoint: config.metadata_endpoint.clone(),
            profile: config.profile.clone(),
            access_key: config.access_key.clone(),
            use_fips: config.use_fips,
            use_dual_stack: config.use_dual_stack,
            ca_bundle: config.ca_bundle.clone(),
            connect_timeout: Duration::from_secs(3),
            attempt_timeout: config.http_timeout,
            max_attempts: config.max_attempts,
        }
    }
}
