//! Mounts of the kernel's filesystems for this process alone: attached nowhere, so nothing can be mounted
//! over their files.
//!
//! The files that the overlay serves may lie over the machine's own: a container engine that shares
//! `/sys` with the host mounts them there. A server that read `/sys/devices/system/cpu/online` by
//! its path would then wait for itself.

use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;

use rustix::fs::{CWD, Mode, OFlags};
use rustix::mount::{FsMountFlags, FsOpenFlags, MountAttrFlags, OpenTreeFlags};

/// A new mount of a filesystem that exists once, such as `proc` or `sysfs`. Where that is not allowed
/// (a container), what is mounted at the path ([`copy`]).
pub(crate) fn instance(kind: &str, path: &Path) -> io::Result<OwnedFd> {
    new_instance(kind).or_else(|_| copy(path))
}

/// A copy of what is mounted at a path, without what is mounted below it. Where that is not allowed, or
/// before Linux 5.2, the folder itself.
pub(crate) fn copy(path: &Path) -> io::Result<OwnedFd> {
    let flags = OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC;
    match rustix::mount::open_tree(CWD, path, flags) {
        Ok(copy) => Ok(copy),
        Err(_) => folder(path),
    }
}

/// A folder as it is found.
pub(crate) fn folder(path: &Path) -> io::Result<OwnedFd> {
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
    Ok(rustix::fs::open(path, flags, Mode::empty())?)
}

fn new_instance(kind: &str) -> rustix::io::Result<OwnedFd> {
    let context = rustix::mount::fsopen(kind, FsOpenFlags::FSOPEN_CLOEXEC)?;
    rustix::mount::fsconfig_create(context.as_fd())?;
    let attributes = MountAttrFlags::MOUNT_ATTR_NOSUID
        | MountAttrFlags::MOUNT_ATTR_NODEV
        | MountAttrFlags::MOUNT_ATTR_NOEXEC;
    rustix::mount::fsmount(context.as_fd(), FsMountFlags::FSMOUNT_CLOEXEC, attributes)
}
