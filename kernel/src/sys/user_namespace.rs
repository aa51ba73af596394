//! The parent of a user or pid namespace, the user namespace that a namespace belongs to, and the user
//! who made a user namespace (`NS_GET_PARENT`, `NS_GET_USERNS`, Linux 4.9; `NS_GET_OWNER_UID`, Linux
//! 4.11).

use std::os::fd::{BorrowedFd, OwnedFd};

use rustix::io::Errno;

use super::raw::{self, NS_GET_OWNER_UID, NS_GET_PARENT, NS_GET_USERNS};

/// Returns the namespace in which this user or pid namespace was made.
///
/// # Errors
/// EPERM: it is the first one of all, or not one below ours.
pub fn parent(namespace: BorrowedFd<'_>) -> Result<OwnedFd, Errno> {
    raw::ioctl_descriptor(namespace, &NS_GET_PARENT)
}

/// Returns the user namespace that a namespace of another kind belongs to.
///
/// # Errors
/// EPERM: that is not ours or one below.
pub fn owner(namespace: BorrowedFd<'_>) -> Result<OwnedFd, Errno> {
    raw::ioctl_descriptor(namespace, &NS_GET_USERNS)
}

/// Returns the user who made a user namespace, by the id that our own user namespace has for it.
///
/// # Errors
/// EINVAL: it is a namespace of another kind.
pub fn maker(namespace: BorrowedFd<'_>) -> Result<u32, Errno> {
    let mut user = 0;
    raw::ioctl(namespace, &NS_GET_OWNER_UID, &mut user).map(|_| user)
}

#[cfg(test)]
mod tests {
    use std::os::fd::AsFd;

    use super::*;

    #[test]
    fn above_our_own_namespace_is_eperm() {
        let own = std::fs::File::open("/proc/self/ns/user").unwrap();
        assert_eq!(parent(own.as_fd()).unwrap_err(), Errno::PERM);
        assert!(owner(own.as_fd()).is_err());
    }

    #[test]
    fn the_maker_of_a_user_namespace_is_returned() {
        let mut child = std::process::Command::new("unshare")
            .args(["--user", "sh", "-c", "echo; sleep 60"])
            .stdout(std::process::Stdio::piped())
            .spawn()
            .unwrap();
        std::io::Read::read_exact(child.stdout.as_mut().unwrap(), &mut [0]).unwrap();
        let open = |kind| std::fs::File::open(format!("/proc/{}/ns/{kind}", child.id())).unwrap();
        assert_eq!(maker(open("user").as_fd()), Ok(rustix::process::getuid().as_raw()));
        assert_eq!(maker(open("pid").as_fd()), Err(Errno::INVAL));
        child.kill().unwrap();
        child.wait().unwrap();
    }

    #[test]
    fn our_namespaces_have_an_owner() {
        let names = std::fs::File::open("/proc/self/ns/uts").unwrap();
        owner(names.as_fd()).unwrap();
    }
}
