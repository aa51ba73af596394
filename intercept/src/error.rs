//! The errors of this package outside of a call.
//!
//! Within a call a handler returns a `CallError` (`verdict.rs`). `filter.rs` has an error type of its
//! own, because a filter is installed without a notifier.

use std::io;

use rustix::io::Errno;

/// Why notifications cannot be received.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The kernel has no seccomp user notification.
    #[error(
        "seccomp user notification is not available (SECCOMP_GET_NOTIF_SIZES: {errno}): \
         Linux 5.5 or later built with CONFIG_SECCOMP_FILTER is needed"
    )]
    Unsupported {
        /// The errno of the kernel.
        errno: Errno,
    },
    /// The kernel's structures are not those this program was built for.
    #[error(
        "the kernel's notification structures measure {kernel:?} bytes, this program knows \
         {ours:?}: update it"
    )]
    Sizes {
        /// Request, response and data as the kernel has them.
        kernel: [u16; 3],
        /// As this program has them.
        ours: [usize; 3],
    },
    /// A descriptor that was passed as a listener is not one.
    #[error("the descriptor is no seccomp listener (SECCOMP_IOCTL_NOTIF_ID_VALID: {errno})")]
    NoListener {
        /// The errno of the kernel.
        errno: Errno,
    },
    /// A system call of the daemon failed.
    #[error("{what}: {source}")]
    System {
        /// The call and what it was for.
        what: &'static str,
        /// The error of the kernel.
        source: io::Error,
    },
    /// A socket cannot be bound.
    #[error(transparent)]
    Socket(#[from] ambit_keeper::socket::Error),
}

impl Error {
    /// Returns a function that wraps an errno of the call `what`.
    pub(super) fn system(what: &'static str) -> impl FnOnce(Errno) -> Self {
        move |errno| Self::System { what, source: errno.into() }
    }
}
