//! What the kernel looks like: netlink, namespaces, sysctls and nftables.

pub mod layout;
pub mod netlink;
pub mod netns;
pub mod nft;
pub mod ruleset;
#[cfg(test)]
pub(crate) mod testing;
pub mod wire;
