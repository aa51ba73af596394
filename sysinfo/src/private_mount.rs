//! Detached mounts of procfs, sysfs and cgroup filesystems. No process can mount over their files,
//! because they are attached nowhere.
//!
//! The overlay may be mounted over the machine's own files: a container engine that shares `/sys`
//! with the host mounts it there. A server that reads `/sys/devices/system/cpu/online` by its path
//! would wait for its own reply, so it must read through [`KernelFiles`] only.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::Path;

use crate::kernel_file::read_to_end;
use rustix::fs::{CWD, Mode, OFlags};
use rustix::mount::{FsMountFlags, FsOpenFlags, MountAttrFlags, OpenTreeFlags};

/// The root directory of a procfs or sysfs.
#[derive(Debug)]
pub struct KernelFiles(OwnedFd);

impl KernelFiles {
    /// Opens an instance of procfs that nothing can be mounted over.
    pub fn procfs() -> io::Result<Self> {
        Ok(Self(instance("proc", Path::new("/proc"))?))
    }

    /// Opens an instance of sysfs that nothing can be mounted over.
    pub fn sysfs() -> io::Result<Self> {
        Ok(Self(instance("sysfs", Path::new("/sys"))?))
    }

    /// Opens a directory with the layout of procfs or sysfs (a fixture), or `/proc` or `/sys`
    /// itself.
    pub fn at(path: &Path) -> io::Result<Self> {
        Ok(Self(folder(path)?))
    }

    /// Reads a file such as `meminfo` or `devices/system/cpu/online` to its end; the text is
    /// appended.
    pub fn read(&self, path: &str, text: &mut Vec<u8>) -> io::Result<()> {
        read_to_end(self.as_fd(), path, text)
    }
}

impl AsFd for KernelFiles {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

/// Makes a new detached mount of procfs or sysfs. If that is not allowed (in a container), clones
/// the mount at the path ([`copy`]).
fn instance(kind: &str, path: &Path) -> io::Result<OwnedFd> {
    let new = || {
        let context = rustix::mount::fsopen(kind, FsOpenFlags::FSOPEN_CLOEXEC)?;
        rustix::mount::fsconfig_create(context.as_fd())?;
        let attributes = MountAttrFlags::MOUNT_ATTR_NOSUID
            | MountAttrFlags::MOUNT_ATTR_NODEV
            | MountAttrFlags::MOUNT_ATTR_NOEXEC;
        rustix::mount::fsmount(context.as_fd(), FsMountFlags::FSMOUNT_CLOEXEC, attributes)
    };
    new().or_else(|_| copy(path))
}

/// Clones the mount at a path, without the mounts below it. If that is not allowed, or before Linux
/// 5.2, opens the folder.
pub(crate) fn copy(path: &Path) -> io::Result<OwnedFd> {
    let flags = OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC;
    rustix::mount::open_tree(CWD, path, flags).or_else(|_| folder(path))
}

/// Opens a folder by its path.
pub(crate) fn folder(path: &Path) -> io::Result<OwnedFd> {
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
    Ok(rustix::fs::open(path, flags, Mode::empty())?)
}
