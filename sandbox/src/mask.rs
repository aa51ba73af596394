//! Covers files of `/proc` and `/sys` that a sandbox must not reach.
//!
//! Most files of `/proc` are covered only without a user namespace: inside one the kernel refuses
//! access, because they belong to the host's root. Without one, the sandbox's root owns them, with
//! or without capabilities. World-readable files are covered in both cases.

use std::os::unix::fs::FileTypeExt;
use std::path::{Path, PathBuf};

use anyhow::Result;
use rustix::mount::MountAttrFlags;

use super::mounts::{Detached, Kind, Root};
use super::owners::Owners;

/// Settings of the whole machine, which are made read-only.
const SETTINGS: [&str; 5] = ["proc/sys", "proc/sysrq-trigger", "proc/irq", "proc/bus", "proc/fs"];
/// Memory, keys and tables of the whole machine, which are hidden.
const SECRETS: [&str; 8] = [
    "proc/asound",
    "proc/kcore",
    "proc/keys",
    "proc/latency_stats",
    "proc/timer_list",
    "proc/sched_debug",
    "proc/acpi",
    "proc/scsi",
];
/// Tables and counters of the whole machine that users of the host can read.
const HOST_USE: [&str; 14] = [
    "proc/buddyinfo",
    "proc/schedstat",
    "sys/devices/system/memory",
    "sys/devices/virtual/powercap",
    "sys/firmware",
    "sys/fs/btrfs",
    "sys/fs/ext4",
    "sys/fs/f2fs",
    "sys/fs/xfs",
    "sys/kernel/debug",
    "sys/kernel/mm/ksm",
    "sys/kernel/slab",
    "sys/kernel/tracing",
    "sys/kernel/vmcoreinfo",
];

/// The machine's disks and their statistics. A sandbox that was given a disk needs them.
const DISKS: [&str; 4] =
    ["sys/block", "sys/class/block", "sys/dev/block", "sys/devices/virtual/block"];

/// Covers the files. `devices` are those that the sandbox was given.
pub(super) fn cover(root: &Root, owners: &Owners, devices: &[PathBuf]) -> Result<()> {
    hide(root, owners, &HOST_USE)?;
    let is_disk = |device: &PathBuf| {
        std::fs::metadata(device).is_ok_and(|device| device.file_type().is_block_device())
    };
    if !devices.iter().any(is_disk) {
        hide(root, owners, &DISKS)?;
    }
    if owners.namespace.is_some() {
        return Ok(());
    }
    for place in SETTINGS {
        if root.find(Path::new(place)).is_ok() {
            let mount = Detached::copy_in(root, place)?;
            mount.set(MountAttrFlags::MOUNT_ATTR_RDONLY)?;
            root.attach(&mount, place)?;
        }
    }
    hide(root, owners, &SECRETS)
}

/// Covers folders with an empty one, files with the null device.
fn hide(root: &Root, owners: &Owners, places: &[&str]) -> Result<()> {
    for place in places {
        if let Ok(found) = root.find(Path::new(place)) {
            let mount = match Kind::of(found)? {
                Kind::Folder => Detached::tmpfs(owners, "755", MountAttrFlags::MOUNT_ATTR_RDONLY)?,
                Kind::File => Detached::copy_in(root, "dev/null")?,
            };
            root.attach(&mount, place)?;
        }
    }
    Ok(())
}
