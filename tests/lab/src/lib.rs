//! A VPC in a box: an EC2 endpoint, an IMDS endpoint, a router and nodes in network namespaces.
//!
//! A lab has IPv6 on request ([`lab::LabBuilder::ipv6`]): addresses and delegated /80s (`AssignIpv6Addresses`) reach the
//! ENI that has them, and what an ENI may not send is dropped as in IPv4.

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
