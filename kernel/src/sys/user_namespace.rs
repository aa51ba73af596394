//! The parent of a user or pid namespace, the user namespace of another one, and who made a user
//! namespace (`NS_GET_PARENT`, `NS_GET_USERNS`, Linux 4.9; `NS_GET_OWNER_UID`, Linux 4.11).
#![allow(unsafe_code, reason = "three ioctls that no crate defines")]

use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd};

use nix::errno::Errno;

// include/uapi/linux/nsfs.h
const NS_GET_USERNS: libc::Ioctl = nix::request_code_none!(0xb7, 0x1) as _;
const NS_GET_PARENT: libc::Ioctl = nix::request_code_none!(0xb7, 0x2) as _;
const NS_GET_OWNER_UID: libc::Ioctl = nix::request_code_none!(0xb7, 0x4) as _;

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

/// The user who made a user namespace, as our own user namespace names it.
///
/// # Errors
/// EINVAL when it is a namespace of another kind.
pub fn maker(namespace: BorrowedFd<'_>) -> Result<u32, Errno> {
    let mut user: libc::uid_t = 0;
    // SAFETY: the kernel writes one uid_t.
    let asked = unsafe { libc::ioctl(namespace.as_raw_fd(), NS_GET_OWNER_UID, &raw mut user) };
    Errno::result(asked).map(|_| user)
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
    fn the_maker_of_a_user_namespace_is_told() {
        let mut child = std::process::Command::new("unshare")
            .args(["--user", "sh", "-c", "echo; sleep 60"])
            .stdout(std::process::Stdio::piped())
            .spawn()
            .unwrap();
        std::io::Read::read_exact(child.stdout.as_mut().unwrap(), &mut [0]).unwrap();
        let open = |kind| std::fs::File::open(format!("/proc/{}/ns/{kind}", child.id())).unwrap();
        assert_eq!(maker(open("user").as_fd()), Ok(rustix::process::getuid().as_raw()));
        assert_eq!(maker(open("pid").as_fd()), Err(Errno::EINVAL));
        child.kill().unwrap();
        child.wait().unwrap();
    }

    #[test]
    fn our_namespaces_have_an_owner() {
        let names = std::fs::File::open("/proc/self/ns/uts").unwrap();
        owner(names.as_fd()).unwrap();
    }
}
