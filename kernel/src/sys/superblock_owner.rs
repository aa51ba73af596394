//! Whether a mounted filesystem belongs to the host, or to a container that mounted it for itself.
//!
//! The kernel has no call that returns the user namespace of a superblock, but `FIFREEZE` needs
//! `CAP_SYS_ADMIN` in it, which is checked first. A filesystem that can be mounted in a user namespace
//! (FUSE, overlayfs, tmpfs) cannot be frozen: the kernel returns EOPNOTSUPP without waiting.

use std::os::fd::BorrowedFd;

use rustix::io::Errno;

use super::raw::{self, FIFREEZE, FITHAW};

/// True if the filesystem of this file belongs to users of the user namespace that this process is in.
/// The process has entered a container's and has all capabilities there, but none over the host.
pub fn is_within_our_users(file: BorrowedFd<'_>) -> bool {
    match raw::ioctl(file, &FIFREEZE, &mut ()) {
        Err(Errno::PERM) => false,
        Err(_) => true,
        Ok(_) => {
            let _ = raw::ioctl(file, &FITHAW, &mut ());
            true
        }
    }
}
