//! The virtual machine: qemu without acceleration, a disk, and a serial port that outlives it.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use crate::Dice;
use crate::disk::{self, Cut, Seen};

/// A boot takes ten seconds on an idle machine.
const PATIENCE: Duration = Duration::from_mins(5);

/// What is booted.
pub(crate) struct Kit {
    pub(crate) kernel: PathBuf,
    pub(crate) initrd: PathBuf,
    pub(crate) image: PathBuf,
}

/// A machine that runs.
pub(crate) struct Machine {
    qemu: Child,
    disk: JoinHandle<Seen>,
    port: PathBuf,
    console: PathBuf,
}

impl Machine {
    pub(crate) fn boot(kit: &Kit, folder: &Path, cut: Cut, dice: Dice) -> Self {
        let (socket, port, console) = (folder.join("disk"), folder.join("port"), folder.join("console"));
        for path in [&socket, &port, &console] {
            drop(fs::remove_file(path));
        }
        let disk = disk::serve(&kit.image, &socket, cut, dice).unwrap();
        let qemu = Command::new("qemu-system-x86_64")
            // With cx16 late kernels oopsed here now and then.
            .args(["-M", "q35", "-accel", "tcg,thread=multi", "-cpu", "qemu64,-cx16"])
            .args(["-m", "320", "-nodefaults", "-no-reboot", "-display", "none"])
            .arg("-kernel")
            .arg(&kit.kernel)
            .arg("-initrd")
            .arg(&kit.initrd)
            // On a busy host an emulated timer can be too late for the kernel's check of it.
            .args(["-append", "console=ttyS0 quiet panic=-1 mitigations=off no_timer_check"])
            .arg("-serial")
            .arg(format!("file:{}", console.display()))
            .arg("-drive")
            .arg(format!(
                "driver=nbd,server.type=unix,server.path={},if=none,id=disk,cache.direct=on,cache.no-flush=off",
                socket.display()
            ))
            .args(["-device", "virtio-blk-pci,drive=disk"])
            .args(["-device", "virtio-serial-pci"])
            .arg("-chardev")
            .arg(format!("file,id=port,path={}", port.display()))
            .args(["-device", "virtserialport,chardev=port,name=port"])
            .stdin(Stdio::null())
            .spawn()
            .expect("qemu-system-x86_64 can be run");
        Self {
            qemu,
            disk,
            port,
            console,
        }
    }

    /// Whole lines heard so far. The host's page cache keeps them whatever becomes of the machine.
    pub(crate) fn heard(&self) -> Vec<String> {
        let text = fs::read(&self.port).unwrap_or_default();
        let text = String::from_utf8_lossy(&text).into_owned();
        let whole = |line: &str| Some(line.strip_suffix(" .")?.to_owned());
        text.split_inclusive('\n')
            .filter_map(|line| whole(line.strip_suffix('\n')?))
            .collect()
    }

    /// Waits until a line that begins like this is heard.
    pub(crate) fn wait_for(&mut self, word: &str) {
        let begun = Instant::now();
        while !self.heard().iter().any(|line| line.starts_with(word)) {
            let ended = self.qemu.try_wait().unwrap();
            assert!(
                ended.is_none() && begun.elapsed() < PATIENCE,
                "waited in vain for {word:?}; qemu {ended:?}\n{}\n{}",
                self.heard().join("\n"),
                fs::read_to_string(&self.console).unwrap_or_default()
            );
            thread::sleep(Duration::from_millis(20));
        }
    }

    /// Pulls the plug; what was heard and what the disk saw.
    pub(crate) fn cut(mut self) -> (Vec<String>, Seen) {
        self.qemu.kill().unwrap();
        self.qemu.wait().unwrap();
        let seen = std::mem::take(&mut self.disk_seen());
        (self.heard(), seen)
    }

    fn disk_seen(&mut self) -> Seen {
        let disk = std::mem::replace(&mut self.disk, thread::spawn(Seen::default));
        disk.join().unwrap()
    }
}

impl Drop for Machine {
    fn drop(&mut self) {
        drop(self.qemu.kill());
        drop(self.qemu.wait());
    }
}
