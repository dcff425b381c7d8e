//! A model of what upstream's daemon (amazon-vpc-cni-k8s v1.23) decides and when, to compare a fleet of ours with.
//!
//! Written from observed behaviour and its documentation: each rule names where it can be checked
//! (<https://github.com/aws/amazon-vpc-cni-k8s/blob/v1.23.1/>, below "repo"). It is kinder than the truth where the truth
//! is costly to model: IMDS shows an ENI as soon as the kernel does, subnets are never full (so the cooldown of 120 s
//! after `InsufficientFreeAddressesInSubnet` never starts), and pods fill prefixes in order.

pub mod agent;
pub mod plan;
pub mod store;

pub use agent::Agent;
pub use store::Target;

/// What happens to an agent.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Happening {
    /// Its loop goes on.
    GoOn,
    /// A call of its loop reaches EC2.
    Arrives,
    /// A call of its loop is answered.
    Answered {
        /// Whether EC2 did it.
        done: bool,
    },
    /// The leak cleaner, which runs beside the loop, looks.
    Leaks,
    /// Kubelet makes a sandbox for a pod.
    Try(u32),
    /// A pod runs.
    Runs(u32),
    /// A pod's time is over.
    Ends(u32),
}
