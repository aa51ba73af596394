//! The error of this package: the errno for the caller, and a message for the log.
//!
//! Only an error of the operation itself is returned to the caller. An error before the operation
//! is marked by [`MarkUntried`]: assuming the caller's identity, entering its control groups and
//! namespaces, a process or descriptor that could not be made. Such a call is left to the kernel,
//! as if it were not intercepted.

use ambit_kernel::text::shown::{LONGEST_MESSAGE, shown_within};
use nix::errno::Errno;

/// The reason why a request failed.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{message}")]
pub struct Error {
    /// The errno that the system call returns.
    pub errno: Errno,
    /// The log message: the object, the system call, and what the kernel or the helper reported.
    /// It has texts of the container in it, so it is cut to [`LONGEST_MESSAGE`].
    pub message: String,
    /// Set if the operation was not tried: the call is left to the kernel.
    pub untried: bool,
}

impl Error {
    pub(super) fn new(errno: Errno, message: impl Into<String>) -> Self {
        let mut message = message.into();
        if message.len() > LONGEST_MESSAGE {
            message = shown_within(message.as_bytes(), LONGEST_MESSAGE);
        }
        Self { errno, message, untried: false }
    }

    /// No process can carry out the request.
    pub(super) fn unavailable(message: impl Into<String>) -> Self {
        Self::new(Errno::ENOSYS, message).mark_untried()
    }

    /// Marks an error that happened before the operation was tried.
    pub(crate) fn mark_untried(self) -> Self {
        Self { untried: true, ..self }
    }
}

/// Marks errors of steps before the operation.
pub(super) trait MarkUntried {
    fn mark_untried(self) -> Self;
}

impl<T> MarkUntried for Result<T, Error> {
    fn mark_untried(self) -> Self {
        self.map_err(Error::mark_untried)
    }
}

/// Converts the error types of nix, rustix and std to an errno.
pub(super) trait ToErrno: std::fmt::Display {
    fn errno(&self) -> Errno;
}

impl ToErrno for Errno {
    fn errno(&self) -> Errno {
        *self
    }
}

impl ToErrno for rustix::io::Errno {
    fn errno(&self) -> Errno {
        Errno::from_raw(self.raw_os_error())
    }
}

impl ToErrno for std::io::Error {
    fn errno(&self) -> Errno {
        self.raw_os_error().map_or(Errno::EIO, Errno::from_raw)
    }
}

/// Adds the object and the system call to an error.
pub(super) trait Context<T> {
    fn context(self, what: impl Into<String>) -> Result<T, Error>;
}

impl<T, E: ToErrno> Context<T> for Result<T, E> {
    fn context(self, what: impl Into<String>) -> Result<T, Error> {
        self.map_err(|error| Error::new(error.errno(), format!("{}: {error}", what.into())))
    }
}
