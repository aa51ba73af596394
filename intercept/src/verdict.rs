//! What may become of a call: an answer, or a reason why there is none.

use std::os::fd::OwnedFd;

use nix::errno::Errno;

/// The answer to a call.
#[derive(Debug)]
pub enum Verdict {
    /// The kernel runs the call with the target's own rights.
    Continue,
    /// The call returns this.
    Return(i64),
    /// The call fails.
    Fail(Errno),
    /// The call returns this descriptor, newly opened in the target.
    Install(OwnedFd),
}

/// Why a handler gave no answer.
#[derive(Debug)]
pub enum Refusal {
    /// Nobody waits for the answer any more. Nothing was done.
    Gone,
    /// The target gets the errno that the kernel would have given it.
    Fail(Errno),
    /// Something of ours failed: the kernel runs the call.
    Continue(Cause),
}

/// What failed on our side, for the log.
#[derive(Debug, thiserror::Error)]
pub enum Cause {
    /// There are no numbers for the container.
    #[error(transparent)]
    View(#[from] ambit_sysinfo::Error),
    /// A system call of ours failed.
    #[error("{0}: {1}")]
    System(&'static str, Errno),
}

impl From<ambit_sysinfo::Error> for Refusal {
    fn from(error: ambit_sysinfo::Error) -> Self {
        match error {
            ambit_sysinfo::Error::Gone(_) => Self::Gone,
            error => Self::Continue(Cause::View(error)),
        }
    }
}
