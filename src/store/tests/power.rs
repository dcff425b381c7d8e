//! A power cut: what the device has at that instant, mounted afresh.
//!
//! The file system lies on a loop device over an image file. Writes reach the image only when the file system sends
//! them to its device, so a copy of the image taken while the writer is killed is what a cut leaves: the page cache
//! of the inner file system is lost, its journal is replayed at the next mount. Not simulated: a device that lies
//! about its cache.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use super::child::succeed;
use super::full::own_mounts;
use super::*;

const ROUNDS: u64 = 6;

#[test]
fn baseline_fault_4_a_power_cut_loses_nothing_acknowledged() {
    if !crate::testing::is_real_root() {
        println!("SKIPPED: only the machine's root may mount a loop device");
        return;
    }
    let root = tempfile::tempdir().unwrap();
    succeed("mode=power", root.path());
}

/// Each round grows the same disk: the first has a new database, the others one with history.
pub(super) fn cut_the_power(root: &Path) {
    if !own_mounts() {
        println!("SKIPPED: no right to make a mount namespace");
        return;
    }
    let image = root.join("disk");
    std::fs::File::create(&image).unwrap().set_len(96 << 20).unwrap();
    if !tool("mkfs.ext4", &["-q", "-F"], &[&image]) {
        println!("SKIPPED: no mkfs.ext4");
        return;
    }
    let mut highest = Generation(0);
    for round in 0..ROUNDS {
        let disk = Mounted::new(root, &image);
        let Some(disk) = disk else {
            println!("SKIPPED: no loop device to be had");
            return;
        };
        let acknowledged = crash::write_and_die(
            &disk.at.join("ipam"),
            crash::From::FirstAnswer,
            Duration::from_millis(60 + round * 97),
        );
        let after = root.join("after-the-cut");
        std::fs::copy(&image, &after).unwrap();
        drop(disk);
        std::fs::rename(&after, &image).unwrap();

        let disk = Mounted::new(root, &image).unwrap();
        // The copy and the journal are enough, too.
        let without_sled = Place::new();
        damage::copy_files(&disk.at.join("ipam"), &without_sled.dir());
        journal::destroy_sled(&without_sled.dir(), 5);
        let witness = without_sled.open().1.entries;
        let (store, loaded) = Store::open(&disk.at.join("ipam"), options()).unwrap();
        assert_eq!(loaded.damage, None, "round {round}");
        assert!(loaded.doubts.is_empty());
        assert!(loaded.entries == witness, "round {round}: two complete witnesses");
        for (writer, count, generation) in acknowledged {
            let found = crash::count_of(&loaded.entries, "left", writer);
            assert!(
                found >= count,
                "round {round}: writer {writer} acknowledged {count}, found {found}"
            );
            highest = highest.max(generation);
        }
        assert!(loaded.generation > highest);
        store.close();
    }
    assert!(highest > Generation(100), "the writers did write");
}

struct Mounted {
    at: PathBuf,
}

impl Mounted {
    fn new(root: &Path, image: &Path) -> Option<Self> {
        let at = root.join("mounted");
        std::fs::create_dir_all(&at).unwrap();
        tool("mount", &["-o", "loop"], &[image, &at]).then_some(Self { at })
    }
}

impl Drop for Mounted {
    fn drop(&mut self) {
        nix::mount::umount(&self.at).unwrap();
    }
}

fn tool(name: &str, options: &[&str], paths: &[&Path]) -> bool {
    Command::new(name)
        .args(options)
        .args(paths)
        .env("PATH", "/usr/sbin:/sbin:/usr/bin:/bin")
        .status()
        .is_ok_and(|status| status.success())
}
