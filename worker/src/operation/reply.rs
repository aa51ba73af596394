//! The result of an operation, and the answer of a worker that carries it.
//!
//! A `Reply` is sent as one number, so a new variant needs a number of its own in both conversions.
//! Errnos are positive, all other results are 0 or negative.

use std::io;
use std::os::fd::OwnedFd;

use ambit_kernel::sys::errno::to_errno;
use rustix::io::Errno;
use serde::{Deserialize, Serialize};

use super::magic_link;

/// The answer of a worker.
#[derive(Debug, Serialize, Deserialize)]
pub struct Answer {
    /// The result of the operation.
    pub reply: Reply,
    /// Data that the operation returns; each one defines its own.
    pub bytes: Vec<u8>,
    /// The descriptor that the operation returns, if any.
    #[serde(skip)]
    pub fd: Option<OwnedFd>,
}

impl From<Reply> for Answer {
    fn from(reply: Reply) -> Self {
        Self { reply, bytes: Vec::new(), fd: None }
    }
}

/// The result of an operation.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(from = "i32", into = "i32")]
pub enum Reply {
    /// It succeeded.
    Done,
    /// It failed, and the caller gets this errno.
    Failed(Errno),
    /// It was not tried: the call is left to the kernel.
    Kernel,
    /// It was not tried: the path may lead through a magic link.
    MagicLink,
    /// No node was made, because device nodes of this filesystem cannot be opened.
    NoDevices,
}

impl From<Reply> for i32 {
    fn from(reply: Reply) -> Self {
        match reply {
            Reply::Done => 0,
            Reply::Failed(errno) => errno.raw_os_error(),
            Reply::Kernel => -1,
            Reply::NoDevices => -2,
            Reply::MagicLink => -3,
        }
    }
}

impl From<i32> for Reply {
    fn from(number: i32) -> Self {
        match number {
            0 => Self::Done,
            -1 => Self::Kernel,
            -2 => Self::NoDevices,
            -3 => Self::MagicLink,
            number => Self::Failed(to_errno(io::Error::from_raw_os_error(number))),
        }
    }
}

impl Reply {
    /// Returns the reply of an operation whose path the worker could not resolve. A magic link, such
    /// as `/proc/self`, leads to another place for the worker. Without one the kernel returns the
    /// same errno.
    pub(super) fn unresolved() -> Self {
        if magic_link::are_there() { Self::MagicLink } else { Self::Kernel }
    }
}

impl<T> From<Result<T, Errno>> for Reply {
    fn from(result: Result<T, Errno>) -> Self {
        match result {
            Ok(_) => Self::Done,
            Err(errno) => Self::Failed(errno),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_reply_is_the_same_after_its_encoding_as_a_number() {
        let failed = Reply::Failed(Errno::EXIST);
        let unnamed = Reply::Failed(Errno::from_raw_os_error(524));
        for reply in
            [Reply::Done, failed, unnamed, Reply::Kernel, Reply::NoDevices, Reply::MagicLink]
        {
            assert_eq!(Reply::from(i32::from(reply)), reply);
        }
    }
}
