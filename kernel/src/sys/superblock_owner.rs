//! Whose a mounted filesystem is: the host's, or one that a container made for itself.
//!
//! The kernel tells nobody the user namespace of a superblock, but `FIFREEZE` asks for `CAP_SYS_ADMIN` in
//! it before anything else. What can be mounted in a user namespace (FUSE, overlayfs, tmpfs) cannot be
//! frozen, and the kernel says so without waiting for anything.
#![allow(unsafe_code, reason = "two ioctls that no crate defines")]

use std::os::fd::{AsRawFd, BorrowedFd};

use nix::errno::Errno;

// include/uapi/linux/fs.h
const FIFREEZE: libc::Ioctl =
    nix::request_code_readwrite!(b'X', 119, size_of::<libc::c_int>()) as _;
const FITHAW: libc::Ioctl = nix::request_code_readwrite!(b'X', 120, size_of::<libc::c_int>()) as _;

/// Does the filesystem of this file belong to users of the user namespace that this process is in? The
/// process has entered a container's and has all capabilities there, but none over the host.
#[must_use]
pub fn is_within_our_users(file: BorrowedFd<'_>) -> bool {
    // SAFETY: the kernel reads and writes no argument of either request.
    let ask = |request| Errno::result(unsafe { libc::ioctl(file.as_raw_fd(), request, 0) });
    match ask(FIFREEZE) {
        Err(Errno::EPERM) => false,
        Err(_) => true,
        Ok(_) => {
            let _ = ask(FITHAW);
            true
        }
    }
}
