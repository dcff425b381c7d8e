//! The authoritative model of VPCs, instances and network interfaces: synchronous, deterministic, no I/O.

mod address_ops;
pub mod change;
pub mod cidr;
mod eni_ops;
pub mod error;
pub mod ids;
pub mod instance_types;
pub mod journal;
pub mod model;
pub mod requests;
pub mod rng;
mod setup;
pub mod space;
pub mod types;

#[cfg(test)]
mod tests;

pub use change::{AttachedEni, Owned, VpcChange};
pub use cidr::{Ipv4Cidr, Ipv6Cidr};
pub use error::{ApiError, ApiResult};
pub use ids::{AttachmentId, EniId, GroupId, InstanceId, Mac, SubnetId, VpcId};
pub use instance_types::{InstanceType, NetworkCard};
pub use model::{Model, Quotas};
pub use requests::{AttachEni, CreateEni, Grant, Modify, NewInstance, Stages, Wanted};
pub use space::Want;
pub use types::{AttachStatus, Attachment, Eni, Instance, InstanceState, SecurityGroup, Subnet, Tags, Vpc};
