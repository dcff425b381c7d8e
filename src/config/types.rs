//! The configuration as values: what every setting is called and means once it has been read.

use std::collections::BTreeMap;
use std::fmt;
use std::path::PathBuf;
use std::time::Duration;

use super::problem::{Origin, Problem};
use crate::ipam::cidr::Ipv4Cidr;
pub use crate::net::layout::RuleLayout;
pub use crate::net::nft::model::SnatPorts;
use crate::observe::{LogDestination, LogLevel};

/// Everything `ipamd` was told, checked and with defaults filled in.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Config {
    /// Warm pool and ENIs.
    pub pool: PoolConfig,
    /// Which ENIConfig holds, with custom networking.
    pub eni_config: EniConfigSelection,
    /// Pod and host networking.
    pub network: NetworkConfig,
    /// How AWS is reached and what is written on its objects.
    pub aws: AwsConfig,
    /// Paths, sockets and deadlines of the daemon itself.
    pub daemon: DaemonConfig,
    /// Logs.
    pub log: LogConfig,
    /// The conflist.
    pub conflist: ConflistConfig,
    /// What was read but not taken as written; nothing here prevents a start.
    pub warnings: Vec<Problem>,
    /// Every setting with its effective value and where it came from, by name.
    pub settings: Vec<Setting>,
}

/// Warm pool and ENIs.
#[derive(Debug, Clone, PartialEq, Eq)]
#[allow(clippy::struct_excessive_bools, reason = "one for each switch of upstream's")]
pub struct PoolConfig {
    /// `ENABLE_IPv6`: pods get addresses of a /80, and no target counts.
    pub ipv6: bool,
    /// `WARM_ENI_TARGET`.
    pub warm_eni_target: u32,
    /// `WARM_IP_TARGET`; 0 is unset.
    pub warm_ip_target: u32,
    /// `MINIMUM_IP_TARGET`; 0 is unset.
    pub minimum_ip_target: u32,
    /// `WARM_PREFIX_TARGET`; at least 1 with prefix delegation and no other target.
    pub warm_prefix_target: u32,
    /// `ENABLE_PREFIX_DELEGATION`; whether the instance type can is another question.
    pub prefix_delegation: bool,
    /// `ADAPTIVE_WARM_POOL`: no target counts, the pool sizes itself.
    pub adaptive: bool,
    /// `MAX_ENI`, on each network card; on the first one the primary included.
    pub max_eni: Option<u32>,
    /// `ENABLE_MULTI_NIC`: network cards besides the first are managed, too.
    pub multi_nic: bool,
    /// `IP_COOLDOWN_PERIOD`.
    pub cooldown: Duration,
    /// `AWS_CNI_MAX_PODS`: no more addresses than this are ever wanted.
    pub max_pods: Option<u32>,
    /// `AWS_CNI_KUBELET_CONFIG`: where that number comes from when it is not given.
    pub kubelet_config: PathBuf,
    /// `DISABLE_NETWORK_RESOURCE_PROVISIONING` or `ENABLE_IMDS_ONLY_MODE`, negated: whether ENIs and addresses may be
    /// acquired and released.
    pub provisioning: bool,
    /// `ENABLE_IMDS_ONLY_MODE`, negated: whether EC2 is asked anything at all.
    pub ask_ec2: bool,
    /// `MANAGE_UNTAGGED_ENI`.
    pub manage_untagged_eni: bool,
    /// `AWS_MANAGE_ENIS_NON_SCHEDULABLE`.
    pub manage_when_cordoned: bool,
    /// `ENABLE_SUBNET_DISCOVERY`.
    pub subnet_discovery: bool,
    /// `DISABLE_LEAKED_ENI_CLEANUP`, negated; never without provisioning.
    pub leak_cleanup: bool,
    /// `AWS_VPC_K8S_CNI_CUSTOM_NETWORK_CFG`.
    pub custom_networking: bool,
}

/// Where ENIConfigs come from and which of them holds for this node (custom networking).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct EniConfigSelection {
    /// `AWS_CNI_ENICONFIG_DIR`.
    pub directory: PathBuf,
    /// `AWS_CNI_NODE_LABELS`.
    pub labels: BTreeMap<String, String>,
    /// `AWS_CNI_NODE_ANNOTATIONS`.
    pub annotations: BTreeMap<String, String>,
    /// `ENI_CONFIG_LABEL_DEF`: the label that names the ENIConfig.
    pub label_key: String,
    /// `ENI_CONFIG_ANNOTATION_DEF`: the annotation that does, before that label.
    pub annotation_key: String,
}

/// Pod and host networking.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NetworkConfig {
    /// `AWS_VPC_K8S_CNI_EXTERNALSNAT`: something else does SNAT.
    pub external_snat: bool,
    /// `AWS_VPC_K8S_CNI_EXCLUDE_SNAT_CIDRS`.
    pub snat_exclude: Vec<Ipv4Cidr>,
    /// `AWS_VPC_K8S_CNI_RANDOMIZESNAT`.
    pub snat_ports: SnatPorts,
    /// `AWS_VPC_K8S_CNI_CONNMARK`: fwmark, connmark and their mask.
    pub connmark: u32,
    /// `AWS_VPC_CNI_NODE_PORT_SUPPORT`.
    pub node_port: bool,
    /// `AWS_EXTERNAL_SERVICE_CIDRS`.
    pub external_services: Vec<Ipv4Cidr>,
    /// `AWS_VPC_ENI_MTU`.
    pub eni_mtu: u32,
    /// `POD_MTU`; [`NetworkConfig::eni_mtu`] when unset.
    pub pod_mtu: u32,
    /// `AWS_VPC_K8S_CNI_VETHPREFIX`.
    pub veth_prefix: String,
    /// `RULE_LAYOUT`.
    pub rule_layout: RuleLayout,
    /// `DISABLE_TCP_EARLY_DEMUX`.
    pub disable_tcp_early_demux: bool,
}

/// How AWS is reached and what is written on its objects.
///
/// The SDK reads its own variables from the process environment. What stands here is what it cannot know: values
/// from the configuration file and of variables that are not the SDK's.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct AwsConfig {
    /// `CLUSTER_NAME`; `None` when empty.
    pub cluster_name: Option<String>,
    /// `ADDITIONAL_ENI_TAGS`.
    pub additional_eni_tags: BTreeMap<String, String>,
    /// `HTTP_TIMEOUT`: the limit of one EC2 attempt.
    pub http_timeout: Duration,
    /// `AWS_REGION` or `AWS_DEFAULT_REGION`; the instance's own region has precedence.
    pub region: Option<String>,
    /// `AWS_ENDPOINT_URL_EC2`, `AWS_ENDPOINT_URL` or the legacy `AWS_EC2_ENDPOINT`.
    pub ec2_endpoint: Option<String>,
    /// `AWS_EC2_METADATA_SERVICE_ENDPOINT`.
    pub metadata_endpoint: Option<String>,
    /// `AWS_MAX_ATTEMPTS`: attempts of a call that may safely be repeated.
    pub max_attempts: u32,
    /// `AWS_USE_FIPS_ENDPOINT`, when the file sets it.
    pub use_fips: Option<bool>,
    /// `AWS_USE_DUALSTACK_ENDPOINT`, when the file sets it.
    pub use_dual_stack: Option<bool>,
    /// `AWS_PROFILE`, when the file sets it.
    pub profile: Option<String>,
    /// `AWS_ACCESS_KEY_ID` and its companions, when the file sets them.
    pub access_key: Option<AccessKey>,
    /// `AWS_CA_BUNDLE`: PEM file with the certificates to trust instead of the system's.
    pub ca_bundle: Option<PathBuf>,
}

/// A static credential.
#[derive(Clone, PartialEq, Eq)]
pub struct AccessKey {
    /// `AWS_ACCESS_KEY_ID`.
    pub id: String,
    /// `AWS_SECRET_ACCESS_KEY`.
    pub secret: String,
    /// `AWS_SESSION_TOKEN`.
    pub session_token: Option<String>,
}

impl fmt::Debug for AccessKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("AccessKey")
            .field("id", &self.id)
            .finish_non_exhaustive()
    }
}

/// Paths, sockets and deadlines of the daemon itself.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DaemonConfig {
    /// `AWS_CNI_SOCKET`.
    pub socket: PathBuf,
    /// `AWS_CNI_STATE_DIR`.
    pub state_dir: PathBuf,
    /// `AWS_CNI_ADD_DEADLINE`: how long an ADD may wait for an address.
    pub add_deadline: Duration,
    /// `AWS_VPC_K8S_CNI_BACKING_STORE`: the Go daemon's checkpoint, to import from.
    pub go_checkpoint: PathBuf,
    /// `AWS_CNI_IMPORT`: whether a first start takes over what stands there.
    pub import: bool,
    /// `INTROSPECTION_BIND_ADDRESS`, `None` with `DISABLE_INTROSPECTION`.
    pub introspection: Option<String>,
    /// `DISABLE_METRICS`, negated.
    pub metrics: bool,
}

/// Logs of the daemon and of the plugins, which get theirs through the conflist.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LogConfig {
    /// `AWS_VPC_K8S_CNI_LOGLEVEL`.
    pub level: LogLevel,
    /// `AWS_VPC_K8S_CNI_LOG_FILE`.
    pub destination: LogDestination,
    /// `AWS_VPC_K8S_PLUGIN_LOG_LEVEL`.
    pub plugin_level: LogLevel,
    /// `AWS_VPC_K8S_PLUGIN_LOG_FILE`.
    pub plugin_destination: LogDestination,
}

/// What the conflist has besides our plugin.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ConflistConfig {
    /// `ENABLE_BANDWIDTH_PLUGIN`.
    pub bandwidth: bool,
    /// `AWS_CNI_CONFLIST_CHAIN_DIR`: further plugins, a file each.
    pub chain_dir: PathBuf,
}

/// One setting as it took effect.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Setting {
    /// Variable name.
    pub name: &'static str,
    /// Effective value; never a secret.
    pub value: String,
    /// Where it came from.
    pub origin: Origin,
}
