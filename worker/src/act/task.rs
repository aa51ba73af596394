//! What a worker is asked.

use std::borrow::Cow;

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
