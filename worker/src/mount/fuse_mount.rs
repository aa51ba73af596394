//! Makes a FUSE mount for an open `/dev/fuse` in the caller's user namespace, and probes whether it
//! answers.
//!
//! The superblock belongs to the container's user namespace: the kernel lets no process open a
//! device node on it, and file owners are the container's users. Only [`probe`] may call into the
//! filesystem, which can block for ever. Start reading at [`make`].

use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};

use rustix::fs::{AtFlags, StatxFlags};
use rustix::mount::{FsMountFlags, FsOpenFlags, MountAttrFlags};

use super::order::{Handler, Order};
use crate::caller::WholeCaller;
use crate::error::{Context, Error};

/// The longest string that fsconfig(2) accepts, in bytes.
const LONGEST: usize = 255;

/// Options of a mount program that are flags of the superblock.
const OF_THE_SUPERBLOCK: [&str; 3] = ["ro", "sync", "dirsync"];

/// Makes a detached mount, which waits for a server.
pub(super) fn make(
    order: &Order,
    handler: &Handler,
    caller: &WholeCaller,
    device: BorrowedFd<'_>,
) -> Result<OwnedFd, Error> {
    let make = || {
        let context = rustix::mount::fsopen("fuse", FsOpenFlags::FSOPEN_CLOEXEC)?;
        let context = context.as_fd();
        let set = |key: &str, value: &str| rustix::mount::fsconfig_set_string(context, key, value);
        if let Some(source) = order.source.as_deref().filter(|name| name.len() <= LONGEST) {
            rustix::mount::fsconfig_set_string(context, "source", source)?;
        }
        // The kernel shows the type as `fuse.` and the subtype.
        let subtype = order.filesystem.strip_prefix("fuse.").unwrap_or(&order.filesystem);
        set("subtype", subtype)?;
        set("fd", &device.as_raw_fd().to_string())?;
        set("rootmode", "40000")?;
        set("user_id", &caller.facts.ids.0.to_string())?;
        set("group_id", &caller.facts.ids.1.to_string())?;
        // All users of the container have access; the kernel checks modes and owners.
        rustix::mount::fsconfig_set_flag(context, "allow_other")?;
        rustix::mount::fsconfig_set_flag(context, "default_permissions")?;
        for option in &handler.mount_options {
            if OF_THE_SUPERBLOCK.contains(&option.as_str()) {
                rustix::mount::fsconfig_set_flag(context, option.as_str())?;
            }
        }
        rustix::mount::fsconfig_create(context)?;
        let attributes = u32::try_from(order.attributes).unwrap_or_default();
        let attributes = MountAttrFlags::from_bits_retain(attributes);
        rustix::mount::fsmount(context, FsMountFlags::FSMOUNT_CLOEXEC, attributes)
    };
    make().context("making a fuse filesystem as the caller: fsopen")
}

/// Waits until the filesystem returns the attributes of its root. Must be called in a process that
/// can be killed.
pub(super) fn probe(mount: BorrowedFd<'_>) -> Result<(), Error> {
    let flags = AtFlags::EMPTY_PATH | AtFlags::STATX_FORCE_SYNC;
    rustix::fs::statx(mount, "", flags, StatxFlags::BASIC_STATS)
        .map(drop)
        .context("the filesystem does not answer: statx of its root")
}

/// Returns the device number of a filesystem, which is the name of its FUSE connection in fusectl.
/// Does not call into the filesystem.
pub(super) fn device(mount: BorrowedFd<'_>) -> Result<u64, Error> {
    let flags = AtFlags::EMPTY_PATH | AtFlags::STATX_DONT_SYNC;
    let status = rustix::fs::statx(mount, "", flags, StatxFlags::empty()).context("statx")?;
    Ok(u64::from(status.stx_dev_major) << 20 | u64::from(status.stx_dev_minor))
}
