//! The error of this package: the errno for the caller, and a message for the log.
//!
//! Only an error of the operation itself is returned to the caller. An error before the operation
//! is marked by [`OnOurSide`]: assuming the caller's identity, entering its control groups and
//! namespaces, a process or descriptor that could not be made. Such a call is left to the kernel,
//! as if it were not intercepted.

use nix::errno::Errno;

/// The reason why a request failed.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{message}")]
pub struct Failure {
    /// The errno that the system call returns.
    pub errno: Errno,
    /// The log message: the object, the system call, and what the kernel or the helper reported.
    pub message: String,
    /// Set if the operation was not tried: the call is left to the kernel.
    pub untried: bool,
}

impl Failure {
    pub(super) fn new(errno: Errno, message: impl Into<String>) -> Self {
        Self { errno, message: message.into(), untried: false }
    }

    /// No process can carry out the request.
    pub(super) fn nobody_acts(message: impl Into<String>) -> Self {
        Self::new(Errno::ENOSYS, message).on_our_side()
    }

    /// Marks an error that happened before the operation was tried.
    pub(crate) fn on_our_side(self) -> Self {
        Self { untried: true, ..self }
    }
}

/// Marks errors of steps before the operation.
pub(super) trait OnOurSide {
    fn on_our_side(self) -> Self;
}

impl<T> OnOurSide for Result<T, Failure> {
    fn on_our_side(self) -> Self {
        self.map_err(Failure::on_our_side)
    }
}

/// Converts the error types of nix, rustix and std to an errno.
pub(super) trait Number: std::fmt::Display {
    fn number(&self) -> Errno;
}

impl Number for Errno {
    fn number(&self) -> Errno {
        *self
    }
}

impl Number for rustix::io::Errno {
    fn number(&self) -> Errno {
        Errno::from_raw(self.raw_os_error())
    }
}

impl Number for std::io::Error {
    fn number(&self) -> Errno {
        self.raw_os_error().map_or(Errno::EIO, Errno::from_raw)
    }
}

/// Adds the object and the system call to an error.
pub(super) trait OrFail<T> {
    fn or_fail(self, what: impl Into<String>) -> Result<T, Failure>;
}

impl<T, E: Number> OrFail<T> for Result<T, E> {
    fn or_fail(self, what: impl Into<String>) -> Result<T, Failure> {
        self.map_err(|error| Failure::new(error.number(), format!("{}: {error}", what.into())))
    }
}
