//! The operation for chown(2) to root: finds out whether a file of the kernel belongs to root of the
//! machine already. Changes nothing.

use std::os::fd::{AsFd, BorrowedFd};

use ambit_kernel::sys::errno::to_errno;
use nix::sys::statfs::{self, FsType, fstatfs};
use rustix::fs::OFlags;
use rustix::io::Errno;
use serde::{Deserialize, Serialize};

use super::reply::Reply;
use crate::lookup::open_path;

/// Filesystems whose files are the kernel's.
const KERNELS: [FsType; 8] = [
    statfs::PROC_SUPER_MAGIC,
    statfs::SYSFS_MAGIC,
    statfs::CGROUP_SUPER_MAGIC,
    statfs::CGROUP2_SUPER_MAGIC,
    statfs::DEBUGFS_MAGIC,
    statfs::TRACEFS_MAGIC,
    statfs::SECURITYFS_MAGIC,
    statfs::BPF_FS_MAGIC,
];

/// The arguments of the operation.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct IsRoots {
    /// The path, as the caller gave it. `None` stands for the base itself.
    pub path: Option<Vec<u8>>,
    /// Set if a symbolic link as last component is followed.
    pub follow: bool,
}

impl IsRoots {
    /// Returns [`Reply::Done`] if the file is the kernel's and belongs to root. Any other file is
    /// left to the kernel, and so is each error.
    pub(super) fn perform(&self, base: BorrowedFd<'_>) -> Reply {
        if self.is_roots(base).unwrap_or(false) { Reply::Done } else { Reply::Kernel }
    }

    fn is_roots(&self, base: BorrowedFd<'_>) -> Result<bool, Errno> {
        let opened;
        let file = match &self.path {
            None => base,
            Some(path) => {
                let flags = if self.follow { OFlags::empty() } else { OFlags::NOFOLLOW };
                opened = open_path(base, path, flags)?;
                opened.as_fd()
            }
        };
        let kind = fstatfs(file).map_err(to_errno)?;
        if !KERNELS.contains(&kind.filesystem_type()) {
            return Ok(false);
        }
        let stat = rustix::fs::fstat(file)?;
        Ok((stat.st_uid, stat.st_gid) == (0, 0))
    }
}

#[cfg(test)]
mod tests {
    use rustix::fs::CWD;

    use super::*;

    #[test]
    fn only_files_of_the_kernel_that_belong_to_root_are_roots() {
        let is = |path: &str, follow| IsRoots { path: Some(path.into()), follow }.perform(CWD);
        assert_eq!(is("/proc", true), Reply::Done);
        assert_eq!(is("/sys/kernel", false), Reply::Done);
        assert_eq!(is("/proc/mounts", false), Reply::Done, "the link itself");
        assert_eq!(is("/", true), Reply::Kernel, "a filesystem with owners");
        assert_eq!(is("/proc/nothing", true), Reply::Kernel);
        let proc = std::fs::File::open("/proc").unwrap();
        assert_eq!(IsRoots { path: None, follow: true }.perform(proc.as_fd()), Reply::Done);
    }
}
