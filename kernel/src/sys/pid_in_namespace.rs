//! Translation of a process id between pid namespaces (`NS_GET_PID_FROM_PIDNS`, Linux 6.11).
#![allow(unsafe_code, reason = "one ioctl that no crate defines")]

use std::os::fd::{AsRawFd, BorrowedFd};

use nix::errno::Errno;

// include/uapi/linux/nsfs.h: the argument is the id itself, not a pointer, although the number
// is built as if an int were read.
const NS_GET_PID_FROM_PIDNS: libc::Ioctl =
    nix::request_code_read!(0xb7, 0x6, size_of::<i32>()) as _;

/// The id, in our own pid namespace, of the thread that is called `id` in `namespace`
/// (an open `/proc/<pid>/ns/pid`).
///
/// # Errors
/// ESRCH when there is no such thread or we cannot see it, ENOTTY before Linux 6.11.
pub fn pid_from_namespace(namespace: BorrowedFd<'_>, id: i32) -> Result<i32, Errno> {
    // SAFETY: the kernel takes the argument by value and touches no memory of ours.
    let found = unsafe { libc::ioctl(namespace.as_raw_fd(), NS_GET_PID_FROM_PIDNS, id) };
    Errno::result(found)
}

#[cfg(test)]
mod tests {
    use std::fs::File;
    use std::os::fd::AsFd;

    use super::*;

    #[test]
    fn our_own_namespace_changes_nothing() {
        let namespace = File::open("/proc/self/ns/pid").unwrap();
        let me = i32::try_from(std::process::id()).unwrap();
        match pid_from_namespace(namespace.as_fd(), me) {
            Ok(id) => assert_eq!(id, me),
            Err(errno) => assert_eq!(errno, Errno::ENOTTY, "only kernels before 6.11 lack it"),
        }
    }
}
