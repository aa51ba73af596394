//! Descriptors that came with `execve`, by number: the one way to own them.
#![allow(unsafe_code, reason = "owning a descriptor by its number")]

use std::os::fd::{BorrowedFd, FromRawFd, OwnedFd, RawFd};

use rustix::io::{FdFlags, fcntl_setfd};

/// Takes a descriptor that this process was started with, and closes it on the next `execve`.
/// Call it once for a number, before anything was opened.
#[must_use]
pub fn take(number: RawFd) -> Option<OwnedFd> {
    // SAFETY: used for one call, which says EBADF when the number is not open.
    let borrowed = unsafe { BorrowedFd::borrow_raw(number) };
    fcntl_setfd(borrowed, FdFlags::CLOEXEC).ok()?;
    // SAFETY: it is open, and whoever started us passed it on for us to own; nothing of ours was
    // opened under this number, as the caller promises.
    Some(unsafe { OwnedFd::from_raw_fd(number) })
}
