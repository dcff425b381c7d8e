//! Configuration from the environment and a file.
//!
//! [`Config::load`] is pure: environment and file content in, values or all problems out. The variables are
//! upstream's (`amazon-vpc-cni-k8s`) by name and meaning; `AWS_CNI_…` and `RULE_LAYOUT` are ours.

mod eni_config;
mod env_file;
mod features;
#[cfg(any(test, feature = "fuzz"))]
pub(crate) mod fuzz;
mod known;
mod kubelet;
mod load;
mod network;
mod parse;
mod pool;
mod problem;
mod process;
mod reader;
#[cfg(test)]
mod tests;
mod types;
mod yaml;

pub use eni_config::{
    EniConfig, EniConfigDirectory, EniConfigProblem, EniConfigSource, EniConfigs, Lost, NoEniConfig, choose,
    choose_named,
};
pub use kubelet::{DEFAULT_KUBELET_CONFIG, KubeletLimit, kubelet_limit};
pub use load::{DEFAULT_ADD_DEADLINE, DEFAULT_FILE, DEFAULT_SOCKET, DEFAULT_STATE_DIR, config_path};
pub use problem::{ConfigErrors, Origin, Problem, ProblemKind};
pub use process::{LoadError, from_process};
pub use types::{
    AccessKey, AwsConfig, Config, DaemonConfig, EniConfigSelection, LogConfig, NetworkConfig, PoolConfig,
    RuleLayout, Setting, SnatPorts,
};
