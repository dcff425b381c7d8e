//! A VPC in a box: an EC2 endpoint, an IMDS endpoint, a router and nodes in network namespaces.

pub mod calls;
pub mod cloud;
pub mod ec2;
pub mod faults;
pub mod http;
pub mod imds;
pub mod vpc;
