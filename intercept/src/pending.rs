//! The check that a notification is still pending: that its caller waits in the same system call.
//!
//! What was opened by thread id belongs to the caller only if this check succeeds afterwards,
//! because until then its thread id cannot have passed to another thread. No result may be written,
//! and no operation performed, before it.

use std::os::fd::BorrowedFd;

use rustix::fs::{AtFlags, statat};

use super::listener::id_valid;
use super::verdict::CallError;

/// How to check that a notification is still pending.
#[derive(Debug, Clone, Copy)]
pub(super) enum Pending<'a> {
    /// By the listener and the notification's id.
    Listener(BorrowedFd<'a>, u64),
    /// By an open `/proc/<tid>`, whose files cannot be opened once the thread has ended. liblxc
    /// before 4.0.5 sends that and does not send the listener.
    Directory(BorrowedFd<'a>),
}

impl Pending<'_> {
    /// Returns [`CallError::Gone`] if the notification is not pending any more.
    pub(super) fn check(&self) -> Result<(), CallError> {
        let there = match self {
            Self::Listener(listener, id) => id_valid(*listener, *id).is_ok(),
            Self::Directory(proc) => statat(proc, "stat", AtFlags::empty()).is_ok(),
        };
        if there { Ok(()) } else { Err(CallError::Gone) }
    }
}
