//! What the kernel looks like: netlink, namespaces, sysctls and nftables.

pub mod conntrack;
pub mod eni;
pub mod facts;
pub mod guard;
pub mod host;
pub mod inherited;
pub mod layout;
pub mod link;
pub mod netlink;
pub mod netns;
pub mod nft;
pub mod op;
pub mod pod;
pub mod rtnl;
pub mod ruleset;
pub mod sysctl;
#[cfg(test)]
pub(crate) mod testing;
pub mod veth;
pub mod watch;
pub mod wire;
