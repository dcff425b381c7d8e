//! The names and hardware addresses of pod interfaces.

use sha1::{Digest, Sha1};

use crate::ipam::ids::Mac;

/// The longest name the kernel takes: `IFNAMSIZ` less the terminating NUL.
pub const MAX_NAME: usize = 15;
/// How many hex digits of the hash a name carries.
const HASH_DIGITS: usize = 11;
/// The longest prefix that leaves room for the hash.
pub const MAX_PREFIX: usize = MAX_NAME - HASH_DIGITS;

/// The host side's name for interface `index` of a pod: the prefix and eleven hex digits of SHA-1 over
/// `namespace.pod`, or `namespace.pod.index` after the first.
///
/// Calico, the network policy agent and the Go daemon all compute this name, so it is not ours to change.
pub fn host_name(prefix: &str, namespace: &str, pod: &str, index: u32) -> String {
    let mut hash = Sha1::new();
    hash.update(namespace.as_bytes());
    hash.update(b".");
    hash.update(pod.as_bytes());
    if index > 0 {
        hash.update(format!(".{index}").as_bytes());
    }
    let hex = hash
        .finalize()
        .iter()
        .fold(String::new(), |text, byte| text + &format!("{byte:02x}"));
    prefix.chars().chain(hex.chars().take(HASH_DIGITS)).collect()
}

/// The prefix of a name that ends like [`host_name`]'s; `None` for any other.
pub fn prefix_of(name: &str) -> Option<&str> {
    let (prefix, hash) = name.split_at_checked(name.len().checked_sub(HASH_DIGITS)?)?;
    hash.bytes()
        .all(|byte| byte.is_ascii_digit() || matches!(byte, b'a'..=b'f'))
        .then_some(prefix)
}

/// A random hardware address: locally administered, unicast.
///
/// Both ends of a pod's pair get theirs at creation: udev's persistent-MAC policy rewrites addresses the kernel has
/// made up, which would break the pod's permanent neighbour. With 46 random bits a clash among a thousand pods has a
/// chance of one in a hundred million, and a clash on point-to-point links harms nobody, so no link is listed to look.
///
/// # Errors
/// When the kernel has no randomness, which it always has after boot.
pub fn random_mac() -> Result<Mac, getrandom::Error> {
    let mut bytes = [0; 6];
    getrandom::fill(&mut bytes)?;
    let [first, ..] = &mut bytes;
    *first = (*first & 0xfe) | 0x02;
    Ok(Mac(bytes))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Conformance: dataplane 0.5 (golden values) and case 61.
    #[test]
    fn dataplane_61_names_are_the_go_plugins() {
        let name = |ns, pod, index| host_name("eni", ns, pod, index);
        for (ns, pod, index, hash) in [
            ("kube-system", "coredns-57ff979f67-qqbdh", 0, "b5faff8a083"),
            ("kube-system", "coredns-57ff979f67-8ns9b", 0, "9571956a6cc"),
            ("default", "sample-pod", 0, "cc21c2d7785"),
            ("default", "nginx", 0, "c440f455693"),
            ("default", "web-0", 0, "0d7763386da"),
            ("default", "web-0", 1, "b813f772d20"),
            ("default", "web-0", 2, "68e8eca5cc4"),
            ("", "", 0, "3a52ce78095"),
            ("", "", 1, "ce799470a46"),
        ] {
            assert_eq!(name(ns, pod, index), format!("eni{hash}"), "{ns}/{pod} {index}");
        }
        assert_eq!(host_name("vlan", "default", "nginx", 0).len(), MAX_NAME);
    }

    #[test]
    fn only_names_that_end_in_a_hash_have_a_prefix() {
        assert_eq!(prefix_of("enic440f455693"), Some("eni"));
        assert_eq!(prefix_of("c440f455693"), Some(""));
        for other in [
            "eth1",
            "eni1",
            "eni440f45569",
            "enic440f455693z",
            "enic440f45569A",
            "ééééééé",
        ] {
            assert_eq!(prefix_of(other), None, "{other}");
        }
    }

    /// Conformance: dataplane case 63.
    #[test]
    fn dataplane_63_macs_are_local_and_unicast() {
        let macs: std::collections::BTreeSet<_> = (0..100).map(|_| random_mac().unwrap()).collect();
        assert!(macs.len() > 99);
        assert!(macs.iter().all(|mac| mac.0[0] & 0b11 == 0b10));
    }
}
