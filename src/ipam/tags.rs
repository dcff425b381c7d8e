//! What is written on ENIs, and by what they are found again.
//!
//! The names are the Go daemon's, so that either daemon recognises the other's ENIs.

/// The instance an ENI was made for; without it nothing here is ours.
pub const INSTANCE: &str = "node.k8s.amazonaws.com/instance_id";
/// When it was made.
pub const CREATED_AT: &str = "node.k8s.amazonaws.com/createdAt";
/// `true` keeps either daemon away from an ENI.
pub const NO_MANAGE: &str = "node.k8s.amazonaws.com/no_manage";
/// Ours alone: which instance is about to delete an ENI that another has left, and until when.
pub const REAPER: &str = "node.k8s.amazonaws.com/reaper";
/// Ours alone: finds the ENI of a creation whose answer was lost.
pub(super) const TOKEN: &str = "node.k8s.amazonaws.com/client_token";
/// The cluster, when it has a name.
pub const CLUSTER: &str = "cluster.k8s.amazonaws.com/name";
/// Whose it is, for EKS; stands beside the cluster's name.
pub(super) const OWNER: (&str, &str) = ("eks:eni:owner", "amazon-vpc-cni");
/// How an ENI's description begins; the instance id follows.
pub const DESCRIPTION_PREFIX: &str = "aws-K8S-";
/// Whether a subnet is for pods' ENIs: `0` no, anything else yes.
pub const SUBNET_ROLE: &str = "kubernetes.io/role/cni";
/// Before the name of a cluster that a subnet is for.
pub const SUBNET_CLUSTER: &str = "cni.networking.k8s.aws/cluster/";
