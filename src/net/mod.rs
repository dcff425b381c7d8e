//! What the kernel looks like: netlink, namespaces, sysctls and nftables.

pub mod host;
pub mod layout;
pub mod link;
pub mod netlink;
pub mod netns;
pub mod nft;
pub mod op;
pub mod rtnl;
pub mod ruleset;
#[cfg(test)]
pub(crate) mod testing;
pub mod veth;
pub mod wire;
