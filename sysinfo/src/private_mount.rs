//! Mounts of the kernel's filesystems for this process alone: attached nowhere, so nothing can be mounted
//! over their files.
//!
//! The files that the overlay serves may lie over the machine's own: a container engine that shares
//! `/sys` with the host mounts them there. A server that read `/sys/devices/system/cpu/online` by
//! its path would then wait for itself.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::Path;

use crate::kernel_file::read_to_end;
use rustix::fs::{CWD, Mode, OFlags};
use rustix::mount::{FsMountFlags, FsOpenFlags, MountAttrFlags, OpenTreeFlags};

/// A kept directory descriptor of a procfs or sysfs.
#[derive(Debug)]
pub struct KernelFiles(OwnedFd);

impl KernelFiles {
    /// Opens an instance of procfs that nothing can be mounted over.
    ///
    /// # Errors
    /// Neither a private instance nor `/proc` can be opened.
    pub fn procfs() -> io::Result<Self> {
        Ok(Self(instance("proc", Path::new("/proc"))?))
    }

    /// Opens an instance of sysfs that nothing can be mounted over.
    ///
    /// # Errors
    /// Neither a private instance nor `/sys` can be opened.
    pub fn sysfs() -> io::Result<Self> {
        Ok(Self(instance("sysfs", Path::new("/sys"))?))
    }

    /// Opens a directory that looks like one of them (fixtures), or `/proc` or `/sys` itself.
    ///
    /// # Errors
    /// The directory cannot be opened.
    pub fn at(path: &Path) -> io::Result<Self> {
        Ok(Self(folder(path)?))
    }

    /// Reads a file such as `meminfo` or `devices/system/cpu/online` to its end; the text is appended.
    ///
    /// # Errors
    /// The file cannot be opened or read.
    pub fn read(&self, path: &str, text: &mut Vec<u8>) -> io::Result<()> {
        read_to_end(self.as_fd(), path, text)
    }
}

impl AsFd for KernelFiles {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

/// A new mount of a filesystem that exists once, such as `proc` or `sysfs`. Where that is not allowed
/// (a container), what is mounted at the path ([`copy`]).
fn instance(kind: &str, path: &Path) -> io::Result<OwnedFd> {
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sysfs_is_this_machines() {
        let mut text = Vec::new();
        KernelFiles::sysfs().unwrap().read("devices/system/cpu/online", &mut text).unwrap();
        assert!(text.starts_with(b"0"));
    }
}
