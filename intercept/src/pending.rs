//! How to see that a request is still pending.

use std::os::fd::BorrowedFd;

use rustix::fs::{AtFlags, statat};

use super::listener::id_valid;
use super::verdict::Refusal;

/// How to see that a request is still pending.
#[derive(Debug, Clone, Copy)]
pub(super) enum Pending<'a> {
    /// Ask the listener for the request's id.
    Listener(BorrowedFd<'a>, u64),
    /// liblxc before 4.0.5 keeps the listener to itself. It sends an open `/proc/<tid>`, in
    /// which nothing can be found once the thread is gone.
    Directory(BorrowedFd<'a>),
}

impl Pending<'_> {
    pub(super) fn check(&self) -> Result<(), Refusal> {
        let there = match self {
            Self::Listener(listener, id) => id_valid(*listener, *id).is_ok(),
            Self::Directory(proc) => statat(proc, "stat", AtFlags::empty()).is_ok(),
        };
        if there { Ok(()) } else { Err(Refusal::Gone) }
    }
}
