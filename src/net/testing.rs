//! Kernel tests: fresh network namespaces that vanish with the test, whatever happens in it.

use std::fs::File;
use std::os::fd::{AsRawFd, OwnedFd};
use std::path::PathBuf;
use std::process::Command;

use nix::sched::{CloneFlags, unshare};

use super::op::{Ends, Selector};
use crate::ipam::ip::Cidr;

/// Runs `test` on a thread of its own in a new network namespace. A panic inside fails the test outside.
pub(crate) fn in_fresh_netns<T: Send>(test: impl FnOnce() -> T + Send) -> T {
    std::thread::scope(|scope| {
        let thread = scope.spawn(|| {
            unshare(CloneFlags::CLONE_NEWNET).expect("kernel tests need root");
            test()
        });
        thread
            .join()
            .unwrap_or_else(|panic| std::panic::resume_unwind(panic))
    })
}

/// A new network namespace that lives as long as the descriptor.
pub(crate) fn fresh_netns() -> OwnedFd {
    in_fresh_netns(|| File::open("/proc/thread-self/ns/net").unwrap().into())
}

/// A path to an open namespace, as a runtime would hand it to a plugin.
pub(crate) fn fd_path(netns: &OwnedFd) -> PathBuf {
    format!("/proc/self/fd/{}", netns.as_raw_fd()).into()
}

/// What goes from one network to another of the same family.
pub(crate) fn between(from: Cidr, to: Cidr) -> Selector {
    match (from, to) {
        (Cidr::V4(from), Cidr::V4(to)) => Selector::V4(Ends {
            from: Some(from),
            to: Some(to),
        }),
        (Cidr::V6(from), Cidr::V6(to)) => Selector::V6(Ends {
            from: Some(from),
            to: Some(to),
        }),
        _ => panic!("{from} and {to} are of two families"),
    }
}

/// A link's only IPv4 address and its broadcast address, by iproute2.
pub(crate) fn inet_of(link: &str) -> Option<(Option<String>, Option<String>)> {
    let shown = ip_json(&["-4", "addr", "show", link])?;
    let inet = shown[0]["addr_info"].as_array().unwrap();
    assert_eq!(inet.len(), 1, "{shown:#}");
    let text = |key: &str| inet[0][key].as_str().map(str::to_owned);
    Some((text("local"), text("broadcast")))
}

/// Asks iproute2, the independent oracle, in the calling thread's namespace. `None` when it is not installed.
#[allow(dead_code, reason = "used by the tests of later modules")]
pub(crate) fn ip_json(args: &[&str]) -> Option<serde_json::Value> {
    let Ok(output) = Command::new("ip").arg("-j").arg("-d").args(args).output() else {
        eprintln!("skipped a comparison: iproute2 is not installed");
        return None;
    };
    assert!(
        output.status.success(),
        "ip {args:?}: {}",
        String::from_utf8_lossy(&output.stderr)
    );
    let text = if output.stdout.trim_ascii().is_empty() {
        b"[]".to_vec()
    } else {
        output.stdout
    };
    Some(serde_json::from_slice(&text).unwrap())
}
