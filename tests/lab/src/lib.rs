//! A VPC in a box: an EC2 endpoint, an IMDS endpoint, a router and nodes in network namespaces.

pub mod vpc;
