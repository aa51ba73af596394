//! Translation of a process id between pid namespaces (`NS_GET_PID_FROM_PIDNS`, Linux 6.11).

use std::os::fd::BorrowedFd;

use nix::errno::Errno;

use super::raw;

/// Returns the id, in our own pid namespace, of the thread that is called `id` in `namespace`
/// (an open `/proc/<pid>/ns/pid`).
///
/// # Errors
/// ESRCH: there is no such thread, or it is not visible from our namespace. ENOTTY: `namespace` is
/// another file, or the kernel is older than 6.11.
pub fn pid_from_namespace(namespace: BorrowedFd<'_>, id: i32) -> Result<i32, Errno> {
    raw::pid_from_namespace(namespace, id)
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
