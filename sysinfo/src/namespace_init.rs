//! Finds the first process of a pid namespace, without forking.
//!
//! Linux 6.11 has an ioctl for it ([`NamespaceIoctls`]). On older kernels the ancestors of the calling
//! thread are searched. If that fails, because the thread has entered the namespace from outside,
//! all processes are searched. This happens once for each namespace; the result is kept. Start
//! reading at [`find`].

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use ambit_kernel::text::status::Status;
use rustix::io::Errno;

use crate::KernelFiles;

/// What the kernel tells of an open namespace file by ioctl(2) (ioctl_nsfs(2)). The daemon supplies
/// the calls; this package makes none.
#[derive(Debug, Clone, Copy)]
pub struct NamespaceIoctls {
    /// Returns the pid of the first process of a pid namespace, in the daemon's numbering
    /// (`NS_GET_PID_FROM_PIDNS`, Linux 6.11).
    pub init: fn(BorrowedFd<'_>) -> Result<u32, Errno>,
    /// Opens the parent of a pid or user namespace (`NS_GET_PARENT`).
    pub parent: fn(BorrowedFd<'_>) -> Result<OwnedFd, Errno>,
    /// Opens the user namespace that owns a namespace (`NS_GET_USERNS`).
    pub users: fn(BorrowedFd<'_>) -> Result<OwnedFd, Errno>,
    /// Returns the uid of the creator of a user namespace (`NS_GET_OWNER_UID`).
    pub owner: fn(BorrowedFd<'_>) -> Result<u32, Errno>,
}

impl NamespaceIoctls {
    /// No ioctl is available.
    pub const NOTHING: Self = Self {
        init: |_| Err(Errno::NOTTY),
        parent: |_| Err(Errno::NOTTY),
        users: |_| Err(Errno::NOTTY),
        owner: |_| Err(Errno::NOTTY),
    };
}

/// Returns the first process of the pid namespace of this thread.
pub(crate) fn find(
    proc: &KernelFiles,
    tid: u32,
    namespace: u64,
    ask: NamespaceIoctls,
) -> io::Result<u32> {
    find_in(proc, tid, proc.open_namespace(tid, "pid")?.as_fd(), namespace, ask)
}

/// Returns the first process of a pid namespace, given by its file and inode number. The thread is
/// in the namespace or in one below it.
pub(crate) fn find_in(
    proc: &KernelFiles,
    tid: u32,
    file: BorrowedFd<'_>,
    namespace: u64,
    ask: NamespaceIoctls,
) -> io::Result<u32> {
    if let Ok(pid) = (ask.init)(file) {
        return Ok(pid);
    }
    let mut text = Vec::new();
    by_ancestors(proc, tid, namespace, &mut text)
        .or_else(|| {
            let pids = proc.processes().ok()?;
            pids.into_iter().find(|&pid| is_init(proc, pid, namespace, &mut text))
        })
        .ok_or_else(|| io::ErrorKind::NotFound.into())
}

fn by_ancestors(proc: &KernelFiles, tid: u32, namespace: u64, text: &mut Vec<u8>) -> Option<u32> {
    let mut pid = tid;
    // A pid namespace's processes are descendants of its init; 1000 generations are many.
    for _ in 0..1000 {
        if is_init(proc, pid, namespace, text) {
            return Some(pid);
        }
        pid = parent(proc, pid, text)?;
        if pid == 0 {
            return None;
        }
    }
    None
}

/// Returns the parent of a process; 0 if that is outside of the daemon's pid namespace.
pub(crate) fn parent(proc: &KernelFiles, pid: u32, text: &mut Vec<u8>) -> Option<u32> {
    let status = proc.read_of(pid, "status", text).ok()?;
    Status(status).numbers("PPid:").next()
}

fn is_init(proc: &KernelFiles, pid: u32, namespace: u64, text: &mut Vec<u8>) -> bool {
    let innermost = proc.read_of(pid, "status", text).ok().and_then(innermost_pid);
    innermost == Some(1) && proc.pid_namespace(pid).is_ok_and(|found| found == namespace)
}

/// Parses a process's id in its own namespace from the text of `/proc/<pid>/status`.
pub(crate) fn innermost_pid(status: &[u8]) -> Option<u32> {
    Status(status).numbers("NSpid:").last()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_number_is_the_innermost() {
        assert_eq!(innermost_pid(b"Name:\tx\nNSpid:\t4711\t12\t1\nVmPeak: 3\n"), Some(1));
        assert_eq!(innermost_pid(b"Name:\tx\n"), None);
    }

    #[test]
    fn without_the_ioctl_the_ancestors_are_searched() {
        let proc = KernelFiles::procfs().unwrap();
        let this = std::process::id();
        let mut child = std::process::Command::new("unshare")
            .args(["--pid", "--fork", "--kill-child", "sh", "-c", "echo ready; sleep 30; true"])
            .stdout(std::process::Stdio::piped())
            .spawn()
            .unwrap();
        let mut ready = [0; 6];
        io::Read::read_exact(child.stdout.as_mut().unwrap(), &mut ready).unwrap();
        let namespaces = |pid| proc.pid_namespace(pid).unwrap();
        // Searches for any process in another pid namespace below `unshare`.
        let inside = proc
            .processes()
            .unwrap()
            .into_iter()
            .filter(|&pid| pid > child.id())
            .find(|&pid| {
                let mut text = Vec::new();
                parent(&proc, pid, &mut text) == Some(child.id())
            })
            .unwrap();
        let namespace = namespaces(inside);
        assert_ne!(namespace, namespaces(this));
        assert_eq!(find(&proc, inside, namespace, NamespaceIoctls::NOTHING).unwrap(), inside);
        child.kill().unwrap();
        child.wait().unwrap();
    }
}
