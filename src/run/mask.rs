//! What must not be reached through `/proc` and `/sys`.
//!
//! Of `/proc` only when the host's users are kept: inside a user namespace the kernel itself
//! refuses these files, which belong to a root that the sandbox does not have. Without one, its
//! root owns them, capabilities or not. Of `/sys` in either case, because everybody can read there.

use std::path::Path;

use anyhow::Result;
use rustix::mount::MountAttrFlags;

use super::mounts::{Detached, Kind, Root};
use super::owners::Owners;

/// Settings of the whole machine: to be read only.
const SETTINGS: [&str; 5] = ["proc/sys", "proc/sysrq-trigger", "proc/irq", "proc/bus", "proc/fs"];
/// Memory, keys and tables of the whole machine: not to be read at all.
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
const HOST_USE: [&str; 7] = [
    "sys/devices/virtual/powercap",
    "sys/firmware",
    "sys/kernel/debug",
    "sys/kernel/mm/ksm",
    "sys/kernel/slab",
    "sys/kernel/tracing",
    "sys/kernel/vmcoreinfo",
];

/// Covers them.
pub(super) fn cover(root: &Root, owners: &Owners) -> Result<()> {
    hide(root, owners, &HOST_USE)?;
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
        if root.find(Path::new(place)).is_ok() {
            let mount = match Kind::of(&Detached::copy_in(root, place)?)? {
                Kind::Folder => Detached::tmpfs(owners, "755", MountAttrFlags::MOUNT_ATTR_RDONLY)?,
                Kind::File => Detached::copy_in(root, "dev/null")?,
            };
            root.attach(&mount, place)?;
        }
    }
    Ok(())
}
