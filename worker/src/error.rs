//! The error of this package: the errno for the caller, and a message for the log.
//!
//! Only an error of the operation itself is returned to the caller. An error before the operation
//! is marked by [`MarkUntried`]: assuming the caller's identity, entering its control groups and
//! namespaces, a process or descriptor that could not be made. Such a call is left to the kernel,
//! as if it were not intercepted.

use std::fmt::Display;
use std::io;

use ambit_kernel::sys::errno::to_errno;
use ambit_kernel::text::shown::{LONGEST_MESSAGE, shown_within};
use rustix::io::Errno;

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
        Self::new(Errno::NOSYS, message).mark_untried()
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

/// Adds the object and the system call to an error.
pub(super) trait Context<T> {
    fn context(self, what: impl Into<String>) -> Result<T, Error>;
}

impl<T, E: Into<io::Error> + Display> Context<T> for Result<T, E> {
    fn context(self, what: impl Into<String>) -> Result<T, Error> {
        self.map_err(|error| {
            let message = format!("{}: {error}", what.into());
            Error::new(to_errno(error), message)
        })
    }
}
