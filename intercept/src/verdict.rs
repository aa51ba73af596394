//! The result of a handler: a verdict, or the reason why it has none.
//!
//! A [`Verdict`] is sent to the kernel (`listener.rs`). A [`CallError`] becomes one in `pipeline.rs`.
//! An errno of a failed call of the daemon must never become the caller's: that is
//! [`CallError::Continue`].

use std::os::fd::OwnedFd;

use rustix::io::Errno;

/// The answer to a call.
#[derive(Debug)]
pub enum Verdict {
    /// The kernel runs the call with the caller's own rights.
    Continue,
    /// The call returns this.
    Return(i64),
    /// The call fails.
    Fail(Errno),
    /// The descriptor is installed in the caller, and the call returns its number.
    Install(OwnedFd),
}

/// Why a handler gave no answer.
#[derive(Debug)]
pub enum CallError {
    /// The handler does not grant the call: the kernel runs it.
    NotGranted,
    /// The caller does not wait for the answer any more. Nothing was done.
    Gone,
    /// The call fails with the errno that the kernel would have returned.
    Fail(Errno),
    /// The daemon failed: the kernel runs the call.
    Continue(DaemonError),
}

/// What failed in the daemon, for the log.
#[derive(Debug, thiserror::Error)]
pub enum DaemonError {
    /// There is no view of the container.
    #[error(transparent)]
    View(#[from] ambit_sysinfo::Error),
    /// A system call of the daemon failed.
    #[error("{0}: {1}")]
    System(&'static str, Errno),
}

impl From<ambit_sysinfo::Error> for CallError {
    fn from(error: ambit_sysinfo::Error) -> Self {
        match error {
            ambit_sysinfo::Error::Gone(_) => Self::Gone,
            error => Self::Continue(DaemonError::View(error)),
        }
    }
}
