//! Detached copies of files, and the mark by which a mount of attach is recognised.

use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::path::Path;

use ambit_kernel::sys::mount_setattr::{MountAttrFlags, make_private};
use ambit_kernel::text::mountinfo::Mounted;
use rustix::mount::OpenTreeFlags;

use crate::error::{Context, Error};

/// How often a copy is repeated if the kernel has dropped the name at once.
const TRIES: usize = 100;

/// Copies a file or folder below a folder, as a detached mount with the mark of attach. Mounts on it
/// are not copied. The copy is in no peer group: what a container mounts on it appears nowhere else.
/// The folder must be on a mount of this mount namespace.
///
/// # Errors
/// There is no such file, or it cannot be copied.
pub fn copy(folder: impl AsFd, path: &Path) -> Result<OwnedFd, Error> {
    let what = || format!("open_tree of {}", path.display());
    for _ in 0..TRIES {
        let flags = OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC;
        let copy = rustix::mount::open_tree(&folder, path, flags).context(what())?;
        // A file of FUSE whose name other processes look up at the same time may have lost it: such
        // a file cannot be mounted (`ambit_fuse::visit` explains why).
        if has_name(&copy) {
            // In a user namespace the times of access of the machine's mounts are locked
            // (mount_namespaces(7)): there is no mark then.
            let marked = match make_private(&copy, mark()) {
                Err(error) if error.kind() == std::io::ErrorKind::PermissionDenied => {
                    make_private(&copy, MountAttrFlags::empty())
                }
                marked => marked,
            };
            marked.context("mount_setattr of a copy")?;
            return Ok(copy);
        }
    }
    Err(Error::new(nix::errno::Errno::ENOENT, format!("{}: it vanishes", what())))
}

/// The mark: nodiratime has no meaning on files and on filesystems without times of access, and
/// mountinfo shows it. A bind mount has it only if the original has.
fn mark() -> MountAttrFlags {
    MountAttrFlags::MOUNT_ATTR_NODIRATIME
        | MountAttrFlags::MOUNT_ATTR_NOSUID
        | MountAttrFlags::MOUNT_ATTR_NODEV
        | MountAttrFlags::MOUNT_ATTR_NOEXEC
}

/// True for a mount that has the mark of attach.
#[must_use]
pub fn is_marked(mount: &Mounted) -> bool {
    let has = |name| mount.attributes.split(',').any(|attribute| attribute == name);
    let is_ours = ["fuse.ambit", "fuse.lxcfs", "cgroup2"].contains(&mount.kind.as_str());
    is_ours && ["nodiratime", "nosuid", "nodev", "noexec"].into_iter().all(has)
}

/// True if its root still has a name in its filesystem.
fn has_name(copy: &OwnedFd) -> bool {
    let shown = format!("/proc/self/fd/{}", copy.as_raw_fd());
    rustix::fs::readlink(shown, Vec::new())
        .is_ok_and(|place| !place.to_bytes().ends_with(b" (deleted)"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_mounts_with_the_mark_are_of_attach() {
        let mount = |kind: &str, attributes: &str| Mounted {
            kind: kind.to_owned(),
            attributes: attributes.to_owned(),
            ..Mounted::default()
        };
        assert!(is_marked(&mount("fuse.ambit", "ro,nosuid,nodev,noexec,nodiratime,relatime")));
        assert!(!is_marked(&mount("fuse.ambit", "ro,nosuid,nodev,noexec,relatime")));
        assert!(!is_marked(&mount("tmpfs", "ro,nosuid,nodev,noexec,nodiratime")));
    }
}
