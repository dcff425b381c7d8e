//! The state directory damaged, foreign, from the future, from another boot, on a full disk; and DELs left beside it.

use std::collections::BTreeSet;
use std::fs::{self, OpenOptions};
use std::net::Ipv4Addr;
use std::path::{Path, PathBuf};

use aws_cni::store::{read_copy, set_aside};
use aws_cni_lab::lab::Lab;
use aws_cni_lab::pod::Pod;
use serde_json::{Value, json};

use crate::scene::{Scene, said};

fn database(scene: &Scene) -> PathBuf {
    scene.node.dirs().state.join("ipam")
}

fn pending_dels(scene: &Scene) -> Vec<PathBuf> {
    let entries = fs::read_dir(scene.node.dirs().state.join("pending-del"));
    entries
        .into_iter()
        .flatten()
        .map(|entry| entry.unwrap().path())
        .collect()
}

fn set_aside_databases(scene: &Scene) -> Vec<PathBuf> {
    let entries = fs::read_dir(&scene.node.dirs().state).unwrap();
    let paths = entries.map(|entry| entry.unwrap().path());
    paths
        .filter(|path| {
            path.file_name()
                .unwrap()
                .to_str()
                .unwrap()
                .starts_with("ipam.damaged-")
        })
        .collect()
}

/// A node with these pods, its daemon killed after the last-good copy had caught up.
fn killed_with_pods(count: usize) -> (Scene, Vec<Pod>) {
    let mut scene = Scene::new("m5.large");
    let pods = scene.pods("old", count);
    scene.add(&pods, count);
    scene.settle();
    scene.eventually("the copy to have every allocation", || {
        read_copy(&database(&scene)).is_ok_and(|copy| {
            let allocations = copy.entries.keys().filter(|key| key.starts_with("allocation/"));
            allocations.count() == count
        })
    });
    scene.kill();
    (scene, pods)
}

/// The daemon serves again, knows every pod, and gives none of their addresses to others.
fn assert_as_before(scene: &mut Scene, mut pods: Vec<Pod>) {
    scene.start();
    scene.check(&pods);
    let new = scene.pods("new", 4);
    scene.add(&new, 4);
    pods.extend(new);
    scene.check(&pods);
    scene.del(&pods, 8);
    scene.check_empty(3);
}

fn files_below(dir: &Path) -> BTreeSet<PathBuf> {
    let mut files = BTreeSet::new();
    for entry in fs::read_dir(dir).unwrap().map(Result::unwrap) {
        if entry.file_type().unwrap().is_dir() {
            files.extend(files_below(&entry.path()));
        } else {
            files.insert(entry.path());
        }
    }
    files
}

fn damaged(damage: impl Fn(&Path)) {
    let (mut scene, pods) = killed_with_pods(5);
    damage(&database(&scene));
    assert_as_before(&mut scene, pods);
    assert_eq!(set_aside_databases(&scene).len(), 1, "{}", scene.log());
}

#[test]
fn a_database_of_garbage_is_set_aside_and_rebuilt_from_its_copy() {
    damaged(|dir| fs::write(dir.join("db"), vec![0xa5; 1 << 20]).unwrap());
}

#[test]
fn a_truncated_database_is_set_aside_and_rebuilt_from_its_copy() {
    damaged(|dir| {
        let file = OpenOptions::new().write(true).open(dir.join("db")).unwrap();
        file.set_len(64).unwrap();
    });
}

#[test]
fn an_emptied_database_is_set_aside_and_rebuilt_from_its_copy() {
    damaged(|dir| {
        fs::write(dir.join("db"), []).unwrap();
        let of_sled = |path: &PathBuf| path.file_name().unwrap().to_str().unwrap().starts_with("snap");
        files_below(dir)
            .iter()
            .filter(|path| of_sled(path))
            .for_each(|path| fs::remove_file(path).unwrap());
    });
}

#[test]
fn a_database_of_a_later_version_is_set_aside_and_its_copy_taken_over() {
    damaged(|dir| {
        let marker = fs::read_to_string(dir.join("FORMAT")).unwrap();
        fs::write(dir.join("FORMAT"), marker.replace("format 2", "format 999")).unwrap();
    });
}

#[test]
fn without_database_and_copy_the_kernel_protects_live_pods() {
    let (mut scene, mut pods) = killed_with_pods(5);
    let addresses = crate::scene::addresses(&pods);
    set_aside(&database(&scene)).unwrap();
    scene.start();
    let status = scene.wait_for("the pods' addresses to be found", |status| {
        status["quarantined"] == 5
    });
    assert_eq!(status["assigned"], 0, "{status}");
    let new = scene.pods("new", 6);
    scene.add(&new, 6);
    for pod in &new {
        assert!(
            !addresses.contains(&pod.address().unwrap()),
            "{} got a live pod's address",
            pod.label()
        );
    }
    assert!(
        scene.pod_routes().is_superset(&addresses),
        "live pods keep their routes"
    );
    pods.extend(new);
    scene.del(&pods, 6);
    scene.wait_for("the addresses to come back", |status| status["quarantined"] == 0);
    scene.check_empty(3);
}

/// A file that stands in for the machine's boot id, and what puts it there in the daemon's own mount namespace.
fn other_boot(scene: &Scene, id: &str) -> String {
    let file = scene.node.dirs().root.join("boot_id");
    fs::write(&file, format!("{id}\n")).unwrap();
    format!(
        "mount --bind '{}' /proc/sys/kernel/random/boot_id",
        file.display()
    )
}

#[test]
fn after_a_boot_sandboxes_are_void_and_their_addresses_stay_and_rest() {
    let (mut scene, pods) = killed_with_pods(5);
    let addresses = crate::scene::addresses(&pods);
    for link in scene.pod_links() {
        scene.node.ip(&format!("link del {link}\n")).unwrap();
    }
    let owned = scene.ec2_addresses();
    scene.prepare_mounts(&other_boot(&scene, "00000000-0000-4000-8000-000000000002"));
    scene.start();
    let status = scene.settle();
    assert_eq!(
        (&status["assigned"], &status["cooling"]),
        (&0.into(), &5.into()),
        "{status}"
    );
    assert!(scene.ec2_addresses().is_superset(&owned), "addresses are kept");
    let new = scene.pods("new", 4);
    scene.add(&new, 4);
    for pod in &new {
        assert!(
            !addresses.contains(&pod.address().unwrap()),
            "an address was reused before its cooldown"
        );
    }
    // The runtime deletes the sandboxes of before the boot sooner or later.
    scene.del(&pods, 5);
    scene.check(&new);
}

#[test]
fn state_baked_into_an_image_means_nothing_on_another_instance() {
    let (used, pods) = killed_with_pods(5);
    let mut scene = Scene::stage(Lab::builder().seed(20_261_121), "m5.large", &[]);
    assert_ne!(used.node.instance(), scene.node.instance());
    let state = used.node.dirs().state.clone();
    let copied = std::process::Command::new("cp")
        .args(["-a", "-T"])
        .args([&state, &scene.node.dirs().state])
        .status()
        .unwrap();
    assert!(copied.success());
    scene.prepare_mounts(&other_boot(&scene, "00000000-0000-4000-8000-000000000003"));
    scene.start();
    scene.settle();
    scene.check(&[]);
    let dump = scene.dump();
    let foreign: Vec<String> = used
        .lab
        .cloud()
        .model(|model| model.enis().keys().map(ToString::to_string).collect());
    let own: Vec<String> = scene
        .lab
        .cloud()
        .model(|model| model.enis().keys().map(ToString::to_string).collect());
    for eni in dump["enis"].as_array().unwrap() {
        let id = eni["id"].as_str().unwrap().to_owned();
        assert!(
            own.contains(&id) && !foreign.contains(&id),
            "{id} is the other instance's"
        );
    }
    assert_eq!(
        set_aside_databases(&scene).len(),
        1,
        "evidence is kept\n{}",
        scene.log()
    );
    let new = scene.pods("new", 4);
    scene.add(&new, 4);
    scene.check(&new);
    drop(pods);
}

/// Fills the file system of the daemon's state directory, as its mount namespace has it.
struct Disk(PathBuf);

impl Disk {
    fn of(scene: &Scene) -> Self {
        let state = scene.node.dirs().state.display().to_string();
        Self(PathBuf::from(format!(
            "/proc/{}/root{state}/filler",
            scene.daemon().pid()
        )))
    }

    /// Whether there was anything left to fill.
    fn fill(&self) {
        let mut file = OpenOptions::new()
            .create(true)
            .append(true)
            .open(&self.0)
            .unwrap();
        for size in [64 << 10, 4 << 10, 1] {
            while std::io::Write::write_all(&mut file, &vec![1; size]).is_ok() {}
        }
    }

    fn free(&self) {
        fs::remove_file(&self.0).unwrap();
    }
}

#[test]
fn on_a_full_disk_add_says_so_and_del_works_and_space_heals_it() {
    let mut scene = Scene::stage(Lab::builder(), "m5.large", &[("IP_COOLDOWN_PERIOD", "0")]);
    let state = scene.node.dirs().state.display().to_string();
    scene.prepare_mounts(&format!("mount -t tmpfs -o size=16m tmpfs '{state}'"));
    scene.start();
    let old = scene.pods("old", 3);
    scene.add(&old, 3);
    scene.settle();
    let disk = Disk::of(&scene);
    // The journal's room, space that sled has laid out, and the ballast last for a while.
    let mut added = Vec::new();
    let refused = (0..3000).find_map(|round| {
        disk.fill();
        let pod = scene.node.pod("full", &format!("p{round}")).unwrap();
        let outcome = pod.add().unwrap();
        if !outcome.succeeded() {
            return Some(outcome);
        }
        assert!(pod.del().unwrap().succeeded());
        added.push(pod);
        None
    });
    let refused = refused.expect("a full disk refuses an ADD in the end");
    assert_eq!(refused.error_code(), Some(11), "try again: {}", said(&refused));
    assert!(
        refused.stdout.contains("disk"),
        "it names the disk: {}",
        said(&refused)
    );
    scene.del(&old, 3);
    assert!(scene.pod_routes().is_empty());
    disk.free();
    let pod = scene.node.pod("again", "p").unwrap();
    scene.eventually("ADD to work again", || pod.add().unwrap().succeeded());
    scene.wait_for("only that pod to be left", |status| status["assigned"] == 1);
    scene.check(std::slice::from_ref(&pod));
}

/// A node whose daemon is away and whose socket nobody holds.
fn abandoned(count: usize) -> (Scene, Vec<Pod>) {
    let mut scene = Scene::stage(Lab::builder(), "m5.large", &[]);
    scene.without_socket_activation();
    scene.start();
    let pods = scene.pods("pod", count);
    scene.add(&pods, count);
    scene.kill();
    (scene, pods)
}

fn assert_worked_off(scene: &mut Scene, released: u64, left: &[Pod]) {
    scene.start();
    scene.wait_for("the deferred DELs to be worked off", |status| {
        status["assigned"] == left.len() as u64
    });
    scene.eventually("their files to go", || pending_dels(scene).is_empty());
    assert_eq!(scene.count("cooling"), released, "released addresses rest");
    scene.check(left);
}

#[test]
fn a_del_without_the_daemon_cleans_the_kernel_and_is_finished_by_the_next_one() {
    let (mut scene, mut pods) = abandoned(4);
    let stays = pods.split_off(3);
    let addresses: Vec<Option<Ipv4Addr>> = pods.iter().map(Pod::address).collect();
    pods[1].lose_netns();
    for pod in &pods {
        scene.del(std::slice::from_ref(pod), 1);
        scene.del(std::slice::from_ref(pod), 1);
    }
    let left = crate::scene::addresses(&stays);
    assert_eq!(
        scene.pod_routes(),
        left,
        "the kernel is clean before the daemon is back"
    );
    assert_eq!(scene.pod_links().len(), 1);
    assert_eq!(pending_dels(&scene).len(), 3, "one file per sandbox");
    assert_worked_off(&mut scene, 3, &stays);
    let new = scene.pods("new", 3);
    scene.add(&new, 3);
    for pod in &new {
        assert!(
            !addresses.contains(&pod.address()),
            "{:?} was to rest",
            pod.address()
        );
    }
}

#[test]
fn a_del_without_the_daemon_and_without_a_record_is_finished_when_the_sandbox_goes() {
    let (mut scene, pods) = abandoned(2);
    pods[0].set_result(None);
    scene.del(&pods[..1], 1);
    assert_eq!(pending_dels(&scene).len(), 1);
    pods[0].lose_netns();
    assert_worked_off(&mut scene, 1, &pods[1..]);
}

#[test]
fn a_deferred_del_that_cannot_be_read_stays_is_reported_and_holds_up_nothing() {
    let (mut scene, pods) = abandoned(1);
    scene.del(&pods, 1);
    let dir = scene.node.dirs().state.join("pending-del");
    let corrupt = ["0000.json", "zzzz.json"].map(|name| dir.join(name));
    fs::write(&corrupt[0], "{\"version\":1,").unwrap();
    fs::write(&corrupt[1], vec![b'x'; 100_000]).unwrap();
    scene.start();
    scene.wait_for("the legible one to be worked off", |status| {
        status["assigned"] == 0
    });
    scene.eventually("its file to go", || pending_dels(&scene).len() == 2);
    for path in &corrupt {
        assert!(path.exists());
        let name = path.file_name().unwrap().to_str().unwrap();
        assert!(scene.log().contains(name), "{name} is reported\n{}", scene.log());
    }
    scene.check_empty(3);
}

#[test]
fn a_sandbox_that_comes_back_is_not_taken_away_by_its_deferred_del() {
    let (mut scene, pods) = abandoned(1);
    scene.del(&pods, 1);
    std::thread::scope(|scope| {
        let add = scope.spawn(|| pods[0].add().unwrap());
        // ADD withdraws the file before it asks; the daemon is only now there to be asked.
        scene.eventually("the file to be withdrawn", || pending_dels(&scene).is_empty());
        scene.start();
        // On a slow machine the ADD may have lost patience; the runtime repeats it.
        if !add.join().unwrap().succeeded() {
            scene.add(&pods, 1);
        }
    });
    scene.check(&pods);
}

#[test]
fn the_status_of_every_address_survives_a_restart() {
    let mut scene = Scene::new("m5.large");
    let pods = scene.pods("pod", 6);
    scene.add(&pods, 6);
    scene.del(&pods[..3], 3);
    scene.settle();
    let states = |scene: &Scene| -> Vec<Value> {
        let dump = scene.dump();
        let addresses = dump["addresses"].as_array().unwrap().iter();
        addresses
            .map(|known| json!([known["address"], known["state"], known["last_used_ms"]]))
            .collect()
    };
    let before = states(&scene);
    scene.restart();
    scene.settle();
    assert_eq!(states(&scene), before, "no rest is forgotten, none is begun anew");
}

/// The disk failed when the DEL was settled, and the daemon died before it could be written: as a copy of the state shows
/// that was made before.
#[test]
fn ipamd_82_a_del_that_the_disk_never_took_is_found_by_namespace_and_kernel_at_the_next_start() {
    let mut scene = Scene::new("m5.large");
    let pods = scene.pods("pod", 3);
    // A name for each namespace, as runtimes give them; one is removed after its DEL, one stays with its pod.
    let names = scene.node.dirs().root.join("netns");
    fs::create_dir(&names).unwrap();
    let node = std::sync::Arc::clone(&scene.node);
    let invoke = |verb: &str, pod: &Pod, name: &str| {
        let mut parameters = pod.parameters();
        let path = names.join(name);
        parameters.insert("CNI_NETNS".to_owned(), path.display().to_string());
        let outcome = node.runtime().run(verb, &parameters, pod.result()).unwrap();
        assert!(outcome.succeeded(), "{}", said(&outcome));
        pod.set_result(outcome.result());
    };
    for (index, pod) in pods.iter().enumerate() {
        let name = index.to_string();
        std::os::unix::fs::symlink(pod.netns().unwrap().path(), names.join(&name)).unwrap();
        invoke("ADD", pod, &name);
    }
    scene.settle();
    let address = pods[0].address().unwrap();
    let state = scene.node.dirs().state.clone();
    let before = scene.node.dirs().root.join("before");
    let copy = |from: &Path, to: &Path| {
        let copied = std::process::Command::new("cp")
            .args(["-a", "-T"])
            .args([from, to])
            .status();
        assert!(copied.unwrap().success());
    };
    scene.kill();
    copy(&state, &before);
    scene.start();
    invoke("DEL", &pods[0], "0");
    fs::remove_file(names.join("0")).unwrap();
    // The second is being taken away: its namespace has no name any more, and its route is there.
    fs::remove_file(names.join("1")).unwrap();
    scene.kill();
    fs::remove_dir_all(&state).unwrap();
    copy(&before, &state);
    scene.start();
    let status = scene.wait_for("the lost DEL to be found", |status| status["assigned"] == 2);
    assert_eq!(status["cooling"], 1, "{status}");
    assert!(
        scene
            .log()
            .contains("is gone, by its network namespace and by the kernel"),
        "{}",
        scene.log()
    );
    let new = scene.pods("new", 2);
    scene.add(&new, 2);
    assert!(new.iter().all(|pod| pod.address() != Some(address)), "it rests");
}
