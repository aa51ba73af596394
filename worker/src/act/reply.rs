//! How an act ended, and what a worker answers.

use std::os::fd::OwnedFd;

use nix::errno::Errno;
use serde::{Deserialize, Serialize};

/// What a worker answers.
#[derive(Debug, Serialize, Deserialize)]
pub struct Answer {
    /// How the act ended.
    pub reply: Reply,
    /// What else there is to tell; what it means depends on the act.
    pub bytes: Vec<u8>,
    /// What was opened, if anything was.
    #[serde(skip)]
    pub fd: Option<OwnedFd>,
}

impl From<Reply> for Answer {
    fn from(reply: Reply) -> Self {
        Self { reply, bytes: Vec::new(), fd: None }
    }
}

/// How an act ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(from = "i32", into = "i32")]
pub enum Reply {
    /// It was done.
    Done,
    /// It was not, and this is why.
    Failed(Errno),
    /// It is none of ours: the kernel answers the caller.
    Kernel,
    /// The filesystem is one whose device nodes cannot be opened.
    NoDevices,
}

impl From<Reply> for i32 {
    fn from(reply: Reply) -> Self {
        match reply {
            Reply::Done => 0,
            Reply::Failed(errno) => errno as Self,
            Reply::Kernel => -1,
            Reply::NoDevices => -2,
        }
    }
}

impl From<i32> for Reply {
    fn from(number: i32) -> Self {
        match number {
            0 => Self::Done,
            -1 => Self::Kernel,
            -2 => Self::NoDevices,
            number => Self::Failed(Errno::from_raw(number)),
        }
    }
}

impl<T> From<Result<T, rustix::io::Errno>> for Reply {
    fn from(result: Result<T, rustix::io::Errno>) -> Self {
        match result {
            Ok(_) => Self::Done,
            Err(errno) => Self::Failed(Errno::from_raw(errno.raw_os_error())),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn replies_are_numbers() {
        for reply in [Reply::Done, Reply::Failed(Errno::EEXIST), Reply::Kernel, Reply::NoDevices] {
            assert_eq!(Reply::from(i32::from(reply)), reply);
        }
    }
}
