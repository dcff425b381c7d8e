//! The authoritative model of VPCs, instances and network interfaces: synchronous, deterministic, no I/O.

pub mod change;
pub mod cidr;
pub mod ids;
pub mod types;

pub use change::{AttachedEni, Owned, VpcChange};
pub use cidr::{Ipv4Cidr, Ipv6Cidr};
pub use ids::{AttachmentId, EniId, GroupId, InstanceId, Mac, SubnetId, VpcId};
pub use types::{AttachStatus, Attachment, Eni, Instance, InstanceState, SecurityGroup, Subnet, Tags, Vpc};
