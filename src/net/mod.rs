//! What the kernel looks like: netlink, namespaces, sysctls and nftables.
