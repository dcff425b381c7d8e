//! A VPC in a box: an EC2 endpoint, an IMDS endpoint, a router and nodes in network namespaces.

pub mod demo;
pub mod fabric;
pub mod lab;
pub mod netns;
pub mod node;
pub mod pod;
pub mod probe;
pub mod process;
pub mod vpc;
