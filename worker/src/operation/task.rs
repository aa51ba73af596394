//! The task that is sent to a worker: an operation and the identity to assume for it.
//!
//! No operation may have a capability in force that overrides file permissions while a path is
//! resolved ([`Operation::rights`]). To add an operation: a file with its arguments and its code, a
//! variant of [`Operation`], and a line in `process.rs`.

use std::borrow::Cow;

use rustix::thread::CapabilitySet;
use serde::{Deserialize, Serialize};

use super::bpf::Bpf;
use super::identity::Identity;
use super::mknod::{self, Mknod};
use super::set_opaque::SetOpaque;

/// An operation for a caller. Its descriptors are sent beside it, in this order: the pidfd of the
/// caller's process, its root, the directory at which paths start, and those that the operation
/// needs in addition.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Task<'a> {
    /// The identity to assume.
    pub(super) identity: Cow<'a, Identity>,
    /// The operation.
    pub(super) operation: Cow<'a, Operation>,
}

/// A privileged operation.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Operation {
    /// Make a device node.
    Mknod(Mknod),
    /// Mark a directory or file of overlayfs as opaque.
    SetOpaque(SetOpaque),
    /// Load, attach or query device programs.
    Bpf(Bpf),
}

impl Operation {
    /// True if a repetition changes nothing, or fails with EEXIST.
    pub(super) fn is_repeatable(&self) -> bool {
        match self {
            Self::Mknod(_) | Self::SetOpaque(_) => true,
            Self::Bpf(_) => false,
        }
    }

    /// Returns the capabilities that are effective while the path is resolved. None of them
    /// overrides file permissions.
    pub(super) fn rights(&self) -> CapabilitySet {
        match self {
            Self::Mknod(_) => mknod::RIGHTS,
            Self::SetOpaque(_) | Self::Bpf(_) => CapabilitySet::empty(),
        }
    }

    /// Returns the most bytes of data in the answer.
    pub(super) fn room(&self) -> usize {
        match self {
            Self::Mknod(_) | Self::SetOpaque(_) => 0,
            Self::Bpf(bpf) => bpf.room(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_capability_over_files_or_the_machine_is_in_force_while_a_path_is_resolved() {
        let mknod = Operation::Mknod(Mknod { path: b"null".into(), mode: 0, device: 0 });
        let (users, groups) = (Vec::new(), Vec::new());
        let set = SetOpaque { path: None, follow: false, flags: 0, users, groups };
        assert_eq!(mknod.rights(), CapabilitySet::MKNOD);
        assert_eq!(Operation::SetOpaque(set).rights(), CapabilitySet::empty());
    }
}
