//! Covers files of `/proc` and `/sys` that a sandbox must not reach.
//!
//! Most files of `/proc` are covered only without a user namespace: inside one the kernel refuses
//! access, because they belong to the host's root. Without one, the sandbox's root owns them, with
//! or without capabilities. World-readable files are covered in both cases.

use std::collections::BTreeSet;
use std::os::unix::fs::FileTypeExt;
use std::path::{Path, PathBuf};

use anyhow::Result;
use rustix::mount::MountAttrFlags;

use super::mounts::{Detached, Kind, Root};
use super::owners::Owners;

/// Settings of the whole machine, which are made read-only.
const SETTINGS: [&str; 3] = ["proc/sys", "proc/sysrq-trigger", "proc/bus"];
/// Memory, keys and tables of the whole machine, which are hidden.
const SECRETS: [&str; 8] = [
    "proc/asound",
    "proc/kcore",
    "proc/keys",
    "proc/latency_stats",
    "proc/pagetypeinfo",
    "proc/timer_list",
    "proc/sched_debug",
    "proc/acpi",
];
/// Tables and counters of the whole machine that users of the host can read: its memory, one entry
/// for each of its processors, its filesystems, and serial numbers.
const HOST_USE: &[&str] = &[
    "proc/buddyinfo",
    "proc/fs",
    "proc/irq",
    "proc/mtrr",
    "proc/schedstat",
    "proc/spl",
    "sys/bus/acpi",
    "sys/bus/clockevents",
    "sys/bus/cpu",
    "sys/bus/edac",
    "sys/bus/memory",
    "sys/bus/memory_tiering",
    "sys/bus/node",
    "sys/bus/workqueue",
    "sys/class/bdi",
    "sys/class/cpuid",
    "sys/class/dmi",
    "sys/class/hwmon",
    "sys/class/msr",
    "sys/class/powercap",
    "sys/class/thermal",
    "sys/devices/LNXSYSTM:00",
    "sys/devices/system/clockevents",
    "sys/devices/system/edac",
    "sys/devices/system/memory",
    "sys/devices/virtual/bdi",
    "sys/devices/virtual/cpuid",
    "sys/devices/virtual/dmi",
    "sys/devices/virtual/memory_tiering",
    "sys/devices/virtual/msr",
    "sys/devices/virtual/powercap",
    "sys/devices/virtual/thermal",
    "sys/devices/virtual/workqueue",
    "sys/firmware",
    "sys/fs/bcachefs",
    "sys/fs/btrfs",
    "sys/fs/ext4",
    "sys/fs/f2fs",
    "sys/fs/xfs",
    "sys/kernel/boot_params",
    "sys/kernel/debug",
    "sys/kernel/irq",
    "sys/kernel/mm/ksm",
    "sys/kernel/slab",
    "sys/kernel/tracing",
    "sys/kernel/vmcoreinfo",
];

/// The machine's disks, their statistics and serial numbers. A sandbox that was given a disk needs
/// them. [`disk_devices`] has the others.
const DISKS: &[&str] = &[
    "proc/mdstat",
    "proc/scsi",
    "sys/block",
    "sys/bus/mmc",
    "sys/bus/nd",
    "sys/bus/scsi",
    "sys/class/ata_device",
    "sys/class/block",
    "sys/class/bsg",
    "sys/class/mmc_host",
    "sys/class/nd",
    "sys/class/nvme",
    "sys/class/nvme-subsystem",
    "sys/class/scsi_device",
    "sys/class/scsi_disk",
    "sys/class/scsi_generic",
    "sys/dev/block",
    "sys/devices/virtual/block",
    "sys/devices/virtual/nvme-subsystem",
];

/// Covers the files; `hidden` is the empty folder that lies over folders. `devices` are those that the
/// sandbox was given.
pub(super) fn cover(
    root: &Root,
    owners: &Owners,
    devices: &[PathBuf],
    hidden: Detached,
) -> Result<()> {
    let mut places: Vec<PathBuf> = HOST_USE.iter().map(PathBuf::from).collect();
    let is_disk = |device: &PathBuf| {
        std::fs::metadata(device).is_ok_and(|device| device.file_type().is_block_device())
    };
    if !devices.iter().any(is_disk) {
        places.extend(DISKS.iter().map(PathBuf::from));
        places.extend(disk_devices());
    }
    if owners.namespace.is_none() {
        places.extend(SECRETS.iter().map(PathBuf::from));
        for place in SETTINGS {
            if root.find(Path::new(place)).is_ok() {
                let mut mount = Detached::copy_in(root, place)?;
                mount.set(MountAttrFlags::MOUNT_ATTR_RDONLY)?;
                root.attach(&mount, place)?;
            }
        }
    }
    hide(root, &places, hidden)
}

/// Returns the folders of the devices that the machine's disks are: the host adapter's, such as
/// `/sys/devices/pci0000:00/0000:00:02.0/virtio1`, or the one that has the disk.
fn disk_devices() -> BTreeSet<PathBuf> {
    let Ok(disks) = std::fs::read_dir("/sys/class/block") else { return BTreeSet::new() };
    disks
        .flatten()
        .filter_map(|disk| {
            let device = std::fs::canonicalize(disk.path().join("device"));
            let disk = || std::fs::canonicalize(disk.path()).ok()?.parent().map(Path::to_owned);
            device.ok().or_else(disk)
        })
        .filter(|device| !device.starts_with("/sys/devices/virtual"))
        .collect()
}

/// Covers folders with the empty one, files with the null device.
fn hide(root: &Root, places: &[PathBuf], mut hidden: Detached) -> Result<()> {
    let mut is_attached = false;
    for place in places {
        // What is below a folder that is hidden by now is not found.
        let Ok(found) = root.find(place) else { continue };
        match Kind::of(found)? {
            Kind::File => root.attach(&Detached::copy_in(root, "dev/null")?, place)?,
            Kind::Folder => {
                if is_attached {
                    hidden = hidden.copy()?;
                }
                root.attach(&hidden, place)?;
                is_attached = true;
            }
        }
    }
    Ok(())
}
