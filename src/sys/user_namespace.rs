//! The parent of a user or pid namespace, and the owner of another one (`NS_GET_PARENT`, `NS_GET_USERNS`, Linux 4.9).
#![allow(unsafe_code, reason = "two ioctls that no crate defines")]

use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd};

use nix::errno::Errno;

// include/uapi/linux/nsfs.h
const NS_GET_USERNS: libc::Ioctl = nix::request_code_none!(0xb7, 0x1) as _;
const NS_GET_PARENT: libc::Ioctl = nix::request_code_none!(0xb7, 0x2) as _;

/// The namespace in which this one, of users or pids, was made.
///
/// # Errors
/// EPERM when it is the first one of all, or not one below ours.
pub fn parent(namespace: BorrowedFd<'_>) -> Result<OwnedFd, Errno> {
    ask(namespace, NS_GET_PARENT)
}

/// The user namespace that a namespace of another kind belongs to.
///
/// # Errors
/// EPERM when that is not ours or one below.
pub fn owner(namespace: BorrowedFd<'_>) -> Result<OwnedFd, Errno> {
    ask(namespace, NS_GET_USERNS)
}

fn ask(namespace: BorrowedFd<'_>, request: libc::Ioctl) -> Result<OwnedFd, Errno> {
    // SAFETY: the requests take no argument.
    let fd = unsafe { libc::ioctl(namespace.as_raw_fd(), request) };
    // SAFETY: the kernel just made this descriptor for us.
    Errno::result(fd).map(|fd| unsafe { OwnedFd::from_raw_fd(fd) })
}

#[cfg(test)]
mod tests {
    use std::os::fd::AsFd;

    use super::*;

    #[test]
    fn above_our_own_namespace_nothing_is_seen() {
        let own = std::fs::File::open("/proc/self/ns/user").unwrap();
        assert_eq!(parent(own.as_fd()).unwrap_err(), Errno::EPERM);
        assert!(owner(own.as_fd()).is_err());
    }

    #[test]
    fn our_namespaces_have_an_owner() {
        let names = std::fs::File::open("/proc/self/ns/uts").unwrap();
        owner(names.as_fd()).unwrap();
    }
}
