//! EC2 and the instance metadata service.

mod convert;
mod discovery;
mod ec2;
mod errors;
mod failure;
#[cfg(any(test, feature = "fuzz"))]
pub(crate) mod fuzz;
mod http;
mod imds;
mod imds_error;
mod imds_http;
mod retries;
mod settings;
mod whole;

pub use discovery::{DiscoveredEni, NodeDiscovery};
pub use ec2::{Ec2, action};
pub use errors::next_step;
pub use http::CaBundleError;
pub use imds::{Imds, ImdsLimits};
pub use imds_error::ImdsError;
pub use settings::Ec2Settings;

#[cfg(test)]
mod ec2_prefix_tests;
#[cfg(test)]
mod ec2_tests;
#[cfg(test)]
mod imds_tests;
#[cfg(test)]
mod lab_tests;
#[cfg(test)]
mod testing;
