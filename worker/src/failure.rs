//! Why something was not done: the errno for the caller, and a sentence for the log.
//!
//! Only the act itself has an errno that the caller is told. What fails before it, on our side
//! (taking on the caller's identity, entering its control groups and namespaces, a process or a
//! descriptor that there is no room for), is marked by [`OnOurSide`]: the kernel then answers the
//! call, as if it were not intercepted.

use nix::errno::Errno;

/// Something that was not done.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{message}")]
pub struct Failure {
    /// What the system call returns.
    pub errno: Errno,
    /// What the administrator reads: the object, the system call, the kernel's or the helper's
    /// own words.
    pub message: String,
    /// The act was not tried: the kernel answers the call.
    pub untried: bool,
}

impl Failure {
    pub(super) fn new(errno: Errno, message: impl Into<String>) -> Self {
        Self { errno, message: message.into(), untried: false }
    }

    /// There is nobody to do it.
    pub(super) fn nobody_acts(message: impl Into<String>) -> Self {
        Self::new(Errno::ENOSYS, message).on_our_side()
    }

    /// It failed before the act was tried.
    pub(crate) fn on_our_side(self) -> Self {
        Self { untried: true, ..self }
    }
}

/// Marks failures of what comes before an act.
pub(super) trait OnOurSide {
    fn on_our_side(self) -> Self;
}

impl<T> OnOurSide for Result<T, Failure> {
    fn on_our_side(self) -> Self {
        self.map_err(Failure::on_our_side)
    }
}

/// Errors of the three libraries that make system calls.
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

/// Says what failed.
pub(super) trait OrFail<T> {
    fn or_fail(self, what: impl Into<String>) -> Result<T, Failure>;
}

impl<T, E: Number> OrFail<T> for Result<T, E> {
    fn or_fail(self, what: impl Into<String>) -> Result<T, Failure> {
        self.map_err(|error| Failure::new(error.number(), format!("{}: {error}", what.into())))
    }
}
