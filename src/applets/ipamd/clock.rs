//! The only place where the daemon reads time and the machine's identity.

use std::path::Path;
use std::{fs, io};

use nix::time::{ClockId, clock_gettime};

use crate::ipam::ids::{BootId, InstanceId, Tick};

/// Now, by `CLOCK_BOOTTIME`: it counts suspended time, never jumps, and goes on over restarts of the daemon.
pub(super) fn now() -> Tick {
    clock_gettime(ClockId::CLOCK_BOOTTIME).map_or(Tick(0), |time| {
        let seconds = u64::try_from(time.tv_sec()).unwrap_or(0);
        let millis = u64::try_from(time.tv_nsec()).unwrap_or(0) / 1_000_000;
        Tick(seconds.saturating_mul(1000).saturating_add(millis))
    })
}

/// This boot's id (`random(4)`, `/proc/sys/kernel/random/boot_id`).
pub(super) fn boot_id() -> io::Result<BootId> {
    Ok(BootId(
        fs::read_to_string("/proc/sys/kernel/random/boot_id")?
            .trim()
            .to_owned(),
    ))
}

/// When the machine booted, in seconds since 1970 (`proc(5)`, `btime` of `/proc/stat`).
pub(super) fn booted_at() -> io::Result<u64> {
    let stat = fs::read_to_string("/proc/stat")?;
    stat.lines()
        .find_map(|line| line.strip_prefix("btime ")?.trim().parse().ok())
        .ok_or_else(|| io::Error::new(io::ErrorKind::InvalidData, "/proc/stat has no btime"))
}

/// The instance id that Nitro instances carry in their DMI table, where IMDS is not needed to read it
/// (<https://docs.aws.amazon.com/AWSEC2/latest/UserGuide/identify_ec2_instances.html>).
pub(super) fn dmi_instance_id() -> Option<InstanceId> {
    dmi_instance_id_in(Path::new("/sys/devices/virtual/dmi/id/board_asset_tag"))
}

fn dmi_instance_id_in(file: &Path) -> Option<InstanceId> {
    let tag = fs::read_to_string(file).ok()?;
    let tag = tag.trim();
    let hex = tag.strip_prefix("i-")?;
    let plausible = matches!(hex.len(), 8 | 17) && hex.bytes().all(|byte| byte.is_ascii_hexdigit());
    plausible.then(|| InstanceId::from(tag))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn time_moves_forward_and_the_boot_has_a_name() {
        let earlier = now();
        assert!(earlier > Tick(0));
        assert!(now() >= earlier);
        assert_eq!(boot_id().unwrap().as_str().len(), 36);
        assert!(booted_at().unwrap() > 1_000_000_000);
    }

    #[test]
    fn only_a_plausible_asset_tag_is_an_instance_id() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("board_asset_tag");
        for (text, expected) in [
            ("i-0123456789abcdef0\n", Some("i-0123456789abcdef0")),
            ("i-1234abcd", Some("i-1234abcd")),
            ("Not Specified", None),
            ("i-xyz", None),
            ("", None),
        ] {
            fs::write(&file, text).unwrap();
            assert_eq!(
                dmi_instance_id_in(&file),
                expected.map(InstanceId::from),
                "{text:?}"
            );
        }
        assert_eq!(dmi_instance_id_in(&dir.path().join("absent")), None);
    }
}
