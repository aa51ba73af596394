//! `fork(2)`, and `clone(2)` with `CLONE_PARENT`, for a process that has one thread.
//!
//! Both are unsafe in general because a child of a threaded process may find locks held for ever
//! by threads that do not exist in it. Here they are safe because both refuse when
//! `/proc/self/task` shows a second thread. Everything in this program that forks does so before
//! the first thread is started.
#![allow(unsafe_code, reason = "fork(2) has no safe form; single-threadedness is checked here")]

use std::io;

use nix::unistd::Pid;

/// Which of the two processes this is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fork {
    /// The new process.
    Child,
    /// The process that called, with the number of the new one.
    Parent(Pid),
}

/// Makes a child process.
///
/// # Errors
/// This process has threads, or the kernel has no room for another process.
pub fn fork() -> io::Result<Fork> {
    refuse_threads()?;
    // SAFETY: this process has one thread, so nothing in the child's copy of the memory is left
    // in the middle of a change.
    match unsafe { libc::fork() } {
        -1 => Err(io::Error::last_os_error()),
        0 => Ok(Fork::Child),
        pid => Ok(Fork::Parent(Pid::from_raw(pid))),
    }
}

/// Makes a process that is a child of *our parent*: it waits for it, and the new process gets its
/// parent-death signal when our parent ends.
///
/// # Errors
/// This process has threads, or the kernel has no room for another process.
pub fn fork_for_parent() -> io::Result<Fork> {
    refuse_threads()?;
    let flags = libc::c_long::from(libc::CLONE_PARENT | libc::SIGCHLD);
    // SAFETY: without CLONE_VM this is fork(2): the child gets a copy of the memory and of this
    // stack (stack pointer 0 means "the same"), and this process has one thread. The C library's
    // cached thread number stays the parent's; nothing here uses it.
    match unsafe { libc::syscall(libc::SYS_clone, flags, 0usize, 0usize, 0usize, 0usize) } {
        -1 => Err(io::Error::last_os_error()),
        0 => Ok(Fork::Child),
        pid => Ok(Fork::Parent(Pid::from_raw(i32::try_from(pid).map_err(io::Error::other)?))),
    }
}

fn refuse_threads() -> io::Result<()> {
    // A process whose /proc cannot be read is trusted to have been checked before.
    let threads = std::fs::read_dir("/proc/self/task").map_or(1, Iterator::count);
    if threads > 1 {
        return Err(io::Error::other(format!(
            "this process has {threads} threads and cannot fork"
        )));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_process_with_threads_is_refused() {
        // The test harness itself has at least the main thread and the one that runs this.
        let error = fork().unwrap_err().to_string();
        assert!(error.contains("cannot fork"), "{error}");
    }
}
