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

/// An act for a caller.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Task<'a> {
    /// For whom.
    pub(super) who: Cow<'a, Identity>,
    /// What.
    pub(super) what: Cow<'a, What>,
    /// Which descriptors come with it. Those that an act needs in addition follow.
    pub(super) with: With,
    /// On which processor to stay, for now.
    pub(super) processor: Option<usize>,
    /// Is another one likely to follow at once?
    pub(super) follows: bool,
}

/// The descriptors of a task, in this order.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct With {
    /// The caller's process, unless it is the one of the task before.
    pub(super) process: bool,
    /// Its root, unless it is the one of the task before.
    pub(super) root: bool,
    /// The file that paths start from, unless it is the root.
    pub(super) base: bool,
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

    /// Is there nothing to tell but how it ended?
    pub(super) fn is_brief(&self) -> bool {
        matches!(self, Self::Mknod(_) | Self::SetOpaque(_))
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
#[derive(Debug)]
pub struct Answer {
    /// How the act ended.
    pub reply: Reply,
    /// What else there is to tell; what it means depends on the act.
    pub bytes: Vec<u8>,
    /// What was opened, if anything was.
    pub fd: Option<OwnedFd>,
}

impl From<Reply> for Answer {
    fn from(reply: Reply) -> Self {
        Self { reply, bytes: Vec::new(), fd: None }
    }
}

/// How an act ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
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

impl Reply {
    pub(super) fn number(self) -> i32 {
        match self {
            Self::Done => 0,
            Self::Failed(errno) => errno as i32,
            Self::Kernel => -1,
            Self::NoDevices => -2,
        }
    }

    pub(super) fn from_number(number: i32) -> Self {
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
            assert_eq!(Reply::from_number(reply.number()), reply);
        }
    }
}
