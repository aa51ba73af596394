//! The task that is sent to a worker: an operation and the identity to assume for it.
//!
//! No operation may have a capability in force that overrides file permissions while a path is
//! resolved ([`Operation::rights`]). To add an operation: a file with its arguments and its code, a
//! variant of [`Operation`], and a line in `process.rs`.

use std::borrow::Cow;

use rustix::thread::CapabilitySet;
use serde::{Deserialize, Serialize};

use super::bpf::Bpf;
use super::caller_handle::Base;
use super::identity::Identity;
use super::is_roots::IsRoots;
use super::magic_link::MagicLink;
use super::mknod::{self, Mknod};
use super::set_opaque::SetOpaque;
use crate::find::Find;

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
    /// Find out whether a file of the kernel belongs to root.
    IsRoots(IsRoots),
    /// Load, attach or query device programs.
    Bpf(Bpf),
}

impl Operation {
    /// True if a repetition changes nothing, or fails with EEXIST.
    pub(super) fn is_repeatable(&self) -> bool {
        match self {
            Self::Mknod(_) | Self::SetOpaque(_) | Self::IsRoots(_) => true,
            Self::Bpf(_) => false,
        }
    }

    /// Returns the file that a process with all capabilities of the caller looks for where the
    /// permissions do not let a worker pass.
    pub fn find(&self) -> Option<Find> {
        match self {
            Self::Mknod(node) => {
                Some(Find { path: node.folder().to_vec(), folder: true, follow: true })
            }
            Self::SetOpaque(SetOpaque { path: Some(path), follow, .. }) => {
                Some(Find { path: path.clone(), folder: false, follow: *follow })
            }
            Self::SetOpaque(_) | Self::IsRoots(_) | Self::Bpf(_) => None,
        }
    }

    /// Returns the same operation from the target of the magic link with which its path begins.
    /// `None` if it begins with none, or if the operation is for the link itself.
    pub fn from_link(&self) -> Option<(Base, Self)> {
        let (link, operation) = match self {
            Self::Mknod(node) => {
                let (link, path) = MagicLink::split(&node.path)?;
                (link, Self::Mknod(Mknod { path: path?, ..node.clone() }))
            }
            Self::SetOpaque(set) => {
                let (link, path) = MagicLink::split(set.path.as_deref()?)?;
                if path.is_none() && !set.follow {
                    return None;
                }
                (link, Self::SetOpaque(SetOpaque { path, ..set.clone() }))
            }
            Self::IsRoots(_) | Self::Bpf(_) => return None,
        };
        Some((Base::Link(link), operation))
    }

    /// Returns the capabilities that are effective while the path is resolved. None of them
    /// overrides file permissions.
    pub(super) fn rights(&self) -> CapabilitySet {
        match self {
            Self::Mknod(_) => mknod::RIGHTS,
            Self::SetOpaque(_) | Self::IsRoots(_) | Self::Bpf(_) => CapabilitySet::empty(),
        }
    }

    /// Returns the most bytes of data in the answer.
    pub(super) fn room(&self) -> usize {
        match self {
            Self::Mknod(_) | Self::SetOpaque(_) | Self::IsRoots(_) => 0,
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
