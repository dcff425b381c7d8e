//! VPC networking for bare EC2 workers: the library behind the `aws-cni` multicall binary.
//!
//! The folder says what a file may do: `ipam` decides and never does I/O, `net` talks to the kernel and `cloud` to
//! AWS without deciding anything, `store` keeps what was decided, `applets` wire them together.

pub mod applets;
pub mod causes;
pub mod cloud;
pub mod cni;
pub mod config;
#[cfg(any(test, feature = "fuzz"))]
pub mod fuzz;
pub mod net;
pub mod observe;
pub mod rpc;
pub mod store;
#[cfg(test)]
mod testing;

pub use aws_cni_ipam as ipam;
