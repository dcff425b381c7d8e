//! What the kernel looks like: netlink, namespaces, sysctls and nftables.

pub mod layout;
pub mod netlink;
pub mod netns;
#[cfg(test)]
pub(crate) mod testing;
pub mod wire;
