//! What the operator wants: targets, limits and patience, as plain values.

use std::collections::BTreeMap;
use std::time::Duration;

use super::ids::{SecurityGroupId, SubnetId};
use super::ip::IpFamily;

/// How much to hold ready for pods that have not come yet.
///
/// One variant per family of targets, so that adding one breaks every match that must know it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum WarmTarget {
    /// `WARM_ENI_TARGET`: this many ENIs' worth of free secondary addresses. 0 means: never quite empty.
    Enis(u32),
    /// `WARM_IP_TARGET` and `MINIMUM_IP_TARGET`.
    Ips {
        /// Free addresses to hold ready; 0 means: never quite empty.
        warm: u32,
        /// Addresses to have in all, free or not.
        minimum: u32,
    },
    /// `ADAPTIVE_WARM_POOL`: as much as pods came at once lately.
    Adaptive,
    /// `WARM_PREFIX_TARGET`: this many prefixes' worth of free addresses. 0 means: never quite empty.
    Prefixes(u32),
    /// None at all, as long as the node is cordoned: a pod that comes all the same waits for its address.
    Nothing,
}

/// What an ENIConfig says of new ENIs, once it has been decided which of them holds for this node.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct EniConfigChoice {
    /// Its name, for reports.
    pub name: String,
    /// Where new ENIs are made, in order of preference; never empty.
    pub subnets: Vec<SubnetId>,
    /// Their security groups; empty means those of the primary ENI.
    pub groups: Vec<SecurityGroupId>,
}

/// The operator's settings and the constants of the pool, in one place.
#[derive(Debug, Clone, PartialEq, Eq)]
#[allow(clippy::struct_excessive_bools, reason = "one for each switch of upstream's")]
pub struct Policy {
    /// Which addresses pods get.
    pub family: IpFamily,
    /// `ENABLE_V4_EGRESS` or `ENABLE_V6_EGRESS`: pods get a node-local address of the other family as well.
    pub egress: bool,
    /// What to hold ready of single addresses.
    pub warm: WarmTarget,
    /// `ENABLE_PREFIX_DELEGATION`: addresses come in /28 prefixes where the instance type can carry them, and this much is
    /// held ready.
    pub prefixes: Option<WarmTarget>,
    /// `MAX_ENI`, when it is a number of at least 1: so many on each network card. The instance type's limit applies in
    /// any case.
    pub max_enis: Option<u32>,
    /// `ENABLE_MULTI_NIC`: the network cards besides the first are managed, too ([`Self::has_further_cards`]).
    pub multi_nic: bool,
    /// Kubelet's max-pods, where known: there is no use for more addresses at a time.
    pub max_pods: Option<u32>,
    /// `IP_COOLDOWN_PERIOD`: how long a released address rests; zero switches it off.
    pub cooldown: Duration,
    /// `CLUSTER_NAME`, for tags.
    pub cluster_name: Option<String>,
    /// `ADDITIONAL_ENI_TAGS`, already freed of the reserved keys.
    pub additional_tags: BTreeMap<String, String>,
    /// `MANAGE_UNTAGGED_ENI`.
    pub manage_untagged: bool,
    /// `DISABLE_NETWORK_RESOURCE_PROVISIONING` turned round: whether EC2 may be asked for more.
    pub provisioning: bool,
    /// `ENABLE_IMDS_ONLY_MODE` turned round: whether EC2 is asked anything. If not, IMDS is all there is to know.
    pub ask_ec2: bool,
    /// `AWS_VPC_K8S_CNI_CUSTOM_NETWORK_CFG`: pods get no addresses of the primary ENI, and new ENIs are made as
    /// [`Policy::eni_config`] says.
    pub custom_networking: bool,
    /// `AWS_MANAGE_ENIS_NON_SCHEDULABLE`: a cordoned node grows and shrinks like any other.
    pub manage_when_cordoned: bool,
    /// The ENIConfig that holds for this node; with custom networking and without it no ENI can be made.
    pub eni_config: Option<EniConfigChoice>,
    /// Why there is none, with the name that was looked for: for whoever waits for an ENI.
    pub eni_config_missing: Option<String>,
    /// `ENABLE_SUBNET_DISCOVERY`: new ENIs go where tags allow them, and ENIs in subnets that are not for us are emptied.
    pub subnet_discovery: bool,
    /// `DISABLE_LEAKED_ENI_CLEANUP` turned round: whether ENIs that other instances have left behind are deleted.
    pub leak_cleanup: bool,
    /// How often they are looked for.
    pub leak_check: Duration,
    /// How long the first ADDs wait for EC2 to confirm what IMDS says.
    pub start_patience: Duration,
    /// How long after its attach was answered an ENI's link may take to appear before that is an alarm.
    pub link_patience: Duration,
    /// How long EC2's Describe may lag behind EC2's own answers before an omission means anything.
    pub describe_lag: Duration,
    /// How long more than the target must have been there before it is given back.
    pub shrink_patience: Duration,
    /// How often EC2 is asked whether anything has drifted although nothing happened here.
    pub drift_check: Duration,
    /// How often IMDS is asked the same where EC2 is not.
    pub imds_check: Duration,
    /// How often the kernel is asked again about addresses only it knows.
    pub kernel_recheck: Duration,
    /// Seed of the jitter of back-offs; the daemon draws it, so that nodes do not retry in step.
    pub seed: u64,
}

impl Policy {
    /// Whether pods get IPv6 addresses.
    pub fn is_six(&self) -> bool {
        self.family == IpFamily::V6
    }

    /// Whether network cards besides the first are managed. On an IPv6 node they are not.
    pub fn has_further_cards(&self) -> bool {
        self.multi_nic && !self.is_six()
    }

    /// Whether the pool sizes itself.
    pub fn is_adaptive(&self) -> bool {
        !self.is_six() && (self.warm == WarmTarget::Adaptive || self.prefixes == Some(WarmTarget::Adaptive))
    }
}

impl Default for Policy {
    fn default() -> Self {
        Self {
            family: IpFamily::V4,
            egress: false,
            warm: WarmTarget::Enis(1),
            prefixes: None,
            max_enis: None,
            multi_nic: false,
            max_pods: None,
            cooldown: Duration::from_secs(30),
            cluster_name: None,
            additional_tags: BTreeMap::new(),
            manage_untagged: true,
            provisioning: true,
            ask_ec2: true,
            custom_networking: false,
            manage_when_cordoned: false,
            eni_config: None,
            eni_config_missing: None,
            subnet_discovery: true,
            leak_cleanup: true,
            leak_check: Duration::from_hours(1),
            start_patience: Duration::from_secs(2),
            link_patience: Duration::from_mins(1),
            describe_lag: Duration::from_mins(1),
            shrink_patience: Duration::from_secs(30),
            drift_check: Duration::from_hours(1),
            imds_check: Duration::from_mins(1),
            kernel_recheck: Duration::from_secs(10),
            seed: 0,
        }
    }
}
