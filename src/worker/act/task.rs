//! What a worker is asked, and what it answers.

use std::borrow::Cow;
use std::os::fd::OwnedFd;

use nix::errno::Errno;
use rustix::thread::CapabilitySet;
use serde::{Deserialize, Serialize};

use super::bpf::Bpf;
use super::identity::Identity;
use super::mknod::{self, Mknod};
use super::set_opaque::SetOpaque;

/// An act for a caller. With it come descriptors: the caller's process, its root, the file that paths
/// start from, and those that an act needs in addition.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Task<'a> {
    /// For whom.
    pub(super) who: Cow<'a, Identity>,
    /// What.
    pub(super) what: Cow<'a, What>,
}

/// The acts. To add one: a file with its arguments and what it does, and a line here and in
/// `process.rs`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum What {
    /// A device node.
    Mknod(Mknod),
    /// The mark of an opaque folder or file of overlayfs.
    SetOpaque(SetOpaque),
    /// Programs that decide on devices.
    Bpf(Bpf),
}

impl What {
    /// True if doing it once more changes nothing, or fails with EEXIST.
    pub(super) fn is_repeatable(&self) -> bool {
        match self {
            Self::Mknod(_) | Self::SetOpaque(_) => true,
            Self::Bpf(_) => false,
        }
    }

    /// The capabilities in force while its path is walked: none that passes over permissions.
    pub(super) fn rights(&self) -> CapabilitySet {
        match self {
            Self::Mknod(_) => mknod::RIGHTS,
            Self::SetOpaque(_) | Self::Bpf(_) => CapabilitySet::empty(),
        }
    }

    /// How many bytes it may have to tell, besides how it ended.
    pub(super) fn room(&self) -> usize {
        match self {
            Self::Mknod(_) | Self::SetOpaque(_) => 0,
            Self::Bpf(bpf) => bpf.room(),
        }
    }
}

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
