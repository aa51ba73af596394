//! `fork(2)`, and `clone(2)` with `CLONE_PARENT`, for a process that has one thread.
//!
//! In a process with threads, a child may find locks that are held for ever by threads that it does
//! not have. Both functions refuse to fork such a process. Everything in this program that forks does
//! so before the first thread is started.

use std::io;

use nix::unistd::Pid;

use super::raw;

/// Which of the two processes this is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fork {
    /// The new process.
    Child,
    /// The process that called, with the id of the new one.
    Parent(Pid),
}

/// Makes a child process.
///
/// # Errors
/// This process has threads, or the kernel has no room for another process.
pub fn fork() -> io::Result<Fork> {
    Ok(raw::fork(false)?.map_or(Fork::Child, Fork::Parent))
}

/// Makes a process that is a child of *our parent*: our parent waits for it, and the new process gets
/// its parent-death signal when our parent ends.
///
/// # Errors
/// This process has threads, or the kernel has no room for another process.
pub fn fork_for_parent() -> io::Result<Fork> {
    Ok(raw::fork(true)?.map_or(Fork::Child, Fork::Parent))
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
