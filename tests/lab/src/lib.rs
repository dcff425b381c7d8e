//! A VPC in a box: an EC2 endpoint, an IMDS endpoint, a router and nodes in network namespaces.
//!
//! IPv6 is in the model, the EC2 endpoint and IMDS only (`AssignIpv6Addresses` with addresses and /80 prefixes): the
//! router carries IPv4, so no packet of an IPv6 pod arrives anywhere yet.

pub mod bench;
pub mod calls;
pub mod cloud;
pub mod demo;
pub mod ec2;
pub mod fabric;
pub mod faults;
pub mod http;
pub mod imds;
pub mod lab;
pub mod netns;
pub mod node;
pub mod pod;
pub mod probe;
pub mod process;
pub mod varlink;
pub mod vpc;
