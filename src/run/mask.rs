//! What root must not reach through `/proc` and `/sys` when the host's users are kept.
//!
//! Inside a user namespace the kernel itself refuses all of this: files of `/proc/sys` belong to
//! a root that the sandbox does not have. Without one, its root owns them, capabilities or not.

use std::path::Path;

use anyhow::Result;
use rustix::mount::MountAttrFlags;

use super::mounts::{Detached, Kind, Root};
use super::owners::Owners;

/// Settings of the whole machine: to be read only.
const SETTINGS: [&str; 5] = ["proc/sys", "proc/sysrq-trigger", "proc/irq", "proc/bus", "proc/fs"];
/// Memory, keys and tables of the whole machine: not to be read at all.
const SECRETS: [&str; 8] = [
    "proc/kcore",
    "proc/keys",
    "proc/latency_stats",
    "proc/timer_list",
    "proc/sched_debug",
    "proc/acpi",
    "proc/scsi",
    "sys/firmware",
];

/// Covers them.
pub(super) fn cover(root: &Root, owners: &Owners) -> Result<()> {
    let read_only = MountAttrFlags::MOUNT_ATTR_RDONLY;
    for place in SETTINGS {
        if root.find(Path::new(place)).is_ok() {
            let mount = Detached::copy_in(root, place)?;
            mount.set(read_only)?;
            root.attach(&mount, place)?;
        }
    }
    for place in SECRETS {
        if root.find(Path::new(place)).is_ok() {
            let mount = match Kind::of(&Detached::copy_in(root, place)?)? {
                Kind::Folder => Detached::tmpfs(owners, "755", read_only)?,
                Kind::File => Detached::copy_in(root, "dev/null")?,
            };
            root.attach(&mount, place)?;
        }
    }
    Ok(())
}
