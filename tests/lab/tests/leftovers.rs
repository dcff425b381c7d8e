//! Nothing is left of a lab: not after its drop, not after a panic, not after SIGKILL.
#![allow(
    clippy::unwrap_used,
    clippy::indexing_slicing,
    clippy::panic,
    reason = "a test may fail"
)]

mod common;

use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use aws_cni_lab::lab::Lab;
use common::eventually;

/// Processes that know the lab's directory from their environment or arguments, and those inside its namespaces.
fn processes_of(dir: &Path, namespaces: &[PathBuf]) -> Vec<String> {
    let dir = dir.to_str().unwrap().as_bytes();
    let mentions = |path: PathBuf| {
        std::fs::read(path).is_ok_and(|text| text.windows(dir.len()).any(|window| window == dir))
    };
    let mut found = Vec::new();
    for entry in std::fs::read_dir("/proc").unwrap().flatten() {
        let process = entry.path();
        let is_number = entry.file_name().to_str().unwrap().parse::<u32>().is_ok();
        if !is_number || entry.file_name().to_str() == Some(&std::process::id().to_string()) {
            continue;
        }
        let inside = std::fs::read_link(process.join("ns/net")).is_ok_and(|own| namespaces.contains(&own));
        if inside || mentions(process.join("environ")) || mentions(process.join("cmdline")) {
            found.push(process.display().to_string());
        }
    }
    found
}

fn named_namespaces() -> usize {
    std::fs::read_dir("/run/netns").map_or(0, Iterator::count)
}

fn lab_with_daemon() -> (Lab, aws_cni_lab::process::Daemon, PathBuf, i32) {
    let lab = Lab::builder().node("a", "t3.medium").build().unwrap();
    let node = lab.node("a").unwrap();
    let spec = node
        .daemon_spec("/bin/sh")
        .arg("-c")
        .arg("echo up; setsid sleep 1000 & sleep 1000");
    let daemon = node.start(spec).unwrap();
    daemon.wait_log("up", common::SOON).unwrap();
    let (dir, pid) = (lab.dir().to_owned(), daemon.pid());
    (lab, daemon, dir, pid)
}

fn is_gone(dir: &Path, pid: i32) -> bool {
    !dir.exists() && !Path::new(&format!("/proc/{pid}")).exists()
}

#[test]
fn after_a_drop() {
    let named = named_namespaces();
    let (lab, daemon, dir, pid) = lab_with_daemon();
    let namespaces = [link_of(&lab)];
    assert!(dir.exists());
    // The cleaner, the daemon and its two children, one of which has left the process group.
    eventually(|| processes_of(&dir, &namespaces).len() == 4);
    assert_eq!(named_namespaces(), named);
    drop((daemon, lab));
    assert!(is_gone(&dir, pid));
    assert_eq!(processes_of(&dir, &namespaces), Vec::<String>::new());
    assert!(!descriptors(std::process::id()).contains(&namespaces[0]));
}

#[test]
fn after_a_panic() {
    let (sender, receiver) = std::sync::mpsc::channel();
    let panicked = std::thread::spawn(move || {
        let (lab, daemon, dir, pid) = lab_with_daemon();
        sender.send((dir, pid)).unwrap();
        let _owned = (lab, daemon);
        panic!("in the middle of a test");
    });
    assert!(panicked.join().is_err());
    let (dir, pid) = receiver.recv().unwrap();
    assert!(is_gone(&dir, pid));
}

#[test]
fn after_sigkill() {
    killed_with("KILL");
}

#[test]
fn after_ctrl_c() {
    killed_with("INT");
}

/// A lab of its own, which does not outlive a test that fails.
struct Running(Child);

impl Drop for Running {
    fn drop(&mut self) {
        drop(self.0.kill());
        drop(self.0.wait());
    }
}

fn killed_with(signal: &str) {
    // A shell starts what it runs in the background with SIGINT ignored (POSIX, "Asynchronous Lists"), and so would
    // the lab be if this test was started that way.
    let lab = Command::new("env")
        .args(["--default-signal=INT", env!("CARGO_BIN_EXE_aws-cni-lab")])
        .args([
            "up",
            "--node",
            "a:t3.medium",
            "--node",
            "b:m5.large",
            "--run",
            "echo up; setsid sleep 1000 & sleep 1000",
        ])
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut lab = Running(lab);
    let dir = wait_ready(&mut lab.0);
    eventually(|| {
        ["a", "b"].iter().all(|node| {
            dir.join(node)
                .join("log/sh.log")
                .metadata()
                .is_ok_and(|log| log.len() > 0)
        })
    });
    let namespaces: Vec<_> = descriptors(lab.0.id())
        .into_iter()
        .filter(|link| is_netns(link))
        .collect();
    assert!(
        namespaces.len() >= 6,
        "router, three networks, two nodes: {namespaces:?}"
    );
    let id = lab.0.id().to_string();
    assert!(
        // The shell's own: a bare Debian has no other.
        Command::new("sh")
            .args(["-c", &format!("kill -s {signal} {id}")])
            .status()
            .unwrap()
            .success()
    );
    eventually(|| lab.0.try_wait().unwrap().is_some());
    eventually(|| processes_of(&dir, &namespaces).is_empty());
    eventually(|| !dir.exists());
}

fn wait_ready(lab: &mut Child) -> PathBuf {
    let lines = BufReader::new(lab.stdout.take().unwrap())
        .lines()
        .map(Result::unwrap);
    let mut dir = None;
    for line in lines {
        if let Some((_, path)) = line.split_once("directory: ") {
            dir = Some(PathBuf::from(path));
        }
        if line.starts_with("ready") {
            break;
        }
    }
    dir.unwrap()
}

fn is_netns(link: &Path) -> bool {
    link.to_str().is_some_and(|link| link.starts_with("net:["))
}

fn descriptors(process: u32) -> Vec<PathBuf> {
    let all = std::fs::read_dir(format!("/proc/{process}/fd"))
        .unwrap()
        .flatten();
    all.filter_map(|entry| std::fs::read_link(entry.path()).ok())
        .collect()
}

fn link_of(lab: &Lab) -> PathBuf {
    let node = lab.node("a").unwrap();
    node.netns()
        .run(|| std::fs::read_link("/proc/thread-self/ns/net").unwrap())
        .unwrap()
}
