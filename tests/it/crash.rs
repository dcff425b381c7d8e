//! `kill -9` at random points: of the daemon while pods come and go and while it grows, and of the plugin.

use std::collections::{BTreeMap, BTreeSet};
use std::io::{Read, Write};
use std::net::Ipv4Addr;
use std::os::unix::net::UnixStream;
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Mutex, RwLock};
use std::time::Duration;

use aws_cni_lab::faults::{Latency, Scope};
use aws_cni_lab::lab::Lab;
use aws_cni_lab::pod::Pod;
use serde_json::{Value, json};

use crate::scene::{PATIENCE, Scene, said};

/// xorshift64 (Marsaglia 2003): other points in every run would make a failure hard to repeat.
pub struct Dice(pub u64);

impl Dice {
    pub fn below(&mut self, end: u64) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0 % end
    }
}

/// Pods that come and go until told to stop, on a node whose daemon is killed meanwhile.
struct Churn<'a> {
    scene: &'a RwLock<Scene>,
    /// Held for reading by each operation, so that whoever holds it for writing finds none under way.
    quiet: RwLock<()>,
    live: Mutex<BTreeMap<String, Pod>>,
    /// Addresses that a pod has had.
    given_back: Mutex<BTreeSet<Ipv4Addr>>,
    reused: AtomicUsize,
    stop: AtomicBool,
}

impl<'a> Churn<'a> {
    fn new(scene: &'a RwLock<Scene>) -> Self {
        Self {
            scene,
            quiet: RwLock::default(),
            live: Mutex::default(),
            given_back: Mutex::default(),
            reused: AtomicUsize::new(0),
            stop: AtomicBool::new(false),
        }
    }

    /// One worker: keeps up to `most` pods alive.
    fn work(&self, worker: u64, most: usize) {
        let mut dice = Dice(0x9e37_79b9 + worker);
        let mut mine: Vec<String> = Vec::new();
        for round in 0.. {
            if self.stop.load(Ordering::Relaxed) {
                return;
            }
            let _busy = self.quiet.read().unwrap();
            if mine.is_empty() || (mine.len() < most && dice.below(2) == 0) {
                mine.push(self.add(&format!("{worker}-{round}")));
            } else {
                let index = usize::try_from(dice.below(mine.len() as u64)).unwrap();
                self.del(&mine.swap_remove(index));
            }
        }
    }

    fn add(&self, name: &str) -> String {
        // The scene's own lock is held for a moment only: the daemon is restarted while this ADD waits for it.
        let pod = self.scene.read().unwrap().node.pod("churn", name).unwrap();
        let outcome = pod.add().unwrap();
        assert!(outcome.succeeded(), "ADD of {name}: {}", said(&outcome));
        let address = pod.address().unwrap();
        if self.given_back.lock().unwrap().contains(&address) {
            self.reused.fetch_add(1, Ordering::Relaxed);
        }
        self.live.lock().unwrap().insert(name.to_owned(), pod);
        name.to_owned()
    }

    fn del(&self, name: &str) {
        let pod = self.live.lock().unwrap().remove(name).unwrap();
        let address = pod.address().unwrap();
        self.given_back.lock().unwrap().insert(address);
        let outcome = pod.del().unwrap();
        assert!(outcome.succeeded(), "DEL of {name}: {}", said(&outcome));
    }

    /// Kills and restarts the daemon in the middle of it, then lets what is under way end, and judges.
    fn kill_and_judge(&self, dice: &mut Dice) {
        std::thread::sleep(Duration::from_millis(dice.below(50)));
        self.scene.write().unwrap().kill();
        // What is asked while nobody is there waits in the socket.
        std::thread::sleep(Duration::from_millis(dice.below(20)));
        self.scene.write().unwrap().start();
        let _quiet = self.quiet.write().unwrap();
        let scene = self.scene.read().unwrap();
        let live = self.live.lock().unwrap();
        let addresses: BTreeSet<Ipv4Addr> = live.values().filter_map(Pod::address).collect();
        assert_eq!(addresses.len(), live.len(), "no address has two pods");
        assert_eq!(
            scene.count("assigned"),
            live.len() as u64,
            "{:#}\n{}",
            scene.status(),
            scene.log()
        );
        assert_eq!(
            scene.pod_routes(),
            addresses,
            "the kernel routes the live pods and no others"
        );
        let foreign: Vec<_> = addresses.difference(&scene.ec2_addresses()).copied().collect();
        assert!(foreign.is_empty(), "EC2 does not know {foreign:?}");
    }
}

/// Kills the daemon this often while workers add and delete, then empties the node.
fn survive(instance_type: &str, max_enis: usize, kills: usize) -> usize {
    let scene = RwLock::new(Scene::with_env(instance_type, &[("IP_COOLDOWN_PERIOD", "0")]));
    let churn = Churn::new(&scene);
    std::thread::scope(|scope| {
        for worker in 0..4 {
            let churn = &churn;
            scope.spawn(move || churn.work(worker, 4));
        }
        let _stop = StopAtEnd(&churn.stop);
        let mut dice = Dice(0x5eed);
        for _ in 0..kills {
            churn.kill_and_judge(&mut dice);
        }
    });
    let names: Vec<String> = churn.live.lock().unwrap().keys().cloned().collect();
    for name in &names {
        churn.del(name);
    }
    scene.read().unwrap().check_empty(max_enis);
    churn.reused.load(Ordering::Relaxed)
}

/// Also when the judge panics; else its panic would wait for workers that never end.
pub struct StopAtEnd<'a>(pub &'a AtomicBool);

impl Drop for StopAtEnd<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

#[test]
fn baseline_fault_4_killed_200_times_during_churn_the_daemon_loses_doubles_and_leaks_nothing() {
    // One ENI's nine addresses for up to sixteen pods: they are reused all the time.
    let reused = survive("m5.large", 3, 200);
    assert!(reused > 0, "addresses were reused, or the test shows nothing");
}

#[test]
fn killed_while_it_grows_the_daemon_resumes_and_leaves_no_interface_over() {
    let scene = Scene::stage(Lab::builder(), "m5.large", &[]);
    scene.lab.cloud().faults().timing(&Scope::All, |timing| {
        timing.ec2 = Latency::Uniform(Duration::from_millis(20), Duration::from_millis(120));
        timing.attach_link = Latency::millis(100);
        timing.attach_status = Latency::millis(100);
    });
    let scene = RwLock::new(scene);
    scene.write().unwrap().start();
    // Each restart takes its time, and the pods wait through all of them.
    let pods = scene.read().unwrap().patient_pods("grow", 25, PATIENCE.as_secs());
    std::thread::scope(|scope| {
        let adds: Vec<_> = pods
            .iter()
            .map(|pod| scope.spawn(|| pod.add().unwrap()))
            .collect();
        let mut dice = Dice(77);
        for _ in 0..8 {
            std::thread::sleep(Duration::from_millis(dice.below(150)));
            scene.write().unwrap().restart();
        }
        for add in adds {
            let outcome = add.join().unwrap();
            assert!(
                outcome.succeeded(),
                "{}\n{}",
                said(&outcome),
                scene.read().unwrap().log()
            );
        }
    });
    let scene = scene.into_inner().unwrap();
    scene.settle();
    scene.check(&pods);
    scene.check_enis(3);
    scene.del(&pods, 8);
    scene.check_empty(3);
}

/// Runs ADD as a runtime does and kills the plugin after so long. Whether it had ended before is returned.
fn add_killed_after(scene: &Scene, pod: &Pod, after: Duration) -> bool {
    let runtime = scene.node.runtime();
    let mut command = Command::new(scene.node.dirs().bin.join("aws-cni"));
    command
        .env_clear()
        .envs(&runtime.conflist.environment)
        .envs(pod.parameters())
        .env("CNI_COMMAND", "ADD")
        .env("CNI_PATH", &scene.node.dirs().bin)
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .stderr(Stdio::null());
    let conf = json!({"cniVersion": "1.1.0", "name": "aws-cni", "type": "aws-cni", "mtu": "9001", "vethPrefix": "eni"});
    scene
        .node
        .netns()
        .run(move || {
            let mut child = command.spawn().unwrap();
            child
                .stdin
                .take()
                .unwrap()
                .write_all(conf.to_string().as_bytes())
                .unwrap();
            std::thread::sleep(after);
            let ended = child.try_wait().unwrap().is_some();
            child.kill().unwrap();
            child.wait().unwrap();
            ended
        })
        .unwrap()
}

#[test]
fn a_plugin_killed_at_any_point_leaves_nothing_that_del_does_not_clean() {
    let scene = Scene::with_env("m5.large", &[("IP_COOLDOWN_PERIOD", "0")]);
    let mut dice = Dice(4711);
    let mut ends = [0, 0];
    for round in 0..50 {
        let pod = scene.node.pod("killed", &format!("p{round}")).unwrap();
        let ended = add_killed_after(&scene, &pod, Duration::from_micros(dice.below(15_000)));
        ends[usize::from(ended)] += 1;
        let outcome = pod.del().unwrap();
        assert!(outcome.succeeded(), "{}", said(&outcome));
        scene.eventually("the release", || scene.count("assigned") == 0);
    }
    assert!(ends[0] > 0, "some were killed before their end: {ends:?}");
    scene.check_empty(3);
}

/// Asks as a plugin does and dies before it has read that the address is durable. The daemon undoes that.
fn ask_and_die(scene: &Scene, name: &str) -> Ipv4Addr {
    let request = json!({"method": "local.awscni.Ipamd1.Add", "more": true, "parameters": {
        "network": "aws-cni", "container_id": name, "ifname": "eth0", "netns": "/run/netns/x",
        "host_veth": format!("eni{name:0>11}"), "deadline_ms": 20_000}});
    let mut stream = UnixStream::connect(scene.node.dirs().socket()).unwrap();
    stream.write_all(format!("{request}\0").as_bytes()).unwrap();
    let mut assigned = Vec::new();
    let mut byte = [0];
    while stream.read_exact(&mut byte).is_ok() && byte != [0] {
        assigned.extend(byte);
    }
    let assigned: Value = serde_json::from_slice(&assigned).unwrap();
    assigned["parameters"]["address"]
        .as_str()
        .unwrap()
        .parse()
        .unwrap()
}

#[test]
fn a_released_address_goes_to_nobody_while_the_kernel_names_it() {
    let scene = Scene::with_env("t3.medium", &[("IP_COOLDOWN_PERIOD", "3")]);
    let names = ["1", "2", "3"];
    let ghosts: BTreeSet<Ipv4Addr> = names.map(|name| ask_and_die(&scene, name)).into();
    scene.wait_for("the allocations to be undone", |status| status["assigned"] == 0);
    // What the daemon took for undone comes to light again before the addresses have rested.
    for (name, address) in names.iter().zip(&ghosts) {
        scene
            .node
            .ip(&format!(
                "link add eni{name:0>11} type veth peer name ghost{name}\nlink set eni{name:0>11} up\n\
                 route add {address}/32 dev eni{name:0>11} table 512\n"
            ))
            .unwrap();
    }
    // The least recently used address is handed out first: in the second round that would be a ghost's.
    for round in ["first", "second"] {
        let pods = scene.pods(round, 12);
        scene.add(&pods, 4);
        scene.check(&pods);
        let taken = crate::scene::addresses(&pods);
        assert!(
            taken.is_disjoint(&ghosts),
            "{taken:?} {ghosts:?}\n{}",
            scene.log()
        );
        scene.del(&pods, 4);
    }
    // Once the kernel has forgotten the addresses they come back.
    for name in names {
        scene.node.ip(&format!("link del eni{name:0>11}\n")).unwrap();
    }
    scene.wait_for("every address to be free again", |status| status["free"] == 15);
    scene.check_empty(3);
}

#[test]
fn without_socket_activation_an_add_waits_for_the_daemon_to_come_back() {
    let mut scene = Scene::stage(Lab::builder(), "m5.large", &[]);
    scene.without_socket_activation();
    scene.start();
    let pods = scene.pods("wait", 4);
    scene.kill();
    let scene = RwLock::new(scene);
    std::thread::scope(|scope| {
        let adds: Vec<_> = pods
            .iter()
            .map(|pod| scope.spawn(|| pod.add().unwrap()))
            .collect();
        scene.write().unwrap().start();
        for add in adds {
            let outcome = add.join().unwrap();
            assert!(outcome.succeeded(), "{}", said(&outcome));
        }
    });
    scene.into_inner().unwrap().check(&pods);
}
