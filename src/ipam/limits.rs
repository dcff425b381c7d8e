//! What an instance type can carry.

use serde::{Deserialize, Serialize};

/// ENI and address limits of an instance type (EC2 `DescribeInstanceTypes`, `NetworkInfo`).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct InstanceLimits {
    /// ENIs the default network card can carry, the primary included.
    pub enis: u32,
    /// IPv4 addresses an ENI can carry, its own included.
    pub ipv4_per_eni: u32,
}
